//! Commands that talk to the running process.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, anyhow};
use http::Method;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{BAD_CONFIG, FAILED, Failure, Outcome, print, print_words, warn};
use crate::{
    admin::{
        self,
        documents::{Service, ServiceState, Status},
    },
    config::{
        self,
        plan::{AdminListen, Hostname},
    },
};

/// Sends a request to the running process. It reports what is wrong with the file by now; if it does not answer, we do.
fn ask(named: Option<PathBuf>, method: Method, path: &str) -> Result<(u16, String), Failure> {
    let file = config::locate(named)?;
    let listen = admin_listen(&file)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(admin::call(&listen, method, path)) {
        Ok(answer) => Ok(answer),
        Err(error) => {
            config::load(&file)?;
            Err(error.into())
        }
    }
}

fn admin_listen(file: &Path) -> Result<AdminListen, Failure> {
    let listen = config::admin_listen(file)?;
    Ok(listen.ok_or_else(|| anyhow!("admin.listen is off: the running process cannot be reached"))?)
}

/// `vestibule reload`: the answer is what the edge says, diagnostics included.
pub fn reload(named: Option<PathBuf>) -> Outcome {
    let (status, said) = ask(named, Method::POST, "/reload")?;
    if status == 200 {
        return print(said);
    }
    warn(said);
    // 422: the file is bad; anything else: it is good, and could not be put into effect.
    Ok(ExitCode::from(if status == 422 { BAD_CONFIG } else { FAILED }))
}

/// `vestibule renew HOST`.
pub fn renew(named: Option<PathBuf>, host: &Hostname) -> Outcome {
    let (status, said) = ask(named, Method::POST, &format!("/renew/{host}"))?;
    if status == 202 {
        return print(said);
    }
    Err(anyhow!("{}", said.trim_end()).into())
}

/// `vestibule healthcheck`: succeeds if the process answers, and says in one line what it is waiting for. A name without a
/// certificate is no failure: a restart would not help, and would order again.
pub fn healthcheck(named: Option<PathBuf>) -> Outcome {
    let (status, said) = ask(named, Method::GET, "/status")?;
    if status != 200 {
        return Err(anyhow!("broken: {status}: {}", said.trim_end()).into());
    }
    let status: Status = serde_json::from_str(&said).context("what answers is not an edge of this version")?;
    print(format_args!("{}\n", printable(&health(&status))))
}

/// The state of a process that answers, in one line.
fn health(status: &Status) -> String {
    let waiting: Vec<_> = status.certificates.iter().filter(|certificate| certificate.not_after.is_none()).collect();
    if let Some(first) = waiting.iter().find(|certificate| certificate.last_error.is_some()).or_else(|| waiting.first())
    {
        let names: Vec<_> = waiting.iter().map(|certificate| certificate.host.as_str()).collect();
        let why = first.last_error.as_ref().or(first.progress.as_ref());
        let why = why.map_or_else(String::new, |why| format!(": {why}"));
        let fix = first.fix.as_ref().map_or_else(String::new, |fix| format!(" -> {fix}"));
        return format!("waiting for a certificate: {}{why}{fix}", names.join(", "));
    }
    if status.unready.is_empty() { "ready".to_owned() } else { format!("not ready: {}", status.unready.join("; ")) }
}

/// `vestibule status`.
pub fn status(named: Option<PathBuf>, json: bool) -> Outcome {
    let (status, said) = ask(named, Method::GET, "/status")?;
    if status != 200 {
        Err(anyhow!("{status}: {}", said.trim_end()))?;
    }
    if json {
        return print(said);
    }
    let status: Status = serde_json::from_str(&said).context("what answers is not an edge of this version")?;
    print_words(words(&status))
}

/// `vestibule dashboard`.
pub fn dashboard(named: Option<PathBuf>, port: u16) -> Outcome {
    let socket = match admin_listen(&config::locate(named)?)? {
        AdminListen::Unix(socket) => socket,
        AdminListen::Tcp(addr) => return print(format_args!("http://{addr}/\n")),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let dashboard = admin::Dashboard::open(socket, port).await?;
        print(format_args!(
            "{}\nThis address is a key: whoever has it may reload and renew. Ctrl-C ends it.\n",
            dashboard.url()?
        ))?;
        tokio::select! {
            served = dashboard.run() => served?,
            interrupted = tokio::signal::ctrl_c() => interrupted?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn words(status: &Status) -> String {
    let mut lines = vec![
        format!("vestibule {}, since {}", status.version, date(status.started)),
        format!("{} connections, {} tunnels", status.connections, status.tunnels),
    ];
    lines.extend(status.unready.iter().map(|reason| format!("not ready: {reason}")));
    if let Some(reload) = status.last_reload.as_ref().filter(|reload| !reload.succeeded) {
        lines.push(format!("the reload of {} failed; see `vestibule check`", date(reload.at)));
    }
    if let Some(clock) = &status.clock {
        lines.push(format!("clock: {clock}"));
    }
    lines.push("\ncertificates".to_owned());
    for certificate in &status.certificates {
        let date = |at: Option<OffsetDateTime>| at.map_or_else(|| "-".to_owned(), date);
        // On two lines, for terminals of 80 columns.
        lines.push(format!("  {}", certificate.host));
        let (ends, next) = (date(certificate.not_after), date(certificate.next));
        lines.push(format!("    {}, ends {ends}, next {next}", certificate.source));
        if let Some(progress) = &certificate.progress {
            lines.push(format!("    now: {}", printable(progress)));
        }
        if let Some(warning) = &certificate.warning {
            lines.push(format!("    warning: {}", printable(warning)));
        }
        if let Some(error) = &certificate.last_error {
            lines.push(format!("    failures: {}, the last: {}", certificate.failures, printable(error)));
        }
        if let Some(fix) = &certificate.fix {
            lines.push(format!("    -> {fix}"));
        }
    }
    lines.push("\nupstreams".to_owned());
    for service in &status.upstreams {
        let state = match service.state {
            ServiceState::Untried => "not tried yet",
            ServiceState::Up => "up",
            ServiceState::Slow => "slow",
            ServiceState::Down => "down",
        };
        let Service { server, in_flight, idle, .. } = service;
        lines.push(format!("  {server:40} {state:4} {in_flight} in flight, {idle} idle"));
        lines.push(format!("    {}", service.sites.join(", ")));
        if let Some(why) = &service.why {
            let since = service.since.map_or(String::new(), |since| format!(" since {}", date(since)));
            lines.push(format!("    {state}{since}: {}", printable(why)));
        }
        if let Some(fix) = &service.fix {
            lines.push(format!("    -> {fix}"));
        }
    }
    lines.join("\n") + "\n"
}

fn date(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_default()
}

/// Words of others, which may speak to the terminal.
fn printable(text: &str) -> String {
    text.replace(char::is_control, " ")
}
