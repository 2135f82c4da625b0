//! One request of an HTTP/2 connection and its answer.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
};

use bytes::Bytes;
use http::{Method, StatusCode, Version, header, uri::PathAndQuery};
use http_body::Body as _;
use tokio_util::task::TaskTracker;

use super::{
    StreamClosed,
    body::Upload,
    connection::Incoming,
    streams::{Receiver, Sender, Shared},
    tunnel::Bytestream,
    watch::{OpenStream, Streams},
};
use crate::{
    conn::{ConnInfo, InterimSink},
    error::Kind,
    message::{Body, Fields, Request, Response},
    serve::{Date, Handler, Settings, normalize},
    wire::{self, h2::Reason},
};

/// What the streams of one connection share.
pub struct Exchange<H> {
    pub conn: Arc<ConnInfo>,
    pub handler: H,
    pub settings: Arc<Settings>,
    pub streams: Arc<Streams>,
    pub tasks: TaskTracker,
    pub shared: Arc<Shared>,
}

/// Why a request is refused, and what it was for.
type Refused = (Kind, Option<PathAndQuery>);

impl InterimSink for Sender {
    fn push(&self, status: StatusCode, fields: &Fields) {
        self.hint(status, fields);
    }
}

impl<H: Handler> Exchange<H> {
    /// Answers a request, to the last byte of its body.
    pub fn answer(&self, incoming: Incoming) -> impl Future<Output = ()> + use<'_, H> {
        let mut stream = OpenStream::new(&self.streams);
        let send = Arc::new(Sender::new(self.shared.clone(), incoming.id));
        let is_head = incoming.head.method == Some(Method::HEAD);
        let (request, tunnel) = self.request(incoming);
        // Boxed, so that a stream is small where it is moved, and while its body is sent.
        let handling = match request {
            Ok(request) => Ok(Box::pin(self.handler.handle(request, &self.conn, Some(send.clone())))),
            Err((kind, target)) => {
                let target = target.as_ref().map(PathAndQuery::as_str);
                Err(Box::new(self.handler.refuse(kind.into(), target, &self.conn)))
            }
        };
        // Not an async fn: its future would own a room for the request as it came, and one for each form that it takes.
        async move {
            let response = match handling {
                Ok(mut handling) => {
                    let answered = poll_fn(|cx| match handling.as_mut().poll(cx) {
                        Poll::Ready(response) => Poll::Ready(Some(response)),
                        // A client that resets the stream takes its request with it.
                        Poll::Pending => send.poll_gone(cx).map(|()| None),
                    });
                    let Some(response) = answered.await else { return };
                    response
                }
                Err(refusal) => *refusal,
            };
            if let Some(body) = self.begin(response, &send, is_head, tunnel) {
                // Whoever is gone needs no more of it.
                let _ = pipe(body, &send, &mut stream).await;
            }
        }
    }

    /// Sends the head of an answer; the body that is to follow, if there is one.
    fn begin(&self, response: Response, send: &Arc<Sender>, is_head: bool, tunnel: Option<Receiver>) -> Option<Body> {
        if let Some(tunnel) = tunnel
            && (response.status == StatusCode::SWITCHING_PROTOCOLS || response.status.is_success())
        {
            self.bridge(response, send, tunnel);
            return None;
        }
        let Response { status, mut fields, body, .. } = response;
        self.complete(&mut fields, &body);
        let body = if is_head { Body::empty() } else { body };
        // A client that has reset the stream needs no answer.
        send.head(status, &fields, body.is_end_stream()).ok()?;
        (!body.is_end_stream()).then_some(body)
    }

    /// The request as every handler sees it, and what a WebSocket needs besides.
    fn request(&self, incoming: Incoming) -> (Result<Request, Refused>, Option<Receiver>) {
        let Incoming { id, mut head, ended } = incoming;
        self.settings.count_dropped(head.dropped);
        let is_websocket = head.protocol.is_some();
        let settled = self.settle(&mut head, is_websocket);
        // Named before anything can fail, so that a body which nobody wants is known to be unwanted.
        let arriving = (!ended).then(|| {
            let owes_continue = !is_websocket && wire::expects_continue(&head.fields);
            Receiver::new(self.shared.clone(), id, owes_continue)
        });
        let (method, uri) = match settled {
            Ok(settled) => settled,
            Err(kind) => return (Err((kind, head.path)), None),
        };
        let (body, tunnel) = match arriving {
            Some(arriving) if is_websocket => (Body::empty(), Some(arriving)),
            Some(arriving) => (Body::stream(Upload::new(arriving, &head.fields, self.settings.body_stall)), None),
            None => (Body::empty(), None),
        };
        (Ok(Request { method, uri, version: Version::HTTP_2, fields: head.fields, body }), tunnel)
    }

    fn settle(&self, head: &mut wire::h2::Head, is_websocket: bool) -> Result<(Method, http::Uri), Kind> {
        if head.path.as_ref().is_some_and(|target| target.as_str().len() > self.settings.head.target) {
            return Err(Kind::TargetTooLong);
        }
        if head.fields.len() > self.settings.head.fields {
            return Err(Kind::HeadTooLarge);
        }
        let settled = normalize::multiplexed(head)?;
        if is_websocket {
            normalize::websocket_to_http1(&mut head.fields, &websocket_key());
        }
        Ok(settled)
    }

    /// What every head says that the handler may have left to us.
    fn complete(&self, fields: &mut Fields, body: &Body) {
        if let Some(n @ 1..) = body.size_hint().exact()
            && !fields.contains(header::CONTENT_LENGTH)
        {
            fields.insert_number(header::CONTENT_LENGTH, n);
        }
        if !fields.contains(header::DATE) {
            fields.append(header::DATE, Date::of(self.settings.clock.now()).value());
        }
    }

    /// Turns the 101 of an upstream into the 200 of an extended CONNECT (RFC 8441 section 5), with the tunnel behind it.
    fn bridge(&self, mut response: Response, send: &Arc<Sender>, recv: Receiver) {
        let Some(takeover) = response.takeover.take() else {
            // A success without a tunnel would be taken for one.
            return send.reset(Reason::INTERNAL_ERROR);
        };
        response.fields.remove(header::SEC_WEBSOCKET_ACCEPT);
        response.fields.remove(header::CONTENT_LENGTH);
        self.complete(&mut response.fields, &Body::empty());
        // Fails when the client left before the answer; then the tunnel is dropped with the takeover.
        let Ok(()) = send.head(StatusCode::OK, &response.fields, false) else { return };
        let (open, send) = (OpenStream::new(&self.streams), send.clone());
        self.tasks.spawn(async move {
            takeover.run(Box::new(Bytestream::new(send, recv)), Bytes::new()).await;
            drop(open);
        });
    }
}

