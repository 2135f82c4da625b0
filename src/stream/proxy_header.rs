//! The header of the PROXY protocol, version 2 (haproxy.org, `proxy-protocol.txt` section 2.2), as it is sent to a server.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2, command PROXY.
const PROXY: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// Says that the connection is from `client` to `local`.
pub fn v2(client: SocketAddr, local: SocketAddr) -> Vec<u8> {
    let mut header = Vec::with_capacity(52);
    header.extend_from_slice(SIGNATURE);
    header.push(PROXY);
    match (client.ip().to_canonical(), local.ip().to_canonical()) {
        (IpAddr::V4(client), IpAddr::V4(local)) => {
            header.extend_from_slice(&[TCP_OVER_IPV4, 0, 12]);
            header.extend_from_slice(&client.octets());
            header.extend_from_slice(&local.octets());
        }
        // The header has one family: where the two differ, IPv4 is written as IPv6 has it.
        (client, local) => {
            header.extend_from_slice(&[TCP_OVER_IPV6, 0, 36]);
            header.extend_from_slice(&mapped(client).octets());
            header.extend_from_slice(&mapped(local).octets());
        }
    }
    header.extend_from_slice(&client.port().to_be_bytes());
    header.extend_from_slice(&local.port().to_be_bytes());
    header
}

const fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_are_written_as_the_specification_has_them() {
        let four = v2("192.0.2.1:4660".parse().unwrap(), "10.0.0.1:443".parse().unwrap());
        assert_eq!(four[12..], [0x21, 0x11, 0, 12, 192, 0, 2, 1, 10, 0, 0, 1, 0x12, 0x34, 1, 187]);
        let six = v2("[2001:db8::1]:80".parse().unwrap(), "[::1]:443".parse().unwrap());
        assert_eq!((six.len(), &six[12..18]), (52, &[0x21, 0x21, 0, 36, 0x20, 1][..]));
        let mixed = v2("192.0.2.1:1".parse().unwrap(), "[2001:db8::1]:2".parse().unwrap());
        assert_eq!((mixed[13], &mixed[26..32]), (0x21, &[0xff, 0xff, 192, 0, 2, 1][..]));
    }
}
