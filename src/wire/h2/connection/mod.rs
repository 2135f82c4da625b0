//! The server side of an HTTP/2 connection as a state machine without I/O (RFC 9113, RFC 8441): bytes and the time go in,
//! requests and bytes come out. No task, no clock and no socket inside, so that a simulator can drive hours of it.
//!
//! `frames` holds what each frame means and what a peer may not send; `receive` the ledger of what has arrived and was
//! not read; `send` the output, the windows of the peer and whose turn it is to send; `stream` the state of a stream;
//! `deadline` everything that is timed. What a peer may cost is in [`cost`](super::cost).
//!
//! Whoever drives it calls [`begin_turn`](Connection::begin_turn) with the time, [`receive`](Connection::receive) with
//! what was read, takes requests and output, tells [`written`](Connection::written) what the socket took, and comes back
//! at the [`deadline`](Connection::deadline). Each stream has a [`Waiter`], which is told when an operation that had to
//! wait may be tried again.

mod deadline;
mod frames;
mod receive;
mod send;
mod stream;

use std::{
    collections::{HashMap, VecDeque},
    hash::BuildHasherDefault,
    time::Instant,
};

pub use self::stream::{BodyFrame, RecvState, SendState, StreamClosed};
use self::{
    deadline::Clocks,
    frames::Framing,
    receive::Ledger,
    send::Output,
    stream::{Stream, StreamIdHasher},
};
use super::{
    FIRST_WINDOW, Head, Reason,
    cost::{Budget, CONNECTION_WINDOW, Limits, MAX_FRAME, RESETS_REMEMBERED, STREAM_WINDOW, Turn},
    kind, setting,
};

/// Waits for a stream on behalf of whoever reads or writes it. Both methods may be called more often than needed.
pub trait Waiter: Default {
    /// A body frame may be there, or the stream has closed.
    fn readable(&mut self);
    /// There may be room to send, or the stream has closed.
    fn writable(&mut self);
}

/// A request that is ready to be answered.
#[derive(Debug)]
pub struct Incoming {
    /// The stream.
    pub id: u32,
    /// What it asks for.
    pub head: Head,
    /// There is no body.
    pub ended: bool,
    /// When it came.
    since: Instant,
}

/// Why a connection takes no more frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionEnd {
    /// The peer has left, or the socket is broken.
    Lost,
    /// The peer takes nothing that is written to it.
    Stalled,
    /// The peer was told to leave, for this reason.
    Error(Reason),
    /// Everything is answered and no new streams are taken.
    Done,
}

impl ConnectionEnd {
    /// Whether nothing more can be written.
    const fn is_silent(self) -> bool {
        matches!(self, Self::Lost | Self::Stalled)
    }
}

/// How far a graceful shutdown is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shutdown {
    /// New streams are welcome.
    No,
    /// A GOAWAY without a last stream was sent: streams that are on their way are taken.
    Announced,
    /// The GOAWAY with the last stream was sent.
    Decided,
}

/// A server connection; see the head of this module.
#[derive(Debug)]
pub struct Connection<W> {
    limits: Limits,
    now: Instant,
    turn: Turn,
    budget: Budget,
    framing: Framing,
    ledger: Ledger,
    output: Output,
    clocks: Clocks,
    streams: HashMap<u32, Stream<W>, BuildHasherDefault<StreamIdHasher>>,
    /// Requests that can be answered, and those that wait for the first frame behind their head.
    requests: VecDeque<Incoming>,
    held: Vec<Incoming>,
    /// The newest streams that we have reset, and why.
    resets: VecDeque<(u32, Reason)>,
    /// The last stream that the client has opened, and the last one that we have looked at.
    last: u32,
    last_taken: u32,
    shutdown: Shutdown,
    /// The peer has sent GOAWAY.
    peer_leaves: bool,
    end: Option<ConnectionEnd>,
}

