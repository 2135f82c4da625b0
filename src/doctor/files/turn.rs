//! The `turn` section of `livekit.yaml`, compared with the site of kind `turn` that proxies to it.

use ipnet::IpNet;

use super::{FileUnderTest, yaml::Node};
use crate::config::plan::StreamKind;

const LINES: &str = "set turn: {enabled: true, domain: THE_NAME, tls_port: 5349, external_tls: true}";

/// Checks the section.
pub fn assess(file: &mut FileUnderTest<'_>, root: &Node) {
    let turn = root.at(&["turn"]);
    let line = turn.map_or(1, |turn| turn.line);
    let text = |key| root.at(&["turn", key]).and_then(Node::text);
    let is_true = |key| root.at(&["turn", key]).is_some_and(Node::is_true);
    let streams = file.plan.sites.iter().filter_map(|site| Some((&site.host, site.stream.as_ref()?)));
    let site = streams.into_iter().find(|(_, stream)| stream.kind == StreamKind::Turn);
    restricted_peers(file, root, is_true("enabled"), site.is_some());
    let Some((host, stream)) = site else { return };
    if !is_true("enabled") {
        let fact = format!("the site {host} proxies to LiveKit's relay, which is off");
        return file.fail(line, "turn", fact, LINES);
    }
    if text("domain") != Some(host.as_str()) {
        let fact = format!("LiveKit does not announce {host}, the site for the relay, to clients");
        file.fail(line, "turn", fact, format!("set `domain: {host}` under `turn`"));
    }
    if !is_true("external_tls") {
        let fact = "LiveKit terminates TLS, but vestibule has already done so";
        file.fail(line, "turn", fact, "set `external_tls: true` under `turn`");
    }
    let port = text("tls_port").and_then(|port| port.parse::<u16>().ok());
    if !stream.upstream.servers.iter().any(|server| Some(server.port) == port) {
        let leads = stream.upstream.servers.first().map(ToString::to_string).unwrap_or_default();
        let fact = format!("the relay does not listen at {leads}, the upstream of the site {host}");
        file.fail(line, "turn", fact, "set turn.tls_port to the port of the site's upstream");
    }
}

/// Checks which private addresses the relay may reach: only LiveKit's own.
fn restricted_peers(file: &mut FileUnderTest<'_>, root: &Node, enabled: bool, has_site: bool) {
    let key = root.at(&["turn", "allow_restricted_peer_cidrs"]);
    let list = key.map(Node::list).unwrap_or_default();
    let wide: Vec<_> = list
        .iter()
        .filter_map(|node| Some((node.line, node.text()?)))
        .filter(|(_, text)| text.parse::<IpNet>().is_ok_and(|network| network.prefix_len() < network.max_prefix_len()))
        .map(|(line, text)| (line, text.to_owned()))
        .collect();
    for (line, network) in wide {
        let fact = format!("anyone with a call token can reach every machine of {network} through the relay");
        let fix = "allow only LiveKit's own address, as /32";
        file.fail(line, "turn_peers", fact, fix);
    }
    if enabled && has_site && list.is_empty() {
        let line = key.or_else(|| root.at(&["turn"])).map_or(1, |node| node.line);
        let fact =
            "the relay rejects private addresses, so it cannot reach a LiveKit in a container: calls have no media";
        let fix = "set `allow_restricted_peer_cidrs: [\"ADDRESS/32\"]` under `turn`, with LiveKit's own fixed address";
        file.warn(line, "turn_peers", fact, fix);
    }
}
