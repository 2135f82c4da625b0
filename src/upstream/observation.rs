//! The last observation of an endpoint, for the admin interface and the metrics; it does not influence routing.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::error::{Role, ServerFailure};

/// A service that takes longer than this to accept a connection, or to answer its probe, is slow: on one machine or in one
/// network both take milliseconds.
const SLOW: Duration = Duration::from_secs(1);

/// The condition of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// Nothing has been sent to it yet.
    Untried,
    /// It answers.
    Up,
    /// It answers slowly.
    Slow,
    /// It does not answer.
    Down,
}

/// The state of an endpoint when it was last observed.
#[derive(Debug, Clone)]
pub struct ObservedState {
    /// How it is.
    pub condition: Condition,
    /// Since when.
    pub since: Instant,
    /// Why it is down or slow.
    pub why: Option<String>,
    /// How to fix it, if it is down.
    pub fix: Option<&'static str>,
}

/// The last observation of an endpoint.
#[derive(Debug)]
pub struct Observation(Mutex<ObservedState>);

impl Observation {
    /// Untried until something is seen.
    pub fn new() -> Self {
        Self(Mutex::new(ObservedState { condition: Condition::Untried, since: Instant::now(), why: None, fix: None }))
    }

    /// It has accepted a connection or answered a probe, within this time.
    pub fn answered(&self, took: Duration) {
        if took > SLOW {
            let why = format!("the last connection took {} ms", took.as_millis());
            self.note(Condition::Slow, Some(why), None);
        } else {
            self.note(Condition::Up, None, None);
        }
    }

    /// It has not, and why.
    pub fn failed(&self, failure: &ServerFailure) {
        self.note(Condition::Down, Some(failure.to_string()), Some(failure.fix(Role::Upstream)));
    }

    /// What was seen last.
    pub fn seen(&self) -> ObservedState {
        self.lock().clone()
    }

    fn note(&self, condition: Condition, why: Option<String>, fix: Option<&'static str>) {
        let mut seen = self.lock();
        let since = if seen.condition == condition { seen.since } else { Instant::now() };
        *seen = ObservedState { condition, since, why, fix };
    }

    fn lock(&self) -> MutexGuard<'_, ObservedState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::FailureCause;

    #[tokio::test(start_paused = true)]
    async fn a_condition_is_known_since_it_changed() {
        let observation = Observation::new();
        let start = Instant::now();
        let second = Duration::from_secs(1);
        assert_eq!(observation.seen().condition, Condition::Untried);
        let mut seen = Vec::new();
        for outcome in [Ok(5), Err("refused"), Err("no route"), Ok(3000), Ok(5)] {
            tokio::time::advance(second).await;
            match outcome {
                Ok(millis) => observation.answered(Duration::from_millis(millis)),
                Err(why) => observation.failed(&ServerFailure::new(FailureCause::Refused, why)),
            }
            let now = observation.seen();
            seen.push((now.condition, (now.since - start).as_secs(), now.why.unwrap_or_default()));
        }
        let slow = "the last connection took 3000 ms".to_owned();
        assert_eq!(
            seen,
            [
                (Condition::Up, 1, String::new()),
                (Condition::Down, 2, "refused".to_owned()),
                (Condition::Down, 2, "no route".to_owned()),
                (Condition::Slow, 4, slow),
                (Condition::Up, 5, String::new()),
            ]
        );
    }
}
