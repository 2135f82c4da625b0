//! The PROXY protocol, versions 1 and 2 (haproxy.org, `proxy-protocol.txt`): who the client of a load balancer is.
//!
//! From the peers of the list the header is required; from all others nothing is looked at, so that nobody can claim to
//! be somebody else.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf as _, BytesMut};
use ipnet::IpNet;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    time::{Instant, timeout_at},
};

use crate::message::{ClientIo, Transferred};

const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Longest line of version 1, its CRLF included (section 2.1).
const V1_MAX: usize = 107;

/// Longest header of version 2 that is read: room for addresses and a good deal of extensions, none of which we use.
const V2_MAX: usize = 16 + 2048;

/// Why a connection of a load balancer is refused.
#[derive(Debug, thiserror::Error)]
pub enum ProxyProtocolError {
    /// The header is missing or malformed.
    #[error("PROXY protocol header: {0}")]
    Malformed(&'static str),
    /// It did not come in time.
    #[error("PROXY protocol header took too long")]
    TimedOut,
    /// The peer left.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// The balancer speaks for itself: a health check.
    Local,
    /// It speaks for this client.
    Client(SocketAddr),
}

/// Reads the header where one is due; the client's address, and the stream that goes on behind the header.
///
/// # Errors
/// There is no header from somebody who has to send one.
pub async fn read<IO: AsyncRead + Unpin>(
    mut io: IO,
    peer: SocketAddr,
    required_from: &[IpNet],
    deadline: Option<Instant>,
) -> Result<(Prefixed<IO>, SocketAddr), ProxyProtocolError> {
    if !required_from.iter().any(|network| network.contains(&peer.ip())) {
        return Ok((Prefixed { io, read: BytesMut::new() }, peer));
    }
    let mut read = BytesMut::with_capacity(256);
    let header = async {
        loop {
            if io.read_buf(&mut read).await? == 0 {
                return Err(ProxyProtocolError::Malformed("the connection ended inside it"));
            }
            if let Some(found) = parse(&read)? {
                return Ok(found);
            }
        }
    };
    let (header, len) = match deadline {
        Some(deadline) => timeout_at(deadline, header).await.map_err(|_| ProxyProtocolError::TimedOut)??,
        None => header.await?,
    };
    read.advance(len);
    let client = match header {
        Header::Local => peer,
        Header::Client(client) => super::plain(client),
    };
    Ok((Prefixed { io, read }, client))
}

/// The header at the start of `bytes` and its length, or `None` if more bytes are needed.
///
/// # Errors
/// The bytes are no header.
pub fn parse(bytes: &[u8]) -> Result<Option<(Header, usize)>, ProxyProtocolError> {
    let shared = bytes.len().min(V2_SIGNATURE.len());
    if bytes[..shared] == V2_SIGNATURE[..shared] && !bytes.is_empty() {
        return parse_v2(bytes);
    }
    let shared = bytes.len().min(6);
    if bytes[..shared] == b"PROXY "[..shared] {
        return parse_v1(bytes);
    }
    Err(ProxyProtocolError::Malformed("it is missing"))
}

fn parse_v1(bytes: &[u8]) -> Result<Option<(Header, usize)>, ProxyProtocolError> {
    let malformed = ProxyProtocolError::Malformed;
    let window = &bytes[..bytes.len().min(V1_MAX)];
    let Some(end) = memchr::memmem::find(window, b"\r\n") else {
        return if bytes.len() >= V1_MAX { Err(malformed("the line is too long")) } else { Ok(None) };
    };
    let line = std::str::from_utf8(&window[..end]).map_err(|_| malformed("the line is no text"))?;
    let mut words = line.split(' ').skip(1);
    let family = words.next().unwrap_or_default();
    if family == "UNKNOWN" {
        return Ok(Some((Header::Local, end + 2)));
    }
    let words: Vec<&str> = words.collect();
    let [source, _target, port, target_port] = words[..] else {
        return Err(malformed("the line has not six words"));
    };
    if target_port.parse::<u16>().is_err() {
        return Err(malformed("no port"));
    }
    let ip: IpAddr = match family {
        "TCP4" => source.parse::<Ipv4Addr>().map(Into::into).map_err(|_| malformed("no IPv4 address"))?,
        "TCP6" => source.parse::<Ipv6Addr>().map(Into::into).map_err(|_| malformed("no IPv6 address"))?,
        _ => return Err(malformed("the family is unknown")),
    };
    let port = port.parse().map_err(|_| malformed("no port"))?;
    Ok(Some((Header::Client(SocketAddr::new(ip, port)), end + 2)))
}

fn parse_v2(bytes: &[u8]) -> Result<Option<(Header, usize)>, ProxyProtocolError> {
    let malformed = ProxyProtocolError::Malformed;
    let Some([version, family, high, low]) = bytes.get(12..16) else { return Ok(None) };
    let len = 16 + usize::from(u16::from_be_bytes([*high, *low]));
    if len > V2_MAX {
        return Err(malformed("it is too long"));
    }
    let command = match version {
        0x20 => Header::Local,
        0x21 => Header::Client(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0)),
        _ => return Err(malformed("the version or command is unknown")),
    };
    let Some(body) = bytes.get(16..len) else { return Ok(None) };
    let header = match (command, family) {
        // AF_UNSPEC, and sockets of the balancer's own host, name no client.
        (Header::Local, _) | (_, 0x00 | 0x31 | 0x32) => Header::Local,
        (_, 0x11 | 0x12) => client_v2::<4>(body).ok_or_else(|| malformed("the addresses are cut short"))?,
        (_, 0x21 | 0x22) => client_v2::<16>(body).ok_or_else(|| malformed("the addresses are cut short"))?,
        _ => return Err(malformed("the family is unknown")),
    };
    Ok(Some((header, len)))
}

