//! Asks the homeserver, beside the requests, whether it hands out call tokens (MSC4195): Element Call is told the SFU's
//! address only where it does. What the answer changes is in `layer/rtc_transports.rs`.

use std::{sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    conn::RequestObservers,
    layer::rtc_transports::TokenEndpoint,
    message::{Request, Value},
    upstream::Upstream,
};

/// How often the homeserver is asked once it has answered.
const AGAIN: Duration = Duration::from_secs(300);

/// How soon it is asked again while it has never answered: at first, and twice as long each time, up to [`AGAIN`]. An edge
/// and a homeserver that start together must not go without calls for five minutes.
const SOON: Duration = Duration::from_secs(2);

/// How long an answer may take. A refusal for want of a token is immediate; a homeserver that hangs says nothing.
const PROBE_LIMIT: Duration = Duration::from_secs(30);

/// A homeserver to be asked, and where its answer goes.
pub struct Probe {
    /// The name of the homeserver's site.
    pub host: String,
    /// Where requests for a token go.
    pub upstream: Upstream,
    /// Where the answer is read.
    pub endpoint: Arc<TokenEndpoint>,
}

impl Probe {
    /// Asks until it is told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let (mut known, mut pause) = (None, SOON);
        loop {
            let Some(answer) = stop.run_until_cancelled(self.ask()).await else { return };
            if answer.is_some() && answer != known {
                info!(site = self.host, served = answer, "whether the homeserver hands out call tokens");
            }
            known = answer.or(known);
            let wait = if known.is_some() { AGAIN } else { pause };
            pause = (pause * 2).min(AGAIN);
            if stop.run_until_cancelled(sleep(wait)).await.is_none() {
                return;
            }
        }
    }

    async fn ask(&self) -> Option<bool> {
        let host = Value::new(self.host.as_bytes()).ok()?;
        let send = |request: Request| self.upstream.send(request, RequestObservers::default());
        timeout(PROBE_LIMIT, self.endpoint.probe(host, send)).await.ok()?
    }
}
