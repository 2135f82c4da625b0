//! What each frame means, and what a peer may not send (RFC 9113 sections 3.4 to 6).

use std::time::Instant;

use bytes::{Buf as _, Bytes, BytesMut};

use super::{Connection, Incoming, SendState, Shutdown, Stream, Waiter};
use crate::wire::{
    self,
    h2::{
        Decoder, FRAME_HEADER, FrameHeader, Head, LARGEST_FRAME, LARGEST_WINDOW, LEAST_FRAME, PREFACE, Reason,
        cost::{Budget, MAX_FRAME, PINNED_LEAST, Turn},
        flag, kind, setting, unpadded,
    },
};

/// The payload of the PING whose answer tells that a peer has seen our first GOAWAY and opens no more streams.
pub const FAREWELL: [u8; 8] = *b"farewell";

/// The last stream that there could be.
pub const ANY_STREAM: u32 = u32::MAX >> 1;

/// What a peer did wrong, and what it costs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The stream is reset.
    Stream(u32, Reason),
    /// The connection ends.
    Connection(Reason),
}

type Understood = Result<(), Fault>;

const fn broken(reason: Reason) -> Understood {
    Err(Fault::Connection(reason))
}

/// A block of fields of which a part has come.
#[derive(Debug)]
struct Block {
    stream: u32,
    ends: bool,
    bytes: Vec<u8>,
}

/// How far the frames of the peer have been read.
#[derive(Debug)]
pub struct Framing {
    decoder: Decoder,
    /// Bytes of a block of fields that are gathered: those of the largest head, and a frame that shows it is too large.
    most: usize,
    /// The preface has come, and the SETTINGS behind it.
    has_preface: bool,
    pub is_settled: bool,
    block: Option<Block>,
    /// Since when a frame or block has been coming that is not DATA.
    pub partial: Option<Instant>,
}

impl Framing {
    pub const fn new(list: usize) -> Self {
        Self {
            decoder: Decoder::new(list),
            most: list + MAX_FRAME,
            has_preface: false,
            is_settled: false,
            block: None,
            partial: None,
        }
    }
}

impl<W: Waiter> Connection<W> {
    /// Takes whole frames off the front of what was read, until the turn is spent or the output full. `input` has grown
    /// since the last call, or that call left whole frames.
    pub fn receive(&mut self, input: &mut BytesMut) {
        if let Err(reason) = self.take_frames(input) {
            self.fail(reason);
        }
        if self.end.is_some() {
            input.clear();
        }
    }

    /// Whether [`receive`](Self::receive) may be called in this turn.
    #[must_use]
    pub fn can_receive(&self) -> bool {
        self.end.is_none() && !self.turn.is_spent() && !self.output.is_full()
    }

    fn take_frames(&mut self, input: &mut BytesMut) -> Result<(), Reason> {
        if !self.framing.has_preface {
            let len = input.len().min(PREFACE.len());
            if input[..len] != PREFACE[..len] {
                return Err(Reason::PROTOCOL_ERROR);
            }
            if len < PREFACE.len() {
                return Ok(());
            }
            input.advance(len);
            self.framing.has_preface = true;
        }
        while self.can_receive() {
            let header = FrameHeader::parse_first(input);
            if header.is_some_and(|header| header.len > MAX_FRAME) {
                return Err(Reason::FRAME_SIZE_ERROR);
            }
            let Some(header) = header.filter(|header| input.len() >= FRAME_HEADER + header.len) else {
                self.begin_partial(header, input.is_empty());
                return Ok(());
            };
            if self.framing.block.is_none() {
                self.framing.partial = None;
            }
            self.turn.spend(Turn::FRAME);
            let understood = if header.kind == kind::DATA && header.len >= PINNED_LEAST && self.ledger.may_pin() {
                let payload = input.split_to(FRAME_HEADER + header.len).freeze().slice(FRAME_HEADER..);
                self.frame(header, &payload.clone(), Some(payload))
            } else {
                let understood = self.frame(header, &input[FRAME_HEADER..FRAME_HEADER + header.len], None);
                input.advance(FRAME_HEADER + header.len);
                understood
            };
            self.settle(understood)?;
        }
        Ok(())
    }

