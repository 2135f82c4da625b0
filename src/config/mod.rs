//! The configuration file: text in, an immutable [`Plan`] or every finding out.
//!
//! ```text
//! file > source (environment) > tree (TOML with places) > raw (each value) > compile (all together) > Plan
//! ```

mod compile;
mod diagnostic;
mod kind;
pub mod plan;
mod raw;
mod reference;
mod source;
mod tree;
mod value;
mod well_known;

use std::{
    env, fs,
    path::{Path, PathBuf},
};

pub use self::{
    diagnostic::{Diagnostic, Report, Severity},
    plan::Plan,
    reference::{markdown, schema},
};
use self::{source::Source, tree::Reader};

/// Where the file is looked for when nobody says.
pub const DEFAULT_PATHS: [&str; 2] = ["vestibule.toml", "/etc/vestibule/vestibule.toml"];

/// The file to use: the one that is named, else `$VESTIBULE_CONFIG`, else the first of [`DEFAULT_PATHS`] that exists.
///
/// # Errors
/// None exists.
pub fn locate(named: Option<PathBuf>) -> Result<PathBuf, Box<Report>> {
    if let Some(path) = named.or_else(|| env::var_os("VESTIBULE_CONFIG").map(PathBuf::from)) {
        return Ok(path);
    }
    let found = DEFAULT_PATHS.iter().map(PathBuf::from).find(|path| path.exists());
    found.ok_or_else(|| {
        let message =
            format!("there is no configuration: neither {} nor $VESTIBULE_CONFIG", DEFAULT_PATHS.join(" nor "));
        Box::new(Report::unreadable("vestibule.toml".into(), message))
    })
}

/// Reads and judges a file. Touches nothing else: no network, no ports, no other file.
///
/// # Errors
/// Everything that is wrong with it, in one report.
pub fn load(path: &Path) -> Result<(Plan, Report), Box<Report>> {
    let name = path.display().to_string();
    let text = match fs::read(path).map(String::from_utf8) {
        Ok(Ok(text)) => text,
        Ok(Err(_)) => return Err(Box::new(Report::unreadable(name, "the file is not UTF-8".into()))),
        Err(error) => return Err(Box::new(Report::unreadable(name, format!("the file cannot be read: {error}")))),
    };
    let dir = path.parent().map(Path::to_owned).unwrap_or_default();
    parse(&name, &text, dir, &|name| env::var(name).ok())
}

/// Judges a text. The report beside a plan holds warnings.
///
/// # Errors
/// Everything that is wrong with it, in one report.
pub fn parse(
    name: &str,
    text: &str,
    dir: PathBuf,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<(Plan, Report), Box<Report>> {
    let mut found = Vec::new();
    let source = Source::new(name, text, dir, env, &mut found);
    let (document, errors) = toml::de::DeTable::parse_recoverable(&source.expanded);
    let reader = Reader::new(&source);
    for error in &errors {
        reader.error(error.span().unwrap_or(0..0), error.message());
    }
    let raw = raw::read(&reader, document.get_ref(), document.span());
    // After a syntax error nobody knows what is missing and what was only misread.
    let plan = errors.is_empty().then(|| compile::compile(raw, &reader));
    let unset: Vec<_> = found.iter().map(|problem| problem.span.clone()).collect();
    let is_own =
        |other: &Diagnostic| !unset.iter().any(|span| span.start < other.span.end && other.span.start < span.end);
    found.extend(reader.into_found().into_iter().filter(is_own));
    let report = Report::new(&source, found);
    match plan {
        Some(plan) if !report.has_errors() => Ok((plan, report)),
        _ => Err(Box::new(report)),
    }
}
