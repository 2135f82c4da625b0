//! Where calls go, answered even where the homeserver cannot say (MSC4143, MSC4519).
//!
//! Clients since August 2026 ask only the homeserver, older ones only the well-known document. Synapse answers if it is
//! told twice; where it is not, its answer is completed from the same configuration as the well-known document.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::{Method, StatusCode, Uri, header};
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use super::cors;
use crate::{
    error::{Kind, ProxyError},
    message::{Body, Fields, Request, Response, Value},
};

const PATHS: [&str; 2] =
    ["/_matrix/client/unstable/org.matrix.msc4143/rtc/transports", "/_matrix/client/v1/rtc/transports"];

/// Says whose a token is.
const WHOAMI: &str = "/_matrix/client/v3/account/whoami";

/// How long a token that was good is believed to be good still: a client asks at the start of every call.
const BELIEVED: Duration = Duration::from_secs(10);

/// How many tokens are remembered; beyond it, all are forgotten.
const REMEMBERED: usize = 1024;

/// An answer longer than this is not a list of transports.
const MAX_ANSWER: usize = 64 * 1024;

/// How Synapse is asked. Boxed, because the compiler cannot yet see that the future of an `AsyncFn` may change threads.
pub trait SendRequest<'a>: Fn(Request) -> BoxFuture<'a, Result<Response, ProxyError>> {}
impl<'a, F: Fn(Request) -> BoxFuture<'a, Result<Response, ProxyError>>> SendRequest<'a> for F {}

/// Completes what Synapse says about transports.
pub struct RtcTransports {
    ours: Bytes,
    good: Mutex<HashMap<u64, Instant>>,
    hasher: RandomState,
}

impl RtcTransports {
    /// With the answer that stands in for Synapse's.
    #[must_use]
    pub fn new(ours: Bytes) -> Self {
        Self { ours, good: Mutex::default(), hasher: RandomState::new() }
    }

    /// Whether a path is one of the two.
    #[must_use]
    pub fn takes(&self, path: &str) -> bool {
        PATHS.contains(&path)
    }

    /// Asks Synapse first, through `send`, and answers in its place where it has nothing to say.
    ///
    /// # Errors
    /// Those of `send`.
    pub async fn answer<'a>(
        &self,
        mut request: Request,
        send: impl SendRequest<'a> + Send,
    ) -> Result<Response, ProxyError> {
        if request.method != Method::GET {
            return send(request).await;
        }
        // The answer is read here, so it must come as it is.
        request.fields.remove(header::ACCEPT_ENCODING);
        request.fields.remove(header::IF_NONE_MATCH);
        let fields = request.fields.clone();
        let query = request.uri.query().map(str::to_owned);
        let mut answer = send(request).await?;
        if !matches!(answer.status, StatusCode::OK | StatusCode::NOT_FOUND) {
            return Ok(answer);
        }
        let bytes = collect(std::mem::take(&mut answer.body)).await?;
        let says: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let lists = says["rtc_transports"].as_array().is_some_and(|list| !list.is_empty());
        match (answer.status, lists) {
            (StatusCode::OK, false) if says.is_object() => Ok(self.ours()),
            (StatusCode::NOT_FOUND, _) if says["errcode"] == "M_UNRECOGNIZED" => {
                self.verify_token(fields, query, send).await
            }
            _ => {
                answer.body = Body::full(bytes);
                Ok(answer)
            }
        }
    }

    /// Answers a client whose token Synapse knows; any other gets what Synapse says of it.
    async fn verify_token<'a>(
        &self,
        mut fields: Fields,
        query: Option<String>,
        send: impl SendRequest<'a> + Send,
    ) -> Result<Response, ProxyError> {
        let token = fields.get(header::AUTHORIZATION).map(|token| self.hasher.hash_one(token.as_bytes()));
        if token.is_some_and(|token| self.is_good(token)) {
            return Ok(self.ours());
        }
        fields.remove(header::CONTENT_LENGTH);
        let mut whoami = Request::new(Body::empty());
        // A token may still be in the query, where Synapse looks as well.
        let target = query.map_or_else(|| WHOAMI.to_owned(), |query| format!("{WHOAMI}?{query}"));
        whoami.uri = Uri::try_from(target).expect("a path and the query of a URI are a URI");
        whoami.fields = fields;
        let answer = send(whoami).await?;
        if answer.status != StatusCode::OK {
            return Ok(answer);
        }
        if let Some(token) = token {
            self.remember(token);
        }
        Ok(self.ours())
    }

    fn is_good(&self, token: u64) -> bool {
        let good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        good.get(&token).is_some_and(|since| since.elapsed() < BELIEVED)
    }

    fn remember(&self, token: u64) {
        let mut good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        if good.len() >= REMEMBERED {
            good.clear();
        }
        good.insert(token, Instant::now());
    }

    fn ours(&self) -> Response {
        let mut response = Response::new(Body::full(self.ours.clone()));
        response.fields.insert(header::CONTENT_TYPE, Value::from_static("application/json"));
        response.fields.insert(header::CACHE_CONTROL, Value::from_static("no-store"));
        cors::open(&mut response.fields);
        response
    }
}

