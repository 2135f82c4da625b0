//! Probes of the live deployment: which layer is broken, and how to fix it.
//!
//! The preconditions are probed first: names, addresses, certificates, and the services directly. Then all other probes
//! run concurrently, each with its own time limit. A probe whose precondition failed is skipped and says so, so that one
//! fault is reported once. The caller provides the means to resolve names and reach servers: this module opens no socket
//! except those of `media.rs` and `srv.rs`, for which there is no client.
//!
//! A row is one fault that users notice; `test_row_N_…` of `tests/real/test_doctor.py` causes it.

mod account;
mod ask;
mod ca;
mod dns;
mod federation;
mod files;
mod finding;
mod homeserver;
mod join;
mod media;
mod names;
mod preconditions;
mod rtc;
mod services;
mod srv;
mod stun;
mod tls;
mod tokens;
mod turn;
mod well_known;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::timeout;

use self::preconditions::Preconditions;
pub use self::{
    ca::LastingRecord,
    finding::{Check, Diagnosis, Finding, Layer, Verdict},
};
use crate::{
    clock::Clock,
    config::{
        Plan,
        plan::{Kind, Matrix},
    },
    conn::{Fetch, PeerCertificate},
    error::ServerFailure,
    message::BoxIo,
};

/// Time limit of a probe. Each request in it has the time limit of its client.
const PROBE_LIMIT: Duration = Duration::from_secs(45);

/// Resolves a name and a port to addresses.
pub type Resolve = Arc<dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// Makes a client that connects to this address whatever the URL says, or to the address that the name resolves to.
pub type ClientFactory = Arc<dyn Fn(Option<SocketAddr>) -> Fetch + Send + Sync>;

/// Fetches the certificate that an address presents for a name.
pub type InspectTls =
    Arc<dyn Fn(SocketAddr, String) -> BoxFuture<'static, Result<PeerCertificate, ServerFailure>> + Send + Sync>;

/// Opens a TLS connection to an address for a name, for protocols other than HTTP.
pub type ConnectTls = Arc<dyn Fn(SocketAddr, String) -> BoxFuture<'static, io::Result<BoxIo>> + Send + Sync>;

/// The means to reach the deployment.
pub struct ProbeTargets {
    /// Names.
    pub resolve: Resolve,
    /// HTTP.
    pub via: ClientFactory,
    /// HTTP with a time limit for responses that take a minute.
    pub patient: ClientFactory,
    /// Certificates.
    pub look: InspectTls,
    /// Connections that are not HTTP.
    pub connect_tls: ConnectTls,
    /// The name server to query for SRV records, if there is one.
    pub nameserver: Option<SocketAddr>,
    /// The services behind the proxy.
    pub services: Vec<Service>,
    /// The directories of the CAs, each with a client that trusts it.
    pub authorities: Vec<(String, Fetch)>,
    /// The records of dns-persist-01, by their sites.
    pub lasting_records: Vec<(String, LastingRecord)>,
    /// The time.
    pub clock: Clock,
}

/// A service behind the proxy, which the probes also reach directly.
pub struct Service {
    /// The site that proxies to it.
    pub host: String,
    /// The only port of that site.
    pub port: Option<u16>,
    /// The route of the site that proxies to it, `/` for the site itself.
    pub prefix: String,
    /// What it is.
    pub kind: Kind,
    /// Its address, as in the configuration.
    pub server: String,
    /// Sends requests to it. The host of the URL becomes the `Host` field.
    pub client: Fetch,
}

/// Options that enable further checks.
#[derive(Debug, Default)]
pub struct ProbeOptions {
    /// An account of the homeserver.
    pub account: Option<Account>,
    /// A room whose power levels are checked, and for which a call token is requested.
    pub room: Option<String>,
    /// Also run the checks that take a minute.
    pub slow: bool,
    /// `livekit.yaml`.
    pub livekit: Option<PathBuf>,
    /// `homeserver.yaml`.
    pub homeserver: Option<PathBuf>,
    /// `compose.yaml`.
    pub compose: Option<PathBuf>,
}

/// An account of the homeserver. A session that is opened for it is closed again.
pub enum Account {
    /// Its access token.
    Token(String),
    /// Its name and password.
    Password {
        /// The localpart, or the whole user id.
        user: String,
        /// The password.
        password: String,
    },
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Account")
    }
}

/// Called when a probe ends: its name, how many have ended, how many there are.
pub type Progress<'a> = &'a dyn Fn(&str, usize, usize);

/// The input of every probe.
struct ProbeContext<'a> {
    plan: &'a Plan,
    reach: &'a ProbeTargets,
    wanted: &'a ProbeOptions,
    preconditions: Preconditions,
}

/// Runs all probes.
pub async fn examine(plan: &Plan, reach: &ProbeTargets, wanted: &ProbeOptions, progress: Progress<'_>) -> Diagnosis {
    let (preconditions, mut findings) = preconditions::establish(plan, reach, progress).await;
    let context = ProbeContext { plan, reach, wanted, preconditions };
    findings.extend(side_by_side(context.probes(), progress).await);
    findings.extend(files::read(plan, wanted));
    Diagnosis::of(findings)
}

