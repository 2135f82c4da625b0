//! The services behind the proxy, reached directly: whether they answer, and whether they are of the configured kind.

use std::collections::{HashMap, HashSet};

use futures_util::future::join_all;

use super::{
    DirectProbe, ProbeTargets, Service,
    ask::{ProbeRequest, ProbeResponse},
    finding::{Check, Finding, Layer},
};
use crate::{
    config::plan::Kind,
    error::{FailureCause, Role, ServerFailure},
};

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
        Kind::Homeserver => "the homeserver",
        Kind::LkJwt => "lk-jwt-service",
        Kind::Livekit => "LiveKit",
        Kind::Mas => "the Matrix Authentication Service",
        Kind::Http => "the service",
    }
}

async fn greet(service: &Service) -> (Finding, Option<&'static str>) {
    let (id, path) = match service.kind {
        Kind::Synapse => ("services.synapse", "/health"),
        Kind::Homeserver => ("services.homeserver", "/_matrix/client/versions"),
        Kind::LkJwt => ("services.lk-jwt", "/healthz"),
        Kind::Livekit => ("services.livekit", "/"),
        // `/health` is on a listener of its own, unless the file of the service says otherwise.
        Kind::Mas => ("services.mas", "/.well-known/openid-configuration"),
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
        // What nginx and Go answer to plain HTTP on a TLS port.
        (_, 400) if String::from_utf8_lossy(&response.body).contains("HTTPS") => {
            let fact = format!("{name} does not answer ({})", FailureCause::NotPlain);
            (check.fail("down", fact, FailureCause::NotPlain.fix(Role::Upstream)), Some("does not answer"))
        }
        _ => {
            let fact = format!("{path} returns {}, which {name} never does", response.words());
            let fix = format!("set the site's `upstream` to the address of {name}");
            (check.fail("other", fact, fix), Some("does not run at its address"))
        }
    }
}

/// The fix for a service that does not answer.
fn advice(service: &Service, failure: &ServerFailure) -> String {
    let fix = failure.fix(Role::Upstream);
    match (service.kind, failure.cause) {
        // lk-jwt-service 0.5 and later exits at once without it; its image has neither curl nor wget for a healthcheck.
        (Kind::LkJwt, FailureCause::Refused | FailureCause::NoAddress) => format!(
            "{fix}; if it restarts again and again, set LIVEKIT_FULL_ACCESS_HOMESERVERS to your server name, and remove a \
             healthcheck that calls curl"
        ),
        _ => fix.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::{self, ProxyError},
        message::{Body, Response},
    };

    fn service(kind: Kind, answer: impl Fn() -> Result<Response, ProxyError> + Send + Sync + 'static) -> Service {
        Service {
            host: "matrix.example.org".into(),
            port: None,
            prefix: "/".into(),
            kind,
            server: "https://synapse:8008".into(),
            client: std::sync::Arc::new(move |_| {
                let answer = answer();
                Box::pin(async move { answer })
            }),
        }
    }

    #[tokio::test]
    async fn each_cause_has_its_own_fix() {
        let mut fixes = HashSet::new();
        for cause in FailureCause::ALL {
            let failing = service(Kind::Synapse, move || Err(ProxyError::new(error::Kind::Connect, cause)));
            let (finding, _) = greet(&failing).await;
            assert_eq!(finding.id, "services.synapse.down");
            assert_eq!(finding.fact, format!("Synapse does not answer ({cause})"));
            assert_eq!(finding.fix.as_deref(), Some(cause.fix(Role::Upstream)));
            fixes.insert(finding.fix);
        }
        assert_eq!(fixes.len(), FailureCause::ALL.len());
    }

    #[tokio::test]
    async fn any_homeserver_is_known_by_the_versions_it_speaks() {
        let answering = |status: http::StatusCode| {
            let answer = move || {
                let mut response = Response::new(Body::empty());
                response.status = status;
                Ok(response)
            };
            service(Kind::Homeserver, answer)
        };
        let (finding, reason) = greet(&answering(http::StatusCode::OK)).await;
        assert_eq!(
            (finding.id.as_str(), finding.fact.as_str(), reason),
            ("services.homeserver", "the homeserver answers", None)
        );
        let (finding, reason) = greet(&answering(http::StatusCode::NOT_FOUND)).await;
        assert!(finding.fact.starts_with("/_matrix/client/versions returns 404"), "{}", finding.fact);
        assert!(reason.is_some());
    }

    #[tokio::test]
    async fn the_authentication_service_is_known_by_its_discovery_document() {
        let answering = |status: http::StatusCode| {
            service(Kind::Mas, move || {
                let mut response = Response::new(Body::empty());
                response.status = status;
                Ok(response)
            })
        };
        let (finding, reason) = greet(&answering(http::StatusCode::OK)).await;
        assert_eq!((finding.id.as_str(), reason), ("services.mas", None));
        // Synapse, or a listener of MAS without `discovery`.
        let (finding, reason) = greet(&answering(http::StatusCode::NOT_FOUND)).await;
        assert!(finding.fact.starts_with("/.well-known/openid-configuration returns 404"), "{}", finding.fact);
        assert!(reason.is_some());
    }

    #[tokio::test]
    async fn a_service_that_expects_tls_is_named() {
        let text = "Client sent an HTTP request to an HTTPS server.\n";
        let answer = move || {
            let mut response = Response::new(Body::full(text));
            response.status = http::StatusCode::BAD_REQUEST;
            Ok(response)
        };
        let (finding, _) = greet(&service(Kind::Synapse, answer)).await;
        assert_eq!(finding.fix.as_deref(), Some(FailureCause::NotPlain.fix(Role::Upstream)));
    }
}
