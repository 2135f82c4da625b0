//! Who the client is, as far as it may be believed, and how the upstream hears of it.
//!
//! Synapse takes the first value of the first `X-Forwarded-For` without a look, so exactly one
//! bare address is sent, and nothing that a client wrote survives.

use std::{io::Write as _, net::IpAddr};

use http::{HeaderName, HeaderValue, header, uri::Scheme};
use ipnet::IpNet;

use super::request_id::{RequestId, X_REQUEST_ID};
use crate::{
    conn::{ConnInfo, speaks_of_client},
    message::{Fields, Value},
};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// What is known of the client of one request.
#[derive(Debug, Clone)]
pub struct Client {
    /// The address that counts: for limits, rules and logs, and for the upstream.
    pub ip: IpAddr,
    /// The scheme that the client used towards the outermost proxy that is trusted.
    pub scheme: Scheme,
    /// The id of the exchange.
    pub id: RequestId,
    host: Option<HeaderValue>,
}

impl Client {
    /// Finds the client, right to left through the proxies that are trusted.
    #[must_use]
    pub fn find(conn: &ConnInfo, fields: &Fields, trusted: &[IpNet]) -> Self {
        let is_trusted = |ip: IpAddr| trusted.iter().any(|network| network.contains(&ip));
        let mut ip = conn.client.ip();
        if trusted.is_empty() || !is_trusted(ip) {
            return Self { ip, scheme: conn.scheme(), id: RequestId::new(), host: None };
        }
        for hop in hops(fields) {
            // Whatever is no address was not written by a proxy of ours: believe no further.
            let Some(hop) = hop else { break };
            ip = hop;
            if !is_trusted(ip) {
                break;
            }
        }
        let scheme = forwarded_scheme(fields).unwrap_or_else(|| conn.scheme());
        let id = RequestId::from_trusted(fields).unwrap_or_default();
        Self { ip, scheme, id, host: fields.get(X_FORWARDED_HOST).map(Value::to_owned) }
    }

    /// Replaces everything that speaks of the client by what we know.
    pub fn announce(&self, fields: &mut Fields) {
        fields.retain(|name, _| !speaks_of_client(name.as_str()));
        // None of these is there any more, so nobody has to look.
        fields.append(X_FORWARDED_FOR, value(self.ip, &mut [0; 48]));
        let https = self.scheme == Scheme::HTTPS;
        fields.append(X_FORWARDED_PROTO, Value::from_static(if https { "https" } else { "http" }));
        match &self.host {
            Some(host) => fields.append(X_FORWARDED_HOST, host.into()),
            None => fields.repeat(&header::HOST, X_FORWARDED_HOST),
        }
        fields.append(X_REQUEST_ID, self.id.value());
    }
}

/// The scheme that `X-Forwarded-Proto` speaks of: its first member, in any letter case, as proxies that append write the
/// client's scheme first. A WebSocket's `wss` and `ws` (Traefik) are `https` and `http`.
pub fn forwarded_scheme(fields: &Fields) -> Option<Scheme> {
    match fields.items(X_FORWARDED_PROTO).next()?.to_ascii_lowercase().as_slice() {
        b"https" | b"wss" => Some(Scheme::HTTPS),
        b"http" | b"ws" => Some(Scheme::HTTP),
        _ => None,
    }
}

/// An address as a field value, written on the stack: a `String` grows twice on its way.
fn value(ip: IpAddr, text: &mut [u8; 48]) -> Value<'_> {
    let len = match ip {
        IpAddr::V4(ip) => dotted(ip.octets(), text),
        IpAddr::V6(ip) => {
            let mut rest = &mut text[..];
            write!(rest, "{ip}").expect("the longest address has 45 characters");
            48 - rest.len()
        }
    };
    Value::new(&text[..len]).expect("an address is a valid value")
}

/// What `Display` writes, without the 1,300 instructions that its padding and its four inner formatters take.
fn dotted(octets: [u8; 4], out: &mut [u8; 48]) -> usize {
    let mut at = 0;
    let mut push = |byte| {
        out[at] = byte;
        at += 1;
    };
    for (index, octet) in octets.into_iter().enumerate() {
        if index > 0 {
            push(b'.');
        }
        if octet >= 100 {
            push(b'0' + octet / 100);
        }
        if octet >= 10 {
            push(b'0' + octet / 10 % 10);
        }
        push(b'0' + octet % 10);
    }
    at
}

/// The addresses of all `X-Forwarded-For` fields, last first; `None` for what is no address.
fn hops(fields: &Fields) -> impl Iterator<Item = Option<IpAddr>> {
    let fields: Vec<Value<'_>> = fields.get_all(X_FORWARDED_FOR).collect();
    fields.into_iter().rev().flat_map(|field| {
        field
            .as_bytes()
            .rsplit(|b| *b == b',')
            .map(|hop| std::str::from_utf8(hop).ok().and_then(|hop| address(hop.trim())))
    })
}

