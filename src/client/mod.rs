//! The HTTP client of everything beside the request path: ACME directories, probes, the commands that ask a running edge.
//!
//! hyper speaks HTTP/1.1 and HTTP/2, rustls TLS, tower bounds time and concurrency. The request path has a client of its own
//! (`upstream`) and never uses this one: so a probe does not share a bug with what it probes. It knows no ACME and no Matrix.

mod connect;
pub mod dns;
mod inspect;
mod roots;
mod tls_client;
mod tls_error;
mod verifier;

pub use connect::{ConnectError, Destination, Resolve, connect_tls};
pub use inspect::inspect;
pub use roots::{Roots, RootsError};
pub use tls_client::{TlsClient, TlsClientError, TlsClients};
pub use tls_error::name_cause;

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use http::{StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use tower::{BoxError, ServiceBuilder, ServiceExt as _, timeout::error::Elapsed, util::BoxCloneSyncService};

use self::connect::Connector;
use crate::{
    conn::Fetch,
    error::{FailureCause, Kind, ProxyError, ServerFailure, chain},
    message::{Body, Request, Response, UpgradeHandler},
};

/// The longest response that is read unless the caller asks for more. No document of a CA or a probe is longer; Synapse's
/// own bound for a well-known document is 50 KiB.
const MAX_RESPONSE: usize = 1 << 20;

/// Requests that one client has in flight at a time; others wait without losing their own time.
const CONCURRENCY: usize = 16;

/// How long an idle connection is kept. Shorter than what servers keep one (nginx 75 s, Boulder's CDN 100 s), so that a
/// request seldom meets a connection that is closing.
const IDLE: Duration = Duration::from_secs(30);

/// Idle connections that are kept for each host: as many as orders go on at once at a CA, so that none dials anew between
/// two of its requests.
const KEPT_PER_HOST: usize = 4;

/// Builds a client.
pub struct Builder {
    roots: Roots,
    tls: Option<TlsClient>,
    deadline: Duration,
    resolve: Option<Resolve>,
    max_response: usize,
    idle_per_host: usize,
    http2: bool,
}

impl Builder {
    /// A client that trusts `roots` and gives up a request after `deadline`, from its dial to the last byte of its response.
    #[must_use]
    pub const fn new(roots: Roots, deadline: Duration) -> Self {
        Self { roots, tls: None, deadline, resolve: None, max_response: MAX_RESPONSE, idle_per_host: 0, http2: true }
    }

    /// Sends requests where `resolve` says, not where DNS does.
    #[must_use]
    pub fn resolve(self, resolve: Resolve) -> Self {
        Self { resolve: Some(resolve), ..self }
    }

    /// Speaks HTTP/1.1 to servers whose TLS has settings of its own.
    #[must_use]
    pub fn tls(self, client: TlsClient) -> Self {
        Self { tls: Some(client), ..self }.http1_only()
    }

    /// Reads responses of up to so many bytes.
    #[must_use]
    pub fn max_response(self, bytes: usize) -> Self {
        Self { max_response: bytes, ..self }
    }

    /// Keeps connections of each host for the next request. Without this, each request dials anew, as a probe must.
    #[must_use]
    pub fn keep_connections(self) -> Self {
        Self { idle_per_host: KEPT_PER_HOST, ..self }
    }

    /// Speaks HTTP/1.1 to servers that would choose HTTP/2 as well.
    #[must_use]
    pub fn http1_only(self) -> Self {
        Self { http2: false, ..self }
    }

    /// The client, as modules take it. It may be used from one runtime only, whose tasks drive its connections. The roots
    /// are loaded with its first request.
    #[must_use]
    pub fn build(self) -> Fetch {
        let service = LazyLock::new(move || self.service());
        Arc::new(move |request| {
            let service = LazyLock::force(&service).clone();
            Box::pin(async move { service.oneshot(request).await.map_err(proxy_error) })
        })
    }

    fn service(self) -> BoxCloneSyncService<Request, Response, BoxError> {
        let pool = |tls| {
            legacy::Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE)
                .pool_max_idle_per_host(self.idle_per_host)
                .build(Connector::new(tls, self.tls.as_ref().and_then(TlsClient::name), self.resolve.clone()))
        };
        let http1 = pool(self.tls.as_ref().map_or_else(|| self.roots.http1(), TlsClient::http1).clone());
        let any = if self.http2 { pool(self.roots.http2()) } else { http1.clone() };
        let client = Client { any, http1, max_response: self.max_response };
        // The wait for a turn is outside the deadline.
        let service = ServiceBuilder::new()
            .concurrency_limit(CONCURRENCY)
            .timeout(self.deadline)
            .service_fn(move |request| client.clone().send(request));
        BoxCloneSyncService::new(service)
    }
}

