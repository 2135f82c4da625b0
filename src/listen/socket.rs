//! Options of sockets, each with its reason.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    time::Duration,
};

use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, TcpKeepalive, Type};
use tracing::warn;

/// Connections that wait to be accepted: a restart of a busy server brings thousands of clients back at once. The kernel
/// cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// After so much silence the kernel asks whether the peer is there, this often and this many times: a phone that lost its
/// network is noticed within three minutes, a tunnel through a forgetful NAT is kept open.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(75);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(25);
const KEEPALIVE_TRIES: u32 = 4;

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr}")]
pub struct BindError {
    /// Which.
    pub addr: SocketAddr,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// A listening socket. `[::]` takes IPv4 as well, and only IPv4 where the kernel has no IPv6. With `SO_REUSEPORT` every
/// worker has a queue of its own, and a new process can listen beside the old one.
pub fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    match bind_to(addr) {
        Err(error) => match without_ipv6(addr, &error) {
            Some(other) => {
                let socket = bind_to(other)?;
                warn!(%addr, instead = %other, "the kernel has no IPv6; only IPv4 is listened on");
                Ok(socket)
            }
            None => Err(error),
        },
        bound => bound,
    }
}

/// The IPv4 address that stands for "any" where IPv6 is off: a kernel with `ipv6.disable=1` has no such sockets.
fn without_ipv6(addr: SocketAddr, error: &io::Error) -> Option<SocketAddr> {
    const NO_SUCH_FAMILY: i32 = 97; // EAFNOSUPPORT
    const NO_SUCH_ADDRESS: i32 = 99; // EADDRNOTAVAIL
    let off = matches!(error.raw_os_error(), Some(NO_SUCH_FAMILY | NO_SUCH_ADDRESS));
    (off && addr.ip() == Ipv6Addr::UNSPECIFIED).then(|| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), addr.port()))
}

fn bind_to(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Binds an address for a moment, without sharing it.
pub fn check_free(addr: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Connections of a process that has ended may still be closing; only one that listens is in the way.
    socket.set_reuse_address(true)?;
    match socket.bind(&addr.into()) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
        // Whatever else is wrong with the address, the socket that stays will meet it too.
        _ => Ok(()),
    }
}

/// Makes a listening socket deaf to new connections and leaves it to those whose handshake is under way: a classic BPF
/// program that drops a SYN. Its sender asks again after a second (RFC 6298 section 2) and then finds whoever listens
/// here next; a socket that is simply closed resets everybody who was on the way into its queue.
pub fn deafen(socket: &impl std::os::fd::AsFd) -> io::Result<()> {
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_IF_SET: u16 = 0x45;
    const RETURN: u16 = 0x06;
    /// Where the flags are in a TCP header, and which of them is SYN (RFC 9293 section 3.1).
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    SockRef::from(socket).attach_filter(&[
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS),
        SockFilter::new(JUMP_IF_SET, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ])
}

/// What clients' connections need. Said of the listening socket, from which they have it: Linux copies the options of TCP to
/// what is accepted, which saves five calls a connection.
pub fn tune(listener: &impl std::os::fd::AsFd) -> io::Result<()> {
    let socket = SockRef::from(listener);
    // Answers are written whole; waiting to fill a segment would only delay them.
    socket.set_tcp_nodelay(true)?;
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY).with_retries(KEEPALIVE_TRIES);
    socket.set_tcp_keepalive(&keepalive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_address_falls_back_to_ipv4_where_the_kernel_has_no_ipv6() {
        let no_family = io::Error::from_raw_os_error(97);
        let any = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert_eq!(without_ipv6(any("[::]:443"), &no_family), Some(any("0.0.0.0:443")));
        assert_eq!(without_ipv6(any("[::1]:443"), &no_family), None, "an address that was named is not replaced");
        assert_eq!(without_ipv6(any("0.0.0.0:443"), &no_family), None);
        let taken = io::Error::from(io::ErrorKind::AddrInUse);
        assert_eq!(without_ipv6(any("[::]:443"), &taken), None);
    }
}
