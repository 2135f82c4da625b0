//! `Accept-Encoding`: never a panic, and one line says what several say.
#![no_main]

use http::{HeaderMap, HeaderValue, header::ACCEPT_ENCODING};
use libfuzzer_sys::fuzz_target;
use vestibule::{config::plan::Encoding, layer::compress::negotiate};

const OURS: [Encoding; 3] = [Encoding::Zstd, Encoding::Brotli, Encoding::Gzip];

fuzz_target!(|bytes: &[u8]| {
    let Ok(line) = HeaderValue::from_bytes(bytes) else { return };
    let mut one = HeaderMap::new();
    one.append(ACCEPT_ENCODING, line);
    let chosen = negotiate(&one, &OURS);
    let mut several = HeaderMap::new();
    for item in bytes.split(|b| *b == b',') {
        several.append(ACCEPT_ENCODING, HeaderValue::from_bytes(item).expect("a part of a valid value"));
    }
    assert_eq!(negotiate(&several, &OURS), chosen);
    assert_eq!(negotiate(&one, &[]), None);
    if let Some(chosen) = chosen {
        assert_eq!(negotiate(&one, &[chosen]), Some(chosen), "it wins against nobody as well");
        let text = bytes.to_ascii_lowercase();
        let named = text.windows(chosen.as_str().len()).any(|window| window == chosen.as_str().as_bytes());
        assert!(named || text.contains(&b'*'), "nobody asked for {chosen:?}");
    }
});
