//! Which of several endpoints comes next. Pure.

use crate::config::plan::Balance;

/// An endpoint as the choice sees it.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// Whether it is believed to answer.
    pub up: bool,
    /// Requests in flight.
    pub in_flight: usize,
}

/// The index of the one to try. `turn` counts the choices made so far; it breaks ties, so that equals take turns. When
/// none is believed to answer, all are tried: the belief may be old, and an error page helps nobody.
///
/// # Panics
/// There is no candidate.
#[must_use]
pub fn pick(how: Balance, candidates: &[Candidate], turn: usize) -> usize {
    let any_up = candidates.iter().any(|candidate| candidate.up);
    let len = candidates.len();
    let in_turn = (0..len).map(|step| (turn + step) % len).filter(|index| candidates[*index].up || !any_up);
    match how {
        Balance::RoundRobin => in_turn.into_iter().next(),
        Balance::LeastRequests => in_turn.min_by_key(|index| candidates[*index].in_flight),
    }
    .expect("an upstream has at least one endpoint")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(list: &[(bool, usize)]) -> Vec<Candidate> {
        list.iter().map(|(up, in_flight)| Candidate { up: *up, in_flight: *in_flight }).collect()
    }

    #[test]
    fn the_least_busy_is_picked_and_equals_take_turns() {
        let busy = candidates(&[(true, 3), (true, 1), (true, 1)]);
        let picks: Vec<_> = (0..4).map(|turn| pick(Balance::LeastRequests, &busy, turn)).collect();
        assert_eq!(picks, [1, 1, 2, 1]);
        let picks: Vec<_> = (0..4).map(|turn| pick(Balance::RoundRobin, &busy, turn)).collect();
        assert_eq!(picks, [0, 1, 2, 0]);
    }

    #[test]
    fn who_is_down_is_passed_over_until_all_are() {
        let one_up = candidates(&[(false, 0), (true, 9), (false, 0)]);
        for turn in 0..3 {
            assert_eq!(pick(Balance::LeastRequests, &one_up, turn), 1);
            assert_eq!(pick(Balance::RoundRobin, &one_up, turn), 1);
        }
        let none_up = candidates(&[(false, 0), (false, 0)]);
        assert_eq!(pick(Balance::RoundRobin, &none_up, 1), 1);
    }
}
