//! Caddy's side: the blocks of a Caddyfile as a function of a request, by walking their directives in Caddy's order.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Decision, Outcome, SampleRequest};
use crate::{
    cli::import_caddy::{
        RemarkKind,
        conditions::{self, Matcher, Named},
        model::Action,
        options::Ports,
        order,
        parser::{Directive, SiteBlock},
        patterns, sites, terminal,
    },
    config::plan::CATCH_ALL,
    route,
};

/// The sites of a Caddyfile, by host and port.
pub struct CaddyRouter<'f> {
    pub sites: Vec<Site<'f>>,
}

/// A block under one of its addresses.
pub struct Site<'f> {
    pub host: String,
    pub port: u16,
    pub plain: bool,
    pub body: &'f [Directive],
    line: usize,
}

/// What has become of a request on its way through a block.
struct State<'w> {
    sample: &'w SampleRequest,
    plain: bool,
    path: String,
    basic_auth: bool,
    forward_auth: bool,
    root: Option<String>,
    spa: bool,
    trace: Vec<usize>,
}

/// Something that is not known of a file: what a remark has been made of already.
struct Unknown;

impl<'f> CaddyRouter<'f> {
    pub fn new(blocks: &'f [SiteBlock], ports: Ports) -> Self {
        let mut sites = Vec::new();
        // What port 80 does for every name is done for those that are there.
        for block in blocks.iter().filter(|block| !sites::is_redirect_of_port_80(block)) {
            for (host, port, plain, line) in sites::addresses(block, ports) {
                sites.push(Site { host, port, plain, body: &block.body, line });
            }
        }
        Self { sites }
    }

    /// What Caddy makes of a request, and the lines that decide it, that of the site first; `None` where it is not known.
    pub fn decide(&self, sample: &SampleRequest) -> Option<(Decision, Vec<usize>)> {
        let parent = sample.host.split_once('.').map(|(_, parent)| format!("*.{parent}"));
        let on_port = || self.sites.iter().filter(|site| site.port == sample.port);
        let site = on_port()
            .find(|site| site.host == sample.host)
            .or_else(|| on_port().find(|site| parent.as_ref() == Some(&site.host)))
            .or_else(|| on_port().find(|site| site.host == CATCH_ALL))?;
        let mut state = State {
            sample,
            plain: site.plain,
            path: sample.path.clone(),
            basic_auth: false,
            forward_auth: false,
            root: None,
            spa: false,
            trace: vec![site.line],
        };
        let named = conditions::scope(site.body, &Named::new());
        let outcome = state.run(&order::steps(site.body, false, &named), &named).ok()?.unwrap_or(Outcome::Nothing);
        let decision = Decision { basic_auth: state.basic_auth, forward_auth: state.forward_auth, outcome };
        Some((decision, state.trace))
    }
}

