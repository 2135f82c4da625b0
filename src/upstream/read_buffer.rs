//! What has been read of a connection ahead, and whose memory that is in.

use std::{
    cell::Cell,
    ops::Deref,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::connect::UpstreamConnection;
use crate::{
    message::Body,
    wire::{BodyDecoder, BodyFrame, Framing},
};

/// The thread's buffer for reading: what waits for a response owns none. Services write in pieces of up to 64 KiB, and the
/// head stands before the first.
const SCRATCH: usize = 72 * 1024;

/// How much of a long body is read at once: eight TLS records, which go out in one write. A download of 10 MiB costs a
/// tenth less than with four, and as much as with sixteen.
const BODY_READ: usize = 128 * 1024;

/// So much or more keeps the buffer and leaves the thread a new one, which is cheaper than a copy; less is copied, so that
/// a response of 1 KiB does not hold 72.
const BULK: usize = 32 * 1024;

thread_local! {
    static BUFFER: Cell<BytesMut> = Cell::new(BytesMut::new());
}

/// Bytes of a connection that have been read and not been taken.
pub enum ReadBuffer {
    /// In memory of the connection's own, which is none while there are no bytes.
    Own(BytesMut),
    /// In the thread's buffer, which is lent for as long as one poll takes: a head is read where it arrives.
    Lent(BytesMut),
}

impl ReadBuffer {
    /// Nothing has been read.
    pub fn new() -> Self {
        Self::Own(BytesMut::new())
    }

    /// The bytes, to be taken from the front.
    pub const fn bytes_mut(&mut self) -> &mut BytesMut {
        match self {
            Self::Own(bytes) | Self::Lent(bytes) => bytes,
        }
    }

    /// Own → Lent: the thread's buffer, with what has been read before.
    fn borrow(&mut self) -> &mut BytesMut {
        if let Self::Own(own) = self {
            let mut buffer = BUFFER.take();
            buffer.extend_from_slice(own);
            *self = Self::Lent(buffer);
        }
        self.bytes_mut()
    }

    /// Lent → Own: the thread has its buffer back, and little that is left is copied out of it. Much takes the buffer along.
    pub fn give_back(&mut self) {
        if let Self::Lent(lent) = self {
            let mut buffer = std::mem::take(lent);
            if buffer.len() >= BULK {
                *self = Self::Own(buffer);
            } else {
                *self = Self::Own(BytesMut::from(&buffer[..]));
                buffer.clear();
                BUFFER.set(buffer);
            }
        }
    }

    /// The first `len` bytes. A large body takes the thread's buffer along, a small one is copied out of it.
    fn take(&mut self, len: usize) -> Bytes {
        match self {
            Self::Lent(lent) if len < BULK => {
                let taken = Bytes::copy_from_slice(&lent[..len]);
                lent.advance(len);
                taken
            }
            Self::Lent(bytes) | Self::Own(bytes) => {
                let mut bytes = std::mem::take(bytes);
                let taken = bytes.split_to(len).freeze();
                // When nothing is left, neither is the buffer.
                *self = Self::Own(if bytes.is_empty() { BytesMut::new() } else { bytes });
                taken
            }
        }
    }

    /// All bytes.
    pub fn take_all(&mut self) -> Bytes {
        self.give_back();
        std::mem::take(self.bytes_mut()).freeze()
    }

    /// The body, if all of it has arrived with the head.
    pub fn whole_body(&mut self, framing: Framing) -> Option<Body> {
        match framing {
            Framing::None | Framing::Length(0) => Some(Body::empty()),
            Framing::Length(n) if self.len() as u64 >= n => usize::try_from(n).ok().map(|n| Body::full(self.take(n))),
            Framing::Chunked => self.whole_chunked(),
            Framing::Length(_) | Framing::UntilClose => None,
        }
    }

    /// Small responses of Synapse are chunked and arrive in one piece: one chunk and the end.
    fn whole_chunked(&mut self) -> Option<Body> {
        if !self.ends_with(b"\r\n0\r\n\r\n") {
            return None;
        }
        let mut rest = self.bytes_mut().clone();
        let mut decoder = BodyDecoder::new(Framing::Chunked);
        let Ok(Some(BodyFrame::Data(data))) = decoder.decode(&mut rest) else { return None };
        let Ok(Some(BodyFrame::End)) = decoder.decode(&mut rest) else { return None };
        self.bytes_mut().clear();
        self.give_back();
        *self = Self::Own(rest);
        Some(Body::full(data))
    }
}

impl Deref for ReadBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Own(bytes) | Self::Lent(bytes) => bytes,
        }
    }
}

impl UpstreamConnection {
    /// Reads more. With at least [`BULK`] bytes of a body `wanted` they go into room of the connection's own, which is used
    /// again once its last bytes have been passed on; else they come through the thread's buffer, so that a connection which
    /// waits owns nothing.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, wanted: u64) -> Poll<std::io::Result<usize>> {
        self.read.give_back();
        let read = self.read.bytes_mut();
        if wanted >= BULK as u64 {
            read.reserve(BODY_READ);
            let mut room = read.limit(BODY_READ);
            return tokio_util::io::poll_read_buf(Pin::new(&mut self.socket), cx, &mut room);
        }
        let mut buffer = BUFFER.take();
        buffer.reserve(SCRATCH);
        let filled = tokio_util::io::poll_read_buf(Pin::new(&mut self.socket), cx, &mut buffer);
        if buffer.len() >= BULK && read.is_empty() {
            *read = buffer;
        } else {
            read.extend_from_slice(&buffer);
            buffer.clear();
            BUFFER.set(buffer);
        }
        filled
    }

    /// Reads more into the thread's buffer, which the connection has from then on until it gives it back.
    pub fn poll_fill_lent(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        let read = self.read.borrow();
        read.reserve(SCRATCH);
        tokio_util::io::poll_read_buf(Pin::new(&mut self.socket), cx, read)
    }
}
