//! What the streams of one connection share: the bytes that are to leave, the windows of both sides, and the state of
//! each stream (RFC 9113 sections 5 and 6.9). Knows nothing of what is asked or answered.
//!
//! The lock is never waited for: a connection and its streams are one task. Only a tunnel is a task of its own, on the
//! same thread.

use std::{
    cell::Cell,
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use super::StreamClosed;
use crate::{
    message::Fields,
    wire::h2::{
        Encoder, FIRST_WINDOW, FrameHeader, LARGEST_FRAME, LARGEST_WINDOW, LEAST_FRAME, Reason, flag, kind, setting,
    },
};

/// Flow-control windows: a stream may have so much in flight as fills a fast line at a moderate distance; a connection,
/// four of them. Memory follows only where a client sends and an upstream does not read.
pub const STREAM_WINDOW: u32 = 1 << 20;
pub const CONNECTION_WINDOW: u32 = 4 << 20;

/// What is gathered before a stream is held back. Below it nobody waits for the network.
const HIGH_WATER: usize = 64 * 1024;

/// Above what a thread keeps of a buffer for the next connection.
const KEPT: usize = 2 * HIGH_WATER;

/// How long a stream is held whose body nobody wants. RST_STREAM(NO_ERROR) right behind the answer is what the RFC allows
/// (section 8.1), but clients that still write take it for a failure and forget the answer (curl before 8). So the
/// window of the stream fills first, the client reads why, and most stop by themselves.
const HOLD: Duration = Duration::from_secs(1);

/// Streams that we have reset, of which frames may still be on their way (section 5.1, "closed").
const REMEMBERED: usize = 64;

thread_local! {
    /// The buffer of whichever connection is polled: nearly always what is gathered leaves before the next one's turn.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Multiplies an identifier, which the peer counts up by two.
#[derive(Default)]
struct StreamIdHasher(u64);

impl Hasher for StreamIdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("identifiers of streams are u32");
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// A piece of a body that arrives.
#[derive(Debug)]
pub enum BodyFrame {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    /// The stream is reset.
    Cut,
    /// It is gone with its connection.
    Lost,
}

/// Who reads what arrives on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RecvState {
    Reads,
    /// Nobody any more, since then.
    Left(Instant),
    /// Nobody, and nothing more comes.
    Done,
}

/// How much of an answer has been written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SendState {
    Nothing,
    Head,
    All,
}

#[derive(Debug)]
struct Stream {
    arrived: VecDeque<Bytes>,
    trailers: Option<Fields>,
    /// The peer has said that it sends no more.
    ended: bool,
    reader: RecvState,
    reading: Option<Waker>,
    /// What the peer may send, and what was read since it was told so.
    credit: i64,
    uncredited: u32,
    /// What is to come, where the client has said so.
    left: Option<u64>,
    said: SendState,
    writing: Option<Waker>,
    /// What the peer takes.
    window: i64,
    /// It is among those that wait for the connection.
    queued: bool,
}

/// How the other side wants to be spoken to.
#[derive(Debug)]
struct Peer {
    window: u32,
    frame: usize,
}

/// See the head of this file.
pub struct State {
    out: Vec<u8>,
    /// How much of `out` has left.
    pushed: usize,
    encoder: Encoder,
    peer: Peer,
    window: i64,
    credit: i64,
    uncredited: u32,
    streams: HashMap<u32, Stream, BuildHasherDefault<StreamIdHasher>>,
    /// Streams that have something to send, when the connection takes more.
    queue: VecDeque<u32>,
    resets: VecDeque<u32>,
    /// Streams whose reader has left.
    left: usize,
    over: bool,
    /// The task of the connection is at work: what is written now leaves when its turn ends.
    in_turn: bool,
    task: Option<Waker>,
}

/// The state of a connection, as its streams hold it.
pub struct Shared(Mutex<State>);

