//! Sites: what each directive means for our routes. Directives are taken in Caddy's own order, so that of two that are
//! for the same request the one wins that would win there.

use super::{
    Remark,
    lexer::{ENV, Token},
    matcher::{self, Matcher, Named, is_under, prefix},
    model::{Action, Route, Site, TargetConfig, Upstream},
    options::{self, Ports},
    parser::{Directive, SiteBlock},
    proxy::{self, JWT_PATHS, SFU_PATHS},
    well_known,
};
use crate::config::plan::Kind;

/// Directives that end a request, in the order in which Caddy tries them.
const ORDER: [&str; 8] = ["redir", "handle", "route", "abort", "error", "respond", "reverse_proxy", "file_server"];

/// What encloses a directive.
#[derive(Debug, Clone, Default)]
struct Scope {
    /// The patterns of the blocks around it; none is everything.
    patterns: Vec<String>,
    /// The prefix that is taken off before an upstream sees it.
    strip: Option<String>,
    /// Where the paths of inner matchers begin.
    base: String,
}

/// An address of a site.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    plain: bool,
    host: String,
    port: Option<u16>,
}

/// Takes a site in, under each of its names.
pub fn site(block: &SiteBlock, ports: Ports, model: &mut TargetConfig, remarks: &mut Vec<Remark>) {
    let mut hosts: Vec<(String, bool, usize)> = Vec::new();
    for token in &block.addresses {
        let address = match address(&token.text) {
            Ok(address) => address,
            Err(why) => {
                remarks.push(Remark::lost(token.line, format!("the address `{}`: {why}", token.text)));
                continue;
            }
        };
        let port = address.port.unwrap_or(if address.plain { ports.http } else { ports.https });
        let plain = address.plain || port == ports.http;
        let listened = if plain { &mut model.http } else { &mut model.https };
        if !listened.contains(&port) {
            listened.push(port);
        }
        match hosts.iter_mut().find(|(host, ..)| *host == address.host) {
            // With TLS on one of its ports, the plain ones only redirect.
            Some((_, is_plain, _)) => *is_plain &= plain,
            None => hosts.push((address.host, plain, token.line)),
        }
    }
    let mut named = Named::new();
    matcher::collect(&block.body, &mut named);
    for (host, plain, line) in hosts {
        let mut site = Site { line, ..Site::default() };
        if plain {
            site.tls = Some("\"off\"".into());
        } else if host == "localhost" || host.ends_with(".localhost") {
            site.tls = Some("\"internal\"".into());
        }
        site.host = host;
        let mut walk = Walk {
            site,
            named: &named,
            model,
            remarks,
            pending: None,
            front: None,
            types: Vec::new(),
            cors: Vec::new(),
        };
        walk.content_types(&block.body);
        walk.block(&block.body, &Scope::default());
        let site = walk.finish();
        add(site, plain, model, remarks);
    }
}

/// Puts a site beside the others, or together with one of the same name.
fn add(site: Site, plain: bool, model: &mut TargetConfig, remarks: &mut Vec<Remark>) {
    let redirects_itself = site.root == Some(Action::Redirect(format!("https://{}", site.host)));
    let known = model.sites.iter().position(|other| other.host == site.host);
    if plain && redirects_itself {
        // It is what port 80 does by itself.
        if known.is_none() {
            model.sites.push(Site { root: None, tls: None, ..site });
        }
        return;
    }
    let Some(known) = known.map(|at| &mut model.sites[at]) else { return model.sites.push(site) };
    let was_plain = known.tls.as_deref() == Some("\"off\"");
    if was_plain || known.tls.is_none() {
        known.tls = site.tls.clone().filter(|tls| tls != "\"off\"");
    }
    match (&known.root, &site.root) {
        // The port of federation beside the website of the name: both, on every port.
        (Some(Action::Proxy(Kind::Http, _)), Some(homeserver @ Action::Proxy(Kind::Synapse, _))) => {
            known.routes.push(Route { prefix: "/_matrix".into(), action: homeserver.clone(), strip: false });
        }
        (Some(old), Some(new)) if old != new => {
            let text =
                format!("`{}` is there twice: on every port it is one site, which the first block decides", site.host);
            remarks.push(Remark::lost(site.line, text));
        }
        (None, Some(_)) => known.root = site.root,
        _ => {}
    }
    for route in site.routes {
        if !known.routes.iter().any(|old| old.prefix == route.prefix) {
            known.routes.push(route);
        }
    }
    known.hsts |= site.hsts;
    known.well_known |= site.well_known;
}

