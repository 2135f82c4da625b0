//! `vestibule dashboard`: the page of an admin server on a unix socket, for a browser that cannot open one.
//!
//! A loopback port is open to every user of the machine, so each request has to name a random token in its path. Without
//! it, everybody would have what mode 0600 of the socket closes.

use std::{convert::Infallible, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use http::{Request, StatusCode, Uri, uri::PathAndQuery};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, client, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, UnixStream},
    sync::Semaphore,
};
use tokio_util::task::TaskTracker;

use super::routes::{Response, text};
use crate::error::BoxError;

/// Connections open at a time: a browser has six for a page.
const CONNECTIONS: usize = 16;

/// Bound on a request head, and on the silence between two requests of a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// A loopback port that leads to the socket.
pub struct Dashboard {
    listener: TcpListener,
    target: Arc<Target>,
}

struct Target {
    socket: PathBuf,
    /// `/` and the token.
    prefix: String,
    tasks: TaskTracker,
}

impl Dashboard {
    /// Opens the port; 0 is any that is free.
    ///
    /// # Errors
    /// The port cannot be had.
    pub async fn open(socket: PathBuf, port: u16) -> io::Result<Self> {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
        let prefix = format!("/{}", super::token());
        Ok(Self { listener, target: Arc::new(Target { socket, prefix, tasks: TaskTracker::new() }) })
    }

    /// What to open in a browser.
    ///
    /// # Errors
    /// The socket has no address.
    pub fn url(&self) -> io::Result<String> {
        Ok(format!("http://{}{}/", self.listener.local_addr()?, self.target.prefix))
    }

    /// Serves until it is dropped.
    ///
    /// # Errors
    /// The port cannot be listened on any more.
    pub async fn run(self) -> io::Result<()> {
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let (tcp, _) = self.listener.accept().await?;
            // Others wait their turn; this ends with its terminal anyway.
            let Ok(permit) = permits.clone().acquire_owned().await else { return Ok(()) };
            let target = self.target.clone();
            self.target.tasks.spawn(async move {
                let service = service_fn(move |request| {
                    let target = target.clone();
                    async move { Ok::<_, Infallible>(target.respond(request).await) }
                });
                let mut server = http1::Builder::new();
                server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
                // An error of the connection concerns its client only.
                let _ = server.serve_connection(TokioIo::new(tcp), service).await;
                drop(permit);
            });
        }
    }
}

impl Target {
    async fn respond(&self, request: Request<Incoming>) -> Response {
        let target = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
        // The prefix has a constant length, so that its comparison tells nothing by its time.
        let rest = match target.split_at_checked(self.prefix.len()) {
            Some((prefix, rest)) if rest.starts_with('/') && super::is_token(prefix.as_bytes(), &self.prefix) => rest,
            _ => return text(StatusCode::FORBIDDEN, "open the address that `vestibule dashboard` has printed\n"),
        };
        let Ok(uri) = rest.parse::<Uri>() else { return text(StatusCode::BAD_REQUEST, "this is no path\n") };
        match self.forward(request, uri).await {
            Ok(response) => response,
            Err(error) => text(StatusCode::BAD_GATEWAY, format!("the edge does not answer: {error}\n")),
        }
    }

    async fn forward(&self, mut request: Request<Incoming>, uri: Uri) -> Result<Response, BoxError> {
        let stream = UnixStream::connect(&self.socket).await?;
        let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the body of the response, which the browser or the edge ends.
        self.tasks.spawn(connection);
        *request.uri_mut() = uri;
        let response = sender.send_request(request).await?;
        Ok(response.map(|body| body.map_err(BoxError::from).boxed_unsync()))
    }
}