/// An address as proxies write them: bare, in brackets, or with a port.
fn address(text: &str) -> Option<IpAddr> {
    let ip: Option<IpAddr> =
        text.parse().ok().or_else(|| text.parse::<std::net::SocketAddr>().ok().map(|addr| addr.ip()));
    ip.or_else(|| text.strip_prefix('[')?.strip_suffix(']')?.parse().ok()).map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conn(peer: &str) -> ConnInfo {
        let peer = format!("{peer}:1000").parse().unwrap();
        ConnInfo { peer, client: peer, port: 443, tls: None }
    }

    fn headers(fields: &[(&'static str, &'static str)]) -> Fields {
        fields.iter().map(|(name, value)| (HeaderName::from_static(name), Value::from_static(value))).collect()
    }

    #[test]
    fn addresses_are_written_as_everybody_writes_them() {
        for octet in 0..=255 {
            for ip in [[octet, 0, 10, 255], [127, octet, octet, octet]].map(IpAddr::from) {
                assert_eq!(value(ip, &mut [0; 48]), ip.to_string().as_str());
            }
        }
        for ip in ["::1", "2001:db8::192.0.2.1", "1111:2222:3333:4444:5555:6666:7777:8888"] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(value(ip, &mut [0; 48]), ip.to_string().as_str());
        }
    }

    #[test]
    fn the_client_is_found_right_to_left() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
        for (peer, fields, client) in [
            ("192.0.2.1", &[("x-forwarded-for", "198.51.100.1")][..], "192.0.2.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &[("x-forwarded-for", "198.51.100.1")], "198.51.100.1"),
            ("10.0.0.1", &[("x-forwarded-for", "6.6.6.6, 198.51.100.1, 10.0.0.2")], "198.51.100.1"),
            (
                "10.0.0.1",
                &[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "198.51.100.1:80,10.0.0.2")],
                "198.51.100.1",
            ),
            ("10.0.0.1", &[("x-forwarded-for", "10.0.0.3, 10.0.0.2")], "10.0.0.3"),
            ("10.0.0.1", &[("x-forwarded-for", "6.6.6.6, junk, 10.0.0.2")], "10.0.0.2"),
            ("10.0.0.1", &[("x-forwarded-for", "[2001:db8::1]:443")], "2001:db8::1"),
            ("10.0.0.1", &[("x-forwarded-for", "::ffff:198.51.100.1")], "198.51.100.1"),
        ] {
            let found = Client::find(&conn(peer), &headers(fields), &trusted);
            assert_eq!(found.ip, client.parse::<IpAddr>().unwrap(), "{peer} {fields:?}");
        }
    }

    #[test]
    fn the_scheme_is_the_first_member_of_the_list() {
        for (lines, scheme) in [
            (&["https"][..], Some(Scheme::HTTPS)),
            (&["HTTPS"], Some(Scheme::HTTPS)),
            (&["wss"], Some(Scheme::HTTPS)),
            (&["https,http"], Some(Scheme::HTTPS)),
            (&[" https , http"], Some(Scheme::HTTPS)),
            (&["https", "http"], Some(Scheme::HTTPS)),
            (&["ws"], Some(Scheme::HTTP)),
            (&["Http, https"], Some(Scheme::HTTP)),
            (&["gopher"], None),
            (&[""], None),
            (&[], None),
        ] {
            let fields: Vec<_> = lines.iter().map(|line| ("x-forwarded-proto", *line)).collect();
            assert_eq!(forwarded_scheme(&headers(&fields)), scheme, "{lines:?}");
        }
    }

    #[test]
    fn nothing_that_a_stranger_wrote_survives() {
        let mut map = headers(&[
            ("host", "matrix.example.org:443"),
            ("x-forwarded-for", "1.1.1.1, 2.2.2.2"),
            ("x-forwarded-for", "3.3.3.3"),
            ("x-forwarded-proto", "gopher"),
            ("x-forwarded-host", "evil"),
            ("x-forwarded-anything", "evil"),
            ("forwarded", "for=1.1.1.1"),
            ("x-real-ip", "1.1.1.1"),
            ("cf-connecting-ip", "1.1.1.1"),
            ("true-client-ip", "1.1.1.1"),
            ("x-client-ip", "1.1.1.1"),
            ("x-matrix-user-identifier", "@root:example.org"),
            ("proxy", "http://evil"),
            ("x-request-id", "mine"),
            ("x-kept", "yes"),
        ]);
        let client = Client::find(&conn("192.0.2.1"), &map, &[]);
        client.announce(&mut map);
        let sent: Vec<_> =
            map.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap().to_owned())).collect();
        let field = |name| sent.iter().filter(|(n, _)| *n == name).map(|(_, v)| v.as_str()).collect::<Vec<_>>();
        assert_eq!(field("x-forwarded-for"), ["192.0.2.1"]);
        assert_eq!(field("x-forwarded-proto"), ["http"]);
        assert_eq!(field("x-forwarded-host"), ["matrix.example.org:443"]);
        assert_eq!(field("x-request-id"), [client.id.as_str()]);
        assert_eq!(sent.len(), 6, "{sent:?}");
    }
}
