//! Commands that ask the running edge.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{anyhow, bail};
use http::Method;

use super::{BAD_CONFIG, FAILED, Failure, Outcome, print, warn};
use crate::{
    admin,
    config::{self, plan::Hostname},
};

/// Asks the running edge. The file may be bad by now, which is the edge's to say; where nobody answers, it is ours.
fn ask(named: Option<PathBuf>, method: Method, path: &str) -> Result<(u16, String), Failure> {
    let file = config::locate(named)?;
    let door = config::door(&file)?.ok_or_else(|| anyhow!("admin.listen is off, so nobody can be asked"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(admin::call(&door, method, path)) {
        Ok(answer) => Ok(answer),
        Err(error) => {
            config::load(&file)?;
            Err(error.into())
        }
    }
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

/// `vestibule healthcheck`.
pub fn healthcheck(named: Option<PathBuf>) -> Outcome {
    match ask(named, Method::GET, "/health")? {
        (200, _) => Ok(ExitCode::SUCCESS),
        (status, said) => Err(anyhow!("{status}: {}", said.trim_end()).into()),
    }
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
    let value: serde_json::Value = serde_json::from_str(&said)?;
    print(words(&value)?)
}

fn words(value: &serde_json::Value) -> anyhow::Result<String> {
    let Some(version) = value["version"].as_str() else { bail!("what answers is no edge") };
    let mut lines = vec![
        format!("vestibule {version}, since {}", value["started"].as_str().unwrap_or("?")),
        format!("{} connections, {} tunnels", value["connections"], value["tunnels"]),
    ];
    for reason in value["unready"].as_array().into_iter().flatten() {
        lines.push(format!("not ready: {}", reason.as_str().unwrap_or_default()));
    }
    if let Some(clock) = value["clock"].as_str() {
        lines.push(format!("clock: {clock}"));
    }
    lines.push("\ncertificates".to_owned());
    for certificate in value["certificates"].as_array().into_iter().flatten() {
        let text = |key: &str| certificate[key].as_str().unwrap_or("-").to_owned();
        // On two lines, for terminals of 80 columns.
        lines.push(format!("  {}", text("host")));
        lines.push(format!("    {}, ends {}, next {}", text("source"), text("not_after"), text("next")));
        if let Some(progress) = certificate["progress"].as_str() {
            lines.push(format!("    now: {}", progress.replace(char::is_control, " ")));
        }
        if let Some(error) = certificate["last_error"].as_str() {
            // In the words of the CA, which may speak to the terminal.
            let error = error.replace(char::is_control, " ");
            lines.push(format!("    failures: {}, the last: {error}", certificate["failures"]));
        }
    }
    lines.push("\nupstreams".to_owned());
    for upstream in value["upstreams"].as_array().into_iter().flatten() {
        let up = if upstream["up"].as_bool().unwrap_or_default() { "up" } else { "down" };
        lines.push(format!(
            "  {:40} {up:4} {} in flight, {} idle",
            upstream["server"].as_str().unwrap_or("?"),
            upstream["in_flight"],
            upstream["idle"]
        ));
    }
    Ok(lines.join("\n") + "\n")
}
