//! How the ACME library reaches the CA, and what it does not pass on: the status and `Retry-After` of the last answer.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Future;
use http::{Method, header};
use http_body_util::BodyExt as _;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};

use crate::{
    cert::{lock, schedule::LONGEST_WAIT},
    clock::Clock,
    conn::Fetch,
    error::chain,
    message::{Body, Fields, Response, Value},
};

/// When renewal information is asked for again where the CA does not say, in seconds (RFC 9773 section 4.3.2).
const ASK_AGAIN: Value<'static> = Value::from_static("21600");

/// What the last answer of the CA said beside its body.
#[derive(Clone, Default)]
pub struct LastResponse(Arc<Mutex<Last>>);

#[derive(Default)]
struct Last {
    status: Option<u16>,
    retry_after: Option<Duration>,
    /// Its words, where it was a problem document (RFC 7807).
    problem: Option<String>,
}

impl LastResponse {
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
    pub seen: LastResponse,
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
            let request = http::Request::from_parts(parts, Body::full(body)).into();
            let response = fetch(request).await.map_err(|error| Error::Other(Box::new(Unreachable(error))))?;
            let Response { status, mut fields, body, .. } = response;
            let (code, retry_after) = (Some(status.as_u16()), retry_after(&fields));
            *lock(&seen.0) = Last { status: code, retry_after, problem: None };
            // The library takes renewal information without it for none at all.
            if is_get {
                fields.insert_if_absent(header::RETRY_AFTER, ASK_AGAIN);
            }
            let bytes = body.collect().await.map_err(|error| Error::Other(error.into()))?.to_bytes();
            if status.is_client_error() || status.is_server_error() {
                lock(&seen.0).problem = problem(&bytes);
            }
            let mut answer = http::Response::new(http_body_util::Full::new(bytes));
            *answer.status_mut() = status;
            *answer.headers_mut() = (&fields).into();
            Ok(BytesResponse::from(answer))
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
fn retry_after(fields: &Fields) -> Option<Duration> {
    let value = fields.get(header::RETRY_AFTER)?.to_str()?;
    let date = || httpdate::parse_http_date(value).ok()?.duration_since(Clock::system().now()).ok();
    value.parse().ok().map(Duration::from_secs).or_else(date).map(|wait| wait.min(LONGEST_WAIT))
}

/// An error of the way to the CA, with its cause in the same line.
#[derive(Debug, thiserror::Error)]
#[error("{}", chain(.0))]
struct Unreachable(crate::error::ProxyError);
