//! The log and the metrics of the process. Neither holds a secret, and neither makes a request wait.

mod metrics;
mod output;
mod redact;
mod terminal;
mod throttle;
mod traffic;
mod writer;

use std::panic;

use tracing::{error, warn};
use tracing_subscriber::{EnvFilter, Registry, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _};

use self::output::{Output, Reopen};
pub use self::{
    metrics::{Certificate, Class, Metrics, OpenTunnel, SiteNumbers, Snapshot, StreamNumbers, classic},
    redact::redact_target,
    throttle::LogThrottle,
    traffic::{INTERVAL as TRAFFIC_INTERVAL, LENGTH as TRAFFIC_LENGTH, RecentError, Sample, Traffic},
    writer::{DroppedLines, Flush},
};
use crate::config::{
    self,
    plan::{Log, LogFormat},
};

/// The running log. Dropping it writes out what is queued.
pub struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
    reopen: Reopen,
    dropped: DroppedLines,
    _flush: Flush,
}

impl Logging {
    /// Starts logging, to a file or to standard error.
    ///
    /// Lines go through a bounded queue to a thread of their own: a slow terminal or a full pipe loses lines, which is
    /// counted, and never holds up a request.
    #[must_use]
    pub fn start(plan: &Log, metrics: &Metrics) -> Self {
        let (output, reopen, problem) = Output::open(plan.file.as_deref());
        let terminal = output.is_terminal();
        let (writer, flush, dropped) = writer::start(output);
        let (filter, handle) = reload::Layer::new(filter(&plan.level));
        let ignored = from_env().and_then(|filter| config::check_log_filter(&filter).err());
        let format = plan.format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
        let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_target(true);
        let registry = tracing_subscriber::registry().with(filter);
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        // A second start in one process (a test) keeps the first.
        let _ = match (format, terminal) {
            (LogFormat::Text, true) => {
                registry.with(lines.with_ansi(colour).map_event_format(terminal::ShortAccessLines::new)).try_init()
            }
            (LogFormat::Text, false) => registry.with(lines.with_ansi(false)).try_init(),
            (LogFormat::Json, _) => registry.with(lines.json().flatten_event(true).with_current_span(false)).try_init(),
        };
        if let Some(problem) = ignored {
            warn!(problem, "RUST_LOG is ignored; log.level applies");
        }
        if let (Some(error), Some(file)) = (problem, &plan.file) {
            error!(file = %file.display(), %error, "log.file cannot be opened; logging to standard error");
        }
        count_panics(metrics.clone());
        Self { filter: handle, reopen, dropped, _flush: flush }
    }

    /// Opens `log.file` again before the next line, after it was rotated.
    pub fn reopen(&self) {
        self.reopen.request();
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
    // `EnvFilter` takes any word for the name of a target, and would then log nothing.
    match from_env().filter(|filter| config::check_log_filter(filter).is_ok()) {
        Some(filter) => EnvFilter::new(filter),
        None => EnvFilter::new(level),
    }
}

fn from_env() -> Option<String> {
    std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty())
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
