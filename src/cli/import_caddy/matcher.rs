//! Which requests a directive is for, as far as our routes can say it.

use std::collections::HashMap;

use super::{lexer::Token, parser::Directive};

/// The requests that a directive is for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Matcher {
    /// Patterns of paths; none is every path.
    pub paths: Vec<String>,
    /// Hosts; none is every one of the site.
    pub hosts: Vec<String>,
    /// Only OPTIONS.
    pub preflight: bool,
    /// A condition that we do not have, in its own words.
    pub unknown: Option<String>,
}

/// The matchers of a site by their names.
pub type Named = HashMap<String, Matcher>;

/// Takes the definitions out of a block and those inside it.
pub fn collect(directives: &[Directive], named: &mut Named) {
    for directive in directives {
        if directive.name.starts_with('@') {
            let mut matcher = Matcher::default();
            if let Some((kind, args)) = directive.args.split_first() {
                matcher.add(&kind.text, args, directive.block.as_deref());
            } else {
                for condition in directive.block.iter().flatten() {
                    matcher.add(&condition.name, &condition.args, condition.block.as_deref());
                }
            }
            named.insert(directive.name.clone(), matcher);
        } else if let Some(block) = &directive.block {
            collect(block, named);
        }
    }
}

/// Takes the matcher from the front of a directive's arguments.
pub fn of<'d>(directive: &'d Directive, named: &Named) -> (Matcher, &'d [Token]) {
    let Some((first, rest)) = directive.args.split_first() else { return (Matcher::default(), &[]) };
    if first.quoted {
        return (Matcher::default(), &directive.args);
    }
    match first.text.as_str() {
        "*" => (Matcher::default(), rest),
        path if path.starts_with('/') => (Matcher { paths: vec![path.to_owned()], ..Matcher::default() }, rest),
        name if name.starts_with('@') => {
            let unknown = || Matcher { unknown: Some(format!("`{name}` is not defined")), ..Matcher::default() };
            (named.get(name).cloned().unwrap_or_else(unknown), rest)
        }
        _ => (Matcher::default(), &directive.args),
    }
}

impl Matcher {
    fn add(&mut self, kind: &str, args: &[Token], block: Option<&[Directive]>) {
        let words = || args.iter().map(|token| token.text.clone());
        match kind {
            "path" => self.paths.extend(words()),
            "host" => self.hosts.extend(words().map(|host| host.to_ascii_lowercase())),
            "method" if words().all(|method| method == "OPTIONS") && !args.is_empty() => self.preflight = true,
            // Every request for a tunnel goes where its path says anyway.
            "header" | "header_regexp" if is_upgrade(args) => {}
            other => {
                let words: Vec<_> = words().collect();
                let more = if block.is_some() { " { … }" } else { "" };
                self.unknown.get_or_insert_with(|| format!("`{other} {}{more}`", words.join(" ")));
            }
        }
    }

    /// Whether it is about nothing but the documents that the edge makes itself.
    pub fn is_well_known(&self) -> bool {
        !self.paths.is_empty()
            && self.paths.iter().all(|path| path.to_ascii_lowercase().starts_with("/.well-known/matrix"))
    }
}

fn is_upgrade(args: &[Token]) -> bool {
    args.first().is_some_and(|field| ["connection", "upgrade"].contains(&field.text.to_ascii_lowercase().as_str()))
}

/// The prefix of our routes that a pattern stands for; `None` where a star stands anywhere but at the end.
pub fn prefix(pattern: &str) -> Option<String> {
    let bare = pattern.strip_suffix('*').unwrap_or(pattern);
    if bare.contains(['*', '?', '#', ' ', '{']) || !bare.starts_with('/') {
        return (bare.is_empty()).then(|| "/".to_owned());
    }
    let bare = bare.trim_end_matches('/');
    Some(if bare.is_empty() { "/".to_owned() } else { bare.to_owned() })
}

/// Whether a prefix is another one or lies below it, by whole segments.
pub fn is_under(path: &str, prefix: &str) -> bool {
    prefix == "/" || path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_have_prefixes() {
        for (pattern, expected) in [
            ("/x*", Some("/x")),
            ("/x/*", Some("/x")),
            ("/x", Some("/x")),
            ("/*", Some("/")),
            ("*", Some("/")),
            ("*.php", None),
            ("/a/*/b", None),
        ] {
            assert_eq!(prefix(pattern).as_deref(), expected, "{pattern}");
        }
    }
}
