//! Sites: which names and ports the blocks of a Caddyfile are for, and what becomes of them.

use super::{
    Remark,
    imports::LINES_PER_FILE,
    kinds,
    lexer::ENV,
    logs,
    model::{Action, Edit, Site, TargetConfig},
    options::{self, Ports},
    parser::{Directive, SiteBlock},
    rules::{Reader, Rule},
    well_known, write_routes,
};
use crate::config::plan::CATCH_ALL;

/// Names that Caddy signs with its own CA.
const INTERNAL: [&str; 4] = ["localhost", "local", "internal", "home.arpa"];

/// An address of a site.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    /// Whether its scheme is `http`.
    plain: bool,
    /// Whether its scheme is `https`.
    secure: bool,
    /// [`CATCH_ALL`] where it names none.
    host: String,
    port: Option<u16>,
}

/// A site of one name.
struct Named {
    host: String,
    plain: bool,
    line: usize,
    /// The ports that it is on, and whether they are plain.
    ports: Vec<(bool, u16)>,
    /// Whether one of them is a usual one.
    usual: bool,
}

/// Takes a site in, under each of its names.
pub fn site(block: &SiteBlock, ports: Ports, model: &mut TargetConfig, remarks: &mut Vec<Remark>) {
    if is_redirect_of_port_80(block) {
        return;
    }
    let mut names: Vec<Named> = Vec::new();
    for token in &block.addresses {
        let address = match address(&token.text) {
            Ok(address) => address,
            Err(why) => {
                remarks.push(Remark::lost(token.line, format!("the address `{}`: {why}", token.text)));
                continue;
            }
        };
        if address.host == CATCH_ALL && token.text.contains('*') {
            let text = "`*` is every name of one label in Caddy, such as `localhost`; it is every other name now";
            remarks.push(Remark::note(token.line, text));
        }
        let port = address.port.unwrap_or(if address.plain { ports.http } else { ports.https });
        let plain = is_plain(&address, port, block, ports);
        let usual = port == ports.http || port == ports.https;
        match names.iter_mut().find(|known| known.host == address.host) {
            // With TLS on one of its ports, the plain ones only redirect.
            Some(known) => {
                known.plain &= plain;
                known.usual |= usual;
                known.ports.push((plain, port));
            }
            None => {
                names.push(Named { host: address.host, plain, line: token.line, ports: vec![(plain, port)], usual });
            }
        }
    }
    let (mut reached, mut not_reached) = (Vec::new(), Vec::new());
    for mut name in names {
        if name.host == CATCH_ALL && !certificate_of_catch_all(&mut name, block, remarks) {
            continue;
        }
        for host in names_of(&name.host, block, name.line, remarks) {
            let mut reader = Reader::new(&host, name.plain, remarks);
            let rules = reader.site(&block.body);
            reached.append(&mut reader.reached);
            not_reached.append(&mut reader.not_reached);
            let unreached = std::mem::take(&mut reader.unreached);
            one(&Named { host, ports: name.ports.clone(), ..name }, block, (rules, unreached), ports, model, remarks);
        }
    }
    not_reached.retain(|remark| !reached.contains(&remark.line));
    remarks.append(&mut not_reached);
}

/// The addresses of a block: host, port, whether it is plain there, and its line.
pub fn addresses(block: &SiteBlock, ports: Ports) -> Vec<(String, u16, bool, usize)> {
    let known = block.addresses.iter().filter_map(|token| Some((address(&token.text).ok()?, token.line)));
    known
        .map(|(address, line)| {
            let port = address.port.unwrap_or(if address.plain { ports.http } else { ports.https });
            let plain = is_plain(&address, port, block, ports);
            (address.host, port, plain, line)
        })
        .collect()
}

/// Whether Caddy speaks plain HTTP at an address. Without a name it has nothing to order a certificate for, so that only
/// its port for https and blocks with `tls` have TLS.
fn is_plain(address: &Address, port: u16, block: &SiteBlock, ports: Ports) -> bool {
    let has_tls = || address.secure || port == ports.https || block.body.iter().any(|line| line.name == "tls");
    address.plain || port == ports.http || (address.host == CATCH_ALL && !has_tls())
}

