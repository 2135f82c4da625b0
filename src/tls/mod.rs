//! Handshakes: the ClientHello first, then the configuration that fits it.
//!
//! The caller's resolver decides which certificate a name has; this module knows neither files nor ACME.

mod config;
mod stream;

use std::{future::poll_fn, io, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use rustls::{
    CommonState,
    server::{ResolvesServerCert, UnbufferedServerConnection},
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

use self::{config::Configs, stream::ReplayStream};
pub use self::{config::TlsError, stream::TlsStream};
use crate::{
    config::plan::TlsVersion,
    conn::{Alpn, TlsInfo},
};

/// RFC 8737: the protocol of a validation by the CA.
const ACME_TLS: &[u8] = b"acme-tls/1";

/// RFC 7443: TURN over TLS.
const STUN_TURN: &[u8] = b"stun.turn";

/// The longest beginning of a connection in which a ClientHello is looked for. One with every extension of today takes
/// 4 KiB; in records of one byte each it takes six times as much.
const CLIENT_HELLO: usize = 64 * 1024;

/// A fatal `unrecognized_name` alert as it stands on the wire (RFC 8446 sections 5.1 and 6.2, RFC 6066 section 3). Sent
/// before there is a configuration, since rustls would say `access_denied`, which browsers take for a client certificate
/// gone wrong.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// How long a refused client may take to read why.
const FAREWELL: Duration = Duration::from_secs(1);

/// Finds the certificate that a name has now.
pub type FindCertificate = Arc<dyn Fn(&str) -> Option<Arc<CertifiedKey>> + Send + Sync>;

/// Makes sure, before a CA's handshake goes on, that the resolver has the proof for a name, wherever it was published.
pub type FindChallenge = Arc<dyn Fn(&str) -> BoxFuture<'static, ()> + Send + Sync>;

/// Makes TLS of a byte stream. Cheap to clone.
#[derive(Clone)]
pub struct Acceptor {
    configs: Arc<Configs>,
    find_certificate: FindCertificate,
    find_challenge: FindChallenge,
}

/// A connection of which only the ClientHello has been read.
pub struct ClientHello<IO> {
    start: StartHandshake<ReplayStream<IO>>,
    name: Option<String>,
    /// The name whose certificate is served, where the resolver would not find it by the hello.
    certificate_of: Option<String>,
    offered: OfferedAlpn,
}

/// What of a ClientHello's ALPN matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OfferedAlpn {
    /// A CA that validates a name.
    AcmeTls,
    StunTurn,
    Other,
}

/// What is to be agreed on by ALPN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocols {
    /// `h2` and HTTP/1.
    Http,
    /// `stun.turn`, where the client offers it.
    Turn,
    /// Nothing: what speaks inside TLS is not known.
    None,
}

/// What a handshake led to.
#[derive(Debug)]
pub enum Accepted<IO> {
    /// A client.
    Client(Box<TlsStream<IO>>, TlsInfo),
    /// The CA has seen the certificate that it asked for; there is nothing more to say.
    AcmeChallenge,
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// `timeouts.handshake` is over.
    #[error("TLS handshake took too long")]
    TimedOut,
    /// No site has the name, or none was given.
    #[error("no site for the name {0:?}")]
    UnknownName(String),
    /// The client speaks HTTP without TLS.
    #[error("plain HTTP on a TLS port")]
    PlainHttp,
    /// The client and we have nothing in common, or it left.
    #[error("TLS handshake failed")]
    Handshake(#[source] io::Error),
}

impl Acceptor {
    /// An acceptor whose certificates come from `resolver`. `find_certificate` tells a name without one apart from a
    /// client that could not use the one there is, and finds that of a site which the client did not name.
    ///
    /// # Errors
    /// The system gives no randomness for the ticket keys.
    pub fn new(
        resolver: Arc<dyn ResolvesServerCert>,
        find_certificate: FindCertificate,
        find_challenge: FindChallenge,
        min: TlsVersion,
    ) -> Result<Self, TlsError> {
        Ok(Self { configs: Arc::new(Configs::new(resolver, min)?), find_certificate, find_challenge })
    }

    /// Reads the ClientHello.
    ///
    /// # Errors
    /// See [`AcceptError`]. Where the client can be told, it has been.
    pub async fn read_hello<IO>(&self, io: IO, deadline: Option<Instant>) -> Result<ClientHello<IO>, AcceptError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        within(deadline, read_hello(io)).await
    }

