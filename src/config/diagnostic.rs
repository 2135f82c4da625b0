//! What is wrong with a file, told as a compiler tells it: where, the line, a caret, and a way out.

use std::{fmt::Write as _, ops::Range};

use super::source::Source;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// It can, but somebody should look.
    Warning,
}

/// One finding. The span is a place in the original text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// Where.
    pub span: Range<usize>,
    /// What would be right.
    pub help: Option<String>,
}

impl Diagnostic {
    pub(super) const fn error(span: Range<usize>, message: String) -> Self {
        Self { severity: Severity::Error, message, span, help: None }
    }

    pub(super) const fn warning(span: Range<usize>, message: String) -> Self {
        Self { severity: Severity::Warning, message, span, help: None }
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
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

    /// A report about a file that could not even be read.
    pub(super) fn unreadable(file: String, why: Diagnostic) -> Self {
        Self { file, diagnostics: vec![why], text: String::new() }
    }

    /// Whether the file cannot be used.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
    }

    /// Line and column of a finding, from 1; columns count characters.
    #[must_use]
    pub fn position(&self, diagnostic: &Diagnostic) -> (usize, usize) {
        let before = &self.text[..diagnostic.span.start.min(self.text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        (line, column)
    }

    /// The findings as text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::new();
        for diagnostic in &self.diagnostics {
            self.render_one(&mut out, diagnostic);
            out.push('\n');
        }
        let errors = self.diagnostics.iter().filter(|d| d.severity == Severity::Error).count();
        if errors > 0 {
            let plural = if errors == 1 { "" } else { "s" };
            writeln!(out, "{}: {errors} error{plural}", self.file).expect("a String takes everything");
        }
        out
    }

    fn render_one(&self, out: &mut String, diagnostic: &Diagnostic) {
        let severity = match diagnostic.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let (line, column) = self.position(diagnostic);
        let text = self.text.lines().nth(line - 1).unwrap_or_default();
        let width = line.to_string().len();
        let lead: String = text.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        let left = text.chars().count().saturating_sub(column - 1);
        let len =
            self.text.get(diagnostic.span.clone()).map_or(1, |s| s.lines().next().unwrap_or_default().chars().count());
        let carets = "^".repeat(len.min(left).max(1));
        let mut put = |line: std::fmt::Arguments<'_>| out.write_fmt(line).expect("a String takes everything");
        put(format_args!("{severity}: {}\n", diagnostic.message));
        if self.text.is_empty() {
            put(format_args!("  --> {}\n", self.file));
        } else {
            put(format_args!("{:width$}--> {}:{line}:{column}\n", "", self.file));
            put(format_args!("{:width$} |\n", ""));
            put(format_args!("{line} | {}\n", without_secrets(text)));
            put(format_args!("{:width$} | {lead}{carets}\n", ""));
        }
        if let Some(help) = &diagnostic.help {
            put(format_args!("{:width$} = help: {help}\n", ""));
        }
    }

    /// The findings for a program.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let one = |diagnostic: &Diagnostic| {
            let (line, column) = self.position(diagnostic);
            serde_json::json!({
                "severity": match diagnostic.severity { Severity::Error => "error", Severity::Warning => "warning" },
                "message": diagnostic.message,
                "file": self.file,
                "line": line,
                "column": column,
                "help": diagnostic.help,
            })
        };
        self.diagnostics.iter().map(one).collect()
    }
}

/// A line with stars for what nobody else may read, each in its place: the report of a reload goes to the log.
fn without_secrets(line: &str) -> String {
    let mut hidden: Vec<Range<usize>> = Vec::new();
    for key in ["eab_hmac_key", "key_secret"].iter().filter_map(|key| line.find(key)) {
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

/// The word that was probably meant.
pub(super) fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.len() / 3).max(1) + usize::from(word.len() > 4);
    known
        .into_iter()
        .map(|other| (distance(word, other), other))
        .filter(|(d, _)| *d <= limit)
        .min()
        .map(|(_, other)| other)
}

/// Edits between two words, a swap of neighbours being one (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
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
