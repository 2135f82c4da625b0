//! HTTP/2 towards clients (RFC 9113), WebSocket included (RFC 8441): the socket, the timer and the tasks around the state
//! machine of [`wire::h2`](crate::wire::h2::connection).
//!
//! A connection is one task, its streams included, and what one turn of it writes leaves in one piece. `shared` is the
//! machine as its streams hold it, `exchange` answers a request, `body` and `tunnel` are what arrives on a stream.

mod body;
mod exchange;
mod shared;
mod tunnel;

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker, ready},
};

use bytes::BytesMut;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    task::{unconstrained, yield_now},
    time::{Instant, Sleep, sleep_until},
};
use tokio_util::{io::poll_read_buf, task::TaskTracker};

use self::{exchange::Exchange, shared::Shared};
use super::{Handler, Settings};
use crate::{
    conn::ConnInfo,
    drain::{Drain, Phase},
    message::ClientIo,
    wire::h2::{
        Connection, FRAME_HEADER, FrameHeader,
        connection::{Incoming, Waiter},
        cost::{Limits, READ},
    },
};

thread_local! {
    /// The buffer of whichever connection reads: one that waits owns none.
    static SPARE: Cell<BytesMut> = Cell::new(BytesMut::new());
}

/// Serves a connection to its end.
pub async fn serve<IO: ClientIo, H: Handler>(
    io: IO,
    conn: Arc<ConnInfo>,
    handler: H,
    settings: Arc<Settings>,
    drain: Drain,
    tasks: TaskTracker,
) {
    let shared = Shared::new(Limits {
        streams: usize::try_from(settings.streams).unwrap_or(usize::MAX),
        list: settings.head.bytes + settings.head.target,
        header: settings.header,
        keep_alive: settings.keep_alive,
        body_stall: settings.body_stall,
    });
    let exchange = Exchange { conn, handler, settings, tasks, shared: shared.clone(), drain: &drain };
    let mut driver = ConnectionDriver::new(io, shared.clone());
    let (mut watch, mut seen) = (drain.watch(), Phase::Serving);
    poll_fn(|cx| {
        let phase = watch.poll(cx);
        if std::mem::replace(&mut seen, phase) != phase {
            let mut connection = shared.lock();
            if phase == Phase::Closing { connection.close() } else { connection.shut_down() }
        }
        driver.poll(cx, |incoming| exchange.answer(incoming))
    })
    .await;
}

/// Drives a connection: its socket, its timer, and the exchanges that it begins. Dropped, whenever and however that is,
/// it takes all streams with it.
struct ConnectionDriver<IO, F> {
    io: IO,
    shared: Arc<Shared>,
    exchanges: FuturesUnordered<F>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Read, and not yet understood.
    input: BytesMut,
    /// What the socket had received when this was last looked at.
    received: u64,
    /// The whole frames in `input` had to wait for this turn.
    is_behind: bool,
    /// The last turn was spent.
    rest: Option<Arc<Rest>>,
}

/// The time between two turns of a connection that could go on: until the sockets of all others have been looked at, and
/// their tasks have run. A connection that wakes itself would only let those run that are ready already, dozens of times.
struct Rest {
    is_over: AtomicBool,
    task: Waker,
}

impl Rest {
    fn begin(cx: &Context<'_>) -> Arc<Self> {
        let rest = Arc::new(Self { is_over: AtomicBool::new(false), task: cx.waker().clone() });
        // Never ready: it wakes whoever polls it behind everybody else.
        let _ = pin!(yield_now()).poll(&mut Context::from_waker(&rest.clone().into()));
        rest
    }
}

impl Wake for Rest {
    fn wake(self: Arc<Self>) {
        self.is_over.store(true, Ordering::Relaxed);
        self.task.wake_by_ref();
    }
}

/// Writes what has waited for the socket until its deadline: whether the client moves is then for the socket to say.
fn write_before_deadline<W: Waiter>(io: &mut impl ClientIo, connection: &mut Connection<W>) {
    if connection.is_stalling() {
        let before = io.transferred().sent;
        let taken = io.try_write(connection.output());
        connection.written(taken);
        connection.note_socket(taken > 0 || io.transferred().sent != before, true);
    }
}

/// What became of reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    /// Something was read, and there may be more.
    Moved,
    /// The socket wakes the task when there is more.
    Waits,
    /// The output is full, or the turn is spent.
    Held,
}

impl<IO, F> Drop for ConnectionDriver<IO, F> {
    fn drop(&mut self) {
        self.shared.lock().lose();
    }
}

impl<IO: ClientIo, F: Future<Output = ()>> ConnectionDriver<IO, F> {
    fn new(io: IO, shared: Arc<Shared>) -> Self {
        let (exchanges, input) = (FuturesUnordered::new(), BytesMut::new());
        Self { io, shared, exchanges, timer: None, input, received: 0, is_behind: false, rest: None }
    }

    /// One turn, or several where a deadline has passed meanwhile. Ready when the connection is over.
    fn poll(&mut self, cx: &mut Context<'_>, answer: impl Fn(Incoming) -> F) -> Poll<()> {
        if self.rest.as_ref().is_some_and(|rest| !rest.is_over.load(Ordering::Relaxed)) {
            return Poll::Pending;
        }
        self.rest = None;
        loop {
            self.shared.begin_turn(|connection| write_before_deadline(&mut self.io, connection));
            let over = self.take_turn(cx, &answer);
            let deadline = self.shared.end_turn(cx);
            if over.is_ready() || !self.poll_timer(cx, deadline.map(Instant::from_std)).is_ready() {
                return over;
            }
        }
    }

