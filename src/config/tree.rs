//! Reads a TOML tree without stopping at the first error: every table is asked for the keys it may have, each value is
//! parsed on its own, and every other key is unknown.

use std::{cell::RefCell, ops::Range};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    diagnostic::{Diagnostic, closest},
    invisible, reference,
    source::Source,
};

/// A value and where it stands (in the expanded text).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Where.
    pub span: Range<usize>,
}

/// A TOML value with its place.
pub type Item<'i> = Spanned<DeValue<'i>>;

/// Why a value is rejected: what is wrong, and how to write it.
#[derive(Debug)]
pub struct Problem {
    message: String,
    help: Option<String>,
    span: Option<Range<usize>>,
    /// The value is of another type, so that its help is the right form of the key.
    wrong_type: bool,
    /// What else is wrong, in other parts of the same value.
    also: Vec<Self>,
}

impl Problem {
    /// Something wrong with the value at hand.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None, span: None, wrong_type: false, also: Vec::new() }
    }

    /// A value of another type than the expected one.
    fn wrong_type(expected: &str, item: &Item<'_>) -> Self {
        let message = format!("expected {expected}, found {}", kind_of(item.get_ref()));
        Self { wrong_type: true, ..Self::new(message) }
    }

    /// How to fix it.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The part of the value that is wrong.
    pub fn at(mut self, span: Range<usize>) -> Self {
        self.span.get_or_insert(span);
        self
    }

    /// Several problems of one value as one; `None` where there are none.
    pub fn all(problems: Vec<Self>) -> Option<Self> {
        let mut problems = problems.into_iter();
        let mut first = problems.next()?;
        first.also.extend(problems);
        Some(first)
    }

    /// As one line, for a value that is not from a file.
    pub fn in_words(self) -> String {
        match self.help {
            Some(help) => format!("{}: {help}", self.message),
            None => self.message,
        }
    }
}

/// Collects what is wrong with a file.
pub struct Reader<'s> {
    source: &'s Source,
    found: RefCell<Vec<Diagnostic>>,
}

impl<'s> Reader<'s> {
    /// A reader that has found nothing yet.
    pub const fn new(source: &'s Source) -> Self {
        Self { source, found: RefCell::new(Vec::new()) }
    }

    /// The file.
    pub const fn source(&self) -> &'s Source {
        self.source
    }

    /// Notes an error.
    pub fn error(&self, span: Range<usize>, message: impl Into<String>) {
        self.note(Diagnostic::error(self.source.locate(span), message.into()));
    }

    /// Notes an error and a way out.
    pub fn error_with(&self, span: Range<usize>, message: impl Into<String>, help: impl Into<String>) {
        self.note(Diagnostic::error(self.source.locate(span), message.into()).help(help));
    }

    /// Notes an error about something that is defined twice.
    pub fn error_twice(&self, second: Range<usize>, first: Range<usize>, message: impl Into<String>) {
        let diagnostic = Diagnostic::error(self.source.locate(second), message.into()).help("keep one of the two");
        self.note(diagnostic.related(self.source.locate(first), "first defined here"));
    }

    /// Notes a warning.
    pub fn warn(&self, span: Range<usize>, message: impl Into<String>, help: impl Into<String>) {
        self.note(Diagnostic::warning(self.source.locate(span), message.into()).help(help));
    }

    /// Notes a finding.
    pub fn note(&self, diagnostic: Diagnostic) {
        self.found.borrow_mut().push(diagnostic);
    }

    /// Everything that was noted.
    pub fn into_found(self) -> Vec<Diagnostic> {
        self.found.into_inner()
    }

    /// Parses an item; a problem is noted at its place.
    pub fn parse<'i, T>(
        &self,
        item: &'i Item<'i>,
        parse: impl FnOnce(&'i Item<'i>) -> Result<T, Problem>,
    ) -> Option<At<T>> {
        match parse(item) {
            Ok(value) => Some(At { value, span: item.span() }),
            Err(problem) => {
                self.note_problem(item, problem);
                None
            }
        }
    }

    fn note_problem(&self, item: &Item<'_>, problem: Problem) {
        let span = self.source.locate(problem.span.unwrap_or_else(|| item.span()));
        let mut diagnostic = Diagnostic::error(span, problem.message);
        diagnostic.help = problem.help;
        self.note(diagnostic);
        for problem in problem.also {
            self.note_problem(item, problem);
        }
    }
}

/// A table that is being read.
pub struct Section<'r, 's, 'i> {
    /// Where errors go.
    pub reader: &'r Reader<'s>,
    /// Its name in messages; empty for the file itself.
    pub name: String,
    /// Where it begins.
    pub span: Range<usize>,
    table: &'i DeTable<'i>,
    asked: RefCell<Vec<&'static str>>,
}

impl<'r, 's, 'i> Section<'r, 's, 'i> {
    /// Reads a table.
    pub fn new(reader: &'r Reader<'s>, name: impl Into<String>, table: &'i DeTable<'i>, span: Range<usize>) -> Self {
        Self { reader, name: name.into(), span, table, asked: RefCell::default() }
    }

    /// The value of a key, if it is there and valid.
    pub fn get<T>(&self, key: &'static str, parse: impl FnOnce(&'i Item<'i>) -> Result<T, Problem>) -> Option<At<T>> {
        let item = self.item(key)?;
        self.reader.parse(item, |item| {
            parse(item).map_err(|problem| match reference::right_form(&self.name, key, item.get_ref()) {
                Some(form) if problem.wrong_type && problem.help.is_none() => {
                    problem.help(format!("write it like {key} = {form}"))
                }
                _ => problem,
            })
        })
    }

