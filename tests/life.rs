//! The life of the process: reload, drain, the admin server.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Client, Edge, Origin, frames, origin};

const HOST: &str = "a.example.org";

fn responding(text: &str) -> String {
    format!("[sites.\"{HOST}\".routes]\n\"/\" = {{ respond = \"{text}\" }}\n")
}

#[tokio::test]
async fn the_log_goes_to_a_file_and_sighup_opens_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let (file, old) = (folder.path().join("edge.log"), folder.path().join("edge.log.1"));
    let text = Edge::config(folder.path(), "", &format!("{}[log]\nfile = {file:?}\n", responding("one")));
    let config = folder.path().join("vestibule.toml");
    std::fs::write(&config, text).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_vestibule"));
    let mut child =
        command.args(["run", "--config"]).arg(&config).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let wait = |file: &std::path::Path, what: &str| {
        let until = Instant::now() + Duration::from_secs(60);
        while !std::fs::read_to_string(file).is_ok_and(|log| log.contains(what)) {
            assert!(Instant::now() < until, "no {what:?} in {}", file.display());
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    wait(&file, "\"ready\"");
    std::fs::rename(&file, &old).unwrap();
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-HUP", &id]).status().unwrap().success());
    wait(&file, "the configuration is the same");
    assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut error = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut error).unwrap();
    assert_eq!(error, "", "nothing goes to standard error");
    assert!(std::fs::read_to_string(&old).unwrap().contains("\"ready\""));
}

