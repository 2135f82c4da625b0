//! The preconditions of all other probes: names, addresses, certificates, and whether the services answer.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use futures_util::future::{join, join_all};

use super::{
    Finding, ProbeTargets, Progress, dns,
    names::{NameReport, Reachability, authority, server_name_origin},
    services, tls,
};
use crate::{
    config::{
        Plan,
        plan::{Site, SiteTls},
    },
    error::{ServerFailure, UnresolvedName},
};

/// Which names and services can be reached.
pub struct Preconditions {
    names: HashMap<(String, u16), Reachability>,
    down: HashMap<String, String>,
}

impl Preconditions {
    /// The address of the server of a URL; `None` if its name was not probed.
    ///
    /// # Errors
    /// Why it cannot be reached.
    pub fn way(&self, url: &str) -> Result<Option<SocketAddr>, String> {
        let Some(name) = authority(url) else { return Err(format!("{url} is not a URL")) };
        match self.names.get(&name) {
            Some(Reachability::At(address)) => Ok(Some(*address)),
            Some(Reachability::Broken(reason)) => Err(reason.clone()),
            None => Ok(None),
        }
    }

    /// Why a service is down, if it is.
    pub fn down(&self, server: &str) -> Option<&str> {
        self.down.get(server).map(String::as_str)
    }
}

/// Probes the preconditions.
pub async fn establish(plan: &Plan, reach: &ProbeTargets, progress: Progress<'_>) -> (Preconditions, Vec<Finding>) {
    let names = names(plan);
    let all = names.len() + 1;
    let looks = names.into_iter().map(|((host, port), site)| see(host, port, site, plan, reach));
    let (seen, (down, mut findings)) = join(join_all(looks), services::probe(reach)).await;
    progress("names, certificates, services", all, all);
    let silent = tls::edge_is_down(&seen);
    let mut standings = HashMap::new();
    if silent {
        findings.push(tls::down(plan));
    }
    for seen in seen {
        let standing = if silent {
            Reachability::Broken("vestibule is not running (edge.down)".into())
        } else {
            let resolved = dns::assess(&seen);
            findings.push(resolved.clone());
            let (standing, found) = tls::assess(&seen, &resolved, plan, reach);
            findings.extend(found);
            standing
        };
        standings.insert((seen.host, seen.port), standing);
    }
    (Preconditions { names: standings, down }, findings)
}

/// All public names of the deployment, each with its site if the configuration has one.
fn names(plan: &Plan) -> BTreeMap<(String, u16), Option<&Site>> {
    let mut names = BTreeMap::new();
    if let Some(matrix) = &plan.matrix {
        let urls = [server_name_origin(plan, &matrix.server_name), matrix.homeserver.clone()];
        let others = matrix.rtc_services().map(str::to_owned).chain([format!("https://{}", matrix.federation)]);
        names.extend(urls.into_iter().chain(others).filter_map(|url| authority(&url)).map(|name| (name, None)));
    }
    // The names that a wildcard covers are not known.
    let named = |site: &&Site| site.tls != SiteTls::Off && !site.host.is_wildcard();
    for site in plan.sites.iter().filter(named) {
        names.insert((site.host.as_str().to_owned(), site.port.unwrap_or(plan.listen.public_port)), Some(site));
    }
    names
}

async fn see(host: String, port: u16, site: Option<&Site>, plan: &Plan, reach: &ProbeTargets) -> NameReport {
    let addresses = (reach.resolve)(host.clone(), port).await;
    let addresses = addresses.map_err(|error| ServerFailure::of(&UnresolvedName::new(host.as_str(), &error)));
    let outside =
        addresses.iter().flatten().map(|address| async { (*address, (reach.look)(*address, host.clone()).await) });
    let inside = async {
        let address = site.and_then(|_| ourselves(plan))?;
        Some((address, (reach.look)(address, host.clone()).await))
    };
    let (outside, inside) = join(join_all(outside), inside).await;
    NameReport { host, port, addresses, outside, inside }
}

/// The first TLS address of our own that accepts connections from here without the PROXY protocol.
fn ourselves(plan: &Plan) -> Option<SocketAddr> {
    let address = *plan.listen.https.first()?;
    let ip = match address.ip() {
        // An IPv6 wildcard takes IPv4 as well, and this machine may have no IPv6.
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) | IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        ip => ip,
    };
    let greeted = plan.listen.proxy_protocol.iter().any(|network| network.contains(&ip));
    (!greeted).then(|| SocketAddr::new(ip, address.port()))
}
