//! One request of an HTTP/2 connection and its answer.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
};

use bytes::Bytes;
use http::{Method, StatusCode, Version, header, uri::PathAndQuery};
use http_body::Body as _;
use tokio_util::task::TaskTracker;

use super::{
    body::Upload,
    shared::{Receiver, Sender, Shared, TurnPermit},
    tunnel::Bytestream,
};
use crate::{
    conn::ConnInfo,
    drain::{Drain, Kind as Work},
    error::Kind,
    message::{Body, Fields, Request, Response},
    serve::{Date, Handler, Settings, normalize},
    wire::{
        self,
        h2::{
            Head, Reason,
            connection::{Incoming, StreamClosed},
        },
    },
};

/// What the streams of one connection share.
pub struct Exchange<'a, H> {
    pub conn: Arc<ConnInfo>,
    pub handler: H,
    pub settings: Arc<Settings>,
    pub tasks: TaskTracker,
    pub shared: Arc<Shared>,
    pub drain: &'a Drain,
}

/// Why a request is refused, and what it was for.
type Refused = (Kind, Option<PathAndQuery>);

impl<'a, H: Handler> Exchange<'a, H> {
    /// Answers a request, to the last byte of its body. A stream that closes takes its request with it.
    pub fn answer(&self, incoming: Incoming) -> impl Future<Output = ()> + use<'_, 'a, H> {
        let send = Arc::new(Sender::new(self.shared.clone(), incoming.id));
        let is_head = incoming.head.method == Some(Method::HEAD);
        let has_body = !incoming.ended && incoming.head.protocol.is_none();
        let method = incoming.head.method.as_ref();
        let mut in_flight = self.drain.begin(method.map_or(Work::Poll, |method| Work::of(method, has_body)));
        let (request, tunnel) = self.request(incoming);
        // Boxed, so that a stream is small where it is moved, and while its body is sent.
        let handling = match request {
            Ok(request) => Ok(Box::pin(self.handler.handle(request, &self.conn, send.clone()))),
            Err((kind, target)) => {
                let target = target.as_ref().map(PathAndQuery::as_str);
                Err(Box::new(self.handler.refuse(kind.into(), target, &self.conn)))
            }
        };
        // Not an async fn: its future would own a room for the request as it came, and one for each form that it takes.
        async move {
            let mut work = pin!(async {
                let response = match handling {
                    Ok(mut handling) => {
                        let answered = poll_fn(|cx| match handling.as_mut().poll(cx) {
                            Poll::Ready(response) => Poll::Ready(Some(response)),
                            Poll::Pending => in_flight.poll_expired(cx).map(|()| None),
                        });
                        let Some(response) = answered.await else {
                            in_flight.end();
                            // Which clients take as leave to send the request again (RFC 9113 section 8.7).
                            return send.reset(Reason::REFUSED_STREAM);
                        };
                        response
                    }
                    Err(refusal) => *refusal,
                };
                in_flight.answers();
                if let Some(body) = self.begin(response, &send, is_head, tunnel) {
                    // Nobody is there who wants the rest of a stream that has closed.
                    let _ = pipe(body, &send).await;
                }
            });
            poll_fn(|cx| match send.begin_poll(cx) {
                TurnPermit::Granted => work.as_mut().poll(cx),
                TurnPermit::Spent => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                TurnPermit::Closed => Poll::Ready(()),
            })
            .await;
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
        let Incoming { id, mut head, ended, .. } = incoming;
        self.settings.count_dropped(head.dropped);
        let is_websocket = head.protocol.is_some();
        let settled = self.settle(&mut head, is_websocket);
        // Named before anything can fail, so that a body which nobody wants is known to be unwanted.
        let arriving = (!ended).then(|| Receiver::new(self.shared.clone(), id));
        let (method, uri) = match settled {
            Ok(settled) => settled,
            Err(kind) => return (Err((kind, head.path)), None),
        };
        let (body, tunnel) = match arriving {
            Some(arriving) if is_websocket => (Body::empty(), Some(arriving)),
            Some(arriving) => (Body::stream(Upload::new(arriving, &head.fields)), None),
            None => (Body::empty(), None),
        };
        (Ok(Request { method, uri, version: Version::HTTP_2, fields: head.fields, body }), tunnel)
    }

    fn settle(&self, head: &mut Head, is_websocket: bool) -> Result<(Method, http::Uri), Kind> {
        if head.path.as_ref().is_some_and(|target| target.as_str().len() > self.settings.head.target) {
            return Err(Kind::TargetTooLong);
        }
        let settled = normalize::multiplexed(head)?;
        // Counted now that a cookie is one field, in however many crumbs it came.
        if head.fields.len() > self.settings.head.fields {
            return Err(Kind::HeadTooLarge);
        }
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
        let stream = Bytestream::new(send.clone(), recv);
        self.tasks.spawn(takeover.run(Box::new(stream), Bytes::new()));
    }
}

/// Sends a body as it comes and as fast as the peer takes it.
async fn pipe(mut body: Body, send: &Sender) -> Result<(), StreamClosed> {
    loop {
        let frame = match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
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
                pass(&data, last, send).await?;
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

/// Sends a part of a body as far as the peer's windows let it leave.
async fn pass(mut data: &[u8], last: bool, send: &Sender) -> Result<(), StreamClosed> {
    if data.is_empty() && last {
        return send.data(&[], true);
    }
    while !data.is_empty() {
        let room = poll_fn(|cx| send.poll_room(cx, data.len())).await?;
        let (now, later) = data.split_at(room);
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
