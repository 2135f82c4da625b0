//! The model beside the machine: it reads the frames that the machine takes, and knows by itself what they cost, what
//! the windows are, what bodies may hold, and when each wait has to be over.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use vestibule::wire::h2::{FIRST_WINDOW, FRAME_HEADER, FrameHeader, PREFACE, cost, cost::Budget, flag, kind, setting};

use crate::{peer::Peer, service::Task, world::LIMITS};

/// Frames without effect that a connection may send at once, and how many come back each second; see `cost`.
const BURST: i64 = 2_000;
const PER_SECOND: u64 = 20;

/// Frames of one turn, and bytes of their DATA but for the last frame.
const TURN_FRAMES: usize = 1_024;
const TURN_BYTES: usize = 1_024 * 1_024;

/// What the output may exceed its bound by for one frame that is taken: an acknowledgement, a reset, a GOAWAY, and an
/// update of each kind of window.
const ANSWER: usize = 80;

/// A stream as the machine has to see it.
pub struct Stream {
    came: Instant,
    /// DATA that the machine has taken, and its padding with the byte that tells it.
    pub content: usize,
    padding: usize,
    ended: bool,
    /// What the machine may send beside the initial window, and the most that it ever might in all.
    granted: i64,
    most: i64,
    /// [`Stream::returned`] when the model last looked, and the credit that the peer had been given by then.
    before: (usize, usize),
}

impl Stream {
    /// Bytes of the window that are free again once a task has read so many.
    const fn returned(&self, got: usize) -> usize {
        self.padding + got
    }
}

/// A wait that has to be over in time.
#[derive(Default)]
struct Wait(Option<Instant>);

impl Wait {
    /// Notes whether it goes on; `restarts` where something has moved meanwhile.
    fn note(&mut self, goes_on: bool, restarts: bool, now: Instant) {
        let since = self.0.filter(|_| !restarts).unwrap_or(now);
        self.0 = goes_on.then_some(since);
    }

    fn check(&self, limit: Option<Duration>, now: Instant, what: &str) {
        let waited = self.0.map_or(Duration::ZERO, |since| now - since);
        assert!(limit.is_none_or(|limit| waited <= limit), "{what} for {waited:?}");
    }
}

pub struct Model {
    has_preface: bool,
    is_settled: bool,
    /// A block of fields has begun and not ended.
    in_block: bool,
    pub streams: BTreeMap<u32, Stream>,
    initial_window: i64,
    /// What the frames have cost, and what their DATA weighs.
    spent: i64,
    weight: usize,
    before: (usize, usize),
    peer_left: bool,
    turn_frames: usize,
    turn_bytes: usize,
    /// Frames and blocks of fields so far, and what was seen of them and of the next frame.
    frames: usize,
    blocks: usize,
    seen: (usize, usize, usize),
    /// When bytes have last come, and last waited to be written.
    arrived_at: Instant,
    waited_at: Instant,
    head: Wait,
    first: Wait,
    idle: Wait,
    output: Wait,
}

/// What the model looks at beside the frames.
pub struct View<'a> {
    pub now: Instant,
    pub began: Instant,
    pub tasks: &'a BTreeMap<u32, Task>,
    pub peer: &'a Peer,
    /// Streams that the machine holds.
    pub open: BTreeSet<u32>,
    pub held: usize,
    pub written: usize,
}

impl View<'_> {
    /// A request that a service works for, and has not answered.
    fn is_worked_for(&self, id: u32) -> bool {
        self.open.contains(&id) && self.tasks.get(&id).is_some_and(|task| !task.is_done)
    }

    /// Whether what comes on a stream is kept until somebody reads it, and how much was read.
    fn reader(&self, id: u32) -> Option<usize> {
        let task = self.tasks.get(&id);
        (self.open.contains(&id) && !task.is_some_and(|task| task.is_done)).then(|| task.map_or(0, |task| task.got))
    }
}

