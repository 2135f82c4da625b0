//! Writing an answer: its framing, its head, and a body as it comes.

use std::{
    future::{Future, poll_fn},
    io::IoSlice,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, StatusCode, Version, header};
use http_body::{Body as HttpBody, Frame};

use super::{RequestFacts, stream::Shared};
use crate::{
    clock::IdleTimer,
    conn::AbortReason,
    drain::InFlight,
    message::{Body, BodyError, ClientIo, Response, Value},
    serve::{Date, Settings},
    wire::{self, Framing},
};

/// The answer was cut: the connection is to be dropped as it is.
#[derive(Debug)]
pub struct Truncated;

/// How an answer will be written.
pub struct ResponseWriter {
    head: Vec<u8>,
    framing: Framing,
    trailers: bool,
}

impl ResponseWriter {
    /// Settles the framing of a response and writes its head down.
    pub fn new(response: &mut Response, asked: &RequestFacts, close: bool, settings: &Settings) -> Self {
        let framing = frame(response, asked);
        let status = response.status;
        let fields = &mut response.fields;
        if framing == Framing::Chunked {
            fields.insert(header::TRANSFER_ENCODING, Value::from_static("chunked"));
        }
        if close || framing == Framing::UntilClose {
            let upgrade = fields.contains(header::UPGRADE);
            let close = Value::from_static(if upgrade { "upgrade, close" } else { "close" });
            fields.insert(header::CONNECTION, close);
        } else if asked.version == Version::HTTP_10 {
            fields.insert(header::CONNECTION, Value::from_static("keep-alive"));
        }
        let mut head = Vec::with_capacity(512);
        wire::response_head(&mut head, status, fields);
        if !fields.contains(header::DATE) {
            wire::last_field(&mut head, &header::DATE, Date::of(settings.clock.now()).value());
        }
        Self { head, framing, trailers: asked.takes_trailers }
    }

    /// Whether the close of the connection is the end of the body.
    pub fn ends_by_close(&self) -> bool {
        self.framing == Framing::UntilClose
    }

    /// Writes the head, and the body as it comes.
    ///
    /// # Errors
    /// The client left or reads nothing, or the body was cut short.
    pub fn write<'a, 'b, IO: ClientIo>(
        self,
        mut body: Body,
        stream: &'a Shared<IO>,
        settings: &Settings,
        work: Option<&'a mut InFlight<'b>>,
    ) -> impl Future<Output = Result<(), Truncated>> + use<'a, 'b, IO> {
        let stall = IdleTimer::new(settings.body_stall);
        let mut out = Outgoing { stream, stall, sent: 0, work, small: self.head, data: Bytes::new(), tail: b"" };
        let (framing, passes_trailers) = (self.framing, self.trailers);
        async move {
            let mut left = match framing {
                Framing::None if body.size_hint().exact() != Some(0) => return out.finish().await,
                Framing::None => Some(0),
                Framing::Length(n) => Some(n),
                Framing::Chunked | Framing::UntilClose => None,
            };
            // A response may be whole before its request is: its body ends once the service has read that.
            while left != Some(0) || !body.is_end_stream() {
                let frame = match out.next(Pin::new(&mut body)).await? {
                    Some(frame) => frame.map_err(|_cause| Truncated)?,
                    None => break,
                };
                match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => {
                        if let Some(left) = &mut left {
                            *left = left.checked_sub(data.len() as u64).ok_or(Truncated)?;
                        }
                        out.push(data, framing == Framing::Chunked);
                        out.write().await?;
                    }
                    Err(frame) => {
                        let Ok(trailers) = frame.into_trailers() else { continue };
                        return out.end(framing, passes_trailers.then_some(&trailers)).await;
                    }
                }
            }
            // A body that is shorter than it said is cut, whatever it says of its end.
            if left.is_some_and(|left| left > 0) { Err(Truncated) } else { out.end(framing, None).await }
        }
    }
}

/// Bytes on their way to the client.
struct Outgoing<'a, 'b, IO> {
    stream: &'a Shared<IO>,
    stall: IdleTimer,
    /// What the socket had taken when the client last was too slow.
    sent: u64,
    work: Option<&'a mut InFlight<'b>>,
    /// The head, or the line that opens a chunk.
    small: Vec<u8>,
    data: Bytes,
    tail: &'static [u8],
}

