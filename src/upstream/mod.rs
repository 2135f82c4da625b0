//! Services behind the edge: picks an endpoint, has a connection to it, sends a request and returns the answer.
//!
//! HTTP/1.1 of our own without a task per connection: the future of a request writes and reads its own socket, and the
//! body of an answer reads on (28 % less CPU than a client that lives in a task and talks by channels).

mod balance;
mod client;
mod connect;
mod dial;
mod health;
mod observation;
mod pool;
mod read_buffer;
mod resolve;
mod response_body;
mod tunnel;
mod upload;
mod websocket;

pub use connect::TcpDialer;
pub use health::probe;
pub use observation::Condition;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use http::HeaderValue;
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::task::TaskTracker;

use self::{
    balance::{Candidate, pick},
    client::{Outgoing, ReceivedResponse, SendError},
    connect::{DialError, UpstreamConnection},
    dial::{DialOptions, Dialled, MOST_AT_ONCE, Outage},
    observation::Observation,
    pool::Pool,
    resolve::Resolver,
};
use crate::{
    client::{Roots, TlsClients},
    config::plan,
    conn::{Permits, RequestObservers},
    drain::Drain,
    error::{Kind, ProxyError},
    message::{Request, Response},
};

/// How long an endpoint that refused a dial is passed over while another one answers.
const EJECTED: Duration = Duration::from_secs(5);

/// What all upstreams share.
#[derive(Clone)]
pub struct Env {
    /// How many workers keep pools of their own.
    pub workers: usize,
    /// Whom https origins are verified against.
    pub roots: Arc<ArcSwap<Roots>>,
    /// How TLS is spoken to the upstreams of this generation that have settings of their own.
    pub tls: Arc<ArcSwap<TlsClients>>,
    /// The end of the process: tunnels close when it comes.
    pub drain: Drain,
    /// Tracks the tasks of this module.
    pub tasks: TaskTracker,
    /// Tunnels open now, in the whole process.
    pub tunnels: Arc<AtomicUsize>,
    /// A tunnel in which nothing moves.
    pub tunnel_idle: Option<Duration>,
    /// A body of which no byte moves.
    pub body_stall: Option<Duration>,
    /// Bounds the connections to services.
    pub dials: Permits,
}

/// A set of endpoints that serve the same thing. Cheap to clone.
#[derive(Clone)]
pub struct Upstream(Arc<Inner>);

struct Inner {
    plan: plan::Upstream,
    env: Env,
    endpoints: Vec<Endpoint>,
    turn: AtomicUsize,
    retries: AtomicU64,
    outage: Outage,
}

/// One address of an upstream, and what we know of it.
struct Endpoint {
    server: plan::Server,
    /// The `Host` that it gets, where it is not that of the request.
    host: Option<HeaderValue>,
    resolver: Resolver,
    pool: Pool,
    /// Bounds the dials under way.
    dialling: Semaphore,
    in_flight: AtomicUsize,
    /// Milliseconds of `epoch` until which dials go elsewhere.
    ejected_until: AtomicU64,
    /// What the probes found last.
    healthy: AtomicBool,
    /// Whether the last dial led anywhere.
    reached: AtomicBool,
    /// Whether the last dial ended by its time limit.
    timed_out: AtomicBool,
    dial_failures: AtomicU64,
    observation: Observation,
    epoch: Instant,
}

/// An upstream as the admin sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The upstream's name.
    pub name: Arc<str>,
    /// The address, as in the configuration.
    pub server: String,
    /// Whether it is believed to answer.
    pub up: bool,
    /// The same in finer steps.
    pub condition: Condition,
    /// Whether probes ask it, so that it is tried soon even without a request.
    pub is_probed: bool,
    /// How long that has been so.
    pub since: Duration,
    /// Why it is down or slow.
    pub why: Option<String>,
    /// How to fix it, if it is down.
    pub fix: Option<&'static str>,
    /// Requests in flight.
    pub in_flight: usize,
    /// Pooled connections.
    pub idle: usize,
    /// Dials that failed since the start.
    pub dial_failures: u64,
    /// Requests of the whole upstream that were sent a second time.
    pub retries: u64,
}

