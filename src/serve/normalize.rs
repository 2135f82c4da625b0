//! Settles what a request is for, or refuses it: one authority, one form of target, no method that is not for an origin.
//! Pure. The bytes of the path are not touched.

use http::{HeaderValue, Method, Uri, Version, header, uri::PathAndQuery};

use crate::{
    error::Kind,
    message::{Fields, Value},
    wire::{
        RequestHead,
        h2::{Head, Protocol, Scheme},
    },
};

/// Settles a request of HTTP/1.1 (RFC 9112 section 3.2).
///
/// # Errors
/// 400 for every doubt, 405 for CONNECT and TRACE.
pub fn http1(head: &mut RequestHead) -> Result<(), Kind> {
    method(&head.method)?;
    scheme(&head.target)?;
    let target = target(&head.target, &head.method)?;
    let host = single_host(&head.fields)?;
    // The authority of an absolute-form target wins over Host (section 3.2.2); a client that says two different things
    // is refused instead, since somebody behind us may see it the other way round.
    let authority = match (head.target.authority(), host) {
        (Some(authority), Some(host)) if !same(authority.as_str(), host) => {
            return Err(Kind::BadRequest("Host differs from the target"));
        }
        (Some(authority), _) => Some(authority.as_str()),
        (None, host) => host,
    };
    let Some(authority) = authority else { return Err(Kind::BadRequest("there is no Host")) };
    check_authority(authority)?;
    if host != Some(authority) {
        let value = HeaderValue::try_from(authority).map_err(|_| Kind::BadRequest("Host is malformed"))?;
        head.fields.insert(header::HOST, (&value).into());
    }
    if head.target.authority().is_some() {
        head.target = Uri::from(target);
    }
    // Who speaks HTTP/1.0 cannot wait for a 100 (RFC 9110 section 10.1.1).
    if head.version == Version::HTTP_10 {
        head.fields.remove(header::EXPECT);
    }
    Ok(())
}

/// Settles a request of HTTP/2 (RFC 9113 section 8.3, RFC 8441 section 4), whose fields have been judged one by one where
/// they were read. A WebSocket becomes the GET that it is elsewhere.
///
/// # Errors
/// 400 for every doubt, 405 for TRACE and for a CONNECT without a protocol, 431 for too much, 501 for a protocol that is
/// not `websocket`.
pub fn multiplexed(head: &mut Head) -> Result<(Method, Uri), Kind> {
    if head.too_large {
        return Err(Kind::HeadTooLarge);
    }
    if let Some(why) = head.malformed {
        return Err(Kind::BadRequest(why));
    }
    let wanted = match (head.method.take(), head.protocol) {
        (Some(Method::CONNECT), Some(Protocol::WebSocket)) => Method::GET,
        (_, Some(_)) => return Err(Kind::UnknownProtocol),
        (Some(wanted), None) => wanted,
        (None, None) => return Err(Kind::BadRequest("there is no :method")),
    };
    method(&wanted)?;
    match head.scheme {
        Some(Scheme::Http) => {}
        Some(Scheme::Other) => return Err(Kind::BadRequest("the scheme is neither http nor https")),
        None => return Err(Kind::BadRequest("there is no :scheme")),
    }
    let target = head.path.as_ref().ok_or(Kind::BadRequest("there is no :path"))?;
    if !(target.as_str().starts_with('/') || *target == "*" && wanted == Method::OPTIONS) {
        return Err(Kind::BadRequest("the target is not a path"));
    }
    let host = single_host(&head.fields)?;
    match (head.authority.take(), host) {
        (Some(authority), host) => {
            let said = authority.to_str().map_err(|_| Kind::BadRequest(":authority is malformed"))?;
            if host.is_some_and(|host| !same(said, host)) {
                return Err(Kind::BadRequest("Host differs from :authority"));
            }
            check_authority(said)?;
            head.fields.insert(header::HOST, (&authority).into());
        }
        (None, Some(host)) => check_authority(host)?,
        (None, None) => return Err(Kind::BadRequest("there is no :authority")),
    }
    join_cookies(&mut head.fields);
    // Taken only now: whoever refuses the request wants to know what it was for.
    Ok((wanted, head.path.take().map(Uri::from).unwrap_or_default()))
}

/// CONNECT is for forward proxies; TRACE shows a script what it may not read (RFC 9110 section 9.3.8).
fn method(method: &Method) -> Result<(), Kind> {
    if matches!(*method, Method::CONNECT | Method::TRACE) { Err(Kind::MethodNotAllowed) } else { Ok(()) }
}

