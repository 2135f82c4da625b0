//! The command line: exit codes, and words for people and programs.

use crate::support::edge::program;

fn check(text: &str, json: bool) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vestibule.toml");
    std::fs::write(&path, text).unwrap();
    let mut arguments = vec!["check", "--config", path.to_str().unwrap()];
    arguments.extend(json.then_some("--json"));
    let output = program(&arguments);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

const GOOD: &str = "[matrix]\nserver_name = \"example.org\"\n[sites.\"example.org\"]\n\
                    [sites.\"matrix.example.org\"]\nkind = \"synapse\"\nupstream = \"http://synapse:8008\"\n";

#[test]
fn check_says_the_plan_or_everything_that_is_wrong() {
    let (code, said, _) = check(GOOD, false);
    assert_eq!(code, Some(0));
    for words in ["homeserver   https://matrix.example.org", "federation   matrix.example.org:443", "\"m.server\""] {
        assert!(said.contains(words), "{said}");
    }
    let bad = GOOD.replace("upstream", "upstraem").replace("server_name", "servername");
    let (code, _, said) = check(&bad, false);
    assert_eq!(code, Some(78));
    for words in ["did you mean `upstream`?", "did you mean `server_name`?", "2 errors"] {
        assert!(said.contains(words), "{words} in {said}");
    }
}

#[test]
fn check_speaks_json() {
    let (code, said, _) = check(GOOD, true);
    let json: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &json["ok"]), (Some(0), &true.into()));
    let (code, said, _) = check("[listen]\nhtps = []\n", true);
    let json: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &json["ok"]), (Some(78), &false.into()));
    let first = &json["diagnostics"].as_array().unwrap().iter().find(|d| d["line"] == 2).unwrap();
    assert_eq!((&first["column"], &first["help"]), (&1.into(), &"did you mean `https`?".into()));
}

#[test]
fn exit_codes_are_those_of_the_contract() {
    assert_eq!(program(&["check", "--config", "/nonexistent.toml"]).status.code(), Some(78));
    assert_eq!(program(&["run", "--config", "/nonexistent.toml"]).status.code(), Some(78));
    assert_eq!(program(&["nonsense"]).status.code(), Some(2));
    assert_eq!(program(&["renew", "no host"]).status.code(), Some(2));
    assert_eq!(program(&["completions", "bash"]).status.code(), Some(0));
    let schema = program(&["schema"]);
    let schema: serde_json::Value = serde_json::from_slice(&schema.stdout).unwrap();
    assert_eq!(schema["properties"]["listen"]["properties"]["threads"]["anyOf"][0]["type"], "integer");
}

#[test]
fn a_reader_that_leaves_is_no_fault_and_a_full_disk_is_one() {
    let run = |arguments: &[&str], stdout: std::process::Stdio| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_vestibule"));
        let output = command.args(arguments).stdout(stdout).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let full = "error: the answer cannot be written: No space left on device (os error 28)\n";
    for arguments in [&["schema"][..], &["reference"], &["completions", "zsh"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(run(arguments, writer.into()), (Some(0), String::new()), "{arguments:?}");
        let disk = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        assert_eq!(run(arguments, disk.into()), (Some(1), full.to_owned()), "{arguments:?}");
    }
}

#[test]
fn the_root_is_printed_where_it_signs_and_made_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let (file, state) = (folder.path().join("vestibule.toml"), folder.path().join("state"));
    let ca = |kind: &str| {
        let tables = format!("[storage]\npath = {state:?}\n[tls]\ncertificates = \"{kind}\"\n");
        std::fs::write(&file, format!("{tables}{GOOD}")).unwrap();
        program(&["ca", "--config", file.to_str().unwrap()])
    };
    let refused = ca("acme");
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).starts_with("error: no site has its certificate from"));
    assert!(!state.exists());
    let (first, second) = (ca("internal"), ca("internal"));
    assert!(first.stdout.starts_with(b"-----BEGIN CERTIFICATE-----") && first.stdout == second.stdout);
}

#[test]
fn init_writes_once_what_check_accepts() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("new").to_str().unwrap().to_owned();
    let first = program(&["init", "example.org", "--dir", &dir]);
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let config = format!("{dir}/vestibule.toml");
    assert_eq!(program(&["check", "--config", &config]).status.code(), Some(0));
    let written = std::fs::read(format!("{dir}/.env")).unwrap();
    let second = program(&["init", "example.org", "--dir", &dir]);
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains(".env already exist in"));
    assert_eq!(std::fs::read(format!("{dir}/.env")).unwrap(), written);
    assert_eq!(program(&["init", "localhost", "--dir", &dir]).status.code(), Some(2));
}

