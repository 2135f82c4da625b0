//! What a route asks of a request besides its path: its method, its fields, the network of its client.

use std::net::IpAddr;

use crate::{config::plan::Conditions, message::Request};

/// Whether the request meets all of them. `like` says whether a value fits a pattern.
#[must_use]
pub fn are_met(conditions: &Conditions, request: &Request, client: IpAddr, like: impl Fn(&[u8], &str) -> bool) -> bool {
    let among = |ip: IpAddr| conditions.from.iter().any(|network| network.contains(&ip));
    (conditions.methods.is_empty() || conditions.methods.contains(&request.method))
        && (conditions.from.is_empty() || among(client.to_canonical()))
        && conditions
            .fields
            .iter()
            .all(|(name, pattern)| request.fields.get_all(name).any(|value| like(value.as_bytes(), pattern)))
}