fn address(text: &str) -> Result<Address, &'static str> {
    let (plain, rest) = match text.split_once("://") {
        Some(("http", rest)) => (true, rest),
        Some(("https", rest)) => (false, rest),
        Some(_) => return Err("its scheme is not spoken"),
        None => (false, text),
    };
    let rest = rest.trim_end_matches('/');
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => (host, Some(port)),
        _ => (rest, None),
    };
    let port = port.map(|port| port.parse().map_err(|_| "its port is none")).transpose()?;
    if host.is_empty() {
        return Err("a site without a name; each name needs its own");
    }
    if host.contains('*') {
        return Err("wildcards are not served; each name needs its own site");
    }
    if host.contains(ENV) {
        return Ok(Address { plain, host: host.to_owned(), port });
    }
    if host.contains('/') {
        return Err("paths belong into the site");
    }
    match host.parse::<crate::config::plan::Hostname>() {
        Ok(host) => Ok(Address { plain, host: host.as_str().to_owned(), port }),
        Err(_) => Err("certificates are for host names"),
    }
}

struct Walk<'w> {
    site: Site,
    named: &'w Named,
    model: &'w mut TargetConfig,
    remarks: &'w mut Vec<Remark>,
    /// A homeserver of which only its own paths are passed on.
    pending: Option<(Vec<String>, Upstream)>,
    /// Where `/` itself is redirected to, and its line.
    front: Option<(String, usize)>,
    /// `header … Content-Type`: patterns and the type.
    types: Vec<(Vec<String>, String)>,
    /// Fields that say who may read, and their lines.
    cors: Vec<(usize, String)>,
}

