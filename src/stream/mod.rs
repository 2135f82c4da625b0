//! Connections that are not HTTP: the bytes of a site of kind `turn` or `tcp`, forwarded to its upstream.
//!
//! Whether TLS ends here is decided before: [`Forwarder::forward`] takes a byte stream, plain or still encrypted. How a
//! server is dialled is handed in, so that this module knows neither DNS nor TLS.

mod copy;
mod proxy_header;
mod record;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

pub use self::record::{End, Record};
use crate::{
    config::plan::{Balance, ClientIpLog, Stream, StreamKind, TcpServer},
    conn::Permits,
    drain::Drain,
    telemetry::{Metrics, StreamNumbers},
};

/// How long a server that refused a connection is tried after the others.
const EJECTED: Duration = Duration::from_secs(5);

/// Pause between two rounds of dials while `retry_connect` lasts.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Opens a TCP connection to a server; its name is resolved each time.
pub type Dial = Arc<dyn Fn() -> BoxFuture<'static, io::Result<TcpStream>> + Send + Sync>;

/// What all forwarders of a configuration share.
#[derive(Clone)]
pub struct Env {
    /// Makes what opens connections to a server.
    pub dialer: Arc<dyn Fn(&TcpServer) -> Dial + Send + Sync>,
    /// Bounds the connections to servers.
    pub dials: Permits,
    /// Connections are closed with its last phase.
    pub drain: Drain,
    /// `timeouts.handshake`: how long a TURN client may be silent before its first message.
    pub handshake: Option<Duration>,
    /// `timeouts.tunnel_idle`: how long a connection may be silent.
    pub idle: Option<Duration>,
    /// `log.access`: whether each connection is logged.
    pub log: bool,
    /// How much of a client's address is logged.
    pub client_ip: ClientIpLog,
    /// Counters.
    pub metrics: Metrics,
}

/// The two ends of a client's connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// The client, as the socket or a PROXY protocol header has it.
    pub client: SocketAddr,
    /// Our address, if the socket still has one.
    pub local: Option<SocketAddr>,
}

/// Forwards the connections of one site.
pub struct Forwarder {
    site: Arc<str>,
    stream: Stream,
    passthrough: bool,
    endpoints: Vec<Endpoint>,
    /// Counts connections, for round robin and to break ties.
    turn: AtomicUsize,
    /// Whether the last connection found no server.
    down: AtomicBool,
    env: Env,
    numbers: StreamNumbers,
}

/// One server of a site, and what is known of it.
struct Endpoint {
    server: TcpServer,
    dial: Dial,
    open: AtomicUsize,
    /// Milliseconds of `epoch` until which the other servers come first.
    ejected_until: AtomicU64,
    reached: AtomicBool,
    failures: AtomicU64,
    epoch: Instant,
}

/// A server of a site, for metrics and the admin interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The name of the upstream.
    pub name: Arc<str>,
    /// The server, as in the configuration.
    pub server: String,
    /// Whether the last dial succeeded.
    pub up: bool,
    /// Connections open.
    pub open: usize,
    /// Dials that failed since the configuration took effect.
    pub dial_failures: u64,
}

impl Forwarder {
    /// The forwarder of a site. `passthrough` says that TLS does not end here.
    #[must_use]
    pub fn new(site: Arc<str>, stream: &Stream, passthrough: bool, env: &Env) -> Self {
        let endpoint = |server: &TcpServer| Endpoint {
            server: server.clone(),
            dial: (env.dialer)(server),
            open: AtomicUsize::new(0),
            ejected_until: AtomicU64::new(0),
            reached: true.into(),
            failures: AtomicU64::new(0),
            epoch: Instant::now(),
        };
        Self {
            numbers: env.metrics.of_stream(site.clone()),
            endpoints: stream.upstream.servers.iter().map(endpoint).collect(),
            stream: stream.clone(),
            turn: AtomicUsize::new(0),
            down: false.into(),
            env: env.clone(),
            site,
            passthrough,
        }
    }

    /// Whether TLS does not end here.
    #[must_use]
    pub const fn is_passthrough(&self) -> bool {
        self.passthrough
    }

    /// Whether the site is for TURN clients.
    #[must_use]
    pub const fn is_turn(&self) -> bool {
        matches!(self.stream.kind, StreamKind::Turn)
    }

    /// Begins the record of a connection; it is logged and counted when dropped.
    #[must_use]
    pub fn record(&self, client: SocketAddr) -> Record {
        let protocol = if self.passthrough { "tls" } else { self.stream.kind.as_str() };
        let client = self.env.log.then(|| self.env.client_ip.apply(client.ip()));
        Record::new(self.site.clone(), protocol, client, self.numbers.clone())
    }

