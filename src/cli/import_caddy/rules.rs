//! The directives of a block as a list of rules, of which the first that matches a request decides: what Caddy's tree of
//! routes does, without the tree.

use super::{
    Remark,
    conditions::{self, Base, Conditions, Matcher, Named},
    fields,
    imports::LINES_PER_FILE,
    lexer::Token,
    model::{Action, Edit},
    order,
    parser::Directive,
    protect, proxy, terminal,
};
use crate::{config::plan::Kind, route};

/// A site with more cases than this was not written by a person: rules, and blocks that are gone through for some requests.
const MAX_RULES: usize = 2_000;

/// What is said of what protects something and cannot be carried over.
const CLOSED: &str = "the paths that it protects are CLOSED TO ALL";

/// What happens to the requests that meet some conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The conditions.
    pub when: Conditions,
    /// What happens.
    pub action: Action,
    /// How the path is changed.
    pub base: Base,
    /// What else is changed.
    pub changes: Changes,
    /// The line.
    pub line: usize,
}

/// What is changed of a request and its response.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Fields of the request.
    pub request: Vec<Edit>,
    /// Fields of the response.
    pub response: Vec<Edit>,
    /// The bound on bodies, as TOML.
    pub max_body: Option<String>,
    /// The users that may come, as TOML.
    pub basic_auth: Option<String>,
    /// The service that is asked who may come, as TOML.
    pub forward_auth: Option<String>,
    /// `root`, until it is that of a rule.
    pub root: Option<String>,
    /// `try_files` leads to the index, until that is said by a rule.
    pub spa: bool,
    /// Why nobody may come: the line and what could not be carried.
    pub closed: Option<(usize, String)>,
}

/// One change, and the requests that it is for.
#[derive(Debug, Clone)]
struct Change {
    when: Vec<Conditions>,
    unless: Vec<Conditions>,
    what: ChangeKind,
}

#[derive(Debug, Clone)]
enum ChangeKind {
    Request(Edit),
    Response(Edit),
    MaxBody(Option<String>),
    BasicAuth(usize, String),
    ForwardAuth(usize, String),
    Root(String),
    Spa,
    Close(usize, String),
}

/// What earlier directives have done.
#[derive(Debug, Clone, Default)]
struct State {
    base: Base,
    changes: Vec<Change>,
}

/// Reads the blocks of one site.
pub struct Reader<'r> {
    /// Its host.
    pub host: &'r str,
    /// Whether it is a site of plain HTTP.
    pub plain: bool,
    /// What there is to say.
    pub remarks: &'r mut Vec<Remark>,
    /// Answers behind a directive that takes every request, which are never reached.
    pub unreached: Vec<(Rule, usize)>,
    /// The lines that made a rule.
    pub reached: Vec<usize>,
    /// What there is to say of the others.
    pub not_reached: Vec<Remark>,
    count: usize,
}

/// The requests that a directive is for: the first of these, unless the others.
type Scope = (Vec<Conditions>, Vec<Conditions>);

/// What is still to come for a request that nothing has answered yet: the rest of a block, and of those around it.
#[derive(Clone, Copy)]
struct Rest<'d> {
    steps: &'d [&'d Directive],
    named: &'d Named,
    then: Option<&'d Self>,
}

impl<'r> Reader<'r> {
    /// A reader for a host.
    pub const fn new(host: &'r str, plain: bool, remarks: &'r mut Vec<Remark>) -> Self {
        Self { host, plain, remarks, unreached: Vec::new(), reached: Vec::new(), not_reached: Vec::new(), count: 0 }
    }

    /// The rules of a site.
    pub fn site(&mut self, body: &[Directive]) -> Vec<Rule> {
        let named = conditions::scope(body, &Named::new());
        let steps = order::steps(body, false, &named);
        let steps: Vec<_> = steps.iter().collect();
        self.sequence(Rest { steps: &steps, named: &named, then: None }, State::default(), &Conditions::default())
    }

