//! One connection, from the socket to its last request.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use super::stack::{EdgeService, Generation};
use crate::{
    config::plan,
    conn::{ConnInfo, Exhausted, Permit, Permits},
    drain::{Drain, Phase},
    error,
    listen::proxy_protocol::{self, Prefixed},
    serve::{self, FIRST_REQUEST},
    stream::{self, Forwarder},
    telemetry::{self, LogThrottle},
    tls::{AcceptError, Accepted, Acceptor, ClientHello, Protocols},
};

/// How often one address is logged for one reason.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// What every connection needs; shared by all workers.
pub struct Pipeline {
    /// The handshakes; another one only where `tls.min_version` changes, since it forgets its tickets.
    pub acceptor: ArcSwap<Acceptor>,
    /// The request path of the newest configuration.
    pub current: Arc<ArcSwap<Generation>>,
    /// Bounds on connections.
    pub permits: Permits,
    /// The end of the process.
    pub drain: Drain,
    /// Cancelled when the listeners close for good.
    pub accepting: CancellationToken,
    /// The listeners, so that their end can be waited for.
    pub listeners: TaskTracker,
    /// All connections, likewise.
    pub tasks: TaskTracker,
    /// Counters.
    pub metrics: telemetry::Metrics,
    /// What has been logged of refused connections.
    pub logged: Logged,
}

/// What a listener does with the bytes of its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListenerKind {
    /// HTTP/1.1 as it is.
    Plain,
    /// TLS first.
    Tls,
}

impl ListenerKind {
    /// The word in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "http",
            Self::Tls => "https",
        }
    }
}

/// Serves one connection to its end. Whatever goes wrong here concerns this client only.
pub async fn run(io: TcpStream, peer: SocketAddr, listener: (ListenerKind, u16), pipeline: Arc<Pipeline>) {
    let (kind, port) = listener;
    let connection = Connection { peer, kind, port, pipeline: &pipeline };
    let served = match pipeline.permits.try_acquire() {
        Ok(permit) => connection.serve(io, permit).await,
        Err(exhausted) => Err(ConnError::Refused(peer.ip(), exhausted)),
    };
    if let Err(error) = served {
        connection.report(&error);
    }
}

/// A connection that has been accepted.
struct Connection<'a> {
    peer: SocketAddr,
    kind: ListenerKind,
    /// The port to which it came.
    port: u16,
    pipeline: &'a Arc<Pipeline>,
}

impl Connection<'_> {
    async fn serve(&self, io: TcpStream, mut permit: Permit) -> Result<(), ConnError> {
        let (pipeline, peer, port, drain) = (self.pipeline, self.peer, self.port, &self.pipeline.drain);
        let road = pipeline.current.load_full();
        let deadline = road.handshake().map(|limit| Instant::now() + limit);
        let (io, client) = closable(drain, proxy_protocol::read(io, peer, road.proxy_protocol(), deadline)).await??;
        // Only now is it known whose connection it is.
        permit.count_for(client.ip()).map_err(|exhausted| ConnError::Refused(client.ip(), exhausted))?;
        let settings = road.settings();
        // The generation is not held for the life of the connection: a request asks for the newest one.
        drop(road);
        let tasks = pipeline.tasks.clone();
        let service = EdgeService::new(pipeline.current.clone());
        match self.kind {
            ListenerKind::Plain => {
                let conn = Arc::new(ConnInfo { peer, client, port, tls: None });
                serve::serve_connection(io, conn, service, settings, drain.clone(), tasks).await;
            }
            ListenerKind::Tls => {
                let refused = |error| ConnError::Tls(client.ip(), error);
                let acceptor = pipeline.acceptor.load_full();
                let hello = closable(drain, acceptor.read_hello(io, deadline)).await?.map_err(refused)?;
                let road = pipeline.current.load();
                let hello = with_certificate(hello, &road, port);
                let stream = hello.name().and_then(|name| road.stream(name, port));
                drop(road);
                if let Some(stream) = stream {
                    // Boxed, so that a connection of HTTP has no room for it.
                    return Box::pin(forward(hello, client, &stream, &acceptor, deadline, drain)).await;
                }
                let accepted = closable(drain, acceptor.accept(hello, Protocols::Http, deadline)).await?;
                if let Accepted::Client(io, tls) = accepted.map_err(refused)? {
                    let conn = Arc::new(ConnInfo { peer, client, port, tls: Some(tls) });
                    serve::serve_connection(io, conn, service, settings, drain.clone(), tasks).await;
                }
            }
        }
        Ok(())
    }

    /// Counts and logs a connection that never came to a request. An address is logged at most once a minute.
    fn report(&self, error: &ConnError) {
        let (metrics, logged) = (&self.pipeline.metrics, &self.pipeline.logged);
        let listener = self.kind.as_str();
        match error {
            ConnError::Refused(client, exhausted) => {
                metrics.connection_refused();
                if logged.bounds.allows(*client) {
                    let limit = match exhausted {
                        Exhausted::Total => "limits.connections",
                        Exhausted::Share => "limits.connections_per_ip",
                    };
                    warn!(%client, listener, limit, "connection refused: the limit is reached");
                }
            }
            ConnError::Tls(client, error) => {
                metrics.handshake_failed();
                let reason = error::chain(error);
                if logged.handshakes.allows(*client) {
                    info!(%client, listener, reason, "TLS handshake refused");
                } else {
                    debug!(%client, listener, reason, "TLS handshake refused");
                }
            }
            ConnError::Closing => {}
            ConnError::ProxyProtocol(error) => {
                metrics.handshake_failed();
                debug!(client = %self.peer, listener, %error, "connection refused");
            }
        }
    }
}

