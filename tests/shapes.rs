//! Messages in odd but known shapes, from clients and from services: what goes on is what was meant, or nothing does.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Client, Edge, Origin, client, origin};

const HOST: &str = "a.example.org";

async fn edge(upstream: &Origin) -> Edge {
    Edge::start(&format!("[sites.\"{HOST}\"]\nupstream = \"{}\"\n", upstream.url()))
}

fn ask(target: &str, fields: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n")
}

/// The status and the body that a client sees.
type Outcome = (u16, &'static str);

/// What a service says when it is asked for a path, and what its client is to see: a status and a body, or a connection
/// that ends before there is a whole answer.
const ANSWERS: [(&str, &str, Option<Outcome>); 26] = [
    ("/until-close", "HTTP/1.1 200 OK\r\n\r\nabc", Some((200, "abc"))),
    ("/1.0", "HTTP/1.0 200 OK\r\n\r\nabc", Some((200, "abc"))),
    ("/1.0-length", "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", Some((200, "abc"))),
    ("/1.0-chunked", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Some((502, ""))),
    ("/no-reason", "HTTP/1.1 200\r\nContent-Length: 3\r\n\r\nabc", Some((200, "abc"))),
    ("/odd-status", "HTTP/1.1 299 Odd\r\nContent-Length: 3\r\n\r\nabc", Some((299, "abc"))),
    ("/204-with-length", "HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\nabc", Some((204, ""))),
    ("/204-chunked", "HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Some((204, ""))),
    ("/304-with-body", "HTTP/1.1 304 Not Modified\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", Some((304, ""))),
    ("/same-lengths", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", Some((200, "abc"))),
    ("/two-lengths", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", Some((502, ""))),
    ("/both", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Some((502, ""))),
    ("/coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", Some((502, ""))),
    ("/bad-chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n\r\n", None),
    ("/short", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", None),
    ("/more", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\n\r\nevil", Some((200, "abc"))),
    (
        "/more-chunks",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\nevil",
        Some((200, "abc")),
    ),
    ("/101", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", Some((502, ""))),
    ("/101-h2c", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n", Some((502, ""))),
    ("/100", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", Some((200, "abc"))),
    ("/folded", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 3\r\n\r\nabc", Some((502, ""))),
    ("/bare-lf", "HTTP/1.1 200 OK\nContent-Length: 3\n\nabc", Some((502, ""))),
    ("/099", "HTTP/1.1 099 X\r\nContent-Length: 3\r\n\r\nabc", Some((502, ""))),
    ("/no-http", "SSH-2.0-OpenSSH_9.2\r\n\r\n", Some((502, ""))),
    ("/half-a-head", "HTTP/1.1 200 OK\r\nContent-Le", Some((502, ""))),
    ("/nothing", "", Some((502, ""))),
];

/// Says its piece for each path and closes where it ends without a length, or wherever else it was told to.
async fn service() -> Origin {
    Origin::talking(|mut stream, seen| async move {
        while let Some(request) = origin::read_request(&mut stream).await {
            seen.lock().unwrap().push(request.clone());
            let path = request.split(' ').nth(1).unwrap_or_default();
            let Some((_, answer, _)) = ANSWERS.iter().find(|(known, ..)| *known == path) else {
                let _ = stream.write_all(&origin::ok(path)).await;
                continue;
            };
            let _ = stream.write_all(answer.as_bytes()).await;
            if matches!(path, "/until-close" | "/1.0" | "/short" | "/half-a-head" | "/nothing") {
                return;
            }
        }
    })
    .await
}

#[tokio::test]
async fn what_a_service_says_is_understood_or_a_502_and_poisons_nobody() {
    let upstream = service().await;
    let edge = edge(&upstream).await;
    for (path, _, expected) in ANSWERS {
        let mut client = Client::tls(&edge, HOST).await;
        match expected {
            Some((status, body)) => {
                let answer = client.ask(&ask(path, "")).await;
                assert_eq!(answer.status, status, "{path}");
                assert!(status == 502 || answer.text() == body, "{path}: {}", answer.text());
                assert!(status != 204 || answer.field("content-length").is_none());
                assert_eq!(client.get(HOST, "/next").await.text(), "/next", "after {path}");
            }
            None => {
                client.send(ask(path, "")).await;
                let mut all = Vec::new();
                assert!(client.io.read_to_end(&mut all).await.is_err(), "{path} ends badly");
                assert!(!all.ends_with(b"0\r\n\r\n"), "{path}");
            }
        }
        assert_eq!(Client::tls(&edge, HOST).await.get(HOST, "/other").await.text(), "/other", "after {path}");
    }
}

#[tokio::test]
async fn hints_are_passed_without_what_was_for_one_hop_and_only_so_many() {
    let hint = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n\r\n";
    let upstream = Origin::answering(move |request| {
        let count = if request.starts_with("GET /flood") { 20_000 } else { 1 };
        [hint.repeat(count).into_bytes(), origin::ok("final")].concat()
    })
    .await;
    let edge = edge(&upstream).await;
    let mut client = Client::tls(&edge, HOST).await;
    client.send(ask("/", "")).await;
    let early = client.read_answer(false).await.unwrap();
    assert_eq!((early.status, early.field("link").as_deref()), (103, Some("</a>")));
    assert!(
        early.field("connection").is_none() && early.field("x-hop").is_none() && early.field("keep-alive").is_none()
    );
    assert_eq!(client.answer(false).await.text(), "final");
    assert_eq!(client.ask(&ask("/flood", "")).await.status, 502);
}

#[tokio::test]
async fn trailers_pass_both_ways_without_what_may_not_be_there() {
    let upstream = Origin::answering(|_| {
        b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\nSet-Cookie: late\r\n\r\n"
            .to_vec()
    })
    .await;
    let edge = edge(&upstream).await;
    let mut client = Client::tls(&edge, HOST).await;
    client
        .send(format!(
            "POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nhi\r\n0\r\n\
             X-Sum: 1\r\nX-Forwarded-For: 6.6.6.6\r\nX_Under: 1\r\nContent-Length: 9\r\nHost: evil\r\nAuthorization: evil\r\n\r\n"
        ))
        .await;
    let mut all = Vec::new();
    client.io.read_to_end(&mut all).await.unwrap();
    assert!(all.ends_with(b"2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n"), "{}", String::from_utf8_lossy(&all));
    assert!(upstream.seen()[0].ends_with("2\r\nhi\r\n0\r\nx-sum: 1\r\n\r\n"), "{}", upstream.seen()[0]);
    // And over HTTP/2, where a client can send them as well.
    let io = client::tls(&edge, HOST, &["h2"]).await.unwrap();
    let (send, connection) = h2::client::handshake(io).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "ends with the connection")]
    tokio::spawn(connection);
    let request = http::Request::post(format!("https://{HOST}/")).body(()).unwrap();
    let (answer, mut stream) = send.ready().await.unwrap().send_request(request, false).unwrap();
    stream.send_data(Bytes::from_static(b"hi"), false).unwrap();
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-sum", "1".parse().unwrap());
    trailers.insert("x-forwarded-for", "6.6.6.6".parse().unwrap());
    stream.send_trailers(trailers).unwrap();
    let mut body = answer.await.unwrap().into_body();
    while body.data().await.is_some() {}
    assert_eq!(body.trailers().await.unwrap().unwrap()["x-sum"], "7");
    assert!(upstream.seen()[1].ends_with("2\r\nhi\r\n0\r\nx-sum: 1\r\n\r\n"), "{}", upstream.seen()[1]);
}

#[tokio::test]
async fn fields_pass_byte_for_byte() {
    let upstream = Origin::talking(|mut stream, _| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                return;
            }
        }
        // The head that came is the body of the answer; its own odd bytes are in a field.
        let answer = format!("HTTP/1.1 200 OK\r\nX_Their-Own: 1\r\nContent-Length: {}\r\nX-Odd: ", head.len());
        let _ = stream.write_all(&[answer.as_bytes(), b"\xe9\xff\r\n\r\n", &head].concat()).await;
    })
    .await;
    let edge = edge(&upstream).await;
    let mut client = Client::tls(&edge, HOST).await;
    let request = [
        b"GET / HTTP/1.1\r\nHost: a.example.org\r\nX-Two: 1\r\nx-two:2\r\nX-Odd: \x80\xff\r\nX-Empty:\r\nX-Wide:  a  b\t\r\n".as_slice(),
        b"Cookie: a=1\r\nX!#$%&'*+.^`|~: token\r\nX_Under: 1\r\nConnection: close\r\n\r\n",
    ]
    .concat();
    client.send(request).await;
    let mut all = Vec::new();
    client.io.read_to_end(&mut all).await.unwrap();
    let has = |what: &[u8]| {
        assert!(all.windows(what.len()).any(|window| window == what), "{:?}", what.escape_ascii().to_string());
    };
    has(b"\r\nx-odd: \xe9\xff\r\n");
    has(b"\r\nx_their-own: 1\r\n");
    has(b"\r\nx-two: 1\r\nx-two: 2\r\n");
    has(b"\r\nx-odd: \x80\xff\r\n");
    has(b"\r\nx-empty: \r\n");
    has(b"\r\nx-wide: a  b\r\n");
    has(b"\r\nx!#$%&'*+.^`|~: token\r\n");
    assert!(!all.windows(7).any(|window| window.eq_ignore_ascii_case(b"x_under")));
    assert!(edge.page("/metrics").await.contains("request_fields_dropped_total 1\n"), "dropped, and counted");
}

#[tokio::test]
async fn expectations_are_met_only_where_they_can_be() {
    let upstream = Origin::answering(|_| origin::ok("fine")).await;
    let edge = edge(&upstream).await;
    // Nothing but a 100 is waited for, and a client of HTTP/1.0 cannot wait for one.
    for (version, expect) in [("1.1", "200-maybe"), ("1.0", "100-continue")] {
        let mut client = Client::tls(&edge, HOST).await;
        let began = Instant::now();
        let request =
            format!("POST / HTTP/{version}\r\nHost: {HOST}\r\nExpect: {expect}\r\nContent-Length: 5\r\n\r\nhello");
        client.send(request).await;
        let first = client.read_answer(false).await.unwrap();
        assert_eq!((first.status, first.text().as_str()), (200, "fine"), "{expect}");
        assert!(began.elapsed() < Duration::from_millis(900), "the body was held back for a 100 that nobody wants");
    }
    assert!(!upstream.seen()[1].to_lowercase().contains("expect"));
    // Without a body there is nothing to wait for.
    assert_eq!(Client::tls(&edge, HOST).await.ask(&ask("/", "Expect: 100-continue\r\n")).await.status, 200);
}

#[tokio::test]
async fn http_1_0_is_served_and_kept_alive_only_on_request() {
    let upstream = Origin::echoing_targets().await;
    let edge = edge(&upstream).await;
    let mut client = Client::tls(&edge, HOST).await;
    let old = |fields: &str| format!("GET /old HTTP/1.0\r\nHost: {HOST}\r\n{fields}\r\n");
    let kept = client.ask(&old("Connection: keep-alive\r\n")).await;
    assert_eq!((kept.text().as_str(), kept.field("connection").as_deref()), ("/old", Some("keep-alive")));
    let last = client.ask(&old("")).await;
    assert_eq!((last.text().as_str(), last.field("connection").as_deref()), ("/old", Some("close")));
    assert!(client.ends().await);
    // It knows no chunks: what has no length ends with the connection.
    let until_close = service().await;
    let edge = self::edge(&until_close).await;
    let mut client = Client::tls(&edge, HOST).await;
    let answer =
        client.ask(&format!("GET /until-close HTTP/1.0\r\nHost: {HOST}\r\nConnection: keep-alive\r\n\r\n")).await;
    assert_eq!((answer.text().as_str(), answer.field("transfer-encoding")), ("abc", None));
}

#[tokio::test]
async fn bodies_belong_to_any_method_and_the_next_request_begins_behind_them() {
    let upstream = Origin::answering(|request| origin::ok(request.split("\r\n\r\n").nth(1).unwrap_or_default())).await;
    let edge = edge(&upstream).await;
    let mut client = Client::tls(&edge, HOST).await;
    for method in ["GET", "DELETE", "OPTIONS", "M-SEARCH", "get"] {
        let request = format!("{method} / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\n\r\nhello");
        client.send(format!("{request}{request}")).await;
        assert_eq!(client.answer(false).await.text(), "hello", "{method}");
        assert_eq!(client.answer(false).await.text(), "hello", "{method}");
    }
    let empty = client.ask(&format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\n\r\n")).await;
    assert_eq!(empty.status, 200);
    assert!(upstream.seen().last().unwrap().to_lowercase().contains("content-length: 0\r\n"));
}

#[tokio::test]
async fn targets_that_name_no_path_of_ours_stop_here() {
    let upstream = Origin::echoing_targets().await;
    let redirecting = "[sites.\"c.example.org\"]\nredirect = \"https://www.example.org\"\n";
    let edge = Edge::start(&format!("[sites.\"{HOST}\"]\nupstream = \"{}\"\n{redirecting}", upstream.url()));
    for target in [
        "ftp://a.example.org/",
        "gopher://a.example.org",
        "http://u:p@a.example.org/",
        "http://b.example.org/",
        "a.example.org:443",
        "/a#b",
        "/a\u{7f}",
        "/a<b",
        "/a?\"",
    ] {
        let answer = Client::tls(&edge, HOST).await.ask(&ask(target, "")).await;
        assert_eq!(answer.status, 400, "{target}");
    }
    for target in ["HTTP://A.example.org/x?y", "https://a.example.org/x?y"] {
        assert_eq!(Client::tls(&edge, HOST).await.ask(&ask(target, "")).await.text(), "/x?y");
    }
    // The whole server: the service behind everything is asked, or we answer.
    let all = |host: &str| format!("OPTIONS * HTTP/1.1\r\nHost: {host}\r\n\r\n");
    assert_eq!(Client::tls(&edge, HOST).await.ask(&all(HOST)).await.text(), "*");
    let ours = Client::tls(&edge, "c.example.org").await.ask(&all("c.example.org")).await;
    assert_eq!((ours.status, ours.field("location"), ours.field("allow").is_some()), (204, None, true));
}

#[tokio::test]
async fn hosts_are_kept_as_they_came() {
    let upstream = Origin::answering(|request| {
        let host = request.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
        origin::ok(host)
    })
    .await;
    let edge = edge(&upstream).await;
    for host in ["a.example.org:443", "A.EXAMPLE.ORG", "a.example.org.", "a.example.org.:8443", "a.example.org:0"] {
        assert_eq!(Client::tls(&edge, HOST).await.get(host, "/").await.text(), host);
    }
    for (host, status) in [
        ("a.example.org:65536", 400),
        ("a.example.org,b", 400),
        ("a.example.org/", 400),
        ("a%2Eexample.org", 400),
        ("", 400),
        ("[::1]", 421),
        ("a_b.example.org", 421),
        ("b.example.org", 421),
    ] {
        assert_eq!(Client::tls(&edge, HOST).await.get(host, "/").await.status, status, "{host}");
    }
}