    fn lost(&mut self, line: &Directive, text: impl Into<String>) {
        self.remarks.push(Remark::lost(line.line, text));
    }

    fn sequence(&mut self, all: Rest<'_>, mut state: State, within: &Conditions) -> Vec<Rule> {
        let mut rules = Vec::new();
        let Rest { steps, named, .. } = all;
        self.count += 1;
        for (at, line) in steps.iter().enumerate() {
            let rest = Rest { steps: &steps[at + 1..], ..all };
            if let Some(by) = ending(&rules, within).map(|rule: &Rule| rule.line) {
                self.never_reached(&steps[at..], named, &state, by);
                return rules;
            }
            if self.count > MAX_RULES {
                self.lost(line, "this directive and those after it: the site has too many cases");
                return rules;
            }
            let (matcher, args) = conditions::of(line, named);
            match order::name(line) {
                "header" | "request_header" | "request_body" | "basic_auth" | "forward_auth" | "root" | "try_files" => {
                    self.change(line, &matcher, args, &mut state, within);
                }
                "uri" | "rewrite" => {
                    rules.extend(self.rewritten(line, &matcher, args, rest, &mut state, within));
                }
                "handle" | "route" => rules.extend(self.enclosed(line, &matcher, rest, &state, within)),
                name if terminal::IS.contains(&name) => {
                    let Some((when, unless)) = self.scope(line, &matcher, &state, within) else { continue };
                    rules.extend(self.excluded(&unless, rest, &state));
                    let Some(action) = self.action(line, args) else { continue };
                    for when in when {
                        self.emit(when, &action, line.line, &state, 0, Changes::default(), &mut rules);
                    }
                }
                name => self.other(line, name),
            }
        }
        if let Some(outer) = all.then.filter(|_| ending(&rules, within).is_none()) {
            rules.extend(self.sequence(*outer, state, within));
        }
        rules
    }

    /// What a terminal directive does.
    fn action(&mut self, line: &Directive, args: &[Token]) -> Option<Action> {
        terminal::read(line, args, self.host, self.plain, self.remarks)
    }

    /// Directives that end no request and are of no use without others.
    fn other(&mut self, line: &Directive, name: &str) {
        match name {
            // Compression is there by itself.
            "encode" | "log_skip" | "log_name" | "log_append" | "vars" | "tls" | "bind" => {}
            "log" => {}
            other => self.lost(line, format!("`{other}`")),
        }
    }

    /// The requests that a directive is for; `None` where it is for none, or for some that cannot be told.
    fn scope(&mut self, line: &Directive, matcher: &Matcher, state: &State, within: &Conditions) -> Option<Scope> {
        let candidates = matcher.within(self.host, self.plain, &state.base)?;
        let (mut when, mut unless) = (Vec::new(), Vec::new());
        for candidate in &candidates {
            match candidate.and(within) {
                Ok(both) => when.extend(both),
                Err(why) => self.lost(line, format!("`{}` for {why}", line.name)),
            }
        }
        for not in &matcher.nots {
            let Some(excluded) = not.within(self.host, self.plain, &state.base) else { continue };
            for excluded in excluded {
                for one in &when {
                    match excluded.and(one) {
                        Ok(both) => unless.extend(both),
                        Err(why) => self.lost(line, format!("`{}` but not for {why}", line.name)),
                    }
                }
            }
        }
        when.retain(|one| !unless.iter().any(|excluded| excluded.covers(one)));
        if let Some(condition) = &matcher.unknown {
            self.lost(line, format!("`{}` under the condition {condition}{}", line.name, self.closing(line)));
            // What protects is kept for everyone who may be meant.
            return (!self.closing(line).is_empty()).then_some((when, Vec::new()));
        }
        (!when.is_empty()).then_some((when, unless))
    }

