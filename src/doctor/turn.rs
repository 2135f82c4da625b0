//! Media through port 443 only: the sites of kind `turn`, and what LiveKit tells clients about them.

use std::time::Duration;

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, duplex},
    net::TcpStream,
    time::timeout,
};

use super::{
    ProbeContext,
    ask::ProbeRequest,
    finding::{Check, Finding, Layer},
    names::origin_at,
    stun::{self, Credentials},
};
use crate::{
    config::plan::{Site, Stream, StreamKind},
    conn::Fetch,
    message::BoxIo,
};

/// Time limit of an exchange with a relay, and of the first message of a WebSocket.
const LIMIT: Duration = Duration::from_secs(10);

/// Time limit of a connection to LiveKit itself, and of a first binding before an allocation.
const DIAL: Duration = Duration::from_secs(3);

/// The longest first message of LiveKit that is read.
const MAX_JOIN: u64 = 1 << 20;

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
pub async fn allocation(context: &ProbeContext<'_>, sfu: &str, jwt: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut servers = None;
    for (site, _) in sites(context) {
        let host = site.host.as_str();
        let check = Check::new(Layer::Rtc, "rtc.turn.allocation", host);
        if servers.is_none() {
            let way = match context.way(sfu) {
                Ok(way) => way,
                Err(reason) => return vec![check.skip(reason)],
            };
            match timeout(LIMIT, ice_servers(&way, sfu, jwt))
                .await
                .unwrap_or_else(|_| Err("it sends no message".into()))
            {
                Ok(found) => servers = Some(found),
                Err(reason) => return vec![check.skip(format!("LiveKit announces no relays ({reason})"))],
            }
        }
        let url = format!("turns:{host}:");
        let offered = servers.iter().flatten().find(|server| server.urls.iter().any(|found| found.starts_with(&url)));
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

/// A relay that LiveKit announces to a client.
struct IceServer {
    urls: Vec<String>,
    credentials: Credentials,
}

/// Joins as a client does, and reads the relays from the first message.
async fn ice_servers(way: &Fetch, sfu: &str, jwt: &str) -> Result<Vec<IceServer>, String> {
    let url = format!("{}/rtc?access_token={jwt}&protocol=9&auto_subscribe=0", sfu.trim_end_matches('/'));
    let upgrade = ProbeRequest::websocket(url).upgrade(way).await.map_err(|error| error.to_string())?;
    let (mut near, far) = duplex(64 * 1024);
    tokio::select! {
        () = upgrade.run(Box::new(far), Bytes::new()) => Err("it closed the connection".to_owned()),
        message = first_message(&mut near) => {
            let message = message.map_err(|error| error.to_string())?;
            Ok(join_response(&message).into_iter().flat_map(|join| fields(join, ICE_SERVERS)).map(ice_server).collect())
        }
    }
}

/// The payload of the first frame with data (RFC 6455 section 5.2); a server does not mask.
async fn first_message(io: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    loop {
        let (head, short) = (io.read_u8().await?, io.read_u8().await?);
        let length = match short & 0x7f {
            126 => u64::from(io.read_u16().await?),
            127 => io.read_u64().await?,
            short => u64::from(short),
        };
        if length > MAX_JOIN {
            return Err(std::io::Error::other("its first message is too long"));
        }
        let mut payload = Vec::new();
        io.take(length).read_to_end(&mut payload).await?;
        if matches!(head & 0x0f, 1 | 2) {
            return Ok(payload);
        }
    }
}

/// Numbers of fields in LiveKit's protocol (`livekit_rtc.proto`): `SignalResponse.join`, `JoinResponse.ice_servers`, and those
/// of `ICEServer`.
const JOIN: u64 = 1;
const ICE_SERVERS: u64 = 5;
const URLS: u64 = 1;
const NAME: u64 = 2;
const CREDENTIAL: u64 = 3;

fn join_response(message: &[u8]) -> Option<&[u8]> {
    fields(message, JOIN).next()
}

fn ice_server(message: &[u8]) -> IceServer {
    let text = |number| fields(message, number).map(|text| String::from_utf8_lossy(text).into_owned());
    let first = |number| text(number).next().unwrap_or_default();
    IceServer {
        urls: text(URLS).collect(),
        credentials: Credentials { username: first(NAME), password: first(CREDENTIAL) },
    }
}

/// The fields of a protobuf message that have this number and a length.
fn fields(mut message: &[u8], number: u64) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        loop {
            let tag = varint(&mut message)?;
            let skip = match tag & 7 {
                0 => {
                    varint(&mut message)?;
                    continue;
                }
                1 => 8,
                2 => usize::try_from(varint(&mut message)?).ok()?,
                5 => 4,
                _ => return None,
            };
            let (field, rest) = message.split_at_checked(skip)?;
            message = rest;
            if tag >> 3 == number && tag & 7 == 2 {
                return Some(field);
            }
        }
    })
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(content.len()).unwrap()][..], content].concat()
    }

    #[test]
    fn relays_are_read_out_of_a_join_response() {
        let server = [
            field(1, b"turn:192.0.2.1:3478?transport=udp"),
            field(1, b"turns:turn.example.org:443?transport=tcp"),
            field(2, b"user"),
            field(3, b"pass"),
        ]
        .concat();
        let join =
            [field(1, b"room"), vec![0x20, 0x96, 0x01], field(5, &server), field(5, &field(1, b"stun:x"))].concat();
        let message = field(1, &join);
        let servers: Vec<_> =
            join_response(&message).into_iter().flat_map(|join| fields(join, ICE_SERVERS)).map(ice_server).collect();
        assert_eq!(servers.len(), 2);
        assert_eq!(servers[0].urls[1], "turns:turn.example.org:443?transport=tcp");
        assert_eq!(
            (servers[0].credentials.username.as_str(), servers[0].credentials.password.as_str()),
            ("user", "pass")
        );
        // Whatever else comes is no reason to panic.
        for cut in 0..message.len() {
            let _ = join_response(&message[..cut]).into_iter().flat_map(|join| fields(join, ICE_SERVERS)).count();
        }
    }

    #[tokio::test]
    async fn the_first_message_is_found_behind_pings() {
        let mut bytes: &[u8] = &[0x89, 1, b'x', 0x82, 126, 0, 3, 1, 2, 3, 0x82, 0];
        assert_eq!(first_message(&mut bytes).await.unwrap(), [1, 2, 3]);
    }
}
