//! Active probes: a GET now and then, so that readiness and metrics know of an outage before a user does.

use std::{sync::atomic::Ordering, time::Duration};

use http::{HeaderValue, StatusCode, header};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Lease, Upstream, client,
    connect::{self, DialError, Target, UpstreamConnection},
};
use crate::{
    config::plan::{self, Server},
    conn::{Phases, RequestObservers},
    error::{FailureCause, ProxyError, Role, ServerFailure, chain},
    message::{Body, Request, Value},
};

/// How long an answer to a probe may take; a service that needs longer to say that it is well is not.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a server is dialled that could not be reached, where no probe is configured.
const SEEK: Duration = Duration::from_secs(10);

/// Why a probe failed.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    /// There is no connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The connection brought no response.
    #[error(transparent)]
    Exchange(ProxyError),
    /// A response, but not a 2xx.
    #[error("the probe was answered with status {}", .0.as_u16())]
    Status(StatusCode),
    /// No response in time.
    #[error("the probe was not answered within {} seconds", PROBE_TIMEOUT.as_secs())]
    TimedOut,
}

impl ProbeError {
    /// The failure, for log and status.
    fn failure(&self) -> ServerFailure {
        match self {
            Self::Dial(error) => error.failure(),
            Self::Exchange(error) => ServerFailure::of(error),
            Self::Status(_) => ServerFailure::new(FailureCause::Unhealthy, chain(self)),
            Self::TimedOut => ServerFailure::new(FailureCause::NoResponse, chain(self)),
        }
    }
}

/// Probes the endpoints of an upstream until it is told to stop. Where no probe is configured, only those are looked for
/// that a request could not reach, so that their return is known although nobody asks.
pub async fn probe(upstream: Upstream, stop: CancellationToken) {
    let health = upstream.0.plan.health.clone();
    let mut ticks = interval(health.as_ref().map_or(SEEK, |health| health.interval));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        for index in 0..upstream.0.endpoints.len() {
            match &health {
                Some(health) => probe_server(&upstream, index, health).await,
                None => seek(&upstream, index).await,
            }
        }
    }
}

async fn probe_server(upstream: &Upstream, index: usize, health: &plan::Health) {
    let began = Instant::now();
    let outcome =
        timeout(PROBE_TIMEOUT, send_probe(upstream, index, health)).await.unwrap_or(Err(ProbeError::TimedOut));
    // That the edge has no socket says nothing about the service.
    if let Err(ProbeError::Dial(DialError::NoSocket(_))) = outcome {
        return;
    }
    let endpoint = &upstream.0.endpoints[index];
    match &outcome {
        Ok(()) => endpoint.observation.answered(began.elapsed()),
        Err(error) => endpoint.observation.failed(&error.failure()),
    }
    let was_healthy = endpoint.healthy.swap(outcome.is_ok(), Ordering::Relaxed);
    if outcome.is_ok() {
        // Whoever answers can be reached.
        endpoint.reached.store(true, Ordering::Relaxed);
    }
    let is_one_of_several = upstream.0.endpoints.len() > 1;
    match outcome {
        Err(error) if was_healthy && is_one_of_several => {
            let failure = error.failure();
            let fix = failure.fix(Role::Upstream);
            warn!(upstream = %upstream.name(), server = %endpoint.server, error = %failure, fix, "probe failed");
        }
        Ok(()) if !was_healthy && is_one_of_several => {
            info!(upstream = %upstream.name(), server = %endpoint.server, "probe succeeds again");
        }
        Err(error) if was_healthy => upstream.report_outage(&error.failure()),
        Ok(()) => upstream.report_answer(index),
        Err(_) => {}
    }
}

async fn seek(upstream: &Upstream, index: usize) {
    let (endpoint, began) = (&upstream.0.endpoints[index], Instant::now());
    if !endpoint.reached.load(Ordering::Relaxed) && dial(upstream, index).await.is_ok() {
        endpoint.observation.answered(began.elapsed());
        upstream.report_answer(index);
    }
}

/// Sends a probe, on a connection of its own.
async fn send_probe(upstream: &Upstream, index: usize, health: &plan::Health) -> Result<(), ProbeError> {
    let inner = &upstream.0;
    let connection = dial(upstream, index).await?;
    let mut request = Request::new(Body::empty());
    request.uri = health.path.clone();
    let endpoint = &inner.endpoints[index];
    let host = endpoint.host.clone().unwrap_or_else(|| host(&endpoint.server));
    request.fields.insert(header::HOST, (&host).into());
    request.fields.insert(header::CONNECTION, Value::from_static("close"));
    let mut outgoing = client::Outgoing::new(request, RequestObservers::default());
    let lease = Lease::new(inner.clone(), index);
    let exchange = client::exchange(connection, &mut outgoing, &inner.plan, &inner.env, lease).await;
    let client::ReceivedResponse(response) = exchange.map_err(|failed| ProbeError::Exchange(failed.error))?;
    if response.status.is_success() { Ok(()) } else { Err(ProbeError::Status(response.status)) }
}

/// A connection that is not pooled.
async fn dial(upstream: &Upstream, index: usize) -> Result<UpstreamConnection, DialError> {
    let (inner, endpoint) = (&upstream.0, &upstream.0.endpoints[index]);
    let permit = inner.env.dials.try_acquire().map_err(|error| DialError::NoSocket(error.into()))?;
    let roots = inner.env.roots.load_full();
    let tls = upstream.tls()?;
    let target = Target { server: &endpoint.server, resolver: &endpoint.resolver, roots: &roots, tls: tls.as_ref() };
    let phases = Phases::default();
    let dialled = timeout(inner.plan.connect_timeout, connect::dial(target, permit, &phases)).await;
    dialled.unwrap_or(Err(DialError::TimedOut))
}

fn host(server: &Server) -> HeaderValue {
    let host = match server {
        Server::Http { host, port } | Server::Https { host, port } => format!("{host}:{port}"),
        Server::Unix(_) => "localhost".to_owned(),
    };
    HeaderValue::try_from(host).unwrap_or(HeaderValue::from_static("localhost"))
}
