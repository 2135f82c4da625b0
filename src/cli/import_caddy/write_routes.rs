//! Rules as routes of our file: paths in its form, changed paths, and no more lines than it takes.

use super::{
    Remark,
    conditions::{self, Base},
    lexer::SEGMENT,
    model::{Action, Edit, Route, Site},
    rules::Rule,
};
use crate::config::plan::Kind;

/// Writes the rules into a site.
pub fn write(rules: Vec<Rule>, site: &mut Site, remarks: &mut Vec<Remark>) {
    let mut routes: Vec<Route> = rules.into_iter().filter_map(|rule| route(rule, remarks)).collect();
    drop_shadowed(&mut routes);
    drop_nothing(&mut routes);
    join_prefixes(&mut routes);
    site.max_body = common(&mut routes, |route| &mut route.max_body).flatten();
    site.basic_auth = common(&mut routes, |route| &mut route.basic_auth).flatten();
    site.forward_auth = common(&mut routes, |route| &mut route.forward_auth).flatten();
    site.request_fields = common(&mut routes, |route| &mut route.request_fields).unwrap_or_default();
    site.response_fields = common(&mut routes, |route| &mut route.response_fields).unwrap_or_default();
    site.hsts = take_hsts(&mut site.response_fields);
    let takes_all = |route: &Route| route.prefix == "/" && route.is_plain() && route.has_no_changes();
    if routes.last().is_some_and(|last| {
        takes_all(last) && matches!(last.action, Action::Proxy(..) | Action::Redirect { .. } | Action::Files { .. })
    }) {
        site.root = routes.pop().map(|last| last.action);
    }
    site.routes = routes;
}

impl Route {
    /// Whether it asks for nothing but a path.
    pub const fn is_plain(&self) -> bool {
        self.methods.is_empty() && self.fields.is_empty() && self.from.is_empty()
    }

    /// Whether it asks for nothing but a path, and passes everything on as it is.
    pub fn only_passes_on(&self) -> bool {
        self.is_plain() && self.has_no_changes()
    }

    /// Whether it passes everything on as it is.
    const fn has_no_changes(&self) -> bool {
        !self.strip
            && self.add_prefix.is_none()
            && self.rewrite.is_none()
            && self.max_body.is_none()
            && self.basic_auth.is_none()
            && self.forward_auth.is_none()
            && self.request_fields.is_empty()
            && self.response_fields.is_empty()
    }

    /// Its path as a pattern.
    fn pattern(&self) -> String {
        match (self.prefix.strip_prefix('='), self.prefix.as_str()) {
            (Some(exact), _) => exact.to_owned(),
            (None, "/") => "*".to_owned(),
            (None, path) if path.contains('*') => path.to_owned(),
            // A prefix takes whole segments.
            (None, path) => format!("{path}/*"),
        }
    }

    fn rank(&self) -> (u8, std::cmp::Reverse<usize>, bool) {
        let class = if self.prefix.starts_with('=') { 0 } else { u8::from(!self.prefix.contains('*')) + 1 };
        let segments = self.prefix.matches(SEGMENT).count();
        let length = self.prefix.trim_start_matches('=').len() - segments * (SEGMENT.len_utf8() - 1);
        (class, std::cmp::Reverse(length), segments > 0)
    }
}

/// A route that passes a path on as it is.
pub const fn plain_of(prefix: String, line: usize, action: Action) -> Route {
    Route {
        prefix,
        line,
        methods: Vec::new(),
        fields: Vec::new(),
        from: Vec::new(),
        action,
        strip: false,
        add_prefix: None,
        rewrite: None,
        max_body: None,
        basic_auth: None,
        forward_auth: None,
        request_fields: Vec::new(),
        response_fields: Vec::new(),
    }
}

/// Whether the routes mean in a table, which sorts them, what they mean in their order.
pub fn fits_a_table(routes: &[Route]) -> bool {
    routes.iter().all(Route::is_plain)
        && routes.iter().enumerate().all(|(at, first)| {
            routes[at + 1..].iter().all(|second| {
                first.prefix != second.prefix && (first.rank() < second.rank() || !overlap(first, second))
            })
        })
}

/// Whether a request may be for both.
pub fn overlap(a: &Route, b: &Route) -> bool {
    let own = |route: &Route| {
        let is_prefix = !route.prefix.starts_with('=') && !route.prefix.contains('*');
        if is_prefix { vec![route.pattern(), route.prefix.clone()] } else { vec![route.pattern()] }
    };
    own(a).iter().any(|a| own(b).iter().any(|b| !conditions::disjoint(a, b)))
}

