//! The admin server: hyper on a loopback address or a unix socket, under tower's limits.

use std::{
    convert::Infallible,
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt as _, PermissionsExt as _},
    },
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt as _;
use http::{Request, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{either::Either, sync::CancellationToken, task::TaskTracker};
use tower::{BoxError, ServiceBuilder, ServiceExt as _, load_shed::error::Overloaded, timeout::error::Elapsed};

use super::routes::{self, Pages, Response};
use crate::config::plan::AdminListen;

/// Connections open at a time: a few pages, a scraper and commands. Others are closed at once.
const CONNECTIONS: usize = 64;

/// Requests in work at a time, over all connections; others get 503.
const CONCURRENCY: usize = 32;

/// Bound on a response, up to its body. A reload waits for files and sockets only.
const DEADLINE: Duration = Duration::from_secs(30);

/// Bound on a request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of a request head; hyper's least.
const HEAD_BYTES: usize = 8 * 1024;

/// Fields of a request head.
const HEAD_FIELDS: usize = 64;

/// A pause after a failed accept: the process is out of descriptors, which passes.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `pages` at an address until `stop`.
///
/// # Errors
/// The address cannot be had.
pub fn serve(listen: &AdminListen, pages: Pages, stop: &CancellationToken, tasks: &TaskTracker) -> io::Result<()> {
    let listener = Listener::open(listen)?;
    let limited = ServiceBuilder::new().load_shed().concurrency_limit(CONCURRENCY).timeout(DEADLINE);
    let service = limited.service_fn(move |request| caught(pages.clone(), request));
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let (stop, tracker) = (stop.clone(), tasks.clone());
    tasks.spawn(async move {
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            let permit = permits.clone().try_acquire_owned();
            match (accepted, permit) {
                (Ok(io), Ok(permit)) => drop(tracker.spawn(connection(io, service.clone(), stop.clone(), permit))),
                (Ok(io), Err(_)) => drop(io),
                (Err(_), _) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    });
    Ok(())
}

/// A panic costs one response.
async fn caught(pages: Pages, request: Request<Incoming>) -> Result<Response, BoxError> {
    let (head, _) = request.into_parts();
    let response = AssertUnwindSafe(pages.respond(&head)).catch_unwind().await;
    Ok(response.unwrap_or_else(|_| routes::text(StatusCode::INTERNAL_SERVER_ERROR, "the admin server failed\n")))
}

async fn connection<S>(
    io: Either<TcpStream, UnixStream>,
    service: S,
    stop: CancellationToken,
    _permit: OwnedSemaphorePermit,
) where
    S: tower::Service<Request<Incoming>, Response = Response, Error = BoxError, Future: Send> + Clone + Send + 'static,
{
    let service = service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(service.oneshot(request).await.unwrap_or_else(|error| refusal(&error))) }
    });
    let connection = http1::Builder::new()
        // A connection for each request, so that a reader may wait for its end.
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEAD_FIELDS)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = std::pin::pin!(connection);
    // A client that leaves or sends no HTTP is nobody's business.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

fn refusal(error: &BoxError) -> Response {
    if error.is::<Overloaded>() {
        let mut response = routes::text(StatusCode::SERVICE_UNAVAILABLE, "too many requests at a time\n");
        response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        return response;
    }
    let status = if error.is::<Elapsed>() { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::INTERNAL_SERVER_ERROR };
    routes::text(status, "the admin server took too long\n")
}

/// A listening socket.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    pub(super) fn open(listen: &AdminListen) -> io::Result<Self> {
        match listen {
            AdminListen::Tcp(addr) => {
                let socket = Socket::new(Domain::for_address(*addr), Type::STREAM, Some(Protocol::TCP))?;
                socket.set_reuse_address(true)?;
                // So that a new process can listen while the old one drains.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_unix_socket_is_its_owners_from_the_moment_that_it_has_a_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        // Nothing but the bind itself has set them: see there.
        let _listener = Listener::open(&AdminListen::Unix(path.clone())).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
