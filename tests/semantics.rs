//! What fields mean: lists on several lines, entity tags, upgrades, loops, and ids.

use tokio::net::TcpStream;

use crate::support::{Client, Edge, Origin, origin};

const HOST: &str = "a.example.org";

fn site(url: &str) -> String {
    format!("[sites.\"{HOST}\"]\nupstream = \"{url}\"\n")
}

/// A service whose answer to everything is this head and 1 KiB of JSON.
async fn service(head: &'static str) -> Origin {
    Origin::answering(move |_| {
        let body = format!("{{\"x\":\"{}\"}}", "y".repeat(1024));
        format!(
            "HTTP/1.1 200 OK\r\n{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    })
    .await
}

#[tokio::test]
async fn vary_on_several_lines_keeps_every_member() {
    let upstream = service("Vary: Origin\r\nVary: Cookie\r\n").await;
    let edge = Edge::start(&site(&upstream.url()));
    for coding in ["gzip", "br", "identity"] {
        let mut client = Client::tls(&edge, HOST).await;
        let answer = client.ask(&format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nAccept-Encoding: {coding}\r\n\r\n")).await;
        assert_eq!(answer.all("vary").join(", "), "Origin, Cookie, Accept-Encoding", "{coding}");
    }
}

#[tokio::test]
async fn conditions_reach_the_service_with_the_tags_that_it_gave() {
    let upstream = service("ETag: \"a\"\r\n").await;
    let edge = Edge::start(&site(&upstream.url()));
    let mut client = Client::tls(&edge, HOST).await;
    let got = client.ask(&format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nAccept-Encoding: gzip\r\n\r\n")).await;
    assert_eq!(got.field("etag").as_deref(), Some("W/\"a\""));
    for (sent, seen) in [
        ("If-Match: W/\"a\"", "if-match: \"a\""),
        ("If-Match: W/\"x,y\", \"b\"\r\nIf-Match: W/\"a\"", "if-match: \"x,y\", \"b\", \"a\""),
        ("If-Range: W/\"a\"", "if-range: \"a\""),
        ("If-None-Match: \"p\"\r\nIf-None-Match: W/\"q,r\"", "if-none-match: \"p\", w/\"q,r\", \"q,r\""),
    ] {
        client.ask(&format!("PUT / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\n{sent}\r\n\r\n")).await;
        let request = upstream.seen().pop().unwrap().to_lowercase();
        assert!(request.contains(&format!("\r\n{seen}\r\n")), "{seen} in\n{request}");
    }
}

#[tokio::test]
async fn a_304_carries_the_tag_that_its_200_had() {
    let upstream =
        Origin::answering(|_| b"HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nVary: Origin\r\n\r\n".to_vec()).await;
    let edge = Edge::start(&site(&upstream.url()));
    let mut client = Client::tls(&edge, HOST).await;
    for (known, told) in [("W/\"a\"", "W/\"a\""), ("\"a\"", "\"a\""), ("\"x\", W/\"a\"", "W/\"a\"")] {
        let request =
            format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nAccept-Encoding: gzip\r\nIf-None-Match: {known}\r\n\r\n");
        let answer = client.ask(&request).await;
        assert_eq!((answer.status, answer.field("etag").as_deref()), (304, Some(told)), "{known}");
    }
}

#[tokio::test]
async fn an_upgrade_in_http_1_0_is_ignored() {
    let upstream = Origin::answering(|_| origin::ok("plain")).await;
    let edge = Edge::start(&site(&upstream.url()));
    let request = format!(
        "GET / HTTP/1.0\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    let answer = Client::tls(&edge, HOST).await.ask(&request).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "plain"));
    let seen = upstream.seen().remove(0).to_lowercase();
    assert!(!seen.contains("upgrade"), "{seen}");
}

#[tokio::test]
async fn a_101_without_the_right_proof_is_refused() {
    for accept in ["s3pPLMBiTxaQ9kYGzzhZRbK+xOo", "S3PPLMBITXAQ9KYGZZHZRBK+XOO=", "=", ""] {
        let upstream = Origin::answering(move |_| {
            let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n";
            format!("{head}Sec-WebSocket-Accept: {accept}\r\n\r\n").into_bytes()
        })
        .await;
        let edge = Edge::start(&site(&upstream.url()));
        let request = format!(
            "GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        assert_eq!(Client::tls(&edge, HOST).await.ask(&request).await.status, 502, "{accept:?}");
    }
}

#[tokio::test]
async fn alternatives_of_a_service_do_not_leave_the_edge() {
    let upstream = Origin::answering(|_| {
        b"HTTP/1.1 103 Early Hints\r\nAlt-Svc: h3=\":8\"\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nAlt-Svc: h3=\":9\"\r\n\
          Alt-Svc: clear\r\nContent-Length: 2\r\n\r\nok"
            .to_vec()
    })
    .await;
    let edge = Edge::start(&site(&upstream.url()));
    let mut client = Client::tls(&edge, HOST).await;
    client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    for status in [103, 200] {
        let answer = client.read_answer(false).await.unwrap();
        assert_eq!((answer.status, answer.all("alt-svc").len()), (status, 0), "{}", answer.head);
    }
}

#[tokio::test]
async fn the_scheme_of_a_trusted_proxy_is_a_list_in_any_case() {
    let upstream = Origin::answering(|_| origin::ok("")).await;
    let edge = Edge::with("trusted_proxies = [\"127.0.0.0/8\"]", &site(&upstream.url()));
    for (proto, status) in [
        ("https", 200),
        ("HTTPS", 200),
        ("wss", 200),
        ("Wss", 200),
        ("https,http", 200),
        ("https , http", 200),
        ("https\r\nX-Forwarded-Proto: http", 200),
        ("http", 308),
        ("ws", 308),
        ("http, https", 308),
        ("gopher", 308),
        ("", 308),
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX-Forwarded-Proto: {proto}\r\n\r\n");
        let answer = Client::plain(edge.http()).await.ask(&request).await;
        assert_eq!(answer.status, status, "{proto:?}");
    }
    for seen in upstream.seen() {
        assert_eq!(seen.to_lowercase().matches("\r\nx-forwarded-proto: https\r\n").count(), 1, "{seen}");
    }
}

#[tokio::test]
async fn a_loop_ends_with_508() {
    // An upstream that is the edge itself, by way of a relay: as a name that resolves to the edge would be.
    let relay = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let edge = Edge::with("", &format!("{}tls = \"off\"\n", site(&format!("http://{}", relay.local_addr().unwrap()))));
    let back = edge.http();
    #[expect(clippy::disallowed_methods, reason = "ends with the test")]
    tokio::spawn(async move {
        while let Ok((mut near, _)) = relay.accept().await {
            tokio::spawn(async move {
                let mut far = TcpStream::connect(back).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    let answer = Client::plain(edge.http()).await.get(HOST, "/").await;
    assert_eq!(answer.status, 508, "{}", answer.text());
    let log = edge.wait_for_log("loop_detected");
    assert!(log.contains("\"status\":508"), "{log}");
    edge.wait_for_log("\"ended_by\":\"end\"");
    assert_eq!(edge.log().matches("\"target\":\"access\"").count(), 2, "once there and once back");
}

#[tokio::test]
async fn tokens_of_other_hops_are_kept() {
    let upstream = Origin::answering(|_| origin::ok("")).await;
    let edge = Edge::start(&site(&upstream.url()));
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nCDN-Loop: a.example; x=\"b,c\"\r\nCDN-Loop: d\r\n\r\n");
    assert_eq!(Client::tls(&edge, HOST).await.ask(&request).await.status, 200);
    assert_eq!(Client::tls(&edge, HOST).await.ask(&request).await.status, 200);
    let tokens = upstream.seen().into_iter().map(|seen| {
        let lines = seen.lines().filter_map(|line| line.to_lowercase().strip_prefix("cdn-loop: ").map(str::to_owned));
        let mut lines: Vec<_> = lines.collect();
        let ours = lines.pop().unwrap();
        assert_eq!(lines, ["a.example; x=\"b,c\"", "d"]);
        ours
    });
    let tokens: Vec<_> = tokens.collect();
    assert!(tokens[0] == tokens[1] && tokens[0].len() > 32, "{tokens:?}");
    let other = Edge::start(&site(&upstream.url()));
    Client::tls(&other, HOST).await.get(HOST, "/").await;
    assert!(!upstream.seen()[2].to_lowercase().contains(&tokens[0]), "each process has its own");
}

#[tokio::test]
async fn a_failure_of_a_service_names_the_request() {
    let upstream = Origin::answering(|request| {
        let status =
            if request.starts_with("GET /own") { "500 Internal Server Error" } else { "503 Service Unavailable" };
        let own: &[_] = if request.starts_with("GET /own") { &[("x-request-id", "theirs")] } else { &[] };
        origin::answer(status, own, "broken")
    })
    .await;
    let edge = Edge::start(&site(&upstream.url()));
    for target in ["/", "/own"] {
        let answer = Client::tls(&edge, HOST).await.get(HOST, target).await;
        assert_eq!(answer.text(), "broken", "the answer is the service's own");
        let id = answer.field("x-request-id").unwrap();
        assert_eq!(edge.exchange(target)["request_id"], id);
        assert!(upstream.seen().pop().unwrap().to_lowercase().contains(&format!("x-request-id: {id}\r\n")));
    }
}

#[tokio::test]
async fn an_id_does_not_tell_the_next_one() {
    let upstream = Origin::answering(|_| origin::ok("")).await;
    let edge = Edge::start(&site(&upstream.url()));
    let mut client = Client::tls(&edge, HOST).await;
    for _ in 0..200 {
        client.get(HOST, "/").await;
    }
    let id = |seen: String| {
        let seen = seen.to_lowercase();
        let id = seen.split("x-request-id: ").nth(1).unwrap().split('\r').next().unwrap().to_owned();
        u64::from_str_radix(&id, 16).unwrap()
    };
    let ids: Vec<u64> = upstream.seen().into_iter().map(id).collect();
    // What undoes the mixing of a counter (SplitMix64), by which ids were once made.
    let unmix = |mut z: u64| {
        z = (z ^ (z >> 31) ^ (z >> 62)).wrapping_mul(0x3196_42b2_d24d_8ec3);
        z = (z ^ (z >> 27) ^ (z >> 54)).wrapping_mul(0x96de_1b17_3f11_9089);
        z ^ (z >> 30) ^ (z >> 60)
    };
    let steps: std::collections::HashSet<u64> =
        ids.windows(2).map(|pair| unmix(pair[1]).wrapping_sub(unmix(pair[0]))).collect();
    assert_eq!(steps.len(), ids.len() - 1);
}
