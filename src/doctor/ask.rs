//! A request to a server and its complete response, with the accessors that probes need.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderName, Method, StatusCode, Uri, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use serde_json::Value;

use crate::{
    conn::Fetch,
    error::{FailureCause, ProxyError, ServerFailure, chain},
    message::{self, Body, BodyError, Fields, Request, Response, UpgradeHandler},
    telemetry::redact_target,
};

/// The origin that a web client sends.
pub const ORIGIN: &str = "https://app.element.io";

/// A request of a probe.
#[derive(Debug, Clone)]
pub struct ProbeRequest {
    method: Method,
    url: String,
    fields: Vec<(HeaderName, String)>,
    body: Bytes,
    /// A `Content-Length` whose bytes are never sent.
    announced: Option<u64>,
}

/// A body with a length that never arrives: a rejection must not wait for it.
struct PendingBody(u64);

impl HttpBody for PendingBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Pending
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0)
    }
}

impl ProbeRequest {
    /// GET with an `Origin`, as a browser sends.
    pub fn get(url: impl Into<String>) -> Self {
        let fields = vec![(header::ORIGIN, ORIGIN.to_owned())];
        Self { method: Method::GET, url: url.into(), fields, body: Bytes::new(), announced: None }
    }

    /// The preflight of a request with this method.
    pub fn preflight(url: impl Into<String>, method: &str) -> Self {
        let request = Self { method: Method::OPTIONS, ..Self::get(url) };
        request
            .field(header::ACCESS_CONTROL_REQUEST_METHOD, method)
            .field(header::ACCESS_CONTROL_REQUEST_HEADERS, "authorization,content-type")
    }

    /// POST of a JSON value.
    pub fn post(url: impl Into<String>, body: &Value) -> Self {
        let request = Self { method: Method::POST, body: body.to_string().into(), ..Self::get(url) };
        request.field(header::CONTENT_TYPE, "application/json")
    }

    /// POST that announces so many bytes and sends none.
    pub fn upload(url: impl Into<String>, bytes: u64) -> Self {
        Self { method: Method::POST, announced: Some(bytes), ..Self::get(url) }
    }

    /// The opening handshake of a WebSocket (RFC 6455 section 4.1), with the nonce of its example.
    pub fn websocket(url: impl Into<String>) -> Self {
        Self::get(url)
            .field(header::CONNECTION, "Upgrade")
            .field(header::UPGRADE, "websocket")
            .field(header::SEC_WEBSOCKET_VERSION, "13")
            .field(header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==")
    }

    /// With another method.
    pub fn method(self, method: Method) -> Self {
        Self { method, ..self }
    }

    /// With one more field.
    pub fn field(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.fields.push((name, value.into()));
        self
    }

    /// With the access token of a user.
    pub fn token(self, token: &str) -> Self {
        self.field(header::AUTHORIZATION, format!("Bearer {token}"))
    }

    /// Requests an upgrade and returns the handler of the upgraded connection.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn upgrade(self, fetch: &Fetch) -> Result<UpgradeHandler, ServerFailure> {
        let response = fetch(self.request()?).await.map_err(|error| failure(&error))?;
        let status = response.status.as_u16();
        response.takeover.ok_or_else(|| ServerFailure::new(FailureCause::Other, format!("it returns {status}")))
    }

    /// Sends the request and reads the complete response.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn ask(self, fetch: &Fetch) -> Result<ProbeResponse, ServerFailure> {
        let Response { status, fields, body, .. } = fetch(self.request()?).await.map_err(|error| failure(&error))?;
        let body = body.collect().await.map_err(|error| ServerFailure::of(&error))?.to_bytes();
        Ok(ProbeResponse { status, fields, body })
    }

    fn request(self) -> Result<Request, ServerFailure> {
        let body = self.announced.map_or_else(|| Body::full(self.body), |bytes| Body::stream(PendingBody(bytes)));
        let mut request = Request::new(body);
        request.method = self.method;
        request.uri = self.url.parse::<Uri>().map_err(|error| {
            // The query may contain a call token.
            ServerFailure::new(FailureCause::Other, format!("{} is not a URL: {error}", redact_target(&self.url)))
        })?;
        for (name, value) in self.fields {
            let value = message::Value::new(value.as_bytes())
                .map_err(|error| ServerFailure::new(FailureCause::Other, format!("{name}: {error}")))?;
            request.fields.append(name, value);
        }
        Ok(request)
    }
}

