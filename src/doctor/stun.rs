//! The part of STUN and TURN that tests a relay (RFC 8489, RFC 8656): a binding, and an allocation.

use aws_lc_rs::{
    hmac,
    rand::{SecureRandom as _, SystemRandom},
};
use md5::{Digest as _, Md5};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::message::BoxIo;

const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

const BINDING: u16 = 0x0001;
const ALLOCATE: u16 = 0x0003;
/// The class bits of a response.
const SUCCESS: u16 = 0x0100;
const ERROR: u16 = 0x0110;

const USERNAME: u16 = 0x0006;
const MESSAGE_INTEGRITY: u16 = 0x0008;
const ERROR_CODE: u16 = 0x0009;
const REALM: u16 = 0x0014;
const NONCE: u16 = 0x0015;
const REQUESTED_TRANSPORT: u16 = 0x0019;
/// The protocol number of UDP, and three reserved bytes.
const UDP: [u8; 4] = [17, 0, 0, 0];

/// The credentials of a client for a relay.
pub struct Credentials {
    pub username: String,
    pub password: String,
}

/// A STUN message of the server.
struct Message {
    kind: u16,
    attributes: Vec<(u16, Vec<u8>)>,
}

impl Message {
    fn get(&self, kind: u16) -> Option<&[u8]> {
        self.attributes.iter().find(|(found, _)| *found == kind).map(|(_, value)| value.as_slice())
    }

    /// The code and reason of an error response.
    fn error(&self) -> String {
        match self.get(ERROR_CODE) {
            Some([_, _, class, number, reason @ ..]) => {
                format!("{} {}", u16::from(*class) * 100 + u16::from(*number), String::from_utf8_lossy(reason))
            }
            _ => format!("message {:#06x}", self.kind),
        }
    }
}

/// Sends a binding request, which any STUN server answers.
///
/// # Errors
/// Why there is no answer, in words.
pub async fn binding(io: &mut BoxIo) -> Result<(), String> {
    let answer = exchange(io, &request(BINDING, &[], None)).await?;
    if answer.kind == BINDING | SUCCESS { Ok(()) } else { Err(answer.error()) }
}

/// Requests a relayed address: first without credentials to get the realm and a nonce, then with them.
///
/// # Errors
/// Why there is none, in words.
pub async fn allocate(io: &mut BoxIo, credentials: &Credentials) -> Result<(), String> {
    let transport = (REQUESTED_TRANSPORT, UDP.to_vec());
    let challenge = exchange(io, &request(ALLOCATE, std::slice::from_ref(&transport), None)).await?;
    let (Some(realm), Some(nonce)) = (challenge.get(REALM), challenge.get(NONCE)) else {
        return Err(challenge.error());
    };
    let Credentials { username, password } = credentials;
    // The long-term credential (RFC 8489 section 9.2.2).
    let key = Md5::new().chain_update(username).chain_update(":").chain_update(realm).chain_update(":");
    let key = key.chain_update(password).finalize();
    let attributes =
        [transport, (USERNAME, username.as_bytes().to_vec()), (REALM, realm.to_vec()), (NONCE, nonce.to_vec())];
    let answer = exchange(io, &request(ALLOCATE, &attributes, Some(&key))).await?;
    if answer.kind == ALLOCATE | SUCCESS { Ok(()) } else { Err(answer.error()) }
}

fn request(kind: u16, attributes: &[(u16, Vec<u8>)], key: Option<&[u8]>) -> Vec<u8> {
    let mut id = [0; 12];
    // Without randomness the id is zero, which servers accept.
    let _ = SystemRandom::new().fill(&mut id);
    let mut message = [&kind.to_be_bytes()[..], &[0, 0], &MAGIC_COOKIE, &id].concat();
    for (kind, value) in attributes {
        append(&mut message, *kind, value);
    }
    let integrity = if key.is_some() { 24 } else { 0 };
    set_length(&mut message, integrity);
    if let Some(key) = key {
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key);
        let tag = hmac::sign(&key, &message);
        append(&mut message, MESSAGE_INTEGRITY, tag.as_ref());
    }
    message
}

fn append(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

fn set_length(message: &mut [u8], more: usize) {
    let length = u16::try_from(message.len() - 20 + more).unwrap_or(u16::MAX);
    message[2..4].copy_from_slice(&length.to_be_bytes());
}

async fn exchange(io: &mut BoxIo, request: &[u8]) -> Result<Message, String> {
    let exchange = async {
        io.write_all(request).await?;
        io.flush().await?;
        let mut head = [0; 20];
        io.read_exact(&mut head).await?;
        let mut body = vec![0; usize::from(u16::from_be_bytes([head[2], head[3]]))];
        io.read_exact(&mut body).await?;
        std::io::Result::Ok((head, body))
    };
    let (head, body) = exchange.await.map_err(|error| error.to_string())?;
    if head[4..8] != MAGIC_COOKIE || head[8..20] != request[8..20] {
        return Err("the response is not STUN".to_owned());
    }
    Ok(Message { kind: u16::from_be_bytes([head[0], head[1]]) & (0x3eef | ERROR), attributes: attributes(&body) })
}

fn attributes(mut body: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut found = Vec::new();
    while let [a, b, c, d, rest @ ..] = body {
        let length = usize::from(u16::from_be_bytes([*c, *d]));
        let Some(value) = rest.get(..length) else { break };
        found.push((u16::from_be_bytes([*a, *b]), value.to_vec()));
        body = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 5769 section 2.4: a request with long-term credentials. Its attributes are in another order than ours, so only
    /// the key and the signature are compared.
    #[test]
    fn the_signature_is_that_of_the_specification() {
        let username = "\u{30de}\u{30c8}\u{30ea}\u{30c3}\u{30af}\u{30b9}";
        let key = Md5::new().chain_update(format!("{username}:example.org:TheMatrIX")).finalize();
        let mut message = [&[0, 1, 0, 0x60][..], &MAGIC_COOKIE].concat();
        message.extend_from_slice(&[0x78, 0xad, 0x34, 0x33, 0xc6, 0xad, 0x72, 0xc0, 0x29, 0xda, 0x41, 0x2e]);
        append(&mut message, USERNAME, username.as_bytes());
        append(&mut message, NONCE, b"f//499k954d6OL34oL9FSTvy64sA");
        append(&mut message, REALM, b"example.org");
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &key), &message);
        assert_eq!(tag.as_ref()[..6], [0xf6, 0x70, 0x24, 0x65, 0x6d, 0xd6]);
    }

    #[test]
    fn attributes_are_read_with_their_padding_and_broken_ones_end_the_list() {
        let mut message = vec![0; 20];
        append(&mut message, REALM, b"livekit");
        append(&mut message, NONCE, b"n");
        message.extend_from_slice(&[0, 9, 0, 200, 1]);
        assert_eq!(attributes(&message[20..]), [(REALM, b"livekit".to_vec()), (NONCE, b"n".to_vec())]);
    }
}
