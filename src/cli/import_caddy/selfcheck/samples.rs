//! Requests that show what two files make of them: every pattern hit and missed, one segment more and less, with and
//! without each field, method and network that one of the files asks for.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use super::{SampleRequest, caddy, ours};
use crate::cli::import_caddy::{
    conditions::{self, Matcher, Named},
    lexer::SEGMENT,
    order,
    parser::Directive,
};

/// More paths than this are not tried in one site.
const MAX_PATHS: usize = 400;

/// No file gets more requests than this.
const MAX_SAMPLES: usize = 40_000;

/// Paths that say something of every file with Matrix in it.
const USUAL: [&str; 9] = [
    "/",
    "/w",
    "/w/x.php",
    "/index.html",
    "/_matrix/client/versions",
    "/_synapse/client/x",
    "/_synapse/admin/v1/x",
    "/.well-known/matrix/client",
    "/.well-known/matrix/server",
];

/// An address of documentation, which no file means.
const OUTSIDE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 9));

/// What the matchers of a block ask for.
#[derive(Default)]
struct Constraints {
    paths: BTreeSet<String>,
    hosts: BTreeSet<String>,
    methods: BTreeSet<String>,
    fields: BTreeSet<(String, String)>,
    from: BTreeSet<String>,
}

/// The requests for two files.
pub fn all(caddy: &caddy::CaddyRouter<'_>, ours: &ours::PlanRouter<'_>) -> Vec<SampleRequest> {
    let routes: Vec<String> = ours.paths().map(str::to_owned).collect();
    let mut found = Vec::new();
    for site in &caddy.sites {
        let mut asked = Constraints::default();
        asked.block(site.body, &Named::new(), "");
        asked.paths.extend(routes.iter().cloned());
        let mut paths: BTreeSet<String> = USUAL.map(str::to_owned).into();
        paths.extend(asked.paths.iter().flat_map(|pattern| near(pattern)));
        paths.retain(|path| is_usable(path));
        let hosts: Vec<String> = match site.host.strip_prefix("*.") {
            Some(parent) => {
                let inside = |host: &&String| host.split_once('.').is_some_and(|(_, rest)| rest == parent);
                asked.hosts.iter().filter(inside).cloned().collect()
            }
            None if site.host == "*" => asked
                .hosts
                .iter()
                .filter(|host| !host.contains('*'))
                .cloned()
                .chain(["other.example.net".to_owned()])
                .collect(),
            None => vec![site.host.clone()],
        };
        for host in hosts {
            for path in paths.iter().take(MAX_PATHS) {
                let plain = SampleRequest {
                    host: host.clone(),
                    port: site.port,
                    plain: site.plain,
                    method: "GET".into(),
                    path: path.clone(),
                    fields: Vec::new(),
                    client: OUTSIDE,
                };
                found.extend(asked.variants(&plain));
                if found.len() > MAX_SAMPLES {
                    return found;
                }
            }
        }
    }
    found
}

/// Tokens of CAs are answered by both before anything else, Caddy takes several slashes for one, and of the folder of the
/// documents only they are asked for. Of an API nothing is at its root.
fn is_usable(path: &str) -> bool {
    let is_document = |name: &str| ["client", "server", "support"].contains(&name);
    path.is_ascii()
        && !path.contains("//")
        && !path.contains("/.well-known/acme-challenge")
        && !["/_matrix", "/_synapse", "/_synapse/client"].contains(&path)
        && path.strip_prefix("/.well-known/matrix").is_none_or(|rest| rest.strip_prefix('/').is_some_and(is_document))
}

/// Paths that fit a pattern, and some that just do not.
fn near(pattern: &str) -> Vec<String> {
    let pattern = pattern.replace(SEGMENT, "s");
    // Names in braces, as our routes have them.
    let segments: Vec<&str> =
        pattern.split('/').map(|segment| if segment.starts_with('{') { "s" } else { segment }).collect();
    let pattern = segments.join("/");
    let bare = pattern.replace('*', "").trim_end_matches('/').to_owned();
    let mut paths: Vec<String> = ["", "w", "w/x"].iter().map(|fill| pattern.replace('*', fill)).collect();
    paths.push(format!("{bare}w"));
    paths.push(format!("{bare}/w/x"));
    paths.push(format!("{bare}/"));
    paths.extend(bare.rsplit_once('/').map(|(parent, _)| format!("{parent}/w")));
    paths.push(bare);
    for path in &mut paths {
        if !path.starts_with('/') {
            path.insert_str(0, "/w");
        }
    }
    paths
}

impl Constraints {
    /// Takes in what a block asks for, below a prefix that was taken off.
    fn block(&mut self, body: &[Directive], outer: &Named, prefix: &str) {
        let named = conditions::scope(body, outer);
        named.values().for_each(|matcher| self.matcher(matcher, prefix));
        for line in body.iter().filter(|line| !line.name.starts_with('@')) {
            let (matcher, _) = conditions::of(line, &named);
            self.matcher(&matcher, prefix);
            let Some(block) = line.block.as_deref().filter(|_| ["handle", "route"].contains(&order::name(line))) else {
                continue;
            };
            let taken = match line.name.as_str() {
                "handle_path" => matcher.single_path().unwrap_or_default().trim_end_matches('*').trim_end_matches('/'),
                _ => "",
            };
            self.block(block, &named, &format!("{prefix}{taken}"));
        }
    }

    fn matcher(&mut self, matcher: &Matcher, prefix: &str) {
        self.paths.extend(matcher.paths.iter().map(|path| format!("{prefix}{path}")));
        self.hosts.extend(matcher.hosts.iter().cloned());
        self.methods.extend(matcher.methods.iter().cloned());
        self.fields.extend(matcher.fields.iter().map(|(name, pattern)| (name.clone(), pattern.replace('*', "v"))));
        self.from.extend(matcher.from.iter().cloned());
        matcher.nots.iter().for_each(|not| self.matcher(not, prefix));
    }

    /// A request by itself, and with each of what is asked for.
    fn variants(&self, plain: &SampleRequest) -> Vec<SampleRequest> {
        let mut all = vec![plain.clone()];
        // Preflights of the documents are answered by whoever has them.
        let methods = self.methods.iter().filter(|_| !plain.path.starts_with("/.well-known/matrix"));
        all.extend(methods.map(|method| SampleRequest { method: method.clone(), ..plain.clone() }));
        all.extend(self.fields.iter().map(|field| SampleRequest { fields: vec![field.clone()], ..plain.clone() }));
        if self.fields.len() > 1 {
            all.push(SampleRequest { fields: self.fields.iter().cloned().collect(), ..plain.clone() });
        }
        let address = |network: &String| {
            network.parse::<IpNet>().map_or_else(|_| network.parse().ok(), |network| Some(network.addr()))
        };
        all.extend(self.from.iter().filter_map(address).map(|client| SampleRequest { client, ..plain.clone() }));
        all
    }
}
