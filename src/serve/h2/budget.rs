//! Counts the frames of a peer against what they move, so that nobody keeps us busy with frames that move nothing.
//! Memory is bounded elsewhere; this bounds time.

use std::time::Duration;

use tokio::time::Instant;

use crate::wire::h2::{FrameHeader, flag, kind};

/// Frames without progress that a connection may send at once: far above what a browser does when it opens, or cancels a
/// page of thumbnails; far below what makes a core busy.
const BURST: i64 = 2_000;

/// Of those, how many come back each second: RFC 9113 section 6.7 leaves room for pings, and a client measures its
/// round-trip time with a few of them.
const PER_SECOND: i64 = 20;

/// What a request earns, and what cancelling one costs: a connection may cancel half of what it asks for, for ever, and
/// several hundred requests in a row (rapid reset, CVE-2023-44487).
const REQUEST: i64 = 10;
const CANCEL: i64 = 20;

/// A window update is earned by this many bytes that we sent.
const BYTES_PER_UPDATE: usize = 1024;

/// What a connection may still send.
pub struct FrameBudget {
    left: i64,
    earned: usize,
    since: Instant,
}

/// Nothing is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetExhausted;

impl FrameBudget {
    /// The budget of a new connection.
    pub fn new() -> Self {
        Self { left: BURST, earned: 0, since: Instant::now() }
    }

    /// We sent this many bytes, which the peer may acknowledge.
    pub fn wrote(&mut self, bytes: usize) {
        self.earned += bytes;
        self.earn((self.earned / BYTES_PER_UPDATE).try_into().unwrap_or(i64::MAX));
        self.earned %= BYTES_PER_UPDATE;
    }

    /// The peer sent this frame.
    ///
    /// # Errors
    /// Its budget is spent.
    pub fn read(&mut self, header: FrameHeader) -> Result<(), BudgetExhausted> {
        match header.kind {
            kind::DATA if header.len > 0 || header.has(flag::END_STREAM) => self.earn(1),
            kind::HEADERS => self.earn(REQUEST),
            kind::RST_STREAM => self.left -= CANCEL,
            // Empty DATA, PRIORITY, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION, and whatever else.
            _ => self.left -= 1,
        }
        if self.left >= 0 {
            return Ok(());
        }
        let seconds = self.since.elapsed().as_secs();
        self.since += Duration::from_secs(seconds);
        self.earn(i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(PER_SECOND));
        if self.left < 0 { Err(BudgetExhausted) } else { Ok(()) }
    }

    fn earn(&mut self, n: i64) {
        self.left = self.left.saturating_add(n).min(BURST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, len: usize) -> FrameHeader {
        FrameHeader { len, kind, flags: 0, stream: 1 }
    }

    #[tokio::test(start_paused = true)]
    async fn floods_are_seen() {
        let of_all =
            [(kind::PING, 8), (kind::SETTINGS, 0), (kind::DATA, 0), (kind::PRIORITY, 5), (kind::CONTINUATION, 1)];
        for (kind, len) in of_all {
            let mut budget = FrameBudget::new();
            assert!((0..3_000).any(|_| budget.read(frame(kind, len)).is_err()), "{kind}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn rapid_reset_is_seen() {
        let mut budget = FrameBudget::new();
        let pair = [frame(kind::HEADERS, 10), frame(kind::RST_STREAM, 4)];
        assert!((0..1_000).any(|_| pair.iter().any(|frame| budget.read(*frame).is_err())));
    }

    #[tokio::test(start_paused = true)]
    async fn honest_work_goes_on_for_ever() {
        let mut budget = FrameBudget::new();
        let update = frame(kind::WINDOW_UPDATE, 4);
        for _ in 0..10_000 {
            [frame(kind::HEADERS, 30), update, update].iter().for_each(|frame| budget.read(*frame).unwrap());
            budget.wrote(4096);
        }
        for _ in 0..10_000 {
            [frame(kind::DATA, 200), frame(kind::PING, 8)].iter().for_each(|frame| budget.read(*frame).unwrap());
        }
        for _ in 0..1_000 {
            tokio::time::advance(Duration::from_secs(1)).await;
            (0..PER_SECOND).for_each(|_| budget.read(frame(kind::PING, 8)).unwrap());
        }
    }
}
