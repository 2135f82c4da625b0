//! Compression as a client sees it. The points at which the usual proxy falls short have a test each.

use std::{
    io::Read as _,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
};

use crate::support::{Client, Edge, Origin, client::Answer, origin};

const HOST: &str = "a.example.org";

/// Serves what the target says: `/STATUS?field=value&…`, with a body of a few kilobytes.
async fn edge() -> (Edge, Origin) {
    let upstream = Origin::answering(|request| {
        // A quotation mark may not stand in a target.
        let target = request.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').replace('\'', "\"");
        let target = target.as_str();
        let (status, fields) = target.split_once('?').unwrap_or((target, ""));
        let fields: Vec<_> = fields.split('&').filter_map(|field| field.split_once('=')).collect();
        if request.starts_with("HEAD") || status == "304" {
            let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            return format!("HTTP/1.1 {status} X\r\n{fields}content-length: {}\r\n\r\n", body().len()).into_bytes();
        }
        origin::answer(&format!("{status} X"), &fields, &body())
    })
    .await;
    let edge = Edge::start(&format!("[sites.\"{HOST}\"]\nupstream = \"{}\"\n", upstream.url()));
    (edge, upstream)
}

fn body() -> String {
    (0..200).map(|n| format!("{{\"type\":\"m.room.message\",\"event_id\":\"${n}\"}},")).collect()
}

async fn ask(edge: &Edge, method: &str, target: &str, fields: &str) -> Answer {
    let request = format!("{method} {target} HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n");
    Client::tls(edge, HOST).await.ask(&request).await
}

fn decoded(answer: &Answer) -> String {
    let mut text = String::new();
    match answer.field("content-encoding").as_deref() {
        Some("gzip") => flate2::read::GzDecoder::new(&answer.body[..]).read_to_string(&mut text),
        Some("zstd") => zstd::stream::read::Decoder::new(&answer.body[..]).unwrap().read_to_string(&mut text),
        Some("br") => brotli::Decompressor::new(&answer.body[..], 4096).read_to_string(&mut text),
        None => return answer.text(),
        Some(other) => panic!("{other}"),
    }
    .unwrap();
    text
}

#[tokio::test]
async fn every_field_of_accept_encoding_counts() {
    let (edge, upstream) = edge().await;
    for (fields, coding) in [
        ("Accept-Encoding: gzip\r\nAccept-Encoding: br\r\n", Some("br")),
        ("Accept-Encoding: *\r\n", Some("zstd")),
        ("Accept-Encoding: identity;q=0, gzip\r\n", Some("gzip")),
        ("Accept-Encoding: identity;q=0\r\n", None),
        ("Accept-Encoding: GZIP;q=0.5, ZSTD;q=0\r\n", Some("gzip")),
        ("", None),
    ] {
        let answer = ask(&edge, "GET", "/200?content-type=application/json", fields).await;
        assert_eq!(answer.status, 200, "never a 406");
        assert_eq!(answer.field("content-encoding").as_deref(), coding, "{fields}");
        assert_eq!(decoded(&answer), body());
    }
    let seen = upstream.seen();
    assert!(
        seen[0].to_lowercase().contains("accept-encoding: identity\r\n"),
        "the service is asked for the plain form"
    );
}

#[tokio::test]
async fn what_must_not_be_touched_is_not() {
    let (edge, _upstream) = edge().await;
    for target in [
        "/200?content-type=multipart/mixed",
        "/200?content-type=image/png",
        "/200?content-type=application/octet-stream",
        "/206?content-type=application/json&content-range=bytes 0-1/2",
        "/200?content-type=application/json&cache-control=no-transform",
        "/200?content-type=application/json&content-encoding=x-own",
    ] {
        let answer = ask(&edge, "GET", &target.replace(' ', "+"), "Accept-Encoding: gzip, br, zstd\r\n").await;
        assert_ne!(answer.field("content-encoding").as_deref(), Some("zstd"), "{target}");
        assert_eq!(answer.text(), body(), "{target}");
    }
    let failed = ask(&edge, "GET", "/500?content-type=application/json", "Accept-Encoding: gzip\r\n").await;
    assert_eq!((failed.status, failed.field("content-encoding").as_deref()), (500, Some("gzip")));
}

