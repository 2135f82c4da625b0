//! What becomes of a byte stream once HTTP is done with it.

use std::fmt;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream with its type forgotten.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

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
        f.write_str("Takeover")
    }
}
