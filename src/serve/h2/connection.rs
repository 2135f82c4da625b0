//! The frames of one connection: what each of them means, and what a peer may not say (RFC 9113 sections 3.4 to 6).

use std::{
    cell::Cell,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;

use super::{
    budget::FrameBudget,
    streams::{PeerError, STREAM_WINDOW, Shared, State},
};
use crate::{
    message::Io,
    serve::Settings,
    wire::h2::{Decoder, FRAME_HEADER, FrameHeader, Head, PREFACE, Reason, flag, kind, setting, unpadded},
};

/// Largest frame we take; fewer, larger frames make uploads cheaper.
const MAX_FRAME: usize = 64 * 1024;

/// What is read at once.
const READ: usize = MAX_FRAME + FRAME_HEADER;

/// Pieces of a body that are larger than this keep the buffer that they were read into; smaller ones are copied out.
const COPIED: usize = 4 * 1024;

/// Streams that the errors of a peer made us reset (CVE-2025-8671); beyond that the connection is closed.
const ERROR_RESETS: usize = 128;

/// What the PING says whose answer tells that a peer has heard our farewell, and opens no more streams.
const FAREWELL: [u8; 8] = *b"farewell";

/// The last stream that there could be.
const ANY_STREAM: u32 = u32::MAX >> 1;

thread_local! {
    /// The buffer of whichever connection reads: one that waits owns none.
    static SPARE: Cell<BytesMut> = Cell::new(BytesMut::new());
}

/// A request, and whether that was all of it.
pub struct Incoming {
    pub id: u32,
    pub head: Head,
    pub ended: bool,
}

/// A connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionEnd {
    /// The peer has left, or the way to it is broken.
    StreamClosed,
    /// It has been told to leave, for this reason.
    Told(Reason),
}

/// How far we are on our way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shutdown {
    No,
    /// Streams that are on their way are taken.
    Announced,
    /// None above the last one.
    Decided,
}

/// A block of fields of which a part has come.
struct HeaderBlock {
    stream: u32,
    ends: bool,
    bytes: Vec<u8>,
    since: Instant,
}

/// One connection: the stream of bytes, and what stands between it and the streams of HTTP/2.
pub struct Connection<IO> {
    io: IO,
    shared: Arc<Shared>,
    input: BytesMut,
    frames: Frames,
    written: u64,
}

impl<IO: Io> Connection<IO> {
    /// Begins with our SETTINGS.
    pub fn new(io: IO, settings: &Settings) -> Self {
        let list = settings.head.bytes + settings.head.target;
        let shared = Shared::new(&[
            (setting::MAX_CONCURRENT_STREAMS, settings.streams),
            (setting::INITIAL_WINDOW_SIZE, STREAM_WINDOW),
            (setting::MAX_FRAME_SIZE, MAX_FRAME as u32),
            (setting::MAX_HEADER_LIST_SIZE, u32::try_from(list).unwrap_or(u32::MAX)),
            (setting::ENABLE_CONNECT_PROTOCOL, 1),
        ]);
        let frames = Frames {
            decoder: Decoder::new(list),
            most: list + MAX_FRAME,
            streams: settings.streams as usize,
            began: false,
            settled: false,
            block: None,
            budget: FrameBudget::new(),
            resets: 0,
            last: 0,
            leaving: Shutdown::No,
            peer_leaves: false,
            incoming: Vec::new(),
        };
        Self { io, shared, input: BytesMut::new(), frames, written: 0 }
    }

