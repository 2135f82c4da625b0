//! Clients that mean ill: each is bounded or sent away, and nobody else notices.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{
    Client, Edge, Origin, client,
    frames::{
        self, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS,
        WINDOW_UPDATE, frame,
    },
    origin,
};

const HOST: &str = "a.example.org";

/// What a flood may cost us in memory, for good: what an allocator keeps for itself is not what an attacker has of us.
const MAY_GROW: usize = 24 << 20;

async fn edge(upstream: &Origin, more: &str) -> Edge {
    Edge::start(&format!("{more}\n[sites.\"{HOST}\"]\nupstream = \"{}\"\n", upstream.url()))
}

/// Streams 1, 3, 5 …
fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|n| 2 * n + 1)
}

fn each(count: u32, one: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    streams(count).flat_map(one).collect()
}

fn floods() -> Vec<(&'static str, Vec<u8>)> {
    let get = frames::get(HOST);
    let open = frame(
        HEADERS,
        END_HEADERS,
        1,
        &frames::block(&[(":method", "POST"), (":scheme", "https"), (":path", "/"), (":authority", HOST)]),
    );
    let junk = frames::field(b"x-junk", &[b'j'; 16_000]);
    // A field of 4,000 bytes that is in the table once, and then named 4,000 times in every head.
    let mut bomb = get.clone();
    bomb.extend(frames::indexed(b"x-bomb", &[b'b'; 3_900]));
    let mut named = get.clone();
    named.extend([0xbe; 4_000]);
    let bombs = [
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb),
        streams(200).skip(1).flat_map(|id| frame(HEADERS, END_HEADERS | END_STREAM, id, &named)).collect(),
    ];
    vec![
        ("pings", frame(PING, 0, 0, b"abcdefgh").repeat(20_000)),
        ("settings", frame(SETTINGS, 0, 0, b"\0\x01\0\0\x10\0").repeat(20_000)),
        ("window updates", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]).repeat(20_000)),
        ("priorities", frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]).repeat(20_000)),
        ("empty data", [open.clone(), frame(DATA, 0, 1, b"").repeat(20_000)].concat()),
        (
            "data of padding",
            [open.clone(), frame(DATA, 8, 1, &[&[255_u8][..], &[0; 255]].concat()).repeat(20_000)].concat(),
        ),
        (
            "resets",
            each(2_000, |id| {
                [frame(HEADERS, END_HEADERS | END_STREAM, id, &get), frame(RST_STREAM, 0, id, &[0, 0, 0, 8])].concat()
            }),
        ),
        // Each makes us reset a stream (CVE-2025-8671): an update of nothing, or more than the window can be.
        (
            "resets by us, window of zero",
            each(2_000, |id| {
                [frame(HEADERS, END_HEADERS, id, &get), frame(WINDOW_UPDATE, 0, id, &[0, 0, 0, 0])].concat()
            }),
        ),
        (
            "resets by us, window too large",
            each(2_000, |id| {
                [frame(HEADERS, END_HEADERS, id, &get), frame(WINDOW_UPDATE, 0, id, &[0x7f, 0xff, 0xff, 0xff])].concat()
            }),
        ),
        ("continuations", [frame(HEADERS, 0, 1, &get), frame(CONTINUATION, 0, 1, &junk).repeat(4_000)].concat()),
        ("empty continuations", [frame(HEADERS, 0, 1, &get), frame(CONTINUATION, 0, 1, b"").repeat(20_000)].concat()),
        ("named fields", bombs.concat()),
        ("streams without end", each(20_000, |id| frame(HEADERS, END_HEADERS, id, &get))),
    ]
}