    /// Ready when the deadline has passed. A timer that rings too early is set on, which costs less than to move it for
    /// every request.
    fn poll_timer(&mut self, cx: &mut Context<'_>, deadline: Option<Instant>) -> Poll<()> {
        let Some(deadline) = deadline else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
    }

    /// Reads, answers and writes until nothing moves any more or the turn is spent. Whatever could go on has a waker
    /// when this is pending: the socket where it was read or written to its end, the exchanges by themselves, and where
    /// reading is held by a full output, the socket that has to take it.
    fn take_turn(&mut self, cx: &mut Context<'_>, answer: impl Fn(Incoming) -> F) -> Poll<()> {
        loop {
            let read = self.poll_read(cx);
            self.poll_exchanges(cx, &answer);
            let (is_spent, is_full, has_ended) = {
                let connection = self.shared.lock();
                (connection.is_turn_spent(), connection.is_output_full(), connection.end().is_some())
            };
            if has_ended {
                return self.poll_end(cx);
            }
            if read == Read::Moved && !is_spent && !is_full {
                // More may be there, and what is written may grow.
                continue;
            }
            let may_go_on = self.poll_write(cx);
            if is_spent {
                self.rest = Some(Rest::begin(cx));
                return Poll::Pending;
            }
            let can_read = read != Read::Waits && !self.shared.lock().is_output_full();
            if !may_go_on && !can_read {
                return Poll::Pending;
            }
        }
    }

    /// Reads once, and takes the frames.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Read {
        let mut connection = self.shared.lock();
        if !connection.can_receive() {
            return Read::Held;
        }
        if !self.is_behind {
            if self.input.capacity() == 0 {
                self.input = SPARE.take();
            }
            // Room for a whole frame, so that the payload of one that is large is never copied together.
            let whole = FrameHeader::parse_first(&self.input).map_or(READ, |header| FRAME_HEADER + header.len);
            self.input.reserve(whole.min(READ).saturating_sub(self.input.len()).max(READ / 4));
            let outcome = poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input);
            match outcome {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Ok(0) | Err(_)) => connection.lose(),
                Poll::Pending => {
                    let received = self.io.transferred().received;
                    if std::mem::replace(&mut self.received, received) != received {
                        connection.note_partial(&self.input);
                    }
                    drop(connection);
                    self.give_back_input();
                    return Read::Waits;
                }
            }
        }
        connection.receive(&mut self.input);
        self.is_behind = connection.end().is_none() && !connection.can_receive() && !self.input.is_empty();
        drop(connection);
        self.give_back_input();
        Read::Moved
    }

    fn give_back_input(&mut self) {
        if self.input.is_empty() {
            SPARE.set(std::mem::take(&mut self.input));
        }
    }

    /// Begins the exchanges that have come, and polls those that can go on.
    ///
    /// Without tokio's budget of 128 operations a poll, which is meant for one request and not for all those of a
    /// connection; the turn has a budget of its own.
    fn poll_exchanges(&mut self, cx: &mut Context<'_>, answer: impl Fn(Incoming) -> F) {
        let next = || self.shared.lock().next_request();
        self.exchanges.extend(std::iter::from_fn(next).map(answer));
        let polling = pin!(unconstrained(poll_fn(|cx| {
            while let Poll::Ready(Some(())) = self.exchanges.poll_next_unpin(cx) {}
            Poll::Ready(())
        })));
        // Never pending: it is done when none gets any further.
        let _ = polling.poll(cx);
    }

    /// Writes what there is. Whether streams may go on that waited for it; if not everything has left, the socket wakes
    /// the task.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> bool {
        let mut connection = self.shared.lock();
        let (mut may_go_on, before) = (false, self.io.transferred().sent);
        let mut moved = false;
        while !connection.output().is_empty() {
            match Pin::new(&mut self.io).poll_write(cx, connection.output()) {
                Poll::Ready(Ok(n @ 1..)) => {
                    may_go_on |= connection.written(n);
                    moved = true;
                }
                Poll::Ready(_) => {
                    connection.lose();
                    return true;
                }
                Poll::Pending => {
                    connection.note_socket(moved || self.io.transferred().sent != before, true);
                    return may_go_on;
                }
            }
        }
        match Pin::new(&mut self.io).poll_flush(cx) {
            Poll::Ready(Ok(())) => connection.note_socket(moved, false),
            Poll::Ready(Err(_)) => {
                connection.lose();
                return true;
            }
            Poll::Pending => connection.note_socket(moved || self.io.transferred().sent != before, true),
        }
        may_go_on
    }

    /// Writes what is left, closes, and waits for the peer where that is worth it. The exchanges have nobody to answer.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.exchanges.clear();
        self.poll_write(cx);
        if self.shared.lock().is_over() {
            return Poll::Ready(());
        }
        if !self.shared.lock().output().is_empty() {
            return Poll::Pending;
        }
        // Whether the peer hears it or not, this is the end.
        let _ = ready!(Pin::new(&mut self.io).poll_shutdown(cx));
        while self.shared.lock().linger() {
            self.input.clear();
            self.input.reserve(READ / 4);
            let Ok(1..) = ready!(poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input)) else { break };
        }
        Poll::Ready(())
    }
}
