//! Decides which name may place an order at a CA next, and when. One scheduler per CA account. Pure: requests and the
//! time go in, decisions come out; it neither sleeps nor reads a clock.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{
    document::{Milliseconds, UnixTime, lenient, lenient_list},
    schedule::LONGEST_WAIT,
};

/// Orders in flight at one CA. Few, so that a hundred names do not open a hundred validations in one second; more than
/// one, because an order spends most of its time waiting for the CA.
pub const ORDERS_AT_ONCE: usize = 4;

/// Time between the starts of two orders: at most five per second, far below the request limits of public CAs (Let's
/// Encrypt: 20 requests a second), since an order takes about eight requests.
pub const ORDER_SPACING: Duration = Duration::from_millis(200);

/// The span over which Let's Encrypt counts new orders: 300 in 3 hours and account.
pub const ORDER_WINDOW: Duration = Duration::from_secs(3 * 3600);

/// Orders in that span there. The rest is left for renewals by hand and for a second machine on the same account.
const ORDERS_PER_WINDOW: usize = 250;

/// The most orders in [`ORDER_WINDOW`] at a CA. One whose limit is not known says 429 when it is reached, and is then
/// left alone for as long as it asks.
#[must_use]
pub fn orders_per_window(directory: &str) -> usize {
    if directory.contains(".letsencrypt.org/") { ORDERS_PER_WINDOW } else { usize::MAX }
}

/// Orders that are remembered: more than any window takes.
const MAX_REMEMBERED: usize = 1000;

/// How urgently a name needs its order: a name without a certificate first, then the certificate that ends first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need(Option<SystemTime>);

impl Need {
    /// The need of a name whose certificate ends at `not_after`; `None` has no certificate.
    #[must_use]
    pub const fn new(not_after: Option<SystemTime>) -> Self {
        Self(not_after)
    }
}

/// The place of a request in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(Need, u64);

/// What a request may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Place the order; [`Scheduler::finish`] has to follow.
    Start,
    /// Ask again after this time, or when another order ends.
    Wait(Duration),
    /// Ask again when another order starts or ends.
    Queued,
}

/// What an account must remember across restarts and share with other processes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pace {
    /// When orders were placed, oldest first.
    orders: VecDeque<SystemTime>,
    /// Until when the CA wants to be left alone, and its reason.
    pause: Option<(SystemTime, String)>,
}

impl Pace {
    /// Notes an order.
    pub fn note(&mut self, now: SystemTime) {
        // To the millisecond, as it is stored: merging must know an order again.
        self.orders.push_back(Milliseconds::rounded(now));
        self.forget(now);
    }

    /// Sends no order before `until`; a shorter pause does not shorten a longer one.
    pub fn pause(&mut self, until: SystemTime, reason: &str, now: SystemTime) {
        if self.paused(now).is_none_or(|(known, _)| known < until) {
            self.pause = Some((until.min(now + LONGEST_WAIT), reason.to_owned()));
        }
    }

    /// The pause that holds now. One that ends later than any CA can mean was written under a wrong clock.
    #[must_use]
    pub fn paused(&self, now: SystemTime) -> Option<(SystemTime, &str)> {
        let (until, reason) = self.pause.as_ref()?;
        (*until > now && *until <= now + LONGEST_WAIT).then_some((*until, reason))
    }

    /// Adds what another process has noted.
    pub fn merge(&mut self, other: &Self, now: SystemTime) {
        let mut orders: Vec<_> = self.orders.iter().chain(&other.orders).copied().collect();
        orders.sort_unstable();
        orders.dedup();
        self.orders = orders.into();
        if let Some((until, reason)) = other.paused(now) {
            self.pause(until, reason, now);
        }
        self.forget(now);
    }

    /// Drops orders that count no longer, and those of a clock that was ahead.
    fn forget(&mut self, now: SystemTime) {
        while self.orders.len() > MAX_REMEMBERED {
            self.orders.pop_front();
        }
        self.orders.retain(|at| *at <= now && *at + ORDER_WINDOW > now);
    }

    /// The form in the storage.
    #[must_use]
    pub fn to_json(&self) -> String {
        let (paused_until, reason) = self.pause.clone().unzip();
        let orders = self.orders.iter().copied().map(UnixTime).collect();
        let document = PaceDocument { orders, paused_until: paused_until.map(UnixTime), reason };
        serde_json::to_string(&document).expect("text and numbers are JSON")
    }

    /// Reads it back; what is damaged counts as nothing, since it only slows orders down.
    #[must_use]
    pub fn from_json(text: &str) -> Self {
        let document: PaceDocument = serde_json::from_str(text).unwrap_or_default();
        let reason = document.reason.unwrap_or_else(|| "the CA asked for it".into());
        Self {
            orders: document.orders.into_iter().map(|at| at.0).collect(),
            pause: document.paused_until.map(|until| (until.0, reason)),
        }
    }
}