impl Model {
    pub fn new(now: Instant) -> Self {
        Self {
            has_preface: false,
            is_settled: false,
            in_block: false,
            streams: BTreeMap::new(),
            initial_window: FIRST_WINDOW.into(),
            spent: 0,
            weight: 0,
            before: (0, 0),
            peer_left: false,
            turn_frames: 0,
            turn_bytes: 0,
            frames: 0,
            blocks: 0,
            seen: (0, 0, 0),
            arrived_at: now,
            waited_at: now,
            head: Wait::default(),
            first: Wait::default(),
            idle: Wait::default(),
            output: Wait::default(),
        }
    }

    pub const fn begin_turn(&mut self) {
        (self.turn_frames, self.turn_bytes) = (0, 0);
    }

    /// The machine has taken these bytes, and is still there.
    pub fn take(&mut self, mut bytes: &[u8], view: &View<'_>) {
        if !self.has_preface && !bytes.is_empty() {
            bytes = &bytes[PREFACE.len()..];
            self.has_preface = true;
        }
        while let Some(header) = FrameHeader::parse_first(bytes) {
            assert!(self.turn_frames < TURN_FRAMES && self.turn_bytes < TURN_BYTES, "a turn has no end");
            let (frame, rest) = bytes.split_at(FRAME_HEADER + header.len);
            self.frame(header, &frame[FRAME_HEADER..], view);
            (self.turn_frames, self.frames) = (self.turn_frames + 1, self.frames + 1);
            bytes = rest;
        }
        let whole = view.tasks.values().filter(|task| task.is_whole).count();
        let seconds = (view.now - view.began).as_secs();
        let earned = seconds * PER_SECOND + whole as u64 * 10 + view.written as u64 / 1_024;
        let may = BURST + i64::try_from(earned).unwrap();
        assert!(self.spent <= may, "frames for {} of {may} that a peer may send for nothing", self.spent);
    }

    fn frame(&mut self, header: FrameHeader, payload: &[u8], view: &View<'_>) {
        let id = header.stream;
        self.spent += Budget::FRAME;
        match header.kind {
            kind::DATA => {
                let padding = if header.has(flag::PADDED) { 1 + usize::from(payload[0]) } else { 0 };
                let (content, ends) = (payload.len() - padding, header.has(flag::END_STREAM));
                self.spent -= if content > 0 || ends { Budget::FRAME } else { 0 };
                self.weight += payload.len();
                self.turn_bytes += content;
                if let Some(stream) = self.streams.get_mut(&id) {
                    (stream.content, stream.padding) = (stream.content + content, stream.padding + padding);
                    stream.ended |= ends;
                }
            }
            kind::HEADERS => {
                let (initial, now) = (self.initial_window, view.now);
                let stream = self.streams.entry(id).or_insert_with(|| Stream {
                    came: now,
                    content: 0,
                    padding: 0,
                    ended: false,
                    granted: 0,
                    most: initial,
                    before: (0, 0),
                });
                stream.ended |= header.has(flag::END_STREAM);
                self.in_block = !header.has(flag::END_HEADERS);
                self.blocks += 1;
            }
            kind::CONTINUATION => self.in_block = !header.has(flag::END_HEADERS),
            kind::RST_STREAM => {
                let in_vain = view.is_worked_for(id) && self.streams.remove(&id).is_some();
                self.spent += if in_vain { Budget::ABORTED - Budget::FRAME } else { 0 };
            }
            kind::SETTINGS => {
                self.is_settled = true;
                for entry in payload.as_chunks::<6>().0 {
                    self.spent += Budget::FRAME;
                    let value = u32::from_be_bytes([entry[2], entry[3], entry[4], entry[5]]);
                    if u16::from_be_bytes([entry[0], entry[1]]) == setting::INITIAL_WINDOW_SIZE {
                        self.initial_window = value.into();
                    }
                }
                for stream in self.streams.values_mut() {
                    stream.most = stream.most.max(self.initial_window + stream.granted);
                }
            }
            kind::WINDOW_UPDATE => {
                if let (Some(stream), &[a, b, c, d]) = (self.streams.get_mut(&id), payload) {
                    stream.granted += i64::from(u32::from_be_bytes([a, b, c, d]) & (u32::MAX >> 1));
                    stream.most = stream.most.max(self.initial_window + stream.granted);
                }
            }
            kind::GOAWAY => self.peer_left = true,
            _ => {}
        }
    }