    /// A part of a frame has come that cannot be read yet: of its record of TLS, the rest is missing. `input` is what has
    /// been read of the frame.
    pub fn note_partial(&mut self, input: &[u8]) {
        if self.end.is_none() && self.framing.has_preface {
            self.begin_partial(FrameHeader::parse_first(input), input.is_empty());
        }
    }

    /// A frame has come in part. DATA moves with each byte; anything else has to be whole in time.
    fn begin_partial(&mut self, header: Option<FrameHeader>, is_empty: bool) {
        match header {
            Some(header) if header.kind == kind::DATA => {
                if let Some(stream) = self.streams.get_mut(&header.stream) {
                    stream.starved = stream.starved.map(|_| self.now);
                }
            }
            _ if is_empty && self.framing.block.is_none() => self.framing.partial = None,
            _ => {
                self.framing.partial.get_or_insert(self.now);
                self.arm_head();
            }
        }
    }

    /// Takes from the budget.
    fn charge(&mut self, cost: i64) -> Understood {
        self.budget.spend(cost, self.now).map_err(|_exhausted| Fault::Connection(Reason::ENHANCE_YOUR_CALM))
    }

    /// What the peer pays for the end of a stream: much where a service has begun to work for it, and does so in vain.
    fn cost_of_reset(&self, id: u32) -> i64 {
        let in_vain = |stream: &Stream<W>| stream.is_begun && stream.send != SendState::Done;
        if self.streams.get(&id).is_some_and(in_vain) { Budget::ABORTED } else { Budget::FRAME }
    }

    fn settle(&mut self, understood: Understood) -> Result<(), Reason> {
        match understood {
            Ok(()) => Ok(()),
            Err(Fault::Connection(reason)) => Err(reason),
            Err(Fault::Stream(id, reason)) => {
                let cost = self.cost_of_reset(id).max(Budget::REFUSED);
                self.reset_stream(id, reason);
                self.charge(cost).map_err(|_exhausted| Reason::ENHANCE_YOUR_CALM)
            }
        }
    }

    fn frame(&mut self, header: FrameHeader, payload: &[u8], pinned: Option<Bytes>) -> Understood {
        if !self.framing.is_settled && (header.kind != kind::SETTINGS || header.has(flag::ACK)) {
            return broken(Reason::PROTOCOL_ERROR);
        }
        if self.framing.block.is_some() && header.kind != kind::CONTINUATION {
            return broken(Reason::PROTOCOL_ERROR);
        }
        if !matches!(header.kind, kind::DATA | kind::RST_STREAM) {
            self.charge(Budget::FRAME)?;
        }
        match header.kind {
            kind::DATA => self.data(header, payload, pinned),
            kind::HEADERS => self.headers(header, payload),
            kind::CONTINUATION => self.continuation(header, payload),
            kind::PRIORITY => priority(header, payload),
            kind::RST_STREAM => self.rst_stream(header),
            kind::SETTINGS => self.settings(header, payload),
            kind::PUSH_PROMISE => broken(Reason::PROTOCOL_ERROR),
            kind::PING => self.ping(header, payload),
            kind::GOAWAY => self.goaway(header),
            kind::WINDOW_UPDATE => self.window_update(header, payload),
            _ => Ok(()),
        }
    }

    /// A stream that the client has not opened, or cannot.
    const fn is_idle(&self, stream: u32) -> bool {
        stream == 0 || stream.is_multiple_of(2) || stream > self.last
    }

    fn data(&mut self, header: FrameHeader, payload: &[u8], pinned: Option<Bytes>) -> Understood {
        if self.is_idle(header.stream) {
            return broken(Reason::PROTOCOL_ERROR);
        }
        let Some(data) = unpadded(header, payload) else { return broken(Reason::PROTOCOL_ERROR) };
        let ends = header.has(flag::END_STREAM);
        if data.is_empty() && !ends {
            self.charge(Budget::FRAME)?;
        }
        self.turn.spend_bytes(data.len());
        let pinned = pinned.map(|payload| payload.slice_ref(data));
        self.arrive(header.stream, data, pinned, header.len, ends)
    }

