//! One event per exchange, written when its last byte has gone or its client has: who, what, how long, how it ended.

use std::{
    borrow::Cow,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Method, StatusCode, Version, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;
use tracing::info;

use crate::{
    clock::Clock,
    config::plan::{ClientIpLog, Kind as SiteKind},
    conn::{AbortReason, ClientHandle, ConnInfo, Phase, Phases, TunnelEnd},
    error::{Fault, Kind, ProxyError, chain},
    message::{Body, BodyError, Request, Response, UpgradeHandler},
    telemetry::{Metrics, RecentError, SiteNumbers, redact_target},
};

/// Starts the record of every exchange.
#[derive(Clone)]
pub struct AccessLog {
    write: bool,
    client_ip: ClientIpLog,
    /// The numbers of what is for no site.
    nowhere: SiteNumbers,
}

impl AccessLog {
    /// A log that counts, and writes if it is asked to.
    #[must_use]
    pub fn new(write: bool, client_ip: ClientIpLog, metrics: &Metrics) -> Self {
        Self { write, client_ip, nowhere: metrics.of_site("".into()) }
    }

    /// Starts the record of an exchange.
    #[must_use]
    pub fn begin(
        &self,
        request: &mut Request,
        conn: &Arc<ConnInfo>,
        client: IpAddr,
        client_side: &ClientHandle,
        id: &str,
    ) -> Exchange {
        let entry = self.write.then(|| {
            let sent = Arc::new(AtomicU64::new(0));
            count(&mut request.body, &sent);
            let phases = Arc::new(Phases::default());
            let host = request.fields.get(header::HOST).and_then(|host| host.to_str());
            Box::new(Entry {
                client: self.client_ip.apply(client),
                client_side: Some(client_side.clone()),
                host: host.unwrap_or_default().to_owned(),
                target: request.target().to_owned(),
                version: request.version,
                tls: conn.tls.as_ref().map(|tls| tls.version),
                id: id.to_owned(),
                bytes_in: sent,
                bytes_out: Arc::default(),
                upstream: None,
                phases,
            })
        });
        Exchange(Some(Open {
            entry,
            began: Instant::now(),
            method: request.method.clone(),
            site: self.nowhere.clone(),
            ended: End::ClientLeft,
            cause: None,
            status: None,
            head: None,
            is_call: false,
        }))
    }

    /// Records what never became a request.
    pub fn refused(&self, error: &ProxyError, target: Option<&str>, conn: &ConnInfo, id: &str) {
        let status = error.kind.status();
        self.nowhere.answered(&Method::default(), status, std::time::Duration::ZERO);
        if self.write {
            let client = self.client_ip.apply(conn.client.ip()).map(tracing::field::display);
            let target = redact_target(target.unwrap_or_default());
            info!(target: "access", client, uri = %target, status = status.as_u16(), request_id = id, reason = error.kind.word(), ended_by = "client", "refused");
        }
    }
}

/// What is written of an exchange, as far as it is known from its request.
struct Entry {
    client: Option<IpAddr>,
    /// Until the exchange becomes a tunnel, which has an end of its own.
    client_side: Option<ClientHandle>,
    host: String,
    target: String,
    version: Version,
    tls: Option<&'static str>,
    id: String,
    bytes_in: Arc<AtomicU64>,
    bytes_out: Arc<AtomicU64>,
    upstream: Option<Arc<str>>,
    phases: Arc<Phases>,
}

/// The record of one exchange. Dropped before [`finish`](Self::finish), it says that the client left.
pub struct Exchange(Option<Open>);

struct Open {
    entry: Option<Box<Entry>>,
    began: Instant,
    method: Method,
    site: SiteNumbers,
    ended: End,
    /// The causes of a failure, for the log.
    cause: Option<String>,
    status: Option<StatusCode>,
    head: Option<std::time::Duration>,
    /// A tunnel that it becomes is a call: it leads to an SFU.
    is_call: bool,
}

/// How an exchange ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Complete,
    Failed(Kind),
    Cut(BodyError),
    Tunnel(TunnelEnd),
    ClientLeft,
}

impl Exchange {
    /// The site that the request is for.
    pub fn at_site(&mut self, site: &SiteNumbers) {
        if let Some(open) = &mut self.0 {
            open.site = site.clone();
        }
    }