impl<W: Waiter> Connection<W> {
    /// A connection that begins with our SETTINGS.
    #[must_use]
    pub fn new(limits: Limits, now: Instant) -> Self {
        let mut connection = Self {
            limits,
            now,
            turn: Turn::new(),
            budget: Budget::new(now),
            framing: Framing::new(limits.list),
            ledger: Ledger::new(),
            output: Output::new(),
            clocks: Clocks::new(now),
            streams: HashMap::default(),
            requests: VecDeque::new(),
            held: Vec::new(),
            resets: VecDeque::new(),
            last: 0,
            last_taken: 0,
            shutdown: Shutdown::No,
            peer_leaves: false,
            end: None,
        };
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let settings = [
            (setting::MAX_CONCURRENT_STREAMS, number(limits.streams)),
            (setting::INITIAL_WINDOW_SIZE, STREAM_WINDOW),
            (setting::MAX_FRAME_SIZE, number(MAX_FRAME)),
            (setting::MAX_HEADER_LIST_SIZE, number(limits.list)),
            (setting::ENABLE_CONNECT_PROTOCOL, 1),
        ];
        let payload = settings.map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).concat();
        connection.output.frame(kind::SETTINGS, 0, 0, &payload);
        connection.output.window_update(0, CONNECTION_WINDOW - FIRST_WINDOW);
        connection.arm_first();
        connection
    }

    /// Begins a turn at this time; deadlines that have passed take effect.
    pub fn begin_turn(&mut self, now: Instant) {
        self.turn = Turn::new();
        self.set_time(now);
        if self.clocks.timer.is_some_and(|at| at <= now) {
            self.meet_deadlines();
        }
    }

    /// Tells the time between turns.
    pub fn set_time(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }

    /// Notes work of this turn that was done elsewhere.
    pub const fn spend(&mut self, work: usize) {
        self.turn.spend(work);
    }

    /// Whether other connections should have their turn before this one goes on.
    #[must_use]
    pub const fn is_turn_spent(&self) -> bool {
        self.turn.is_spent()
    }

    /// The next request to be answered. A stream that has been reset meanwhile is no request.
    pub fn next_request(&mut self) -> Option<Incoming> {
        while let Some(mut incoming) = self.requests.pop_front() {
            let Some(stream) = self.streams.get_mut(&incoming.id) else { continue };
            stream.is_begun = true;
            if stream.ended && stream.inbox.is_empty() && stream.trailers.is_none() && !incoming.ended {
                // An empty DATA frame was all of the body.
                incoming.ended = true;
                stream.recv = RecvState::Closed;
            }
            return Some(incoming);
        }
        None
    }

    /// Streams that are open.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// Whether a stream is open.
    #[must_use]
    pub fn is_open(&self, id: u32) -> bool {
        self.streams.contains_key(&id)
    }

    /// Tells what waits for a stream, if the stream is open.
    pub fn waiter(&mut self, id: u32) -> Option<&mut W> {
        self.streams.get_mut(&id).map(|stream| &mut stream.waiter)
    }

    /// Why the connection takes no more frames, once that is so. What is in the output may still be written.
    #[must_use]
    pub const fn end(&self) -> Option<ConnectionEnd> {
        self.end
    }

    /// Why we have closed a stream whose peer has not.
    #[must_use]
    pub fn closed_for(&self, id: u32) -> Option<Reason> {
        let reset = self.resets.iter().find(|(reset, _)| *reset == id).map(|(_, reason)| *reason);
        reset.or(match self.end? {
            ConnectionEnd::Error(reason) => Some(reason),
            ConnectionEnd::Stalled => Some(Reason::CANCEL),
            ConnectionEnd::Lost | ConnectionEnd::Done => None,
        })
    }

    /// The peer has left, or the way to it is broken. Streams close; nothing more is written.
    pub fn lose(&mut self) {
        self.end_silently(ConnectionEnd::Lost);
    }

    fn end_silently(&mut self, end: ConnectionEnd) {
        self.output.clear();
        self.finish(end);
    }

    /// Begins a graceful shutdown: open streams are answered, and so are those that are on their way here. A connection
    /// that has nothing to answer ends at once.
    pub fn shut_down(&mut self) {
        if self.shutdown > Shutdown::No || self.end.is_some() {
            return;
        }
        self.shutdown = Shutdown::Announced;
        if self.streams.is_empty() && !self.is_young() {
            return self.finish_if_done();
        }
        self.output.goaway(frames::ANY_STREAM, Reason::NO_ERROR);
        self.output.frame(kind::PING, 0, 0, &frames::FAREWELL);
        self.clocks.announced = Some(self.now);
        self.arm_goaway();
    }

    /// Ends a graceful shutdown: takes no more streams, whatever is on its way here, and waits for nothing but the open
    /// ones. A connection that has just begun still has the time for its first request.
    pub fn close(&mut self) {
        self.shut_down();
        self.clocks.is_closing = true;
        if self.is_young() {
            self.arm_first_request();
        } else {
            self.decide();
        }
    }

    /// Says why, and ends the connection.
    fn fail(&mut self, reason: Reason) {
        self.output.goaway(self.last_taken, reason);
        self.finish(ConnectionEnd::Error(reason));
    }

    /// Ends the connection when nobody has anything to say any more.
    fn finish_if_done(&mut self) {
        if !self.streams.is_empty() || self.end.is_some() {
            return;
        }
        match self.shutdown {
            Shutdown::No if !self.peer_leaves => return,
            Shutdown::Announced if self.is_young() && !self.peer_leaves => return,
            Shutdown::Decided => {}
            Shutdown::No | Shutdown::Announced => self.output.goaway(self.last_taken, Reason::NO_ERROR),
        }
        self.finish(ConnectionEnd::Done);
    }

    fn finish(&mut self, end: ConnectionEnd) {
        if self.end.is_some_and(|before| before.is_silent() || !end.is_silent()) {
            return;
        }
        self.end = Some(end);
        self.requests.clear();
        self.held.clear();
        self.output.forget_queue();
        self.ledger.forget();
        for (_, mut stream) in self.streams.drain() {
            stream.waiter.readable();
            stream.waiter.writable();
        }
        self.arm_end();
    }

    /// Resets a stream, whatever is known of it.
    fn reset_stream(&mut self, id: u32, reason: Reason) {
        self.output.reset(id, reason);
        if self.resets.len() == RESETS_REMEMBERED {
            self.resets.pop_front();
        }
        self.resets.push_back((id, reason));
        self.remove(id);
    }

    fn was_reset_by_us(&self, id: u32) -> bool {
        self.resets.iter().any(|(reset, _)| *reset == id)
    }

    /// Forgets a stream. Whoever still holds an end of it finds out.
    fn remove(&mut self, id: u32) {
        let Some(mut stream) = self.streams.remove(&id) else { return };
        if !stream.is_begun {
            self.held.retain(|incoming| incoming.id != id);
        }
        self.output.leave_queue(&mut stream);
        let unread = stream.inbox.clear(&mut self.ledger);
        self.return_credit(unread);
        stream.waiter.readable();
        stream.waiter.writable();
        self.grant();
        if self.streams.is_empty() {
            self.begin_idle();
            self.finish_if_done();
        }
    }

    /// Forgets a stream of which nothing more is to come, either way.
    fn remove_if_done(&mut self, id: u32) {
        let is_done = |stream: &Stream<W>| stream.send == SendState::Done && stream.recv == RecvState::Closed;
        if self.streams.get(&id).is_some_and(is_done) {
            self.budget.completed();
            self.remove(id);
        }
    }
}
