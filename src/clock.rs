//! Time: of day, as a value that is handed in so that a test can move it, and patience with what does not move.
//!
//! Certificates are judged by the calendar; everything that only measures a span uses `tokio::time::Instant` instead.

use std::{
    fmt,
    future::Future as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, Sleep, sleep_until};

/// Tells the time of day. Cloning shares the same source.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// The machine's own clock.
    #[must_use]
    pub fn system() -> Self {
        #[expect(clippy::disallowed_methods, reason = "the one place that asks the machine")]
        Self(Arc::new(SystemTime::now))
    }

    /// A clock that a test moves.
    pub fn of(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        (self.0)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// Runs out when nothing has moved for a while. Judges by progress and never by a total: there is no limit on how long
/// something may take that goes on. A timer exists only once something has been waited for.
#[derive(Debug)]
pub struct Patience {
    limit: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
    armed: bool,
}

impl Patience {
    /// Patience for so long; `None` never runs out.
    #[must_use]
    pub const fn new(limit: Option<Duration>) -> Self {
        Self { limit, timer: None, armed: false }
    }

    /// Something moved.
    pub const fn moved(&mut self) {
        self.armed = false;
    }

    /// Ready once nothing has moved for the limit, counted from the first poll after the last movement.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(limit) = self.limit else { return Poll::Pending };
        if self.armed {
            return self.timer.as_mut().map_or(Poll::Pending, |timer| timer.as_mut().poll(cx));
        }
        self.armed = true;
        let at = Instant::now() + limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        timer.as_mut().reset(at);
        timer.as_mut().poll(cx)
    }
}
