//! Look-ups of names, afresh for every dial and yet bounded: at most one is under way for each server.
//!
//! A look-up takes a thread for as long as the resolver pleases, and cannot be taken back when its request is. Dials that
//! come while one is under way wait for it, and share the next one, which begins after they asked and is as fresh as one of
//! their own.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    sync::Arc,
};

use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    task::spawn_blocking,
    time::Instant,
};

use crate::error::UnresolvedName;

/// Resolves the name of one server.
#[derive(Debug, Default)]
pub struct Resolver(Arc<Mutex<Option<Lookup>>>);

/// The last look-up.
#[derive(Debug)]
struct Lookup {
    began: Instant,
    found: Result<Vec<SocketAddr>, UnresolvedName>,
}

impl Resolver {
    /// The addresses of a name as they are now.
    ///
    /// # Errors
    /// The name does not resolve.
    pub async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let host = host.to_owned();
        let look_up = move || {
            let found = (host.as_str(), port).to_socket_addrs().map(Iterator::collect);
            found.map_err(|error| UnresolvedName::new(host.as_str(), &error))
        };
        self.share(look_up).await
    }

    async fn share(
        &self,
        look_up: impl FnOnce() -> Result<Vec<SocketAddr>, UnresolvedName> + Send + 'static,
    ) -> io::Result<Vec<SocketAddr>> {
        let asked = Instant::now();
        let mut last: OwnedMutexGuard<_> = self.0.clone().lock_owned().await;
        if let Some(lookup) = last.as_ref()
            && lookup.began >= asked
        {
            return lookup.found.clone().map_err(io::Error::other);
        }
        // The guard goes along: a dial that is given up leaves its look-up to end by itself, and none begins beside it.
        let looking_up = spawn_blocking(move || {
            let began = Instant::now();
            let found = look_up();
            *last = Some(Lookup { began, found: found.clone() });
            found
        });
        looking_up.await.map_err(io::Error::other)?.map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use super::*;

    #[tokio::test]
    async fn look_ups_are_shared_and_one_at_a_time() {
        let resolver = Arc::new(Resolver::default());
        let (made, running) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let ask = || {
            let (resolver, made, running) = (resolver.clone(), made.clone(), running.clone());
            async move {
                let look_up = move || {
                    assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0, "two at once");
                    std::thread::sleep(Duration::from_millis(20));
                    running.fetch_sub(1, Ordering::SeqCst);
                    let n = made.fetch_add(1, Ordering::SeqCst);
                    if n == 1 {
                        Err(UnresolvedName::new("a.example", &io::Error::other("no such name")))
                    } else {
                        Ok(Vec::new())
                    }
                };
                resolver.share(look_up).await
            }
        };
        // The first is given up at once, a hundred times.
        for _ in 0..100 {
            let given_up = tokio::time::timeout(Duration::from_millis(1), ask()).await;
            assert!(given_up.is_err() || made.load(Ordering::SeqCst) > 0);
            if made.load(Ordering::SeqCst) > 0 {
                break;
            }
        }
        let all = futures_util::future::join_all((0..100).map(|_| ask())).await;
        assert!(made.load(Ordering::SeqCst) <= 4, "{} look-ups for two hundred dials", made.load(Ordering::SeqCst));
        assert_eq!(all.len(), 100);
    }

    #[tokio::test]
    async fn an_address_is_no_name() {
        let resolver = Resolver::default();
        assert_eq!(resolver.resolve("192.0.2.1", 80).await.unwrap(), ["192.0.2.1:80".parse().unwrap()]);
        assert_eq!(resolver.resolve("::1", 80).await.unwrap(), ["[::1]:80".parse().unwrap()]);
        assert!(resolver.resolve("name.invalid", 80).await.is_err());
    }
}
