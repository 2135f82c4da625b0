//! The body of a response, read from its connection as its reader asks for it, while what is left of the request goes out.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::{Lease, connect::UpstreamConnection, upload::Upload};
use crate::{
    clock::IdleTimer,
    message::BodyError,
    wire::{BodyDecoder, BodyFrame, Framing},
};

/// A response whose head has been passed on.
pub struct ResponseBody {
    state: State,
    /// Bytes of the body that are left, where that is known.
    left: Option<u64>,
    timer: IdleTimer,
}

/// ```text
///   Receiving ──response_ended──▶ Uploading ──upload_ended──▶ Closed
///       └──────────────────────── failed ──────────────────────┘
/// ```
enum State {
    /// The body arrives. What is left of the request goes out beside it.
    Receiving { exchange: Box<Exchange>, decoder: BodyDecoder },
    /// All of the body has arrived, before the service has read all of the request: an early success does not mean that
    /// it wants no more.
    Uploading { exchange: Box<Exchange>, trailers: Option<HeaderMap> },
    /// The connection is back in its pool, or closed.
    Closed,
}

/// The connection of an exchange that goes on.
pub struct Exchange {
    /// The connection.
    pub connection: UpstreamConnection,
    /// Its place.
    pub lease: Lease,
    /// What the request still has to say.
    pub upload: Option<Upload>,
    /// Whether the connection may be used again.
    pub keep: bool,
}

impl ResponseBody {
    /// The body that follows a head.
    pub fn new(exchange: Exchange, framing: Framing, stall: Option<Duration>) -> Self {
        let (exchange, decoder) = (Box::new(exchange), BodyDecoder::new(framing));
        let mut body = Self {
            left: framing.length(),
            timer: IdleTimer::new(stall),
            state: State::Receiving { exchange, decoder },
        };
        if body.is_received() {
            body.response_ended(None);
        }
        body
    }

    fn is_received(&self) -> bool {
        matches!(&self.state, State::Receiving { decoder, .. } if decoder.is_done())
    }

    /// Receiving → Uploading, or → Closed where the request is out. Trailers come last.
    fn response_ended(&mut self, trailers: Option<HeaderMap>) -> Option<HeaderMap> {
        let State::Receiving { exchange, .. } = std::mem::replace(&mut self.state, State::Closed) else {
            return trailers;
        };
        if exchange.is_uploading() {
            self.state = State::Uploading { exchange, trailers };
            return None;
        }
        exchange.end();
        trailers
    }

    /// Uploading → Closed.
    fn upload_ended(&mut self) -> Option<HeaderMap> {
        let State::Uploading { mut exchange, trailers } = std::mem::replace(&mut self.state, State::Closed) else {
            return None;
        };
        exchange.keep &= !exchange.is_uploading();
        exchange.end();
        trailers
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<BodyFrame, BodyError>> {
        let State::Receiving { exchange, decoder } = &mut self.state else { return Poll::Ready(Ok(BodyFrame::End)) };
        let Exchange { connection, upload, .. } = &mut **exchange;
        if let Some(upload) = upload {
            // Its errors are not the response's: whatever the service still says is passed on.
            let _ = upload.poll(cx, &mut connection.socket, &mut None);
        }
        loop {
            match decoder.decode(connection.read.bytes_mut()) {
                Ok(Some(frame)) => return Poll::Ready(Ok(frame)),
                Ok(None) => {}
                Err(_malformed) => return Poll::Ready(Err(BodyError::Truncated)),
            }
            let wanted = decoder.remaining().unwrap_or(0);
            match connection.poll_fill(cx, wanted) {
                Poll::Ready(Ok(n)) if n > 0 => self.timer.moved(),
                Poll::Ready(Ok(_)) if decoder.may_end_here() => return Poll::Ready(Ok(BodyFrame::End)),
                Poll::Ready(_) => return Poll::Ready(Err(BodyError::Truncated)),
                Poll::Pending => return self.timer.poll(cx).map(|()| Err(BodyError::Stalled)),
            }
        }
    }

    /// Ready when the request is out, or will never be: its client or the service has left.
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let State::Uploading { exchange, .. } = &mut self.state else { return Poll::Ready(()) };
        let Exchange { connection, upload: Some(upload), keep, .. } = &mut **exchange else { return Poll::Ready(()) };
        // A service has nothing more to say on this connection: what comes is its end.
        if connection.poll_fill(cx, 0).is_ready() {
            *keep = false;
            return Poll::Ready(());
        }
        upload.poll(cx, &mut connection.socket, &mut None).map(drop)
    }
}

impl Exchange {
    fn is_uploading(&self) -> bool {
        self.upload.as_ref().is_some_and(|upload| !upload.is_done())
    }

    /// Gives the connection back, if another request may follow on it.
    fn end(self: Box<Self>) {
        let Self { connection, lease, keep, .. } = *self;
        if keep && connection.read.is_empty() {
            lease.give_back(connection);
        }
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if matches!(self.state, State::Receiving { .. }) {
            match ready!(self.poll_receive(cx)) {
                Ok(BodyFrame::Data(data)) => {
                    if let Some(left) = &mut self.left {
                        *left -= data.len() as u64;
                    }
                    if self.is_received() {
                        self.response_ended(None);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(BodyFrame::Trailers(trailers)) => {
                    if let Some(trailers) = self.response_ended(Some(trailers)) {
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                    }
                }
                Ok(BodyFrame::End) => drop(self.response_ended(None)),
                Err(error) => {
                    self.state = State::Closed;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        if matches!(self.state, State::Uploading { .. }) {
            ready!(self.poll_upload(cx));
            if let Some(trailers) = self.upload_ended() {
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