impl State<'_> {
    fn run(&mut self, steps: &[Directive], named: &Named) -> Result<Option<Outcome>, Unknown> {
        let (mut handled, mut rewritten_once) = (false, false);
        for line in steps {
            let name = order::name(line);
            // `root /srv` has no matcher.
            let bare_root = name == "root" && line.args.len() == 1;
            let (matcher, args) =
                if bare_root { (Matcher::default(), &line.args[..]) } else { conditions::of(line, named) };
            let is_taken = (name == "handle" && handled) || (name == "rewrite" && rewritten_once);
            if is_taken || !self.meets(&matcher)? {
                continue;
            }
            match name {
                "handle" | "route" => {
                    self.trace.push(line.line);
                    handled |= name == "handle";
                    if line.name == "handle_path" {
                        let prefix =
                            matcher.single_path().unwrap_or_default().trim_end_matches('*').trim_end_matches('/');
                        self.path = route::strip(&self.path, prefix);
                    }
                    let block = line.block.as_deref().unwrap_or_default();
                    let inner = conditions::scope(block, named);
                    let steps = order::steps(block, line.name == "route", &inner);
                    if let Some(outcome) = self.run(&steps, &inner)? {
                        return Ok(Some(outcome));
                    }
                }
                "uri" | "rewrite" => {
                    self.trace.push(line.line);
                    rewritten_once |= name == "rewrite";
                    let words: Vec<&str> = args.iter().map(|token| token.text.as_str()).collect();
                    self.path = rewritten(&self.path, &line.name, &words).ok_or(Unknown)?;
                }
                "root" => self.root = args.first().map(|token| token.text.clone()),
                "try_files" => self.spa |= terminal::tries(args).ok_or(Unknown)?,
                "basic_auth" => self.guard(line, true),
                "forward_auth" => self.guard(line, false),
                "map" | "method" | "templates" | "invoke" => return Err(Unknown),
                name if terminal::IS.contains(&name) => {
                    self.trace.push(line.line);
                    return self.end(line, args).map(Some);
                }
                _ => {}
            }
        }
        Ok(None)
    }

    fn guard(&mut self, line: &Directive, basic: bool) {
        self.trace.push(line.line);
        if basic { self.basic_auth = true } else { self.forward_auth = true }
    }

    fn end(&self, line: &Directive, args: &[crate::cli::import_caddy::lexer::Token]) -> Result<Outcome, Unknown> {
        let mut remarks = Vec::new();
        let action = terminal::read(line, args, &self.sample.host, self.plain, &mut remarks).ok_or(Unknown)?;
        if remarks.iter().any(|remark| remark.what == RemarkKind::Lost) {
            return Err(Unknown);
        }
        Ok(match action {
            Action::Proxy(_, upstream) => {
                let servers = upstream.servers.iter().map(|server| super::usual(server)).collect();
                Outcome::Proxy { servers, path: self.path.clone() }
            }
            Action::Redirect { to, status } => {
                let to = to
                    .replace("{uri}", &self.path)
                    .replace("{path}", &self.path)
                    .replace("{query}", "")
                    .replace("{host}", &self.sample.host);
                Outcome::Redirect { to, status }
            }
            Action::Respond { status, body, .. } => Outcome::Respond { status, body },
            Action::Files { root, .. } => {
                let root = if root.is_empty() { self.root.clone().ok_or(Unknown)? } else { root };
                Outcome::Files { root, path: self.path.clone(), spa: self.spa }
            }
            Action::Deny => Outcome::Refused,
            Action::Nothing => Outcome::Nothing,
        })
    }

    fn meets(&self, matcher: &Matcher) -> Result<bool, Unknown> {
        let sample = self.sample;
        if matcher.unknown.is_some() {
            return Err(Unknown);
        }
        let is_host = |pattern: &String| match pattern.strip_prefix("*.") {
            Some(parent) => sample.host.split_once('.').is_some_and(|(_, rest)| rest == parent),
            None => *pattern == sample.host || pattern == "*",
        };
        let has = |(name, pattern): &(String, String)| {
            sample.fields.iter().any(|(own, value)| own.eq_ignore_ascii_case(name) && patterns::fits(value, pattern))
        };
        let met = (matcher.paths.is_empty() || matcher.paths.iter().any(|pattern| patterns::fits(&self.path, pattern)))
            && (matcher.hosts.is_empty() || matcher.hosts.iter().any(is_host))
            && (matcher.methods.is_empty() || matcher.methods.contains(&sample.method))
            && matcher.fields.iter().all(has)
            && (matcher.from.is_empty() || matcher.from.iter().any(|network| is_in(network, sample.client)))
            && matcher.plain.is_none_or(|plain| plain == self.plain);
        for not in &matcher.nots {
            if met && self.meets(not)? {
                return Ok(false);
            }
        }
        Ok(met)
    }
}

fn is_in(network: &str, client: IpAddr) -> bool {
    network.parse::<IpNet>().map_or_else(|_| network.parse() == Ok(client), |network| network.contains(&client))
}

/// A path after `uri` or `rewrite`; `None` where that is not known.
fn rewritten(path: &str, name: &str, words: &[&str]) -> Option<String> {
    match (name, words) {
        ("uri", ["strip_prefix", prefix]) => {
            let prefix = format!("/{}", prefix.trim_matches('/'));
            Some(path.strip_prefix(&prefix).map_or_else(|| path.to_owned(), |_| route::strip(path, &prefix)))
        }
        ("rewrite", [to]) => {
            let to = to.strip_suffix("?{query}").unwrap_or(to);
            let to = to.replace("{http.request.uri", "{uri").replace("{uri.path}", "{path}");
            let to = to.replace("{uri}", path).replace("{path}", path);
            (to.starts_with('/') && !to.contains(['{', '?'])).then_some(to)
        }
        _ => None,
    }
}
