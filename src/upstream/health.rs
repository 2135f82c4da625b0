//! Active probes: a GET now and then, so that readiness and metrics know of an outage before a user does.

use std::{sync::atomic::Ordering, time::Duration};

use http::{HeaderValue, header};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Lease, Upstream, client, connect};
use crate::{
    body::{Body, Request},
    config::plan::{self, Server},
    conn::Phases,
};

/// How long an answer to a probe may take; a service that needs longer to say that it is well is not.
const PATIENCE: Duration = Duration::from_secs(5);

/// Probes the endpoints of an upstream until it is told to stop. Does nothing where no probe is configured.
pub async fn probe(upstream: Upstream, stop: CancellationToken) {
    let Some(health) = upstream.0.plan.health.clone() else { return };
    let mut ticks = interval(health.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        for index in 0..upstream.0.endpoints.len() {
            let answers = timeout(PATIENCE, ask(&upstream, index, &health)).await.unwrap_or(false);
            let endpoint = &upstream.0.endpoints[index];
            let before = endpoint.healthy.swap(answers, Ordering::Relaxed);
            match (before, answers) {
                (true, false) => warn!(upstream = %upstream.name(), server = %endpoint.server, "probe failed"),
                (false, true) => info!(upstream = %upstream.name(), server = %endpoint.server, "probe succeeds again"),
                _ => {}
            }
        }
    }
}

async fn ask(upstream: &Upstream, index: usize, health: &plan::Health) -> bool {
    let inner = &upstream.0;
    let server = &inner.endpoints[index].server;
    let Ok(link) = connect::dial(server, inner.plan.connect_timeout, &inner.env.roots, &Phases::default()).await else {
        return false;
    };
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = health.path.clone();
    request.headers_mut().insert(header::HOST, host(server));
    request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    let mut outgoing = client::Outgoing::new(request);
    let lease = Lease::new(inner.clone(), index);
    match client::exchange(link, &mut outgoing, &inner.plan, &inner.env, lease).await {
        Ok(client::Answered(response)) => response.status().is_success(),
        Err(_) => false,
    }
}

fn host(server: &Server) -> HeaderValue {
    let host = match server {
        Server::Http { host, port } | Server::Https { host, port } => format!("{host}:{port}"),
        Server::Unix(_) => "localhost".to_owned(),
    };
    HeaderValue::try_from(host).unwrap_or(HeaderValue::from_static("localhost"))
}
