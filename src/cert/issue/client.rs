//! How the ACME library reaches the CA, and what it does not pass on: the status and `Retry-After` of the last answer.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Future;
use http::{HeaderValue, Method, header};
use http_body_util::BodyExt as _;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};

use crate::{
    body::{Body, Request},
    cert::{lock, schedule::LONGEST_WAIT},
    clock::Clock,
    conn::Fetch,
    error::chain,
};

/// An answer of a CA longer than this is none.
const MAX_ANSWER: usize = 1 << 20;

/// When renewal information is asked for again where the CA does not say, in seconds (RFC 9773 section 4.3.2).
const ASK_AGAIN: HeaderValue = HeaderValue::from_static("21600");

/// What the last answer of the CA said beside its body.
#[derive(Clone, Default)]
pub struct Seen(Arc<Mutex<Last>>);

#[derive(Default)]
struct Last {
    status: Option<u16>,
    retry_after: Option<Duration>,
    /// Its words, where it was a problem document (RFC 7807).
    problem: Option<String>,
}

impl Seen {
    /// What a problem document said.
    pub fn problem(&self) -> Option<String> {
        lock(&self.0).problem.clone()
    }

    /// Its status; none while the CA does not answer.
    pub fn last_status(&self) -> Option<u16> {
        lock(&self.0).status
    }

    /// Only a 429 or 503 means it for the whole of us; others send it while an order is pending.
    pub fn retry_after(&self) -> Option<Duration> {
        let last = lock(&self.0);
        last.retry_after.filter(|_| matches!(last.status, Some(429 | 503)))
    }

    /// The CA has had enough of us.
    pub fn is_limited(&self) -> bool {
        self.last_status() == Some(429)
    }
}

/// The library's way out.
pub struct Client {
    pub fetch: Fetch,
    pub seen: Seen,
}

impl HttpClient for Client {
    fn request(
        &self,
        request: http::Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let (fetch, seen) = (self.fetch.clone(), self.seen.clone());
        Box::pin(async move {
            *lock(&seen.0) = Last::default();
            let (parts, body) = request.into_parts();
            let is_get = parts.method == Method::GET;
            let body = body.collect().await.map_err(|error| Error::Other(error.into()))?.to_bytes();
            let request = Request::from_parts(parts, Body::full(body));
            let response = fetch(request).await.map_err(|error| Error::Other(Box::new(Unreachable(error))))?;
            let (mut parts, body) = response.into_parts();
            let (status, retry_after) = (Some(parts.status.as_u16()), retry_after(&parts.headers));
            *lock(&seen.0) = Last { status, retry_after, problem: None };
            // The library takes renewal information without it for none at all.
            if is_get {
                parts.headers.entry(header::RETRY_AFTER).or_insert(ASK_AGAIN);
            }
            let limited = http_body_util::Limited::new(body, MAX_ANSWER);
            let bytes = limited.collect().await.map_err(Error::Other)?.to_bytes();
            if parts.status.is_client_error() || parts.status.is_server_error() {
                lock(&seen.0).problem = problem(&bytes);
            }
            Ok(BytesResponse::from(http::Response::from_parts(parts, http_body_util::Full::new(bytes))))
        })
    }
}

/// The words of a problem document, as one short line.
fn problem(body: &[u8]) -> Option<String> {
    let document: serde_json::Value = serde_json::from_slice(body).ok()?;
    let detail: String = document["detail"].as_str()?.chars().filter(|c| !c.is_control()).take(300).collect();
    let kind = document["type"].as_str().and_then(|kind| kind.rsplit(':').next()).unwrap_or_default();
    Some(if kind.is_empty() { detail } else { format!("{kind}: {detail}") })
}

/// Seconds, or a date.
fn retry_after(headers: &http::HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    let date = || httpdate::parse_http_date(value).ok()?.duration_since(Clock::system().now()).ok();
    value.parse().ok().map(Duration::from_secs).or_else(date).map(|wait| wait.min(LONGEST_WAIT))
}

/// An error of the way to the CA, with its cause in the same line.
#[derive(Debug, thiserror::Error)]
#[error("{}", chain(.0))]
struct Unreachable(crate::error::ProxyError);