#[derive(Clone)]
struct Client {
    any: legacy::Client<Connector, Body>,
    /// For upgrades, which HTTP/2 does not have.
    http1: legacy::Client<Connector, Body>,
    max_response: usize,
}

impl Client {
    async fn send(self, request: Request) -> Result<Response, BoxError> {
        let pool = if request.fields.contains(header::UPGRADE) { &self.http1 } else { &self.any };
        let mut outgoing = http::Request::new(request.body);
        *outgoing.method_mut() = request.method;
        *outgoing.uri_mut() = request.uri;
        *outgoing.headers_mut() = (&request.fields).into();
        let response = pool.request(outgoing).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(switched(response));
        }
        let (head, body) = response.into_parts();
        let body = Limited::new(body, self.max_response).collect().await?.to_bytes();
        Ok(http::Response::from_parts(head, Body::full(body)).into())
    }
}

/// A response whose connection has become a tunnel.
fn switched(mut response: http::Response<Incoming>) -> Response {
    let upgrade = hyper::upgrade::on(&mut response);
    let takeover = UpgradeHandler::new(|mut io, early: Bytes| {
        Box::pin(async move {
            let Ok(upgraded) = upgrade.await else { return };
            let mut upgraded = TokioIo::new(upgraded);
            // Either side may end at any time; the caller sees it on its own stream.
            if tokio::io::AsyncWriteExt::write_all(&mut upgraded, &early).await.is_ok() {
                let _ = tokio::io::copy_bidirectional(&mut io, &mut upgraded).await;
            }
        })
    });
    Response { takeover: Some(takeover), ..response.map(|_| Body::empty()).into() }
}

