//! What stands behind a site, as far as the file itself says it: by the paths that it routes and the documents that it
//! serves. A name or a port alone says nothing.

use super::{
    Remark,
    conditions::{Base, Conditions},
    lexer::SEGMENT,
    model::{Action, Route, Site, TargetConfig, Upstream},
    proxy::JWT_PATHS,
    rules::{self, Rule},
    write_routes,
};
use crate::config::plan::{CATCH_ALL, Kind};

/// Homeservers that are not Synapse, by their names, and the port of one of them.
const OTHERS: [&str; 7] = ["conduit", "conduwuit", "continuwuity", "tuwunel", "dendrite", "construct", ":6167"];

/// Paths of homeservers that are not Synapse.
const OTHER_PATHS: [&str; 4] = ["/_conduwuit", "/_continuwuity", "/_tuwunel", "/_dendrite"];

/// Paths of a client or of the administration that a homeserver of kind `synapse` opens by itself.
const OPEN: [&str; 4] = ["/_matrix", "/_synapse/client", "/_matrix/*", "/_synapse/client/*"];

/// Gives the rules of a site their kinds.
pub fn of_paths(rules: &mut Vec<Rule>, remarks: &mut Vec<Remark>) {
    homeserver(rules, remarks);
    token_service(rules, remarks);
}

/// Whether a homeserver at these servers is another one than Synapse, as far as anything says so.
fn is_other(upstream: &Upstream, rules: &[Rule]) -> bool {
    let names = upstream.servers.join(" ").to_ascii_lowercase();
    OTHERS.iter().any(|name| names.contains(name))
        || rules.iter().any(|rule| {
            rules::upstream(rule) == Some(upstream)
                && rule.when.path.as_ref().is_some_and(|path| {
                    OTHER_PATHS.iter().any(|other| path.starts_with(other)) || path.starts_with("/.well-known/matrix")
                })
        })
}

/// What the whole of `/_matrix` is passed on to is a homeserver.
fn homeserver(rules: &mut Vec<Rule>, remarks: &mut Vec<Remark>) {
    let is_api = |rule: &&Rule| {
        rules::is_plain_proxy(rule)
            && rule.when.path.as_deref().is_some_and(|path| path == "/_matrix/*" || path == "/_matrix*")
    };
    let Some(server) = rules.iter().find(is_api).and_then(rules::upstream).cloned() else { return };
    if is_other(&server, rules) {
        return;
    }
    let takes_all = |rule: &Rule| rule.when == Conditions::default();
    let root = rules.iter().position(takes_all).filter(|at| rules[*at].action != Action::Nothing);
    let is_bare_404 =
        |rule: &Rule| matches!(&rule.action, Action::Respond { status: 404, body, .. } if body.is_empty());
    let root = root.filter(|at| !is_bare_404(&rules[*at]));
    let kind = Action::Proxy(Kind::Synapse, server.clone());
    let of_client = |rule: &Rule| {
        rules::is_plain_proxy(rule)
            && rules::upstream(rule) == Some(&server)
            && rule
                .when
                .path
                .as_deref()
                .is_some_and(|path| OPEN.contains(&path.trim_end_matches('*').trim_end_matches('/')))
    };
    let all_alike =
        rules.iter().filter(|rule| of_client(rule)).all(|rule| rule.changes == rules[0].changes) || root.is_none();
    match root {
        // Everything that is not routed is the homeserver's: a site of its kind.
        None if all_alike => {
            let line = rules.iter().find(|rule| of_client(rule)).map_or(0, |rule| rule.line);
            let changes =
                rules.iter().find(|rule| of_client(rule)).map(|rule| rule.changes.clone()).unwrap_or_default();
            rules.retain(|rule| !of_client(rule) && !(takes_all(rule)));
            rules.push(Rule { when: Conditions::default(), action: kind, base: Base::Same, changes, line });
        }
        _ => {
            for rule in rules.iter_mut() {
                if of_client(rule) {
                    rule.action = kind.clone();
                    // Our kinds look at whole segments.
                    rule.when.path = rule
                        .when
                        .path
                        .as_ref()
                        .map(|path| format!("{}/*", path.trim_end_matches('*').trim_end_matches('/')));
                }
            }
        }
    }
    for rule in rules.iter().filter(|rule| rules::upstream(rule) == Some(&server)) {
        let path = rule.when.path.as_deref().unwrap_or_default();
        if path.starts_with("/_synapse/admin") || path == "/_synapse/*" || path == "/_synapse*" {
            let text = "the admin API of Synapse is open to everybody, as in the Caddyfile; to restrict it, add `from = [\"10.0.0.0/8\"]` to its route";
            remarks.push(Remark::note(rule.line, text));
        }
    }
}

