//! Handshakes: the ClientHello first, then the configuration that fits it.
//!
//! Which certificate a name has is decided by the resolver that is handed in; this room knows neither files nor ACME.

mod config;
mod stream;

use std::{future::poll_fn, io, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use rustls::{
    CommonState,
    server::{ResolvesServerCert, UnbufferedServerConnection},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::LazyConfigAcceptor;

use self::{config::Configs, stream::ReplayStream};
pub use self::{config::TlsError, stream::TlsStream};
use crate::{
    config::plan::TlsVersion,
    conn::{Alpn, TlsInfo},
};

/// RFC 8737: the protocol of a validation by the CA.
const ACME_TLS: &[u8] = b"acme-tls/1";

/// A fatal `unrecognized_name` alert as it stands on the wire (RFC 8446 sections 5.1 and 6.2, RFC 6066 section 3). Sent
/// before there is a configuration, since rustls would say `access_denied`, which browsers take for a client certificate
/// gone wrong.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// How long a refused client may take to read why.
const FAREWELL: Duration = Duration::from_secs(1);

/// Says whether a name has a certificate now.
pub type HasCertificate = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Makes sure, before a CA's handshake goes on, that the resolver has the proof for a name, wherever it was published.
pub type FindChallenge = Arc<dyn Fn(&str) -> BoxFuture<'static, ()> + Send + Sync>;

/// Makes TLS of a byte stream. Cheap to clone.
#[derive(Clone)]
pub struct Acceptor {
    configs: Arc<Configs>,
    has_certificate: HasCertificate,
    find_challenge: FindChallenge,
}

/// What a handshake led to.
#[derive(Debug)]
pub enum Accepted<IO> {
    /// A client.
    Http(Box<TlsStream<IO>>, TlsInfo),
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
    /// An acceptor whose certificates come from `resolver`. `has_certificate` tells a name without one apart from a
    /// client that could not use the one there is.
    ///
    /// # Errors
    /// The system gives no randomness for the ticket keys.
    pub fn new(
        resolver: Arc<dyn ResolvesServerCert>,
        has_certificate: HasCertificate,
        find_challenge: FindChallenge,
        min: TlsVersion,
    ) -> Result<Self, TlsError> {
        Ok(Self { configs: Arc::new(Configs::new(resolver, min)?), has_certificate, find_challenge })
    }

    /// Shakes hands until the deadline.
    ///
    /// # Errors
    /// See [`AcceptError`]. Where the client can be told, it has been.
    pub async fn accept<IO>(&self, io: IO, deadline: Option<Instant>) -> Result<Accepted<IO>, AcceptError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let handshake = Box::pin(self.handshake(io));
        match deadline {
            Some(deadline) => timeout_at(deadline, handshake).await.map_err(|_| AcceptError::TimedOut)?,
            None => handshake.await,
        }
    }

    async fn handshake<IO>(&self, io: IO) -> Result<Accepted<IO>, AcceptError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let mut acceptor =
            LazyConfigAcceptor::new(rustls::server::Acceptor::default(), ReplayStream { io, read: Vec::new() });
        let start = match (&mut acceptor).await {
            Ok(start) => start,
            Err(error) => return Err(refuse_garbage(acceptor.take_io(), error).await),
        };
        let hello = start.client_hello();
        let name = hello.server_name().map(|name| name.trim_end_matches('.').to_ascii_lowercase());
        let validation = hello.alpn().is_some_and(|mut offered| offered.any(|protocol| protocol == ACME_TLS));
        if !validation && !name.as_deref().is_some_and(|name| (self.has_certificate)(name)) {
            let mut io = start.io.io;
            send_record(&mut io, &UNRECOGNIZED_NAME).await;
            return Err(AcceptError::UnknownName(name.unwrap_or_default()));
        }
        if validation {
            (self.find_challenge)(name.as_deref().unwrap_or_default()).await;
            let mut stream =
                start.into_stream(self.configs.validation.clone()).await.map_err(AcceptError::Handshake)?;
            let _ = timeout(FAREWELL, stream.shutdown()).await;
            return Ok(Accepted::AcmeChallenge);
        }
        let ReplayStream { io, read } = start.io;
        let connection = UnbufferedServerConnection::new(self.configs.http.clone())
            .map_err(|error| AcceptError::Handshake(io::Error::other(error)))?;
        let mut stream = Box::new(TlsStream::new(io, connection, read));
        poll_fn(|cx| stream.poll_handshake(cx)).await.map_err(AcceptError::Handshake)?;
        let info = info(stream.state(), name);
        Ok(Accepted::Http(stream, info))
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
