//! `vestibule import-caddy`: a Caddyfile as our TOML, with everything that was wrong in it and everything that was lost.
//!
//! ```text
//! text > lexer (words) > imports (of snippets and files) > parser (sites) > rules (Caddy's order and matchers) > sites (our routes) > settle > emit > selfcheck
//! ```
//!
//! All of it but the command itself is a pure function of the text.

mod conditions;
mod data;
mod emit;
mod fields;
mod imports;
mod kinds;
mod lexer;
mod logs;
mod model;
mod options;
mod order;
mod parser;
mod patterns;
mod protect;
mod proxy;
mod rules;
mod selfcheck;
mod settle;
mod sites;
mod terminal;
mod transport;
mod well_known;
mod write_routes;

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;

use self::{imports::LINES_PER_FILE, model::TargetConfig};
use super::{FAILED, Outcome, print, warn};
use crate::{cert, clock::Clock, config};

/// What `import-caddy` may be told.
#[derive(clap::Args)]
pub struct Args {
    /// The Caddyfile
    caddyfile: PathBuf,
    /// Import certificates and the ACME account from this directory, Caddy's /data, so that no certificate is reissued.
    /// Run it as the user that runs vestibule, so that it can read the files
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where vestibule keeps its certificates [default: /var/lib/vestibule]
    #[arg(long, value_name = "DIR")]
    storage: Option<PathBuf>,
}

/// Prints the TOML, and beside it what there is to say about it. 1 if something was lost that changes what is served.
///
/// # Errors
/// The file cannot be read, or is no Caddyfile.
pub(super) fn run(args: &Args) -> Outcome {
    let name = args.caddyfile.display().to_string();
    let text = fs::read_to_string(&args.caddyfile).with_context(|| format!("cannot read {name}"))?;
    let storage = args.storage.as_ref().map(|path| path.display().to_string());
    let imported = import_into(&name, &text, storage.as_deref(), &find_files);
    let imported = imported.map_err(|(name, error)| anyhow::anyhow!("{name}:{}: {}", error.line, error.message))?;
    if let Some(dir) = &args.data {
        // Before anything is printed: who pipes the output into a file wants the whole of it or nothing.
        let (plan, _) =
            config::parse("the converted file", &imported.toml, PathBuf::new(), &|name| env::var(name).ok())?;
        let store = cert::Store::new(plan.storage.clone());
        for line in data::import(dir, &plan, &store, &Clock::system())? {
            warn(format_args!("{line}\n"));
        }
    }
    print(&imported.toml)?;
    warn(imported.words(&name));
    Ok(if imported.is_complete() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// A text that is no Caddyfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntaxError {
    /// Where, from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

impl SyntaxError {
    fn new(line: usize, message: impl Into<String>) -> Self {
        Self { line, message: message.into() }
    }
}

/// What came of a Caddyfile.
#[derive(Debug)]
pub struct Imported {
    /// Our file.
    pub toml: String,
    /// What there is to say, by lines.
    pub remarks: Vec<Remark>,
    /// The file itself and those that it imports; the lines of each follow those of the one before.
    names: Vec<String>,
}

impl Imported {
    /// Whether nothing was lost that changes what is served.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        !self.remarks.iter().any(|remark| remark.what == RemarkKind::Lost)
    }

    /// The remarks, one a line.
    #[must_use]
    pub fn words(&self, name: &str) -> String {
        let of_file = |remark: &Remark| {
            let (file, line) = (remark.line / LINES_PER_FILE, remark.line % LINES_PER_FILE);
            let name = if file == 0 { name } else { self.names.get(file).map_or(name, String::as_str) };
            format!("{name}:{}\n", Remark { line, ..remark.clone() })
        };
        self.remarks.iter().map(of_file).collect()
    }
}

/// Something to say about a line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Remark {
    /// The line, from 1.
    pub line: usize,
    /// What sort of thing.
    pub what: RemarkKind,
    /// In words.
    pub text: String,
}

/// What a remark is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RemarkKind {
    /// It could not be carried over, and something that was served is not, or otherwise.
    Lost,
    /// It was wrong in the original, and is right now.
    Mended,
    /// It is as it was for those who ask, though not in every detail.
    Note,
}

impl Remark {
    fn lost(line: usize, text: impl Into<String>) -> Self {
        Self { line, what: RemarkKind::Lost, text: text.into() }
    }

