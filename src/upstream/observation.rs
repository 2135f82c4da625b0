//! What was last seen of an endpoint and since when, for those who watch; nothing is decided by it.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// A service that takes longer than this to accept a connection, or to answer its probe, is slow: on one machine or in one
/// network both take milliseconds.
const SLOW: Duration = Duration::from_secs(1);

/// How an endpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// Nothing has been sent to it yet.
    Untried,
    /// It answers.
    Up,
    /// It answers, and takes long.
    Slow,
    /// It does not answer.
    Down,
}

/// What was last seen of an endpoint.
#[derive(Debug, Clone)]
pub struct Seen {
    /// How it is.
    pub condition: Condition,
    /// Since when.
    pub since: Instant,
    /// Why it is down or slow.
    pub why: Option<String>,
}

/// The last observation of an endpoint.
#[derive(Debug)]
pub struct Observation(Mutex<Seen>);

impl Observation {
    /// Untried until something is seen.
    pub fn new() -> Self {
        Self(Mutex::new(Seen { condition: Condition::Untried, since: Instant::now(), why: None }))
    }

    /// It has accepted a connection or answered a probe, within this time.
    pub fn answered(&self, took: Duration) {
        if took > SLOW {
            self.note(Condition::Slow, Some(format!("the last connection took {} ms", took.as_millis())));
        } else {
            self.note(Condition::Up, None);
        }
    }

    /// It has not, and why.
    pub fn failed(&self, why: String) {
        self.note(Condition::Down, Some(why));
    }

    /// What was seen last.
    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }

    fn note(&self, condition: Condition, why: Option<String>) {
        let mut seen = self.lock();
        if seen.condition != condition {
            *seen = Seen { condition, since: Instant::now(), why };
        } else {
            seen.why = why;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
                Err(why) => observation.failed(why.to_owned()),
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
