//! A key that a file has twice: finds the first one, which the parser does not tell.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::{diagnostic::Diagnostic, source::Source};

/// The diagnostic for the second of two keys, whose place the parser has told.
pub fn diagnostic(source: &Source, document: &DeTable<'_>, second: Range<usize>) -> Diagnostic {
    let text = &source.expanded;
    let name = text.get(second.clone()).unwrap_or_default();
    let first = match header(text, second.start) {
        Some(header) => earlier_header(text, header, second.end),
        None => nearest(document, bare(name), second.start),
    };
    let message = format!("`{}` is defined twice", bare(name));
    let diagnostic = Diagnostic::error(source.locate(second), message);
    match first {
        Some(first) => diagnostic.related(source.locate(first), "first defined here"),
        None => diagnostic,
    }
    .help("keep one of the two")
}

fn bare(name: &str) -> &str {
    name.trim_matches(['"', '\''])
}

/// Where the line of a place begins, if that line is the header of a table.
fn header(text: &str, at: usize) -> Option<usize> {
    let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    text[start..].trim_start().starts_with('[').then_some(start)
}

/// The name of the table in an earlier line that begins as this header does up to the end of the key.
fn earlier_header(text: &str, header: usize, key_end: usize) -> Option<Range<usize>> {
    let squeeze = |line: &str| line.chars().filter(|c| !c.is_whitespace()).collect::<String>();
    let wanted = squeeze(&text[header..key_end]);
    let mut at = 0;
    for line in text[..header].split_inclusive('\n') {
        let rest = squeeze(line);
        if rest.strip_prefix(&wanted).is_some_and(|rest| rest.starts_with([']', '.'])) {
            let start = at + line.len() - line.trim_start().len();
            return Some(start..at + line.find(']').map_or_else(|| line.trim_end().len(), |end| end + 1));
        }
        at += line.len();
    }
    None
}

/// The last key of this name before a place.
fn nearest(table: &DeTable<'_>, name: &str, before: usize) -> Option<Range<usize>> {
    let mut found: Option<Range<usize>> = None;
    for (key, value) in table.iter() {
        let here = (key.get_ref() == name).then(|| key.span());
        let below = match value.get_ref() {
            DeValue::Table(table) => nearest(table, name, before),
            _ => None,
        };
        for span in here.into_iter().chain(below).filter(|span| span.start < before) {
            if found.as_ref().is_none_or(|found| found.start < span.start) {
                found = Some(span);
            }
        }
    }
    found
}