/// `http:// { redir https://{host}{uri} }`: what port 80 does by itself.
pub fn is_redirect_of_port_80(block: &SiteBlock) -> bool {
    let every_name =
        block.addresses.iter().all(|token| ["http://", ":80", "http://:80"].contains(&token.text.as_str()));
    let to_https = |line: &Directive| {
        let target = line.args.iter().find(|token| token.text != "*").map_or("", |token| token.text.as_str());
        line.name == "redir"
            && ["https://{host}{uri}", "https://{http.request.host}{http.request.uri}"].contains(&target)
    };
    every_name && !block.addresses.is_empty() && matches!(block.body.as_slice(), [line] if to_https(line))
}

/// The name itself, or those inside a wildcard that its block has something for.
fn names_of(host: &str, block: &SiteBlock, line: usize, remarks: &mut Vec<Remark>) -> Vec<String> {
    let mut hosts = Vec::new();
    if host == CATCH_ALL {
        // What it has for some names is theirs, what it has for others is for every other name.
        named_hosts(&block.body, true, &mut hosts);
        hosts.retain(|host| {
            let is_name = host.contains(ENV) || crate::config::site_name(host).is_ok();
            if !is_name {
                remarks.push(Remark::lost(line, format!("the host `{host}` of a matcher is not a valid host name")));
            }
            is_name && host != CATCH_ALL
        });
        hosts.sort();
        hosts.dedup();
        hosts.push(CATCH_ALL.to_owned());
        return hosts;
    }
    let Some(parent) = host.strip_prefix("*.") else { return vec![host.to_owned()] };
    named_hosts(&block.body, false, &mut hosts);
    hosts.retain(|host| host.split_once('.').is_some_and(|(label, rest)| rest == parent && label != "*"));
    hosts.sort();
    hosts.dedup();
    let text = if hosts.is_empty() {
        Remark::lost(
            line,
            format!(
                "`{host}`: a wildcard certificate needs the challenge DNS-01; set acme.dns and add a site \"{host}\", or add one site for each name"
            ),
        )
    } else {
        let all = hosts.join(", ");
        Remark::note(
            line,
            format!(
                "`{host}` becomes one site for each name in it, each with its own certificate: {all}; other names are not served (with acme.dns, a site \"{host}\" has one certificate for all: tls = \"wildcard\")"
            ),
        )
    };
    remarks.push(text);
    hosts
}

/// The arguments of `host` matchers, those inside of `not` included or not.
fn named_hosts(directives: &[Directive], with_negated: bool, hosts: &mut Vec<String>) {
    for line in directives {
        // The names of variables keep their case.
        let lower = |text: &str| if text.contains(ENV) { text.to_owned() } else { text.to_ascii_lowercase() };
        let words: Vec<_> = line.args.iter().map(|token| lower(&token.text)).collect();
        let matcher = line.name.starts_with('@') || (with_negated && line.name == "not");
        match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["host", names @ ..] if matcher => hosts.extend(names.iter().map(|&name| name.to_owned())),
            ["not", "host", names @ ..] if matcher && with_negated => {
                hosts.extend(names.iter().map(|&name| name.to_owned()));
            }
            _ if line.name == "host" => hosts.extend(words),
            _ => {}
        }
        if let Some(block) = line.block.as_ref().filter(|_| with_negated || line.name != "not") {
            named_hosts(block, with_negated, hosts);
        }
    }
}