fn route(rule: Rule, remarks: &mut Vec<Remark>) -> Option<Route> {
    let pattern = rule.when.path.clone().unwrap_or_else(|| "*".into());
    let mut route = Route {
        prefix: our_path(&pattern),
        line: rule.line,
        methods: rule.when.methods,
        fields: rule.when.fields,
        from: rule.when.from,
        action: with_type(rule.action, &rule.changes.response),
        strip: false,
        add_prefix: None,
        rewrite: None,
        max_body: rule.changes.max_body,
        basic_auth: rule.changes.basic_auth,
        forward_auth: rule.changes.forward_auth,
        request_fields: rule.changes.request,
        response_fields: rule.changes.response,
    };
    if matches!(&route.action, Action::Proxy(kind, _) if *kind != Kind::Http) {
        // Our kinds know which paths are exact.
        route.prefix = route.prefix.trim_start_matches('=').to_owned();
    }
    if matches!(route.action, Action::Nothing | Action::Deny) {
        route.response_fields.clear();
        (route.basic_auth, route.forward_auth) = (None, None);
    }
    if !matches!(route.action, Action::Proxy(..)) {
        route.request_fields.clear();
        route.max_body = None;
    }
    if matches!(route.action, Action::Respond { .. }) {
        route.response_fields.retain(|edit| !edit.name.eq_ignore_ascii_case("content-type") || edit.how != "set");
    }
    if pattern.contains(['?', '#', ' ', '{']) && !pattern.contains(super::lexer::ENV) {
        remarks.push(Remark::lost(
            rule.line,
            format!("`{pattern}`: this path pattern is not supported; the route is omitted"),
        ));
        return None;
    }
    if !matches!(route.action, Action::Proxy(..) | Action::Files { .. }) {
        return Some(route);
    }
    let is_proxy = matches!(route.action, Action::Proxy(..));
    let is_changed = changed_path(&mut route, &pattern, &rule.base);
    // The path of a file is that of the request, or without a prefix.
    if !is_changed || !(is_proxy || (route.add_prefix.is_none() && route.rewrite.is_none())) {
        (route.strip, route.add_prefix, route.rewrite) = (false, None, None);
        let text = format!("`{pattern}`: this change of its path is not supported; the route is CLOSED");
        remarks.push(Remark::lost(rule.line, text));
        route.action = Action::Deny;
        route.request_fields.clear();
        route.response_fields.clear();
        route.max_body = None;
        (route.basic_auth, route.forward_auth) = (None, None);
    }
    Some(route)
}

/// Says how the path is changed; whether that can be said.
fn changed_path(route: &mut Route, pattern: &str, base: &Base) -> bool {
    let (prefix, added) = match base {
        Base::Same => return true,
        Base::Fixed(path) => {
            route.rewrite = Some(path.clone());
            return true;
        }
        Base::Stripped(prefix) => (prefix.as_str(), ""),
        Base::Added(prefix, added) => (prefix.as_str(), added.as_str()),
    };
    let Some(rest) = pattern.strip_prefix(prefix) else {
        route.add_prefix = Some(added.to_owned()).filter(|_| prefix.is_empty());
        return prefix.is_empty();
    };
    match rest.strip_suffix('*') {
        // One path has one result.
        None if !rest.contains(['*', SEGMENT]) => {
            let rest = if rest.is_empty() { "/" } else { rest };
            route.rewrite = Some(format!("{added}{rest}"));
            true
        }
        Some("" | "/") if prefix.is_empty() => {
            route.add_prefix = Some(added.to_owned());
            true
        }
        // `strip_prefix` takes off what stands before the star, of which a part is put back.
        Some(kept) if !kept.contains(['*', SEGMENT]) && (kept.is_empty() || kept.ends_with('/')) => {
            let kept = format!("{added}{}", kept.trim_end_matches('/'));
            route.strip = true;
            route.add_prefix = Some(kept).filter(|kept| !kept.is_empty());
            true
        }
        _ => {
            route.add_prefix = Some(added.to_owned()).filter(|_| prefix.is_empty());
            prefix.is_empty()
        }
    }
}

/// Writes routes with both stars and segments, which our file does not have in one path.
pub fn widen(site: &mut Site, remarks: &mut Vec<Remark>) {
    for route in site.routes.iter_mut().filter(|route| route.prefix.contains(SEGMENT) && route.prefix.contains('*')) {
        let text = format!("`{}`: each star is any bytes now, slashes included", route.prefix);
        remarks.push(Remark::lost(route.line, text));
        route.prefix = route.prefix.replace(SEGMENT, "*");
    }
}