/// We are an origin of two schemes, and no gateway to others (RFC 9110 section 7.4). Which of the two a target names does
/// not matter: what counts is how the connection is made.
fn scheme(uri: &Uri) -> Result<(), Kind> {
    match uri.scheme_str() {
        None | Some("http" | "https") => Ok(()),
        Some(_) => Err(Kind::BadRequest("the scheme is neither http nor https")),
    }
}

/// The target as it goes on: origin-form, or the asterisk that only OPTIONS may use.
fn target(uri: &Uri, method: &Method) -> Result<PathAndQuery, Kind> {
    let malformed = Kind::BadRequest("the target is not a path");
    let target = uri.path_and_query().ok_or(malformed)?;
    match target.as_str() {
        "*" if method == Method::OPTIONS => Ok(target.clone()),
        path if path.starts_with('/') => Ok(target.clone()),
        // `GET http://host?query`: an empty path is `/` (RFC 9110 section 4.2.3).
        query if query.starts_with('?') && uri.authority().is_some() => {
            PathAndQuery::try_from(format!("/{query}")).map_err(|_| malformed)
        }
        _ => Err(malformed),
    }
}

fn single_host(fields: &Fields) -> Result<Option<&str>, Kind> {
    let mut hosts = fields.get_all(header::HOST);
    let Some(host) = hosts.next() else { return Ok(None) };
    if hosts.next().is_some() {
        return Err(Kind::BadRequest("there are several Host fields"));
    }
    host.to_str().map(Some).ok_or(Kind::BadRequest("Host is malformed"))
}

/// A host with an optional port, and nothing else: user information is for a phisher's link, not for a request, and a
/// comma makes two hosts for some readers.
fn check_authority(authority: &str) -> Result<(), Kind> {
    let (host, port) = match memchr::memrchr(b':', authority.as_bytes()) {
        Some(colon) if memchr::memchr(b']', &authority.as_bytes()[colon..]).is_none() => {
            (&authority[..colon], &authority[colon + 1..])
        }
        _ => (authority, ""),
    };
    let name = |b: u8| matches!(b, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_');
    let valid_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(name),
    };
    let valid_port = port.is_empty() || (port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok());
    if valid_host && valid_port { Ok(()) } else { Err(Kind::BadRequest("Host is malformed")) }
}

fn same(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b)
}

/// HTTP/2 clients send a cookie in crumbs, which mean several cookies to HTTP/1.1 (RFC 9113 section 8.2.3).
fn join_cookies(fields: &mut Fields) {
    if fields.get_all(header::COOKIE).nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = fields.get_all(header::COOKIE).map(Value::as_bytes).collect();
    let joined = crumbs.join(&b"; "[..]);
    fields.insert(header::COOKIE, Value::new(&joined).expect("made of valid values"));
}

