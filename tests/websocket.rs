//! WebSocket over HTTP/1.1 and, bridged, over HTTP/2 (RFC 8441).

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{Client, Edge, Origin, client, origin};

const HOST: &str = "rtc.example.org";

/// The 101 for a request.
fn accepting(request: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
        origin::accept_key(request)
    )
}

/// Upgrades, sends `early` at once, and echoes what follows.
async fn echo(early: &'static [u8]) -> Origin {
    Origin::talking(move |mut stream: TcpStream, seen| async move {
        let Some(request) = origin::read_request(&mut stream).await else { return };
        seen.lock().unwrap().push(request.clone());
        if !request.to_lowercase().contains("upgrade: websocket") {
            let _ = stream.write_all(&origin::answer("401 Unauthorized", &[], "no")).await;
            return;
        }
        if request.starts_with("GET /refuse") {
            let _ = stream.write_all(&origin::answer("401 Unauthorized", &[("x-why", "token")], "no token")).await;
            return;
        }
        stream.write_all(&[accepting(&request).as_bytes(), early].concat()).await.unwrap();
        let mut buf = vec![0; 65_536];
        while let Ok(n @ 1..) = stream.read(&mut buf).await {
            if stream.write_all(&buf[..n]).await.is_err() {
                return;
            }
        }
        let _ = stream.shutdown().await;
    })
    .await
}

async fn edge(upstream: &Origin) -> Edge {
    Edge::start(&format!("[sites.\"{HOST}\"]\nupstream = \"{}\"\n", upstream.url()))
}

fn open(target: &str, connection: &str, upgrade: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: {HOST}\r\nConnection: {connection}\r\nUpgrade: {upgrade}\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
    )
}

/// A proxy that tells the scheme of a WebSocket, as Traefik does, or a list of them, first to last.
#[tokio::test]
async fn an_upgrade_behind_a_trusted_proxy_is_no_redirect() {
    let upstream = echo(b"").await;
    let site = format!("[sites.\"{HOST}\"]\nupstream = \"{}\"\n", upstream.url());
    let edge = Edge::with("trusted_proxies = [\"127.0.0.0/8\"]", &site);
    let ask = async |edge: &Edge, proto: &str| {
        let fields = format!("\r\nX-Forwarded-Proto: {proto}\r\n\r\n");
        let mut client = Client::plain(edge.http()).await;
        let answer = client.ask(&open("/rtc", "Upgrade", "websocket").replace("\r\n\r\n", &fields)).await;
        (client, answer)
    };
    for proto in ["wss", "WSS", "https", "HTTPS", "wss,http", "wss, ws", "https , ws", "wss\r\nX-Forwarded-Proto: http"]
    {
        let (mut client, answer) = ask(&edge, proto).await;
        assert_eq!(answer.status, 101, "{proto:?}");
        client.send(*b"\x81\x05hello").await;
        assert_eq!(client.exactly(7).await, b"\x81\x05hello", "{proto:?}");
        let seen = upstream.seen().pop().unwrap().to_lowercase();
        assert_eq!(seen.matches("\r\nx-forwarded-proto: https\r\n").count(), 1, "{seen}");
    }
    let before = upstream.seen().len();
    for proto in ["ws", "Ws", "http", "ws, wss", "http, https", "gopher", ""] {
        let (_, answer) = ask(&edge, proto).await;
        let to = answer.field("location");
        assert_eq!((answer.status, to.as_deref()), (308, Some("https://rtc.example.org/rtc")), "{proto:?}");
    }
    assert_eq!(upstream.seen().len(), before, "nothing plain reaches the service");
    // Whoever is not trusted says nothing by it.
    let edge = Edge::start(&site);
    assert_eq!(ask(&edge, "wss").await.1.status, 308);
}

