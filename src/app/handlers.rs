//! What the admin server shows and does, put together from the parts of the running edge.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};

use super::{
    checkup::{ProbeOverrides, checkup},
    edge::Edge,
    stack::Generation,
};
use crate::{
    admin::{
        self, Reloaded,
        documents::{
            Certificate, DoctorRun, InFlight, LastReload, OpenTunnels, Overview, Service, ServiceState, SiteTraffic,
            Status, Traffic,
        },
    },
    cert,
    clock::Clock,
    config::Plan,
    doctor::ProbeOptions,
    drain::{Drain, Phase, Tally},
    error::chain,
    telemetry::{self, Metrics},
    upstream::{self, Condition},
};

/// Something to do for the operator.
pub enum AdminCommand {
    Reload(oneshot::Sender<Reloaded>),
    /// Another process takes over.
    HandOver(oneshot::Sender<()>),
}

/// A service, what leads to it, and what is known of it.
pub type ServiceStatus = (Vec<String>, upstream::Status);

/// The handlers of the admin server.
pub struct Handlers {
    metrics: Metrics,
    snapshot: Arc<dyn Fn() -> telemetry::Snapshot + Send + Sync>,
    services: Arc<dyn Fn() -> Vec<ServiceStatus> + Send + Sync>,
    certificates: Arc<cert::Manager>,
    commands: mpsc::Sender<AdminCommand>,
    plan: ArcSwap<Plan>,
    last_reload: Mutex<Option<LastReload>>,
    doctor: Arc<Mutex<DoctorRun>>,
    drain: Drain,
    started: SystemTime,
    clock: Clock,
}

impl Handlers {
    pub fn new(
        edge: &Edge,
        plan: Plan,
        metrics: Metrics,
        clock: Clock,
        dropped: impl Fn() -> u64 + Send + Sync + 'static,
        commands: mpsc::Sender<AdminCommand>,
    ) -> Self {
        Self {
            snapshot: edge.snapshot(dropped),
            services: edge.services(),
            certificates: edge.certificates(),
            metrics,
            commands,
            plan: ArcSwap::from_pointee(plan),
            last_reload: Mutex::default(),
            doctor: Arc::default(),
            drain: edge.draining(),
            started: clock.now(),
            clock,
        }
    }

    /// Notes what a reload led to.
    pub fn reloaded(&self, outcome: &Reloaded, plan: &Plan) {
        let (succeeded, message) = match outcome {
            Reloaded::Fine(message) => (true, message),
            Reloaded::BadFile(message) | Reloaded::Failed(message) => (false, message),
        };
        self.plan.store(Arc::new(plan.clone()));
        let at = date(self.clock.now());
        *lock(&self.last_reload) = Some(LastReload { at, succeeded, message: message.clone() });
    }

    fn in_flight(&self) -> BTreeMap<String, InFlight> {
        let one = |(name, tally): (&str, Tally)| {
            (name.to_owned(), InFlight { count: tally.count, oldest_s: tally.oldest.as_secs_f64() })
        };
        self.drain.in_flight().tallies().into_iter().map(one).collect()
    }

    fn service(&self, (sites, status): ServiceStatus) -> Service {
        Service {
            upstream: status.name.to_string(),
            server: status.server,
            sites,
            up: status.up && status.condition != Condition::Untried,
            state: match status.condition {
                Condition::Untried => ServiceState::Untried,
                Condition::Up => ServiceState::Up,
                Condition::Slow => ServiceState::Slow,
                Condition::Down => ServiceState::Down,
            },
            why: status.why,
            fix: status.fix.map(ToOwned::to_owned),
            since: Some(date(self.clock.now() - status.since)),
            in_flight: status.in_flight,
            idle: status.idle,
            dial_failures: status.dial_failures,
            retries: status.retries,
        }
    }
}

impl admin::AdminHandlers for Handlers {
    fn metrics(&self, openmetrics: bool) -> String {
        let text = self.metrics.render(&self.snapshot);
        if openmetrics { text } else { telemetry::classic(&text) }
    }

