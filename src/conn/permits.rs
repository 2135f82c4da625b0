//! Bounds on sockets, so that descriptors never run out: on those of clients, and on those that are dialled for them.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// How many sockets one network may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PerNetwork {
    /// As many as there are.
    Unlimited,
    /// So many.
    AtMost(usize),
    /// As many as there are until three quarters of all are taken, and from then on an eighth of all: one client whose
    /// requests each need a socket must not be what the others run out of sockets by.
    FairShare,
}

/// A number of sockets that may be open at once, shared by all workers.
#[derive(Debug, Clone)]
pub struct Permits(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    open: AtomicUsize,
    bounds: Mutex<Bounds>,
    total: AtomicUsize,
}

#[derive(Debug)]
struct Bounds {
    per_network: PerNetwork,
    by_network: HashMap<IpAddr, usize>,
}

/// One open socket; frees its place when dropped.
#[derive(Debug)]
pub struct Permit {
    inner: Arc<Inner>,
    network: Option<IpAddr>,
}

/// The bound that a socket would pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    /// All are taken.
    #[error("all sockets are in use")]
    Total,
    /// The client has as many as it may.
    #[error("the client's share of the sockets is in use")]
    Share,
}

impl Permits {
    /// Bounds in all and per network; IPv6 counts by /64, which is what one customer has.
    #[must_use]
    pub fn new(total: usize, per_network: PerNetwork) -> Self {
        let bounds = Mutex::new(Bounds { per_network, by_network: HashMap::new() });
        Self(Arc::new(Inner { open: AtomicUsize::new(0), bounds, total: AtomicUsize::new(total) }))
    }

    /// Changes the bounds; what is open stays.
    pub fn set(&self, total: usize, per_network: PerNetwork) {
        self.0.total.store(total, Ordering::Relaxed);
        self.0.bounds().per_network = per_network;
    }

    /// A place for a socket of which it is not known yet who is behind it.
    ///
    /// # Errors
    /// [`Exhausted::Total`].
    pub fn try_acquire(&self) -> Result<Permit, Exhausted> {
        let inner = &self.0;
        if inner.open.fetch_add(1, Ordering::Relaxed) >= inner.total.load(Ordering::Relaxed) {
            inner.open.fetch_sub(1, Ordering::Relaxed);
            return Err(Exhausted::Total);
        }
        Ok(Permit { inner: inner.clone(), network: None })
    }

    /// A place for a socket of this client, or for its sake.
    ///
    /// # Errors
    /// Either bound is reached.
    pub fn try_acquire_for(&self, client: IpAddr) -> Result<Permit, Exhausted> {
        let mut permit = self.try_acquire()?;
        permit.count_for(client)?;
        Ok(permit)
    }

    /// How many are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.0.open.load(Ordering::Relaxed)
    }

    /// Whether so many are taken that none should be kept for later.
    #[must_use]
    pub fn is_scarce(&self) -> bool {
        is_scarce(self.open(), self.0.total.load(Ordering::Relaxed))
    }
}

impl Permit {
    /// Counts the socket for this client from now on.
    ///
    /// # Errors
    /// [`Exhausted::Share`]; the permit stays as it was.
    pub fn count_for(&mut self, client: IpAddr) -> Result<(), Exhausted> {
        self.release_share();
        let mut bounds = self.inner.bounds();
        let most = match bounds.per_network {
            PerNetwork::Unlimited => return Ok(()),
            PerNetwork::AtMost(most) => most,
            PerNetwork::FairShare => {
                let (open, total) = (self.inner.open.load(Ordering::Relaxed), self.inner.total.load(Ordering::Relaxed));
                if is_scarce(open, total) { (total / 8).max(1) } else { usize::MAX }
            }
        };
        let network = network(client);
        let open = bounds.by_network.entry(network).or_default();
        if *open >= most {
            return Err(Exhausted::Share);
        }
        *open += 1;
        drop(bounds);
        self.network = Some(network);
        Ok(())
    }

    /// The socket is nobody's in particular from now on: it waits to be used again.
    pub fn release_share(&mut self) {
        let Some(network) = self.network.take() else { return };
        let by_network = &mut self.inner.bounds().by_network;
        if let Some(open) = by_network.get_mut(&network) {
            *open -= 1;
            if *open == 0 {
                by_network.remove(&network);
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.release_share();
        self.inner.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Inner {
    fn bounds(&self) -> MutexGuard<'_, Bounds> {
        self.bounds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const fn is_scarce(open: usize, total: usize) -> bool {
    open > total / 4 * 3
}

/// What the sockets of one client are counted by.
#[must_use]
pub fn network(ip: IpAddr) -> IpAddr {
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
        let permits = Permits::new(2, PerNetwork::Unlimited);
        let first = permits.try_acquire_for(ip("192.0.2.1")).unwrap();
        let _second = permits.try_acquire().unwrap();
        assert_eq!(permits.try_acquire_for(ip("192.0.2.2")).unwrap_err(), Exhausted::Total);
        drop(first);
        assert!(permits.try_acquire_for(ip("192.0.2.2")).is_ok());
        assert_eq!(permits.open(), 1);
    }

    #[test]
    fn one_network_cannot_take_every_place() {
        let permits = Permits::new(10, PerNetwork::AtMost(1));
        let one = permits.try_acquire_for(ip("2001:db8::1")).unwrap();
        assert_eq!(permits.try_acquire_for(ip("2001:db8::2")).unwrap_err(), Exhausted::Share);
        assert_eq!(permits.open(), 1, "what was refused holds no place");
        assert!(permits.try_acquire_for(ip("2001:db8:0:1::2")).is_ok());
        drop(one);
        assert!(permits.try_acquire_for(ip("2001:db8::2")).is_ok());
        assert_eq!(permits.open(), 0);
        assert!(permits.0.bounds().by_network.is_empty());
    }

    #[test]
    fn a_share_is_fair_only_once_sockets_are_scarce() {
        let permits = Permits::new(40, PerNetwork::FairShare);
        let mut greedy = Vec::new();
        while let Ok(permit) = permits.try_acquire_for(ip("192.0.2.1")) {
            greedy.push(permit);
        }
        assert_eq!(greedy.len(), 30, "three quarters");
        let modest: Vec<_> = (0..6).map(|_| permits.try_acquire_for(ip("192.0.2.2"))).collect();
        assert_eq!(modest.iter().filter(|permit| permit.is_ok()).count(), 5, "an eighth");
        greedy.iter_mut().for_each(Permit::release_share);
        assert!(permits.try_acquire_for(ip("192.0.2.1")).is_ok(), "what only waits is nobody's");
    }
}
