//! The certificate of a name, for a handshake: a map behind one atomic pointer.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

type Map = HashMap<Arc<str>, Arc<CertifiedKey>>;

/// All certificates that are served, and those that answer a validation by the CA.
#[derive(Debug, Default)]
pub struct Resolver {
    names: ArcSwap<Map>,
    challenges: ArcSwap<Map>,
}

impl Resolver {
    /// Whether a name has a certificate. Lower case, without a trailing dot.
    #[must_use]
    pub fn knows(&self, host: &str) -> bool {
        self.names.load().contains_key(host)
    }

    pub(super) fn set(&self, host: &Arc<str>, key: Arc<CertifiedKey>) {
        self.names.rcu(|map| {
            let mut map = Map::clone(map);
            map.insert(host.clone(), key.clone());
            map
        });
    }

    pub(super) fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.names.rcu(|map| {
            let mut map = Map::clone(map);
            map.retain(|host, _| keep(host));
            map
        });
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name()?.trim_end_matches('.');
        let validation = hello.alpn().is_some_and(|mut offered| offered.any(|protocol| protocol == b"acme-tls/1"));
        let map = if validation { self.challenges.load() } else { self.names.load() };
        match map.get(name) {
            None if name.bytes().any(|b| b.is_ascii_uppercase()) => {
                map.get(name.to_ascii_lowercase().as_str()).cloned()
            }
            found => found.cloned(),
        }
    }
}