/// The kind of an error, with what lies behind it as the source.
fn proxy_error(error: BoxError) -> ProxyError {
    if error.is::<Elapsed>() {
        return Kind::ResponseTimeout.into();
    }
    if error.is::<LengthLimitError>() {
        return ProxyError::new(Kind::BadResponse, "the answer is too long");
    }
    match error.downcast_ref::<legacy::Error>() {
        // What hyper says of it ("client error (Connect)") adds nothing to the kind.
        Some(error) => {
            let kind = if error.is_connect() { Kind::Connect } else { Kind::Reset };
            let Some(source) = std::error::Error::source(error) else { return kind.into() };
            let is_parse = source.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse);
            let failure = match is_parse {
                true => ServerFailure::new(FailureCause::NotHttp, chain(source)),
                false => ServerFailure::of(source),
            };
            ProxyError::new(kind, failure)
        }
        None => ProxyError::new(Kind::Reset, error),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        net::SocketAddr,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use http_body_util::Full;
    use hyper::{server::conn, service::service_fn};
    use rustls::pki_types::PrivateKeyDer;
    use tokio::net::{TcpListener, UnixListener};

    use super::*;
    use crate::{config::plan::Server, message::Value};

    /// A server on loopback for `a.example`: connections accepted, address, its certificate.
    async fn server(protocols: &[&[u8]]) -> (Arc<AtomicUsize>, SocketAddr, Roots) {
        let key = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let roots = Roots::only(key.cert.pem().as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![key.cert.der().clone()],
                PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, accepted) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let count = accepted.clone();
        let tasks = tokio_util::task::TaskTracker::new();
        tasks.clone().spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let acceptor = acceptor.clone();
                tasks.spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let h2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
                    let (io, service) = (TokioIo::new(tls), service_fn(answer));
                    if h2 {
                        let _ = conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await;
                    } else {
                        let _ = conn::http1::Builder::new().serve_connection(io, service).with_upgrades().await;
                    }
                });
            }
        });
        (accepted, address, roots)
    }

    /// Says what arrived; `/long` is 2 MiB, `/never` has no end, `/twice` has a field twice.
    async fn answer(mut request: http::Request<Incoming>) -> Result<http::Response<Full<Bytes>>, Infallible> {
        let mut response = http::Response::new(Full::default());
        match request.uri().path() {
            "/long" => *response.body_mut() = vec![b'a'; 2 << 20].into(),
            "/never" => std::future::pending().await,
            "/twice" => {
                for value in ["*", "https://b.example"] {
                    response.headers_mut().append("access-control-allow-origin", value.parse().unwrap());
                }
            }
            "/echo" => {
                let upgrade = hyper::upgrade::on(&mut request);
                let tasks = tokio_util::task::TaskTracker::new();
                tasks.spawn(async move {
                    let (mut from, mut to) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
                    tokio::io::copy(&mut from, &mut to).await
                });
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                response.headers_mut().insert("upgrade", "echo".parse().unwrap());
                response.headers_mut().insert("connection", "upgrade".parse().unwrap());
            }
            _ => {
                let host = request.uri().authority().map(ToString::to_string);
                let field = |name| request.headers().get(name).map(|value: &http::HeaderValue| value.to_str().unwrap());
                let host = host.or_else(|| field("host").map(ToOwned::to_owned));
                *response.body_mut() = format!("{:?} {}", request.version(), host.unwrap_or_default()).into();
            }
        }
        Ok(response)
    }

    fn here(address: SocketAddr) -> Resolve {
        Arc::new(move |host, port| (host == "a.example" && port == 443).then_some(Destination::Address(address)))
    }

    async fn get(fetch: &Fetch, url: &str) -> Result<(Response, String), ProxyError> {
        let mut request = Request::new(Body::empty());
        request.uri = url.parse().unwrap();
        let mut response = fetch(request).await?;
        let body = std::mem::take(&mut response.body).collect().await.unwrap().to_bytes();
        Ok((response, String::from_utf8(body.into()).unwrap()))
    }

    #[tokio::test]
    async fn http2_is_spoken_where_the_server_speaks_it() {
        let minute = Duration::from_secs(60);
        for (protocols, said) in [
            (&[&b"h2"[..], b"http/1.1"][..], "HTTP/2.0 a.example"),
            (&[b"http/1.1"], "HTTP/1.1 a.example"),
            (&[], "HTTP/1.1 a.example"),
        ] {
            let (_, address, roots) = server(protocols).await;
            let client = Builder::new(roots.clone(), minute).resolve(here(address));
            assert_eq!(get(&client.build(), "https://a.example/").await.unwrap().1, said);
            let client = Builder::new(roots, minute).resolve(here(address)).http1_only();
            assert_eq!(get(&client.build(), "https://a.example/").await.unwrap().1, "HTTP/1.1 a.example");
        }
    }

    #[tokio::test]
    async fn connections_are_kept_where_that_is_asked_for() {
        for protocols in [&[&b"h2"[..]][..], &[&b"http/1.1"[..]]] {
            let (accepted, address, roots) = server(protocols).await;
            let client = |roots| Builder::new(roots, Duration::from_secs(60)).resolve(here(address));
            let kept = client(roots.clone()).keep_connections().build();
            for _ in 0..5 {
                get(&kept, "https://a.example/").await.unwrap();
            }
            assert_eq!(accepted.load(Ordering::Relaxed), 1);
            let fresh = client(roots).build();
            for _ in 0..5 {
                get(&fresh, "https://a.example/").await.unwrap();
            }
            assert_eq!(accepted.load(Ordering::Relaxed), 6);
        }
    }

    #[tokio::test]
    async fn every_field_arrives_as_often_as_it_was_sent() {
        let (_, address, roots) = server(&[b"h2"]).await;
        let fetch = Builder::new(roots, Duration::from_secs(60)).resolve(here(address)).build();
        let (response, _) = get(&fetch, "https://a.example/twice").await.unwrap();
        let fields: Vec<_> =
            response.fields.get_all(header::ACCESS_CONTROL_ALLOW_ORIGIN).map(Value::as_bytes).collect();
        assert_eq!(fields, [&b"*"[..], b"https://b.example"]);
    }

    #[tokio::test]
    async fn a_request_ends_at_its_deadline_and_a_response_at_its_limit() {
        let (_, address, roots) = server(&[b"h2"]).await;
        let client = |deadline| Builder::new(roots.clone(), deadline).resolve(here(address));
        let error = get(&client(Duration::from_millis(300)).build(), "https://a.example/never").await.unwrap_err();
        assert_eq!(error.kind, Kind::ResponseTimeout);
        let minute = Duration::from_secs(60);
        let error = get(&client(minute).build(), "https://a.example/long").await.unwrap_err();
        assert_eq!(error.kind, Kind::BadResponse);
        let (_, body) = get(&client(minute).max_response(2 << 20).build(), "https://a.example/long").await.unwrap();
        assert_eq!(body.len(), 2 << 20);
    }

    #[tokio::test]
    async fn an_error_says_what_is_wrong() {
        let (_, address, _) = server(&[b"h2"]).await;
        let fetch = Builder::new(Roots::none(), Duration::from_secs(60)).resolve(here(address)).build();
        let error = get(&fetch, "https://a.example/").await.unwrap_err();
        assert_eq!(FailureCause::of(&error), FailureCause::UnknownAuthority);
        assert_eq!(
            error.source.unwrap().to_string(),
            "TLS handshake failed: the certificate is signed by an unknown authority"
        );
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = get(&fetch, &format!("http://{free}/")).await.unwrap_err();
        assert_eq!((error.kind, FailureCause::of(&error)), (Kind::Connect, FailureCause::Refused));
        let said = error.source.unwrap().to_string();
        assert!(said.starts_with("not reachable: ") && said.contains("refused"), "{said}");
        let mut request = Request::new(Body::empty());
        request.uri = "/nowhere".parse().unwrap();
        assert!(fetch(request).await.is_err());
    }

    #[tokio::test]
    async fn an_upgrade_becomes_a_tunnel() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let (_, address, roots) = server(&[b"h2", b"http/1.1"]).await;
        let fetch = Builder::new(roots, Duration::from_secs(60)).resolve(here(address)).build();
        let mut request = Request::new(Body::empty());
        request.uri = "https://a.example/echo".parse().unwrap();
        request.fields.insert(header::UPGRADE, Value::from_static("echo"));
        request.fields.insert(header::CONNECTION, Value::from_static("upgrade"));
        let response = fetch(request).await.unwrap();
        let (mut near, far) = tokio::io::duplex(64);
        let talk = async {
            near.write_all(b"lo").await.unwrap();
            let mut echo = [0; 5];
            near.read_exact(&mut echo).await.unwrap();
            drop(near);
            echo
        };
        let tunnel = response.takeover.unwrap().run(Box::new(far), Bytes::from_static(b"hel"));
        assert_eq!(&tokio::join!(tunnel, talk).1, b"hello");
    }

    #[tokio::test]
    async fn a_unix_socket_is_a_server_like_any_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let tasks = tokio_util::task::TaskTracker::new();
        tasks.spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).await
        });
        let resolve = Arc::new(move |_: &str, _| Some(Destination::Server(Server::Unix(path.clone()))));
        let fetch = Builder::new(Roots::none(), Duration::from_secs(60)).resolve(resolve).build();
        assert_eq!(get(&fetch, "http://localhost/").await.unwrap().1, "HTTP/1.1 localhost");
    }
}
