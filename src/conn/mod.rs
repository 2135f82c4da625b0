//! What is known of a connection, and the handles that modules exchange beside a request.

mod permits;

pub use permits::{Exhausted, PerNetwork, Permit, Permits, network};

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{StatusCode, uri::Scheme};

use crate::{
    error::{ProxyError, ServerFailure},
    message::{Fields, Request, Response},
};

/// What is known of a client's connection for as long as it lives.
#[derive(Debug, Clone)]
pub struct ConnInfo {
    /// Who sent the packets.
    pub peer: SocketAddr,
    /// Who the client is: the peer, or what a PROXY protocol header said.
    pub client: SocketAddr,
    /// The port of ours to which it came.
    pub port: u16,
    /// The handshake, on a TLS listener.
    pub tls: Option<TlsInfo>,
}

impl ConnInfo {
    /// `https` on a TLS listener, `http` on a plain one.
    #[must_use]
    pub const fn scheme(&self) -> Scheme {
        if self.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP }
    }
}

/// What a TLS handshake settled.
#[derive(Debug, Clone)]
pub struct TlsInfo {
    /// The name the client asked for, lower case, without a trailing dot.
    pub sni: Option<Arc<str>>,
    /// The protocol both agreed on.
    pub alpn: Alpn,
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// Whether a ticket was used.
    pub resumed: bool,
}

/// What speaks on the connection. A client that offers no ALPN gets HTTP/1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Alpn {
    /// `http/1.1`, or nothing agreed.
    #[default]
    Http1,
    /// `h2`.
    Http2,
}

/// Fields by which some upstream or other believes to know the client, besides all `X-Forwarded-*` and `X-Matrix-*`
/// (Synapse trusts the latter from MSC4512 proxies). `Proxy` becomes `HTTP_PROXY` in CGI (CVE-2016-5385).
const SPOOFABLE: [&str; 10] = [
    "forwarded",
    "x-real-ip",
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "fastly-client-ip",
    "proxy",
    "x-request-id",
];

const SPOOFABLE_PREFIXES: [&str; 2] = ["x-forwarded-", "x-matrix-"];

/// Whether a field is one by which services believe to know the client, so that only we may say it.
#[must_use]
pub fn speaks_of_client(name: &str) -> bool {
    // Asked of every field of every request: the first letter settles it for most.
    matches!(name.as_bytes().first(), Some(b'c' | b'f' | b'p' | b't' | b'x')) && is_spoofable(name)
}

fn is_spoofable(name: &str) -> bool {
    SPOOFABLE.contains(&name) || SPOOFABLE_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// The client's side of an exchange, as far as it concerns whoever handles the request.
pub trait ClientSide: Send + Sync {
    /// Passes an interim response (103 Early Hints, 102) on while the final one is awaited; never 100 or 101. Best effort:
    /// a client that cannot take it now, or whose protocol has none, never sees it.
    fn push_interim(&self, status: StatusCode, fields: &Fields);

    /// Why we ended the exchange before its end, if it was us and not the client.
    fn cut(&self) -> Option<AbortReason>;
}

/// A [`ClientSide`], shared with those who watch the exchange.
pub type ClientHandle = Arc<dyn ClientSide>;

/// Why we ended an exchange although its client was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbortReason {
    /// The client took nothing of the answer for `timeouts.body_stall`.
    Stalled,
    /// Its connection cost too much.
    ExcessiveLoad,
    /// It broke the protocol.
    ProtocolError,
}

/// Who is told of a request while a service works on it.
#[derive(Clone, Default)]
pub struct RequestObservers {
    /// Takes interim responses.
    pub interim: Option<ClientHandle>,
    /// Takes the times of a dial, and the bytes of a tunnel.
    pub phases: Option<Arc<Phases>>,
    /// The client whose share of the sockets a dial counts for.
    pub client: Option<IpAddr>,
}

/// An HTTP client, as it is handed to modules that must fetch something (an ACME directory, a probe): `client::Builder` makes
/// one. The URI is absolute.
pub type Fetch = Arc<dyn Fn(Request) -> BoxFuture<'static, Result<Response, ProxyError>> + Send + Sync>;

