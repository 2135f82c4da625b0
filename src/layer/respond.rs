//! Answers that the edge has ready: the well-known documents of Matrix, and fixed ones.

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};

use super::{compress, cors};
use crate::{
    config::plan::{self, Encoding},
    message::{Body, Fields, Request, Response, Value},
};

const PREFIX: &str = "/.well-known/matrix/";
const NOT_FOUND: &[u8] = br#"{"errcode":"M_NOT_FOUND","error":"This document is not configured"}"#;
const NOT_ALLOWED: &[u8] = br#"{"errcode":"M_UNRECOGNIZED","error":"The method is not allowed here"}"#;
const ALLOW: Value<'static> = Value::from_static("GET, HEAD, OPTIONS");
const JSON: Value<'static> = Value::from_static("application/json");

/// The documents of one site. Everything that can be prepared is.
pub struct WellKnown {
    client: Option<Document>,
    server: Option<Document>,
    support: Option<Document>,
}

/// A document in every coding in which it is smaller.
struct Document {
    etag: String,
    plain: Variant,
    offered: Vec<Encoding>,
    encoded: Vec<(Encoding, Variant)>,
}

/// One coding of a document, with the head that goes with it.
struct Variant {
    fields: Fields,
    body: Bytes,
}

impl WellKnown {
    /// Prepares the documents.
    #[must_use]
    pub fn new(plan: &plan::WellKnown) -> Self {
        let document = |body: &Option<Bytes>| body.as_ref().map(|body| Document::new(body, plan.max_age.as_secs()));
        Self { client: document(&plan.client), server: document(&plan.server), support: document(&plan.support) }
    }

    /// The answer to a request for one of the three paths, whatever its query; `None` for every other path.
    #[must_use]
    pub fn answer(&self, request: &Request) -> Option<Response> {
        let document = match request.uri.path().strip_prefix(PREFIX)? {
            "client" => &self.client,
            "server" => &self.server,
            "support" => &self.support,
            _ => return None,
        };
        Some(match (&request.method, document) {
            (&Method::OPTIONS, _) => with_cors(StatusCode::NO_CONTENT, Body::empty()),
            (&Method::GET | &Method::HEAD, Some(document)) => document.answer(&request.fields),
            (&Method::GET | &Method::HEAD, None) => json(StatusCode::NOT_FOUND, NOT_FOUND),
            _ => {
                let mut answer = json(StatusCode::METHOD_NOT_ALLOWED, NOT_ALLOWED);
                answer.fields.insert(header::ALLOW, ALLOW);
                answer
            }
        })
    }
}

impl Document {
    fn new(body: &Bytes, max_age: u64) -> Self {
        // Strong, since it is made of the bytes; 128 bits of SHA-256 are more than two documents need.
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, body);
        let hex: String = digest.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        let etag = |suffix: &str| format!("\"{hex}{suffix}\"");
        let encoded: Vec<_> = [Encoding::Zstd, Encoding::Brotli, Encoding::Gzip]
            .into_iter()
            .map(|encoding| (encoding, compress::whole(encoding, body)))
            .filter(|(_, smaller)| smaller.len() < body.len())
            .collect();
        let variant = |encoding: Option<Encoding>, body: Bytes| {
            let suffix = encoding.map_or_else(String::new, |encoding| format!("-{}", encoding.as_str()));
            let mut fields = with_cors(StatusCode::OK, Body::empty()).fields;
            let mut say = |name, text: String| {
                fields.insert(name, Value::new(text.as_bytes()).expect("digits are a valid value"));
            };
            let age = if max_age == 0 { "no-store".into() } else { format!("public, max-age={max_age}") };
            say(header::CACHE_CONTROL, age);
            say(header::ETAG, etag(&suffix));
            fields.insert(header::CONTENT_TYPE, JSON);
            fields.insert_number(header::CONTENT_LENGTH, body.len());
            if let Some(encoding) = encoding {
                fields.insert(header::CONTENT_ENCODING, Value::from_static(encoding.as_str()));
            }
            // Whether there are other variants is the same for all of them.
            fields.insert(header::VARY, Value::from_static("Accept-Encoding"));
            Variant { fields, body }
        };
        Self {
            etag: etag(""),
            plain: variant(None, body.clone()),
            offered: encoded.iter().map(|(encoding, _)| *encoding).collect(),
            encoded: encoded.into_iter().map(|(encoding, body)| (encoding, variant(Some(encoding), body))).collect(),
        }
    }

    fn answer(&self, asked: &Fields) -> Response {
        let chosen = compress::negotiate(asked, &self.offered);
        let variant =
            self.encoded.iter().find(|(encoding, _)| Some(*encoding) == chosen).map_or(&self.plain, |(_, v)| v);
        let known = asked.tags(header::IF_NONE_MATCH).any(|tag| {
            let tag = tag.strip_prefix(b"W/").unwrap_or(tag);
            // Every variant is the same document, and has the same digits in its tag.
            let digits = &self.etag.as_bytes()[..33];
            tag == b"*" || tag.starts_with(digits)
        });
        let mut response = Response::new(if known { Body::empty() } else { Body::full(variant.body.clone()) });
        response.fields = variant.fields.clone();
        if known {
            response.status = StatusCode::NOT_MODIFIED;
            response.fields.remove(header::CONTENT_LENGTH);
            response.fields.remove(header::CONTENT_TYPE);
            response.fields.remove(header::CONTENT_ENCODING);
        }
        response
    }
}

