//! Proofs in DNS: the record of an order for DNS-01 (RFC 8555 section 8.4), set and removed by a provider and waited for
//! at the authoritative servers; and the lasting record of dns-persist-01 (draft-ietf-acme-dns-persist), which is set by
//! hand.

mod command;
mod hosted;
mod lookup;
mod persist;
mod update;

pub use self::{
    hosted::Api,
    persist::{Persisted, persist_name, persist_record},
};

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::OwnedMutexGuard,
    time::{Instant, sleep},
};
use tracing::{info, warn};

use crate::{
    config::plan::{Dns, DnsProvider},
    error::CertificateCause,
};

/// Time between two looks at the authoritative servers.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// A chain of `CNAME`s is not followed further: resolvers give up at about as many.
const MAX_ALIASES: usize = 8;

/// Why a record is not where it should be.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The command failed.
    #[error("{0}")]
    Command(String),
    /// The DNS server refused the update.
    #[error("{server} did not take the update of {name}: {reason}")]
    Update {
        /// Which server.
        server: SocketAddr,
        /// Which record.
        name: String,
        /// What it said.
        reason: String,
    },
    /// The API of a provider refused.
    #[error("{api}: {reason}")]
    Api {
        /// Which.
        api: &'static str,
        /// What it said.
        reason: String,
    },
    /// A file with a secret cannot be read.
    #[error("{path} cannot be read")]
    Secret {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The authoritative servers do not have it.
    #[error("{server} does not have the record {name} after {waited_s} s")]
    NotPropagated {
        /// One that does not.
        server: SocketAddr,
        /// Which record.
        name: String,
        /// How long was waited.
        waited_s: u64,
    },
    /// There is no provider.
    #[error("acme.dns names no provider")]
    NoProvider,
}

impl DnsError {
    /// The cause, which decides about the fix.
    pub const fn cause(&self) -> CertificateCause {
        match self {
            Self::Command(_) => CertificateCause::DnsCommand,
            Self::Update { .. } => CertificateCause::DnsUpdate,
            Self::Api { .. } => CertificateCause::DnsApi,
            Self::Secret { .. } => CertificateCause::DnsSecret,
            Self::NotPropagated { .. } => CertificateCause::NotPropagated,
            Self::NoProvider => CertificateCause::NoChallenge,
        }
    }
}

/// A record that was set for an order.
#[derive(Debug)]
pub struct Record {
    name: String,
    value: String,
    /// The turn of a provider that has room for one order's record.
    _turn: Option<OwnedMutexGuard<()>>,
}

/// The name of the record for a host; a wildcard has that of its parent.
#[must_use]
pub fn challenge_name(host: &str) -> String {
    format!("_acme-challenge.{}", host.strip_prefix("*.").unwrap_or(host))
}

/// Sets the record of an order, and waits until the authoritative servers have it. Where `_acme-challenge` is an alias,
/// the record is set where it leads, which may be a zone of its own.
///
/// # Errors
/// The provider fails, or the record does not appear.
pub async fn present(dns: &Dns, api: &Api, host: &str, value: &str, now: SystemTime) -> Result<Record, DnsError> {
    let name = resolve_aliases(dns, challenge_name(host)).await;
    let turn = match &dns.provider {
        Some(DnsProvider::AcmeDns(_)) => Some(api.turn().await),
        _ => None,
    };
    let record = Record { name, value: value.to_owned(), _turn: turn };
    change(dns, api, command::Action::Present, &record, now).await?;
    match wait_for(dns, &record).await {
        Ok(()) => Ok(record),
        Err(error) => {
            remove(dns, api, &record, now).await;
            Err(error)
        }
    }
}

/// Removes a record; a failure is told and nothing else, since the order is over.
pub async fn remove(dns: &Dns, api: &Api, record: &Record, now: SystemTime) {
    if let Err(error) = change(dns, api, command::Action::Cleanup, record, now).await {
        warn!(record = record.name, error = crate::error::chain(&error), "the record of an order cannot be removed");
    }
}

async fn change(
    dns: &Dns,
    api: &Api,
    action: command::Action,
    record: &Record,
    now: SystemTime,
) -> Result<(), DnsError> {
    match dns.provider.as_ref().ok_or(DnsError::NoProvider)? {
        DnsProvider::Command { command, timeout } => {
            command::run(command.clone(), action, record.name.clone(), record.value.clone(), *timeout).await
        }
        DnsProvider::Hosted(host) => api.change(host, action, &record.name, &record.value).await,
        DnsProvider::AcmeDns(account) if action == command::Action::Present => {
            api.update_acme_dns(account, &record.value).await
        }
        // It has no call to remove a value, and forgets all but the last two.
        DnsProvider::AcmeDns(_) => Ok(()),
        DnsProvider::Rfc2136(server) => {
            let zone = match &server.zone {
                Some(zone) => zone.clone(),
                None => lookup::zone_at(server.address, &record.name).await.unwrap_or_else(|| parent(&record.name)),
            };
            update::send(server, &zone, action, &record.name, &record.value, now).await
        }
    }
}

fn parent(name: &str) -> String {
    name.split_once('.').map_or_else(String::new, |(_, parent)| parent.to_owned())
}

async fn resolve_aliases(dns: &Dns, name: String) -> String {
    let mut at = name;
    for _ in 0..MAX_ALIASES {
        let servers = lookup::servers(dns, &at).await;
        match lookup::alias(&servers, &at).await {
            Some(next) => at = next,
            None => break,
        }
    }
    at
}

/// Waits until every authoritative server has the record. Where none can be found or reached from here, the CA is told at
/// once: it finds out by itself.
async fn wait_for(dns: &Dns, record: &Record) -> Result<(), DnsError> {
    let began = Instant::now();
    let mut missing = lookup::servers(dns, &record.name).await;
    if missing.is_empty() {
        info!(record = record.name, "no authoritative server can be asked from here; the CA is told at once");
    }
    loop {
        let mut still = Vec::new();
        for server in missing {
            match lookup::texts(server, &record.name).await {
                Ok(texts) if !texts.contains(&record.value) => still.push(server),
                Ok(_) => {}
                Err(error) => warn!(%server, %error, "an authoritative server does not answer, and is not waited for"),
            }
        }
        let Some(server) = still.first().copied() else { return Ok(()) };
        if began.elapsed() > dns.propagation {
            let waited_s = began.elapsed().as_secs();
            return Err(DnsError::NotPropagated { server, name: record.name.clone(), waited_s });
        }
        missing = still;
        sleep(LOOK_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_proven_at_its_parent() {
        assert_eq!(challenge_name("*.example.org"), "_acme-challenge.example.org");
        assert_eq!(challenge_name("a.example.org"), "_acme-challenge.a.example.org");
    }
}
