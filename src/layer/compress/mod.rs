//! Compression of answers. Written here and not taken from a library because none of them weakens
//! a strong `ETag`, minds `no-transform`, or adds `Vary` where it is due.

mod encode;
mod negotiate;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use http::{HeaderName, Method, StatusCode, header};
use http_body::Body as _;
use tokio::sync::Semaphore;

use self::encode::{Encoded, max_turn};
pub use self::{encode::whole, negotiate::negotiate};
use crate::{
    config::plan::{self, Encoding},
    message::{Body, Fields, Response, Value},
};

/// Encodings open at once. One holds at most about 0.6 MiB (zstd 1 and brotli 4 with 18-bit windows; gzip 0.3; a body that
/// is gathered 0.5), so this bounds them to 160 MiB; past it, answers go out as they are.
const MAX_OPEN: usize = 256;

/// Compresses what may be compressed.
pub struct Compress {
    encodings: Vec<Encoding>,
    min_size: u64,
    open: Arc<Semaphore>,
    saved: Arc<AtomicU64>,
}

/// What a request asked for.
#[derive(Debug, Clone)]
pub struct AcceptedEncodings {
    encoding: Option<Encoding>,
    is_head: bool,
    /// The tags by which the client knows answers that we compressed, in their strong form.
    weakened: Vec<Box<[u8]>>,
}

impl Compress {
    /// Compression as a plan has it. `saved` counts the bytes that did not have to be sent.
    #[must_use]
    pub fn new(plan: &plan::Compression, saved: Arc<AtomicU64>) -> Self {
        Self {
            encodings: plan.encodings.clone(),
            min_size: plan.min_size,
            open: Arc::new(Semaphore::new(MAX_OPEN)),
            saved,
        }
    }

    /// Reads what the client takes. Where we will compress, the service is asked not to. Tags that we have weakened reach
    /// the service in the form that it knows, whatever the client takes now.
    pub fn request(&self, method: &Method, fields: &mut Fields) -> AcceptedEncodings {
        let encoding = negotiate(fields, &self.encodings);
        if encoding.is_some() {
            fields.insert(header::ACCEPT_ENCODING, Value::from_static("identity"));
        }
        let weakened = if self.encodings.is_empty() { Vec::new() } else { strengthen(fields) };
        AcceptedEncodings { encoding, is_head: method == Method::HEAD, weakened }
    }

    /// Compresses an answer, or at least says that it might have been.
    #[must_use]
    pub fn response(&self, asked: AcceptedEncodings, mut response: Response) -> Response {
        if response.status == StatusCode::NOT_MODIFIED && !self.encodings.is_empty() {
            vary(&mut response.fields);
            // The tag that the 200 had: weak where we compressed it, and the client knows it so.
            let tag = response.fields.get(header::ETAG).map(Value::as_bytes);
            if tag.is_some_and(|tag| asked.weakened.iter().any(|weakened| **weakened == *tag)) {
                weaken(&mut response.fields);
            }
            return response;
        }
        if self.encodings.is_empty() || !self.may_compress(&response, asked.is_head) {
            return response;
        }
        vary(&mut response.fields);
        let Some(encoding) = asked.encoding else { return response };
        if asked.is_head {
            mark(&mut response.fields, encoding);
            return response;
        }
        match response.body.as_full().filter(|body| body.len() <= max_turn(encoding)).cloned() {
            Some(body) => {
                let smaller = whole(encoding, &body);
                self.saved.fetch_add(body.len().saturating_sub(smaller.len()) as u64, Ordering::Relaxed);
                mark(&mut response.fields, encoding);
                response.fields.insert_number(header::CONTENT_LENGTH, smaller.len());
                response.body = Body::full(smaller);
            }
            None => {
                if let Ok(permit) = self.open.clone().try_acquire_owned() {
                    mark(&mut response.fields, encoding);
                    let whole = std::mem::take(&mut response.body);
                    response.body = Body::stream(Encoded::new(whole, encoding, permit, self.saved.clone()));
                }
            }
        }
        response
    }