    /// Forwards a connection until it ends. `early` are bytes of the client that have been read already.
    pub async fn forward<IO>(&self, mut client: IO, early: Bytes, peer: Peer, mut record: Record)
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let _permit = match self.env.dials.try_acquire_for(peer.client.ip()) {
            Ok(permit) => permit,
            Err(exhausted) => {
                record.end(End::NoSocket, Some(&exhausted));
                copy::close(&mut client).await;
                return;
            }
        };
        let connected = self.connect(&mut record).await;
        let (endpoint, mut server) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                self.report_down(&error);
                record.end(End::ConnectFailed, Some(&error));
                copy::close(&mut client).await;
                return;
            }
        };
        let _open = OpenConnection::new(&endpoint.open);
        if self.stream.upstream.proxy_protocol {
            let header = proxy_header::v2(peer.client, peer.local.unwrap_or(peer.client));
            if let Err(error) = server.write_all(&header).await {
                record.end(End::Upstream, Some(&error));
                return;
            }
        }
        let limits = copy::Limits {
            opening: self.is_turn().then_some(self.env.handshake).flatten(),
            idle: self.env.idle,
            expects_stun: self.is_turn(),
        };
        copy::run(client, server, early, limits, &self.env.drain, &mut record).await;
    }

    /// Every server of the site.
    pub fn status(&self) -> impl Iterator<Item = Status> {
        self.endpoints.iter().map(|endpoint| Status {
            name: self.stream.upstream.name.clone(),
            server: endpoint.server.to_string(),
            up: endpoint.reached.load(Ordering::Relaxed),
            open: endpoint.open.load(Ordering::Relaxed),
            dial_failures: endpoint.failures.load(Ordering::Relaxed),
        })
    }

    /// Connects to the first server that accepts; none of them is dialled twice unless `retry_connect` says so.
    async fn connect(&self, record: &mut Record) -> io::Result<(&Endpoint, TcpStream)> {
        let began = Instant::now();
        let upstream = &self.stream.upstream;
        loop {
            let mut failure = io::Error::new(io::ErrorKind::NotFound, "the upstream has no server");
            for endpoint in self.in_order() {
                record.dialled(&endpoint.server);
                match timeout(upstream.connect_timeout, (endpoint.dial)()).await {
                    Ok(Ok(socket)) => {
                        endpoint.succeeded();
                        self.report_up();
                        record.connected(began.elapsed());
                        return Ok((endpoint, socket));
                    }
                    Ok(Err(error)) => failure = error,
                    Err(_elapsed) => failure = io::Error::new(io::ErrorKind::TimedOut, "connecting took too long"),
                }
                endpoint.failed();
            }
            if began.elapsed() + RETRY_PAUSE > upstream.retry_connect {
                return Err(failure);
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// The servers in the order in which they are tried.
    fn in_order(&self) -> Vec<&Endpoint> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let count = self.endpoints.len().max(1);
        let mut order: Vec<_> = self.endpoints.iter().cycle().skip(turn % count).take(self.endpoints.len()).collect();
        let load = |endpoint: &Endpoint| match self.stream.upstream.balance {
            Balance::LeastRequests => endpoint.open.load(Ordering::Relaxed),
            Balance::RoundRobin => 0,
        };
        // Stable: among equals the rotation decides.
        order.sort_by_key(|endpoint| (endpoint.is_ejected(), load(endpoint)));
        order
    }

    fn report_down(&self, error: &io::Error) {
        if !self.down.swap(true, Ordering::Relaxed) {
            warn!(upstream = %self.stream.upstream.name, %error, "upstream does not answer");
        }
    }

    fn report_up(&self) {
        if self.down.load(Ordering::Relaxed) && self.down.swap(false, Ordering::Relaxed) {
            info!(upstream = %self.stream.upstream.name, "upstream answers again");
        }
    }
}

impl Endpoint {
    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn is_ejected(&self) -> bool {
        self.ejected_until.load(Ordering::Relaxed) > self.now()
    }

    fn failed(&self) {
        let until = self.now() + u64::try_from(EJECTED.as_millis()).unwrap_or(u64::MAX);
        self.ejected_until.store(until, Ordering::Relaxed);
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.reached.store(false, Ordering::Relaxed);
    }

    fn succeeded(&self) {
        self.ejected_until.store(0, Ordering::Relaxed);
        self.reached.store(true, Ordering::Relaxed);
    }
}

/// Counts a connection of an endpoint for as long as it is open.
struct OpenConnection<'a>(&'a AtomicUsize);

impl<'a> OpenConnection<'a> {
    fn new(open: &'a AtomicUsize) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(open)
    }
}

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
