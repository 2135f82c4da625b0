//! Clients that say exactly what they are told to.

use std::{net::SocketAddr, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Edge, edge::PATIENCE};

/// An answer as it came.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// All values of a field.
    pub fn all(&self, name: &str) -> Vec<String> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).collect()
    }

    /// The only value of a field.
    pub fn field(&self, name: &str) -> Option<String> {
        let all = self.all(name);
        assert!(all.len() <= 1, "{name} is there {} times:\n{}", all.len(), self.head);
        all.into_iter().next()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

/// One connection.
pub struct Client<IO> {
    pub io: IO,
    read: Vec<u8>,
}

impl Client<TcpStream> {
    /// Plain HTTP.
    pub async fn plain(addr: SocketAddr) -> Self {
        Self { io: TcpStream::connect(addr).await.unwrap(), read: Vec::new() }
    }
}

impl Client<TlsStream<TcpStream>> {
    /// HTTP/1.1 over TLS, for this name.
    pub async fn tls(edge: &Edge, name: &str) -> Self {
        Self::tls_at(edge.https(), &edge.root(), name).await
    }

    /// The same where only an address and the root of the CA are known.
    pub async fn tls_at(addr: SocketAddr, root: &str, name: &str) -> Self {
        Self { io: handshake(addr, root, name, &["http/1.1"]).await.unwrap(), read: Vec::new() }
    }
}

/// Shakes hands for a name, offering these protocols.
pub async fn tls(edge: &Edge, name: &str, protocols: &[&str]) -> std::io::Result<TlsStream<TcpStream>> {
    handshake(edge.https(), &edge.root(), name, protocols).await
}

async fn handshake(
    addr: SocketAddr,
    root: &str,
    name: &str,
    protocols: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    tls_over(TcpStream::connect(addr).await?, root, name, protocols).await
}

/// Shakes hands over any stream, trusting this root.
pub async fn tls_over<IO: AsyncRead + AsyncWrite + Unpin>(
    io: IO,
    root: &str,
    name: &str,
    protocols: &[&str],
) -> std::io::Result<TlsStream<IO>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name.to_owned()).unwrap(), io).await
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Client<IO> {
    /// Sends bytes.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.io.write_all(bytes.as_ref()).await.unwrap();
        self.io.flush().await.unwrap();
    }

    /// Sends a GET for a host and reads the answer.
    pub async fn get(&mut self, host: &str, target: &str) -> Answer {
        self.ask(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await
    }

    /// Sends a request and reads the answer.
    pub async fn ask(&mut self, request: &str) -> Answer {
        self.send(request).await;
        self.answer(request.starts_with("HEAD")).await
    }

    /// Reads one answer, interim ones left out.
    pub async fn answer(&mut self, head_only: bool) -> Answer {
        loop {
            let answer = timeout(PATIENCE, self.read_answer(head_only)).await.expect("an answer in time");
            let answer = answer.expect("an answer");
            if !(100..200).contains(&answer.status) || answer.status == 101 {
                return answer;
            }
        }
    }

    /// Reads one answer, whatever it is; `None` when the connection ends first.
    pub async fn read_answer(&mut self, head_only: bool) -> Option<Answer> {
        let end = loop {
            if let Some(at) = self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if self.fill().await == 0 {
                return None;
            }
        };
        let head = String::from_utf8_lossy(&self.read[..end]).into_owned();
        self.read.drain(..end);
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{head}"));
        let mut answer = Answer { status, head, body: Vec::new() };
        let length = answer.field("content-length").map(|length| length.parse::<usize>().unwrap());
        let chunked = answer.field("transfer-encoding").is_some();
        if head_only || status < 200 || status == 204 || status == 304 {
            return Some(answer);
        }
        match length {
            Some(length) => {
                while self.read.len() < length {
                    assert!(self.fill().await > 0, "the body is cut short");
                }
                answer.body = self.read.drain(..length).collect();
            }
            None if chunked => answer.body = self.chunks().await?,
            None => {
                while self.fill().await > 0 {}
                answer.body = std::mem::take(&mut self.read);
            }
        }
        Some(answer)
    }

    /// Reads a chunked body; `None` when it is cut short.
    async fn chunks(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = loop {
                if let Some(at) = self.read.windows(2).position(|window| window == b"\r\n") {
                    break at;
                }
                if self.fill().await == 0 {
                    return None;
                }
            };
            let size = std::str::from_utf8(&self.read[..line]).unwrap();
            let size = usize::from_str_radix(size, 16).unwrap();
            while self.read.len() < line + 2 + size + 2 {
                if self.fill().await == 0 {
                    return None;
                }
            }
            body.extend_from_slice(&self.read[line + 2..line + 2 + size]);
            self.read.drain(..line + 2 + size + 2);
            if size == 0 {
                return Some(body);
            }
        }
    }

    /// Sends a request and reads whatever comes, to the end of the connection.
    pub async fn ask_badly(mut self, request: &str) -> Vec<u8> {
        self.send(request).await;
        assert!(self.ends().await);
        self.read
    }

    /// Reads until there are so many bytes.
    pub async fn exactly(&mut self, len: usize) -> Vec<u8> {
        while self.read.len() < len {
            let more = timeout(PATIENCE, self.fill()).await.expect("bytes in time");
            assert!(more > 0, "the connection ended after {:?}", self.read);
        }
        self.read.drain(..len).collect()
    }

    /// Whether the connection ends, whatever comes before.
    pub async fn ends(&mut self) -> bool {
        timeout(PATIENCE, async { while self.fill().await > 0 {} }).await.is_ok()
    }

    async fn fill(&mut self) -> usize {
        // A reset is an end as well.
        self.io.read_buf(&mut self.read).await.unwrap_or(0)
    }
}