async fn collect(mut body: Body) -> Result<Bytes, ProxyError> {
    if let Some(bytes) = body.as_full() {
        return Ok(bytes.clone());
    }
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ProxyError::new(Kind::Reset, error))?;
        if let Some(data) = frame.data_ref() {
            bytes.extend_from_slice(data);
        }
        if bytes.len() > MAX_ANSWER {
            return Err(Kind::BadResponse.into());
        }
    }
    Ok(bytes.freeze())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const OURS: &str = r#"{"rtc_transports":[{"type":"livekit","livekit_service_url":"https://jwt"}]}"#;

    fn json(status: u16, body: &'static str) -> Response {
        http::Response::builder().status(status).body(Body::full(body)).unwrap().into()
    }

    async fn run(synapse: (u16, &'static str), token: Option<&'static str>) -> (u16, String) {
        let layer = RtcTransports::new(OURS.into());
        let mut request = Request::from(http::Request::get(PATHS[0]).body(Body::empty()).unwrap());
        if let Some(token) = token {
            request.fields.insert(header::AUTHORIZATION, Value::from_static(token));
        }
        let answer = layer.answer(request, |request| {
            let answer = match (request.uri.path(), request.fields.get(header::AUTHORIZATION)) {
                ("/_matrix/client/v3/account/whoami", Some(token)) if token == "Bearer good" => json(200, "{}"),
                ("/_matrix/client/v3/account/whoami", _) => json(401, r#"{"errcode":"M_UNKNOWN_TOKEN"}"#),
                _ => json(synapse.0, synapse.1),
            };
            Box::pin(std::future::ready(Ok(answer)))
        });
        let answer = answer.await.unwrap();
        let status = answer.status.as_u16();
        (status, String::from_utf8(collect(answer.body).await.unwrap().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn synapse_speaks_first_and_we_fill_in() {
        let unrecognized = (404, r#"{"errcode":"M_UNRECOGNIZED","error":"Unrecognized request"}"#);
        let own = r#"{"rtc_transports":[{"type":"livekit","livekit_service_url":"https://own"}]}"#;
        let missing = (401, r#"{"errcode":"M_MISSING_TOKEN"}"#);
        for (synapse, token, expected) in [
            ((200, own), Some("Bearer good"), (200, own)),
            ((200, "{}"), Some("Bearer good"), (200, OURS)),
            ((200, r#"{"rtc_transports":[]}"#), Some("Bearer good"), (200, OURS)),
            (unrecognized, Some("Bearer good"), (200, OURS)),
            (unrecognized, Some("Bearer bad"), (401, r#"{"errcode":"M_UNKNOWN_TOKEN"}"#)),
            (unrecognized, None, (401, r#"{"errcode":"M_UNKNOWN_TOKEN"}"#)),
            (missing, None, missing),
            ((404, "404 page"), Some("Bearer good"), (404, "404 page")),
            ((503, "down"), Some("Bearer good"), (503, "down")),
        ] {
            let (status, body) = run(synapse, token).await;
            assert_eq!((status, body.as_str()), expected, "{synapse:?} {token:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_good_token_is_asked_about_once_in_a_while() {
        let layer = RtcTransports::new(OURS.into());
        let asked = AtomicUsize::new(0);
        let ask = async || {
            let mut request = Request::from(http::Request::get(PATHS[1]).body(Body::empty()).unwrap());
            request.fields.insert(header::AUTHORIZATION, Value::from_static("Bearer x"));
            let answer = layer.answer(request, |request| {
                let whoami = request.uri.path().ends_with("whoami");
                asked.fetch_add(usize::from(whoami), Ordering::Relaxed);
                let answer = if whoami { json(200, "{}") } else { json(404, r#"{"errcode":"M_UNRECOGNIZED"}"#) };
                Box::pin(std::future::ready(Ok(answer)))
            });
            assert_eq!(answer.await.unwrap().status, 200);
        };
        ask().await;
        ask().await;
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        tokio::time::advance(BELIEVED).await;
        ask().await;
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }
}
