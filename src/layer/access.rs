//! Which paths of a route are open, and to whom. An allow-list by prefix needs no decoding: Synapse routes on the raw
//! path as we do, so an encoded `/_synapse/%61dmin` is nothing to either of us.

use std::net::IpAddr;

use crate::config::plan::{Access, AccessRule, PathMatch};

/// Whether the client may have the path (raw, without its query). What no rule names is closed.
#[must_use]
pub fn allows(rules: &[AccessRule], path: &str, client: IpAddr) -> bool {
    rules.iter().find(|rule| matches(&rule.path, path)).is_some_and(|rule| match &rule.verdict {
        Access::Pass => true,
        Access::PassFrom(networks) => networks.iter().any(|network| network.contains(&client)),
        Access::NotFound => false,
    })
}

fn matches(pattern: &PathMatch, path: &str) -> bool {
    match pattern {
        PathMatch::Exact(exact) => path == *exact,
        PathMatch::Under(prefix) => match path.strip_prefix(prefix) {
            Some(rest) => rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/'),
            None => false,
        },
        PathMatch::Any => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_match_decides_and_the_rest_is_closed() {
        let rules = [
            AccessRule {
                path: PathMatch::Under("/_synapse/admin"),
                verdict: Access::PassFrom(vec!["10.0.0.0/8".parse().unwrap()]),
            },
            AccessRule { path: PathMatch::Under("/_matrix"), verdict: Access::Pass },
            AccessRule { path: PathMatch::Exact("/health"), verdict: Access::Pass },
        ];
        let may = |path, ip: &str| allows(&rules, path, ip.parse().unwrap());
        assert!(may("/_matrix/client/versions", "192.0.2.1"));
        assert!(may("/_synapse/admin/v1/users", "10.1.2.3"));
        assert!(!may("/_synapse/admin/v1/users", "192.0.2.1"));
        assert!(may("/health", "192.0.2.1"));
        for closed in ["/", "/_matrixx", "/health/x", "/_synapse/metrics", "//_matrix/client", "/_synapse/%61dmin"] {
            assert!(!may(closed, "10.1.2.3"), "{closed}");
        }
    }
}
