//! `homeserver.yaml`: the settings of Synapse that Element Call needs.

use std::path::Path;

use super::{FileUnderTest, parse, yaml::Node};

/// Checks the file.
pub fn assess(file: &mut FileUnderTest<'_>, root: &Node) {
    server_name(file, root);
    listeners(file, root);
    features(file, root);
    if root.at(&["max_event_delay_duration"]).is_none() {
        let fact = "delayed events are off: a participant that crashes stays in the call";
        file.fail(1, "delayed_events", fact, "set `max_event_delay_duration: 24h`");
    }
    transports(file, root);
    let missing: Vec<&str> =
        ["rc_message", "rc_delayed_event_mgmt"].into_iter().filter(|key| root.at(&[key]).is_none()).collect();
    if !missing.is_empty() {
        let fact = format!("the default of {} is too low for calls", missing.join(" and "));
        let fix = "set `rc_message: {per_second: 0.5, burst_count: 30}` and `rc_delayed_event_mgmt: {per_second: 1, burst_count: 20}`";
        file.warn(1, "limits", fact, fix);
    }
}

fn server_name(file: &mut FileUnderTest<'_>, root: &Node) {
    let Some(matrix) = &file.plan.matrix else { return };
    let wrong = root.at(&["server_name"]).filter(|name| name.text() != Some(&matrix.server_name));
    if let Some(name) = wrong {
        let fact = format!(
            "server_name is {:?}, but matrix.server_name is {:?}",
            name.text().unwrap_or("?"),
            matrix.server_name
        );
        let line = name.line;
        file.fail(
            line,
            "server_name",
            fact,
            "correct matrix.server_name in vestibule.toml: Synapse's cannot be changed",
        );
    }
}

/// Checks the listeners for clients.
fn listeners(file: &mut FileUnderTest<'_>, root: &Node) {
    let listeners = root.at(&["listeners"]).map(Node::list).unwrap_or_default();
    let names = |listener: &Node| -> Vec<String> {
        let resources = listener.at(&["resources"]).map(Node::list).unwrap_or_default();
        let names = resources.iter().filter_map(|resource| resource.at(&["names"])).flat_map(Node::list);
        names.filter_map(|name| name.text().map(str::to_owned)).collect()
    };
    let public: Vec<(usize, bool, Vec<String>)> = listeners
        .iter()
        .map(|listener| (listener.line, listener.at(&["x_forwarded"]).is_some_and(Node::is_true), names(listener)))
        .filter(|(_, _, names)| names.iter().any(|name| name == "client"))
        .collect();
    for (line, forwarded, _) in &public {
        if !forwarded {
            let fact = "Synapse sees every client as vestibule, and rate-limits and bans them together";
            file.fail(*line, "x_forwarded", fact, "set `x_forwarded: true` on this listener");
        }
    }
    let federates =
        listeners.iter().any(|listener| names(listener).iter().any(|name| name == "federation" || name == "openid"));
    if let (Some((line, ..)), false) = (public.first(), federates) {
        let fact = "no listener has `federation` or `openid`, so lk-jwt-service cannot verify users";
        file.fail(*line, "federation", fact, "set `resources: [{names: [client, federation]}]`");
    }
}

fn features(file: &mut FileUnderTest<'_>, root: &Node) {
    let features = root.at(&["experimental_features"]);
    let line = features.map_or(1, |features| features.line);
    let obsolete: Vec<(String, usize)> = features
        .into_iter()
        .flat_map(|features| features.members())
        .filter(|(key, _)| ["msc3266_enabled", "msc4140_enabled"].contains(key))
        .map(|(key, value)| (key.to_owned(), value.line))
        .collect();
    for (key, line) in obsolete {
        let instead = if key == "msc4140_enabled" { ": max_event_delay_duration turns delayed events on" } else { "" };
        file.warn(line, "obsolete", format!("{key} has no effect{instead}"), "remove the line");
    }
    if !flag(root, "msc4222_enabled") {
        let fact = "state_after in /sync is off: clients may see call members late";
        file.warn(line, "msc4222", fact, "set `experimental_features: {msc4222_enabled: true}`");
    }
}

fn flag(root: &Node, name: &str) -> bool {
    root.at(&["experimental_features", name]).is_some_and(Node::is_true)
}

