//! A request on its way out: its head, and its body as it comes.

use std::{
    cell::Cell,
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame};
use tokio::{
    io::AsyncWrite as _,
    time::{Sleep, sleep},
};

use super::connect::Socket;
use crate::{
    clock::IdleTimer,
    message::{Body, BodyError},
    wire::{self, Framing},
};

/// How long a body is held back for a 100 that may never come (RFC 9110 section 10.1.1 leaves it open; curl waits as
/// long).
const CONTINUE: Duration = Duration::from_secs(1);

thread_local! {
    /// Where the heads of requests are written, one after the other.
    static HEAD: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The thread's buffer for the head of a request; empty.
pub fn head_buffer() -> Vec<u8> {
    HEAD.take()
}

fn keep_head_buffer(buffer: Vec<u8>) {
    HEAD.set(buffer);
}

/// The head and the body of a request on their way out.
pub struct Upload {
    stage: Stage,
    /// The head, or the line that opens a chunk; written before `data` and `tail`.
    small: Vec<u8>,
    written: usize,
    data: Bytes,
    tail: &'static [u8],
    body: Option<Body>,
    chunked: bool,
    moved: bool,
    /// Whether a byte has left.
    pub has_sent: bool,
    idle_timer: IdleTimer,
}

enum Stage {
    /// The body waits for a 100, or for this long.
    Held(Pin<Box<Sleep>>),
    Body,
    Done,
    Failed,
}

pub enum UploadError {
    /// The request's own body broke.
    Body(BodyError),
    /// The service takes no byte for too long.
    Stalled,
    /// The service closed its side.
    Refused,
}

impl Upload {
    /// The upload of a request whose head is written down.
    pub fn new(head: Vec<u8>, framing: Framing, expects_continue: bool, stall: Option<Duration>) -> Self {
        let stage = match framing {
            Framing::None | Framing::Length(0) => Stage::Done,
            _ if expects_continue => Stage::Held(Box::pin(sleep(CONTINUE))),
            _ => Stage::Body,
        };
        Self {
            stage,
            small: head,
            written: 0,
            data: Bytes::new(),
            tail: b"",
            body: None,
            chunked: framing == Framing::Chunked,
            moved: false,
            has_sent: false,
            idle_timer: IdleTimer::new(stall),
        }
    }

    /// The service wants the body. It is taken now: the same read may bring the answer, after which nobody has it.
    pub fn may_go(&mut self, body: &mut Option<Body>) {
        if self.is_held() {
            self.stage = Stage::Body;
            self.body = body.take();
        }
    }

    /// Whether the body still waits to be asked for.
    pub const fn is_held(&self) -> bool {
        matches!(self.stage, Stage::Held(_))
    }

    /// Whether all of it has been written.
    pub fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done) && self.is_written()
    }

    fn is_written(&self) -> bool {
        self.written == self.small.len() && self.data.is_empty() && self.tail.is_empty()
    }

    /// Whether anything moved since the last call.
    pub const fn has_moved(&mut self) -> bool {
        std::mem::replace(&mut self.moved, false)
    }

    /// Writes on; ready when all is written. The body is taken from `waiting` with the first bytes that leave.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut Socket,
        waiting: &mut Option<Body>,
    ) -> Poll<Result<(), UploadError>> {
        loop {
            if let Stage::Held(timer) = &mut self.stage
                && timer.as_mut().poll(cx).is_ready()
            {
                self.stage = Stage::Body;
            }
            // The first bytes of the body join the head in one write, if they are here.
            if matches!(self.stage, Stage::Body) && self.body.is_none() {
                self.body = waiting.take();
            }
            let more = self.poll_body(cx)?;
            if !self.is_written() {
                ready!(self.poll_write(cx, socket))?;
            } else if more.is_pending() {
                // What was written may still wait in the TLS layer. An error shows at the next write or read.
                let _ = Pin::new(&mut *socket).poll_flush(cx);
                return match self.stage {
                    Stage::Done => Poll::Ready(Ok(())),
                    Stage::Failed => Poll::Ready(Err(UploadError::Refused)),
                    Stage::Held(_) | Stage::Body => Poll::Pending,
                };
            }
        }
    }

    /// Takes the next frame of the body, where there is room for one. Pending means that nothing new is here.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UploadError>> {
        let (Stage::Body, Some(body)) = (&self.stage, &mut self.body) else { return Poll::Pending };
        if !self.data.is_empty() || !self.tail.is_empty() {
            return Poll::Pending;
        }
        let frame = match ready!(Pin::new(body).poll_frame(cx)).transpose() {
            Ok(frame) => frame,
            Err(error) => {
                // Asked again, it would say that it has ended, and the service would take what is cut for the whole.
                self.give_up();
                return Poll::Ready(Err(UploadError::Body(error)));
            }
        };
        self.moved = true;
        match frame.map(Frame::into_data) {
            Some(Ok(data)) if data.is_empty() => {}
            Some(Ok(data)) => {
                if self.chunked {
                    wire::chunk_head(&mut self.small, data.len());
                    self.tail = b"\r\n";
                }
                self.data = data;
            }
            Some(Err(frame)) => self.finish(frame.into_trailers().ok().as_ref()),
            None => self.finish(None),
        }
        Poll::Ready(Ok(()))
    }

    fn finish(&mut self, trailers: Option<&HeaderMap>) {
        self.stage = Stage::Done;
        self.body = None;
        if self.chunked {
            wire::last_chunk(&mut self.small, trailers);
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, socket: &mut Socket) -> Poll<Result<(), UploadError>> {
        while !self.is_written() {
            let small = &self.small[self.written..];
            let mut socket = Pin::new(&mut *socket);
            let wrote = if self.data.is_empty() && self.tail.is_empty() {
                // Most requests are a head only, and the kernel does less for `send` than for `writev`.
                socket.as_mut().poll_write(cx, small)
            } else {
                let slices = [small, &self.data, self.tail].map(std::io::IoSlice::new);
                socket.as_mut().poll_write_vectored(cx, &slices)
            };
            let n = match wrote {
                Poll::Ready(Ok(n)) if n > 0 => n,
                Poll::Ready(_) => {
                    self.give_up();
                    return Poll::Ready(Err(UploadError::Refused));
                }
                Poll::Pending => return self.idle_timer.poll(cx).map(|()| Err(UploadError::Stalled)),
            };
            self.idle_timer.moved();
            self.moved = true;
            self.has_sent = true;
            self.wrote(n);
        }
        self.small.clear();
        self.written = 0;
        if matches!(self.stage, Stage::Done) {
            // What waits for its answer owns no buffer; the next request of this thread writes its head here.
            keep_head_buffer(std::mem::take(&mut self.small));
        }
        Poll::Ready(Ok(()))
    }

    fn wrote(&mut self, n: usize) {
        let small = n.min(self.small.len() - self.written);
        self.written += small;
        let data = (n - small).min(self.data.len());
        self.data.advance(data);
        self.tail = &self.tail[n - small - data..];
    }

    /// Forgets what is left.
    fn give_up(&mut self) {
        self.stage = Stage::Failed;
        self.body = None;
        self.data = Bytes::new();
        self.tail = b"";
        self.small = Vec::new();
        self.written = 0;
    }
}