#[tokio::test]
async fn an_upgrade_needs_no_configuration_and_loses_no_byte() {
    let upstream = echo(b"\x81\x05early").await;
    let edge = edge(&upstream).await;
    for (connection, upgrade) in
        [("Upgrade", "websocket"), ("keep-alive, UPGRADE", "WebSocket"), ("upgrade", "h2c, websocket")]
    {
        let mut client = Client::tls(&edge, HOST).await;
        let answer = client.ask(&open("/rtc?access_token=x", connection, upgrade)).await;
        assert_eq!(answer.status, 101, "{connection}");
        assert_eq!(answer.field("sec-websocket-accept").as_deref(), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(answer.field("sec-websocket-extensions").as_deref(), Some("permessage-deflate"));
        assert_eq!(client.exactly(7).await, b"\x81\x05early");
        client.send(vec![7; 200_000]).await;
        assert_eq!(client.exactly(200_000).await, vec![7; 200_000]);
        // One side ends, the other still speaks.
        client.io.shutdown().await.unwrap();
        assert!(client.ends().await);
    }
    let line = edge.wait_for_log("\"status\":101");
    let event: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((event["bytes_in"].as_u64(), event["bytes_out"].as_u64()), (Some(200_000), Some(200_007)), "{line}");
    let seen = upstream.seen().remove(0).to_lowercase();
    assert!(seen.contains("sec-websocket-extensions: permessage-deflate; client_max_window_bits"));
}

#[tokio::test]
async fn bytes_that_come_with_the_request_are_not_lost() {
    let upstream = echo(b"").await;
    let edge = edge(&upstream).await;
    let mut client = Client::tls(&edge, HOST).await;
    let answer = client.ask(&format!("{}eager", open("/", "upgrade", "websocket"))).await;
    assert_eq!(answer.status, 101);
    assert_eq!(client.exactly(5).await, b"eager");
}

#[tokio::test]
async fn a_refusal_passes_with_its_body() {
    let upstream = echo(b"").await;
    let edge = edge(&upstream).await;
    let answer = Client::tls(&edge, HOST).await.ask(&open("/refuse", "upgrade", "websocket")).await;
    assert_eq!(
        (answer.status, answer.text().as_str(), answer.field("x-why").as_deref()),
        (401, "no token", Some("token"))
    );
    let other = Client::tls(&edge, HOST).await.ask(&open("/", "upgrade", "h2c")).await;
    assert_eq!(other.status, 401, "any other upgrade is dropped");
}

#[tokio::test]
async fn a_tunnel_ends_with_either_side_and_leaks_nothing() {
    let upstream = echo(b"").await;
    let edge = edge(&upstream).await;
    let before = edge.descriptors();
    for _ in 0..50 {
        let mut client = Client::tls(&edge, HOST).await;
        assert_eq!(client.ask(&open("/", "upgrade", "websocket")).await.status, 101);
        client.send("x").await;
        client.exactly(1).await;
    }
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while edge.descriptors() > before + 4 {
        assert!(std::time::Instant::now() < until, "{} descriptors, {before} before", edge.descriptors());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_websocket_over_http2_is_bridged() {
    let upstream = echo(b"hi").await;
    let edge = edge(&upstream).await;
    let io = client::tls(&edge, HOST, &["h2"]).await.unwrap();
    let (send, connection) = h2::client::handshake(io).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "ends with the test")]
    let driving = tokio::spawn(connection);
    let mut send = send.ready().await.unwrap();
    let until = std::time::Instant::now() + Duration::from_secs(5);
    while !send.is_extended_connect_protocol_enabled() {
        assert!(std::time::Instant::now() < until, "RFC 8441 is not announced");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let ask = |protocol: &'static str| {
        let mut request = http::Request::builder()
            .method("CONNECT")
            .uri(format!("https://{HOST}/rtc?x"))
            .header("sec-websocket-version", "13")
            .body(())
            .unwrap();
        request.extensions_mut().insert(h2::ext::Protocol::from_static(protocol));
        request
    };
    let (answer, mut up) = send.send_request(ask("websocket"), false).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(!answer.headers().contains_key("sec-websocket-accept"));
    let mut down = answer.into_body();
    up.send_data("there".into(), false).unwrap();
    let mut got = Vec::new();
    while got.len() < 7 {
        let data = down.data().await.unwrap().unwrap();
        down.flow_control().release_capacity(data.len()).unwrap();
        got.extend_from_slice(&data);
    }
    assert_eq!(got, b"hithere");
    up.send_data("".into(), true).unwrap();
    // The end passes as well, and it is a clean one.
    while let Some(data) = down.data().await {
        assert!(data.unwrap().is_empty());
    }
    let (refused, _) = send.clone().ready().await.unwrap().send_request(ask("connect-udp"), false).unwrap();
    assert_eq!(refused.await.unwrap().status(), 501);
    let seen = upstream.seen().remove(0).to_lowercase();
    assert!(
        seen.starts_with("get /rtc?x http/1.1")
            && seen.contains("sec-websocket-key: ")
            && seen.contains("connection: upgrade"),
        "{seen}"
    );
    driving.abort();
}

#[tokio::test]
async fn a_real_library_speaks_through() {
    use futures_util::{SinkExt as _, StreamExt as _};
    use tokio_tungstenite::tungstenite::Message;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    #[expect(clippy::disallowed_methods, reason = "ends with the test")]
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() || message.is_binary() {
                socket.send(message).await.unwrap();
            }
        }
    });
    let edge = Edge::start(&format!("[sites.\"{HOST}\"]\nupstream = \"{url}\"\n"));
    let io = client::tls(&edge, HOST, &["http/1.1"]).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(format!("wss://{HOST}/rtc"), io).await.unwrap();
    for size in [0, 1, 125, 126, 65_535, 65_536, 4 << 20] {
        let message = Message::binary(vec![b'x'; size]);
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    socket.close(None).await.unwrap();
    while socket.next().await.is_some() {}
    serving.await.unwrap();
}
