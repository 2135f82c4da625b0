//! Active probes: a GET now and then, so that readiness and metrics know of an outage before a user does.

use std::{sync::atomic::Ordering, time::Duration};

use http::{HeaderValue, header};
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
    message::{Body, Request, Value},
};

/// How long an answer to a probe may take; a service that needs longer to say that it is well is not.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a server is dialled that could not be reached, where no probe is configured.
const SEEK: Duration = Duration::from_secs(10);

/// An answer to a probe that is none.
#[derive(Debug, thiserror::Error)]
#[error("the probe got no 2xx response")]
struct UnhealthyStatus;

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
    let Some(answers) = timeout(PROBE_TIMEOUT, send_probe(upstream, index, health)).await.unwrap_or(Some(false)) else {
        return;
    };
    let endpoint = &upstream.0.endpoints[index];
    if answers {
        endpoint.observation.answered(began.elapsed());
    } else {
        endpoint.observation.failed(UnhealthyStatus.to_string());
    }
    let before = endpoint.healthy.swap(answers, Ordering::Relaxed);
    if answers {
        // Whoever answers can be reached.
        endpoint.reached.store(true, Ordering::Relaxed);
    }
    let is_one_of_several = upstream.0.endpoints.len() > 1;
    match (before, answers) {
        (true, false) if is_one_of_several => {
            warn!(upstream = %upstream.name(), server = %endpoint.server, "probe failed");
        }
        (false, true) if is_one_of_several => {
            info!(upstream = %upstream.name(), server = %endpoint.server, "probe succeeds again");
        }
        (true, false) => upstream.report_outage(&UnhealthyStatus),
        (_, true) => upstream.report_answer(index),
        (false, false) => {}
    }
}

async fn seek(upstream: &Upstream, index: usize) {
    let (endpoint, began) = (&upstream.0.endpoints[index], Instant::now());
    if !endpoint.reached.load(Ordering::Relaxed) && matches!(dial(upstream, index).await, Ok(Some(_))) {
        endpoint.observation.answered(began.elapsed());
        upstream.report_answer(index);
    }
}

/// Whether the answer to a probe is a good one; `None` where the edge has no socket for it, which says nothing.
async fn send_probe(upstream: &Upstream, index: usize, health: &plan::Health) -> Option<bool> {
    let inner = &upstream.0;
    let connection = match dial(upstream, index).await {
        Ok(connection) => connection?,
        Err(_) => return Some(false),
    };
    let mut request = Request::new(Body::empty());
    request.uri = health.path.clone();
    request.fields.insert(header::HOST, (&host(&inner.endpoints[index].server)).into());
    request.fields.insert(header::CONNECTION, Value::from_static("close"));
    let mut outgoing = client::Outgoing::new(request, RequestObservers::default());
    let lease = Lease::new(inner.clone(), index);
    match client::exchange(connection, &mut outgoing, &inner.plan, &inner.env, lease).await {
        Ok(client::ReceivedResponse(response)) => Some(response.status.is_success()),
        Err(_) => Some(false),
    }
}

/// A connection of the probe's own; `None` where the edge has no socket for it.
async fn dial(upstream: &Upstream, index: usize) -> Result<Option<UpstreamConnection>, DialError> {
    let (inner, endpoint) = (&upstream.0, &upstream.0.endpoints[index]);
    let Ok(permit) = inner.env.dials.try_acquire() else { return Ok(None) };
    let target = Target { server: &endpoint.server, resolver: &endpoint.resolver, roots: &inner.env.roots };
    let phases = Phases::default();
    let dialled = timeout(inner.plan.connect_timeout, connect::dial(target, permit, &phases)).await;
    match dialled.unwrap_or(Err(DialError::TimedOut)) {
        Ok(connection) => Ok(Some(connection)),
        Err(DialError::NoSocket(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn host(server: &Server) -> HeaderValue {
    let host = match server {
        Server::Http { host, port } | Server::Https { host, port } => format!("{host}:{port}"),
        Server::Unix(_) => "localhost".to_owned(),
    };
    HeaderValue::try_from(host).unwrap_or(HeaderValue::from_static("localhost"))
}
