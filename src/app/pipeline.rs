//! One connection, from the socket to its last request.

use std::{net::SocketAddr, sync::Arc};

use arc_swap::ArcSwap;
use tokio::{net::TcpStream, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use super::stack::{EdgeService, Generation};
use crate::{
    conn::ConnInfo,
    listen::{Permits, proxy_protocol},
    serve, telemetry,
    tls::{AcceptError, Accepted, Acceptor},
};

/// What every connection needs; shared by all workers.
pub struct Pipeline {
    /// The handshakes; another one only where `tls.min_version` changes, since it forgets its tickets.
    pub acceptor: ArcSwap<Acceptor>,
    /// The road of the newest configuration.
    pub current: Arc<ArcSwap<Generation>>,
    /// Bounds on connections.
    pub permits: Permits,
    /// Cancelled when the process drains.
    pub drain: CancellationToken,
    /// All connections, so that drain can wait for them.
    pub tasks: TaskTracker,
    /// Counters.
    pub metrics: telemetry::Metrics,
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
pub async fn run(io: TcpStream, peer: SocketAddr, kind: ListenerKind, pipeline: Arc<Pipeline>) {
    let Some(_permit) = pipeline.permits.try_acquire(peer.ip()) else {
        pipeline.metrics.connection_refused();
        return;
    };
    if let Err(error) = walk(io, peer, kind, &pipeline).await {
        pipeline.metrics.handshake_failed();
        debug!(client = %peer, listener = kind.as_str(), %error, "connection refused");
    }
}

async fn walk(io: TcpStream, peer: SocketAddr, kind: ListenerKind, pipeline: &Arc<Pipeline>) -> Result<(), ConnError> {
    let road = pipeline.current.load_full();
    let deadline = road.handshake().map(|limit| Instant::now() + limit);
    let (io, client) = proxy_protocol::read(io, peer, road.proxy_protocol(), deadline).await?;
    let settings = road.settings();
    // The generation is not held for the life of the connection: a request asks for the newest one.
    drop(road);
    let (drain, tasks) = (pipeline.drain.clone(), pipeline.tasks.clone());
    let service = EdgeService::new(pipeline.current.clone());
    match kind {
        ListenerKind::Plain => {
            let conn = Arc::new(ConnInfo { peer, client, tls: None });
            serve::serve_connection(io, conn, service, settings, drain, tasks).await;
        }
        ListenerKind::Tls => match pipeline.acceptor.load_full().accept(io, deadline).await? {
            Accepted::Http(io, tls) => {
                let conn = Arc::new(ConnInfo { peer, client, tls: Some(tls) });
                serve::serve_connection(io, conn, service, settings, drain, tasks).await;
            }
            Accepted::AcmeChallenge => {}
        },
    }
    Ok(())
}

/// Why a connection never came to a request.
#[derive(Debug, thiserror::Error)]
enum ConnError {
    #[error(transparent)]
    ProxyProtocol(#[from] proxy_protocol::ProxyProtocolError),
    #[error(transparent)]
    Tls(#[from] AcceptError),
}
