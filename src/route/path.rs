//! Prefixes of raw paths, by whole segments.

/// Whether `path` is `prefix` or lies below it. `/` takes every path; the asterisk of `OPTIONS *` is no path.
#[must_use]
pub fn is_under(path: &str, prefix: &str) -> bool {
    match path.strip_prefix(prefix) {
        Some(rest) => rest.is_empty() || rest.starts_with('/') || prefix == "/",
        None => false,
    }
}

/// The target with `prefix` taken off its path; query bytes stay. `/livekit/sfu?x` becomes `/?x`.
#[must_use]
pub fn strip(target: &str, prefix: &str) -> String {
    let rest = target.strip_prefix(prefix).unwrap_or(target);
    if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stripping_leaves_every_other_byte() {
        for (target, stripped) in [
            ("/livekit/sfu/rtc/v1?a=%2F&a", "/rtc/v1?a=%2F&a"),
            ("/livekit/sfu", "/"),
            ("/livekit/sfu?x", "/?x"),
            ("/livekit/sfu/", "/"),
            ("/livekit/sfu//rtc", "//rtc"),
            ("/livekit/sfu/%2e%2e/x", "/%2e%2e/x"),
        ] {
            assert_eq!(strip(target, "/livekit/sfu"), stripped);
        }
    }
}
