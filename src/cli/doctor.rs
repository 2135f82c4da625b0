//! `vestibule doctor`: tests the live deployment and says what is broken, at which layer, and how to fix it.

use std::{
    env,
    io::{self, IsTerminal as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;

use http::Method;
use time::OffsetDateTime;
use tokio::time::sleep;

use super::{BAD_CONFIG, FAILED, Outcome, check, load, print, print_words, warn};
use crate::{
    admin::{
        self,
        documents::{Certificate, DoctorRun, Status},
    },
    app::{self, ProbeOverrides, Redirection},
    config::{self, Report, plan::AdminListen},
    doctor::{Account, Check, Diagnosis, Finding, Layer, ProbeOptions, Verdict},
};

/// The pause between requests for the result of the running process.
const RUNNING_LOOK: Duration = Duration::from_millis(100);

/// The most such requests: two minutes, which is longer than any run without an account takes.
const RUNNING_LOOKS: usize = 1_200;

/// The environment variable with the password of `--user`.
const PASSWORD: &str = "VESTIBULE_PASSWORD";

/// The arguments of `vestibule doctor`.
#[derive(Args)]
#[group(skip)]
pub struct Doctor {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Access token of an account on the homeserver: also test what needs an account
    #[arg(long, env = "VESTIBULE_TOKEN", hide_env_values = true, value_name = "TOKEN", conflicts_with = "user")]
    token: Option<String>,
    /// Like --token, but logs in as this user and out again; prompts for the password or reads $VESTIBULE_PASSWORD
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// ID of a room that the account has joined: test whether its power levels let members join calls (needs an account)
    #[arg(long, value_name = "ROOM_ID")]
    room: Option<String>,
    /// Also test that a long poll of 60 s is not aborted (needs an account)
    #[arg(long)]
    slow: bool,
    /// Validate LiveKit's configuration file, and test its media ports
    #[arg(long, value_name = "FILE")]
    livekit: Option<PathBuf>,
    /// Validate Synapse's homeserver.yaml
    #[arg(long, value_name = "FILE")]
    homeserver: Option<PathBuf>,
    /// Validate the compose file
    #[arg(long, value_name = "FILE")]
    compose: Option<PathBuf>,
    /// Resolve a name to this address, as with curl; `*` is every host
    #[arg(long, value_name = "HOST:PORT:ADDRESS")]
    resolve: Vec<Redirection>,
    /// Name server for SRV records [default: the one of /etc/resolv.conf]
    #[arg(long, value_name = "ADDRESS:PORT")]
    nameserver: Option<std::net::SocketAddr>,
    /// PEM roots to trust in addition to the system's (a private CA)
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

/// Runs the checks and prints the findings.
pub fn doctor(named: Option<PathBuf>, asked: Doctor) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let plan = match load(named.clone()) {
        Ok((_, plan, _)) => plan,
        Err(report) => return runtime.block_on(doctor_of_running(named, asked.json, report)),
    };
    let wanted = ProbeOptions {
        account: account(asked.token, asked.user)?,
        room: asked.room,
        slow: asked.slow,
        livekit: asked.livekit,
        homeserver: asked.homeserver,
        compose: asked.compose,
    };
    let lens = ProbeOverrides { resolve: asked.resolve, nameserver: asked.nameserver, ca_file: asked.ca_file };
    let mut diagnosis = runtime.block_on(app::checkup(&plan, &wanted, lens, &progress))?;
    if let Some(status) = runtime.block_on(status_of_running(plan.admin.listen.as_ref())) {
        add_findings_of_running(&mut diagnosis, &status);
    }
    wipe();
    if asked.json {
        print(format_args!("{:#}\n", diagnosis.to_json()))?;
    } else {
        print_words(words(&diagnosis))?;
    }
    Ok(if diagnosis.is_healthy() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// Runs the checks when the file is invalid: a running process tests the configuration that it has in effect.
async fn doctor_of_running(named: Option<PathBuf>, as_json: bool, report: Box<Report>) -> Outcome {
    let listen = config::admin_listen(&config::locate(named)?).ok().flatten();
    let diagnosis = match &listen {
        Some(listen) => running(listen).await,
        None => None,
    };
    let Some(mut diagnosis) = diagnosis else {
        if as_json {
            print(format_args!("{:#}\n", check::failed(&report)))?;
            return Ok(ExitCode::from(BAD_CONFIG));
        }
        return Err(report.into());
    };
    let check = Check::new(Layer::Configuration, "configuration", &report.file);
    let fact = "the file is invalid; the checks below test the configuration that is in effect";
    diagnosis.0.insert(0, check.fail("invalid", fact, "correct the errors that `vestibule check` shows"));
    if as_json {
        let mut document = check::failed(&report);
        document["findings"] = diagnosis.to_json()["findings"].take();
        print(format_args!("{document:#}\n"))?;
    } else {
        warn(report.render());
        print_words(words(&diagnosis))?;
    }
    Ok(ExitCode::from(FAILED))
}

/// The findings of the running process with the configuration in effect; `None` if no process answers.
async fn running(listen: &AdminListen) -> Option<Diagnosis> {
    // 409: another client has just started it.
    let (202 | 409, _) = admin::call(listen, Method::POST, "/doctor").await.ok()? else { return None };
    for _ in 0..RUNNING_LOOKS {
        let (_, text) = admin::call(listen, Method::GET, "/doctor").await.ok()?;
        let run: DoctorRun = serde_json::from_str(&text).ok()?;
        if !run.running {
            return Diagnosis::try_from(run.findings?).ok();
        }
        sleep(RUNNING_LOOK).await;
    }
    None
}

/// The status of the running process; `None` if no process answers.
async fn status_of_running(listen: Option<&AdminListen>) -> Option<Status> {
    let (_, text) = admin::call(listen?, Method::GET, "/status").await.ok()?;
    serde_json::from_str(&text).ok()
}

/// Adds what only the running process knows: that it has rejected the file, in which case another configuration is in
/// effect, and why it has not obtained a certificate.
fn add_findings_of_running(diagnosis: &mut Diagnosis, status: &Status) {
    // What is wrong with a certificate as such is known by a handshake as well, and told once.
    let is_seen = |host: &str| {
        let about =
            |other: &Finding| other.subject.split(", ").any(|subject| subject.split(" at ").next() == Some(host));
        let faults = ["tls.inside.expired", "tls.inside.name", "tls.inside.unknown"];
        diagnosis.0.iter().any(|other| faults.contains(&&*other.id) && about(other))
    };
    let certificates = status.certificates.iter().filter(|one| one.source == "acme" || !is_seen(&one.host));
    let failed: Vec<_> = certificates.filter_map(failed_certificate).collect();
    // The same fault seen in a handshake, where its cause is not known.
    let is_told = |subject: &str| subject.split(", ").all(|host| failed.iter().any(|finding| finding.subject == host));
    diagnosis.0.retain(|other| !(other.id == "tls.inside.missing" && is_told(&other.subject)));
    let findings = [std::mem::take(&mut diagnosis.0), failed].concat();
    *diagnosis = Diagnosis::of(findings);
    if let Some(reload) = status.last_reload.as_ref().filter(|reload| !reload.succeeded) {
        let check = Check::new(Layer::Configuration, "configuration", "the running process");
        let fact = format!("it rejected its last reload, so its old configuration is in effect: {}", reload.message);
        let fix = "correct the errors that `vestibule check` shows, then run `vestibule reload`";
        diagnosis.0.insert(0, check.fail("rejected", fact, fix));
    }
}

/// The finding that the last attempt to obtain or load a certificate failed.
fn failed_certificate(certificate: &Certificate) -> Option<Finding> {
    let (error, fix) = (certificate.last_error.as_ref()?, certificate.fix.as_ref()?);
    let check = Check::new(Layer::Tls, "certificate", &certificate.host);
    Some(match certificate.not_after {
        // The one that is held serves until it ends.
        Some(end) if end > OffsetDateTime::now_utc() => check.warn("not_renewed", error, fix),
        Some(_) => check.fail("expired", error, fix),
        None => check.fail("missing", error, fix),
    })
}

fn account(token: Option<String>, user: Option<String>) -> anyhow::Result<Option<Account>> {
    let Some(user) = user else { return Ok(token.map(Account::Token)) };
    let password = match env::var(PASSWORD) {
        Ok(password) => password,
        Err(_) => rpassword::prompt_password(format!("Password of {user}: "))
            .with_context(|| format!("cannot prompt for the password here: set {PASSWORD}"))?,
    };
    Ok(Some(Account::Password { user, password }))
}

fn words(diagnosis: &Diagnosis) -> String {
    // rust-sdk keeps both documents for 24 h, Synapse `m.server` for up to 48 h.
    let hint = "\nClients cache the well-known documents for a day, and other homeservers for up to two days:\n\
                after a fix, log in again to see it.\n";
    let hint = if diagnosis.count(Verdict::Fail) > 0 { hint } else { "" };
    format!("{diagnosis}{hint}")
}

/// Prints a progress line that overwrites itself, only on a terminal.
fn progress(what: &str, done: usize, all: usize) {
    if io::stderr().is_terminal() {
        warn(format_args!("\r\x1b[K{done}/{all} {what}"));
    }
}

fn wipe() {
    if io::stderr().is_terminal() {
        warn("\r\x1b[K");
    }
}
