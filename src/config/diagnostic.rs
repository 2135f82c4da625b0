//! What is wrong with a file, reported as a compiler does it: the place, the line, a caret, and how to fix it.

use std::{fmt::Write as _, ops::Range};

use super::{invisible, source::Source};

/// Errors that a report shows in words; whoever has more will run it again.
const SHOWN_ERRORS: usize = 20;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file can be used, but is probably not what was meant.
    Warning,
}

impl Severity {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// One finding. Spans are places in the original text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// Where.
    pub span: Range<usize>,
    /// Another place that belongs to it, and what is there.
    pub related: Option<(Range<usize>, &'static str)>,
    /// How to fix it.
    pub help: Option<String>,
}

impl Diagnostic {
    pub(super) const fn error(span: Range<usize>, message: String) -> Self {
        Self { severity: Severity::Error, message, span, related: None, help: None }
    }

    pub(super) const fn warning(span: Range<usize>, message: String) -> Self {
        Self { severity: Severity::Warning, message, span, related: None, help: None }
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub(super) fn related(mut self, span: Range<usize>, what: &'static str) -> Self {
        self.related = Some((span, what));
        self
    }
}

/// All findings about one file, in the order of the file.
#[derive(Debug)]
pub struct Report {
    /// The name of the file, for messages.
    pub file: String,
    /// The findings.
    pub diagnostics: Vec<Diagnostic>,
    text: String,
}

impl Report {
    pub(super) fn new(source: &Source, mut diagnostics: Vec<Diagnostic>) -> Self {
        diagnostics.sort_by_key(|diagnostic| (diagnostic.span.start, diagnostic.span.end));
        diagnostics.dedup();
        Self { file: source.name.clone(), diagnostics, text: source.original.clone() }
    }

    /// A report about a file that is not even TOML text.
    pub(super) fn unreadable(file: String, text: String, why: Diagnostic) -> Self {
        Self { file, diagnostics: vec![why], text }
    }

    /// Whether the file cannot be used.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.count(Severity::Error) > 0
    }

    /// How many findings have this severity.
    #[must_use]
    pub fn count(&self, severity: Severity) -> usize {
        self.diagnostics.iter().filter(|diagnostic| diagnostic.severity == severity).count()
    }

    /// Line and column of a finding, from 1; columns count characters.
    #[must_use]
    pub fn position(&self, diagnostic: &Diagnostic) -> (usize, usize) {
        self.place(diagnostic.span.start)
    }

    fn place(&self, at: usize) -> (usize, usize) {
        let before = self.text.get(..at.min(self.text.len())).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        (line, column)
    }

    /// The findings as text; of many errors the first ones.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::new();
        let mut shown = 0;
        for diagnostic in &self.diagnostics {
            if diagnostic.severity == Severity::Error {
                if shown == SHOWN_ERRORS {
                    break;
                }
                shown += 1;
            }
            self.render_one(&mut out, diagnostic);
            out.push('\n');
        }
        let errors = self.count(Severity::Error);
        if errors > 0 {
            let plural = if errors == 1 { "" } else { "s" };
            let cut = if errors > shown { format!("; the first {shown} are shown") } else { String::new() };
            writeln!(out, "{}: {errors} error{plural}{cut}", self.file).expect("a String takes everything");
        }
        out
    }

    fn render_one(&self, out: &mut String, diagnostic: &Diagnostic) {
        let mut put = |line: std::fmt::Arguments<'_>| out.write_fmt(line).expect("a String takes everything");
        let (line, column) = self.position(diagnostic);
        let other = diagnostic.related.as_ref().map(|(span, what)| (span, what, self.place(span.start)));
        let width = other.as_ref().map_or(0, |(_, _, place)| place.0).max(line).to_string().len();
        put(format_args!("{}: {}\n", diagnostic.severity.as_str(), diagnostic.message));
        if self.text.is_empty() {
            put(format_args!("  --> {}\n", self.file));
        } else {
            put(format_args!("{:width$}--> {}:{line}:{column}\n", "", self.file));
            put(format_args!("{:width$} |\n{}\n", "", self.excerpt(&diagnostic.span, width, '^')));
        }
        if let Some((span, what, (line, column))) = other {
            put(format_args!("{:width$}::: {}:{line}:{column}\n", "", self.file));
            put(format_args!("{:width$} |\n{} {what}\n", "", self.excerpt(span, width, '-')));
        }
        if let Some(help) = &diagnostic.help {
            put(format_args!("{:width$} = help: {help}\n", ""));
        }
    }

