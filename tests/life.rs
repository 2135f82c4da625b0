//! The life of the process: reload, drain, the operator's door.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Client, Edge, Origin, origin};

const HOST: &str = "a.example.org";

fn responding(text: &str) -> String {
    format!("[sites.\"{HOST}\".routes]\n\"/\" = {{ respond = \"{text}\" }}\n")
}

#[tokio::test]
async fn a_reload_changes_everything_at_once_and_cuts_nothing() {
    let edge = Edge::start(&responding("one"));
    let mut kept = Client::tls(&edge, HOST).await;
    assert_eq!(kept.get(HOST, "/").await.text(), "one");
    edge.rewrite("", &responding("two"));
    edge.wait_for_log("the new configuration is in effect");
    assert_eq!(kept.get(HOST, "/").await.text(), "two", "an open connection sees it");
    edge.rewrite("", "[sites.\"broken\"]\nupstraem = 1\n");
    edge.wait_for_log("the old configuration stays");
    assert_eq!(kept.get(HOST, "/").await.text(), "two");
    let said = edge.command(&["reload"]);
    assert_eq!(said.status.code(), Some(78), "the command reads the file too, and says what is wrong");
    assert!(String::from_utf8_lossy(&said.stderr).contains("did you mean `upstream`?"));
    edge.rewrite("", &responding("two"));
    edge.signal("HUP");
    edge.wait_for_log("the configuration is the same");
    let said = edge.command(&["reload"]);
    assert!(said.status.success() && String::from_utf8_lossy(&said.stdout).contains("the same"));
}

