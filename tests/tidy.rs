//! The house rules that a program can enforce (the map is at the top of `src/lib.rs`):
//!
//! 1. A module imports only from rows below its own in the map, and never from its own row.
//! 2. Each of the big crates is named only in the places listed here.
//! 3. Every file opens with `//!`; no function is longer than 80 lines; `#[expect]` and never `#[allow]`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so and stops")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

const MODULES: [&str; 10] =
    ["listen", "tls", "serve", "stream", "route", "layer", "upstream", "cert", "admin", "doctor"];

/// Clients, used by the modules beside the request path.
const CLIENTS: [&str; 1] = ["client"];

/// In order: each may use those before it.
const SHARED: [&[&str]; 7] =
    [&["clock", "error"], &["message"], &["conn"], &["drain"], &["wire"], &["config"], &["telemetry"]];

/// Crates, and the beginnings of the paths that may name them.
const CRATES: &[(&str, &[&str])] = &[
    ("rustls", &["tls/", "cert/", "client/", "upstream/connect.rs"]),
    ("tokio_rustls", &["tls/", "client/", "upstream/connect.rs"]),
    ("hyper", &["client/", "admin/", "cli/demo/"]),
    ("hyper_util", &["client/", "admin/", "cli/demo/"]),
    ("tower_http", &["layer/files.rs"]),
    ("tower", &["client/", "admin/"]),
    ("instant_acme", &["cert/issue/"]),
    ("bcrypt", &["layer/basic_auth.rs"]),
    ("argon2", &["layer/basic_auth.rs"]),
    ("toml", &["config/"]),
    ("strsim", &["config/diagnostic.rs"]),
    ("clap", &["cli/"]),
    ("clap_complete", &["cli/"]),
    ("tracing_subscriber", &["telemetry/"]),
    ("prometheus_client", &["telemetry/"]),
    ("sd_notify", &["app/"]),
    ("listenfd", &["listen/"]),
    ("anyhow", &["cli/"]),
    ("rpassword", &["cli/"]),
    ("saphyr", &["doctor/files/"]),
    ("simple_dns", &["client/dns.rs"]),
    ("rustix", &["cert/dns/command.rs"]),
];

fn sources() -> BTreeMap<String, String> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &mut found);
    let name = |path: &Path| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
    found.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

fn module(file: &str) -> &str {
    file.split('/').next().unwrap().trim_end_matches(".rs")
}

/// Code without its tests and comments: a test may use what it likes.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]").next().unwrap();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The modules of this crate that a text names after `crate::`, grouped imports included.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.push(word(rest));
            continue;
        };
        let mut depth = 1;
        let mut start = true;
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => start = true,
                c if start && depth == 1 && !c.is_whitespace() => {
                    found.push(word(&group[at..]));
                    start = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    found
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn rank(module: &str) -> Option<usize> {
    if let Some(step) = SHARED.iter().position(|step| step.contains(&module)) {
        return Some(step);
    }
    match module {
        client if CLIENTS.contains(&client) => Some(SHARED.len()),
        module if MODULES.contains(&module) => Some(SHARED.len() + 1),
        "app" => Some(SHARED.len() + 2),
        "cli" => Some(SHARED.len() + 3),
        _ => None,
    }
}

fn may_import(from: &str, to: &str) -> bool {
    match (rank(from), rank(to)) {
        _ if from == to => true,
        (Some(from_rank), Some(to_rank)) => to_rank < from_rank,
        _ => false,
    }
}

fn names_crate(code: &str, name: &str) -> bool {
    code.match_indices(&format!("{name}::"))
        .any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'))
}

/// Functions longer than `limit` lines, by the indentation that rustfmt gives them.
fn long_functions(text: &str, limit: usize) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let words = ["pub ", "pub(super) ", "pub(crate) ", "const ", "async ", "unsafe "];
        let bare = words.iter().fold(code, |code, word| code.strip_prefix(word).unwrap_or(code));
        // A method that a trait only asks for, and a body on one line, have no end to look for.
        let first = lines[at..].iter().find(|line| line.ends_with(['{', '}', ';']));
        if !bare.starts_with("fn ") || first.is_some_and(|line| line.ends_with([';', '}'])) {
            continue;
        }
        let end = format!("{}}}", &line[..line.len() - code.len()]);
        let len = lines[at..].iter().position(|line| *line == end).map_or(0, |len| len + 1);
        if len > limit {
            found.push(format!("{} ({len} lines)", word(&bare[3..])));
        }
    }
    found
}

