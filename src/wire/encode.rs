//! Writing heads and chunk sizes.

use http::{HeaderMap, HeaderName, Method, StatusCode};

use crate::message::{Fields, Value};

/// Appends a request head, the empty line included. `target` goes out byte for byte.
pub fn request_head(out: &mut Vec<u8>, method: &Method, target: &[u8], fields: &Fields) {
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(target);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    lines(out, fields);
}

/// Appends a response head, the empty line included.
pub fn response_head(out: &mut Vec<u8>, status: StatusCode, fields: &Fields) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or("").as_bytes());
    out.extend_from_slice(b"\r\n");
    lines(out, fields);
}

/// Appends one more field to a head that has been written with its empty line: cheaper than to put it among them first.
pub fn last_field(head: &mut Vec<u8>, name: &HeaderName, value: Value<'_>) {
    head.truncate(head.len() - b"\r\n".len());
    field(head, name, value);
    head.extend_from_slice(b"\r\n");
}

fn lines(out: &mut Vec<u8>, fields: &Fields) {
    for (name, value) in fields.iter() {
        field(out, name, value);
    }
    out.extend_from_slice(b"\r\n");
}

fn field(out: &mut Vec<u8>, name: &HeaderName, value: Value<'_>) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Appends the line that opens a chunk of `len` bytes. The caller writes the bytes and a CRLF after it.
pub fn chunk_head(out: &mut Vec<u8>, len: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let nibbles = (usize::BITS - len.leading_zeros()).div_ceil(4).max(1);
    out.extend((0..nibbles).rev().map(|n| DIGITS[len >> (4 * n) & 15]));
    out.extend_from_slice(b"\r\n");
}

/// Appends the end of a chunked body, with those trailers that may stand there.
pub fn last_chunk(out: &mut Vec<u8>, trailers: Option<&HeaderMap>) {
    out.extend_from_slice(b"0\r\n");
    match trailers {
        Some(trailers) => lines(out, &super::fields::permitted_trailers(trailers)),
        None => out.extend_from_slice(b"\r\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_sizes_are_plain_hexadecimal() {
        for len in [0, 1, 9, 15, 16, 255, 256, 65_535, 1 << 20] {
            let mut out = Vec::new();
            chunk_head(&mut out, len);
            assert_eq!(out, format!("{len:x}\r\n").into_bytes());
        }
    }
}