impl Walk<'_> {
    fn block(&mut self, directives: &[Directive], outer: &Scope) {
        let mut scope = outer.clone();
        for line in directives.iter().filter(|line| line.name == "uri") {
            self.uri(line, &mut scope);
        }
        // Caddy takes `handle_path` for a `handle`.
        let name = |line: &Directive| line.name.strip_suffix("_path").unwrap_or(&line.name).to_owned();
        let rank = |line: &Directive| ORDER.iter().position(|known| *known == name(line));
        let mut ordered: Vec<&Directive> = directives.iter().filter(|line| line.name != "uri").collect();
        ordered.sort_by_key(|line| {
            let (matcher, _) = matcher::of(line, self.named);
            (rank(line).map_or(0, |rank| rank + 1), matcher == Matcher::default())
        });
        let mut dead: Option<&Directive> = None;
        for line in ordered {
            let ends = rank(line).is_some();
            if let (true, Some(by)) = (ends, dead) {
                let documents = line.name == "respond" && self.matches_well_known(line, &scope);
                if name(by) != name(line) {
                    let text =
                        format!("`{}` is never reached, since line {} takes every request before", line.name, by.line);
                    self.remarks.push(if documents {
                        Remark::mended(line.line, format!("{text}; here it is"))
                    } else {
                        Remark::note(line.line, format!("{text}; it is left out"))
                    });
                }
                if !documents {
                    continue;
                }
            }
            self.directive(line, &scope);
            if ends && line.name != "route" && matcher::of(line, self.named).0 == Matcher::default() {
                dead = Some(line);
            }
        }
    }

    fn directive(&mut self, line: &Directive, scope: &Scope) {
        match line.name.as_str() {
            "reverse_proxy" => self.reverse_proxy(line, scope),
            "handle" | "route" => self.enclosed(line, scope, false),
            "handle_path" => self.enclosed(line, scope, true),
            "respond" => self.respond(line, scope),
            "error" => self.respond(line, scope),
            "redir" => self.redir(line, scope),
            "header" => self.header(line, scope),
            "tls" => options::tls(line, &mut self.site, self.model, self.remarks),
            "request_body" => self.request_body(line),
            // Compression and the access log are there by themselves; `root` and `try_files` are of use to `file_server` only.
            "encode" | "log" | "log_skip" | "skip_log" | "log_name" | "log_append" | "root" | "try_files" | "vars"
            | "metrics" => {}
            name if name.starts_with('@') => {}
            "file_server" if self.matches_well_known(line, scope) => {
                self.lost(line, "files of /.well-known/matrix: put what they say into [matrix]");
            }
            "file_server" => {
                self.lost(line, "`file_server`: files are not served; put a web server behind an upstream");
            }
            "basic_auth" | "basicauth" | "forward_auth" => {
                self.lost(line, &format!("`{}`: WHAT IT PROTECTED IS OPEN until something else does", line.name));
            }
            "bind" => self.lost(line, "`bind`: write listen.http and listen.https"),
            other => self.lost(line, &format!("`{other}`")),
        }
    }

    fn lost(&mut self, line: &Directive, text: &str) {
        self.remarks.push(Remark::lost(line.line, text));
    }

    fn matches_well_known(&self, line: &Directive, scope: &Scope) -> bool {
        let (matcher, _) = matcher::of(line, self.named);
        let outer = Matcher { paths: scope.patterns.clone(), ..Matcher::default() };
        matcher.is_well_known() || (matcher.paths.is_empty() && outer.is_well_known())
    }

    /// The patterns that a directive is for, from the root of the site; `None` where it is for nothing that we have.
    fn patterns(&mut self, line: &Directive, matcher: &Matcher, scope: &Scope) -> Option<Vec<String>> {
        if let Some(condition) = &matcher.unknown {
            self.lost(line, &format!("`{}` under the condition {condition}", line.name));
            return None;
        }
        if matcher.preflight {
            if !matcher.is_well_known() {
                let text = "preflights (OPTIONS) are left to the services, which answer them all";
                self.remarks.push(Remark::note(line.line, text));
            }
            return None;
        }
        if !matcher.hosts.is_empty() && !matcher.hosts.contains(&self.site.host) {
            return None;
        }
        if matcher.paths.is_empty() {
            return Some(scope.patterns.clone());
        }
        Some(matcher.paths.iter().map(|path| format!("{}{path}", scope.base)).collect())
    }

    fn enclosed(&mut self, line: &Directive, scope: &Scope, strips: bool) {
        let (matcher, _) = matcher::of(line, self.named);
        let Some(patterns) = self.patterns(line, &matcher, scope) else { return };
        let mut inner = Scope { patterns, ..scope.clone() };
        if strips {
            let taken = inner.patterns.first().and_then(|pattern| prefix(pattern)).unwrap_or_default();
            if taken.len() > 1 {
                inner.base.clone_from(&taken);
                inner.strip = Some(taken);
            }
        }
        self.block(line.block.as_deref().unwrap_or_default(), &inner);
    }

    /// Only what takes a prefix off is known.
    fn uri(&mut self, line: &Directive, scope: &mut Scope) {
        let (matcher, args) = matcher::of(line, self.named);
        match args {
            [how, taken] if how.text == "strip_prefix" && matcher.unknown.is_none() => {
                let taken = format!("{}/{}", scope.base, taken.text.trim_matches('/'));
                if !scope.patterns.is_empty() {
                    scope.base.clone_from(&taken);
                }
                scope.strip = Some(taken);
            }
            _ => self.lost(line, "`uri`: paths are passed on as they are, but for a prefix that is taken off"),
        }
    }

    fn request_body(&mut self, line: &Directive) {
        let (matcher, _) = matcher::of(line, self.named);
        let size = line.block.iter().flatten().find(|line| line.name == "max_size").and_then(|line| line.args.first());
        match size {
            Some(size) if matcher == Matcher::default() => {
                let upper = size.text.to_ascii_uppercase().replace("IB", "iB");
                let bytes = upper.bytes().all(|b| b.is_ascii_digit());
                self.site.max_body = Some(super::emit::quote(&if bytes { format!("{upper}B") } else { upper }));
            }
            _ => self.lost(line, "`request_body` of a part of a site"),
        }
    }

    fn reverse_proxy(&mut self, line: &Directive, scope: &Scope) {
        let (matcher, args) = matcher::of(line, self.named);
        let Some(mut patterns) = self.patterns(line, &matcher, scope) else { return };
        let Some(upstream) = proxy::read(line, args, self.remarks) else { return };
        let is_ours = |pattern: &String| pattern.starts_with("/.well-known/matrix");
        if patterns.iter().any(is_ours) {
            self.model.documents.hosts.1.push(self.site.host.clone());
            self.remarks.push(Remark::note(line.line, "/.well-known/matrix is answered by the edge itself"));
            patterns.retain(|pattern| !is_ours(pattern));
            if patterns.is_empty() {
                return;
            }
        }
        let strip = scope.strip.clone().filter(|strip| {
            patterns.is_empty() || patterns.iter().any(|pattern| prefix(pattern).is_some_and(|at| is_under(&at, strip)))
        });
        match proxy::kind(&upstream, &self.site.host, &patterns) {
            Kind::Synapse if strip.is_none() && !patterns.is_empty() => self.homeserver(line, patterns, upstream),
            Kind::LkJwt if !patterns.is_empty() || strip.is_some() => self.jwt(line, &patterns, strip, upstream),
            Kind::Livekit if !patterns.is_empty() || strip.is_some() => self.sfu(line, &patterns, strip, upstream),
            kind => self.put(line, &patterns, strip, &Action::Proxy(kind, upstream)),
        }
    }

    fn homeserver(&mut self, line: &Directive, mut patterns: Vec<String>, upstream: Upstream) {
        // What Synapse says of itself is for nobody outside, and no kind of ours lets it pass.
        let is_inner = |pattern: &String| {
            pattern.strip_prefix("/_synapse/").is_some_and(|rest| {
                !rest.is_empty() && rest != "*" && !rest.starts_with("client") && !rest.starts_with("admin")
            })
        };
        for pattern in patterns.iter().filter(|pattern| is_inner(pattern)) {
            self.remarks.push(Remark::lost(line.line, format!("`{pattern}`: it is closed to everybody here")));
        }
        patterns.retain(|pattern| !is_inner(pattern));
        if patterns.is_empty() {
            return;
        }
        if patterns
            .iter()
            .any(|pattern| pattern.starts_with("/_synapse/admin") || prefix(pattern).as_deref() == Some("/_synapse"))
        {
            let text = "/_synapse/admin is closed to everybody here; `admin_from` opens it to your networks";
            self.remarks.push(Remark::note(line.line, text));
        }
        match &mut self.pending {
            Some((known, same)) if *same == upstream => known.extend(patterns),
            Some(_) => self.put(line, &patterns, None, &Action::Proxy(Kind::Synapse, upstream)),
            None => self.pending = Some((patterns, upstream)),
        }
    }

    fn jwt(&mut self, line: &Directive, patterns: &[String], strip: Option<String>, upstream: Upstream) {
        let action = Action::Proxy(Kind::LkJwt, upstream);
        let prefixes: Vec<_> = patterns.iter().filter_map(|pattern| prefix(pattern)).collect();
        // `/livekit/jwt` of `/livekit/jwt/sfu/get`; nothing of `/sfu/get`.
        let base = |path: &str| JWT_PATHS.iter().find_map(|end| path.strip_suffix(end)).unwrap_or(path).to_owned();
        let mount = strip.clone().or_else(|| prefixes.first().map(|path| base(path))).unwrap_or_default();
        let whole = prefixes.is_empty() || prefixes.contains(&mount);
        let has = |path: &str| prefixes.iter().any(|prefix| is_under(&format!("{mount}{path}"), prefix));
        if strip.is_none() && !mount.is_empty() {
            let text = format!("lk-jwt-service knows nothing of {mount}, and answers 404; it is taken off here");
            self.remarks.push(Remark::mended(line.line, text));
        }
        if !(whole || has("/get_token") && has("/delegate_delayed_leave")) {
            let text =
                "newer clients ask lk-jwt-service for /get_token and /delegate_delayed_leave too; they pass here";
            self.remarks.push(Remark::mended(line.line, text));
        }
        if mount.is_empty() {
            let all: Vec<_> = JWT_PATHS.iter().map(|path| (*path).to_owned()).collect();
            self.put(line, &all, None, &action);
        } else {
            self.put(line, std::slice::from_ref(&mount), Some(mount.clone()), &action);
        }
    }

    fn sfu(&mut self, line: &Directive, patterns: &[String], strip: Option<String>, upstream: Upstream) {
        let action = Action::Proxy(Kind::Livekit, upstream);
        if let Some(strip) = strip {
            return self.put(line, std::slice::from_ref(&strip), Some(strip.clone()), &action);
        }
        for pattern in patterns {
            let at = prefix(pattern).unwrap_or_default();
            if at == "/" || at.is_empty() || SFU_PATHS.iter().any(|path| is_under(&at, path)) {
                self.put(line, std::slice::from_ref(pattern), None, &action);
            } else {
                let text = format!("LiveKit knows nothing of {at}, and answers 404; it is taken off here");
                self.remarks.push(Remark::mended(line.line, text));
                self.put(line, std::slice::from_ref(pattern), Some(at), &action);
            }
        }
    }

    /// Makes routes, unless an earlier directive has.
    fn put(&mut self, line: &Directive, patterns: &[String], strip: Option<String>, action: &Action) {
        if patterns.is_empty() && strip.is_none() {
            self.site.root.get_or_insert_with(|| action.clone());
            return;
        }
        let strip_only: Vec<_> = strip.iter().cloned().collect();
        for pattern in if patterns.is_empty() { &strip_only } else { patterns } {
            let Some(mut at) = prefix(pattern) else {
                self.lost(line, &format!("`{pattern}`: a route is the beginning of a path"));
                continue;
            };
            if pattern == "/" && !matches!(action, Action::Proxy(..)) {
                self.lost(line, &format!("`{} /`: a route is for everything below it too", line.name));
                continue;
            }
            let taken = strip.as_ref().filter(|strip| is_under(&at, strip));
            if let Some(taken) = taken.filter(|taken| **taken != at) {
                let text = format!("{taken} is passed on as a whole, of which Caddy passed on {pattern} only");
                self.remarks.push(Remark::note(line.line, text));
                at.clone_from(taken);
            }
            if at == "/" {
                self.site.root.get_or_insert_with(|| action.clone());
            } else if !self.site.routes.iter().any(|route| route.prefix == at) {
                self.site.routes.push(Route { prefix: at, action: action.clone(), strip: taken.is_some() });
            }
        }
    }

    fn respond(&mut self, line: &Directive, scope: &Scope) {
        let (matcher, args) = matcher::of(line, self.named);
        let Some(patterns) = self.patterns(line, &matcher, scope) else { return };
        let (body, status) = answer(line, args);
        let mut others = Vec::new();
        for pattern in &patterns {
            match well_known::document(pattern) {
                Some(which) if status == 200 => {
                    self.without_cors(which, line);
                    let host = self.site.host.clone();
                    let said = well_known::take(which, &body, &host, line.line, &mut self.model.documents);
                    self.remarks.extend(said);
                    self.site.well_known = true;
                }
                // The edge says itself what is not there.
                _ if pattern.starts_with("/.well-known/matrix") => {}
                _ => others.push(pattern.clone()),
            }
        }
        if others.is_empty() && !patterns.is_empty() {
            return;
        }
        if has_placeholder(&body) {
            return self.lost(line, "an answer with placeholders");
        }
        if patterns.iter().all(|pattern| pattern.starts_with("/_synapse/admin"))
            && !patterns.is_empty()
            && status >= 400
        {
            return;
        }
        let content_type = (!body.is_empty()).then(|| self.content_type(&others, &body));
        self.put(line, &others, scope.strip.clone(), &Action::Respond { status, content_type, body });
    }

    fn without_cors(&mut self, which: &str, line: &Directive) {
        let has = self.types.iter().any(|(_, value)| value == CORS);
        if which == "client" && !has {
            let text = "the client document has no `Access-Control-Allow-Origin`, so that clients in browsers cannot read it; \
                        here it has";
            self.remarks.push(Remark::mended(line.line, text));
        }
    }

    fn content_type(&self, patterns: &[String], body: &str) -> String {
        let set = self.types.iter().filter(|(_, value)| value != CORS).find(|(of, _)| {
            of.is_empty() || patterns.iter().all(|pattern| of.iter().any(|of| of == pattern || is_star(of, pattern)))
        });
        let json = || serde_json::from_str::<serde_json::Value>(body).is_ok();
        set.map_or_else(
            || if json() { "application/json" } else { "text/plain; charset=utf-8" }.to_owned(),
            |(_, value)| value.clone(),
        )
    }

    /// `header … Content-Type` has to be known before the answers that it is for, and CORS before the documents.
    fn content_types(&mut self, directives: &[Directive]) {
        for line in directives {
            if line.name == "header" {
                let (matcher, args) = matcher::of(line, self.named);
                for (field, value) in fields(line, args) {
                    match field.trim_start_matches(['+', '?', '>']).to_ascii_lowercase().as_str() {
                        "content-type" => self.types.push((matcher.paths.clone(), value)),
                        "access-control-allow-origin" => self.types.push((Vec::new(), CORS.into())),
                        _ => {}
                    }
                }
            } else if let Some(block) = &line.block {
                self.content_types(block);
            }
        }
    }

    fn redir(&mut self, line: &Directive, scope: &Scope) {
        let (matcher, args) = matcher::of(line, self.named);
        let Some(patterns) = self.patterns(line, &matcher, scope) else { return };
        let target = args.first().map_or("", |token| token.text.as_str());
        if !patterns.is_empty() && patterns.iter().all(|pattern| pattern.starts_with("/.well-known/matrix")) {
            self.model.documents.hosts.1.push(self.site.host.clone());
            self.site.well_known = true;
            self.remarks.push(Remark::note(line.line, "/.well-known/matrix is answered by the edge itself"));
            return;
        }
        let keeps = ["{uri}", "{http.request.uri}", "{http.request.orig_uri}"];
        let kept = keeps.iter().find_map(|uri| target.strip_suffix(uri));
        let origin = kept.unwrap_or(target).trim_end_matches('/').replace("{host}", &self.site.host);
        if !is_origin(&origin) {
            return self
                .lost(line, &format!("`redir {target}`: a redirect goes to another origin, path and query kept"));
        }
        if kept.is_none() {
            if patterns == ["/"] {
                self.front = Some((origin, line.line));
            } else {
                self.lost(line, &format!("`redir {target}`: redirects keep path and query"));
            }
            return;
        }
        let code = args.get(1).map_or("302", |token| token.text.as_str());
        let to_itself = origin == format!("https://{}", self.site.host);
        if code != "308" && !to_itself {
            self.remarks.push(Remark::note(line.line, "this redirect is a 308 here, which browsers remember"));
        }
        self.put(line, &patterns, None, &Action::Redirect(origin));
    }

    fn header(&mut self, line: &Directive, scope: &Scope) {
        if self.matches_well_known(line, scope) {
            return;
        }
        let (matcher, args) = matcher::of(line, self.named);
        if self.patterns(line, &matcher, scope).is_none() {
            return;
        }
        for (field, _) in fields(line, args) {
            let name = field.trim_start_matches(['+', '?', '>']).to_ascii_lowercase();
            match name.as_str() {
                "strict-transport-security" => self.site.hsts = true,
                "content-type" | "-server" | "-via" | "-x-powered-by" | "alt-svc" | "-alt-svc" => {}
                name if name.starts_with("access-control-") => self.cors.push((line.line, field)),
                _ => self.lost(line, &format!("the field `{field}`")),
            }
        }
    }

    /// Settles what could not be settled before the whole site was known.
    fn finish(mut self) -> Site {
        let site = &mut self.site;
        let says_not_found = matches!(&site.root, Some(Action::Respond { status: 404, .. }));
        if says_not_found && (self.pending.is_some() || !site.routes.is_empty() || site.well_known) {
            site.root = None;
        }
        if let Some((patterns, upstream)) = self.pending {
            let action = Action::Proxy(Kind::Synapse, upstream.clone());
            match &site.root {
                None => site.root = Some(action),
                Some(Action::Proxy(Kind::Synapse, same)) if *same == upstream => {}
                Some(_) => {
                    for at in patterns.iter().filter_map(|pattern| prefix(pattern)) {
                        if !at.starts_with("/_synapse/admin") && !site.routes.iter().any(|route| route.prefix == at) {
                            site.routes.push(Route { prefix: at, action: action.clone(), strip: false });
                        }
                    }
                }
            }
        }
        if let Some((origin, line)) = self.front {
            match &site.root {
                Some(Action::Proxy(Kind::Synapse, _)) => site.front = Some(origin),
                _ => self.remarks.push(Remark::lost(line, "`redir /`: a redirect is for everything below it too")),
            }
        }
        let has_own = |action: &Action| matches!(action, Action::Proxy(kind, _) if *kind != Kind::Http);
        let all_own = site.root.iter().chain(site.routes.iter().map(|route| &route.action)).all(has_own);
        for (line, field) in self.cors {
            self.remarks.push(if all_own {
                let text = format!("`{field}` is left to the services: a second one would be refused by browsers");
                Remark::note(line, text)
            } else {
                Remark::lost(line, format!("the field `{field}`"))
            });
        }
        self.site
    }
}

