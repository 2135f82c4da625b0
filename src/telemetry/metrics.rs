//! Numbers for Prometheus. Label values come from the configuration only, so that nobody outside can make a series.

use std::{
    collections::HashSet,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::{Method, StatusCode};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric, text::encode},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::Registry,
};

use super::traffic::{RecentError, Totals, Traffic};

/// Bounds of the latency histogram in seconds: from what the edge itself takes to what a long poll takes.
pub(super) const LATENCY: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    site: Arc<str>,
    method: &'static str,
    status: Class,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SiteLabels {
    site: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StreamLabels {
    site: Arc<str>,
    /// Why it ended, of a closed set of words.
    end: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabels {
    site: Arc<str>,
    direction: &'static str,
}

/// The first digit of a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Class(u16);

impl EncodeLabelValue for Class {
    fn encode(&self, encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        use std::fmt::Write as _;
        write!(encoder, "{}xx", self.0)
    }
}

/// Numbers that others keep, read when somebody asks.
#[derive(Debug, Default, Clone)]
pub struct Snapshot {
    /// Per upstream: name, server, whether it is up, requests in flight, idle connections, failed dials.
    pub upstreams: Vec<(Arc<str>, String, bool, usize, usize, u64)>,
    /// Per certificate.
    pub certificates: Vec<Certificate>,
    /// Connections open.
    pub connections: usize,
    /// Log lines lost.
    pub log_dropped: u64,
}

/// A certificate as the metrics show it.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The site.
    pub host: String,
    /// When it ends.
    pub not_after: Option<SystemTime>,
    /// When the next order is placed.
    pub next: Option<SystemTime>,
    /// Failures since the last success.
    pub failures: u32,
    /// When this process last failed.
    pub failed_at: Option<SystemTime>,
    /// Failures of this process, by a word for their cause.
    pub causes: Vec<(&'static str, u64)>,
}

type Source = Arc<dyn Fn() -> Snapshot + Send + Sync>;

/// All numbers; cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    requests: Family<RequestLabels, Counter>,
    latency: Family<SiteLabels, Histogram, fn() -> Histogram>,
    streams: Family<StreamLabels, Counter>,
    streams_open: Family<SiteLabels, Gauge>,
    stream_bytes: Family<DirectionLabels, Counter>,
    refused: Counter,
    handshakes_failed: Counter,
    panics: Counter,
    reloads: Counter,
    reloads_failed: Counter,
    last_reload: Gauge,
    last_reload_succeeded: Gauge,
    dropped_fields: Arc<AtomicU64>,
    cut: AtomicBool,
    tunnels: Arc<AtomicUsize>,
    saved: Arc<AtomicU64>,
    started: SystemTime,
    shed: AtomicI64,
    traffic: Traffic,
}

impl Metrics {
    /// Numbers that start at zero.
    #[must_use]
    pub fn new(started: SystemTime) -> Self {
        // What is read at the start has succeeded, or there would be no start.
        let (last_reload, last_reload_succeeded) = (Gauge::default(), Gauge::default());
        last_reload.set(seconds(started));
        last_reload_succeeded.set(1);
        Self(Arc::new(Inner {
            requests: Family::default(),
            latency: Family::new_with_constructor(|| Histogram::new(LATENCY)),
            streams: Family::default(),
            streams_open: Family::default(),
            stream_bytes: Family::default(),
            refused: Counter::default(),
            handshakes_failed: Counter::default(),
            panics: Counter::default(),
            reloads: Counter::default(),
            reloads_failed: Counter::default(),
            last_reload,
            last_reload_succeeded,
            dropped_fields: Arc::default(),
            cut: AtomicBool::new(false),
            tunnels: Arc::default(),
            saved: Arc::default(),
            started,
            shed: AtomicI64::new(0),
            traffic: Traffic::default(),
        }))
    }

    /// The numbers of a site, a configured name, or empty for what is for no site.
    #[must_use]
    pub fn of_site(&self, name: Arc<str>) -> SiteNumbers {
        SiteNumbers(Arc::new(PerSite {
            totals: self.0.traffic.totals(&name),
            name,
            metrics: self.clone(),
            latency: OnceLock::new(),
            requests: Default::default(),
        }))
    }

    /// Traffic of the last quarter of an hour, and the last errors.
    #[must_use]
    pub fn traffic(&self) -> &Traffic {
        &self.0.traffic
    }

    /// The numbers of a site whose connections are not HTTP.
    #[must_use]
    pub fn of_stream(&self, site: Arc<str>) -> StreamNumbers {
        let bytes = |direction| {
            let labels = DirectionLabels { site: site.clone(), direction };
            self.0.stream_bytes.get_or_create(&labels).clone()
        };
        StreamNumbers {
            open: self.0.streams_open.get_or_create(&SiteLabels { site: site.clone() }).clone(),
            received: bytes("from_client"),
            sent: bytes("to_client"),
            streams: self.0.streams.clone(),
            site,
        }
    }

    /// A connection over a bound.
    pub fn connection_refused(&self) {
        self.0.refused.inc();
        self.0.shed.fetch_add(1, Ordering::Relaxed);
    }

    /// Connections over a bound since the last call, for a line in the log now and then.
    #[must_use]
    pub fn take_shed(&self) -> i64 {
        self.0.shed.swap(0, Ordering::Relaxed)
    }

    /// A handshake that led nowhere.
    pub fn handshake_failed(&self) {
        self.0.handshakes_failed.inc();
    }

    /// A task panicked.
    pub fn panicked(&self) {
        self.0.panics.inc();
    }

    /// A reload took effect, or changed nothing because the file was bad.
    pub fn reloaded(&self, succeeded: bool, now: SystemTime) {
        self.0.last_reload_succeeded.set(i64::from(succeeded));
        if succeeded {
            self.0.reloads.inc();
            self.0.last_reload.set(seconds(now));
        } else {
            self.0.reloads_failed.inc();
        }
    }

    /// The counter of request fields that were dropped for an underscore in their name.
    #[must_use]
    pub fn dropped_fields(&self) -> Arc<AtomicU64> {
        self.0.dropped_fields.clone()
    }

    /// From now on, what ends unfinished is ended by us.
    pub fn closes(&self) {
        self.0.cut.store(true, Ordering::Relaxed);
    }

    /// Whether the time to drain is over.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.0.cut.load(Ordering::Relaxed)
    }

    /// The gauge of open tunnels, kept by those who run them.
    #[must_use]
    pub fn tunnels(&self) -> Arc<AtomicUsize> {
        self.0.tunnels.clone()
    }

    /// The counter of bytes that compression saved.
    #[must_use]
    pub fn saved(&self) -> Arc<AtomicU64> {
        self.0.saved.clone()
    }

    /// The text that Prometheus scrapes (OpenMetrics 1.0).
    #[must_use]
    pub fn render(&self, source: &Source) -> String {
        let inner = &self.0;
        let mut registry = Registry::with_prefix("vestibule");
        registry.register("requests", "Requests answered", inner.requests.clone());
        registry.register("request_head_seconds", "Time from a request's head to its answer's", inner.latency.clone());
        registry.register("streams", "Connections ended that were not HTTP", inner.streams.clone());
        registry.register("streams_open", "Connections open that are not HTTP", inner.streams_open.clone());
        registry.register("stream_bytes", "Bytes of connections that are not HTTP", inner.stream_bytes.clone());
        registry.register("connections_refused", "Connections over a bound", inner.refused.clone());
        registry.register("handshakes_failed", "TLS handshakes that led nowhere", inner.handshakes_failed.clone());
        registry.register("panics", "Tasks that panicked", inner.panics.clone());
        registry.register("reloads", "Reloads that took effect", inner.reloads.clone());
        registry.register(
            "reloads_failed",
            "Reloads that changed nothing because the file was bad",
            inner.reloads_failed.clone(),
        );
        registry.register(
            "last_reload_timestamp_seconds",
            "When the configuration last took effect",
            inner.last_reload.clone(),
        );
        registry.register(
            "last_reload_successful",
            "Whether the file was good when it was last read",
            inner.last_reload_succeeded.clone(),
        );
        registry.register_collector(Box::new(Kept {
            source: source.clone(),
            tunnels: inner.tunnels.clone(),
            saved: inner.saved.clone(),
            dropped_fields: inner.dropped_fields.clone(),
            started: seconds(inner.started),
        }));
        let mut out = String::new();
        // Writing to a String fails for no reason that could be told here.
        let _ = encode(&mut out, &registry);
        out
    }
}

