//! `vestibule doctor`, put together: hands the probes their clients, and lets them look.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use http::{HeaderValue, header};
use tokio::net::lookup_host;

use crate::{
    cert,
    client::{self, Destination},
    clock::Clock,
    config::{
        Plan,
        plan::{self, Action, Challenge, Server, SiteTls, UpstreamHost},
    },
    conn::Fetch,
    doctor::{
        self, ClientFactory, ConnectTls, Diagnosis, InspectTls, LastingRecord, ProbeOptions, ProbeTargets, Progress,
        Resolve, Service,
    },
    error::{self, ProxyError, chain},
};

/// Bound on a question, from the dial to the head of its answer.
const QUESTION: Duration = Duration::from_secs(10);

/// Bound on a question that is a long poll of a minute.
const LONG_POLL: Duration = Duration::from_secs(90);

/// Bound on a handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// A name that leads elsewhere than DNS says, as curl's `--resolve` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirection {
    host: String,
    port: u16,
    to: Vec<SocketAddr>,
}

impl std::str::FromStr for Redirection {
    type Err = String;

    /// `HOST:PORT:ADDRESS[,ADDRESS…]`; `*` is every host, and an address may have a port of its own.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "write HOST:PORT:ADDRESS, for instance example.org:443:192.0.2.1".to_owned();
        let (host, rest) = text.split_once(':').ok_or_else(wrong)?;
        let (port, to) = rest.split_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        let address = |to: &str| {
            let ip = to.trim_matches(['[', ']']).parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port));
            ip.or_else(|_| to.parse()).map_err(|_| wrong())
        };
        let to = to.split(',').map(address).collect::<Result<_, _>>()?;
        Ok(Self { host: host.to_ascii_lowercase(), port, to })
    }
}

/// How doctor sees the world, where that is not as everybody else does.
#[derive(Debug, Default)]
pub struct ProbeOverrides {
    /// Names that lead elsewhere; the last that fits decides.
    pub resolve: Vec<Redirection>,
    /// Who is asked for SRV records; the name server of the system unless this is set.
    pub nameserver: Option<SocketAddr>,
    /// PEM roots that are trusted besides the system's.
    pub ca_file: Option<PathBuf>,
}

/// Looks at the deployment of a plan.
///
/// # Errors
/// `ca_file` cannot be used.
pub async fn checkup(
    plan: &Plan,
    wanted: &ProbeOptions,
    lens: ProbeOverrides,
    progress: Progress<'_>,
) -> Result<Diagnosis, client::RootsError> {
    let clock = Clock::system();
    let roots = roots(plan, &lens, &clock)?;
    let map = Arc::new(lens.resolve);
    let reach = ProbeTargets {
        authorities: authorities(plan, &roots, &map),
        lasting_records: lasting_records(plan).await,
        resolve: resolve(map.clone()),
        via: via(&roots, QUESTION, map.clone()),
        patient: via(&roots, LONG_POLL, map),
        look: look(roots.clone()),
        connect_tls: connect_tls(roots.clone()),
        nameserver: match lens.nameserver {
            Some(nameserver) => Some(nameserver),
            None => client::dns::system_nameserver().await,
        },
        services: services(plan, &roots),
        clock,
    };
    Ok(doctor::examine(plan, &reach, wanted, progress).await)
}

/// The directories of the CAs. One whose roots cannot be read is asked with those of all others, and told.
fn authorities(plan: &Plan, roots: &client::Roots, map: &Arc<Vec<Redirection>>) -> Vec<(String, Fetch)> {
    let directories = plan.acme.directories.iter();
    let one = |directory: &plan::Directory| {
        let own = directory.ca_file.as_deref().and_then(|file| client::Roots::with(Some(file), None).ok());
        let via = via(own.as_ref().unwrap_or(roots), QUESTION, map.clone());
        (directory.url.clone(), via(None))
    };
    directories.map(one).collect()
}

/// What the records of dns-persist-01 are like, where the file permits that challenge.
async fn lasting_records(plan: &Plan) -> Vec<(String, LastingRecord)> {
    if !plan.acme.challenges.contains(&Challenge::DnsPersist01) {
        return Vec::new();
    }
    let store = cert::Store::new(plan.storage.clone());
    let mut found = Vec::new();
    let is_ordered = |site: &&plan::Site| site.tls == SiteTls::Acme && site.host.address().is_none();
    for site in plan.sites.iter().filter(is_ordered) {
        let host = site.host.as_str();
        for directory in &plan.acme.directories {
            let record = cert::check_dns_record(&store, plan.acme.dns.as_ref(), &directory.url, host).await;
            let record = match record {
                Ok(None) => LastingRecord::Right,
                Ok(Some(wrong)) => LastingRecord::Wrong(wrong),
                Err(error) => LastingRecord::Unknown(chain(&error)),
            };
            found.push((host.to_owned(), record));
        }
    }
    found
}