    /// What the streams share.
    pub const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Reads once, and does what the frames ask for; the requests among them wait in [`requests`](Self::requests).
    pub fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionEnd>> {
        if self.shared.lock().is_full() {
            // Whoever takes nothing asks for nothing: acknowledgements need room too.
            return Poll::Pending;
        }
        if self.input.capacity() == 0 {
            self.input = SPARE.take();
        }
        self.input.reserve(self.wanted());
        let read = poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input);
        let outcome = match read {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(1..)) => Poll::Ready(self.understand()),
            Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(Err(ConnectionEnd::StreamClosed)),
        };
        if self.input.is_empty() {
            SPARE.set(std::mem::take(&mut self.input));
        }
        outcome
    }

    /// Room for a whole frame, so that the payload of one that is large is never copied together.
    fn wanted(&self) -> usize {
        let whole = FrameHeader::parse_first(&self.input).map_or(READ, |header| FRAME_HEADER + header.len);
        whole.min(READ).saturating_sub(self.input.len()).max(READ / 4)
    }

    /// Takes the requests that have come.
    pub fn requests(&mut self) -> impl Iterator<Item = Incoming> + '_ {
        self.frames.incoming.drain(..)
    }

    fn understand(&mut self) -> Result<(), ConnectionEnd> {
        let mut state = self.shared.lock();
        let understood = self.frames.take(&mut self.input, &mut state);
        understood.map_err(|reason| {
            state.go_away(self.frames.last, reason);
            ConnectionEnd::Told(reason)
        })
    }

    /// Says that no new streams are taken, beyond those that are on their way.
    pub fn leave(&mut self) {
        if self.frames.leaving == Shutdown::No {
            self.frames.leaving = Shutdown::Announced;
            let mut state = self.shared.lock();
            state.go_away(ANY_STREAM, Reason::NO_ERROR);
            state.frame(kind::PING, 0, 0, &FAREWELL);
        }
    }

    /// Whether nobody has anything to say any more.
    pub fn is_done(&self) -> bool {
        (self.frames.leaving == Shutdown::Decided || self.frames.peer_leaves) && self.shared.lock().open_streams() == 0
    }

    /// Writes what there is. Pending only says that the peer is slow.
    pub fn poll_push(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionEnd>> {
        let mut state = self.shared.lock();
        while !state.unsent().is_empty() {
            let Ok(n @ 1..) = ready!(Pin::new(&mut self.io).poll_write(cx, state.unsent())) else {
                return Poll::Ready(Err(ConnectionEnd::StreamClosed));
            };
            self.written += n as u64;
            self.frames.budget.wrote(n);
            state.sent(n);
        }
        Pin::new(&mut self.io).poll_flush(cx).map_err(|_| ConnectionEnd::StreamClosed)
    }

    /// Says goodbye on the level below.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Whether the peer hears it or not, this is the end.
        Pin::new(&mut self.io).poll_shutdown(cx).map(drop)
    }

    /// How many bytes the peer has taken so far, and whether more wait for it.
    pub fn progress(&self) -> (u64, bool) {
        (self.written, !self.shared.lock().unsent().is_empty())
    }

    /// Since when a block of fields has been coming.
    pub fn block_since(&self) -> Option<Instant> {
        self.frames.block.as_ref().map(|block| block.since)
    }

    /// Tells a peer why this is the end.
    pub fn tell(&self, reason: Reason) {
        self.shared.lock().go_away(self.frames.last, reason);
    }
}

/// What has been said so far.
struct Frames {
    decoder: Decoder,
    /// Bytes of a block of fields that are gathered: those of the largest head, and a frame that shows it is too large.
    most: usize,
    /// Streams that may be open at once.
    streams: usize,
    /// The preface has come, and the SETTINGS behind it.
    began: bool,
    settled: bool,
    block: Option<HeaderBlock>,
    budget: FrameBudget,
    resets: usize,
    /// The last stream that the client has opened.
    last: u32,
    leaving: Shutdown,
    peer_leaves: bool,
    /// Requests that nobody has taken yet.
    incoming: Vec<Incoming>,
}

type Understood = Result<(), PeerError>;

const fn broken(reason: Reason) -> Understood {
    Err(PeerError::Connection(reason))
}

