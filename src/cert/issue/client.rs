//! How the ACME library reaches the CA: over the program's own client, with the nonces of the account's pool, and with
//! what the library does not pass on: the status, `Retry-After` and `Date` of the last answer.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Future;
use http::{Method, StatusCode, header};
use http_body_util::BodyExt as _;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};

use crate::{
    cert::{authority::Authority, lock, schedule::LONGEST_WAIT},
    clock::Clock,
    conn::Fetch,
    error::chain,
    message::{Body, Fields, Response, Value},
};

tokio::task_local! {
    /// Where the answers to the requests of one order are noted. The library's client is shared by all orders.
    static SEEN: LastResponse;
}

const REPLAY_NONCE: header::HeaderName = header::HeaderName::from_static("replay-nonce");

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

    /// The CA limits our requests, or is too busy for them.
    pub fn is_limited(&self) -> bool {
        matches!(self.last_status(), Some(429 | 503))
    }

    /// Runs something whose requests are noted here.
    pub async fn scope<F: Future>(&self, future: F) -> F::Output {
        SEEN.scope(self.clone(), future).await
    }
}

/// The library's HTTP client.
pub struct Client {
    pub fetch: Fetch,
    pub authority: Arc<Authority>,
}

impl HttpClient for Client {
    fn request(
        &self,
        request: http::Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        // Whoever asks outside of an order needs no notes.
        let seen = SEEN.try_with(LastResponse::clone).unwrap_or_default();
        let (fetch, authority) = (self.fetch.clone(), self.authority.clone());
        Box::pin(async move {
            // The library asks for a nonce with HEAD and for nothing else.
            if request.method() == Method::HEAD
                && let Some(nonce) = authority.take_nonce().and_then(|nonce| http::HeaderValue::try_from(nonce).ok())
            {
                let mut answer = http::Response::new(http_body_util::Full::<Bytes>::default());
                answer.headers_mut().insert(REPLAY_NONCE, nonce);
                return Ok(BytesResponse::from(answer));
            }
            *lock(&seen.0) = Last::default();
            let (parts, body) = request.into_parts();
            let method = parts.method.clone();
            let body = body.collect().await.map_err(|error| Error::Other(error.into()))?.to_bytes();
            let request = http::Request::from_parts(parts, Body::full(body)).into();
            let response = fetch(request).await.map_err(|error| Error::Other(Box::new(Unreachable(error))))?;
            let Response { status, mut fields, body, .. } = response;
            let (code, retry_after) = (Some(status.as_u16()), retry_after(&fields));
            *lock(&seen.0) = Last { status: code, retry_after, problem: None };
            if let Some(date) = text_of(&fields, header::DATE).and_then(|date| httpdate::parse_http_date(&date).ok()) {
                authority.note_date(date);
            }
            // The library takes renewal information without it for none at all.
            if method == Method::GET {
                fields.insert_if_absent(header::RETRY_AFTER, ASK_AGAIN);
            }
            let bytes = body.collect().await.map_err(|error| Error::Other(error.into()))?.to_bytes();
            if status.is_client_error() || status.is_server_error() {
                lock(&seen.0).problem = problem(&bytes);
            }
            if status == StatusCode::BAD_REQUEST && bytes.windows(BAD_NONCE.len()).any(|part| part == BAD_NONCE) {
                authority.drop_nonces();
            }
            if let Some(names) = issuers(&bytes) {
                authority.note_issuers(names).await;
            }
            if method != Method::HEAD
                && let Some(nonce) = text_of(&fields, REPLAY_NONCE)
            {
                // Into the pool and not to the library, which would drop the last nonce of every order.
                authority.keep_nonce(nonce);
                fields.remove(REPLAY_NONCE);
            }
            let mut answer = http::Response::new(http_body_util::Full::new(bytes));
            *answer.status_mut() = status;
            *answer.headers_mut() = (&fields).into();
            Ok(BytesResponse::from(answer))
        })
    }
}

/// The names of the CA in an authorization with dns-persist-01, which the library does not read.
fn issuers(body: &[u8]) -> Option<Vec<String>> {
    const KEY: &str = "issuer-domain-names";
    if !body.windows(KEY.len()).any(|part| part == KEY.as_bytes()) {
        return None;
    }
    let document: serde_json::Value = serde_json::from_slice(body).ok()?;
    let names = document["challenges"].as_array()?.iter().find_map(|challenge| challenge[KEY].as_array())?;
    Some(names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect())
}

/// The error that means a nonce was refused (RFC 8555 section 6.5).
const BAD_NONCE: &[u8] = b"acme:error:badNonce";

fn text_of(fields: &Fields, name: header::HeaderName) -> Option<String> {
    fields.get(name)?.to_str().map(str::to_owned)
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

/// An error on the way to the CA, with its cause in the same line.
#[derive(Debug, thiserror::Error)]
#[error("{}", without_links(&chain(.0)))]
pub struct Unreachable(pub crate::error::ProxyError);

/// Cuts a link to a library's documentation off, which is of no use to an operator.
fn without_links(text: &str) -> &str {
    text.split(": https://docs.rs/").next().unwrap_or(text)
}