    /// What is to be written, before frames were taken and after.
    pub fn check_output(before: usize, after: usize) {
        assert!(after <= before.max(cost::HIGH_WATER) + ANSWER, "{before} bytes of output have become {after}");
    }

    /// When nothing moves: windows and memory. All output has reached the peer.
    pub fn check_windows(&mut self, view: &View<'_>) {
        let unread = |id: u32, stream: &Stream| view.reader(id).map_or(0, |got| stream.content - got);
        let all_unread: usize = self.streams.iter().map(|(id, stream)| unread(*id, stream)).sum();
        check_credit(self.weight - all_unread, view.peer.credited, &mut self.before, cost::CONNECTION_WINDOW, "all");
        let most = 2 * all_unread + cost::PINNED * cost::READ + view.open.len() * 1_024;
        assert!(view.held <= most, "{} bytes are held for {all_unread}", view.held);
        for (id, stream) in &mut self.streams {
            let Some(seen) = view.peer.streams.get(id) else { continue };
            assert!(seen.received <= stream.most, "stream {id} sends {} of {} bytes", seen.received, stream.most);
            // Of a body that has ended, or that nobody reads, no window opens any more.
            let Some(got) = view.reader(*id).filter(|_| !stream.ended) else { continue };
            let returned = stream.returned(got);
            let (before, credited) = (&mut stream.before, seen.credited);
            // Padding alone is not worth an update.
            let due = if stream.content == 0 { 0 } else { returned };
            assert!(due < credited + cost::STREAM_WINDOW as usize / 4 + stream.padding, "stream {id} is not credited");
            check_update(returned, credited, before, &id.to_string());
        }
    }

    /// When nothing moves: whoever waits does so no longer than it may. `rest` is what was read of a frame.
    pub fn check_waits(&mut self, view: &View<'_>, rest: &[u8], output: usize, wrote: bool) {
        let (now, is_idle) = (view.now, view.open.is_empty());
        assert!(!(self.peer_left && is_idle), "the peer has left, and the connection stays");
        let seen = std::mem::replace(&mut self.seen, (self.frames, self.blocks, rest.len()));
        if seen != self.seen {
            self.arrived_at = now;
        }
        if output > 0 {
            self.waited_at = now;
        }
        let is_head = |header: FrameHeader| header.kind != kind::DATA && rest.len() < FRAME_HEADER + header.len;
        let is_partial = !rest.is_empty() && FrameHeader::parse_first(rest).is_none_or(is_head);
        let restarts = !self.in_block && seen.0 < self.frames || seen.1 < self.blocks;
        self.head.note(self.has_preface && (self.in_block || is_partial), restarts, now);
        self.first.note(!self.is_settled, false, now);
        self.idle.note(is_idle, seen.1 < self.blocks, now);
        self.output.note(output > 0, wrote, now);
        self.head.check(LIMITS.header, now, "a head is waited for");
        self.first.check(LIMITS.header, now, "the first frame is waited for");
        self.idle.check(LIMITS.keep_alive, now, "nothing is asked for");
        self.output.check(LIMITS.body_stall, now, "nothing is written");
        for id in &view.open {
            let Some(stream) = self.streams.get(id) else { continue };
            let Some(task) = view.tasks.get(id) else {
                assert!(now - stream.came <= cost::FIRST_DATA, "request {id} is held back");
                continue;
            };
            task.check_waits(now, LIMITS.body_stall, self.arrived_at, self.waited_at);
        }
    }
}

/// That as much credit was returned as there is room again, but for what is not worth an update.
fn check_credit(returned: usize, credited: usize, before: &mut (usize, usize), window: u32, what: &str) {
    assert!(returned < credited + window as usize / 4, "{what}: {credited} of {returned} bytes are credited");
    check_update(returned, credited, before, what);
}

/// That an update is for what was free when it was sent: at least what was free before, and no more than what is now.
fn check_update(returned: usize, credited: usize, before: &mut (usize, usize), what: &str) {
    let (least, last) = *before;
    assert!(credited == last || least <= credited, "{what}: {credited} bytes are credited, and {least} were free");
    assert!(credited <= returned, "{what}: {credited} bytes are credited, and {returned} are free");
    *before = (returned, credited);
}
