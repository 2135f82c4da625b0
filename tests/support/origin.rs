//! Upstreams that record every byte that reaches them.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// An upstream; its connections end when it is dropped.
pub struct Origin {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Origin {
    /// Answers each request, of which the head and the body are given, by bytes. An empty answer closes the connection.
    pub async fn answering(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let answer = Arc::new(answer);
        Self::talking(move |mut stream, seen| {
            let answer = answer.clone();
            async move {
                while let Some(request) = read_request(&mut stream).await {
                    seen.lock().unwrap().push(request.clone());
                    let bytes = answer(&request);
                    if bytes.is_empty() || stream.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
            }
        })
        .await
    }

    /// Answers everything with 200 and a body that says which path was asked for.
    pub async fn echoing_targets() -> Self {
        Self::answering(|request| {
            let target = request.split(' ').nth(1).unwrap_or_default();
            ok(target)
        })
        .await
    }

    /// Hands over each connection and the record.
    pub async fn talking<F>(talk: impl Fn(TcpStream, Arc<Mutex<Vec<String>>>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (seen, connections) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let (record, count) = (seen.clone(), connections.clone());
        #[expect(clippy::disallowed_methods, reason = "ended by drop")]
        let task = tokio::spawn(async move {
            let mut talks = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                talks.spawn(talk(stream, record.clone()));
            }
        });
        Self { addr, seen, connections, task }
    }

    /// As an upstream in a configuration.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Its address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// All requests so far, heads and bodies.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An answer of 200 with a length.
pub fn ok(body: &str) -> Vec<u8> {
    answer("200 OK", &[("content-type", "text/plain")], body)
}

/// An answer with a length.
pub fn answer(status: &str, fields: &[(&str, &str)], body: &str) -> Vec<u8> {
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("HTTP/1.1 {status}\r\n{fields}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Reads one request: its head, and its body as it stands on the wire.
pub async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let chunked = text.contains("transfer-encoding: chunked");
    let length = text.split("content-length: ").nth(1).and_then(|rest| rest.split('\r').next()?.parse::<usize>().ok());
    loop {
        let body = &bytes[head..];
        let done = match (chunked, length) {
            (true, _) => {
                body.ends_with(b"0\r\n\r\n")
                    || body.windows(5).any(|window| window == b"\r\n0\r\n") && body.ends_with(b"\r\n\r\n")
            }
            (false, Some(length)) => body.len() >= length,
            (false, None) => true,
        };
        if done {
            return Some(String::from_utf8_lossy(&bytes).into_owned());
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

/// The `Sec-WebSocket-Accept` for the key of a request.
pub fn accept_key(request: &str) -> String {
    let lines = request.lines().filter_map(|line| line.split_once(": "));
    let key = lines.filter(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key")).map(|(_, key)| key).next();
    tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.unwrap_or_default().as_bytes())
}
