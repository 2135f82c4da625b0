//! What leaves: the output, the windows of the peer, and whose turn it is to send.
//!
//! A stream that has DATA asks for [`room`](Connection::room). While others wait it queues, sends a quantum when its turn
//! comes, and queues again, so a large answer never holds up a small one.

use std::{cell::Cell, collections::VecDeque};

use http::StatusCode;

use super::{
    Connection, RecvState, SendState, StreamClosed, Waiter,
    frames::Fault,
    stream::{SendWait, Stream},
};
use crate::{
    message::Fields,
    wire::h2::{
        Encoder, FIRST_WINDOW, FrameHeader, LARGEST_WINDOW, LEAST_FRAME, Reason,
        cost::{HIGH_WATER, QUANTUM, Turn},
        flag, kind,
    },
};

/// Above what a thread keeps of a buffer for its next connection.
const KEPT: usize = 2 * HIGH_WATER;

thread_local! {
    /// The buffer of whichever connection has its turn: nearly always all output leaves before the next one's.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Bytes for the peer, and how it wants them.
#[derive(Debug)]
pub struct Output {
    bytes: Vec<u8>,
    /// How many of `bytes` have left.
    pushed: usize,
    pub encoder: Encoder,
    /// SETTINGS_MAX_FRAME_SIZE and SETTINGS_INITIAL_WINDOW_SIZE of the peer.
    pub peer_frame: usize,
    pub peer_window: u32,
    /// What the connection may send.
    pub window: i64,
    /// Streams that wait for their turn, and how many have it.
    queue: VecDeque<u32>,
    granted: usize,
}

impl Output {
    pub fn new() -> Self {
        Self {
            bytes: Vec::new(),
            pushed: 0,
            encoder: Encoder::default(),
            peer_frame: LEAST_FRAME,
            peer_window: FIRST_WINDOW,
            window: FIRST_WINDOW.into(),
            queue: VecDeque::new(),
            granted: 0,
        }
    }

    fn unsent(&self) -> &[u8] {
        &self.bytes[self.pushed..]
    }

    /// Whether some of it has to leave before more is added.
    pub fn is_full(&self) -> bool {
        self.unsent().len() >= HIGH_WATER
    }

    /// Forgets everything that has not left.
    pub fn clear(&mut self) {
        self.take(self.unsent().len());
    }

    /// So much has left. An idle connection owns no buffer.
    fn take(&mut self, bytes: usize) {
        self.pushed += bytes;
        if self.pushed == self.bytes.len() {
            self.pushed = 0;
            let mut bytes = std::mem::take(&mut self.bytes);
            bytes.clear();
            bytes.shrink_to(KEPT);
            SPARE.set(bytes);
        } else if self.pushed >= HIGH_WATER {
            // A slow peer: the buffer holds what it has not taken, and not all that it ever took.
            self.bytes.drain(..self.pushed);
            self.pushed = 0;
        }
    }

    /// Appends a frame.
    pub fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        if self.bytes.capacity() == 0 {
            self.bytes = SPARE.take();
        }
        self.bytes.extend_from_slice(&FrameHeader { len: payload.len(), kind, flags, stream }.bytes());
        self.bytes.extend_from_slice(payload);
    }

    pub fn window_update(&mut self, stream: u32, by: u32) {
        self.frame(kind::WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    }

    pub fn goaway(&mut self, last: u32, reason: Reason) {
        self.frame(kind::GOAWAY, 0, 0, &[last.to_be_bytes(), reason.0.to_be_bytes()].concat());
    }

    pub fn reset(&mut self, stream: u32, reason: Reason) {
        self.frame(kind::RST_STREAM, 0, stream, &reason.0.to_be_bytes());
    }

    /// Appends the head of an answer.
    pub fn response(&mut self, stream: u32, ends: bool, status: StatusCode, fields: &Fields) {
        self.block(stream, ends, |encoder, out| encoder.response(out, status, fields));
    }

    /// Appends a block of fields, in as many frames as the peer needs for it.
    fn block(&mut self, stream: u32, ends: bool, write: impl FnOnce(&mut Encoder, &mut Vec<u8>)) {
        let end_stream = if ends { flag::END_STREAM } else { 0 };
        let at = self.bytes.len();
        self.frame(kind::HEADERS, flag::END_HEADERS | end_stream, stream, &[]);
        let payload = self.bytes.len();
        write(&mut self.encoder, &mut self.bytes);
        let len = self.bytes.len() - payload;
        if len <= self.peer_frame {
            let header = FrameHeader { len, kind: kind::HEADERS, flags: flag::END_HEADERS | end_stream, stream };
            self.bytes[at..payload].copy_from_slice(&header.bytes());
            return;
        }
        let block = self.bytes.split_off(payload);
        self.bytes.truncate(at);
        let (first, rest) = block.split_at(self.peer_frame);
        self.frame(kind::HEADERS, end_stream, stream, first);
        let mut rest = rest.chunks(self.peer_frame).peekable();
        while let Some(chunk) = rest.next() {
            let flags = if rest.peek().is_none() { flag::END_HEADERS } else { 0 };
            self.frame(kind::CONTINUATION, flags, stream, chunk);
        }
    }

    /// What could be sent now, windows of streams aside.
    fn capacity(&self) -> i64 {
        let room = HIGH_WATER.saturating_sub(self.unsent().len());
        self.window.min(i64::try_from(room).unwrap_or(i64::MAX))
    }

    /// A stream gives up its place; it is taken out of the queue when its number comes up.
    pub fn leave_queue<W>(&mut self, stream: &mut Stream<W>) {
        self.granted -= usize::from(stream.wait == SendWait::Granted);
        stream.wait = SendWait::No;
    }

    /// All streams are gone.
    pub fn forget_queue(&mut self) {
        self.queue.clear();
        self.granted = 0;
    }
}

impl<W: Waiter> Connection<W> {
    /// What is to be written.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        self.output.unsent()
    }

    /// Whether output has to be written before frames are read: whoever takes nothing asks for nothing, since
    /// acknowledgements need room too.
    #[must_use]
    pub fn is_output_full(&self) -> bool {
        self.output.is_full()
    }

    /// So much of the output was written. Whether streams may go on that waited for this.
    pub fn written(&mut self, bytes: usize) -> bool {
        self.output.take(bytes);
        self.budget.sent(bytes);
        self.turn.spend_bytes(bytes);
        self.grant()
    }

    /// Gives streams their turn, as many as there is capacity for; whether there were any.
    pub(super) fn grant(&mut self) -> bool {
        let quantum = i64::try_from(QUANTUM).unwrap_or(i64::MAX);
        let mut any = false;
        while !self.output.queue.is_empty()
            && i64::try_from(self.output.granted).unwrap_or(i64::MAX) * quantum < self.output.capacity()
        {
            let Some(id) = self.output.queue.pop_front() else { break };
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            if stream.wait == SendWait::Queued {
                stream.wait = SendWait::Granted;
                self.output.granted += 1;
                stream.waiter.writable();
                any = true;
            }
        }
        any
    }

    /// How much of `wanted` the stream may send now; `None` if its waiter has to be told first.
    ///
    /// # Errors
    /// The stream is closed.
    pub fn room(&mut self, id: u32, wanted: usize) -> Result<Option<usize>, StreamClosed> {
        let Some(room) = self.try_room(id, wanted)? else {
            self.grant();
            // The queue may have held none but this one and those that left it.
            let is_granted = self.streams.get(&id).is_some_and(|stream| stream.wait == SendWait::Granted);
            return if is_granted { self.try_room(id, wanted) } else { Ok(None) };
        };
        Ok(Some(room))
    }

    fn try_room(&mut self, id: u32, wanted: usize) -> Result<Option<usize>, StreamClosed> {
        let capacity = self.output.capacity();
        let stream = self.streams.get_mut(&id).ok_or(StreamClosed)?;
        let is_next = stream.wait == SendWait::Granted || self.output.queue.is_empty();
        if stream.window > 0 && capacity > 0 && is_next {
            let room = stream.window.min(capacity);
            let room = usize::try_from(room).unwrap_or(0).min(self.output.peer_frame).min(QUANTUM);
            return Ok(Some(room.min(wanted)));
        }
        if stream.window <= 0 {
            self.output.leave_queue(stream);
            stream.wait = SendWait::Window;
        } else if stream.wait == SendWait::Granted {
            // Frames of the connection took the room that was meant for it.
            self.output.leave_queue(stream);
            stream.wait = SendWait::Queued;
            self.output.queue.push_front(id);
        } else if stream.wait != SendWait::Queued {
            stream.wait = SendWait::Queued;
            self.output.queue.push_back(id);
        }
        if stream.blocked.is_none() {
            stream.blocked = Some(self.now);
            self.arm_stall();
        }
        Ok(None)
    }

    /// Sends content for which there was room, or none with the end of the answer.
    ///
    /// # Errors
    /// The stream is closed.
    pub fn send_data(&mut self, id: u32, data: &[u8], ends: bool) -> Result<(), StreamClosed> {
        let stream = self.streams.get_mut(&id).ok_or(StreamClosed)?;
        let weight = i64::try_from(data.len()).unwrap_or(i64::MAX);
        stream.window -= weight;
        stream.blocked = None;
        self.output.window -= weight;
        self.output.leave_queue(stream);
        self.turn.spend(Turn::FRAME);
        self.turn.spend_bytes(data.len());
        self.output.frame(kind::DATA, if ends { flag::END_STREAM } else { 0 }, id, data);
        self.sent(id, ends);
        self.grant();
        Ok(())
    }

    /// Sends the head of the answer, which may be all of it.
    ///
    /// # Errors
    /// The stream is closed.
    pub fn send_head(&mut self, id: u32, status: StatusCode, fields: &Fields, ends: bool) -> Result<(), StreamClosed> {
        self.send_block(id, ends, |encoder, out| encoder.response(out, status, fields))
    }

    /// Sends the fields that end the answer.
    ///
    /// # Errors
    /// The stream is closed.
    pub fn send_trailers(&mut self, id: u32, trailers: &Fields) -> Result<(), StreamClosed> {
        self.send_block(id, true, |encoder, out| encoder.trailers(out, trailers))
    }

    /// Sends an interim answer, unless the final one has begun or the peer takes too little.
    pub fn send_interim(&mut self, id: u32, status: StatusCode, fields: &Fields) {
        if self.streams.get(&id).is_some_and(|stream| stream.send == SendState::Idle) && !self.output.is_full() {
            self.output.response(id, false, status, fields);
        }
    }

    fn send_block(
        &mut self,
        id: u32,
        ends: bool,
        write: impl FnOnce(&mut Encoder, &mut Vec<u8>),
    ) -> Result<(), StreamClosed> {
        if !self.streams.contains_key(&id) {
            return Err(StreamClosed);
        }
        self.output.block(id, ends, write);
        self.turn.spend(Turn::BLOCK);
        self.sent(id, ends);
        Ok(())
    }

    fn sent(&mut self, id: u32, ends: bool) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.send = if ends { SendState::Done } else { SendState::HeadersSent };
        if ends {
            if matches!(stream.recv, RecvState::Abandoned(_)) {
                self.arm_abandoned();
            }
            self.remove_if_done(id);
        }
    }

    /// Resets a stream whose answer is not whole.
    pub fn reset(&mut self, id: u32, reason: Reason) {
        if self.streams.get(&id).is_some_and(|stream| stream.send != SendState::Done) {
            self.reset_stream(id, reason);
        }
    }

    /// WINDOW_UPDATE.
    pub(super) fn widen(&mut self, id: u32, by: u32) -> Result<(), Fault> {
        let fault = |reason| if id == 0 { Fault::Connection(reason) } else { Fault::Stream(id, reason) };
        let window = match self.streams.get_mut(&id) {
            _ if id == 0 => &mut self.output.window,
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
        self.window_opened(id);
        self.grant();
        Ok(())
    }

    /// Lets a stream queue that waited for its own window.
    fn window_opened(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.wait == SendWait::Window && stream.window > 0 {
            stream.wait = SendWait::Queued;
            self.output.queue.push_back(id);
        }
    }

    /// SETTINGS_INITIAL_WINDOW_SIZE, which changes the windows of all streams (RFC 9113 section 6.9.2).
    pub(super) fn windows_begin_at(&mut self, window: u32) -> Result<(), Fault> {
        let change = i64::from(window) - i64::from(self.output.peer_window);
        self.output.peer_window = window;
        self.turn.spend(self.streams.len() / 64);
        let mut opened = Vec::new();
        for (id, stream) in &mut self.streams {
            stream.window += change;
            if stream.window > LARGEST_WINDOW {
                return Err(Fault::Connection(Reason::FLOW_CONTROL_ERROR));
            }
            if stream.wait == SendWait::Window {
                opened.push(*id);
            }
        }
        opened.sort_unstable();
        opened.into_iter().for_each(|id| self.window_opened(id));
        self.grant();
        Ok(())
    }
}
