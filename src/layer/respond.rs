//! Answers that the edge has ready: the well-known documents of Matrix, and fixed ones.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use super::{compress, cors};
use crate::{
    body::{Body, Request, Response},
    config::plan::{self, Encoding},
};

const PREFIX: &str = "/.well-known/matrix/";
const NOT_FOUND: &[u8] = br#"{"errcode":"M_NOT_FOUND","error":"This document is not configured"}"#;
const NOT_ALLOWED: &[u8] = br#"{"errcode":"M_UNRECOGNIZED","error":"The method is not allowed here"}"#;
const ALLOW: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The documents of one site. Everything that can be prepared is.
pub struct WellKnown {
    client: Option<Document>,
    server: Option<Document>,
    support: Option<Document>,
}

/// A document in every coding in which it is smaller.
struct Document {
    etag: HeaderValue,
    plain: Variant,
    offered: Vec<Encoding>,
    encoded: Vec<(Encoding, Variant)>,
}

/// One coding of a document, with the head that goes with it.
struct Variant {
    headers: HeaderMap,
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
        let document = match request.uri().path().strip_prefix(PREFIX)? {
            "client" => &self.client,
            "server" => &self.server,
            "support" => &self.support,
            _ => return None,
        };
        Some(match (request.method(), document) {
            (&Method::OPTIONS, _) => with_cors(StatusCode::NO_CONTENT, Body::empty()),
            (&Method::GET | &Method::HEAD, Some(document)) => document.answer(request.headers()),
            (&Method::GET | &Method::HEAD, None) => json(StatusCode::NOT_FOUND, NOT_FOUND),
            _ => {
                let mut answer = json(StatusCode::METHOD_NOT_ALLOWED, NOT_ALLOWED);
                answer.headers_mut().insert(header::ALLOW, ALLOW);
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
        let etag =
            |suffix: &str| HeaderValue::try_from(format!("\"{hex}{suffix}\"")).expect("digits are a valid value");
        let encoded: Vec<_> = [Encoding::Zstd, Encoding::Brotli, Encoding::Gzip]
            .into_iter()
            .map(|encoding| (encoding, compress::whole(encoding, body)))
            .filter(|(_, smaller)| smaller.len() < body.len())
            .collect();
        let variant = |encoding: Option<Encoding>, body: Bytes| {
            let suffix = encoding.map_or_else(String::new, |encoding| format!("-{}", encoding.as_str()));
            let mut headers = with_cors(StatusCode::OK, Body::empty()).headers().clone();
            let max_age =
                HeaderValue::try_from(format!("public, max-age={max_age}")).expect("digits are a valid value");
            headers.insert(header::CONTENT_TYPE, JSON);
            headers.insert(header::CACHE_CONTROL, max_age);
            headers.insert(header::ETAG, etag(&suffix));
            headers.insert(header::CONTENT_LENGTH, body.len().into());
            if let Some(encoding) = encoding {
                headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding.as_str()));
            }
            // Whether there are other variants is the same for all of them.
            headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
            Variant { headers, body }
        };
        Self {
            etag: etag(""),
            plain: variant(None, body.clone()),
            offered: encoded.iter().map(|(encoding, _)| *encoding).collect(),
            encoded: encoded.into_iter().map(|(encoding, body)| (encoding, variant(Some(encoding), body))).collect(),
        }
    }

    fn answer(&self, asked: &HeaderMap) -> Response {
        let chosen = compress::negotiate(asked, &self.offered);
        let variant =
            self.encoded.iter().find(|(encoding, _)| Some(*encoding) == chosen).map_or(&self.plain, |(_, v)| v);
        let known = asked.get_all(header::IF_NONE_MATCH).iter().any(|field| {
            field.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii).any(|tag| {
                let tag = tag.strip_prefix(b"W/").unwrap_or(tag);
                // Every variant is the same document, and has the same digits in its tag.
                let digits = &self.etag.as_bytes()[..33];
                tag == b"*" || tag.starts_with(digits)
            })
        });
        let mut response = Response::new(if known { Body::empty() } else { Body::full(variant.body.clone()) });
        *response.headers_mut() = variant.headers.clone();
        if known {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response.headers_mut().remove(header::CONTENT_LENGTH);
            response.headers_mut().remove(header::CONTENT_TYPE);
            response.headers_mut().remove(header::CONTENT_ENCODING);
        }
        response
    }
}

fn with_cors(status: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    cors::well_known(response.headers_mut());
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn json(status: StatusCode, body: &'static [u8]) -> Response {
    let mut response = with_cors(status, Body::full(body));
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
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
        *response.status_mut() = self.status;
        response.headers_mut().insert(header::CONTENT_TYPE, self.content_type.clone());
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
        documents().answer(&request.body(Body::empty()).unwrap())
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
            assert_eq!(answer.status(), status, "{method} {target}");
            for name in ["origin", "methods", "headers"] {
                let name = format!("access-control-allow-{name}");
                assert_eq!(answer.headers().get_all(name.as_str()).iter().count(), 1, "{name}");
            }
            assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
            assert_eq!(answer.headers().contains_key("allow"), status == 405);
        }
        for other in ["/.well-known/matrix/", "/.well-known/matrix/client/", "/.well-known/matrix/Client", "/x"] {
            assert!(ask(Method::GET, other, &[]).is_none(), "{other}");
        }
    }

    #[test]
    fn a_document_that_is_known_is_not_sent_again() {
        let first = ask(Method::GET, "/.well-known/matrix/client", &[]).unwrap();
        let tag = first.headers()["etag"].to_str().unwrap().to_owned();
        assert_eq!(first.headers()["cache-control"], "public, max-age=60");
        for (given, status) in
            [(tag.clone(), 304), (format!("\"x\", W/{tag}"), 304), ("*".into(), 304), ("\"x\"".into(), 200)]
        {
            let again = ask(Method::GET, "/.well-known/matrix/client", &[("if-none-match", &given)]).unwrap();
            assert_eq!(again.status(), status, "{given}");
        }
    }

    #[test]
    fn a_document_is_sent_in_the_coding_that_is_asked_for() {
        for (accept, coding) in [("gzip", Some("gzip")), ("br, gzip;q=0.5", Some("br")), ("identity", None)] {
            let answer = ask(Method::GET, "/.well-known/matrix/client", &[("accept-encoding", accept)]).unwrap();
            let found = answer.headers().get("content-encoding").map(|value| value.to_str().unwrap());
            assert_eq!(found, coding, "{accept}");
            assert_eq!(answer.headers()["vary"], "Accept-Encoding");
        }
    }
}
