//! One request and its answer on one connection (RFC 9112 from the side of a client).
//!
//! The upload and the answer are driven together, so that an answer which comes early is seen at once: a service that
//! refuses a body should not be sent the rest of it.

use std::{
    future::{Future, poll_fn},
    net::IpAddr,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Buf as _;
use http::{HeaderValue, Method, StatusCode, Uri, Version, header};
use http_body::Body as _;

use super::{
    Env, Lease,
    connect::UpstreamConnection,
    response_body::{self, ResponseBody},
    tunnel,
    upload::{self, Upload, UploadError},
    websocket,
};
use crate::{
    config::plan,
    conn::{Phases, RequestObservers},
    error::{BoxError, FailureCause, Kind, ProxyError},
    message::{Body, Fields, Request, Response, UpgradeHandler, Value},
    wire::{self, Framing, HeadLimits, ResponseHead, WireError, head_len},
};

/// What an answer's head may weigh: as much as a request's could, and more fields than any of our services sends.
const ANSWER_HEAD: HeadLimits = HeadLimits { bytes: 64 * 1024, fields: 256, target: 0 };

/// A request on its way, which may have to start again on another connection.
pub struct Outgoing {
    method: Method,
    uri: Uri,
    /// What the client speaks.
    client: Version,
    fields: Fields,
    body: Option<Body>,
    framing: Framing,
    websocket: bool,
    expects_continue: bool,
    observers: RequestObservers,
}

/// The answer.
pub struct ReceivedResponse(pub Response);

/// There is no answer.
pub struct SendError {
    /// Why.
    pub error: ProxyError,
    /// Whether the service cannot have seen more than a head, so that the request may be sent again elsewhere.
    pub may_repeat: bool,
}

impl Outgoing {
    /// A request that is ready to go.
    pub fn new(request: Request, observers: RequestObservers) -> Self {
        let Request { method, uri, version: client, mut fields, body } = request;
        let framing = match body.size_hint().exact() {
            Some(0) if fields.contains(header::CONTENT_LENGTH) => Framing::Length(0),
            Some(0) => Framing::None,
            Some(n) => Framing::Length(n),
            None => Framing::Chunked,
        };
        match framing {
            Framing::Length(n) => fields.insert_number(header::CONTENT_LENGTH, n),
            Framing::Chunked => {
                fields.remove(header::CONTENT_LENGTH);
                fields.insert(header::TRANSFER_ENCODING, Value::from_static("chunked"));
            }
            Framing::None | Framing::UntilClose => {}
        }
        let websocket = fields.contains(header::UPGRADE);
        let expects_continue = !body.is_empty() && wire::expects_continue(&fields);
        Self { method, uri, client, fields, body: Some(body), framing, websocket, expects_continue, observers }
    }

    /// Tells the server this host in place of that of the client's request.
    pub fn set_host(&mut self, host: &HeaderValue) {
        self.fields.insert(header::HOST, host.into());
    }

    /// Where the time of a dial is noted.
    pub fn phases(&self) -> &Phases {
        static NOBODY_ASKS: Phases = Phases::new();
        self.observers.phases.as_deref().unwrap_or(&NOBODY_ASKS)
    }

    /// Whether it asks for a WebSocket.
    pub const fn is_upgrade(&self) -> bool {
        self.websocket
    }

    /// The client that it is sent for.
    pub const fn client_ip(&self) -> Option<IpAddr> {
        self.observers.client
    }

    fn head(&self) -> Vec<u8> {
        let mut out = upload::head_buffer();
        let target = self.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        wire::request_head(&mut out, &self.method, target.as_bytes(), &self.fields);
        out
    }

    /// Whether the body, if there is one, has not been asked for a byte.
    const fn is_untouched(&self) -> bool {
        self.body.is_some()
    }
}

/// Sends a request and waits for the head of its answer.
pub fn exchange<'a>(
    mut link: UpstreamConnection,
    outgoing: &'a mut Outgoing,
    plan: &'a plan::Upstream,
    env: &'a Env,
    lease: Lease,
) -> impl Future<Output = Result<ReceivedResponse, SendError>> + Send + 'a {
    let upload = Upload::new(outgoing.head(), outgoing.framing, outgoing.expects_continue, env.body_stall);
    link.idle_timer.begin(plan.response_timeout);
    let mut exchange = Exchange { link, upload, scanned: 0, saw_bytes: false, heads: 0 };
    // A block and not an async fn, which would keep the connection twice; see [`Upstream::send`](super::Upstream::send).
    async move {
        let head = match poll_fn(|cx| exchange.poll(cx, outgoing)).await {
            Ok(head) => head,
            Err(error) => {
                // What may be done twice (RFC 9110 section 9.2.2), or has not been heard of once.
                let is_safe = outgoing.method.is_idempotent() || !exchange.upload.has_sent;
                let may_repeat = error.kind == Kind::Reset && !exchange.saw_bytes && outgoing.is_untouched() && is_safe;
                return Err(SendError { error, may_repeat });
            }
        };
        Ok(ReceivedResponse(match head.status {
            StatusCode::SWITCHING_PROTOCOLS => {
                upgraded(head, exchange.link, env, lease, outgoing.observers.phases.clone())
            }
            _ => exchange.respond(head, env, lease),
        }))
    }
}