/// Sends a body as it comes and as fast as the peer takes it.
async fn pipe(mut body: Body, send: &Sender, stream: &mut OpenStream) -> Result<(), StreamClosed> {
    loop {
        let frame = poll_fn(|cx| match Pin::new(&mut body).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            Poll::Pending => send.poll_gone(cx).map(|()| Err(StreamClosed)),
        });
        let frame = match frame.await? {
            Some(Ok(frame)) => frame,
            Some(Err(_cause)) => {
                // A cut body never ends cleanly.
                send.reset(Reason::INTERNAL_ERROR);
                return Err(StreamClosed);
            }
            None => return send.data(&[], true),
        };
        match frame.into_data() {
            Ok(data) => {
                let last = body.is_end_stream();
                pass(&data, last, send, stream).await?;
                if last {
                    return Ok(());
                }
            }
            Err(frame) => {
                let Ok(trailers) = frame.into_trailers() else { continue };
                return send.trailers(&wire::permitted_trailers(&trailers));
            }
        }
    }
}

/// Hands a piece over as far as the peer's windows let it leave.
async fn pass(mut data: &[u8], last: bool, send: &Sender, stream: &mut OpenStream) -> Result<(), StreamClosed> {
    if data.is_empty() && last {
        return send.data(&[], true);
    }
    while !data.is_empty() {
        let fits = poll_fn(|cx| {
            let room = send.poll_room(cx, data.len());
            if room.is_pending() {
                stream.waits_for_peer();
            } else {
                stream.moves();
            }
            room
        });
        let (now, later) = data.split_at(fits.await?);
        data = later;
        send.data(now, last && data.is_empty())?;
    }
    Ok(())
}

/// RFC 6455 section 4.1 asks for 16 random bytes, so that no cache can answer for the server.
fn websocket_key() -> String {
    use std::hash::{BuildHasher as _, RandomState};

    use base64::Engine as _;
    let random = [RandomState::new().hash_one(0), RandomState::new().hash_one(1)];
    let bytes: Vec<u8> = random.iter().flat_map(|half| half.to_ne_bytes()).collect();
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
