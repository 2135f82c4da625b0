//! `livekit.yaml`: keys, addresses, rooms and webhooks.

use std::{net::IpAddr, path::Path};

use super::{FileUnderTest, parse, turn, yaml::Node};
use crate::doctor::dns::is_public;

/// The shortest secret that LiveKit accepts without a warning.
const SECRET: usize = 32;

/// The addresses at which LiveKit accepts media.
pub struct MediaPorts {
    /// ICE over TCP.
    pub tcp: Option<u16>,
    /// The single UDP port; `None` if a range is used.
    pub udp: Option<u16>,
    /// The address that LiveKit announces to clients.
    pub node_ip: Option<IpAddr>,
}

/// The ports of a file, or LiveKit's defaults.
///
/// # Errors
/// It cannot be read.
pub fn media_ports(path: &Path) -> Result<MediaPorts, String> {
    let root = parse(path)?;
    let number = |key| root.at(&["rtc", key]).and_then(|port| port.text()?.parse().ok());
    let tcp = if root.at(&["rtc", "tcp_port"]).is_some() { number("tcp_port") } else { Some(7881) };
    let node_ip = root.at(&["rtc", "node_ip"]).and_then(|ip| ip.text()?.parse().ok());
    Ok(MediaPorts { tcp: tcp.filter(|port| *port != 0), udp: number("udp_port"), node_ip })
}

/// Checks the file.
pub fn assess(file: &mut FileUnderTest<'_>, root: &Node) {
    secrets(file, root);
    address(file, root);
    turn::assess(file, root);
    let room = root.at(&["room"]).map_or(1, |room| room.line);
    let creates = root.at(&["room", "auto_create"]);
    if creates.and_then(|creates| creates.text()) != Some("false") {
        let line = creates.map_or(room, |creates| creates.line);
        let fact = "anyone with a token can create rooms, whatever LIVEKIT_FULL_ACCESS_HOMESERVERS says";
        file.warn(line, "auto_create", fact, "set `room: {auto_create: false}`");
    }
    if root.at(&["webhook", "urls"]).is_none_or(|urls| urls.list().is_empty()) {
        let line = root.at(&["webhook"]).map_or(1, |webhook| webhook.line);
        let fact = "lk-jwt-service is not told when a participant leaves, so participants that crash stay in calls";
        let fix = "set `webhook: {api_key: YOUR_KEY, urls: [\"http://lk-jwt-service:8080/sfu_webhook\"]}`";
        file.warn(line, "webhook", fact, fix);
    }
}

fn secrets(file: &mut FileUnderTest<'_>, root: &Node) {
    let keys = root.at(&["keys"]);
    let short: Vec<usize> = keys
        .iter()
        .flat_map(|keys| keys.members())
        .filter(|(_, secret)| secret.text().is_some_and(|secret| secret.len() < SECRET && !secret.contains('$')))
        .map(|(_, secret)| secret.line)
        .collect();
    for line in short {
        let fact = format!("the secret has fewer than {SECRET} characters");
        file.warn(
            line,
            "secret",
            fact,
            "generate one with `openssl rand -hex 32`, and set it here and for lk-jwt-service",
        );
    }
}

/// Checks the address for clients: that of a container is not reachable.
fn address(file: &mut FileUnderTest<'_>, root: &Node) {
    let external = root.at(&["rtc", "use_external_ip"]);
    let node_ip = root.at(&["rtc", "node_ip"]);
    let parsed = node_ip.and_then(|ip| ip.text()?.parse::<IpAddr>().ok());
    match (parsed, node_ip, external) {
        (Some(ip), Some(node), _) if !is_public(ip) => {
            let fact = format!("clients are told to send media to {ip}, which the internet cannot reach");
            let line = node.line;
            file.fail(line, "node_ip", fact, "set it to the public address, or use `use_external_ip: true` instead");
        }
        (_, Some(_), _) => {}
        (_, None, Some(external)) if external.is_true() => {}
        (_, None, external) => {
            let line = external.or_else(|| root.at(&["rtc"])).map_or(1, |node| node.line);
            let fact = "LiveKit announces its own address to clients, which is not reachable if it runs in a container: calls have no media";
            file.warn(line, "address", fact, "set `use_external_ip: true` or `node_ip` under `rtc`");
        }
    }
}
