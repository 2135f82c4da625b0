//! When something is to be done about a certificate. Pure: facts and the time in, an action out.

use std::time::{Duration, SystemTime};

/// Minutes between failed orders; the last one repeats. Half a day of failures costs a dozen orders, far below any CA's
/// limit of failed validations an hour.
const BACK_OFF_MINUTES: [u64; 11] = [1, 2, 2, 5, 10, 20, 30, 60, 120, 240, 360];

/// How often a CA is asked when it wants a certificate renewed that does not say how often (RFC 9773 section 4.3.2).
pub const ASK_AGAIN: Duration = Duration::from_secs(6 * 3600);

/// When the CA is asked again that said when it wants to be: within sane bounds, as RFC 9773 section 4.3.2 advises.
#[must_use]
pub fn ask_again(wanted: Duration) -> Duration {
    wanted.clamp(Duration::from_secs(60), Duration::from_secs(24 * 3600))
}

/// What is known of a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Begin and end of the certificate that is held.
    pub validity: Option<(SystemTime, SystemTime)>,
    /// The instant that was picked from the CA's window.
    pub renew_at: Option<SystemTime>,
    /// No order before this.
    pub not_before: Option<SystemTime>,
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
pub fn next(facts: &Facts, now: SystemTime) -> Action {
    let due = match facts.validity {
        None => now,
        Some(validity) => due(validity, facts.renew_at),
    };
    match facts.not_before.map_or(due, |not_before| due.max(not_before)) {
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

    fn facts(begin: u64, end: u64) -> Facts {
        Facts { validity: Some((at(begin), at(end))), ..Facts::default() }
    }

    const DAY: u64 = 86_400;

    #[test]
    fn a_certificate_is_renewed_in_its_time() {
        for (facts, now, action) in [
            (Facts::default(), 5, Action::Order),
            (facts(0, 90 * DAY), 59 * DAY, Action::Wait(at(60 * DAY))),
            (facts(0, 90 * DAY), 60 * DAY, Action::Order),
            // Six days, and ninety seconds.
            (facts(0, 6 * DAY), 4 * DAY - 1, Action::Wait(at(4 * DAY))),
            (facts(0, 90), 59, Action::Wait(at(60))),
            (facts(0, 90), 60, Action::Order),
            // Expired.
            (facts(0, 90), 1_000, Action::Order),
            // The CA wants it earlier, or later; but never in the last twentieth.
            (Facts { renew_at: Some(at(10)), ..facts(0, 90 * DAY) }, 10, Action::Order),
            (Facts { renew_at: Some(at(80 * DAY)), ..facts(0, 90 * DAY) }, 70 * DAY, Action::Wait(at(80 * DAY))),
            (
                Facts { renew_at: Some(at(89 * DAY)), ..facts(0, 90 * DAY) },
                80 * DAY,
                Action::Wait(at(85 * DAY + DAY / 2)),
            ),
            // A limit of the CA is kept, even without a certificate.
            (Facts { not_before: Some(at(50)), ..Facts::default() }, 5, Action::Wait(at(50))),
            (Facts { not_before: Some(at(50)), ..facts(0, 30) }, 40, Action::Wait(at(50))),
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
    fn failures_wait_longer_and_longer() {
        let minutes: Vec<_> = (1..=13).map(|n| back_off(n, 0.5).as_secs() / 60).collect();
        assert_eq!(minutes, [1, 2, 2, 5, 10, 20, 30, 60, 120, 240, 360, 360, 360]);
        assert!(back_off(1, 0.0) < back_off(1, 1.0));
    }
}
