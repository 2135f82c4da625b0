//! Decides when a certificate is renewed. Pure: facts and the time go in, an action comes out.

use std::time::{Duration, SystemTime};

/// Minutes between failed orders; the last one repeats. Half a day of failures costs a dozen orders, far below any CA's
/// limit of failed validations an hour.
const BACK_OFF_MINUTES: [u64; 11] = [1, 2, 2, 5, 10, 20, 30, 60, 120, 240, 360];

/// No task sleeps longer without reading the clock again: it may have been set meanwhile. Comparing costs nothing.
pub const MAX_SLEEP: Duration = Duration::from_secs(60);

/// Time between two orders of a name in one process, whatever the clock and the certificates say.
pub const MIN_BETWEEN_ORDERS: Duration = Duration::from_secs(10);

/// After a certificate that was already due when it was issued: Let's Encrypt issues five certificates a week for the
/// same name. A clock that is set right meanwhile ends the wait, since the certificate is then no longer due.
const CLOCK_BACK_OFF: Duration = Duration::from_secs(36 * 3600);

/// No CA has us wait for longer, whatever it says, and no file either: the clock may have been wrong when it was written.
pub const LONGEST_WAIT: Duration = Duration::from_secs(7 * 24 * 3600);

/// How often a CA is asked when it wants a certificate renewed that does not say how often (RFC 9773 section 4.3.2).
pub const ASK_AGAIN: Duration = Duration::from_secs(6 * 3600);

/// When the CA is asked again that said when it wants to be: within sane bounds, as RFC 9773 section 4.3.2 advises.
#[must_use]
pub fn ask_again(wanted: Duration) -> Duration {
    wanted.clamp(Duration::from_secs(60), Duration::from_secs(24 * 3600))
}

/// What is known of a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScheduleInput {
    /// Begin and end of the certificate that is held.
    pub validity: Option<(SystemTime, SystemTime)>,
    /// The instant that was picked from the CA's window.
    pub renew_at: Option<SystemTime>,
    /// No order before this.
    pub not_before: Option<SystemTime>,
    /// When the CA last had a certificate replaced before its time.
    pub hurried: Option<SystemTime>,
    /// The CA that issued it is none of those that are configured now.
    pub moved: bool,
    /// Thousandths of the time over which renewals are spread, where the CA names no window.
    pub spread: u16,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Place an order.
    Order,
    /// Nothing before this.
    Wait(SystemTime),
}

/// What to do now.
#[must_use]
pub fn next(facts: &ScheduleInput, now: SystemTime) -> Action {
    let due = match facts.validity {
        Some(validity) if !facts.moved => due(validity, facts.renew_at, facts.spread),
        // A CA is changed because the old one is not the right one: staging, for a first try.
        _ => now,
    };
    let not_before = facts.not_before.filter(|at| *at <= now + LONGEST_WAIT);
    match not_before.map_or(due, |not_before| due.max(not_before)) {
        at if at <= now => Action::Order,
        at => Action::Wait(at),
    }
}

/// When a certificate is renewed: at the instant picked from the CA's window, else with a third of its life left, less up
/// to a thirtieth by `spread`, so that certificates that were issued together are not renewed together; and in any case
/// with a twentieth left, whatever the CA says.
#[must_use]
pub fn due((begin, end): (SystemTime, SystemTime), renew_at: Option<SystemTime>, spread: u16) -> SystemTime {
    let life = end.duration_since(begin).unwrap_or_default();
    let spread = life / 30 * u32::from(spread.min(1000)) / 1000;
    renew_at.unwrap_or(end - life / 3 + spread).min(end - life / 20)
}

/// How long a task sleeps that has something to do `at`, and nothing for the span `rest` whatever the clock says.
#[must_use]
pub fn sleep_for(at: SystemTime, now: SystemTime, rest: Duration) -> Duration {
    at.duration_since(now).unwrap_or_default().max(rest).min(MAX_SLEEP)
}

/// Whether a certificate is due at the moment it is issued: the clock is wrong, or the CA's is.
#[must_use]
pub fn is_stillborn(validity: (SystemTime, SystemTime), now: SystemTime) -> bool {
    due(validity, None, 0) <= now
}

/// How long to wait after a certificate that was already due: a third of its lifetime at most.
#[must_use]
pub fn clock_back_off((begin, end): (SystemTime, SystemTime)) -> Duration {
    (end.duration_since(begin).unwrap_or_default() / 3).min(CLOCK_BACK_OFF)
}

/// An instant from the CA's window (RFC 9773 section 4.2), `fraction` of the way through it; `None` for a window that
/// makes no sense. One that has passed means now.
#[must_use]
pub fn pick(window: (SystemTime, SystemTime), end: SystemTime, now: SystemTime, fraction: f64) -> Option<SystemTime> {
    let (from, to) = window;
    let length = to.duration_since(from).ok().filter(|length| !length.is_zero())?;
    if from >= end {
        return None;
    }
    Some((from + length.mul_f64(fraction.clamp(0.0, 1.0))).max(now.min(to)))
}