    /// What is said of a directive that protects, when its condition is not known.
    fn closing(&self, line: &Directive) -> &'static str {
        let status = line.args.iter().find_map(|token| token.text.parse::<u16>().ok());
        let protects = match order::name(line) {
            "abort" | "basic_auth" | "forward_auth" => true,
            "respond" | "error" => status.is_some_and(|status| status >= 400),
            _ => false,
        };
        if protects { ": the route is CLOSED TO ALL; write one with `from`, `methods` or `fields`" } else { "" }
    }

    /// The rules of what follows for the requests that a directive leaves out.
    fn excluded(&mut self, unless: &[Conditions], rest: Rest<'_>, state: &State) -> Vec<Rule> {
        let mut rules = Vec::new();
        for when in unless {
            let inner = self.sequence(rest, state.clone(), when);
            rules.extend(Self::closed_off(inner, when));
        }
        rules
    }

    /// Rules that leave nothing of `when` to those that follow.
    fn closed_off(mut rules: Vec<Rule>, when: &Conditions) -> Vec<Rule> {
        if ending(&rules, when).is_none() {
            let changes = Changes::default();
            rules.push(Rule { when: when.clone(), action: Action::Nothing, base: Base::Same, changes, line: 0 });
        }
        rules
    }

    fn enclosed(
        &mut self,
        line: &Directive,
        matcher: &Matcher,
        rest: Rest<'_>,
        state: &State,
        within: &Conditions,
    ) -> Vec<Rule> {
        let Some((when, unless)) = self.scope(line, matcher, state, within) else { return Vec::new() };
        self.reached.push(line.line);
        let mut rules = self.excluded(&unless, rest, state);
        let block = line.block.as_deref().unwrap_or_default();
        let named = conditions::scope(block, rest.named);
        let is_route = line.name == "route";
        let steps = order::steps(block, is_route, &named);
        let steps: Vec<&Directive> = steps.iter().collect();
        // Of the handles one takes the request; what follows them may still answer it.
        let others: Vec<&Directive> =
            rest.steps.iter().copied().filter(|line| is_route || order::name(line) != "handle").collect();
        let outer = Rest { steps: &others, ..rest };
        // What follows a route takes its requests with all others, where they are as they were.
        let goes_on = !is_route || block.iter().any(changes_what_follows);
        let inner = Rest { steps: &steps, named: &named, then: goes_on.then_some(&outer) };
        for when in when {
            let mut inner_state = state.clone();
            if line.name == "handle_path" {
                let taken = matcher.single_path().unwrap_or_default().trim_end_matches('*').trim_end_matches('/');
                match strip(&state.base, taken) {
                    Some(base) => inner_state.base = base,
                    None => {
                        let text =
                            format!("`handle_path {taken}/*` after another change of the path: its paths are CLOSED");
                        let what = ChangeKind::Close(line.line, text);
                        inner_state.changes.push(Change { when: vec![when.clone()], unless: Vec::new(), what });
                    }
                }
            }
            let found = self.sequence(inner, inner_state, &when);
            rules.extend(if goes_on { Self::closed_off(found, &when) } else { found });
        }
        rules
    }

    /// Takes in a directive that changes fields, bounds bodies, or asks who comes.
    fn change(&mut self, line: &Directive, matcher: &Matcher, args: &[Token], state: &mut State, within: &Conditions) {
        // `root /srv` has no matcher.
        let (all, is_root) = (Matcher::default(), line.name == "root" && line.args.len() == 1);
        let (matcher, args) = if is_root { (&all, line.args.as_slice()) } else { (matcher, args) };
        let Some((when, unless)) = self.scope(line, matcher, state, within) else { return };
        let found = match order::name(line) {
            "root" => args.first().map(|path| ChangeKind::Root(path.text.clone())).into_iter().collect(),
            "try_files" => match terminal::tries(args) {
                Some(true) => vec![ChangeKind::Spa],
                Some(false) => Vec::new(),
                None => {
                    self.lost(line, "`try_files`: only a file, the index of a directory, and index.html for everything else are supported");
                    Vec::new()
                }
            },
            "header" => fields::response(line, args, self.remarks).into_iter().map(ChangeKind::Response).collect(),
            "request_header" => {
                fields::request(line, args, self.remarks).into_iter().map(ChangeKind::Request).collect()
            }
            "request_body" => max_size(line).map(ChangeKind::MaxBody).into_iter().collect(),
            "basic_auth" => vec![match protect::basic_auth(line, args) {
                Ok(users) => ChangeKind::BasicAuth(line.line, users),
                Err(why) => ChangeKind::Close(line.line, format!("`basic_auth` with {why}: {CLOSED}")),
            }],
            _ => vec![match protect::forward_auth(line, args, self.host, self.plain, self.remarks) {
                Ok(service) => ChangeKind::ForwardAuth(line.line, service),
                Err(why) => ChangeKind::Close(line.line, format!("`forward_auth` with {why}: {CLOSED}")),
            }],
        };
        for what in found {
            state.changes.push(Change { when: when.clone(), unless: unless.clone(), what });
        }
    }

    /// A changed path: what follows sees it.
    fn rewritten(
        &mut self,
        line: &Directive,
        matcher: &Matcher,
        args: &[Token],
        rest: Rest<'_>,
        state: &mut State,
        within: &Conditions,
    ) -> Vec<Rule> {
        let Some((mut when, unless)) = self.scope(line, matcher, state, within) else { return Vec::new() };
        let words: Vec<&str> = args.iter().map(|token| token.text.as_str()).collect();
        let base = match (line.name.as_str(), words.as_slice()) {
            ("uri", ["strip_prefix", prefix]) => {
                let prefix = format!("/{}", prefix.trim_matches('/'));
                // Paths without the prefix stay as they are.
                let paths = state.base.to_root(&format!("{prefix}*"));
                let under: Vec<_> =
                    paths.into_iter().map(|path| Conditions { path, ..Conditions::default() }).collect();
                let both = |one: &Conditions| under.iter().filter_map(|path| one.and(path).ok().flatten()).collect();
                when = when.iter().flat_map(|one| -> Vec<_> { both(one) }).collect();
                strip(&state.base, &prefix)
            }
            ("rewrite", [to]) => rewrite(&state.base, to),
            _ => None,
        };
        let mut changed = state.clone();
        match base {
            Some(base) => changed.base = base,
            None => {
                let text = format!("`{} {}`: the paths that it rewrites are CLOSED", line.name, words.join(" "));
                let (when, unless) = (when.clone(), unless.clone());
                state.changes.push(Change { when, unless, what: ChangeKind::Close(line.line, text) });
                return Vec::new();
            }
        }
        // Of several `rewrite`, one takes the request.
        let is_one = line.name == "rewrite" && rest.steps.iter().any(|other| other.name == "rewrite");
        if when.iter().any(|one| one.covers(within)) && unless.is_empty() && !is_one {
            *state = changed;
            return Vec::new();
        }
        let others: Vec<&Directive> =
            rest.steps.iter().copied().filter(|other| !is_one || other.name != "rewrite").collect();
        let mut rules = self.excluded(&unless, rest, state);
        for when in when {
            let inner = self.sequence(Rest { steps: &others, ..rest }, changed.clone(), &when);
            rules.extend(Self::closed_off(inner, &when));
        }
        rules
    }

    /// Makes rules of an action: several where a change is for a part of the requests.
    #[expect(clippy::too_many_arguments, reason = "it calls itself with the parts of a rule")]
    fn emit(
        &mut self,
        when: Conditions,
        action: &Action,
        line: usize,
        state: &State,
        from: usize,
        mut changes: Changes,
        out: &mut Vec<Rule>,
    ) {
        self.count += 1;
        self.reached.push(line);
        for (at, change) in state.changes.iter().enumerate().skip(from) {
            if self.count > MAX_RULES || change.unless.iter().any(|excluded| excluded.covers(&when)) {
                continue;
            }
            for excluded in &change.unless {
                if let Ok(Some(part)) = when.and(excluded) {
                    self.emit(part, action, line, state, at + 1, changes.clone(), out);
                }
            }
            if change.when.iter().any(|one| one.covers(&when)) {
                changes.apply(&change.what);
                continue;
            }
            for one in &change.when {
                match when.and(one) {
                    Ok(None) => {}
                    Ok(Some(part)) => {
                        let mut changes = changes.clone();
                        changes.apply(&change.what);
                        self.emit(part, action, line, state, at + 1, changes, out);
                    }
                    Err(why) => self.remarks.push(Remark::lost(line, format!("a change of fields for {why}"))),
                }
            }
        }
        let action = match &changes.closed {
            Some((line, text)) => {
                self.remarks.push(Remark::lost(*line, text.clone()));
                Action::Deny
            }
            None => action.clone(),
        };
        let action = match action {
            Action::Files { root, .. } => {
                match changes.root.clone().or(Some(root)).filter(|root| root.starts_with('/')) {
                    Some(root) => Action::Files { root, spa: changes.spa },
                    None => {
                        let text = "`file_server` of Caddy's working directory: set files = \"/path\"; until then it returns 404";
                        self.remarks.push(Remark::lost(line, text));
                        Action::Nothing
                    }
                }
            }
            other => other,
        };
        let changes = Changes { closed: None, root: None, spa: false, ..changes };
        let mut rule = Rule { when, action, base: state.base.clone(), changes, line };
        if let Action::Proxy(_, upstream) = &mut rule.action {
            rule.changes.request.append(&mut upstream.request_fields);
            rule.changes.response.append(&mut upstream.response_fields);
        }
        out.push(rule);
    }

    /// Says what is never reached, since a rule before takes every request.
    fn never_reached(&mut self, steps: &[&Directive], named: &Named, state: &State, by: usize) {
        for line in
            steps.iter().filter(|line| terminal::IS.contains(&order::name(line)) || order::name(line) == "handle")
        {
            let (matcher, args) = conditions::of(line, named);
            if line.name == "respond"
                && let Some((when, _)) = self.scope(line, &matcher, state, &Conditions::default())
                && when
                    .iter()
                    .all(|when| when.path.as_ref().is_some_and(|path| path.starts_with("/.well-known/matrix")))
                && let Some(action) = self.action(line, args)
            {
                let mut rules = Vec::new();
                for when in when {
                    self.emit(when, &action, line.line, state, 0, Changes::default(), &mut rules);
                }
                self.unreached.extend(rules.into_iter().map(|rule| (rule, by)));
                continue;
            }
            if by != 0 && line.line != by {
                let by = by % LINES_PER_FILE;
                let text = format!(
                    "`{}` is never reached, because line {by} handles every request before it; it is omitted",
                    line.name
                );
                self.not_reached.push(Remark::note(line.line, text));
            }
        }
    }
}