impl Upstream {
    /// The upstream of a plan.
    #[must_use]
    pub fn new(plan: &plan::Upstream, env: &Env) -> Self {
        let endpoints =
            plan.servers.iter().map(|server| Endpoint::new(server.clone(), &plan.host, env.workers)).collect();
        Self(Arc::new(Inner {
            plan: plan.clone(),
            env: env.clone(),
            endpoints,
            turn: AtomicUsize::new(0),
            retries: AtomicU64::new(0),
            outage: Outage::new(),
        }))
    }

    /// How it is called in logs and metrics.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.0.plan.name
    }

    /// Sends a request and returns the head of its answer, with a body that reads on.
    ///
    /// The request is ready to go: fields of one hop are gone, the target is in origin-form. A WebSocket keeps
    /// `Connection` and `Upgrade`, and its 101 comes back with an [`UpgradeHandler`](crate::message::UpgradeHandler). Dropping the future
    /// or the body closes the connection to the service, which is how a request is cancelled.
    ///
    /// # Errors
    /// No connection ([`Kind::Connect`], [`Kind::ConnectTimeout`]), no answer ([`Kind::Reset`],
    /// [`Kind::ResponseTimeout`], [`Kind::BadResponse`]), or a body that its client did not finish.
    pub fn send(
        &self,
        request: Request,
        observers: RequestObservers,
    ) -> BoxFuture<'static, Result<Response, ProxyError>> {
        let upstream = self.clone();
        let mut outgoing = Outgoing::new(request, observers);
        // A block, whose captures stay where they are: the future of an async fn keeps its arguments twice. Boxed here,
        // it is under the KiB up to which glibc's allocator is quick, and so are the futures of those who wait for it.
        Box::pin(async move {
            let inner = &upstream.0;
            let mut may_reuse = true;
            loop {
                let options = DialOptions {
                    may_reuse,
                    may_wait: !outgoing.is_upgrade(),
                    client: outgoing.client_ip(),
                    phases: outgoing.phases(),
                };
                let Dialled { index, connection, is_reused } = upstream.connection(options).await?;
                if let Some(host) = &inner.endpoints[index].host {
                    outgoing.set_host(host);
                }
                let lease = Lease::new(inner.clone(), index);
                match client::exchange(connection, &mut outgoing, &inner.plan, &inner.env, lease).await {
                    Ok(ReceivedResponse(response)) => return Ok(response),
                    // The service closed a connection that we had kept; on a new one the request has its first chance.
                    Err(SendError { may_repeat: true, .. }) if is_reused => {
                        inner.retries.fetch_add(1, Ordering::Relaxed);
                        may_reuse = false;
                    }
                    Err(failed) => return Err(failed.error),
                }
            }
        })
    }

    /// What is known of each endpoint.
    #[must_use]
    pub fn status(&self) -> Vec<Status> {
        let status = |endpoint: &Endpoint| {
            let (up, seen) = (endpoint.answers(), endpoint.observation.seen());
            Status {
                name: self.0.plan.name.clone(),
                server: endpoint.server.to_string(),
                up,
                condition: if up { seen.condition.min(Condition::Slow) } else { Condition::Down },
                is_probed: self.0.plan.health.is_some(),
                since: seen.since.elapsed(),
                why: seen.why,
                fix: seen.fix,
                in_flight: endpoint.in_flight.load(Ordering::Relaxed),
                idle: endpoint.pool.len(),
                dial_failures: endpoint.dial_failures.load(Ordering::Relaxed),
                retries: self.0.retries.load(Ordering::Relaxed),
            }
        };
        self.0.endpoints.iter().map(status).collect()
    }

    /// Closes pooled connections that nobody has used for long. Called now and then by whoever has the time.
    pub fn tidy(&self) {
        for endpoint in &self.0.endpoints {
            endpoint.pool.purge();
        }
    }

    fn pick(&self) -> usize {
        let candidates: Vec<Candidate> = match self.0.endpoints.as_slice() {
            [_] => return 0,
            endpoints => endpoints.iter().map(Endpoint::candidate).collect(),
        };
        pick(self.0.plan.balance, &candidates, self.0.turn.fetch_add(1, Ordering::Relaxed))
    }
}

