//! The request body as a handler reads it, straight from the connection: what is not read is not taken from the client.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::stream::{ReadError, Shared};
use crate::{
    clock::IdleTimer,
    message::BodyError,
    message::ClientIo,
    wire::{BodyFrame, Framing},
};

/// A request body that is still arriving.
pub struct Incoming<IO> {
    stream: Shared<IO>,
    left: Option<u64>,
    done: bool,
    stall: IdleTimer,
    /// What the socket had received when this body last was waited for.
    received: u64,
}

impl<IO: ClientIo> Incoming<IO> {
    /// The body that begins where the stream stands.
    pub fn new(stream: Shared<IO>, framing: Framing, stall: Option<Duration>) -> Self {
        let left = match framing {
            Framing::Length(n) => Some(n),
            _ => None,
        };
        Self { stream, left, done: left == Some(0), stall: IdleTimer::new(stall), received: 0 }
    }
}

impl<IO: ClientIo> HttpBody for Incoming<IO> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if this.done {
            return Poll::Ready(None);
        }
        let (polled, received) = {
            let mut stream = this.stream.lock();
            (stream.poll_body(cx), stream.transferred().received)
        };
        if std::mem::replace(&mut this.received, received) != received {
            this.stall.moved();
        }
        let piece = match polled {
            Poll::Ready(piece) => piece,
            Poll::Pending if this.stall.poll(cx).is_ready() => {
                this.done = true;
                return Poll::Ready(Some(Err(BodyError::Stalled)));
            }
            Poll::Pending => return Poll::Pending,
        };
        this.stall.moved();
        Poll::Ready(match piece {
            Ok(BodyFrame::Data(bytes)) => {
                if let Some(left) = &mut this.left {
                    *left -= bytes.len() as u64;
                    this.done = *left == 0;
                }
                Some(Ok(Frame::data(bytes)))
            }
            Ok(BodyFrame::Trailers(trailers)) => {
                this.done = true;
                Some(Ok(Frame::trailers(trailers)))
            }
            Ok(BodyFrame::End) => {
                this.done = true;
                None
            }
            Err(error) => {
                this.done = true;
                Some(Err(match error {
                    ReadError::Gone => BodyError::Truncated,
                    ReadError::Malformed => BodyError::Malformed,
                }))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.done
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
