//! The text of the file with the environment filled in, and the mapping from a place in it back to the file.
//!
//! `${NAME}`, `${NAME:-default}` and `${NAME:?text}` are replaced as compose does it, in a default as well, and `$$` is a
//! dollar sign; so are those of a password hash. Comments are left alone. A value cannot break out of its context: inside a basic string it is escaped;
//! elsewhere it must consist of characters that need no escape.

use std::{ops::Range, path::PathBuf};

use super::{diagnostic::Diagnostic, invisible};

/// A file: its name for messages, its text, and the text that is parsed.
#[derive(Debug)]
pub struct Source {
    /// The name in messages.
    pub name: String,
    /// The text of the file.
    pub original: String,
    /// The text with the environment filled in.
    pub expanded: String,
    /// The directory that relative paths start from.
    pub dir: PathBuf,
    substitutions: Vec<Substitution>,
}

/// A run of the expanded text and where it came from.
#[derive(Debug)]
struct Substitution {
    at: usize,
    original: Range<usize>,
    verbatim: bool,
}

/// The lexical context of a character in TOML; only as much as an expansion needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TomlContext {
    Bare,
    Comment,
    Basic,
    BasicMultiline,
    Literal,
    LiteralMultiline,
}

/// An expression such as `${NAME:-default}`.
struct Expression<'t> {
    len: usize,
    name: &'t str,
    fallback: Fallback<'t>,
    /// With `:` an empty value counts as unset.
    rejects_empty: bool,
}

/// What an expression gives where the variable is unset.
#[derive(Clone, Copy)]
enum Fallback<'t> {
    /// `${NAME}`: an error.
    None,
    /// `${NAME:-default}`: this text, which may contain further expressions.
    Default(&'t str),
    /// `${NAME:?text}`: an error with this text.
    Required(&'t str),
}

/// A variable that has no value.
#[derive(Debug, PartialEq, Eq)]
struct Unset {
    name: String,
    empty: bool,
    /// The text of `${NAME:?text}`.
    text: Option<String>,
}

/// The length of a password hash in modular crypt format, whose dollar signs are its own: it is pasted as a program has
/// printed it.
fn password_hash(rest: &str) -> Option<usize> {
    let is_hash = ["$2a$", "$2b$", "$2x$", "$2y$", "$argon2id$"].iter().any(|prefix| rest.starts_with(prefix));
    let is_part = |c: char| c.is_ascii_alphanumeric() || "$./+=,".contains(c);
    is_hash.then(|| rest.find(|c| !is_part(c)).unwrap_or(rest.len()))
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
            substitutions: Vec::new(),
        };
        source.expand(text, env, problems);
        source
    }

    fn expand(&mut self, text: &str, env: &dyn Fn(&str) -> Option<String>, problems: &mut Vec<Diagnostic>) {
        let (mut at, mut context) = (0, TomlContext::Bare);
        while at < text.len() {
            let rest = &text[at..];
            let (len, next) = step(rest, context);
            let was_bare = context == TomlContext::Bare;
            context = next;
            if rest.starts_with('$') && context != TomlContext::Comment {
                at += self.dollar(at, rest, context, env, problems);
            } else {
                if was_bare
                    && context == TomlContext::Bare
                    && let Some(instead) = misplaced(rest, at, problems)
                {
                    self.substitute(at..at + len, instead);
                } else {
                    self.keep(at..at + len);
                }
                at += len;
            }
        }
    }

    /// Replaces the expression at `at` and returns its length.
    fn dollar(
        &mut self,
        at: usize,
        rest: &str,
        context: TomlContext,
        env: &dyn Fn(&str) -> Option<String>,
        problems: &mut Vec<Diagnostic>,
    ) -> usize {
        if rest.starts_with("$$") {
            self.substitute(at..at + 2, "$");
            return 2;
        }
        if let Some(len) = password_hash(rest) {
            self.keep(at..at + len);
            return len;
        }
        let Some(expression) = expression(rest) else {
            let problem = Diagnostic::error(at..at + 1, "a lone `$`".into());
            problems.push(problem.help("write `$$` for a dollar sign, `${NAME}` for a variable"));
            self.keep(at..at + 1);
            return 1;
        };
        let span = at..at + expression.len;
        match value(&expression, env) {
            Ok(value) => match fit(&value, context) {
                Some(value) => self.substitute(span, &value),
                None => problems.push(
                    Diagnostic::error(span, format!("the value of `{}` cannot stand here", expression.name))
                        .help("put the expression between double quotes"),
                ),
            },
            Err(unset) => {
                // A placeholder, so that the rest of the file can be validated.
                self.substitute(span.clone(), "unset");
                problems.push(unset.diagnostic(span));
            }
        }
        expression.len
    }

    fn keep(&mut self, span: Range<usize>) {
        let at = self.expanded.len();
        self.expanded.push_str(&self.original[span.clone()]);
        match self.substitutions.last_mut() {
            Some(last) if last.verbatim && last.original.end == span.start => last.original.end = span.end,
            _ => self.substitutions.push(Substitution { at, original: span, verbatim: true }),
        }
    }

    fn substitute(&mut self, original: Range<usize>, value: &str) {
        self.substitutions.push(Substitution { at: self.expanded.len(), original, verbatim: false });
        self.expanded.push_str(value);
    }

    /// The place in the file of a place in the expanded text.
    pub fn locate(&self, span: Range<usize>) -> Range<usize> {
        let start = self.original_of(span.start, false);
        let end = self.original_of(span.end.max(span.start + 1) - 1, true);
        start..end.max(start)
    }

    fn original_of(&self, at: usize, end: bool) -> usize {
        let index = self.substitutions.partition_point(|substitution| substitution.at <= at);
        let Some(found) = index.checked_sub(1).and_then(|index| self.substitutions.get(index)) else { return 0 };
        match (found.verbatim, end) {
            (true, false) => (found.original.start + at - found.at).min(found.original.end),
            (true, true) => (found.original.start + at - found.at + 1).min(found.original.end),
            (false, false) => found.original.start,
            (false, true) => found.original.end,
        }
    }
}