    fn headers(&mut self, header: FrameHeader, payload: &[u8]) -> Understood {
        if header.stream == 0 || header.stream.is_multiple_of(2) {
            return broken(Reason::PROTOCOL_ERROR);
        }
        let Some(mut block) = unpadded(header, payload) else { return broken(Reason::PROTOCOL_ERROR) };
        if header.has(flag::PRIORITY) {
            let Some((priority, rest)) = block.split_first_chunk::<5>() else {
                return broken(Reason::FRAME_SIZE_ERROR);
            };
            if depends_on(priority) == header.stream {
                return broken(Reason::PROTOCOL_ERROR);
            }
            block = rest;
        }
        let ends = header.has(flag::END_STREAM);
        if header.has(flag::END_HEADERS) {
            return self.block(header.stream, ends, block);
        }
        self.framing.block = Some(Block { stream: header.stream, ends, bytes: block.to_vec() });
        self.framing.partial = Some(self.now);
        self.arm_head();
        Ok(())
    }

    fn continuation(&mut self, header: FrameHeader, payload: &[u8]) -> Understood {
        let Some(mut block) = self.framing.block.take_if(|block| block.stream == header.stream) else {
            return broken(Reason::PROTOCOL_ERROR);
        };
        if block.bytes.len() + payload.len() > self.framing.most {
            return broken(Reason::ENHANCE_YOUR_CALM);
        }
        block.bytes.extend_from_slice(payload);
        if header.has(flag::END_HEADERS) {
            self.framing.partial = None;
            return self.block(block.stream, block.ends, &block.bytes);
        }
        self.framing.block = Some(block);
        Ok(())
    }

    /// A whole block: the head of a request, or trailers.
    fn block(&mut self, id: u32, ended: bool, block: &[u8]) -> Understood {
        self.turn.spend(Turn::BLOCK);
        self.turn.spend_bytes(block.len());
        // Decoded whatever becomes of it, since it may change the table.
        let Ok(head) = self.framing.decoder.decode(block) else { return broken(Reason::COMPRESSION_ERROR) };
        if id > self.last {
            self.last = id;
            return if self.shutdown == Shutdown::Decided { Ok(()) } else { self.open(id, head, ended) };
        }
        match self.streams.get(&id).map(|stream| stream.ended) {
            Some(false) if !ended || head.malformed.is_some() || head.too_large || head.has_pseudo_fields() => {
                Err(Fault::Stream(id, Reason::PROTOCOL_ERROR))
            }
            Some(false) => self.arrive_trailers(id, head.fields),
            Some(true) => Err(Fault::Stream(id, Reason::STREAM_CLOSED)),
            None if self.was_reset_by_us(id) || id > self.last_taken => Ok(()),
            None => broken(Reason::STREAM_CLOSED),
        }
    }

    fn open(&mut self, id: u32, mut head: Head, ended: bool) -> Understood {
        self.last_taken = id;
        if self.streams.len() >= self.limits.streams {
            return Err(Fault::Stream(id, Reason::REFUSED_STREAM));
        }
        let length = head.content_length(ended);
        // A tunnel that has ended before it began is none (RFC 8441 section 5).
        let is_tunnel = head.protocol.is_some();
        if !head.is_request() || is_tunnel && ended {
            return Err(Fault::Stream(id, Reason::PROTOCOL_ERROR));
        }
        let mut stream = Stream::new(ended, length, self.output.peer_window);
        stream.is_tunnel = is_tunnel;
        stream.owes_continue = !ended && !is_tunnel && wire::expects_continue(&head.fields);
        let may_be_empty = !ended && !is_tunnel && length.is_none() && !stream.owes_continue;
        self.streams.insert(id, stream);
        let incoming = Incoming { id, head, ended, since: self.now };
        if may_be_empty {
            self.hold(incoming);
        } else {
            self.requests.push_back(incoming);
        }
        Ok(())
    }

    fn rst_stream(&mut self, header: FrameHeader) -> Understood {
        if header.len != 4 {
            return broken(Reason::FRAME_SIZE_ERROR);
        }
        if self.is_idle(header.stream) {
            return broken(Reason::PROTOCOL_ERROR);
        }
        let cost = self.cost_of_reset(header.stream);
        self.remove(header.stream);
        self.charge(cost)
    }