impl ProbeContext<'_> {
    fn probes(&self) -> Vec<Probe<'_>> {
        let mut probes = vec![
            Probe::new(Layer::Tls, "http", tls::redirects(self)),
            Probe::new(Layer::Tls, "ca", async { [ca::clock(self).await, ca::lasting_records(self)].concat() }),
            Probe::new(Layer::Rtc, "rtc.turn", turn::probe(self)),
        ];
        let Some(matrix) = &self.plan.matrix else {
            let nothing = Check::new(Layer::Homeserver, "homeserver", "[matrix]");
            let findings = vec![nothing.skip("the configuration names no homeserver")];
            probes.push(Probe::new(Layer::Homeserver, "homeserver", async { findings }));
            return probes;
        };
        probes.extend([
            Probe::new(Layer::WellKnown, "well-known", well_known::probe(self, matrix)),
            Probe::new(Layer::Homeserver, "homeserver", homeserver::probe(self, matrix)),
            Probe::new(Layer::Homeserver, "homeserver.exposed", homeserver::exposed(self, matrix)),
            Probe::new(Layer::Federation, "federation", federation::probe(self, matrix)),
            Probe::new(Layer::Rtc, "rtc.transports", rtc::transports(self, matrix)),
            Probe::new(Layer::Rtc, "rtc.jwt", rtc::jwt(self, matrix)),
            Probe::new(Layer::Rtc, "rtc.tokens", tokens::probe(self, matrix)),
            Probe::new(Layer::Rtc, "rtc.sfu", rtc::sfu(self)),
            Probe::new(Layer::Rtc, "rtc.media", media::probe(self)),
            Probe { limit: account::LIMIT, ..Probe::new(Layer::Homeserver, "account", account::probe(self, matrix)) },
        ]);
        probes
    }

    /// A client for a public address, or the reason why it cannot be reached.
    fn way(&self, url: &str) -> Result<Fetch, String> {
        Ok((self.reach.via)(self.preconditions.way(url)?))
    }

    /// The service behind a public address: that of the matching route with the longest prefix.
    fn service(&self, kind: Kind, url: &str) -> Option<DirectProbe<'_>> {
        let (host, _) = names::authority(url)?;
        let path = url.split_once("://").and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..])).unwrap_or("/");
        let leads = |service: &&Service| {
            let prefix = service.prefix.trim_end_matches('/');
            let rest = path.strip_prefix(prefix);
            service.kind == kind && service.host == host && rest.is_some_and(|r| r.is_empty() || r.starts_with('/'))
        };
        let service = self.reach.services.iter().filter(leads).max_by_key(|service| service.prefix.len())?;
        Some(DirectProbe { service, down: self.preconditions.down(&service.server) })
    }

    /// A client for the homeserver, or the reason why it cannot be reached.
    fn homeserver(&self, matrix: &Matrix) -> Result<(Fetch, Option<DirectProbe<'_>>), String> {
        let of = |kind| self.service(kind, &matrix.homeserver);
        let direct = of(Kind::Synapse).or_else(|| of(Kind::Homeserver));
        if let Some(down) = direct.as_ref().and_then(|direct| direct.down) {
            return Err(down.to_owned());
        }
        Ok((self.way(&matrix.homeserver)?, direct))
    }
}

/// A service for direct requests, and the reason if it is known to be down.
struct DirectProbe<'a> {
    service: &'a Service,
    down: Option<&'a str>,
}

impl DirectProbe<'_> {
    /// The URL of a path of the service.
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.service.host)
    }
}

/// A probe that runs concurrently with others.
struct Probe<'a> {
    check: Check,
    name: &'static str,
    limit: Duration,
    run: BoxFuture<'a, Vec<Finding>>,
}

impl<'a> Probe<'a> {
    fn new(layer: Layer, name: &'static str, run: impl Future<Output = Vec<Finding>> + Send + 'a) -> Self {
        Self { check: Check::new(layer, name, "probe"), name, limit: PROBE_LIMIT, run: Box::pin(run) }
    }
}

fn slow(check: &Check, limit: Duration) -> Finding {
    let fact = format!("the check did not finish within {} s", limit.as_secs());
    check.fail("timeout", fact, "check whether the machine or the network is overloaded")
}

async fn side_by_side(probes: Vec<Probe<'_>>, progress: Progress<'_>) -> Vec<Finding> {
    let all = probes.len();
    let mut running: FuturesUnordered<_> = probes
        .into_iter()
        .map(|probe| async move {
            let found = timeout(probe.limit, probe.run).await;
            (probe.name, found.unwrap_or_else(|_| vec![slow(&probe.check, probe.limit)]))
        })
        .collect();
    let (mut findings, mut done) = (Vec::new(), 0);
    while let Some((name, found)) = running.next().await {
        done += 1;
        progress(name, done, all);
        findings.extend(found);
    }
    findings
}