#[test]
fn init_warns_of_a_server_name_that_is_a_host_name() {
    let folder = tempfile::tempdir().unwrap();
    let output = program(&["init", "matrix.example.org", "--dir", folder.path().to_str().unwrap()]);
    let warned = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && warned.contains("run `vestibule init example.org`"), "{warned}");
    assert!(folder.path().join("vestibule.toml").exists());
}

#[test]
fn an_address_that_cannot_be_had_is_told_with_its_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let (file, taken) = (folder.path().join("vestibule.toml"), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    for (http, admin) in [
        (taken.local_addr().unwrap().to_string(), "off".to_owned()),
        ("127.0.0.1:0".to_owned(), taken.local_addr().unwrap().to_string()),
    ] {
        let text = format!(
            "[listen]\nhttp = [\"{http}\"]\nhttps = []\n[storage]\npath = {:?}\n[admin]\nlisten = \"{admin}\"\n\
             [sites.\"a.example.org\"]\nupstream = \"http://a:1\"\ntls = \"off\"\n",
            folder.path()
        );
        std::fs::write(&file, text).unwrap();
        let output = program(&["run", "--config", file.to_str().unwrap()]);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{told}");
        let holder = format!("(process {}) listens there", std::process::id());
        assert!(told.contains("Address already in use") && told.contains(&holder), "{told}");
    }
}

#[test]
fn config_is_offered_where_it_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("my.toml");
    std::fs::write(&file, GOOD).unwrap();
    let file = file.to_str().unwrap();
    for arguments in [&["check", file][..], &["check", "--config", file], &["--config", file, "check"]] {
        assert_eq!(program(arguments).status.code(), Some(0), "{arguments:?}");
    }
    assert_eq!(program(&["check", file, "--config", file]).status.code(), Some(2));
    for (command, uses) in [
        ("run", true),
        ("check", true),
        ("doctor", true),
        ("ca", true),
        ("reload", true),
        ("renew", true),
        ("status", true),
        ("healthcheck", true),
        ("demo", false),
        ("init", false),
        ("import-caddy", false),
        ("schema", false),
        ("reference", false),
        ("man", false),
        ("completions", false),
    ] {
        let help = String::from_utf8(program(&[command, "--help"]).stdout).unwrap();
        assert_eq!(help.contains("--config"), uses, "{command}: {help}");
        assert!(help.contains("Examples:\n  "), "{command} has no example: {help}");
    }
    assert_eq!(program(&["--config", file, "schema"]).status.code(), Some(2));
}

#[test]
fn man_prints_a_page_of_the_program_and_of_each_command() {
    let page = |arguments: &[&str]| String::from_utf8(program(arguments).stdout).unwrap();
    assert!(page(&["man"]).contains(".TH vestibule 1"), "{}", page(&["man"]));
    assert!(page(&["man", "import-caddy"]).contains("vestibule import\\-caddy"), "{}", page(&["man", "import-caddy"]));
    assert_eq!(program(&["man", "nonsense"]).status.code(), Some(1));
}

#[test]
fn the_demo_passes_its_own_checks() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_vestibule"));
    let output = command.args(["demo", "--check"]).env("TMPDIR", folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.matches("  ok ").count() == 12, "{said}");
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 0, "the demo leaves keys behind");
}

#[test]
fn the_reference_page_is_what_the_program_prints() {
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config/reference.md");
    let head = "# Every key of `vestibule.toml`\n\nWritten by `vestibule reference`.\n\n";
    let printed = format!("{head}{}", String::from_utf8(program(&["reference"]).stdout).unwrap().trim_end()) + "\n";
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&page, &printed).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&page).unwrap(), printed, "config/reference.md (BLESS=1 rewrites it)");
}

#[test]
fn the_schema_in_the_source_is_what_the_program_prints() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config/vestibule.schema.json");
    let printed = String::from_utf8(program(&["schema"]).stdout).unwrap();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&file, &printed).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), printed, "config/vestibule.schema.json (BLESS=1 rewrites it)");
    let schema: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert!(schema["$id"].as_str().unwrap().starts_with(env!("CARGO_PKG_REPOSITORY")));
}

/// The pages for users, from the top of the source.
const PAGES: &[&str] = &[
    "README.md",
    "README.ar.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "config/appliance/README.md",
    "config/authelia.md",
    "config/calls.md",
    "config/element-web.md",
    "config/migrate.md",
    "config/operate.md",
    "config/reference.md",
    "config/second-application.md",
];

