//! Dialling: names resolved afresh every time, every address tried, TLS where the origin speaks it.
//!
//! Docker's resolver answers with a lifetime of 600 s although a container's address changes at its restart, so nothing
//! is remembered between two dials. The only file of this module that names rustls.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    time::{Instant, sleep},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{read_buffer::ReadBuffer, resolve::Resolver};
use crate::{
    client::{Roots, TlsClient, name_cause},
    clock::IdleTimer,
    config::plan::Server,
    conn::{Permit, Phase, Phases},
    error::{BoxError, FailureCause, ServerFailure, chain},
};

/// After this long the next address is tried beside the first (RFC 8305 section 5).
const STAGGER: Duration = Duration::from_millis(250);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The upstream has no endpoint at all.
    #[error("there is no endpoint")]
    NoEndpoint,
    /// `connect_timeout` is over.
    #[error("connecting took too long")]
    TimedOut,
    /// The name does not resolve, or no address accepts.
    #[error("not reachable")]
    Io(#[source] io::Error),
    /// The edge has no socket left for it. The service is not to blame.
    #[error("no socket is left for a connection")]
    NoSocket(#[source] BoxError),
    /// The handshake failed, for instance on the certificate.
    #[error("TLS handshake failed")]
    Tls(#[source] io::Error),
}

impl From<io::Error> for DialError {
    fn from(error: io::Error) -> Self {
        // EMFILE and ENFILE: this process has too many files open, or the system has.
        if matches!(error.raw_os_error(), Some(23 | 24)) { Self::NoSocket(error.into()) } else { Self::Io(error) }
    }
}

impl DialError {
    /// The failure, for log and status.
    pub fn failure(&self) -> ServerFailure {
        let cause = match self {
            Self::NoEndpoint => FailureCause::NoAddress,
            Self::TimedOut => FailureCause::TimedOut,
            Self::NoSocket(_) => FailureCause::NoSocket,
            Self::Io(error) | Self::Tls(error) => FailureCause::of(error),
        };
        ServerFailure::new(cause, chain(self))
    }

    /// Whether the next moment may be better: a container that restarts refuses, or has no name yet.
    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::Io(_))
    }
}

/// A connection to an endpoint, and what has been read of it ahead.
pub struct UpstreamConnection {
    /// The byte stream.
    pub socket: Socket,
    /// Bytes of a response that have not been taken yet.
    pub read: ReadBuffer,
    /// With the answer that is awaited. It stays with the connection, so that its timer is made once.
    pub idle_timer: IdleTimer,
    /// Its place among the sockets of the process.
    pub permit: Permit,
}

impl UpstreamConnection {
    /// A fresh connection.
    pub fn new(socket: Socket, permit: Permit) -> Self {
        Self { socket, read: ReadBuffer::new(), idle_timer: IdleTimer::new(None), permit }
    }

    /// Whether the other side has neither closed nor said anything that nobody asked for. Costs no system call unless
    /// the reactor has seen something.
    pub fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let mut buf = ReadBuf::new(&mut byte);
        let mut cx = Context::from_waker(Waker::noop());
        self.read.is_empty() && Pin::new(&mut self.socket).poll_read(&mut cx, &mut buf).is_pending()
    }
}

/// The kinds of stream that lead to a service.
pub enum Socket {
    /// TCP.
    Tcp(TcpStream),
    /// A socket in the file system.
    Unix(UnixStream),
    /// TLS over TCP.
    Tls(Box<TlsStream<TcpStream>>),
}

/// Where a dial leads, and what it needs to get there.
pub struct Target<'a> {
    /// The address.
    pub server: &'a Server,
    /// Looks up its name.
    pub resolver: &'a Resolver,
    /// What its certificate is verified against.
    pub roots: &'a Roots,
    /// Its own settings of TLS.
    pub tls: Option<&'a TlsClient>,
}

/// Opens a connection.
///
/// # Errors
/// See [`DialError`].
pub async fn dial(target: Target<'_>, permit: Permit, phases: &Phases) -> Result<UpstreamConnection, DialError> {
    let socket = match target.server {
        Server::Unix(path) => {
            phases.begin(Phase::Connect);
            Socket::Unix(UnixStream::connect(path).await?)
        }
        Server::Http { host, port } => Socket::Tcp(tcp(target.resolver, host, *port, phases).await?),
        Server::Https { host, port } => {
            let stream = tcp(target.resolver, host, *port, phases).await?;
            phases.begin(Phase::Tls);
            let began = Instant::now();
            let socket = tls(stream, host, &target).await;
            phases.add(Phase::Tls, began.elapsed());
            socket?
        }
    };
    Ok(UpstreamConnection::new(socket, permit))
}

/// Speaks TLS on a connection.
///
/// # Errors
/// The handshake fails; the name is no name.
async fn tls(tcp: TcpStream, host: &str, target: &Target<'_>) -> Result<Socket, DialError> {
    let name = match target.tls.and_then(TlsClient::name) {
        Some(name) => name.clone(),
        None => ServerName::try_from(host.to_owned()).map_err(|error| DialError::Tls(io::Error::other(error)))?,
    };
    let config = target.tls.map_or_else(|| target.roots.http1(), TlsClient::http1);
    let stream = TlsConnector::from(config.clone()).connect(name, tcp).await;
    Ok(Socket::Tls(Box::new(stream.map_err(|error| DialError::Tls(name_cause(error)))?)))
}

/// Opens TCP connections to one server for bytes that are not HTTP.
#[derive(Debug)]
pub struct TcpDialer {
    host: Arc<str>,
    port: u16,
    resolver: Resolver,
}

impl TcpDialer {
    /// A dialer of this host and port.
    #[must_use]
    pub fn new(host: Arc<str>, port: u16) -> Self {
        Self { host, port, resolver: Resolver::default() }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// The name does not resolve, or no address accepts.
    pub async fn dial(&self) -> io::Result<TcpStream> {
        tcp(&self.resolver, &self.host, self.port, &Phases::default()).await
    }
}

/// Connects to the first address of a name that accepts. The next one starts when one fails or takes its time.
async fn tcp(resolver: &Resolver, host: &str, port: u16, phases: &Phases) -> io::Result<TcpStream> {
    phases.begin(Phase::Dns);
    let began = Instant::now();
    let mut addresses = resolver.resolve(host, port).await?.into_iter();
    phases.add(Phase::Dns, began.elapsed());
    phases.begin(Phase::Connect);
    let began = Instant::now();
    let connected = any_of(&mut addresses).await;
    phases.add(Phase::Connect, began.elapsed());
    connected
}

async fn any_of(addresses: &mut impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut dials = FuturesUnordered::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, FailureCause::NoAddress);
    loop {
        let more = match addresses.next() {
            Some(address) => {
                dials.push(tcp_to(address));
                true
            }
            None => false,
        };
        tokio::select! {
            biased;
            dialled = dials.next() => match dialled {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => last = error,
                None => return Err(last),
            },
            () = sleep(STAGGER), if more => {}
        }
    }
}

/// Connects to an address.
///
/// # Errors
/// It refuses.
async fn tcp_to(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

macro_rules! each {
    ($socket:expr, $stream:ident => $call:expr) => {
        match $socket {
            Socket::Tcp($stream) => $call,
            Socket::Unix($stream) => $call,
            Socket::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            // A server of TLS 1.3 says here that it wants a certificate: the handshake is over when it reads ours.
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf).map_err(name_cause),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(&mut *self, stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(&mut *self, stream => Pin::new(stream).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        each!(self, stream => stream.is_write_vectored())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut *self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut *self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