/// What is counted of one site. Each number is looked up by its labels once and then kept, since two look-ups for every
/// answer hash six texts. Cheap to clone.
#[derive(Clone)]
pub struct SiteNumbers(Arc<PerSite>);

struct PerSite {
    name: Arc<str>,
    metrics: Metrics,
    totals: Arc<Totals>,
    latency: OnceLock<Histogram>,
    /// By method and class of status.
    requests: [[OnceLock<Counter>; CLASSES]; METHODS.len()],
}

impl SiteNumbers {
    /// The site.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether the process ends without waiting any longer; see [`Metrics::is_cut`].
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.0.metrics.is_cut()
    }

    /// Counts the bytes of an exchange that has ended.
    pub fn moved(&self, bytes_in: u64, bytes_out: u64) {
        self.0.totals.moved(bytes_in, bytes_out);
    }

    /// Counts a tunnel, which may be a call, until the guard is dropped.
    #[must_use]
    pub fn tunnel(&self, is_call: bool) -> OpenTunnel {
        let totals = self.0.totals.clone();
        totals.tunnels.fetch_add(1, Ordering::Relaxed);
        totals.calls.fetch_add(usize::from(is_call), Ordering::Relaxed);
        OpenTunnel { totals, is_call }
    }

    /// Keeps an error for those who watch.
    pub fn failed(&self, error: RecentError) {
        self.0.metrics.0.traffic.failed(error);
    }

    /// Counts an answer.
    pub fn answered(&self, method: &Method, status: StatusCode, head: Duration) {
        let PerSite { name, metrics, totals, latency, requests } = &*self.0;
        totals.answered(head);
        let (method, class) = (method_index(method), status.as_u16() / 100);
        let count = || {
            let labels = RequestLabels { site: name.clone(), method: METHODS[method], status: Class(class) };
            metrics.0.requests.get_or_create(&labels).clone()
        };
        match requests[method].get(usize::from(class)) {
            Some(kept) => kept.get_or_init(count).inc(),
            None => count().inc(),
        };
        let find = || metrics.0.latency.get_or_create(&SiteLabels { site: name.clone() }).clone();
        latency.get_or_init(find).observe(head.as_secs_f64());
    }
}