/// Reports a character that TOML does not take outside of a string, and says what is parsed instead: without it, the
/// parser would report what follows from it.
fn misplaced(rest: &str, at: usize, problems: &mut Vec<Diagnostic>) -> Option<&'static str> {
    let c = rest.chars().next().filter(|c| !c.is_ascii() || c.is_control())?;
    let span = at..at + c.len_utf8();
    if c == '\u{feff}' && at == 0 {
        return Some("");
    }
    if "“”„‟‘’‚‛«»".contains(c) {
        let problem = Diagnostic::error(span, format!("`{c}` is a typographic quotation mark"));
        problems.push(problem.help("write `\"`"));
        return Some("\"");
    }
    let what = invisible::name(c)?;
    let problem = Diagnostic::error(span, format!("an invisible character: U+{:04X}, {what}", u32::from(c)));
    problems.push(problem.help(if invisible::is_space(c) { "replace it with a space" } else { "delete it" }));
    Some(if invisible::is_space(c) { " " } else { "" })
}

/// How many bytes to keep as they are, and the context after them.
fn step(rest: &str, context: TomlContext) -> (usize, TomlContext) {
    use TomlContext::{Bare, Basic, BasicMultiline, Comment, Literal, LiteralMultiline};
    let first = rest.chars().next().map_or(1, char::len_utf8);
    match context {
        Bare if rest.starts_with("\"\"\"") => (3, BasicMultiline),
        Bare if rest.starts_with("'''") => (3, LiteralMultiline),
        Bare if rest.starts_with('"') => (1, Basic),
        Bare if rest.starts_with('\'') => (1, Literal),
        Bare if rest.starts_with('#') => (1, Comment),
        Comment | Basic | Literal if rest.starts_with('\n') => (1, Bare),
        Basic | BasicMultiline if rest.starts_with('\\') => {
            (1 + rest[1..].chars().next().map_or(0, char::len_utf8), context)
        }
        Basic if rest.starts_with('"') => (1, Bare),
        Literal if rest.starts_with('\'') => (1, Bare),
        BasicMultiline if rest.starts_with("\"\"\"") => (3, Bare),
        LiteralMultiline if rest.starts_with("'''") => (3, Bare),
        _ => (first, context),
    }
}

