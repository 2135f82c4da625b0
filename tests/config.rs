//! Golden tests of the configuration: `config/NAME.toml` with the plan it makes (`NAME.plan`) or the report it earns
//! (`NAME.err`) beside it. `BLESS=1` writes what is there now; read the difference before you commit it.

use std::{fs, path::Path};

use vestibule::config;

fn environment(name: &str) -> Option<String> {
    match name {
        "DOMAIN" => Some("example.org".to_owned()),
        "NETWORK" => Some("10.0.0.0/8".to_owned()),
        _ => None,
    }
}

#[test]
fn every_file_makes_the_plan_or_the_report_beside_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    assert!(files.len() > 10, "the golden files are gone");
    let mut wrong = Vec::new();
    for file in files {
        let name = file.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&file).unwrap();
        let (extension, outcome) = match config::parse(name, &text, "/etc/vestibule".into(), &environment) {
            Ok((plan, report)) => ("plan", format!("{}{plan:#?}\n", report.render())),
            Err(report) => ("err", report.render()),
        };
        let golden = file.with_extension(extension);
        if std::env::var_os("BLESS").is_some() {
            fs::write(&golden, &outcome).unwrap();
        } else if fs::read_to_string(&golden).ok().as_deref() != Some(&outcome) {
            wrong.push(format!("{}:\n{outcome}", golden.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