/// A tunnel that is open.
pub struct OpenTunnel {
    totals: Arc<Totals>,
    is_call: bool,
}

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        self.totals.tunnels.fetch_sub(1, Ordering::Relaxed);
        self.totals.calls.fetch_sub(usize::from(self.is_call), Ordering::Relaxed);
    }
}

/// What is counted of a site whose connections are not HTTP. Cheap to clone.
#[derive(Clone)]
pub struct StreamNumbers {
    site: Arc<str>,
    open: Gauge,
    received: Counter,
    sent: Counter,
    streams: Family<StreamLabels, Counter>,
}

impl StreamNumbers {
    /// A connection has been accepted.
    pub fn opened(&self) {
        self.open.inc();
    }

    /// A connection has ended, for a reason unless it does not count.
    pub fn closed(&self, end: Option<&'static str>) {
        self.open.dec();
        if let Some(end) = end {
            self.streams.get_or_create(&StreamLabels { site: self.site.clone(), end }).inc();
        }
    }

    /// Bytes from a client.
    pub fn received(&self, bytes: u64) {
        self.received.inc_by(bytes);
    }

    /// Bytes to a client.
    pub fn sent(&self, bytes: u64) {
        self.sent.inc_by(bytes);
    }
}

/// Classes of status that HTTP has, and the zeroth.
const CLASSES: usize = 6;

/// A closed set, since a method is whatever a client writes.
const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "other"];

fn method_index(method: &Method) -> usize {
    METHODS.iter().position(|known| *known == method.as_str()).unwrap_or(METHODS.len() - 1)
}

