//! Ports and certificates: every address of every name, and the listener of this machine by SNI.

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
    conn::PeerCertificate,
    error::{FailureCause, Role, ServerFailure},
};

/// A certificate with less than this fraction of its lifetime left should have been renewed: renewal begins at a third.
const ENDING: f64 = 0.1;

/// Whether the proxy answers neither on this machine nor at any public address, so that no further probe is of use.
pub fn edge_is_down(seen: &[NameReport]) -> bool {
    let deaf = |shown: &Result<PeerCertificate, ServerFailure>| {
        let cause = shown.as_ref().err().map(|failure| failure.cause);
        matches!(
            cause,
            Some(FailureCause::Refused | FailureCause::TimedOut | FailureCause::NoResponse | FailureCause::NoRoute)
        )
    };
    let mut inside = seen.iter().filter_map(|seen| Some((seen, seen.inside.as_ref()?))).peekable();
    inside.peek().is_some()
        && inside.all(|(seen, (_, shown))| deaf(shown) && seen.outside.iter().all(|(_, shown)| deaf(shown)))
}

/// The finding that the proxy is not running.
pub fn down(plan: &Plan) -> Finding {
    let addresses: Vec<_> = plan.listen.https.iter().map(ToString::to_string).collect();
    let fix = "start `vestibule run`; if it exits again, read its log";
    Check::new(Layer::Tls, "edge", addresses.join(", ")).fail(
        "down",
        "nothing listens there, and no name leads to a running vestibule",
        fix,
    )
}

/// Assesses the certificates of a name, and chooses the address for further probes.
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
        // From another machine than the proxy's, only the public addresses can be tested.
        Some((at, Err(failure))) if failure.cause == FailureCause::Refused && good.is_some() => {
            let check = Check::new(Layer::Tls, "tls.inside", &seen.host);
            findings.push(check.skip(format!("nothing listens on {at} here: vestibule runs on another machine")));
            None
        }
        Some((at, shown)) => {
            let finding = edge_shows(seen, shown, plan, reach);
            let stands = finding.verdict != Verdict::Fail;
            // A fault of the proxy shows at every address too; it is reported once, for the proxy.
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
    shown: &Result<PeerCertificate, ServerFailure>,
    own: Option<&PeerCertificate>,
    reach: &ProbeTargets,
) -> Finding {
    let check = Check::new(Layer::Tls, "tls", format!("{} at {}", seen.host, address.ip()));
    match shown {
        Err(failure) if failure.cause == FailureCause::NoRoute => {
            check.skip("this machine has no route to that address (no IPv6?)")
        }
        Err(failure) => {
            let fact = match failure.cause {
                FailureCause::Refused => format!("port {} refuses connections", seen.port),
                FailureCause::TimedOut | FailureCause::NoResponse => format!("port {} does not answer", seen.port),
                FailureCause::NoCertificate => failure.to_string(),
                _ => format!("the TLS handshake fails ({failure})"),
            };
            let what = match failure.cause {
                FailureCause::Refused => "closed",
                FailureCause::TimedOut | FailureCause::NoResponse => "silent",
                FailureCause::NoCertificate => "missing",
                _ => "handshake",
            };
            check.fail(what, fact, failure.fix(Role::Public))
        }
        Ok(shown) => match (&shown.trust, own) {
            (Err(_), Some(own)) if own.trust.is_ok() && own.leaf != shown.leaf => check.fail(
                "elsewhere",
                format!("another machine answers, with a certificate {}", describe(shown)),
                "point the A and AAAA records of the name at vestibule and nowhere else",
            ),
            (Ok(()), Some(own)) if own.leaf != shown.leaf => check.warn(
                "front",
                format!("a server in front of vestibule answers, with a certificate {}", describe(shown)),
                "make sure that the CDN or proxy in front passes WebSockets, long requests and the client's address",
            ),
            (Err(failure), _) => untrusted(&check, failure, shown),
            (Ok(()), _) => trusted(&check, shown, reach),
        },
    }
}

