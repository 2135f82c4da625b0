//! HTTP/2 towards clients (RFC 9113), WebSocket included (RFC 8441).
//!
//! A connection is one task, its streams included, and what one turn of it writes leaves in one piece. The h2 crate, which
//! stood here before, copied every frame and made each answer a few buffers of its own: a third of what a small answer cost.
//!
//! `connection` reads frames and holds a peer to the rules; `streams` holds windows and states, and is what both ends of a
//! stream work on; `exchange` answers a request; `budget` and `watch` bound what a peer can cost.

mod body;
mod budget;
mod connection;
mod exchange;
mod streams;
mod tunnel;
mod watch;

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::task::unconstrained;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    connection::{Connection, ConnectionEnd, Incoming},
    exchange::Exchange,
    watch::{Streams, Watchdog, WatchdogAction},
};
use super::{Handler, Settings};
use crate::{conn::ConnInfo, message::Io};

/// How often one turn of a connection goes round between its frames and its streams before the other connections of the
/// thread have theirs: a client whose requests are answered at once could go on for as long as it sends.
const ROUNDS: usize = 8;

/// A stream is over: reset by the client, or gone with its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamClosed;

/// Serves a connection to its end.
pub async fn serve<IO: Io, H: Handler>(
    io: IO,
    conn: Arc<ConnInfo>,
    handler: H,
    settings: Arc<Settings>,
    drain: CancellationToken,
    tasks: TaskTracker,
) {
    let streams = Streams::new();
    let mut connection = Connection::new(io, &settings);
    let mut draining = pin!(drain.cancelled());
    let mut watch = Watchdog::new(&settings, streams.clone());
    let shared = connection.shared().clone();
    let exchange = Exchange { conn, handler, settings, streams, tasks, shared };
    let mut turns = ConnectionDriver { exchanges: FuturesUnordered::new(), is_over: false };
    let mut leaving = false;
    poll_fn(|cx| {
        if !leaving && (draining.as_mut().poll(cx).is_ready() || watch.is_idle()) {
            leaving = true;
            watch.leaves();
            connection.leave();
        }
        if turns.poll(cx, &mut connection, |incoming| exchange.answer(incoming)).is_ready() {
            return Poll::Ready(());
        }
        if turns.is_over && !leaving {
            // What is written still waits for the peer, but not for longer than a farewell.
            leaving = true;
            watch.leaves();
        }
        match watch.poll(cx, &connection) {
            Poll::Ready(WatchdogAction::Drop) => Poll::Ready(()),
            Poll::Ready(WatchdogAction::Tell(reason)) => {
                connection.tell(reason);
                turns.end(&connection, ConnectionEnd::Told(reason));
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
}

/// The work of a connection: frames, and the exchanges that they begin.
struct ConnectionDriver<F> {
    exchanges: FuturesUnordered<F>,
    /// Nothing is read any more; what has been written may still be on its way.
    is_over: bool,
}

impl<F: Future<Output = ()>> ConnectionDriver<F> {
    /// One turn. Ready when the connection has ended.
    fn poll<IO: Io>(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Connection<IO>,
        answer: impl Fn(Incoming) -> F,
    ) -> Poll<()> {
        connection.shared().lock().begin_turn();
        let ended = self.go_round(cx, connection, answer);
        connection.shared().lock().end_turn(cx);
        ended
    }

    fn go_round<IO: Io>(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Connection<IO>,
        answer: impl Fn(Incoming) -> F,
    ) -> Poll<()> {
        for _ in 0..ROUNDS {
            if self.is_over {
                return self.poll_end(cx, connection);
            }
            let read = connection.poll_read(cx);
            if let Poll::Ready(Err(over)) = read {
                self.end(connection, over);
                continue;
            }
            self.exchanges.extend(connection.requests().map(&answer));
            self.poll_exchanges(cx);
            if read.is_ready() && !connection.shared().lock().is_full() {
                // More may be there, and what is written may grow.
                continue;
            }
            if let Poll::Ready(Err(over)) = connection.poll_push(cx) {
                self.end(connection, over);
                continue;
            }
            if connection.is_done() && self.exchanges.is_empty() {
                self.is_over = true;
                continue;
            }
            if !connection.shared().lock().wake_queue() && read.is_pending() {
                return Poll::Pending;
            }
        }
        // What was written does not wait for the next turn.
        if let Poll::Ready(Err(over)) = connection.poll_push(cx) {
            self.end(connection, over);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Without tokio's budget of 128 operations a poll, which is meant for one request and not for all those of a
    /// connection: once it is spent, everybody who is polled after that only asks to be polled again. The windows bound
    /// what one turn can move.
    fn poll_exchanges(&mut self, cx: &mut Context<'_>) {
        let turn = pin!(unconstrained(poll_fn(|cx| {
            while let Poll::Ready(Some(())) = self.exchanges.poll_next_unpin(cx) {}
            Poll::Ready(())
        })));
        // Never pending: the closure is done when nobody gets any further.
        let _ = turn.poll(cx);
    }

    /// Whatever still runs has nobody to answer.
    fn end<IO: Io>(&mut self, connection: &Connection<IO>, over: ConnectionEnd) {
        self.is_over = true;
        connection.shared().lock().end(over == ConnectionEnd::StreamClosed);
        self.exchanges.clear();
    }

    /// Sends what is left to say, and goes.
    fn poll_end<IO: Io>(&self, cx: &mut Context<'_>, connection: &mut Connection<IO>) -> Poll<()> {
        match connection.poll_push(cx) {
            Poll::Ready(Ok(())) => connection.poll_shutdown(cx),
            Poll::Ready(Err(_gone)) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        }
    }
}
