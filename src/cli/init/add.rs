//! `vestibule init SERVER_NAME --add calls`: switches an existing deployment to call tokens from the homeserver (MSC4195).
//! It writes missing files, and prints the changes that existing files need.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::Context as _;

use super::{
    Args, Outcome,
    render::{
        Deployment, INTERNAL_ADDRESS, Layout, NETWORK, REGISTRATION, REGISTRATION_GROUP, Turn, relay, render, turn_site,
    },
    resolution::lead_to_one_machine,
    share_registration, validate, write,
};
use crate::{
    cli::print,
    config::{
        self, Plan,
        plan::StreamKind,
        versions::{Component, LIVEKIT, LK_JWT, SYNAPSE},
    },
};

/// The default file names of compose.
const COMPOSE: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"];

/// Writes missing files, and prints the changes that existing files need.
///
/// # Errors
/// The directory belongs to another server name, its vestibule.toml is invalid, or it cannot be written.
pub fn run(args: &Args, mut deployment: Deployment) -> Outcome {
    let dir = &args.dir;
    let mut addresses = (deployment.sfu_url(), deployment.jwt_url());
    if let Some(plan) = existing(dir)? {
        let matrix = plan.matrix.as_ref().context("vestibule.toml has no [matrix]: set matrix.server_name first")?;
        if matrix.server_name != args.server_name {
            let (folder, theirs) = (dir.display(), &matrix.server_name);
            return Err(anyhow::anyhow!("{folder} is the directory of {theirs}, not of {}", args.server_name).into());
        }
        if let Some((_, host)) = matrix.homeserver.split_once("://") {
            deployment.homeserver = host.split([':', '/']).next().unwrap_or(host).to_owned();
        }
        // A path in the address of the SFU is the layout in which calls have no name of their own.
        let is_mounted = matrix.sfus().any(|url| url.trim_start_matches("wss://").contains('/'));
        deployment.layout = if is_mounted { Layout::OneHost } else { deployment.layout };
        addresses = (deployment.sfu_url(), deployment.jwt_url());
        let site = plan.sites.iter().find(|site| site.stream.as_ref().is_some_and(|one| one.kind == StreamKind::Turn));
        deployment.turn = match (site, deployment.turn) {
            (Some(site), Some(turn)) => Some(Turn { host: site.host.as_str().to_owned(), ..turn }),
            (_, turn) => turn.filter(|turn| lead_to_one_machine(&deployment.homeserver, &turn.host)),
        };
        if let Some(transport) = matrix.rtc_transports.first() {
            addresses.0 = transport.url.clone().unwrap_or(addresses.0);
            addresses.1 = transport.service.clone().unwrap_or(addresses.1);
        }
    }
    let has = |name: &'static str| {
        let names = if COMPOSE.contains(&name) { COMPOSE.to_vec() } else { vec![name] };
        names.into_iter().find(|name| dir.join(name).symlink_metadata().is_ok())
    };
    let files: Vec<_> = render(&deployment).into_iter().filter(|file| has(file.name).is_none()).collect();
    validate(&files)?;
    write(dir, &files)?;
    let mut text = String::new();
    if files.is_empty() {
        text += "No file was missing, so none was written.\n";
    } else {
        let names: Vec<_> = files.iter().map(|file| file.name).collect();
        let _ = writeln!(text, "Wrote to {}: {}", dir.display(), names.join(", "));
    }
    text += &share_registration(dir);
    let there =
        ["vestibule.toml", "compose.yaml", "homeserver-lines.yaml", "livekit.yaml"].map(|name| (name, has(name)));
    for (kind, name) in there.into_iter().filter_map(|(kind, name)| Some((kind, name?))) {
        if files.iter().any(|file| file.name == name) {
            continue;
        }
        let path = dir.join(name);
        let there = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let changes = match kind {
            "vestibule.toml" => vestibule_changes(&there, &deployment),
            "compose.yaml" => compose_changes(&there, &deployment),
            "livekit.yaml" => livekit_changes(&there, &deployment),
            _ => homeserver_changes(&there, &addresses.0, &addresses.1),
        };
        let _ = match changes.as_str() {
            "" => writeln!(text, "\n{name} needs no change."),
            changes => writeln!(text, "\n{name} was not changed. Add these lines in their places:\n\n{changes}"),
        };
    }
    if deployment.turn.is_none() && !args.no_turn {
        let Turn { host, .. } = Turn::in_compose(&args.server_name);
        let _ = writeln!(
            text,
            "\nMedia for callers who reach nothing but port 443 needs a site of its own: once {host} leads to this machine,\n\
             this command prints it as well."
        );
    }
    text += "\nFor the order of the steps that interrupts no call, see config/calls.md in the source of vestibule.\n";
    print(text)
}

