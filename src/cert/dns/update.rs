//! Dynamic updates (RFC 2136) over TCP, signed with a shared key (TSIG, RFC 8945).

use std::{
    io,
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::hmac;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{DnsError, command::Action};
use crate::config::plan::{Rfc2136, TsigAlgorithm};

/// Bound on one update, from dial to answer.
const LIMIT: Duration = Duration::from_secs(15);

/// How long a resolver may keep the record: shorter than the time between two orders of a name.
const TTL: u32 = 60;

/// How far the clocks may be apart, in seconds (RFC 8945 section 10 recommends it).
const FUDGE: u16 = 300;

const UPDATE: u16 = 5 << 11;
const SOA: u16 = 6;
const TXT: u16 = 16;
const TSIG: u16 = 250;
const IN: u16 = 1;
const NONE: u16 = 254;
const ANY: u16 = 255;

/// Adds a record or removes it; others of the same name stay, so that names that are ordered together do not collide.
pub async fn send(
    server: &Rfc2136,
    zone: &str,
    action: Action,
    name: &str,
    value: &str,
    now: SystemTime,
) -> Result<(), DnsError> {
    let failed = |reason: String| DnsError::Update { server: server.address, name: name.to_owned(), reason };
    let secret = server.key_secret.read().map_err(|(path, source)| DnsError::Secret { path, source })?;
    let secret = BASE64_STANDARD.decode(secret.trim()).map_err(|_| failed("the key is not base64".into()))?;
    let message = signed(update(zone, action, name, value), server, &secret, now);
    let answer = timeout(LIMIT, exchange(server.address, &message)).await;
    let answer = answer.map_err(|_| failed("it does not answer".into()))?.map_err(|error| failed(error.to_string()))?;
    match answer.get(3).map(|byte| byte & 0x0f) {
        Some(0) => Ok(()),
        code => Err(failed(rcode(code).to_owned())),
    }
}

fn rcode(code: Option<u8>) -> &'static str {
    match code {
        Some(1) => "it does not understand the update (FORMERR)",
        Some(2) => "it failed (SERVFAIL)",
        Some(4) => "it takes no updates (NOTIMP)",
        Some(5) => "it refuses (REFUSED): may this key change this zone?",
        Some(9) => {
            "it does not accept the signature (NOTAUTH): are the key, its name and algorithm, the zone and the clocks right?"
        }
        Some(10) => "the name is not in the zone (NOTZONE)",
        _ => "it answered with an error",
    }
}

async fn exchange(server: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    if answer.get(..2) != message.get(..2) {
        return Err(io::Error::other("the answer is for another question"));
    }
    Ok(answer)
}

/// A message with one update and without a signature. The id is fixed: a connection carries one message.
fn update(zone: &str, action: Action, name: &str, value: &str) -> Vec<u8> {
    let mut message = Vec::new();
    for word in [0x7675, UPDATE, 1, 0, 1, 0] {
        push_u16(&mut message, word);
    }
    push_name(&mut message, zone);
    push_u16(&mut message, SOA);
    push_u16(&mut message, IN);
    push_name(&mut message, name);
    push_u16(&mut message, TXT);
    let (class, ttl) = match action {
        Action::Present => (IN, TTL),
        Action::Cleanup => (NONE, 0),
    };
    push_u16(&mut message, class);
    message.extend(ttl.to_be_bytes());
    // The digest of a key authorization has 43 characters: one string takes it.
    let value = &value.as_bytes()[..value.len().min(255)];
    push_u16(&mut message, u16::try_from(value.len() + 1).unwrap_or(u16::MAX));
    message.push(u8::try_from(value.len()).unwrap_or(u8::MAX));
    message.extend(value);
    message
}

/// Appends the signature (RFC 8945 section 4.3.3).
fn signed(mut message: Vec<u8>, server: &Rfc2136, secret: &[u8], now: SystemTime) -> Vec<u8> {
    let (algorithm, digest) = match server.algorithm {
        TsigAlgorithm::HmacSha256 => ("hmac-sha256", hmac::HMAC_SHA256),
        TsigAlgorithm::HmacSha384 => ("hmac-sha384", hmac::HMAC_SHA384),
        TsigAlgorithm::HmacSha512 => ("hmac-sha512", hmac::HMAC_SHA512),
    };
    let mut key_name = Vec::new();
    push_name(&mut key_name, &server.key_name);
    let mut algorithm_name = Vec::new();
    push_name(&mut algorithm_name, algorithm);
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut time = seconds.to_be_bytes()[2..].to_vec();
    push_u16(&mut time, FUDGE);
    let class_and_ttl = [ANY.to_be_bytes().as_slice(), &[0; 4]].concat();
    let no_error = [0; 4];
    let parts = [&message[..], &key_name, &class_and_ttl, &algorithm_name, &time, &no_error];
    let mac = hmac::sign(&hmac::Key::new(digest, secret), &parts.concat());
    let mac = mac.as_ref();
    let id = [message[0], message[1]];
    let size = u16::try_from(mac.len()).unwrap_or_default().to_be_bytes();
    let data = [&algorithm_name[..], &time, &size, mac, &id, &no_error].concat();
    message.extend(key_name);
    push_u16(&mut message, TSIG);
    message.extend(class_and_ttl);
    push_u16(&mut message, u16::try_from(data.len()).unwrap_or_default());
    message.extend(data);
    // The count of additional records.
    message[11] = 1;
    message
}

fn push_u16(message: &mut Vec<u8>, word: u16) {
    message.extend(word.to_be_bytes());
}

/// A name in wire form, lower case as the signature wants it, without compression.
fn push_name(message: &mut Vec<u8>, name: &str) {
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let label = &label.as_bytes()[..label.len().min(63)];
        message.push(u8::try_from(label.len()).unwrap_or_default());
        message.extend(label.to_ascii_lowercase());
    }
    message.push(0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::plan::Secret;

    #[test]
    fn an_update_has_the_form_of_the_rfcs() {
        let server = Rfc2136 {
            address: ([127, 0, 0, 1], 53).into(),
            zone: None,
            key_name: "Key.Example".into(),
            key_secret: Secret::Text("c2VjcmV0".into()),
            algorithm: TsigAlgorithm::HmacSha256,
        };
        let now = UNIX_EPOCH + Duration::from_secs(0x0001_0203_0405);
        let bare = update("example.org", Action::Present, "_acme-challenge.example.org", "value");
        // An update with one zone and one record, and no signature yet (RFC 2136 section 2.2).
        assert_eq!(bare[2..12], [0x28, 0, 0, 1, 0, 0, 0, 1, 0, 0]);
        assert!(bare.ends_with(b"\0\x10\0\x01\0\0\0\x3c\0\x06\x05value"));
        let gone = update("example.org", Action::Cleanup, "_acme-challenge.example.org", "value");
        assert!(gone.ends_with(b"\0\x10\0\xfe\0\0\0\0\0\x06\x05value"), "this record and no other");
        let message = signed(bare.clone(), &server, b"secret", now);
        assert_eq!(message[11], 1);
        let key = b"\x03key\x07example\0\0\xfa\0\xff\0\0\0\0";
        assert!(message[bare.len()..].starts_with(key), "the name in lower case");
        assert!(message.windows(8).any(|part| part == [0, 1, 2, 3, 4, 5, 1, 44]), "48 bits of time, and five minutes");
        assert_ne!(message, signed(bare, &server, b"other", now));
    }
}
