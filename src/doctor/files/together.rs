//! Settings that must agree between compose.yaml, homeserver.yaml and livekit.yaml.

use std::{fs, path::Path};

use super::{parse, yaml::Node};
use crate::doctor::{
    ProbeOptions,
    finding::{Check, Finding, Layer},
};

/// Compares the files that the options name and that can be read.
pub fn assess(wanted: &ProbeOptions) -> Vec<Finding> {
    let read = |path: &Option<std::path::PathBuf>| path.as_deref().and_then(|path| parse(path).ok());
    let Some(compose) = read(&wanted.compose) else { return Vec::new() };
    let env = wanted.compose.as_deref().map(dot_env).unwrap_or_default();
    let (homeserver, livekit) = (read(&wanted.homeserver), read(&wanted.livekit));
    let service = Pair::of_service(&compose, &env);
    let keys = livekit_keys(&compose, livekit.as_ref(), &env);
    let mut findings = Vec::new();
    findings.extend(same_secret(service.as_ref(), &keys));
    findings.extend(homeserver.and_then(|root| same_url(&compose, &root, &env)));
    findings.extend(livekit.and_then(|root| same_webhook_key(service.as_ref(), &root)));
    findings
}

fn check(id: &'static str) -> Check {
    Check::new(Layer::Files, id, "the files together")
}

/// The name of a key and its secret. No finding shows the secret.
struct Pair {
    name: String,
    secret: String,
}

impl Pair {
    fn of_service(compose: &Node, env: &[(String, String)]) -> Option<Self> {
        let name = variable(compose, "lk-jwt-service", "LIVEKIT_KEY", env)?;
        Some(Self { name, secret: variable(compose, "lk-jwt-service", "LIVEKIT_SECRET", env)? })
    }
}

fn same_secret(service: Option<&Pair>, keys: &[Pair]) -> Option<Finding> {
    let check = check("files.secret");
    let (service, _) = (service?, keys.first()?);
    Some(match keys.iter().find(|key| key.name == service.name) {
        None => {
            let fact = format!("lk-jwt-service signs with the key {:?}, which LiveKit does not have", service.name);
            check.fail("key", fact, "set LIVEKIT_KEY to the name of a key of LiveKit")
        }
        Some(key) if key.secret != service.secret => {
            let fact = format!("lk-jwt-service and LiveKit have different secrets for the key {:?}", service.name);
            check.fail("differs", fact, "set LIVEKIT_SECRET to the secret of LiveKit's key")
        }
        Some(_) => check.ok("lk-jwt-service and LiveKit have the same key and secret"),
    })
}

/// Compares the URL of the SFU, which must be exactly the same.
fn same_url(compose: &Node, homeserver: &Node, env: &[(String, String)]) -> Option<Finding> {
    let check = check("files.url");
    let theirs = variable(compose, "lk-jwt-service", "LIVEKIT_URL", env)?;
    let list = homeserver.at(&["matrix_rtc", "transports"])?;
    let urls: Vec<&str> = list.list().iter().filter_map(|entry| entry.at(&["url"])?.text()).collect();
    let first = urls.first()?;
    Some(if urls.iter().any(|url| *url == theirs) {
        check.ok(format!("Synapse and lk-jwt-service name the same SFU, {theirs}"))
    } else {
        let slash =
            if first.trim_end_matches('/') == theirs.trim_end_matches('/') { " only in a trailing slash" } else { "" };
        let fact = format!(
            "`url` in matrix_rtc.transports is {first:?}, but LIVEKIT_URL is {theirs:?}: they differ{slash}, and clients get 400 M_INVALID_PARAM"
        );
        check.fail("differs", fact, "set both to exactly the same text")
    })
}

/// Compares the key with which LiveKit signs its webhook.
fn same_webhook_key(service: Option<&Pair>, livekit: &Node) -> Option<Finding> {
    let check = check("files.webhook");
    let (service, key) = (service?, livekit.at(&["webhook", "api_key"])?.text()?);
    Some(if key == service.name {
        check.ok("LiveKit's webhook is signed with the key of lk-jwt-service")
    } else {
        let fact = format!(
            "LiveKit signs its webhook with {key:?}, but lk-jwt-service has {:?}: it is never told who has left",
            service.name
        );
        check.fail("differs", fact, "set webhook.api_key in livekit.yaml to LIVEKIT_KEY")
    })
}

/// The keys of LiveKit, from its environment and its file.
fn livekit_keys(compose: &Node, livekit: Option<&Node>, env: &[(String, String)]) -> Vec<Pair> {
    let pair = |text: &str| {
        let (name, secret) = text.split_once(':')?;
        Some(Pair { name: name.trim().to_owned(), secret: secret.trim().to_owned() })
    };
    let named = variable(compose, "livekit-server", "LIVEKIT_KEYS", env);
    let of_environment = named.iter().flat_map(|keys| keys.lines()).filter_map(pair);
    let of_file = livekit.and_then(|root| root.at(&["keys"])).into_iter().flat_map(Node::members);
    let of_file =
        of_file.filter_map(|(name, secret)| Some(Pair { name: name.to_owned(), secret: expand(secret.text()?, env) }));
    of_environment.chain(of_file).collect()
}

