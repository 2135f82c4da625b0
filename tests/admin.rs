//! The admin server: who may ask for what, and what its documents say.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{Client, Edge, Origin, edge::PATIENCE};

const HOST: &str = "example.org";

/// `vestibule dashboard`; killed when dropped.
struct Dashboard(Child);

impl Drop for Dashboard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An edge whose admin server listens on TCP as well, for a scraper; the address of that.
fn scraped(admin: &str, sites: &str) -> (Edge, String) {
    // A port that is free now: the log names one address for both listeners of the admin server.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let edge = Edge::start(&format!("metrics = \"{address}\"\n{admin}\n{sites}"));
    (edge, address.to_string())
}

async fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    response
}

fn json(page: &str) -> Value {
    serde_json::from_str(page.split_once("\r\n\r\n").unwrap().1).unwrap()
}

fn responding() -> String {
    format!("[sites.\"{HOST}\".routes]\n\"/\" = {{ respond = {{ body = \"here\" }} }}\n")
}

#[tokio::test]
async fn a_scraper_on_another_host_gets_numbers_and_can_do_nothing() {
    let (_edge, address) = scraped("hosts = [\"Edge\"]", &responding());
    for (request, status) in [
        ("GET /metrics", "200"),
        ("HEAD /metrics", "200"),
        ("GET /health", "200"),
        ("POST /reload", "404"),
        ("GET /status", "404"),
        ("GET /", "404"),
        ("POST /metrics", "405"),
    ] {
        for host in ["127.0.0.1", "localhost:9100", "edge:9100", "EDGE"] {
            let response = ask(&address, &format!("{request} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{request} {host}: {response}");
        }
        let response = ask(&address, &format!("{request} HTTP/1.1\r\nHost: evil.example\r\n\r\n")).await;
        assert!(response.starts_with("HTTP/1.1 403 "), "{request}: {response}");
    }
    let response = ask(&address, "HEAD /metrics HTTP/1.1\r\nHost: edge\r\n\r\n").await;
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.to_lowercase().contains("content-length: ") && body.is_empty(), "{response}");
}

#[tokio::test]
async fn connections_that_say_nothing_do_not_keep_others_out_for_long() {
    let (_edge, address) = scraped("", &responding());
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(TcpStream::connect(&address).await.unwrap());
    }
    // Those above the bound are closed at once, and the rest after the time for a head.
    let mut first = idle.pop().unwrap();
    let closed = tokio::time::timeout(Duration::from_secs(5), first.read(&mut [0])).await;
    assert!(closed.unwrap().map_or(true, |read| read == 0));
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let mut response = String::new();
        let sent = stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        if sent.is_ok() && stream.read_to_string(&mut response).await.is_ok() && response.contains(" 200 ") {
            break;
        }
        assert!(tokio::time::Instant::now() < until, "{response}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_service_of_two_routes_has_one_row_and_one_series() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let edge = Edge::start(&format!(
        "[sites.\"{HOST}\"]\nupstream = {{ servers = [\"http://{gone}\"], retry_connect = \"0s\" }}\n\
         [sites.\"{HOST}\".routes]\n\"/other\" = {{ upstream = {{ servers = [\"http://{gone}\"], retry_connect = \"0s\" }} }}\n"
    ));
    let service = || async {
        let rows = json(&edge.page("/upstreams").await);
        assert_eq!(rows.as_array().unwrap().len(), 1, "{rows}");
        rows[0].clone()
    };
    let before = service().await;
    assert_eq!((before["state"].as_str(), before["up"].as_bool()), (Some("untried"), Some(false)));
    let ready = edge.page("/ready").await;
    assert!(
        ready.contains("200 OK") && ready.ends_with(&format!("ready\nhttp://{gone} has not been tried yet\n")),
        "{ready}"
    );
    assert_eq!(before["sites"], serde_json::json!([format!("{HOST}/other"), HOST]));
    let mut client = Client::tls(&edge, HOST).await;
    assert_eq!(client.get(HOST, "/other/x").await.status, 502);
    let down = service().await;
    assert_eq!((down["state"].as_str(), down["up"].as_bool()), (Some("down"), Some(false)));
    assert!(down["why"].as_str().unwrap().contains("refused"), "{down}");
    assert!(down["since"].is_string() && down["dial_failures"] == 1, "{down}");
    // The way out stands wherever the failure does: in the status, and in the line of the log.
    let fix = down["fix"].as_str().unwrap();
    assert!(fix.starts_with("start the service and read its log"), "{down}");
    let line: Value = serde_json::from_str(&edge.wait_for_log("upstream does not answer")).unwrap();
    assert_eq!(line["fix"].as_str(), Some(fix), "{line}");
    let metrics = edge.page("/metrics").await;
    let series: Vec<_> = metrics.lines().filter(|line| line.starts_with("vestibule_upstream_up{")).collect();
    assert!(series.len() == 1 && series[0].ends_with(" 0"), "{series:?}");
    let said = String::from_utf8(edge.command(&["status"]).stdout).unwrap();
    assert!(said.contains("refused") && said.contains(&format!("{HOST}/other, {HOST}")), "{said}");
    assert!(said.contains(&format!("-> {fix}")), "{said}");
}