impl Frames {
    /// Takes all whole frames off the front.
    fn take(&mut self, input: &mut BytesMut, state: &mut State) -> Result<(), Reason> {
        if !self.began {
            let len = input.len().min(PREFACE.len());
            if input[..len] != PREFACE[..len] {
                return Err(Reason::PROTOCOL_ERROR);
            }
            if len < PREFACE.len() {
                return Ok(());
            }
            input.advance(len);
            self.began = true;
        }
        while let Some(header) = FrameHeader::parse_first(input) {
            if header.len > MAX_FRAME {
                return Err(Reason::FRAME_SIZE_ERROR);
            }
            if input.len() < FRAME_HEADER + header.len {
                break;
            }
            self.budget.read(header).map_err(|_spent| Reason::ENHANCE_YOUR_CALM)?;
            let understood = if header.kind == kind::DATA && header.len > COPIED {
                let payload = input.split_to(FRAME_HEADER + header.len).freeze().slice(FRAME_HEADER..);
                self.frame(header, &payload.clone(), Some(payload), state)
            } else {
                let understood = self.frame(header, &input[FRAME_HEADER..FRAME_HEADER + header.len], None, state);
                input.advance(FRAME_HEADER + header.len);
                understood
            };
            self.settle(understood, state)?;
        }
        Ok(())
    }

    fn settle(&mut self, understood: Understood, state: &mut State) -> Result<(), Reason> {
        match understood {
            Ok(()) => Ok(()),
            Err(PeerError::Connection(reason)) => Err(reason),
            Err(PeerError::Stream(id, reason)) => {
                state.reset(id, reason);
                // Whoever asks for too much at once did nothing wrong.
                self.resets += usize::from(reason != Reason::REFUSED_STREAM);
                if self.resets > ERROR_RESETS { Err(Reason::ENHANCE_YOUR_CALM) } else { Ok(()) }
            }
        }
    }

    fn frame(&mut self, header: FrameHeader, payload: &[u8], shared: Option<Bytes>, state: &mut State) -> Understood {
        if !self.settled && (header.kind != kind::SETTINGS || header.has(flag::ACK)) {
            return broken(Reason::PROTOCOL_ERROR);
        }
        if self.block.is_some() && header.kind != kind::CONTINUATION {
            return broken(Reason::PROTOCOL_ERROR);
        }
        match header.kind {
            kind::DATA => self.data(header, payload, shared, state),
            kind::HEADERS => self.headers(header, payload, state),
            kind::CONTINUATION => self.continuation(header, payload, state),
            kind::PRIORITY => priority(header, payload),
            kind::RST_STREAM => self.rst_stream(header, state),
            kind::SETTINGS => self.settings(header, payload, state),
            kind::PUSH_PROMISE => broken(Reason::PROTOCOL_ERROR),
            kind::PING => self.ping(header, payload, state),
            kind::GOAWAY => self.goaway(header),
            kind::WINDOW_UPDATE => self.window_update(header, payload, state),
            _ => Ok(()),
        }
    }

    /// A stream that the client has not opened, or cannot.
    const fn is_idle(&self, stream: u32) -> bool {
        stream == 0 || stream.is_multiple_of(2) || stream > self.last
    }

    fn data(&self, header: FrameHeader, payload: &[u8], shared: Option<Bytes>, state: &mut State) -> Understood {
        if self.is_idle(header.stream) {
            return broken(Reason::PROTOCOL_ERROR);
        }
        let Some(data) = unpadded(header, payload) else { return broken(Reason::PROTOCOL_ERROR) };
        let data = match shared {
            Some(shared) => shared.slice_ref(data),
            None => Bytes::copy_from_slice(data),
        };
        state.arrives(header.stream, data, header.len, header.has(flag::END_STREAM))
    }

