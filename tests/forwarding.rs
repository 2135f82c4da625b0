//! What reaches the upstream: the target byte for byte, one address, no field that was for us only.

use crate::support::{Client, Edge, Origin, origin};

const HOST: &str = "a.example.org";

async fn edge() -> (Edge, Origin) {
    let upstream = Origin::echoing_targets().await;
    let edge = Edge::start(&format!("[sites.\"{HOST}\"]\nupstream = \"{}\"\n", upstream.url()));
    (edge, upstream)
}

#[tokio::test]
async fn targets_go_upstream_byte_for_byte() {
    let (edge, upstream) = edge().await;
    let mut client = Client::tls(&edge, HOST).await;
    let targets = [
        "/%2F%21%3A%zz",
        "//a//b",
        "/./a/../b",
        "/a;b=c+d",
        "/?",
        "/a?x=1&x=1&y&=z",
        "/%21room%3Aname",
        "/a%2e%2e/b",
        "/\u{e9}",
        "/{}|\\^",
        "/a?b=/../c",
    ];
    for target in targets {
        assert_eq!(client.get(HOST, target).await.text(), target);
    }
    let absolute = client.ask(&format!("GET http://{HOST}/x?y HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    assert_eq!(absolute.text(), "/x?y");
    assert_eq!(upstream.connections(), 1, "one pooled connection served them all");
}

#[tokio::test]
async fn the_client_is_announced_once_and_cannot_lie() {
    let (edge, upstream) = edge().await;
    let request = "GET / HTTP/1.1\r\nHost: A.Example.org:8443\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 7.7.7.7\r\n\
         X-Forwarded-Proto: http\r\nX-Forwarded-Host: evil\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n\
         CF-Connecting-IP: 6.6.6.6\r\nTrue-Client-IP: 6.6.6.6\r\nX-Client-IP: 6.6.6.6\r\nProxy: x\r\nX-Matrix-Origin: evil\r\n\
         X_Forwarded_For: 6.6.6.6\r\nConnection: X-Secret, keep-alive\r\nX-Secret: 1\r\nKeep-Alive: 5\r\nTE: gzip, trailers\r\n\
         Upgrade: h2c\r\nProxy-Authorization: x\r\nX-Kept: 1\r\nCookie: a=b\r\n\r\n".to_string();
    let answer = Client::tls(&edge, HOST).await.ask(&request).await;
    assert_eq!(answer.status, 200);
    let seen = upstream.seen().remove(0).to_lowercase();
    for there in [
        "host: a.example.org:8443",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: https",
        "x-forwarded-host: a.example.org:8443",
        "x-kept: 1",
        "cookie: a=b",
        "te: trailers",
    ] {
        assert_eq!(seen.matches(&format!("\r\n{there}\r\n")).count(), 1, "{there} in\n{seen}");
    }
    for gone in ["6.6.6.6", "7.7.7.7", "evil", "x-secret", "keep-alive", "h2c", "proxy", "x_forwarded", "x-matrix"] {
        assert!(!seen.contains(gone), "{gone} in\n{seen}");
    }
    assert_eq!(seen.matches("\r\nx-request-id: ").count(), 1);
}

#[tokio::test]
async fn a_trusted_proxy_is_believed_right_to_left() {
    let upstream = Origin::echoing_targets().await;
    let edge = Edge::with(
        "trusted_proxies = [\"127.0.0.0/8\"]",
        &format!("[sites.\"{HOST}\"]\nupstream = \"{}\"\n", upstream.url()),
    );
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {HOST}\r\nX-Forwarded-For: 6.6.6.6, 198.51.100.7, 127.0.0.9\r\nX-Request-ID: theirs\r\n\r\n"
    );
    Client::tls(&edge, HOST).await.ask(&request).await;
    let seen = upstream.seen().remove(0).to_lowercase();
    assert!(
        seen.contains("\r\nx-forwarded-for: 198.51.100.7\r\n") && seen.contains("\r\nx-request-id: theirs\r\n"),
        "{seen}"
    );
}

#[tokio::test]
async fn the_proxy_protocol_is_required_where_it_is_configured() {
    let upstream = Origin::echoing_targets().await;
    let edge = Edge::with(
        "proxy_protocol = [\"127.0.0.1\"]",
        &format!("[sites.\"{HOST}\"]\nupstream = \"{}\"\ntls = \"off\"\n", upstream.url()),
    );
    let mut client = Client::plain(edge.http()).await;
    client.send("PROXY TCP4 203.0.113.9 10.0.0.1 4660 443\r\n").await;
    assert_eq!(client.get(HOST, "/").await.status, 200);
    assert!(upstream.seen()[0].to_lowercase().contains("x-forwarded-for: 203.0.113.9\r\n"));
    let mut bare = Client::plain(edge.http()).await;
    bare.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    assert!(bare.ends().await);
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn answers_lose_what_was_for_us_only() {
    let upstream = Origin::answering(|_| {
        b"HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: x\r\nTransfer-Encoding: chunked\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nServer: them\r\n\r\n2\r\nok\r\n0\r\n\r\n".to_vec()
    })
    .await;
    let edge = Edge::start(&format!("[sites.\"{HOST}\"]\nupstream = \"{}\"\nhsts = true\n", upstream.url()));
    let answer = Client::tls(&edge, HOST).await.get(HOST, "/").await;
    assert_eq!(answer.text(), "ok");
    assert!(answer.field("x-hop").is_none() && answer.field("keep-alive").is_none());
    assert_eq!(answer.all("set-cookie"), ["a", "b"]);
    assert_eq!(answer.field("server").as_deref(), Some("them"));
    assert!(answer.field("strict-transport-security").is_some() && answer.field("date").is_some());
}

#[tokio::test]
async fn a_pooled_connection_that_died_costs_nobody_a_request() {
    // Answers one request on each connection, and closes it at the next.
    let upstream = Origin::talking(|mut stream, seen| async move {
        use tokio::io::AsyncWriteExt as _;
        let Some(request) = origin::read_request(&mut stream).await else { return };
        seen.lock().unwrap().push(request);
        stream.write_all(&origin::ok("one")).await.unwrap();
        let _ = origin::read_request(&mut stream).await;
    })
    .await;
    let edge = Edge::with("", &format!("[sites.\"{HOST}\"]\nupstream = \"{}\"\n", upstream.url()));
    let mut client = Client::tls(&edge, HOST).await;
    for _ in 0..5 {
        assert_eq!(client.get(HOST, "/").await.status, 200);
    }
    assert_eq!(upstream.seen().len(), 5);
    // A POST with a body may have been acted upon: it never goes out twice.
    let request = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1\r\n\r\nx");
    assert_eq!(client.ask(&request).await.status, 502);
    assert_eq!(upstream.seen().len(), 5);
}

#[tokio::test]
async fn a_service_that_restarts_is_waited_for() {
    let placeholder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = placeholder.local_addr().unwrap();
    drop(placeholder);
    let edge = Edge::start(&format!("[sites.\"{HOST}\"]\nupstream = \"http://{addr}\"\n"));
    let mut client = Client::tls(&edge, HOST).await;
    let asking = client.get(HOST, "/");
    let coming_back = async {
        tokio::time::sleep(std::time::Duration::from_millis(600)).await;
        let listener = tokio::net::TcpListener::bind(addr).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        origin::read_request(&mut stream).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, &origin::ok("back")).await.unwrap();
    };
    let (answer, ()) = tokio::join!(asking, coming_back);
    assert_eq!((answer.status, answer.text().as_str()), (200, "back"));
}

#[tokio::test]
async fn a_unix_socket_is_an_upstream() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    #[expect(clippy::disallowed_methods, reason = "ends with the test")]
    let serving = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buf = [0; 4096];
        let _ = stream.read(&mut buf).await.unwrap();
        stream.write_all(&origin::ok("unix")).await.unwrap();
    });
    let edge = Edge::start(&format!("[sites.\"{HOST}\"]\nupstream = \"unix:{}\"\n", path.display()));
    assert_eq!(Client::tls(&edge, HOST).await.get(HOST, "/").await.text(), "unix");
    serving.await.unwrap();
}

#[tokio::test]
async fn plain_http_goes_to_https() {
    let (edge, upstream) = edge().await;
    let answer = Client::plain(edge.http()).await.get("A.example.org:80", "/a%2Fb?c").await;
    assert_eq!((answer.status, answer.field("location").as_deref()), (308, Some("https://a.example.org/a%2Fb?c")));
    assert_eq!(Client::plain(edge.http()).await.get("other.example.org", "/").await.status, 404);
    assert_eq!(upstream.seen().len(), 0);
}
