//! What becomes of a byte stream once HTTP is done with it.

use std::{
    fmt,
    future::Future as _,
    pin::pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, Interest};

/// A byte stream with its type forgotten.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// The byte stream of a client.
pub trait ClientIo: Io {
    /// What has moved so far, as the socket counts it. A layer above the socket holds back what is not a whole record, so
    /// that a slow client moves for a long time before anything can be read or written here.
    fn transferred(&self) -> Transferred {
        Transferred::default()
    }

    /// Whether the client has closed its side, as far as the socket tells without being read: what it has sent before may
    /// stand in the way.
    fn has_left(&self) -> bool {
        false
    }

    /// Writes before the socket says that it has room, and returns how much of `bytes` it took. The kernel says so once a
    /// third of its buffer is free, for which a client that reads 2 KB/s may need minutes. A layer that holds bytes back
    /// writes those instead, which [`transferred`](Self::transferred) tells.
    fn try_write(&mut self, _bytes: &[u8]) -> usize {
        0
    }
}

impl ClientIo for tokio::net::TcpStream {
    fn try_write(&mut self, bytes: &[u8]) -> usize {
        // An error shows at the next write.
        socket2::SockRef::from(&*self).send(bytes).unwrap_or(0)
    }

    fn has_left(&self) -> bool {
        let readiness = pin!(self.ready(Interest::READABLE));
        let readiness = readiness.poll(&mut Context::from_waker(Waker::noop()));
        matches!(readiness, Poll::Ready(Ok(readiness)) if readiness.is_read_closed())
    }
}

impl ClientIo for tokio::io::DuplexStream {}

impl<T: ClientIo> ClientIo for Box<T> {
    fn transferred(&self) -> Transferred {
        (**self).transferred()
    }

    fn has_left(&self) -> bool {
        (**self).has_left()
    }

    fn try_write(&mut self, bytes: &[u8]) -> usize {
        (**self).try_write(bytes)
    }
}

/// Bytes of a socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Transferred {
    /// Taken by the socket.
    pub sent: u64,
    /// Read from it.
    pub received: u64,
}

/// A boxed byte stream.
pub type BoxIo = Box<dyn Io>;

/// What to do with the client's byte stream once the head of an upgrade has been written.
///
/// The upstream puts it beside a 101; the server side takes it out, writes the head (101 on HTTP/1.1, 200 on an extended
/// CONNECT) and calls it with the stream and the bytes that it has already read.
pub struct UpgradeHandler(UpgradeFn);

type UpgradeFn = Box<dyn FnOnce(BoxIo, Bytes) -> BoxFuture<'static, ()> + Send>;

impl UpgradeHandler {
    /// Wraps the tunnel that waits for its client side.
    pub fn new(run: impl FnOnce(BoxIo, Bytes) -> BoxFuture<'static, ()> + Send + 'static) -> Self {
        Self(Box::new(run))
    }

    /// Runs the tunnel to its end.
    pub async fn run(self, io: BoxIo, early: Bytes) {
        (self.0)(io, early).await;
    }
}

impl fmt::Debug for UpgradeHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UpgradeHandler")
    }
}
