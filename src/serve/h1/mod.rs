//! HTTP/1.1 towards clients (RFC 9112), one task a connection.
//!
//! The request body that a handler reads and the response that this file writes share one stream. Both are polled by the
//! task of the connection, so the lock around it is never waited for; it is there because bodies may be sent to another
//! thread as far as the compiler knows.

mod body;
mod stream;
mod write;

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
};

use bytes::Bytes;
use http::{Method, StatusCode, Version};
use tokio::time::{Instant, sleep_until, timeout_at};

use self::{
    body::Incoming,
    stream::{ReadEvent, Shared, Stream},
    write::{ResponseWriter, Truncated},
};
use super::{FIRST_REQUEST, Handler, Settings, normalize};
use crate::{
    clock::IdleTimer,
    conn::ConnInfo,
    drain::{Drain, InFlight, Kind as Work, Phase, PhaseWatch},
    error::{Kind, ProxyError},
    message::{Body, ClientIo, Request, Response, UpgradeHandler},
    wire::{self, Framing, RequestHead, WireError},
};

/// A client's stream that has become a tunnel.
pub struct Upgrade<IO> {
    io: IO,
    early: Bytes,
    takeover: UpgradeHandler,
}

impl<IO: ClientIo> Upgrade<IO> {
    /// Runs the tunnel to its end.
    pub async fn run(self) {
        self.takeover.run(Box::new(self.io), self.early).await;
    }
}

/// What comes after an exchange.
enum Next<IO> {
    Request,
    Close,
    Upgrade(Upgrade<IO>),
}

/// Serves requests until the connection ends or becomes a tunnel.
pub async fn serve<IO: ClientIo, H: Handler>(
    io: IO,
    conn: Arc<ConnInfo>,
    handler: H,
    settings: Arc<Settings>,
    drain: Drain,
) -> Option<Upgrade<IO>> {
    let server = Server { stream: Shared::new(Stream::new(io)), conn, handler, settings, drain };
    let mut phase = server.drain.watch();
    let mut idle = IdleTimer::new(None);
    let mut grace = Some(Instant::now() + FIRST_REQUEST);
    loop {
        let head = server.next_head(&mut phase, &mut idle, grace.take()).await?;
        // Boxed: a waiting connection should not own the room that an exchange needs.
        match Box::pin(server.exchange(head)).await {
            Next::Request => {}
            Next::Close => return None,
            Next::Upgrade(upgrade) => return Some(upgrade),
        }
    }
}

struct Server<IO, H> {
    stream: Shared<IO>,
    conn: Arc<ConnInfo>,
    handler: H,
    settings: Arc<Settings>,
    drain: Drain,
}

/// A head that was read, or why it is refused.
type Head = Result<RequestHead, Refused>;

/// Why a request is refused, and its target as far as it could be read.
type Refused = (ProxyError, Option<String>);

impl<IO: ClientIo, H: Handler> Server<IO, H> {
    /// Waits for a request and reads its head; `None` when the connection ends without one. Until `grace`, the first
    /// request of a new connection is waited for even when the process closes.
    async fn next_head(
        &self,
        phase: &mut PhaseWatch<'_>,
        idle: &mut IdleTimer,
        grace: Option<Instant>,
    ) -> Option<Head> {
        if self.stream.lock().is_empty() {
            // Who has just connected is given the time of a head and not that of an idle connection: it came to ask.
            idle.begin(if grace.is_some() { self.settings.header } else { self.settings.keep_alive });
            let mut timer = None;
            let arrived = poll_fn(|cx| {
                // What has arrived is served even when the drain begins at the same moment.
                let read = self.stream.lock().poll_head(cx, &self.settings.head);
                if let Poll::Ready(read) = read {
                    return Poll::Ready(read.unwrap_or(ReadEvent::End));
                }
                if idle.poll(cx).is_ready() {
                    return Poll::Ready(ReadEvent::End);
                }
                if phase.poll(cx) < Phase::Closing {
                    return Poll::Pending;
                }
                let Some(grace) = grace else { return Poll::Ready(ReadEvent::End) };
                timer.get_or_insert_with(|| Box::pin(sleep_until(grace))).as_mut().poll(cx).map(|()| ReadEvent::End)
            });
            match arrived.await {
                ReadEvent::Head(head) => return Some(Ok(head)),
                ReadEvent::Bytes => {}
                ReadEvent::End => {
                    self.stream.shutdown().await;
                    return None;
                }
            }
        }
        // Nearly always all of it is here, and nothing has to be timed.
        let mut scanned = 0;
        if let Some(head) = self.whole_head(&mut scanned) {
            return Some(head);
        }
        let limit = self.settings.header.map(|limit| Instant::now() + limit);
        match deadline(limit, self.read_head(scanned)).await {
            Some(head) => head,
            None => Some(Err((Kind::HeadTooSlow.into(), self.stream.lock().target()))),
        }
    }

