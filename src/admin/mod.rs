//! The operator's door: a few pages over HTTP/1.1 on loopback or a unix socket, and the client that asks for them.
//!
//! It has no password; who may reach it is the address's business. A browser on the same machine may not: a request with
//! an `Origin`, or with a `Host` that is no address, is refused, so that no web page can reload or read anything by way
//! of its visitor (DNS rebinding).

mod client;

pub use client::{CallError, call};

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt as _, PermissionsExt as _},
    },
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::{Method, StatusCode, header};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::timeout,
};
use tokio_util::{either::Either, sync::CancellationToken, task::TaskTracker};

use crate::{
    config::plan::AdminListen,
    message::{Fields, Value},
    wire::{self, HeadLimits},
};

/// A question is short.
const LIMITS: HeadLimits = HeadLimits { bytes: 8 * 1024, fields: 64, target: 1024 };

/// How long a question and its answer may take; a reload waits for files and sockets only.
const PATIENCE: Duration = Duration::from_secs(30);

/// The formats of `/metrics`.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the pages show.
pub trait AdminHandlers: Send + Sync + 'static {
    /// `/metrics`: as OpenMetrics text, or as the older text format of Prometheus.
    fn metrics(&self, openmetrics: bool) -> String;
    /// What keeps the edge from being ready; nothing, if it is.
    fn unready(&self) -> Vec<String>;
    /// `/certificates`.
    fn certificates(&self) -> serde_json::Value;
    /// `/upstreams`.
    fn upstreams(&self) -> serde_json::Value;
    /// `/status`: all of it.
    fn status(&self) -> serde_json::Value;
    /// `POST /renew/HOST`: whether there is such a name, and it is ordered for.
    fn renew(&self, host: &str) -> bool;
    /// `POST /reload`: what happened.
    fn reload(&self) -> BoxFuture<'static, Reloaded>;
}

/// What came of a reload, in words for the one who asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reloaded {
    /// It is in effect, or there was nothing to do.
    Fine(String),
    /// The file is bad: its report.
    BadFile(String),
    /// The file is good, and cannot be put into effect; nothing has changed.
    Failed(String),
}