fn existing(dir: &Path) -> anyhow::Result<Option<Plan>> {
    let path = dir.join("vestibule.toml");
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    match config::load(&path) {
        Ok((plan, _)) => Ok(Some(plan)),
        Err(report) => anyhow::bail!("vestibule.toml is invalid; correct it first:\n{}", report.render()),
    }
}

/// The lines of a YAML file without comments.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(|line| line.split(" #").next().unwrap_or(line)).filter(|line| !line.trim_start().starts_with('#'))
}

fn says(text: &str, what: &str) -> bool {
    lines(text).any(|line| line.contains(what))
}

/// The lines that vestibule.toml lacks: a deployment with calls can lack only the relay.
fn vestibule_changes(there: &str, deployment: &Deployment) -> String {
    let missing = deployment.turn.as_ref().filter(|turn| !says(there, &turn.host));
    missing.map(|turn| turn_site(turn, &deployment.addresses.livekit).trim_start().to_owned()).unwrap_or_default()
}

/// The lines that livekit.yaml lacks.
fn livekit_changes(there: &str, deployment: &Deployment) -> String {
    let missing = deployment.turn.as_ref().filter(|_| !says(there, "external_tls"));
    missing
        .map(|turn| format!("rtc:\n{INTERNAL_ADDRESS}{}", relay(turn, &deployment.addresses.bind)))
        .unwrap_or_default()
}

/// The lines that compose.yaml lacks.
fn compose_changes(there: &str, deployment: &Deployment) -> String {
    let server_name = &deployment.server_name;
    let mut jwt = image(there, &LK_JWT);
    if !says(there, "group_add") {
        let _ = writeln!(jwt, "    group_add: [\"{REGISTRATION_GROUP}\"]");
    }
    let variables = [
        ("LIVEKIT_AS_REGISTRATION_FILE", format!("/etc/{REGISTRATION}")),
        ("LIVEKIT_HS_SERVER_NAME", server_name.clone()),
        ("LIVEKIT_FULL_ACCESS_HOMESERVERS", server_name.clone()),
    ];
    let variables: Vec<_> = variables.iter().filter(|(name, _)| !says(there, name)).collect();
    if !variables.is_empty() {
        jwt += "    environment:\n";
        for (name, value) in variables {
            let _ = writeln!(jwt, "      {name}: {value}");
        }
    }
    let mount = |target: String| {
        let is_there = says(there, &format!("{REGISTRATION}:{target}"));
        if is_there { String::new() } else { format!("    volumes:\n      - ./{REGISTRATION}:{target}:ro\n") }
    };
    jwt += &mount(format!("/etc/{REGISTRATION}"));
    let synapse = image(there, &SYNAPSE) + &mount(format!("/etc/synapse/{REGISTRATION}"));
    let (mut edge, mut livekit, mut networks) = (String::new(), image(there, &LIVEKIT), String::new());
    if let Some(Turn { host, address }) = deployment.turn.as_ref().filter(|_| !says(there, "ipv4_address")) {
        edge = format!("    networks:\n      web:\n        aliases:\n          - {host}\n");
        let _ = write!(livekit, "    networks:\n      web:\n        ipv4_address: {address}\n");
        networks = format!("networks:\n  web:\n    ipam:\n      config: [{{ subnet: {NETWORK} }}]\n");
    }
    let services = [("vestibule", edge), ("synapse", synapse), ("lk-jwt-service", jwt), ("livekit", livekit)];
    let services = services.iter().filter(|(_, lines)| !lines.is_empty());
    services.map(|(name, lines)| format!("  {name}:\n{lines}")).chain([networks]).collect()
}

/// The line of an image, if the file has another version of it.
fn image(there: &str, component: &Component) -> String {
    let (name, _) = component.image.rsplit_once(':').unwrap_or((component.image, ""));
    let name = name.rsplit('/').next().unwrap_or(name);
    let tags = lines(there).filter_map(|line| line.split_once(&format!("/{name}:"))).map(|(_, tag)| tag.trim());
    let is_current = tags.filter_map(config::versions::Version::parse).any(|version| version >= component.tested);
    if is_current { String::new() } else { format!("    image: {}\n", component.image) }
}