    fn mended(line: usize, text: impl Into<String>) -> Self {
        Self { line, what: RemarkKind::Mended, text: text.into() }
    }

    fn note(line: usize, text: impl Into<String>) -> Self {
        Self { line, what: RemarkKind::Note, text: text.into() }
    }
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.what {
            RemarkKind::Lost => "not converted",
            RemarkKind::Mended => "corrected",
            RemarkKind::Note => "note",
        };
        // Variables of the environment, as the file had them.
        let text = self.text.replace(lexer::ENV, "{$").replace(lexer::ENV_DEFAULT, ":").replace(lexer::ENV_END, "}");
        let text = text.replace(lexer::SEGMENT, "*");
        write!(f, "{}: {what}: {text}", self.line)
    }
}

/// Translates a Caddyfile. Never panics, whatever the text is.
///
/// # Errors
/// The text is no Caddyfile.
pub fn import(name: &str, text: &str) -> Result<Imported, SyntaxError> {
    let find = |_: &str, _: &str| Err("other files are not read; insert their text here".to_owned());
    import_into(name, text, None, &find).map_err(|(_, error)| error)
}

/// What a pattern of an `import` means, relative to the folder of the file that it stands in. As in Caddy, it has one star
/// at most, which does not fit hidden files.
fn find_files(importing: &str, pattern: &str) -> Result<Vec<(String, String)>, String> {
    let whole = Path::new(importing).parent().unwrap_or_else(|| Path::new("")).join(pattern);
    let read = |path: &Path| {
        let text = fs::read_to_string(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
        Ok((path.display().to_string(), text))
    };
    if !pattern.contains('*') {
        return Ok(vec![read(&whole)?]);
    }
    if pattern.contains(['?', '[']) || pattern.matches('*').count() > 1 {
        return Err("a pattern with more than one wildcard".to_owned());
    }
    let mut found = vec![PathBuf::new()];
    for part in whole.components() {
        let part = part.as_os_str();
        let name = part.to_string_lossy();
        if !name.contains('*') {
            found.iter_mut().for_each(|path| path.push(part));
            continue;
        }
        let fits = |entry: &str| patterns::fits(entry, &name) && (!entry.starts_with('.') || name.starts_with('.'));
        let folders = found.iter().map(|path| if path.as_os_str().is_empty() { Path::new(".") } else { path });
        let entries = folders.filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
        found =
            entries.filter(|entry| entry.file_name().to_str().is_some_and(fits)).map(|entry| entry.path()).collect();
        found.sort();
    }
    found.iter().filter(|path| path.is_file()).map(|path| read(path)).collect()
}

/// `{}` is the beginning of a Caddyfile as well.
fn is_json(text: &str) -> bool {
    let value = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text);
    value.is_ok_and(|members| !members.is_empty())
}

/// The same, with the name of the file that is wrong.
fn import_into(
    name: &str,
    text: &str,
    storage: Option<&str>,
    find: imports::Find<'_>,
) -> Result<Imported, (String, SyntaxError)> {
    if is_json(text) {
        let error = SyntaxError::new(1, "this is Caddy's JSON format; only Caddyfiles are supported");
        return Err((name.to_owned(), error));
    }
    let mut names = vec![name.to_owned()];
    let mut found = Vec::new();
    let file = imports::expanded(text, &mut names, find, &mut found).and_then(|words| parser::parse(&words));
    let mut file = file.map_err(|error| {
        let name = names.get(error.line / LINES_PER_FILE).map_or(name, String::as_str);
        (name.to_owned(), SyntaxError { line: error.line % LINES_PER_FILE, ..error })
    })?;
    let mut model = TargetConfig::default();
    if let Some(storage) = storage {
        model.set("storage", "path", emit::quote(storage));
    }
    let mut remarks = std::mem::take(&mut file.remarks);
    remarks.append(&mut found);
    let ports = options::read(&file.options, &mut model, &mut remarks);
    for site in &file.sites {
        sites::site(site, ports, &mut model, &mut remarks);
    }
    kinds::of_documents(&mut model, &mut remarks);
    if file.sites.is_empty() && remarks.is_empty() {
        remarks.push(Remark::lost(1, "the file has no site"));
    }
    let matrix = settle::settle(&mut model, ports, &mut remarks);
    let toml = emit::write(name, &model, &matrix);
    selfcheck::check(&file, &toml, ports, &mut remarks);
    remarks.sort();
    remarks.dedup();
    Ok(Imported { toml, remarks, names })
}
