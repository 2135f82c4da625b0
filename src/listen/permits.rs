//! How many connections there may be: in all, so that descriptors never run out, and per address.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Descriptors that no client may use: listeners, logs, the storage, the admin's door, and a few upstream connections.
const RESERVE: u64 = 64;

/// What one proxied connection uses: the client's socket and the upstream's.
const PER_CONNECTION: u64 = 2;

/// How many connections there may be, by configuration or by the file limit of the process, whichever is less. Raises the
/// soft limit to the hard one first.
#[must_use]
pub fn connection_limit(configured: Option<usize>) -> usize {
    let files = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(1024);
    let by_files = files.saturating_sub(RESERVE).max(PER_CONNECTION) / PER_CONNECTION;
    let by_files = usize::try_from(by_files).unwrap_or(usize::MAX);
    configured.map_or(by_files, |configured| configured.min(by_files))
}

/// Bounds on connections, shared by all workers.
#[derive(Debug, Clone)]
pub struct Permits(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    open: AtomicUsize,
    total: AtomicUsize,
    per_ip: AtomicUsize,
    by_ip: Mutex<HashMap<IpAddr, usize>>,
}

/// One open connection; frees its place when dropped.
#[derive(Debug)]
pub struct Permit {
    inner: Arc<Inner>,
    key: Option<IpAddr>,
}

impl Permits {
    /// Bounds in all and per address; IPv6 counts by /64, which is what one customer has.
    #[must_use]
    pub fn new(total: usize, per_ip: Option<usize>) -> Self {
        let permits = Self(Arc::new(Inner {
            open: AtomicUsize::new(0),
            total: AtomicUsize::new(0),
            per_ip: AtomicUsize::new(0),
            by_ip: Mutex::default(),
        }));
        permits.set(total, per_ip);
        permits
    }

    /// Changes the bounds; what is open stays.
    pub fn set(&self, total: usize, per_ip: Option<usize>) {
        self.0.total.store(total, Ordering::Relaxed);
        self.0.per_ip.store(per_ip.unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    /// A place for a connection from this address, or `None` when there is none.
    #[must_use]
    pub fn try_acquire(&self, ip: IpAddr) -> Option<Permit> {
        let inner = &self.0;
        if inner.open.fetch_add(1, Ordering::Relaxed) >= inner.total.load(Ordering::Relaxed) {
            inner.open.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let per_ip = inner.per_ip.load(Ordering::Relaxed);
        let mut permit = Permit { inner: inner.clone(), key: None };
        if per_ip != usize::MAX {
            let key = network(ip);
            let mut by_ip = inner.by_ip();
            let open = by_ip.entry(key).or_default();
            if *open >= per_ip {
                return None;
            }
            *open += 1;
            permit.key = Some(key);
        }
        Some(permit)
    }

    /// How many are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.0.open.load(Ordering::Relaxed)
    }
}

impl Inner {
    fn by_ip(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.by_ip.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.inner.open.fetch_sub(1, Ordering::Relaxed);
        let Some(key) = self.key else { return };
        let mut by_ip = self.inner.by_ip();
        if let Some(open) = by_ip.get_mut(&key) {
            *open -= 1;
            if *open == 0 {
                by_ip.remove(&key);
            }
        }
    }
}

fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn places_are_bounded_in_all_and_come_back() {
        let permits = Permits::new(2, None);
        let first = permits.try_acquire(ip("192.0.2.1")).unwrap();
        let _second = permits.try_acquire(ip("192.0.2.1")).unwrap();
        assert!(permits.try_acquire(ip("192.0.2.2")).is_none());
        drop(first);
        assert!(permits.try_acquire(ip("192.0.2.2")).is_some());
        assert_eq!(permits.open(), 1);
    }

    #[test]
    fn one_network_cannot_take_every_place() {
        let permits = Permits::new(10, Some(1));
        let one = permits.try_acquire(ip("2001:db8::1")).unwrap();
        assert!(permits.try_acquire(ip("2001:db8::2")).is_none());
        assert!(permits.try_acquire(ip("2001:db8:0:1::2")).is_some());
        drop(one);
        assert!(permits.try_acquire(ip("2001:db8::2")).is_some());
        assert_eq!(permits.open(), 0);
        assert!(permits.0.by_ip().is_empty());
    }
}
