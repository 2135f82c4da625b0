//! `vestibule check`: prints the plan in words, or everything that is wrong with the file.

use std::{borrow::Cow, path::PathBuf, process::ExitCode};

use super::{BAD_CONFIG, Outcome, print, print_words};
use crate::{
    cert,
    clock::Clock,
    config::{
        self, Plan, Report, Severity,
        plan::{
            Access, AccessRule, Action, Conditions, Matching, PathMatch, Route, Site, SiteTls, Stream, Upstream,
            UpstreamHost,
        },
    },
};

/// Validates the file and touches nothing else.
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
            let outcome = match warnings.count(Severity::Warning) {
                0 => String::new(),
                1 => ", 1 warning".to_owned(),
                n => format!(", {n} warnings"),
            };
            print_words(format_args!("{}{}{}: valid{outcome}\n", words(&plan), warnings.render(), path.display()))
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

/// The report of an invalid file, for a program.
pub fn failed(report: &Report) -> serde_json::Value {
    serde_json::json!({ "ok": false, "file": report.file, "diagnostics": report.to_json() })
}

fn site_json(site: &Site) -> serde_json::Value {
    let route = |route: &Route| serde_json::json!({ "prefix": matched(route), "kind": route.kind.as_str(), "does": does(route), "open": open(route) });
    serde_json::json!({
        "host": site.host.as_str(),
        "port": site.port,
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
        lines.push(format!("\n{}  (certificate: {})", site.name(), certificate(site)));
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
            lines.push(format!("  {:28} {}{}", matched(route), does(route), conditions(route)));
            if let Action::Proxy(_) = route.action
                && route.access.iter().all(|rule| rule.path != PathMatch::Any)
            {
                lines.extend(access(route));
            }
        }
        if let Some(stream) = &site.stream {
            lines.push(format!("  {:28} {}", "every connection", forwards(stream)));
            lines.push(format!("  {:28} ACME, else 404", "plain http"));
        } else if !site
            .routes
            .iter()
            .any(|route| route.prefix == "/" && route.matching == Matching::Prefix && route.conditions.is_empty())
        {
            lines.push(format!("  {:28} 404", "everything else"));
        }
    }
    lines.join("\n") + "\n\n"
}

/// Which paths of a route are open and which are closed, on lines for 80 columns.
fn access(route: &Route) -> Vec<String> {
    let mut lines = Vec::new();
    for path in open(route) {
        match lines.last_mut() {
            Some(last) if String::len(last) + path.len() < 78 => *last += &format!(", {path}"),
            Some(last) => {
                last.push(',');
                lines.push(format!("              {path}"));
            }
            None => lines.push(format!("    open      {path}")),
        }
    }
    let closed = if lines.is_empty() { "every path" } else { "every other path" };
    lines.push(format!("    closed    {closed} (404)"));
    lines
}

/// The open paths as clients write them, before the prefix is removed; `…` is everything below.
fn open(route: &Route) -> Vec<String> {
    let prefix = if route.strip_prefix { route.prefix.trim_end_matches('/') } else { "" };
    let path = |rule: &AccessRule| match &rule.path {
        PathMatch::Exact(path) => Some(format!("{prefix}{path}")),
        PathMatch::Under(path) => Some(format!("{prefix}{}/…", path.trim_end_matches('/'))),
        PathMatch::Any => Some("every path".to_owned()),
    };
    let one = |rule: &AccessRule| match &rule.verdict {
        Access::Pass => path(rule),
        Access::PassFrom(networks) if networks.is_empty() => None,
        Access::PassFrom(networks) => {
            let networks: Vec<_> = networks.iter().map(ToString::to_string).collect();
            path(rule).map(|path| format!("{path} (from {} only)", networks.join(" and ")))
        }
        Access::NotFound => None,
    };
    // Without a removed prefix, only what lies below it reaches the route.
    let meets = |rule: &&AccessRule| {
        let (PathMatch::Exact(path) | PathMatch::Under(path)) = &rule.path else { return true };
        route.strip_prefix
            || route.prefix == "/"
            || path.starts_with(&route.prefix)
            || route.prefix.starts_with(&format!("{path}/"))
    };
    route.access.iter().filter(meets).filter_map(one).collect()
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

/// The path of a route as the file has it.
fn matched(route: &Route) -> String {
    match route.matching {
        Matching::Exact => format!("={}", route.prefix),
        Matching::Pattern | Matching::Prefix => route.prefix.clone(),
    }
}

/// What a request must meet besides its path.
fn conditions(route: &Route) -> String {
    let Conditions { methods, fields, from } = &route.conditions;
    let or = |words: Vec<String>| words.join(" or ");
    let mut all = Vec::new();
    if !methods.is_empty() {
        all.push(or(methods.iter().map(ToString::to_string).collect()));
    }
    all.extend(fields.iter().map(|(name, value)| format!("{name}: {value}")));
    if !from.is_empty() {
        all.push(format!("from {}", or(from.iter().map(ToString::to_string).collect())));
    }
    if all.is_empty() { String::new() } else { format!(", only {}", all.join(", ")) }
}

fn does(route: &Route) -> String {
    let password = if route.guard.basic_auth.is_some() { ", with a password" } else { "" };
    let asked = route.guard.forward_auth.as_ref();
    let asked =
        asked.map(|asked| format!(", if {}{} lets it pass", asked.upstream.name, asked.path)).unwrap_or_default();
    action(route) + password + &asked
}

/// What a request to an upstream has that is not as usual.
fn of_upstream(upstream: &Upstream) -> String {
    let host = match &upstream.host {
        UpstreamHost::OfRequest => String::new(),
        UpstreamHost::OfServer => ", with its own Host".to_owned(),
        UpstreamHost::Fixed(host) => format!(", with Host {host}"),
    };
    let Some(tls) = &upstream.tls else { return host };
    let verified = match (&tls.ca_file, &tls.server_name) {
        _ if !tls.verify => ", certificate NOT verified".to_owned(),
        (ca_file, name) => {
            let name = name.as_ref().map(|name| format!(", certificate for {name}")).unwrap_or_default();
            let roots = ca_file.as_ref().map(|file| format!(", roots in {}", file.display())).unwrap_or_default();
            name + &roots
        }
    };
    let shown = tls.client_certificate.as_ref();
    let shown = shown.map(|pair| format!(", client certificate {}", pair.cert.display())).unwrap_or_default();
    host + &verified + &shown
}

fn action(route: &Route) -> String {
    let stripped = if route.strip_prefix { ", prefix removed" } else { "" };
    match &route.action {
        Action::Proxy(upstream) => {
            let servers: Vec<_> = upstream.servers.iter().map(ToString::to_string).collect();
            format!("{} at {}{stripped}{}", route.kind.as_str(), servers.join(", "), of_upstream(upstream))
        }
        Action::Redirect(origin) => format!("redirect to {origin}"),
        Action::Respond(answer) => format!("answers {}", answer.status.as_u16()),
        Action::RedirectTo { to, status } => format!("redirect to {to} with {}", status.as_u16()),
        Action::Files(files) => format!("files of {}{stripped}", files.root.display()),
        Action::Deny => "denied, 403".into(),
        Action::NotFound => "404".into(),
    }
}