#[test]
fn rooms_do_not_know_each_other() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        if file == "main.rs" || file == "lib.rs" {
            continue;
        }
        for to in imports(&code(&text)) {
            if !may_import(module(&file), &to) {
                wrong.push(format!("{file} imports {to}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_crate_has_its_door() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let code = code(&text);
        for (name, places) in CRATES {
            if names_crate(&code, name) && !places.iter().any(|place| file.starts_with(place)) {
                wrong.push(format!("{file} names {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_file_is_introduced_and_every_function_fits_a_screen() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        if !text.starts_with("//! ") {
            wrong.push(format!("{file} does not open with //!"));
        }
        if text.contains(concat!("#[", "allow(")) {
            wrong.push(format!("{file} allows a lint; expect it"));
        }
        wrong.extend(long_functions(&text, 80).into_iter().map(|function| format!("{file}: {function}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Names that the field has a better word for: no item is called so.
const RETIRED: [&str; 78] = [
    "Exam",
    "Onlookers",
    "Question",
    "Answer",
    "Patience",
    "Ask",
    "Visit",
    "Straight",
    "Back",
    "Ground",
    "Standing",
    "Reach",
    "Lens",
    "Sheet",
    "Judge",
    "Look",
    "Via",
    "Front",
    "Takeover",
    "Witness",
    "Shown",
    "Closed",
    "Distrust",
    "Shelf",
    "Link",
    "Keeper",
    "Facts",
    "Foreign",
    "Knows",
    "Said",
    "Door",
    "Gone",
    "Over",
    "Leaving",
    "Verdict",
    "Turns",
    "Counted",
    "Watched",
    "Bounded",
    "Spread",
    "Spent",
    "Piece",
    "Remembering",
    "Unwell",
    "Cut",
    "Lines",
    "Known",
    "Seen",
    "Asked",
    "Arrived",
    "Offered",
    "Gathered",
    "Model",
    "What",
    "Order",
    "Step",
    "say",
    "remark",
    "tell",
    "put",
    "judge",
    "vouch",
    "shake",
    "survey",
    "lead",
    "obey",
    "room",
    "rooms",
    "floor",
    "floors",
    "door",
    "doors",
    "road",
    "Room",
    "Floor",
    "Road",
    "mend",
    "Mend",
];

/// Items that keep a retired name, because it is the term of the field there.
const KEPT: [(&str, &str); 3] = [
    // The JSON of `doctor` has a member of this name.
    ("doctor/finding.rs", "Verdict"),
    // PUT, the method of HTTP.
    ("cert/dns/hosted.rs", "put"),
    // Free space in a window.
    ("wire/h2/connection/send.rs", "room"),
];

/// The names of the items that a line declares.
fn declared(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words.iter().position(|word| ["struct", "enum", "trait", "type", "fn", "mod", "union"].contains(word))?;
    let is_declaration = words[..at]
        .iter()
        .all(|word| word.starts_with("pub") || word.ends_with(')') || ["async", "const", "unsafe"].contains(word));
    let name = words.get(at + 1).filter(|_| is_declaration)?;
    Some(name.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or(name))
}

#[test]
fn no_item_has_a_retired_name() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let names = text.lines().filter_map(declared).filter(|name| RETIRED.contains(name));
        wrong
            .extend(names.filter(|name| !KEPT.contains(&(file.as_str(), *name))).map(|name| format!("{file}: {name}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_module_is_in_the_map() {
    for file in sources().keys().filter(|file| !["main.rs", "lib.rs"].contains(&file.as_str())) {
        assert!(rank(module(file)).is_some(), "{file} is in no row of the map");
    }
}

#[test]
fn the_rules_can_be_broken() {
    assert_eq!(declared("    pub(super) async fn put<T>(self)"), Some("put"));
    assert_eq!(declared("pub struct Seen {"), Some("Seen"));
    assert_eq!(declared("let x = fn_of(struct_like);"), None);
    assert_eq!(
        imports("use crate::{\n message::{Body, Request},\n tls::X,\n};\ncrate::serve::y()"),
        ["message", "tls", "serve"]
    );
    assert!(!may_import("serve", "tls") && !may_import("layer", "app") && !may_import("wire", "config"));
    assert!(may_import("doctor", "client") && !may_import("client", "upstream"));
    assert!(may_import("serve", "wire") && may_import("app", "tls") && may_import("telemetry", "config"));
    assert!(names_crate("use rustls::X;", "rustls") && !names_crate("tokio_rustls::X", "rustls"));
    let long = format!("impl X {{\n    pub async fn f() {{\n{}    }}\n}}\n", "        x();\n".repeat(80));
    assert_eq!(long_functions(&long, 80), ["f (82 lines)"]);
}