impl Shared {
    /// A connection that begins with our SETTINGS.
    pub fn new(settings: &[(u16, u32)]) -> Arc<Self> {
        let mut state = State {
            out: Vec::new(),
            pushed: 0,
            encoder: Encoder::default(),
            peer: Peer { window: FIRST_WINDOW, frame: LEAST_FRAME },
            window: FIRST_WINDOW.into(),
            credit: CONNECTION_WINDOW.into(),
            uncredited: 0,
            streams: HashMap::default(),
            queue: VecDeque::new(),
            resets: VecDeque::new(),
            left: 0,
            over: false,
            in_turn: false,
            task: None,
        };
        let mut payload = Vec::new();
        for (id, value) in settings {
            payload.extend_from_slice(&id.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        state.frame(kind::SETTINGS, 0, 0, &payload);
        state.update(0, CONNECTION_WINDOW - FIRST_WINDOW);
        Arc::new(Self(Mutex::new(state)))
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What leaves, whatever it is about.
impl State {
    /// Appends a frame.
    pub fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        if self.out.capacity() == 0 {
            self.out = SPARE.take();
        }
        self.out.extend_from_slice(&FrameHeader { len: payload.len(), kind, flags, stream }.bytes());
        self.out.extend_from_slice(payload);
    }

    fn update(&mut self, stream: u32, by: u32) {
        self.frame(kind::WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    }

    /// No streams above this one are looked at.
    pub fn go_away(&mut self, last: u32, reason: Reason) {
        self.frame(kind::GOAWAY, 0, 0, &[last.to_be_bytes(), reason.0.to_be_bytes()].concat());
    }

    /// Appends a block of fields, in as many frames as the peer needs for it.
    fn block(&mut self, stream: u32, ends: bool, write: impl FnOnce(&mut Encoder, &mut Vec<u8>)) {
        let end_stream = if ends { flag::END_STREAM } else { 0 };
        let at = self.out.len();
        self.frame(kind::HEADERS, flag::END_HEADERS | end_stream, stream, &[]);
        let payload = self.out.len();
        write(&mut self.encoder, &mut self.out);
        let len = self.out.len() - payload;
        if len <= self.peer.frame {
            let header = FrameHeader { len, kind: kind::HEADERS, flags: flag::END_HEADERS | end_stream, stream };
            self.out[at..payload].copy_from_slice(&header.bytes());
            return;
        }
        let block = self.out.split_off(payload);
        self.out.truncate(at);
        let (first, rest) = block.split_at(self.peer.frame);
        self.frame(kind::HEADERS, end_stream, stream, first);
        let mut rest = rest.chunks(self.peer.frame).peekable();
        while let Some(chunk) = rest.next() {
            let flags = if rest.peek().is_none() { flag::END_HEADERS } else { 0 };
            self.frame(kind::CONTINUATION, flags, stream, chunk);
        }
    }

    /// A turn of the connection's task begins.
    pub const fn begin_turn(&mut self) {
        self.in_turn = true;
    }

    /// It ends; whoever writes from now on wakes the task.
    pub fn end_turn(&mut self, cx: &Context<'_>) {
        self.in_turn = false;
        if !self.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            self.task = Some(cx.waker().clone());
        }
    }

    fn call(&self) {
        if !self.in_turn
            && let Some(task) = &self.task
        {
            task.wake_by_ref();
        }
    }

    /// What has not left yet.
    pub fn unsent(&self) -> &[u8] {
        &self.out[self.pushed..]
    }

    /// So much of it has left. An idle connection owns no buffer.
    pub fn sent(&mut self, bytes: usize) {
        self.pushed += bytes;
        if self.pushed == self.out.len() {
            self.pushed = 0;
            let mut out = std::mem::take(&mut self.out);
            out.clear();
            out.shrink_to(KEPT);
            SPARE.set(out);
        } else if self.pushed >= HIGH_WATER {
            // A slow peer: the buffer holds what it has not taken, and not all that it ever took.
            self.out.drain(..self.pushed);
            self.pushed = 0;
        }
    }

    /// Whether nobody should write before some of it has left.
    pub fn is_full(&self) -> bool {
        self.unsent().len() >= HIGH_WATER
    }

    /// Lets the streams go on that wait for the connection, if it takes something; whether there were any.
    pub fn wake_queue(&mut self) -> bool {
        if self.queue.is_empty() || self.window <= 0 || self.is_full() {
            return false;
        }
        while let Some(id) = self.queue.pop_front() {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.queued = false;
                wake(&mut stream.writing);
            }
        }
        true
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

fn register(waker: &mut Option<Waker>, cx: &Context<'_>) {
    if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *waker = Some(cx.waker().clone());
    }
}

/// Streams come and go.
impl State {
    /// How many there are.
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// The client opens a stream; `left` is what its body is to have, where it has said so.
    pub fn open(&mut self, id: u32, ended: bool, left: Option<u64>) {
        let stream = Stream {
            arrived: VecDeque::new(),
            trailers: None,
            ended,
            reader: if ended { RecvState::Done } else { RecvState::Reads },
            reading: None,
            credit: STREAM_WINDOW.into(),
            uncredited: 0,
            left,
            said: SendState::Nothing,
            writing: None,
            window: self.peer.window.into(),
            queued: false,
        };
        self.streams.insert(id, stream);
    }

    /// Resets a stream, whatever is known of it.
    pub fn reset(&mut self, id: u32, reason: Reason) {
        self.frame(kind::RST_STREAM, 0, id, &reason.0.to_be_bytes());
        if self.resets.len() == REMEMBERED {
            self.resets.pop_front();
        }
        self.resets.push_back(id);
        self.remove(id);
    }

    /// Whether we have reset a stream not long ago.
    pub fn was_reset_by_us(&self, id: u32) -> bool {
        self.resets.contains(&id)
    }

    /// Forgets a stream. Whoever still holds an end of it finds out.
    pub fn remove(&mut self, id: u32) {
        let Some(mut stream) = self.streams.remove(&id) else { return };
        self.left -= usize::from(matches!(stream.reader, RecvState::Left(_)));
        let unread: usize = stream.arrived.iter().map(Bytes::len).sum();
        self.has_read(unread);
        wake(&mut stream.reading);
        wake(&mut stream.writing);
    }

    /// Forgets a stream of which nothing more is to come, either way.
    fn remove_if_done(&mut self, id: u32) {
        if self.streams.get(&id).is_some_and(|stream| stream.said == SendState::All && stream.reader == RecvState::Done)
        {
            self.remove(id);
        }
    }

    /// The connection is over: so are its streams, and what was to leave if nobody is there to take it.
    pub fn end(&mut self, is_gone: bool) {
        self.over = true;
        if is_gone {
            self.sent(self.unsent().len());
        }
        for (_, mut stream) in self.streams.drain() {
            wake(&mut stream.reading);
            wake(&mut stream.writing);
        }
    }

    /// Resets the streams that have been answered and whose bodies nobody has wanted for long enough.
    pub fn sweep(&mut self, now: Instant) {
        if self.left == 0 {
            return;
        }
        let is_due = |stream: &Stream| {
            stream.said == SendState::All
                && matches!(stream.reader, RecvState::Left(since) if now.duration_since(since) >= HOLD)
        };
        let due: Vec<u32> = self.streams.iter().filter(|(_, stream)| is_due(stream)).map(|(id, _)| *id).collect();
        for id in due {
            self.reset(id, Reason::NO_ERROR);
        }
    }
}

/// What arrives.
impl State {
    /// DATA. `padded` is what it weighs in the windows.
    ///
    /// # Errors
    /// Why the stream, or the connection, has to end.
    pub fn arrives(&mut self, id: u32, data: Bytes, padded: usize, ends: bool) -> Result<(), PeerError> {
        let weight = i64::try_from(padded).unwrap_or(i64::MAX);
        self.credit -= weight;
        if self.credit < 0 {
            return Err(PeerError::Connection(Reason::FLOW_CONTROL_ERROR));
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            self.has_read(padded);
            return if self.was_reset_by_us(id) { Ok(()) } else { Err(PeerError::Stream(id, Reason::STREAM_CLOSED)) };
        };
        let accepted = stream.takes(data.len(), weight, ends);
        if let Err(reason) = accepted {
            self.has_read(padded);
            return Err(PeerError::Stream(id, reason));
        }
        let padding = padded - data.len();
        stream.uncredited += u32::try_from(padding).unwrap_or(0);
        if matches!(stream.reader, RecvState::Left(_)) {
            // Its own window is not opened again, that of the others is.
            self.has_read(padded);
        } else {
            if !data.is_empty() {
                stream.arrived.push_back(data);
            }
            self.has_read(padding);
        }
        if ends {
            self.has_ended(id);
        } else if let Some(stream) = self.streams.get_mut(&id) {
            wake(&mut stream.reading);
        }
        Ok(())
    }

    /// Trailers, which end the stream.
    ///
    /// # Errors
    /// The stream has ended before, or has less than it said.
    pub fn trails(&mut self, id: u32, trailers: Fields) -> Result<(), PeerError> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        stream.takes(0, 0, true).map_err(|reason| PeerError::Stream(id, reason))?;
        stream.trailers = Some(trailers);
        self.has_ended(id);
        Ok(())
    }

    fn has_ended(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.ended = true;
        wake(&mut stream.reading);
        if matches!(stream.reader, RecvState::Left(_)) {
            stream.reader = RecvState::Done;
            self.left -= 1;
            self.remove_if_done(id);
        }
    }

    /// Whether a stream is open, and whether its body may go on.
    pub fn receives(&self, id: u32) -> Option<bool> {
        self.streams.get(&id).map(|stream| !stream.ended)
    }

    /// Bytes that occupy no window any more. The peer is told a quarter of the window at a time.
    fn has_read(&mut self, bytes: usize) {
        self.uncredited = self.uncredited.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        if self.uncredited >= CONNECTION_WINDOW / 4 && !self.over {
            let by = std::mem::take(&mut self.uncredited);
            self.credit += i64::from(by);
            self.update(0, by);
            self.call();
        }
    }

    /// WINDOW_UPDATE.
    ///
    /// # Errors
    /// A window that cannot be.
    pub fn grows(&mut self, id: u32, by: u32) -> Result<(), PeerError> {
        let fault = |reason| if id == 0 { PeerError::Connection(reason) } else { PeerError::Stream(id, reason) };
        let window = match self.streams.get_mut(&id) {
            _ if id == 0 => &mut self.window,
            Some(stream) => &mut stream.window,
            None => return Ok(()),
        };
        if by == 0 {
            return Err(fault(Reason::PROTOCOL_ERROR));
        }
        *window += i64::from(by);
        if *window > LARGEST_WINDOW {
            return Err(fault(Reason::FLOW_CONTROL_ERROR));
        }
        match self.streams.get_mut(&id) {
            Some(stream) => wake(&mut stream.writing),
            None => drop(self.wake_queue()),
        }
        Ok(())
    }

    /// SETTINGS, and their acknowledgement.
    ///
    /// # Errors
    /// A value that cannot be (RFC 9113 section 6.5.2).
    pub fn adopt(&mut self, payload: &[u8]) -> Result<(), PeerError> {
        for pair in payload.as_chunks::<6>().0 {
            let [a, b, c, d, e, f] = *pair;
            let value = u32::from_be_bytes([c, d, e, f]);
            let size = usize::try_from(value).unwrap_or(usize::MAX);
            match u16::from_be_bytes([a, b]) {
                setting::HEADER_TABLE_SIZE => self.encoder.resize(size),
                setting::ENABLE_PUSH | setting::ENABLE_CONNECT_PROTOCOL if value > 1 => {
                    return Err(PeerError::Connection(Reason::PROTOCOL_ERROR));
                }
                setting::INITIAL_WINDOW_SIZE => self.windows_begin_at(value)?,
                setting::MAX_FRAME_SIZE if (LEAST_FRAME..=LARGEST_FRAME).contains(&size) => {
                    self.peer.frame = size;
                }
                setting::MAX_FRAME_SIZE => return Err(PeerError::Connection(Reason::PROTOCOL_ERROR)),
                _ => {}
            }
        }
        self.frame(kind::SETTINGS, flag::ACK, 0, &[]);
        Ok(())
    }

    fn windows_begin_at(&mut self, window: u32) -> Result<(), PeerError> {
        let change = i64::from(window) - i64::from(self.peer.window);
        self.peer.window = window;
        for stream in self.streams.values_mut() {
            stream.window += change;
            if stream.window > LARGEST_WINDOW || i64::from(window) > LARGEST_WINDOW {
                return Err(PeerError::Connection(Reason::FLOW_CONTROL_ERROR));
            }
            wake(&mut stream.writing);
        }
        if i64::from(window) > LARGEST_WINDOW { Err(PeerError::Connection(Reason::FLOW_CONTROL_ERROR)) } else { Ok(()) }
    }
}

/// What a peer did wrong, and what it costs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerError {
    Stream(u32, Reason),
    Connection(Reason),
}

impl Stream {
    /// Whether so much more may come.
    fn takes(&mut self, len: usize, weight: i64, ends: bool) -> Result<(), Reason> {
        if self.ended {
            return Err(Reason::STREAM_CLOSED);
        }
        self.credit -= weight;
        if self.credit < 0 {
            return Err(Reason::FLOW_CONTROL_ERROR);
        }
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(len as u64).ok_or(Reason::PROTOCOL_ERROR)?;
            if ends && *left > 0 {
                return Err(Reason::PROTOCOL_ERROR);
            }
        }
        Ok(())
    }
}

