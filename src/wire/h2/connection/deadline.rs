//! Everything that is timed. Each stream and each wait has its own clock, so that what moves in one place excuses nothing
//! in another. Only silence is timed; whatever moves may take as long as it takes.
//!
//! One timer serves them all. A wait that begins sets it no later than its deadline; a wait that ends leaves it where it
//! is, and when it rings, what is left is looked through.

use std::time::{Duration, Instant};

use super::{Connection, ConnectionEnd, Incoming, RecvState, Shutdown, Waiter, stream::SendWait};
use crate::wire::h2::{
    Reason,
    cost::{ABANDONED, FIRST_DATA, FIRST_REQUEST, GOAWAY_GRACE, LAST_WRITE},
};

/// The clocks of a connection, and the timer.
#[derive(Debug)]
pub struct Clocks {
    began: Instant,
    /// Since when no stream has been open.
    idle: Instant,
    /// Since when the socket has taken nothing while something was to be written.
    unwritten: Option<Instant>,
    /// When something that was written still had to leave: until then a peer cannot open a window.
    backlog: Instant,
    /// When the first GOAWAY was sent.
    pub announced: Option<Instant>,
    /// The process ends: nothing is waited for but the answers.
    pub is_closing: bool,
    /// When the connection is dropped, whatever is left to write.
    drop_at: Option<Instant>,
    pub timer: Option<Instant>,
}

impl Clocks {
    pub const fn new(now: Instant) -> Self {
        Self {
            began: now,
            idle: now,
            unwritten: None,
            backlog: now,
            announced: None,
            is_closing: false,
            drop_at: None,
            timer: None,
        }
    }

    fn arm(&mut self, at: Instant) {
        self.timer = Some(self.timer.map_or(at, |timer| timer.min(at)));
    }

    /// Whether a limit is met; if not, the timer rings when it will be.
    fn is_due(&mut self, since: Instant, limit: Option<Duration>, now: Instant) -> bool {
        let Some(limit) = limit else { return false };
        let at = since + limit;
        if at > now {
            self.arm(at);
        }
        at <= now
    }
}

/// Deadlines begin.
impl<W: Waiter> Connection<W> {
    fn arm_after(&mut self, limit: Option<Duration>) {
        if let Some(limit) = limit {
            self.clocks.arm(self.now + limit);
        }
    }

    pub(super) fn arm_first(&mut self) {
        self.arm_after(self.limits.header);
        self.arm_after(self.limits.keep_alive);
    }

    pub(super) fn arm_first_request(&mut self) {
        self.clocks.arm(self.clocks.began + FIRST_REQUEST);
    }

    pub(super) fn arm_head(&mut self) {
        self.arm_after(self.limits.header);
    }

    pub(super) fn arm_stall(&mut self) {
        self.arm_after(self.limits.body_stall);
    }

    pub(super) fn arm_abandoned(&mut self) {
        self.arm_after(Some(ABANDONED));
    }

    pub(super) fn arm_goaway(&mut self) {
        self.arm_after(Some(GOAWAY_GRACE));
    }

    pub(super) fn begin_idle(&mut self) {
        self.clocks.idle = self.now;
        self.arm_after(self.limits.keep_alive);
    }

    /// A request waits for the first frame behind its head.
    pub(super) fn hold(&mut self, incoming: Incoming) {
        self.held.push(incoming);
        self.arm_after(Some(FIRST_DATA));
    }

    /// That frame has come.
    pub(super) fn release_held(&mut self, id: u32) {
        if let Some(at) = self.held.iter().position(|incoming| incoming.id == id) {
            let incoming = self.held.remove(at);
            self.requests.push_back(incoming);
        }
    }

    /// A connection that had no time yet for its first request.
    pub(super) fn is_young(&self) -> bool {
        self.last == 0 && self.now < self.clocks.began + FIRST_REQUEST
    }

    /// The connection has ended: how long it may take to write the rest.
    pub(super) fn arm_end(&mut self) {
        self.clocks.timer = None;
        if self.end == Some(ConnectionEnd::Done) && !self.clocks.is_closing {
            // Answers may still be on their way to a slow reader.
            return self.arm_stall();
        }
        self.clocks.drop_at = Some(self.now + LAST_WRITE);
        self.arm_after(Some(LAST_WRITE));
    }
}

/// Deadlines are met.
impl<W: Waiter> Connection<W> {
    /// When [`begin_turn`](Connection::begin_turn) has to be called at the latest.
    #[must_use]
    pub const fn deadline(&self) -> Option<Instant> {
        self.clocks.timer
    }

    /// Whether the next turn ends the connection because its socket takes nothing.
    #[must_use]
    pub fn is_stalling(&self) -> bool {
        let at = self.clocks.unwritten.zip(self.limits.body_stall).map(|(since, limit)| since + limit);
        at.is_some_and(|at| at <= self.now)
    }

