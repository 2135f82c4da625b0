//! Ports and certificates: every address of every name, and the edge itself by SNI.

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use http::header;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::{
    ProbeContext, ProbeTargets, Verdict,
    ask::ProbeRequest,
    finding::{Check, Finding, Layer},
    names::{NameReport, Reachability, authority, origin},
};
use crate::{
    config::{
        Plan,
        plan::{Challenge, Site, SiteTls},
    },
    conn::{PeerCertificate, TlsFailure, VerifyError},
};

/// With less than this much of its life left a certificate should have been renewed long ago: the edge begins at a third.
const ENDING: f64 = 0.1;

/// Whether the edge answers neither itself nor from outside: then nothing that it serves is worth looking at.
pub fn edge_is_down(seen: &[NameReport]) -> bool {
    let deaf = |shown: &Result<PeerCertificate, TlsFailure>| {
        matches!(shown, Err(TlsFailure::Refused | TlsFailure::Silent | TlsFailure::NoRoute))
    };
    let mut inside = seen.iter().filter_map(|seen| Some((seen, seen.inside.as_ref()?))).peekable();
    inside.peek().is_some()
        && inside.all(|(seen, (_, shown))| deaf(shown) && seen.outside.iter().all(|(_, shown)| deaf(shown)))
}

/// The edge does not run.
pub fn down(plan: &Plan) -> Finding {
    let addresses: Vec<_> = plan.listen.https.iter().map(ToString::to_string).collect();
    let fix = "start `vestibule run`; if it ends again, its log says why";
    Check::new(Layer::Tls, "edge", addresses.join(", ")).fail(
        "down",
        "nothing listens there, and no name leads to an edge",
        fix,
    )
}

/// Judges what a name shows, and says by which address it may be asked more.
pub fn assess(
    seen: &NameReport,
    resolved: &Finding,
    plan: &Plan,
    reach: &ProbeTargets,
) -> (Reachability, Vec<Finding>) {
    let inside = match &seen.inside {
        Some((at, Ok(shown))) => Some((*at, shown)),
        _ => None,
    };
    let mut findings = Vec::new();
    let mut good = None;
    if resolved.verdict == Verdict::Ok {
        for (address, shown) in &seen.outside {
            let finding = address_shows(seen, *address, shown, inside.map(|(_, shown)| shown), reach);
            if good.is_none() && matches!(finding.verdict, Verdict::Ok | Verdict::Warn) {
                good = Some(*address);
            }
            findings.push(finding);
        }
    }
    let inside = match &seen.inside {
        // From a machine that is not the edge's, only the outside can be seen.
        Some((at, Err(TlsFailure::Refused))) if good.is_some() => {
            let check = Check::new(Layer::Tls, "tls.inside", &seen.host);
            findings.push(check.skip(format!("nothing listens on {at} here: this is not the edge's machine")));
            None
        }
        Some((at, shown)) => {
            let finding = edge_shows(seen, shown, plan, reach);
            let stands = finding.verdict != Verdict::Fail;
            // What an address shows because the edge shows it is said once, of the edge.
            let same = |other: &Finding| other.id.rsplit('.').next() == finding.id.rsplit('.').next();
            if !stands {
                findings.retain(|other| other.verdict != Verdict::Fail || !same(other));
            }
            findings.push(finding);
            stands.then_some(*at)
        }
        None => None,
    };
    let standing = match (good, inside) {
        (Some(address), _) | (None, Some(address)) => Reachability::At(address),
        (None, None) => {
            let cause = findings.iter().chain([resolved]).find(|finding| finding.verdict == Verdict::Fail);
            Reachability::Broken(format!(
                "{} cannot be reached ({})",
                seen.host,
                cause.map_or("tls", |cause| &cause.id)
            ))
        }
    };
    (standing, findings)
}

