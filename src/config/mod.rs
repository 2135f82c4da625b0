//! The configuration file: text in, an immutable [`Plan`] or every finding out.
//!
//! ```text
//! file > input (UTF-8) > source (environment) > tree (TOML with places) > raw (each value) > compile (all together) > Plan
//! ```

mod acme;
mod basic_auth;
mod compile;
mod diagnostic;
mod duplicate;
pub mod edits;
mod forward_auth;
mod input;
mod invisible;
mod kind;
mod loops;
mod matching;
pub mod plan;
mod punycode;
mod raw;
mod reference;
mod schema;
mod source;
mod stream;
pub mod template;
mod tree;
mod upstream_tls;
mod value;
pub mod versions;
mod well_known;

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

pub use self::{
    diagnostic::{Diagnostic, Report, Severity},
    plan::Plan,
    reference::{SCHEMA_URL, markdown, schema},
};
use self::{
    plan::{AdminListen, KeyPairFiles},
    source::Source,
    tree::Reader,
};

/// Where the file is looked for if none is named.
pub const DEFAULT_PATHS: [&str; 2] = ["vestibule.toml", "/etc/vestibule/vestibule.toml"];

/// The file to use: the one that is named, else `$VESTIBULE_CONFIG`, else the first of [`DEFAULT_PATHS`] that exists.
///
/// # Errors
/// None exists.
pub fn locate(named: Option<PathBuf>) -> Result<PathBuf, Box<Report>> {
    // Empty is what compose makes of a variable that is not set.
    let from_env = || env::var_os("VESTIBULE_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
    if let Some(path) = named.or_else(from_env) {
        return Ok(path);
    }
    let found = DEFAULT_PATHS.iter().map(PathBuf::from).find(|path| path.exists());
    found.ok_or_else(|| {
        let message = format!(
            "no configuration file: neither {} exists, and $VESTIBULE_CONFIG is not set",
            DEFAULT_PATHS.join(" nor ")
        );
        let none = Diagnostic::error(0..0, message)
            .help("write one with `vestibule init SERVER_NAME`, or name one with --config");
        Box::new(Report::unreadable("vestibule.toml".into(), String::new(), none))
    })
}

/// Reads and validates a file. Touches nothing else: no network, no ports; of other files that it names, only whether
/// they can be read, and that is a warning.
///
/// # Errors
/// Everything that is wrong with it, in one report.
pub fn load(path: &Path) -> Result<(Plan, Report), Box<Report>> {
    let (name, bytes) = read(path)?;
    validate(&name, &bytes, folder(path), &|name| env::var(name).ok(), &readable, &|_, _| Vec::new())
}

/// Reports what is wrong with the certificate in files that a site is served with. It is handed in: this module knows no
/// certificates.
pub type Inspect<'a> = dyn Fn(&[KeyPairFiles], &str) -> Vec<String> + 'a;

/// The same, and inspects the certificates that the file names.
///
/// # Errors
/// Everything that is wrong with it, in one report.
pub fn load_and_inspect(path: &Path, inspect: &Inspect<'_>) -> Result<(Plan, Report), Box<Report>> {
    let (name, bytes) = read(path)?;
    validate(&name, &bytes, folder(path), &|name| env::var(name).ok(), &readable, inspect)
}

/// The admin address of the file. Whatever else is wrong with the file, the running process may have read a better one.
///
/// # Errors
/// The file cannot be read.
pub fn admin_listen(path: &Path) -> Result<Option<AdminListen>, Box<Report>> {
    let (name, bytes) = read(path)?;
    let text = input::decode(&name, &bytes)?;
    let source = Source::new(&name, &text, folder(path), &|name| env::var(name).ok(), &mut Vec::new());
    let (document, _) = toml::de::DeTable::parse_recoverable(&source.expanded);
    let reader = Reader::new(&source);
    let raw = raw::read(&reader, document.get_ref(), document.span());
    Ok(compile::admin_listen(&raw.admin, &reader))
}

/// The name of a site, a wildcard included, as a command takes it.
///
/// # Errors
/// What is wrong with it, in words.
pub fn site_name(text: &str) -> Result<plan::Hostname, String> {
    value::site_name(text).map_err(tree::Problem::in_words)
}

/// Whether a file that the configuration names can be read. A pipe would be waited for.
fn readable(path: &Path) -> io::Result<()> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is no regular file"));
    }
    fs::File::open(path).map(drop)
}