fn seconds(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// Numbers that are kept elsewhere.
struct Kept {
    source: Source,
    tunnels: Arc<AtomicUsize>,
    saved: Arc<AtomicU64>,
    dropped_fields: Arc<AtomicU64>,
    started: i64,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kept")
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServerLabels {
    upstream: String,
    server: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HostLabels {
    host: String,
}

/// OpenMetrics 1.0 as the older text format (0.0.4), for whoever does not ask for the newer one: there a counter's
/// family has the name of its series, and nothing marks the end.
#[must_use]
pub fn classic(openmetrics: &str) -> String {
    let typed = openmetrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"));
    let counters: HashSet<&str> = typed.collect();
    let mut text = String::with_capacity(openmetrics.len() + 512);
    for line in openmetrics.lines().filter(|line| *line != "# EOF") {
        let described = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE "));
        match described.and_then(|rest| rest.split_once(' ')) {
            Some((name, rest)) if counters.contains(name) => {
                text.push_str(&line[..7]);
                text.push_str(name);
                text.push_str("_total ");
                text.push_str(rest);
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabels {
    host: String,
    cause: &'static str,
}

impl Collector for Kept {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let now = (self.source)();
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let mut gauge = |name: &str, help: &str, value: i64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(out.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        gauge("connections_open", "Connections open", count(now.connections))?;
        gauge("tunnels_open", "WebSockets open", count(self.tunnels.load(Ordering::Relaxed)))?;
        gauge("start_timestamp_seconds", "When the process started", self.started)?;
        let mut counter = |name: &str, help: &str, value: u64| {
            let counter = ConstCounter::new(value);
            counter.encode(out.encode_descriptor(name, help, None, counter.metric_type())?)
        };
        let kept = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        counter("compression_saved_bytes", "Bytes that did not have to be sent", kept(&self.saved))?;
        counter(
            "request_fields_dropped",
            "Fields dropped for an underscore in their name",
            kept(&self.dropped_fields),
        )?;
        counter("log_lines_dropped", "Log lines lost", now.log_dropped)?;
        for (name, help) in [
            ("upstream_up", "Whether a server answered last"),
            ("upstream_in_flight", "Requests in flight"),
            ("upstream_idle_connections", "Pooled connections"),
        ] {
            let mut family = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (upstream, server, up, in_flight, idle, _) in &now.upstreams {
                let labels = ServerLabels { upstream: upstream.to_string(), server: server.clone() };
                let value = match name {
                    "upstream_up" => i64::from(*up),
                    "upstream_in_flight" => count(*in_flight),
                    _ => count(*idle),
                };
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        let mut family =
            out.encode_descriptor("upstream_dial_failures", "Dials that failed", None, MetricType::Counter)?;
        for (upstream, server, .., failures) in &now.upstreams {
            let labels = ServerLabels { upstream: upstream.to_string(), server: server.clone() };
            ConstCounter::new(*failures).encode(family.encode_family(&labels)?)?;
        }
        certificates(&mut out, &now.certificates)
    }
}

fn certificates(out: &mut DescriptorEncoder<'_>, all: &[Certificate]) -> Result<(), std::fmt::Error> {
    for (name, help) in [
        ("certificate_not_after_timestamp_seconds", "When a certificate ends"),
        ("certificate_next_order_timestamp_seconds", "When the next order is placed"),
        ("certificate_failures", "Failures since the last success"),
        ("certificate_last_failure_timestamp_seconds", "When an order last failed"),
    ] {
        let mut family = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for certificate in all {
            let value = match name {
                "certificate_not_after_timestamp_seconds" => certificate.not_after.map_or(0, seconds),
                "certificate_next_order_timestamp_seconds" => certificate.next.map_or(0, seconds),
                "certificate_last_failure_timestamp_seconds" => certificate.failed_at.map_or(0, seconds),
                _ => i64::from(certificate.failures),
            };
            ConstGauge::new(value).encode(family.encode_family(&HostLabels { host: certificate.host.clone() })?)?;
        }
    }
    let help = "Orders that failed, by cause";
    let mut family = out.encode_descriptor("certificate_order_failures", help, None, MetricType::Counter)?;
    for certificate in all {
        for (cause, failures) in &certificate.causes {
            let labels = CauseLabels { host: certificate.host.clone(), cause };
            ConstCounter::new(*failures).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_make_no_series() {
        let metrics = Metrics::new(UNIX_EPOCH);
        let site = metrics.of_site("example.org".into());
        for n in 0..1_000 {
            let method = Method::from_bytes(format!("M{n}").as_bytes()).unwrap();
            site.answered(&method, StatusCode::OK, Duration::from_millis(3));
        }
        let source: Source = Arc::new(|| Snapshot {
            upstreams: vec![("a".into(), "http://a".into(), true, 1, 2, 3)],
            ..Snapshot::default()
        });
        let text = metrics.render(&source);
        let series = text.lines().filter(|line| line.starts_with("vestibule_requests_total")).count();
        assert_eq!(series, 1, "{text}");
        assert!(text.contains(r#"vestibule_upstream_up{upstream="a",server="http://a"} 1"#), "{text}");
        assert!(text.ends_with("# EOF\n"));
        let old = classic(&text);
        assert!(old.contains("# TYPE vestibule_requests_total counter\nvestibule_requests_total{"), "{old}");
        assert!(old.contains("# HELP vestibule_requests_total ") && !old.contains("EOF"), "{old}");
        assert!(old.contains("# TYPE vestibule_upstream_up gauge\n"), "{old}");
    }
}
