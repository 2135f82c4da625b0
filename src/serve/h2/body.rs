//! The body of a request that comes by HTTP/2.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

use crate::{body::BodyError, clock::Patience};

/// How long a stream is held whose body nobody wants.
const HOLD: Duration = Duration::from_secs(1);

/// A request body that is still arriving.
pub struct Upload {
    /// Taken only by drop.
    inner: Option<RecvStream>,
    /// What is to come, where the client has said so; h2 holds it to that.
    left: Option<u64>,
    no_more_data: bool,
    stall: Patience,
    tasks: TaskTracker,
}

impl Upload {
    /// The body of the request with these fields.
    pub fn new(inner: RecvStream, headers: &HeaderMap, stall: Option<Duration>, tasks: TaskTracker) -> Self {
        let left = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        Self { inner: Some(inner), left, no_more_data: false, stall: Patience::new(stall), tasks }
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        if !self.no_more_data {
            match ready!(inner.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Whoever asked for it has it; an error only says that the stream is reset, which the next poll
                    // says too.
                    let _ = inner.flow_control().release_capacity(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                // Reset for whatever reason: only END_STREAM says that this was all.
                Some(Err(_)) => return Poll::Ready(Some(Err(BodyError::Truncated))),
                None => self.no_more_data = true,
            }
        }
        Poll::Ready(match ready!(inner.poll_trailers(cx)) {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(_) => Some(Err(BodyError::Truncated)),
        })
    }
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.poll_inner(cx) {
            Poll::Ready(frame) => {
                self.stall.moved();
                Poll::Ready(frame)
            }
            Poll::Pending => self.stall.poll(cx).map(|()| Some(Err(BodyError::Stalled))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(RecvStream::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Upload {
    /// Nobody wants the rest. Dropped at once, h2 would send RST_STREAM(NO_ERROR) right behind the answer (RFC 9113
    /// section 8.1), and clients that still write take it for a failure and forget the answer (curl before 8). So the
    /// stream is held for a moment: its window fills, the client reads why, and most stop by themselves. What is held
    /// is bounded by the window of the connection.
    fn drop(&mut self) {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let over = self.is_end_stream() || matches!(self.poll_inner(&mut cx), Poll::Ready(None | Some(Err(_))));
        let Some(inner) = self.inner.take() else { return };
        if !over {
            self.tasks.spawn(async move {
                sleep(HOLD).await;
                drop(inner);
            });
        }
    }
}