/// The file of a pace. Milliseconds, so that merging does not take two orders of one second for one.
#[derive(Default, Serialize, Deserialize)]
struct PaceDocument {
    #[serde(default, deserialize_with = "lenient_list")]
    orders: Vec<Milliseconds>,
    #[serde(default, deserialize_with = "lenient")]
    paused_until: Option<Milliseconds>,
    #[serde(default, deserialize_with = "lenient")]
    reason: Option<String>,
}

/// The queue of one CA account.
#[derive(Debug)]
pub struct Scheduler {
    /// See [`orders_per_window`].
    per_window: usize,
    pace: Pace,
    running: usize,
    waiting: BTreeMap<Ticket, ()>,
    next_ticket: u64,
    last_start: Option<SystemTime>,
}

impl Scheduler {
    /// A queue that lets so many orders pass in [`ORDER_WINDOW`].
    #[must_use]
    pub fn new(per_window: usize) -> Self {
        let (pace, waiting) = (Pace::default(), BTreeMap::new());
        Self { per_window, pace, running: 0, waiting, next_ticket: 0, last_start: None }
    }

    /// Joins the queue. [`leave`](Self::leave) or a [`Decision::Start`] has to follow.
    pub fn join(&mut self, need: Need) -> Ticket {
        let ticket = Ticket(need, self.next_ticket);
        self.next_ticket += 1;
        self.waiting.insert(ticket, ());
        ticket
    }

    /// Leaves the queue without an order.
    pub fn leave(&mut self, ticket: Ticket) {
        self.waiting.remove(&ticket);
    }

    /// What the request with this ticket may do now.
    pub fn decide(&mut self, ticket: Ticket, now: SystemTime) -> Decision {
        if let Some((until, _)) = self.pace.paused(now) {
            return Decision::Wait(since(until, now));
        }
        let is_first = self.waiting.first_key_value().is_some_and(|(first, ())| *first == ticket);
        if !is_first || self.running >= ORDERS_AT_ONCE {
            return Decision::Queued;
        }
        // An instant of a clock that was ahead holds nothing up.
        if let Some(last) = self.last_start.filter(|last| *last <= now && *last + ORDER_SPACING > now) {
            return Decision::Wait(since(last + ORDER_SPACING, now));
        }
        self.pace.forget(now);
        if let Some(oldest) = self.pace.orders.front().filter(|_| self.pace.orders.len() >= self.per_window) {
            return Decision::Wait(since(*oldest + ORDER_WINDOW, now));
        }
        self.waiting.remove(&ticket);
        self.running += 1;
        self.last_start = Some(now);
        self.pace.note(now);
        Decision::Start
    }

    /// An order that was started has ended, well or not.
    pub const fn finish(&mut self) {
        self.running = self.running.saturating_sub(1);
    }

    /// What is shared with other processes.
    pub const fn pace(&mut self) -> &mut Pace {
        &mut self.pace
    }
}