/// Checks the transports of the homeserver. If it has none, the proxy adds them, unless the configuration says not to.
fn transports(file: &mut FileUnderTest<'_>, root: &Node) {
    let Some(matrix) = &file.plan.matrix else { return };
    let fills = file.plan.sites.iter().flat_map(|site| &site.routes).any(|route| route.rtc_transports.is_some());
    let list = root.at(&["matrix_rtc", "transports"]);
    let line = list.or_else(|| root.at(&["experimental_features"])).map_or(1, |node| node.line);
    let urls: Vec<&str> =
        list.into_iter().flat_map(Node::list).filter_map(|entry| entry.at(&["livekit_service_url"])?.text()).collect();
    let fix = format!(
        "set `experimental_features: {{msc4143_enabled: true}}` and `matrix_rtc: {{transports: [{{type: livekit, livekit_service_url: \"{}\"}}]}}`",
        matrix.rtc_services().next().unwrap_or("https://…")
    );
    sfus(file, root, line, list.map(Node::list).unwrap_or_default());
    match urls.first() {
        Some(url) if flag(root, "msc4143_enabled") => {
            let matrix = file.plan.matrix.as_ref();
            let ours = matrix.and_then(|matrix| matrix.rtc_services().next()).filter(|ours| ours != url);
            if let Some(ours) = ours {
                let fact = format!("it names {url}, but vestibule's configuration {ours}");
                file.fail(line, "transports_differ", fact, "set both to the same address");
            }
        }
        _ if fills => {
            file.warn(line, "transports", "Synapse has no transports for calls; vestibule answers in its place", fix);
        }
        _ => file.fail(
            line,
            "transports",
            "Synapse has no transports for calls, and vestibule does not add them (matrix.rtc_transports)",
            fix,
        ),
    }
}

/// The missing settings without which Synapse issues no call tokens.
///
/// # Errors
/// The file cannot be read.
pub fn missing_token_lines(path: &Path) -> Result<Vec<&'static str>, String> {
    Ok(token_lines(&parse(path)?))
}

fn token_lines(root: &Node) -> Vec<&'static str> {
    let mut missing = Vec::new();
    if !flag(root, "msc4512_enabled") {
        missing.push("`msc4512_enabled: true`");
    }
    if !flag(root, "msc4502_enabled") {
        missing.push("`msc4502_enabled: true`");
    }
    if root.at(&["app_service_config_files"]).is_none_or(|files| files.list().is_empty()) {
        missing.push("`app_service_config_files`");
    }
    missing
}

/// Checks the SFUs of the transports: each needs tokens from the homeserver, and clients compare the text exactly.
fn sfus(file: &mut FileUnderTest<'_>, root: &Node, line: usize, list: &[Node]) {
    let missing = token_lines(root).join(" and ");
    let url = list.iter().find_map(|entry| entry.at(&["url"])?.text().map(|url| (url.to_owned(), entry.line)));
    let ours = file.plan.matrix.as_ref().and_then(|matrix| matrix.sfus().next()).map(str::to_owned);
    match (url, missing.is_empty(), ours) {
        (Some((url, line)), false, _) => {
            let fact = format!(
                "transports name {url}, which needs call tokens, but {missing} is missing: newer clients cannot call"
            );
            file.fail(line, "promise", fact, format!("add {missing}, or remove `url`"));
        }
        (Some((url, line)), true, Some(ours)) if url != ours => {
            let fact = format!(
                "transports name {url}, but vestibule serves LiveKit at {ours}: clients compare the exact text"
            );
            file.fail(line, "sfu_differs", fact, format!("set `url: {ours}`"));
        }
        (None, false, _) => {
            let fact = format!(
                "Synapse issues no call tokens, because {missing} is missing: newer clients use the deprecated endpoints"
            );
            let fix = "set `experimental_features: {msc4502_enabled: true, msc4512_enabled: true}` and `app_service_config_files` (vestibule init SERVER_NAME --add calls)";
            file.warn(line, "tokens", fact, fix);
        }
        (None, true, ours) if !list.is_empty() => {
            let fact =
                "Synapse issues call tokens, but transports name no SFU: newer clients use the deprecated endpoints";
            file.warn(line, "no_url", fact, format!("add `url: {}`", ours.as_deref().unwrap_or("wss://…")));
        }
        _ => {}
    }
}