fn with_cors(status: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    response.status = status;
    cors::well_known(&mut response.fields);
    response.fields.insert(header::X_CONTENT_TYPE_OPTIONS, Value::from_static("nosniff"));
    response
}

fn json(status: StatusCode, body: &'static [u8]) -> Response {
    let mut response = with_cors(status, Body::full(body));
    response.fields.insert(header::CONTENT_TYPE, JSON);
    response
}

/// An answer that is always the same.
pub struct Fixed {
    status: StatusCode,
    content_type: HeaderValue,
    body: Bytes,
}

impl Fixed {
    /// The answer of a plan.
    #[must_use]
    pub fn new(plan: &plan::FixedAnswer) -> Self {
        let content_type = HeaderValue::try_from(plan.content_type.as_str());
        Self {
            status: plan.status,
            content_type: content_type.unwrap_or(HeaderValue::from_static("application/octet-stream")),
            body: plan.body.clone(),
        }
    }

    /// A text.
    #[must_use]
    pub fn text(text: &str) -> Self {
        let content_type = HeaderValue::from_static("text/plain; charset=utf-8");
        Self { status: StatusCode::OK, content_type, body: Bytes::copy_from_slice(text.as_bytes()) }
    }

    /// The answer, for a method that has one.
    #[must_use]
    pub fn answer(&self) -> Response {
        let mut response = Response::new(Body::full(self.body.clone()));
        response.status = self.status;
        response.fields.insert(header::CONTENT_TYPE, (&self.content_type).into());
        response
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn documents() -> WellKnown {
        let client = format!("{{\"m.homeserver\":{{\"base_url\":\"{}\"}}}}", "https://matrix.example.org".repeat(30));
        WellKnown::new(&plan::WellKnown {
            client: Some(client.into()),
            server: Some("{}".into()),
            support: None,
            max_age: Duration::from_secs(60),
        })
    }

    fn ask(method: Method, target: &str, fields: &[(&'static str, &str)]) -> Option<Response> {
        let mut request = http::Request::builder().method(method).uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        documents().answer(&request.body(Body::empty()).unwrap().into())
    }

    #[test]
    fn every_answer_has_cors_and_says_what_it_is() {
        for (method, target, status) in [
            (Method::GET, "/.well-known/matrix/client", 200),
            (Method::HEAD, "/.well-known/matrix/client?x", 200),
            (Method::GET, "/.well-known/matrix/server", 200),
            (Method::GET, "/.well-known/matrix/support", 404),
            (Method::OPTIONS, "/.well-known/matrix/support", 204),
            (Method::POST, "/.well-known/matrix/client", 405),
            (Method::DELETE, "/.well-known/matrix/server", 405),
        ] {
            let answer = ask(method.clone(), target, &[]).unwrap();
            assert_eq!(answer.status, status, "{method} {target}");
            for name in ["origin", "methods", "headers"] {
                let name = format!("access-control-allow-{name}");
                assert_eq!(answer.fields.get_all(name.as_str()).count(), 1, "{name}");
            }
            assert_eq!(answer.fields.get("x-content-type-options").unwrap(), "nosniff");
            assert_eq!(answer.fields.contains("allow"), status == 405);
        }
        for other in ["/.well-known/matrix/", "/.well-known/matrix/client/", "/.well-known/matrix/Client", "/x"] {
            assert!(ask(Method::GET, other, &[]).is_none(), "{other}");
        }
    }

    #[test]
    fn a_document_that_is_known_is_not_sent_again() {
        let first = ask(Method::GET, "/.well-known/matrix/client", &[]).unwrap();
        let tag = first.fields.get("etag").unwrap().to_str().unwrap().to_owned();
        assert_eq!(first.fields.list("cache-control").unwrap(), &b"public, max-age=60"[..]);
        for (given, status) in
            [(tag.clone(), 304), (format!("\"x\", W/{tag}"), 304), ("*".into(), 304), ("\"x\"".into(), 200)]
        {
            let again = ask(Method::GET, "/.well-known/matrix/client", &[("if-none-match", &given)]).unwrap();
            assert_eq!(again.status, status, "{given}");
        }
    }

    #[test]
    fn a_document_is_sent_in_the_coding_that_is_asked_for() {
        for (accept, coding) in [("gzip", Some("gzip")), ("br, gzip;q=0.5", Some("br")), ("identity", None)] {
            let answer = ask(Method::GET, "/.well-known/matrix/client", &[("accept-encoding", accept)]).unwrap();
            let found = answer.fields.get_all("content-encoding").next().map(|value| value.to_str().unwrap());
            assert_eq!(found, coding, "{accept}");
            assert_eq!(answer.fields.list("vary").unwrap(), &b"Accept-Encoding"[..]);
        }
    }
}