/// What the paths of lk-jwt-service are passed on to is that service; newer clients ask it for more of them.
fn token_service(rules: &mut Vec<Rule>, remarks: &mut Vec<Remark>) {
    let mount = |rule: &Rule| match &rule.base {
        Base::Same => Some(String::new()),
        Base::Stripped(prefix) => Some(prefix.clone()),
        _ => None,
    };
    let is_path = |rule: &Rule| {
        let path = rule.when.path.as_deref().unwrap_or_default();
        matches!(rule.action, Action::Proxy(Kind::Http, _))
            && rule.when.is_path_only()
            && mount(rule).is_some_and(|mount| rules::is_jwt_path(path, &mount))
    };
    let Some(first) = rules.iter().position(is_path) else { return };
    let (Some(server), Some(mount)) = (rules::upstream(&rules[first]).cloned(), mount(&rules[first])) else { return };
    let alike = |rule: &Rule| is_path(rule) && rules::upstream(rule) == Some(&server) && rule.base == rules[first].base;
    let has = |path: &str| {
        rules.iter().any(|rule| alike(rule) && rule.when.path.as_deref() == Some(&format!("{mount}{path}")))
    };
    // Only what is asked for tokens is this service.
    if !has("/sfu/get") && !has("/sfu/get*") && !has("/get_token") {
        return;
    }
    let Rule { line, changes, .. } = rules[first].clone();
    if !(has("/get_token") && has("/delegate_delayed_leave")) {
        let text =
            "newer clients also need /get_token and /delegate_delayed_leave of lk-jwt-service; both are routed now";
        remarks.push(Remark::mended(line, text));
    }
    let action = Action::Proxy(Kind::LkJwt, server.clone());
    let made = |path: String, base| Rule {
        when: Conditions { path: Some(path), ..Conditions::default() },
        action: action.clone(),
        base,
        changes: changes.clone(),
        line,
    };
    let new: Vec<Rule> = if mount.is_empty() {
        JWT_PATHS.iter().map(|path| made((*path).to_owned(), Base::Same)).collect()
    } else {
        vec![made(format!("{mount}/*"), Base::Stripped(mount.clone()))]
    };
    let keep: Vec<bool> = rules.iter().map(|rule| !alike(rule)).collect();
    let mut keep = keep.into_iter();
    rules.retain(|_| keep.next().unwrap_or(true));
    let first = first.min(rules.len());
    rules.splice(first..first, new);
}

/// What the Matrix Authentication Service answers in place of a homeserver.
const LOG_INS: [&str; 3] = ["login", "logout", "refresh"];

/// What all log-ins of a homeserver are passed on to is the Matrix Authentication Service.
pub fn of_log_ins(site: &mut Site, remarks: &mut Vec<Remark>) {
    let Some(Action::Proxy(Kind::Synapse, homeserver)) = &site.root else { return };
    let service = |route: &Route| match &route.action {
        Action::Proxy(Kind::Http, upstream) if route.only_passes_on() && upstream != homeserver => {
            Some(upstream.clone())
        }
        _ => None,
    };
    let log_in = |route: &Route| service(route).and_then(|_| log_in(&route.prefix));
    let Some(mas) = site.routes.iter().find(|route| log_in(route).is_some()).and_then(service) else { return };
    let is_mas = |route: &Route| log_in(route).is_some() && service(route).as_ref() == Some(&mas);
    let found: Vec<&Route> = site.routes.iter().filter(|route| is_mas(route)).collect();
    let all = LOG_INS.iter().all(|name| found.iter().any(|route| log_in(route) == Some(name)));
    let mut others = site.routes.iter().filter(|route| !is_mas(route));
    if !all || others.any(|other| found.iter().any(|route| write_routes::overlap(route, other))) {
        return;
    }
    let text = "`login`, `logout` and `refresh` of every version, with what is below them, go to the Matrix Authentication Service, and nothing else";
    remarks.push(Remark::mended(found[0].line, text));
    let keep: Vec<bool> = site.routes.iter().map(|route| !is_mas(route)).collect();
    let mut keep = keep.into_iter();
    site.routes.retain(|_| keep.next().unwrap_or(true));
    site.mas = Some(mas);
}

