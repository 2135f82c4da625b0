//! When something is to be done about a certificate. Pure: facts and the time in, an action out.

use std::time::{Duration, SystemTime};

/// Minutes between failed orders; the last one repeats. Half a day of failures costs a dozen orders, far below any CA's
/// limit of failed validations an hour.
const BACK_OFF_MINUTES: [u64; 11] = [1, 2, 2, 5, 10, 20, 30, 60, 120, 240, 360];

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
        Some(validity) if !facts.moved => due(validity, facts.renew_at),
        // A CA is changed because the old one is not the right one: staging, for a first try.
        _ => now,
    };
    let not_before = facts.not_before.filter(|at| *at <= now + LONGEST_WAIT);
    match not_before.map_or(due, |not_before| due.max(not_before)) {
        at if at <= now => Action::Order,
        at => Action::Wait(at),
    }
}

/// When a certificate is renewed: at the instant picked from the CA's window, else with a third of its life left; and in
/// any case with a twentieth left, whatever the CA says.
#[must_use]
pub fn due((begin, end): (SystemTime, SystemTime), renew_at: Option<SystemTime>) -> SystemTime {
    let life = end.duration_since(begin).unwrap_or_default();
    renew_at.unwrap_or(end - life / 3).min(end - life / 20)
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
    fn failures_wait_longer_and_longer() {
        let minutes: Vec<_> = (1..=13).map(|n| back_off(n, 0.5).as_secs() / 60).collect();
        assert_eq!(minutes, [1, 2, 2, 5, 10, 20, 30, 60, 120, 240, 360, 360, 360]);
        assert!(back_off(1, 0.0) < back_off(1, 1.0));
    }
}