/// The expression at the start.
fn expression(rest: &str) -> Option<Expression<'_>> {
    let inner = rest.strip_prefix("${")?;
    let inner = &inner[..closing(inner)?];
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let (name, operator) = inner.split_at(inner.find(|c| !is_name(c)).unwrap_or(inner.len()));
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let (rejects_empty, operator) = operator.strip_prefix(':').map_or((false, operator), |operator| (true, operator));
    let fallback = match (operator.chars().next(), operator.get(1..)) {
        (Some('-'), Some(default)) => Fallback::Default(default),
        (Some('?'), Some(text)) => Fallback::Required(text),
        (None, _) if !rejects_empty => Fallback::None,
        _ => return None,
    };
    Some(Expression { len: inner.len() + 3, name, fallback, rejects_empty })
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

/// The value of an expression.
fn value(expression: &Expression<'_>, env: &dyn Fn(&str) -> Option<String>) -> Result<String, Unset> {
    let found = env(expression.name);
    let empty = found.as_ref().is_some_and(String::is_empty);
    if let Some(value) = found.filter(|value| !(value.is_empty() && expression.rejects_empty)) {
        return Ok(value);
    }
    let unset = |text| Unset { name: expression.name.to_owned(), empty, text };
    match expression.fallback {
        Fallback::None => Err(unset(None)),
        Fallback::Default(default) => filled(default, env),
        Fallback::Required(text) => Err(unset(Some(filled(text, env)?).filter(|text| !text.is_empty()))),
    }
}

impl Unset {
    fn diagnostic(self, span: Range<usize>) -> Diagnostic {
        let Self { name, empty, text } = self;
        let state = if empty { "is empty" } else { "is not set" };
        match text {
            Some(text) => {
                Diagnostic::error(span, format!("`{name}` {state}: {text}")).help("set it in the environment")
            }
            None => Diagnostic::error(span, format!("`{name}` {state} in the environment"))
                .help(format!("set it, or give a default: `${{{name}:-…}}`")),
        }
    }
}

/// A default, with the variables in it filled in.
fn filled(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, Unset> {
    let Some(at) = text.find('$') else { return Ok(text.to_owned()) };
    let (before, rest) = text.split_at(at);
    let (len, put) = match expression(rest) {
        Some(expression) => (expression.len, value(&expression, env)?),
        None if rest.starts_with("$$") => (2, "$".to_owned()),
        None => (1, "$".to_owned()),
    };
    Ok(format!("{before}{put}{}", filled(&rest[len..], env)?))
}

/// The value as it may stand in this context.
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
            ("a = \"${B-d}${EMPTY-d}\"", "a = \"d\""),
            ("a = \"${A:?say what it is}\"", "a = \"value\""),
            ("a = \"${EMPTY?}\"", "a = \"\""),
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
    fn each_missing_value_is_reported() {
        assert_eq!(expand("a = \"${B}\"\nb = \"${C} $x\"").1.len(), 3);
        for (text, message) in [
            ("a = \"${B:?give me a B}\"", "`B` is not set: give me a B"),
            ("a = \"${EMPTY:?give me ${A}}\"", "`EMPTY` is empty: give me value"),
            ("a = \"${B?}\"", "`B` is not set in the environment"),
            ("a = \"${A:}\"", "a lone `$`"),
            ("a = \"${A:+x}\"", "a lone `$`"),
        ] {
            assert_eq!(expand(text).1, [message], "{text}");
        }
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
