//! The services behind the edge of `vestibule demo`: enough of Synapse, lk-jwt-service and LiveKit to see a request
//! arrive. They are hyper servers on loopback, so that they share no fault with the edge.

use std::{convert::Infallible, net::SocketAddr};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::config::plan::RTC_GET_TOKEN;

type Request = http::Request<Incoming>;
type Response = http::Response<Full<Bytes>>;

/// Which service a stand-in stands in for.
#[derive(Debug, Clone, Copy)]
pub enum StandIn {
    /// A homeserver that knows its versions.
    Synapse,
    /// The service that lets a client into a call.
    LkJwt,
    /// An SFU whose signalling echoes.
    Livekit,
}

/// Starts one on a free port of loopback; it runs until `stop`.
///
/// # Errors
/// No port is free.
pub async fn start(what: StandIn, stop: CancellationToken, tasks: &TaskTracker) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let local = listener.local_addr()?;
    let connections = tasks.clone();
    tasks.spawn(async move {
        while let Some(Ok((io, _))) = stop.run_until_cancelled(listener.accept()).await {
            let sockets = connections.clone();
            let service =
                service_fn(move |request| std::future::ready(Ok::<_, Infallible>(what.respond(request, &sockets))));
            let serving = http1::Builder::new().serve_connection(TokioIo::new(io), service).with_upgrades();
            let stop = stop.clone();
            // The edge closes its connections whenever it likes.
            connections.spawn(async move { stop.run_until_cancelled(serving).await });
        }
    });
    Ok(local)
}

impl StandIn {
    fn respond(self, request: Request, sockets: &TaskTracker) -> Response {
        match (self, request.uri().path()) {
            (Self::Synapse, "/health") => text(StatusCode::OK, "OK"),
            (Self::Synapse, "/_matrix/client/versions") => versions(),
            (Self::Synapse, "/_matrix/client/v3/login") => {
                json(StatusCode::OK, &json!({ "flows": [{ "type": "m.login.password" }] }))
            }
            (Self::Synapse, path) if RTC_GET_TOKEN.contains(&path) && request.method() == Method::POST => {
                if request.headers().contains_key(header::AUTHORIZATION) {
                    json(StatusCode::OK, &json!({ "jwt": "a.token.of-the-demo" }))
                } else {
                    json(
                        StatusCode::UNAUTHORIZED,
                        &json!({ "errcode": "M_MISSING_TOKEN", "error": "Missing access token" }),
                    )
                }
            }
            (Self::Synapse, "/_matrix/client/v3/account/whoami") => {
                json(StatusCode::OK, &json!({ "user_id": "@demo:example.localhost" }))
            }
            (Self::Synapse, _) => {
                json(StatusCode::NOT_FOUND, &json!({ "errcode": "M_UNRECOGNIZED", "error": "Unrecognized request" }))
            }
            (Self::LkJwt, "/healthz") => Response::default(),
            (Self::LkJwt, "/sfu/get" | "/get_token") if request.method() == Method::POST => {
                json(StatusCode::OK, &json!({ "url": "wss://matrixrtc.localhost", "jwt": "a.token.of-the-demo" }))
            }
            (Self::LkJwt, "/sfu/get" | "/get_token") => text(StatusCode::METHOD_NOT_ALLOWED, ""),
            (Self::Livekit, "/") => text(StatusCode::OK, "OK"),
            (Self::Livekit, "/rtc" | "/rtc/v1") => echo(request, sockets),
            (Self::LkJwt | Self::Livekit, _) => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        }
    }
}

fn versions() -> Response {
    let features =
        json!({ "org.matrix.msc4140": true, "org.matrix.msc4143": true, "org.matrix.simplified_msc3575": true });
    let mut answer =
        json(StatusCode::OK, &json!({ "versions": ["v1.11", "v1.12", "v1.13"], "unstable_features": features }));
    answer.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    answer
}

fn json(status: StatusCode, value: &serde_json::Value) -> Response {
    with(status, "application/json", value.to_string())
}

fn text(status: StatusCode, text: &'static str) -> Response {
    with(status, "text/plain; charset=utf-8", text)
}

fn with(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// As LiveKit has it: 401 to a handshake without a token, an open socket with one.
fn echo(request: Request, sockets: &TaskTracker) -> Response {
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else { return text(StatusCode::NOT_FOUND, "") };
    let accept = accept_key(key);
    if !request.uri().query().is_some_and(|query| query.contains("access_token=")) {
        return text(StatusCode::UNAUTHORIZED, "no permissions to access the room");
    }
    sockets.spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        // The client may be gone at any point; there is nobody to tell.
        let _ = echo_frames(TokioIo::new(upgraded)).await;
    });
    let mut response = Response::default();
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let fields = response.headers_mut();
    fields.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    fields.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    response
}

/// RFC 6455 section 4.2.2.
fn accept_key(key: &HeaderValue) -> HeaderValue {
    use base64::Engine as _;
    let mut hash = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let accept = base64::engine::general_purpose::STANDARD.encode(hash.finish());
    HeaderValue::try_from(accept).expect("base64 is a valid value")
}

/// Sends every frame back unmasked (RFC 6455 section 5.2), a Close included, after which it ends.
async fn echo_frames(mut io: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    let mut buf = BytesMut::new();
    loop {
        while let Some((frame, closes)) = take_frame(&mut buf) {
            io.write_all(&frame).await?;
            io.flush().await?;
            if closes {
                return io.shutdown().await;
            }
        }
        if io.read_buf(&mut buf).await? == 0 {
            return Ok(());
        }
    }
}

/// The first whole frame, unmasked, and whether it is a Close. The demo's own frames are short, so lengths over 125 end
/// the connection by closing it.
fn take_frame(buf: &mut BytesMut) -> Option<(Vec<u8>, bool)> {
    let [first, second, m0, m1, m2, m3] = *buf.first_chunk::<6>()?;
    let len = usize::from(second & 0x7f);
    if len > 125 {
        return Some((vec![0x88, 2, 3, 241], true)); // 1009: message too big
    }
    if buf.len() < 6 + len {
        return None;
    }
    buf.advance(6);
    let payload = buf.split_to(len);
    let mask = [m0, m1, m2, m3];
    let mut frame = vec![first, second & 0x7f];
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    Some((frame, first & 0x0f == 8))
}