fn one(
    name: &Named,
    block: &SiteBlock,
    (mut rules, unreached): (Vec<Rule>, Vec<(Rule, usize)>),
    ports: Ports,
    model: &mut TargetConfig,
    remarks: &mut Vec<Remark>,
) {
    let mut site = Site { host: name.host.clone(), line: name.line, ..Site::default() };
    if name.plain {
        site.tls = Some("\"off\"".into());
    } else if INTERNAL
        .iter()
        .any(|ending| name.host.strip_suffix(ending).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
    {
        site.tls = Some("\"internal\"".into());
    }
    for line in &block.body {
        match line.name.as_str() {
            "tls" => options::tls(line, &mut site, model, remarks),
            "log" => logs::read(line, model, remarks),
            "bind" => {
                let all: Vec<_> = line.args.iter().map(|token| token.text.clone()).collect();
                if model.bind.is_empty() || model.bind == all {
                    model.bind = all;
                } else {
                    remarks.push(Remark::lost(
                        line.line,
                        "`bind`: all sites listen on the same addresses, which an earlier line sets",
                    ));
                }
            }
            _ => {}
        }
    }
    // A homeserver and its documents have a name.
    if name.host != CATCH_ALL {
        documents(&mut rules, unreached, &mut site, model, remarks);
        kinds::of_paths(&mut rules, remarks);
    }
    write_routes::write(rules, &mut site, remarks);
    kinds::of_log_ins(&mut site, remarks);
    write_routes::widen(&mut site, remarks);
    if name.usual {
        if !add(site, name.plain, ports, model, remarks) {
            return;
        }
    } else {
        for (plain, port) in &name.ports {
            let tls = if *plain { Some("\"off\"".into()) } else { site.tls.clone() };
            add(Site { port: Some(*port), tls, ..site.clone() }, *plain, ports, model, remarks);
        }
    }
    for (plain, port) in &name.ports {
        let listened = if *plain { &mut model.http } else { &mut model.https };
        if !listened.contains(port) {
            listened.push(*port);
        }
    }
}

/// Sees to the certificate of a block for every other name; whether anything of it is served.
fn certificate_of_catch_all(name: &mut Named, block: &SiteBlock, remarks: &mut Vec<Remark>) -> bool {
    let lines = || block.body.iter().filter(|line| line.name == "tls");
    let is_internal = |line: &Directive| {
        let first = |line: &Directive| line.args.first().is_some_and(|token| token.text == "internal");
        first(line) || line.block.iter().flatten().any(|line| line.name == "issuer" && first(line))
    };
    if name.plain || lines().any(|line| line.args.len() == 2) {
        return true;
    }
    if lines().any(is_internal) {
        let text = "`tls internal` of a site for every name: its certificate is valid for no name, so that only clients that do not verify it connect";
        remarks.push(Remark::note(name.line, text));
        return true;
    }
    name.ports.retain(|(plain, _)| *plain);
    if let Some((_, port)) = name.ports.first() {
        let text = format!(
            "without a certificate of its own, the site for every other name is served on port {port} alone, as by Caddy"
        );
        remarks.push(Remark::note(name.line, text));
        name.plain = true;
        return true;
    }
    let text = "a site for every name has no certificate: set `tls` to a certificate and its key, or write its names";
    remarks.push(Remark::lost(name.line, text));
    false
}

/// Takes the documents of Matrix out of the rules.
fn documents(
    rules: &mut Vec<Rule>,
    unreached: Vec<(Rule, usize)>,
    site: &mut Site,
    model: &mut TargetConfig,
    remarks: &mut Vec<Remark>,
) {
    let is_one = |rule: &Rule| {
        let path = rule.when.path.as_deref().unwrap_or_default();
        matches!(&rule.action, Action::Respond { status: 200, body, .. } if !body.is_empty())
            && rule.when.is_path_only()
            && well_known::document(path).is_some()
    };
    let mut found: Vec<(Rule, bool)> =
        rules.iter().filter(|rule| is_one(rule)).map(|rule| (rule.clone(), true)).collect();
    let unreached = unreached.into_iter().filter(|(rule, _)| is_one(rule));
    for (rule, by) in unreached {
        let by = by % LINES_PER_FILE;
        let text =
            format!("`respond` is never reached, because line {by} handles every request before it; it is reached now");
        remarks.push(Remark::mended(rule.line, text));
        found.push((rule, false));
    }
    let other = |rule: &Rule| rule.when.path.as_deref().is_some_and(|path| path.starts_with("/.well-known/matrix"));
    if found.is_empty() {
        // Someone else has them: the edge must not.
        if rules.iter().any(|rule| other(rule) && rule.action != Action::Nothing) {
            site.well_known = Some(false);
            model.documents.hosts.1.push(site.host.clone());
        }
        return;
    }
    site.well_known = Some(true);
    for (rule, _) in &found {
        let Action::Respond { body, .. } = &rule.action else { continue };
        let Some(which) = rule.when.path.as_deref().and_then(well_known::document) else { continue };
        let set =
            |name: &str| rule.changes.response.iter().rev().find(|edit: &&Edit| edit.name.eq_ignore_ascii_case(name));
        if which == "client" && set("access-control-allow-origin").is_none() {
            let text = "the client document has no `Access-Control-Allow-Origin`, so clients in browsers cannot read it; vestibule adds it";
            remarks.push(Remark::mended(rule.line, text));
        }
        if let Some(control) = set("cache-control") {
            max_age(&control.value, rule.line, model, remarks);
        }
        for edit in rule.changes.response.iter().filter(|edit| edit.how != "remove") {
            let name = edit.name.to_ascii_lowercase();
            if !name.starts_with("access-control-")
                && !["cache-control", "content-type", "strict-transport-security", "x-content-type-options"]
                    .contains(&name.as_str())
            {
                remarks.push(Remark::note(rule.line, format!("the field `{}` of the documents is omitted", edit.name)));
            }
        }
        remarks.extend(well_known::take(which, body, &site.host, rule.line, &mut model.documents));
    }
    // Everything below the path is the edge's own: preflights, and the 404 of what is not there.
    for rule in rules.iter().filter(|rule| other(rule) && !is_one(rule) && matches!(rule.action, Action::Proxy(..))) {
        if rule.when.path.as_deref().is_some_and(|path| well_known::document(path).is_some() && !path.ends_with('*')) {
            let path = rule.when.path.as_deref().unwrap_or_default();
            remarks.push(Remark::lost(
                rule.line,
                format!("`{path}`: vestibule serves either all well-known documents or none"),
            ));
        }
    }
    rules.retain(|rule| !is_one(rule) && !other(rule));
}

/// `Cache-Control` of the documents as `well_known_max_age`.
fn max_age(control: &str, line: usize, model: &mut TargetConfig, remarks: &mut Vec<Remark>) {
    let seconds = control.split(',').find_map(|part| part.trim().strip_prefix("max-age=")?.parse::<u64>().ok());
    let age = if control.contains("no-store") || control.contains("no-cache") || seconds == Some(0) {
        Some("\"off\"".to_owned())
    } else {
        seconds.map(|seconds| format!("\"{seconds}s\""))
    };
    match (age, &model.documents.max_age) {
        (Some(age), None) => model.documents.max_age = Some(age),
        (Some(age), Some(known)) if age == *known => {}
        _ => remarks.push(Remark::lost(line, format!("`Cache-Control: {control}` of the documents"))),
    }
}

/// Puts a site beside the others, or together with one of the same name. Whether something of it is served.
fn add(site: Site, plain: bool, ports: Ports, model: &mut TargetConfig, remarks: &mut Vec<Remark>) -> bool {
    let to_itself = |to: &str| to == format!("https://{}{{uri}}", site.host);
    let redirects_itself =
        matches!(&site.root, Some(Action::Redirect { to, .. }) if to_itself(to)) && site.routes.is_empty();
    let known = model.sites.iter().position(|other| other.host == site.host && other.port == site.port);
    if plain && redirects_itself {
        // It is what port 80 does by itself.
        if known.is_none() {
            model.sites.push(Site { root: None, tls: None, ..site });
        }
        return true;
    }
    let Some(known) = known.map(|at| &mut model.sites[at]) else {
        model.sites.push(site);
        return true;
    };
    let is_plain = known.tls.as_deref() == Some("\"off\"");
    if known.root.is_none() && known.routes.is_empty() && (is_plain || !plain) {
        *known = Site { hsts: known.hsts || site.hsts, well_known: known.well_known.or(site.well_known), ..site };
    } else if known.root == site.root && known.routes == site.routes {
        return true;
    } else if is_plain != plain && site.port.is_none() {
        // What is plain is on its port alone, where it comes before the other.
        let only = Some(ports.http);
        if is_plain {
            known.port = only;
            model.sites.push(site);
        } else {
            model.sites.push(Site { port: only, ..site });
        }
    } else {
        let text = format!("`{}` is defined twice; the routes of this block are not served", site.name());
        remarks.push(Remark::lost(site.line, text));
        return false;
    }
    true
}

fn address(text: &str) -> Result<Address, &'static str> {
    let (plain, secure, rest) = match text.split_once("://") {
        Some(("http", rest)) => (true, false, rest),
        Some(("https", rest)) => (false, true, rest),
        Some(_) => return Err("its scheme is not supported"),
        None => (false, false, text),
    };
    let rest = rest.trim_end_matches('/');
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => (host, Some(port)),
        _ => (rest, None),
    };
    let port = port.map(|port| port.parse().map_err(|_| "its port is not valid")).transpose()?;
    let address = |host: &str| Address { plain, secure, host: host.to_owned(), port };
    if host.is_empty() || host == CATCH_ALL {
        return Ok(address(CATCH_ALL));
    }
    if host.contains('*') && !host.starts_with("*.") {
        return Err("a wildcard replaces exactly one label, the first");
    }
    if host.contains(ENV) {
        return Ok(address(host));
    }
    if host.contains('/') {
        return Err("move the path into the site");
    }
    match crate::config::site_name(host) {
        Ok(host) => Ok(address(host.as_str())),
        Err(_) => Err("it is not a valid host name"),
    }
}
