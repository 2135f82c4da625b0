//! Golden tests of the configuration. Beside `config/NAME.toml` stands what it makes: its plan (`NAME.plan`), the report of
//! an invalid file (`NAME.err`), or, for a file named `warn_…`, what `vestibule check` prints (`NAME.out`). `BLESS=1`
//! writes what is there now; read the difference before you commit it.

use std::{fs, path::Path, process::Command};

use vestibule::config;

const ENVIRONMENT: [(&str, &str); 3] = [("DOMAIN", "example.org"), ("NETWORK", "10.0.0.0/8"), ("EMPTY", "")];

fn environment(name: &str) -> Option<String> {
    ENVIRONMENT.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
}

/// The names of the golden files and their folder.
fn files() -> (std::path::PathBuf, Vec<String>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.ends_with(".toml")).collect();
    names.sort();
    assert!(names.len() > 30, "the golden files are gone");
    (folder, names)
}

fn compare(golden: &Path, outcome: &str, wrong: &mut Vec<String>) {
    if std::env::var_os("BLESS").is_some() {
        fs::write(golden, outcome).unwrap();
    } else if fs::read_to_string(golden).ok().as_deref() != Some(outcome) {
        wrong.push(format!("{}:\n{outcome}", golden.display()));
    }
}

#[test]
fn every_file_makes_the_plan_or_the_report_beside_it() {
    let (folder, names) = files();
    let mut wrong = Vec::new();
    for name in names.iter().filter(|name| !name.starts_with("warn_")) {
        let bytes = fs::read(folder.join(name)).unwrap();
        let (extension, outcome) = match config::parse(name, bytes, "/etc/vestibule".into(), &environment) {
            Ok((plan, report)) => ("plan", format!("{}{plan:#?}\n", report.render())),
            Err(report) => ("err", report.render()),
        };
        compare(&folder.join(name).with_extension(extension), &outcome, &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn check_prints_each_report_and_exits_as_it_should() {
    let (folder, names) = files();
    let mut wrong = Vec::new();
    for name in names {
        let mut check = Command::new(env!("CARGO_BIN_EXE_vestibule"));
        let output = check.args(["check", &name]).current_dir(&folder).envs(ENVIRONMENT).output().unwrap();
        let (said, complained) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        let golden = folder.join(&name).with_extension("err");
        let code = output.status.code();
        if name.starts_with("warn_") {
            compare(&folder.join(&name).with_extension("out"), &said, &mut wrong);
            assert!(said.contains(&format!("{name}: valid")), "{name}: {said}{complained}");
            assert_eq!((code, complained.as_str()), (Some(0), ""), "{name}");
        } else if std::env::var_os("BLESS").is_some() {
            // The other test is writing the files.
        } else if golden.exists() {
            assert_eq!(
                (code, said.as_str(), complained),
                (Some(78), "", fs::read_to_string(golden).unwrap()),
                "{name}"
            );
        } else {
            assert_eq!((code, complained.as_str()), (Some(0), ""), "{name}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
