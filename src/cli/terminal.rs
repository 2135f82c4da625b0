//! Colours and line breaks for a terminal. Commands write plain text; what is for people passes here on its way out.

use std::{borrow::Cow, env, io};

const BOLD_RED: &str = "\x1b[1;31m";
const BOLD_YELLOW: &str = "\x1b[1;33m";
const GREEN: &str = "\x1b[32m";
const CYAN: &str = "\x1b[36m";
const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

/// Narrower than this, wrapping only makes things worse.
const MIN_WIDTH: usize = 40;

/// What the reader of a stream can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terminal {
    colour: bool,
    width: Option<usize>,
}

impl Terminal {
    /// Standard output.
    pub fn stdout() -> Self {
        Self::of(&io::stdout())
    }

    /// Standard error.
    pub fn stderr() -> Self {
        Self::of(&io::stderr())
    }

    fn of(stream: &(impl io::IsTerminal + std::os::fd::AsFd)) -> Self {
        if !stream.is_terminal() {
            return Self { colour: false, width: None };
        }
        // https://no-color.org: set, to anything but nothing.
        let colour = env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && env::var_os("TERM").is_none_or(|term| term != "dumb");
        let width = terminal_size::terminal_size_of(stream).map(|(width, _)| usize::from(width.0).max(MIN_WIDTH));
        Self { colour, width }
    }

    /// The text as this terminal should show it.
    pub fn show(self, text: &str) -> Cow<'_, str> {
        if self == (Self { colour: false, width: None }) {
            return Cow::Borrowed(text);
        }
        let mut out = String::with_capacity(text.len() + 256);
        for line in text.split_inclusive('\n') {
            let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
            let parts = match self.width {
                Some(width) if !is_source(line) => wrap(line, width),
                _ => vec![line.to_owned()],
            };
            let style = self.colour.then(|| style(line)).flatten();
            for (at, part) in parts.iter().enumerate() {
                if at > 0 {
                    out.push('\n');
                }
                match &style {
                    Some((styled, code)) if at == 0 && *styled < part.len() => {
                        let from = part.len() - part.trim_start().len();
                        let to = part.char_indices().map(|(at, c)| at + c.len_utf8()).find(|end| *end >= *styled);
                        let to = to.unwrap_or(part.len());
                        out.push_str(&format!("{}{code}{}{RESET}{}", &part[..from], &part[from..to], &part[to..]));
                    }
                    Some((_, code)) if at == 0 => out.push_str(&format!("{code}{part}{RESET}")),
                    _ => out.push_str(part),
                }
            }
            out.push_str(end);
        }
        Cow::Owned(out)
    }
}

/// A line of the file in a report, or the marks below it: it keeps its columns.
fn is_source(line: &str) -> bool {
    line.trim_start().trim_start_matches(|c: char| c.is_ascii_digit()).trim_start().starts_with('|')
}

/// How much of a line is coloured, from its start, and how.
fn style(line: &str) -> Option<(usize, &'static str)> {
    let text = line.trim_start();
    let indent = line.len() - text.len();
    let word = |word: &str, code| text.starts_with(word).then_some((indent + word.len(), code));
    let marks = text.trim_start_matches(['|', ' ', '\t']);
    if is_source(line) && marks.starts_with('^') {
        return Some((usize::MAX, BOLD_RED));
    }
    word("error:", BOLD_RED)
        .or_else(|| word("warning:", BOLD_YELLOW))
        .or_else(|| word("= help:", CYAN))
        .or_else(|| word("->", CYAN))
        .or_else(|| word("not ready:", BOLD_YELLOW))
        .or_else(|| word("-->", DIM))
        .or_else(|| word(":::", DIM))
        .or_else(|| (indent == 2).then(|| verdict(text)).flatten().map(|(len, code)| (indent + len, code)))
        .or_else(|| (indent == 0 && is_heading(text)).then_some((usize::MAX, BOLD)))
}

/// The first word of a line of `doctor`, `demo` or `status`.
fn verdict(text: &str) -> Option<(usize, &'static str)> {
    let first = text.split(' ').next()?;
    let code = match first {
        "ok" => GREEN,
        "warn" => BOLD_YELLOW,
        "fail" | "FAIL" | "failed" => BOLD_RED,
        "skip" => DIM,
        _ => return None,
    };
    Some((first.len(), code))
}

/// A line that begins a group: one word, or a host with its certificate.
fn is_heading(text: &str) -> bool {
    !text.is_empty()
        && (text.split(' ').count() == 1 || text.contains("  (certificate: "))
        && !text.ends_with(['.', ','])
}

/// Breaks a line at spaces; what follows is indented a little deeper than the line.
fn wrap(line: &str, width: usize) -> Vec<String> {
    let indent = line.len() - line.trim_start().len();
    let deeper = " ".repeat((indent + 2).min(width / 2));
    let mut parts = Vec::new();
    let mut rest = line.to_owned();
    while rest.chars().count() > width {
        let limit = rest.char_indices().nth(width).map_or(rest.len(), |(at, _)| at);
        let start = rest.len() - rest.trim_start().len();
        // The space itself may stand just behind the last column.
        let window = rest.get(..=limit).unwrap_or(&rest[..limit]);
        let Some(at) = window.rfind(' ').filter(|at| *at > start) else { break };
        let after = rest[at..].trim_start().to_owned();
        rest.truncate(at);
        parts.push(rest.trim_end().to_owned());
        rest = format!("{deeper}{after}");
    }
    parts.push(rest);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_at_spaces_and_keep_their_indent() {
        let plain = Terminal { colour: false, width: Some(20) };
        assert_eq!(plain.show("  one two three four five\nsix\n"), "  one two three four\n    five\nsix\n");
        let source = "12 | a long line of a file that keeps its columns\n   |        ^^^^^^^^^^^^^^^^^^^^^^\n";
        assert_eq!(plain.show(source), source);
        assert_eq!(
            plain.show("https://a-very-long-address.example.org/\n"),
            "https://a-very-long-address.example.org/\n"
        );
        assert_eq!(plain.show("ääääääääää ööööööööö üüü"), "ääääääääää ööööööööö\n  üüü");
    }

    #[test]
    fn words_of_a_report_are_coloured() {
        let coloured = Terminal { colour: true, width: None };
        assert_eq!(coloured.show("error: x\n"), "\x1b[1;31merror:\x1b[0m x\n");
        assert_eq!(coloured.show("  = help: x"), "  \x1b[36m= help:\x1b[0m x");
        assert_eq!(coloured.show("  ok    dns"), "  \x1b[32mok\x1b[0m    dns");
        assert_eq!(coloured.show("  | ^^^"), "\x1b[1;31m  | ^^^\x1b[0m");
        assert_eq!(coloured.show("a line"), "a line");
        let none = Terminal { colour: false, width: None };
        assert_eq!(none.show("error: x\n"), "error: x\n");
    }
}