#[tokio::test]
async fn addresses_that_change_are_opened_and_closed() {
    let edge = Edge::start(&responding("one"));
    let extra = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = Edge::config(edge.path("").as_path(), "", &responding("one"));
    let more = config.replace("http = [\"127.0.0.1:0\"]", &format!("http = [\"127.0.0.1:0\", \"{extra}\"]"));
    std::fs::write(edge.path("vestibule.toml"), more).unwrap();
    edge.wait_for_log("the new configuration is in effect");
    assert_eq!(Client::plain(extra).await.get(HOST, "/").await.status, 308);
    assert_eq!(Client::plain(edge.http()).await.get(HOST, "/").await.status, 308, "the old one stays as it was");
    std::fs::write(edge.path("vestibule.toml"), config).unwrap();
    edge.wait_for_log("not listening any more");
    let until = Instant::now() + Duration::from_secs(5);
    while tokio::net::TcpStream::connect(extra).await.is_ok() {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_drain_finishes_what_is_in_flight_and_says_goodbye() {
    let upstream = Origin::talking(|mut stream, _| async move {
        let Some(request) = origin::read_request(&mut stream).await else { return };
        if request.contains("/slow") {
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            let _ = stream.write_all(&origin::ok("slow but whole")).await;
            return;
        }
        let open = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
        stream.write_all(open.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
    })
    .await;
    let mut edge = Edge::start(&format!("[sites.\"{HOST}\"]\nupstream = \"{}\"\n", upstream.url()));
    let mut slow = Client::tls(&edge, HOST).await;
    slow.send(format!("GET /slow HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    let mut tunnels = Vec::new();
    for _ in 0..20 {
        let mut client = Client::tls(&edge, HOST).await;
        let open = format!(
            "GET /ws HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"
        );
        assert_eq!(client.ask(&open).await.status, 101);
        tunnels.push(client);
    }
    let mut idle = Client::tls(&edge, HOST).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let began = Instant::now();
    edge.signal("TERM");
    for tunnel in &mut tunnels {
        assert_eq!(tunnel.exactly(4).await, [0x88, 2, 0x03, 0xe9]);
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(idle.ends().await);
    let answer = slow.answer(false).await;
    assert_eq!((answer.text().as_str(), answer.field("connection").as_deref()), ("slow but whole", Some("close")));
    assert_eq!(edge.wait().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(8));
}

#[tokio::test]
async fn what_cannot_finish_is_cut_in_time_and_told() {
    let upstream = Origin::talking(|stream, _| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(stream);
    })
    .await;
    let mut edge =
        Edge::start(&format!("[timeouts]\ndrain = \"1s\"\n[sites.\"{HOST}\"]\nupstream = \"{}\"\n", upstream.url()));
    let mut stuck = Client::tls(&edge, HOST).await;
    stuck.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let began = Instant::now();
    edge.signal("INT");
    assert_eq!(edge.wait().code(), Some(1));
    assert!(began.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn the_operator_is_told() {
    let edge = Edge::start(&responding("one"));
    Client::tls(&edge, HOST).await.get(HOST, "/?access_token=S3CRET").await;
    assert!(edge.command(&["healthcheck"]).status.success());
    let status = edge.command(&["status"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains(HOST) && status.contains("internal"), "{status}");
    let line = edge.wait_for_log("\"target\":\"access\"");
    let event: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((event["status"].as_u64(), event["method"].as_str()), (Some(200), Some("GET")), "{line}");
    assert!(!edge.log().contains("S3CRET"));
    let page = edge.page("/metrics").await;
    assert!(page.contains(r#"vestibule_requests_total{site="a.example.org",method="GET",status="2xx"} 1"#), "{page}");
}

#[tokio::test]
async fn no_secret_reaches_a_log_at_any_level() {
    let upstream = Origin::answering(|request| match request {
        request if request.starts_with("GET /cut") => Vec::new(),
        _ => origin::answer("200 OK", &[("set-cookie", "s=S3CRET"), ("location", "/?loginToken=S3CRET")], "fine"),
    })
    .await;
    let url = upstream.url();
    let edge = Edge::start(&format!("[log]\nlevel = \"trace\"\n[sites.\"{HOST}\"]\nupstream = \"{url}\"\n"));
    let fields = "Authorization: Bearer S3CRET\r\nCookie: a=S3CRET\r\nX-Matrix-User: S3CRET\r\n\
                  Proxy-Authorization: S3CRET\r\nSec-WebSocket-Protocol: S3CRET";
    for target in [
        "/?access_token=S3CRET",
        "/a?x=1&loginToken=S3CRET&y=2",
        "/rtc/v1?join_request=S3CRET",
        "/a?access%5Ftoken=S3CRET",
        "/a?ACCESS_TOKEN=S3CRET",
        "/cut?access_token=S3CRET",
    ] {
        for host in [HOST, "stranger.example.org"] {
            let mut client = Client::tls(&edge, HOST).await;
            client.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n\r\n")).await;
            client.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nBad Field: S3CRET\r\n\r\n")).await;
            assert!(client.ends().await);
        }
    }
    edge.wait_for_log("/cut?access_token=REDACTED");
    // What the log holds is looked at when the edge is dropped.
}

#[tokio::test]
async fn who_has_nothing_to_do_does_nothing() {
    for admin in ["unix", "off"] {
        let config = responding("one");
        let edge = Edge::start(&config);
        if admin == "off" {
            // The door is gone at the next start; this one is about to be replaced by it.
            let text = std::fs::read_to_string(edge.path("vestibule.toml")).unwrap();
            let off: String = text
                .lines()
                .map(|line| {
                    if line.starts_with("listen = \"unix") { "listen = \"off\"\n".into() } else { format!("{line}\n") }
                })
                .collect();
            std::fs::write(edge.path("off.toml"), off).unwrap();
        }
        let edge = if admin == "off" { Edge::from_file(edge) } else { edge };
        let mut idle = Vec::new();
        for _ in 0..20 {
            let mut client = Client::tls(&edge, HOST).await;
            assert_eq!(client.get(HOST, "/").await.status, 200);
            idle.push(client);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let before = edge.ticks();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let used = edge.ticks() - before;
        assert!(used < 20, "{used} ticks in two seconds of nothing (admin {admin})");
    }
}