/// Whether it matters to the requests that a directive does not answer that they came through it: it changes them or their answers,
/// or is a `handle`, beside which no other takes them.
fn changes_what_follows(line: &Directive) -> bool {
    match order::name(line) {
        "route" => line.block.iter().flatten().any(changes_what_follows),
        "handle" | "header" | "request_header" | "request_body" | "basic_auth" | "forward_auth" | "root"
        | "try_files" | "uri" | "rewrite" => true,
        _ => false,
    }
}

impl Changes {
    /// Whether everyone may come.
    pub const fn is_open(&self) -> bool {
        self.basic_auth.is_none() && self.forward_auth.is_none()
    }

    fn apply(&mut self, what: &ChangeKind) {
        match what {
            ChangeKind::Request(edit) => add_edit(&mut self.request, edit),
            ChangeKind::Response(edit) => add_edit(&mut self.response, edit),
            ChangeKind::MaxBody(size) => self.max_body.clone_from(size),
            ChangeKind::BasicAuth(line, users) => {
                let conflict = protected(&mut self.basic_auth, users, *line);
                self.closed = self.closed.take().or(conflict);
            }
            ChangeKind::ForwardAuth(line, service) => {
                let conflict = protected(&mut self.forward_auth, service, *line);
                self.closed = self.closed.take().or(conflict);
            }
            ChangeKind::Root(root) => self.root = Some(root.clone()),
            ChangeKind::Spa => self.spa = true,
            ChangeKind::Close(line, text) => self.closed = Some((*line, text.clone())),
        }
    }
}

