//! Golden tests of `import-caddy`: `caddyfile/NAME.caddyfile` with the TOML it makes and the remarks it earns beside it.
//! `BLESS=1` writes what is there now; read the difference before you commit it.

use std::{fs, path::Path};

use proptest::prelude::*;
use vestibule::{cli::import_caddy::import, config};

use crate::support::edge::program;

/// What files without defaults need.
fn environment(name: &str) -> Option<String> {
    let known = [("EMAIL", "admin@example.org"), ("BACKEND", "app")];
    known.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
}

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/caddyfile")
}

#[test]
fn every_caddyfile_makes_the_file_and_the_remarks_beside_it() {
    let mut files: Vec<_> = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "caddyfile"));
    files.sort();
    assert!(files.len() >= 10, "the golden files are gone");
    let mut wrong = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let (toml, remarks) = match import("Caddyfile", &text) {
            Ok(imported) => (imported.toml.clone(), imported.words("Caddyfile")),
            Err(error) => (String::new(), format!("Caddyfile:{}: {}\n", error.line, error.message)),
        };
        if !toml.is_empty()
            && let Err(report) = config::parse("imported", &toml, "/etc/vestibule".into(), &environment)
        {
            wrong.push(format!("{} makes what `check` refuses:\n{toml}\n{}", file.display(), report.render()));
        }
        for (extension, outcome) in [("toml", toml), ("remarks", remarks)] {
            let golden = file.with_extension(extension);
            if std::env::var_os("BLESS").is_some() {
                fs::write(&golden, &outcome).unwrap();
            } else if fs::read_to_string(&golden).ok().as_deref() != Some(&outcome) {
                wrong.push(format!("{}:\n{outcome}", golden.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn conditions_that_double_with_each_other_come_to_an_end() {
    let route = |n| format!("\t@m{n} header X-{n} y\n\troute @m{n} {{\n\t\theader Y-{n} z\n\t}}\n");
    let routes: String = (0..60).map(route).collect();
    let imported = import("c", &format!("a.example.org {{\n{routes}\treverse_proxy a:80\n}}\n")).unwrap();
    assert!(imported.words("c").contains("the site has too many cases"), "{}", imported.words("c"));
}

#[test]
fn the_command_prints_both_and_its_code_says_what_was_lost() {
    let command = |name: &str| program(&["import-caddy", folder().join(name).to_str().unwrap()]);
    let guide = command("guide.caddyfile");
    assert_eq!(guide.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&guide.stdout).contains("kind     = \"synapse\""));
    let said = String::from_utf8_lossy(&guide.stderr).into_owned();
    assert!(
        said.contains("guide.caddyfile:5: corrected: the JSON of /.well-known/matrix/client lacks its last `}`"),
        "{said}"
    );
    assert_eq!(command("lost.caddyfile").status.code(), Some(1));
    let broken = command("open_block.caddyfile");
    assert_eq!((broken.status.code(), broken.stdout.as_slice()), (Some(1), &b""[..]));
    assert!(String::from_utf8_lossy(&broken.stderr).contains("a `}` is missing"));
    assert_eq!(program(&["import-caddy"]).status.code(), Some(2));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("Caddyfile");
    for (text, words) in [
        ("# nothing\n", "Caddyfile:1: not converted: the file has no site\n"),
        ("{\n  \"apps\": {}\n}\n", "Caddyfile:1: this is Caddy's JSON format; only Caddyfiles are supported\n"),
    ] {
        fs::write(&path, text).unwrap();
        let output = program(&["import-caddy", path.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), said.ends_with(words)), (Some(1), true), "{said}");
    }
}

#[test]
fn other_files_are_read_where_they_are_imported() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("Caddyfile", "import snippets.conf\nimport sites/*.caddy\nimport none/*.caddy\n");
    write("snippets.conf", "(to) {\n\treverse_proxy {args[0]}:80\n}\n");
    write("sites/b.caddy", "b.example.org {\n\timport to b\n\timport ../common/fields.conf nosniff\n}\n");
    write("sites/a.caddy", "a.example.org {\n\timport to a\n\tfantasy\n}\n");
    write("sites/.hidden.caddy", "hidden.example.org {\n}\n");
    write("sites/readme.txt", "{{{");
    write("common/fields.conf", "header X-Content-Type-Options {args[0]}\n");
    let command = || program(&["import-caddy", folder.path().join("Caddyfile").to_str().unwrap()]);
    let output = command();
    let (toml, said) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    let a = toml.find("[sites.\"a.example.org\"]\nupstream = \"http://a:80\"\n").unwrap();
    assert!(toml[a..].contains("[sites.\"b.example.org\"]\nupstream = \"http://b:80\"\nresponse_fields = "), "{toml}");
    assert!(!toml.contains("hidden"), "{toml}");
    assert!(said.contains("Caddyfile:3: note: `import none/*.caddy`: no file fits"), "{said}");
    assert!(said.contains("sites/a.caddy:3: not converted: `fantasy`"), "{said}");
    // A file that is not there, and one that imports itself.
    write("Caddyfile", "a.example.org {\n\treverse_proxy a:80\n\timport ./none.conf\n\timport ./self.conf\n}\n");
    write("self.conf", "import ./self.conf\n");
    let said = String::from_utf8(command().stderr).unwrap();
    assert!(said.contains("Caddyfile:3: not converted: `import ./none.conf`") && said.contains("too many"), "{said}");
    write("self.conf", "handle {\n");
    let said = String::from_utf8(command().stderr).unwrap();
    assert!(said.contains("Caddyfile:1: the block that begins here is not closed"), "{said}");
}

/// Pieces of Caddyfiles, so that random text gets past the first line.
const PIECES: [&str; 48] = [
    "a.example.org",
    "matrix.example.org",
    "{",
    "}",
    "\n",
    "\n",
    "\t",
    " ",
    " ",
    "(s)",
    "import s",
    "import s x /y",
    "{args[0]}",
    "{args[:]}",
    "{block}",
    "@m",
    "path /a/*",
    "path_regexp x",
    "method OPTIONS",
    "handle",
    "handle_path /a/*",
    "route",
    "reverse_proxy",
    "synapse:8008",
    "lk-jwt:8080",
    "livekit:7880",
    "/.well-known/matrix/client",
    "respond",
    "`{\"m.homeserver\":{`",
    "\"",
    "`",
    "<<E\n",
    "E",
    "404",
    "redir",
    "https://b.example.org{uri}",
    "header",
    "X-A",
    "tls",
    "internal",
    "{$A:b}",
    "{$",
    "\\\n",
    "http://",
    ":80",
    "*",
    "#",
    "é",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_read_or_refused(text in "(?s).{0,200}") {
        let _ = import("Caddyfile", &text);
    }

    #[test]
    fn any_pieces_are_read_or_refused(pieces in proptest::collection::vec(proptest::sample::select(&PIECES[..]), 0..120)) {
        let text: String = pieces.iter().flat_map(|piece| [piece, " "]).collect();
        if let Ok(imported) = import("Caddyfile", &text) {
            // Whatever came out can be read as TOML; what it says may still need a person.
            let read = imported.toml.parse::<toml::Table>();
            prop_assert!(read.is_ok(), "{text}\n{}\n{read:?}", imported.toml);
        }
    }
}
