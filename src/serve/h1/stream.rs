//! The byte stream of a connection with what has been read of it ahead, shared by the reader of a body and the writer of
//! an answer.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncWriteExt as _, ReadBuf},
    time::timeout,
};

use crate::{
    conn::Io,
    wire::{BodyDecoder, Framing, HeadLimits, Piece, WireError, head_len},
};

/// What is read at once while no body is awaited. Heads are a few hundred bytes; the buffer belongs to the thread, so
/// that a connection which waits owns none.
const SCRATCH: usize = 16 * 1024;

/// How much of a body is read at once: four TLS records, above which throughput did not grow.
const BODY_READ: usize = 64 * 1024;

/// How far a client may send ahead while its request is being answered; beyond it, TCP holds it back.
const READ_AHEAD: usize = 64 * 1024;

/// How much of a body that nobody wanted is read before the connection is closed, and for how long, so that the answer
/// is not lost to a reset (RFC 9112 section 9.6).
const LINGER_BYTES: usize = 4 * 1024 * 1024;
const LINGER_TIME: Duration = Duration::from_secs(2);

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
}

/// The stream of one connection. `io` is gone once a tunnel has taken it.
pub struct Stream<IO> {
    io: Option<IO>,
    read: BytesMut,
    body: BodyDecoder,
    /// The client waits for a 100 before it sends its body.
    owes_continue: bool,
    /// The client has closed its side, or the connection is broken.
    ended: bool,
}

impl<IO: Io> Stream<IO> {
    /// A stream of which nothing has been read.
    pub fn new(io: IO) -> Self {
        Self {
            io: Some(io),
            read: BytesMut::new(),
            body: BodyDecoder::new(Framing::None),
            owes_continue: false,
            ended: false,
        }
    }

    /// Whether no byte has been read ahead.
    pub fn is_empty(&self) -> bool {
        self.read.is_empty()
    }

    /// Takes a whole head off what has been read.
    ///
    /// # Errors
    /// A bare LF, or more bytes without an end than a head may have.
    pub fn take_head(&mut self, scanned: &mut usize, limits: &HeadLimits) -> Result<Option<Bytes>, WireError> {
        if let Some(len) = head_len(&self.read, scanned)? {
            return Ok(Some(self.take(len)));
        }
        let line_ends = memchr::memchr(b'\n', &self.read).is_some();
        if !line_ends && self.read.len() > limits.target + 64 {
            Err(WireError::TargetTooLong)
        } else if self.read.len() > limits.total() {
            Err(WireError::HeadTooLarge)
        } else {
            Ok(None)
        }
    }

    /// The first `len` bytes. When nothing is left, neither is the buffer.
    fn take(&mut self, len: usize) -> Bytes {
        if len == self.read.len() { std::mem::take(&mut self.read).freeze() } else { self.read.split_to(len).freeze() }
    }

    /// The request target, as far as a broken head shows it; it decides the form of the refusal.
    pub fn target(&self) -> Option<String> {
        target_of(&self.read)
    }

    /// From here on what arrives is a body framed like this.
    pub fn begin_body(&mut self, framing: Framing, owes_continue: bool) {
        self.body = BodyDecoder::new(framing);
        self.owes_continue = owes_continue && !self.body.is_done();
    }