/// Takes in who may come; what has two answers to that is closed.
fn protected(known: &mut Option<String>, new: &str, line: usize) -> Option<(usize, String)> {
    let differs = known.as_ref().is_some_and(|known| known != new);
    known.get_or_insert_with(|| new.to_owned());
    differs.then(|| (line, format!("another of its kind for the same requests: {CLOSED}")))
}

/// A later `set` or `remove` of a field takes the place of what was said of it before.
fn add_edit(edits: &mut Vec<Edit>, edit: &Edit) {
    if edit.how == "set" || edit.how == "remove" {
        edits.retain(|known| !known.name.eq_ignore_ascii_case(&edit.name) || known.how == "default");
    }
    edits.push(edit.clone());
}

/// The rule that takes everything that meets `within`, if there is one.
fn ending<'a>(rules: &'a [Rule], within: &Conditions) -> Option<&'a Rule> {
    rules.iter().find(|rule| rule.when.covers(within))
}

fn strip(base: &Base, prefix: &str) -> Option<Base> {
    if prefix.is_empty() {
        return Some(base.clone());
    }
    match base {
        Base::Same => Some(Base::Stripped(prefix.to_owned())),
        Base::Stripped(outer) => Some(Base::Stripped(format!("{outer}{prefix}"))),
        Base::Fixed(path) => {
            Some(Base::Fixed(if path.starts_with(prefix) { route::strip(path, prefix) } else { path.clone() }))
        }
        Base::Added(..) => None,
    }
}

