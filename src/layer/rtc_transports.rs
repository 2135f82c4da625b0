//! The MatrixRTC transports endpoint, completed where the homeserver has nothing to say (MSC4143, MSC4519).
//!
//! Clients since August 2026 ask only here, older ones only the well-known document. Synapse answers if it is configured
//! twice; where it is not, its answer is completed from the same configuration as the well-known document. Whether the
//! homeserver hands out call tokens (MSC4195) is asked by [`TokenEndpoint::probe`], never while a client waits.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::{Method, StatusCode, Uri, header};
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use super::cors;
use crate::{
    config::plan::{RTC_GET_TOKEN, RtcDocument, RtcDocuments},
    error::{Kind, ProxyError},
    message::{Body, Fields, Request, Response, Value},
};

const UNSTABLE: &str = "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports";
const STABLE: &str = "/_matrix/client/v1/rtc/transports";

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

/// Whether the homeserver hands out call tokens: asked by a probe, read by every request. Not, until it is known.
#[derive(Debug, Default)]
pub struct TokenEndpoint(AtomicBool);

impl TokenEndpoint {
    /// Asks the homeserver as Element Call does, through `send`: anything but a 404 without a token is an endpoint. Whether
    /// there was an answer; an outage says nothing, and changes nothing.
    pub async fn probe<'a>(&self, host: Value<'_>, send: impl SendRequest<'a> + Send) -> Option<bool> {
        for path in RTC_GET_TOKEN {
            let mut request = Request::new(Body::full("{}"));
            request.method = Method::POST;
            request.uri = Uri::from_static(path);
            request.fields.insert(header::HOST, host);
            request.fields.insert(header::CONTENT_TYPE, Value::from_static("application/json"));
            request.fields.insert(header::CONTENT_LENGTH, Value::from_static("2"));
            match send(request).await.ok()?.status {
                StatusCode::NOT_FOUND => {}
                status if status.is_server_error() => return None,
                _ => return Some(self.set(true)),
            }
        }
        Some(self.set(false))
    }

    fn set(&self, served: bool) -> bool {
        self.0.store(served, Ordering::Relaxed);
        served
    }

    fn is_served(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Completes what Synapse says about transports.
pub struct RtcTransports {
    ours: Arc<RtcDocuments>,
    tokens: Arc<TokenEndpoint>,
    good: Mutex<HashMap<u64, Instant>>,
    hasher: RandomState,
}

impl RtcTransports {
    /// With the answers that stand in for Synapse's.
    #[must_use]
    pub fn new(ours: Arc<RtcDocuments>) -> Self {
        Self { ours, tokens: Arc::default(), good: Mutex::default(), hasher: RandomState::new() }
    }

    /// Whether a path is one of the two.
    #[must_use]
    pub fn takes(&self, path: &str) -> bool {
        [UNSTABLE, STABLE].contains(&path)
    }

    /// What has to be probed for the right answer, if anything.
    pub fn token_endpoint(&self) -> Option<Arc<TokenEndpoint>> {
        self.ours.sfus.is_some().then(|| self.tokens.clone())
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
        let kept = TransportsRequest::of(&request);
        let mut answer = send(request).await?;
        if !matches!(answer.status, StatusCode::OK | StatusCode::NOT_FOUND) {
            return Ok(answer);
        }
        let bytes = collect(std::mem::take(&mut answer.body)).await?;
        let says: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let has_nothing = match answer.status {
            StatusCode::OK => says.is_object() && list(&says).is_none(),
            _ => says["errcode"] == "M_UNRECOGNIZED",
        };
        if !has_nothing {
            answer.body = Body::full(bytes);
            return Ok(answer);
        }
        let mut token_is_good = answer.status == StatusCode::OK;
        if kept.stable {
            match unstable(&kept, &send).await? {
                Unstable::List(list) => return Ok(json(list)),
                Unstable::Nothing => token_is_good = true,
                Unstable::Unknown => {}
            }
        }
        let Some(ours) = self.ours(kept.stable) else {
            answer.body = Body::full(bytes);
            return Ok(answer);
        };
        if token_is_good {
            return Ok(json(ours));
        }
        self.verify_token(&kept, ours, send).await
    }

    /// Answers a client whose token Synapse knows; any other gets what Synapse says of it.
    async fn verify_token<'a>(
        &self,
        request: &TransportsRequest,
        ours: Bytes,
        send: impl SendRequest<'a> + Send,
    ) -> Result<Response, ProxyError> {
        let token = request.fields.get(header::AUTHORIZATION).map(|token| self.hasher.hash_one(token.as_bytes()));
        if token.is_some_and(|token| self.is_good(token)) {
            return Ok(json(ours));
        }
        let answer = send(request.to(WHOAMI)).await?;
        if answer.status != StatusCode::OK {
            return Ok(answer);
        }
        if let Some(token) = token {
            self.remember(token);
        }
        Ok(json(ours))
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

    fn ours(&self, stable: bool) -> Option<Bytes> {
        let sfus = self.ours.sfus.as_ref().filter(|_| self.tokens.is_served());
        let RtcDocument { unstable, stable: v1 } = sfus.or(self.ours.services.as_ref())?;
        Some(if stable { v1 } else { unstable }.clone())
    }
}

/// The parts of a request that further requests on behalf of its client need.
struct TransportsRequest {
    stable: bool,
    fields: Fields,
    query: Option<String>,
}

impl TransportsRequest {
    fn of(request: &Request) -> Self {
        let mut fields = request.fields.clone();
        fields.remove(header::CONTENT_LENGTH);
        let query = request.uri.query().map(str::to_owned);
        Self { stable: request.uri.path() == STABLE, fields, query }
    }

    /// The same client's GET for another path. A token may still be in the query, where Synapse looks as well.
    fn to(&self, path: &str) -> Request {
        let mut request = Request::new(Body::empty());
        let target = self.query.as_ref().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
        request.uri = Uri::try_from(target).expect("a path and the query of a URI are a URI");
        request.fields = self.fields.clone();
        request
    }
}

/// What the unstable path says, for a client of `/v1`.
enum Unstable {
    /// A list, in the form of `/v1`.
    List(Bytes),
    /// The token is good, and there is no list.
    Nothing,
    /// It is not served, or refused.
    Unknown,
}

/// Synapse 1.163 has the unstable path alone: what it lists there is its word on `/v1` as well.
async fn unstable<'a>(
    request: &TransportsRequest,
    send: &(impl SendRequest<'a> + Send),
) -> Result<Unstable, ProxyError> {
    let answer = send(request.to(UNSTABLE)).await?;
    if answer.status != StatusCode::OK {
        return Ok(Unstable::Unknown);
    }
    let says: serde_json::Value = serde_json::from_slice(&collect(answer.body).await?).unwrap_or_default();
    Ok(match list(&says) {
        Some(list) => {
            Unstable::List(serde_json::json!({ "transports": list, "rtc_transports": list }).to_string().into())
        }
        None if says.is_object() => Unstable::Nothing,
        None => Unstable::Unknown,
    })
}

/// The list of an answer, under either name, unless it is empty.
fn list(says: &serde_json::Value) -> Option<&serde_json::Value> {
    let has_any = |list: &&serde_json::Value| list.as_array().is_some_and(|list| !list.is_empty());
    ["transports", "rtc_transports"].iter().filter_map(|name| says.get(name)).find(has_any)
}

fn json(body: Bytes) -> Response {
    let mut response = Response::new(Body::full(body));
    response.fields.insert(header::CONTENT_TYPE, Value::from_static("application/json"));
    response.fields.insert(header::CACHE_CONTROL, Value::from_static("no-store"));
    cors::open(&mut response.fields);
    response
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
    const UNRECOGNIZED: (u16, &str) = (404, r#"{"errcode":"M_UNRECOGNIZED","error":"Unrecognized request"}"#);

    fn documents() -> Arc<RtcDocuments> {
        let document = |unstable: &'static str, stable: &'static str| {
            Some(RtcDocument { unstable: unstable.into(), stable: stable.into() })
        };
        Arc::new(RtcDocuments { services: document(OURS, "services, v1"), sfus: document("sfus", "sfus, v1") })
    }

    fn answered(status: u16, body: &'static str) -> Response {
        http::Response::builder().status(status).body(Body::full(body)).unwrap().into()
    }

    /// Asks a layer for a path, with Synapse's answers on the unstable path and on `/v1`.
    async fn ask(
        layer: &RtcTransports,
        path: &'static str,
        (unstable, stable): ((u16, &'static str), (u16, &'static str)),
        token: Option<&'static str>,
    ) -> (u16, String) {
        let mut request = Request::from(http::Request::get(path).body(Body::empty()).unwrap());
        if let Some(token) = token {
            request.fields.insert(header::AUTHORIZATION, Value::from_static(token));
        }
        let answer = layer.answer(request, |request| {
            let answer = match (request.uri.path(), request.fields.get(header::AUTHORIZATION)) {
                (WHOAMI, Some(token)) if token == "Bearer good" => answered(200, "{}"),
                (WHOAMI, _) => answered(401, r#"{"errcode":"M_UNKNOWN_TOKEN"}"#),
                (UNSTABLE, _) => answered(unstable.0, unstable.1),
                _ => answered(stable.0, stable.1),
            };
            Box::pin(std::future::ready(Ok(answer)))
        });
        let answer = answer.await.unwrap();
        let status = answer.status.as_u16();
        (status, String::from_utf8(collect(answer.body).await.unwrap().to_vec()).unwrap())
    }

    async fn run(synapse: (u16, &'static str), token: Option<&'static str>) -> (u16, String) {
        ask(&RtcTransports::new(documents()), UNSTABLE, (synapse, UNRECOGNIZED), token).await
    }

    #[tokio::test]
    async fn synapse_speaks_first_and_we_fill_in() {
        let own = r#"{"rtc_transports":[{"type":"livekit","livekit_service_url":"https://own"}]}"#;
        let missing = (401, r#"{"errcode":"M_MISSING_TOKEN"}"#);
        for (synapse, token, expected) in [
            ((200, own), Some("Bearer good"), (200, own)),
            ((200, "{}"), Some("Bearer good"), (200, OURS)),
            ((200, r#"{"rtc_transports":[]}"#), Some("Bearer good"), (200, OURS)),
            (UNRECOGNIZED, Some("Bearer good"), (200, OURS)),
            (UNRECOGNIZED, Some("Bearer bad"), (401, r#"{"errcode":"M_UNKNOWN_TOKEN"}"#)),
            (UNRECOGNIZED, None, (401, r#"{"errcode":"M_UNKNOWN_TOKEN"}"#)),
            (missing, None, missing),
            ((404, "404 page"), Some("Bearer good"), (404, "404 page")),
            ((503, "down"), Some("Bearer good"), (503, "down")),
        ] {
            let (status, body) = run(synapse, token).await;
            assert_eq!((status, body.as_str()), expected, "{synapse:?} {token:?}");
        }
    }

    #[tokio::test]
    async fn v1_answers_what_the_unstable_path_lists() {
        let own = r#"{"rtc_transports":[{"type":"livekit","url":"wss://own"}]}"#;
        let both = r#"{"rtc_transports":[{"type":"livekit","url":"wss://own"}],"transports":[{"type":"livekit","url":"wss://own"}]}"#;
        let of_v1 = (200, r#"{"transports":[{"type":"m.livekit","url":"wss://new"}]}"#);
        let good = Some("Bearer good");
        for (synapse, token, expected) in [
            (((200, own), UNRECOGNIZED), good, (200, both)),
            (((200, own), (200, "{}")), good, (200, both)),
            (((200, own), of_v1), good, of_v1),
            (((200, "{}"), UNRECOGNIZED), good, (200, "services, v1")),
            (((200, "{}"), (200, r#"{"transports":[]}"#)), good, (200, "services, v1")),
            ((UNRECOGNIZED, UNRECOGNIZED), good, (200, "services, v1")),
            ((UNRECOGNIZED, UNRECOGNIZED), Some("Bearer bad"), (401, r#"{"errcode":"M_UNKNOWN_TOKEN"}"#)),
            ((UNRECOGNIZED, (500, "down")), good, (500, "down")),
        ] {
            let layer = RtcTransports::new(documents());
            let (status, body) = ask(&layer, STABLE, synapse, token).await;
            let (body, wanted): (serde_json::Value, serde_json::Value) = (
                serde_json::from_str(&body).unwrap_or_else(|_| body.into()),
                serde_json::from_str(expected.1).unwrap_or_else(|_| expected.1.into()),
            );
            assert_eq!((status, body), (expected.0, wanted), "{synapse:?} {token:?}");
        }
    }

    #[tokio::test]
    async fn an_sfu_is_named_where_the_homeserver_hands_out_tokens() {
        let layer = RtcTransports::new(documents());
        let endpoint = layer.token_endpoint().unwrap();
        let says = async |v1: u16, unstable: u16| {
            let send = |request: Request| -> BoxFuture<'static, Result<Response, ProxyError>> {
                assert_eq!((&request.method, request.fields.contains(header::AUTHORIZATION)), (&Method::POST, false));
                let status = if request.uri.path() == RTC_GET_TOKEN[0] { v1 } else { unstable };
                Box::pin(std::future::ready(match status {
                    0 => Err(Kind::Connect.into()),
                    status => Ok(answered(status, "")),
                }))
            };
            let learnt = endpoint.probe(Value::from_static("matrix.example.org"), send).await;
            (learnt, ask(&layer, UNSTABLE, ((200, "{}"), UNRECOGNIZED), Some("Bearer good")).await.1)
        };
        // In order: what was learnt last holds through an outage.
        for (statuses, expected) in [
            ((0, 0), (None, OURS)),
            ((401, 404), (Some(true), "sfus")),
            ((503, 404), (None, "sfus")),
            ((404, 502), (None, "sfus")),
            ((404, 404), (Some(false), OURS)),
            ((404, 401), (Some(true), "sfus")),
            ((404, 404), (Some(false), OURS)),
            ((405, 404), (Some(true), "sfus")),
        ] {
            let (learnt, body) = says(statuses.0, statuses.1).await;
            assert_eq!((learnt, body.as_str()), expected, "{statuses:?}");
        }
        let (_, body) = ask(&layer, STABLE, (UNRECOGNIZED, UNRECOGNIZED), Some("Bearer good")).await;
        assert_eq!(body, "sfus, v1");
    }

    #[tokio::test]
    async fn without_a_service_and_without_tokens_synapse_has_the_last_word() {
        let ours = RtcDocuments { services: None, ..RtcDocuments::clone(&documents()) };
        let layer = RtcTransports::new(Arc::new(ours));
        for path in [UNSTABLE, STABLE] {
            let (status, body) = ask(&layer, path, (UNRECOGNIZED, UNRECOGNIZED), Some("Bearer good")).await;
            assert_eq!((status, body.as_str()), UNRECOGNIZED, "{path}");
        }
        layer.token_endpoint().unwrap().set(true);
        let (status, body) = ask(&layer, UNSTABLE, (UNRECOGNIZED, UNRECOGNIZED), Some("Bearer good")).await;
        assert_eq!((status, body.as_str()), (200, "sfus"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_good_token_is_asked_about_once_in_a_while() {
        let layer = RtcTransports::new(documents());
        let asked = AtomicUsize::new(0);
        let ask = async || {
            let mut request = Request::from(http::Request::get(UNSTABLE).body(Body::empty()).unwrap());
            request.fields.insert(header::AUTHORIZATION, Value::from_static("Bearer x"));
            let answer = layer.answer(request, |request| {
                let whoami = request.uri.path().ends_with("whoami");
                asked.fetch_add(usize::from(whoami), Ordering::Relaxed);
                let answer =
                    if whoami { answered(200, "{}") } else { answered(404, r#"{"errcode":"M_UNRECOGNIZED"}"#) };
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