impl Endpoint {
    fn new(server: plan::Server, host: &plan::UpstreamHost, workers: usize) -> Self {
        let host = match host {
            plan::UpstreamHost::OfRequest => None,
            plan::UpstreamHost::OfServer => Some(server.authority()),
            plan::UpstreamHost::Fixed(host) => Some(host.clone()),
        };
        Self {
            host: host.map(|host| HeaderValue::try_from(host).expect("a host is made of letters, digits and marks")),
            server,
            resolver: Resolver::default(),
            pool: Pool::new(workers),
            dialling: Semaphore::new(MOST_AT_ONCE),
            in_flight: AtomicUsize::new(0),
            ejected_until: AtomicU64::new(0),
            healthy: true.into(),
            reached: true.into(),
            timed_out: false.into(),
            dial_failures: AtomicU64::new(0),
            observation: Observation::new(),
            epoch: Instant::now(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A dial has failed: others go elsewhere for a while.
    fn eject(&self, timed_out: bool) {
        self.dial_failures.fetch_add(1, Ordering::Relaxed);
        self.reached.store(false, Ordering::Relaxed);
        self.timed_out.store(timed_out, Ordering::Relaxed);
        let until = self.now() + u64::try_from(EJECTED.as_millis()).unwrap_or(u64::MAX);
        self.ejected_until.store(until, Ordering::Relaxed);
    }

    /// A dial has succeeded.
    fn restore(&self) {
        self.ejected_until.store(0, Ordering::Relaxed);
        self.reached.store(true, Ordering::Relaxed);
        self.timed_out.store(false, Ordering::Relaxed);
    }

    /// Whether a dial a moment ago waited in vain. One that is refused costs nothing; one that waits costs its request
    /// `connect_timeout`.
    fn is_silent(&self) -> bool {
        self.timed_out.load(Ordering::Relaxed) && self.ejected_until.load(Ordering::Relaxed) > self.now()
    }

    fn is_up(&self) -> bool {
        self.healthy.load(Ordering::Relaxed) && self.ejected_until.load(Ordering::Relaxed) <= self.now()
    }

    /// What is believed, for those who watch: a dial that failed counts until one succeeds.
    fn answers(&self) -> bool {
        self.healthy.load(Ordering::Relaxed) && self.reached.load(Ordering::Relaxed)
    }

    fn candidate(&self) -> Candidate {
        Candidate { up: self.is_up(), in_flight: self.in_flight.load(Ordering::Relaxed) }
    }
}

/// One request in flight at an endpoint; counted until its body ends. Gives the connection back.
struct Lease {
    upstream: Arc<Inner>,
    index: usize,
}

impl Lease {
    fn new(upstream: Arc<Inner>, index: usize) -> Self {
        upstream.endpoints[index].in_flight.fetch_add(1, Ordering::Relaxed);
        Self { upstream, index }
    }

    /// Keeps the connection for the next request, unless sockets are scarce: then others need it more.
    fn give_back(&self, mut connection: UpstreamConnection) {
        if !self.upstream.env.dials.is_scarce() {
            connection.permit.release_share();
            self.upstream.endpoints[self.index].pool.insert(connection);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.upstream.endpoints[self.index].in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl From<DialError> for ProxyError {
    fn from(error: DialError) -> Self {
        let kind = match error {
            DialError::TimedOut => Kind::ConnectTimeout,
            DialError::NoEndpoint | DialError::NoSocket(_) => Kind::Unavailable,
            DialError::Io(_) | DialError::Tls(_) => Kind::Connect,
        };
        Self::new(kind, error)
    }
}
