//! The head of an upstream's answer: never a panic, one framing, and no field that could end a line of ours.
#![no_main]

use bytes::Bytes;
use http::{Method, header};
use libfuzzer_sys::fuzz_target;
use vestibule::wire::{Framing, HeadLimits, head_len, parse_response, response_head};

const LIMITS: HeadLimits = HeadLimits { bytes: 64 * 1024, fields: 256, target: 0 };

fuzz_target!(|bytes: &[u8]| {
    let Ok(Some(len)) = head_len(bytes, &mut 0) else { return };
    let wire = Bytes::copy_from_slice(&bytes[..len]);
    for method in [Method::GET, Method::HEAD] {
        let Ok(head) = parse_response(&wire, &method, &LIMITS) else { continue };
        assert!(!head.fields.contains(header::TRANSFER_ENCODING));
        assert!(method != Method::HEAD || head.framing == Framing::None);
        assert!(!(head.keep_alive && head.framing == Framing::UntilClose), "where the body ends nobody knows");
        let mut out = Vec::new();
        response_head(&mut out, head.status, &head.fields);
        let written = Bytes::from(out);
        assert_eq!(head_len(&written, &mut 0), Ok(Some(written.len())));
        let again = parse_response(&written, &method, &HeadLimits { fields: 512, ..LIMITS }).expect("valid");
        assert_eq!((again.status, &again.fields), (head.status, &head.fields));
    }
});
