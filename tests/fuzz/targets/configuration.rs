//! The configuration: any text is a plan or a report that can be shown, twice the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vestibule::config;

fuzz_target!(|text: &str| {
    let judge = || config::parse("vestibule.toml", text, "/etc".into(), &|name| (name == "SET").then(|| "x".into()));
    match (judge(), judge()) {
        (Ok((plan, report)), Ok((again, _))) => {
            assert_eq!(plan, again);
            assert!(!report.has_errors());
        }
        (Err(report), Err(_)) => {
            assert!(report.has_errors());
            assert!(!report.render().is_empty());
        }
        _ => panic!("two verdicts on one text"),
    }
});