    fn may_compress(&self, response: &Response, is_head: bool) -> bool {
        let fields = &response.fields;
        let status = response.status;
        let length = fields.get(header::CONTENT_LENGTH).and_then(|length| length.to_str()?.parse::<u64>().ok());
        let length = length.or_else(|| response.body.size_hint().exact().filter(|_| !is_head));
        let encoded = fields.items(header::CONTENT_ENCODING).any(|coding| !coding.eq_ignore_ascii_case(b"identity"));
        !(status.is_informational()
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::PARTIAL_CONTENT
            || encoded
            || fields.contains(header::CONTENT_RANGE)
            || says_no_transform(fields)
            || length.is_some_and(|length| length < self.min_size.max(1)))
            && fields.get(header::CONTENT_TYPE).is_some_and(|kind| is_compressible(kind.as_bytes()))
    }
}

/// `text/*`, and the application types that are text underneath. Server-sent events are text that must not wait, and do
/// not: the encoder is flushed whenever its source blocks.
fn is_compressible(content_type: &[u8]) -> bool {
    const TYPES: [&str; 14] = [
        "application/json",
        "application/javascript",
        "application/x-javascript",
        "application/ecmascript",
        "application/xml",
        "application/wasm",
        "application/manifest",
        "application/x-yaml",
        "application/yaml",
        "application/vnd.ms-fontobject",
        "font/ttf",
        "font/otf",
        "font/collection",
        "image/svg+xml",
    ];
    let essence = content_type.split(|b| *b == b';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
    let Ok(essence) = std::str::from_utf8(&essence) else { return false };
    if essence.starts_with("multipart/") || (essence.starts_with("image/") && essence != "image/svg+xml") {
        return false;
    }
    essence.starts_with("text/") || TYPES.contains(&essence) || essence.ends_with("+json") || essence.ends_with("+xml")
}

fn says_no_transform(fields: &Fields) -> bool {
    fields.items(header::CACHE_CONTROL).any(|word| word.eq_ignore_ascii_case(b"no-transform"))
}

/// Says that the body is encoded, and takes away what is no longer true of it.
fn mark(fields: &mut Fields, encoding: Encoding) {
    const OF_THE_BYTES: [&str; 6] =
        ["content-length", "accept-ranges", "content-md5", "digest", "content-digest", "repr-digest"];
    fields.retain(|name, _| !OF_THE_BYTES.contains(&name.as_str()));
    fields.insert(header::CONTENT_ENCODING, Value::from_static(encoding.as_str()));
    weaken(fields);
}

/// A strong tag names bytes, and these are others now (RFC 9110 section 8.8.3).
fn weaken(fields: &mut Fields) {
    let Some(tag) = fields.get(header::ETAG).filter(|tag| tag.as_bytes().starts_with(b"\"")) else { return };
    let weak = [b"W/".as_slice(), tag.as_bytes()].concat();
    if let Ok(weak) = Value::new(&weak) {
        fields.insert(header::ETAG, weak);
    }
}

/// Says weak tags as the service knows them, and returns those that were weak and known in `If-None-Match`.
///
/// `If-Match` and `If-Range` compare strongly (RFC 9110 section 8.8.3.2), so that a weak tag would never match: `W/` goes.
/// `If-None-Match` compares weakly, but some services compare strings: it gets the strong form besides.
fn strengthen(fields: &mut Fields) -> Vec<Box<[u8]>> {
    let is_weak = |tag: &[u8]| tag.starts_with(b"W/");
    if fields.tags(header::IF_MATCH).any(is_weak) {
        let strong: Vec<&[u8]> = fields.tags(header::IF_MATCH).map(strong).collect();
        replace(fields, header::IF_MATCH, &strong.join(&b", "[..]));
    }
    if let Some(range) = fields.get(header::IF_RANGE).map(Value::as_bytes).filter(|range| is_weak(range)) {
        let range = strong(range).to_vec();
        replace(fields, header::IF_RANGE, &range);
    }
    if !fields.contains(header::IF_NONE_MATCH) {
        return Vec::new();
    }
    let given: Vec<&[u8]> = fields.tags(header::IF_NONE_MATCH).collect();
    let weakened = given.iter().filter(|tag| is_weak(tag)).map(|tag| strong(tag)).filter(|tag| !given.contains(tag));
    let weakened: Vec<Box<[u8]>> = weakened.map(Into::into).collect();
    if !weakened.is_empty() {
        let all: Vec<&[u8]> = given.into_iter().chain(weakened.iter().map(|tag| &**tag)).collect();
        let all = all.join(&b", "[..]);
        replace(fields, header::IF_NONE_MATCH, &all);
    }
    weakened
}

fn strong(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

fn replace(fields: &mut Fields, name: HeaderName, value: &[u8]) {
    fields.insert(name, Value::new(value).expect("made of parts of valid values"));
}

/// Adds `Accept-Encoding` to `Vary`, once.
fn vary(fields: &mut Fields) {
    if fields.items(header::VARY).any(|name| name == b"*" || name.eq_ignore_ascii_case(b"accept-encoding")) {
        return;
    }
    match fields.list(header::VARY).map(|all| [&all, b", Accept-Encoding".as_slice()].concat()) {
        Some(merged) => replace(fields, header::VARY, &merged),
        None => fields.append(header::VARY, Value::from_static("Accept-Encoding")),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::BodyExt as _;

    use super::*;

    fn compress() -> Compress {
        let encodings = vec![Encoding::Zstd, Encoding::Brotli, Encoding::Gzip];
        Compress::new(&plan::Compression { encodings, min_size: 512 }, Arc::default())
    }

    fn text() -> Bytes {
        (0..200).flat_map(|n| format!("{{\"event_id\":\"${n}\",\"type\":\"m.room.message\"}},").into_bytes()).collect()
    }

    fn run(
        method: &Method,
        accept: &str,
        status: u16,
        fields: &[(&'static str, &'static str)],
        body: Body,
    ) -> Response {
        let compress = compress();
        let mut headers = Fields::new();
        headers.insert(header::ACCEPT_ENCODING, Value::new(accept.as_bytes()).unwrap());
        let asked = compress.request(method, &mut headers);
        let mut response = http::Response::builder().status(status);
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        compress.response(asked, response.body(body).unwrap().into())
    }

    const JSON: (&str, &str) = ("content-type", "application/json");

    fn coding(response: &Response) -> Option<&str> {
        response.fields.get_all("content-encoding").next().map(|value| value.to_str().unwrap())
    }

    #[test]
    fn only_what_gains_is_compressed() {
        for (kind, compressed) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("text/html", true),
            ("text/event-stream", true),
            ("application/problem+json", true),
            ("application/atom+xml", true),
            ("image/svg+xml", true),
            ("application/wasm", true),
            ("font/ttf", true),
            ("font/woff2", false),
            ("image/png", false),
            ("video/mp4", false),
            ("audio/ogg", false),
            ("application/octet-stream", false),
            ("application/zip", false),
            ("multipart/mixed", false),
            ("multipart/x+json", false),
            ("", false),
        ] {
            let response = run(&Method::GET, "gzip", 200, &[("content-type", kind)], Body::full(text()));
            assert_eq!(coding(&response).is_some(), compressed, "{kind}");
            assert_eq!(response.fields.contains("vary"), compressed, "{kind}");
        }
    }

    #[test]
    fn answers_that_must_not_be_touched_are_not() {
        for (status, fields) in [
            (206, &[JSON][..]),
            (204, &[JSON]),
            (200, &[JSON, ("content-encoding", "gzip")]),
            (200, &[JSON, ("cache-control", "public, No-Transform")]),
            (200, &[JSON, ("content-range", "bytes 0-1/2")]),
            (200, &[JSON, ("content-length", "511")]),
        ] {
            let response = run(&Method::GET, "br", status, fields, Body::full(text()));
            assert_ne!(coding(&response), Some("br"), "{status} {fields:?}");
        }
        let small = run(&Method::GET, "br", 200, &[JSON], Body::full(text().slice(..511)));
        assert_eq!(coding(&small), None);
    }

    #[test]
    fn the_head_stays_true() {
        let fields =
            [JSON, ("etag", "\"a\""), ("vary", "Origin"), ("accept-ranges", "bytes"), ("content-length", "9000")];
        let get = run(&Method::GET, "gzip", 200, &fields, Body::full(text()));
        assert_eq!(get.fields.get("etag").unwrap(), "W/\"a\"");
        assert_eq!(get.fields.list("vary").unwrap(), &b"Origin, Accept-Encoding"[..]);
        assert!(!get.fields.contains("accept-ranges"));
        let head = run(&Method::HEAD, "gzip", 200, &fields, Body::empty());
        assert_eq!(coding(&head), Some("gzip"));
        assert!(!head.fields.contains("content-length"));
        let not_modified =
            run(&Method::GET, "gzip", 304, &[("etag", "\"a\""), ("vary", "accept-encoding")], Body::empty());
        assert_eq!(not_modified.fields.get_all("vary").count(), 1);
        let plain = run(&Method::GET, "identity", 200, &fields, Body::full(text()));
        assert_eq!((coding(&plain), plain.fields.get("etag").unwrap() == "\"a\""), (None, true));
        assert_eq!(plain.fields.list("vary").unwrap(), &b"Origin, Accept-Encoding"[..]);
    }

    #[test]
    fn vary_on_several_lines_keeps_every_member() {
        for (lines, merged) in [
            (&["Origin", "Cookie"][..], "Origin, Cookie, Accept-Encoding"),
            (&["Origin", "accept-encoding"], "Origin, accept-encoding"),
            (&["Origin", "*"], "Origin, *"),
            (&["Origin", "Accept, Cookie"], "Origin, Accept, Cookie, Accept-Encoding"),
        ] {
            let fields: Vec<_> = [JSON].into_iter().chain(lines.iter().map(|line| ("vary", *line))).collect();
            let answer = run(&Method::GET, "gzip", 200, &fields, Body::full(text()));
            assert_eq!(answer.fields.list("vary").unwrap(), merged.as_bytes());
        }
    }

    #[test]
    fn the_service_is_asked_for_what_it_knows() {
        for (name, lines, sent) in [
            ("if-none-match", &[r#"W/"a", "b""#][..], r#"W/"a", "b", "a""#),
            ("if-none-match", &[r#"W/"a,b""#, r#""c""#, "W/\"d\""], r#"W/"a,b", "c", W/"d", "a,b", "d""#),
            ("if-none-match", &[r#"W/"a", "a""#], r#"W/"a", "a""#),
            ("if-none-match", &["*"], "*"),
            ("if-match", &[r#"W/"a""#], r#""a""#),
            ("if-match", &[r#""x,y", W/"a""#, r#"W/"b""#], r#""x,y", "a", "b""#),
            ("if-match", &[r#""a""#], r#""a""#),
            ("if-match", &["*"], "*"),
            ("if-range", &[r#"W/"a""#], r#""a""#),
            ("if-range", &["Sat, 28 Nov 2026 00:00:00 GMT"], "Sat, 28 Nov 2026 00:00:00 GMT"),
        ] {
            for accept in ["gzip", "identity"] {
                let mut fields = Fields::new();
                fields.append(header::ACCEPT_ENCODING, Value::new(accept.as_bytes()).unwrap());
                for line in lines {
                    fields.append(HeaderName::from_static(name), Value::from_static(line));
                }
                compress().request(&Method::PUT, &mut fields);
                assert_eq!(fields.list("accept-encoding").unwrap(), &b"identity"[..]);
                assert_eq!(fields.list(name).unwrap(), sent.as_bytes(), "{name}: {lines:?}");
            }
        }
    }

    #[test]
    fn a_304_carries_the_tag_that_its_200_had() {
        for (known, tag, told) in [
            (r#"W/"a""#, r#""a""#, r#"W/"a""#),
            (r#""a""#, r#""a""#, r#""a""#),
            (r#"W/"a""#, r#"W/"a""#, r#"W/"a""#),
            (r#""b", W/"a""#, r#""b""#, r#""b""#),
            ("*", r#""a""#, r#""a""#),
        ] {
            let compress = compress();
            let mut fields = Fields::new();
            fields.append(header::ACCEPT_ENCODING, Value::from_static("gzip"));
            fields.append(header::IF_NONE_MATCH, Value::from_static(known));
            let asked = compress.request(&Method::GET, &mut fields);
            let mut answer = Response::of(StatusCode::NOT_MODIFIED);
            answer.fields.append(header::ETAG, Value::from_static(tag));
            assert_eq!(compress.response(asked, answer).fields.get("etag").unwrap(), told, "{known}");
        }
    }

    #[tokio::test]
    async fn whole_bodies_come_back_as_they_were() {
        for encoding in ["gzip", "br", "zstd"] {
            let response = run(&Method::GET, encoding, 200, &[JSON], Body::full(text()));
            let length: usize = response.fields.get("content-length").unwrap().to_str().unwrap().parse().unwrap();
            let bytes = response.body.collect().await.unwrap().to_bytes();
            assert_eq!(bytes.len(), length);
            assert_eq!(encode::tests::decode(encoding, &bytes), text());
        }
    }
}
