//! HTTP/2 towards clients (RFC 9113) with the h2 crate, WebSocket included (RFC 8441), and the driver that gives a
//! connection what h2 does not: writes that leave together, a bound on silence, and an end.
//!
//! A connection is one task, its streams included. hyper's server makes a task of each stream, which moves every future
//! four times and wakes one task to wake another; driven here, a small answer costs ~7,000 instructions less.

mod body;
mod exchange;
mod tunnel;

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use h2::{
    RecvStream,
    server::{Builder, Connection, Handshake, SendResponse},
};
use tokio::{
    task::unconstrained,
    time::{Instant, Sleep, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::exchange::Exchange;
use super::{
    Handler, Settings,
    coalesce::{Coalesce, Pusher, coalesce},
    watchdog::Streams,
};
use crate::conn::{ConnInfo, Io};

/// Flow-control windows: a stream may have so much in flight as fills a fast line at a moderate distance; a connection,
/// four of them. Memory follows only where a client sends and an upstream does not read.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Largest frame we take; fewer, larger frames make uploads cheaper.
const MAX_FRAME: u32 = 64 * 1024;

/// What may wait in h2 for the socket, per stream: a piece of an upstream's answer, and the next one.
const SEND_BUFFER: usize = 128 * 1024;

/// Streams that a client opened and reset before we took them, and streams that its errors made us reset
/// (CVE-2023-44487 and its mirror image, CVE-2025-8671); beyond that the connection is closed.
const PENDING_RESETS: usize = 20;
const ERROR_RESETS: usize = 128;

/// How often the watchdog looks. Limits are met within this much.
const LOOK: Duration = Duration::from_millis(500);

/// After the last GOAWAY of an idle or draining connection, how long the peer has to leave.
const LEAVE: Duration = Duration::from_secs(5);

/// How often one turn of a connection goes round between its frames and its streams before the other connections of the
/// thread have theirs: a client whose requests are answered at once could go on for as long as it sends.
const ROUNDS: usize = 8;

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
    let mut wire = Wire::Opening(builder(&settings).handshake(io));
    let mut draining = pin!(drain.cancelled());
    let mut watch = Watch::new(&settings, streams.clone());
    let exchange = Exchange { conn, handler, settings, streams, tasks };
    let mut exchanges = FuturesUnordered::new();
    let mut leaving = false;
    poll_fn(|cx| {
        pusher.begin();
        if !leaving && (draining.as_mut().poll(cx).is_ready() || watch.is_idle()) {
            leaving = true;
            watch.leaves();
            wire.leave();
        }
        let ended =
            wire.poll(cx, leaving, &mut exchanges, |request, respond| exchange.answer(request, respond)).is_ready();
        // What this poll wrote leaves now, in one piece.
        match pusher.poll_push(cx) {
            Poll::Ready(Err(_)) => return Poll::Ready(()),
            Poll::Ready(Ok(())) if ended => return Poll::Ready(()),
            _ => {}
        }
        if ended && !leaving {
            // What is written still waits for the peer, but not for longer than a farewell.
            leaving = true;
            watch.leaves();
        }
        if ended && watch.gone_for_good() {
            return Poll::Ready(());
        }
        watch.poll(cx, &pusher)
    })
    .await;
}

fn builder(settings: &Settings) -> Builder {
    let head = settings.head.bytes + settings.head.target;
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(settings.streams)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(head).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(Some(ERROR_RESETS))
        .enable_connect_protocol();
    builder
}

/// A connection before and after its preface.
enum Wire<IO> {
    Opening(Handshake<Coalesce<IO>, Bytes>),
    Open(Connection<Coalesce<IO>, Bytes>),
    Ended,
}

impl<IO: Io> Wire<IO> {
    /// No new streams from now on, beyond those that are on their way.
    fn leave(&mut self) {
        if let Self::Open(connection) = self {
            connection.graceful_shutdown();
        }
    }

    /// Reads frames and lets the streams work, until neither gets any further or others are due. Ready when the connection has ended.
    fn poll<F: Future<Output = ()>>(
        &mut self,
        cx: &mut Context<'_>,
        leaving: bool,
        exchanges: &mut FuturesUnordered<F>,
        answer: impl Fn(http::Request<RecvStream>, SendResponse<Bytes>) -> F,
    ) -> Poll<()> {
        if let Self::Opening(handshake) = self {
            *self = match ready!(Pin::new(handshake).poll(cx)) {
                Ok(connection) => Self::Open(connection),
                Err(_nobody_speaks_http2) => Self::Ended,
            };
            if leaving {
                self.leave();
            }
        }
        for _ in 0..ROUNDS {
            let Self::Open(connection) = self else { return Poll::Ready(()) };
            while let Poll::Ready(request) = connection.poll_accept(cx) {
                let Some(Ok((request, respond))) = request else {
                    // Over, cleanly or not: whatever still runs has nobody to answer.
                    *self = Self::Ended;
                    exchanges.clear();
                    return Poll::Ready(());
                };
                exchanges.push(answer(request, respond));
            }
            // Without tokio's budget of 128 operations a poll, which is meant for one request and not for all those of
            // a connection: once it is spent, everybody who is polled after that only asks to be polled again. The
            // windows bound what one turn can move.
            let mut turn = pin!(unconstrained(poll_fn(|cx| {
                let mut answered = false;
                while let Poll::Ready(Some(())) = exchanges.poll_next_unpin(cx) {
                    answered = true;
                }
                Poll::Ready(answered)
            })));
            if turn.as_mut().poll(cx) != Poll::Ready(true) {
                return Poll::Pending;
            }
            // Another look at the connection writes the frames of these answers down.
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Judges a connection twice a second.
struct Watch {
    streams: Arc<Streams>,
    look: Pin<Box<Sleep>>,
    keep_alive: Option<Duration>,
    body_stall: Option<Duration>,
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
            written: 0,
            written_at: now,
            leaving_since: None,
        }
    }

    fn is_idle(&self) -> bool {
        let since = self.streams.idle_since();
        since.is_some_and(|since| self.keep_alive.is_some_and(|limit| since.elapsed() >= limit))
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
