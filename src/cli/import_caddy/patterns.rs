//! Patterns of paths: Caddy's and regular expressions in one form of ours, and what two of them have in common.
//!
//! In this form `*` is any bytes, slashes included, and [`SEGMENT`] is one segment of at least one byte.

use super::lexer::SEGMENT;

/// An expression that stands for more patterns than this is none that we write.
const MAX_PATTERNS: usize = 64;

/// A pattern of the matcher `path`: a star at its beginning or its end is any bytes, one elsewhere is any bytes of one
/// segment. `None` where our form has nothing for it.
pub fn of_path(text: &str) -> Option<String> {
    let inner = text.strip_prefix('*').unwrap_or(text);
    let inner = inner.strip_suffix('*').unwrap_or(inner);
    let ends = text.len() - inner.len();
    let has_glob = |text: &str| text.contains(['*', '?', '[', '\\']);
    if text == "**" || !has_glob(inner) && (ends < 2 || text.starts_with('*')) {
        return Some(text.to_owned());
    }
    // Whole segments; the star at the end may stand behind the beginning of one, and then takes more than in Caddy.
    let segments: Option<Vec<String>> = text
        .split('/')
        .map(|segment| match segment {
            "*" => Some(SEGMENT.to_string()),
            _ if has_glob(segment) => None,
            _ => Some(segment.to_owned()),
        })
        .collect();
    if let Some(segments) = segments {
        return Some(segments.join("/"));
    }
    let (head, last) = text.rsplit_once('/')?;
    let kept = last.strip_suffix('*').filter(|kept| !has_glob(kept))?;
    Some(format!("{}{kept}*", of_path(&format!("{head}/")).filter(|head| !head.contains('*'))?))
}

/// The patterns of a regular expression, one of which fits where it matches; `None` where that is more than literals,
/// alternatives, what is optional, `.*` and `[^/]+` in place of a segment.
pub fn of_expression(text: &str) -> Option<Vec<String>> {
    let (text, begins) = text.strip_prefix('^').map_or((text, false), |rest| (rest, true));
    let escaped = text.ends_with("\\$");
    let (text, ends) = text.strip_suffix('$').filter(|_| !escaped).map_or((text, false), |rest| (rest, true));
    let mut rest = text;
    let found = alternatives(&mut rest, 0)?;
    // `^a|b$` is something else than `^(a|b)$`.
    if !rest.is_empty() || has_top_level_bar(text) {
        return None;
    }
    let complete = |pattern: String| {
        let pattern = format!("{}{pattern}{}", if begins { "" } else { "*" }, if ends { "" } else { "*" });
        let mut pattern = pattern;
        while pattern.contains("**") {
            pattern = pattern.replace("**", "*");
        }
        let is_whole = pattern.split('/').all(|part| !part.contains(SEGMENT) || part.chars().eq([SEGMENT]));
        (is_whole && pattern.starts_with(['/', '*'])).then_some(pattern)
    };
    found.into_iter().map(complete).collect()
}

fn has_top_level_bar(text: &str) -> bool {
    let mut depth = 0_i32;
    let mut escaped = false;
    text.chars().any(|c| {
        let was_escaped = std::mem::take(&mut escaped);
        match c {
            _ if was_escaped => {}
            '\\' => escaped = true,
            '(' => depth += 1,
            ')' => depth -= 1,
            '|' => return depth == 0,
            _ => {}
        }
        false
    })
}

fn alternatives(rest: &mut &str, depth: usize) -> Option<Vec<String>> {
    let mut all = sequence(rest, depth)?;
    while let Some(after) = rest.strip_prefix('|') {
        *rest = after;
        all.extend(sequence(rest, depth)?);
    }
    (all.len() <= MAX_PATTERNS).then_some(all)
}

