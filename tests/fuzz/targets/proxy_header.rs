//! The PROXY protocol's header: never a panic, and the same verdict wherever the bytes are cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vestibule::listen::proxy_protocol::parse;

fuzz_target!(|bytes: &[u8]| {
    let Ok(Some((header, len))) = parse(bytes) else { return };
    assert!(len <= bytes.len() && len > 0, "a header is made of bytes that have arrived");
    for cut in 0..len {
        assert!(matches!(parse(&bytes[..cut]), Ok(None)) || cut == 0, "a part of a header is no header and no error");
    }
    let again = parse(&bytes[..len]).expect("what follows a header changes nothing").expect("all of it is there");
    assert_eq!(again, (header, len));
});
