//! Texts with placeholders: the values of fields that the edge sets, and the targets of redirects.

use std::fmt;

use super::tree::Problem;

/// A text with placeholders, parsed once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

/// A part of a [`Template`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Itself.
    Text(String),
    /// What the request says.
    Placeholder(Placeholder),
}

/// What a placeholder stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placeholder {
    /// `{client_ip}`: the client's address, behind trusted proxies as they report it.
    ClientIp,
    /// `{host}`: the host of the request, without its port.
    Host,
    /// `{scheme}`: `http` or `https`, as the client used it.
    Scheme,
    /// `{request_id}`: the id that the log has as well.
    RequestId,
    /// `{path}`: the raw path, with its first slash.
    Path,
    /// `{query}`: the raw query without the question mark; empty where there is none.
    Query,
    /// `{uri}`: the raw path, and the query with its question mark where there is one.
    Uri,
}

/// Placeholders of field values.
pub const OF_FIELDS: &[&str] = &["client_ip", "host", "scheme", "request_id"];

/// Placeholders of redirects.
pub const OF_REDIRECTS: &[&str] = &["host", "path", "query", "uri"];

impl fmt::Display for Template {
    /// As it is written in the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.0 {
            match part {
                Part::Text(text) => f.write_str(&text.replace('{', "{{").replace('}', "}}"))?,
                Part::Placeholder(placeholder) => write!(f, "{{{}}}", placeholder.name())?,
            }
        }
        Ok(())
    }
}

impl Placeholder {
    const ALL: [Self; 7] =
        [Self::ClientIp, Self::Host, Self::Scheme, Self::RequestId, Self::Path, Self::Query, Self::Uri];

    const fn name(self) -> &'static str {
        match self {
            Self::ClientIp => "client_ip",
            Self::Host => "host",
            Self::Scheme => "scheme",
            Self::RequestId => "request_id",
            Self::Path => "path",
            Self::Query => "query",
            Self::Uri => "uri",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|placeholder| placeholder.name() == name)
    }
}

impl Template {
    /// Parses a text that may name the placeholders `allowed`; `{{` and `}}` are braces.
    ///
    /// # Errors
    /// A brace without its partner, or a name that is not allowed here.
    pub(crate) fn parse(text: &str, allowed: &[&str]) -> Result<Self, Problem> {
        let known = || format!("known here: {{{}}}; a brace itself is written twice", allowed.join("}, {"));
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            if rest[at + 1..].starts_with(brace) {
                plain.push_str(brace);
                rest = &rest[at + 2..];
                continue;
            }
            let end = rest[at..].find('}').filter(|_| brace == "{");
            let Some(end) = end else {
                return Err(Problem::new(format!("`{brace}` has no partner in `{text}`")).help(known()));
            };
            let name = &rest[at + 1..at + end];
            let placeholder = Placeholder::named(name).filter(|_| allowed.contains(&name));
            let Some(placeholder) = placeholder else {
                return Err(Problem::new(format!("unknown placeholder `{{{name}}}`")).help(known()));
            };
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(Part::Placeholder(placeholder));
            rest = &rest[at + end + 1..];
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self(parts))
    }

    /// The parts in order.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.0
    }

    /// The text, where no placeholder is in it.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match &*self.0 {
            [] => Some(""),
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_parsed_and_braces_escape() {
        let parse = |text| Template::parse(text, OF_FIELDS).map_err(Problem::in_words);
        assert_eq!(parse("a").unwrap().as_text(), Some("a"));
        assert_eq!(parse("").unwrap().as_text(), Some(""));
        assert_eq!(parse("{{x}}").unwrap().as_text(), Some("{x}"));
        assert_eq!(parse("{{{host}").unwrap().to_string(), "{{{host}");
        assert_eq!(
            parse("v={host}!").unwrap().parts(),
            [Part::Text("v=".into()), Part::Placeholder(Placeholder::Host), Part::Text("!".into())]
        );
        for wrong in ["{", "}", "{hots}", "a{host", "{path}", "{}"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