/// A certificate that cannot be had: the log, the status in both forms, and doctor say why and how to fix it.
#[tokio::test]
async fn each_failure_of_a_certificate_shows_its_fix() {
    let ca = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let edge = Edge::start(&format!(
        "[acme]\ndirectory = \"https://{ca}/directory\"\n[sites.\"{HOST}\"]\ntls = \"acme\"\nredirect = \"https://www.example.org\"\n"
    ));
    let line: Value = serde_json::from_str(&edge.wait_for_log("no certificate; the next attempt")).unwrap();
    let fix = line["fix"].as_str().unwrap();
    assert!(fix.contains("outgoing connections to the CA"), "{line}");
    let until = tokio::time::Instant::now() + PATIENCE;
    let rows = loop {
        let rows = json(&edge.page("/certificates").await);
        if !rows[0]["fix"].is_null() || tokio::time::Instant::now() > until {
            break rows;
        }
    };
    assert!(rows[0]["last_error"].as_str().unwrap().contains("refused"), "{rows}");
    assert_eq!(rows[0]["fix"].as_str(), Some(fix), "{rows}");
    let said = String::from_utf8(edge.command(&["status"]).stdout).unwrap();
    assert!(said.contains(&format!("-> {fix}")), "{said}");
    let health = edge.command(&["healthcheck"]);
    let line = String::from_utf8(health.stdout).unwrap();
    assert!(health.status.success(), "a restart would obtain no certificate");
    assert!(line.starts_with(&format!("waiting for a certificate: {HOST}: ")) && line.contains(fix), "{line}");
    let found: Value = serde_json::from_slice(&edge.command(&["doctor", "--json"]).stdout).unwrap();
    let found = found["findings"].as_array().unwrap().iter().find(|finding| finding["id"] == "certificate.missing");
    assert_eq!(found.unwrap()["fix"].as_str(), Some(fix), "{found:?}");
}

#[tokio::test]
async fn the_page_is_told_what_happens() {
    let origin = Origin::answering(|_| b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n".to_vec()).await;
    let edge = Edge::start(&format!("[sites.\"{HOST}\"]\nupstream = \"{}\"\n", origin.url()));
    let page = edge.page("/").await;
    assert!(page.contains("content-security-policy: default-src 'none'") && page.contains("<main"), "{page}");
    for file in ["/page.css", "/page.js"] {
        assert!(edge.page(file).await.starts_with("HTTP/1.1 200 "));
    }
    let mut client = Client::tls(&edge, HOST).await;
    assert_eq!(client.get(HOST, "/x?access_token=S3CRET").await.status, 500);
    let mut stream = tokio::net::UnixStream::connect(edge.path("admin.sock")).await.unwrap();
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut events = String::new();
    while !events.contains("event: traffic") {
        let mut bytes = [0; 4096];
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut bytes)).await.unwrap().unwrap();
        assert!(read > 0, "{events}");
        events.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
    let overview = events.lines().find_map(|line| line.strip_prefix("data: {\"status\"")).unwrap();
    let overview: Value = serde_json::from_str(&format!("{{\"status\"{overview}")).unwrap();
    let error = &overview["errors"][0];
    assert_eq!(
        (error["status"].as_u64(), error["site"].as_str(), error["method"].as_str()),
        (Some(500), Some(HOST), Some("GET"))
    );
    assert_eq!(error["uri"], "/x?access_token=REDACTED");
    assert!(error["request_id"].as_str().is_some_and(|id| edge.log().contains(id)), "{error}");
    assert!(!events.contains("S3CRET"));
}