/// Pages whose examples are sites of one file.
const EXAMPLES: [&str; 3] = ["config/authelia.md", "config/element-web.md", "config/second-application.md"];

#[test]
fn the_examples_of_the_pages_are_valid() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for page in EXAMPLES {
        let text = std::fs::read_to_string(root.join(page)).unwrap();
        let blocks: Vec<_> = text.split("```toml\n").skip(1).filter_map(|block| block.split("```").next()).collect();
        assert!(!blocks.is_empty(), "{page} has an example");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vestibule.toml");
        std::fs::write(&file, blocks.concat()).unwrap();
        let checked = program(&["check", file.to_str().unwrap()]);
        assert_eq!(checked.status.code(), Some(0), "{page}: {}", String::from_utf8_lossy(&checked.stderr));
    }
}

#[test]
fn the_pages_name_the_repository_of_the_manifest() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for page in [
        "README.md",
        "SECURITY.md",
        "config/migrate.md",
        "config/appliance/README.md",
        ".github/ISSUE_TEMPLATE/config.yml",
    ] {
        let text = std::fs::read_to_string(root.join(page)).unwrap();
        assert!(text.contains(env!("CARGO_PKG_REPOSITORY")), "{page} names another repository than Cargo.toml");
    }
}

#[test]
fn the_pages_name_only_commands_and_files_that_there_are() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut commands = std::collections::BTreeSet::new();
    for page in PAGES {
        let text = std::fs::read_to_string(root.join(page)).unwrap();
        for after in text.split("`vestibule ").skip(1).chain(text.split("/vestibule ").skip(1)) {
            let word: String = after.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
            commands.insert(word);
        }
        for target in text.split("](").skip(1).map(|after| after.split([')', '#']).next().unwrap()) {
            let there = target.is_empty() || target.starts_with("https://") || {
                let folder = root.join(page);
                folder.parent().unwrap().join(target).exists()
            };
            assert!(there, "{page} leads to {target}, which is not there");
        }
    }
    commands.remove("");
    assert!(commands.len() > 5, "{commands:?}");
    for command in commands {
        assert_eq!(program(&[&command, "--help"]).status.code(), Some(0), "`vestibule {command}` stands in a page");
    }
}

/// The tables whose keys the pages name as `table.key`.
const TABLES: [&str; 10] =
    ["listen", "acme", "storage", "tls", "matrix", "compression", "limits", "timeouts", "log", "admin"];

#[test]
fn the_pages_name_only_keys_and_options_that_there_are() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let printed = |arguments: &[&str]| String::from_utf8(program(arguments).stdout).unwrap();
    let reference = printed(&["reference"]);
    let commands = ["run", "check", "init", "doctor", "demo", "import-caddy", "dashboard"];
    let help: String = commands.map(|command| printed(&[command, "--help"])).concat();
    let is_key = |text: &str| text.chars().all(|c| c.is_ascii_lowercase() || "_.".contains(c));
    let mut seen = 0;
    for page in PAGES.iter().filter(|page| **page != "config/reference.md") {
        let text = std::fs::read_to_string(root.join(page)).unwrap();
        for token in text.split('`').skip(1).step_by(2).filter_map(|code| code.split([' ', '=']).next()) {
            if token.starts_with("--") {
                assert!(help.contains(token), "`{token}` stands in {page}");
                seen += 1;
            }
            let Some((table, key)) = token.split_once('.').filter(|(table, _)| TABLES.contains(table)) else {
                continue;
            };
            if is_key(key) && !key.starts_with("example") && !["toml", "yaml", "md"].contains(&key) {
                let last = key.rsplit('.').next().unwrap();
                assert!(reference.contains(&format!("| `{last}` |")), "`{table}.{key}` stands in {page}");
                seen += 1;
            }
        }
    }
    assert!(seen > 20, "{seen}");
}

#[test]
fn the_arabic_page_has_the_commands_of_the_english_ones() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let commands = |page: &str| -> Vec<String> {
        let text = std::fs::read_to_string(root.join(page)).unwrap();
        let fences = text.split("```sh\n").skip(1).map(|after| after.split("```").next().unwrap().to_owned());
        fences.flat_map(|fence| fence.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>()).collect()
    };
    let english = ["README.md", "config/migrate.md", "config/appliance/README.md"].map(commands).concat();
    let arabic = commands("README.ar.md");
    assert!(arabic.len() > 10, "{arabic:?}");
    for command in arabic {
        assert!(english.contains(&command), "`{command}` stands in README.ar.md alone");
    }
}