fn edge_shows(
    seen: &NameReport,
    shown: &Result<PeerCertificate, ServerFailure>,
    plan: &Plan,
    reach: &ProbeTargets,
) -> Finding {
    let check = Check::new(Layer::Tls, "tls.inside", &seen.host);
    match shown {
        Err(failure) => {
            let (what, fact) = match failure.cause {
                FailureCause::NoCertificate => ("missing", "vestibule has no certificate for the name yet".to_owned()),
                FailureCause::Refused | FailureCause::TimedOut | FailureCause::NoResponse | FailureCause::NoRoute => {
                    ("closed", format!("vestibule does not answer on {}", plan.listen.https[0]))
                }
                _ => ("handshake", format!("the TLS handshake with vestibule fails ({failure})")),
            };
            check.fail(what, fact, failure.fix(Role::Listener))
        }
        Ok(shown) => match &shown.trust {
            Ok(()) => trusted(&check, shown, reach),
            Err(failure) => untrusted(&check, failure, shown),
        },
    }
}

fn untrusted(check: &Check, failure: &ServerFailure, shown: &PeerCertificate) -> Finding {
    let what = match failure.cause {
        FailureCause::Expired => "expired",
        FailureCause::NotYetValid => "not_yet",
        FailureCause::WrongName => "name",
        FailureCause::UnknownAuthority => "unknown",
        _ => "invalid",
    };
    check.fail(what, format!("{failure}: {}", describe(shown)), failure.fix(Role::Public))
}

fn trusted(check: &Check, shown: &PeerCertificate, reach: &ProbeTargets) -> Finding {
    let Some(leaf) = Leaf::read(shown) else { return check.ok("the certificate is valid") };
    let now = reach.clock.now();
    let left = leaf.not_after.duration_since(now).unwrap_or_default();
    let life = leaf.not_after.duration_since(leaf.not_before).unwrap_or_default();
    let words = format!("certificate by {}, {} left", leaf.issuer, days(left));
    if left.as_secs_f64() < life.as_secs_f64() * ENDING {
        return check.warn("ending", words, "`vestibule status` shows why it was not renewed");
    }
    check.ok(words)
}

/// The fields of a certificate that findings show.
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

/// Port 80 of every site: it redirects to HTTPS, and the CA validates HTTP-01 there.
pub async fn redirects(context: &ProbeContext<'_>) -> Vec<Finding> {
    let redirects = |site: &&Site| site.tls != SiteTls::Off && !site.host.is_wildcard() && site.port.is_none();
    let sites = context.plan.sites.iter().filter(redirects);
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
    // The probe may have used the listener of this machine for a name that does not resolve; dns.rs reports that.
    if (context.reach.resolve)(host.to_owned(), 80).await.is_err() {
        return check.skip("the name does not resolve (dns.missing)");
    }
    match ProbeRequest::get(format!("http://{host}/")).ask(&(context.reach.via)(None)).await {
        Err(error) => {
            let fact = format!("port 80 does not answer ({error})");
            let fix = "forward port 80 to vestibule: browsers try it first";
            let only = site.tls == SiteTls::Acme && context.plan.acme.challenges == [Challenge::Http01];
            if only {
                return check.fail("closed", fact, "forward port 80 to vestibule: the CA validates only there");
            }
            check.warn("closed", fact, fix)
        }
        Ok(response) if site.stream.is_some() && response.status == 404 => {
            check.ok("port 80 answers only the CA: the site does not serve HTTP")
        }
        Ok(response) => {
            let to = response.field(header::LOCATION);
            let home = response.status.is_redirection() && authority(to) == authority(&origin(context.plan, host));
            if home {
                return check.ok(format!("port 80 redirects to {to}"));
            }
            let fact = format!("port 80 returns {} instead of redirecting to https", response.words());
            check.warn("other", fact, "forward port 80 to vestibule too")
        }
    }
}