/// The state between a request and the head of its answer.
struct Exchange {
    link: UpstreamConnection,
    upload: Upload,
    scanned: usize,
    saw_bytes: bool,
    /// Bytes of heads so far. Interim ones count as well, or a service could send them for ever.
    heads: usize,
}

impl Exchange {
    fn poll(&mut self, cx: &mut Context<'_>, outgoing: &mut Outgoing) -> Poll<Result<ResponseHead, ProxyError>> {
        match self.upload.poll(cx, &mut self.link.socket, &mut outgoing.body) {
            Poll::Ready(Err(UploadError::Body(error))) => return Poll::Ready(Err(error.into())),
            Poll::Ready(Err(UploadError::Stalled)) => return Poll::Ready(Err(Kind::ResponseTimeout.into())),
            // A service that takes no more may have said why, so the answer is still read.
            Poll::Ready(Err(UploadError::Refused) | Ok(())) | Poll::Pending => {}
        }
        if self.upload.has_moved() {
            self.link.idle_timer.moved();
        }
        loop {
            match head_len(&self.link.read, &mut self.scanned) {
                Ok(Some(len)) => match self.head(len, outgoing) {
                    Ok(Some(head)) => return Poll::Ready(Ok(head)),
                    // After an interim head, the next one starts from the beginning of what is left.
                    Ok(None) => {
                        self.scanned = 0;
                        cx.waker().wake_by_ref();
                    }
                    Err(error) => return Poll::Ready(Err(error)),
                },
                Ok(None) if self.link.read.len() > ANSWER_HEAD.bytes => {
                    return Poll::Ready(Err(nonsense("the head of the answer is too large")));
                }
                Ok(None) => match self.link.poll_fill_lent(cx) {
                    Poll::Ready(Ok(n)) if n > 0 => self.saw_bytes = true,
                    Poll::Ready(_) if is_tls(&self.link.read) => {
                        return Poll::Ready(Err(ProxyError::new(Kind::Reset, FailureCause::NotPlain)));
                    }
                    Poll::Ready(end) => return Poll::Ready(Err(hung_up(end.err()))),
                    Poll::Pending => {
                        self.link.read.give_back();
                        return self.link.idle_timer.poll(cx).map(|()| Err(Kind::ResponseTimeout.into()));
                    }
                },
                Err(_) if is_tls(&self.link.read) => {
                    return Poll::Ready(Err(ProxyError::new(Kind::BadResponse, FailureCause::NotPlain)));
                }
                Err(error) => return Poll::Ready(Err(ProxyError::new(Kind::BadResponse, error))),
            }
        }
    }