    /// The next piece of the body. Asking for it is what sends the 100 that the client waits for.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, ReadError>> {
        if std::mem::take(&mut self.owes_continue) && self.read.is_empty() {
            // 25 bytes fit into any send buffer that an answer has not been written to; if they do not, the client
            // sends its body after a second of its own (RFC 9110 section 10.1.1).
            let _ = self.poll_write(cx, b"HTTP/1.1 100 Continue\r\n\r\n");
            let _ = self.poll_flush(cx);
        }
        loop {
            if let Some(piece) = self.body.decode(&mut self.read).map_err(|_| ReadError::Malformed)? {
                return Poll::Ready(Ok(piece));
            }
            let wanted = self
                .body
                .remaining()
                .map_or(BODY_READ, |left| usize::try_from(left).unwrap_or(BODY_READ).min(BODY_READ));
            match ready!(self.poll_read_into(cx, wanted)) {
                Ok(n) if n > 0 => {}
                _ => return Poll::Ready(Err(ReadError::Gone)),
            }
        }
    }

    /// The answer begins: a 100 would stand in the middle of it, and its client waits for one no longer.
    pub fn answers(&mut self) {
        self.owes_continue = false;
    }

    /// Ready when the client has left. Meanwhile it may send ahead, within a bound.
    pub fn poll_watch(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.read.len() < READ_AHEAD {
            match ready!(self.poll_read_some(cx)) {
                Ok(n) if n > 0 => {}
                _ => {
                    self.ended = true;
                    return Poll::Ready(());
                }
            }
        }
        Poll::Pending
    }

    /// Whether the rest of the body is here already or can be, without another byte from the client.
    pub fn may_skip_body(&self) -> bool {
        // A client that still waits for its 100 has sent nothing, but it may begin to at any moment.
        self.body.is_done()
            || (!self.owes_continue && self.body.remaining().is_some_and(|left| left <= self.read.len() as u64))
    }

    /// Reads past what is left of the body, if all of it is here.
    pub fn skip_body(&mut self) -> bool {
        while !self.body.is_done() {
            match self.body.decode(&mut self.read) {
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return false,
            }
        }
        true
    }

    /// Whether the client has sent what nobody has read.
    pub fn has_unread(&self) -> bool {
        !self.read.is_empty()
    }

    /// Writes from several slices at once.
    pub fn poll_write_vectored(&mut self, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Some(io) => Pin::new(io).poll_write_vectored(cx, slices),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    /// Writes.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Some(io) => Pin::new(io).poll_write(cx, bytes),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    /// Pushes everything written towards the client.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Some(io) => Pin::new(io).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Reads into the buffer of the thread, and from there exactly as much as came.
    fn poll_read_some(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let (Some(io), false) = (&mut self.io, self.ended) else { return Poll::Ready(Ok(0)) };
        BUFFER.with_borrow_mut(|buffer| {
            let mut buf = ReadBuf::new(buffer);
            ready!(Pin::new(io).poll_read(cx, &mut buf))?;
            self.read.extend_from_slice(buf.filled());
            Poll::Ready(Ok(buf.filled().len()))
        })
    }

    /// Reads into room of the stream's own, for bodies: the bytes are passed on without another copy.
    fn poll_read_into(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        let (Some(io), false) = (&mut self.io, self.ended) else { return Poll::Ready(Ok(0)) };
        if wanted < SCRATCH {
            return self.poll_read_some(cx);
        }
        self.read.reserve(wanted);
        let mut limited = bytes::BufMut::limit(&mut self.read, wanted);
        tokio_util::io::poll_read_buf(Pin::new(io), cx, &mut limited)
    }
}

/// Why a body could not be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadError {
    /// The client left.
    Gone,
    /// The chunked coding is broken.
    Malformed,
}

/// The second word of the first line.
pub fn target_of(head: &[u8]) -> Option<String> {
    let line = head.split(|b| matches!(b, b'\r' | b'\n')).next()?;
    let target = line.split(|b| *b == b' ').nth(1)?;
    std::str::from_utf8(target).ok().map(str::to_owned)
}

/// A handle on a stream; see the head of `h1/mod.rs` on the lock.
pub struct Shared<IO>(Arc<Mutex<Stream<IO>>>);

impl<IO> Clone for Shared<IO> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<IO: Io> Shared<IO> {
    /// Shares a stream.
    pub fn new(stream: Stream<IO>) -> Self {
        Self(Arc::new(Mutex::new(stream)))
    }

    /// The stream.
    pub fn lock(&self) -> MutexGuard<'_, Stream<IO>> {
        // A panic while it is held has already ended the task that would use the stream.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Reads more; 0 is the end.
    pub async fn fill(&self) -> io::Result<usize> {
        poll_fn(|cx| self.lock().poll_read_some(cx)).await
    }

    /// The byte stream and what has been read of it ahead.
    pub fn take(&self) -> Option<(IO, Bytes)> {
        let mut stream = self.lock();
        let early = stream.read.split().freeze();
        stream.io.take().map(|io| (io, early))
    }

    /// Ends the stream properly.
    pub async fn shutdown(&self) {
        if let Some((mut io, _)) = self.take() {
            // The client may be gone already; then there is nothing to end.
            let _ = timeout(LINGER_TIME, io.shutdown()).await;
        }
    }

    /// Ends our side, and reads what the client still sends so that the answer reaches it. Nothing of that is parsed.
    pub async fn linger(&self) {
        let Some((mut io, _)) = self.take() else { return };
        let discard = async {
            io.shutdown().await?;
            let mut left = LINGER_BYTES;
            while left > 0 {
                let n = poll_fn(|cx| {
                    BUFFER.with_borrow_mut(|buffer| {
                        let mut buf = ReadBuf::new(buffer);
                        ready!(Pin::new(&mut io).poll_read(cx, &mut buf))?;
                        Poll::Ready(io::Result::Ok(buf.filled().len()))
                    })
                })
                .await?;
                if n == 0 {
                    break;
                }
                left = left.saturating_sub(n);
            }
            io::Result::Ok(())
        };
        // Whether the client waited or left, the connection is over.
        let _ = timeout(LINGER_TIME, discard).await;
    }
}