/// The lines that homeserver-lines.yaml lacks.
fn homeserver_changes(there: &str, sfu: &str, service: &str) -> String {
    let mut text = String::new();
    let flags = ["msc4143_enabled", "msc4502_enabled", "msc4512_enabled"];
    let flags: Vec<_> = flags.iter().filter(|flag| !says(there, flag)).collect();
    if !flags.is_empty() {
        text += "experimental_features:\n";
        for flag in flags {
            let _ = writeln!(text, "  {flag}: true");
        }
    }
    if !says(there, REGISTRATION) {
        let _ = writeln!(text, "app_service_config_files: [/etc/synapse/{REGISTRATION}]");
    }
    if !says(there, &format!("url: {sfu}")) {
        let _ = writeln!(
            text,
            "matrix_rtc:\n  transports:\n    - type: livekit\n      url: {sfu}\n      livekit_service_url: {service}"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{
        super::render::{Addresses, Secrets, compose, homeserver_lines, livekit, vestibule_toml},
        *,
    };

    fn deployment() -> Deployment {
        Deployment {
            server_name: "example.org".into(),
            homeserver: "matrix.example.org".into(),
            layout: Layout::ThreeHosts,
            turn: Some(Turn::in_compose("example.org")),
            email: None,
            addresses: Addresses::default(),
            secrets: Secrets::generate().unwrap(),
        }
    }

    #[test]
    fn what_init_writes_today_lacks_nothing() {
        let deployment = deployment();
        assert_eq!(compose_changes(&compose(&deployment), &deployment), "");
        assert_eq!(livekit_changes(&livekit(&deployment), &deployment), "");
        assert_eq!(vestibule_changes(&vestibule_toml(&deployment), &deployment), "");
        let (sfu, service) = (deployment.sfu_url(), deployment.jwt_url());
        assert_eq!(homeserver_changes(&homeserver_lines(&deployment), &sfu, &service), "");
    }

    #[test]
    fn a_deployment_from_before_the_relay_is_told_what_it_needs() {
        let with = deployment();
        let without = Deployment { turn: None, ..deployment() };
        assert_eq!(
            compose_changes(&compose(&without), &with),
            "  vestibule:\n    networks:\n      web:\n        aliases:\n          - turn.example.org\n  livekit:\n    networks:\n      web:\n        ipv4_address: 172.16.83.10\nnetworks:\n  web:\n    ipam:\n      config: [{ subnet: 172.16.83.0/24 }]\n"
        );
        let lines = livekit_changes(&livekit(&without), &with);
        assert!(lines.starts_with("rtc:\n  # And") && lines.contains("domain: turn.example.org"), "{lines}");
        assert!(vestibule_changes(&vestibule_toml(&without), &with).contains("[sites.\"turn.example.org\"]"));
        assert_eq!(vestibule_changes(&vestibule_toml(&without), &without), "");
    }

    #[test]
    fn what_an_older_deployment_lacks_is_named() {
        let june = "services:\n  synapse:\n    image: ghcr.io/element-hq/synapse:v1.163.2\n  lk-jwt-service:\n    image: ghcr.io/element-hq/lk-jwt-service:0.6.0\n    environment:\n      LIVEKIT_FULL_ACCESS_HOMESERVERS: example.org\n  livekit:\n    image: livekit/livekit-server:v1.13.5 # LIVEKIT_HS_SERVER_NAME\n";
        assert_eq!(
            compose_changes(june, &Deployment { turn: None, ..deployment() }),
            "  synapse:\n    volumes:\n      - ./rtc-registration.yaml:/etc/synapse/rtc-registration.yaml:ro\n  lk-jwt-service:\n    image: ghcr.io/element-hq/lk-jwt-service:0.10.0\n    group_add: [\"991\"]\n    environment:\n      LIVEKIT_AS_REGISTRATION_FILE: /etc/rtc-registration.yaml\n      LIVEKIT_HS_SERVER_NAME: example.org\n    volumes:\n      - ./rtc-registration.yaml:/etc/rtc-registration.yaml:ro\n  livekit:\n    image: livekit/livekit-server:v1.13.9\n"
        );
        let lines = "experimental_features:\n  msc4143_enabled: true\n";
        assert_eq!(
            homeserver_changes(lines, "wss://sfu", "https://jwt"),
            "experimental_features:\n  msc4502_enabled: true\n  msc4512_enabled: true\napp_service_config_files: [/etc/synapse/rtc-registration.yaml]\nmatrix_rtc:\n  transports:\n    - type: livekit\n      url: wss://sfu\n      livekit_service_url: https://jwt\n"
        );
    }
}
