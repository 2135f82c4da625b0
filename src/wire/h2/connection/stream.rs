//! The state of one stream (RFC 9113 section 5.1).

use std::{collections::VecDeque, hash::Hasher, time::Instant};

use bytes::{Bytes, BytesMut};

use super::receive::Ledger;
use crate::{
    message::Fields,
    wire::h2::cost::{CHUNK, READ, STREAM_WINDOW},
};

/// Multiplies a stream identifier, which the peer counts up by two.
#[derive(Default)]
pub struct StreamIdHasher(u64);

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

/// A stream is closed: reset, or ended with its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stream is closed")]
pub struct StreamClosed;

/// A part of a request body.
#[derive(Debug)]
pub enum BodyFrame {
    /// Content.
    Data(Bytes),
    /// Trailers; only the end follows.
    Trailers(Fields),
    /// The end of a whole body.
    End,
    /// The stream was reset; the body is not whole.
    Reset,
    /// The connection has ended; the body is not whole.
    Lost,
    /// Nothing came for `body_stall`.
    Stalled,
}

/// How much of an answer has been written to the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendState {
    /// Nothing but interim answers.
    Idle,
    /// The head.
    HeadersSent,
    /// All of it.
    Done,
}

/// Whether a request body is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecvState {
    /// It is.
    Open,
    /// Its reader has left before its end, at this time.
    Abandoned(Instant),
    /// Nothing more is read, and nothing more comes.
    Closed,
}

/// What a stream waits for before it sends DATA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendWait {
    /// Nothing.
    No,
    /// Its own window.
    Window,
    /// Its turn, in the queue.
    Queued,
    /// Nothing more: it is its turn.
    Granted,
}

/// One stream.
#[derive(Debug)]
pub struct Stream<W> {
    pub waiter: W,
    /// What has arrived and was not read.
    pub inbox: Inbox,
    pub trailers: Option<Fields>,
    /// The peer has sent END_STREAM.
    pub ended: bool,
    pub recv: RecvState,
    /// What the peer may send, and what was read since it was told so.
    pub credit: i64,
    pub uncredited: u32,
    /// What is to come, where the client has said so.
    pub length_left: Option<u64>,
    /// The client waits for a 100 before it sends its body.
    pub owes_continue: bool,
    /// Since when a reader has been waiting without a byte.
    pub starved: Option<Instant>,
    pub is_stalled: bool,
    pub send: SendState,
    /// What the peer takes.
    pub window: i64,
    pub wait: SendWait,
    /// Since when there has been DATA to send and none was sent.
    pub blocked: Option<Instant>,
    /// An extended CONNECT; how long it may be silent is for the tunnel to say.
    pub is_tunnel: bool,
    /// The request has been taken.
    pub is_begun: bool,
}

impl<W: Default> Stream<W> {
    /// A stream whose request has come, and its body with it where `ended` says so.
    pub fn new(ended: bool, length: Option<u64>, window: u32) -> Self {
        Self {
            waiter: W::default(),
            inbox: Inbox::default(),
            trailers: None,
            ended,
            recv: if ended { RecvState::Closed } else { RecvState::Open },
            credit: STREAM_WINDOW.into(),
            uncredited: 0,
            length_left: length,
            owes_continue: false,
            starved: None,
            is_stalled: false,
            send: SendState::Idle,
            window: window.into(),
            wait: SendWait::No,
            blocked: None,
            is_tunnel: false,
            is_begun: false,
        }
    }
}

/// Content that has arrived and was not read, with the memory that it holds.
#[derive(Debug, Default)]
pub struct Inbox {
    chunks: VecDeque<Chunk>,
    /// Small payloads are copied behind each other.
    tail: BytesMut,
    len: usize,
}

#[derive(Debug)]
struct Chunk {
    bytes: Bytes,
    /// The size of the buffer that it keeps.
    held: usize,
    is_pinned: bool,
}

impl Inbox {
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps a payload where it was read.
    pub fn pin(&mut self, bytes: Bytes, ledger: &mut Ledger) {
        self.close_tail();
        self.len += bytes.len();
        ledger.pinned += 1;
        ledger.held += READ;
        self.chunks.push_back(Chunk { bytes, held: READ, is_pinned: true });
    }

    /// Copies a payload.
    pub fn copy(&mut self, bytes: &[u8], ledger: &mut Ledger) {
        if self.tail.len() + bytes.len() > CHUNK {
            self.close_tail();
        }
        let before = self.tail.capacity();
        self.tail.extend_from_slice(bytes);
        ledger.held += self.tail.capacity() - before;
        self.len += bytes.len();
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            let held = self.tail.capacity();
            let bytes = std::mem::take(&mut self.tail).freeze();
            self.chunks.push_back(Chunk { bytes, held, is_pinned: false });
        }
    }

    /// Takes what came first, in as large a piece as there is.
    pub fn pop(&mut self, ledger: &mut Ledger) -> Option<Bytes> {
        if self.chunks.is_empty() {
            self.close_tail();
        }
        let chunk = self.chunks.pop_front()?;
        self.len -= chunk.bytes.len();
        ledger.pinned -= usize::from(chunk.is_pinned);
        ledger.held -= chunk.held;
        Some(chunk.bytes)
    }

    /// Forgets everything; how many bytes that was.
    pub fn clear(&mut self, ledger: &mut Ledger) -> usize {
        let mut len = 0;
        while let Some(bytes) = self.pop(ledger) {
            len += bytes.len();
        }
        len
    }
}
