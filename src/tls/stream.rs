//! The plain side of a TLS connection, on rustls' unbuffered API.
//!
//! The buffers belong to the thread and not to the connection: bytes are read as many records at a time as there is room
//! for and leave in one write, whatever they were made of, and a connection that waits owns nothing but the part of a record that has
//! arrived and what its peer has not taken.

use std::{
    cell::RefCell,
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use rustls::{
    CommonState,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::message::{ClientIo, Transferred};

/// What a record carries at most (RFC 8446 section 5.1), and what its encryption may add to it (section 5.2).
const RECORD: usize = 16 * 1024;
const RECORD_OVERHEAD: usize = 5 + 256;

/// What is read at once: as much as bodies are read in, and the rest of a record that came before.
const SCRATCH: usize = 17 * (RECORD + RECORD_OVERHEAD);

/// What is encrypted at once, and from how many slices: as much as answers are read in, which for a short one is all of it
/// with its head.
const PIECE: usize = 8 * RECORD;
const SLICES: usize = 8;
const SEALED: usize = PIECE + (8 + SLICES) * RECORD_OVERHEAD;

thread_local! {
    static RECEIVED: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
    static SENT: RefCell<Box<[u8]>> = RefCell::new(vec![0; SEALED].into());
    static GATHERED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The plain side of a TLS connection.
///
/// A write that the socket does not take at once is kept; it leaves with the next write or flush.
pub struct TlsStream<IO> {
    io: IO,
    tls: UnbufferedServerConnection,
    /// The beginning of a record.
    received: Vec<u8>,
    /// Decrypted, and not yet read.
    opened: BytesMut,
    /// Encrypted, and not yet taken by the socket.
    sealed: BytesMut,
    /// The peer has said that it sends no more.
    peer_ended: bool,
    ended: bool,
    transferred: Transferred,
}

impl<IO: ClientIo> ClientIo for TlsStream<IO> {
    fn transferred(&self) -> Transferred {
        self.transferred
    }

    fn has_left(&self) -> bool {
        self.io.has_left()
    }

    fn try_write(&mut self, _bytes: &[u8]) -> usize {
        let n = self.io.try_write(&self.sealed);
        self.sealed.advance(n);
        self.transferred.sent += n as u64;
        0
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> TlsStream<IO> {
    /// A connection of which `received` has arrived.
    pub fn new(io: IO, tls: UnbufferedServerConnection, received: Vec<u8>) -> Self {
        let (opened, sealed) = (BytesMut::new(), BytesMut::new());
        Self { io, tls, received, opened, sealed, peer_ended: false, ended: false, transferred: Transferred::default() }
    }

    /// What the handshake has settled.
    pub fn state(&self) -> &CommonState {
        &self.tls
    }

    /// Shakes hands.
    ///
    /// # Errors
    /// The peer left, or both have nothing in common; then it has been told.
    pub fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut received = std::mem::take(&mut self.received);
            let used = self.open(cx, &mut received, None)?;
            received.drain(..used);
            self.received = received;
            if !self.tls.is_handshaking() && self.tls.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3) {
                // What is left to say are the tickets. They travel with the first answer, which saves a write.
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_push(cx))?;
            if !self.tls.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            let n = RECEIVED.with_borrow_mut(|scratch| {
                let mut buf = ReadBuf::new(&mut scratch[..RECORD]);
                ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
                self.received.extend_from_slice(buf.filled());
                Poll::Ready(io::Result::Ok(buf.filled().len()))
            });
            if ready!(n)? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Takes all whole records off the front of `received`; how many bytes they were. What is in them goes to `buf` as
    /// far as it fits.
    fn open(
        &mut self,
        cx: &mut Context<'_>,
        received: &mut [u8],
        mut buf: Option<&mut ReadBuf<'_>>,
    ) -> io::Result<usize> {
        let mut used = 0;
        loop {
            let UnbufferedStatus { mut discard, state } = self.tls.process_tls_records(&mut received[used..]);
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(invalid)?;
                        discard += record.discard;
                        let room = buf.as_ref().map_or(0, |buf| buf.remaining()).min(record.payload.len());
                        let (now, later) = record.payload.split_at(room);
                        if let Some(buf) = &mut buf {
                            buf.put_slice(now);
                        }
                        self.opened.extend_from_slice(later);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, &mut self.sealed)?,
                // Sent in order with everything else.
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.peer_ended = true,
                Ok(_) => return Ok(used + discard),
                Err(error) => {
                    self.tell_why(cx);
                    return Err(invalid(error));
                }
            }
            used += discard;
        }
    }

    /// Sends the alert of a broken connection, as far as the socket takes it.
    fn tell_why(&mut self, cx: &mut Context<'_>) {
        while let Ok(ConnectionState::EncodeTlsData(data)) = self.tls.process_tls_records(&mut []).state {
            if encode(data, &mut self.sealed).is_err() {
                break;
            }
        }
        // The connection is over whether the peer hears why or not.
        let _ = self.poll_push(cx);
    }

    /// Writes what has been encrypted.
    fn poll_push(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.sealed.is_empty() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.sealed))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sealed.advance(n);
            self.transferred.sent += n as u64;
        }
        if self.sealed.capacity() > 0 {
            self.sealed = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Encrypts as much as fits; how many bytes were taken, and how many they have become.
    fn seal(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>], out: &mut [u8]) -> io::Result<(usize, usize)> {
        // Whatever the protocol has to say by itself goes first.
        let mut received = std::mem::take(&mut self.received);
        let used = self.open(cx, &mut received, None)?;
        received.drain(..used);
        self.received = received;
        let UnbufferedStatus { state, .. } = self.tls.process_tls_records(&mut self.received);
        let Ok(ConnectionState::WriteTraffic(mut traffic)) = state else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let mut seal = |bytes: &[u8], out: &mut [u8]| traffic.encrypt(bytes, out).map_err(exhausted);
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        match slices {
            [slice] => {
                let taken = slice.len().min(PIECE);
                Ok((taken, seal(&slice[..taken], out)?))
            }
            // A head and a small body make one record.
            _ if total <= RECORD => GATHERED.with_borrow_mut(|gathered| {
                gathered.clear();
                slices.iter().for_each(|slice| gathered.extend_from_slice(slice));
                Ok((total, seal(gathered, out)?))
            }),
            _ => {
                let (mut taken, mut len) = (0, 0);
                for slice in slices.iter().filter(|slice| !slice.is_empty()).take(SLICES) {
                    let n = slice.len().min(PIECE - taken);
                    if n > 0 {
                        len += seal(&slice[..n], &mut out[len..])?;
                        taken += n;
                    }
                }
                Ok((taken, len))
            }
        }
    }
}

