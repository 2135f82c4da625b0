//! `vestibule doctor`: tests the live deployment and says what is broken, at which layer, and how to fix it.

use std::{
    env,
    io::{self, IsTerminal as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Args;

use super::{BAD_CONFIG, FAILED, Outcome, check, load, print, print_words, warn};
use crate::{
    app::{self, ProbeOverrides, Redirection},
    doctor::{Account, Diagnosis, ProbeOptions, Verdict},
};

/// Where the password of `--user` may come from in a script.
const PASSWORD: &str = "VESTIBULE_PASSWORD";

/// The arguments.
#[derive(Args)]
#[group(skip)]
pub struct Doctor {
    /// Print JSON, for a program
    #[arg(long)]
    json: bool,
    /// Access token of an account on the homeserver: also test what needs an account
    #[arg(long, env = "VESTIBULE_TOKEN", hide_env_values = true, value_name = "TOKEN", conflicts_with = "user")]
    token: Option<String>,
    /// The same with a user name; asks for the password, or takes it from $VESTIBULE_PASSWORD. Signs in, and out again
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// A room of the account, by its ID: test whether its members may announce themselves in a call (needs an account)
    #[arg(long, value_name = "ROOM_ID")]
    room: Option<String>,
    /// Also test whether a long poll of a minute is cut (needs an account)
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
    let plan = match load(named) {
        Ok((_, plan, _)) => plan,
        Err(report) if asked.json => {
            print(format_args!("{:#}\n", check::failed(&report)))?;
            return Ok(ExitCode::from(BAD_CONFIG));
        }
        Err(report) => return Err(report.into()),
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let diagnosis = runtime.block_on(app::checkup(&plan, &wanted, lens, &progress))?;
    wipe();
    if asked.json {
        print(format_args!("{:#}\n", diagnosis.to_json()))?;
    } else {
        print_words(words(&diagnosis))?;
    }
    Ok(if diagnosis.is_healthy() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn account(token: Option<String>, user: Option<String>) -> anyhow::Result<Option<Account>> {
    let Some(user) = user else { return Ok(token.map(Account::Token)) };
    let password = match env::var(PASSWORD) {
        Ok(password) => password,
        Err(_) => rpassword::prompt_password(format!("Password of {user}: "))
            .with_context(|| format!("the password cannot be asked for here: set {PASSWORD}"))?,
    };
    Ok(Some(Account::Password { user, password }))
}

fn words(diagnosis: &Diagnosis) -> String {
    // rust-sdk keeps both documents for 24 h, Synapse `m.server` for up to 48 h.
    let hint = "\nClients remember where things are for a day, other homeservers for up to two:\n\
                after a fix, sign in afresh to see it.\n";
    let hint = if diagnosis.count(Verdict::Fail) > 0 { hint } else { "" };
    format!("{diagnosis}{hint}")
}

/// A line on a terminal that overwrites itself, and nothing anywhere else.
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
