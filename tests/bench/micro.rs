//! Micro-benchmarks of what every request passes: `cargo bench --locked --bench micro [WORD]`.
//!
//! They tell a change of a part from noise; what an exchange costs as a whole is measured side by side with others
//! (README.md beside this file).

use std::{
    hint::black_box,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use divan::{Bencher, counter::BytesCount};
use http::{Method, StatusCode, Version, header};
use vestibule::{
    cert::schedule::{self, ScheduleInput},
    config::plan::Encoding,
    conn::ConnInfo,
    layer::{compress, forwarded::Client, hop},
    message::{Fields, Value},
    route::{PathMatcher, Router},
    wire::{self, HeadLimits},
};

fn main() {
    divan::main();
}

const LIMITS: HeadLimits = HeadLimits { bytes: 32 * 1024, fields: 128, target: 65_534 };

/// What Element Web sends with a /sync.
const REQUEST: &[u8] =
    b"GET /_matrix/client/v3/sync?filter=1&timeout=30000&set_presence=online&since=s72594_4483_1934 HTTP/1.1\r\n\
    Host: matrix.example.org\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
    Accept: application/json\r\nAccept-Language: en-GB,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n\
    Authorization: Bearer syt_YWxpY2U_abcdefghijklmnopqrst_0a1b2c\r\nOrigin: https://app.example.org\r\n\
    Referer: https://app.example.org/\r\nConnection: keep-alive\r\nSec-Fetch-Dest: empty\r\nSec-Fetch-Mode: cors\r\n\
    Sec-Fetch-Site: cross-site\r\n\r\n";

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nServer: Synapse/1.150.0\r\nDate: Tue, 24 Nov 2026 10:00:00 GMT\r\n\
    Content-Type: application/json\r\nCache-Control: no-cache, no-store, must-revalidate\r\n\
    Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Methods: GET, HEAD, POST, PUT, DELETE, OPTIONS\r\n\
    Transfer-Encoding: chunked\r\n\r\n";

/// The head of a request, from bytes to words.
#[divan::bench]
fn head_of_a_request(bencher: Bencher<'_, '_>) {
    let head = Bytes::from_static(REQUEST);
    bencher.counter(BytesCount::of_slice(REQUEST)).bench(|| wire::parse_request(&head, &LIMITS));
}

/// The head of an answer, from bytes to words.
#[divan::bench]
fn head_of_an_answer(bencher: Bencher<'_, '_>) {
    let head = Bytes::from_static(RESPONSE);
    bencher.counter(BytesCount::of_slice(RESPONSE)).bench(|| wire::parse_response(&head, &Method::GET, &LIMITS));
}

fn fields() -> Fields {
    wire::parse_request(&Bytes::from_static(REQUEST), &LIMITS).map(|head| head.fields).unwrap_or_default()
}

/// The fields of one hop, off a request and off an answer.
#[divan::bench]
fn sanitiser(bencher: Bencher<'_, '_>) {
    bencher.with_inputs(fields).bench_values(|mut fields| {
        hop::request(&Method::GET, &mut fields, Version::HTTP_11);
        hop::response(StatusCode::OK, &mut fields, Version::HTTP_11);
        fields
    });
}

/// Who the client is: found, everything that claims it taken away, and said anew.
#[divan::bench]
fn forwarded_fields(bencher: Bencher<'_, '_>) {
    let addr = (IpAddr::from([192, 0, 2, 1]), 50_000).into();
    let conn = ConnInfo { peer: addr, client: addr, port: 443, tls: None };
    bencher.with_inputs(fields).bench_values(|mut fields| {
        let client = Client::find(&conn, &fields, &[]);
        client.announce(&mut fields);
        fields
    });
}

/// A site among a hundred, and a route among four.
#[divan::bench]
fn router(bencher: Bencher<'_, '_>) {
    let routes = |n: usize| {
        ["/", "/livekit/jwt", "/livekit/sfu", "/_matrix"]
            .map(|prefix| (PathMatcher::Prefix(prefix.into()), n))
            .into_iter()
            .collect()
    };
    let router = Router::new((0..100).map(|n| (format!("host-{n}.example.org").into(), None, n, routes(n))));
    bencher.bench(|| {
        let site = router.site(black_box("Host-42.example.org:443"), 443);
        site.and_then(|site| site.route(black_box("/_matrix/client/v3/sync"), |_| true))
    });
}

/// `Accept-Encoding` of a browser.
#[divan::bench]
fn negotiation(bencher: Bencher<'_, '_>) {
    let mut fields = Fields::new();
    fields.insert(header::ACCEPT_ENCODING, Value::from_static("gzip, deflate, br;q=0.9, zstd"));
    let offered = [Encoding::Zstd, Encoding::Brotli, Encoding::Gzip];
    bencher.bench(|| compress::negotiate(black_box(&fields), &offered));
}

/// 64 KiB of JSON in one go, with the context of the thread.
#[divan::bench(args = [Encoding::Zstd, Encoding::Gzip, Encoding::Brotli])]
fn encoding(bencher: Bencher<'_, '_>, encoding: Encoding) {
    let event = |n: u64| {
        // Ids that do not repeat, in a text that does: roughly what a /sync is.
        let id = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        format!(
            "{{\"type\":\"m.room.message\",\"event_id\":\"${id:016x}\",\"content\":{{\"msgtype\":\"m.text\",\"body\":\"{n}\"}}}},"
        )
    };
    let body: Vec<u8> = (0..).flat_map(|n| event(n).into_bytes()).take(64 * 1024).collect();
    bencher.counter(BytesCount::of_slice(&body)).bench(|| compress::whole(encoding, &body));
}

/// When something is to be done about a certificate.
#[divan::bench]
fn certificate_schedule(bencher: Bencher<'_, '_>) {
    let day = Duration::from_secs(24 * 3600);
    let now = SystemTime::UNIX_EPOCH + 20_000 * day;
    let facts = ScheduleInput { validity: Some((now - 30 * day, now + 60 * day)), ..ScheduleInput::default() };
    bencher.bench(|| schedule::next(black_box(&facts), now));
}