#[tokio::test]
async fn a_log_filter_from_the_environment_that_means_nothing_is_reported() {
    let edge = Edge::within(&["env", "RUST_LOG=loud"], &responding("one"));
    edge.wait_for_log("RUST_LOG is ignored");
    edge.wait_for_log("`loud` is not a log level");
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
    assert_eq!(said.status.code(), Some(78), "the edge says what is wrong with the file");
    assert!(String::from_utf8_lossy(&said.stderr).contains("did you mean `upstream`?"));
    // The edge that runs is fine, whatever has become of its file: nobody restarts it for that.
    let health = edge.command(&["healthcheck"]);
    assert!(health.status.success() && health.stdout == b"ready\n", "{health:?}");
    let status = String::from_utf8(edge.command(&["status"]).stdout).unwrap();
    assert!(status.contains(HOST) && status.lines().all(|line| line.len() <= 80), "{status}");
    let page = edge.page("/metrics").await;
    assert!(page.contains("vestibule_last_reload_successful 0"), "{page}");
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
    let release = Arc::new(tokio::sync::Notify::new());
    let released = release.clone();
    let upstream = Origin::talking(move |mut stream, _| {
        let released = released.clone();
        async move {
            let Some(request) = origin::read_request(&mut stream).await else { return };
            if request.contains("/slow") {
                released.notified().await;
                let _ = stream.write_all(&origin::ok("slow but whole")).await;
                return;
            }
            let open = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
            stream.write_all(open.as_bytes()).await.unwrap();
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all).await;
        }
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
    edge.wait_for_log("\"draining\"");
    release.notify_one();
    let answer = slow.answer(false).await;
    assert_eq!((answer.text().as_str(), answer.field("connection").as_deref()), ("slow but whole", Some("close")));
    for tunnel in &mut tunnels {
        assert_eq!(tunnel.exactly(4).await, [0x88, 2, 0x03, 0xe9]);
    }
    assert!(idle.ends().await);
    assert_eq!(edge.wait().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test]
async fn an_idle_or_silent_client_costs_nothing_at_the_end() {
    let mut edge = Edge::start(&responding("one"));
    let mut clients = Vec::new();
    for _ in 0..10 {
        // One that never asked, one that did, and one that speaks HTTP/2 and never reads.
        clients.push(Client::tls(&edge, HOST).await);
        let mut asked = Client::tls(&edge, HOST).await;
        assert_eq!(asked.get(HOST, "/").await.status, 200);
        clients.push(asked);
    }
    let mut suspended = crate::support::client::tls(&edge, HOST, &["h2"]).await.unwrap();
    suspended.write_all(frames::PREFACE).await.unwrap();
    let silent = tokio::net::TcpStream::connect(edge.https()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    let began = Instant::now();
    edge.signal("TERM");
    assert_eq!(edge.wait().code(), Some(0));
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    for client in &mut clients {
        assert!(client.ends().await);
    }
    drop((suspended, silent));
}

#[tokio::test]
async fn a_request_that_begins_after_the_signal_is_answered() {
    let upstream = Origin::talking(|mut stream, _| async move {
        let Some(request) = origin::read_request(&mut stream).await else { return };
        let wait = if request.contains("/long") { 60_000 } else { 400 };
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let _ = stream.write_all(&origin::ok("fine")).await;
    })
    .await;
    let mut edge = Edge::start(&format!("[sites.\"{HOST}\"]\nupstream = \"{}\"\n", upstream.url()));
    let mut poll = Client::tls(&edge, HOST).await;
    poll.send(format!("GET /long HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let began = Instant::now();
    edge.signal("TERM");
    edge.wait_for_log("\"draining\"");
    // The last moment at which the listeners are open: the poll is waited for three seconds.
    tokio::time::sleep(Duration::from_millis(2_800).saturating_sub(began.elapsed())).await;
    assert_eq!(Client::tls(&edge, HOST).await.get(HOST, "/short").await.text(), "fine");
    assert!(poll.ends().await);
    assert_eq!(edge.wait().code(), Some(0));
    assert!(began.elapsed() < Duration::from_millis(3_700), "{:?}", began.elapsed());
}

#[tokio::test]
async fn sigquit_ends_it_at_once() {
    let upstream = Origin::talking(|stream, _| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(stream);
    })
    .await;
    let mut edge = Edge::start(&format!("[sites.\"{HOST}\"]\nupstream = \"{}\"\n", upstream.url()));
    let mut stuck = Client::tls(&edge, HOST).await;
    stuck.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let began = Instant::now();
    edge.signal("QUIT");
    assert_eq!(edge.wait().code(), Some(1));
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
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
    let event = edge.exchange("/");
    assert_eq!((&event["ended_by"], &event["failed"]), (&"drain".into(), &"head".into()), "{event}");
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let upstream = Origin::talking(|stream, _| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(stream);
    })
    .await;
    let mut edge =
        Edge::start(&format!("[timeouts]\ndrain = \"60s\"\n[sites.\"{HOST}\"]\nupstream = \"{}\"\n", upstream.url()));
    let mut stuck = Client::tls(&edge, HOST).await;
    stuck.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    edge.signal("TERM");
    edge.wait_for_log("draining");
    let began = Instant::now();
    edge.signal("TERM");
    assert_eq!(edge.wait().code(), Some(1));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_up_neither_requests_nor_the_end() {
    let mut edge = Edge::unread(&responding("one"));
    let mut client = Client::tls(&edge, HOST).await;
    let target = format!("/{}", "a".repeat(1000));
    // A pipe holds 64 KiB.
    for _ in 0..300 {
        assert_eq!(client.get(HOST, &target).await.status, 200);
    }
    let began = Instant::now();
    edge.signal("TERM");
    assert_eq!(edge.wait().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[tokio::test]
async fn the_log_says_which_phase_failed_and_who_ended_it() {
    let upstream = Origin::talking(|mut stream, _| async move {
        let Some(request) = origin::read_request(&mut stream).await else { return };
        if request.contains("/cut") {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
        } else if request.contains("/slow") {
            tokio::time::sleep(Duration::from_secs(20)).await;
        } else if request.contains("/ws") {
            let open = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
            stream.write_all(open.as_bytes()).await.unwrap();
            let mut buf = [0; 3];
            let _ = stream.read_exact(&mut buf).await;
        }
    })
    .await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let edge = Edge::start(&format!(
        "[sites.\"{HOST}\".routes]\n\
         \"/\" = {{ upstream = {{ servers = [\"{}\"], response_timeout = \"1s\" }} }}\n\
         \"/refused\" = {{ upstream = {{ servers = [\"http://{nobody}\"], retry_connect = \"off\" }} }}\n\
         \"/nameless\" = {{ upstream = {{ servers = [\"http://nameless.invalid\"], retry_connect = \"off\" }} }}\n",
        upstream.url()
    ));
    for (target, status) in [("/reset", 502), ("/slow", 504), ("/refused", 502), ("/nameless", 502)] {
        let found = Client::tls(&edge, HOST).await.get(HOST, target).await.status;
        // Without a network, a resolver may need longer than a dial has.
        assert!(found == status || (target == "/nameless" && found == 504), "{target}: {found}");
    }
    let mut cut = Client::tls(&edge, HOST).await;
    cut.send(format!("GET /cut HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    assert!(cut.ends().await);
    let open = format!(
        "GET /ws HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"
    );
    let mut tunnel = Client::tls(&edge, HOST).await;
    assert_eq!(tunnel.ask(&open).await.status, 101);
    tunnel.send("bye").await;
    assert!(tunnel.ends().await);
    drop(tunnel);
    for (target, ended_by, failed) in [
        ("/reset", "upstream", Some("head")),
        ("/slow", "limit", Some("head")),
        ("/refused", "upstream", Some("connect")),
        ("/nameless", "", Some("dns")),
        ("/cut", "upstream", Some("body")),
        ("/ws", "upstream", None),
    ] {
        let event = edge.exchange(target);
        let expected = (if ended_by.is_empty() { event["ended_by"].as_str() } else { Some(ended_by) }, failed);
        assert_eq!((event["ended_by"].as_str(), event["failed"].as_str()), expected, "{event}");
    }
    let event = edge.exchange("/cut");
    assert!(event["body_ms"].is_number() && event["head_ms"].is_number() && event["connect_ms"].is_number(), "{event}");
    assert_eq!(event["bytes_out"], 4, "{event}");
}

#[tokio::test]
async fn the_operator_is_told() {
    let edge = Edge::start(&responding("one"));
    Client::tls(&edge, HOST).await.get(HOST, "/?access_token=S3CRET").await;
    assert!(edge.command(&["healthcheck"]).status.success());
    let status = edge.command(&["status"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains(HOST) && status.contains("internal"), "{status}");
    let event = edge.exchange("/?access_token=REDACTED");
    assert_eq!((event["status"].as_u64(), event["method"].as_str()), (Some(200), Some("GET")), "{event}");
    assert_eq!((event["site"].as_str(), event["client"].as_str()), (Some(HOST), Some("127.0.0.1")), "{event}");
    let line = edge.wait_for_log("\"target\":\"access\"");
    assert_eq!(line.matches("\"target\"").count(), 1, "no key is there twice: {line}");
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
    // The same over HTTP/2, whose library would tell a lot at this level.
    let io = crate::support::client::tls(&edge, HOST, &["h2"]).await.unwrap();
    let (mut send, connection) = h2::client::handshake(io).await.unwrap();
    let mut driven = tokio::task::JoinSet::new();
    driven.spawn(connection);
    let request = http::Request::get(format!("https://{HOST}/h2?access_token=S3CRET"))
        .header("authorization", "Bearer S3CRET")
        .header("cookie", "a=S3CRET")
        .header("referer", "https://a.example.org/?loginToken=S3CRET")
        .body(())
        .unwrap();
    assert_eq!(send.send_request(request, true).unwrap().0.await.unwrap().status(), 200);
    edge.wait_for_log("/h2?access_token=REDACTED");
    edge.wait_for_log("/cut?access_token=REDACTED");
    // What the log holds is looked at when the edge is dropped.
}

#[tokio::test]
async fn who_has_nothing_to_do_does_nothing() {
    for admin in ["unix", "off"] {
        let config = responding("one");
        let edge = Edge::start(&config);
        if admin == "off" {
            // The socket is gone at the next start; this one is about to be replaced by it.
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

#[tokio::test]
async fn every_way_of_replacing_the_file_is_seen() {
    use std::fs;
    let edge = Edge::start(&responding("zero"));
    let config = |text: &str| Edge::config(edge.path("").as_path(), "", &responding(text));
    let file = edge.path("vestibule.toml");
    let mut client = Client::tls(&edge, HOST).await;
    // In place, as behind a bind mount; over it, as most programs do; as editors do that keep a backup.
    fs::write(&file, config("one")).unwrap();
    becomes(&mut client, "one").await;
    edge.rewrite("", &responding("two"));
    becomes(&mut client, "two").await;
    fs::rename(&file, edge.path("vestibule.toml~")).unwrap();
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    fs::write(&file, config("three")).unwrap();
    becomes(&mut client, "three").await;
    assert!(!edge.log().contains("the old configuration stays"), "a file that is away for a moment is no fault");
    // As Kubernetes does: a link to a link to a folder, of which the one in the middle is swapped.
    for text in ["four", "five"] {
        fs::create_dir(edge.path(text)).unwrap();
        fs::write(edge.path(text).join("vestibule.toml"), config(text)).unwrap();
    }
    std::os::unix::fs::symlink("four", edge.path("data")).unwrap();
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("data/vestibule.toml", &file).unwrap();
    becomes(&mut client, "four").await;
    std::os::unix::fs::symlink("five", edge.path("data.new")).unwrap();
    fs::rename(edge.path("data.new"), edge.path("data")).unwrap();
    becomes(&mut client, "five").await;
}

async fn becomes<IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(client: &mut Client<IO>, text: &str) {
    let until = Instant::now() + Duration::from_secs(10);
    while client.get(HOST, "/").await.text() != text {
        assert!(Instant::now() < until, "{text:?} does not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_operators_door_moves_and_tls_tightens_with_a_reload() {
    let edge = Edge::start(&responding("one"));
    let config = Edge::config(edge.path("").as_path(), "", &responding("two"));
    let moved = config.replace("admin.sock", "other.sock").replace("[tls]\n", "[tls]\nmin_version = \"1.3\"\n");
    std::fs::write(edge.path("other.sock"), "a file that is no socket").unwrap();
    std::fs::write(edge.path("vestibule.toml"), &moved).unwrap();
    edge.wait_for_log("the old configuration stays");
    assert_eq!(std::fs::read_to_string(edge.path("other.sock")).unwrap(), "a file that is no socket");
    assert!(edge.page("/health").await.contains("200 OK"), "the old address stays");
    assert_eq!(Client::tls(&edge, HOST).await.get(HOST, "/").await.text(), "one");
    std::fs::remove_file(edge.path("other.sock")).unwrap();
    edge.signal("HUP");
    edge.wait_for_log("the new configuration is in effect");
    assert!(edge.command(&["healthcheck"]).status.success());
    let until = Instant::now() + Duration::from_secs(5);
    while tokio::net::UnixStream::connect(edge.path("admin.sock")).await.is_ok() {
        assert!(Instant::now() < until, "the old address still answers");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let hello = |version: &str| {
        let target = edge.https().to_string();
        let arguments = ["s_client", "-connect", &target, "-servername", HOST, version];
        std::process::Command::new("openssl").args(arguments).stdin(std::process::Stdio::null()).output()
    };
    match (hello("-tls1_2"), hello("-tls1_3")) {
        (Ok(old), Ok(new)) => assert!(!old.status.success() && new.status.success()),
        _ => eprintln!("openssl is not here: the version is not looked at"),
    }
}

#[tokio::test]
async fn commands_say_in_one_sentence_that_nobody_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vestibule.toml");
    for (listen, place) in [("unix:/nonexistent/admin.sock", "/nonexistent/admin.sock"), ("127.0.0.1:1", "127.0.0.1:1")]
    {
        std::fs::write(&file, format!("[admin]\nlisten = \"{listen}\"\n{}", responding("x"))).unwrap();
        for command in [&["status"][..], &["reload"], &["healthcheck"], &["renew", HOST]] {
            let arguments = [&["--config", file.to_str().unwrap()], command].concat();
            let said = crate::support::edge::program(&arguments);
            let error = String::from_utf8(said.stderr).unwrap();
            assert_eq!((said.status.code(), error.lines().count()), (Some(1), 1), "{error}");
            assert!(error.contains(&format!("no edge answers at {place}")), "{error}");
        }
    }
}

#[tokio::test]
async fn renew_distinguishes_an_unknown_name_from_one_without_an_acme_certificate() {
    let edge = Edge::start(&responding("one"));
    for (host, answer) in [
        (HOST, format!("{HOST} has no ACME certificate: its source is")),
        ("nowhere.example.org", "no site with TLS is named nowhere.example.org".to_owned()),
    ] {
        let output = edge.command(&["renew", host]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && error.contains(&answer), "{error}");
    }
}

#[tokio::test]
async fn what_is_dropped_and_what_is_saved_is_counted() {
    let upstream = Origin::answering(|_| origin::ok(&"text that repeats itself. ".repeat(400))).await;
    let edge = Edge::start(&format!("[sites.\"{HOST}\"]\nupstream = \"{}\"\n", upstream.url()));
    let mut client = Client::tls(&edge, HOST).await;
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX_Real_IP: 1.2.3.4\r\nx_a: b\r\n\r\n");
    assert_eq!(client.ask(&request).await.status, 200);
    let io = crate::support::client::tls(&edge, HOST, &["h2"]).await.unwrap();
    let (mut send, connection) = h2::client::handshake(io).await.unwrap();
    let mut driven = tokio::task::JoinSet::new();
    driven.spawn(connection);
    let request = http::Request::get(format!("https://{HOST}/")).header("x_h2", "y").body(()).unwrap();
    assert_eq!(send.send_request(request, true).unwrap().0.await.unwrap().status(), 200);
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nAccept-Encoding: gzip\r\n\r\n");
    assert_eq!(client.ask(&request).await.field("content-encoding").as_deref(), Some("gzip"));
    let page = edge.page("/metrics").await;
    let value = |name: &str| {
        let line = page.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{page}"));
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(value("vestibule_request_fields_dropped_total"), 3);
    assert!(value("vestibule_compression_saved_bytes_total") > 9_000, "{page}");
    assert_eq!(value("vestibule_last_reload_successful"), 1);
}

#[tokio::test]
async fn addresses_of_clients_are_masked_or_left_out() {
    for (how, shown) in [("masked", Some("127.0.0.0")), ("none", None), ("full", Some("127.0.0.1"))] {
        let edge = Edge::start(&format!("[log]\nclient_ip = \"{how}\"\n{}", responding("x")));
        Client::tls(&edge, HOST).await.get(HOST, "/seen").await;
        // One that never becomes a request.
        Client::plain(edge.http()).await.ask("GET /bad HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").await;
        for target in ["/seen", "/bad"] {
            assert_eq!(edge.exchange(target)["client"].as_str(), shown, "{how}");
        }
    }
}

/// Reads one frame: its kind, flags, stream and payload; `None` at the end.
async fn frame<IO: tokio::io::AsyncRead + Unpin>(io: &mut IO) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    io.read_exact(&mut head).await.ok()?;
    let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; usize::try_from(len).unwrap()];
    io.read_exact(&mut payload).await.ok()?;
    Some((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
}

#[tokio::test]
async fn a_drain_says_goodbye_twice_on_http2_and_answers_a_request_that_crossed_it() {
    let upstream = Origin::talking(|mut stream, _| async move {
        while origin::read_request(&mut stream).await.is_some() {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let _ = stream.write_all(&origin::ok("fine")).await;
        }
    })
    .await;
    let mut edge = Edge::start(&format!("[sites.\"{HOST}\"]\nupstream = \"{}\"\n", upstream.url()));
    let mut io = crate::support::client::tls(&edge, HOST, &["h2"]).await.unwrap();
    let get =
        |stream| frames::frame(frames::HEADERS, frames::END_STREAM | frames::END_HEADERS, stream, &frames::get(HOST));
    io.write_all(&[frames::PREFACE, &get(1)].concat()).await.unwrap();
    let (mut goodbyes, mut ended) = (Vec::new(), Vec::new());
    let began = Instant::now();
    while let Some((kind, flags, stream, payload)) =
        tokio::time::timeout(Duration::from_secs(15), frame(&mut io)).await.expect("the connection ends by itself")
    {
        match kind {
            frames::SETTINGS if flags & 1 == 0 => {
                io.write_all(&frames::frame(frames::SETTINGS, 1, 0, &[])).await.unwrap();
                edge.signal("TERM");
            }
            frames::GOAWAY => {
                let last = u32::from_be_bytes(payload[..4].try_into().unwrap());
                goodbyes.push(last);
                if goodbyes.len() == 1 {
                    // Sent before the client could know.
                    io.write_all(&get(3)).await.unwrap();
                }
            }
            frames::PING if flags & 1 == 0 => {
                io.write_all(&frames::frame(frames::PING, 1, 0, &payload)).await.unwrap();
            }
            frames::DATA | frames::HEADERS if flags & frames::END_STREAM != 0 => ended.push(stream),
            frames::RST_STREAM => panic!("stream {stream} is reset"),
            _ => {}
        }
    }
    assert_eq!(goodbyes.first(), Some(&0x7fff_ffff), "the first names no last stream");
    assert_eq!((goodbyes.last(), ended.as_slice()), (Some(&3), &[1, 3][..]));
    assert_eq!(edge.wait().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(8));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_told_once_and_its_end_once() {
    let placeholder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = placeholder.local_addr().unwrap();
    drop(placeholder);
    let edge = Edge::start(&format!(
        "[sites.\"{HOST}\"]\nupstream = {{ servers = [\"http://{addr}\"], retry_connect = \"off\", \
         health = {{ path = \"/health\", interval = \"1s\" }} }}\n"
    ));
    let told = edge.wait_for_log("upstream does not answer");
    assert!(told.contains("not reachable: Connection refused"), "{told}");
    let waits = edge.wait_for_log("not ready yet");
    assert!(waits.contains(&format!("http://{addr} does not answer: not reachable: Connection refused")), "{waits}");
    assert!(!edge.log().contains("\"ready\""), "the log says so when `/ready` does");
    let mut client = Client::tls(&edge, HOST).await;
    for _ in 0..3 {
        assert_eq!(client.get(HOST, "/").await.status, 502);
    }
    let failed = edge.exchange("/");
    let error = failed["error"].as_str().unwrap_or_default();
    assert!(error.starts_with("not reachable: Connection refused"), "the whole chain of causes: {failed}");
    assert!(edge.page("/ready").await.contains(&format!("http://{addr} does not answer")));
    assert!(edge.page("/metrics").await.contains(&format!("server=\"http://{addr}\"}} 0")));
    let listener = tokio::net::TcpListener::bind(addr).await.unwrap();
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            if origin::read_request(&mut stream).await.is_some() {
                let _ = stream.write_all(&origin::ok("well")).await;
            }
        }
    });
    edge.wait_for_log("upstream answers again");
    let until = Instant::now() + Duration::from_secs(5);
    while !edge.page("/ready").await.contains("200 OK") {
        assert!(Instant::now() < until, "it does not become ready");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    edge.wait_for_log("\"ready\"");
    // Two more probes.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let log = edge.log();
    for line in ["upstream does not answer", "upstream answers again"] {
        assert_eq!(log.matches(line).count(), 1, "{log}");
    }
    assert!(!log.contains("probe failed"), "{log}");
}

#[tokio::test]
async fn a_service_that_refused_is_not_ready_until_it_is_found_again() {
    let placeholder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = placeholder.local_addr().unwrap();
    drop(placeholder);
    let upstream = format!("{{ servers = [\"http://{addr}\"], retry_connect = \"off\" }}");
    let edge = Edge::start(&format!("[sites.\"{HOST}\"]\nupstream = {upstream}\n"));
    assert_eq!(Client::tls(&edge, HOST).await.get(HOST, "/").await.status, 502);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(edge.page("/ready").await.contains("does not answer"), "nothing has changed");
    let _listener = tokio::net::TcpListener::bind(addr).await.unwrap();
    edge.wait_for_log("upstream answers again");
    assert!(edge.page("/ready").await.contains("200 OK"), "nobody had to ask for it");
}

#[tokio::test]
async fn a_second_process_refuses_to_start_and_names_the_first() {
    let mut edge = Edge::start(&responding("one"));
    let said = edge.command(&["run"]);
    assert_eq!(said.status.code(), Some(1));
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    let status: serde_json::Value = serde_json::from_slice(&edge.command(&["status", "--json"]).stdout).unwrap();
    assert!(said.contains(&format!("process {}", status["process"])) && said.contains("--takeover"), "{said}");
    assert_eq!(Client::tls(&edge, HOST).await.get(HOST, "/").await.text(), "one", "the first one serves on");
    // Without a way to ask, the address itself tells.
    let config = Edge::config(edge.path("").as_path(), "", &responding("two"));
    let https = format!("https = [\"{}\"]", edge.https());
    let off: Vec<_> = config
        .lines()
        .map(|line| match line {
            line if line.starts_with("listen = \"unix") => "listen = \"off\"",
            line if line.starts_with("https =") => https.as_str(),
            line => line,
        })
        .collect();
    std::fs::write(edge.path("off.toml"), off.join("\n")).unwrap();
    let off = edge.path("off.toml");
    for (arguments, expected) in [
        (&["run"][..], format!("cannot listen on {}", edge.https())),
        (&["run", "--takeover"], "admin.listen".to_owned()),
    ] {
        let arguments = [&["--config", off.to_str().unwrap()], arguments].concat();
        let said = crate::support::edge::program(&arguments);
        assert_eq!(said.status.code(), Some(1));
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.contains(&expected), "{said}");
    }
    edge.signal("TERM");
    assert_eq!(edge.wait().code(), Some(0));
}

#[tokio::test]
async fn a_reload_says_which_keys_wait_for_the_next_start() {
    let edge = Edge::start(&responding("one"));
    let config = |text: &str| Edge::config(edge.path("").as_path(), "", &responding(text));
    std::fs::write(edge.path("vestibule.toml"), config("two").replace("threads = 2", "threads = 3")).unwrap();
    edge.wait_for_log("takes effect at the next start");
    assert_eq!(Client::tls(&edge, HOST).await.get(HOST, "/").await.text(), "two", "the rest is in effect");
    // Whether the command or the look at the file comes first.
    std::fs::write(edge.path("vestibule.toml"), config("three").replace("threads = 2", "threads = 4")).unwrap();
    let said = String::from_utf8_lossy(&edge.command(&["reload"]).stdout).into_owned();
    assert!(said.contains("listen.threads takes effect at the next start") || said.contains("is the same"), "{said}");
}
