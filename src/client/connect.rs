//! Connections of the client: a TCP or unix socket, with TLS if the URL or the destination requires it.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
    vec,
};

use futures_util::future::BoxFuture;
use http::{Uri, uri::Scheme};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection, HttpConnector, dns::Name},
    rt::TokioIo,
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio_rustls::TlsConnector;
use tower::{Service, ServiceExt as _};

use super::{Roots, name_cause};
use crate::{
    config::plan::Server,
    error::{ServerFailure, UnresolvedName},
    message::{BoxIo, Io},
};

/// Time limit of a TCP connection: less than the deadline of any request, so that a server which drops connections is told
/// from one which does not respond.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// The destination of a request, in place of the host of its URL.
#[derive(Debug, Clone)]
pub enum Destination {
    /// An address; TLS and the name to verify stay those of the URL.
    Address(SocketAddr),
    /// A server that decides everything: its socket, and whether TLS is spoken under which name.
    Server(Server),
}

/// Chooses the destination for a host and a port; `None` leaves it to DNS.
pub type Resolve = Arc<dyn Fn(&str, u16) -> Option<Destination> + Send + Sync>;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL has no scheme that is known, or no host.
    #[error("the URL is not absolute")]
    NotAbsolute,
    /// The name does not resolve, or no address accepts.
    #[error("not reachable")]
    Unreachable(#[source] ServerFailure),
    /// The handshake failed, for instance on the certificate.
    #[error("TLS handshake failed")]
    Tls(#[source] io::Error),
}

/// Opens connections for hyper. Cheap to clone.
#[derive(Clone)]
pub struct Connector {
    tcp: HttpConnector<SystemResolver>,
    tls: Arc<ClientConfig>,
    /// The name to verify, in place of the host.
    name: Option<ServerName<'static>>,
    resolve: Option<Resolve>,
}

impl Connector {
    /// A connector that speaks TLS as `tls` says, to servers of a `name` if there is one.
    pub fn new(tls: Arc<ClientConfig>, name: Option<&ServerName<'static>>, resolve: Option<Resolve>) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(SystemResolver);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        Self { tcp, tls, name: name.cloned(), resolve }
    }

    async fn connect(self, url: Uri) -> Result<Stream, ConnectError> {
        let server = server(&url).ok_or(ConnectError::NotAbsolute)?;
        let (Server::Http { host, port } | Server::Https { host, port }) = &server else {
            return Err(ConnectError::NotAbsolute);
        };
        match self.resolve.as_ref().and_then(|resolve| resolve(host, *port)) {
            None => self.open(server, url).await,
            Some(Destination::Address(address)) => self.open(server, at(address)).await,
            Some(Destination::Server(server)) => {
                let url = match &server {
                    Server::Unix(path) => return unix(path).await,
                    server => server.to_string().parse().map_err(|_| ConnectError::NotAbsolute)?,
                };
                self.open(server, url).await
            }
        }
    }

    /// Connects to `place`, and speaks TLS if `server` does.
    async fn open(self, server: Server, place: Uri) -> Result<Stream, ConnectError> {
        let tcp = self.tcp.oneshot(place).await.map_err(|error| {
            // What hyper-util says of it ("tcp connect error") adds nothing.
            let source = std::error::Error::source(&error).unwrap_or(&error);
            ConnectError::Unreachable(source.into())
        })?;
        let tcp = tcp.into_inner();
        let Server::Https { host, .. } = server else { return Ok(Stream::new(tcp, false)) };
        let name = match self.name {
            Some(name) => name,
            None => ServerName::try_from(host).map_err(|error| ConnectError::Tls(io::Error::other(error)))?,
        };
        let tls = TlsConnector::from(self.tls).connect(name, tcp).await;
        let tls = tls.map_err(|error| ConnectError::Tls(name_cause(error)))?;
        let h2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok(Stream::new(tls, h2))
    }
}

/// Resolves names with the system's resolver; its errors name the host.
#[derive(Clone)]
struct SystemResolver;

impl Service<Name> for SystemResolver {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = UnresolvedName;
    type Future = BoxFuture<'static, Result<Self::Response, UnresolvedName>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), UnresolvedName>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(async move {
            let found = lookup_host((name.as_str(), 0)).await;
            let found = found.map_err(|error| UnresolvedName::new(name.as_str(), &error))?;
            Ok(found.collect::<Vec<_>>().into_iter())
        })
    }
}

/// Opens a TLS connection for protocols other than HTTP.
///
/// # Errors
/// The address does not accept, or the handshake fails.
pub async fn connect_tls(address: SocketAddr, host: &str, roots: &Roots) -> io::Result<BoxIo> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let tcp = TcpStream::connect(address).await?;
    let stream = TlsConnector::from(roots.no_protocol()).connect(name, tcp).await;
    Ok(Box::new(stream.map_err(name_cause)?))
}

async fn unix(path: &std::path::Path) -> Result<Stream, ConnectError> {
    let stream =
        UnixStream::connect(path).await.map_err(|error| ConnectError::Unreachable(ServerFailure::of(&error)))?;
    Ok(Stream::new(stream, false))
}

fn at(address: SocketAddr) -> Uri {
    format!("http://{address}").parse().expect("an address is an authority")
}

/// The server of an absolute URL.
fn server(url: &Uri) -> Option<Server> {
    let host = url.host()?.trim_matches(['[', ']']).to_owned();
    match url.scheme()? {
        scheme if *scheme == Scheme::HTTPS => Some(Server::Https { host, port: url.port_u16().unwrap_or(443) }),
        scheme if *scheme == Scheme::HTTP => Some(Server::Http { host, port: url.port_u16().unwrap_or(80) }),
        _ => None,
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = ConnectError;
    type Future = BoxFuture<'static, Result<Stream, ConnectError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        Box::pin(self.clone().connect(url))
    }
}

/// A connection of any kind.
pub struct Stream {
    io: TokioIo<BoxIo>,
    h2: bool,
}

impl Stream {
    fn new(io: impl Io, h2: bool) -> Self {
        Self { io: TokioIo::new(Box::new(io)), h2 }
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        if self.h2 { Connected::new().negotiated_h2() } else { Connected::new() }
    }
}

impl Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