/// Appends what the protocol has to say.
fn encode<Data>(mut data: EncodeTlsData<'_, Data>, sealed: &mut BytesMut) -> io::Result<()> {
    let at = sealed.len();
    loop {
        match data.encode(&mut sealed[at..]) {
            Ok(n) => {
                sealed.truncate(at + n);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(size)) => sealed.resize(at + size.required_size, 0),
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn exhausted(error: EncryptError) -> io::Error {
    io::Error::other(error)
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        loop {
            if !this.opened.is_empty() {
                let n = this.opened.len().min(buf.remaining());
                buf.put_slice(&this.opened[..n]);
                this.opened.advance(n);
                if this.opened.is_empty() {
                    this.opened = BytesMut::new();
                }
                return Poll::Ready(Ok(()));
            }
            if this.peer_ended || buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            let opened = RECEIVED.with_borrow_mut(|scratch| {
                let have = this.received.len();
                // Not much more than there is room for: what does not fit has to be kept.
                let records = buf.remaining().div_ceil(RECORD);
                let most = (records * (RECORD + RECORD_OVERHEAD)).max(have + RECORD).min(scratch.len());
                let mut filling = ReadBuf::new(&mut scratch[have..most]);
                ready!(Pin::new(&mut this.io).poll_read(cx, &mut filling))?;
                let all = have + filling.filled().len();
                if all == have {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "peer closed connection without sending TLS close_notify",
                    )));
                }
                this.transferred.received += (all - have) as u64;
                scratch[..have].copy_from_slice(&this.received);
                let used = this.open(cx, &mut scratch[..all], Some(&mut *buf))?;
                this.received = if used == all { Vec::new() } else { scratch[used..all].to_vec() };
                Poll::Ready(Ok(()))
            });
            ready!(opened)?;
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if slices.iter().all(|slice| slice.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        // Small leftovers, such as the tickets of a handshake, join what comes now.
        if this.sealed.len() > RECORD {
            ready!(this.poll_push(cx))?;
        }
        SENT.with_borrow_mut(|out| {
            let (taken, len) = this.seal(cx, slices, out)?;
            let mut rest = &out[..len];
            while this.sealed.is_empty() && !rest.is_empty() {
                match Pin::new(&mut this.io).poll_write(cx, rest) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(n)) => {
                        this.transferred.sent += n as u64;
                        rest = &rest[n..];
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => break,
                }
            }
            if !rest.is_empty() {
                this.sealed.extend_from_slice(rest);
                // A socket that is full takes it later; a broken one says so again.
                let _ = this.poll_push(cx);
            }
            Poll::Ready(Ok(taken))
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_push(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !std::mem::replace(&mut this.ended, true)
            && let Ok(ConnectionState::WriteTraffic(mut traffic)) =
                this.tls.process_tls_records(&mut this.received).state
        {
            let mut farewell = [0; 2 + RECORD_OVERHEAD];
            let n = traffic.queue_close_notify(&mut farewell).map_err(exhausted)?;
            this.sealed.extend_from_slice(&farewell[..n]);
        }
        ready!(this.poll_push(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

impl<IO> fmt::Debug for TlsStream<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsStream")
    }
}

/// A byte stream that remembers what has been read of it, so that a ClientHello can be read twice: once to choose a
/// configuration, and once by the connection that is made with it.
pub struct ReplayStream<IO> {
    pub io: IO,
    pub read: Vec<u8>,
    /// How much is read at most.
    pub limit: usize,
}

impl<IO: AsyncRead + Unpin> AsyncRead for ReplayStream<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        this.read.extend_from_slice(&buf.filled()[before..]);
        if this.read.len() > this.limit {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "the ClientHello is too long")));
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for ReplayStream<IO> {
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

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::Arc};

    use rustls::{
        ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion,
        crypto::aws_lc_rs,
        pki_types::ServerName,
        version::{TLS12, TLS13},
    };
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio_rustls::{TlsConnector, client};

    use super::*;

    /// Both ends of a connection over a pipe that takes `size` bytes at a time.
    async fn pair(
        version: &'static SupportedProtocolVersion,
        size: usize,
    ) -> (client::TlsStream<DuplexStream>, TlsStream<DuplexStream>) {
        let made = rcgen::generate_simple_self_signed(vec!["a.test".to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], made.signing_key.serialize_der().try_into().unwrap())
            .unwrap();
        server.ticketer = aws_lc_rs::Ticketer::new().unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (near, far) = duplex(size);
        let connection = UnbufferedServerConnection::new(Arc::new(server)).unwrap();
        let mut stream = TlsStream::new(far, connection, Vec::new());
        let name = ServerName::try_from("a.test").unwrap();
        let connector = TlsConnector::from(Arc::new(client));
        let (client, server) = tokio::join!(connector.connect(name, near), poll_fn(|cx| stream.poll_handshake(cx)));
        server.unwrap();
        (client.unwrap(), stream)
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_whatever_the_cut() {
        let sent: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        for version in [&TLS12, &TLS13] {
            for size in [61, 1_000, 100_000] {
                let (client, server) = pair(version, size).await;
                let (mut client_read, mut client_write) = tokio::io::split(client);
                let (mut server_read, mut server_write) = tokio::io::split(server);
                let up = async {
                    client_write.write_all(&sent).await.unwrap();
                    client_write.shutdown().await.unwrap();
                };
                let down = async {
                    let mut rest = &sent[..];
                    while !rest.is_empty() {
                        let (head, body) = rest.split_at(rest.len().min(200));
                        let n = server_write.write_vectored(&[IoSlice::new(head), IoSlice::new(body)]).await.unwrap();
                        rest = &rest[n..];
                    }
                    server_write.shutdown().await.unwrap();
                };
                let (mut at_client, mut at_server) = (Vec::new(), Vec::new());
                let (_, _, down_len, up_len) = tokio::join!(
                    up,
                    down,
                    client_read.read_to_end(&mut at_client),
                    server_read.read_to_end(&mut at_server)
                );
                assert_eq!((down_len.unwrap(), up_len.unwrap()), (sent.len(), sent.len()));
                assert!(at_client == sent && at_server == sent, "{size}");
            }
        }
    }

    #[tokio::test]
    async fn a_read_takes_all_the_records_that_it_has_room_for() {
        let (client, mut server) = pair(&TLS13, 1_000_000).await;
        let (_client_read, mut client_write) = tokio::io::split(client);
        client_write.write_all(&[7; 300_000]).await.unwrap();
        let mut room = vec![0; 256 * 1024];
        assert_eq!(server.read(&mut room).await.unwrap(), room.len());
        let mut rest = vec![0; 300_000 - room.len()];
        server.read_exact(&mut rest).await.unwrap();
        assert!(room.iter().chain(&rest).all(|byte| *byte == 7));
    }

    #[tokio::test]
    async fn what_the_socket_takes_counts_before_all_has_left() {
        let (client, mut server) = pair(&TLS13, 1_000).await;
        // What is encrypted at once; the pipe takes a kilobyte of it.
        server.write_all(&[7; PIECE]).await.unwrap();
        let (mut pipe, _) = client.into_inner();
        for _ in 0..20 {
            let sent = server.transferred().sent;
            pipe.read_exact(&mut [0; 1_000]).await.unwrap();
            let written = poll_fn(|cx| Poll::Ready(Pin::new(&mut server).poll_write(cx, b"more"))).await;
            assert!(written.is_pending() && server.transferred().sent == sent + 1_000);
        }
    }

    #[tokio::test]
    async fn what_has_arrived_of_a_record_counts_before_it_is_whole() {
        let (client, mut server) = pair(&TLS13, 1_000).await;
        let (mut pipe, _) = client.into_inner();
        let header = [23, 3, 3, 0x40, 0];
        for part in [&header[..], &[0; 1_000], &[0; 1_000]] {
            let received = server.transferred().received;
            pipe.write_all(part).await.unwrap();
            let mut room = [0; 10];
            let mut buf = ReadBuf::new(&mut room);
            let read = poll_fn(|cx| Poll::Ready(Pin::new(&mut server).poll_read(cx, &mut buf))).await;
            assert!(read.is_pending() && server.transferred().received == received + part.len() as u64);
        }
    }

    #[tokio::test]
    async fn an_end_without_a_word_is_no_end() {
        let (mut client, mut server) = pair(&TLS13, 100_000).await;
        client.write_all(b"half").await.unwrap();
        client.flush().await.unwrap();
        drop(client);
        let mut got = Vec::new();
        let error = server.read_to_end(&mut got).await.unwrap_err();
        assert_eq!((error.kind(), &got[..]), (io::ErrorKind::UnexpectedEof, &b"half"[..]));
    }

    #[tokio::test]
    async fn what_is_no_record_is_answered_with_an_alert() {
        let (client, mut server) = pair(&TLS13, 100_000).await;
        let (mut io, _) = client.into_inner();
        io.write_all(&[23, 3, 3, 0, 20]).await.unwrap();
        io.write_all(&[0; 20]).await.unwrap();
        let error = server.read(&mut [0; 10]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        drop(server);
        let mut got = Vec::new();
        io.read_to_end(&mut got).await.unwrap();
        assert!(!got.is_empty());
    }
}