fn sequence(rest: &mut &str, depth: usize) -> Option<Vec<String>> {
    let mut all = vec![String::new()];
    while !rest.is_empty() && !rest.starts_with(['|', ')']) {
        let mut one = item(rest, depth)?;
        if let Some(after) = rest.strip_prefix('?') {
            *rest = after;
            one.push(String::new());
        }
        if rest.starts_with(['*', '+', '?', '{']) {
            return None;
        }
        all = all.iter().flat_map(|head| one.iter().map(move |tail| format!("{head}{tail}"))).collect();
        if all.len() > MAX_PATTERNS {
            return None;
        }
    }
    Some(all)
}

fn item(rest: &mut &str, depth: usize) -> Option<Vec<String>> {
    if let Some(after) = rest.strip_prefix(".*") {
        *rest = after;
        return Some(vec!["*".into()]);
    }
    if let Some(after) = rest.strip_prefix("[^/]+") {
        *rest = after;
        return Some(vec![SEGMENT.into()]);
    }
    if let Some(after) = rest.strip_prefix('(') {
        *rest = after.strip_prefix("?:").unwrap_or(after);
        let inner = if depth < 8 { alternatives(rest, depth + 1)? } else { return None };
        *rest = rest.strip_prefix(')')?;
        return Some(inner);
    }
    let mut chars = rest.chars();
    let c = match chars.next()? {
        '\\' => chars.next().filter(|c| c.is_ascii_punctuation())?,
        '.' | '[' | ']' | '{' | '}' | '^' | '$' | '+' | '*' | '?' | ')' => return None,
        c => c,
    };
    *rest = chars.as_str();
    (c != '*').then(|| vec![c.into()])
}

/// Whether a path fits a pattern.
pub fn fits(path: &str, pattern: &str) -> bool {
    let (path, pattern): (Vec<char>, Vec<char>) = (path.chars().collect(), pattern.chars().collect());
    let (mut at, mut asked) = (0, 0);
    // The last star, and where what follows it was looked for.
    let mut star: Option<(usize, usize)> = None;
    loop {
        match pattern.get(asked) {
            Some('*') => {
                star = Some((asked, at));
                asked += 1;
                continue;
            }
            Some(&SEGMENT) => {
                let length = path[at..].iter().take_while(|c| !['/', ANY].contains(c)).count();
                if length > 0 {
                    (at, asked) = (at + length, asked + 1);
                    continue;
                }
            }
            Some(c) if path.get(at) == Some(c) => {
                (at, asked) = (at + 1, asked + 1);
                continue;
            }
            None if at == path.len() => return true,
            _ => {}
        }
        match star {
            Some((place, from)) if from < path.len() => {
                star = Some((place, from + 1));
                (asked, at) = (place + 1, from + 1);
            }
            _ => return false,
        }
    }
}

/// Stands for a star of another pattern: a byte that no path has.
const ANY: char = '\u{0}';

/// Whether a pattern fits every path that another one fits.
pub fn covers(pattern: &str, other: &str) -> bool {
    pattern == other || fits(&other.replace('*', &ANY.to_string()), pattern)
}

/// Whether no path fits both, as far as their beginnings and ends tell.
pub fn disjoint(a: &str, b: &str) -> bool {
    let stars = |text: &str| text.contains('*');
    if (a.contains(SEGMENT) || b.contains(SEGMENT)) && !stars(a) && !stars(b) {
        return !by_segment(a, b);
    }
    let (a, b) = (a.replace(SEGMENT, "*"), b.replace(SEGMENT, "*"));
    let head = |text: &str| text.split('*').next().unwrap_or_default().to_owned();
    let tail = |text: &str| text.rsplit('*').next().unwrap_or_default().to_owned();
    match (stars(&a), stars(&b)) {
        (false, false) => a != b,
        (false, true) => !fits(&a, &b),
        (true, false) => !fits(&b, &a),
        (true, true) => {
            let apart = |a: &str, b: &str| !a.starts_with(b) && !b.starts_with(a);
            let reversed = |text: String| text.chars().rev().collect::<String>();
            apart(&head(&a), &head(&b)) || apart(&reversed(tail(&a)), &reversed(tail(&b)))
        }
    }
}

