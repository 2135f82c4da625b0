//! The SRV record of a service: the best of those that a name server has.

use std::{cmp::Reverse, io, net::SocketAddr};

use crate::client::dns::{self, Srv};

/// The best record of a name; none where it has none.
///
/// # Errors
/// Nobody answers, or with an error: then nothing is known.
pub async fn lookup(name: &str, server: SocketAddr) -> io::Result<Option<Srv>> {
    dns::services(server, name).await.map(best)
}

fn best(records: Vec<Srv>) -> Option<Srv> {
    // A target of "." means that there is no such service (RFC 2782).
    let records = records.into_iter().filter(|srv| !srv.target.is_empty());
    records.min_by_key(|srv| (srv.priority, Reverse(srv.weight)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_record_is_chosen() {
        let srv = |priority, weight, target: &str, port| Srv { priority, weight, target: target.to_owned(), port };
        let found = best(vec![srv(20, 0, "c.example", 3), srv(10, 1, "b.example", 2), srv(10, 5, "a.example", 1)]);
        assert_eq!(found.unwrap().target, "a.example");
        assert_eq!(best(vec![srv(0, 0, "", 0)]), None);
        assert_eq!(best(Vec::new()), None);
    }
}
