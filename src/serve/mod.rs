//! HTTP towards clients: framing, and everything that is timed or bounded on a client's connection.
//!
//! HTTP/1.1 is our own (`h1`), because what a proxy must refuse (bare LF, `Content-Length` beside `Transfer-Encoding`)
//! cannot be seen after a lenient parser, and because an idle connection should own no buffer. So is HTTP/2 (`h2`), for what it
//! costs otherwise.
//! A [`Handler`] answers the requests; this module does not know what is behind it.

mod h1;
mod h2;
pub mod normalize;

use std::{
    cell::Cell,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio_util::task::TaskTracker;

use crate::{
    clock::Clock,
    config::plan::{Limits, Timeouts},
    conn::{Alpn, ClientHandle, ConnInfo},
    drain::Drain,
    error::ProxyError,
    message::{ClientIo, Request, Response, Value},
    wire::HeadLimits,
};

pub use crate::wire::h2::cost::FIRST_REQUEST;

/// Answers requests.
///
/// What arrives is settled: the target is in origin-form (or the asterisk of OPTIONS), byte for byte as it was sent;
/// there is exactly one valid `Host` field, equal to `:authority` and to the authority of an absolute-form target;
/// `Transfer-Encoding` is gone and the body knows its length or not; a WebSocket of HTTP/2 is the GET that it
/// is in HTTP/1.1.
///
/// The future is dropped when the client leaves. A 101 with a [`UpgradeHandler`](crate::message::UpgradeHandler) gets the byte stream.
pub trait Handler: Clone + Send + Sync + 'static {
    /// Answers one request.
    fn handle(
        &self,
        request: Request,
        conn: &Arc<ConnInfo>,
        client: ClientHandle,
    ) -> impl Future<Output = Response> + Send;

    /// The answer to something that never became a request; `target` as far as it could be read.
    fn refuse(&self, error: ProxyError, target: Option<&str>, conn: &Arc<ConnInfo>) -> Response;
}

/// Bounds on a connection, as the configuration has them.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bounds on a request head.
    pub head: HeadLimits,
    /// Streams in flight on one HTTP/2 connection.
    pub streams: u32,
    /// From the first byte of a head to its last.
    pub header: Option<Duration>,
    /// A connection without a request.
    pub keep_alive: Option<Duration>,
    /// A body of which no byte moves, in either direction.
    pub body_stall: Option<Duration>,
    /// For `Date`.
    pub clock: Clock,
    /// Counts fields that were dropped for an underscore in their name.
    pub dropped: Arc<AtomicU64>,
}

impl Settings {
    /// The bounds of a plan.
    #[must_use]
    pub fn new(limits: &Limits, timeouts: &Timeouts, clock: Clock) -> Self {
        Self {
            head: HeadLimits { bytes: limits.header_bytes, fields: limits.header_count, target: limits.request_target },
            streams: limits.streams_per_connection,
            header: timeouts.header,
            keep_alive: timeouts.keep_alive,
            body_stall: timeouts.body_stall,
            clock,
            dropped: Arc::default(),
        }
    }

    fn count_dropped(&self, fields: usize) {
        if fields > 0 {
            self.dropped.fetch_add(fields as u64, Ordering::Relaxed);
        }
    }
}

/// Serves a connection until it ends: by the client, by a limit, or by `drain`, once nothing of it is waited for.
///
/// A tunnel that grows out of the connection runs inside this future (HTTP/1.1) or on `tasks` (HTTP/2).
pub async fn serve_connection<IO: ClientIo, H: Handler>(
    io: IO,
    conn: Arc<ConnInfo>,
    handler: H,
    settings: Arc<Settings>,
    drain: Drain,
    tasks: TaskTracker,
) {
    match conn.tls.as_ref().map_or(Alpn::Http1, |tls| tls.alpn) {
        // Boxed, so that the memory of the protocol goes before a tunnel begins: an idle WebSocket then weighs what its
        // tunnel weighs.
        Alpn::Http1 => {
            if let Some(upgrade) = Box::pin(h1::serve(io, conn, handler, settings, drain)).await {
                upgrade.run().await;
            }
        }
        Alpn::Http2 => Box::pin(h2::serve(io, conn, handler, settings, drain, tasks)).await,
    }
}

/// The date as a field value (RFC 9110 section 5.6.7).
struct Date([u8; 29]);

impl Date {
    /// Formatted once a second and thread.
    fn of(now: SystemTime) -> Self {
        thread_local!(static LAST: Cell<(u64, [u8; 29])> = const { Cell::new((u64::MAX, [b' '; 29])) });
        let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (last, mut text) = LAST.get();
        if last != second {
            text.copy_from_slice(httpdate::fmt_http_date(now).as_bytes());
            LAST.set((second, text));
        }
        Self(text)
    }

    fn value(&self) -> Value<'_> {
        Value::new(&self.0).expect("a date is a valid value")
    }
}