/// Source address, target address, source port, target port.
fn client_v2<const N: usize>(body: &[u8]) -> Option<Header>
where
    IpAddr: From<[u8; N]>,
{
    let source: [u8; N] = body.get(..N)?.try_into().ok()?;
    let ports = body.get(2 * N..2 * N + 4)?;
    Some(Header::Client(SocketAddr::new(source.into(), u16::from_be_bytes([ports[0], ports[1]]))))
}

/// A stream with bytes that were read of it already.
#[derive(Debug)]
pub struct Prefixed<IO> {
    io: IO,
    read: BytesMut,
}

impl<IO> Prefixed<IO> {
    /// The stream itself.
    pub const fn get_ref(&self) -> &IO {
        &self.io
    }
}

impl<IO: ClientIo> ClientIo for Prefixed<IO> {
    fn transferred(&self) -> Transferred {
        self.io.transferred()
    }

    fn has_left(&self) -> bool {
        self.io.has_left()
    }

    fn try_write(&mut self, bytes: &[u8]) -> usize {
        self.io.try_write(bytes)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Prefixed<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let n = self.read.len().min(buf.remaining());
        buf.put_slice(&self.read[..n]);
        self.read.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Prefixed<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
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
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let len = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&V2_SIGNATURE[..], &[0x20 | command, family], &len, body].concat()
    }

    fn client(text: &str) -> Header {
        Header::Client(text.parse().unwrap())
    }

    #[test]
    fn both_versions_are_read_whatever_the_cut() {
        let four = v2(1, 0x11, &[192, 0, 2, 1, 10, 0, 0, 1, 0x12, 0x34, 1, 187]);
        let with_tlv = v2(1, 0x11, &[192, 0, 2, 1, 10, 0, 0, 1, 0x12, 0x34, 1, 187, 4, 0, 1, 9]);
        let mut six = vec![0; 36];
        six[..4].copy_from_slice(&[0x20, 1, 0x0d, 0xb8]);
        six[15] = 1;
        six[33] = 80;
        for (bytes, header) in [
            (b"PROXY TCP4 192.0.2.1 10.0.0.1 4660 443\r\n".to_vec(), client("192.0.2.1:4660")),
            (b"PROXY TCP6 2001:db8::1 ::1 80 443\r\n".to_vec(), client("[2001:db8::1]:80")),
            (b"PROXY UNKNOWN\r\n".to_vec(), Header::Local),
            (b"PROXY UNKNOWN ff::1 ff::2 1 2\r\n".to_vec(), Header::Local),
            (four, client("192.0.2.1:4660")),
            (with_tlv, client("192.0.2.1:4660")),
            (v2(1, 0x21, &six), client("[2001:db8::1]:80")),
            (v2(0, 0x00, &[]), Header::Local),
        ] {
            for cut in 0..bytes.len() {
                assert!(cut == 0 || matches!(parse(&bytes[..cut]), Ok(None)), "{cut}");
            }
            let longer = [bytes.as_slice(), b"GET /"].concat();
            assert_eq!(parse(&longer).unwrap(), Some((header, bytes.len())));
        }
    }

    #[test]
    fn what_is_no_header_is_refused() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXY TCP4 192.0.2.1 10.0.0.1 4660\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 4660 443 1\r\n",
            b"PROXY TCP4 2001:db8::1 ::1 80 443\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 99999 443\r\n",
            b"PROXY UDP4 192.0.2.1 10.0.0.1 1 2\r\n",
            &[b"PROXY ".as_slice(), &[b'x'; 200]].concat(),
            &v2(1, 0x11, &[1, 2, 3]),
            &v2(3, 0x11, &[0; 12]),
            &v2(1, 0x11, &[0; 4000]),
        ] {
            assert!(parse(bytes).is_err());
        }
    }

    #[tokio::test]
    async fn what_follows_the_header_is_not_lost() {
        let (mut near, far) = tokio::io::duplex(1024);
        near.write_all(b"PROXY TCP4 192.0.2.1 10.0.0.1 4660 443\r\nGET /").await.unwrap();
        drop(near);
        let peer = "10.0.0.9:1".parse().unwrap();
        let (mut io, found) = read(far, peer, &["10.0.0.0/8".parse().unwrap()], None).await.unwrap();
        assert_eq!(found, "192.0.2.1:4660".parse().unwrap());
        let mut rest = Vec::new();
        io.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"GET /");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, version in 0..3) {
            let start: &[u8] = match version { 0 => b"", 1 => b"PROXY TCP4 ", _ => V2_SIGNATURE };
            let _ = parse(&[start, &bytes].concat());
        }
    }
}