/// Whether two patterns without stars can fit one path.
fn by_segment(a: &str, b: &str) -> bool {
    let (a, b): (Vec<_>, Vec<_>) = (a.split('/').collect(), b.split('/').collect());
    let any = |segment: &str| segment.chars().eq([SEGMENT]);
    a.len() == b.len()
        && a.iter().zip(&b).all(|(a, b)| a == b || (any(a) && !b.is_empty()) || (any(b) && !a.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(pattern: &str) -> String {
        pattern.replace(SEGMENT, "{}")
    }

    #[test]
    fn a_star_in_the_middle_is_one_segment_as_in_caddy() {
        for (caddy, ours) in [
            ("/a/*", Some("/a/*")),
            ("*.php", Some("*.php")),
            ("*/b/*", Some("*/b/*")),
            ("*", Some("*")),
            ("/_matrix/client/*/login", Some("/_matrix/client/{}/login")),
            ("/_matrix/client/*/rooms/*", Some("/_matrix/client/{}/rooms/{}")),
            ("/_matrix/client/*/login*", Some("/_matrix/client/{}/login*")),
            ("/a*b/c", None),
            ("/a/v?", None),
        ] {
            assert_eq!(of_path(caddy).map(|pattern| shown(&pattern)).as_deref(), ours, "{caddy}");
        }
    }

    #[test]
    fn expressions_become_patterns() {
        let of =
            |text: &str| of_expression(text).map(|all| all.iter().map(|one| shown(one)).collect::<Vec<_>>().join(" "));
        for (expression, patterns) in [
            ("^/_matrix/client/(.*)/(login|logout)", Some("/_matrix/client/*/login* /_matrix/client/*/logout*")),
            ("^/_matrix/client/(r0|v3)/sync$", Some("/_matrix/client/r0/sync /_matrix/client/v3/sync")),
            ("^/a/[^/]+/b$", Some("/a/{}/b")),
            (r"\.php$", Some("*.php")),
            ("^/api(/.*)?$", Some("/api/* /api")),
            ("^/(?:a|b)/?$", Some("/a/ /a /b/ /b")),
            ("^/a/[^/]+", None),
            ("^/a|/b$", None),
            ("^/a/.+", None),
            ("^/a[0-9]", None),
            ("(?i)^/a", None),
            ("^/a(b", None),
        ] {
            assert_eq!(of(expression).as_deref(), patterns, "{expression}");
        }
        assert!(of_expression(&"(a|b)".repeat(20)).is_none() && of_expression(&"(".repeat(100)).is_none());
    }

    #[test]
    fn patterns_are_compared() {
        let segment = |text: &str| text.replace("{}", &SEGMENT.to_string());
        let covers = |a: &str, b: &str| covers(&segment(a), &segment(b));
        assert!(covers("/a*", "/a/*") && covers("*", "/x") && covers("/a/*/b", "/a/x/b") && !covers("/a/*", "/a"));
        assert!(covers("/a/*", "/a/{}") && covers("/a/{}", "/a/x") && covers("/{}/b", "/{}/b"));
        assert!(
            !covers("/a/{}", "/a/*")
                && !covers("/a/{}", "/a/x*")
                && !covers("/a/{}", "/a/")
                && !covers("/a/x", "/a/{}")
        );
        let disjoint = |a: &str, b: &str| disjoint(&segment(a), &segment(b));
        assert!(
            disjoint("/a/*", "/b*")
                && disjoint("/a", "/a/*")
                && disjoint("*.php", "*.html")
                && !disjoint("/a*", "*.php")
        );
        assert!(disjoint("/a/{}", "/a") && disjoint("/a/{}/b", "/a/x/c") && disjoint("/a/{}", "/b/*"));
        assert!(!disjoint("/a/{}/b", "/a/x/*") && !disjoint("/{}/b", "/a/{}") && !disjoint("/a/{}", "/a/x"));
    }
}