    /// Reads on until the head is whole.
    async fn read_head(&self, mut scanned: usize) -> Option<Head> {
        loop {
            match self.stream.fill().await {
                Ok(n) if n > 0 => {}
                // Gone in the middle of a head: nobody is left to tell.
                _ => return None,
            }
            if let Some(head) = self.whole_head(&mut scanned) {
                return Some(head);
            }
        }
    }

    /// The head, if it has arrived, or why it never will.
    fn whole_head(&self, scanned: &mut usize) -> Option<Head> {
        // Named, so that the lock is free again in the arms below.
        let taken = self.stream.lock().take_head(scanned, &self.settings.head);
        match taken {
            Ok(head) => head.map(Ok),
            Err(error) => Some(Err((refusal(error), self.stream.lock().target()))),
        }
    }

    /// One request and its answer.
    fn exchange(&self, head: Head) -> impl Future<Output = Next<IO>> + use<'_, IO, H> {
        let settled = head.and_then(|head| self.settle(head));
        // Not an async fn, and what is rare is boxed: the future stays under the KiB up to which the allocator is quick.
        async move {
            let (request, asked, mut work) = match settled {
                Ok(settled) => settled,
                Err((error, target)) => return Box::pin(self.refuse(error, target)).await,
            };
            let answered = {
                let mut handling = pin!(self.handler.handle(request, &self.conn, self.stream.client_side()));
                poll_fn(|cx| {
                    if let Poll::Ready(response) = handling.as_mut().poll(cx) {
                        return Poll::Ready(Waited::ResponseWriter(response));
                    }
                    if work.poll_expired(cx).is_ready() {
                        return Poll::Ready(Waited::Expired);
                    }
                    let mut stream = self.stream.lock();
                    stream.send_interim(cx);
                    // A client that leaves takes its request with it: dropping the handler cancels what goes on
                    // upstream.
                    stream.poll_watch(cx).map(|_gone| Waited::Gone)
                })
                .await
            };
            match answered {
                Waited::ResponseWriter(response) if response.status == StatusCode::SWITCHING_PROTOCOLS => {
                    Box::pin(self.upgrade(response)).await
                }
                Waited::ResponseWriter(response) => {
                    work.answers();
                    let (writing, close) = self.answer(response, &asked, &mut work);
                    match writing.await {
                        Ok(()) => self.next(close).await,
                        // Dropping the stream without a closing handshake is how a cut answer looks cut.
                        Err(Truncated) => Next::Close,
                    }
                }
                Waited::Expired => {
                    work.end();
                    // The end of the connection before a byte of an answer: every client asks again (RFC 9110 section 9.2.2).
                    self.stream.shutdown().await;
                    Next::Close
                }
                Waited::Gone => Next::Close,
            }
        }
    }

    /// What a head asks for, and what of that matters to the writing of the answer.
    fn settle(&self, mut head: RequestHead) -> Result<(Request, RequestFacts, InFlight<'_>), Refused> {
        self.settings.count_dropped(head.dropped);
        if let Err(kind) = normalize::http1(&mut head) {
            let target = head.target.path_and_query().map(|target| target.as_str().to_owned());
            return Err((kind.into(), target));
        }
        let asked = RequestFacts::of(&head);
        self.stream.lock().begin_body(head.framing, &asked);
        let work = self.drain.begin(Work::of(&head.method, has_body(&head)));
        Ok((self.request(head), asked, work))
    }

    fn request(&self, head: RequestHead) -> Request {
        let body = if has_body(&head) {
            Body::stream(Incoming::new(self.stream.clone(), head.framing, self.settings.body_stall))
        } else {
            Body::empty()
        };
        let RequestHead { method, target: uri, version, fields, .. } = head;
        Request { method, uri, version, fields, body }
    }

    /// Begins to write the answer; and whether the connection is to be closed after it.
    fn answer<'a, 'b>(
        &'a self,
        mut response: Response,
        asked: &RequestFacts,
        work: &'a mut InFlight<'b>,
    ) -> (impl Future<Output = Result<(), Truncated>> + use<'a, 'b, IO, H>, bool) {
        let close = !asked.keep_alive || self.drain.has_begun() || !self.stream.lock().may_skip_body();
        self.stream.lock().answers();
        let answer = ResponseWriter::new(&mut response, asked, close, &self.settings);
        let close = close || answer.ends_by_close();
        (answer.write(response.body, &self.stream, &self.settings, Some(work)), close)
    }

    /// What comes after an answer that has been written.
    async fn next(&self, close: bool) -> Next<IO> {
        let skipped = self.stream.lock().skip_body();
        match (skipped, close) {
            (true, false) => return Next::Request,
            (true, true) if !self.stream.lock().has_unread() => self.stream.shutdown().await,
            _ => self.stream.linger(self.drain.reached(Phase::Closing)).await,
        }
        Next::Close
    }

    async fn upgrade(&self, mut response: Response) -> Next<IO> {
        let Some(takeover) = response.takeover.take() else {
            let error = ProxyError::from(Kind::BadResponse);
            return self.refuse(error, None).await;
        };
        let mut out = Vec::new();
        wire::response_head(&mut out, response.status, &response.fields);
        if write::all(&self.stream, &out, self.settings.body_stall).await.is_err() {
            return Next::Close;
        }
        match self.stream.take() {
            Some((io, early)) => Next::Upgrade(Upgrade { io, early, takeover }),
            None => Next::Close,
        }
    }

    /// Answers what is no request, and closes: after a framing error nobody knows where the next request begins.
    async fn refuse(&self, error: ProxyError, target: Option<String>) -> Next<IO> {
        let mut response = self.handler.refuse(error, target.as_deref(), &self.conn);
        let asked = RequestFacts::nothing();
        let answer = ResponseWriter::new(&mut response, &asked, true, &self.settings);
        let written = answer.write(response.body, &self.stream, &self.settings, None).await;
        if written.is_ok() {
            self.stream.linger(self.drain.reached(Phase::Closing)).await;
        }
        Next::Close
    }
}

