//! The command line. The only place that prints, and the only one that knows exit codes.

mod ask;
mod check;
mod demo;
mod doctor;
mod examples;
pub mod import_caddy;
pub mod init;
mod terminal;

use std::{
    fmt::Display,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, anyhow};
use clap::{CommandFactory as _, Parser, Subcommand, error::ErrorKind};

use self::terminal::Terminal;
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

/// TLS reverse proxy for a self-hosted Matrix homeserver with Element Call.
#[derive(Parser)]
#[command(version, arg_required_else_help = true, after_help = examples::ALL)]
struct Cli {
    // `vestibule --config FILE run`; the help names it where it is used.
    #[arg(long, short, value_name = "FILE", hide = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start the proxy; SIGTERM or SIGINT drains and exits, SIGHUP or an edit of the file reloads it
    #[command(after_help = examples::RUN)]
    Run {
        #[command(flatten)]
        at: ConfigFile,
        /// Replace a running process: start beside it, then make it close its listeners and drain (needs admin.listen)
        #[arg(long)]
        takeover: bool,
    },
    /// Validate the file and print what it does; needs no root, network or free ports
    #[command(after_help = examples::CHECK)]
    Check {
        /// The configuration file, as with --config
        #[arg(value_name = "FILE", conflicts_with = "config")]
        file: Option<PathBuf>,
        #[command(flatten)]
        at: ConfigFile,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Test the live deployment; say what is broken and how to fix it
    #[command(after_help = examples::DOCTOR)]
    Doctor {
        #[command(flatten)]
        at: ConfigFile,
        #[command(flatten)]
        options: Box<doctor::Doctor>,
    },
    /// Run a complete deployment with mock services on this machine, without configuration
    #[command(after_help = examples::DEMO)]
    Demo {
        /// Run the checks and exit: with status 0 if all pass, else 1
        #[arg(long)]
        check: bool,
    },
    /// Write a complete deployment for a server name: vestibule, Synapse, LiveKit and lk-jwt-service; overwrites nothing
    #[command(after_help = examples::INIT)]
    Init(init::Args),
    /// Convert a Caddyfile; report its mistakes and what could not be converted
    #[command(after_help = examples::IMPORT_CADDY)]
    ImportCaddy(import_caddy::Args),
    /// Print the root certificate of the internal CA
    #[command(after_help = examples::CA)]
    Ca(ConfigFile),
    /// Print the TXT record for the ACME challenge dns-persist-01
    #[command(after_help = examples::DNS_RECORD)]
    DnsRecord {
        /// The host name of a site with an ACME certificate
        host: String,
        #[command(flatten)]
        at: ConfigFile,
    },
    /// Reload the configuration file of the running process (it also does so when the file changes)
    #[command(after_help = examples::RELOAD)]
    Reload(ConfigFile),
    /// Make the running process renew a certificate now
    #[command(after_help = examples::RENEW)]
    Renew {
        /// The host name of a site
        #[arg(value_parser = config::site_name)]
        host: Hostname,
        #[command(flatten)]
        at: ConfigFile,
    },
    /// Show certificates, upstreams and readiness of the running process
    #[command(after_help = examples::STATUS)]
    Status {
        #[command(flatten)]
        at: ConfigFile,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the address of the admin page; for a unix socket, serve it on a loopback port until Ctrl-C
    #[command(after_help = examples::DASHBOARD)]
    Dashboard {
        #[command(flatten)]
        at: ConfigFile,
        /// The port to listen on; 0 takes a free one
        #[arg(long, default_value_t = 0)]
        port: u16,
    },
    /// Exit with status 0 if the running process answers
    #[command(after_help = examples::HEALTHCHECK)]
    Healthcheck(ConfigFile),
    /// Print the JSON Schema of the configuration file
    #[command(after_help = examples::SCHEMA)]
    Schema,
    /// Print the reference of the configuration file as Markdown
    #[command(after_help = examples::REFERENCE)]
    Reference,
    /// Print a manual page
    #[command(after_help = examples::MAN)]
    Man {
        /// A command; without one, the page of the program
        command: Option<String>,
    },
    /// Print shell completions
    #[command(after_help = examples::COMPLETIONS)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Where the configuration is.
#[derive(clap::Args)]
struct ConfigFile {
    /// The configuration file [default: $VESTIBULE_CONFIG, ./vestibule.toml, /etc/vestibule/vestibule.toml]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs the command of the command line.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let before = cli.config;
    let named = |at: ConfigFile| at.config.or_else(|| before.clone());
    let outcome = match cli.command {
        Command::Run { at, takeover } => {
            run(named(at), if takeover { app::Start::Takeover } else { app::Start::Alone })
        }
        Command::Check { file, at, json } => check::check(file.or_else(|| named(at)), json),
        Command::Doctor { at, options } => doctor::doctor(named(at), *options),
        Command::Ca(at) => ca(named(at)),
        Command::DnsRecord { host, at } => dns_record(named(at), &host),
        Command::Reload(at) => ask::reload(named(at)),
        Command::Renew { host, at } => ask::renew(named(at), &host),
        Command::Status { at, json } => ask::status(named(at), json),
        Command::Dashboard { at, port } => ask::dashboard(named(at), port),
        Command::Healthcheck(at) => ask::healthcheck(named(at)),
        _ if before.is_some() => {
            Cli::command().error(ErrorKind::ArgumentConflict, "--config is not used by this command").exit()
        }
        Command::Demo { check } => demo::run(check),
        Command::Init(args) => init::run(&args),
        Command::ImportCaddy(args) => import_caddy::run(&args),
        Command::Schema => print(format_args!("{:#}\n", config::schema())),
        Command::Reference => print(config::markdown()),
        Command::Man { command } => man(command.as_deref()),
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

/// Prints an answer that is for people: with colours and line breaks where there is a terminal.
fn print_words(text: impl Display) -> Outcome {
    print(Terminal::stdout().show(&text.to_string()))
}

/// Prints what is to be read beside the answer.
fn warn(text: impl Display) {
    let text = text.to_string();
    // There is nobody left to tell that it cannot be told.
    let _ = write!(io::stderr().lock(), "{}", Terminal::stderr().show(&text));
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

fn man(command: Option<&str>) -> Outcome {
    let mut program = Cli::command();
    // Fills in the usage of the commands.
    program.build();
    let page = match command {
        None => program,
        Some(name) => {
            let found = program.find_subcommand(name);
            found.ok_or_else(|| anyhow!("there is no command `{name}`"))?.clone()
        }
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text)?;
    print(String::from_utf8_lossy(&text))
}

fn completions(shell: clap_complete::Shell) -> Outcome {
    // By way of memory: the generator panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "vestibule", &mut script);
    print(String::from_utf8_lossy(&script))
}
