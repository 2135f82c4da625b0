//! From an upstream to a connection: which endpoint, how often, and for how long.

use std::{
    io,
    net::IpAddr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::{
    Upstream,
    connect::{self, DialError, Target, UpstreamConnection},
};
use crate::{
    client::TlsClient,
    conn::Phases,
    error::{ProxyError, Role, ServerFailure},
};

/// Pauses between dials that are refused: short at first, since a restart often takes less than a blink.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(25), Duration::from_millis(50), Duration::from_millis(100), Duration::from_millis(200)];

/// How many dials to one endpoint are under way at once. The others wait for one of them, or for a connection that is
/// free again; a request that is reset meanwhile has cost its service nothing.
pub const MOST_AT_ONCE: usize = 64;

/// What a request asks of a dial.
pub struct DialOptions<'a> {
    /// Whether a connection that has been used before will do.
    pub may_reuse: bool,
    /// Whether a service that refuses is waited for. An upgrade has a client with a back-off of its own.
    pub may_wait: bool,
    /// Whose share of the sockets it counts for.
    pub client: Option<IpAddr>,
    /// Where the time is noted.
    pub phases: &'a Phases,
}

/// A connection, and where it leads.
pub struct Dialled {
    /// The index of the endpoint.
    pub index: usize,
    /// The connection.
    pub connection: UpstreamConnection,
    /// Whether it has been used before.
    pub is_reused: bool,
}

impl Upstream {
    /// A connection to the endpoint whose turn it is.
    ///
    /// # Errors
    /// See [`DialError`].
    pub(super) async fn connection(&self, options: DialOptions<'_>) -> Result<Dialled, ProxyError> {
        let first = (!self.0.endpoints.is_empty()).then(|| self.pick());
        if options.may_reuse
            && let Some(index) = first
            && let Some(connection) = self.0.endpoints[index].pool.take()
        {
            return Ok(Dialled { index, connection, is_reused: true });
        }
        // Boxed: a dial is rare, and a request that waits for its answer should not own the room for one.
        Box::pin(self.dial(first, options)).await
    }

    /// Dials until an endpoint answers, the `first` one first, or the service has been away for `retry_connect`: one that
    /// restarts is away for a moment, and a request can wait for it. One that has been away for longer is known to be down,
    /// and every request is told at once.
    async fn dial(&self, mut first: Option<usize>, options: DialOptions<'_>) -> Result<Dialled, ProxyError> {
        let mut pauses = PAUSES.into_iter();
        loop {
            let mut failed = DialError::NoEndpoint;
            for _ in 0..self.0.endpoints.len() {
                let index = first.take().unwrap_or_else(|| self.pick());
                match self.dial_endpoint(index, &options).await {
                    Ok(dialled) => return Ok(dialled),
                    // It says nothing about the service, and the next endpoint needs a socket as well.
                    Err(error @ DialError::NoSocket(_)) => return Err(error.into()),
                    Err(error) => failed = error,
                }
            }
            self.0.outage.begin();
            let pause = pauses.next().unwrap_or(PAUSES[PAUSES.len() - 1]);
            let may_wait = options.may_wait && failed.is_passing();
            if !may_wait || self.0.outage.lasted() + pause > self.0.plan.retry_connect {
                self.report_outage(&failed.failure());
                return Err(failed.into());
            }
            sleep(pause).await;
        }
    }

    async fn dial_endpoint(&self, index: usize, options: &DialOptions<'_>) -> Result<Dialled, DialError> {
        let endpoint = &self.0.endpoints[index];
        if endpoint.is_silent() && self.0.outage.lasted() > self.0.plan.retry_connect {
            return Err(DialError::TimedOut);
        }
        let (env, began) = (&self.0.env, Instant::now());
        let dialling = async {
            let _turn = endpoint.dialling.acquire().await.map_err(|_| DialError::TimedOut)?;
            if options.may_reuse
                && let Some(connection) = endpoint.pool.take()
            {
                return Ok(Dialled { index, connection, is_reused: true });
            }
            let permit = match options.client {
                Some(client) => env.dials.try_acquire_for(client),
                None => env.dials.try_acquire(),
            };
            let permit = permit.map_err(|error| DialError::NoSocket(error.into()))?;
            let roots = env.roots.load_full();
            let tls = self.tls()?;
            let target =
                Target { server: &endpoint.server, resolver: &endpoint.resolver, roots: &roots, tls: tls.as_ref() };
            let connection = connect::dial(target, permit, options.phases).await?;
            Ok(Dialled { index, connection, is_reused: false })
        };
        let dialled = timeout(self.0.plan.connect_timeout, dialling).await.unwrap_or(Err(DialError::TimedOut));
        match &dialled {
            Ok(Dialled { is_reused: true, .. }) | Err(DialError::NoSocket(_)) => {}
            Ok(_) => {
                self.report_answer(index);
                endpoint.observation.answered(began.elapsed());
            }
            Err(error) => {
                endpoint.eject(matches!(error, DialError::TimedOut));
                endpoint.observation.failed(&error.failure());
            }
        }
        dialled
    }

    /// Its own settings of TLS, with their files as they were read last.
    pub(super) fn tls(&self) -> Result<Option<TlsClient>, DialError> {
        let Some(settings) = &self.0.plan.tls else { return Ok(None) };
        let client = self.0.env.tls.load().get(settings);
        // Never without them: they may be what makes a server the right one.
        client.map(Some).ok_or_else(|| DialError::Tls(io::Error::other("the settings of TLS have not been read")))
    }

    /// One line when a service goes away, one when it is back, whatever notices.
    pub(super) fn report_outage(&self, failure: &ServerFailure) {
        if self.0.outage.report() {
            let fix = failure.fix(Role::Upstream);
            warn!(upstream = %self.0.plan.name, error = %failure, fix, "upstream does not answer");
        }
    }

    /// An endpoint has been reached.
    pub(super) fn report_answer(&self, index: usize) {
        self.0.endpoints[index].restore();
        if self.0.outage.end() {
            info!(upstream = %self.0.plan.name, "upstream answers again");
        }
    }
}

/// The time in which no endpoint of an upstream can be reached.
#[derive(Debug)]
pub struct Outage {
    epoch: Instant,
    /// When it began, in milliseconds of `epoch`; 0 while there is none.
    since: AtomicU64,
    is_reported: AtomicBool,
}

impl Outage {
    /// No outage.
    pub fn new() -> Self {
        Self { epoch: Instant::now(), since: AtomicU64::new(0), is_reported: AtomicBool::new(false) }
    }

    /// It has begun, unless it had before.
    fn begin(&self) {
        let _ = self.since.compare_exchange(0, self.now().max(1), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// For how long it has lasted.
    fn lasted(&self) -> Duration {
        match self.since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => Duration::from_millis(self.now().saturating_sub(since)),
        }
    }

    /// Whether it has not been reported yet.
    fn report(&self) -> bool {
        !self.is_reported.swap(true, Ordering::Relaxed)
    }

    /// It is over; whether it had been reported.
    fn end(&self) -> bool {
        if self.since.load(Ordering::Relaxed) != 0 {
            self.since.store(0, Ordering::Relaxed);
        }
        self.is_reported.load(Ordering::Relaxed) && self.is_reported.swap(false, Ordering::Relaxed)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