/// A variable of the service whose image has this name.
fn variable(compose: &Node, image: &str, name: &str, env: &[(String, String)]) -> Option<String> {
    let services = compose.at(&["services"])?;
    let (_, service) = services
        .members()
        .find(|(_, service)| service.at(&["image"]).and_then(Node::text).is_some_and(|text| text.contains(image)))?;
    let environment = service.at(&["environment"])?;
    let value = match environment.at(&[name]) {
        Some(value) => value.text()?,
        None => environment.list().iter().find_map(|entry| entry.text()?.strip_prefix(name)?.strip_prefix('='))?,
    };
    Some(expand(value, env))
}

/// Expands `${NAME}` and its forms with a default from `.env`; an unknown name stays.
fn expand(text: &str, env: &[(String, String)]) -> String {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((inside, behind)) = after.split_once('}') else { break };
        let name = inside.split([':', '?', '-']).next().unwrap_or(inside);
        let value = env.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        expanded += before;
        expanded += &value.unwrap_or_else(|| format!("${{{name}}}"));
        rest = behind;
    }
    expanded + rest
}

/// The variables of the `.env` beside a compose file.
fn dot_env(compose: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(compose.with_file_name(".env")).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.trim().to_owned(), value.trim().trim_matches(['"', '\'']).to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPOSE: &str = "services:\n  jwt:\n    image: ghcr.io/element-hq/lk-jwt-service:0.10.0\n    environment:\n      LIVEKIT_URL: wss://rtc.example.org\n      LIVEKIT_KEY: k\n      LIVEKIT_SECRET: ${LIVEKIT_SECRET:?}\n  livekit:\n    image: livekit/livekit-server:v1.13.9\n    environment:\n      LIVEKIT_KEYS: \"k: ${LIVEKIT_SECRET:?}\"\n";
    const HOMESERVER: &str = "matrix_rtc: {transports: [{type: livekit, url: wss://rtc.example.org}]}\n";
    const LIVEKIT: &str = "webhook: {api_key: k}\n";

    fn assessed(compose: &str, homeserver: &str, livekit: &str, env: &str) -> Vec<Finding> {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        path(".env", env);
        assess(&ProbeOptions {
            compose: Some(path("compose.yaml", compose)),
            homeserver: Some(path("homeserver.yaml", homeserver)),
            livekit: Some(path("livekit.yaml", livekit)),
            ..ProbeOptions::default()
        })
    }

    #[test]
    fn what_has_to_be_the_same_is_compared() {
        let env = "LIVEKIT_SECRET=s3cret\n";
        let other_key = COMPOSE.replace("LIVEKIT_KEYS: \"k:", "LIVEKIT_KEYS: \"other:");
        let other_secret = COMPOSE.replace("\"k: ${LIVEKIT_SECRET:?}\"", "\"k: another\"");
        let literal = COMPOSE.replace("\"k: ${LIVEKIT_SECRET:?}\"", "\"k: s3cret\"");
        let in_file = COMPOSE.replace("      LIVEKIT_KEYS: \"k: ${LIVEKIT_SECRET:?}\"\n", "      OTHER: x\n");
        let keys = format!("keys: {{k: wrong}}\n{LIVEKIT}");
        for (compose, homeserver, livekit, wanted) in [
            (COMPOSE, HOMESERVER, LIVEKIT, vec![]),
            (&literal, HOMESERVER, LIVEKIT, vec![]),
            (&other_key, HOMESERVER, LIVEKIT, vec!["files.secret.key"]),
            (&other_secret, HOMESERVER, LIVEKIT, vec!["files.secret.differs"]),
            (&in_file, HOMESERVER, &keys, vec!["files.secret.differs"]),
            (COMPOSE, &HOMESERVER.replace(".org}", ".org/}"), LIVEKIT, vec!["files.url.differs"]),
            (COMPOSE, HOMESERVER, "webhook: {api_key: other}\n", vec!["files.webhook.differs"]),
        ] {
            let found = assessed(compose, homeserver, livekit, env);
            let bad: Vec<_> =
                found.iter().filter(|finding| finding.fix.is_some()).map(|finding| finding.id.as_str()).collect();
            assert_eq!(bad, wanted, "{compose}{homeserver}{livekit}");
            assert_eq!(found.len(), 3, "{compose}{homeserver}{livekit}");
            assert!(!format!("{found:?}").contains("s3cret"), "{found:?}");
        }
        let slash = assessed(COMPOSE, &HOMESERVER.replace(".org}", ".org/}"), LIVEKIT, env);
        let fact = &slash.iter().find(|finding| finding.id == "files.url.differs").unwrap().fact;
        assert!(fact.contains("\"wss://rtc.example.org/\"") && fact.contains("\"wss://rtc.example.org\""), "{fact}");
    }
}
