//! Targets without the secrets that clients put into them.

use std::borrow::Cow;

/// Query parameters whose values let somebody in, or hold what was said: LiveKit's token and its join request (an SDP
/// offer), Synapse's tokens, and the usual names besides.
const SECRET: [&str; 14] = [
    "access_token",
    "join_request",
    "logintoken",
    "login_token",
    "token",
    "refresh_token",
    "id_token",
    "code",
    "state",
    "password",
    "secret",
    "client_secret",
    "sig",
    "key",
];

/// The target as it may be logged.
#[must_use]
pub fn redact_target(target: &str) -> Cow<'_, str> {
    let Some((path, query)) = target.split_once('?') else { return Cow::Borrowed(target) };
    if !query.split(['&', ';']).any(is_secret) {
        return Cow::Borrowed(target);
    }
    let shown =
        |pair| if is_secret(pair) { Cow::Owned(format!("{}=REDACTED", name(pair))) } else { Cow::Borrowed(pair) };
    let query: Vec<_> = query.split(['&', ';']).map(shown).collect();
    Cow::Owned(format!("{path}?{}", query.join("&")))
}

fn name(pair: &str) -> &str {
    pair.split('=').next().unwrap_or(pair)
}

/// Names are compared as a lenient service would read them: decoded, in any case.
fn is_secret(pair: &str) -> bool {
    let name = percent_encoding::percent_decode_str(name(pair)).decode_utf8_lossy().to_ascii_lowercase();
    pair.contains('=') && SECRET.contains(&name.trim())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn secrets_go_and_the_rest_stays() {
        for (target, shown) in [
            ("/a", "/a"),
            ("/a?b=c&d", "/a?b=c&d"),
            ("/rtc?access_token=s3cret&x=1", "/rtc?access_token=REDACTED&x=1"),
            ("/rtc/v1?join_request=s3cret", "/rtc/v1?join_request=REDACTED"),
            ("/l?loginToken=s3cret;a=b", "/l?loginToken=REDACTED&a=b"),
            ("/l?LOGINTOKEN=s3cret", "/l?LOGINTOKEN=REDACTED"),
            ("/l?access%5Ftoken=s3cret", "/l?access%5Ftoken=REDACTED"),
            ("/l?a=b?access_token=x", "/l?a=b?access_token=x"),
        ] {
            assert_eq!(redact_target(target), shown);
        }
    }

    proptest! {
        #[test]
        fn no_neighbour_lets_a_token_through(before in "[a-z=&;%0-9]{0,12}", after in "[a-z=&;%0-9]{0,12}") {
            let target = format!("/x?{before}&access_token=S3CRET&{after}");
            prop_assert!(!redact_target(&target).contains("S3CRET"));
        }
    }
}