    /// The upstream that the request goes to, and what it is.
    pub fn to_upstream(&mut self, upstream: &Arc<str>, kind: SiteKind) {
        if let Some(open) = &mut self.0 {
            open.is_call = kind == SiteKind::Livekit;
        }
        if let Some(entry) = self.0.as_mut().and_then(|open| open.entry.as_mut()) {
            entry.upstream = Some(upstream.clone());
        }
    }

    /// Where the times of a dial and the bytes of a tunnel are noted, if they will be written.
    #[must_use]
    pub fn phases(&self) -> Option<Arc<Phases>> {
        self.0.as_ref().and_then(|open| open.entry.as_ref()).map(|entry| entry.phases.clone())
    }

    /// The head of the answer is known. The record is written when its body has ended.
    #[must_use]
    pub fn finish(mut self, mut response: Response, error: Option<&ProxyError>, id: &str) -> Response {
        let Some(mut open) = self.0.take() else { return response };
        let head = open.began.elapsed();
        open.site.answered(&open.method, response.status, head);
        open.status = Some(response.status);
        open.head = Some(head);
        if let Some(error) = error {
            open.ended = End::Failed(error.kind);
            if open.entry.is_some() {
                open.cause = error.source.as_ref().map(|source| chain(&**source));
            }
        }
        if response.status.is_server_error() {
            let reason = error.map_or_else(|| "the service answered so".to_owned(), |error| chain(error));
            open.failed(id, response.status, reason);
        }
        if let Some(tunnel) = response.takeover.take() {
            if let Some(entry) = &mut open.entry {
                entry.client_side = None;
            }
            let counted = open.site.tunnel(open.is_call);
            response.takeover = Some(UpgradeHandler::new(move |io, early| {
                Box::pin(async move {
                    // Named, so that the whole record moves in here and is written when the tunnel ends.
                    let (mut open, _counted) = (open, counted);
                    tunnel.run(io, early).await;
                    open.count_tunnel();
                })
            }));
            return response;
        }
        let Some(entry) = &open.entry else {
            // Nothing will be written, so nothing has to be watched.
            open.ended = End::Complete;
            return response;
        };
        let bytes_out = entry.bytes_out.clone();
        if open.method == Method::HEAD || response.body.is_empty() {
            open.complete();
            return response;
        }
        if let Some(bytes) = response.body.as_full() {
            bytes_out.store(bytes.len() as u64, Ordering::Relaxed);
        }
        match response.body.as_full() {
            Some(_) => open.complete(),
            None => {
                let inner = std::mem::take(&mut response.body);
                response.body = Body::stream(LoggedBody { inner, open });
            }
        }
        response
    }
}

impl Open {
    fn complete(&mut self) {
        if self.ended == End::ClientLeft {
            self.ended = End::Complete;
        }
    }

    /// Keeps an error for those who watch.
    fn failed(&self, id: &str, status: StatusCode, reason: String) {
        let target = self.entry.as_ref().map_or("", |entry| &entry.target);
        self.site.failed(RecentError {
            at: Clock::system().now().into(),
            request_id: id.to_owned(),
            site: self.site.name().to_owned(),
            method: self.method.to_string(),
            uri: redact_target(target).into_owned(),
            status: status.as_u16(),
            reason,
        });
    }

    fn count_tunnel(&mut self) {
        let Some(entry) = &self.entry else { return };
        let moved = entry.phases.tunnelled();
        entry.bytes_in.fetch_add(moved.upwards.load(Ordering::Relaxed), Ordering::Relaxed);
        entry.bytes_out.fetch_add(moved.downwards.load(Ordering::Relaxed), Ordering::Relaxed);
        if self.ended == End::ClientLeft {
            self.ended = moved.end().map_or(End::ClientLeft, End::Tunnel);
        }
    }

