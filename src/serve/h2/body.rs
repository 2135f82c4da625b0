//! The body of a request that comes by HTTP/2.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::header;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::streams::{BodyFrame, Receiver};
use crate::{
    clock::IdleTimer,
    message::{BodyError, Fields},
};

/// A request body that is still arriving.
pub struct Upload {
    arriving: Receiver,
    /// What is to come, where the client has said so; the stream is held to that.
    left: Option<u64>,
    stall: IdleTimer,
}

impl Upload {
    /// The body of the request with these fields.
    pub fn new(arriving: Receiver, fields: &Fields, stall: Option<Duration>) -> Self {
        let left = fields.get(header::CONTENT_LENGTH).and_then(|length| length.to_str()?.parse().ok());
        Self { arriving, left, stall: IdleTimer::new(stall) }
    }
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Poll::Ready(piece) = self.arriving.poll_piece(cx) else {
            return self.stall.poll(cx).map(|()| Some(Err(BodyError::Stalled)));
        };
        self.stall.moved();
        Poll::Ready(match piece {
            BodyFrame::Data(data) => {
                self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                Some(Ok(Frame::data(data)))
            }
            BodyFrame::Trailers(trailers) => Some(Ok(Frame::trailers(trailers))),
            BodyFrame::End => None,
            // Reset for whatever reason: only END_STREAM says that this was all.
            BodyFrame::Cut | BodyFrame::Lost => Some(Err(BodyError::Truncated)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.arriving.is_over()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
