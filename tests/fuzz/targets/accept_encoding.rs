//! `Accept-Encoding`: never a panic, and one line says what several say.
#![no_main]

use http::header::ACCEPT_ENCODING;
use libfuzzer_sys::fuzz_target;
use vestibule::{
    config::plan::Encoding,
    layer::compress::negotiate,
    message::{Fields, Value},
};

const OURS: [Encoding; 3] = [Encoding::Zstd, Encoding::Brotli, Encoding::Gzip];

fuzz_target!(|bytes: &[u8]| {
    let Ok(line) = Value::new(bytes) else { return };
    let mut one = Fields::new();
    one.append(ACCEPT_ENCODING, line);
    let chosen = negotiate(&one, &OURS);
    let mut several = Fields::new();
    for item in bytes.split(|b| *b == b',') {
        several.append(ACCEPT_ENCODING, Value::new(item).expect("a part of a valid value"));
    }
    // A comma between quotation marks separates nothing.
    if !bytes.contains(&b'"') {
        assert_eq!(negotiate(&several, &OURS), chosen);
    }
    assert_eq!(negotiate(&one, &[]), None);
    if let Some(chosen) = chosen {
        assert_eq!(negotiate(&one, &[chosen]), Some(chosen), "it wins against nobody as well");
        let text = bytes.to_ascii_lowercase();
        let named = text.windows(chosen.as_str().len()).any(|window| window == chosen.as_str().as_bytes());
        assert!(named || text.contains(&b'*'), "nobody asked for {chosen:?}");
    }
});
