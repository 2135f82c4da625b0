//! The service behind a simulated connection: one task for each request, which does what handlers do, and waits only for
//! what it was promised to be woken for.

use std::{
    cell::Cell,
    rc::Rc,
    sync::LazyLock,
    time::{Duration, Instant},
};

use http::StatusCode;
use vestibule::{
    message::{Fields, Value},
    wire::h2::{
        Connection, Reason,
        connection::{BodyFrame, Incoming, StreamClosed, Waiter},
        cost::{self, Turn},
    },
};

use crate::{Random, world::Manner};

/// The bytes of every body, from a place on.
pub fn pattern(from: usize, len: usize) -> &'static [u8] {
    static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| (0..1 << 21).map(|at| (at % 251) as u8).collect());
    &PATTERN[from % 251..][..len]
}

/// A waker: a flag that is set.
type Flag = Rc<Cell<bool>>;

/// Who waits for a stream.
#[derive(Debug, Default)]
pub struct Wakers {
    reading: Option<Flag>,
    writing: Option<Flag>,
}

impl Waiter for Wakers {
    fn readable(&mut self) {
        self.reading.take().inspect(|flag| flag.set(true));
    }

    fn writable(&mut self) {
        self.writing.take().inspect(|flag| flag.set(true));
    }
}

/// One request.
pub struct Task {
    pub id: u32,
    /// Woken to read, and to write.
    pub may_read: Flag,
    pub may_write: Flag,
    reads: bool,
    pub has_ended_reading: bool,
    pub got: usize,
    begins_at: Instant,
    has_head: bool,
    answer: usize,
    sent: usize,
    trailers: bool,
    fails: bool,
    pub is_done: bool,
    /// The answer was sent to its end.
    pub is_whole: bool,
    is_tunnel: bool,
    /// When it last read, wrote, or was polled.
    read_at: Instant,
    wrote_at: Instant,
    polled_at: Instant,
}

impl Task {
    pub fn new(incoming: &Incoming, manner: Manner, random: &mut Random, now: Instant) -> Self {
        let honest = manner == Manner::Honest;
        let flag = || Rc::new(Cell::new(true));
        Self {
            id: incoming.id,
            may_read: flag(),
            may_write: flag(),
            // A tunnel has a clock of its own; here it is only a request whose body is not wanted.
            reads: (honest || !random.once_in(4)) && incoming.head.protocol.is_none(),
            has_ended_reading: incoming.ended,
            got: 0,
            begins_at: now + Duration::from_millis(random.pick(&[0, 0, 5, 300, 20_000])),
            has_head: false,
            answer: random.pick(&[0, 0, 1, 300, 30_000, 700_000]),
            sent: 0,
            trailers: random.once_in(6),
            fails: random.once_in(15),
            is_done: false,
            is_whole: false,
            is_tunnel: incoming.head.protocol.is_some(),
            read_at: now,
            wrote_at: now,
            polled_at: now,
        }
    }

    /// Whether it wants the body.
    pub const fn reads(&self) -> bool {
        self.reads && !self.has_ended_reading
    }

    /// When it goes on by itself.
    pub fn wakes_at(&self, now: Instant) -> Option<Instant> {
        (!self.is_done && self.begins_at > now).then_some(self.begins_at)
    }

    /// Whether polling it can do anything.
    pub fn is_woken(&self, now: Instant) -> bool {
        !self.is_done && (self.reads() && self.may_read.get() || self.may_write.get() && self.begins_at <= now)
    }

    /// Goes on as far as it can.
    pub fn poll(&mut self, connection: &mut Connection<Wakers>, random: &mut Random, now: Instant) {
        connection.spend(Turn::POLL);
        let before = (self.got, self.has_head, self.sent);
        self.read(connection, random);
        if self.begins_at <= now && !self.is_done {
            self.write(connection, random);
        }
        self.polled_at = now;
        if before.0 != self.got {
            self.read_at = now;
        }
        if (before.1, before.2) != (self.has_head, self.sent) {
            self.wrote_at = now;
        }
        if self.is_done && !self.has_ended_reading {
            connection.abandon(self.id);
        }
        if let Some(wakers) = connection.waiter(self.id) {
            // As every future does that waits for its answer: to hear of a reset.
            wakers.writing = Some(self.may_write.clone());
        } else {
            self.is_done = true;
        }
    }

