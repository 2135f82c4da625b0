//! `vestibule init`: a complete deployment for a server name, written into a folder. It asks nothing and overwrites
//! nothing. What the files say is in `render`, which touches no file.

mod add;
mod appliance;
mod render;
mod resolution;

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

pub use self::render::{Addresses, Deployment, File, Layout, Secrets, Turn, render};
use self::render::{REGISTRATION, REGISTRATION_GROUP};
use super::{Outcome, print, warn};
use crate::config::{self, plan::Hostname};

/// The arguments of `init`.
#[derive(clap::Args)]
pub struct Args {
    /// The Matrix server name (after the colon in user IDs), like example.org
    #[arg(value_parser = public_name)]
    server_name: String,
    /// Output directory; created if missing
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Contact address for the ACME account
    #[arg(long, value_parser = mail_address)]
    email: Option<String>,
    /// The name of the homeserver [default: matrix.SERVER_NAME]
    #[arg(long, value_name = "HOST", value_parser = public_name)]
    homeserver: Option<String>,
    /// Serve calls under /livekit on the homeserver's host name instead of on two separate host names
    #[arg(long)]
    one_host: bool,
    /// Omit media through port 443, for callers whose firewall blocks all other ports
    #[arg(long)]
    no_turn: bool,
    /// Add a part to an existing deployment: write missing files, print the changes needed in existing files
    #[arg(long, value_name = "PART", value_enum, conflicts_with = "appliance")]
    add: Option<Part>,
    /// Write the files of the appliance, which it does at each start: all services on one loopback, replacing the last files
    #[arg(long, hide = true)]
    appliance: bool,
}

/// A part that can be added to a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Call tokens from the homeserver
    Calls,
}

/// Writes the files, and prints the next steps.
///
/// # Errors
/// One of the files exists, or the directory cannot be written; then no file is written.
pub(super) fn run(args: &Args) -> Outcome {
    let layout = if args.one_host { Layout::OneHost } else { Layout::ThreeHosts };
    let homeserver = args.homeserver.clone().unwrap_or_else(|| format!("matrix.{}", args.server_name));
    let (addresses, secrets) = if args.appliance {
        (appliance::addresses(), appliance::secrets(&args.dir)?)
    } else {
        (Addresses::default(), Secrets::generate()?)
    };
    let turn = if args.appliance {
        appliance::turn(&args.server_name, &homeserver).filter(|_| !args.no_turn)
    } else {
        (!args.no_turn).then(|| Turn::in_compose(&args.server_name))
    };
    let deployment = Deployment {
        server_name: args.server_name.clone(),
        homeserver,
        layout,
        turn,
        email: args.email.clone(),
        addresses,
        secrets,
    };
    if args.appliance {
        return appliance::write(&args.dir, &deployment);
    }
    if let Some(Part::Calls) = args.add {
        return add::run(args, deployment);
    }
    if let Some(domain) = domain_of(&args.server_name) {
        let name = &args.server_name;
        warn(format_args!(
            "warning: user IDs will end in {name} (@alice:{name}), and that cannot be changed later;\n         \
             for @alice:{domain}, run `vestibule init {domain}`\n"
        ));
    }
    let files = render(&deployment);
    validate(&files)?;
    write(&args.dir, &files)?;
    let shared = share_registration(&args.dir);
    print(next_steps(&args.dir, &deployment, &files) + &shared)
}

/// The domain that was probably meant by a server name like `matrix.example.org`.
fn domain_of(server_name: &str) -> Option<&str> {
    let (first, domain) = server_name.split_once('.')?;
    (matches!(first, "matrix" | "synapse" | "homeserver") && domain.contains('.')).then_some(domain)
}

/// A name that the whole world can look up, and that YAML takes for a string without quotes.
fn public_name(text: &str) -> Result<String, String> {
    let name: Hostname = text.parse()?;
    let name = name.as_str();
    match name.rsplit_once('.') {
        Some((_, top)) if top.bytes().any(|b| b.is_ascii_alphabetic()) => Ok(name.to_owned()),
        _ => Err(format!("`{name}` is not a public host name (like example.org)")),
    }
}

fn mail_address(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_graphic() && !"\"\\'<>,;$".contains(c);
    let is_address = text.split_once('@').is_some_and(|(local, domain)| !local.is_empty() && domain.contains('.'));
    if is_address && text.chars().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("this is not an e-mail address".into())
    }
}

/// Checks that `check` accepts the file that is about to be written.
fn validate(files: &[File]) -> anyhow::Result<()> {
    let Some(file) = files.iter().find(|file| file.name == "vestibule.toml") else { return Ok(()) };
    match config::parse(file.name, &file.text, PathBuf::new(), &|_| None) {
        Ok(_) => Ok(()),
        Err(report) => anyhow::bail!("these names conflict:\n{}", report.render()),
    }
}

