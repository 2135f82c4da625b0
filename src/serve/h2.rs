//! HTTP/2 towards clients (RFC 9113) with hyper, WebSocket included (RFC 8441), and the driver that gives a connection
//! what hyper does not: writes that leave together, a bound on silence, and an end.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::{body::Incoming, ext::Protocol, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Handler, Settings,
    coalesce::{Pusher, coalesce},
    normalize,
    watchdog::{OpenStream, Streams},
};
use crate::{
    body::{Body, BodyError, Request, Response},
    clock::Patience,
    conn::{ConnInfo, ExtendedConnect, Io, Takeover},
    error::Kind,
};

/// Flow-control windows: a stream may have so much in flight as fills a fast line at a moderate distance; a connection,
/// four of them. Memory follows only where a client sends and an upstream does not read.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Largest frame we take; fewer, larger frames make uploads cheaper.
const MAX_FRAME: u32 = 64 * 1024;

/// What may wait in h2 for a peer's window, per stream.
const SEND_BUFFER: usize = 64 * 1024;

/// Streams that a client opened and reset before we took them, and streams that its errors made us reset
/// (CVE-2023-44487 and its mirror image, CVE-2025-8671); beyond that the connection is closed.
const PENDING_RESETS: usize = 20;
const ERROR_RESETS: usize = 128;

/// How often the watchdog looks. Limits are met within this much.
const LOOK: Duration = Duration::from_millis(500);

/// After the last GOAWAY of an idle or draining connection, how long the peer has to leave.
const LEAVE: Duration = Duration::from_secs(5);

/// How long a stream is held whose body nobody wants.
const HOLD: Duration = Duration::from_secs(1);

/// An answer that waits for its peer this many times `body_stall` is given up, even if others of the connection move.
const PATIENCE: u32 = 10;

/// Serves a connection to its end.
pub async fn serve<IO: Io, H: Handler>(
    io: IO,
    conn: Arc<ConnInfo>,
    handler: H,
    settings: Arc<Settings>,
    drain: CancellationToken,
    tasks: TaskTracker,
) {
    let (io, pusher) = coalesce(io);
    let streams = Streams::new();
    let exchange =
        Exchange { conn, handler, settings: settings.clone(), streams: streams.clone(), tasks: tasks.clone() };
    let service = service_fn(move |request| {
        let exchange = exchange.clone();
        async move { exchange.answer(request).await }
    });
    let head = settings.head.bytes + settings.head.target;
    let connection = http2::Builder::new(Tracked(tasks))
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.streams)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(head).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(ERROR_RESETS)
        .enable_connect_protocol()
        .auto_date_header(true)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection);
    let mut draining = pin!(drain.cancelled());
    let mut watch = Watch::new(&settings, streams);
    let mut leaving = false;
    poll_fn(|cx| {
        if !leaving && (draining.as_mut().poll(cx).is_ready() || watch.is_idle()) {
            leaving = true;
            watch.leaves();
            connection.as_mut().graceful_shutdown();
        }
        let ended = connection.as_mut().poll(cx).is_ready();
        // What this poll wrote leaves now, in one piece.
        match pusher.poll_push(cx) {
            Poll::Ready(Err(_)) => return Poll::Ready(()),
            Poll::Ready(Ok(())) if ended => return Poll::Ready(()),
            _ => {}
        }
        if ended && watch.gone_for_good() {
            return Poll::Ready(());
        }
        watch.poll(cx, &pusher)
    })
    .await;
}

/// Judges a connection twice a second.
struct Watch {
    streams: Arc<Streams>,
    look: Pin<Box<Sleep>>,
    keep_alive: Option<Duration>,
    body_stall: Option<Duration>,
    idle_since: Instant,
    written: u64,
    written_at: Instant,
    leaving_since: Option<Instant>,
}

impl Watch {
    fn new(settings: &Settings, streams: Arc<Streams>) -> Self {
        let now = Instant::now();
        Self {
            streams,
            look: Box::pin(sleep(LOOK)),
            keep_alive: settings.keep_alive,
            body_stall: settings.body_stall,
            idle_since: now,
            written: 0,
            written_at: now,
            leaving_since: None,
        }
    }

    fn is_idle(&self) -> bool {
        self.streams.open() == 0 && self.keep_alive.is_some_and(|limit| self.idle_since.elapsed() >= limit)
    }

    fn leaves(&mut self) {
        self.leaving_since = Some(Instant::now());
    }

    fn gone_for_good(&self) -> bool {
        self.leaving_since.is_some_and(|since| since.elapsed() >= LEAVE)
    }

    /// Ready when the connection is to be dropped.
    fn poll<IO: Io>(&mut self, cx: &mut Context<'_>, pusher: &Pusher<IO>) -> Poll<()> {
        while self.look.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            self.look.as_mut().reset(now + LOOK);
            if self.streams.open() > 0 {
                self.idle_since = now;
            }
            let (written, waits) = pusher.progress();
            if written != self.written || !(waits || self.streams.waiting_since().is_some()) {
                (self.written, self.written_at) = (written, now);
            }
            if self.is_stalled(now) || (self.streams.open() == 0 && self.gone_for_good()) {
                return Poll::Ready(());
            }
            if self.leaving_since.is_none() && self.is_idle() {
                // The next poll begins the farewell.
                cx.waker().wake_by_ref();
            }
        }
        Poll::Pending
    }

    fn is_stalled(&self, now: Instant) -> bool {
        let Some(limit) = self.body_stall else { return false };
        let nothing_moves = now.duration_since(self.written_at) >= limit;
        let oldest = self.streams.waiting_since().map(|since| now.duration_since(since));
        nothing_moves || oldest.is_some_and(|waiting| waiting >= limit * PATIENCE)
    }
}

