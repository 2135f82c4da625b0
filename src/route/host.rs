//! The host in an authority.

/// The host without port and trailing dot; brackets of an IPv6 address stay.
#[must_use]
pub fn bare_host(authority: &str) -> &str {
    let host = match memchr::memrchr(b':', authority.as_bytes()) {
        // A colon inside brackets belongs to an IPv6 address.
        Some(colon) if memchr::memchr(b']', &authority.as_bytes()[colon..]).is_none() => &authority[..colon],
        _ => authority,
    };
    host.strip_suffix('.').unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_and_one_dot_go() {
        for (authority, host) in [
            ("a.b", "a.b"),
            ("a.b:1", "a.b"),
            ("a.b.:1", "a.b"),
            ("a.b.", "a.b"),
            ("[::1]", "[::1]"),
            ("[::1]:8", "[::1]"),
            ("", ""),
            (":1", ""),
        ] {
            assert_eq!(bare_host(authority), host, "{authority}");
        }
    }
}
