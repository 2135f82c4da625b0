//! What is in DNS for a name: its authoritative servers, the zone that it is in, where an alias leads, and its texts.

use std::{io, net::SocketAddr};

use tokio::net::lookup_host;

use crate::{client::dns, config::plan::Dns};

pub use crate::client::dns::texts;

/// A name and the names above it.
fn parents(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(name), |name| name.split_once('.').map(|(_, parent)| parent))
}

/// The authoritative servers of a name: those of the configuration, or those that the system's name server knows for the
/// closest zone above it. None where nothing can be found from here.
pub async fn servers(dns: &Dns, name: &str) -> Vec<SocketAddr> {
    if !dns.nameservers.is_empty() {
        return dns.nameservers.clone();
    }
    let Some(resolver) = dns::system_nameserver().await else { return Vec::new() };
    for zone in parents(name) {
        // A name server that does not answer for one name will not for its parent.
        let Ok(names) = dns::zone_servers(resolver, zone).await else { return Vec::new() };
        if !names.is_empty() {
            let mut servers = Vec::new();
            for name in names {
                // One address each is enough: the others are the same server.
                servers.extend(lookup_host((name.as_str(), dns::PORT)).await.ok().and_then(|mut found| found.next()));
            }
            return servers;
        }
    }
    Vec::new()
}

/// The zone of a name, as its server says.
pub async fn zone_at(server: SocketAddr, name: &str) -> Option<String> {
    for zone in parents(name) {
        if dns::is_zone(server, zone).await.ok()? {
            return Some(zone.to_owned());
        }
    }
    None
}

/// Where an alias leads, as the first server says that answers.
pub async fn alias(servers: &[SocketAddr], name: &str) -> Option<String> {
    for server in servers {
        if let Ok(target) = dns::alias(*server, name).await {
            return target;
        }
    }
    None
}

/// The texts of a name: at its authoritative servers, or as the system's name server has them.
///
/// # Errors
/// Nobody answers.
pub async fn texts_anywhere(dns: Option<&Dns>, name: &str) -> io::Result<Vec<String>> {
    if let Some(server) = dns.and_then(|dns| dns.nameservers.first()) {
        return texts(*server, name).await;
    }
    match dns::system_nameserver().await {
        Some(server) => texts(server, name).await,
        None => Err(io::Error::other("this machine names no name server")),
    }
}
