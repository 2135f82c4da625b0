//! The text of the file with the environment filled in, and the way back from a place in it to the place in the file.
//!
//! `${NAME}` and `${NAME:-default}` are replaced as compose does it, in a default as well, and `$$` is a dollar sign.
//! Comments are left alone. A value cannot break out of where it stands: inside a basic string it is escaped; elsewhere it must be made of
//! characters that need no escape.

use std::{ops::Range, path::PathBuf};

use super::diagnostic::Diagnostic;

/// A file: its name for messages, its text, and the text that is parsed.
#[derive(Debug)]
pub struct Source {
    /// As it is called in messages.
    pub name: String,
    /// As it stands in the file.
    pub original: String,
    /// With the environment filled in.
    pub expanded: String,
    /// Where relative paths begin.
    pub dir: PathBuf,
    pieces: Vec<Substitution>,
}

/// A run of the expanded text and where it came from.
#[derive(Debug)]
struct Substitution {
    at: usize,
    original: Range<usize>,
    verbatim: bool,
}

/// Where in TOML a character stands; only as much as an expansion needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TomlContext {
    Bare,
    Comment,
    Basic,
    BasicMultiline,
    Literal,
    LiteralMultiline,
}

impl Source {
    /// Fills in the environment.
    pub fn new(
        name: &str,
        text: &str,
        dir: PathBuf,
        env: &dyn Fn(&str) -> Option<String>,
        problems: &mut Vec<Diagnostic>,
    ) -> Self {
        let mut source = Self {
            name: name.to_owned(),
            original: text.to_owned(),
            expanded: String::with_capacity(text.len()),
            dir,
            pieces: Vec::new(),
        };
        source.expand(text, env, problems);
        source
    }

    fn expand(&mut self, text: &str, env: &dyn Fn(&str) -> Option<String>, problems: &mut Vec<Diagnostic>) {
        let (mut at, mut context) = (0, TomlContext::Bare);
        while at < text.len() {
            let rest = &text[at..];
            let (len, next) = step(rest, context);
            context = next;
            let dollar = rest.starts_with('$') && context != TomlContext::Comment;
            if !dollar {
                self.keep(at..at + len);
                at += len;
            } else if rest.starts_with("$$") {
                self.put(at..at + 2, "$");
                at += 2;
            } else if let Some((len, name, default)) = variable(rest) {
                let span = at..at + len;
                match value(name, default, env) {
                    Ok(value) => match fit(&value, context) {
                        Some(value) => self.put(span, &value),
                        None => problems.push(
                            Diagnostic::error(span, format!("the value of `{name}` cannot stand here"))
                                .help("put the expression between double quotes"),
                        ),
                    },
                    Err(name) => {
                        // Something has to stand there, so that the rest of the file can be judged.
                        self.put(span.clone(), "unset");
                        problems.push(
                            Diagnostic::error(span, format!("`{name}` is not set in the environment"))
                                .help(format!("set it, or give a default: `${{{name}:-…}}`")),
                        );
                    }
                }
                at += len;
            } else {
                let problem = Diagnostic::error(at..at + 1, "a lone `$`".into());
                problems.push(problem.help("write `$$` for a dollar sign, `${NAME}` for a variable"));
                self.keep(at..at + 1);
                at += 1;
            }
        }
    }

    fn keep(&mut self, span: Range<usize>) {
        let at = self.expanded.len();
        self.expanded.push_str(&self.original[span.clone()]);
        match self.pieces.last_mut() {
            Some(last) if last.verbatim && last.original.end == span.start => last.original.end = span.end,
            _ => self.pieces.push(Substitution { at, original: span, verbatim: true }),
        }
    }

    fn put(&mut self, original: Range<usize>, value: &str) {
        self.pieces.push(Substitution { at: self.expanded.len(), original, verbatim: false });
        self.expanded.push_str(value);
    }

    /// The place in the file of a place in the expanded text.
    pub fn locate(&self, span: Range<usize>) -> Range<usize> {
        let start = self.original_of(span.start, false);
        let end = self.original_of(span.end.max(span.start + 1) - 1, true);
        start..end.max(start)
    }

    fn original_of(&self, at: usize, end: bool) -> usize {
        let index = self.pieces.partition_point(|piece| piece.at <= at);
        let Some(piece) = index.checked_sub(1).and_then(|index| self.pieces.get(index)) else { return 0 };
        match (piece.verbatim, end) {
            (true, false) => (piece.original.start + at - piece.at).min(piece.original.end),
            (true, true) => (piece.original.start + at - piece.at + 1).min(piece.original.end),
            (false, false) => piece.original.start,
            (false, true) => piece.original.end,
        }
    }
}

/// How many bytes to keep as they are, and where they lead.
fn step(rest: &str, context: TomlContext) -> (usize, TomlContext) {
    let first = rest.chars().next().map_or(1, char::len_utf8);
    match context {
        TomlContext::Bare if rest.starts_with("\"\"\"") => (3, TomlContext::BasicMultiline),
        TomlContext::Bare if rest.starts_with("'''") => (3, TomlContext::LiteralMultiline),
        TomlContext::Bare if rest.starts_with('"') => (1, TomlContext::Basic),
        TomlContext::Bare if rest.starts_with('\'') => (1, TomlContext::Literal),
        TomlContext::Bare if rest.starts_with('#') => (1, TomlContext::Comment),
        TomlContext::Comment | TomlContext::Basic | TomlContext::Literal if rest.starts_with('\n') => {
            (1, TomlContext::Bare)
        }
        TomlContext::Basic | TomlContext::BasicMultiline if rest.starts_with('\\') => {
            (1 + rest[1..].chars().next().map_or(0, char::len_utf8), context)
        }
        TomlContext::Basic if rest.starts_with('"') => (1, TomlContext::Bare),
        TomlContext::Literal if rest.starts_with('\'') => (1, TomlContext::Bare),
        TomlContext::BasicMultiline if rest.starts_with("\"\"\"") => (3, TomlContext::Bare),
        TomlContext::LiteralMultiline if rest.starts_with("'''") => (3, TomlContext::Bare),
        _ => (first, context),
    }
}