/// The picked instant, kept from becoming a habit: a CA that wants every certificate replaced at once, the new one
/// included, gets one such order a day, or in a third of a shorter lifetime.
#[must_use]
pub fn paced(picked: SystemTime, (begin, end): (SystemTime, SystemTime), hurried: Option<SystemTime>) -> SystemTime {
    let life = end.duration_since(begin).unwrap_or_default();
    let pause = (life / 3).min(Duration::from_secs(24 * 3600));
    hurried.map_or(picked, |at| picked.max(at + pause))
}

/// Whether an order placed now is one that only the CA's window asks for.
#[must_use]
pub fn is_hurried(facts: &ScheduleInput, now: SystemTime) -> bool {
    let early = |(begin, end): (SystemTime, SystemTime)| now < end - end.duration_since(begin).unwrap_or_default() / 3;
    facts.renew_at.is_some_and(|at| at <= now) && facts.validity.is_some_and(early)
}

/// How long to wait after so many failures in a row, up to a tenth more or less by `fraction`.
#[must_use]
pub fn back_off(failures: u32, fraction: f64) -> Duration {
    let step = usize::try_from(failures.saturating_sub(1)).unwrap_or(usize::MAX).min(BACK_OFF_MINUTES.len() - 1);
    Duration::from_secs(60 * BACK_OFF_MINUTES[step]).mul_f64(0.9 + 0.2 * fraction.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn facts(begin: u64, end: u64) -> ScheduleInput {
        ScheduleInput { validity: Some((at(begin), at(end))), ..ScheduleInput::default() }
    }

    const DAY: u64 = 86_400;

    #[test]
    fn a_certificate_is_renewed_in_its_time() {
        for (facts, now, action) in [
            (ScheduleInput::default(), 5, Action::Order),
            (facts(0, 90 * DAY), 59 * DAY, Action::Wait(at(60 * DAY))),
            (facts(0, 90 * DAY), 60 * DAY, Action::Order),
            // Six days, and ninety seconds.
            (facts(0, 6 * DAY), 4 * DAY - 1, Action::Wait(at(4 * DAY))),
            (facts(0, 90), 59, Action::Wait(at(60))),
            (facts(0, 90), 60, Action::Order),
            // Expired.
            (facts(0, 90), 1_000, Action::Order),
            // The CA wants it earlier, or later; but never in the last twentieth.
            (ScheduleInput { renew_at: Some(at(10)), ..facts(0, 90 * DAY) }, 10, Action::Order),
            (
                ScheduleInput { renew_at: Some(at(80 * DAY)), ..facts(0, 90 * DAY) },
                70 * DAY,
                Action::Wait(at(80 * DAY)),
            ),
            (
                ScheduleInput { renew_at: Some(at(89 * DAY)), ..facts(0, 90 * DAY) },
                80 * DAY,
                Action::Wait(at(85 * DAY + DAY / 2)),
            ),
            // A limit of the CA is kept, even without a certificate.
            (ScheduleInput { not_before: Some(at(50)), ..ScheduleInput::default() }, 5, Action::Wait(at(50))),
            (ScheduleInput { not_before: Some(at(50)), ..facts(0, 30) }, 40, Action::Wait(at(50))),
            // One that no CA can have meant is not.
            (ScheduleInput { not_before: Some(at(900 * DAY)), ..ScheduleInput::default() }, 5, Action::Order),
            // Another CA is configured than the one that issued it.
            (ScheduleInput { moved: true, ..facts(0, 90 * DAY) }, DAY, Action::Order),
            (
                ScheduleInput { moved: true, not_before: Some(at(DAY + 9)), ..facts(0, 90 * DAY) },
                DAY,
                Action::Wait(at(DAY + 9)),
            ),
        ] {
            assert_eq!(next(&facts, at(now)), action, "{facts:?} at {now}");
        }
    }

    #[test]
    fn windows_that_make_no_sense_are_passed_over() {
        for (window, now, expected) in [
            ((100, 200), 0, Some(150)),
            ((100, 200), 180, Some(180)),
            ((100, 200), 500, Some(200)),
            ((200, 100), 0, None),
            ((100, 100), 0, None),
            ((1_000, 2_000), 0, None),
        ] {
            let picked = pick((at(window.0), at(window.1)), at(900), at(now), 0.5);
            assert_eq!(picked, expected.map(at), "{window:?} at {now}");
        }
    }

    #[test]
    fn six_days_are_enough_for_every_step() {
        // The CA asks for half the lifetime, or for nothing; it forgets; it is away for a day.
        for (renew_at, not_before, now, action) in [
            (None, None, 4 * DAY, Action::Order),
            (Some(3 * DAY), None, 3 * DAY - 1, Action::Wait(at(3 * DAY))),
            (Some(3 * DAY), None, 3 * DAY, Action::Order),
            (Some(3 * DAY), Some(3 * DAY + 6 * 3600), 3 * DAY, Action::Wait(at(3 * DAY + 6 * 3600))),
            (Some(9 * DAY), None, 5 * DAY, Action::Wait(at(6 * DAY - 6 * DAY / 20))),
            (Some(9 * DAY), None, 6 * DAY - 6 * DAY / 20, Action::Order),
        ] {
            let facts =
                ScheduleInput { renew_at: renew_at.map(at), not_before: not_before.map(at), ..facts(0, 6 * DAY) };
            assert_eq!(next(&facts, at(now)), action, "{facts:?} at {now}");
        }
        // Five failures in a row are over long before the last twentieth (7.2 hours) begins.
        let tries: u64 = (1..=5).map(|n| back_off(n, 1.0).as_secs()).sum();
        assert!(tries < 3600, "{tries}");
    }

    #[test]
    fn a_ca_in_a_hurry_is_followed_once_a_day() {
        let long = (at(0), at(90 * DAY));
        for (picked, hurried, validity, expected) in [
            (10, None, long, 10),
            (10, Some(5), long, 5 + DAY),
            (5 * DAY, Some(5), long, 5 * DAY),
            (10, Some(5), (at(0), at(90)), 35),
        ] {
            assert_eq!(paced(at(picked), validity, hurried.map(at)), at(expected), "{picked} after {hurried:?}");
        }
        let asked = ScheduleInput { renew_at: Some(at(10)), ..facts(0, 90 * DAY) };
        assert!(is_hurried(&asked, at(10)) && !is_hurried(&asked, at(9)) && !is_hurried(&asked, at(60 * DAY)));
        assert!(!is_hurried(&facts(0, 90 * DAY), at(10)));
    }

    #[test]
    fn renewals_of_one_day_are_spread() {
        let life = (at(0), at(90 * DAY));
        assert_eq!(due(life, None, 0), at(60 * DAY));
        assert_eq!(due(life, None, 1000), at(63 * DAY));
        assert_eq!(due(life, Some(at(50 * DAY)), 1000), at(50 * DAY), "the CA's window is spread by itself");
    }

    /// A name under a clock that `jumps` at these seconds of real time; the real seconds of its orders in a day. Each
    /// certificate is valid for 90 days of `ca` time.
    fn orders_of_a_day(jumps: &[(u64, i64)], ca: u64) -> Vec<u64> {
        const START: u64 = 1_800_000_000;
        let (mut facts, mut failures, mut orders) = (ScheduleInput::default(), 0, Vec::new());
        let (mut real, mut rest_until) = (0, 0);
        while real < DAY {
            let shift: i64 = jumps.iter().filter(|(from, _)| *from <= real).map(|(_, by)| by).sum();
            let now = at(START.checked_add_signed(i64::try_from(real).unwrap() + shift).unwrap());
            let wait = match next(&facts, now) {
                Action::Order if rest_until <= real => {
                    orders.push(real);
                    let begin = ca + real;
                    facts = facts_of(begin);
                    let mut rest = MIN_BETWEEN_ORDERS;
                    if is_stillborn(facts.validity.unwrap(), now) {
                        failures += 1;
                        rest = back_off(failures, 0.5).max(clock_back_off(facts.validity.unwrap()));
                        facts.not_before = Some(now + rest);
                    }
                    rest_until = real + rest.as_secs();
                    Duration::from_secs(1)
                }
                Action::Order => sleep_for(now, now, Duration::from_secs(rest_until - real)),
                Action::Wait(until) => sleep_for(until, now, Duration::ZERO),
            };
            assert!(wait <= MAX_SLEEP);
            real += wait.as_secs().max(1);
        }
        orders
    }

    fn facts_of(begin: u64) -> ScheduleInput {
        facts(begin, begin + 90 * DAY)
    }

    #[test]
    fn no_clock_makes_a_name_order_again_and_again() {
        const CA: u64 = 1_800_000_000;
        const YEAR: i64 = 366 * 86_400;
        assert_eq!(orders_of_a_day(&[], CA), [0]);
        // The clock is a year ahead, or behind; the CA issues what has expired.
        assert_eq!(orders_of_a_day(&[(0, YEAR)], CA), [0]);
        assert_eq!(orders_of_a_day(&[(0, -YEAR)], CA), [0]);
        assert_eq!(orders_of_a_day(&[], CA - 100 * DAY), [0]);
        // It jumps ahead and back again, many times.
        let jumps: Vec<_> = (1..20).map(|n| (n * 1000, if n % 2 == 1 { YEAR } else { -YEAR })).collect();
        assert!(orders_of_a_day(&jumps, CA).len() <= 2, "{:?}", orders_of_a_day(&jumps, CA));
        // A clock ahead that is set right makes a good certificate good, without another order.
        assert_eq!(orders_of_a_day(&[(0, YEAR), (600, -YEAR)], CA), [0]);
    }

    #[test]
    fn failures_wait_longer_and_longer() {
        let minutes: Vec<_> = (1..=13).map(|n| back_off(n, 0.5).as_secs() / 60).collect();
        assert_eq!(minutes, [1, 2, 2, 5, 10, 20, 30, 60, 120, 240, 360, 360, 360]);
        assert!(back_off(1, 0.0) < back_off(1, 1.0));
    }
}
