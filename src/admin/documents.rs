//! The documents of the admin server as types: the server writes them; the commands and the page read them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::{
    OffsetDateTime,
    serde::rfc3339::{self, option as rfc3339_option},
};

use crate::telemetry::{RecentError, Sample};

/// `/status`: everything that is known now.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The version of the running edge.
    pub version: String,
    /// The identifier of the process.
    #[serde(default)]
    pub process: Option<u32>,
    /// `serving`, `draining` or `closing`.
    #[serde(default)]
    pub phase: String,
    /// What is in flight: `polls`, `uploads`, `answers` and `tunnels`.
    #[serde(default)]
    pub in_flight: BTreeMap<String, InFlight>,
    /// When the process started.
    #[serde(with = "rfc3339")]
    pub started: OffsetDateTime,
    /// Connections open.
    pub connections: usize,
    /// Tunnels (WebSockets) open.
    pub tunnels: usize,
    /// Why the edge is not ready; empty if it is.
    pub unready: Vec<String>,
    /// By how much the clock of this machine is off, where the CA has told.
    #[serde(default)]
    pub clock: Option<String>,
    /// The last time that the file was read.
    #[serde(default)]
    pub last_reload: Option<LastReload>,
    /// As in `/certificates`.
    pub certificates: Vec<Certificate>,
    /// As in `/upstreams`.
    pub upstreams: Vec<Service>,
}

/// Requests or tunnels in flight.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct InFlight {
    /// How many.
    pub count: usize,
    /// The age of the oldest.
    pub oldest_s: f64,
}

/// What the last reload led to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LastReload {
    /// When.
    #[serde(with = "rfc3339")]
    pub at: OffsetDateTime,
    /// Whether the file is in effect.
    pub succeeded: bool,
    /// The outcome in words: the report of a bad file, warnings of a good one.
    pub message: String,
}

/// A row of `/certificates`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Certificate {
    /// The name.
    pub host: String,
    /// Where the certificate comes from: `acme`, `internal`, `file`.
    pub source: String,
    /// When it ends; absent while there is none.
    #[serde(with = "rfc3339_option")]
    pub not_after: Option<OffsetDateTime>,
    /// When it is renewed or tried again.
    #[serde(with = "rfc3339_option")]
    pub next: Option<OffsetDateTime>,
    /// What an order that is under way does now.
    #[serde(default)]
    pub progress: Option<String>,
    /// Failures since the last success.
    pub failures: u32,
    /// The last of them, in the words of the CA where it had any.
    pub last_error: Option<String>,
    /// How to fix it.
    #[serde(default)]
    pub fix: Option<String>,
    /// What will make the next order fail.
    #[serde(default)]
    pub warning: Option<String>,
    /// When this process last failed.
    #[serde(with = "rfc3339_option")]
    pub last_failure: Option<OffsetDateTime>,
}

/// A row of `/upstreams`: one service, however many routes lead to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Service {
    /// The name in logs and metrics.
    pub upstream: String,
    /// The address, as in the configuration.
    pub server: String,
    /// Where it serves: a host, or a host and a path.
    #[serde(default)]
    pub sites: Vec<String>,
    /// Whether it answered when it was tried last; false while it is untried.
    pub up: bool,
    /// The same in finer steps.
    pub state: ServiceState,
    /// Why it is down or slow.
    #[serde(default)]
    pub why: Option<String>,
    /// How to fix it, if it is down.
    #[serde(default)]
    pub fix: Option<String>,
    /// Since when its state is this; the start or the reload, where nothing has happened since.
    #[serde(default, with = "rfc3339_option")]
    pub since: Option<OffsetDateTime>,
    /// Requests in flight.
    pub in_flight: usize,
    /// Pooled connections.
    pub idle: usize,
    /// Dials that failed.
    pub dial_failures: u64,
    /// Requests that were sent a second time.
    pub retries: u64,
}

/// How a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceState {
    /// Not tried yet: no request has needed it, and no probe is configured.
    Untried,
    /// It answers.
    Up,
    /// It answers, and takes long to accept a connection.
    Slow,
    /// It does not answer.
    Down,
}

/// What the page shows besides [`Status`].
#[derive(Debug, Clone, Serialize)]
pub struct Overview {
    /// As in `/status`.
    pub status: Status,
    /// Tunnels and calls open, by site.
    pub open: Vec<OpenTunnels>,
    /// The last errors, the newest first.
    pub errors: Vec<RecentError>,
    /// The last run of `doctor` that this page asked for.
    pub doctor: DoctorRun,
}

/// Tunnels of a site.
#[derive(Debug, Clone, Serialize)]
pub struct OpenTunnels {
    /// The site.
    pub site: String,
    /// WebSockets open.
    pub tunnels: usize,
    /// Those of them that are calls: connections to an SFU.
    pub calls: usize,
}

/// `/doctor`: the last run of `doctor` that was asked for here, with the configuration that is in effect.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct DoctorRun {
    /// Whether it is under way.
    pub running: bool,
    /// What the last one found: the document of `vestibule doctor --json`.
    pub findings: Option<serde_json::Value>,
    /// Why there is none.
    pub error: Option<String>,
}

/// Samples of traffic for the charts.
#[derive(Debug, Clone, Serialize)]
pub struct Traffic {
    /// Seconds that a sample covers.
    pub interval: u64,
    /// How many samples the charts hold.
    pub length: usize,
    /// The number of the last sample; ask for those after it.
    pub last: u64,
    /// By site, the sum of all under the empty name first; sites without traffic are left out.
    pub sites: Vec<SiteTraffic>,
}

/// Samples of one site, the oldest first.
#[derive(Debug, Clone, Serialize)]
pub struct SiteTraffic {
    /// The site.
    pub site: String,
    /// The samples.
    pub samples: Vec<Sample>,
}
