//! `vestibule check`: the plan in words, or everything that is wrong with the file.

use std::{borrow::Cow, path::PathBuf, process::ExitCode};

use super::{BAD_CONFIG, Outcome, print};
use crate::{
    cert,
    clock::Clock,
    config::{
        self, Plan, Report,
        plan::{Action, Route, Site, SiteTls, Stream},
    },
};

/// Judges the file and touches nothing else.
pub fn check(named: Option<PathBuf>, json: bool) -> Outcome {
    match load_and_inspect(named) {
        Ok((path, plan, warnings)) if json => {
            let value = serde_json::json!({
                "ok": true,
                "file": path,
                "diagnostics": warnings.to_json(),
                "sites": plan.sites.iter().map(site_json).collect::<Vec<_>>(),
            });
            print(format_args!("{value:#}\n"))
        }
        Ok((path, plan, warnings)) => {
            print(format_args!("{}{}{}: fine\n", words(&plan), warnings.render(), path.display()))
        }
        Err(report) if json => {
            print(format_args!("{:#}\n", failed(&report)))?;
            Ok(ExitCode::from(BAD_CONFIG))
        }
        Err(report) => Err(report.into()),
    }
}

/// Reads the file, and looks into the certificates that it names.
fn load_and_inspect(named: Option<PathBuf>) -> Result<(PathBuf, Plan, Report), Box<Report>> {
    let path = config::locate(named)?;
    let now = Clock::system().now();
    let (plan, warnings) = config::load_and_inspect(&path, &|pairs, host| cert::inspect(pairs, host, now))?;
    Ok((path, plan, warnings))
}

/// A bad file, for a program.
pub fn failed(report: &Report) -> serde_json::Value {
    serde_json::json!({ "ok": false, "file": report.file, "diagnostics": report.to_json() })
}

fn site_json(site: &Site) -> serde_json::Value {
    let route =
        |route: &Route| serde_json::json!({ "prefix": route.prefix, "kind": route.kind.as_str(), "does": does(route) });
    serde_json::json!({
        "host": site.host.as_str(),
        "certificate": certificate(site),
        "well_known": site.well_known.is_some(),
        "routes": site.routes.iter().map(route).collect::<Vec<_>>(),
        "stream": site.stream.as_ref().map(forwards),
    })
}

fn words(plan: &Plan) -> String {
    let mut lines = Vec::new();
    let addresses = |list: &[std::net::SocketAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    lines.push(format!("listens on   {} (https)", addresses(&plan.listen.https)));
    if !plan.listen.http.is_empty() {
        lines
            .push(format!("             {} (http: ACME, well-known, redirect to https)", addresses(&plan.listen.http)));
    }
    if let Some(matrix) = &plan.matrix {
        lines.push(format!("server name  {}", matrix.server_name));
        lines.push(format!("homeserver   {}", matrix.homeserver));
        lines.push(format!("federation   {}", matrix.federation));
        for transport in &matrix.rtc_transports {
            let addresses = [transport.url.as_deref(), transport.service.as_deref()];
            let addresses: Vec<_> = addresses.into_iter().flatten().collect();
            lines.push(format!("calls        {}", addresses.join("  token service: ")));
        }
    }
    for site in &plan.sites {
        lines.push(format!("\n{}  (certificate: {})", site.host, certificate(site)));
        if let Some(documents) = &site.well_known {
            for (name, document) in
                [("client", &documents.client), ("server", &documents.server), ("support", &documents.support)]
            {
                let shown =
                    document.as_ref().map_or(Cow::Borrowed("404"), |document| String::from_utf8_lossy(document));
                lines.push(format!("  /.well-known/matrix/{name:8} {shown}"));
            }
        }
        for route in &site.routes {
            lines.push(format!("  {:28} {}", route.prefix, does(route)));
        }
        if let Some(stream) = &site.stream {
            lines.push(format!("  {:28} {}", "every connection", forwards(stream)));
            lines.push(format!("  {:28} ACME, else 404", "plain http"));
        } else if !site.routes.iter().any(|route| route.prefix == "/") {
            lines.push(format!("  {:28} 404", "everything else"));
        }
    }
    lines.join("\n") + "\n\n"
}

fn certificate(site: &Site) -> String {
    match &site.tls {
        SiteTls::Acme => "ACME".into(),
        SiteTls::Internal => "internal CA".into(),
        SiteTls::Files(pair) => format!("file {}", pair.cert.display()),
        SiteTls::SharedFiles(_) => "one of tls.certificates".into(),
        SiteTls::Wildcard => "that of the wildcard".into(),
        SiteTls::Off => "none, plain HTTP".into(),
        SiteTls::Passthrough => "of the upstream, TLS passes through".into(),
    }
}

fn forwards(stream: &Stream) -> String {
    let servers: Vec<_> = stream.upstream.servers.iter().map(ToString::to_string).collect();
    let header = if stream.upstream.proxy_protocol { ", PROXY protocol v2" } else { "" };
    format!("{} to {}{header}", stream.kind.as_str(), servers.join(", "))
}

fn does(route: &Route) -> String {
    let stripped = if route.strip_prefix { ", prefix taken off" } else { "" };
    match &route.action {
        Action::Proxy(upstream) => {
            let servers: Vec<_> = upstream.servers.iter().map(ToString::to_string).collect();
            format!("{} at {}{stripped}", route.kind.as_str(), servers.join(", "))
        }
        Action::Redirect(origin) => format!("redirect to {origin}"),
        Action::Respond(answer) => format!("answers {}", answer.status.as_u16()),
        Action::NotFound => "404".into(),
    }
}