fn write(dir: &Path, files: &[File]) -> anyhow::Result<()> {
    let taken: Vec<_> =
        files.iter().map(|file| file.name).filter(|name| dir.join(name).symlink_metadata().is_ok()).collect();
    if !taken.is_empty() {
        let exist = if taken.len() == 1 { "exists" } else { "exist" };
        anyhow::bail!("nothing was written, because {} already {exist} in {}", taken.join(", "), dir.display());
    }
    fs::create_dir_all(dir).with_context(|| format!("cannot create the directory {}", dir.display()))?;
    let mut written = Vec::new();
    for file in files {
        let path = dir.join(file.name);
        let outcome = write_new(&path, file);
        written.push(path);
        if let Err(error) = outcome {
            // All or nothing: with half a deployment in place, the next try would fail.
            for path in &written[..written.len() - 1] {
                let _ = fs::remove_file(path);
            }
            return Err(error).with_context(|| format!("cannot write {}", dir.join(file.name).display()));
        }
    }
    Ok(())
}

fn write_new(path: &Path, file: &File) -> std::io::Result<()> {
    let mut open = OpenOptions::new().create_new(true).write(true).mode(file.mode).open(path)?;
    let outcome = open.write_all(file.text.as_bytes()).and_then(|()| open.sync_all());
    if outcome.is_err() {
        let _ = fs::remove_file(path);
    }
    outcome
}

/// Makes the registration readable only by the group of both containers, or returns the command if this user may not.
fn share_registration(dir: &Path) -> String {
    let path = dir.join(REGISTRATION);
    let group = fs::metadata(&path).map(|file| file.gid());
    match group {
        Ok(REGISTRATION_GROUP) | Err(_) => return String::new(),
        Ok(_) => {}
    }
    match std::os::unix::fs::chown(&path, None, Some(REGISTRATION_GROUP)) {
        Ok(()) => String::new(),
        Err(_) => format!(
            "\nSynapse and lk-jwt-service need group access to {REGISTRATION}, which this user cannot set:\n  \
             sudo chgrp {REGISTRATION_GROUP} {}\n",
            path.display()
        ),
    }
}

fn next_steps(dir: &Path, deployment: &Deployment, files: &[File]) -> String {
    let dir = if dir == Path::new(".") { "this directory".to_owned() } else { dir.display().to_string() };
    let names = files.iter().map(|file| file.name).collect::<Vec<_>>().join(", ");
    let hosts = deployment.hosts();
    let width = hosts.iter().map(String::len).max().unwrap_or_default() + 1;
    let records: String =
        hosts.iter().map(|host| format!("  {:width$}  A     ADDRESS\n", format!("{host}."))).collect();
    let version = env!("CARGO_PKG_VERSION");
    let turn = if deployment.turn.is_some() { ", and media if all else is blocked" } else { "" };
    format!(
        "Wrote to {dir}: {names}

DNS records, each with the public address of this machine; add AAAA records
only if IPv6 works in the containers too:
{records}
Ports to open, and to forward if the machine is behind a router:
  80/tcp    certificates, and the redirect to https
  443/tcp   Matrix, and the signalling of calls{turn}
  7881/tcp  media of calls if UDP is blocked; directly to LiveKit
  7882/udp  media of calls; directly to LiveKit

To build the image, in the directory of the source:
  docker build -t vestibule:{version} .

Then, in {dir}:
  docker compose run --rm --no-deps synapse generate
  docker compose up --detach
  docker compose exec synapse register_new_matrix_user -c /data/homeserver.yaml -a http://localhost:8008

To test the deployment, also as clients reach it:
  docker compose exec vestibule /usr/local/bin/vestibule doctor

.env and {REGISTRATION} contain the secrets: back them up, and keep them private.
"
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn file(name: &'static str, mode: u32) -> File {
        File { name, mode, text: name.to_owned() }
    }

    #[test]
    fn all_files_are_written_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("new");
        let files = [file("a", 0o644), file("b", 0o600)];
        write(&dir, &files).unwrap();
        let mode = |name: &str| fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("b"), fs::read_to_string(dir.join("a")).unwrap().as_str()), (0o600, "a"));
        let more = [file("c", 0o644), file("b", 0o600), file("a", 0o644)];
        let said = write(&dir, &more).unwrap_err().to_string();
        assert!(said.contains("b, a already exist in"), "{said}");
        assert!(!dir.join("c").exists());
        // A disk that fails in the middle is played by a name that cannot be made.
        let said = write(&dir, &[file("c", 0o644), file("none/d", 0o644)]).unwrap_err().to_string();
        assert!(said.contains("cannot write") && !dir.join("c").exists(), "{said}");
    }

    #[test]
    fn names_are_public_and_addresses_harmless() {
        assert_eq!(public_name("Example.ORG.").unwrap(), "example.org");
        for wrong in ["localhost", "192.0.2.1", "1.2", "example.org:8448", "https://example.org", "münchen.de", ""] {
            assert!(public_name(wrong).is_err(), "{wrong}");
        }
        assert!(mail_address("a+b@example.org").is_ok());
        for wrong in ["a@b", "@example.org", "a\"@example.org", "a b@example.org", "${X}@example.org"] {
            assert!(mail_address(wrong).is_err(), "{wrong}");
        }
    }
}
