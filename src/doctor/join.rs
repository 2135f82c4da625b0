//! What LiveKit tells a client that joins a call: its relays, and the addresses at which it takes media.
//!
//! Only the first messages of a WebSocket are read, and of their protobuf only what the probes need
//! (`livekit_rtc.proto`; an ICE candidate is a line of RFC 8839 section 5.1 inside JSON).

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use bytes::Bytes;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, duplex},
    time::timeout,
};

use super::{ProbeContext, ask::ProbeRequest, stun::Credentials};
use crate::conn::Fetch;

/// Time limit of the first message.
const LIMIT: Duration = Duration::from_secs(10);

/// Time limit of all candidates after that: LiveKit gathers them before it is asked, unless it asks a STUN server.
const GATHERING: Duration = Duration::from_secs(4);

/// The longest message of LiveKit that is read.
const MAX_MESSAGE: u64 = 1 << 20;

/// What a client with a token is told.
#[derive(Default)]
pub struct Joined {
    pub relays: Vec<IceServer>,
    /// Where LiveKit takes media; none if it did not say so in time.
    pub addresses: BTreeSet<IpAddr>,
}

/// A relay that LiveKit announces to a client.
pub struct IceServer {
    pub urls: Vec<String>,
    pub credentials: Credentials,
}

/// Joins as a client does, and leaves as soon as LiveKit has sent all its candidates. An error says why nothing was read.
pub async fn join(context: &ProbeContext<'_>, sfu: &str, jwt: &str) -> Result<Joined, String> {
    let way = context.way(sfu)?;
    let mut joined = Joined::default();
    match timeout(LIMIT, read(&way, sfu, jwt, &mut joined)).await {
        Ok(done) => done?,
        Err(_) => return Err("it sends no message".into()),
    }
    Ok(joined)
}

async fn read(way: &Fetch, sfu: &str, jwt: &str, joined: &mut Joined) -> Result<(), String> {
    let url = format!("{}/rtc?access_token={jwt}&protocol=9&auto_subscribe=0", sfu.trim_end_matches('/'));
    let upgrade = ProbeRequest::websocket(url).upgrade(way).await.map_err(|error| error.to_string())?;
    let (mut near, far) = duplex(64 * 1024);
    let messages = async {
        joined.take(&next_message(&mut near).await.map_err(|error| error.to_string())?);
        let candidates = async {
            while let Ok(message) = next_message(&mut near).await {
                if joined.take(&message) {
                    break;
                }
            }
        };
        let _ = timeout(GATHERING, candidates).await;
        Ok(())
    };
    // What LiveKit has sent before it closes is read first.
    tokio::select! {
        biased;
        done = messages => done,
        () = upgrade.run(Box::new(far), Bytes::new()) => Err("it closed the connection".to_owned()),
    }
}

/// The payload of the next frame with data (RFC 6455 section 5.2); a server does not mask.
async fn next_message(io: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    loop {
        let (head, short) = (io.read_u8().await?, io.read_u8().await?);
        let length = match short & 0x7f {
            126 => u64::from(io.read_u16().await?),
            127 => io.read_u64().await?,
            short => u64::from(short),
        };
        if length > MAX_MESSAGE {
            return Err(std::io::Error::other("its message is too long"));
        }
        let mut payload = Vec::new();
        (&mut *io).take(length).read_to_end(&mut payload).await?;
        if matches!(head & 0x0f, 1 | 2) {
            return Ok(payload);
        }
    }
}

impl Joined {
    /// Adds what a message says; true after the last candidate.
    fn take(&mut self, message: &[u8]) -> bool {
        for join in fields(message, JOIN) {
            self.relays.extend(fields(join, ICE_SERVERS).map(ice_server));
        }
        let mut is_last = false;
        for trickle in fields(message, TRICKLE) {
            self.addresses.extend(fields(trickle, CANDIDATE).filter_map(address));
            is_last |= trickle.ends_with(&FINAL);
        }
        is_last
    }
}

/// Numbers of fields in LiveKit's protocol (`livekit_rtc.proto`): of `SignalResponse`, `JoinResponse`, `ICEServer` and
/// `TrickleRequest`, whose last field, `final`, is true in the last one.
const JOIN: u64 = 1;
const TRICKLE: u64 = 4;
const ICE_SERVERS: u64 = 5;
const URLS: u64 = 1;
const NAME: u64 = 2;
const CREDENTIAL: u64 = 3;
const CANDIDATE: u64 = 1;
const FINAL: [u8; 2] = [3 << 3, 1];

fn ice_server(message: &[u8]) -> IceServer {
    let text = |number| fields(message, number).map(|text| String::from_utf8_lossy(text).into_owned());
    let first = |number| text(number).next().unwrap_or_default();
    IceServer {
        urls: text(URLS).collect(),
        credentials: Credentials { username: first(NAME), password: first(CREDENTIAL) },
    }
}

/// The address of a candidate; none where it is a name, or the line is empty.
fn address(json: &[u8]) -> Option<IpAddr> {
    let candidate: Value = serde_json::from_slice(json).ok()?;
    // candidate:FOUNDATION COMPONENT TRANSPORT PRIORITY ADDRESS PORT typ …
    candidate["candidate"].as_str()?.split_whitespace().nth(4)?.parse().ok()
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
        let mut joined = Joined::default();
        assert!(!joined.take(&message));
        assert_eq!(joined.relays.len(), 2);
        assert_eq!(joined.relays[0].urls[1], "turns:turn.example.org:443?transport=tcp");
        let credentials = &joined.relays[0].credentials;
        assert_eq!((credentials.username.as_str(), credentials.password.as_str()), ("user", "pass"));
        // Whatever else comes is no reason to panic.
        for cut in 0..message.len() {
            joined.take(&message[..cut]);
        }
    }

    #[test]
    fn addresses_are_read_out_of_candidates_until_the_last_one() {
        let trickle = |line: &str, last: &[u8]| {
            let json = format!("{{\"candidate\":\"{line}\",\"sdpMid\":\"0\"}}");
            field(4, &[&field(1, json.as_bytes())[..], &[0x10, 1], last].concat())
        };
        let mut joined = Joined::default();
        assert!(!joined.take(&trickle("candidate:1 1 udp 2130706431 172.18.0.5 7882 typ host ufrag x", b"")));
        assert!(!joined.take(&trickle("candidate:2 1 tcp 1671430143 172.18.0.5 7881 typ host tcptype passive", b"")));
        assert!(!joined.take(&trickle("candidate:3 1 udp 1 0f1c.local 1 typ host", b"")));
        assert!(!joined.take(&trickle("", b"")));
        assert!(joined.take(&trickle("candidate:4 1 udp 2130706431 fd00::5 7882 typ host", &FINAL)));
        let found: Vec<_> = joined.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(found, ["172.18.0.5", "fd00::5"]);
    }

    #[tokio::test]
    async fn a_message_is_found_behind_pings() {
        let mut bytes: &[u8] = &[0x89, 1, b'x', 0x82, 126, 0, 3, 1, 2, 3, 0x82, 0];
        assert_eq!(next_message(&mut bytes).await.unwrap(), [1, 2, 3]);
    }
}