/// The response to a probe.
#[derive(Debug, Clone)]
pub struct ProbeResponse {
    /// Its status.
    pub status: StatusCode,
    /// Its fields.
    pub fields: Fields,
    /// Its content.
    pub body: Bytes,
}

/// Whether a browser lets a page of another origin read a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cors {
    /// It does.
    Open,
    /// There is no `Access-Control-Allow-Origin`.
    Missing,
    /// There are several, which browsers reject.
    Several,
    /// It names another origin.
    Other,
}

impl ProbeResponse {
    /// The content as JSON, `null` if it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The code of a Matrix error.
    pub fn errcode(&self) -> String {
        self.json()["errcode"].as_str().unwrap_or_default().to_owned()
    }

    /// Whether it has this status and this Matrix error code.
    pub fn is(&self, status: u16, errcode: &str) -> bool {
        self.status == status && self.errcode() == errcode
    }

    /// The value of a field, empty if it is absent.
    pub fn field(&self, name: HeaderName) -> &str {
        self.fields.get(name).and_then(|value| value.to_str()).unwrap_or_default()
    }

    /// Whether a web client can read it.
    pub fn cors(&self) -> Cors {
        let mut fields = self.fields.get_all(header::ACCESS_CONTROL_ALLOW_ORIGIN);
        match (fields.next(), fields.next()) {
            (None, _) => Cors::Missing,
            (Some(_), Some(_)) => Cors::Several,
            (Some(origin), None) if origin == "*" || origin == ORIGIN => Cors::Open,
            (Some(origin), None) if origin.as_bytes().contains(&b',') => Cors::Several,
            (Some(_), None) => Cors::Other,
        }
    }

    /// A summary: the status, and the Matrix error code or the kind of document.
    pub fn words(&self) -> String {
        let status = self.status.as_u16();
        let errcode = self.errcode();
        if !errcode.is_empty() {
            format!("{status} {errcode}")
        } else if self.body.trim_ascii_start().starts_with(b"<") {
            format!("{status} with an HTML page")
        } else {
            status.to_string()
        }
    }
}

/// The failure of a request, without the kind of the error if there is a source: the finding already shows the kind.
fn failure(error: &ProxyError) -> ServerFailure {
    let text = error.source.as_deref().map_or_else(|| error.kind.to_string(), |source| chain(source));
    ServerFailure::new(FailureCause::of(error), text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn response(origins: &[&'static str], body: &'static str) -> ProbeResponse {
        let field = |origin: &&'static str| (header::ACCESS_CONTROL_ALLOW_ORIGIN, message::Value::from_static(origin));
        let mut fields = Fields::new();
        for (name, value) in origins.iter().map(field) {
            fields.append(name, value);
        }
        ProbeResponse { status: StatusCode::NOT_FOUND, fields, body: body.into() }
    }

    #[test]
    fn two_origins_are_as_good_as_none() {
        for (origins, cors) in [
            (&[][..], Cors::Missing),
            (&["*"], Cors::Open),
            (&[ORIGIN], Cors::Open),
            (&["*", "*"], Cors::Several),
            (&["*, *"], Cors::Several),
            (&["https://other.example"], Cors::Other),
        ] {
            assert_eq!(response(origins, "").cors(), cors, "{origins:?}");
        }
    }

    #[tokio::test]
    async fn why_there_is_no_answer_is_said_once_and_without_secrets() {
        let refused = || ProxyError::new(Kind::Connect, "nobody listens");
        let fetch: Fetch = std::sync::Arc::new(move |_| Box::pin(async move { Err(refused()) }));
        let ask = |url| ProbeRequest::get(url).ask(&fetch);
        assert_eq!(ask("http://a/").await.unwrap_err().to_string(), "nobody listens");
        let said = ask("http://a b/rtc/validate?access_token=s3cret").await.unwrap_err().to_string();
        assert!(said.contains("is not a URL") && !said.contains("s3cret"), "{said}");
    }

    #[test]
    fn an_answer_is_told_in_a_few_words() {
        assert_eq!(response(&[], r#"{"errcode":"M_UNRECOGNIZED"}"#).words(), "404 M_UNRECOGNIZED");
        assert_eq!(response(&[], " <!doctype html>").words(), "404 with an HTML page");
        assert_eq!(response(&[], "gone").words(), "404");
    }
}
