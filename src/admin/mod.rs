//! The admin server: documents, metrics, actions and a page for the operator, on a loopback address or a unix socket, and
//! the client that the commands use.

mod client;
mod dashboard;
pub mod documents;
mod page;
mod routes;
mod server;

pub use client::{CallError, call};
pub use dashboard::Dashboard;
pub use routes::Scope;

use std::{fmt::Write as _, io, sync::Arc};

use futures_util::future::BoxFuture;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::documents::{Certificate, DoctorRun, Overview, Service, Status, Traffic};
use crate::config::plan::AdminListen;

/// What the resources show and do.
pub trait AdminHandlers: Send + Sync + 'static {
    /// `/metrics`: as OpenMetrics text, or as the older text format of Prometheus.
    fn metrics(&self, openmetrics: bool) -> String;
    /// What keeps the edge from being ready; nothing, if it is.
    fn unready(&self) -> Vec<String>;
    /// The services that no request has needed yet. Nobody knows whether they answer.
    fn untried(&self) -> Vec<String>;
    /// `/certificates`.
    fn certificates(&self) -> Vec<Certificate>;
    /// `/upstreams`.
    fn upstreams(&self) -> Vec<Service>;
    /// `/status`.
    fn status(&self) -> Status;
    /// What the page shows now.
    fn overview(&self) -> Overview;
    /// Samples of traffic after this one.
    fn traffic(&self, after: u64) -> Traffic;
    /// `POST /renew/HOST`: whether there is such a name, and its certificate is ordered.
    fn renew(&self, host: &str) -> bool;
    /// `POST /takeover`: whether the listeners are closed, and the process drains.
    fn take_over(&self) -> BoxFuture<'static, bool>;
    /// `POST /reload`: what happened.
    fn reload(&self) -> BoxFuture<'static, Reloaded>;
    /// `POST /doctor`: whether it starts; it does not while it runs.
    fn diagnose(&self) -> bool;
    /// `/doctor`: the last run that was asked for here.
    fn doctor(&self) -> DoctorRun;
}

/// What came of a reload, in words for the one who asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reloaded {
    /// It is in effect, or there was nothing to do.
    Fine(String),
    /// The file is bad: its report.
    BadFile(String),
    /// The file is good, and cannot be put into effect; nothing has changed.
    Failed(String),
}

/// Serves a scope of resources at an address, for requests to an address, localhost or one of `hosts`, until `stop`.
///
/// # Errors
/// The address cannot be had.
pub fn serve(
    listen: &AdminListen,
    hosts: &[String],
    scope: Scope,
    handlers: Arc<dyn AdminHandlers>,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> io::Result<()> {
    server::serve(listen, routes::Pages::new(handlers, hosts, scope, stop.clone()), stop, tasks)
}

/// 128 random bits as text.
fn token() -> String {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system has random numbers");
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Whether bytes are a token; takes as long whatever they are.
fn is_token(bytes: &[u8], token: &str) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(bytes, token.as_bytes()).is_ok()
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    /// Handlers of an edge that has nothing.
    pub struct Fine;

    impl AdminHandlers for Fine {
        fn metrics(&self, _openmetrics: bool) -> String {
            "# EOF\n".to_owned()
        }
        fn unready(&self) -> Vec<String> {
            vec!["nothing works".to_owned()]
        }
        fn untried(&self) -> Vec<String> {
            Vec::new()
        }
        fn certificates(&self) -> Vec<Certificate> {
            Vec::new()
        }
        fn upstreams(&self) -> Vec<Service> {
            Vec::new()
        }
        fn status(&self) -> Status {
            Status {
                process: None,
                phase: String::new(),
                in_flight: std::collections::BTreeMap::new(),
                version: String::new(),
                started: time::OffsetDateTime::UNIX_EPOCH,
                connections: 0,
                tunnels: 0,
                unready: self.unready(),
                clock: None,
                last_reload: None,
                certificates: Vec::new(),
                upstreams: Vec::new(),
            }
        }
        fn overview(&self) -> Overview {
            let doctor = DoctorRun::default();
            Overview { status: self.status(), open: Vec::new(), errors: Vec::new(), doctor }
        }
        fn traffic(&self, _after: u64) -> Traffic {
            Traffic { interval: 10, length: 90, last: 0, sites: Vec::new() }
        }
        fn renew(&self, host: &str) -> bool {
            host == "a.example.org"
        }
        fn take_over(&self) -> BoxFuture<'static, bool> {
            Box::pin(async { true })
        }
        fn reload(&self) -> BoxFuture<'static, Reloaded> {
            Box::pin(async { Reloaded::BadFile("no\n".to_owned()) })
        }
        fn diagnose(&self) -> bool {
            true
        }
        fn doctor(&self) -> DoctorRun {
            DoctorRun::default()
        }
    }

    #[tokio::test]
    async fn the_client_and_the_server_understand_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let listen = AdminListen::Unix(folder.path().join("admin.sock"));
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        serve(&listen, &[], Scope::All, Arc::new(Fine), &stop, &tasks).unwrap();
        for (method, path, status) in [
            ("GET", "/health", 200),
            ("GET", "/ready", 503),
            ("POST", "/reload", 422),
            ("GET", "/reload", 405),
            ("GET", "/doctor", 200),
            ("POST", "/doctor", 202),
            ("PUT", "/doctor", 405),
            ("POST", "/takeover", 200),
            ("GET", "/takeover", 405),
            ("POST", "/renew/A.example.org", 202),
            ("POST", "/renew/b.example.org", 404),
            ("GET", "/nothing", 404),
        ] {
            let (answered, _) = call(&listen, method.parse().unwrap(), path).await.unwrap();
            assert_eq!(answered, status, "{path}");
        }
        let (_, text) = call(&listen, Method::GET, "/status").await.unwrap();
        let status: Status = serde_json::from_str(&text).unwrap();
        assert_eq!(status.unready, ["nothing works"]);
    }

    #[tokio::test]
    async fn a_stranger_is_called_one() {
        for answer in [&b"\xff\xfe"[..], b"HTTP/1.0 404 Not Found\r\nContent-Type: text/html\r\n\r\n<html>"] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let listen = AdminListen::Tcp(listener.local_addr().unwrap());
            let stranger = std::thread::spawn(move || {
                let (mut io, _) = listener.accept().unwrap();
                io::Read::read(&mut io, &mut [0; 512]).unwrap();
                io::Write::write_all(&mut io, answer).unwrap();
            });
            let said = call(&listen, Method::GET, "/health").await.unwrap_err().to_string();
            assert!(said.ends_with("is no edge"), "{said}");
            stranger.join().unwrap();
        }
    }
}