#[tokio::test]
async fn floods_over_http2_end_and_cost_nobody_anything() {
    let upstream = Origin::echoing_targets().await;
    let edge = edge(&upstream, "").await;
    assert_eq!(Client::tls(&edge, HOST).await.get(HOST, "/").await.status, 200);
    let before = edge.resident();
    for (name, bytes) in floods() {
        let mut flood = client::tls(&edge, HOST, &["h2"]).await.unwrap();
        flood.write_all(frames::PREFACE).await.unwrap();
        let (mut read, mut write) = tokio::io::split(flood);
        let reading = async { while let Ok(1..) = read.read(&mut [0; 65_536]).await {} };
        let writing = async {
            let _ = write.write_all(&bytes).await;
            let _ = write.flush().await;
            // All of it was taken: then it stays open and bounded, or ends by itself.
            let began = Instant::now();
            assert_eq!(Client::tls(&edge, HOST).await.get(HOST, "/").await.status, 200);
            assert!(began.elapsed() < Duration::from_secs(2), "{name}: {:?}", began.elapsed());
        };
        tokio::select! {
            () = reading => {}
            () = writing => {}
            () = tokio::time::sleep(Duration::from_secs(15)) => panic!("{name}: we still take it"),
        }
        assert_eq!(Client::tls(&edge, HOST).await.get(HOST, "/").await.status, 200, "{name}");
        let grown = edge.resident().saturating_sub(before);
        assert!(grown < MAY_GROW, "{name}: {} KiB", grown >> 10);
    }
}

#[tokio::test]
async fn what_http2_may_not_carry_never_becomes_a_request() {
    let upstream = Origin::answering(|_| origin::ok("fine")).await;
    let edge = edge(&upstream, "").await;
    let usual = [(":method", "POST"), (":scheme", "https"), (":path", "/evil"), (":authority", HOST)];
    let with = |more: &[(&str, &str)]| frames::block(&[&usual, more].concat());
    let without = |name: &str| frames::block(&usual.into_iter().filter(|(n, _)| *n != name).collect::<Vec<_>>());
    let instead =
        |name: &str, value: &str| frames::block(&usual.map(|(n, v)| if n == name { (n, value) } else { (n, v) }));
    for (what, head) in [
        ("an upper-case name", with(&[("X-Upper", "a")])),
        ("a space in a name", with(&[("x a", "b")])),
        ("a colon in a name", with(&[("x:a", "b")])),
        ("an empty name", with(&[("", "b")])),
        ("CR in a value", with(&[("x", "a\rb")])),
        ("LF in a value", with(&[("x", "a\nb")])),
        ("CRLF and a request in a value", with(&[("x", "a\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: b\r\n\r\n")])),
        ("NUL in a value", with(&[("x", "a\0b")])),
        ("transfer-encoding", with(&[("transfer-encoding", "chunked")])),
        ("connection", with(&[("connection", "keep-alive")])),
        ("keep-alive", with(&[("keep-alive", "5")])),
        ("proxy-connection", with(&[("proxy-connection", "keep-alive")])),
        ("upgrade", with(&[("upgrade", "websocket")])),
        ("te", with(&[("te", "gzip")])),
        ("a doubled :path", with(&[(":path", "/other")])),
        ("a late :path", frames::block(&[usual[0], usual[1], usual[3], ("x", "a"), usual[2]])),
        ("an unknown pseudo-field", with(&[(":protocol2", "a")])),
        (":status in a request", with(&[(":status", "200")])),
        ("no :method", without(":method")),
        ("no :path", without(":path")),
        ("no :scheme", without(":scheme")),
        ("an empty :path", instead(":path", "")),
        ("a :path without a slash", instead(":path", "evil")),
        ("a space in :path", instead(":path", "/evil HTTP/1.1")),
        ("CRLF in :path", instead(":path", "/evil HTTP/1.1\r\nx: y")),
        ("a space in :method", instead(":method", "GET /smuggled")),
        ("CRLF in :method", instead(":method", "GET / HTTP/1.1\r\nx: ")),
        ("a user in :authority", instead(":authority", "user@a.example.org")),
        ("CRLF in :authority", instead(":authority", "a.example.org\r\nx: y")),
        ("another host", with(&[("host", "b.example.org")])),
        ("two lengths", with(&[("content-length", "1"), ("content-length", "2")])),
        ("a length that is signed", with(&[("content-length", "+5")])),
        ("a length that is a list", with(&[("content-length", "5, 5")])),
        ("more than its length", with(&[("content-length", "2")])),
        ("less than its length", with(&[("content-length", "20")])),
    ] {
        let mut io = client::tls(&edge, HOST, &["h2"]).await.unwrap();
        let body = frame(DATA, END_STREAM, 1, b"hello");
        let bytes = [frames::PREFACE, &frame(HEADERS, END_HEADERS, 1, &head), &body].concat();
        io.write_all(&bytes).await.unwrap();
        let refused = tokio::time::timeout(Duration::from_secs(10), outcome(&mut io)).await;
        let refused = refused.unwrap_or_else(|_| panic!("{what}: no answer"));
        assert!(refused, "{what} is answered as if nothing were wrong");
    }
    let mut io = client::tls(&edge, HOST, &["h2"]).await.unwrap();
    let fine = frame(HEADERS, END_HEADERS | END_STREAM, 1, &frames::get(HOST));
    io.write_all(&[frames::PREFACE, &fine].concat()).await.unwrap();
    assert!(!outcome(&mut io).await, "what is right is answered");
    // A head and a part of a body may have gone out before a length turned out to be wrong; never a whole request.
    assert_eq!(upstream.seen().len(), 1, "and comes through alone");
}