fn address_shows(
    seen: &NameReport,
    address: std::net::SocketAddr,
    shown: &Result<PeerCertificate, TlsFailure>,
    own: Option<&PeerCertificate>,
    reach: &ProbeTargets,
) -> Finding {
    let check = Check::new(Layer::Tls, "tls", format!("{} at {}", seen.host, address.ip()));
    let port = seen.port;
    let way = "open it in the firewall and forward it to the edge";
    match shown {
        Err(TlsFailure::Refused) => check.fail(
            "closed",
            format!("port {port} refuses connections"),
            format!("{way}; if the address is another machine's, change the record"),
        ),
        Err(TlsFailure::Silent) => check.fail(
            "silent",
            format!("port {port} does not answer"),
            format!(
                "{way}; if only this machine cannot reach it, let the name lead to the edge inside the network as well"
            ),
        ),
        Err(TlsFailure::NoRoute) => check.skip("this machine has no way to such an address (no IPv6?)"),
        Err(TlsFailure::NoSuchName) => {
            check.fail("missing", "no certificate is shown for the name", "see `vestibule status` for what the CA said")
        }
        Err(TlsFailure::Other(error)) => check.fail(
            "handshake",
            format!("the handshake fails ({error})"),
            "see what listens on that port instead of the edge",
        ),
        Ok(shown) => match (&shown.trust, own) {
            (Err(_), Some(own)) if own.trust.is_ok() && own.leaf != shown.leaf => check.fail(
                "elsewhere",
                format!("another machine answers, with a certificate {}", describe(shown)),
                "let the A and AAAA records of the name lead to the edge, and only there",
            ),
            (Ok(()), Some(own)) if own.leaf != shown.leaf => check.warn(
                "front",
                format!("something in front of the edge answers, with a certificate {}", describe(shown)),
                "a CDN or proxy in front must pass WebSockets, long requests and the client's address",
            ),
            (Err(error), _) => untrusted(&check, error, shown),
            (Ok(()), _) => trusted(&check, shown, reach),
        },
    }
}

fn edge_shows(
    seen: &NameReport,
    shown: &Result<PeerCertificate, TlsFailure>,
    plan: &Plan,
    reach: &ProbeTargets,
) -> Finding {
    let check = Check::new(Layer::Tls, "tls.inside", &seen.host);
    let status = "see `vestibule status` for what the CA said";
    match shown {
        Err(TlsFailure::NoSuchName) => check.fail("missing", "the edge has no certificate for the name yet", status),
        Err(TlsFailure::Refused | TlsFailure::Silent | TlsFailure::NoRoute) => {
            let fact = format!("the edge does not answer on {}", plan.listen.https[0]);
            check.fail("closed", fact, "start `vestibule run` with this file")
        }
        Err(TlsFailure::Other(error)) => {
            let fact = format!("the handshake with the edge fails ({error})");
            check.fail("handshake", fact, "see what listens on that port instead of the edge")
        }
        Ok(shown) => match &shown.trust {
            Ok(()) => trusted(&check, shown, reach),
            Err(error) => untrusted(&check, error, shown),
        },
    }
}

fn untrusted(check: &Check, error: &VerifyError, shown: &PeerCertificate) -> Finding {
    let is = describe(shown);
    match error {
        VerifyError::Expired => check.fail(
            "expired",
            format!("the certificate has ended: {is}"),
            "see `vestibule status` for why it was not renewed, or replace the file",
        ),
        VerifyError::NotYet => {
            check.fail("not_yet", format!("the certificate has not begun: {is}"), "set the clock of this machine")
        }
        VerifyError::WrongName => check.fail(
            "name",
            format!("the certificate is for other names: {is}"),
            "use a certificate that names this host, or let the edge order one (tls = \"acme\")",
        ),
        VerifyError::Unknown => check.fail(
            "unknown",
            format!("no CA that clients know has signed the certificate: {is}"),
            "order from a public CA and not from its staging, or tell doctor of yours with --ca-file",
        ),
        VerifyError::Other(error) => {
            check.fail("invalid", format!("clients refuse the certificate ({error}): {is}"), "replace it")
        }
    }
}