/// What the streams of one connection share.
#[derive(Clone)]
struct Exchange<H> {
    conn: Arc<ConnInfo>,
    handler: H,
    settings: Arc<Settings>,
    streams: Arc<Streams>,
    tasks: TaskTracker,
}

impl<H: Handler> Exchange<H> {
    async fn answer(self, mut incoming: http::Request<Incoming>) -> Result<http::Response<Outgoing>, BodyError> {
        let mut stream = OpenStream::new(&self.streams);
        let is_head = incoming.method() == Method::HEAD;
        let upgrade = (incoming.method() == Method::CONNECT && incoming.extensions().get::<Protocol>().is_some())
            .then(|| hyper::upgrade::on(&mut incoming));
        let target = incoming.uri().path_and_query().map(|target| target.as_str().to_owned());
        let mut response = match self.request(incoming) {
            Ok(request) => self.handler.handle(request, &self.conn).await,
            Err(kind) => self.handler.refuse(kind.into(), target.as_deref(), &self.conn),
        };
        if let Some(upgrade) = upgrade {
            self.bridge(&mut response, upgrade);
        }
        for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
            response.headers_mut().remove(name);
        }
        if is_head && let Some(n @ 1..) = response.body().size_hint().exact() {
            response.headers_mut().entry(header::CONTENT_LENGTH).or_insert_with(|| n.into());
        }
        stream.waits_for_peer();
        Ok(response.map(|body| Outgoing { inner: if is_head { Body::empty() } else { body }, stream }))
    }

    /// The request as every handler sees it.
    fn request(&self, incoming: http::Request<Incoming>) -> Result<Request, Kind> {
        let (mut parts, body) = incoming.into_parts();
        let protocol = parts.extensions.remove::<Protocol>();
        if let Some(protocol) = &protocol {
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
        parts.extensions.insert(self.conn.clone());
        let body = if protocol.is_some() {
            normalize::websocket_to_http1(&mut parts.headers, websocket_key());
            parts.extensions.insert(ExtendedConnect);
            Body::empty()
        } else if body.is_end_stream() {
            Body::empty()
        } else {
            let stall = Patience::new(self.settings.body_stall);
            Body::stream(Upload { inner: Some(body), stall, tasks: self.tasks.clone() })
        };
        Ok(Request::from_parts(parts, body))
    }

    /// Turns the 101 of an upstream into the 200 of an extended CONNECT (RFC 8441 section 5), with the tunnel behind it.
    fn bridge(&self, response: &mut Response, upgrade: hyper::upgrade::OnUpgrade) {
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return;
        }
        *response.status_mut() = StatusCode::OK;
        response.headers_mut().remove(header::SEC_WEBSOCKET_ACCEPT);
        response.headers_mut().remove(header::CONTENT_LENGTH);
        let Some(takeover) = response.extensions_mut().remove::<Takeover>() else { return };
        let open = OpenStream::new(&self.streams);
        self.tasks.spawn(async move {
            // Fails when the client left before the answer; then the tunnel is dropped with the takeover.
            if let Ok(io) = upgrade.await {
                takeover.run(Box::new(TokioIo::new(io)), Bytes::new()).await;
            }
            drop(open);
        });
    }
}

/// RFC 6455 section 4.1 asks for 16 random bytes, so that no cache can answer for the server.
fn websocket_key() -> HeaderValue {
    use std::hash::{BuildHasher as _, RandomState};

    use base64::Engine as _;
    let random = [RandomState::new().hash_one(0), RandomState::new().hash_one(1)];
    let bytes: Vec<u8> = random.iter().flat_map(|half| half.to_ne_bytes()).collect();
    HeaderValue::try_from(base64::engine::general_purpose::STANDARD.encode(bytes)).expect("base64 is a valid value")
}

/// The body of a request.
struct Upload {
    /// Taken only by drop.
    inner: Option<Incoming>,
    stall: Patience,
    tasks: TaskTracker,
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        match Pin::new(inner).poll_frame(cx) {
            Poll::Ready(frame) => {
                this.stall.moved();
                Poll::Ready(frame.map(|frame| frame.map_err(|_reset| BodyError::Truncated)))
            }
            Poll::Pending => this.stall.poll(cx).map(|()| Some(Err(BodyError::Stalled))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(SizeHint::default, HttpBody::size_hint)
    }
}

impl Drop for Upload {
    /// Nobody wants the rest. Dropped at once, hyper would send RST_STREAM(NO_ERROR) right behind the answer (RFC 9113
    /// section 8.1), and clients that still write take it for a failure and forget the answer (curl before 8). So the
    /// stream is held for a moment: its window fills, the client reads why, and most stop by themselves. What is held
    /// is bounded by the window of the connection.
    fn drop(&mut self) {
        let Some(mut inner) = self.inner.take() else { return };
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let over = inner.is_end_stream()
            || matches!(Pin::new(&mut inner).poll_frame(&mut cx), Poll::Ready(None | Some(Err(_))));
        if !over {
            self.tasks.spawn(async move {
                sleep(HOLD).await;
                drop(inner);
            });
        }
    }
}

/// The body of an answer, and the stream that is open as long as it is.
struct Outgoing {
    inner: Body,
    stream: OpenStream,
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        // Being asked for more means that the peer has taken what there was.
        self.stream.moves();
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if frame.is_some() {
            self.stream.waits_for_peer();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Runs the streams of a connection on the worker's runtime, tracked.
#[derive(Clone)]
struct Tracked(TaskTracker);

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}