/// The end of a stream that an answer is sent by. Dropped before all of it is said, the stream is reset.
pub struct Sender {
    shared: Arc<Shared>,
    id: u32,
}

impl Sender {
    /// That of a stream that has been opened; there is one.
    pub const fn new(shared: Arc<Shared>, id: u32) -> Self {
        Self { shared, id }
    }

    /// Sends an interim answer, if the final one has not been begun.
    pub fn hint(&self, status: StatusCode, fields: &Fields) {
        let mut state = self.shared.lock();
        if state.streams.get(&self.id).is_some_and(|stream| stream.said == SendState::Nothing) && !state.is_full() {
            state.block(self.id, false, |encoder, out| encoder.response(out, status, fields));
            state.call();
        }
    }

    /// Sends the head of the answer, which may be all of it.
    ///
    /// # Errors
    /// The stream is over.
    pub fn head(&self, status: StatusCode, fields: &Fields, ends: bool) -> Result<(), StreamClosed> {
        let mut state = self.shared.lock();
        state.says(self.id, if ends { SendState::All } else { SendState::Head })?;
        state.block(self.id, ends, |encoder, out| encoder.response(out, status, fields));
        state.has_written(self.id);
        Ok(())
    }

    /// How much of what is wanted may be sent now; waits until it is something.
    pub fn poll_room(&self, cx: &Context<'_>, wanted: usize) -> Poll<Result<usize, StreamClosed>> {
        let mut state = self.shared.lock();
        let state = &mut *state;
        let is_full = state.is_full();
        let Some(stream) = state.streams.get_mut(&self.id) else { return Poll::Ready(Err(StreamClosed)) };
        let room = stream.window.min(state.window).clamp(0, state.peer.frame as i64);
        let room = usize::try_from(room).unwrap_or(0).min(wanted);
        if room > 0 && !is_full {
            return Poll::Ready(Ok(room));
        }
        register(&mut stream.writing, cx);
        // Its own window wakes it by itself.
        if stream.window > 0 && !std::mem::replace(&mut stream.queued, true) {
            state.queue.push_back(self.id);
        }
        Poll::Pending
    }

