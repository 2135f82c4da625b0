//! One request and its answer on one connection (RFC 9112 from the side of a client).
//!
//! The upload and the answer are driven together, so that an answer which comes early is seen at once: a service that
//! refuses a body should not be sent the rest of it.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, Uri, Version, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::{
    io::AsyncWrite as _,
    time::{Sleep, sleep},
};

use super::{Env, Lease, connect::UpstreamConnection, tunnel, websocket};
use crate::{
    clock::IdleTimer,
    config::plan,
    conn::{Phases, RequestObservers},
    error::{BoxError, Kind, ProxyError},
    message::{Body, BodyError, Fields, Request, Response, UpgradeHandler, Value},
    wire::{self, BodyDecoder, BodyFrame, Framing, HeadLimits, ResponseHead, WireError, head_len},
};

/// What an answer's head may weigh: as much as a request's could, and more fields than any of our services sends.
const ANSWER_HEAD: HeadLimits = HeadLimits { bytes: 64 * 1024, fields: 256, target: 0 };

/// How long a body is held back for a 100 that may never come (RFC 9110 section 10.1.1 leaves it open; curl waits as
/// long).
const CONTINUE: Duration = Duration::from_secs(1);

/// The thread's buffer for reading: what waits for an answer owns none. Services write in pieces of up to 64 KiB, and the
/// head stands before the first.
const SCRATCH: usize = 72 * 1024;

/// How much of a long body is read at once: eight TLS records, which go out in one write. A download of 10 MiB costs a
/// tenth less than with four, and as much as with sixteen.
const BODY_READ: usize = 128 * 1024;

/// So much or more keeps the buffer and leaves the thread a new one, which is cheaper than a copy; less is copied, so that
/// an answer of 1 KiB does not hold 72.
const BULK: usize = 32 * 1024;

thread_local! {
    static BUFFER: Cell<BytesMut> = Cell::new(BytesMut::new());
    /// Where the heads of requests are written, one after the other.
    static HEAD: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A request on its way, which may have to start again on another connection.
pub struct Outgoing {
    method: Method,
    uri: Uri,
    /// What the client speaks.
    client: Version,
    fields: Fields,
    body: Option<Body>,
    framing: Framing,
    websocket: bool,
    expects_continue: bool,
    onlookers: RequestObservers,
}

/// The answer.
pub struct ReceivedResponse(pub Response);

/// There is no answer.
pub struct SendError {
    /// Why.
    pub error: ProxyError,
    /// Whether the service cannot have seen more than a head, so that the request may be sent again elsewhere.
    pub may_repeat: bool,
}

impl Outgoing {
    /// A request that is ready to go.
    pub fn new(request: Request, onlookers: RequestObservers) -> Self {
        let Request { method, uri, version: client, mut fields, body } = request;
        let framing = match body.size_hint().exact() {
            Some(0) if fields.contains(header::CONTENT_LENGTH) => Framing::Length(0),
            Some(0) => Framing::None,
            Some(n) => Framing::Length(n),
            None => Framing::Chunked,
        };
        match framing {
            Framing::Length(n) => fields.insert_number(header::CONTENT_LENGTH, n),
            Framing::Chunked => {
                fields.remove(header::CONTENT_LENGTH);
                fields.insert(header::TRANSFER_ENCODING, Value::from_static("chunked"));
            }
            Framing::None | Framing::UntilClose => {}
        }
        let websocket = fields.contains(header::UPGRADE);
        let expects_continue = !body.is_empty() && wire::expects_continue(&fields);
        Self { method, uri, client, fields, body: Some(body), framing, websocket, expects_continue, onlookers }
    }

    /// Where the time of a dial is noted.
    pub fn phases(&self) -> &Phases {
        static NOBODY_ASKS: Phases = Phases::new();
        self.onlookers.phases.as_deref().unwrap_or(&NOBODY_ASKS)
    }

    /// Whether it asks for a WebSocket.
    pub const fn is_upgrade(&self) -> bool {
        self.websocket
    }

    /// The client that it is sent for.
    pub const fn client_ip(&self) -> Option<IpAddr> {
        self.onlookers.client
    }

    /// What stands in for a request whose body is with its upload already.
    fn nothing() -> Self {
        Self::new(Request::new(Body::empty()), RequestObservers::default())
    }

    fn head(&self) -> Vec<u8> {
        let mut out = HEAD.take();
        let target = self.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        wire::request_head(&mut out, &self.method, target.as_bytes(), &self.fields);
        out
    }

    /// Whether the body, if there is one, has not been asked for a byte.
    const fn is_untouched(&self) -> bool {
        self.body.is_some()
    }
}

/// Sends a request and waits for the head of its answer.
pub fn exchange<'a>(
    mut link: UpstreamConnection,
    outgoing: &'a mut Outgoing,
    plan: &'a plan::Upstream,
    env: &'a Env,
    lease: Lease,
) -> impl Future<Output = Result<ReceivedResponse, SendError>> + Send + 'a {
    let upload = Upload::new(outgoing, env.body_stall);
    link.patience.begin(plan.response_timeout);
    let mut exchange = Exchange { link, upload, scanned: 0, saw_bytes: false, heads: 0 };
    // A block and not an async fn, which would keep the connection twice; see [`Upstream::send`](super::Upstream::send).
    async move {
        let head = match poll_fn(|cx| exchange.poll(cx, outgoing)).await {
            Ok(head) => head,
            Err(error) => {
                // What may be done twice (RFC 9110 section 9.2.2), or has not been heard of once.
                let is_safe = outgoing.method.is_idempotent() || !exchange.upload.has_sent;
                let may_repeat = error.kind == Kind::Reset && !exchange.saw_bytes && outgoing.is_untouched() && is_safe;
                return Err(SendError { error, may_repeat });
            }
        };
        Ok(ReceivedResponse(match head.status {
            StatusCode::SWITCHING_PROTOCOLS => {
                upgraded(head, exchange.link, env, lease, outgoing.onlookers.phases.clone())
            }
            _ => exchange.respond(head, env, lease),
        }))
    }
}

