//! The certificate of a name, for a handshake: a map behind one atomic pointer.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwap;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::address;

type Map = HashMap<Arc<str>, Arc<CertifiedKey>>;

/// All certificates that are served, and those that answer a validation by the CA.
#[derive(Debug, Default)]
pub struct Resolver {
    names: ArcSwap<Map>,
    challenges: ArcSwap<HashMap<Arc<str>, Arc<PublishedChallenge>>>,
}

/// A certificate that proves a name, and how many have come to see it.
#[derive(Debug)]
struct PublishedChallenge {
    key: Arc<CertifiedKey>,
    seen: AtomicUsize,
}

impl Resolver {
    /// Whether a name has a certificate. Lower case, without a trailing dot.
    #[must_use]
    pub fn knows(&self, host: &str) -> bool {
        find(&self.names.load(), host).is_some()
    }

    /// The certificate of a name: lower case, without a trailing dot.
    #[must_use]
    pub fn certificate(&self, host: &str) -> Option<Arc<CertifiedKey>> {
        find(&self.names.load(), host).cloned()
    }

    pub(super) fn set(&self, host: &Arc<str>, key: Arc<CertifiedKey>) {
        self.names.rcu(|map| {
            let mut map = Map::clone(map);
            map.insert(host.clone(), key.clone());
            map
        });
    }

    pub(super) fn offer(&self, host: &Arc<str>, key: Arc<CertifiedKey>) {
        let offered = Arc::new(PublishedChallenge { key, seen: AtomicUsize::new(0) });
        self.challenges.rcu(|map| {
            let mut map = HashMap::clone(map);
            map.insert(host.clone(), offered.clone());
            map
        });
    }

    #[cfg(test)]
    pub(super) fn offers(&self, host: &str) -> bool {
        self.challenges.load().contains_key(host)
    }

    /// Takes the proof back; how many have seen it.
    pub(super) fn withdraw(&self, host: &str) -> usize {
        let before = self.challenges.rcu(|map| {
            let mut map = HashMap::clone(map);
            map.remove(host);
            map
        });
        before.get(host).map_or(0, |offered| offered.seen.load(Ordering::Relaxed))
    }

    pub(super) fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.names.rcu(|map| {
            let mut map = Map::clone(map);
            map.retain(|host, _| keep(host));
            map
        });
    }
}

/// The certificate of a name itself, or that of the wildcard above it.
fn find<'m>(map: &'m Map, host: &str) -> Option<&'m Arc<CertifiedKey>> {
    map.get(host).or_else(|| {
        let (_, parent) = host.split_once('.')?;
        map.get(format!("*.{parent}").as_str())
    })
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name()?.trim_end_matches('.');
        let validation = hello.alpn().is_some_and(|mut offered| offered.any(|protocol| protocol == b"acme-tls/1"));
        if validation {
            let offered = self.challenges.load().get(&*address::validated_host(name)).cloned()?;
            offered.seen.fetch_add(1, Ordering::Relaxed);
            return Some(offered.key.clone());
        }
        let map = self.names.load();
        match find(&map, name) {
            None if name.bytes().any(|b| b.is_ascii_uppercase()) => find(&map, &name.to_ascii_lowercase()).cloned(),
            found => found.cloned(),
        }
    }
}