    /// Sends a piece, for which there is room.
    ///
    /// # Errors
    /// The stream is over.
    pub fn data(&self, piece: &[u8], ends: bool) -> Result<(), StreamClosed> {
        let mut state = self.shared.lock();
        state.says(self.id, if ends { SendState::All } else { SendState::Head })?;
        let weight = i64::try_from(piece.len()).unwrap_or(i64::MAX);
        state.window -= weight;
        if let Some(stream) = state.streams.get_mut(&self.id) {
            stream.window -= weight;
        }
        state.frame(kind::DATA, if ends { flag::END_STREAM } else { 0 }, self.id, piece);
        state.has_written(self.id);
        Ok(())
    }

    /// Sends what ends the answer.
    ///
    /// # Errors
    /// The stream is over.
    pub fn trailers(&self, trailers: &Fields) -> Result<(), StreamClosed> {
        let mut state = self.shared.lock();
        state.says(self.id, SendState::All)?;
        state.block(self.id, true, |encoder, out| encoder.trailers(out, trailers));
        state.has_written(self.id);
        Ok(())
    }

    /// Resets the stream, unless it is over.
    pub fn reset(&self, reason: Reason) {
        let mut state = self.shared.lock();
        if state.streams.get(&self.id).is_some_and(|stream| stream.said != SendState::All) {
            state.reset(self.id, reason);
            state.call();
        }
    }