/// The certificate that a TLS server presents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// The certificate, DER.
    pub leaf: Bytes,
    /// Whether a client would accept it.
    pub trust: Result<(), ServerFailure>,
}

/// How long the phases of reaching an upstream took, for the access log. Filled by whoever dials; a request on a kept
/// connection dials nothing.
#[derive(Debug, Default)]
pub struct Phases {
    dns: AtomicU64,
    connect: AtomicU64,
    tls: AtomicU64,
    /// The phase that is under way, or that failed; one more than its number.
    at: AtomicU8,
    /// Bytes that a tunnel has moved, counted while it does.
    tunnelled: Tunnelled,
}

/// Bytes that have gone through a tunnel.
#[derive(Debug, Default)]
pub struct Tunnelled {
    /// From the client.
    pub upwards: AtomicU64,
    /// To the client.
    pub downwards: AtomicU64,
    /// A [`TunnelEnd`], one more than its number; 0 before.
    end: AtomicU8,
}

/// Who ended a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelEnd {
    /// The client said goodbye first, or is gone.
    Client,
    /// The service did, or is.
    Service,
    /// Nothing moved for too long.
    Idle,
    /// The process drains.
    Drain,
}

impl Tunnelled {
    /// Notes who ended the tunnel.
    pub fn ended(&self, by: TunnelEnd) {
        self.end.store(by as u8 + 1, Ordering::Relaxed);
    }

    /// Who ended the tunnel; nobody before its end.
    #[must_use]
    pub fn end(&self) -> Option<TunnelEnd> {
        let all = [TunnelEnd::Client, TunnelEnd::Service, TunnelEnd::Idle, TunnelEnd::Drain];
        usize::from(self.end.load(Ordering::Relaxed)).checked_sub(1).and_then(|index| all.get(index).copied())
    }
}

/// A part of reaching an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Resolving its name.
    Dns,
    /// Opening a connection.
    Connect,
    /// Shaking hands.
    Tls,
}

impl Phases {
    /// Nothing has taken any time yet.
    #[must_use]
    pub const fn new() -> Self {
        let tunnelled = Tunnelled { upwards: AtomicU64::new(0), downwards: AtomicU64::new(0), end: AtomicU8::new(0) };
        let (dns, connect, tls) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Self { dns, connect, tls, at: AtomicU8::new(0), tunnelled }
    }

    /// A phase begins.
    pub fn begin(&self, phase: Phase) {
        self.at.store(phase as u8 + 1, Ordering::Relaxed);
    }

    /// The last phase that began; none where nothing was dialled.
    #[must_use]
    pub fn last(&self) -> Option<Phase> {
        let all = [Phase::Dns, Phase::Connect, Phase::Tls];
        usize::from(self.at.load(Ordering::Relaxed)).checked_sub(1).and_then(|index| all.get(index).copied())
    }

    /// What a tunnel that grew out of the request has moved.
    #[must_use]
    pub const fn tunnelled(&self) -> &Tunnelled {
        &self.tunnelled
    }

    const fn cell(&self, phase: Phase) -> &AtomicU64 {
        match phase {
            Phase::Dns => &self.dns,
            Phase::Connect => &self.connect,
            Phase::Tls => &self.tls,
        }
    }

    /// Adds to a phase.
    pub fn add(&self, phase: Phase, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        self.cell(phase).fetch_add(micros, Ordering::Relaxed);
    }

    /// How long a phase took; nothing, if there was none.
    #[must_use]
    pub fn get(&self, phase: Phase) -> Option<Duration> {
        Some(self.cell(phase).load(Ordering::Relaxed)).filter(|micros| *micros > 0).map(Duration::from_micros)
    }
}

thread_local! {
    static WORKER: std::cell::Cell<Option<usize>> = const { std::cell::Cell::new(None) };
}

/// The index of the worker that this thread runs; `None` on every other thread. What belongs to a thread's reactor, such as
/// pooled sockets, is kept in a slot of this index.
#[must_use]
pub fn worker() -> Option<usize> {
    WORKER.get()
}

/// Says which worker this thread runs; called once, before its runtime starts.
pub fn set_worker(index: usize) {
    WORKER.set(Some(index));
}