    fn read(&mut self, connection: &mut Connection<Wakers>, random: &mut Random) {
        while self.reads && !self.has_ended_reading && self.may_read.get() {
            if random.once_in(40) {
                // The service is busy; it comes back in this turn or the next.
                return;
            }
            match connection.read(self.id) {
                Some(BodyFrame::Data(data)) => {
                    assert_eq!(data, pattern(self.got, data.len()), "other bytes");
                    self.got += data.len();
                }
                Some(BodyFrame::Trailers(_)) => {}
                Some(BodyFrame::End) => self.has_ended_reading = true,
                Some(BodyFrame::Reset | BodyFrame::Lost | BodyFrame::Stalled) => {
                    self.has_ended_reading = true;
                    connection.reset(self.id, Reason::CANCEL);
                }
                None => {
                    self.may_read.set(false);
                    if let Some(wakers) = connection.waiter(self.id) {
                        wakers.reading = Some(self.may_read.clone());
                    }
                }
            }
        }
        if !self.reads {
            self.may_read.set(false);
        }
    }

    fn write(&mut self, connection: &mut Connection<Wakers>, random: &mut Random) {
        if !self.has_head {
            let ends = self.answer == 0 && !self.trailers;
            let fields = [(http::header::SERVER, Value::from_static("test"))].into_iter().collect::<Fields>();
            if random.once_in(9) {
                connection.send_interim(self.id, StatusCode::EARLY_HINTS, &fields);
            }
            self.has_head = true;
            let sent = connection.send_head(self.id, StatusCode::OK, &fields, ends);
            self.note_sent(sent, ends);
        }
        while !self.is_done && self.sent < self.answer && self.may_write.get() {
            if self.fails && self.sent > 0 {
                connection.reset(self.id, Reason::INTERNAL_ERROR);
                self.is_done = true;
                return;
            }
            match connection.room(self.id, self.answer - self.sent) {
                Err(_closed) => self.is_done = true,
                Ok(None) => {
                    self.may_write.set(false);
                    return;
                }
                Ok(Some(room)) => {
                    let data = pattern(self.sent, room);
                    self.sent += room;
                    let ends = self.sent == self.answer && !self.trailers;
                    let sent = connection.send_data(self.id, data, ends);
                    self.note_sent(sent, ends);
                }
            }
        }
        if !self.is_done && self.sent == self.answer {
            let fields = [(http::header::ETAG, Value::from_static("x"))].into_iter().collect::<Fields>();
            let sent = connection.send_trailers(self.id, &fields);
            self.note_sent(sent, true);
        }
    }

    fn note_sent(&mut self, sent: Result<(), StreamClosed>, ends: bool) {
        self.is_whole = ends && sent.is_ok();
        self.is_done |= ends || sent.is_err();
    }

    /// That it waits no longer than it may. `read` and `wrote` are when bytes last came, and last waited to leave.
    pub fn check_waits(&self, now: Instant, limit: Option<Duration>, read: Instant, wrote: Instant) {
        let limit = limit.unwrap_or(Duration::MAX);
        let (reading, writing) = (now - self.read_at.max(read), now - self.wrote_at.max(wrote));
        let id = self.id;
        if self.is_done {
            let waited = now - self.polled_at;
            assert!(waited <= cost::ABANDONED, "stream {id} is kept for {waited:?} for a body that nobody wants");
        } else {
            let starves = self.reads() && !self.may_read.get() && reading > limit;
            assert!(!starves, "stream {id} waits for its body for {reading:?}");
            // Whether it waits for its peer or for others is looked at once in a limit.
            let waits = self.has_head && !self.is_tunnel && !self.may_write.get() && writing > 2 * limit;
            assert!(!waits, "stream {id} waits for its window for {writing:?}");
        }
    }
}