    fn unready(&self) -> Vec<String> {
        let now = self.clock.now();
        let certificates = self.certificates.status().into_iter().filter_map(|status| match status.not_after {
            None => Some(format!("{} has no certificate", status.host)),
            Some(end) if end <= now => Some(format!("the certificate of {} has expired", status.host)),
            Some(_) => None,
        });
        let services = (self.services)().into_iter();
        let services = services.filter_map(|(_, status)| match status.condition {
            Condition::Down => Some(match status.why {
                Some(why) => format!("{} does not answer: {why}", status.server),
                None => format!("{} does not answer", status.server),
            }),
            Condition::Untried if status.is_probed => Some(format!("{} has not been tried yet", status.server)),
            Condition::Untried | Condition::Up | Condition::Slow => None,
        });
        // First of all: nothing else matters to a balancer then.
        let draining = self.drain.has_begun().then(|| format!("draining; in flight: {}", self.drain.in_flight()));
        draining.into_iter().chain(certificates).chain(services).collect()
    }

    fn untried(&self) -> Vec<String> {
        let services = (self.services)().into_iter();
        services.filter(|(_, status)| status.condition == Condition::Untried).map(|(_, status)| status.server).collect()
    }

    fn certificates(&self) -> Vec<Certificate> {
        let one = |status: cert::Status| Certificate {
            host: status.host.to_string(),
            source: status.source.to_owned(),
            not_after: status.not_after.map(date),
            next: status.next.map(date),
            progress: status.progress,
            failures: status.failures,
            last_error: status.last_error,
            fix: status.fix,
            warning: status.warning,
            last_failure: status.failed_at.map(date),
        };
        self.certificates.status().into_iter().map(one).collect()
    }

    fn upstreams(&self) -> Vec<Service> {
        (self.services)().into_iter().map(|service| self.service(service)).collect()
    }

    fn status(&self) -> Status {
        let snapshot = (self.snapshot)();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            process: Some(std::process::id()),
            phase: match self.drain.phase() {
                Phase::Serving => "serving",
                Phase::Draining => "draining",
                Phase::Closing => "closing",
            }
            .to_owned(),
            in_flight: self.in_flight(),
            started: date(self.started),
            connections: snapshot.connections,
            tunnels: self.metrics.tunnels().load(Ordering::Relaxed),
            unready: self.unready(),
            clock: self.certificates.clock_offset(),
            last_reload: lock(&self.last_reload).clone(),
            certificates: self.certificates(),
            upstreams: self.upstreams(),
        }
    }

    fn overview(&self) -> Overview {
        let open = self.metrics.traffic().open().into_iter();
        Overview {
            status: self.status(),
            open: open.map(|(site, tunnels, calls)| OpenTunnels { site: site.to_string(), tunnels, calls }).collect(),
            errors: self.metrics.traffic().errors(),
            doctor: admin::AdminHandlers::doctor(self),
        }
    }

    fn traffic(&self, after: u64) -> Traffic {
        let (last, sites) = self.metrics.traffic().after(after);
        let sites = sites.into_iter().map(|(site, samples)| SiteTraffic { site: site.to_string(), samples });
        Traffic {
            interval: telemetry::TRAFFIC_INTERVAL.as_secs(),
            length: telemetry::TRAFFIC_LENGTH,
            last,
            sites: sites.collect(),
        }
    }

    fn renew(&self, host: &str) -> bool {
        self.certificates.renew(host)
    }

    fn take_over(&self) -> BoxFuture<'static, bool> {
        let commands = self.commands.clone();
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            commands.send(AdminCommand::HandOver(reply)).await.is_ok() && answer.await.is_ok()
        })
    }

    fn reload(&self) -> BoxFuture<'static, Reloaded> {
        let commands = self.commands.clone();
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            let stopping = || Reloaded::Failed("the process is stopping\n".to_owned());
            if commands.send(AdminCommand::Reload(reply)).await.is_err() {
                return stopping();
            }
            answer.await.unwrap_or_else(|_| stopping())
        })
    }

    fn doctor(&self) -> DoctorRun {
        lock(&self.doctor).clone()
    }

    /// On a thread of its own, which nothing waits for: probes may take a minute, and have nothing to lose.
    fn diagnose(&self) -> bool {
        if std::mem::replace(&mut lock(&self.doctor).running, true) {
            return false;
        }
        let (plan, state) = (self.plan.load_full(), self.doctor.clone());
        let started = std::thread::Builder::new().name("doctor".into()).spawn(move || {
            let run = match diagnosis(&plan) {
                Ok(findings) => DoctorRun { running: false, findings: Some(findings), error: None },
                Err(error) => DoctorRun { running: false, findings: None, error: Some(error) },
            };
            *lock(&state) = run;
        });
        if let Err(error) = started {
            *lock(&self.doctor) = DoctorRun { error: Some(error.to_string()), ..DoctorRun::default() };
        }
        true
    }
}

