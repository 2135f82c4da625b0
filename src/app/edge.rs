//! The running edge: listeners on every worker, certificates, and the generation that answers.

use std::{collections::HashMap, io, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

use super::{
    handlers::{ServiceStatus, services},
    pipeline::{ListenerKind, Logged, Pipeline},
    stack::{Generation, Http01},
    worker::Worker,
};
use crate::{
    cert, client,
    clock::Clock,
    config::plan::{Directory, Plan, Site, SiteTls},
    conn::{Fetch, PerNetwork, Permits},
    drain::{Drain, Phase, Summary},
    error::{BoxError, ORDER_FAILURE_LABELS},
    listen::{BindError, Inherited, SocketLimits},
    telemetry::{self, Metrics, Snapshot},
    tls::{Acceptor, TlsError},
    upstream,
};

/// How often pooled connections that nobody uses are looked for.
const TIDY: Duration = Duration::from_secs(30);

/// How long a CA may take for one answer. Bounded, since a hanging one must not hold up the next.
const CA_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a drain looks whether anything is still waited for.
const DRAIN_LOOK: Duration = Duration::from_millis(10);

/// How long the connections have to end once the listeners are closed. Longer than a request has at least.
const CLOSE_WAIT: Duration = Duration::from_millis(550);

/// How long what runs beside the connections has to end. It has nothing to lose; a certificate is saved atomically.
const BACKGROUND_WAIT: Duration = Duration::from_millis(100);

/// How a process starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// On addresses on which no other process listens.
    Alone,
    /// Beside a running process, whose addresses it takes over.
    Takeover,
}

