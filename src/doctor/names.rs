//! Public names, their origins, and what the probes found about them.

use std::net::SocketAddr;

use http::Uri;

use crate::{config::Plan, conn::PeerCertificate, error::ServerFailure};

/// Whether and where a public name can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reachability {
    /// It answers at this address.
    At(SocketAddr),
    /// It cannot be reached, and why.
    Broken(String),
}

/// What the probes found about a name.
pub struct NameReport {
    /// The name.
    pub host: String,
    /// The port that clients use.
    pub port: u16,
    /// The addresses that the name resolves to.
    pub addresses: Result<Vec<SocketAddr>, ServerFailure>,
    /// The certificate that each address presents.
    pub outside: Vec<(SocketAddr, Result<PeerCertificate, ServerFailure>)>,
    /// The certificate that this machine's own listener presents, if the name is one of its sites.
    pub inside: Option<(SocketAddr, Result<PeerCertificate, ServerFailure>)>,
}

/// The host and port of a URL.
pub fn authority(url: &str) -> Option<(String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let port = uri.port_u16().unwrap_or_else(|| if uri.scheme_str() == Some("http") { 80 } else { 443 });
    Some((uri.host()?.trim_matches(['[', ']']).to_ascii_lowercase(), port))
}

/// The public origin of a site on every port.
pub fn origin(plan: &Plan, host: &str) -> String {
    origin_at(plan, host, None)
}

/// The public origin of a site, which may be on one port only.
pub fn origin_at(plan: &Plan, host: &str, port: Option<u16>) -> String {
    match port.unwrap_or(plan.listen.public_port) {
        443 => format!("https://{host}"),
        port => format!("https://{host}:{port}"),
    }
}

/// The origin at which clients look for the well-known documents of the server name.
pub fn server_name_origin(plan: &Plan, server_name: &str) -> String {
    let host = server_name.split(':').next().unwrap_or(server_name);
    let ours = plan.sites.iter().any(|site| site.host.as_str() == host);
    if ours { origin(plan, host) } else { format!("https://{host}") }
}
