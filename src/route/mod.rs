//! Chooses who answers: a site by host, a route by path. Pure; no I/O, nothing is decoded or normalised.
//!
//! Whether a path is allowed at all on its route is judged by `layer/access.rs`.

mod host;
mod path;

pub use host::bare_host;
pub use path::{PathMatcher, is_like, strip};

use std::collections::BTreeMap;

/// The host of the site that answers where no other does.
const CATCH_ALL: &str = "*";

/// Sites by host name or wildcard and by the port on which a request comes, each with its routes by path.
#[derive(Debug)]
pub struct Router<S, R> {
    /// Ordered and not hashed: a handful of names are compared sooner than one is hashed against attackers (750
    /// instructions), and these names are ours.
    hosts: BTreeMap<Box<str>, Vec<Site<S, R>>>,
    /// Without them, a name that is not there costs nothing more.
    has_wildcards: bool,
}

/// What stands behind one host.
#[derive(Debug)]
pub struct Site<S, R> {
    /// What is the same for all of its routes.
    pub site: S,
    /// Its only port; those of a host without one come last.
    port: Option<u16>,
    routes: Vec<(PathMatcher, R)>,
}

impl<S, R> Router<S, R> {
    /// A table of sites: the host, the port if it is on one only, the site, its routes. Hosts are lower case, without a
    /// trailing dot; routes are tried in their order.
    pub fn new(sites: impl IntoIterator<Item = (Box<str>, Option<u16>, S, Vec<(PathMatcher, R)>)>) -> Self {
        let mut hosts = BTreeMap::<Box<str>, Vec<_>>::new();
        for (host, port, site, routes) in sites {
            hosts.entry(host).or_default().push(Site { site, port, routes });
        }
        hosts.values_mut().for_each(|sites| sites.sort_by_key(|site| site.port.is_none()));
        Self { has_wildcards: hosts.keys().any(|host| host.starts_with("*.")), hosts }
    }

    /// The site that a `Host` field or `:authority` names on a port of ours; its case, its port and a trailing dot do not
    /// matter. An exact name wins over a wildcard, which stands for one label, and both over `*`; of one name, the site of
    /// the port wins over that of every port.
    #[must_use]
    pub fn site(&self, authority: &str, port: u16) -> Option<&Site<S, R>> {
        self.find(authority, |site| site.port.is_none_or(|only| only == port))
    }

    /// Whether a name has a site like this one, whatever its port.
    #[must_use]
    pub fn has(&self, authority: &str, is_like: impl Fn(&S) -> bool) -> bool {
        self.find(authority, |site| is_like(&site.site)).is_some()
    }

    fn find(&self, authority: &str, fits: impl Fn(&Site<S, R>) -> bool) -> Option<&Site<S, R>> {
        let host = bare_host(authority);
        let lower_case = || host.bytes().any(|b| b.is_ascii_uppercase()).then(|| host.to_ascii_lowercase());
        let found = self.of_host(host, &fits).or_else(|| match lower_case() {
            Some(host) => self.of_host(&host, &fits).or_else(|| self.wildcard(&host, &fits)),
            None => self.wildcard(host, &fits),
        });
        found.or_else(|| self.of_host(CATCH_ALL, &fits))
    }

    fn wildcard(&self, host: &str, fits: &impl Fn(&Site<S, R>) -> bool) -> Option<&Site<S, R>> {
        let (label, parent) = host.split_once('.').filter(|_| self.has_wildcards)?;
        if label.is_empty() || label == "*" {
            return None;
        }
        self.of_host(&format!("*.{parent}"), fits)
    }

    fn of_host(&self, host: &str, fits: &impl Fn(&Site<S, R>) -> bool) -> Option<&Site<S, R>> {
        self.hosts.get(host)?.iter().find(|site| fits(site))
    }

    /// All sites, in no order.
    pub fn sites(&self) -> impl Iterator<Item = (&str, &Site<S, R>)> {
        self.hosts.iter().flat_map(|(host, sites)| sites.iter().map(move |site| (&**host, site)))
    }
}

impl<S, R> Site<S, R> {
    /// The first route that matches the raw path and accepts the rest of the request.
    #[must_use]
    pub fn route(&self, path: &str, accepts: impl Fn(&R) -> bool) -> Option<&R> {
        self.routes.iter().find(|(matcher, route)| matcher.matches(path) && accepts(route)).map(|(_, route)| route)
    }

