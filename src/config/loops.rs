//! Redirects and upstreams that lead back to this edge: a request would never end.

use std::{collections::HashSet, net::IpAddr};

use http::Uri;

use super::{
    plan::{Listen, Server},
    raw::{Raw, Route, Site},
    tree::{At, Reader},
};

/// Notes every upstream that is a listener or a site of this file, and every circle of redirects once.
pub fn check(raw: &Raw, listen: &Listen, reader: &Reader<'_>) {
    let edge = EdgeMap { sites: &raw.sites, listen };
    let mut reported = HashSet::new();
    for (at, site) in raw.sites.iter().enumerate() {
        for (index, route) in routes(site).enumerate() {
            for upstream in [&route.upstream, &route.mas].into_iter().flatten() {
                edge.check_upstream(&upstream.value.servers, upstream.span.clone(), reader);
            }
            if let Some(redirect) = &route.redirect {
                edge.check_redirect((at, index), redirect, &mut reported, reader);
            }
        }
    }
}

/// A route of a site: their indices.
type Node = (usize, usize);

/// What this edge answers for.
struct EdgeMap<'a> {
    sites: &'a [Site],
    listen: &'a Listen,
}

impl EdgeMap<'_> {
    fn check_upstream(&self, servers: &[Server], span: std::ops::Range<usize>, reader: &Reader<'_>) {
        for server in servers {
            let (tls, host, port) = match server {
                Server::Http { host, port } => (false, host, *port),
                Server::Https { host, port } => (true, host, *port),
                Server::Unix(_) => continue,
            };
            let leads_to = if self.is_listener(host, port) {
                format!(
                    "an address of `listen.{}`",
                    if self.listens(&self.listen.https, host, port) { "https" } else { "http" }
                )
            } else if let Some(site) = self.site(tls, host, port) {
                format!("the site `{}` of this file", self.sites[site].name())
            } else {
                continue;
            };
            let help = "write the address of the service itself, as \"http://synapse:8008\"";
            reader.error_with(span.clone(), format!("the upstream `{server}` leads back here: it is {leads_to}"), help);
        }
    }

    /// Follows a redirect through the sites of this file until it leaves them or comes back.
    fn check_redirect(&self, start: Node, redirect: &At<String>, reported: &mut HashSet<Node>, reader: &Reader<'_>) {
        let start_route = self.route(start);
        let path = start_route.prefix.value.as_str();
        let (mut seen, mut node) = (vec![start], start);
        while let Some(next) = self.route(node).redirect.as_ref().and_then(|origin| self.target(&origin.value, path)) {
            if seen.contains(&next) {
                let first = seen.iter().position(|node| *node == next).unwrap_or_default();
                if !seen[first..].iter().any(|node| reported.contains(node)) {
                    self.report(&seen[first..], path, redirect, reader);
                }
                reported.extend(seen);
                return;
            }
            seen.push(next);
            node = next;
        }
    }

    fn report(&self, circle: &[Node], path: &str, redirect: &At<String>, reader: &Reader<'_>) {
        let place = |node: &Node| format!("{}{}", self.sites[node.0].name(), path.trim_end_matches('/'));
        let message = match circle {
            [one] => format!("`{}` redirects to itself", place(one)),
            several => {
                let way: Vec<_> = several.iter().chain(several.first()).map(place).collect();
                format!("the redirects lead in a circle: {}", way.join(" → "))
            }
        };
        reader.error_with(
            redirect.span.clone(),
            message,
            "redirect to a host that answers, or set an upstream instead",
        );
    }

    fn route(&self, (site, route): Node) -> &Route {
        routes(&self.sites[site]).nth(route).expect("nodes are made of what is there")
    }

    /// The route that takes a path of an origin, if that origin is here and the route redirects the path on.
    fn target(&self, origin: &str, path: &str) -> Option<Node> {
        let uri: Uri = origin.parse().ok()?;
        let tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let site = self.site(tls, uri.host()?, port)?;
        let takes = |route: &Route| {
            let prefix = route.prefix.value.trim_end_matches('/');
            path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let found = routes(&self.sites[site]).enumerate().filter(|(_, route)| takes(route));
        let (index, route) = found.max_by_key(|(_, route)| route.prefix.value.trim_end_matches('/').len())?;
        // On a homeserver's own site the redirect is only for `/`.
        let only_root = route.kind.as_ref().is_some_and(|kind| kind.value.is_homeserver());
        (route.redirect.is_some() && (!only_root || path == "/")).then_some((site, index))
    }

    /// The site that answers for a host and port, by way of the redirect from plain HTTP where it has TLS.
    fn site(&self, tls: bool, host: &str, port: u16) -> Option<usize> {
        let host = host.strip_suffix('.').unwrap_or(host);
        let (addresses, public) =
            if tls { (&self.listen.https, self.listen.public_port) } else { (&self.listen.http, 80) };
        let is_ours = addresses.iter().any(|addr| addr.port() == port) || (port == public && !addresses.is_empty());
        let named = |site: &&Site| site.host.value.as_str().eq_ignore_ascii_case(host) && site.is_on(port);
        let site = self.sites.iter().filter(named).max_by_key(|site| site.port.is_some()).filter(|_| is_ours)?;
        self.sites.iter().position(|other| std::ptr::eq(other, site))
    }

    fn is_listener(&self, host: &str, port: u16) -> bool {
        self.listens(&self.listen.http, host, port) || self.listens(&self.listen.https, host, port)
    }

    /// Whether one of these addresses is this one, as far as it can be known without the network.
    fn listens(&self, addresses: &[std::net::SocketAddr], host: &str, port: u16) -> bool {
        let ip = match host {
            "localhost" => Some(IpAddr::from([127, 0, 0, 1])),
            host => host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical()),
        };
        let Some(ip) = ip else { return false };
        let is_here = |listen: IpAddr| {
            let same = listen.to_canonical() == ip;
            // Everything of 127.0.0.0/8, `::1` and the unspecified addresses lead to this machine.
            let local = ip.is_loopback() || ip.is_unspecified();
            same || (local && listen.is_unspecified()) || (host == "localhost" && listen.is_loopback())
        };
        addresses.iter().any(|addr| addr.port() == port && port != 0 && is_here(addr.ip()))
    }
}

/// The routes of a site, the site itself first.
fn routes(site: &Site) -> impl Iterator<Item = &Route> {
    std::iter::once(&site.root).chain(&site.routes)
}
