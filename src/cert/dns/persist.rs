//! dns-persist-01: one TXT record that names the CA and our account, set once by hand.

use super::lookup;
use crate::config::plan::Dns;

/// The name of the record for a host; a wildcard has that of its parent.
#[must_use]
pub fn persist_name(host: &str) -> String {
    format!("_validation-persist.{}", host.strip_prefix("*.").unwrap_or(host))
}

/// The value of the record. A wildcard needs the policy that permits it.
#[must_use]
pub fn persist_record(host: &str, issuer: &str, account: &str) -> String {
    let policy = if host.starts_with("*.") { "; policy=wildcard" } else { "" };
    format!("{issuer}; accounturi={account}{policy}")
}

/// What was found in DNS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Persisted {
    /// A record that the CA will accept.
    Right,
    /// None, or none that fits; in words.
    Wrong(String),
    /// DNS cannot be asked from here, and why; the CA finds out by itself.
    Unknown(String),
}

impl Persisted {
    /// Looks the record of a host up. `issuers` are the names of the CA.
    pub async fn look_up(dns: Option<&Dns>, host: &str, issuers: &[String], account: &str) -> Self {
        match lookup::texts_anywhere(dns, &persist_name(host)).await {
            Ok(texts) => Self::check(&texts, host, issuers, account),
            Err(error) => Self::Unknown(error.to_string()),
        }
    }

    fn check(texts: &[String], host: &str, issuers: &[String], account: &str) -> Self {
        let name = persist_name(host);
        let mut wrong = format!("there is no TXT record {name}");
        for text in texts {
            let mut parts = text.split(';').map(str::trim);
            let issuer = parts.next().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
            let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
            let of =
                |key: &str| parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| *value);
            if !issuers.is_empty() && !issuers.iter().any(|known| known.eq_ignore_ascii_case(&issuer)) {
                continue;
            }
            match of("accounturi") {
                Some(uri) if uri == account => {}
                Some(uri) => {
                    wrong = format!("the TXT record {name} names another account ({uri})");
                    continue;
                }
                None => {
                    wrong = format!("the TXT record {name} names no account");
                    continue;
                }
            }
            if host.starts_with("*.") && of("policy").is_none_or(|policy| !policy.eq_ignore_ascii_case("wildcard")) {
                wrong = format!("the TXT record {name} does not permit wildcards (policy=wildcard)");
                continue;
            }
            return Self::Right;
        }
        Self::Wrong(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_right_or_it_is_told_what_is_wrong() {
        let issuers = ["ca.example".to_owned()];
        let check = |texts: &[&str], host: &str| {
            let texts: Vec<_> = texts.iter().map(ToString::to_string).collect();
            Persisted::check(&texts, host, &issuers, "https://ca/acct/1")
        };
        let ours = persist_record("a.example", "ca.example", "https://ca/acct/1");
        let wild = persist_record("*.a.example", "ca.example", "https://ca/acct/1");
        assert_eq!(wild, "ca.example; accounturi=https://ca/acct/1; policy=wildcard");
        assert_eq!(check(&[&ours], "a.example"), Persisted::Right);
        assert_eq!(check(&["v=spf1", &wild], "*.a.example"), Persisted::Right);
        for (texts, host, word) in [
            (&[][..], "a.example", "there is no TXT record"),
            (&["other.example; accounturi=https://ca/acct/1"], "a.example", "there is no TXT record"),
            (&["ca.example; accounturi=https://ca/acct/2"], "a.example", "another account"),
            (&["ca.example"], "a.example", "names no account"),
            (&[ours.as_str()], "*.a.example", "does not permit wildcards"),
        ] {
            let Persisted::Wrong(words) = check(texts, host) else { panic!("{texts:?} {host}") };
            assert!(words.contains(word), "{words}");
        }
    }
}
