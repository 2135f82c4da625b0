//! Probes of the live deployment: which layer is broken, and how to fix it.
//!
//! First the ground is looked at: names, addresses, certificates, the services straight. Then everything that stands on
//! it, side by side, each probe under its own limit. A probe whose ground is broken is skipped and says so, so that one
//! broken thing is named once. How names are resolved and servers reached is handed in: this room opens no socket but
//! those of `media.rs` and `srv.rs`, for which there is no client.
//!
//! A row is one thing that breaks for people: `test_row_N_…` of `tests/real/test_doctor.py` breaks it.

mod account;
mod ask;
mod dns;
mod federation;
mod files;
mod finding;
mod homeserver;
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
    finding::{Check, Diagnosis, Finding, Layer, Verdict},
    srv::system_nameserver,
};
use crate::{
    clock::Clock,
    config::{
        Plan,
        plan::{Kind, Matrix},
    },
    conn::{Fetch, PeerCertificate, TlsFailure},
    message::BoxIo,
};

/// Bound on a probe as a whole. Each question in it has a bound of its own, which is that of the client handed in.
const PROBE_LIMIT: Duration = Duration::from_secs(45);

/// A name and a port to addresses.
pub type Resolve = Arc<dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// A client that goes to this address whatever the URL says, or where names lead.
pub type ClientFactory = Arc<dyn Fn(Option<SocketAddr>) -> Fetch + Send + Sync>;

/// Looks at the certificate that an address shows for a name.
pub type InspectTls =
    Arc<dyn Fn(SocketAddr, String) -> BoxFuture<'static, Result<PeerCertificate, TlsFailure>> + Send + Sync>;

/// Opens a TLS connection to an address for a name, for what is not HTTP.
pub type ConnectTls = Arc<dyn Fn(SocketAddr, String) -> BoxFuture<'static, io::Result<BoxIo>> + Send + Sync>;

/// How the deployment is reached.
pub struct ProbeTargets {
    /// Names.
    pub resolve: Resolve,
    /// HTTP.
    pub via: ClientFactory,
    /// The same for answers that take a minute.
    pub patient: ClientFactory,
    /// Certificates.
    pub look: InspectTls,
    /// Connections that are not HTTP.
    pub connect_tls: ConnectTls,
    /// Who is asked for SRV records, where anybody is.
    pub nameserver: Option<SocketAddr>,
    /// The services behind the edge.
    pub services: Vec<Service>,
    /// The time.
    pub clock: Clock,
}

/// A service behind the edge, asked straight.
pub struct Service {
    /// The site that leads to it.
    pub host: String,
    /// The route of the site that leads to it, `/` for the site itself.
    pub prefix: String,
    /// What it is.
    pub kind: Kind,
    /// Its address, as in the configuration.
    pub server: String,
    /// Asks it. The host of the URL becomes the `Host` field.
    pub client: Fetch,
}

/// What is asked for beyond what needs no right.
#[derive(Debug, Default)]
pub struct ProbeOptions {
    /// An account of the homeserver.
    pub account: Option<Account>,
    /// A room whose power levels are looked at, and in which a call token is asked for.
    pub room: Option<String>,
    /// Also what takes a minute.
    pub slow: bool,
    /// `livekit.yaml`.
    pub livekit: Option<PathBuf>,
    /// `homeserver.yaml`.
    pub homeserver: Option<PathBuf>,
    /// `compose.yaml`.
    pub compose: Option<PathBuf>,
}

/// An account of the homeserver. What it is used for is undone: a session that was opened is closed.
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

/// Told of each probe that ends: what, how many have, how many there are.
pub type Progress<'a> = &'a dyn Fn(&str, usize, usize);

/// What every probe may look at.
struct ProbeContext<'a> {
    plan: &'a Plan,
    reach: &'a ProbeTargets,
    wanted: &'a ProbeOptions,
    preconditions: Preconditions,
}

/// Looks at everything.
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

    /// The way to a public address, or why there is none that is worth going.
    fn way(&self, url: &str) -> Result<Fetch, String> {
        Ok((self.reach.via)(self.preconditions.way(url)?))
    }

    /// The service behind a public address: the route with the longest prefix of those that lead to one.
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

    /// The way to the homeserver, and why there is none.
    fn homeserver(&self, matrix: &Matrix) -> Result<(Fetch, Option<DirectProbe<'_>>), String> {
        let direct = self.service(Kind::Synapse, &matrix.homeserver);
        if let Some(down) = direct.as_ref().and_then(|direct| direct.down) {
            return Err(down.to_owned());
        }
        Ok((self.way(&matrix.homeserver)?, direct))
    }
}

/// A service, and why it need not be asked anything.
struct DirectProbe<'a> {
    service: &'a Service,
    down: Option<&'a str>,
}

impl DirectProbe<'_> {
    /// The address of a path of the service.
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.service.host)
    }
}

/// One of those that run side by side.
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
    let fact = format!("it did not end within {} s", limit.as_secs());
    check.fail("timeout", fact, "see whether the machine or the network is overloaded")
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
