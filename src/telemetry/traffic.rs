//! Traffic of the last quarter of an hour by site, and the last errors: what the page of the admin server shows.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use time::{OffsetDateTime, serde::rfc3339};
use tokio::time::Instant;

use super::metrics::LATENCY;

/// What a sample covers.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// Samples that are kept: a quarter of an hour.
pub const LENGTH: usize = 90;

/// Errors that are kept.
const ERRORS: usize = 50;

/// What happened in one interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Sample {
    /// Requests a second.
    pub rate: f32,
    /// Half of the responses began within so many milliseconds.
    pub p50: Option<f32>,
    /// 99 % of them did.
    pub p99: Option<f32>,
    /// Bytes of bodies and tunnels from clients. Counted when an exchange ends, and only with `log.access`.
    pub bytes_in: u64,
    /// The same, to clients.
    pub bytes_out: u64,
}

/// A site and some of its samples, the oldest first.
pub type SiteSamples = (Arc<str>, Vec<Sample>);

/// A request that ended with an error of the edge or of a service.
#[derive(Debug, Clone, Serialize)]
pub struct RecentError {
    /// When.
    #[serde(with = "rfc3339")]
    pub at: OffsetDateTime,
    /// The id that the access log and the response name.
    pub request_id: String,
    /// The site; empty where the request is for none.
    pub site: String,
    /// The method.
    pub method: String,
    /// The target, without secrets; empty where the access log is off.
    pub uri: String,
    /// The status of the response.
    pub status: u16,
    /// What was wrong.
    pub reason: String,
}

/// Totals of a site since the start.
#[derive(Default)]
pub struct Totals {
    /// Responses by the time to their head, in the buckets of [`LATENCY`] and one above.
    heads: [AtomicU64; BUCKETS],
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    /// WebSockets open.
    pub tunnels: AtomicUsize,
    /// Those of them that lead to an SFU.
    pub calls: AtomicUsize,
}

const BUCKETS: usize = LATENCY.len() + 1;

