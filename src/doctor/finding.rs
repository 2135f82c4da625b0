//! The findings of a probe: the layer, the fact, and the fix.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Role, ServerFailure};

/// The layer that a finding belongs to, in order of dependency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// The configuration file.
    Configuration,
    /// Names and addresses.
    Dns,
    /// Ports and certificates.
    Tls,
    /// The services behind the proxy, reached directly.
    Services,
    /// The well-known documents.
    WellKnown,
    /// The homeserver, as clients reach it.
    Homeserver,
    /// The homeserver, as other homeservers reach it.
    Federation,
    /// Calls.
    Rtc,
    /// The files of the other services.
    Files,
}

impl Layer {
    /// The name in ids and in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Dns => "dns",
            Self::Tls => "tls",
            Self::Services => "services",
            Self::WellKnown => "well-known",
            Self::Homeserver => "homeserver",
            Self::Federation => "federation",
            Self::Rtc => "rtc",
            Self::Files => "files",
        }
    }
}

/// The outcome of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Correct.
    Ok,
    /// Works, with a shortcoming.
    Warn,
    /// Broken.
    Fail,
    /// Not tested, for the reason that the fact gives.
    Skip,
}

impl Verdict {
    /// The word that is printed.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Skip => "skip",
        }
    }
}

/// One result of a check; in JSON, a member of `findings` of `doctor --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The layer that it belongs to.
    pub layer: Layer,
    /// Stable: the same result has the same id in every version. `rtc.transports` is a check, and
    /// `rtc.transports.empty` one of its results.
    pub id: String,
    /// What it is about: a name, an address, a file with its line.
    pub subject: String,
    /// The outcome of a check.
    pub verdict: Verdict,
    /// What was found, in one sentence.
    pub fact: String,
    /// How to fix it, in one sentence.
    pub fix: Option<String>,
}

/// A check, from which its finding is made.
#[derive(Debug, Clone)]
pub struct Check {
    layer: Layer,
    id: &'static str,
    subject: String,
}

impl Check {
    /// A check of `subject`.
    pub fn new(layer: Layer, id: &'static str, subject: impl Into<String>) -> Self {
        Self { layer, id, subject: subject.into() }
    }

    /// Passes.
    pub fn ok(&self, fact: impl Into<String>) -> Finding {
        self.finding(Verdict::Ok, None, fact.into(), None)
    }

    /// Skips the check for a reason.
    pub fn skip(&self, reason: impl Into<String>) -> Finding {
        self.finding(Verdict::Skip, None, reason.into(), None)
    }

    /// Warns: the last part of the id, the fact, the fix.
    pub fn warn(&self, what: &str, fact: impl Into<String>, fix: impl Into<String>) -> Finding {
        self.finding(Verdict::Warn, Some(what), fact.into(), Some(fix.into()))
    }

    /// Fails: the last part of the id, the fact, the fix.
    pub fn fail(&self, what: &str, fact: impl Into<String>, fix: impl Into<String>) -> Finding {
        self.finding(Verdict::Fail, Some(what), fact.into(), Some(fix.into()))
    }

    /// Fails because a request to a public address got no response: `otherwise` is the fix if the address is reachable.
    pub fn silent(&self, failure: &ServerFailure, otherwise: impl Into<String>) -> Finding {
        let fix = if failure.cause.is_unreachable() { failure.fix(Role::Public).to_owned() } else { otherwise.into() };
        self.fail("silent", format!("no response ({failure})"), fix)
    }

    fn finding(&self, verdict: Verdict, what: Option<&str>, fact: String, fix: Option<String>) -> Finding {
        // Part of it may come from another server, and control characters would reach the terminal.
        let fact = fact.replace(char::is_control, " ");
        let id = what.map_or_else(|| self.id.to_owned(), |what| format!("{}.{what}", self.id));
        Finding { layer: self.layer, id, subject: self.subject.clone(), verdict, fact, fix }
    }
}

/// All findings, in the order of the layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis(pub Vec<Finding>);

impl Diagnosis {
    /// Sorts findings by layer, and merges equal findings about several subjects.
    #[must_use]
    pub fn of(findings: Vec<Finding>) -> Self {
        let mut merged: Vec<Finding> = Vec::new();
        for finding in findings {
            let same = |other: &&mut Finding| {
                finding.verdict != Verdict::Ok
                    && (&other.id, other.verdict, &other.fact, &other.fix)
                        == (&finding.id, finding.verdict, &finding.fact, &finding.fix)
            };
            match merged.iter_mut().find(same) {
                Some(other) => other.subject = format!("{}, {}", other.subject, finding.subject),
                None => merged.push(finding),
            }
        }
        merged.sort_by_key(|finding| finding.layer);
        Self(merged)
    }

    /// The number of findings with this verdict.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> usize {
        self.0.iter().filter(|finding| finding.verdict == verdict).count()
    }

    /// Whether no check failed.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.count(Verdict::Fail) == 0
    }

    /// The JSON document for programs.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "ok": self.is_healthy(),
            "findings": self.0,
        })
    }
}

impl TryFrom<Value> for Diagnosis {
    type Error = serde_json::Error;

    /// Reads the document of [`Self::to_json`].
    fn try_from(mut document: Value) -> Result<Self, Self::Error> {
        serde_json::from_value(document["findings"].take()).map(Self)
    }
}

/// A table by layer, with the fix below each fact that has one.
impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut layer = None;
        for finding in &self.0 {
            if layer.replace(finding.layer) != Some(finding.layer) {
                writeln!(f, "{}", finding.layer.as_str())?;
            }
            let Finding { id, subject, fact, .. } = finding;
            writeln!(f, "  {:4}  {id:28} {subject}: {fact}", finding.verdict.as_str())?;
            if let Some(fix) = &finding.fix {
                writeln!(f, "        -> {fix}")?;
            }
        }
        let [ok, warn, fail, skip] =
            [Verdict::Ok, Verdict::Warn, Verdict::Fail, Verdict::Skip].map(|verdict| self.count(verdict));
        writeln!(f, "\n{ok} ok, {warn} warn, {fail} fail, {skip} skip")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_others_do_not_reach_the_terminal_as_they_are() {
        let finding = Check::new(Layer::Rtc, "rtc", "a").ok("\x1b[2J401\nM_X");
        assert_eq!(finding.fact, " [2J401 M_X");
    }

    #[test]
    fn what_is_true_of_several_names_is_said_once() {
        let closed = |name| Check::new(Layer::Tls, "tls.port", name).fail("closed", "nothing listens", "open it");
        let resolves = Check::new(Layer::Dns, "dns", "a").ok("192.0.2.1");
        let diagnosis = Diagnosis::of(vec![closed("a"), resolves.clone(), closed("b")]);
        assert_eq!(diagnosis.0[0], resolves);
        assert_eq!(diagnosis.0[1].subject, "a, b");
        assert_eq!((diagnosis.0[1].id.as_str(), diagnosis.0.len()), ("tls.port.closed", 2));
        assert!(!diagnosis.is_healthy());
        let text = diagnosis.to_string();
        assert!(
            text.contains("fail  tls.port.closed") && text.contains("-> open it") && text.contains("1 ok"),
            "{text}"
        );
    }
}
