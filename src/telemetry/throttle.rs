//! Log lines that strangers can cause: at most one in a while for each address, and for a bounded number of addresses.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How many addresses are remembered. Above it, new ones are logged only once old ones are forgotten: a flood from a
/// botnet is not worth a flood of lines.
const REMEMBERED: usize = 1024;

/// Lets one log line through for each address and interval.
#[derive(Debug)]
pub struct LogThrottle {
    interval: Duration,
    last: Mutex<HashMap<IpAddr, Instant>>,
}

impl LogThrottle {
    /// A throttle that lets one line through in this time.
    #[must_use]
    pub fn new(interval: Duration) -> Self {
        Self { interval, last: Mutex::default() }
    }

    /// Whether a line about this address may be written now.
    pub fn allows(&self, ip: IpAddr) -> bool {
        let now = Instant::now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let is_recent = |at: &Instant| now.duration_since(*at) < self.interval;
        if last.get(&ip).is_some_and(is_recent) {
            return false;
        }
        if last.len() >= REMEMBERED {
            last.retain(|_, at| is_recent(at));
            if last.len() >= REMEMBERED {
                return false;
            }
        }
        last.insert(ip, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_address_is_logged_once_in_a_while() {
        let throttle = LogThrottle::new(Duration::from_secs(60));
        let ip = |n: u32| IpAddr::from(n.to_be_bytes());
        assert!(throttle.allows(ip(1)) && !throttle.allows(ip(1)) && throttle.allows(ip(2)));
        tokio::time::advance(Duration::from_secs(61)).await;
        assert!(throttle.allows(ip(1)));
        let logged = (0..5_000).filter(|n| throttle.allows(ip(*n))).count();
        assert!(logged < REMEMBERED);
        assert!(throttle.last.lock().unwrap().len() <= REMEMBERED);
        tokio::time::advance(Duration::from_secs(61)).await;
        assert!(throttle.allows(ip(4_999)), "the table does not stay full");
    }
}