/// The state between a request and the head of its answer.
struct Exchange {
    link: UpstreamConnection,
    upload: Upload,
    scanned: usize,
    saw_bytes: bool,
    /// Bytes of heads so far. Interim ones count as well, or a service could send them for ever.
    heads: usize,
}

impl Exchange {
    fn poll(&mut self, cx: &mut Context<'_>, outgoing: &mut Outgoing) -> Poll<Result<ResponseHead, ProxyError>> {
        match self.upload.poll(cx, &mut self.link, outgoing) {
            Poll::Ready(Err(UploadError::Body(error))) => return Poll::Ready(Err(client_fault(error))),
            Poll::Ready(Err(UploadError::Stalled)) => return Poll::Ready(Err(Kind::ResponseTimeout.into())),
            // A service that takes no more may have said why, so the answer is still read.
            Poll::Ready(Err(UploadError::Refused) | Ok(())) | Poll::Pending => {}
        }
        if self.upload.has_moved() {
            self.link.patience.moved();
        }
        loop {
            match head_len(&self.link.read, &mut self.scanned) {
                Ok(Some(len)) => match self.head(len, outgoing) {
                    Ok(Some(head)) => return Poll::Ready(Ok(head)),
                    // After an interim head, the next one starts from the beginning of what is left.
                    Ok(None) => {
                        self.scanned = 0;
                        cx.waker().wake_by_ref();
                    }
                    Err(error) => return Poll::Ready(Err(error)),
                },
                Ok(None) if self.link.read.len() > ANSWER_HEAD.bytes => {
                    return Poll::Ready(Err(nonsense("the head of the answer is too large")));
                }
                Ok(None) => match self.link.poll_borrow(cx) {
                    Poll::Ready(Ok(n)) if n > 0 => self.saw_bytes = true,
                    Poll::Ready(end) => return Poll::Ready(Err(hung_up(end.err()))),
                    Poll::Pending => {
                        self.link.give_back();
                        return self.link.patience.poll(cx).map(|()| Err(Kind::ResponseTimeout.into()));
                    }
                },
                Err(error) => return Poll::Ready(Err(ProxyError::new(Kind::BadResponse, error))),
            }
        }
    }

