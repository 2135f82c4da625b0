//! The byte stream of a connection with what has been read of it ahead, shared by the reader of a body and the writer of
//! an answer.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{StatusCode, Version};
use tokio::{
    io::{AsyncWriteExt as _, ReadBuf},
    time::{Instant, Sleep, sleep, timeout},
};

use super::RequestFacts;
use crate::{
    conn::{AbortReason, ClientHandle, ClientSide},
    message::{ClientIo, Fields, Transferred},
    wire::{self, BodyDecoder, BodyFrame, Framing, HeadLimits, RequestHead, WireError, head_len, parse_request},
};

/// What is read at once while no body is awaited. Heads are a few hundred bytes; the buffer belongs to the thread, so
/// that a connection which waits owns none.
const SCRATCH: usize = 16 * 1024;

/// How often a client is looked for of which nothing more is read. The socket wakes nobody for that.
const LOOK: Duration = Duration::from_millis(500);

/// How much of a body is read at once: four TLS records at first, and twice as much after each read that filled most of
/// its room. Who sends slowly never costs more than the least, and 256 KiB at a time cost an upload of 50 MiB a seventh
/// less than 64 (fewer reads, and fewer writes that wake the service).
const BODY_READ: usize = 64 * 1024;
const BODY_READ_MOST: usize = 256 * 1024;

/// How far a client may send ahead while its request is being answered, unless it sends a body that is read in larger
/// pieces; beyond it, TCP holds it back.
const READ_AHEAD: usize = 64 * 1024;

/// How long the end of a connection may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long the rest of a body that is not wanted is read before the connection is closed, so that the response is not lost
/// to a reset (RFC 9112 section 9.6): a client may write all of it before it reads. Its size does not matter, but it has to
/// go on: with no pause of [`FAREWELL`], and no slower than [`LINGER_RATE`] a second over each [`LINGER_WINDOW`].
const LINGER: Duration = Duration::from_secs(300);
const LINGER_RATE: usize = 16 * 1024;
const LINGER_WINDOW: Duration = Duration::from_secs(5);

/// Interim responses that wait for a client which takes none. A service has no reason to send many.
const MAX_INTERIM: usize = 16 * 1024;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
}

/// The stream of one connection. `io` is gone once a tunnel has taken it.
pub struct Stream<IO> {
    io: Option<IO>,
    read: BytesMut,
    body: BodyDecoder,
    /// How much of the body is read next.
    stride: usize,
    /// The client waits for a 100 before it sends its body.
    owes_continue: bool,
    /// Interim responses that the client has not taken yet, whole or in part. They go before everything else.
    unsent: Vec<u8>,
    /// The client understands them.
    takes_interim: bool,
    /// Why its exchange has been ended by us.
    pub cut: Option<AbortReason>,
    /// The client has closed its side, or the connection is broken.
    ended: bool,
    /// Looks for a client that has left while nothing more is read of it.
    look: Option<Pin<Box<Sleep>>>,
}

impl<IO: ClientIo> Stream<IO> {
    /// A stream of which nothing has been read.
    pub fn new(io: IO) -> Self {
        Self {
            io: Some(io),
            read: BytesMut::new(),
            body: BodyDecoder::new(Framing::None),
            stride: BODY_READ,
            owes_continue: false,
            unsent: Vec::new(),
            takes_interim: false,
            cut: None,
            ended: false,
            look: None,
        }
    }

    /// What has moved on the socket.
    pub fn transferred(&self) -> Transferred {
        self.io.as_ref().map(ClientIo::transferred).unwrap_or_default()
    }

    /// Whether no byte has been read ahead.
    pub fn is_empty(&self) -> bool {
        self.read.is_empty()
    }