/// Length, name and default of the expression at the start. A default may have further expressions in it.
fn variable(rest: &str) -> Option<(usize, &str, Option<&str>)> {
    let inner = rest.strip_prefix("${")?;
    let inner = &inner[..closing(inner)?];
    let (name, default) = match inner.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inner, None),
    };
    let valid = !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    valid.then_some((inner.len() + 3, name, default))
}

/// Where the brace is that closes an expression; on the same line, or nowhere.
fn closing(inner: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, byte) in inner.bytes().enumerate() {
        match byte {
            b'\n' => return None,
            b'{' if inner[..at].ends_with('$') => depth += 1,
            b'}' if depth == 0 => return Some(at),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// What a variable stands for, or the name of the one that is not set.
fn value(name: &str, default: Option<&str>, env: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    match (env(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => filled(default, env),
        (None, None) => Err(name.to_owned()),
    }
}

/// A default, with the variables in it filled in.
fn filled(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let Some(at) = text.find('$') else { return Ok(text.to_owned()) };
    let (before, rest) = text.split_at(at);
    let (len, put) = match variable(rest) {
        Some((len, name, default)) => (len, value(name, default, env)?),
        None if rest.starts_with("$$") => (2, "$".to_owned()),
        None => (1, "$".to_owned()),
    };
    Ok(format!("{before}{put}{}", filled(&rest[len..], env)?))
}

/// The value as it may stand in this place.
fn fit(value: &str, context: TomlContext) -> Option<String> {
    match context {
        TomlContext::Basic | TomlContext::BasicMultiline => {
            let mut escaped = String::with_capacity(value.len());
            for c in value.chars() {
                match c {
                    '"' => escaped.push_str("\\\""),
                    '\\' => escaped.push_str("\\\\"),
                    c if c.is_control() => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
                    c => escaped.push(c),
                }
            }
            Some(escaped)
        }
        TomlContext::Bare => {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-.+:".contains(&b);
            (!value.is_empty() && value.bytes().all(plain)).then(|| value.to_owned())
        }
        TomlContext::Literal | TomlContext::LiteralMultiline => {
            (!value.contains(['\'', '\n', '\r']) && !value.contains(char::is_control)).then(|| value.to_owned())
        }
        TomlContext::Comment => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(text: &str) -> (String, Vec<String>) {
        let env = |name: &str| match name {
            "A" => Some("value".to_owned()),
            "EMPTY" => Some(String::new()),
            "EVIL" => Some("x\"\ny = 1 # \\".to_owned()),
            _ => None,
        };
        let mut problems = Vec::new();
        let source = Source::new("t", text, PathBuf::new(), &env, &mut problems);
        (source.expanded, problems.into_iter().map(|problem| problem.message).collect())
    }

    #[test]
    fn the_environment_is_filled_in() {
        for (text, expanded) in [
            ("a = \"${A}\"", "a = \"value\""),
            ("a = \"x${A}y$$z\"", "a = \"xvaluey$z\""),
            ("a = \"${B:-d e}\"", "a = \"d e\""),
            ("a = \"${EMPTY:-d}\"", "a = \"d\""),
            ("a = \"${B:-${A}}\"", "a = \"value\""),
            ("a = \"${B:-x${EMPTY:-y${A}}$$z}\"", "a = \"xyvalue$z\""),
            ("a = \"${A:-${UNSET}}\"", "a = \"value\""),
            ("a = \"${B:-{}\"}", "a = \"{\"}"),
            ("a = ${A}", "a = value"),
            ("# ${B} $ \na = 1", "# ${B} $ \na = 1"),
            ("a = \"\\\"${A}\"", "a = \"\\\"value\""),
        ] {
            assert_eq!(expand(text), (expanded.to_owned(), vec![]), "{text}");
        }
    }

    #[test]
    fn a_value_stays_inside_its_string() {
        let (expanded, problems) = expand("a = \"${EVIL}\"");
        assert!(problems.is_empty());
        let table: toml::Table = expanded.parse().unwrap();
        assert_eq!(table["a"].as_str().unwrap(), "x\"\ny = 1 # \\");
        for text in ["a = ${EVIL}", "a = '${EVIL}'", "a = '''${EVIL}'''"] {
            assert_eq!(expand(text).1.len(), 1, "{text}");
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        assert_eq!(expand("a = \"${B}\"\nb = \"${C} $x\"").1.len(), 3);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in r#"([\[\]{}"'=.#$\\ \n]|sites|listen|http|upstream|matrix|\$\{A\}|[a-z]|[0-9]|é){0,60}"#) {
            let parsed = crate::config::parse("t", &text, PathBuf::new(), &|_| None);
            let report = match parsed {
                Ok((_, report)) => report,
                Err(report) => *report,
            };
            let _ = report.render();
        }
    }
}
