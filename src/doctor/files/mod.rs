//! The files of the services behind the proxy: obsolete and missing settings.

mod compose;
mod homeserver;
mod livekit;
mod together;
mod turn;
mod yaml;

use std::{
    fs,
    path::{Path, PathBuf},
};

use self::yaml::Node;
pub use self::{
    compose::image_version,
    homeserver::missing_token_lines,
    livekit::{MediaPorts, media_ports},
};
use super::{
    ProbeOptions,
    finding::{Check, Finding, Layer},
};
use crate::config::Plan;

/// One of the files, while it is checked.
struct FileUnderTest<'a> {
    plan: &'a Plan,
    id: &'static str,
    path: String,
    found: Vec<Finding>,
}

impl FileUnderTest<'_> {
    /// A check of a line.
    fn at(&self, line: usize) -> Check {
        Check::new(Layer::Files, self.id, format!("{}:{line}", self.path))
    }

    fn warn(&mut self, line: usize, what: &str, fact: impl Into<String>, fix: impl Into<String>) {
        let finding = self.at(line).warn(what, fact, fix);
        self.found.push(finding);
    }

    fn fail(&mut self, line: usize, what: &str, fact: impl Into<String>, fix: impl Into<String>) {
        let finding = self.at(line).fail(what, fact, fix);
        self.found.push(finding);
    }
}

/// The checks of one kind of file.
type FileCheck = fn(&mut FileUnderTest<'_>, &Node);

/// A kind of file: its id, its name, and the keys of which it has at least one.
struct FileKind {
    id: &'static str,
    what: &'static str,
    keys: &'static [&'static str],
    assess: FileCheck,
}

const LIVEKIT: FileKind = FileKind {
    id: "files.livekit",
    what: "LiveKit's configuration",
    keys: &["keys", "key_file", "rtc", "room", "webhook", "turn", "redis", "bind_addresses"],
    assess: livekit::assess,
};

const HOMESERVER: FileKind = FileKind {
    id: "files.homeserver",
    what: "Synapse's homeserver.yaml",
    keys: &[
        "server_name",
        "listeners",
        "database",
        "public_baseurl",
        "signing_key_path",
        "media_store_path",
        "log_config",
        "report_stats",
        "experimental_features",
        "max_event_delay_duration",
        "rc_message",
        "rc_delayed_event_mgmt",
    ],
    assess: homeserver::assess,
};

const COMPOSE: FileKind =
    FileKind { id: "files.compose", what: "a compose file", keys: &["services"], assess: compose::assess };

/// Checks the files that the options name.
pub fn read(plan: &Plan, wanted: &ProbeOptions) -> Vec<Finding> {
    let files: [(&Option<PathBuf>, FileKind); 3] =
        [(&wanted.livekit, LIVEKIT), (&wanted.homeserver, HOMESERVER), (&wanted.compose, COMPOSE)];
    let named = files.into_iter().filter_map(|(path, kind)| Some((path.as_deref()?, kind)));
    let each = named.flat_map(|(path, kind)| one(plan, path, &kind));
    each.chain(together::assess(wanted)).collect()
}

fn one(plan: &Plan, path: &Path, kind: &FileKind) -> Vec<Finding> {
    let name = path.display().to_string();
    let check = Check::new(Layer::Files, kind.id, &name);
    let root = match parse(path) {
        Ok(root) => root,
        Err(error) => {
            return vec![check.fail("unreadable", error, "pass the file that the service reads, and correct it")];
        }
    };
    if !root.members().any(|(key, _)| kind.keys.contains(&key)) {
        let option = kind.id.trim_start_matches("files.");
        let fact = format!("this is not {}: it has none of the keys {}", kind.what, kind.keys.join(", "));
        return vec![check.fail("kind", fact, format!("pass {} with --{option}", kind.what))];
    }
    let mut file = FileUnderTest { plan, id: kind.id, path: name, found: Vec::new() };
    (kind.assess)(&mut file, &root);
    if file.found.is_empty() {
        file.found.push(check.ok("no setting is obsolete or missing"));
    }
    file.found
}