    /// Tells how writing stands: whether the socket has taken bytes since the last call, and whether any wait for it,
    /// here or in a layer below.
    pub fn note_socket(&mut self, moved: bool, waits: bool) {
        if waits {
            self.clocks.backlog = self.now;
            if moved || self.clocks.unwritten.is_none() {
                self.clocks.unwritten = Some(self.now);
                self.arm_stall();
            }
        } else if self.clocks.unwritten.take().is_some() {
            self.clocks.backlog = self.now;
        }
    }

    /// Whether the connection is over: nothing is to be written any more, or there is no more time for it.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.end.is_some_and(ConnectionEnd::is_silent) || self.clocks.drop_at.is_some_and(|at| at <= self.now)
    }

    /// Everything has been written. How long it is worth to wait for the peer to close: one that was sent something just
    /// now may lose it if we close first while it still sends (RFC 9112 section 9.6 tells the same of HTTP/1.1). One that
    /// never asked for anything has nothing to lose.
    pub fn linger(&mut self) -> bool {
        let is_recent = self.last > 0 && self.now < self.clocks.idle + 2 * LAST_WRITE;
        if self.end == Some(ConnectionEnd::Done) && !is_recent || self.is_over() {
            return false;
        }
        let at = *self.clocks.drop_at.get_or_insert(self.now + LAST_WRITE);
        self.clocks.arm(at);
        true
    }

    pub(super) fn meet_deadlines(&mut self) {
        let now = self.now;
        self.clocks.timer = None;
        if let Some(at) = self.clocks.drop_at {
            return self.clocks.arm(at);
        }
        if let Some(since) = self.clocks.unwritten
            && self.clocks.is_due(since, self.limits.body_stall, now)
        {
            return self.end_silently(ConnectionEnd::Stalled);
        }
        if self.end.is_some() {
            return;
        }
        let first = (!self.framing.is_settled).then_some(self.clocks.began);
        if let Some(since) = first.or(self.framing.partial)
            && self.clocks.is_due(since, self.limits.header, now)
        {
            return self.fail(Reason::ENHANCE_YOUR_CALM);
        }
        if let Some(since) = self.clocks.announced
            && self.shutdown == Shutdown::Announced
            && (self.clocks.is_due(since, Some(GOAWAY_GRACE), now)
                || self.clocks.is_closing && self.clocks.is_due(self.clocks.began, Some(FIRST_REQUEST), now))
        {
            self.decide();
        }
        self.release_due();
        self.meet_stream_deadlines();
        if self.streams.is_empty()
            && self.end.is_none()
            && self.clocks.is_due(self.clocks.idle, self.limits.keep_alive, now)
        {
            self.shut_down();
        }
    }

    /// The peer has seen the first GOAWAY, or had its time to: no streams are taken above the last one.
    pub(super) fn decide(&mut self) {
        if self.shutdown == Shutdown::Announced {
            self.shutdown = Shutdown::Decided;
            self.output.goaway(self.last_taken, Reason::NO_ERROR);
            self.finish_if_done();
        }
    }

    /// Requests that have waited long enough for a body are answered without knowing whether there is one.
    fn release_due(&mut self) {
        let now = self.now;
        let clocks = &mut self.clocks;
        let due = self.held.extract_if(.., |incoming| clocks.is_due(incoming.since, Some(FIRST_DATA), now));
        self.requests.extend(due);
    }

    fn meet_stream_deadlines(&mut self) {
        let (now, limit, clocks) = (self.now, self.limits.body_stall, &mut self.clocks);
        let is_connection_blocked = self.output.window <= 0;
        let (mut stalled, mut abandoned) = (Vec::new(), Vec::new());
        for (id, stream) in &mut self.streams {
            if let RecvState::Abandoned(since) = stream.recv
                && clocks.is_due(since, Some(ABANDONED), now)
                && stream.send == super::SendState::Done
            {
                abandoned.push(*id);
            }
            if let Some(since) = stream.starved
                && clocks.is_due(since, limit, now)
            {
                (stream.starved, stream.is_stalled) = (None, true);
                stream.waiter.readable();
            }
            let Some(since) = &mut stream.blocked else { continue };
            // Where it waits for its turn it waits for the socket, which has a clock of its own.
            let waits_for_peer = stream.wait == SendWait::Window || is_connection_blocked;
            *since = if waits_for_peer { (*since).max(clocks.backlog) } else { now };
            if clocks.is_due(*since, limit, now) && !stream.is_tunnel {
                stalled.push(*id);
            }
        }
        for id in abandoned {
            self.reset_stream(id, Reason::NO_ERROR);
        }
        let any = !stalled.is_empty();
        for id in stalled {
            self.reset_stream(id, Reason::CANCEL);
        }
        if any && self.streams.is_empty() && self.end.is_none() {
            // Whoever takes nothing of all that it asked for is not worth to be kept.
            self.fail(Reason::ENHANCE_YOUR_CALM);
        }
    }
}