/// Stands among the types for a field that says who may read.
const CORS: &str = "\u{f8f3}";

fn is_star(pattern: &str, path: &str) -> bool {
    pattern.strip_suffix('*').is_some_and(|beginning| path.starts_with(beginning))
}

/// The fields that `header` sets or removes.
fn fields(line: &Directive, args: &[Token]) -> Vec<(String, String)> {
    let text = |token: Option<&Token>| token.map(|token| token.text.clone()).unwrap_or_default();
    match args {
        [] => line.block.iter().flatten().map(|line| (line.name.clone(), text(line.args.first()))).collect(),
        [field, value @ ..] => vec![(field.text.trim_end_matches(':').to_owned(), text(value.first()))],
    }
}

/// The body and the status of `respond` and `error`.
fn answer(line: &Directive, args: &[Token]) -> (String, u16) {
    let status = |token: &Token| (token.text.len() == 3).then(|| token.text.parse::<u16>().ok()).flatten();
    let default = if line.name == "error" { 500 } else { 200 };
    let inner = line.block.iter().flatten().find(|line| line.name == "body").and_then(|line| line.args.first());
    let inner = inner.map(|token| token.text.clone()).unwrap_or_default();
    let (body, code) = match args {
        [] => (inner, None),
        [one] => match status(one) {
            Some(code) => (inner, Some(code)),
            None => (one.text.clone(), None),
        },
        [body, code, ..] => (body.text.clone(), status(code)),
    };
    let code = code.filter(|code| (200..=599).contains(code)).unwrap_or(default);
    // What `error` says is for handlers of errors, not for the client.
    (if line.name == "error" { String::new() } else { body }, code)
}

fn has_placeholder(text: &str) -> bool {
    text.split('{').skip(1).any(|rest| {
        let inner = rest.split('}').next().filter(|inner| inner.len() < rest.len());
        inner.is_some_and(|inner| {
            !inner.is_empty() && inner.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        })
    })
}

fn is_origin(text: &str) -> bool {
    let authority = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let plain = |authority: &str| !authority.is_empty() && !authority.contains(['/', '{', '?', '#', '@', ' ', '"']);
    authority.is_some_and(plain) && (text.contains(ENV) || text.parse::<http::Uri>().is_ok())
}
