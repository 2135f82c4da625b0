//! Sockets: listening, accepting, and how many connections there may be.

mod permits;
pub mod proxy_protocol;
mod socket;

pub use permits::{Permit, Permits, connection_limit};
pub use socket::BindError;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tracing::{info, warn};

/// Pause before the next try when the system has no descriptor or memory for another connection.
const BREATH: Duration = Duration::from_millis(50);

/// A bound address. Each worker has one of its own for every address; the kernel spreads connections among them.
#[derive(Debug)]
pub struct Listener {
    inner: TcpListener,
    local: SocketAddr,
}

impl Listener {
    /// Binds an address, on the runtime that is running.
    ///
    /// # Errors
    /// The address is taken, not ours, or not permitted.
    pub fn bind(addr: SocketAddr) -> Result<Self, BindError> {
        let inner = socket::bind(addr).and_then(TcpListener::from_std);
        let bound = inner.and_then(|inner| inner.local_addr().map(|local| Self { inner, local }));
        bound.map_err(|source| BindError { addr, source })
    }

    /// The address, with the port that the system chose where 0 was asked for.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The next connection. Never fails: whatever the system lacks now it may have in a moment.
    pub async fn accept(&self) -> (TcpStream, SocketAddr) {
        let mut complained = false;
        loop {
            match self.inner.accept().await {
                Ok((stream, peer)) => {
                    if complained {
                        info!(listener = %self.local, "accepting again");
                    }
                    // The connection may be gone already; its first read will tell.
                    let _ = socket::tune(&stream);
                    return (stream, plain(peer));
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    if !complained {
                        warn!(listener = %self.local, %error, "cannot accept connections");
                        complained = true;
                    }
                    sleep(BREATH).await;
                }
            }
        }
    }
}

/// Errors of a connection that ended before it was accepted (accept(2)).
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

/// An IPv4 peer of an IPv6 socket, as the IPv4 address that it is.
#[must_use]
pub fn plain(peer: SocketAddr) -> SocketAddr {
    match peer.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, peer.port()),
        IpAddr::V6(_) => peer,
    }
}