    fn settings(&mut self, header: FrameHeader, payload: &[u8]) -> Understood {
        if header.stream != 0 {
            return broken(Reason::PROTOCOL_ERROR);
        }
        let is_ack = header.has(flag::ACK);
        if !payload.len().is_multiple_of(6) || is_ack && !payload.is_empty() {
            return broken(Reason::FRAME_SIZE_ERROR);
        }
        self.framing.is_settled = true;
        if is_ack { Ok(()) } else { self.adopt(payload) }
    }

    /// The settings of the peer (section 6.5.2). An entry costs as much as a frame; of a window that is said several
    /// times, which touches every stream each time (CVE-2020-11080), the last one counts.
    fn adopt(&mut self, payload: &[u8]) -> Understood {
        let mut window = None;
        for pair in payload.as_chunks::<6>().0 {
            self.charge(Budget::FRAME)?;
            let [a, b, c, d, e, f] = *pair;
            let value = u32::from_be_bytes([c, d, e, f]);
            let size = usize::try_from(value).unwrap_or(usize::MAX);
            match u16::from_be_bytes([a, b]) {
                setting::HEADER_TABLE_SIZE => self.output.encoder.resize(size),
                setting::ENABLE_PUSH | setting::ENABLE_CONNECT_PROTOCOL if value > 1 => {
                    return broken(Reason::PROTOCOL_ERROR);
                }
                setting::INITIAL_WINDOW_SIZE if i64::from(value) > LARGEST_WINDOW => {
                    return broken(Reason::FLOW_CONTROL_ERROR);
                }
                setting::INITIAL_WINDOW_SIZE => window = Some(value),
                setting::MAX_FRAME_SIZE if (LEAST_FRAME..=LARGEST_FRAME).contains(&size) => {
                    self.output.peer_frame = size;
                }
                setting::MAX_FRAME_SIZE => return broken(Reason::PROTOCOL_ERROR),
                _ => {}
            }
        }
        if let Some(window) = window {
            self.windows_begin_at(window)?;
        }
        self.output.frame(kind::SETTINGS, flag::ACK, 0, &[]);
        Ok(())
    }

    fn ping(&mut self, header: FrameHeader, payload: &[u8]) -> Understood {
        if header.stream != 0 {
            return broken(Reason::PROTOCOL_ERROR);
        }
        if payload.len() != 8 {
            return broken(Reason::FRAME_SIZE_ERROR);
        }
        if !header.has(flag::ACK) {
            self.output.frame(kind::PING, flag::ACK, 0, payload);
        } else if payload == FAREWELL {
            self.decide();
        }
        Ok(())
    }

    fn goaway(&mut self, header: FrameHeader) -> Understood {
        if header.stream != 0 {
            return broken(Reason::PROTOCOL_ERROR);
        }
        if header.len < 8 {
            return broken(Reason::FRAME_SIZE_ERROR);
        }
        self.peer_leaves = true;
        self.finish_if_done();
        Ok(())
    }

    fn window_update(&mut self, header: FrameHeader, payload: &[u8]) -> Understood {
        let Ok(by) = <[u8; 4]>::try_from(payload) else { return broken(Reason::FRAME_SIZE_ERROR) };
        if header.stream != 0 && self.is_idle(header.stream) {
            return broken(Reason::PROTOCOL_ERROR);
        }
        self.widen(header.stream, u32::from_be_bytes(by) & ANY_STREAM)
    }
}

/// Priorities are checked and not followed (RFC 9113 section 5.3.2).
fn priority(header: FrameHeader, payload: &[u8]) -> Understood {
    let Ok(priority) = payload.try_into() else { return broken(Reason::FRAME_SIZE_ERROR) };
    if header.stream == 0 || depends_on(priority) == header.stream {
        return broken(Reason::PROTOCOL_ERROR);
    }
    Ok(())
}

const fn depends_on(priority: &[u8; 5]) -> u32 {
    let [a, b, c, d, _] = *priority;
    u32::from_be_bytes([a, b, c, d]) & ANY_STREAM
}
