//! A connection of HTTP/2 whose client says anything: never a panic, never a hang, and what we say in return is frames
//! whose fields can be read.
#![no_main]

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::task::TaskTracker;
use vestibule::{
    clock::Clock,
    conn::{Alpn, ClientHandle, ConnInfo, TlsInfo},
    drain::Drain,
    error::ProxyError,
    message::{Body, ClientIo, Request, Response},
    serve::{Handler, Settings, serve_connection},
    wire::{
        HeadLimits,
        h2::{Decoder, FRAME_HEADER, FrameHeader, PREFACE, flag, kind},
    },
};

/// Says what it was given, a piece at a time, and keeps what it is told.
struct Client {
    says: Bytes,
    piece: usize,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for Client {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let len = self.says.len().min(self.piece).min(buf.remaining());
        buf.put_slice(&self.says.split_to(len));
        Poll::Ready(Ok(()))
    }
}

impl ClientIo for Client {}

impl AsyncWrite for Client {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.heard.lock().unwrap().extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Answers with the body that came.
#[derive(Clone)]
struct Echo;

impl Handler for Echo {
    fn handle(&self, request: Request, _: &Arc<ConnInfo>, _: ClientHandle) -> impl Future<Output = Response> + Send {
        assert!(request.uri.authority().is_none() && request.fields.contains("host"));
        async move {
            match request.body.collect().await {
                Ok(body) => Response::new(Body::full(body.to_bytes())),
                Err(_) => Response::new(Body::empty()),
            }
        }
    }

    fn refuse(&self, _: ProxyError, _: Option<&str>, _: &Arc<ConnInfo>) -> Response {
        Response::new(Body::full("no"))
    }
}

fn settings() -> Settings {
    Settings {
        head: HeadLimits { bytes: 2_000, fields: 20, target: 1_000 },
        streams: 5,
        header: None,
        keep_alive: None,
        body_stall: None,
        clock: Clock::system(),
        dropped: Arc::default(),
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((piece, frames)) = input.split_first() else { return };
    let heard = Arc::<Mutex<Vec<u8>>>::default();
    let client =
        Client { says: [PREFACE, frames].concat().into(), piece: usize::from(*piece) + 1, heard: heard.clone() };
    let address = "127.0.0.1:1".parse().unwrap();
    let tls = TlsInfo { sni: None, alpn: Alpn::Http2, version: "TLSv1.3", resumed: false };
    let conn = ConnInfo { peer: address, client: address, port: 443, tls: Some(tls) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let served = runtime.block_on(async {
        let (drain, tasks) = (Drain::new(1), TaskTracker::new());
        let serving = serve_connection(client, Arc::new(conn), Echo, Arc::new(settings()), drain, tasks);
        tokio::time::timeout(Duration::from_secs(3), serving).await
    });
    served.expect("a client that has left is left");
    let heard = heard.lock().unwrap();
    let (mut rest, mut decoder, mut block) = (&heard[..], Decoder::new(1 << 20), Vec::new());
    while let Some(header) = FrameHeader::parse_first(rest) {
        let payload = &rest[FRAME_HEADER..FRAME_HEADER + header.len];
        if matches!(header.kind, kind::HEADERS | kind::CONTINUATION) {
            block.extend_from_slice(payload);
            if header.has(flag::END_HEADERS) {
                decoder.decode(&std::mem::take(&mut block)).expect("fields that can be read");
            }
        }
        rest = &rest[FRAME_HEADER + header.len..];
    }
    assert!(rest.is_empty(), "half a frame");
});