fn parse(path: &Path) -> Result<Node, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("it cannot be read ({error})"))?;
    Node::parse(&text).map_err(|error| format!("it is not YAML ({error})"))
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    const PLAN: &str = r#"
[matrix]
server_name = "example.org"
[sites."example.org"]
[sites."matrix.example.org"]
kind = "synapse"
upstream = "http://synapse:8008"
[sites."jwt.example.org"]
kind = "lk-jwt"
upstream = "http://jwt:8080"
[sites."rtc.example.org"]
kind = "livekit"
upstream = "http://livekit:7880"
"#;

    fn findings(id: &'static str, assess: FileCheck, text: &str) -> Vec<Finding> {
        let (plan, _) = crate::config::parse("t", PLAN, ".".into(), &|_| None).unwrap();
        let root = Node::parse(text).unwrap();
        let mut file = FileUnderTest { plan: &plan, id, path: "f".into(), found: Vec::new() };
        assess(&mut file, &root);
        assert!(file.found.iter().all(|finding| matches!(finding.verdict, Verdict::Warn | Verdict::Fail)));
        file.found
    }

    fn assessed(id: &'static str, assess: FileCheck, text: &str) -> Vec<(String, String)> {
        findings(id, assess, text).into_iter().map(|finding| (finding.id, finding.subject)).collect()
    }

    fn expect(found: &[(String, String)], wanted: &[(&str, &str)]) {
        let found: Vec<_> = found.iter().map(|(id, at)| (id.as_str(), at.as_str())).collect();
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_file_of_another_kind_is_told() {
        let (plan, _) = crate::config::parse("t", PLAN, ".".into(), &|_| None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.yaml");
        for (text, kind) in [
            ("services: {}\n", &HOMESERVER),
            ("server_name: example.org\n", &COMPOSE),
            ("version: \"1\"\n", &LIVEKIT),
            ("- a\n", &COMPOSE),
            ("", &LIVEKIT),
        ] {
            fs::write(&path, text).unwrap();
            let found = one(&plan, &path, kind);
            assert_eq!((found.len(), found[0].id.as_str()), (1, format!("{}.kind", kind.id).as_str()), "{text}");
        }
    }

    #[test]
    fn a_livekit_file_of_the_guide() {
        let text =
            "port: 7880\nkeys:\n  devkey: too-short-a-secret\nrtc:\n  tcp_port: 7881\n  use_external_ip: false\n";
        let found = assessed("files.livekit", livekit::assess, text);
        expect(
            &found,
            &[
                ("files.livekit.secret", "f:3"),
                ("files.livekit.address", "f:6"),
                ("files.livekit.auto_create", "f:1"),
                ("files.livekit.webhook", "f:1"),
            ],
        );
        let good = "keys: {k: 0123456789abcdef0123456789abcdef}\nrtc: {use_external_ip: true}\nroom: {auto_create: false}\nwebhook: {api_key: k, urls: [http://jwt:8080/sfu_webhook]}\n";
        expect(&assessed("files.livekit", livekit::assess, good), &[]);
        let container =
            "rtc: {node_ip: 172.18.0.4}\nroom: {auto_create: false}\nwebhook: {urls: [http://jwt:8080/sfu_webhook]}\n";
        expect(&assessed("files.livekit", livekit::assess, container), &[("files.livekit.node_ip", "f:1")]);
    }

    #[test]
    fn the_relay_and_its_site_fit_together() {
        let site = "[sites.\"turn.example.org\"]\nkind = \"turn\"\nupstream = \"tcp://livekit:5349\"\n";
        let good = include_str!("../../../config/livekit.yaml");
        for (site, old, new, wanted) in [
            (site, "", "", vec![]),
            ("", "172.16.83.10/32", "172.16.83.0/24", vec![("turn_peers", Verdict::Fail)]),
            (site, "172.16.83.10/32", "172.16.83.0/24", vec![("turn_peers", Verdict::Fail)]),
            (
                site,
                "[\"172.16.83.10/32\"]",
                "[\"172.16.83.10/32\", \"fd00::/64\"]",
                vec![("turn_peers", Verdict::Fail)],
            ),
            (site, "  allow_restricted_peer_cidrs", "  # ", vec![("turn_peers", Verdict::Warn)]),
            (site, "enabled: true", "enabled: false", vec![("turn", Verdict::Fail)]),
            (site, "domain: turn.", "domain: other.", vec![("turn", Verdict::Fail)]),
            (site, "external_tls: true", "external_tls: false", vec![("turn", Verdict::Fail)]),
            (site, "tls_port: 5349", "tls_port: 5350", vec![("turn", Verdict::Fail)]),
        ] {
            let (plan, _) = crate::config::parse("t", &(PLAN.to_owned() + site), ".".into(), &|_| None).unwrap();
            let root = Node::parse(&good.replace(old, new)).unwrap();
            let mut file = FileUnderTest { plan: &plan, id: "files.livekit", path: "f".into(), found: Vec::new() };
            livekit::assess(&mut file, &root);
            let found = file.found.iter().map(|one| (one.id.trim_start_matches("files.livekit."), one.verdict));
            assert_eq!(found.collect::<Vec<_>>(), wanted, "{site} {new}");
        }
    }

    #[test]
    fn a_homeserver_file_of_the_guide() {
        let text = "server_name: example.org\nlisteners:\n  - port: 8008\n    type: http\n    resources:\n      - names: [client]\nexperimental_features:\n  msc3266_enabled: true\n  msc4140_enabled: true\nmax_event_delay_duration: 24h\n";
        let found = assessed("files.homeserver", homeserver::assess, text);
        expect(
            &found,
            &[
                ("files.homeserver.x_forwarded", "f:3"),
                ("files.homeserver.federation", "f:3"),
                ("files.homeserver.obsolete", "f:8"),
                ("files.homeserver.obsolete", "f:9"),
                ("files.homeserver.msc4222", "f:7"),
                ("files.homeserver.tokens", "f:7"),
                ("files.homeserver.transports", "f:7"),
                ("files.homeserver.limits", "f:1"),
            ],
        );
        let good = include_str!("../../../config/homeserver-lines.yaml")
            .replace("jwt.matrixrtc.", "jwt.")
            .replace("matrixrtc.", "rtc.");
        expect(&assessed("files.homeserver", homeserver::assess, &good), &[]);
        for (old, new, id) in [
            ("msc4512_enabled: true", "msc4512_enabled: false", "files.homeserver.promise"),
            ("app_service_config_files", "x", "files.homeserver.promise"),
            ("url: wss://rtc.example.org ", "url: wss://rtc.example.org/ ", "files.homeserver.sfu_differs"),
            ("      url: wss://rtc.example.org ", "      # ", "files.homeserver.no_url"),
        ] {
            let found = assessed("files.homeserver", homeserver::assess, &good.replace(old, new));
            assert_eq!(found.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), [id], "{new}");
        }
    }

    #[test]
    fn a_compose_file_of_the_guide() {
        let text = "services:\n  jwt:\n    image: ghcr.io/element-hq/lk-jwt-service:latest\n    environment:\n      - LK_JWT_PORT=8080\n      - LIVEKIT_LOCAL_HOMESERVERS=example.org\n      - LIVEKIT_URL=wss://other.example.org\n  livekit:\n    image: livekit/livekit-server:v1.8\n";
        let found = assessed("files.compose", compose::assess, text);
        expect(
            &found,
            &[
                ("files.compose.floating", "f:3"),
                ("files.compose.jwt_port", "f:5"),
                ("files.compose.local_homeservers", "f:6"),
                ("files.compose.full_access", "f:2"),
                ("files.compose.application_service", "f:2"),
                ("files.compose.livekit_url", "f:7"),
                ("files.compose.livekit_old", "f:9"),
            ],
        );
        let good = include_str!("../../../config/compose.yaml").replace("matrixrtc.", "rtc.");
        expect(&assessed("files.compose", compose::assess, &good), &[]);
        for (old, new, id, verdict) in [
            ("lk-jwt-service:0.10.0", "lk-jwt-service:0.7.2", "files.compose.lk_jwt_old", Verdict::Fail),
            ("lk-jwt-service:0.10.0", "lk-jwt-service:0.9.1", "files.compose.lk_jwt_old", Verdict::Warn),
            ("livekit-server:v1.13.9", "livekit-server:v1.9.9", "files.compose.livekit_old", Verdict::Fail),
            ("livekit-server:v1.13.9", "livekit-server:v1.13.5", "files.compose.untested", Verdict::Warn),
            ("synapse:v1.163.2", "synapse:v1.160.0", "files.compose.synapse_old", Verdict::Warn),
            ("HOMESERVERS: example.org", "HOMESERVERS: '*'", "files.compose.full_access_wide", Verdict::Warn),
            (
                "HOMESERVERS: example.org",
                "HOMESERVERS: example.org, other.org",
                "files.compose.full_access_wide",
                Verdict::Warn,
            ),
            (
                "HOMESERVERS: example.org",
                "HOMESERVERS: example.org other.org",
                "files.compose.full_access_wide",
                Verdict::Warn,
            ),
            ("URL: wss://rtc.example.org", "URL: wss://rtc.example.org/", "files.compose.livekit_url", Verdict::Fail),
            ("LIVEKIT_AS_REGISTRATION_FILE", "X", "files.compose.application_service", Verdict::Warn),
        ] {
            assert!(good.contains(old), "{old}");
            let findings = findings("files.compose", compose::assess, &good.replace(old, new));
            let found: Vec<_> = findings.iter().map(|finding| (finding.id.as_str(), finding.verdict)).collect();
            assert_eq!(found, [(id, verdict)], "{new}");
            if new.ends_with("0.7.2") {
                assert!(findings[0].fact.contains("GHSA-rq24-fh66-rq7x"));
            }
        }
    }
}