    /// The line of a span, and below it the span underlined.
    fn excerpt(&self, span: &Range<usize>, width: usize, mark: char) -> String {
        let (line, column) = self.place(span.start);
        let text = self.text.lines().nth(line - 1).unwrap_or_default();
        let text = without_secrets(text);
        let before: String = text.chars().take(column - 1).collect();
        let len = self.text.get(span.clone()).map_or(1, |s| s.lines().next().unwrap_or_default().chars().count());
        let marked: String = text.chars().skip(column - 1).take(len).collect();
        let lead: String = invisible::shown(&before).chars().map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        let marks = mark.to_string().repeat(invisible::shown(&marked).chars().count().max(1));
        format!("{line:>width$} | {}\n{:width$} | {lead}{marks}", invisible::shown(&text), "")
    }

    /// The findings for a program: all of them.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let one = |diagnostic: &Diagnostic| {
            let (line, column) = self.position(diagnostic);
            let mut json = serde_json::json!({
                "severity": diagnostic.severity.as_str(),
                "message": diagnostic.message,
                "file": self.file,
                "line": line,
                "column": column,
                "help": diagnostic.help,
            });
            if let Some((span, what)) = &diagnostic.related {
                let (line, column) = self.place(span.start);
                json["related"] = serde_json::json!({ "message": what, "line": line, "column": column });
            }
            json
        };
        self.diagnostics.iter().map(one).collect()
    }
}

/// Keys whose values are secrets; `api_t` also where the rest of `api_token` is misspelt.
const SECRET_KEYS: [&str; 5] = ["eab_hmac_key", "key_secret", "api_t", "api_secret", "password"];

/// A line with stars for what nobody else may read, each in its place: the report of a reload goes to the log.
fn without_secrets(line: &str) -> String {
    let mut hidden: Vec<Range<usize>> = Vec::new();
    for key in SECRET_KEYS.iter().filter_map(|key| line.find(key)) {
        if let Some(at) = line[key..].find('=') {
            hidden.push(key + at + 1..line.len());
        }
    }
    for (at, scheme) in line.match_indices("://") {
        let start = at + scheme.len();
        let end = line[start..].find(['"', '\'', ' ']).map_or(line.len(), |len| start + len);
        hidden.extend(line[start..end].rfind('@').map(|len| start..start + len));
    }
    let is_hidden = |(at, c): &(usize, char)| {
        !c.is_whitespace() && !"\"'".contains(*c) && hidden.iter().any(|range| range.contains(at))
    };
    line.char_indices().map(|place| if is_hidden(&place) { '*' } else { place.1 }).collect()
}

/// The word that was probably meant; a swap of neighbours is one edit.
pub(super) fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.len() / 3).max(1) + usize::from(word.len() > 4);
    known
        .into_iter()
        .map(|other| (strsim::osa_distance(word, other), other))
        .filter(|(d, _)| *d <= limit)
        .min()
        .map(|(_, other)| other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_shows_no_secret() {
        for (line, shown) in [
            ("eab_hmac_key = \"s3cret\"", "eab_hmac_key = \"******\""),
            ("acme = { eab_hmac_key=s3cret, x=1 }", "acme = { eab_hmac_key=******* *** *"),
            (
                "upstream = [\"http://ü:p@ss@a:1\", \"http://b:1\"]",
                "upstream = [\"http://******@a:1\", \"http://b:1\"]",
            ),
            ("dns = { key_secret = \"s3cret\" }", "dns = { key_secret = \"******\" *"),
            ("email = \"a@example.org\"", "email = \"a@example.org\""),
        ] {
            assert_eq!(without_secrets(line), shown);
        }
    }

    #[test]
    fn the_likely_word_is_found() {
        let known = ["upstream", "redirect", "kind", "tls"];
        assert_eq!(closest("upstraem", known), Some("upstream"));
        assert_eq!(closest("redirct", known), Some("redirect"));
        assert_eq!(closest("tsl", known), Some("tls"));
        assert_eq!(closest("compression", known), None);
    }
}