fn trusted(check: &Check, shown: &PeerCertificate, reach: &ProbeTargets) -> Finding {
    let Some(leaf) = Leaf::read(shown) else { return check.ok("the certificate is good") };
    let now = reach.clock.now();
    let left = leaf.not_after.duration_since(now).unwrap_or_default();
    let life = leaf.not_after.duration_since(leaf.not_before).unwrap_or_default();
    let words = format!("certificate by {}, {} left", leaf.issuer, days(left));
    if left.as_secs_f64() < life.as_secs_f64() * ENDING {
        return check.warn("ending", words, "see `vestibule status` for why it was not renewed");
    }
    check.ok(words)
}

/// What a person wants to know of a certificate.
struct Leaf {
    issuer: String,
    names: Vec<String>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Leaf {
    fn read(shown: &PeerCertificate) -> Option<Self> {
        let (_, leaf) = X509Certificate::from_der(&shown.leaf).ok()?;
        let time = |at: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(at).unwrap_or(0));
        let common_name = leaf.issuer().iter_common_name().next().and_then(|name| name.as_str().ok());
        let names = leaf.subject_alternative_name().ok().flatten().map(|names| &names.value.general_names);
        let dns = |name: &GeneralName<'_>| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        };
        Some(Self {
            issuer: common_name.map_or_else(|| leaf.issuer().to_string(), str::to_owned),
            names: names.into_iter().flatten().filter_map(dns).collect(),
            not_before: time(leaf.validity().not_before.timestamp()),
            not_after: time(leaf.validity().not_after.timestamp()),
        })
    }
}

fn describe(shown: &PeerCertificate) -> String {
    Leaf::read(shown).map_or_else(
        || "that cannot be read".to_owned(),
        |leaf| format!("for {} by {}", leaf.names.join(", "), leaf.issuer),
    )
}

fn days(left: Duration) -> String {
    match left.as_secs() / 3600 {
        hours if hours < 48 => format!("{hours} hours"),
        hours => format!("{} days", hours / 24),
    }
}

/// Port 80 of every site: it sends people to https, and is one of the two ways to a certificate.
pub async fn redirects(context: &ProbeContext<'_>) -> Vec<Finding> {
    let sites = context.plan.sites.iter().filter(|site| site.tls != SiteTls::Off && !site.host.is_wildcard());
    join_all(sites.map(|site| redirect(context, site))).await
}

async fn redirect(context: &ProbeContext<'_>, site: &Site) -> Finding {
    let host = site.host.as_str();
    let check = Check::new(Layer::Tls, "http", host);
    if context.plan.listen.http.is_empty() {
        return check.skip("listen.http is off");
    }
    if let Err(reason) = context.preconditions.way(&origin(context.plan, host)) {
        return check.skip(reason);
    }
    // The edge's own sockets may have stood in for a name that leads nowhere, which is said where names are.
    if (context.reach.resolve)(host.to_owned(), 80).await.is_err() {
        return check.skip("the name does not resolve (dns.missing)");
    }
    match ProbeRequest::get(format!("http://{host}/")).ask(&(context.reach.via)(None)).await {
        Err(error) => {
            let fact = format!("port 80 does not answer ({error})");
            let fix = "forward port 80 to the edge: browsers try it first";
            let only = site.tls == SiteTls::Acme && context.plan.acme.challenges == [Challenge::Http01];
            if only {
                return check.fail(
                    "closed",
                    fact,
                    "forward port 80 to the edge: the CA validates there, and nowhere else",
                );
            }
            check.warn("closed", fact, fix)
        }
        Ok(response) if site.stream.is_some() && response.status == 404 => {
            check.ok("port 80 answers the CA, and nobody else: what is served is not HTTP")
        }
        Ok(response) => {
            let to = response.field(header::LOCATION);
            let home = response.status.is_redirection() && authority(to) == authority(&origin(context.plan, host));
            if home {
                return check.ok(format!("port 80 sends to {to}"));
            }
            let fact = format!("port 80 answers {} instead of sending to https", response.words());
            check.warn("other", fact, "let the edge have port 80 as well")
        }
    }
}