    /// Reads more while nothing is there; a head that is whole with that, which nearly all are, is parsed where it
    /// arrived and not copied. Anything else stays to be looked at by [`Self::take_head`].
    pub fn poll_head(&mut self, cx: &mut Context<'_>, limits: &HeadLimits) -> Poll<io::Result<ReadEvent>> {
        debug_assert!(self.read.is_empty(), "what came before would be behind what comes now");
        let (Some(io), false) = (&mut self.io, self.ended) else { return Poll::Ready(Ok(ReadEvent::End)) };
        BUFFER.with_borrow_mut(|buffer| {
            let mut buf = ReadBuf::new(buffer);
            ready!(Pin::new(io).poll_read(cx, &mut buf))?;
            let bytes = buf.filled();
            if let Ok(Some(len)) = head_len(bytes, &mut 0)
                && let Ok(head) = parse_request(&bytes[..len], limits)
            {
                self.read.extend_from_slice(&bytes[len..]);
                return Poll::Ready(Ok(ReadEvent::Head(head)));
            }
            self.read.extend_from_slice(bytes);
            Poll::Ready(Ok(if bytes.is_empty() { ReadEvent::End } else { ReadEvent::Bytes }))
        })
    }

    /// Parses a whole head, and takes it off what has been read if it is one.
    ///
    /// # Errors
    /// What [`parse_request`] has against it, a bare LF, or more bytes without an end than a head may have.
    pub fn take_head(&mut self, scanned: &mut usize, limits: &HeadLimits) -> Result<Option<RequestHead>, WireError> {
        if let Some(len) = head_len(&self.read, scanned)? {
            let head = parse_request(&self.read[..len], limits)?;
            self.skip(len);
            return Ok(Some(head));
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

    /// Forgets the first `len` bytes. When nothing is left, neither is the buffer.
    fn skip(&mut self, len: usize) {
        if len == self.read.len() { self.read = BytesMut::new() } else { self.read.advance(len) }
    }

    /// The request target, as far as a broken head shows it; it decides the form of the refusal.
    pub fn target(&self) -> Option<String> {
        target_of(&self.read)
    }

    /// From here on what arrives is a body framed like this.
    pub fn begin_body(&mut self, framing: Framing, asked: &RequestFacts) {
        self.body = BodyDecoder::new(framing);
        self.stride = BODY_READ;
        self.owes_continue = asked.expects_continue && !self.body.is_done();
        self.takes_interim = asked.version == Version::HTTP_11;
    }

    /// The next piece of the body. Asking for it is what sends the 100 that the client waits for.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<BodyFrame, ReadError>> {
        if std::mem::take(&mut self.owes_continue) && self.read.is_empty() {
            self.unsent.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            self.send_interim(cx);
        }
        loop {
            if let Some(piece) = self.body.decode(&mut self.read).map_err(|_| ReadError::Malformed)? {
                return Poll::Ready(Ok(piece));
            }
            match ready!(self.poll_read_body(cx)) {
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
            // Most of an upload arrives here, while its service takes what came before. It is read as it is where it is
            // asked for, since what is passed on is passed on from here.
            match ready!(self.poll_read_body(cx)) {
                Ok(n) if n > 0 => {}
                _ => {
                    self.ended = true;
                    return Poll::Ready(());
                }
            }
        }
        self.poll_left(cx)
    }

    /// Ready when a client has left of which nothing more is read, because a service takes nothing of its upload.
    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.io.as_ref().is_none_or(ClientIo::has_left) {
                self.ended = true;
                return Poll::Ready(());
            }
            let look = self.look.get_or_insert_with(|| Box::pin(sleep(LOOK)));
            ready!(look.as_mut().poll(cx));
            look.as_mut().reset(Instant::now() + LOOK);
        }
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

    /// Sends interim responses: as much as the client takes now, the rest before whatever is written next.
    pub fn send_interim(&mut self, cx: &mut Context<'_>) {
        if !self.unsent.is_empty() {
            // An error shows at the next write or read.
            let _ = self.poll_flush(cx);
        }
    }

    /// Ready once no interim response is left, or the client is gone.
    fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let Some(io) = &mut self.io else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
            let n = ready!(Pin::new(io).poll_write(cx, &self.unsent))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.drain(..n);
        }
        Poll::Ready(Ok(()))
    }

    /// Writes from several slices at once.
    pub fn poll_write_vectored(&mut self, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        ready!(self.poll_unsent(cx))?;
        match &mut self.io {
            Some(io) => Pin::new(io).poll_write_vectored(cx, slices),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    /// Writes although the socket has not said that it has room; how much of `bytes` it took.
    pub fn try_write(&mut self, bytes: &[u8]) -> usize {
        let Some(io) = &mut self.io else { return 0 };
        // Nothing overtakes an interim response.
        io.try_write(if self.unsent.is_empty() { bytes } else { &[] })
    }

    /// Pushes everything written towards the client.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_unsent(cx))?;
        match &mut self.io {
            Some(io) => Pin::new(io).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Reads into the buffer of the thread, and from there exactly as much as came.
    pub fn poll_read_some(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let (Some(io), false) = (&mut self.io, self.ended) else { return Poll::Ready(Ok(0)) };
        BUFFER.with_borrow_mut(|buffer| {
            let mut buf = ReadBuf::new(buffer);
            ready!(Pin::new(io).poll_read(cx, &mut buf))?;
            self.read.extend_from_slice(buf.filled());
            Poll::Ready(Ok(buf.filled().len()))
        })
    }

    /// Reads what is left of the body into room of the stream's own: the bytes are passed on without another copy. Where
    /// little or nothing is left, reads as [`Self::poll_read_some`] does.
    fn poll_read_body(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let left = self.body.remaining().map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
        let wanted = left.saturating_sub(self.read.len()).min(self.stride);
        if wanted < SCRATCH || self.body.is_done() {
            return self.poll_read_some(cx);
        }
        let (Some(io), false) = (&mut self.io, self.ended) else { return Poll::Ready(Ok(0)) };
        self.read.reserve(wanted);
        let mut limited = bytes::BufMut::limit(&mut self.read, wanted);
        let n = ready!(tokio_util::io::poll_read_buf(Pin::new(io), cx, &mut limited))?;
        self.stride = if n > self.stride / 2 { (2 * self.stride).min(BODY_READ_MOST) } else { BODY_READ };
        Poll::Ready(Ok(n))
    }
}

/// What has come of a client that was quiet.
#[derive(Debug)]
pub enum ReadEvent {
    /// A request.
    Head(RequestHead),
    /// Less, more, or none.
    Bytes,
    /// Nothing comes any more.
    End,
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
fn target_of(head: &[u8]) -> Option<String> {
    let line = head.split(|b| matches!(b, b'\r' | b'\n')).next()?;
    let target = line.split(|b| *b == b' ').nth(1)?;
    std::str::from_utf8(target).ok().map(str::to_owned)
}

impl<IO: ClientIo> ClientSide for Mutex<Stream<IO>> {
    fn push_interim(&self, status: StatusCode, fields: &Fields) {
        let mut stream = self.lock().unwrap_or_else(PoisonError::into_inner);
        if stream.takes_interim && stream.unsent.len() < MAX_INTERIM {
            wire::response_head(&mut stream.unsent, status, fields);
        }
    }

    fn cut(&self) -> Option<AbortReason> {
        self.lock().unwrap_or_else(PoisonError::into_inner).cut
    }
}

/// A handle on a stream; see the head of `h1/mod.rs` on the lock.
pub struct Shared<IO>(Arc<Mutex<Stream<IO>>>);

impl<IO> Clone for Shared<IO> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<IO: ClientIo> Shared<IO> {
    /// Shares a stream.
    pub fn new(stream: Stream<IO>) -> Self {
        Self(Arc::new(Mutex::new(stream)))
    }

    /// The stream.
    pub fn lock(&self) -> MutexGuard<'_, Stream<IO>> {
        // A panic while it is held has already ended the task that would use the stream.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stream as a handler sees it.
    pub fn client_side(&self) -> ClientHandle {
        self.0.clone()
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
            let _ = timeout(FAREWELL, io.shutdown()).await;
        }
    }

    /// Ends our side, and reads what the client still sends so that the response reaches it. Nothing of that is parsed.
    /// Once `hurried`, it may take no longer than a farewell.
    pub async fn linger(&self, hurried: impl Future<Output = ()>) {
        let Some((mut io, _)) = self.take() else { return };
        let discard = async {
            timeout(FAREWELL, io.shutdown()).await??;
            let mut window = (Instant::now(), 0);
            loop {
                let read = poll_fn(|cx| {
                    BUFFER.with_borrow_mut(|buffer| {
                        let mut buf = ReadBuf::new(buffer);
                        ready!(Pin::new(&mut io).poll_read(cx, &mut buf))?;
                        Poll::Ready(io::Result::Ok(buf.filled().len()))
                    })
                });
                let n = timeout(FAREWELL, read).await??;
                window.1 += n;
                if n == 0 {
                    return io::Result::Ok(());
                }
                let (since, bytes) = window;
                if since.elapsed() >= LINGER_WINDOW {
                    if bytes < LINGER_RATE * LINGER_WINDOW.as_secs() as usize {
                        return Ok(());
                    }
                    window = (Instant::now(), 0);
                }
            }
        };
        let hurry = async {
            hurried.await;
            sleep(FAREWELL).await;
        };
        // Whether the client waited or left, the connection is over.
        tokio::select! {
            _ = timeout(LINGER, discard) => {}
            () = hurry => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    #[tokio::test]
    async fn a_fast_body_is_read_in_growing_pieces_and_a_slow_one_is_not() {
        let (near, mut far) = duplex(1 << 20);
        let mut stream = Stream::new(near);
        stream.begin_body(Framing::Length(2 << 20), &RequestFacts::nothing());
        far.write_all(&vec![7; 1 << 20]).await.unwrap();
        let mut sizes = Vec::new();
        for _ in 0..4 {
            let Ok(BodyFrame::Data(data)) = poll_fn(|cx| stream.poll_body(cx)).await else {
                panic!("the body goes on")
            };
            sizes.push(data.len());
        }
        assert_eq!(sizes, [64, 128, 256, 256].map(|kib| kib * 1024));
        poll_fn(|cx| {
            assert!(stream.poll_watch(cx).is_pending(), "the client is still there");
            Poll::Ready(())
        })
        .await;
        assert_eq!(stream.read.len(), 256 * 1024, "what the handler does not ask for is read ahead");
        while let Some(piece) = poll_fn(|cx| Poll::Ready(ready_now(stream.poll_body(cx)))).await {
            assert!(matches!(piece, Ok(BodyFrame::Data(_))));
        }
        far.write_all(&[7; 100]).await.unwrap();
        assert!(matches!(poll_fn(|cx| stream.poll_body(cx)).await, Ok(BodyFrame::Data(data)) if data.len() == 100));
        assert_eq!(stream.stride, BODY_READ);
    }

    #[tokio::test]
    async fn a_100_that_is_taken_in_part_is_finished_before_anything_else() {
        // Room for ten bytes.
        let (near, mut far) = duplex(10);
        let mut stream = Stream::new(near);
        let asked = RequestFacts { expects_continue: true, ..RequestFacts::nothing() };
        stream.begin_body(Framing::Length(5), &asked);
        poll_fn(|cx| {
            assert!(stream.poll_body(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        stream.answers();
        let writing = async {
            let mut answer: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";
            while !answer.is_empty() {
                let slices = [io::IoSlice::new(answer)];
                let n = poll_fn(|cx| stream.poll_write_vectored(cx, &slices)).await.unwrap();
                answer = &answer[n..];
            }
            drop(stream);
        };
        let mut seen = String::new();
        let (_, read) = tokio::join!(writing, tokio::io::AsyncReadExt::read_to_string(&mut far, &mut seen));
        read.unwrap();
        assert_eq!(seen, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n");
    }

    fn ready_now<T>(poll: Poll<T>) -> Option<T> {
        match poll {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }
}
