//! The services behind the proxy, reached directly: whether they answer, and whether they are of the configured kind.

use std::collections::{HashMap, HashSet};

use futures_util::future::join_all;

use super::{
    DirectProbe, ProbeTargets, Service,
    ask::{ProbeRequest, ProbeResponse},
    finding::{Check, Finding, Layer},
};
use crate::config::plan::Kind;

/// Sends a request to each service; returns the reasons of those that are down, and the findings.
pub async fn probe(reach: &ProbeTargets) -> (HashMap<String, String>, Vec<Finding>) {
    let mut seen = HashSet::new();
    let once: Vec<_> = reach.services.iter().filter(|service| seen.insert((service.kind, &service.server))).collect();
    let asked = join_all(once.iter().map(|service| greet(service))).await;
    let mut down = HashMap::new();
    for (service, (finding, reason)) in once.iter().zip(&asked) {
        if let Some(reason) = reason {
            down.insert(service.server.clone(), format!("{} {reason} ({})", name(service.kind), finding.id));
        }
    }
    (down, asked.into_iter().map(|(finding, _)| finding).collect())
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Synapse => "Synapse",
        Kind::LkJwt => "lk-jwt-service",
        Kind::Livekit => "LiveKit",
        Kind::Http => "the service",
    }
}

async fn greet(service: &Service) -> (Finding, Option<&'static str>) {
    let (id, path) = match service.kind {
        Kind::Synapse => ("services.synapse", "/health"),
        Kind::LkJwt => ("services.lk-jwt", "/healthz"),
        Kind::Livekit => ("services.livekit", "/"),
        Kind::Http => ("services.http", "/"),
    };
    let check = Check::new(Layer::Services, id, &service.server);
    let direct = DirectProbe { service, down: None };
    match ProbeRequest::get(direct.url(path)).ask(&service.client).await {
        Ok(response) => assess(&check, service.kind, path, &response),
        Err(error) => {
            let fact = format!("{} does not answer ({error})", name(service.kind));
            (check.fail("down", fact, advice(service, &error)), Some("does not answer"))
        }
    }
}

fn assess(check: &Check, kind: Kind, path: &str, response: &ProbeResponse) -> (Finding, Option<&'static str>) {
    let name = name(kind);
    match (kind, response.status.as_u16()) {
        (Kind::Http, _) | (_, 200) => (check.ok(format!("{name} answers")), None),
        (Kind::Livekit, 406) => {
            let fact = "LiveKit reports that its node is not ready";
            (
                check.fail("not_ready", fact, "read LiveKit's log: Redis does not answer, or the node is overloaded"),
                Some("is not ready"),
            )
        }
        _ => {
            let fact = format!("{path} returns {}, which {name} never does", response.words());
            let fix = format!("set the site's `upstream` to the address of {name}");
            (check.fail("other", fact, fix), Some("does not run at its address"))
        }
    }
}

/// The fix for a service that does not answer, by the cause.
fn advice(service: &Service, error: &str) -> String {
    let certificate = "give the service a certificate that the system's roots sign and that has the name in `upstream`, or \
                       use http:// inside one host or network";
    if error.contains("the certificate ") {
        return certificate.to_owned();
    }
    if error.contains("does not resolve") {
        return "correct the name in `upstream`; in compose it is the name of the service, in a network that the edge shares"
            .to_owned();
    }
    let log = "start it and read its log; it must share a network with the edge, under the name and port of `upstream`";
    match service.kind {
        // lk-jwt-service 0.5 and later ends at once without it; its image has neither curl nor wget for a healthcheck.
        Kind::LkJwt => format!(
            "{log}; if it restarts again and again, set LIVEKIT_FULL_ACCESS_HOMESERVERS to your server name, and drop a \
             healthcheck that calls curl"
        ),
        Kind::Synapse | Kind::Livekit | Kind::Http => log.to_owned(),
    }
}
