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
        let mut schedule = Schedule::default();
        loop {
            let Some(answer) = stop.run_until_cancelled(self.ask()).await else { return };
            if schedule.is_news(answer) {
                info!(site = self.host, served = answer, "whether the homeserver hands out call tokens");
            }
            if stop.run_until_cancelled(sleep(schedule.wait_after(answer))).await.is_none() {
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

/// When the homeserver is asked again.
#[derive(Debug, Default)]
struct Schedule {
    /// Its last answer.
    known: Option<bool>,
    /// Questions without an answer, before the first one.
    unanswered: u32,
}

impl Schedule {
    /// Whether an answer differs from the one before.
    fn is_news(&self, answer: Option<bool>) -> bool {
        answer.is_some() && answer != self.known
    }

    /// The wait before the next question. Once it has answered it is never asked sooner than after [`AGAIN`].
    fn wait_after(&mut self, answer: Option<bool>) -> Duration {
        self.known = answer.or(self.known);
        if self.known.is_some() {
            return AGAIN;
        }
        let wait = SOON.saturating_mul(1_u32.checked_shl(self.unanswered).unwrap_or(u32::MAX));
        self.unanswered += 1;
        wait.min(AGAIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_homeserver_that_has_answered_is_asked_every_five_minutes() {
        let mut schedule = Schedule::default();
        for answer in [Some(true), Some(false), None, None, Some(true)] {
            assert_eq!(schedule.wait_after(answer), Duration::from_secs(300), "{answer:?}");
        }
    }

    #[test]
    fn one_that_has_never_answered_is_asked_sooner_and_ever_less_often() {
        let mut schedule = Schedule::default();
        let waits: Vec<_> = (0..40).map(|_| schedule.wait_after(None).as_secs()).collect();
        assert_eq!(waits[..9], [2, 4, 8, 16, 32, 64, 128, 256, 300]);
        assert!(waits[9..].iter().all(|seconds| *seconds == 300), "{waits:?}");
    }

    #[test]
    fn only_another_answer_is_news() {
        let mut schedule = Schedule::default();
        assert!(schedule.is_news(Some(false)) && !schedule.is_news(None));
        schedule.wait_after(Some(false));
        assert!(schedule.is_news(Some(true)) && !schedule.is_news(Some(false)) && !schedule.is_news(None));
    }
}