/// Whether stream 1 ends in a reset, an end of the connection, or a status of 400 or 421.
async fn outcome(io: &mut (impl tokio::io::AsyncRead + Unpin)) -> bool {
    let mut header = [0; 9];
    loop {
        if io.read_exact(&mut header).await.is_err() {
            return true;
        }
        let len = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
        let mut payload = vec![0; len];
        if io.read_exact(&mut payload).await.is_err() {
            return true;
        }
        match (header[3], header[8]) {
            (frames::GOAWAY, _) | (RST_STREAM, 1) => return true,
            // `:status` 200 and 400 are in the static table; 421 is a literal.
            (HEADERS, 1) => return payload[0] != 0x88,
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_head_that_drips_is_ended_although_it_moves() {
    let upstream = Origin::echoing_targets().await;
    let edge = edge(&upstream, "[timeouts]\nheader = \"700ms\"").await;
    let mut client = Client::tls(&edge, HOST).await;
    client.send("GET / HTTP/1.1\r\n").await;
    let began = Instant::now();
    let dripping = async {
        loop {
            client.io.write_all(b"X: y\r\n").await?;
            client.io.flush().await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(began.elapsed() < Duration::from_secs(10), "it drips on");
        }
    };
    let ended: std::io::Result<()> = dripping.await;
    assert!(ended.is_err());
    assert_eq!(upstream.seen().len(), 0);
}

#[tokio::test]
async fn out_of_descriptors_it_sheds_keeps_serving_and_recovers() {
    let upstream = Origin::echoing_targets().await;
    let sites = format!("[sites.\"{HOST}\"]\nupstream = \"{}\"\n", upstream.url());
    let edge = Edge::within(&["prlimit", "--nofile=200:200"], &sites);
    let mut inside = Client::tls(&edge, HOST).await;
    assert_eq!(inside.get(HOST, "/").await.status, 200);
    let mut crowd = Vec::new();
    for _ in 0..400 {
        crowd.push(tokio::net::TcpStream::connect(edge.https()).await.unwrap());
    }
    assert_eq!(inside.get(HOST, "/still").await.text(), "/still", "who is in is served, upstream dials included");
    edge.wait_for_log("connections over the bound were refused");
    drop(crowd);
    let until = Instant::now() + Duration::from_secs(10);
    while client::tls(&edge, HOST, &["http/1.1"]).await.is_err() {
        assert!(Instant::now() < until, "it does not recover");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(inside.get(HOST, "/again").await.text(), "/again");
}

#[tokio::test]
async fn two_thousand_idle_connections_are_held_for_little() {
    let wanted = 2_000;
    let possible = rlimit::increase_nofile_limit(16_384).unwrap();
    assert!(possible > 2 * wanted, "this machine allows {possible} descriptors");
    let upstream = Origin::echoing_targets().await;
    let edge = edge(&upstream, "").await;
    let mut first = Client::tls(&edge, HOST).await;
    assert_eq!(first.get(HOST, "/").await.status, 200);
    let before = edge.resident();
    let mut idle = Vec::new();
    for _ in 0..wanted {
        let mut client = Client::tls(&edge, HOST).await;
        assert_eq!(client.get(HOST, "/").await.status, 200);
        idle.push(client);
    }
    let each = edge.resident().saturating_sub(before) / idle.len();
    assert!(each < 40 << 10, "{each} bytes for each idle connection");
    assert_eq!(Client::tls(&edge, HOST).await.get(HOST, "/new").await.text(), "/new");
    assert_eq!(idle[1_000].get(HOST, "/kept").await.text(), "/kept");
}