impl<IO: ClientIo> Outgoing<'_, '_, IO> {
    /// The next frame of the body. Before it is waited for, all that we have goes out, and while it is waited for, the
    /// client is watched.
    async fn next(&mut self, mut body: Pin<&mut Body>) -> Result<Option<Result<Frame<Bytes>, BodyError>>, Truncated> {
        if let Some(frame) = poll_fn(|cx| Poll::Ready(ready_now(body.as_mut().poll_frame(cx)))).await {
            return Ok(frame);
        }
        self.write().await?;
        self.flush().await?;
        poll_fn(|cx| match body.as_mut().poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            Poll::Pending => self.stream.lock().poll_watch(cx).map(|_gone| Err(Truncated)),
        })
        .await
    }

    fn push(&mut self, data: Bytes, chunked: bool) {
        if chunked {
            wire::chunk_head(&mut self.small, data.len());
            self.tail = b"\r\n";
        }
        self.data = data;
    }

    async fn end(&mut self, framing: Framing, trailers: Option<&HeaderMap>) -> Result<(), Truncated> {
        if framing == Framing::Chunked {
            wire::last_chunk(&mut self.small, trailers);
        }
        self.finish().await
    }

    async fn finish(&mut self) -> Result<(), Truncated> {
        self.write().await?;
        self.flush().await
    }

    /// Writes all that is here, in as few calls as the stream allows.
    async fn write(&mut self) -> Result<(), Truncated> {
        let mut written = 0;
        while written < self.small.len() || self.data.has_remaining() || !self.tail.is_empty() {
            let mut n = poll_fn(|cx| {
                let slices = [IoSlice::new(&self.small[written..]), IoSlice::new(&self.data), IoSlice::new(self.tail)];
                let polled = self.stream.lock().poll_write_vectored(cx, &slices);
                match polled {
                    Poll::Ready(Ok(n)) if n > 0 => Poll::Ready(Ok(n)),
                    Poll::Ready(_) => Poll::Ready(Err(Truncated)),
                    Poll::Pending => self.poll_stall(cx, written),
                }
            })
            .await?;
            self.moved();
            let small = n.min(self.small.len() - written);
            written += small;
            n -= small;
            let data = n.min(self.data.len());
            self.data.advance(data);
            self.tail = &self.tail[n - data..];
        }
        self.small.clear();
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Truncated> {
        let flushed = poll_fn(|cx| {
            let flushed = self.stream.lock().poll_flush(cx);
            match flushed {
                Poll::Ready(flushed) => Poll::Ready(flushed.map_err(|_gone| Truncated)),
                Poll::Pending => self.poll_stall(cx, 0).map_ok(|_nothing| ()),
            }
        });
        flushed.await?;
        self.moved();
        Ok(())
    }

    /// The client takes nothing. Ready when that has gone on for too long, or with what it takes at the last moment of
    /// what follows the first `written` bytes.
    fn poll_stall(&mut self, cx: &mut Context<'_>, written: usize) -> Poll<Result<usize, Truncated>> {
        self.note_sent();
        if let Some(work) = &mut self.work {
            work.stalls();
        }
        ready!(self.stall.poll(cx));
        let waiting = [&self.small[written..], &self.data, self.tail].into_iter().find(|part| !part.is_empty());
        let taken = self.stream.lock().try_write(waiting.unwrap_or_default());
        if taken > 0 {
            return Poll::Ready(Ok(taken));
        }
        self.note_sent();
        self.stall.poll(cx).map(|()| {
            self.stream.lock().cut = Some(AbortReason::Stalled);
            Err(Truncated)
        })
    }

    /// Notes whether a part has left of what was encrypted before.
    fn note_sent(&mut self) {
        let sent = self.stream.lock().transferred().sent;
        if std::mem::replace(&mut self.sent, sent) != sent {
            self.moved();
        }
    }

    fn moved(&mut self) {
        if let Some(work) = &mut self.work {
            work.moves();
        }
        self.stall.moved();
    }
}

/// Writes bytes and pushes them out.
///
/// # Errors
/// The client left, or reads nothing.
pub async fn all<IO: ClientIo>(stream: &Shared<IO>, bytes: &[u8], stall: Option<Duration>) -> Result<(), Truncated> {
    let stall = IdleTimer::new(stall);
    let mut out = Outgoing { stream, stall, sent: 0, work: None, small: bytes.to_vec(), data: Bytes::new(), tail: b"" };
    out.finish().await
}

fn ready_now<T>(poll: Poll<T>) -> Option<T> {
    match poll {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// RFC 9112 section 6, from the side of the sender.
fn frame(response: &mut Response, asked: &RequestFacts) -> Framing {
    let status = response.status;
    let exact = response.body.size_hint().exact();
    let fields = &mut response.fields;
    fields.remove(header::TRANSFER_ENCODING);
    if status.is_informational() || status == StatusCode::NO_CONTENT {
        fields.remove(header::CONTENT_LENGTH);
        return Framing::None;
    }
    let announced = fields.get(header::CONTENT_LENGTH).and_then(|value| value.to_str()?.parse().ok());
    if asked.head || status == StatusCode::NOT_MODIFIED {
        if let (true, None, Some(n @ 1..)) = (asked.head, announced, exact) {
            fields.insert_number(header::CONTENT_LENGTH, n);
        }
        return Framing::None;
    }
    match (announced, exact) {
        (Some(n), _) => Framing::Length(n),
        (None, Some(n)) => {
            fields.insert_number(header::CONTENT_LENGTH, n);
            Framing::Length(n)
        }
        (None, None) if asked.version == Version::HTTP_11 => Framing::Chunked,
        (None, None) => Framing::UntilClose,
    }
}
