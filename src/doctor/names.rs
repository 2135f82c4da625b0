//! Public names: how they are written, and what was seen of them.

use std::net::SocketAddr;

use http::Uri;

use crate::{
    config::Plan,
    conn::{PeerCertificate, TlsFailure},
};

/// How a public name can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reachability {
    /// There.
    At(SocketAddr),
    /// Not in a way that is worth trying, and why.
    Broken(String),
}

/// What was seen of a name.
pub struct NameReport {
    /// The name.
    pub host: String,
    /// The port that clients use.
    pub port: u16,
    /// Where the name leads.
    pub addresses: Result<Vec<SocketAddr>, String>,
    /// What each address shows.
    pub outside: Vec<(SocketAddr, Result<PeerCertificate, TlsFailure>)>,
    /// What the edge itself shows, where the name is one of its own and it could be asked.
    pub inside: Option<(SocketAddr, Result<PeerCertificate, TlsFailure>)>,
}

/// The host and the port of a URL.
pub fn authority(url: &str) -> Option<(String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let port = uri.port_u16().unwrap_or_else(|| if uri.scheme_str() == Some("http") { 80 } else { 443 });
    Some((uri.host()?.trim_matches(['[', ']']).to_ascii_lowercase(), port))
}

/// The public address of a site.
pub fn origin(plan: &Plan, host: &str) -> String {
    match plan.listen.public_port {
        443 => format!("https://{host}"),
        port => format!("https://{host}:{port}"),
    }
}

/// Where clients look for the documents of the server name.
pub fn server_name_origin(plan: &Plan, server_name: &str) -> String {
    let host = server_name.split(':').next().unwrap_or(server_name);
    let ours = plan.sites.iter().any(|site| site.host.as_str() == host);
    if ours { origin(plan, host) } else { format!("https://{host}") }
}