    /// A final head, or `None` after an interim one.
    fn head(&mut self, len: usize, outgoing: &mut Outgoing) -> Result<Option<ResponseHead>, ProxyError> {
        self.heads += len;
        if self.heads > ANSWER_HEAD.bytes {
            return Err(nonsense("the heads of the answer are too large"));
        }
        let mut head = wire::parse_response(&self.link.read[..len], &outgoing.method, &ANSWER_HEAD)
            .map_err(|error| ProxyError::new(Kind::BadResponse, error))?;
        self.link.read.advance(len);
        match head.status.as_u16() {
            100 => self.upload.may_go(outgoing),
            101 if !outgoing.websocket => return Err(nonsense("an upgrade that was not asked for")),
            101 if websocket::is_accepted(&outgoing.fields, outgoing.client, &head.fields) => return Ok(Some(head)),
            101 => return Err(nonsense("an upgrade without the proof that it answers this request")),
            102..=199 => {
                if let Some(interim) = &outgoing.onlookers.interim {
                    wire::strip_hop(&mut head.fields);
                    head.fields.remove(header::CONTENT_LENGTH);
                    head.fields.remove(header::ALT_SVC);
                    interim.push(head.status, &head.fields);
                }
            }
            _ => return Ok(Some(head)),
        }
        Ok(None)
    }

    /// The answer with the body that follows its head.
    fn respond(mut self, head: ResponseHead, env: &Env, lease: Lease) -> Response {
        let refused = head.status.is_client_error() || head.status.is_server_error();
        let whole = self.link.whole(head.framing);
        self.link.give_back();
        let (upload, keep) = match self.upload.is_done() {
            true => (None, head.keep_alive),
            // A service that has refused the request, or has not asked for a body that waits to be asked for (RFC 9110
            // section 10.1.1), or will close, or has said all: the upload is dropped, and with it the request's body,
            // so that its client is told to stop.
            false if refused || self.upload.is_held() || !head.keep_alive || whole.is_some() => (None, false),
            false => (Some(self.upload), true),
        };
        let body = match whole {
            Some(body) => {
                if keep && self.link.read.is_empty() {
                    lease.give_back(self.link);
                }
                body
            }
            None => Body::stream(Incoming {
                left: head.framing.length(),
                decoder: BodyDecoder::new(head.framing),
                end: Some((self.link, lease)),
                upload,
                keep,
                patience: IdleTimer::new(env.body_stall),
            }),
        };
        Response { status: head.status, fields: head.fields, body, takeover: None }
    }
}

/// The answer to an upgrade, with the tunnel that waits for its client side.
fn upgraded(
    head: ResponseHead,
    mut link: UpstreamConnection,
    env: &Env,
    lease: Lease,
    phases: Option<Arc<Phases>>,
) -> Response {
    let settings =
        tunnel::Settings { idle: env.tunnel_idle, drain: env.drain.clone(), open: env.tunnels.clone(), phases };
    link.give_back();
    let early = std::mem::take(&mut link.read).freeze();
    let takeover = UpgradeHandler::new(move |client, from_client| {
        Box::pin(async move {
            tunnel::run(client, from_client, link.socket, early, settings).await;
            drop((link.permit, lease));
        })
    });
    Response { status: head.status, fields: head.fields, body: Body::empty(), takeover: Some(takeover) }
}

/// The head and the body of a request on their way out.
struct Upload {
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
    has_sent: bool,
    patience: IdleTimer,
}

enum Stage {
    /// The body waits for a 100, or for this long.
    Held(Pin<Box<Sleep>>),
    Body,
    Done,
    SendError,
}

enum UploadError {
    /// The request's own body broke.
    Body(BodyError),
    /// The service takes no byte for too long.
    Stalled,
    /// The service closed its side.
    Refused,
}

impl Upload {
    fn new(outgoing: &Outgoing, stall: Option<Duration>) -> Self {
        let stage = match outgoing.framing {
            Framing::None | Framing::Length(0) => Stage::Done,
            _ if outgoing.expects_continue => Stage::Held(Box::pin(sleep(CONTINUE))),
            _ => Stage::Body,
        };
        Self {
            stage,
            small: outgoing.head(),
            written: 0,
            data: Bytes::new(),
            tail: b"",
            body: None,
            chunked: outgoing.framing == Framing::Chunked,
            moved: false,
            has_sent: false,
            patience: IdleTimer::new(stall),
        }
    }

    /// The service wants the body. It is taken now: the same read may bring the answer, after which nobody has it.
    fn may_go(&mut self, outgoing: &mut Outgoing) {
        if self.is_held() {
            self.stage = Stage::Body;
            self.body = outgoing.body.take();
        }
    }

    const fn is_held(&self) -> bool {
        matches!(self.stage, Stage::Held(_))
    }

    fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done) && self.is_written()
    }

    fn is_written(&self) -> bool {
        self.written == self.small.len() && self.data.is_empty() && self.tail.is_empty()
    }

    /// Whether anything moved since the last call.
    const fn has_moved(&mut self) -> bool {
        std::mem::replace(&mut self.moved, false)
    }

    /// Writes on; ready when all is written.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        link: &mut UpstreamConnection,
        outgoing: &mut Outgoing,
    ) -> Poll<Result<(), UploadError>> {
        loop {
            if let Stage::Held(timer) = &mut self.stage
                && timer.as_mut().poll(cx).is_ready()
            {
                self.stage = Stage::Body;
            }
            // The first bytes of the body join the head in one write, if they are here.
            if matches!(self.stage, Stage::Body) && self.body.is_none() {
                self.body = outgoing.body.take();
            }
            let more = self.poll_body(cx)?;
            if !self.is_written() {
                ready!(self.poll_write(cx, link))?;
            } else if more.is_pending() {
                // What was written may still wait in the TLS layer. An error shows at the next write or read.
                let _ = Pin::new(&mut link.socket).poll_flush(cx);
                return match self.stage {
                    Stage::Done => Poll::Ready(Ok(())),
                    Stage::SendError => Poll::Ready(Err(UploadError::Refused)),
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

    fn poll_write(&mut self, cx: &mut Context<'_>, link: &mut UpstreamConnection) -> Poll<Result<(), UploadError>> {
        while !self.is_written() {
            let small = &self.small[self.written..];
            let mut socket = Pin::new(&mut link.socket);
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
                Poll::Pending => return self.patience.poll(cx).map(|()| Err(UploadError::Stalled)),
            };
            self.patience.moved();
            self.moved = true;
            self.has_sent = true;
            self.wrote(n);
        }
        self.small.clear();
        self.written = 0;
        if matches!(self.stage, Stage::Done) {
            // What waits for its answer owns no buffer; the next request of this thread writes its head here.
            HEAD.set(std::mem::take(&mut self.small));
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
        self.stage = Stage::SendError;
        self.body = None;
        self.data = Bytes::new();
        self.tail = b"";
        self.small = Vec::new();
        self.written = 0;
    }
}

/// The body of an answer, read from its connection as its reader asks for it.
struct Incoming {
    decoder: BodyDecoder,
    left: Option<u64>,
    /// The connection, until the body ends; then it goes back to the pool or is closed.
    end: Option<(UpstreamConnection, Lease)>,
    /// What the request still has to say, where the service answers while it listens.
    upload: Option<Upload>,
    keep: bool,
    patience: IdleTimer,
}

impl Incoming {
    fn finish(&mut self) {
        let done = self.upload.take().is_none_or(|upload| upload.is_done());
        if let Some((link, lease)) = self.end.take()
            && self.keep
            && done
            && link.read.is_empty()
        {
            lease.give_back(link);
        }
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<BodyFrame, BodyError>> {
        let Some((link, _)) = &mut self.end else { return Poll::Ready(Ok(BodyFrame::End)) };
        if let Some(upload) = &mut self.upload {
            // Its errors are not the answer's: whatever the service still says is passed on.
            let _ = upload.poll(cx, link, &mut Outgoing::nothing());
        }
        loop {
            match self.decoder.decode(&mut link.read) {
                Ok(Some(piece)) => return Poll::Ready(Ok(piece)),
                Ok(None) => {}
                Err(_malformed) => return Poll::Ready(Err(BodyError::Truncated)),
            }
            let wanted = self.decoder.remaining().unwrap_or(0);
            match link.poll_fill(cx, wanted) {
                Poll::Ready(Ok(n)) if n > 0 => self.patience.moved(),
                Poll::Ready(Ok(_)) if self.decoder.may_end_here() => return Poll::Ready(Ok(BodyFrame::End)),
                Poll::Ready(_) => return Poll::Ready(Err(BodyError::Truncated)),
                Poll::Pending => return self.patience.poll(cx).map(|()| Err(BodyError::Stalled)),
            }
        }
    }
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(match ready!(self.poll_piece(cx)) {
            Ok(BodyFrame::Data(data)) => {
                if let Some(left) = &mut self.left {
                    *left -= data.len() as u64;
                }
                if self.decoder.is_done() {
                    self.finish();
                }
                Some(Ok(Frame::data(data)))
            }
            Ok(BodyFrame::Trailers(trailers)) => {
                self.finish();
                Some(Ok(Frame::trailers(trailers)))
            }
            Ok(BodyFrame::End) => {
                self.finish();
                None
            }
            Err(error) => {
                self.end = None;
                Some(Err(error))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.end.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl UpstreamConnection {
    /// Reads more. With at least [`BULK`] bytes of a body `wanted` they go into room of the link's own, which is used again
    /// once its last bytes have been passed on; else they come through the thread's buffer, so that a link which waits
    /// owns nothing.
    fn poll_fill(&mut self, cx: &mut Context<'_>, wanted: u64) -> Poll<std::io::Result<usize>> {
        if wanted >= BULK as u64 {
            self.read.reserve(BODY_READ);
            let mut room = (&mut self.read).limit(BODY_READ);
            return tokio_util::io::poll_read_buf(Pin::new(&mut self.socket), cx, &mut room);
        }
        let mut buffer = BUFFER.take();
        buffer.reserve(SCRATCH);
        let read = tokio_util::io::poll_read_buf(Pin::new(&mut self.socket), cx, &mut buffer);
        if buffer.len() >= BULK && self.read.is_empty() {
            self.read = buffer;
        } else {
            self.read.extend_from_slice(&buffer);
            buffer.clear();
            BUFFER.set(buffer);
        }
        read
    }

    /// Reads more into the thread's buffer, which the link has from then on until it gives it back: a head is read where
    /// it arrives, and a small body copied out of there once.
    fn poll_borrow(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        if !self.lent {
            let mut buffer = BUFFER.take();
            buffer.extend_from_slice(&self.read);
            self.read = buffer;
            self.lent = true;
        }
        self.read.reserve(SCRATCH);
        tokio_util::io::poll_read_buf(Pin::new(&mut self.socket), cx, &mut self.read)
    }

    /// Gives the thread's buffer back, and keeps what is in it.
    fn give_back(&mut self) {
        if std::mem::take(&mut self.lent) && self.read.len() < BULK {
            let kept = BytesMut::from(&self.read[..]);
            let mut buffer = std::mem::replace(&mut self.read, kept);
            buffer.clear();
            BUFFER.set(buffer);
        }
    }

    /// The first `len` bytes. When nothing is left, neither is the buffer.
    fn take(&mut self, len: usize) -> Bytes {
        if self.lent && len < BULK {
            let taken = Bytes::copy_from_slice(&self.read[..len]);
            self.read.advance(len);
            return taken;
        }
        // A large body takes the thread's buffer along.
        self.lent = false;
        if len == self.read.len() { std::mem::take(&mut self.read).freeze() } else { self.read.split_to(len).freeze() }
    }

    /// The body, if all of it has arrived with the head.
    fn whole(&mut self, framing: Framing) -> Option<Body> {
        match framing {
            Framing::None | Framing::Length(0) => Some(Body::empty()),
            Framing::Length(n) if self.read.len() as u64 >= n => {
                usize::try_from(n).ok().map(|n| Body::full(self.take(n)))
            }
            Framing::Chunked => self.whole_chunked(),
            Framing::Length(_) | Framing::UntilClose => None,
        }
    }

    /// Small answers of Synapse are chunked and arrive in one piece: one chunk and the end.
    fn whole_chunked(&mut self) -> Option<Body> {
        if !self.read.ends_with(b"\r\n0\r\n\r\n") {
            return None;
        }
        let mut rest = self.read.clone();
        let mut decoder = BodyDecoder::new(Framing::Chunked);
        let Ok(Some(BodyFrame::Data(data))) = decoder.decode(&mut rest) else { return None };
        let Ok(Some(BodyFrame::End)) = decoder.decode(&mut rest) else { return None };
        self.read.clear();
        self.give_back();
        self.read = rest;
        Some(Body::full(data))
    }
}

fn nonsense(what: &'static str) -> ProxyError {
    ProxyError::new(Kind::BadResponse, WireError::Malformed(what))
}

fn hung_up(cause: Option<std::io::Error>) -> ProxyError {
    let cause: BoxError = cause.map_or_else(|| WireError::Malformed("closed without an answer").into(), Into::into);
    ProxyError::new(Kind::Reset, cause)
}

/// The request's body broke: its client, and not the service, is why.
fn client_fault(error: BodyError) -> ProxyError {
    let kind = match error {
        BodyError::Truncated | BodyError::Cancelled => Kind::ClientGone,
        BodyError::Malformed => Kind::BadRequest("the body is malformed"),
        BodyError::Stalled => Kind::BodyTooSlow,
        BodyError::TooLarge => Kind::BodyTooLarge,
    };
    ProxyError::new(kind, error)
}
