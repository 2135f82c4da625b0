//! Fields that say something about one connection or one message only, wherever they turn up.

use std::cmp::Ordering;

use http::{HeaderMap, HeaderName, header};

use crate::{conn::speaks_of_client, message::Fields};

/// Fields that no `Connection` can take away, since framing and routing rest on them.
static KEPT: [HeaderName; 3] = [header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING];

/// Fields that are too late behind a body: how it was framed, where it goes and who sent it has been judged by then (RFC
/// 9110 section 6.5.1).
static TOO_LATE: [HeaderName; 10] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    header::CONTENT_RANGE,
    header::TRAILER,
    header::TE,
    header::AUTHORIZATION,
    header::COOKIE,
    header::SET_COOKIE,
];

/// Whether a field is for one hop whatever `Connection` says (RFC 9110 section 7.6.1), `Connection` itself among them.
/// `Trailer` stays: trailers pass.
///
/// Asked of every field of every message. A match tells most names by their length; an array of `HeaderName`s as a
/// constant was built and dropped at each use, which was 2,100 instructions an exchange.
#[must_use]
pub fn is_of_one_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
    )
}

/// Whether whoever sends this waits for a 100 before its body (RFC 9110 section 10.1.1).
#[must_use]
pub fn expects_continue(fields: &Fields) -> bool {
    fields.items(header::EXPECT).any(|word| word.eq_ignore_ascii_case(b"100-continue"))
}

/// Takes away what is for one hop: the usual fields, and those that `Connection` names.
pub fn strip_hop(fields: &mut Fields) {
    // In order, so that a `Connection` of thousands of words costs no more than it weighs.
    let mut named: Vec<HeaderName> = fields
        .items(header::CONNECTION)
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .filter(|name| !KEPT.contains(name))
        .collect();
    named.sort_unstable_by(by_text);
    fields.retain(|name, _| !is_of_one_hop(name) && named.binary_search_by(|other| by_text(other, name)).is_err());
}

fn by_text(a: &HeaderName, b: &HeaderName) -> Ordering {
    a.as_str().cmp(b.as_str())
}

/// What may follow a body. Some services add trailers to the fields of the head, so what a client may not say there it
/// may not say here; and HTTP/2 knows no fields of one hop.
#[must_use]
pub fn permitted_trailers(trailers: &HeaderMap) -> Fields {
    let mut trailers = Fields::from(trailers);
    strip_hop(&mut trailers);
    trailers
        .retain(|name, _| !TOO_LATE.contains(name) && !speaks_of_client(name.as_str()) && !name.as_str().contains('_'));
    trailers
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn trailers_cannot_say_what_a_head_may_not() {
        let mut trailers = HeaderMap::new();
        for name in [
            "grpc-status",
            "x-forwarded-for",
            "x-matrix-origin",
            "x-real-ip",
            "forwarded",
            "content-length",
            "transfer-encoding",
            "host",
            "authorization",
            "cookie",
            "x_forwarded_for",
            "connection",
            "x-hop",
        ] {
            trailers.insert(name, HeaderValue::from_static("x-hop"));
        }
        let permitted = permitted_trailers(&trailers);
        assert_eq!(permitted.names().map(HeaderName::as_str).collect::<Vec<_>>(), ["grpc-status"]);
    }
}
