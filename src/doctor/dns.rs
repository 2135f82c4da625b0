//! DNS: whether names resolve, and to which addresses.

use std::net::IpAddr;

use super::{
    finding::{Check, Finding, Layer},
    names::NameReport,
};
use crate::error::{FailureCause, Role};

/// Assesses the addresses of a name; whether they answer is for `tls.rs`.
pub fn assess(seen: &NameReport) -> Finding {
    let check = Check::new(Layer::Dns, "dns", &seen.host);
    match &seen.addresses {
        Err(error) => check.fail("missing", error.to_string(), error.fix(Role::Public)),
        Ok(addresses) if addresses.is_empty() => {
            check.fail("missing", FailureCause::NoAddress.to_string(), FailureCause::NoAddress.fix(Role::Public))
        }
        Ok(addresses) => {
            let words: Vec<_> = addresses.iter().map(|address| address.ip().to_string()).collect();
            let private = addresses.iter().all(|address| !is_public(address.ip()));
            let note = if private { " (as resolved here; other networks may get another answer)" } else { "" };
            check.ok(format!("resolves to {}{note}", words.join(", ")))
        }
    }
}

/// Whether an address is reachable from the internet.
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            // 100.64.0.0/10 is a provider's own network (RFC 6598).
            let carrier = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            !(ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || carrier)
        }
        IpAddr::V6(ip) => {
            !(ip.is_loopback() || ip.is_unspecified() || ip.is_unique_local() || ip.is_unicast_link_local())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_are_not_public() {
        for private in ["10.1.2.3", "172.18.0.2", "192.168.1.1", "127.0.0.1", "100.64.0.1", "fd00::1", "fe80::1", "::1"]
        {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in ["203.0.113.7", "100.128.0.1", "2001:db8::1"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }
}