    /// Whether the key is there, in whatever spelling: what is missing may only be misspelled, which is an error of its own.
    pub fn mentions(&self, key: &'static str) -> bool {
        self.item(key).is_some() || self.entries().any(|(found, _)| closest(found.value, [key]).is_some())
    }

    /// The raw value of a key, if it is there.
    pub fn item(&self, key: &'static str) -> Option<&'i Item<'i>> {
        let mut asked = self.asked.borrow_mut();
        if !asked.contains(&key) {
            asked.push(key);
        }
        self.table.get(key)
    }

    /// The table under a key; an empty one where there is none.
    pub fn section(&self, key: &'static str) -> Option<Self> {
        let item = self.item(key)?;
        match item.get_ref() {
            DeValue::Table(table) => Some(Self::new(self.reader, self.path(key), table, item.span())),
            other => {
                let path = self.path(key);
                let message = format!("`{path}` is a table, not {}", kind_of(other));
                self.reader.error_with(
                    item.span(),
                    message,
                    format!("write [{path}] on a line of its own, with its keys below"),
                );
                None
            }
        }
    }

    /// All keys and values, for tables whose keys are the user's own.
    pub fn entries(&self) -> impl Iterator<Item = (At<&'i str>, &'i Item<'i>)> + use<'i> {
        self.table.iter().map(|(key, item)| (At { value: key.get_ref().as_ref(), span: key.span() }, item))
    }

    /// The name of a key in messages.
    pub fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    /// Notes every key that is unknown here.
    pub fn finish(self) {
        let asked = self.asked.borrow();
        for (key, _) in self.entries() {
            if asked.contains(&key.value) {
                continue;
            }
            let within = if self.name.is_empty() { "the file".to_owned() } else { format!("`{}`", self.name) };
            let mut problem = Diagnostic::error(
                self.reader.source.locate(key.span),
                format!("unknown key `{}` in {within}", key.value),
            );
            problem.help = match closest(key.value, asked.iter().copied()) {
                Some(likely) => Some(format!("did you mean `{likely}`?")),
                None => Some(format!("known here: {}", asked.join(", "))),
            };
            self.reader.note(problem);
        }
    }
}

/// The type of a value, for a message about what it should be.
pub fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// A string.
pub fn string<'i>(item: &'i Item<'i>) -> Result<&'i str, Problem> {
    item.get_ref().as_str().ok_or_else(|| Problem::wrong_type("a string", item))
}

/// `true` or `false`.
pub fn boolean(item: &Item<'_>) -> Result<bool, Problem> {
    item.get_ref().as_bool().ok_or_else(|| Problem::wrong_type("true or false", item))
}

/// An integer within a range.
pub fn integer(item: &Item<'_>, range: std::ops::RangeInclusive<u64>) -> Result<u64, Problem> {
    let Some(integer) = item.get_ref().as_integer() else {
        return Err(Problem::wrong_type("an integer", item));
    };
    let value = u64::from_str_radix(integer.as_str(), integer.radix()).ok().filter(|value| range.contains(value));
    value.ok_or_else(|| Problem::new(format!("must be between {} and {}", range.start(), range.end())))
}

/// A string in a small language, in which no character may be invisible.
pub fn parsed<'i, T>(parse: impl Fn(&str) -> Result<T, Problem>) -> impl Fn(&'i Item<'i>) -> Result<T, Problem> {
    move |item| {
        let text = string(item)?;
        visible(text)?;
        parse(text)
    }
}

/// Rejects characters that a reader does not see, and spaces at the ends.
pub fn visible(text: &str) -> Result<(), Problem> {
    if let Some(what) = invisible::first(text) {
        return Err(Problem::new(format!("the value contains an invisible character: {what}")).help("delete it"));
    }
    if text.trim() != text {
        let end = if text.trim_start() == text { "ends" } else { "begins" };
        return Err(Problem::new(format!("the value {end} with a space")).help(format!("write \"{}\"", text.trim())));
    }
    Ok(())
}

/// One of a few words.
pub fn word<'i, T: Copy>(words: &'static [(&'static str, T)]) -> impl Fn(&'i Item<'i>) -> Result<T, Problem> {
    move |item| {
        let text = string(item)?;
        visible(text)?;
        words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
            let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            let help = match closest(text, known.iter().copied()) {
                Some(likely) => format!("did you mean `{likely}`?"),
                None => format!("one of: {}", known.join(", ")),
            };
            Problem::new(format!("`{text}` is not a value of this key")).help(help)
        })
    }
}

/// A list whose elements `parse` takes.
pub fn list<'i, T>(
    parse: impl Fn(&'i Item<'i>) -> Result<T, Problem>,
) -> impl Fn(&'i Item<'i>) -> Result<Vec<T>, Problem> {
    move |item| match item.get_ref() {
        DeValue::Array(items) => {
            let (mut good, mut bad) = (Vec::new(), Vec::new());
            for item in items {
                match parse(item) {
                    Ok(value) => good.push(value),
                    Err(problem) => bad.push(problem.at(item.span())),
                }
            }
            Problem::all(bad).map_or(Ok(good), Err)
        }
        _ => Err(Problem::wrong_type("a list", item)),
    }
}

/// A list, or one element without the brackets.
pub fn one_or_more<'i, T>(
    parse: impl Fn(&'i Item<'i>) -> Result<T, Problem>,
) -> impl Fn(&'i Item<'i>) -> Result<Vec<T>, Problem> {
    move |item| match item.get_ref() {
        DeValue::Array(items) if items.is_empty() => Err(Problem::new("the list is empty")),
        DeValue::Array(_) => list(&parse)(item),
        _ => parse(item).map(|one| vec![one]),
    }
}
