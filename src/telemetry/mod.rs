//! What the process says of itself: log lines and numbers. Nothing secret, and nothing that makes a request wait.

mod metrics;
mod redact;
mod throttle;
mod traffic;
mod writer;

use std::{io::IsTerminal as _, panic};

use tracing::error;
use tracing_subscriber::{EnvFilter, Registry, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _};

pub use self::{
    metrics::{Certificate, Class, Metrics, OpenTunnel, SiteNumbers, Snapshot, StreamNumbers, classic},
    redact::redact_target,
    throttle::LogThrottle,
    traffic::{INTERVAL as TRAFFIC_INTERVAL, LENGTH as TRAFFIC_LENGTH, RecentError, Sample, Traffic},
    writer::{DroppedLines, Flush},
};
use crate::config::plan::{Log, LogFormat};

/// The running log. Dropping it writes out what is queued.
pub struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
    dropped: DroppedLines,
    _flush: Flush,
}

impl Logging {
    /// Starts logging to standard error.
    ///
    /// Lines go through a bounded queue to a thread of their own: a slow terminal or a full pipe loses lines, which is
    /// counted, and never holds up a request.
    #[must_use]
    pub fn start(plan: &Log, metrics: &Metrics) -> Self {
        let (writer, flush, dropped) = writer::start(std::io::stderr());
        let (filter, handle) = reload::Layer::new(filter(&plan.level));
        let terminal = std::io::stderr().is_terminal();
        let format = plan.format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
        let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_target(true);
        let registry = tracing_subscriber::registry().with(filter);
        // A second start in one process (a test) keeps the first.
        let _ = match format {
            LogFormat::Text => registry.with(lines.with_ansi(terminal)).try_init(),
            LogFormat::Json => registry.with(lines.json().flatten_event(true).with_current_span(false)).try_init(),
        };
        count_panics(metrics.clone());
        Self { filter: handle, dropped, _flush: flush }
    }

    /// Changes what is logged.
    pub fn set_level(&self, level: &str) {
        // Fails only when the subscriber is gone, and with it the log.
        let _ = self.filter.reload(filter(level));
    }

    /// How many lines were lost.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.count()
    }
}

fn filter(level: &str) -> EnvFilter {
    match std::env::var("RUST_LOG") {
        Ok(filter) if !filter.is_empty() => EnvFilter::new(filter),
        _ => EnvFilter::new(level),
    }
}

/// A panic costs one connection; it must not pass unseen.
fn count_panics(metrics: Metrics) {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        metrics.panicked();
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        error!(place, "a task panicked: {}", info.payload_as_str().unwrap_or("no message"));
        before(info);
    }));
}