/// What a path logs in, out, or on with: `/_matrix/client/VERSION/login`, and what is below it or begins like it.
fn log_in(path: &str) -> Option<&'static str> {
    let path = path.trim_start_matches('=').trim_end_matches('*').trim_end_matches('/');
    let (version, last) = path.strip_prefix("/_matrix/client/")?.split_once('/')?;
    let is_version =
        version.len() > 1 && version.starts_with(['r', 'v']) && version[1..].bytes().all(|b| b.is_ascii_digit());
    let found = LOG_INS.into_iter().find(|name| *name == last);
    found.filter(|_| is_version || version == "*" || version.chars().eq([SEGMENT]))
}

/// Gives the sites that the documents name their kinds.
pub fn of_documents(model: &mut TargetConfig, remarks: &mut Vec<Remark>) {
    let host =
        |url: &str| url.split("://").last().unwrap_or_default().split([':', '/']).next().unwrap_or_default().to_owned();
    let documents = &model.documents;
    let homeserver = documents.homeserver.as_deref().or(documents.federation.as_deref()).map(host);
    let services: Vec<(String, String)> = documents
        .rtc_services
        .iter()
        .map(|url| {
            let rest = url.split("://").last().unwrap_or_default();
            let (host, mount) =
                rest.split_once('/').map_or((rest, String::new()), |(host, mount)| (host, format!("/{mount}")));
            (host.to_owned(), mount)
        })
        .collect();
    for site in &mut model.sites {
        if homeserver.as_ref() == Some(&site.host) {
            becomes(site, Kind::Synapse, remarks);
        }
        if services.iter().any(|(host, mount)| *host == site.host && mount.is_empty()) {
            becomes(site, Kind::LkJwt, remarks);
        }
        for (_, mount) in services.iter().filter(|(host, mount)| *host == site.host && !mount.is_empty()) {
            for route in site.routes.iter_mut().filter(|route| route.strip && route.prefix == format!("{mount}/*")) {
                if let Action::Proxy(kind @ Kind::Http, _) = &mut route.action {
                    *kind = Kind::LkJwt;
                    route.prefix.clone_from(mount);
                }
            }
        }
    }
    let is_sfu = |upstream: &Upstream| {
        upstream.servers.iter().all(|server| server.contains("livekit") && server.ends_with(":7880"))
    };
    if !services.is_empty() {
        for site in &mut model.sites {
            if matches!(&site.root, Some(Action::Proxy(Kind::Http, upstream)) if is_sfu(upstream)) {
                becomes(site, Kind::Livekit, remarks);
            }
        }
    }
}

/// Makes a site that passes everything on one of a kind, and says which paths that closes.
fn becomes(site: &mut Site, new: Kind, remarks: &mut Vec<Remark>) {
    if site.host == CATCH_ALL {
        return;
    }
    let Some(Action::Proxy(kind @ Kind::Http, upstream)) = &mut site.root else { return };
    if new == Kind::Synapse && is_other(upstream, &[]) {
        return;
    }
    *kind = new;
    let open = match new {
        Kind::Synapse => {
            "/, /_matrix/, /_synapse/client/ and /health (to open /_synapse/admin/ to your networks, add `admin_from = [\"10.0.0.0/8\"]`)"
        }
        Kind::LkJwt => "the paths of lk-jwt-service",
        _ => "/, /rtc/, /twirp/ and /settings/",
    };
    let text = format!(
        "the documents show that `{}` is of kind `{}`, which opens only {open}; to open all paths, remove `kind`",
        site.host,
        new.as_str()
    );
    remarks.push(Remark::note(site.line, text));
}