fn read(path: &Path) -> Result<(String, Vec<u8>), Box<Report>> {
    let name = path.display().to_string();
    match fs::read(path) {
        Ok(bytes) => Ok((name, bytes)),
        Err(error) => {
            let problem = Diagnostic::error(0..0, format!("the file cannot be read: {error}"));
            Err(Box::new(Report::unreadable(name, String::new(), problem)))
        }
    }
}

/// Whether a text is a filter for the log as `log.level` has it.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn check_log_filter(text: &str) -> Result<(), String> {
    value::log_level(text).map(drop).map_err(tree::Problem::in_words)
}

/// Whether a text is a hash as `basic_auth` takes it.
#[must_use]
pub fn is_password_hash(text: &str) -> bool {
    basic_auth::password(text).is_ok()
}

/// Whether a text is a `host` as an upstream takes it.
#[must_use]
pub fn is_upstream_host(text: &str) -> bool {
    upstream_tls::host(text).is_ok()
}

fn folder(path: &Path) -> PathBuf {
    path.parent().map(Path::to_owned).unwrap_or_default()
}

/// Validates a text. The report beside a plan holds warnings.
///
/// # Errors
/// Everything that is wrong with it, in one report.
pub fn parse(
    name: &str,
    text: impl AsRef<[u8]>,
    dir: PathBuf,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<(Plan, Report), Box<Report>> {
    validate(name, text.as_ref(), dir, env, &|_| Ok(()), &|_, _| Vec::new())
}

fn validate(
    name: &str,
    bytes: &[u8],
    dir: PathBuf,
    env: &dyn Fn(&str) -> Option<String>,
    readable: &dyn Fn(&Path) -> io::Result<()>,
    inspect: &Inspect<'_>,
) -> Result<(Plan, Report), Box<Report>> {
    let text = input::decode(name, bytes)?;
    let mut found = Vec::new();
    let source = Source::new(name, &text, dir, env, &mut found);
    let (document, errors) = toml::de::DeTable::parse_recoverable(&source.expanded);
    // A key that is there twice leaves the rest of the file readable.
    let (duplicates, errors): (Vec<_>, Vec<_>) = errors.iter().partition(|error| error.message() == "duplicate key");
    if !errors.is_empty()
        && let Some(other) = input::foreign(&text)
    {
        return Err(Box::new(Report::unreadable(name.to_owned(), text, other)));
    }
    let syntax = Reader::new(&source);
    for error in &errors {
        let span = error.span().unwrap_or(0..0);
        match error.message() {
            message if message.starts_with("string values must be quoted") => {
                syntax.error_with(span, "a string without quotes", "put it between double quotes");
            }
            message => syntax.error(span, message),
        }
    }
    add_unless_caused(&source, &mut found, syntax.into_found());
    let reader = Reader::new(&source);
    for error in duplicates {
        reader.note(duplicate::diagnostic(&source, document.get_ref(), error.span().unwrap_or(0..0)));
    }
    let raw = raw::read(&reader, document.get_ref(), document.span());
    for file in raw.files() {
        if let Err(error) = readable(file.value) {
            let help = "it must exist and be readable where the edge runs";
            reader.warn(file.span.clone(), format!("`{}` cannot be read: {error}", file.value.display()), help);
        }
    }
    for (pairs, host, span) in raw.served_files() {
        // What cannot be read has been reported.
        if pairs.iter().all(|pair| readable(&pair.cert).is_ok() && readable(&pair.key).is_ok()) {
            for fault in inspect(pairs, host) {
                reader.warn(span.clone(), fault, format!("it would be served for {host}"));
            }
        }
    }
    // After a syntax error it is not known what is missing and what was only misread.
    let plan = errors.is_empty().then(|| compile::compile(raw, &reader));
    add_unless_caused(&source, &mut found, reader.into_found());
    let report = Report::new(&source, found);
    match plan {
        Some(plan) if !report.has_errors() => Ok((plan, report)),
        _ => Err(Box::new(report)),
    }
}

/// Adds findings except those on a line where something is wrong on a lower level, of which they are only consequences.
fn add_unless_caused(source: &Source, found: &mut Vec<Diagnostic>, more: Vec<Diagnostic>) {
    let line = |diagnostic: &Diagnostic| {
        let before = source.original.get(..diagnostic.span.start).unwrap_or_default();
        before.matches('\n').count()
    };
    let lines: Vec<_> = found.iter().map(line).collect();
    found.extend(more.into_iter().filter(|diagnostic| !lines.contains(&line(diagnostic))));
}