#[tokio::test]
async fn a_bad_file_is_told_where_the_edge_is_looked_at() {
    let edge = Edge::start(&responding());
    assert!(json(&edge.page("/status").await)["last_reload"].is_null());
    std::fs::write(edge.path("vestibule.toml"), "nonsense = 1\n").unwrap();
    edge.wait_for_log("the old configuration stays");
    let until = tokio::time::Instant::now() + PATIENCE;
    let reload = loop {
        let reload = json(&edge.page("/status").await)["last_reload"].clone();
        if !reload.is_null() || tokio::time::Instant::now() > until {
            break reload;
        }
    };
    assert_eq!(reload["succeeded"], false);
    assert!(reload["message"].as_str().unwrap().contains("nonsense"), "{reload}");
}

#[tokio::test]
async fn doctor_says_that_a_reload_was_rejected_and_tests_what_is_in_effect() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let edge = Edge::start(&responding());
    let findings = || {
        let done = edge.command(&["doctor", "--json"]);
        assert_eq!(done.status.code(), Some(1));
        let document: Value = serde_json::from_slice(&done.stdout).unwrap();
        let findings = document["findings"].as_array().unwrap().clone();
        assert!(findings.iter().any(|finding| finding["layer"] == "tls"), "{document}");
        (document["diagnostics"].clone(), findings)
    };
    // Valid, and impossible: another program holds the port.
    let file = std::fs::read_to_string(edge.path("vestibule.toml")).unwrap();
    let https = format!("https = [\"127.0.0.1:0\", \"{}\"]", taken.local_addr().unwrap());
    std::fs::write(edge.path("vestibule.toml"), file.replace("https = [\"127.0.0.1:0\"]", &https)).unwrap();
    edge.wait_for_log("reload rejected");
    let (_, found) = findings();
    assert_eq!(found[0]["id"], "configuration.rejected", "{found:?}");
    assert!(found[0]["fact"].as_str().unwrap().contains("in use"), "{found:?}");
    edge.rewrite("", "[sites.\"a b\"]\n");
    edge.wait_for_logs("reload rejected", 2);
    let (diagnostics, found) = findings();
    assert!(!diagnostics.as_array().unwrap().is_empty());
    assert_eq!(found[0]["id"], "configuration.invalid", "{found:?}");
}

#[tokio::test]
async fn the_dashboard_of_a_socket_opens_with_its_token_only() {
    let edge = Edge::start(&responding());
    let file = edge.path("vestibule.toml");
    let mut command = Command::new(env!("CARGO_BIN_EXE_vestibule"));
    command.args(["--config", file.to_str().unwrap(), "dashboard"]).stdout(Stdio::piped());
    let mut dashboard = Dashboard(command.spawn().unwrap());
    let mut url = String::new();
    BufReader::new(dashboard.0.stdout.take().unwrap()).read_line(&mut url).unwrap();
    let url = url.trim_end();
    let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let get = |path: String| async move {
        ask(address, &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")).await
    };
    let page = get(format!("/{path}")).await;
    assert!(page.starts_with("HTTP/1.1 200 ") && page.contains("<main"), "{page}");
    assert!(get(format!("/{path}health")).await.ends_with("ok\n"));
    let (first, rest) = path.split_at(1);
    let wrong = format!("/{}{rest}", if first == "0" { "1" } else { "0" });
    for path in ["/".to_owned(), "/health".to_owned(), "/status".to_owned(), wrong] {
        let response = get(path.clone()).await;
        assert!(response.starts_with("HTTP/1.1 403 "), "{path}: {response}");
    }
    let reload = format!(
        "POST /{path}reload HTTP/1.1\r\nHost: {address}\r\nOrigin: http://evil.example\r\nConnection: close\r\n\r\n"
    );
    assert!(ask(address, &reload).await.starts_with("HTTP/1.1 403 "));
}
