//! The byte stream of an extended CONNECT (RFC 8441): DATA frames both ways.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is sent at once: a frame that every peer takes (RFC 9113 section 4.2).
const PIECE: usize = 16 * 1024;

/// A stream of HTTP/2 as a stream of bytes.
pub struct Bytestream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// Received, and not yet read.
    read: Bytes,
    ended: bool,
}

impl Bytestream {
    /// Both directions of a stream whose heads have been exchanged.
    pub fn new(send: SendStream<Bytes>, recv: RecvStream) -> Self {
        Self { send, recv, read: Bytes::new(), ended: false }
    }
}

impl AsyncRead for Bytestream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.read.is_empty() {
            this.read = match ready!(this.recv.poll_data(cx)) {
                Some(Ok(data)) => data,
                Some(Err(error)) if matches!(error.reason(), Some(Reason::NO_ERROR | Reason::CANCEL)) => {
                    return Poll::Ready(Ok(()));
                }
                Some(Err(error)) => return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, error))),
                None => return Poll::Ready(Ok(())),
            };
        }
        let n = this.read.len().min(buf.remaining());
        buf.put_slice(&this.read[..n]);
        this.read.advance(n);
        // An error only says that the stream is reset; the next read says it too.
        let _ = this.recv.flow_control().release_capacity(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Bytestream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.send.reserve_capacity(1);
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let n = bytes.len().min(PIECE);
        let sent = self.send.send_data(Bytes::copy_from_slice(&bytes[..n]), false);
        Poll::Ready(sent.map(|()| n).map_err(|error| io::Error::new(io::ErrorKind::BrokenPipe, error)))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end();
        Poll::Ready(Ok(()))
    }
}

impl Bytestream {
    fn end(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            // Fails on a stream that is reset, which has ended.
            let _ = self.send.send_data(Bytes::new(), true);
        }
    }
}

impl Drop for Bytestream {
    /// A tunnel that is over ends its stream; a stream that is only dropped would be reset.
    fn drop(&mut self) {
        self.end();
    }
}