impl Totals {
    /// Counts a response.
    pub fn answered(&self, head: Duration) {
        let seconds = head.as_secs_f64();
        let bucket = LATENCY.iter().position(|bound| seconds <= *bound).unwrap_or(LATENCY.len());
        self.heads[bucket].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the bytes of an exchange.
    pub fn moved(&self, bytes_in: u64, bytes_out: u64) {
        self.bytes_in.fetch_add(bytes_in, Ordering::Relaxed);
        self.bytes_out.fetch_add(bytes_out, Ordering::Relaxed);
    }

    fn counts(&self) -> Counts {
        let read = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        Counts {
            heads: std::array::from_fn(|bucket| read(&self.heads[bucket])),
            bytes_in: read(&self.bytes_in),
            bytes_out: read(&self.bytes_out),
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    heads: [u64; BUCKETS],
    bytes_in: u64,
    bytes_out: u64,
}

impl Counts {
    fn since(&self, before: &Self) -> Self {
        Self {
            heads: std::array::from_fn(|bucket| self.heads[bucket] - before.heads[bucket]),
            bytes_in: self.bytes_in - before.bytes_in,
            bytes_out: self.bytes_out - before.bytes_out,
        }
    }

    fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.heads.iter_mut().zip(other.heads) {
            *mine += theirs;
        }
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
    }

    fn is_nothing(&self) -> bool {
        self.heads.iter().all(|count| *count == 0) && self.bytes_in == 0 && self.bytes_out == 0
    }

    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a chart has a hundred pixels")]
    fn sample(&self, took: Duration) -> Sample {
        let all: u64 = self.heads.iter().sum();
        Sample {
            rate: (all as f64 / took.as_secs_f64()) as f32,
            p50: percentile(&self.heads, 0.5),
            p99: percentile(&self.heads, 0.99),
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
        }
    }
}

/// Milliseconds within which a share of the responses began; within a bucket they are taken to be spread evenly.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "an estimate within a bucket")]
fn percentile(heads: &[u64; BUCKETS], share: f64) -> Option<f32> {
    let all: u64 = heads.iter().sum();
    let wanted = all as f64 * share;
    let (mut below, mut lower) = (0.0, 0.0);
    for (count, upper) in heads.iter().zip(LATENCY.into_iter().chain([LATENCY[LATENCY.len() - 1]])) {
        let count = *count as f64;
        if count > 0.0 && below + count >= wanted {
            return Some((1e3 * (lower + (upper - lower) * (wanted - below) / count)) as f32);
        }
        (below, lower) = (below + count, upper);
    }
    None
}

/// The recorder of a process.
#[derive(Default)]
pub struct Traffic(Mutex<Recorded>);

#[derive(Default)]
struct Recorded {
    sites: BTreeMap<Arc<str>, Series>,
    all: VecDeque<Sample>,
    /// When the last sample was taken, and its number; the first has number 1.
    last: Option<(Instant, u64)>,
    errors: VecDeque<RecentError>,
}

struct Series {
    totals: Arc<Totals>,
    before: Counts,
    /// Empty until there is traffic, so that a hundred idle sites cost nothing.
    samples: VecDeque<Sample>,
}

impl Traffic {
    /// The totals of a site; empty for requests that are for none.
    pub fn totals(&self, site: &Arc<str>) -> Arc<Totals> {
        let mut recorded = self.lock();
        let new = || Series { totals: Arc::default(), before: Counts::default(), samples: VecDeque::new() };
        recorded.sites.entry(site.clone()).or_insert_with(new).totals.clone()
    }

    /// Takes a sample, if it is time for one.
    pub fn sample(&self, now: Instant) {
        let mut recorded = self.lock();
        let Recorded { sites, all, last, .. } = &mut *recorded;
        let Some((at, number)) = last else {
            *last = Some((now, 0));
            return;
        };
        let took = now.duration_since(*at);
        if took < INTERVAL {
            return;
        }
        *last = Some((now, *number + 1));
        let mut sum = Counts::default();
        for Series { totals, before, samples } in sites.values_mut() {
            let counts = totals.counts();
            let new = counts.since(before);
            *before = counts;
            sum.add(&new);
            if !samples.is_empty() || !new.is_nothing() {
                push(samples, new.sample(took), LENGTH);
            }
        }
        push(all, sum.sample(took), LENGTH);
    }

    /// The number of the last sample, and the samples after `after` by site, the sum of all under the empty name first.
    pub fn after(&self, after: u64) -> (u64, Vec<SiteSamples>) {
        let recorded = self.lock();
        let number = recorded.last.map_or(0, |(_, number)| number);
        let new = usize::try_from(number.saturating_sub(after)).unwrap_or(LENGTH);
        let newest = |samples: &VecDeque<Sample>| {
            samples.range(samples.len().saturating_sub(new)..).copied().collect::<Vec<_>>()
        };
        let sites = recorded.sites.iter().filter(|(site, series)| !site.is_empty() && !series.samples.is_empty());
        let sites = sites.map(|(site, series)| (site.clone(), newest(&series.samples)));
        (number, std::iter::once(("".into(), newest(&recorded.all))).chain(sites).collect())
    }

    /// Sites with tunnels open: the site, all of them, and those that are calls.
    pub fn open(&self) -> Vec<(Arc<str>, usize, usize)> {
        let recorded = self.lock();
        let open = recorded.sites.iter().map(|(site, series)| {
            let read = |cell: &AtomicUsize| cell.load(Ordering::Relaxed);
            (site.clone(), read(&series.totals.tunnels), read(&series.totals.calls))
        });
        open.filter(|(_, tunnels, _)| *tunnels > 0).collect()
    }

    /// Keeps an error.
    pub fn failed(&self, error: RecentError) {
        push(&mut self.lock().errors, error, ERRORS);
    }

    /// The last errors, the newest first.
    pub fn errors(&self) -> Vec<RecentError> {
        self.lock().errors.iter().rev().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Recorded> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn push<T>(kept: &mut VecDeque<T>, new: T, limit: usize) {
    if kept.len() == limit {
        kept.pop_front();
    }
    kept.push_back(new);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_what_happened_since_the_one_before() {
        let traffic = Traffic::default();
        let (busy, _idle) = (traffic.totals(&"busy.example".into()), traffic.totals(&"idle.example".into()));
        let start = Instant::now();
        traffic.sample(start);
        for _ in 0..99 {
            busy.answered(Duration::from_millis(7));
        }
        busy.answered(Duration::from_secs(3));
        busy.moved(10, 2000);
        traffic.sample(start + Duration::from_secs(5));
        assert_eq!(traffic.after(0).0, 0);
        traffic.sample(start + INTERVAL);
        let (number, sites) = traffic.after(0);
        let names: Vec<&str> = sites.iter().map(|(site, _)| &**site).collect();
        assert_eq!((number, names), (1, vec!["", "busy.example"]));
        let [sample] = sites[1].1[..] else { panic!("{sites:?}") };
        assert_eq!((sample, sample.rate, sample.bytes_out), (sites[0].1[0], 10.0, 2000));
        assert!(sample.p50.is_some_and(|p50| (5.0..10.0).contains(&p50)), "{sample:?}");
        assert!(sample.p99.is_some_and(|p99| (9.9..10.1).contains(&p99)), "{sample:?}");
        for n in 2..=200 {
            traffic.sample(start + n * INTERVAL);
        }
        assert_eq!(traffic.after(0).1[1].1.len(), LENGTH);
        assert_eq!(traffic.after(199).1[1].1, [Sample::default()]);
        assert!(traffic.after(200).1[1].1.is_empty());
    }

    #[test]
    fn the_last_fifty_errors_are_kept() {
        let traffic = Traffic::default();
        for status in 0..70 {
            traffic.failed(RecentError {
                at: OffsetDateTime::UNIX_EPOCH,
                request_id: String::new(),
                site: String::new(),
                method: String::new(),
                uri: String::new(),
                status,
                reason: String::new(),
            });
        }
        let errors = traffic.errors();
        assert_eq!((errors.len(), errors[0].status, errors[49].status), (50, 69, 20));
    }
}
