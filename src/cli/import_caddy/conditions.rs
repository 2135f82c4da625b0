//! Which requests a directive is for: Caddy's matchers, and what two of them have in common.

use std::{collections::HashMap, iter};

pub use super::patterns::{covers, disjoint, fits};
use super::{lexer::Token, options::networks, parser::Directive, patterns};

/// A matcher as Caddy has it: everything that is set must hold, nothing that is in `nots`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Matcher {
    /// Patterns of paths, one of which must fit; none is every path.
    pub paths: Vec<String>,
    /// Host names, one of which must be asked for.
    pub hosts: Vec<String>,
    /// Methods, one of which must be used.
    pub methods: Vec<String>,
    /// Fields that must be there, with patterns of their values.
    pub fields: Vec<(String, String)>,
    /// Networks, one of which the client must be in.
    pub from: Vec<String>,
    /// `protocol http` or `protocol https`: whether the request must be plain.
    pub plain: Option<bool>,
    /// What must not hold.
    pub nots: Vec<Self>,
    /// A condition that we do not have, in its own words.
    pub unknown: Option<String>,
}

/// The matchers that a block can name.
pub type Named = HashMap<String, Matcher>;

/// The names of a block: those around it, and its own.
pub fn scope(directives: &[Directive], outer: &Named) -> Named {
    let mut named = outer.clone();
    for directive in directives.iter().filter(|directive| directive.name.starts_with('@')) {
        let mut matcher = Matcher::default();
        match directive.args.split_first() {
            Some((kind, args)) => matcher.add(&kind.text, args, directive.block.as_deref()),
            None => matcher.add_all(directive.block.as_deref().unwrap_or_default()),
        }
        named.insert(directive.name.clone(), matcher);
    }
    named
}

/// Takes the matcher from the front of a directive's arguments.
pub fn of<'d>(directive: &'d Directive, named: &Named) -> (Matcher, &'d [Token]) {
    let Some((first, rest)) = directive.args.split_first() else { return (Matcher::default(), &[]) };
    if first.quoted {
        return (Matcher::default(), &directive.args);
    }
    match first.text.as_str() {
        "*" => (Matcher::default(), rest),
        path if path.starts_with('/') => {
            let mut matcher = Matcher::default();
            matcher.paths(&[path.to_owned()]);
            (matcher, rest)
        }
        name if name.starts_with('@') => {
            let unknown = || Matcher { unknown: Some(format!("`{name}` is not defined")), ..Matcher::default() };
            (named.get(name).cloned().unwrap_or_else(unknown), rest)
        }
        _ => (Matcher::default(), &directive.args),
    }
}

impl Matcher {
    fn add_all(&mut self, conditions: &[Directive]) {
        for condition in conditions {
            self.add(&condition.name, &condition.args, condition.block.as_deref());
        }
    }

    fn add(&mut self, kind: &str, args: &[Token], block: Option<&[Directive]>) {
        let words: Vec<String> = args.iter().map(|token| token.text.clone()).collect();
        match kind {
            "path" => self.paths(&words),
            "path_regexp" => self.path_regexp(&words),
            "host" => self.hosts.extend(words.iter().map(|host| host.to_ascii_lowercase())),
            "method" => self.methods.extend(words.iter().map(|method| method.to_ascii_uppercase())),
            "remote_ip" | "client_ip" if words.iter().all(|word| word != "forwarded") => {
                self.from.extend(networks(args));
            }
            "protocol" if words == ["http"] || words == ["https"] => self.plain = Some(words[0] == "http"),
            "header" => self.header(&words),
            "not" => {
                let mut inner = Self::default();
                match args.split_first() {
                    Some((kind, args)) => inner.add(&kind.text, args, block),
                    None => inner.add_all(block.unwrap_or_default()),
                }
                self.unknown = self.unknown.take().or_else(|| inner.unknown.take().map(|why| format!("not {why}")));
                self.nots.push(inner);
            }
            other => {
                let more = if block.is_some() { " { … }" } else { "" };
                self.unknown.get_or_insert_with(|| format!("`{}{more}`", [other, &words.join(" ")].join(" ").trim()));
            }
        }
    }