    /// Answers the ClientHello: does the handshake until the deadline.
    ///
    /// # Errors
    /// See [`AcceptError`]. Where the client can be told, it has been.
    pub async fn accept<IO>(
        &self,
        hello: ClientHello<IO>,
        protocols: Protocols,
        deadline: Option<Instant>,
    ) -> Result<Accepted<IO>, AcceptError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        within(deadline, self.handshake(hello, protocols)).await
    }

    async fn handshake<IO>(&self, hello: ClientHello<IO>, protocols: Protocols) -> Result<Accepted<IO>, AcceptError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let ClientHello { start, name, certificate_of, offered } = hello;
        if offered == OfferedAlpn::AcmeTls {
            (self.find_challenge)(name.as_deref().unwrap_or_default()).await;
            let mut stream =
                start.into_stream(self.configs.validation.clone()).await.map_err(AcceptError::Handshake)?;
            let _ = timeout(FAREWELL, stream.shutdown()).await;
            return Ok(Accepted::AcmeChallenge);
        }
        let found = certificate_of.as_ref().or(name.as_ref()).and_then(|name| (self.find_certificate)(name));
        let Some(certificate) = found else {
            let mut io = start.io.io;
            send_record(&mut io, &UNRECOGNIZED_NAME).await;
            return Err(AcceptError::UnknownName(name.unwrap_or_default()));
        };
        let config = match (protocols, offered) {
            (Protocols::Http, _) => &self.configs.http,
            (Protocols::Turn, OfferedAlpn::StunTurn) => &self.configs.turn,
            (Protocols::Turn | Protocols::None, _) => &self.configs.stream,
        };
        let ReplayStream { io, read, .. } = start.io;
        let config = match certificate_of {
            Some(_) => config::with_certificate(config, certificate),
            None => config.clone(),
        };
        let connection =
            UnbufferedServerConnection::new(config).map_err(|error| AcceptError::Handshake(io::Error::other(error)))?;
        let mut stream = Box::new(TlsStream::new(io, connection, read));
        poll_fn(|cx| stream.poll_handshake(cx)).await.map_err(AcceptError::Handshake)?;
        let info = info(stream.state(), name);
        Ok(Accepted::Client(stream, info))
    }
}

impl<IO> ClientHello<IO> {
    /// The name the client asks for, lower case, without a trailing dot.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The hello as if it had this name, where it has none.
    #[must_use]
    pub fn or_named<'a>(self, name: impl FnOnce() -> Option<&'a str>) -> Self {
        if self.name.is_some() || self.offered == OfferedAlpn::AcmeTls {
            return self;
        }
        let name = name().map(str::to_owned);
        Self { certificate_of: name.clone(), name, ..self }
    }

    /// The hello, answered with the certificate of another name than the one that it asks for.
    #[must_use]
    pub fn with_certificate_of(self, name: &str) -> Self {
        Self { certificate_of: Some(name.to_owned()), ..self }
    }

    /// The connection under it.
    #[must_use]
    pub const fn get_ref(&self) -> &IO {
        &self.start.io.io
    }

    /// The connection as it was before, and all that has been read of it.
    #[must_use]
    pub fn into_inner(self) -> (IO, Vec<u8>) {
        (self.start.io.io, self.start.io.read)
    }
}

async fn read_hello<IO: AsyncRead + AsyncWrite + Unpin>(io: IO) -> Result<ClientHello<IO>, AcceptError> {
    let io = ReplayStream { io, read: Vec::new(), limit: CLIENT_HELLO };
    let mut acceptor = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), io);
    let start = match (&mut acceptor).await {
        Ok(start) => start,
        Err(error) => return Err(refuse_garbage(acceptor.take_io(), error).await),
    };
    let hello = start.client_hello();
    let name = hello.server_name().map(|name| name.trim_end_matches('.').to_ascii_lowercase());
    let offers = |protocol| hello.alpn().is_some_and(|mut offered| offered.any(|offer| offer == protocol));
    let offered = match () {
        () if offers(ACME_TLS) => OfferedAlpn::AcmeTls,
        () if offers(STUN_TURN) => OfferedAlpn::StunTurn,
        () => OfferedAlpn::Other,
    };
    Ok(ClientHello { start, name, certificate_of: None, offered })
}

/// Boxed, so that a connection does not keep the room of its handshake for as long as it lives.
async fn within<T>(
    deadline: Option<Instant>,
    step: impl Future<Output = Result<T, AcceptError>>,
) -> Result<T, AcceptError> {
    let step = Box::pin(step);
    match deadline {
        Some(deadline) => timeout_at(deadline, step).await.map_err(|_| AcceptError::TimedOut)?,
        None => step.await,
    }
}

fn info(connection: &CommonState, sni: Option<String>) -> TlsInfo {
    TlsInfo {
        sni: sni.map(Into::into),
        alpn: if connection.alpn_protocol() == Some(b"h2") { Alpn::Http2 } else { Alpn::Http1 },
        version: match connection.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "TLSv1.2",
        },
        resumed: connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
    }
}

/// Tells a client that speaks plain HTTP what it did, since "connection reset" tells it nothing.
async fn refuse_garbage<IO: AsyncRead + AsyncWrite + Unpin>(io: Option<IO>, error: io::Error) -> AcceptError {
    let plain = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()).is_some_and(|cause| {
        matches!(cause, rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType))
    });
    let Some(mut io) = io.filter(|_| plain) else { return AcceptError::Handshake(error) };
    let text = "This port speaks https: use https:// in the address.\n";
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
        text.len()
    );
    send_record(&mut io, answer.as_bytes()).await;
    AcceptError::PlainHttp
}

/// Writes a last word and waits until the client has read it or left.
async fn send_record<IO: AsyncRead + AsyncWrite + Unpin>(io: &mut IO, word: &[u8]) {
    let farewell = async {
        io.write_all(word).await?;
        io.shutdown().await?;
        let mut sink = [0; 512];
        while io.read(&mut sink).await? > 0 {}
        io::Result::Ok(())
    };
    // The connection is over either way.
    let _ = timeout(FAREWELL, farewell).await;
}
