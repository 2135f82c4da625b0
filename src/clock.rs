//! Time: of day, as a value that is handed in so that a test can move it, and limits on what does not move.
//!
//! Certificates are judged by the calendar; everything that only measures a span uses `tokio::time::Instant` instead.

use std::{
    fmt,
    future::Future as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
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
///
/// Nearly every wait ends by itself, so the timer is lazy: it stays where it is when something moves, and is set on when
/// it rings too early. To take it out and put it in for each wait cost 150 instructions each time, and a timer for each
/// exchange an allocation. What it costs instead is that its task may be woken for nothing, once in the time of a limit.
#[derive(Debug)]
pub struct IdleTimer {
    limit: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
    /// When it runs out; nothing, while nothing is waited for.
    until: Option<Instant>,
}

impl IdleTimer {
    /// A timer of this length; `None` never ends.
    #[must_use]
    pub const fn new(limit: Option<Duration>) -> Self {
        Self { limit, timer: None, until: None }
    }

    /// Something else is waited for from now on, for so long.
    pub const fn begin(&mut self, limit: Option<Duration>) {
        self.limit = limit;
        self.until = None;
    }

    /// Something moved.
    pub const fn moved(&mut self) {
        self.until = None;
    }

    /// Ready once nothing has moved for the limit, counted from the first poll after the last movement.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(limit) = self.limit else { return Poll::Pending };
        let until = *self.until.get_or_insert_with(|| Instant::now() + limit);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if timer.deadline() > until {
            timer.as_mut().reset(until);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= until {
                return Poll::Ready(());
            }
            timer.as_mut().reset(until);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    async fn wait(timer: &mut IdleTimer) -> Duration {
        let began = Instant::now();
        poll_fn(|cx| timer.poll(cx)).await;
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_that_rings_early_is_set_on() {
        let mut timer = IdleTimer::new(Some(LIMIT));
        for _ in 0..3 {
            let some = tokio::time::timeout(LIMIT - Duration::from_secs(1), poll_fn(|cx| timer.poll(cx))).await;
            assert!(some.is_err(), "it ran out although something moved");
            timer.moved();
        }
        let took = wait(&mut timer).await;
        assert!((LIMIT..LIMIT + Duration::from_millis(5)).contains(&took), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_shorter_wait_does_not_wait_for_the_timer_of_a_longer_one() {
        let mut timer = IdleTimer::new(Some(LIMIT));
        assert!(poll_fn(|cx| Poll::Ready(timer.poll(cx))).await.is_pending());
        timer.begin(Some(LIMIT / 2));
        let took = wait(&mut timer).await;
        assert!((LIMIT / 2..LIMIT / 2 + Duration::from_millis(5)).contains(&took), "{took:?}");
        timer.begin(None);
        assert!(poll_fn(|cx| Poll::Ready(timer.poll(cx))).await.is_pending());
    }
}