fn diagnosis(plan: &Plan) -> Result<serde_json::Value, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let options = ProbeOptions::default();
    let probes = checkup(plan, &options, ProbeOverrides::default(), &|_, _, _| {});
    let findings = runtime.block_on(probes).map(|diagnosis| diagnosis.to_json()).map_err(|error| chain(&error));
    // A name that is being resolved must not hold it up.
    runtime.shutdown_timeout(Duration::ZERO);
    findings
}

/// Each service once, however many routes lead to it; what is known of it by any of them.
pub fn services(current: &Generation) -> Vec<ServiceStatus> {
    let mut all: Vec<ServiceStatus> = Vec::new();
    for (site, upstream) in current.services() {
        for status in upstream.status() {
            match all.iter_mut().find(|(_, known)| known.server == status.server) {
                Some((sites, known)) => {
                    sites.push(site.clone());
                    merge(known, status);
                }
                None => all.push((vec![site.clone()], status)),
            }
        }
    }
    all
}

/// A service is as the route that fares worst with it says: the other one has not asked it since.
fn merge(known: &mut upstream::Status, other: upstream::Status) {
    known.in_flight += other.in_flight;
    known.idle += other.idle;
    known.dial_failures += other.dial_failures;
    known.retries += other.retries;
    let earlier =
        other.condition == known.condition && (other.since > known.since) == (known.condition > Condition::Up);
    if other.condition > known.condition || earlier {
        (known.up, known.condition, known.since) = (other.up, other.condition, other.since);
        (known.why, known.fix) = (other.why, other.fix);
    }
}

/// To the second: more is noise.
fn date(at: SystemTime) -> OffsetDateTime {
    OffsetDateTime::from(at).replace_nanosecond(0).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(condition: Condition, since: u64, why: Option<&str>) -> upstream::Status {
        upstream::Status {
            name: "a".into(),
            server: "http://a:1".into(),
            up: condition < Condition::Down,
            condition,
            is_probed: false,
            since: Duration::from_secs(since),
            why: why.map(ToOwned::to_owned),
            fix: None,
            in_flight: 1,
            idle: 2,
            dial_failures: 3,
            retries: 4,
        }
    }

    #[test]
    fn a_service_of_two_routes_is_down_if_one_of_them_finds_it_so() {
        let (up, down) = (status(Condition::Up, 9, None), status(Condition::Down, 5, Some("refused")));
        for (mut first, second) in [(up.clone(), down.clone()), (down.clone(), up.clone())] {
            merge(&mut first, second);
            assert_eq!((first.up, first.since.as_secs(), first.why.as_deref()), (false, 5, Some("refused")));
            assert_eq!((first.in_flight, first.idle, first.dial_failures, first.retries), (2, 4, 6, 8));
        }
        let mut since_earlier = down;
        merge(&mut since_earlier, status(Condition::Down, 7, Some("no route")));
        assert_eq!((since_earlier.since.as_secs(), since_earlier.why.as_deref()), (7, Some("no route")));
        let mut back = up;
        merge(&mut back, status(Condition::Up, 2, None));
        assert_eq!(back.since.as_secs(), 2);
    }
}
