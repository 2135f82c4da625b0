//! Sockets that were opened before this process began, by systemd (`sd_listen_fds(3)`): while one process follows another
//! their queue stays, so that nobody is refused.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use listenfd::ListenFd;
use tracing::warn;

use super::socket::{self, BindError};

/// The listening sockets that were handed to this process.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(SocketAddr, TcpListener)>);

impl Inherited {
    /// Those of the environment (`LISTEN_FDS`, `LISTEN_PID`). What is no TCP listener is named in the log and left alone.
    #[must_use]
    pub fn from_env() -> Self {
        let mut handed = ListenFd::from_env();
        let mut found = Vec::new();
        for index in 0..handed.len() {
            let socket = handed.take_tcp_listener(index).ok().flatten();
            let usable = socket.and_then(|socket| {
                socket.set_nonblocking(true).ok()?;
                Some((socket.local_addr().ok()?, socket))
            });
            match usable {
                Some(socket) => found.push(socket),
                None => warn!(index, "an inherited socket is not a TCP listener and is ignored"),
            }
        }
        Self(found)
    }

    /// Another handle of the socket for an address, if there is one.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn get(&self, addr: SocketAddr) -> io::Result<Option<TcpListener>> {
        let found = self.0.iter().find(|(local, _)| *local == addr);
        found.map(|(_, socket)| socket.try_clone()).transpose()
    }

    /// Checks that no other process listens on an address, unless its socket was handed to us. Every worker's socket is
    /// bound with `SO_REUSEPORT`, so without this two processes would share their clients without a word.
    ///
    /// # Errors
    /// The address is taken.
    pub fn check_free(&self, addr: SocketAddr) -> Result<(), BindError> {
        if addr.port() == 0 || self.0.iter().any(|(local, _)| *local == addr) {
            return Ok(());
        }
        socket::check_free(addr).map_err(|source| BindError { addr, source: super::explained(addr, source) })
    }

    /// The addresses that nobody asks for.
    pub fn unused(&self, used: &[SocketAddr]) -> impl Iterator<Item = SocketAddr> {
        self.0.iter().map(|(addr, _)| *addr).filter(|addr| !used.contains(addr))
    }
}
