//! The opening handshake of a WebSocket, from the side of a client (RFC 6455 section 4.1).

use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Version, header};

use crate::message::{Fields, Value};

/// What a server joins to the key of its client (RFC 6455 section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Whether a 101 is the answer to the WebSocket that was asked for: it names that protocol alone, and its
/// `Sec-WebSocket-Accept` is made of the key of the request. With another one it is the answer to another request, out of
/// a cache. Where there is none, a client of HTTP/1.1 sees that for itself; on a stream of HTTP/2 only we can (RFC 8441
/// section 5 drops the field).
pub fn is_accepted(request: &Fields, client: Version, answer: &Fields) -> bool {
    let mut protocols = answer.items(header::UPGRADE);
    let is_websocket = protocols.next().is_some_and(|protocol| protocol.eq_ignore_ascii_case(b"websocket"));
    if !is_websocket || protocols.next().is_some() {
        return false;
    }
    let accept = answer.get(header::SEC_WEBSOCKET_ACCEPT).map(Value::as_bytes);
    let proof = request.get(header::SEC_WEBSOCKET_KEY).map(|key| proof(key.as_bytes()));
    let is_single = answer.get_all(header::SEC_WEBSOCKET_ACCEPT).nth(1).is_none();
    let is_proven = is_single && accept == proof.as_ref().map(String::as_bytes);
    is_proven || accept.is_none() && client < Version::HTTP_2
}

/// The `Sec-WebSocket-Accept` of a key.
fn proof(key: &[u8]) -> String {
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key);
    hash.update(GUID);
    STANDARD.encode(hash.finish())
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn fields(all: &[(&'static str, &'static str)]) -> Fields {
        all.iter().map(|(name, value)| (HeaderName::from_static(name), Value::from_static(value))).collect()
    }

    #[test]
    fn only_the_proof_for_the_key_is_accepted() {
        // The example of RFC 6455 section 1.3.
        let request = fields(&[("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")]);
        let right = ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let websocket = ("upgrade", "WebSocket");
        for client in [Version::HTTP_11, Version::HTTP_2] {
            let accepts = |answer: &[_]| is_accepted(&request, client, &fields(answer));
            assert!(accepts(&[websocket, right]));
            for wrong in [
                &[right][..],
                &[("upgrade", "h2c"), right],
                &[("upgrade", "websocket, h2c"), right],
                &[websocket, right, right],
                &[websocket, ("sec-websocket-accept", "S3pPLMBiTxaQ9kYGzzhZRbK+xOo=")],
                &[websocket, ("sec-websocket-accept", "")],
            ] {
                assert!(!accepts(wrong), "{wrong:?}");
            }
            assert_eq!(accepts(&[websocket]), client == Version::HTTP_11);
            assert!(!is_accepted(&fields(&[]), client, &fields(&[websocket, right])), "a proof of nothing");
        }
    }
}