    fn paths(&mut self, words: &[String]) {
        for word in words {
            match patterns::of_path(word) {
                Some(pattern) => self.paths.push(pattern),
                None => drop(self.unknown.get_or_insert_with(|| format!("`path {word}`"))),
            }
        }
    }

    /// `path_regexp [name] expression`. With paths beside it both would have to hold.
    fn path_regexp(&mut self, words: &[String]) {
        let found = words.last().and_then(|expression| patterns::of_expression(expression));
        match found.filter(|_| self.paths.is_empty() && words.len() <= 2) {
            Some(found) => self.paths = found,
            None => self.unknown = Some(format!("`path_regexp {}`", words.join(" "))),
        }
    }

    fn header(&mut self, words: &[String]) {
        match words {
            [field] if field.starts_with('!') => {
                let field = (field[1..].to_owned(), "*".to_owned());
                self.nots.push(Self { fields: vec![field], ..Self::default() });
            }
            [field] => self.fields.push((field.clone(), "*".into())),
            [field, value] if !value.contains('{') && !self.fields.iter().any(|(known, _)| known == field) => {
                self.fields.push((field.clone(), value.clone()));
            }
            _ => self.unknown = Some(format!("`header {}`", words.join(" "))),
        }
    }

    /// Whether it is for every request.
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }

    /// The path by which Caddy sorts directives, where there is one.
    pub fn single_path(&self) -> Option<&str> {
        match self.paths.as_slice() {
            [one] => Some(one),
            _ => None,
        }
    }

    /// What it asks for besides what is fixed for a site; `None` where no request of the site can meet it.
    pub fn within(&self, host: &str, plain: bool, base: &Base) -> Option<Vec<Conditions>> {
        let is_host = self.hosts.is_empty() || self.hosts.iter().any(|pattern| is_host(pattern, host));
        if !is_host || self.plain.is_some_and(|asked| asked != plain) {
            return None;
        }
        let one = |path: Option<String>| Conditions {
            path,
            methods: self.methods.clone(),
            fields: self.fields.clone(),
            from: self.from.clone(),
        };
        let paths: Vec<_> = self.paths.iter().flat_map(|path| base.to_root(path)).collect();
        match (self.paths.is_empty(), paths.is_empty()) {
            (true, _) => Some(vec![one(None)]),
            (false, true) => None,
            _ => Some(paths.into_iter().map(|path| one(path.filter(|path| path != "*" && path != "/*"))).collect()),
        }
    }
}

fn is_host(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(parent) => pattern == host || host.split_once('.').is_some_and(|(_, rest)| rest == parent),
        // Variables have their case in one of the two.
        None => pattern.eq_ignore_ascii_case(host) || pattern == "*",
    }
}

/// How the path that a directive sees comes from that of the request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Base {
    /// It is the same.
    #[default]
    Same,
    /// This has been taken off.
    Stripped(String),
    /// This has been put before it, after a prefix was taken off.
    Added(String, String),
    /// It is this.
    Fixed(String),
}

impl Base {
    /// The patterns of the request's path for a pattern of the path that is seen: none where no path can match, and
    /// `None` where every one does.
    pub fn to_root(&self, pattern: &str) -> Vec<Option<String>> {
        match self {
            Self::Same => vec![Some(pattern.to_owned())],
            Self::Stripped(prefix) => {
                let below = format!("{prefix}{}", if pattern == "*" { "/*" } else { pattern });
                // Where nothing is left of a path, it is `/` to those who look at it.
                let bare = fits("/", pattern).then(|| Some(prefix.clone()));
                iter::once(Some(below)).chain(bare).collect()
            }
            Self::Added(stripped, added) => {
                let rest = if fits(added, pattern) { Some("*") } else { pattern.strip_prefix(added.as_str()) };
                let whole = |rest| if rest == "*" { format!("{stripped}*") } else { format!("{stripped}{rest}") };
                rest.map(|rest| Some(whole(rest))).into_iter().collect()
            }
            Self::Fixed(path) => fits(path, pattern).then_some(None).into_iter().collect(),
        }
    }
}

/// What a request must meet, all of it; empty lists ask for nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Conditions {
    /// A pattern of Caddy's.
    pub path: Option<String>,
    /// One of these.
    pub methods: Vec<String>,
    /// All of these.
    pub fields: Vec<(String, String)>,
    /// One of these networks.
    pub from: Vec<String>,
}

