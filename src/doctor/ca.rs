//! What certificates need beside the names: a clock that agrees with the CA's, and the lasting records of dns-persist-01.

use std::time::{Duration, SystemTime};

use http::header;

use super::{
    ProbeContext,
    ask::ProbeRequest,
    finding::{Check, Finding, Layer},
};
use crate::config::plan::{Challenge, SiteTls};

/// A smaller difference is the time that an answer takes, or harmless.
const TOLERATED: Duration = Duration::from_secs(60);

/// From here on certificates and tokens are refused: CAs date a certificate back by about as much.
const HARMFUL: Duration = Duration::from_secs(3600);

/// Compares this machine's clock with the `Date` of each CA.
pub async fn clock(context: &ProbeContext<'_>) -> Vec<Finding> {
    if !context.plan.sites.iter().any(|site| site.tls == SiteTls::Acme) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (url, client) in &context.reach.authorities {
        let check = Check::new(Layer::Tls, "ca.clock", url);
        let date = match ProbeRequest::get(url).ask(client).await {
            Ok(answer) => {
                answer.fields.get(header::DATE).and_then(|date| httpdate::parse_http_date(date.to_str()?).ok())
            }
            Err(reason) => {
                findings.push(check.skip(format!("the CA does not answer from here: {reason}")));
                continue;
            }
        };
        findings.push(match date {
            Some(date) => compare(&check, context.reach.clock.now(), date),
            None => check.skip("the CA does not say what time it is"),
        });
    }
    findings
}

fn compare(check: &Check, ours: SystemTime, theirs: SystemTime) -> Finding {
    let (off, word) = match ours.duration_since(theirs) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(error) => (error.duration(), "behind"),
    };
    let fact = format!("this machine's clock is {} {word} the CA's", span(off));
    let fix = "set the clock of this machine, and let it be kept by NTP";
    match off {
        off if off <= TOLERATED => check.ok("this machine's clock agrees with the CA's"),
        off if off < HARMFUL => check.warn("off", fact, fix),
        _ => check.fail("off", format!("{fact}: certificates are renewed at the wrong time or refused"), fix),
    }
}

fn span(span: Duration) -> String {
    match span.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// What a lasting record is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LastingRecord {
    /// As it should be.
    Right,
    /// Missing or wrong, in words.
    Wrong(String),
    /// It cannot be known, and why.
    Unknown(String),
}

/// Tells of each lasting record. It is needed where no other challenge can prove the name.
pub fn lasting_records(context: &ProbeContext<'_>) -> Vec<Finding> {
    let others = |host: &str| {
        context.plan.acme.challenges.iter().any(|challenge| match challenge {
            Challenge::DnsPersist01 => false,
            Challenge::Dns01 => true,
            Challenge::Http01 | Challenge::TlsAlpn01 => !host.starts_with("*."),
        })
    };
    let one = |(host, record): &(String, LastingRecord)| {
        let check = Check::new(Layer::Tls, "ca.dns_persist", host);
        let fix = format!("`vestibule dns-record \"{host}\"` prints the record to set");
        match record {
            LastingRecord::Right => check.ok("the TXT record of dns-persist-01 is there and names our account"),
            LastingRecord::Unknown(why) => check.skip(why.as_str()),
            LastingRecord::Wrong(words) if others(host) => check.warn("record", words.as_str(), fix),
            LastingRecord::Wrong(words) => check.fail("record", words.as_str(), fix),
        }
    };
    context.reach.lasting_records.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_clock_that_is_off_is_told_by_how_much_and_in_which_direction() {
        let check = Check::new(Layer::Tls, "ca.clock", "https://ca.example");
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        for (ours, verdict, words) in [
            (1_000_000, Verdict::Ok, "agrees"),
            (1_000_059, Verdict::Ok, "agrees"),
            (1_000_090, Verdict::Warn, "90 s ahead of"),
            (999_000, Verdict::Warn, "16 min behind"),
            (1_010_800, Verdict::Fail, "3 h ahead of"),
            (700_000, Verdict::Fail, "3 d behind"),
        ] {
            let finding = compare(&check, at(ours), at(1_000_000));
            assert_eq!(finding.verdict, verdict, "{ours}");
            assert!(finding.fact.contains(words), "{}", finding.fact);
        }
    }
}
