//! The body type of all modules, whatever the protocol.
//!
//! A newtype with a concrete error, because `BoxBody<Bytes, Box<dyn Error>>` as an alias does not survive boxing of the
//! services around it (a known limit of rustc on `dyn Error` in boxed futures).

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::error::{Kind, ProxyError};

/// A message body: nothing, bytes that are all here, or a stream.
#[derive(Default)]
pub struct Body(Inner);

#[derive(Default)]
enum Inner {
    #[default]
    Empty,
    Full(Bytes),
    Stream(Pin<Box<dyn HttpBody<Data = Bytes, Error = BodyError> + Send>>),
}

impl Body {
    /// A body without a byte.
    #[must_use]
    pub const fn empty() -> Self {
        Self(Inner::Empty)
    }

    /// A body that is all here. Empty bytes make an empty body.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::empty() } else { Self(Inner::Full(bytes)) }
    }

    /// A body that arrives bit by bit.
    pub fn stream(body: impl HttpBody<Data = Bytes, Error = BodyError> + Send + 'static) -> Self {
        Self(Inner::Stream(Box::pin(body)))
    }

    /// The bytes, where all of them are here already; layers use it to work in one go.
    #[must_use]
    pub fn as_full(&self) -> Option<&Bytes> {
        match &self.0 {
            Inner::Full(bytes) => Some(bytes),
            Inner::Empty | Inner::Stream(_) => None,
        }
    }

    /// Whether there is nothing to send, now or later.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.is_end_stream()
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::full(bytes)
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.0 {
            Inner::Empty => Poll::Ready(None),
            Inner::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = Inner::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Inner::Stream(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Empty => true,
            Inner::Full(_) => false,
            Inner::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Empty => SizeHint::with_exact(0),
            Inner::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Inner::Stream(body) => body.size_hint(),
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Inner::Empty => f.write_str("Body(empty)"),
            Inner::Full(bytes) => write!(f, "Body({} bytes)", bytes.len()),
            Inner::Stream(_) => f.write_str("Body(stream)"),
        }
    }
}

/// Why a body ended before its end. Whoever writes it out cuts the connection or resets the stream: a cut body never
/// ends cleanly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The sender closed or reset before the end of the body.
    #[error("body cut short")]
    Truncated,
    /// The framing of the body is not what RFC 9112 section 7 allows.
    #[error("body framing is malformed")]
    Malformed,
    /// No byte moved for `timeouts.body_stall`.
    #[error("body stalled")]
    Stalled,
    /// The body is longer than the route allows.
    #[error("body larger than the limit")]
    TooLarge,
    /// The other side of the exchange is gone, so nobody wants the rest.
    #[error("exchange cancelled")]
    Cancelled,
}

/// The body of a request broke: its client, and not the service, is why.
impl From<BodyError> for ProxyError {
    fn from(error: BodyError) -> Self {
        let kind = match error {
            BodyError::Truncated | BodyError::Cancelled => Kind::ClientGone,
            BodyError::Malformed => Kind::BadRequest("the body is malformed"),
            BodyError::Stalled => Kind::BodyTooSlow,
            BodyError::TooLarge => Kind::BodyTooLarge,
        };
        Self::new(kind, error)
    }
}