/// The type that Caddy gives to a fixed answer, unless a field says it.
fn with_type(action: Action, edits: &[Edit]) -> Action {
    let Action::Respond { status, body, .. } = action else { return action };
    let named = edits.iter().rev().find(|edit| edit.name.eq_ignore_ascii_case("content-type") && edit.how == "set");
    let json = || serde_json::from_str::<serde_json::Value>(&body).is_ok();
    let content_type = match named {
        Some(edit) => Some(edit.value.clone()),
        None if body.is_empty() => None,
        None => Some(if json() { "application/json" } else { "text/plain; charset=utf-8" }.to_owned()),
    };
    Action::Respond { status, content_type, body }
}

/// A pattern of Caddy's as a path of our file.
fn our_path(pattern: &str) -> String {
    match pattern {
        "*" | "/*" => "/".into(),
        pattern if !pattern.contains('*') => format!("={pattern}"),
        pattern if pattern.starts_with('*') => format!("/{pattern}"),
        pattern => pattern.to_owned(),
    }
}

/// Takes out what an earlier route takes as a whole.
fn drop_shadowed(routes: &mut Vec<Route>) {
    let mut at = 1;
    while at < routes.len() {
        let (before, rest) = routes.split_at(at);
        let shadowed = before.iter().any(|earlier| {
            earlier.is_plain()
                && conditions::covers(&earlier.pattern(), &rest[0].pattern())
                && !earlier.prefix.starts_with('=')
                || (earlier.prefix == rest[0].prefix && earlier.is_plain())
        });
        if shadowed {
            routes.remove(at);
        } else {
            at += 1;
        }
    }
}

/// Takes out what answers nothing where no later route would: it is 404 anyway.
fn drop_nothing(routes: &mut Vec<Route>) {
    let mut at = routes.len();
    while at > 0 {
        at -= 1;
        let needed = routes[at + 1..].iter().any(|later| overlap(&routes[at], later));
        if routes[at].action == Action::Nothing && !needed {
            routes.remove(at);
        }
    }
}

/// `/x` and `/x/*` that do the same are a prefix, and so is `/_matrix/*`, below which alone there is something.
fn join_prefixes(routes: &mut Vec<Route>) {
    let mut at = 0;
    while at < routes.len() {
        let Some(bare) = routes[at].prefix.strip_suffix("/*").map(str::to_owned).filter(|bare| !bare.contains('*'))
        else {
            at += 1;
            continue;
        };
        let exact = format!("={bare}");
        let same = |other: &Route| {
            let as_ours = Route { prefix: routes[at].prefix.clone(), line: routes[at].line, ..other.clone() };
            other.prefix == exact && as_ours == routes[at]
        };
        let twin = routes.iter().position(same);
        let is_kind = matches!(&routes[at].action, Action::Proxy(kind, _) if *kind != Kind::Http);
        if is_kind || twin.is_some() {
            routes[at].prefix = bare;
        }
        if let Some(twin) = twin {
            routes.remove(twin);
            at -= usize::from(twin < at);
        }
        at += 1;
    }
}

/// Takes what all routes have in common off them, so that it is said once; those that answer nothing have nothing.
fn common<T: Clone + Default + PartialEq>(routes: &mut [Route], of: impl Fn(&mut Route) -> &mut T) -> Option<T> {
    let counts = |route: &Route| {
        !matches!(route.action, Action::Nothing | Action::Deny | Action::Respond { .. } | Action::Redirect { .. })
    };
    let mut shared: Option<T> = None;
    for route in routes.iter_mut().filter(|route| counts(route)) {
        let own = of(route).clone();
        if shared.as_ref().is_some_and(|shared| *shared != own) {
            return None;
        }
        shared = Some(own);
    }
    let shared = shared.filter(|shared| *shared != T::default())?;
    // An answer of our own that has something else keeps it, and then nothing can be said for all.
    if routes
        .iter_mut()
        .any(|route| matches!(route.action, Action::Respond { .. } | Action::Redirect { .. }) && *of(route) != shared)
    {
        return None;
    }
    routes.iter_mut().for_each(|route| *of(route) = T::default());
    Some(shared)
}

/// What our `hsts` says.
const HSTS: &str = "max-age=31536000";

fn take_hsts(edits: &mut Vec<Edit>) -> bool {
    let is_hsts = |edit: &Edit| edit.name.eq_ignore_ascii_case("strict-transport-security") && edit.value == HSTS;
    let found = edits.iter().any(is_hsts);
    edits.retain(|edit| !is_hsts(edit));
    found
}