/// The system's roots, those of a private CA, and our own where a site has its certificate from there.
fn roots(plan: &Plan, lens: &ProbeOverrides, clock: &Clock) -> Result<client::Roots, client::RootsError> {
    let internal = plan.sites.iter().any(|site| site.tls == SiteTls::Internal);
    let own = internal.then(|| cert::known_root_pem(&cert::Store::new(plan.storage.clone()), clock)).flatten();
    client::Roots::with(lens.ca_file.as_deref(), own.as_deref())
}

fn redirected<'a>(map: &'a [Redirection], host: &str, port: u16) -> Option<&'a [SocketAddr]> {
    let fits = |one: &&Redirection| one.port == port && (one.host == "*" || one.host.eq_ignore_ascii_case(host));
    map.iter().rev().find(fits).map(|one| one.to.as_slice())
}

fn resolve(map: Arc<Vec<Redirection>>) -> Resolve {
    Arc::new(move |host, port| {
        let map = map.clone();
        Box::pin(async move {
            if let Some(addresses) = redirected(&map, &host, port) {
                return Ok(addresses.to_vec());
            }
            let addresses = lookup_host((host.as_str(), port)).await?;
            Ok(addresses.collect())
        })
    })
}

fn via(roots: &client::Roots, limit: Duration, map: Arc<Vec<Redirection>>) -> ClientFactory {
    let roots = roots.clone();
    Arc::new(move |address| {
        let map = map.clone();
        let at = move |host: &str, port| address.or_else(|| redirected(&map, host, port)?.first().copied());
        let resolve = Arc::new(move |host: &str, port| at(host, port).map(Destination::Address));
        client::Builder::new(roots.clone(), limit).resolve(resolve).build()
    })
}

fn look(roots: client::Roots) -> InspectTls {
    Arc::new(move |address, host| {
        let roots = roots.clone();
        Box::pin(async move { client::inspect(address, &host, &roots, HANDSHAKE).await })
    })
}

fn connect_tls(roots: client::Roots) -> ConnectTls {
    Arc::new(move |address, host| {
        let roots = roots.clone();
        Box::pin(async move { client::connect_tls(address, &host, &roots).await })
    })
}

/// Every server of every route that leads to one, each on its own: one that is down must not hide behind another.
fn services(plan: &Plan, roots: &client::Roots) -> Vec<Service> {
    let mut services = Vec::new();
    for (site, route) in plan.sites.iter().flat_map(|site| site.routes.iter().map(move |route| (site, route))) {
        let Action::Proxy(upstream) = &route.action else { continue };
        let of_server = clients(upstream, roots);
        services.extend(upstream.servers.iter().map(|server| Service {
            host: site.host.as_str().to_owned(),
            port: site.port,
            prefix: route.prefix.clone(),
            kind: route.kind,
            server: server.to_string(),
            client: of_server(server),
        }));
    }
    services
}

/// Clients of one server each, whatever host the URL names; that host becomes the `Host` field unless the upstream has
/// another. HTTP/1.1 and TLS as the edge speaks them.
fn clients(upstream: &plan::Upstream, roots: &client::Roots) -> impl Fn(&Server) -> Fetch {
    let tls = upstream.tls.as_deref().map(|tls| client::TlsClient::load(tls, roots).map_err(|error| chain(&error)));
    move |server| {
        let tls = match &tls {
            Some(Err(reason)) => return unusable(reason.clone()),
            Some(Ok(tls)) => Some(tls.clone()),
            None => None,
        };
        let destination = server.clone();
        let resolve = Arc::new(move |_: &str, _| Some(Destination::Server(destination.clone())));
        let builder = client::Builder::new(roots.clone(), QUESTION).resolve(resolve).http1_only();
        let fetch = if let Some(tls) = tls { builder.tls(tls) } else { builder }.build();
        let host = match &upstream.host {
            UpstreamHost::OfRequest => return fetch,
            UpstreamHost::OfServer => server.authority(),
            UpstreamHost::Fixed(host) => host.clone(),
        };
        let host = HeaderValue::try_from(host).expect("a host is made of letters, digits and marks");
        Arc::new(move |mut request| {
            request.fields.insert(header::HOST, (&host).into());
            fetch(request)
        })
    }
}

/// The client of a server that nobody can reach.
fn unusable(reason: String) -> Fetch {
    Arc::new(move |_| {
        let error = ProxyError::new(error::Kind::Connect, reason.clone());
        Box::pin(std::future::ready(Err(error)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_can_be_led_elsewhere() {
        let map: Vec<Redirection> = ["*:443:192.0.2.1", "a.example:443:[::1]", "a.example:80:127.0.0.1:8080"]
            .map(|text| text.parse().unwrap())
            .into();
        let leads = |host, port| redirected(&map, host, port).map(|to| to[0].to_string());
        assert_eq!(leads("b.example", 443).as_deref(), Some("192.0.2.1:443"));
        assert_eq!(leads("A.example", 443).as_deref(), Some("[::1]:443"));
        assert_eq!(leads("a.example", 80).as_deref(), Some("127.0.0.1:8080"));
        assert_eq!(leads("b.example", 80), None);
        assert!("a.example:443".parse::<Redirection>().is_err());
    }
}
