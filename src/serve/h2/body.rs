//! The body of a request that comes by HTTP/2.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::header;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::shared::Receiver;
use crate::{
    message::{BodyError, Fields},
    wire::h2::connection::BodyFrame,
};

/// A request body that is still arriving.
pub struct Upload {
    receiver: Receiver,
    /// What is to come, where the client has said so; the stream is held to that.
    left: Option<u64>,
}

impl Upload {
    /// The body of the request with these fields.
    pub fn new(receiver: Receiver, fields: &Fields) -> Self {
        let left = fields.get(header::CONTENT_LENGTH).and_then(|length| length.to_str()?.parse().ok());
        Self { receiver, left }
    }
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(match ready!(self.receiver.poll_frame(cx)) {
            BodyFrame::Data(data) => {
                self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                Some(Ok(Frame::data(data)))
            }
            BodyFrame::Trailers(trailers) => Some(Ok(Frame::trailers((&trailers).into()))),
            BodyFrame::End => None,
            BodyFrame::Stalled => Some(Err(BodyError::Stalled)),
            // Reset for whatever reason: only END_STREAM says that this was all.
            BodyFrame::Reset | BodyFrame::Lost => Some(Err(BodyError::Truncated)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.receiver.is_over()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