/// What has come of a request while its answer was waited for.
enum Waited {
    ResponseWriter(Response),
    /// The process ends, and waits for it no longer.
    Expired,
    /// The client has left.
    Gone,
}

const fn has_body(head: &RequestHead) -> bool {
    !matches!(head.framing, Framing::None | Framing::Length(0))
}

/// What of a request matters to the writing of its answer.
pub struct RequestFacts {
    version: Version,
    head: bool,
    keep_alive: bool,
    expects_continue: bool,
    takes_trailers: bool,
}

impl RequestFacts {
    fn of(head: &RequestHead) -> Self {
        let new = head.version == Version::HTTP_11;
        Self {
            version: head.version,
            head: head.method == Method::HEAD,
            keep_alive: head.keep_alive,
            expects_continue: new && wire::expects_continue(&head.fields),
            takes_trailers: new,
        }
    }

    const fn nothing() -> Self {
        Self {
            version: Version::HTTP_11,
            head: false,
            keep_alive: false,
            expects_continue: false,
            takes_trailers: false,
        }
    }
}

fn refusal(error: WireError) -> ProxyError {
    match error {
        WireError::Malformed(what) => Kind::BadRequest(what).into(),
        WireError::TargetTooLong => Kind::TargetTooLong.into(),
        WireError::HeadTooLarge => Kind::HeadTooLarge.into(),
    }
}

/// The outcome, or `None` when the instant passes first.
async fn deadline<F: Future>(at: Option<Instant>, future: F) -> Option<F::Output> {
    match at {
        Some(at) => timeout_at(at, future).await.ok(),
        None => Some(future.await),
    }
}
