//! Media through port 443 only: the sites of kind `turn`, and what LiveKit tells clients about them.

use std::time::Duration;

use tokio::{net::TcpStream, time::timeout};

use super::{
    ProbeContext,
    finding::{Check, Finding, Layer},
    join::{IceServer, Joined},
    names::origin_at,
    stun,
};
use crate::{
    config::plan::{Site, Stream, StreamKind},
    message::BoxIo,
};

/// Time limit of an exchange with a relay.
const LIMIT: Duration = Duration::from_secs(10);

/// Time limit of a connection to LiveKit itself, and of a first binding before an allocation.
const DIAL: Duration = Duration::from_secs(3);

/// The LiveKit settings that a site of kind `turn` needs.
const TURN_LINES: &str =
    "set turn: {enabled: true, domain: THE_NAME, tls_port: 5349, external_tls: true} in livekit.yaml";

/// Tests every site of kind `turn`: TLS, and a STUN binding inside it.
pub async fn probe(context: &ProbeContext<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (site, stream) in sites(context) {
        let check = Check::new(Layer::Rtc, "rtc.turn", site.host.as_str());
        findings.push(match timeout(LIMIT, bind(context, site)).await {
            Ok(Ok(())) => check.ok("a relay answers inside TLS"),
            Ok(Err(Broken::Way(reason))) => check.skip(reason),
            Ok(Err(Broken::Relay(reason))) => silent(&check, stream, &reason).await,
            Err(_) => silent(&check, stream, "it sends no response").await,
        });
    }
    findings
}

/// Why the relay cannot be tested.
enum Broken {
    /// It cannot be reached.
    Way(String),
    /// It does not answer.
    Relay(String),
}

fn sites<'a>(context: &ProbeContext<'a>) -> impl Iterator<Item = (&'a Site, &'a Stream)> + use<'a> {
    let streams = context.plan.sites.iter().filter_map(|site| Some((site, site.stream.as_ref()?)));
    streams.filter(|(_, stream)| stream.kind == StreamKind::Turn)
}

async fn bind(context: &ProbeContext<'_>, site: &Site) -> Result<(), Broken> {
    let mut io = connect(context, site).await?;
    stun::binding(&mut io).await.map_err(Broken::Relay)
}

async fn connect(context: &ProbeContext<'_>, site: &Site) -> Result<BoxIo, Broken> {
    let host = site.host.as_str();
    let address = context.preconditions.way(&origin_at(context.plan, host, site.port)).map_err(Broken::Way)?;
    let Some(address) = address else { return Err(Broken::Way("the name does not resolve".into())) };
    (context.reach.connect_tls)(address, host.to_owned()).await.map_err(|error| Broken::Relay(error.to_string()))
}

/// The finding for a relay that does not answer through the proxy; tells one that is down.
async fn silent(check: &Check, stream: &Stream, reason: &str) -> Finding {
    for server in &stream.upstream.servers {
        if let Ok(Err(error)) = timeout(DIAL, TcpStream::connect((&*server.host, server.port))).await
            && error.kind() == std::io::ErrorKind::ConnectionRefused
        {
            return check.fail("down", format!("nothing listens at {server}"), TURN_LINES);
        }
    }
    let fact = format!("no relay answers inside TLS ({reason}): clients behind a strict firewall get no media");
    check.fail("silent", fact, TURN_LINES)
}

/// Whether LiveKit tells a client with a token to use the site, and its relay allocates an address for that client.
pub async fn allocation(context: &ProbeContext<'_>, joined: &Result<Joined, String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (site, _) in sites(context) {
        let host = site.host.as_str();
        let check = Check::new(Layer::Rtc, "rtc.turn.allocation", host);
        let relays = match joined {
            Ok(joined) => &joined.relays,
            Err(reason) => return vec![check.skip(format!("LiveKit announces no relays ({reason})"))],
        };
        let url = format!("turns:{host}:");
        let offered = relays.iter().find(|server| server.urls.iter().any(|found| found.starts_with(&url)));
        let Some(IceServer { credentials, .. }) = offered else {
            let fact = format!("LiveKit does not announce {host} to clients");
            findings.push(check.fail("unknown", fact, format!("{TURN_LINES}, and restart LiveKit")));
            continue;
        };
        let allocate = async {
            let mut io = connect(context, site).await?;
            // A fault that does not depend on credentials is reported once, by the probe of the site.
            match timeout(DIAL, stun::binding(&mut io)).await {
                Ok(Ok(())) => {}
                _ => return Err(Broken::Way("no relay answers (rtc.turn)".into())),
            }
            stun::allocate(&mut io, credentials).await.map_err(Broken::Relay)
        };
        findings.push(match timeout(LIMIT, allocate).await {
            Ok(Ok(())) => check.ok("LiveKit announces this relay, and it allocates addresses"),
            Ok(Err(Broken::Way(reason))) => check.skip(reason),
            Ok(Err(Broken::Relay(reason))) => {
                let fact = format!("the relay allocates no address for a client with a token ({reason})");
                check.fail(
                    "refused",
                    fact,
                    "set the site's `upstream` to the LiveKit that the token is for, and read its log",
                )
            }
            Err(_) => check.fail("silent", "the relay does not answer an allocation request", "read LiveKit's log"),
        });
    }
    findings
}