/// Turns an extended CONNECT for a WebSocket (RFC 8441) into the request that an HTTP/1.1 upstream understands. The key
/// only proves that the upstream speaks WebSocket; the upstream's client checks its answer and drops it.
pub fn websocket_to_http1(fields: &mut Fields, key: &str) {
    fields.insert(header::CONNECTION, Value::from_static("upgrade"));
    fields.insert(header::UPGRADE, Value::from_static("websocket"));
    fields.insert(header::SEC_WEBSOCKET_KEY, Value::new(key.as_bytes()).expect("base64 is a valid value"));
    fields.insert_if_absent(header::SEC_WEBSOCKET_VERSION, Value::from_static("13"));
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::wire::{HeadLimits, h2::Decoder, parse_request};

    fn settle(head: &str) -> Result<(String, String), Kind> {
        let limits = HeadLimits { bytes: 1 << 15, fields: 100, target: 1 << 15 };
        let mut head = parse_request(head.as_bytes(), &limits).unwrap();
        http1(&mut head)?;
        assert!(head.target.authority().is_none());
        Ok((head.target.to_string(), head.fields.get(header::HOST).unwrap().to_str().unwrap().to_owned()))
    }

    fn is_bad(result: Result<(String, String), Kind>) -> bool {
        matches!(result, Err(Kind::BadRequest(_)))
    }

    #[test]
    fn a_request_has_one_authority() {
        let ok = |head: &str| settle(head).unwrap();
        assert_eq!(ok("GET /a HTTP/1.1\r\nHost: A.b:443\r\n\r\n"), ("/a".into(), "A.b:443".into()));
        assert_eq!(ok("GET http://a.b/c?d HTTP/1.1\r\nHost: a.b\r\n\r\n"), ("/c?d".into(), "a.b".into()));
        assert_eq!(ok("GET http://a.b HTTP/1.1\r\nHost: a.b\r\n\r\n"), ("/".into(), "a.b".into()));
        assert_eq!(ok("GET http://a.b?x HTTP/1.1\r\nHost: a.b\r\n\r\n"), ("/?x".into(), "a.b".into()));
        assert_eq!(ok("GET /a HTTP/1.1\r\nHost: [::1]:443\r\n\r\n").1, "[::1]:443");
        for host in ["", "a b", "u@a.b", "a.b:x", "a.b:99999", "a.b:-1", ":80", "a/b", "a?b", "a.b,c.d"] {
            assert!(is_bad(settle(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"))), "{host:?}");
        }
        assert!(is_bad(settle("GET / HTTP/1.1\r\n\r\n")));
        assert!(is_bad(settle("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n")));
        assert!(is_bad(settle("GET http://a.b/ HTTP/1.1\r\nHost: c.d\r\n\r\n")));
        assert!(is_bad(settle("GET http://u@a.b/ HTTP/1.1\r\nHost: u@a.b\r\n\r\n")));
        assert!(is_bad(settle("GET ftp://a.b/ HTTP/1.1\r\nHost: a.b\r\n\r\n")));
    }

    #[test]
    fn only_targets_that_an_origin_understands_pass() {
        assert!(is_bad(settle("GET a HTTP/1.1\r\nHost: a\r\n\r\n")));
        assert!(is_bad(settle("GET a:443 HTTP/1.1\r\nHost: a\r\n\r\n")));
        assert!(is_bad(settle("GET * HTTP/1.1\r\nHost: a\r\n\r\n")));
        assert_eq!(settle("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").unwrap().0, "*");
        assert_eq!(settle("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n"), Err(Kind::MethodNotAllowed));
        assert_eq!(settle("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n"), Err(Kind::MethodNotAllowed));
    }

    /// The head that a client would send for a URI and some fields.
    fn settle2(scheme: &str, authority: Option<&str>, path: &str, fields: &[(&str, &str)]) -> Result<Head, Kind> {
        let pseudo = [(":method", "GET"), (":scheme", scheme), (":path", path)];
        let authority = authority.map(|authority| (":authority", authority));
        let mut block = Vec::new();
        for (name, value) in pseudo.into_iter().chain(authority).chain(fields.iter().copied()) {
            block.push(0);
            for text in [name, value] {
                block.push(text.len().try_into().unwrap());
                block.extend_from_slice(text.as_bytes());
            }
        }
        let mut head = Decoder::new(1 << 15).decode(&block).unwrap();
        let (method, uri) = multiplexed(&mut head)?;
        assert_eq!((method, uri.to_string().as_str()), (Method::GET, path));
        Ok(head)
    }

    #[test]
    fn http2_is_held_to_the_same() {
        let crumbs = [("cookie", "a=1"), ("cookie", "b=2"), ("x_y", "1")];
        let headers = settle2("https", Some("a.b:443"), "/c?d", &crumbs).unwrap().fields;
        assert_eq!(
            ["host", "cookie"].map(|name| headers.get(name).unwrap().to_str().unwrap()),
            ["a.b:443", "a=1; b=2"]
        );
        assert!(!headers.contains("x_y"));
        assert_eq!(settle2("https", None, "/c", &[("host", "a.b")]).unwrap().fields.get("host").unwrap(), "a.b");
        let host = Some("a.b");
        for (scheme, authority, path, fields) in [
            ("https", None, "/c", &[][..]),
            ("https", host, "/c", &[("host", "c.d")]),
            ("https", host, "/c", &[("host", "a.b"), ("host", "a.b")]),
            ("https", Some("u@a.b"), "/c", &[]),
            ("https", Some(""), "/c", &[]),
            ("ftp", host, "/c", &[]),
            ("https", host, "*", &[]),
            ("https", host, "c", &[]),
            ("https", host, "?c", &[]),
            ("https", host, "", &[]),
            ("https", host, "/", &[("connection", "close")]),
            ("https", host, "/", &[("transfer-encoding", "chunked")]),
            ("https", host, "/", &[("upgrade", "websocket")]),
        ] {
            assert!(settle2(scheme, authority, path, fields).is_err(), "{scheme} {authority:?} {path} {fields:?}");
        }
    }
}