/// Why the edge does not start, or does not take a new configuration.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// `acme.ca_file` cannot be used.
    #[error("acme.ca_file")]
    Roots(#[from] client::RootsError),
    /// The TLS settings of an upstream cannot be used.
    #[error("an upstream's TLS")]
    UpstreamTls(#[from] client::TlsClientError),
    /// The system has no thread or descriptor left.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// Another process serves already.
    #[error("another vestibule is running{process} and answers at {place}: stop it, or start this one with --takeover")]
    AlreadyRunning {
        /// ` (process 1234)`, or nothing where it does not say.
        process: String,
        /// Its `admin.listen`.
        place: String,
    },
    /// There is no way to reach the process that is to be taken over from.
    #[error("--takeover needs admin.listen, by which the running process is told")]
    NoWayToTakeOver,
    /// The running process does not hand over.
    #[error("{place} does not hand over")]
    Takeover {
        /// Its `admin.listen`.
        place: String,
        /// What it says.
        #[source]
        source: BoxError,
    },
    /// The admin server cannot listen.
    #[error("cannot open the admin address {place}")]
    Admin {
        /// As it is configured.
        place: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A running edge. Dropping it ends everything at once; [`drain`](Self::drain) and then [`close`](Self::close) end it well.
pub struct Edge {
    plan: Plan,
    pipeline: Arc<Pipeline>,
    workers: Vec<Worker>,
    /// What is listened on: the address as configured, and as bound.
    open: HashMap<(ListenerKind, SocketAddr), SocketAddr>,
    certificates: Arc<cert::Manager>,
    env: upstream::Env,
    /// Ends the probes of the current generation.
    probes: CancellationToken,
    /// Ends the tasks that run beside the request path.
    stop: CancellationToken,
    background: TaskTracker,
    clock: Clock,
}

impl Edge {
    /// Starts serving a plan, on the current runtime and on threads of its own.
    ///
    /// # Errors
    /// An address is taken, or the system is out of something; nothing is left running.
    pub async fn start(plan: Plan, metrics: Metrics, clock: Clock, start: Start) -> Result<Self, StartError> {
        let inherited = Arc::new(Inherited::from_env());
        if start == Start::Alone {
            wanted(&plan).try_for_each(|(_, addr)| inherited.check_free(addr))?;
        }
        let (drain, stop) = (Drain::new(plan.listen.threads.get()), CancellationToken::new());
        let (tasks, background) = (TaskTracker::new(), TaskTracker::new());
        let store = cert::Store::new(plan.storage.clone());
        let certificates = Arc::new(cert::Manager::new(store.clone(), clock.clone(), background.clone(), stop.clone()));
        let sockets = SocketLimits::of_process(plan.limits.connections);
        let roots = client::Roots::system();
        let env = upstream::Env {
            workers: plan.listen.threads.get(),
            tls: Arc::new(ArcSwap::from_pointee(tls_clients(&plan, &roots)?)),
            roots: Arc::new(ArcSwap::from_pointee(roots)),
            drain: drain.clone(),
            tasks: tasks.clone(),
            tunnels: metrics.tunnels(),
            tunnel_idle: plan.timeouts.tunnel_idle,
            body_stall: plan.timeouts.body_stall,
            dials: Permits::new(sockets.dials, PerNetwork::FairShare),
        };
        let client = acme_clients(&plan)?;
        certificates.apply(&plan.sites, &plan.acme, &client).await;
        let generation = Generation::new(&plan, &env, http01(&certificates), &metrics, clock.clone());
        let acceptor = acceptor(&certificates, &plan)?;
        let pipeline = Arc::new(Pipeline {
            acceptor: ArcSwap::from_pointee(acceptor),
            current: Arc::new(ArcSwap::from_pointee(generation)),
            permits: Permits::new(sockets.clients, per_network(&plan)),
            drain,
            accepting: CancellationToken::new(),
            listeners: TaskTracker::new(),
            tasks,
            metrics,
            logged: Logged::default(),
        });
        let workers = 0..plan.listen.threads.get();
        let workers = workers.map(|index| Worker::start(index, pipeline.clone(), inherited.clone()));
        let workers = workers.collect::<Result<Vec<_>, _>>().map_err(StartError::Thread)?;
        let open = HashMap::new();
        let probes = CancellationToken::new();
        let mut edge = Self { plan, pipeline, workers, open, certificates, env, probes, stop, background, clock };
        let wanted: Vec<_> = wanted(&edge.plan).collect();
        for (kind, addr) in wanted {
            edge.open(kind, addr).await?;
        }
        let used: Vec<_> = edge.open.keys().map(|(_, addr)| *addr).collect();
        inherited
            .unused(&used)
            .for_each(|addr| warn!(%addr, "an inherited socket matches no address of `listen` and is ignored"));
        edge.watch_upstreams();
        edge.follow_up(store);
        Ok(edge)
    }

    /// Does what no request has to wait for, now that requests are answered.
    fn follow_up(&self, store: cert::Store) {
        self.load_roots();
        let keeps = |site: &Site| matches!(site.tls, SiteTls::Acme | SiteTls::Internal);
        if self.plan.sites.iter().any(keeps) {
            self.background.spawn(async move {
                if let Err(error) = store.run(cert::Store::probe).await {
                    let reason = std::error::Error::source(&error).map(ToString::to_string);
                    error!(%error, reason, "the storage is not writable: no certificate will be ordered");
                }
            });
        }
    }

    fn load_roots(&self) {
        let roots = self.env.roots.load_full();
        self.background.spawn_blocking(move || roots.load());
    }

    /// Reads the files anew by which servers are verified, and those by which the edge identifies itself to upstreams: they
    /// change while the configuration stays.
    ///
    /// # Errors
    /// A file cannot be used; nothing is changed.
    pub async fn refresh_roots(&self) -> Result<(), StartError> {
        let client = acme_clients(&self.plan)?;
        let roots = client::Roots::system();
        let tls = tls_clients(&self.plan, &roots)?;
        self.certificates.apply(&self.plan.sites, &self.plan.acme, &client).await;
        self.env.tls.store(Arc::new(tls));
        self.env.roots.store(Arc::new(roots));
        self.load_roots();
        Ok(())
    }

    /// The addresses that are listened on, ports filled in.
    pub fn addresses(&self) -> impl Iterator<Item = (ListenerKind, SocketAddr)> {
        self.open.iter().map(|((kind, _), bound)| (*kind, *bound))
    }

    /// Serves a new plan: all of it, or, on an error, the old one unchanged. Sockets whose address stays are kept, and so
    /// is every connection.
    ///
    /// # Errors
    /// A new address cannot be listened on.
    pub async fn reload(&mut self, plan: Plan) -> Result<(), StartError> {
        // Everything that can fail comes first, and leaves no trace where it does.
        let client = acme_clients(&plan)?;
        let roots = client::Roots::system();
        let tls = tls_clients(&plan, &roots)?;
        let acceptor = (plan.tls_min != self.plan.tls_min).then(|| acceptor(&self.certificates, &plan)).transpose()?;
        let wanted: Vec<_> = wanted(&plan).collect();
        let mut opened = Vec::new();
        for (kind, addr) in &wanted {
            if self.open.contains_key(&(*kind, *addr)) {
                continue;
            }
            if let Err(error) = self.open(*kind, *addr).await {
                for key in opened {
                    self.close_listener(key);
                }
                return Err(error);
            }
            opened.push((*kind, *addr));
        }
        self.env.tunnel_idle = plan.timeouts.tunnel_idle;
        self.env.body_stall = plan.timeouts.body_stall;
        // The upstreams of the generation before keep theirs.
        self.env.tls = Arc::new(ArcSwap::from_pointee(tls));
        self.env.roots.store(Arc::new(roots));
        self.load_roots();
        if let Some(acceptor) = acceptor {
            self.pipeline.acceptor.store(Arc::new(acceptor));
        }
        let metrics = &self.pipeline.metrics;
        let http01 = http01(&self.certificates);
        let generation = Generation::new(&plan, &self.env, http01, metrics, self.clock.clone());
        self.certificates.apply(&plan.sites, &plan.acme, &client).await;
        let sockets = SocketLimits::of_process(plan.limits.connections);
        self.pipeline.permits.set(sockets.clients, per_network(&plan));
        self.env.dials.set(sockets.dials, PerNetwork::FairShare);
        self.pipeline.current.store(Arc::new(generation));
        self.plan = plan;
        self.watch_upstreams();
        let gone: Vec<_> = self.open.keys().filter(|key| !wanted.contains(key)).copied().collect();
        for key in gone {
            self.close_listener(key);
        }
        Ok(())
    }

    /// The phases of the end, and what is in flight.
    #[must_use]
    pub fn draining(&self) -> Drain {
        self.pipeline.drain.clone()
    }

    /// Leaves the addresses to another process that listens on them already, and serves what is connected.
    pub fn hand_over(&mut self) {
        let all: Vec<_> = self.open.keys().copied().collect();
        all.into_iter().for_each(|key| self.close_listener(key));
    }

    /// Serves on, and waits until nothing in flight is waited for any more, within the plan's time. Whether that came.
    pub async fn drain(&self) -> bool {
        let began = Instant::now();
        let drain = &self.pipeline.drain;
        drain.enter(Phase::Draining);
        while drain.is_waited_for(began) {
            if began.elapsed() >= self.plan.timeouts.drain {
                return false;
            }
            sleep(DRAIN_LOOK).await;
        }
        true
    }

    /// Closes the listeners, then everything that is connected. What could not be ended well.
    pub async fn close(self) -> Summary {
        let Pipeline { drain, accepting, listeners, tasks, metrics, .. } = &*self.pipeline;
        metrics.closes();
        accepting.cancel();
        listeners.close();
        // Nothing waits in there. First of all, so that nobody who is sent away comes back here.
        let _ = timeout(CLOSE_WAIT, listeners.wait()).await;
        drain.enter(Phase::Closing);
        tasks.close();
        let _ = timeout(CLOSE_WAIT, tasks.wait()).await;
        let left = drain.in_flight();
        self.stop.cancel();
        self.background.close();
        let _ = timeout(BACKGROUND_WAIT, self.background.wait()).await;
        left
    }

    /// What is known of the certificates.
    #[must_use]
    pub fn certificates(&self) -> Arc<cert::Manager> {
        self.certificates.clone()
    }

    /// Reads what others keep for the metrics, whenever it is called.
    #[must_use]
    pub fn snapshot(
        &self,
        dropped: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Arc<dyn Fn() -> Snapshot + Send + Sync> {
        let (pipeline, certificates) = (self.pipeline.clone(), self.certificates.clone());
        Arc::new(move || Snapshot {
            upstreams: upstreams(&pipeline.current.load()),
            certificates: certificates.status().into_iter().map(certificate).collect(),
            connections: pipeline.permits.open(),
            log_dropped: dropped(),
        })
    }

    /// What every service is doing.
    #[must_use]
    pub fn services(&self) -> Arc<dyn Fn() -> Vec<ServiceStatus> + Send + Sync> {
        let pipeline = self.pipeline.clone();
        Arc::new(move || services(&pipeline.current.load()))
    }

    /// Listens on every worker. The first one says which port it got where 0 was asked for.
    async fn open(&mut self, kind: ListenerKind, addr: SocketAddr) -> Result<(), StartError> {
        let mut bound = addr;
        for (index, worker) in self.workers.iter().enumerate() {
            match worker.open(kind, bound).await {
                Ok(addr) => bound = addr,
                Err(error) => {
                    self.workers[..index].iter().for_each(|worker| worker.close(bound));
                    return Err(error.into());
                }
            }
        }
        info!(listener = kind.as_str(), addr = %bound, "listening");
        self.open.insert((kind, addr), bound);
        Ok(())
    }

    fn close_listener(&mut self, key: (ListenerKind, SocketAddr)) {
        if let Some(bound) = self.open.remove(&key) {
            self.workers.iter().for_each(|worker| worker.close(bound));
            info!(listener = key.0.as_str(), addr = %bound, "not listening any more");
        }
    }

    /// Probes the upstreams of the current generation, and tidies their pools. Called again, it asks everything anew.
    pub fn watch_upstreams(&mut self) {
        self.probes.cancel();
        self.probes = self.stop.child_token();
        let current = self.pipeline.current.load_full();
        for upstream in current.upstreams() {
            self.background.spawn(upstream::probe(upstream.clone(), self.probes.clone()));
        }
        for probe in current.rtc_probes() {
            self.background.spawn(probe.run(self.probes.clone()));
        }
        let stop = self.probes.clone();
        self.background.spawn(async move {
            while stop.run_until_cancelled(sleep(TIDY)).await.is_some() {
                current.upstreams().for_each(upstream::Upstream::tidy);
            }
        });
    }
}

fn wanted(plan: &Plan) -> impl Iterator<Item = (ListenerKind, SocketAddr)> {
    let plain = plan.listen.http.iter().map(|addr| (ListenerKind::Plain, *addr));
    plain.chain(plan.listen.https.iter().map(|addr| (ListenerKind::Tls, *addr)))
}

fn per_network(plan: &Plan) -> PerNetwork {
    plan.limits.connections_per_ip.map_or(PerNetwork::Unlimited, PerNetwork::AtMost)
}

fn http01(certificates: &Arc<cert::Manager>) -> Http01 {
    let certificates = certificates.clone();
    Arc::new(move |token, from| certificates.http01(token, from))
}

fn acceptor(certificates: &Arc<cert::Manager>, plan: &Plan) -> Result<Acceptor, TlsError> {
    let (knows, manager) = (certificates.resolver(), certificates.clone());
    let challenges = Arc::new(move |name: &str| manager.find_challenge(name));
    // An address stands in brackets where it is an authority, and without them in a certificate.
    let find = Arc::new(move |name: &str| knows.certificate(name.trim_matches(['[', ']'])));
    Acceptor::new(certificates.resolver(), find, challenges, plan.tls_min)
}

/// How TLS is spoken to the upstreams of a plan, with files as they are now.
fn tls_clients(plan: &Plan, roots: &client::Roots) -> Result<client::TlsClients, client::TlsClientError> {
    client::TlsClients::load(plan.upstreams().filter_map(|upstream| upstream.tls.as_deref()), roots)
}

/// How each ACME directory is reached. Roots are read anew, so that a reload takes a changed file.
fn acme_clients(plan: &Plan) -> Result<impl Fn(&Directory) -> Fetch + Sync + use<>, StartError> {
    let fetcher = |roots| client::Builder::new(roots, CA_TIMEOUT).keep_connections().build();
    let mut clients = HashMap::new();
    for path in plan.acme.directories.iter().filter_map(|directory| directory.ca_file.clone()) {
        let roots = client::Roots::with(Some(&path), None)?;
        clients.insert(path, fetcher(roots));
    }
    let system = fetcher(client::Roots::system());
    Ok(move |directory: &Directory| {
        let own = directory.ca_file.as_ref().and_then(|path| clients.get(path));
        own.unwrap_or(&system).clone()
    })
}

/// Every server of every upstream, of HTTP or not.
fn upstreams(current: &Generation) -> Vec<(Arc<str>, String, bool, usize, usize, u64)> {
    let http = services(current).into_iter();
    let http = http.map(|(_, s)| (s.name, s.server, s.up, s.in_flight, s.idle, s.dial_failures));
    let streams = current.streams().flat_map(|stream| stream.status());
    http.chain(streams.map(|s| (s.name, s.server, s.up, s.open, 0, s.dial_failures))).collect()
}

fn certificate(status: cert::Status) -> telemetry::Certificate {
    telemetry::Certificate {
        host: status.host.to_string(),
        not_after: status.not_after,
        next: status.next,
        failures: status.failures,
        failed_at: status.failed_at,
        causes: ORDER_FAILURE_LABELS.into_iter().zip(status.causes).collect(),
    }
}