impl Conditions {
    /// Whether every request that meets `other` meets this.
    pub fn covers(&self, other: &Self) -> bool {
        let path = self.path.as_ref().is_none_or(|path| other.path.as_ref().is_some_and(|other| covers(path, other)));
        let within = |mine: &[String], theirs: &[String]| {
            mine.is_empty() || (!theirs.is_empty() && theirs.iter().all(|one| mine.contains(one)))
        };
        path && within(&self.methods, &other.methods)
            && within(&self.from, &other.from)
            && self.fields.iter().all(|field| other.fields.contains(field))
    }

    /// What meets both: nothing, or these conditions; an error where it cannot be written.
    pub fn and(&self, other: &Self) -> Result<Option<Self>, String> {
        let Some(path) = both_paths(self.path.as_ref(), other.path.as_ref())? else { return Ok(None) };
        let Some(methods) = both(&self.methods, &other.methods) else { return Ok(None) };
        // Networks may lie within each other.
        let Some(from) = both(&self.from, &other.from) else {
            return Err(format!("clients from {} and from {}", self.from.join(" "), other.from.join(" ")));
        };
        let mut fields = self.fields.clone();
        for field in &other.fields {
            match fields.iter().find(|known| known.0.eq_ignore_ascii_case(&field.0)) {
                Some(known) if known == field => {}
                Some(_) => return Err(format!("two conditions on the field `{}`", field.0)),
                None => fields.push(field.clone()),
            }
        }
        Ok(Some(Self { path, methods, fields, from }))
    }

    /// Whether it asks for nothing but a path.
    pub const fn is_path_only(&self) -> bool {
        self.methods.is_empty() && self.fields.is_empty() && self.from.is_empty()
    }
}

fn both(a: &[String], b: &[String]) -> Option<Vec<String>> {
    match (a, b) {
        ([], all) | (all, []) => Some(all.to_vec()),
        _ => {
            let common: Vec<_> = a.iter().filter(|one| b.contains(one)).cloned().collect();
            (!common.is_empty()).then_some(common)
        }
    }
}

/// The pattern that fits where both do; `Ok(None)` where none can.
fn both_paths(a: Option<&String>, b: Option<&String>) -> Result<Option<Option<String>>, String> {
    let (Some(a), Some(b)) = (a, b) else { return Ok(Some(a.or(b).cloned())) };
    if covers(a, b) {
        return Ok(Some(Some(b.clone())));
    }
    if covers(b, a) {
        return Ok(Some(Some(a.clone())));
    }
    if disjoint(a, b) {
        return Ok(None);
    }
    // `/a/*` and `*.php` are `/a/*.php`.
    let joined = |head: &str, tail: &str| {
        let head = head.strip_suffix('*').filter(|head| !head.contains('*'))?;
        let tail = tail.strip_prefix('*').filter(|tail| !tail.contains('*'))?;
        Some(format!("{head}*{tail}"))
    };
    joined(a, b).or_else(|| joined(b, a)).map(|path| Some(Some(path))).ok_or_else(|| format!("`{a}` and `{b}` at once"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_compared() {
        let and = |a: &str, b: &str| both_paths(Some(&a.to_owned()), Some(&b.to_owned()));
        assert_eq!(and("/a/*", "*.php"), Ok(Some(Some("/a/*.php".into()))));
        assert_eq!(and("/a/*", "/a/b"), Ok(Some(Some("/a/b".into()))));
        assert_eq!(and("/a/*", "/b"), Ok(None));
        assert!(and("/a/*x*", "*y*z").is_err());
    }

    #[test]
    fn inner_patterns_begin_where_a_prefix_was_taken_off() {
        let stripped = Base::Stripped("/a".into());
        assert_eq!(stripped.to_root("/b/*"), [Some("/a/b/*".into())]);
        assert_eq!(stripped.to_root("/"), [Some("/a/".into()), Some("/a".into())]);
        let added = Base::Added(String::new(), "/new".into());
        assert_eq!(added.to_root("/new/x"), [Some("/x".into())]);
        assert_eq!(added.to_root("/old"), []);
        assert_eq!(Base::Fixed("/x/y".into()).to_root("/x/*"), [None]);
    }
}