    /// Who ended the exchange, why where it is worth a word, and which phase failed.
    fn ending(
        &self,
        phases: &Phases,
        cut: Option<AbortReason>,
    ) -> (&'static str, Option<&'static str>, Option<&'static str>) {
        let unfinished = if self.status.is_some() { "body" } else { "head" };
        match self.ended {
            End::Complete => ("end", None, None),
            End::ClientLeft if self.site.is_cut() => ("drain", Some("drain"), Some(unfinished)),
            End::ClientLeft => match cut {
                Some(AbortReason::Stalled) => ("limit", Some("client_stalled"), Some(unfinished)),
                Some(AbortReason::ExcessiveLoad) => ("limit", Some("excessive_load"), Some(unfinished)),
                Some(AbortReason::ProtocolError) => ("client", Some("protocol_error"), Some(unfinished)),
                None => ("client", Some("client_gone"), Some(unfinished)),
            },
            End::Cut(BodyError::Stalled) => ("limit", Some("body_stalled"), Some("body")),
            End::Cut(BodyError::TooLarge) => ("limit", Some("body_too_large"), Some("body")),
            End::Cut(_) => ("upstream", Some("body_cut_short"), Some("body")),
            End::Tunnel(TunnelEnd::Client) => ("client", None, None),
            End::Tunnel(TunnelEnd::Service) => ("upstream", None, None),
            End::Tunnel(TunnelEnd::Idle) => ("limit", Some("tunnel_idle"), None),
            End::Tunnel(TunnelEnd::Drain) => ("drain", Some("drain"), None),
            End::Failed(kind) => {
                let by = match kind.fault() {
                    _ if kind.is_limit() => "limit",
                    Fault::Client => "client",
                    Fault::Upstream => "upstream",
                    Fault::Proxy => "edge",
                };
                (by, Some(kind.word()), failed_phase(kind, phases))
            }
        }
    }

    fn write(&self, entry: &Entry) {
        let cut = entry.client_side.as_ref().and_then(|client| client.cut());
        let (ended_by, reason, failed) = self.ending(&entry.phases, cut);
        let status = match (self.ended, self.status) {
            (End::ClientLeft, None) if !self.site.is_cut() && cut.is_none() => 499,
            (_, status) => status.map_or(0, |status| status.as_u16()),
        };
        let millis = |time: std::time::Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        let total = self.began.elapsed();
        info!(
            target: "access",
            client = entry.client.map(tracing::field::display),
            protocol = ?entry.version,
            tls = entry.tls,
            method = %self.method,
            host = entry.host,
            uri = %redact_target(&entry.target),
            site = self.site.name(),
            upstream = entry.upstream.as_deref(),
            status,
            bytes_in = entry.bytes_in.load(Ordering::Relaxed),
            bytes_out = entry.bytes_out.load(Ordering::Relaxed),
            dns_ms = entry.phases.get(Phase::Dns).map(millis),
            connect_ms = entry.phases.get(Phase::Connect).map(millis),
            tls_ms = entry.phases.get(Phase::Tls).map(millis),
            head_ms = self.head.map(millis),
            body_ms = self.head.map(|head| millis(total.saturating_sub(head))),
            total_ms = millis(total),
            request_id = entry.id,
            ended_by,
            reason,
            failed,
            error = self.cause.as_deref(),
            "{} {}",
            status,
            Cow::Borrowed(self.method.as_str()),
        );
    }
}

/// Which part of an exchange failed; nothing, where the request itself was at fault.
fn failed_phase(kind: Kind, phases: &Phases) -> Option<&'static str> {
    match kind {
        Kind::Connect | Kind::ConnectTimeout => Some(match phases.last() {
            Some(Phase::Dns) => "dns",
            Some(Phase::Tls) => "tls",
            Some(Phase::Connect) | None => "connect",
        }),
        Kind::Reset | Kind::BadResponse | Kind::ResponseTimeout => Some("head"),
        Kind::BodyTooSlow => Some("body"),
        _ => None,
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            let read = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
            self.site.moved(read(&entry.bytes_in), read(&entry.bytes_out));
            self.write(&entry);
        }
    }
}

/// An answer whose end is awaited.
struct LoggedBody {
    inner: Body,
    open: Open,
}

impl HttpBody for LoggedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let frame = std::task::ready!(Pin::new(&mut this.inner).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(data), Some(entry)) = (frame.data_ref(), &this.open.entry) {
                    entry.bytes_out.fetch_add(data.len() as u64, Ordering::Relaxed);
                }
                if this.inner.is_end_stream() {
                    this.open.complete();
                }
            }
            Some(Err(error)) => this.open.ended = End::Cut(*error),
            None => this.open.complete(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Counts the bytes of a request's body as they pass.
fn count(body: &mut Body, total: &Arc<AtomicU64>) {
    if !body.is_empty() {
        let inner = std::mem::take(body);
        *body = Body::stream(CountedBody { inner, total: total.clone() });
    }
}

struct CountedBody {
    inner: Body,
    total: Arc<AtomicU64>,
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()).and_then(Frame::data_ref) {
            self.total.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