/// What has been logged of whom.
#[derive(Debug)]
pub struct Logged {
    /// Connections over a bound.
    bounds: LogThrottle,
    /// Handshakes.
    handshakes: LogThrottle,
}

impl Default for Logged {
    fn default() -> Self {
        Self { bounds: LogThrottle::new(LOG_INTERVAL), handshakes: LogThrottle::new(LOG_INTERVAL) }
    }
}

/// What comes before the first request, for as long as that is waited for.
async fn closable<F: Future>(drain: &Drain, before: F) -> Result<F::Output, ConnError> {
    let until = Instant::now() + FIRST_REQUEST;
    let closing = async {
        drain.reached(Phase::Closing).await;
        sleep_until(until).await;
    };
    tokio::select! {
        biased;
        done = before => Ok(done),
        () = closing => Err(ConnError::Closing),
    }
}

/// The hello of a client that names no site, or one that nobody has, with the certificate that it gets all the same.
fn with_certificate(
    hello: ClientHello<Prefixed<TcpStream>>,
    road: &Generation,
    port: u16,
) -> ClientHello<Prefixed<TcpStream>> {
    let local = hello.get_ref().get_ref().local_addr().ok();
    let hello = hello.or_named(|| road.address_site(local.map(|local| local.ip())));
    if road.is_for_catch_all(hello.name(), port) { hello.with_certificate_of(plan::CATCH_ALL) } else { hello }
}

/// Forwards a connection that is not HTTP, TLS ended here or not.
async fn forward(
    hello: ClientHello<Prefixed<TcpStream>>,
    client: SocketAddr,
    stream: &Forwarder,
    acceptor: &Acceptor,
    deadline: Option<Instant>,
    drain: &Drain,
) -> Result<(), ConnError> {
    let local = hello.get_ref().get_ref().local_addr().ok();
    let peer = stream::Peer { client, local };
    let mut record = stream.record(client);
    if stream.is_passthrough() {
        let (io, read) = hello.into_inner();
        stream.forward(io, read.into(), peer, record).await;
        return Ok(());
    }
    let protocols = if stream.is_turn() { Protocols::Turn } else { Protocols::None };
    match closable(drain, acceptor.accept(hello, protocols, deadline)).await {
        Ok(Ok(Accepted::Client(io, tls))) => {
            record.tls(tls.version);
            stream.forward(*io, Bytes::new(), peer, record).await;
        }
        Ok(Ok(Accepted::AcmeChallenge)) => record.discard(),
        Ok(Err(error)) => {
            record.end(stream::End::HandshakeFailed, Some(&error));
            return Err(ConnError::Tls(client.ip(), error));
        }
        Err(closing) => {
            record.discard();
            return Err(closing);
        }
    }
    Ok(())
}

/// Why a connection never came to a request.
#[derive(Debug, thiserror::Error)]
enum ConnError {
    #[error(transparent)]
    ProxyProtocol(#[from] proxy_protocol::ProxyProtocolError),
    #[error("TLS of {0}")]
    Tls(IpAddr, #[source] AcceptError),
    #[error("connection of {0}")]
    Refused(IpAddr, #[source] Exhausted),
    #[error("the process ends")]
    Closing,
}
