//! A request of HTTP/1.1 with its body: what is accepted has one reading, and goes on with exactly that one.
#![no_main]

use bytes::{Bytes, BytesMut};
use http::header;
use libfuzzer_sys::fuzz_target;
use vestibule::{
    serve::normalize,
    wire::{
        BodyDecoder, BodyFrame, Framing, HeadLimits, chunk_head, head_len, last_chunk, parse_request, request_head,
    },
};

const LIMITS: HeadLimits = HeadLimits { bytes: 32 * 1024, fields: 128, target: 65_534 };

fuzz_target!(|bytes: &[u8]| {
    let Ok(Some(len)) = head_len(bytes, &mut 0) else { return };
    let Ok(mut head) = parse_request(&Bytes::copy_from_slice(&bytes[..len]), &LIMITS) else { return };
    assert!(!(head.fields.contains(header::TRANSFER_ENCODING)), "framing is ours to say again");
    let framing = head.framing;
    let before = head.target.path_and_query().map(|target| target.as_str().to_owned());
    if normalize::http1(&mut head).is_err() {
        return;
    }
    let target = head.target.path_and_query().expect("a settled request has a target").as_str().to_owned();
    let same = before.is_some_and(|before| before == target || format!("/{before}") == target);
    assert!(same, "the target is not touched");
    assert_eq!(head.fields.get_all(header::HOST).count(), 1);
    reads_the_same_again(&head, &target);
    body_is_cut_the_same_anywhere(framing, &bytes[len..]);
});

/// What is written upstream is read there as what was read here.
fn reads_the_same_again(head: &vestibule::wire::RequestHead, target: &str) {
    let mut out = Vec::new();
    request_head(&mut out, &head.method, target.as_bytes(), &head.fields);
    let written = Bytes::from(out);
    assert_eq!(head_len(&written, &mut 0), Ok(Some(written.len())), "one head, and nothing behind it");
    let again = parse_request(&written, &HeadLimits { bytes: usize::MAX / 4, fields: 512, ..LIMITS }).expect("valid");
    assert_eq!(again.method, head.method);
    assert_eq!(again.target.path_and_query().expect("a path").as_str(), target);
    assert_eq!(again.fields, head.fields);
    let length = |framing: Framing| if framing == Framing::Chunked { Framing::None } else { framing };
    assert_eq!(length(again.framing), length(head.framing));
}

type Body = Option<(Vec<u8>, usize)>;

/// Content and how many bytes were left; `None` for what is broken or unfinished.
fn read(framing: Framing, wire: &[u8], step: usize) -> Body {
    let (mut decoder, mut buf, mut content, mut rest) = (BodyDecoder::new(framing), BytesMut::new(), Vec::new(), wire);
    loop {
        match decoder.decode(&mut buf).ok()? {
            Some(BodyFrame::Data(data)) => content.extend_from_slice(&data),
            Some(BodyFrame::Trailers(_) | BodyFrame::End) => return Some((content, buf.len() + rest.len())),
            None if rest.is_empty() => return None,
            None => {
                let (now, later) = rest.split_at(step.min(rest.len()));
                buf.extend_from_slice(now);
                rest = later;
            }
        }
    }
}

fn body_is_cut_the_same_anywhere(framing: Framing, wire: &[u8]) {
    let whole = read(framing, wire, wire.len().max(1));
    for step in [1, 2, 7] {
        assert_eq!(read(framing, wire, step), whole, "in steps of {step}");
    }
    let Some((content, _)) = whole else { return };
    let mut out = Vec::new();
    if !content.is_empty() {
        chunk_head(&mut out, content.len());
        out.extend_from_slice(&content);
        out.extend_from_slice(b"\r\n");
    }
    last_chunk(&mut out, None);
    assert_eq!(read(Framing::Chunked, &out, usize::MAX), Some((content, 0)), "chunked anew, it is the same body");
}