fn since(at: SystemTime, now: SystemTime) -> Duration {
    at.duration_since(now).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    const START: Duration = Duration::from_secs(1_800_000_000);

    /// Runs orders of `needs` that take `each`, in simulated time; the name and the second of every start.
    fn simulate(needs: &[Option<u64>], each: Duration) -> Vec<(usize, Duration)> {
        let mut scheduler = Scheduler::new(ORDERS_PER_WINDOW);
        let end = |end: &Option<u64>| end.map(|days| UNIX_EPOCH + START + Duration::from_secs(days * 86_400));
        let mut waiting: Vec<_> =
            needs.iter().enumerate().map(|(name, need)| (name, scheduler.join(Need::new(end(need))))).collect();
        let (mut running, mut starts, mut at): (Vec<Duration>, Vec<_>, _) = (Vec::new(), Vec::new(), Duration::ZERO);
        while !waiting.is_empty() {
            let now = UNIX_EPOCH + START + at;
            running.retain(|ends| {
                let goes_on = *ends > at;
                if !goes_on {
                    scheduler.finish();
                }
                goes_on
            });
            waiting.retain(|(name, ticket)| {
                let starts_now = scheduler.decide(*ticket, now) == Decision::Start;
                if starts_now {
                    starts.push((*name, at));
                    running.push(at + each);
                }
                !starts_now
            });
            assert!(running.len() <= ORDERS_AT_ONCE);
            at += Duration::from_millis(50);
        }
        starts
    }

    #[test]
    fn sixty_names_begin_one_after_the_other() {
        let starts = simulate(&[None; 60], Duration::from_secs(2));
        let within = |limit| starts.iter().filter(|(_, at)| *at < Duration::from_secs(limit)).count();
        assert_eq!(starts.len(), 60);
        assert_eq!(within(1), ORDERS_AT_ONCE);
        assert!(within(30) >= 48, "four at once, two seconds each: {}", within(30));
    }

    #[test]
    fn quick_orders_are_spaced_as_well() {
        let starts = simulate(&[None; 20], Duration::ZERO);
        assert!(starts.windows(2).all(|pair| pair[1].1 - pair[0].1 >= ORDER_SPACING), "{starts:?}");
    }

    #[test]
    fn names_without_a_certificate_come_first_and_then_what_ends_first() {
        let starts = simulate(&[Some(20), None, Some(3), Some(10), None], Duration::from_secs(1));
        let order: Vec<_> = starts.iter().map(|(name, _)| *name).collect();
        assert_eq!(order, [1, 4, 2, 3, 0]);
    }

    #[test]
    fn no_window_of_three_hours_has_more_orders_than_the_limit() {
        let starts = simulate(&[None; 600], Duration::from_secs(1));
        for (index, (_, at)) in starts.iter().enumerate() {
            let within = starts[index..].iter().filter(|(_, other)| *other < *at + ORDER_WINDOW).count();
            assert!(within <= ORDERS_PER_WINDOW, "{within} from {at:?}");
        }
        assert!(starts.last().unwrap().1 < ORDER_WINDOW * 3, "and no time is lost");
    }

    #[test]
    fn a_pause_holds_every_name_and_survives_the_storage() {
        let now = UNIX_EPOCH + START;
        let mut first = Scheduler::new(ORDERS_PER_WINDOW);
        first.pace().pause(now + Duration::from_secs(90), "rateLimited", now);
        first.pace().pause(now + Duration::from_secs(30), "busy", now);
        let stored = first.pace().to_json();
        let mut second = Scheduler::new(ORDERS_PER_WINDOW);
        second.pace().merge(&Pace::from_json(&stored), now);
        let ticket = second.join(Need::new(None));
        assert_eq!(second.decide(ticket, now), Decision::Wait(Duration::from_secs(90)));
        assert_eq!(second.pace().paused(now).map(|(_, reason)| reason.to_owned()).as_deref(), Some("rateLimited"));
        assert_eq!(second.decide(ticket, now + Duration::from_secs(91)), Decision::Start);
    }

    #[test]
    fn a_clock_that_jumps_back_or_ahead_stops_nothing() {
        let now = UNIX_EPOCH + START;
        let year = Duration::from_secs(366 * 86_400);
        let mut scheduler = Scheduler::new(ORDERS_PER_WINDOW);
        for _ in 0..ORDERS_PER_WINDOW {
            scheduler.pace().note(now + year);
        }
        scheduler.pace().pause(now + year + Duration::from_secs(60), "limit", now + year);
        let first = scheduler.join(Need::new(None));
        assert_eq!(scheduler.decide(first, now), Decision::Start, "what was noted by a clock ahead does not count");
        scheduler.finish();
        let second = scheduler.join(Need::new(None));
        assert_eq!(scheduler.decide(second, now - year), Decision::Start);
    }

    #[test]
    fn orders_of_two_processes_add_up() {
        let now = UNIX_EPOCH + START;
        let (mut one, mut other) = (Pace::default(), Pace::default());
        (0..100).rev().for_each(|n| one.note(now - Duration::from_secs(n)));
        (0..100).rev().for_each(|n| other.note(now - Duration::from_millis(500 + 1000 * n)));
        one.merge(&Pace::from_json(&other.to_json()), now);
        one.merge(&other, now);
        assert_eq!(one.orders.len(), 200);
    }

    #[test]
    fn a_broken_member_costs_itself_alone() {
        let at = |n| UNIX_EPOCH + Duration::from_millis(n);
        let pause = |until, reason: &str| Some((at(until), reason.to_owned()));
        for (text, orders, pause) in [
            (r#"{"orders":[1,2],"paused_until":3,"reason":"r","more":{}}"#, vec![at(1), at(2)], pause(3, "r")),
            (
                r#"{"orders":[1,"x",-1,null,2],"paused_until":3,"reason":4}"#,
                vec![at(1), at(2)],
                pause(3, "the CA asked for it"),
            ),
            (r#"{"orders":{},"paused_until":3,"reason":"r"}"#, vec![], pause(3, "r")),
            (r#"{"orders":[1],"paused_until":"x","reason":"r"}"#, vec![at(1)], None),
            ("{}", vec![], None),
            ("[", vec![], None),
        ] {
            assert_eq!(Pace::from_json(text), Pace { orders: orders.into(), pause }, "{text}");
        }
    }
}