    /// Ready when the stream is over: reset by the client, or gone with its connection.
    pub fn poll_gone(&self, cx: &Context<'_>) -> Poll<()> {
        match self.shared.lock().streams.get_mut(&self.id) {
            Some(stream) => {
                register(&mut stream.writing, cx);
                Poll::Pending
            }
            None => Poll::Ready(()),
        }
    }
}

impl State {
    fn says(&mut self, id: u32, what: SendState) -> Result<(), StreamClosed> {
        let stream = self.streams.get_mut(&id).ok_or(StreamClosed)?;
        stream.said = what;
        Ok(())
    }

    fn has_written(&mut self, id: u32) {
        self.remove_if_done(id);
        self.call();
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.reset(Reason::CANCEL);
    }
}

/// The end of a stream that a body arrives by.
pub struct Receiver {
    shared: Arc<Shared>,
    id: u32,
    /// The client waits for a 100 before it sends its body.
    owes_continue: bool,
    over: bool,
}

impl Receiver {
    /// That of a stream that has been opened and has not ended; there is one.
    pub const fn new(shared: Arc<Shared>, id: u32, owes_continue: bool) -> Self {
        Self { shared, id, owes_continue, over: false }
    }

    /// The next piece; nothing comes after `End` and `Cut`.
    pub fn poll_piece(&mut self, cx: &Context<'_>) -> Poll<BodyFrame> {
        if self.over {
            return Poll::Ready(BodyFrame::End);
        }
        let mut state = self.shared.lock();
        let state = &mut *state;
        let Some(stream) = state.streams.get_mut(&self.id) else {
            self.over = true;
            return Poll::Ready(if state.over { BodyFrame::Lost } else { BodyFrame::Cut });
        };
        if let Some(data) = stream.arrived.pop_front() {
            let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
            stream.uncredited = stream.uncredited.saturating_add(len);
            if stream.uncredited >= STREAM_WINDOW / 4 && !stream.ended {
                let by = std::mem::take(&mut stream.uncredited);
                stream.credit += i64::from(by);
                state.update(self.id, by);
                state.call();
            }
            state.has_read(data.len());
            return Poll::Ready(BodyFrame::Data(data));
        }
        if let Some(trailers) = stream.trailers.take() {
            return Poll::Ready(BodyFrame::Trailers((&trailers).into()));
        }
        if stream.ended {
            stream.reader = RecvState::Done;
            self.over = true;
            state.remove_if_done(self.id);
            return Poll::Ready(BodyFrame::End);
        }
        register(&mut stream.reading, cx);
        // Whoever asked whether to send it waits for this (RFC 9110 section 10.1.1).
        if std::mem::take(&mut self.owes_continue) && stream.said == SendState::Nothing {
            state.block(self.id, false, |encoder, out| encoder.response(out, StatusCode::CONTINUE, &Fields::new()));
            state.call();
        }
        Poll::Pending
    }

    /// Whether nothing more comes.
    pub fn is_over(&self) -> bool {
        self.over
            || self
                .shared
                .lock()
                .streams
                .get(&self.id)
                .is_none_or(|stream| stream.ended && stream.arrived.is_empty() && stream.trailers.is_none())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let mut state = self.shared.lock();
        let Some(stream) = state.streams.get_mut(&self.id) else { return };
        let unread: usize = stream.arrived.drain(..).map(|data| data.len()).sum();
        if stream.ended {
            stream.reader = RecvState::Done;
            state.has_read(unread);
            state.remove_if_done(self.id);
        } else {
            stream.reader = RecvState::Left(Instant::now());
            state.left += 1;
            state.has_read(unread);
        }
    }
}