    /// All routes with what they match, in their order.
    pub fn routes(&self) -> impl Iterator<Item = (&PathMatcher, &R)> {
        self.routes.iter().map(|(matcher, route)| (matcher, route))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router() -> Router<&'static str, &'static str> {
        let prefix = |text: &str| PathMatcher::Prefix(text.into());
        let routes = |list: &[(&str, &'static str)]| list.iter().map(|(p, r)| (prefix(p), *r)).collect();
        Router::new([
            (
                "matrix.example.org".into(),
                None,
                "hs",
                routes(&[("/livekit/jwt", "jwt"), ("/livekit", "lk"), ("/", "synapse")]),
            ),
            ("example.org".into(), None, "apex", routes(&[("/only", "only")])),
        ])
    }

    #[test]
    fn a_host_is_found_whatever_its_case_port_or_dot() {
        let router = router();
        for host in ["matrix.example.org", "Matrix.EXAMPLE.org:443", "matrix.example.org.", "matrix.example.org.:8448"]
        {
            assert_eq!(router.site(host, 443).unwrap().site, "hs", "{host}");
        }
        for host in ["", "example.com", "xmatrix.example.org", "matrix.example.org.evil", "matrix.example.org.."] {
            assert!(router.site(host, 443).is_none(), "{host}");
        }
    }

    #[test]
    fn a_wildcard_stands_for_one_label_and_an_exact_name_wins() {
        let site = |host: &str, name| (host.into(), None, name, Vec::<(PathMatcher, ())>::new());
        let router = Router::new([site("*.example.org", "wild"), site("a.example.org", "exact")]);
        let found = |host| router.site(host, 443).map(|found| found.site);
        assert_eq!(found("a.example.org"), Some("exact"));
        assert_eq!(found("B.Example.ORG.:443"), Some("wild"));
        for host in ["example.org", "x.y.example.org", ".example.org", "*.example.org.evil", "b.example.com"] {
            assert_eq!(found(host), None, "{host}");
        }
    }

    #[test]
    fn a_name_that_no_site_has_falls_to_the_catch_all() {
        let site = |host: &str, name| (host.into(), None, name, Vec::<(PathMatcher, ())>::new());
        let router = Router::new([site("*.example.org", "wild"), site("a.example.org", "exact"), site("*", "rest")]);
        let found = |host| router.site(host, 443).map(|found| found.site);
        assert_eq!((found("A.example.org"), found("b.example.org.:8")), (Some("exact"), Some("wild")));
        for host in ["example.org", "x.y.example.org", "B.example.com:80", "192.0.2.1", "[::1]:443", "*", ""] {
            assert_eq!(found(host), Some("rest"), "{host}");
        }
    }

    #[test]
    fn a_site_of_one_port_wins_there_and_is_nowhere_else() {
        let site = |host: &str, port, name| (host.into(), port, name, Vec::<(PathMatcher, ())>::new());
        let router = Router::new([
            site("a.example.org", None, "every"),
            site("a.example.org", Some(8448), "one"),
            site("b.example.org", Some(8448), "only"),
            site("*", Some(8080), "rest"),
        ]);
        let found = |host, port| router.site(host, port).map(|found| found.site);
        assert_eq!((found("a.example.org", 8448), found("A.example.org:8448", 443)), (Some("one"), Some("every")));
        assert_eq!((found("b.example.org", 8448), found("b.example.org:8448", 443)), (Some("only"), None));
        assert_eq!((found("b.example.org", 8080), found("c.example.org", 8448)), (Some("rest"), None));
        assert!(
            router.has("b.example.org", |name| *name == "only") && !router.has("b.example.org", |name| *name == "x")
        );
    }

    #[test]
    fn prefixes_match_whole_segments() {
        let router = router();
        let route = |path| router.site("matrix.example.org", 443).unwrap().route(path, |_| true).copied();
        assert_eq!(route("/"), Some("synapse"));
        assert_eq!(route("/livekit"), Some("lk"));
        assert_eq!(route("/livekit/jwt"), Some("jwt"));
        assert_eq!(route("/livekit/jwt/sfu/get"), Some("jwt"));
        assert_eq!(route("/livekit/jwtx"), Some("lk"));
        assert_eq!(route("/livekitx"), Some("synapse"));
        assert_eq!(route("/livekit%2Fjwt"), Some("synapse"));
        assert_eq!(route("//livekit/jwt"), Some("synapse"));
    }

    #[test]
    fn a_site_without_a_root_route_has_holes() {
        let router = router();
        let site = router.site("example.org", 443).unwrap();
        assert_eq!(site.route("/only/x", |_| true), Some(&"only"));
        assert_eq!(site.route("/only/x", |_| false), None);
        assert_eq!(site.route("/", |_| true), None);
        assert_eq!(site.route("*", |_| true), None);
    }
}
