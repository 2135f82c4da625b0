//! One request of an HTTP/2 connection and its answer.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, ext::Protocol, server::SendResponse};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body::Body as _;
use tokio_util::task::TaskTracker;

use super::{body::Upload, tunnel::Bytestream};
use crate::{
    body::{Body, Request, Response},
    conn::{ConnInfo, ExtendedConnect, Interim, InterimSink, Takeover},
    error::Kind,
    serve::{
        Handler, Settings, date, normalize,
        watchdog::{OpenStream, Streams},
    },
    wire,
};

/// Fields that HTTP/2 forbids (RFC 9113 section 8.2.2). h2 refuses to send an answer that has one.
const FORBIDDEN: [HeaderName; 6] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::TE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Takes them away. Nearly no answer has one, and a walk over its names costs less than six look-ups.
fn strip_forbidden(headers: &mut HeaderMap) {
    if headers.keys().any(|name| FORBIDDEN.contains(name)) {
        for name in &FORBIDDEN {
            headers.remove(name);
        }
    }
}

/// What the streams of one connection share.
pub struct Exchange<H> {
    pub conn: Arc<ConnInfo>,
    pub handler: H,
    pub settings: Arc<Settings>,
    pub streams: Arc<Streams>,
    pub tasks: TaskTracker,
}

/// Interim answers of one stream that wait to be sent. How many there may be is the upstream's bound.
#[derive(Default)]
struct Hints(Mutex<Vec<(StatusCode, HeaderMap)>>);

impl Hints {
    fn waiting(&self) -> MutexGuard<'_, Vec<(StatusCode, HeaderMap)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, respond: &mut SendResponse<Bytes>) {
        for (status, mut headers) in self.waiting().drain(..) {
            strip_forbidden(&mut headers);
            let mut hint = http::Response::new(());
            *hint.status_mut() = status;
            *hint.headers_mut() = headers;
            // Whoever has reset the stream needs no hints.
            let _ = respond.send_informational(hint);
        }
    }
}

impl InterimSink for Hints {
    fn push(&self, status: StatusCode, headers: &HeaderMap) {
        self.waiting().push((status, headers.clone()));
    }
}

/// The stream is over before its answer: reset by the client, or gone with its connection.
struct Gone;

impl<H: Handler> Exchange<H> {
    /// Answers a request, to the last byte of its body.
    pub fn answer(
        &self,
        incoming: http::Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> impl Future<Output = ()> + use<'_, H> {
        let mut stream = OpenStream::new(&self.streams);
        let is_head = incoming.method() == Method::HEAD;
        let target = incoming.uri().path_and_query().cloned();
        let (request, tunnel) = self.request(incoming);
        let hints = Arc::<Hints>::default();
        // Boxed, so that a stream is small where it is moved, and while its body is sent.
        let handling = match request {
            Ok(mut request) => {
                request.extensions_mut().insert(Interim(hints.clone()));
                Ok(Box::pin(self.handler.handle(request, &self.conn)))
            }
            Err(kind) => {
                let target = target.as_ref().map(http::uri::PathAndQuery::as_str);
                Err(Box::new(self.handler.refuse(kind.into(), target, &self.conn)))
            }
        };
        // Not an async fn: its future would own a room for the request as it came, and one for each form that it takes.
        async move {
            let response = match handling {
                Ok(mut handling) => {
                    let answered = poll_fn(|cx| {
                        let answered = handling.as_mut().poll(cx);
                        hints.send(&mut respond);
                        match answered {
                            Poll::Ready(response) => Poll::Ready(Some(response)),
                            // A client that resets the stream takes its request with it.
                            Poll::Pending => respond.poll_reset(cx).map(|_reset| None),
                        }
                    });
                    let Some(response) = answered.await else { return };
                    response
                }
                Err(refusal) => *refusal,
            };
            if let Some((body, send)) = self.begin(response, respond, is_head, tunnel) {
                // Whoever is gone has been told so by h2.
                let _ = pipe(body, send, &mut stream).await;
            }
        }
    }

    /// Sends the head of an answer; the body that is to follow, if there is one.
    fn begin(
        &self,
        mut response: Response,
        mut respond: SendResponse<Bytes>,
        is_head: bool,
        tunnel: Option<RecvStream>,
    ) -> Option<(Body, SendStream<Bytes>)> {
        strip_forbidden(response.headers_mut());
        if let Some(tunnel) = tunnel
            && (response.status() == StatusCode::SWITCHING_PROTOCOLS || response.status().is_success())
        {
            self.bridge(response, respond, tunnel);
            return None;
        }
        let (head, body) = self.head(response, is_head);
        let Ok(send) = respond.send_response(head, body.is_end_stream()) else {
            // The client has reset the stream, or the answer cannot be said in HTTP/2.
            respond.send_reset(Reason::INTERNAL_ERROR);
            return None;
        };
        (!body.is_end_stream()).then_some((body, send))
    }

    /// The request as every handler sees it, and what a WebSocket needs besides.
    fn request(&self, incoming: http::Request<RecvStream>) -> (Result<Request, Kind>, Option<RecvStream>) {
        let (mut parts, stream) = incoming.into_parts();
        let protocol = parts.extensions.remove::<Protocol>();
        let settled = self.settle(&mut parts, protocol.as_ref());
        let (body, tunnel) = match &settled {
            Ok(()) if protocol.is_some() => (Body::empty(), Some(stream)),
            Ok(()) if stream.is_end_stream() => (Body::empty(), None),
            Ok(()) => {
                let upload = Upload::new(stream, &parts.headers, self.settings.body_stall, self.tasks.clone());
                (Body::stream(upload), None)
            }
            Err(_) => (Body::empty(), None),
        };
        (settled.map(|()| Request::from_parts(parts, body)), tunnel)
    }