/// Opens the door.
///
/// # Errors
/// The address cannot be had.
pub fn serve(
    listen: &AdminListen,
    state: Arc<dyn AdminHandlers>,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> io::Result<()> {
    let server = AdminServer::open(listen)?;
    let (stop, tracker) = (stop.clone(), tasks.clone());
    tasks.spawn(async move {
        while let Some(accepted) = stop.run_until_cancelled(server.accept()).await {
            match accepted {
                Ok(io) => drop(tracker.spawn(answer(io, state.clone()))),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    });
    Ok(())
}

/// Where questions come in.
enum AdminServer {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl AdminServer {
    fn open(listen: &AdminListen) -> io::Result<Self> {
        match listen {
            AdminListen::Tcp(addr) => {
                let socket = Socket::new(Domain::for_address(*addr), Type::STREAM, Some(Protocol::TCP))?;
                socket.set_reuse_address(true)?;
                // So that a new process can open its door while the old one drains.
                socket.set_reuse_port(true)?;
                let listener = TcpListener::from_std(listening(socket, &(*addr).into())?.into())?;
                tracing::info!(listener = "admin", addr = %listener.local_addr()?, "listening");
                Ok(Self::Tcp(listener))
            }
            AdminListen::Unix(path) => {
                // A socket of a process that is gone; a living one that holds it does not mind losing its name. Anything
                // else that has this name is not ours to remove.
                if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
                    fs::remove_file(path)?;
                }
                // The name gets the rights of the socket that is bound to it. Were they set afterwards, everybody whom
                // the umask lets in could connect meanwhile.
                let socket = fs::File::from(OwnedFd::from(Socket::new(Domain::UNIX, Type::STREAM, None)?));
                socket.set_permissions(fs::Permissions::from_mode(0o600))?;
                let socket = Socket::from(OwnedFd::from(socket));
                let listener = UnixListener::from_std(listening(socket, &SockAddr::unix(path)?)?.into())?;
                tracing::info!(listener = "admin", addr = %path.display(), "listening");
                Ok(Self::Unix(listener))
            }
        }
    }

    async fn accept(&self) -> io::Result<Either<TcpStream, UnixStream>> {
        Ok(match self {
            Self::Tcp(listener) => Either::Left(listener.accept().await?.0),
            Self::Unix(listener) => Either::Right(listener.accept().await?.0),
        })
    }
}

fn listening(socket: Socket, address: &SockAddr) -> io::Result<Socket> {
    socket.set_nonblocking(true)?;
    socket.bind(address)?;
    socket.listen(64)?;
    Ok(socket)
}

/// One question a connection.
async fn answer<IO: AsyncRead + AsyncWrite + Unpin>(mut io: IO, state: Arc<dyn AdminHandlers>) {
    let exchange = async {
        let page = match read(&mut io).await? {
            Some(head) => page(&head.method, head.target.path(), &head.fields, state.as_ref()).await,
            None => Page::text(StatusCode::BAD_REQUEST, "this is no request\n"),
        };
        io.write_all(&page.encode()).await?;
        io.shutdown().await
    };
    // Whoever asked may have left.
    let _ = timeout(PATIENCE, exchange).await;
}

async fn read<IO: AsyncRead + Unpin>(io: &mut IO) -> io::Result<Option<wire::RequestHead>> {
    let (mut buf, mut scanned) = (BytesMut::with_capacity(1024), 0);
    loop {
        match wire::head_len(&buf, &mut scanned) {
            Ok(Some(len)) => return Ok(wire::parse_request(&buf[..len], &LIMITS).ok()),
            Ok(None) if buf.len() < LIMITS.total() => {}
            Ok(None) | Err(_) => return Ok(None),
        }
        if io.read_buf(&mut buf).await? == 0 {
            return Ok(None);
        }
    }
}

struct Page {
    status: StatusCode,
    content_type: &'static str,
    body: Bytes,
}

impl Page {
    fn text(status: StatusCode, text: impl Into<Bytes>) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: text.into() }
    }

    fn json(value: &serde_json::Value) -> Self {
        Self { status: StatusCode::OK, content_type: "application/json", body: format!("{value:#}\n").into() }
    }

    fn encode(&self) -> Vec<u8> {
        let mut fields = Fields::new();
        fields.insert(header::CONTENT_TYPE, Value::from_static(self.content_type));
        fields.insert_number(header::CONTENT_LENGTH, self.body.len());
        fields.insert(header::CACHE_CONTROL, Value::from_static("no-store"));
        fields.insert(header::CONNECTION, Value::from_static("close"));
        let mut out = Vec::with_capacity(256 + self.body.len());
        wire::response_head(&mut out, self.status, &fields);
        out.extend_from_slice(&self.body);
        out
    }
}

async fn page(method: &Method, path: &str, fields: &Fields, state: &dyn AdminHandlers) -> Page {
    if fields.contains(header::ORIGIN) || !has_plain_host(fields) {
        return Page::text(StatusCode::FORBIDDEN, "this is not for browsers\n");
    }
    match (method, path) {
        (&Method::GET, "/health") => Page::text(StatusCode::OK, "ok\n"),
        (&Method::GET, "/ready") => match state.unready() {
            reasons if reasons.is_empty() => Page::text(StatusCode::OK, "ready\n"),
            reasons => Page::text(StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n"),
        },
        (&Method::GET, "/metrics") => {
            let accepts = |value: Value<'_>| value.to_str().is_some_and(|list| list.contains("openmetrics-text"));
            let openmetrics = fields.get_all(header::ACCEPT).any(accepts);
            let content_type = if openmetrics { OPENMETRICS } else { CLASSIC };
            Page { status: StatusCode::OK, content_type, body: state.metrics(openmetrics).into() }
        }
        (&Method::GET, "/certificates") => Page::json(&state.certificates()),
        (&Method::GET, "/upstreams") => Page::json(&state.upstreams()),
        (&Method::GET, "/status") => Page::json(&state.status()),
        (&Method::POST, "/reload") => match state.reload().await {
            Reloaded::Fine(said) => Page::text(StatusCode::OK, said),
            Reloaded::BadFile(report) => Page::text(StatusCode::UNPROCESSABLE_ENTITY, report),
            Reloaded::Failed(problem) => Page::text(StatusCode::CONFLICT, problem),
        },
        (&Method::POST, path) if path.starts_with("/renew/") => {
            let host = path.trim_start_matches("/renew/").to_ascii_lowercase();
            if state.renew(&host) {
                Page::text(
                    StatusCode::ACCEPTED,
                    format!("a new certificate for {host} is being ordered; see /certificates\n"),
                )
            } else {
                Page::text(StatusCode::NOT_FOUND, format!("no certificate is ordered for {host}\n"))
            }
        }
        (_, "/health" | "/ready" | "/metrics" | "/certificates" | "/upstreams" | "/status" | "/reload") => {
            Page::text(StatusCode::METHOD_NOT_ALLOWED, "POST for /reload, GET for the rest\n")
        }
        _ => Page::text(
            StatusCode::NOT_FOUND,
            "/health /ready /metrics /certificates /upstreams /status, POST /reload /renew/HOST\n",
        ),
    }
}

/// A name that is no address may have been made to point here.
fn has_plain_host(fields: &Fields) -> bool {
    let Some(host) = fields.get(header::HOST).and_then(|host| host.to_str()) else { return true };
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost"
        || name.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok()
        || host.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fine;

    impl AdminHandlers for Fine {
        fn metrics(&self, _openmetrics: bool) -> String {
            "# EOF\n".to_owned()
        }
        fn unready(&self) -> Vec<String> {
            vec!["nothing works".to_owned()]
        }
        fn certificates(&self) -> serde_json::Value {
            serde_json::json!([])
        }
        fn upstreams(&self) -> serde_json::Value {
            serde_json::json!([])
        }
        fn status(&self) -> serde_json::Value {
            serde_json::json!({})
        }
        fn renew(&self, host: &str) -> bool {
            host == "a.example.org"
        }
        fn reload(&self) -> BoxFuture<'static, Reloaded> {
            Box::pin(async { Reloaded::BadFile("no\n".to_owned()) })
        }
    }

    #[tokio::test]
    async fn the_client_and_the_door_understand_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let listen = AdminListen::Unix(folder.path().join("admin.sock"));
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        serve(&listen, Arc::new(Fine), &stop, &tasks).unwrap();
        for (method, path, status) in [
            ("GET", "/health", 200),
            ("GET", "/ready", 503),
            ("POST", "/reload", 422),
            ("GET", "/reload", 405),
            ("POST", "/renew/A.example.org", 202),
            ("POST", "/renew/b.example.org", 404),
            ("GET", "/nothing", 404),
        ] {
            let (answered, _) = call(&listen, method.parse().unwrap(), path).await.unwrap();
            assert_eq!(answered, status, "{path}");
        }
    }

    #[tokio::test]
    async fn a_unix_socket_is_its_owners_from_the_moment_that_it_has_a_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        // Nothing but the bind itself has set them: see there.
        let _door = AdminServer::open(&AdminListen::Unix(path.clone())).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_stranger_is_called_one() {
        for answer in [&b"\xff\xfe"[..], b"HTTP/1.0 404 Not Found\r\nContent-Type: text/html\r\n\r\n<html>"] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let listen = AdminListen::Tcp(listener.local_addr().unwrap());
            let stranger = std::thread::spawn(move || {
                let (mut io, _) = listener.accept().unwrap();
                io::Read::read(&mut io, &mut [0; 512]).unwrap();
                io::Write::write_all(&mut io, answer).unwrap();
            });
            let said = call(&listen, Method::GET, "/health").await.unwrap_err().to_string();
            assert!(said.ends_with("is no edge"), "{said}");
            stranger.join().unwrap();
        }
    }

    #[tokio::test]
    async fn a_web_page_gets_nothing() {
        for (name, value, allowed) in [
            ("origin", "https://evil.example", false),
            ("host", "evil.example:9180", false),
            ("host", "127.0.0.1:9180", true),
            ("host", "localhost", true),
            ("host", "[::1]:9180", true),
        ] {
            let fields = Fields::from_iter([(name.parse().unwrap(), Value::new(value.as_bytes()).unwrap())]);
            let status = page(&Method::GET, "/health", &fields, &Fine).await.status;
            assert_eq!(status == StatusCode::OK, allowed, "{name}: {value}");
        }
    }
}
