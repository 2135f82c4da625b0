//! IP addresses as names of certificates (RFC 8738): how a CA names one in its hello.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The host that a CA validates by TLS-ALPN-01: the name of its hello in lower case, or the address whose reverse name
/// it is (RFC 8738 section 6), since an address cannot stand in a hello.
pub fn validated_host(server_name: &str) -> String {
    let name = server_name.trim_end_matches('.').to_ascii_lowercase();
    of_reverse_name(&name).map_or(name, |address| address.to_string())
}

fn of_reverse_name(name: &str) -> Option<IpAddr> {
    if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
        let octets: Vec<u8> = labels.rsplit('.').map(|label| label.parse().ok()).collect::<Option<_>>()?;
        return <[u8; 4]>::try_from(octets).ok().map(|octets| Ipv4Addr::from(octets).into());
    }
    let labels: Vec<_> = name.strip_suffix(".ip6.arpa")?.rsplit('.').collect();
    let is_nibble = |label: &&str| label.len() == 1 && label.as_bytes()[0].is_ascii_hexdigit();
    if labels.len() != 32 || !labels.iter().all(is_nibble) {
        return None;
    }
    let bits = u128::from_str_radix(&labels.concat(), 16).ok()?;
    Some(Ipv6Addr::from_bits(bits).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reverse_name_of_an_address_stands_for_it() {
        let six = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.B.D.0.1.0.0.2.ip6.arpa";
        for (name, host) in [
            ("1.2.0.192.in-addr.arpa", "192.0.2.1"),
            ("1.2.0.192.IN-ADDR.arpa.", "192.0.2.1"),
            (six, "2001:db8::1"),
            ("Example.org", "example.org"),
            ("2.0.192.in-addr.arpa", "2.0.192.in-addr.arpa"),
            ("1.2.0.256.in-addr.arpa", "1.2.0.256.in-addr.arpa"),
            ("1.0.ip6.arpa", "1.0.ip6.arpa"),
        ] {
            assert_eq!(validated_host(name), host, "{name}");
        }
    }
}
