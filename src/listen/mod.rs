//! Sockets: listening, accepting, and how many connections there may be.

mod descriptors;
mod inherited;
pub mod proxy_protocol;
mod remedy;
mod socket;

pub use descriptors::SocketLimits;
pub use inherited::Inherited;
pub use remedy::explained;
pub use socket::BindError;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::{
    net::{TcpListener, TcpStream},
    task::unconstrained,
    time::{Instant, sleep, timeout_at},
};
use tracing::{info, warn};

/// Pause before the next try when the system has no descriptor or memory for another connection.
const BREATH: Duration = Duration::from_millis(50);

/// How long a handshake that has begun is waited for where somebody else listens on: a round trip to the other side of the
/// world.
const ON_THE_WAY: Duration = Duration::from_millis(300);

/// A bound address. Each worker has one of its own for every address; the kernel spreads connections among them.
#[derive(Debug)]
pub struct Listener {
    inner: TcpListener,
    local: SocketAddr,
    /// Opened by this process, and gone with it.
    ours: bool,
}

impl Listener {
    /// Binds an address, or takes the socket for it that was handed to us, on the runtime that is running.
    ///
    /// # Errors
    /// The address is taken, not ours, or not permitted.
    pub fn bind(addr: SocketAddr, inherited: &Inherited) -> Result<Self, BindError> {
        let bound = inherited.get(addr).and_then(|handed| {
            let ours = handed.is_none();
            let inner = TcpListener::from_std(handed.map_or_else(|| socket::bind(addr), Ok)?)?;
            socket::tune(&inner)?;
            Ok(Self { local: inner.local_addr()?, inner, ours })
        });
        bound.map_err(|source| BindError { addr, source: explained(addr, source) })
    }

    /// The address, with the port that the system chose where 0 was asked for.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Stops listening at once. Connections that wait to be accepted are handed to `take`; those that come after that are
    /// refused, unless the socket was handed to us: then they wait for the process that it is handed to next.
    pub fn close(self, take: impl FnMut(TcpStream, SocketAddr)) {
        if self.ours {
            self.take_waiting(take);
        }
    }

    /// Stops listening without refusing anybody, where another process listens beside us: no new connection is begun, and
    /// those that are on their way are handed to `take`. A socket that was handed to us keeps its queue for the process
    /// that it is handed to next.
    pub async fn retire(self, mut take: impl FnMut(TcpStream, SocketAddr)) {
        if !self.ours {
            return;
        }
        if socket::deafen(&self.inner).is_ok() {
            let until = Instant::now() + ON_THE_WAY;
            while let Ok((stream, peer)) = timeout_at(until, self.accept()).await {
                take(stream, peer);
            }
        }
        self.take_waiting(take);
    }

    fn take_waiting(&self, mut take: impl FnMut(TcpStream, SocketAddr)) {
        // Outside of the runtime's budget for a task: "not now" has to mean that nobody waits.
        while let Some(Ok((stream, peer))) = unconstrained(self.inner.accept()).now_or_never() {
            take(stream, plain(peer));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_has_the_options_of_its_listener() {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), &Inherited::default()).unwrap();
        let (client, (accepted, _)) = tokio::join!(TcpStream::connect(listener.local_addr()), listener.accept());
        client.unwrap();
        let socket = socket2::SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(75));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(25));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 4);
    }
}
