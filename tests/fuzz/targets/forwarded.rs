//! The fields that speak of a client: a stranger is never believed, a proxy never beyond what it can know, and what goes
//! on is one bare address.
#![no_main]

use std::net::{IpAddr, SocketAddr};

use http::HeaderName;
use ipnet::IpNet;
use libfuzzer_sys::fuzz_target;
use vestibule::{
    conn::ConnInfo,
    layer::forwarded::Client,
    message::{Fields, Value},
};

fuzz_target!(|bytes: &[u8]| {
    let trusted: [IpNet; 2] = ["10.0.0.0/8".parse().expect("a network"), "fd00::/8".parse().expect("a network")];
    let headers = fields(bytes);
    for (peer, is_trusted) in [("192.0.2.1:9", false), ("10.0.0.1:9", true)] {
        let peer: SocketAddr = peer.parse().expect("an address");
        let conn = ConnInfo { peer, client: peer, port: 443, tls: None };
        let client = Client::find(&conn, &headers, &trusted);
        assert!(is_trusted || client.ip == peer.ip(), "a stranger is who it is");
        let mut sent = headers.clone();
        client.announce(&mut sent);
        let announced: Vec<_> = sent.get_all("x-forwarded-for").collect();
        assert_eq!(announced.len(), 1);
        let ip: IpAddr = announced[0].to_str().expect("text").parse().expect("one bare address");
        assert_eq!(ip, client.ip);
        for name in ["x-forwarded-proto", "x-request-id"] {
            assert_eq!(sent.get_all(name).count(), 1);
        }
        for name in ["forwarded", "x-real-ip", "proxy", "true-client-ip", "x-matrix-origin", "x-forwarded-port"] {
            assert!(!sent.contains(name), "{name}");
        }
    }
});

/// `Name: value` lines; what is no field is passed over.
fn fields(bytes: &[u8]) -> Fields {
    let mut map = Fields::new();
    for line in bytes.split(|b| *b == b'\n') {
        let Some(colon) = line.iter().position(|b| *b == b':') else { continue };
        let value = Value::new(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(&line[..colon]), value) {
            map.append(name, value);
        }
    }
    map
}
