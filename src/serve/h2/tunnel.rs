//! The byte stream of an extended CONNECT (RFC 8441): DATA frames both ways.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::shared::{Receiver, Sender};
use crate::wire::h2::connection::BodyFrame;

/// A stream of HTTP/2 as a stream of bytes.
pub struct Bytestream {
    send: Arc<Sender>,
    recv: Receiver,
    /// Received, and not yet read.
    read: Bytes,
    ended: bool,
}

impl Bytestream {
    /// Both directions of a stream whose heads have been exchanged.
    pub const fn new(send: Arc<Sender>, recv: Receiver) -> Self {
        Self { send, recv, read: Bytes::new(), ended: false }
    }

    fn end(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            // Fails on a stream that is reset, which has ended.
            let _ = self.send.data(&[], true);
        }
    }
}

impl AsyncRead for Bytestream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.read.is_empty() {
            match ready!(this.recv.poll_frame(cx)) {
                BodyFrame::Data(data) => this.read = data,
                BodyFrame::Trailers(_) | BodyFrame::Stalled => {}
                // A WebSocket says goodbye by itself: how its stream ends says no more than that it does.
                BodyFrame::End | BodyFrame::Reset => return Poll::Ready(Ok(())),
                BodyFrame::Lost => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let n = this.read.len().min(buf.remaining());
        buf.put_slice(&this.read[..n]);
        this.read.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Bytestream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        let room = ready!(self.send.poll_room(cx, bytes.len())).map_err(gone)?;
        self.send.data(&bytes[..room], false).map_err(gone)?;
        Poll::Ready(Ok(room))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Bytestream {
    /// A tunnel that is over ends its stream; a stream that is only dropped would be reset.
    fn drop(&mut self) {
        self.end();
    }
}
