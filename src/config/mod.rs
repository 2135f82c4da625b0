//! The configuration file: text in, an immutable [`Plan`] or every finding out.
//!
//! ```text
//! file > source (environment) > tree (TOML with places) > raw (each value) > compile (all together) > Plan
//! ```

mod acme;
mod compile;
mod diagnostic;
mod kind;
pub mod plan;
mod raw;
mod reference;
mod source;
mod stream;
mod tree;
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
    reference::{markdown, schema},
};
use self::{
    plan::{AdminListen, KeyPairFiles},
    source::Source,
    tree::Reader,
};

/// Where the file is looked for when nobody says.
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
        let message =
            format!("there is no configuration: neither {} nor $VESTIBULE_CONFIG", DEFAULT_PATHS.join(" nor "));
        let none = Diagnostic::error(0..0, message).help("`vestibule init SERVER_NAME` writes one, --config names one");
        Box::new(Report::unreadable("vestibule.toml".into(), none))
    })
}

/// Reads and judges a file. Touches nothing else: no network, no ports; of other files that it names, only whether they
/// can be read, and that is a warning.
///
/// # Errors
/// Everything that is wrong with it, in one report.
pub fn load(path: &Path) -> Result<(Plan, Report), Box<Report>> {
    let (name, text) = read(path)?;
    validate(&name, &text, folder(path), &|name| env::var(name).ok(), &readable, &|_, _| Vec::new())
}

/// Says what is wrong with the certificate in files that a site is served with. It is handed in: this module knows no
/// certificates.
pub type Inspect<'a> = dyn Fn(&[KeyPairFiles], &str) -> Vec<String> + 'a;

/// The same, with a look into the certificates that the file names.
///
/// # Errors
/// Everything that is wrong with it, in one report.
pub fn load_and_inspect(path: &Path, inspect: &Inspect<'_>) -> Result<(Plan, Report), Box<Report>> {
    let (name, text) = read(path)?;
    validate(&name, &text, folder(path), &|name| env::var(name).ok(), &readable, inspect)
}

/// Where the running edge is asked, as far as the file says it: whatever else is wrong with the file, the edge that read
/// a better one may still run, and can be asked.
///
/// # Errors
/// The file cannot be read.
pub fn admin_listen(path: &Path) -> Result<Option<AdminListen>, Box<Report>> {
    let (name, text) = read(path)?;
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

fn read(path: &Path) -> Result<(String, String), Box<Report>> {
    let name = path.display().to_string();
    let problem = match fs::read(path).map(String::from_utf8) {
        Ok(Ok(text)) => return Ok((name, text)),
        Ok(Err(_)) => "the file is not UTF-8".to_owned(),
        Err(error) => format!("the file cannot be read: {error}"),
    };
    Err(Box::new(Report::unreadable(name, Diagnostic::error(0..0, problem))))
}

fn folder(path: &Path) -> PathBuf {
    path.parent().map(Path::to_owned).unwrap_or_default()
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
    validate(name, text, dir, env, &|_| Ok(()), &|_, _| Vec::new())
}

fn validate(
    name: &str,
    text: &str,
    dir: PathBuf,
    env: &dyn Fn(&str) -> Option<String>,
    look: &dyn Fn(&Path) -> io::Result<()>,
    inspect: &Inspect<'_>,
) -> Result<(Plan, Report), Box<Report>> {
    let mut found = Vec::new();
    let source = Source::new(name, text, dir, env, &mut found);
    let (document, errors) = toml::de::DeTable::parse_recoverable(&source.expanded);
    let reader = Reader::new(&source);
    for error in &errors {
        reader.error(error.span().unwrap_or(0..0), error.message());
    }
    let raw = raw::read(&reader, document.get_ref(), document.span());
    for file in raw.files() {
        if let Err(error) = look(file.value) {
            let help = "it has to be there, and readable, where the edge runs";
            reader.warn(file.span.clone(), format!("`{}` cannot be read: {error}", file.value.display()), help);
        }
    }
    for (pairs, host, span) in raw.served_files() {
        // What cannot be read has been told.
        if pairs.iter().all(|pair| look(&pair.cert).is_ok() && look(&pair.key).is_ok()) {
            for fault in inspect(pairs, host) {
                reader.warn(span.clone(), fault, format!("it would be served for {host}"));
            }
        }
    }
    // After a syntax error nobody knows what is missing and what was only misread; a key that is there twice is no such.
    let is_readable = errors.iter().all(|error| error.message() == "duplicate key");
    let plan = is_readable.then(|| compile::compile(raw, &reader));
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
