//! A Caddyfile: any text is taken over or has a place where it is wrong, and what comes out can be judged.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vestibule::{cli::import_caddy::import, config};

fuzz_target!(|text: &str| {
    let Ok(imported) = import("Caddyfile", text) else { return };
    if let Err(report) = config::parse("vestibule.toml", &imported.toml, "/etc".into(), &|_| None) {
        assert!(!report.render().is_empty());
    }
});