fn rewrite(base: &Base, to: &str) -> Option<Base> {
    let whole = ["{uri}", "{path}", "{http.request.uri}", "{http.request.uri.path}"];
    if let Some(added) = whole.iter().find_map(|whole| to.strip_suffix(whole)) {
        let added = added.trim_end_matches('/');
        let plain = added.is_empty() || (added.starts_with('/') && !added.contains(['{', '?']));
        return match base {
            _ if added.is_empty() => Some(base.clone()),
            Base::Same if plain => Some(Base::Added(String::new(), added.to_owned())),
            Base::Stripped(outer) if plain => Some(Base::Added(outer.clone(), added.to_owned())),
            _ => None,
        };
    }
    let path = to.strip_suffix("?{query}").unwrap_or(to);
    (path.starts_with('/') && !path.contains(['{', '?', '#', ' '])).then(|| Base::Fixed(path.to_owned()))
}

/// The bound of `request_body`, as TOML; Caddy has no bound where it is 0.
fn max_size(line: &Directive) -> Option<Option<String>> {
    let size = line.block.iter().flatten().find(|line| line.name == "max_size")?.args.first()?;
    let upper = size.text.to_ascii_uppercase().replace("IB", "iB");
    let is_number = upper.bytes().all(|b| b.is_ascii_digit());
    let text = if is_number { format!("{upper}B") } else { upper };
    Some((!text.trim_start_matches('0').starts_with(|c: char| !c.is_ascii_digit())).then(|| super::emit::quote(&text)))
}

/// Whether a rule passes requests on as they are.
pub fn is_plain_proxy(rule: &Rule) -> bool {
    matches!(rule.action, Action::Proxy(Kind::Http, _))
        && rule.base == Base::Same
        && rule.when.is_path_only()
        && rule.changes.is_open()
}

/// The servers of a rule that passes requests on.
pub fn upstream(rule: &Rule) -> Option<&super::model::Upstream> {
    match &rule.action {
        Action::Proxy(_, upstream) => Some(upstream),
        _ => None,
    }
}

/// The paths of lk-jwt-service, as rules name them.
pub fn is_jwt_path(path: &str, mount: &str) -> bool {
    path.strip_prefix(mount)
        .is_some_and(|rest| proxy::JWT_PATHS.contains(&rest.trim_end_matches('*').trim_end_matches('/')))
}