    /// A final head, or `None` after an interim one.
    fn head(&mut self, len: usize, outgoing: &mut Outgoing) -> Result<Option<ResponseHead>, ProxyError> {
        self.heads += len;
        if self.heads > ANSWER_HEAD.bytes {
            return Err(nonsense("the heads of the answer are too large"));
        }
        let mut head = wire::parse_response(&self.link.read[..len], &outgoing.method, &ANSWER_HEAD)
            .map_err(|error| ProxyError::new(Kind::BadResponse, error))?;
        self.link.read.bytes_mut().advance(len);
        match head.status.as_u16() {
            100 => self.upload.may_go(&mut outgoing.body),
            101 if !outgoing.websocket => return Err(nonsense("an upgrade that was not asked for")),
            101 if websocket::is_accepted(&outgoing.fields, outgoing.client, &head.fields) => return Ok(Some(head)),
            101 => return Err(nonsense("an upgrade without the proof that it answers this request")),
            102..=199 => {
                if let Some(interim) = &outgoing.observers.interim {
                    wire::strip_hop(&mut head.fields);
                    head.fields.remove(header::CONTENT_LENGTH);
                    head.fields.remove(header::ALT_SVC);
                    interim.push_interim(head.status, &head.fields);
                }
            }
            _ => return Ok(Some(head)),
        }
        Ok(None)
    }

    /// The response with the body that follows its head.
    fn respond(mut self, head: ResponseHead, env: &Env, lease: Lease) -> Response {
        let is_error = head.status.is_client_error() || head.status.is_server_error();
        let (upload, keep) = match self.upload.is_done() {
            true => (None, head.keep_alive),
            // A service that has refused the request, or has not asked for a body that waits to be asked for (RFC 9110
            // section 10.1.1), or will close: the upload is dropped, and with it the request's body, so that its client is
            // told to stop. A success that comes early says nothing of that kind.
            false if is_error || self.upload.is_held() || !head.keep_alive => (None, false),
            false => (Some(self.upload), true),
        };
        let whole = if upload.is_none() { self.link.read.whole_body(head.framing) } else { None };
        self.link.read.give_back();
        let body = match whole {
            Some(body) => {
                if keep && self.link.read.is_empty() {
                    lease.give_back(self.link);
                }
                body
            }
            None => {
                let exchange = response_body::Exchange { connection: self.link, lease, upload, keep };
                Body::stream(ResponseBody::new(exchange, head.framing, env.body_stall))
            }
        };
        Response { status: head.status, fields: head.fields, body, takeover: None }
    }
}

/// The answer to an upgrade, with the tunnel that waits for its client side.
fn upgraded(
    head: ResponseHead,
    mut link: UpstreamConnection,
    env: &Env,
    lease: Lease,
    phases: Option<Arc<Phases>>,
) -> Response {
    let settings =
        tunnel::Settings { idle: env.tunnel_idle, drain: env.drain.clone(), open: env.tunnels.clone(), phases };
    let early = link.read.take_all();
    let takeover = UpgradeHandler::new(move |client, from_client| {
        Box::pin(async move {
            tunnel::run(client, from_client, link.socket, early, settings).await;
            drop((link.permit, lease));
        })
    });
    Response { status: head.status, fields: head.fields, body: Body::empty(), takeover: Some(takeover) }
}

/// Whether a response begins as a TLS record does: an alert, or a handshake (RFC 8446 section 5.1).
fn is_tls(read: &[u8]) -> bool {
    matches!(read.first(), Some(0x15 | 0x16))
}

fn nonsense(what: &'static str) -> ProxyError {
    ProxyError::new(Kind::BadResponse, WireError::Malformed(what))
}

fn hung_up(cause: Option<std::io::Error>) -> ProxyError {
    let cause: BoxError = cause.map_or_else(|| WireError::Malformed("closed without an answer").into(), Into::into);
    ProxyError::new(Kind::Reset, cause)
}