    fn headers(&mut self, header: FrameHeader, payload: &[u8], state: &mut State) -> Understood {
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
            return self.block(header.stream, ends, block, state);
        }
        self.block = Some(HeaderBlock { stream: header.stream, ends, bytes: block.to_vec(), since: Instant::now() });
        Ok(())
    }

    fn continuation(&mut self, header: FrameHeader, payload: &[u8], state: &mut State) -> Understood {
        let Some(mut block) = self.block.take_if(|block| block.stream == header.stream) else {
            return broken(Reason::PROTOCOL_ERROR);
        };
        if block.bytes.len() + payload.len() > self.most {
            return broken(Reason::ENHANCE_YOUR_CALM);
        }
        block.bytes.extend_from_slice(payload);
        if header.has(flag::END_HEADERS) {
            return self.block(block.stream, block.ends, &block.bytes, state);
        }
        self.block = Some(block);
        Ok(())
    }

    /// A whole block: the head of a request, or trailers.
    fn block(&mut self, id: u32, ended: bool, block: &[u8], state: &mut State) -> Understood {
        // Decoded whatever becomes of it, since it may change the table.
        let Ok(mut head) = self.decoder.decode(block) else { return broken(Reason::COMPRESSION_ERROR) };
        if id > self.last {
            self.last = id;
            if self.leaving == Shutdown::Decided {
                return Ok(());
            }
            if state.open_streams() >= self.streams {
                return Err(PeerError::Stream(id, Reason::REFUSED_STREAM));
            }
            let left = head.content_length(ended);
            if !head.is_request() {
                return Err(PeerError::Stream(id, Reason::PROTOCOL_ERROR));
            }
            state.open(id, ended, left);
            self.incoming.push(Incoming { id, head, ended });
            return Ok(());
        }
        match state.receives(id) {
            Some(true) if !ended || head.malformed.is_some() || head.too_large || head.has_pseudo_fields() => {
                Err(PeerError::Stream(id, Reason::PROTOCOL_ERROR))
            }
            Some(true) => state.trails(id, head.fields),
            Some(false) => Err(PeerError::Stream(id, Reason::STREAM_CLOSED)),
            None if state.was_reset_by_us(id) => Ok(()),
            None => broken(Reason::STREAM_CLOSED),
        }
    }

    fn rst_stream(&self, header: FrameHeader, state: &mut State) -> Understood {
        if header.len != 4 {
            return broken(Reason::FRAME_SIZE_ERROR);
        }
        if self.is_idle(header.stream) {
            return broken(Reason::PROTOCOL_ERROR);
        }
        state.remove(header.stream);
        Ok(())
    }

    fn settings(&mut self, header: FrameHeader, payload: &[u8], state: &mut State) -> Understood {
        if header.stream != 0 {
            return broken(Reason::PROTOCOL_ERROR);
        }
        let is_ack = header.has(flag::ACK);
        if !payload.len().is_multiple_of(6) || is_ack && !payload.is_empty() {
            return broken(Reason::FRAME_SIZE_ERROR);
        }
        self.settled = true;
        if is_ack { Ok(()) } else { state.adopt(payload) }
    }

    fn ping(&mut self, header: FrameHeader, payload: &[u8], state: &mut State) -> Understood {
        if header.stream != 0 {
            return broken(Reason::PROTOCOL_ERROR);
        }
        if payload.len() != 8 {
            return broken(Reason::FRAME_SIZE_ERROR);
        }
        if !header.has(flag::ACK) {
            state.frame(kind::PING, flag::ACK, 0, payload);
        } else if payload == FAREWELL && self.leaving == Shutdown::Announced {
            self.leaving = Shutdown::Decided;
            state.go_away(self.last, Reason::NO_ERROR);
        }
        Ok(())
    }

    const fn goaway(&mut self, header: FrameHeader) -> Understood {
        if header.stream != 0 {
            return broken(Reason::PROTOCOL_ERROR);
        }
        if header.len < 8 {
            return broken(Reason::FRAME_SIZE_ERROR);
        }
        self.peer_leaves = true;
        Ok(())
    }

    fn window_update(&self, header: FrameHeader, payload: &[u8], state: &mut State) -> Understood {
        let Ok(by) = <[u8; 4]>::try_from(payload) else { return broken(Reason::FRAME_SIZE_ERROR) };
        if header.stream != 0 && self.is_idle(header.stream) {
            return broken(Reason::PROTOCOL_ERROR);
        }
        state.grows(header.stream, u32::from_be_bytes(by) & ANY_STREAM)
    }
}

/// Priorities are judged and not followed (RFC 9113 section 5.3.2).
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
