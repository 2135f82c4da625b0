//! Fields that are meant for one hop only (RFC 9110 section 7.6.1), both ways.

use std::borrow::Cow;

use http::{HeaderName, Method, StatusCode, Version, header};

use crate::{
    message::{Fields, Value},
    wire::{is_of_one_hop, strip_hop},
};

const WEBSOCKET: Value<'static> = Value::from_static("websocket");
const UPGRADE: Value<'static> = Value::from_static("upgrade");
const TRAILERS: Value<'static> = Value::from_static("trailers");

/// Removes the fields of one hop from a request. An upgrade to WebSocket is said anew; every other one is dropped, and so
/// is one in HTTP/1.0, which does not know the field (RFC 9110 section 7.8).
pub fn request(method: &Method, fields: &mut Fields, client: Version) {
    if !any_of_one_hop(fields) {
        return;
    }
    let websocket = client > Version::HTTP_10 && is_websocket(method, fields);
    let trailers = has_token(fields, &header::TE, "trailers");
    strip_hop(fields);
    fields.remove(header::TE);
    if trailers {
        fields.insert(header::TE, TRAILERS);
    }
    if websocket {
        fields.insert(header::CONNECTION, UPGRADE);
        fields.insert(header::UPGRADE, WEBSOCKET);
    }
}

/// Removes the fields of one hop from a response, and `Alt-Svc`: where the edge can be reached only the edge knows. A 101
/// keeps its upgrade, and so does the 426 that names one, where the client's protocol has the field.
pub fn response(status: StatusCode, fields: &mut Fields, client: Version) {
    fields.remove(header::ALT_SVC);
    if status == StatusCode::NO_CONTENT {
        // Forbidden (RFC 9110 section 8.6), and a length without its body breaks a stream of HTTP/2.
        fields.remove(header::CONTENT_LENGTH);
    }
    if !any_of_one_hop(fields) {
        return;
    }
    let upgrade = match status {
        StatusCode::SWITCHING_PROTOCOLS | StatusCode::UPGRADE_REQUIRED if client < Version::HTTP_2 => {
            fields.list(header::UPGRADE).map(Cow::into_owned)
        }
        _ => None,
    };
    strip_hop(fields);
    fields.remove(header::TE);
    if let Some(upgrade) = upgrade.as_deref().and_then(|upgrade| Value::new(upgrade).ok()) {
        fields.insert(header::CONNECTION, UPGRADE);
        fields.insert(header::UPGRADE, upgrade);
    }
}

/// Whether this asks for a WebSocket (RFC 6455 section 4.1), in any letter case and among any other tokens.
#[must_use]
pub fn is_websocket(method: &Method, fields: &Fields) -> bool {
    method == Method::GET
        && has_token(fields, &header::CONNECTION, "upgrade")
        && has_token(fields, &header::UPGRADE, "websocket")
}

/// Most messages have none of these fields, and one walk over the names they have costs a fifth of ten look-ups.
fn any_of_one_hop(fields: &Fields) -> bool {
    fields.names().any(|name| *name == header::TE || is_of_one_hop(name))
}

fn has_token(fields: &Fields, name: &HeaderName, token: &str) -> bool {
    fields.items(name).any(|t| t.eq_ignore_ascii_case(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> Fields {
        fields.iter().map(|(name, value)| (HeaderName::from_static(name), Value::from_static(value))).collect()
    }

    fn names(map: &Fields) -> Vec<&str> {
        let mut names: Vec<_> = map.names().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn fields_of_one_hop_and_those_that_connection_names_go() {
        let mut map = headers(&[
            ("host", "a"),
            ("connection", "close, X-Secret"),
            ("connection", "content-length,host"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "x"),
            ("proxy-authorization", "x"),
            ("content-length", "3"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("te", "gzip, trailers;q=0.5, trailers"),
            ("x-kept", "1"),
        ]);
        request(&Method::GET, &mut map, Version::HTTP_11);
        assert_eq!(names(&map), ["content-length", "host", "te", "x-kept"]);
        assert_eq!(map.list("te").unwrap(), &b"trailers"[..]);
    }

    #[test]
    fn only_websocket_may_upgrade() {
        for (connection, upgrade, kept) in [
            ("Upgrade", "websocket", true),
            ("keep-alive, UPGRADE", "WebSocket", true),
            ("upgrade", "h2c, websocket", true),
            ("upgrade", "h2c", false),
            ("keep-alive", "websocket", false),
        ] {
            let mut map = headers(&[("connection", connection), ("upgrade", upgrade), ("sec-websocket-key", "k")]);
            request(&Method::GET, &mut map, Version::HTTP_11);
            assert_eq!(map.list("upgrade").is_some_and(|v| *v == *b"websocket"), kept, "{connection} {upgrade}");
            assert!(map.contains("sec-websocket-key"));
        }
        let mut post = headers(&[("connection", "upgrade"), ("upgrade", "websocket")]);
        request(&Method::POST, &mut post, Version::HTTP_11);
        assert!(post.is_empty());
        let mut old = headers(&[("connection", "upgrade"), ("upgrade", "websocket")]);
        request(&Method::GET, &mut old, Version::HTTP_10);
        assert!(old.is_empty(), "HTTP/1.0 has no Upgrade");
    }

    #[test]
    fn an_answer_keeps_its_upgrade_only_where_it_means_something() {
        for (status, version, kept) in [
            (StatusCode::SWITCHING_PROTOCOLS, Version::HTTP_11, true),
            (StatusCode::UPGRADE_REQUIRED, Version::HTTP_11, true),
            (StatusCode::UPGRADE_REQUIRED, Version::HTTP_2, false),
            (StatusCode::OK, Version::HTTP_11, false),
        ] {
            let mut map = headers(&[("connection", "upgrade"), ("upgrade", "websocket"), ("trailer", "x")]);
            response(status, &mut map, version);
            assert_eq!(map.contains("upgrade"), kept);
            assert!(map.contains("trailer"));
        }
    }
}