    fn settle(&self, parts: &mut http::request::Parts, protocol: Option<&Protocol>) -> Result<(), Kind> {
        if let Some(protocol) = protocol {
            if parts.method != Method::CONNECT || !protocol.as_str().eq_ignore_ascii_case("websocket") {
                return Err(Kind::UnknownProtocol);
            }
            parts.method = Method::GET;
        }
        if parts.uri.path_and_query().is_some_and(|target| target.as_str().len() > self.settings.head.target) {
            return Err(Kind::TargetTooLong);
        }
        if parts.headers.len() > self.settings.head.fields {
            return Err(Kind::HeadTooLarge);
        }
        let dropped = normalize::multiplexed(&parts.method, &mut parts.uri, &mut parts.headers)?;
        self.settings.count_dropped(dropped);
        if protocol.is_some() {
            normalize::websocket_to_http1(&mut parts.headers, websocket_key());
            parts.extensions.insert(ExtendedConnect);
        }
        Ok(())
    }

    /// The head of an answer as it is sent, and the body that follows it.
    fn head(&self, response: Response, is_head: bool) -> (http::Response<()>, Body) {
        let (mut parts, body) = response.into_parts();
        if let Some(n @ 1..) = body.size_hint().exact() {
            parts.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| n.into());
        }
        parts.headers.entry(header::DATE).or_insert_with(|| date(self.settings.clock.now()));
        (http::Response::from_parts(parts, ()), if is_head { Body::empty() } else { body })
    }

    /// Turns the 101 of an upstream into the 200 of an extended CONNECT (RFC 8441 section 5), with the tunnel behind it.
    fn bridge(&self, mut response: Response, mut respond: SendResponse<Bytes>, recv: RecvStream) {
        let Some(takeover) = response.extensions_mut().remove::<Takeover>() else {
            // A success without a tunnel would be taken for one.
            return respond.send_reset(Reason::INTERNAL_ERROR);
        };
        *response.status_mut() = StatusCode::OK;
        response.headers_mut().remove(header::SEC_WEBSOCKET_ACCEPT);
        response.headers_mut().remove(header::CONTENT_LENGTH);
        let (head, _) = self.head(response.map(|_| Body::empty()), false);
        // Fails when the client left before the answer; then the tunnel is dropped with the takeover.
        let Ok(send) = respond.send_response(head, false) else { return };
        let open = OpenStream::new(&self.streams);
        self.tasks.spawn(async move {
            takeover.run(Box::new(Bytestream::new(send, recv)), Bytes::new()).await;
            drop(open);
        });
    }
}

/// Sends a body as it comes and as fast as the peer takes it.
async fn pipe(mut body: Body, mut send: SendStream<Bytes>, stream: &mut OpenStream) -> Result<(), Gone> {
    loop {
        let frame = poll_fn(|cx| match Pin::new(&mut body).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            Poll::Pending => send.poll_reset(cx).map(|_reset| Err(Gone)),
        });
        let frame = match frame.await? {
            Some(Ok(frame)) => frame,
            Some(Err(_cause)) => {
                // A cut body never ends cleanly.
                send.send_reset(Reason::INTERNAL_ERROR);
                return Err(Gone);
            }
            None => return send.send_data(Bytes::new(), true).map_err(|_reset| Gone),
        };
        match frame.into_data() {
            Ok(data) => {
                let last = body.is_end_stream();
                pass(data, last, &mut send, stream).await?;
                if last {
                    return Ok(());
                }
            }
            Err(frame) => {
                let Ok(trailers) = frame.into_trailers() else { continue };
                return send.send_trailers(wire::permitted_trailers(&trailers)).map_err(|_reset| Gone);
            }
        }
    }
}

/// Hands a piece over as far as the peer's windows let it leave. h2 would take all of it and keep what does not fit, and
/// then an answer whose last piece waits there for ever would count as sent.
async fn pass(mut data: Bytes, last: bool, send: &mut SendStream<Bytes>, stream: &mut OpenStream) -> Result<(), Gone> {
    loop {
        let fits = room(data.len(), send, stream).await?;
        let now = data.split_to(fits);
        let ends = last && data.is_empty();
        send.send_data(now, ends).map_err(|_reset| Gone)?;
        if data.is_empty() {
            return Ok(());
        }
    }
}

/// How much of what is wanted the peer takes now; waits until it is something.
async fn room(wanted: usize, send: &mut SendStream<Bytes>, stream: &mut OpenStream) -> Result<usize, Gone> {
    send.reserve_capacity(wanted);
    if wanted > 0 && send.capacity() == 0 {
        stream.waits_for_peer();
        let room = poll_fn(|cx| {
            while send.capacity() == 0 {
                let Some(Ok(_)) = ready!(send.poll_capacity(cx)) else { return Poll::Ready(Err(Gone)) };
            }
            Poll::Ready(Ok(()))
        });
        room.await?;
        stream.moves();
    }
    Ok(send.capacity().min(wanted))
}

/// RFC 6455 section 4.1 asks for 16 random bytes, so that no cache can answer for the server.
fn websocket_key() -> HeaderValue {
    use std::hash::{BuildHasher as _, RandomState};

    use base64::Engine as _;
    let random = [RandomState::new().hash_one(0), RandomState::new().hash_one(1)];
    let bytes: Vec<u8> = random.iter().flat_map(|half| half.to_ne_bytes()).collect();
    HeaderValue::try_from(base64::engine::general_purpose::STANDARD.encode(bytes)).expect("base64 is a valid value")
}
