//! HTTP/1.1 (RFC 9112) and HTTP/2 (RFC 9113, RFC 7541) as they stand on the wire: heads, framing, the chunked coding, frames and
//! HPACK. Pure: bytes in, words out.
//!
//! Both sides of the proxy use it, `serve` towards clients and `upstream` towards services, so that what one refuses the
//! other cannot send. It is stricter than the RFC asks wherever leniency is what request smuggling is made of: a bare LF,
//! white space before a colon, folded lines, `Content-Length` beside `Transfer-Encoding`, and chunk sizes with anything
//! but digits are errors.

pub mod chunked;
mod encode;
mod fields;
pub mod h2;
mod head;
mod names;

pub use encode::{chunk_head, last_chunk, last_field, request_head, response_head};
pub use fields::{expects_continue, is_of_one_hop, permitted_trailers, strip_hop};
pub use head::{HeadLimits, RequestHead, ResponseHead, head_len, parse_request, parse_response};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;

/// Why bytes are not HTTP/1.1. The words are for the one who sent them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The grammar is broken, or two readings are possible.
    #[error("{0}")]
    Malformed(&'static str),
    /// The request target is over the limit.
    #[error("the request target is too long")]
    TargetTooLong,
    /// The fields are over the limit in bytes or in number.
    #[error("the head is too large")]
    HeadTooLarge,
}

/// How the length of a message body is known (RFC 9112 section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// So many bytes.
    Length(u64),
    /// Chunks and trailers.
    Chunked,
    /// All bytes until the connection closes; responses only.
    UntilClose,
}

impl Framing {
    /// The length of the body, where it is known beforehand.
    #[must_use]
    pub const fn length(self) -> Option<u64> {
        match self {
            Self::None => Some(0),
            Self::Length(n) => Some(n),
            Self::Chunked | Self::UntilClose => None,
        }
    }
}

/// A piece of a body.
#[derive(Debug)]
pub enum BodyFrame {
    /// Content.
    Data(Bytes),
    /// The trailer section of a chunked body; nothing follows.
    Trailers(HeaderMap),
    /// The end of the body, without trailers.
    End,
}

/// Cuts a body out of the bytes that arrive, by its framing. It never takes a byte that belongs to the next message.
#[derive(Debug)]
pub struct BodyDecoder(State);

#[derive(Debug)]
enum State {
    Length(u64),
    Chunked(chunked::Decoder),
    UntilClose,
    Done,
}

impl BodyDecoder {
    /// A decoder for a body framed like this.
    #[must_use]
    pub fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(n) => State::Length(n),
            Framing::Chunked => State::Chunked(chunked::Decoder::default()),
            Framing::UntilClose => State::UntilClose,
        })
    }

    /// The next piece, or `None` if more bytes are needed first.
    ///
    /// # Errors
    /// The chunked coding is malformed.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<BodyFrame>, WireError> {
        match &mut self.0 {
            State::Done => Ok(Some(BodyFrame::End)),
            _ if buf.is_empty() => Ok(None),
            State::UntilClose => Ok(Some(BodyFrame::Data(buf.split().freeze()))),
            State::Length(left) => {
                let take = buf.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= take as u64;
                if *left == 0 {
                    self.0 = State::Done;
                }
                Ok(Some(BodyFrame::Data(buf.split_to(take).freeze())))
            }
            State::Chunked(decoder) => {
                let piece = decoder.decode(buf)?;
                if matches!(piece, Some(BodyFrame::Trailers(_) | BodyFrame::End)) {
                    self.0 = State::Done;
                }
                Ok(piece)
            }
        }
    }

    /// Whether the whole body has been taken.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        matches!(self.0, State::Done)
    }

    /// Whether the end of the stream is a proper end of the body now.
    #[must_use]
    pub const fn may_end_here(&self) -> bool {
        matches!(self.0, State::Done | State::UntilClose)
    }

    /// How many bytes are left, where that is known.
    #[must_use]
    pub const fn remaining(&self) -> Option<u64> {
        match self.0 {
            State::Done => Some(0),
            State::Length(n) => Some(n),
            State::Chunked(_) | State::UntilClose => None,
        }
    }
}
