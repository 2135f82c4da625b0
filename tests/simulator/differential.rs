//! The same conversations with the h2 crate: as a client of ours, and as a server beside ours.

use std::time::Duration;

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    task::JoinSet,
    time::timeout,
};

use crate::{
    Random,
    frames::{self, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, frame},
    scenarios::{Client, HOST, request, settings_of},
};

/// Uploads and answers of random sizes, some of them given up half-way, through small windows and a small pipe.
#[tokio::test]
async fn the_client_of_h2_gets_what_it_asks_for() {
    for seed in 0..20 {
        let mut random = Random::new(seed);
        let client = Client::silent(random.pick(&[100, 5_000, 1 << 20]));
        let (window, connection_window) = (random.pick(&[1, 1_000, 65_535, 1 << 20]), random.pick(&[65_535, 1 << 22]));
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(window).initial_connection_window_size(connection_window);
        let (send, connection) = builder.handshake::<_, Bytes>(client.io).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // Ends with the handle, or with the client of a request that was given up.
            let _ = connection.await;
        });
        let mut requests = JoinSet::new();
        for _ in 0..random.below(40) {
            let (size, is_given_up) = (random.pick(&[0, 1, 700, 20_000, 100_000]), random.once_in(6));
            requests.spawn(upload(send.clone(), size, is_given_up));
        }
        while let Some(done) = timeout(Duration::from_secs(60), requests.join_next()).await.expect("they end") {
            done.unwrap();
        }
    }
}

async fn upload(send: h2::client::SendRequest<Bytes>, size: usize, is_given_up: bool) {
    let post = http::Request::post(format!("https://{HOST}/echo")).body(()).unwrap();
    let (answer, mut stream) = send.ready().await.unwrap().send_request(post, false).unwrap();
    let mut left = size;
    while left > 0 {
        stream.reserve_capacity(left);
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap().unwrap();
        let now = room.min(left);
        left -= now;
        stream.send_data(Bytes::from(vec![7; now]), false).unwrap();
        if is_given_up {
            return stream.send_reset(h2::Reason::CANCEL);
        }
    }
    stream.send_data(Bytes::new(), true).unwrap();
    let mut body = answer.await.unwrap().into_body();
    let mut text = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        text.extend_from_slice(&data);
    }
    assert_eq!(String::from_utf8(text).unwrap(), size.to_string());
}

/// What has become of stream 1, and of the connection.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Answered,
    Reset,
    ConnectionError,
}

async fn outcome(mut io: DuplexStream, script: &[u8]) -> Outcome {
    // Whoever has heard enough may close before it has all.
    let _ = io.write_all(&[frames::PREFACE, script].concat()).await;
    loop {
        let mut head = [0; 9];
        if timeout(Duration::from_secs(20), io.read_exact(&mut head)).await.expect("an outcome").is_err() {
            return Outcome::ConnectionError;
        }
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        if io.read_exact(&mut payload).await.is_err() {
            return Outcome::ConnectionError;
        }
        match (head[3], head[8]) {
            (GOAWAY, _) => return Outcome::ConnectionError,
            (RST_STREAM, 1) => return Outcome::Reset,
            (HEADERS | DATA, 1) if head[4] & END_STREAM != 0 => return Outcome::Answered,
            _ => {}
        }
    }
}

/// The server of the h2 crate, which answers every request whose body is whole.
async fn theirs(script: &[u8]) -> Outcome {
    let (near, far) = duplex(1 << 20);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let Ok(mut connection) = h2::server::handshake(far).await else { return };
        let mut answers = JoinSet::new();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            answers.spawn(async move {
                let mut body = request.into_body();
                while let Some(data) = body.data().await {
                    let Ok(data) = data else { return };
                    let _ = body.flow_control().release_capacity(data.len());
                }
                let _ = respond.send_response(http::Response::new(()), true);
            });
        }
    });
    outcome(near, script).await
}

#[tokio::test]
async fn the_server_of_h2_says_the_same() {
    let get = request(1, END_STREAM, "/");
    let open = request(1, 0, "/");
    let block = get[9..].to_vec();
    let data = |flags, payload: &[u8]| frame(DATA, flags, 1, payload);
    let scripts: Vec<(&str, Vec<u8>)> = vec![
        ("a request", get.clone()),
        ("a body", [open.clone(), data(0, b"a"), data(END_STREAM, b"b")].concat()),
        ("an empty end", [open.clone(), data(END_STREAM, b"")].concat()),
        ("padding", [open.clone(), data(END_STREAM | 8, b"\x03body\0\0\0")].concat()),
        ("too much padding", [open.clone(), data(END_STREAM | 8, b"\x09body")].concat()),
        ("trailers", [open.clone(), frame(HEADERS, END_HEADERS | END_STREAM, 1, &frames::field(b"x", b"y"))].concat()),
        (
            "a block in parts",
            [
                frame(HEADERS, END_STREAM, 1, &block[..9]),
                frame(CONTINUATION, 0, 1, &block[9..20]),
                frame(CONTINUATION, END_HEADERS, 1, &block[20..]),
            ]
            .concat(),
        ),
        (
            "a frame inside of a block",
            [frame(HEADERS, END_STREAM, 1, &block[..9]), frame(PING, 0, 0, &[0; 8])].concat(),
        ),
        ("an even stream", request(2, END_STREAM, "/")),
        ("DATA on an idle stream", data(END_STREAM, b"x")),
        ("DATA on the connection", frame(DATA, 0, 0, b"x")),
        ("a PING of seven bytes", frame(PING, 0, 0, &[0; 7])),
        ("a window over the largest", frame(SETTINGS, 0, 0, &settings_of(4, 1 << 31))),
        ("a frame size under the least", frame(SETTINGS, 0, 0, &settings_of(5, 100))),
        ("settings on a stream", frame(SETTINGS, 0, 1, &settings_of(4, 100))),
        ("a window update of nothing", frame(8, 0, 0, &[0; 4])),
        ("an index that is not there", frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff, 0x7f])),
        ("an unknown frame", [frame(0x42, 0, 0, b"unknown"), get.clone()].concat()),
    ];
    for (what, script) in scripts {
        let ours = outcome(Client::silent(1 << 20).io, &script).await;
        assert_eq!(ours, theirs(&script).await, "{what}");
    }
    // A malformed request is an error of its stream (RFC 9113 section 8.1.1), which h2 takes further for some.
    for (name, value) in [("X-Capitals", "1"), ("connection", "close"), ("te", "gzip"), (":path", "/twice")] {
        let head = [&block[..], &frames::field(name.as_bytes(), value.as_bytes())].concat();
        let script = frame(HEADERS, END_HEADERS | END_STREAM, 1, &head);
        assert_eq!(outcome(Client::silent(1 << 20).io, &script).await, Outcome::Reset, "{name}");
        assert_ne!(theirs(&script).await, Outcome::Answered, "{name}");
    }
}
