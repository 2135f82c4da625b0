//! Prefixes of raw paths, by whole segments.

/// Whether `path` is `prefix` or lies below it. `/` takes every path; the asterisk of `OPTIONS *` is no path.
#[must_use]
pub fn is_under(path: &str, prefix: &str) -> bool {
    match path.strip_prefix(prefix) {
        Some(rest) => rest.is_empty() || rest.starts_with('/') || prefix == "/",
        None => false,
    }
}

/// A condition on a raw path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatcher {
    /// This path and everything below it, by whole segments.
    Prefix(Box<str>),
    /// This path only.
    Exact(Box<str>),
    /// A path in which `{name}` is any one segment: this path only, or everything below it as well.
    Segments {
        /// The path.
        text: Box<str>,
        /// Whether nothing below it is meant.
        exact: bool,
    },
    /// What stands between the stars, in order: each star is any bytes, slashes included, and none.
    Pattern(Box<[Box<str>]>),
    /// A condition on the path as a service may read it: see `spelled_out`. What closes paths has to close each of their
    /// spellings.
    AnySpelling(Box<Self>),
}

impl PathMatcher {
    /// A path and everything below it.
    #[must_use]
    pub fn prefix(text: &str) -> Self {
        if has_any_segment(text) {
            Self::Segments { text: text.into(), exact: false }
        } else {
            Self::Prefix(text.into())
        }
    }

    /// A path alone.
    #[must_use]
    pub fn exact(text: &str) -> Self {
        if has_any_segment(text) { Self::Segments { text: text.into(), exact: true } } else { Self::Exact(text.into()) }
    }

    /// A pattern with at least one `*`.
    #[must_use]
    pub fn pattern(text: &str) -> Self {
        Self::Pattern(text.split('*').map(Into::into).collect())
    }

    /// The same condition for every spelling of a path; `of` makes it of its own text.
    #[must_use]
    pub fn any_spelling(text: &str, of: impl FnOnce(&str) -> Self) -> Self {
        Self::AnySpelling(Box::new(of(&spelled_out(text))))
    }

    /// Whether the path meets it.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Prefix(prefix) => is_under(path, prefix),
            Self::Exact(exact) => path == &**exact,
            Self::Segments { text, exact } => matches_segments(path, text, *exact),
            Self::Pattern(pieces) => matches_pieces(path.as_bytes(), pieces),
            Self::AnySpelling(matcher) => path.starts_with('/') && matcher.matches(&spelled_out(path)),
        }
    }
}

impl std::fmt::Display for PathMatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Prefix(path) | Self::Exact(path) | Self::Segments { text: path, .. } => f.write_str(path),
            Self::Pattern(pieces) => f.write_str(&pieces.join("*")),
            Self::AnySpelling(matcher) => matcher.fmt(f),
        }
    }
}

/// Whether a path has a segment that stands for any other.
fn has_any_segment(text: &str) -> bool {
    text.split('/').any(is_any_segment)
}

fn is_any_segment(segment: &str) -> bool {
    segment.starts_with('{') && segment.ends_with('}')
}

/// Each segment of the text in order; `{name}` takes one that is not empty.
fn matches_segments(path: &str, text: &str, exact: bool) -> bool {
    let mut found = path.split('/');
    let takes = |asked: &str, found: &str| found == asked || (is_any_segment(asked) && !found.is_empty());
    text.split('/').all(|asked| found.next().is_some_and(|found| takes(asked, found)))
        && (!exact || found.next().is_none())
}

/// A path as the most lenient service reads it: percent-decoded, in lower case, without dot segments and repeated slashes.
/// Bytes that are no UTF-8 become U+FFFD.
#[must_use]
pub fn spelled_out(path: &str) -> String {
    let decoded = percent_encoding::percent_decode_str(path).decode_utf8_lossy().to_lowercase();
    let mut segments: Vec<&str> = Vec::new();
    for segment in decoded.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    let end = if decoded.ends_with('/') || decoded.ends_with("/.") || decoded.ends_with("/..") { "/" } else { "" };
    if segments.is_empty() { "/".to_owned() } else { format!("/{}{end}", segments.join("/")) }
}

/// Whether a text fits a pattern in which `*` is any bytes.
#[must_use]
pub fn is_like(text: &[u8], pattern: &str) -> bool {
    let pieces: Vec<Box<str>> = pattern.split('*').map(Into::into).collect();
    matches_pieces(text, &pieces)
}

/// Each piece in order, the first at the start and the last at the end. Taking the first place where a piece fits is
/// enough, and takes time in proportion to the text for each piece.
fn matches_pieces(text: &[u8], pieces: &[Box<str>]) -> bool {
    let [first, middle @ .., last] = pieces else { return pieces.first().is_some_and(|only| text == only.as_bytes()) };
    let Some(mut rest) = text.strip_prefix(first.as_bytes()) else { return false };
    for piece in middle {
        match memchr::memmem::find(rest, piece.as_bytes()) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(last.as_bytes())
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
    fn a_star_is_any_bytes() {
        let like = |path, pattern| PathMatcher::pattern(pattern).matches(path);
        for path in ["/_matrix/client/r0/login", "/_matrix/client/a/b/login", "/_matrix/client//login"] {
            assert!(like(path, "/_matrix/client/*/login"), "{path}");
        }
        for path in ["/_matrix/client/login", "/_matrix/client/r0/login/x", "/x/_matrix/client/r0/login", ""] {
            assert!(!like(path, "/_matrix/client/*/login"), "{path}");
        }
        assert!(like("/a/b/a/c", "/a*/a*c") && like("/a", "/a*") && like("/ab", "/*b") && !like("/aba", "*ab"));
        // The first piece and the last may not share bytes.
        assert!(!like("/aba", "/ab*ba") && like("/abba", "/ab*ba"));
    }

    #[test]
    fn a_name_in_braces_is_one_segment() {
        let under = PathMatcher::prefix("/_matrix/client/{version}/login");
        for path in ["/_matrix/client/v3/login", "/_matrix/client/r0/login/sso/redirect", "/_matrix/client/x/login/"] {
            assert!(under.matches(path), "{path}");
        }
        for path in [
            "/_matrix/client/v3/rooms/!a/state/b/login",
            "/_matrix/client/v3/loginx",
            "/_matrix/client//login",
            "/_matrix/client/login",
            "/_matrix/client/v3",
            "*",
        ] {
            assert!(!under.matches(path), "{path}");
        }
        let exact = PathMatcher::exact("/a/{b}");
        assert!(exact.matches("/a/x") && !exact.matches("/a/x/") && !exact.matches("/a/") && !exact.matches("/a"));
        assert_eq!(PathMatcher::prefix("/a"), PathMatcher::Prefix("/a".into()));
    }

    #[test]
    fn what_closes_a_path_closes_each_of_its_spellings() {
        let prefix = PathMatcher::any_spelling("/Admin", |text| PathMatcher::Prefix(text.into()));
        for path in [
            "/Admin",
            "/admin/x",
            "/%61dmin",
            "//admin",
            "/./admin/",
            "/x/../ADMIN/y",
            "/x/%2e%2e%2fadmin",
            "/a/..//admin",
        ] {
            assert!(prefix.matches(path), "{path}");
        }
        for path in ["/", "/administrator", "/x/admin", "/%2561dmin", "*", "/admin/.."] {
            assert!(!prefix.matches(path), "{path}");
        }
        let exact = PathMatcher::any_spelling("/a/", |text| PathMatcher::Exact(text.into()));
        assert!(exact.matches("/a/") && exact.matches("/a/b/..") && !exact.matches("/a") && !exact.matches("/a/b"));
    }

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