#[tokio::test]
async fn a_short_first_piece_does_not_decide() {
    let upstream = Origin::answering(|_| {
        let rest = body();
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nshort \r\n{:x}\r\n{rest}\r\n0\r\n\r\n", rest.len())
            .into_bytes()
    })
    .await;
    let edge = Edge::start(&format!("[sites.\"{HOST}\"]\nupstream = \"{}\"\n", upstream.url()));
    for coding in ["gzip", "br", "zstd"] {
        let answer = ask(&edge, "GET", "/", &format!("Accept-Encoding: {coding}\r\n")).await;
        assert_eq!(answer.field("content-encoding").as_deref(), Some(coding));
        assert_eq!(decoded(&answer), format!("short {}", body()));
    }
}

#[tokio::test]
async fn tags_are_weak_and_are_known_again() {
    let (edge, upstream) = edge().await;
    let first =
        ask(&edge, "GET", "/200?content-type=text/css&etag='v1'&accept-ranges=bytes", "Accept-Encoding: br\r\n").await;
    assert_eq!(first.field("etag").as_deref(), Some("W/\"v1\""));
    assert!(first.field("accept-ranges").is_none());
    let again =
        ask(&edge, "GET", "/304?etag='v1'", "Accept-Encoding: gzip\r\nIf-None-Match: \"other\", W/\"v1\"\r\n").await;
    assert_eq!(
        (again.status, again.field("etag").as_deref(), again.field("vary").as_deref()),
        (304, Some("W/\"v1\""), Some("Accept-Encoding"))
    );
    let asked = upstream.seen()[1].to_lowercase();
    assert!(asked.contains("if-none-match: \"other\", w/\"v1\", \"v1\"\r\n"), "{asked}");
}

#[tokio::test]
async fn the_head_of_a_head_is_that_of_its_get_without_a_length() {
    let (edge, _upstream) = edge().await;
    let head = ask(&edge, "HEAD", "/200?content-type=text/css", "Accept-Encoding: gzip\r\n").await;
    assert_eq!(head.field("content-encoding").as_deref(), Some("gzip"));
    assert!(head.field("content-length").is_none());
}

#[tokio::test]
async fn both_variants_say_that_there_are_two() {
    let (edge, _upstream) = edge().await;
    for accept in ["gzip", "identity"] {
        let answer =
            ask(&edge, "GET", "/200?content-type=text/css&vary=Origin", &format!("Accept-Encoding: {accept}\r\n"))
                .await;
        assert_eq!(answer.field("vary").as_deref(), Some("Origin, Accept-Encoding"));
        let once = ask(
            &edge,
            "GET",
            "/200?content-type=text/css&vary=accept-encoding",
            &format!("Accept-Encoding: {accept}\r\n"),
        )
        .await;
        assert_eq!(once.field("vary").as_deref(), Some("accept-encoding"));
    }
}

#[tokio::test]
async fn a_line_of_a_slow_stream_takes_less_than_fifty_milliseconds() {
    for coding in ["identity", "gzip", "br", "zstd"] {
        let next = Arc::new(Notify::new());
        let step = next.clone();
        let upstream = Origin::talking(move |mut stream: TcpStream, _| {
            let step = step.clone();
            async move {
                origin::read_request(&mut stream).await;
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
                stream.write_all(head.as_bytes()).await.unwrap();
                loop {
                    step.notified().await;
                    if stream.write_all(b"1a\r\n26 bytes of a slow stream\n\r\n").await.is_err() {
                        return;
                    }
                }
            }
        })
        .await;
        let edge = Edge::start(&format!("[sites.\"{HOST}\"]\nupstream = \"{}\"\n", upstream.url()));
        let mut client = Client::tls(&edge, HOST).await;
        client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nAccept-Encoding: {coding}\r\n\r\n")).await;
        let mut buf = vec![0; 4096];
        assert!(client.io.read(&mut buf).await.unwrap() > 0, "the head");
        let mut times = Vec::new();
        for _ in 0..21 {
            let began = Instant::now();
            next.notify_one();
            assert!(client.io.read(&mut buf).await.unwrap() > 0);
            times.push(began.elapsed());
        }
        times.sort();
        // The median, since a machine that does other things may hold up any single one.
        assert!(times[10] < Duration::from_millis(50), "{coding}: {times:?}");
    }
}
