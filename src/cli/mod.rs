//! The command line. The only place that prints, and the only one that knows exit codes.

mod ask;
mod check;
mod demo;
mod doctor;
pub mod import_caddy;
pub mod init;

use std::{
    fmt::Display,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, anyhow};
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::{
    app, cert,
    clock::Clock,
    config::{
        self, Plan, Report,
        plan::{Hostname, SiteTls},
    },
};

/// 1: failed while running, or a check found a fault.
const FAILED: u8 = 1;

/// 78: the configuration is bad (`EX_CONFIG` of sysexits.h).
const BAD_CONFIG: u8 = 78;

/// The front door of a self-hosted Matrix homeserver with Element Call.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    /// The configuration file [default: $VESTIBULE_CONFIG, ./vestibule.toml, /etc/vestibule/vestibule.toml]
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT; SIGHUP and a change of the file reload
    Run {
        /// Start beside a running process, take over its addresses and let it drain
        #[arg(long)]
        takeover: bool,
    },
    /// Read and judge the file: no root, no network, no ports
    Check {
        /// For a program
        #[arg(long)]
        json: bool,
    },
    /// Probe the live deployment: name what is broken, and what mends it
    Doctor(Box<doctor::Doctor>),
    /// The whole edge on this machine with no set-up
    Demo {
        /// Exit after the table of checks, with 0 or 1
        #[arg(long)]
        check: bool,
    },
    /// Write a complete deployment for a server name: this edge, Synapse, LiveKit and lk-jwt-service; overwrites nothing
    Init(init::Args),
    /// Print a Caddyfile as our configuration, and say what was wrong in it and what could not be carried over
    ImportCaddy(import_caddy::Args),
    /// Print the root of the internal CA
    Ca,
    /// Print the TXT record that proves a name by dns-persist-01
    DnsRecord {
        /// A site with a certificate of a CA
        host: String,
    },
    /// Make the running edge read its file again
    Reload,
    /// Make the running edge order a new certificate for a name now
    Renew {
        /// The name
        #[arg(value_parser = config::site_name)]
        host: Hostname,
    },
    /// Show what the running edge is doing
    Status {
        /// For a program
        #[arg(long)]
        json: bool,
    },
    /// Print the address of the running edge's page; for a unix socket, serve it on a loopback port until Ctrl-C
    Dashboard {
        /// The port; any that is free unless this is set
        #[arg(long, default_value_t = 0)]
        port: u16,
    },
    /// Exit with 0 if the running edge answers
    Healthcheck,
    /// Print the JSON Schema of the configuration file
    Schema,
    /// Print the reference of the configuration file as Markdown
    Reference,
    /// Print shell completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Does what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Run { takeover } => run(cli.config, if takeover { app::Start::Takeover } else { app::Start::Alone }),
        Command::Check { json } => check::check(cli.config, json),
        Command::Doctor(asked) => doctor::doctor(cli.config, *asked),
        Command::Demo { check } => demo::run(check),
        Command::Init(args) => init::run(&args),
        Command::ImportCaddy(args) => import_caddy::run(&args),
        Command::Ca => ca(cli.config),
        Command::DnsRecord { host } => dns_record(cli.config, &host),
        Command::Reload => ask::reload(cli.config),
        Command::Renew { host } => ask::renew(cli.config, &host),
        Command::Status { json } => ask::status(cli.config, json),
        Command::Dashboard { port } => ask::dashboard(cli.config, port),
        Command::Healthcheck => ask::healthcheck(cli.config),
        Command::Schema => print(format_args!("{:#}\n", config::schema())),
        Command::Reference => print(config::markdown()),
        Command::Completions { shell } => completions(shell),
    };
    outcome.unwrap_or_else(|failure| match failure {
        Failure::Config(report) => {
            warn(report.render());
            ExitCode::from(BAD_CONFIG)
        }
        Failure::Other(error) => {
            warn(format_args!("error: {error:#}\n"));
            ExitCode::from(FAILED)
        }
    })
}

/// Why a command failed.
enum Failure {
    /// The file is bad.
    Config(Box<Report>),
    /// Anything else.
    Other(anyhow::Error),
}

impl From<Box<Report>> for Failure {
    fn from(report: Box<Report>) -> Self {
        Self::Config(report)
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

type Outcome = Result<ExitCode, Failure>;

/// Prints the answer of a command. Who reads it may have seen enough (`| head`), which is no fault; a full disk is one.
fn print(text: impl Display) -> Outcome {
    let mut out = io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("the answer cannot be written")?
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Prints what is to be read beside the answer.
fn warn(text: impl Display) {
    // There is nobody left to tell that it cannot be told.
    let _ = write!(io::stderr().lock(), "{text}");
}

fn load(named: Option<PathBuf>) -> Result<(PathBuf, Plan, Report), Box<Report>> {
    let path = config::locate(named)?;
    let (plan, warnings) = config::load(&path)?;
    Ok((path, plan, warnings))
}

fn run(named: Option<PathBuf>, start: app::Start) -> Outcome {
    let (path, plan, warnings) = load(named)?;
    warn(warnings.render());
    Ok(match app::run(&path, plan, start)? {
        app::Outcome::Finished => ExitCode::SUCCESS,
        app::Outcome::Aborted => ExitCode::from(FAILED),
    })
}

fn ca(named: Option<PathBuf>) -> Outcome {
    let (_, plan, _) = load(named)?;
    // Asking must not make a CA that nobody uses, and that belongs to whoever asked.
    if !plan.sites.iter().any(|site| site.tls == SiteTls::Internal) {
        Err(anyhow!("no site has its certificate from the internal CA (tls.certificates = \"internal\")"))?;
    }
    print(cert::root_pem(&cert::Store::new(plan.storage), &Clock::system())?)
}

/// Prints the record in the form of a zone file, one line for each CA.
fn dns_record(named: Option<PathBuf>, host: &str) -> Outcome {
    let (_, plan, _) = load(named)?;
    if !plan.sites.iter().any(|site| site.host.as_str() == host && site.tls == SiteTls::Acme) {
        Err(anyhow!("no site `{host}` has its certificate from a CA"))?;
    }
    let store = cert::Store::new(plan.storage);
    let mut lines = String::new();
    for directory in &plan.acme.directories {
        let (name, value) = cert::dns_record(&store, &directory.url, host)?;
        lines.push_str(&format!("{name}. IN TXT \"{value}\"\n"));
    }
    print(lines)
}

fn completions(shell: clap_complete::Shell) -> Outcome {
    // By way of memory: the generator panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "vestibule", &mut script);
    print(String::from_utf8_lossy(&script))
}
