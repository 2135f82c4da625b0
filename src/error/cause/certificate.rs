//! Why a name has no certificate, or one that clients reject, and how to fix it.

use super::{FailureCause, Role};

/// Why a name has no certificate, or one that clients reject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateCause {
    /// The CA cannot be reached.
    Unreachable(FailureCause),
    /// The CA answers with an error of its own.
    CaError,
    /// What answers at the URL of the CA does not speak ACME.
    NotAcme,
    /// The CA did not finish the order in time.
    CaTooSlow,
    /// The CA limits our requests.
    RateLimited,
    /// The CA issued a certificate that cannot be used.
    Unusable,
    /// The CA requires an external account binding.
    NoAccountBinding,
    /// The CA rejects the e-mail address of the account.
    BadContact,
    /// The CA requires an action of the account's owner, such as agreeing to new terms.
    ActionRequired,
    /// The CA does not have the profile.
    NoProfile,
    /// The CA does not issue certificates for this name.
    RejectedName,
    /// The CA rejects the order for another reason.
    Rejected,
    /// The CAA records of the domain do not permit this CA.
    Caa,
    /// No allowed challenge can validate the name, or the CA does not offer it.
    NoChallenge,
    /// The CA finds no address of the name.
    NoRecord,
    /// The CA cannot connect to the address of the name.
    NotReached,
    /// The TLS handshake of the CA with the address of the name failed.
    NotOurTls,
    /// Another server answered the CA.
    NotOurAnswer,
    /// The command of `acme.dns` failed.
    DnsCommand,
    /// The DNS server rejected the dynamic update.
    DnsUpdate,
    /// The API of the DNS provider rejected the request.
    DnsApi,
    /// A file with a secret for `acme.dns` cannot be read.
    DnsSecret,
    /// An authoritative server does not have the record of the order.
    NotPropagated,
    /// The CA does not accept the record of the order.
    WrongRecord,
    /// The record of dns-persist-01 is missing or wrong.
    WrongPersistentRecord,
    /// The validation failed for another reason.
    NotValidated,
    /// The storage cannot be read or written.
    Storage,
    /// The clock of this machine or of the CA is wrong.
    Clock,
    /// A file with a certificate or key cannot be read.
    UnreadableFile,
    /// A file has no certificate or no key.
    BadFile,
    /// The key is that of another certificate.
    WrongKey,
    /// No certificate in the files is for the name.
    WrongName,
    /// The certificate in the file has expired.
    Expired,
    /// The certificate in the file is not valid yet.
    NotYetValid,
    /// The file does not have the intermediate certificates.
    NoChain,
}

/// The values of the label `cause` of `vestibule_certificate_order_failures_total`.
pub const ORDER_FAILURE_LABELS: [&str; 6] = ["ca", "rate_limit", "refused", "challenge", "storage", "clock"];

impl CertificateCause {
    /// All causes but [`Self::Unreachable`], for tests of the table.
    #[cfg(test)]
    const ALL: [Self; 34] = [
        Self::CaError,
        Self::NotAcme,
        Self::CaTooSlow,
        Self::RateLimited,
        Self::Unusable,
        Self::NoAccountBinding,
        Self::BadContact,
        Self::ActionRequired,
        Self::NoProfile,
        Self::RejectedName,
        Self::Rejected,
        Self::Caa,
        Self::NoChallenge,
        Self::NoRecord,
        Self::NotReached,
        Self::NotOurTls,
        Self::NotOurAnswer,
        Self::DnsCommand,
        Self::DnsUpdate,
        Self::DnsApi,
        Self::DnsSecret,
        Self::NotPropagated,
        Self::WrongRecord,
        Self::WrongPersistentRecord,
        Self::NotValidated,
        Self::Storage,
        Self::Clock,
        Self::UnreadableFile,
        Self::BadFile,
        Self::WrongKey,
        Self::WrongName,
        Self::Expired,
        Self::NotYetValid,
        Self::NoChain,
    ];

    /// The cause of a rejected account or order, by the ACME error type (RFC 8555 section 6.7).
    #[must_use]
    pub fn of_rejection(error_type: &str) -> Self {
        match short(error_type) {
            "externalAccountRequired" => Self::NoAccountBinding,
            "invalidContact" | "unsupportedContact" => Self::BadContact,
            "userActionRequired" => Self::ActionRequired,
            "invalidProfile" => Self::NoProfile,
            "rejectedIdentifier" | "unsupportedIdentifier" => Self::RejectedName,
            "serverInternal" => Self::CaError,
            "rateLimited" => Self::RateLimited,
            "caa" => Self::Caa,
            _ => Self::Rejected,
        }
    }

    /// The cause of a failed validation over HTTP or TLS, by the ACME error type.
    #[must_use]
    pub fn of_validation(error_type: &str) -> Self {
        match short(error_type) {
            "dns" => Self::NoRecord,
            "connection" => Self::NotReached,
            "tls" => Self::NotOurTls,
            "unauthorized" | "incorrectResponse" => Self::NotOurAnswer,
            other => Self::of_rejection(other).or_not_validated(),
        }
    }

    /// The cause of a failed validation by the record of an order, by the ACME error type.
    #[must_use]
    pub fn of_dns_validation(error_type: &str) -> Self {
        match short(error_type) {
            "dns" | "unauthorized" | "incorrectResponse" => Self::WrongRecord,
            other => Self::of_rejection(other).or_not_validated(),
        }
    }

    /// The cause of a failed validation by the record of dns-persist-01, by the ACME error type.
    #[must_use]
    pub fn of_persistent_validation(error_type: &str) -> Self {
        match Self::of_dns_validation(error_type) {
            Self::WrongRecord => Self::WrongPersistentRecord,
            other => other,
        }
    }

    const fn or_not_validated(self) -> Self {
        if let Self::Rejected = self { Self::NotValidated } else { self }
    }

    /// Whether the CA failed and not the name, so that another CA may issue the certificate.
    #[must_use]
    pub const fn is_of_ca(self) -> bool {
        matches!(
            self,
            Self::Unreachable(_) | Self::CaError | Self::NotAcme | Self::CaTooSlow | Self::Unusable | Self::RateLimited
        )
    }

    /// Whether another CA would fail as well: the name cannot be validated, or may not be issued for.
    #[must_use]
    pub fn is_of_name(self) -> bool {
        matches!(self.order_label(), Some("refused" | "challenge"))
    }

    /// The value of the label `cause`, one of [`ORDER_FAILURE_LABELS`]; `None` for a certificate from files.
    #[must_use]
    pub const fn order_label(self) -> Option<&'static str> {
        Some(match self {
            Self::Unreachable(_) | Self::CaError | Self::NotAcme | Self::CaTooSlow | Self::Unusable => "ca",
            Self::RateLimited => "rate_limit",
            Self::NoAccountBinding
            | Self::BadContact
            | Self::ActionRequired
            | Self::NoProfile
            | Self::RejectedName
            | Self::Rejected => "refused",
            Self::Caa
            | Self::NoChallenge
            | Self::NoRecord
            | Self::NotReached
            | Self::NotOurTls
            | Self::NotOurAnswer
            | Self::DnsCommand
            | Self::DnsUpdate
            | Self::DnsApi
            | Self::DnsSecret
            | Self::NotPropagated
            | Self::WrongRecord
            | Self::WrongPersistentRecord
            | Self::NotValidated => "challenge",
            Self::Storage => "storage",
            Self::Clock => "clock",
            Self::UnreadableFile
            | Self::BadFile
            | Self::WrongKey
            | Self::WrongName
            | Self::Expired
            | Self::NotYetValid
            | Self::NoChain => return None,
        })
    }

    /// How to fix it.
    #[must_use]
    pub const fn fix(self) -> &'static str {
        match self {
            Self::Unreachable(cause) => cause.fix(Role::Authority),
            Self::CaError | Self::NotAcme | Self::CaTooSlow | Self::RateLimited | Self::Unusable => self.fix_of_ca(),
            Self::NoAccountBinding
            | Self::BadContact
            | Self::ActionRequired
            | Self::NoProfile
            | Self::RejectedName
            | Self::Rejected
            | Self::Caa => self.fix_of_order(),
            Self::Storage => "let the user that runs vestibule write to `storage.path`, and free space on its disk",
            Self::Clock => "set the clock of this machine, and let NTP keep it",
            Self::UnreadableFile => "correct the path in `tls`, and let the user that runs vestibule read the file",
            Self::BadFile => "use PEM files: the certificate with its chain in `cert`, its private key in `key`",
            Self::WrongKey => "set `key` to the private key that the certificate was issued for",
            Self::WrongName => "add a certificate for this name, or let vestibule obtain one (tls = \"acme\")",
            Self::Expired => "renew the certificate in the file: the program that writes it has not done so",
            Self::NotYetValid => "correct the clock of this machine, or use the certificate from its first day on",
            Self::NoChain => "set `cert` to the file with all certificates (`fullchain.pem`)",
            _ => self.fix_of_validation(),
        }
    }

    const fn fix_of_ca(self) -> &'static str {
        match self {
            Self::NotAcme => "correct the URL in `acme.directory`: it must be that of the CA's ACME directory",
            Self::CaTooSlow => "wait for the next attempt; if it fails too, read the status page of the CA",
            Self::RateLimited => {
                "wait until the time of the next attempt; to be served sooner, add another CA to the list in `acme.directory`"
            }
            Self::Unusable => "use another CA in `acme.directory`, and report the certificate to this one",
            _ => {
                "wait: vestibule tries again by itself; if it lasts, read the status page of the CA, or add another CA to the list in `acme.directory`"
            }
        }
    }

    const fn fix_of_order(self) -> &'static str {
        match self {
            Self::NoAccountBinding => {
                "set `eab_kid` and `eab_hmac_key` in `[acme]` to the credentials that the CA gives you"
            }
            Self::BadContact => "correct `acme.email`, or remove it",
            Self::ActionRequired => "do what the CA asks for at the address in its error, then run `vestibule renew`",
            Self::NoProfile => "set `profile` to one that the CA has, or remove it",
            Self::RejectedName => {
                "use a public name that you own; for a private name set `tls = \"internal\"` or a CA that signs it"
            }
            Self::Caa => "add this CA to the CAA records of the domain, or remove them",
            _ => "change what the CA objects to, then run `vestibule renew`",
        }
    }

    const fn fix_of_validation(self) -> &'static str {
        match self {
            Self::NoChallenge => {
                "allow another challenge in `acme.challenges`; a wildcard needs dns-01 with `acme.dns`, or dns-persist-01"
            }
            Self::NoRecord => "create an A record for the name (and an AAAA record if this machine has IPv6)",
            Self::NotReached => {
                "open ports 80 and 443 to the internet and forward them to vestibule; check that each A and AAAA record of the name is an address of this machine"
            }
            Self::NotOurTls => {
                "forward port 443 to vestibule without ending TLS on the way, or allow only http-01 in `acme.challenges`"
            }
            Self::NotOurAnswer => {
                "let the name lead only to vestibule: correct its A and AAAA records, and turn off a CDN or proxy in front of port 80 and 443"
            }
            Self::DnsCommand => {
                "run the command by hand with `present`, the name and a value, and correct what it reports"
            }
            Self::DnsUpdate => {
                "correct `zone`, `key_name` and `key_secret` in `acme.dns`, and let the server accept updates with that key"
            }
            Self::DnsApi => "correct the credentials in `acme.dns`; they must permit changes to the zone of the name",
            Self::DnsSecret => "correct the path in `acme.dns`, and let the user that runs vestibule read the file",
            Self::NotPropagated => {
                "check that the zone of `acme.dns` is the one that the name servers of the domain serve; raise `propagation_timeout` if they are slow"
            }
            Self::WrongRecord => {
                "remove old TXT records at `_acme-challenge`, and let all name servers of the domain serve the same zone"
            }
            Self::WrongPersistentRecord => "set the TXT record that `vestibule dns-record NAME` prints",
            _ => "read the error of the CA, and run `vestibule doctor`",
        }
    }
}

/// The name of an ACME error type without its namespace.
fn short(error_type: &str) -> &str {
    error_type.rsplit(':').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_cause_of_a_certificate_has_its_own_fix_and_a_known_label() {
        let fixes: HashSet<_> = CertificateCause::ALL.iter().map(|cause| cause.fix()).collect();
        assert_eq!(fixes.len(), CertificateCause::ALL.len());
        for label in CertificateCause::ALL.iter().filter_map(|cause| cause.order_label()) {
            assert!(ORDER_FAILURE_LABELS.contains(&label), "{label}");
        }
        for (cause, word) in [
            (CertificateCause::RateLimited, "wait"),
            (CertificateCause::NoAccountBinding, "eab_kid"),
            (CertificateCause::BadContact, "acme.email"),
            (CertificateCause::Caa, "CAA"),
            (CertificateCause::NoChallenge, "acme.challenges"),
            (CertificateCause::NoRecord, "A record"),
            (CertificateCause::NotReached, "80 and 443"),
            (CertificateCause::NotOurAnswer, "CDN"),
            (CertificateCause::DnsCommand, "command"),
            (CertificateCause::NotPropagated, "propagation_timeout"),
            (CertificateCause::WrongPersistentRecord, "dns-record"),
            (CertificateCause::Storage, "storage.path"),
            (CertificateCause::Clock, "clock"),
            (CertificateCause::WrongKey, "private key"),
            (CertificateCause::NoChain, "fullchain.pem"),
        ] {
            assert!(cause.fix().contains(word), "{cause:?}");
        }
    }

    #[test]
    fn a_ca_that_cannot_be_reached_is_not_fixed_in_the_table_of_a_service() {
        for cause in FailureCause::ALL {
            let fix = CertificateCause::Unreachable(cause).fix();
            assert!(!fix.is_empty() && !fix.contains("`upstream`"), "{cause:?}: {fix}");
            if !matches!(cause, FailureCause::NoSocket) {
                assert_ne!(fix, cause.fix(Role::Upstream), "{cause:?}");
            }
        }
        let fix = |cause| CertificateCause::Unreachable(cause).fix();
        assert!(fix(FailureCause::UnknownAuthority).contains("ca_file"));
        assert!(fix(FailureCause::TimedOut).contains("outgoing"));
        assert!(fix(FailureCause::NoAddress).contains("acme.directory"));
    }

    #[test]
    fn the_type_of_an_acme_error_decides_about_the_cause() {
        let urn = |name: &str| format!("urn:ietf:params:acme:error:{name}");
        for (name, order, http, dns) in [
            ("connection", CertificateCause::Rejected, CertificateCause::NotReached, CertificateCause::NotValidated),
            ("dns", CertificateCause::Rejected, CertificateCause::NoRecord, CertificateCause::WrongRecord),
            ("unauthorized", CertificateCause::Rejected, CertificateCause::NotOurAnswer, CertificateCause::WrongRecord),
            ("tls", CertificateCause::Rejected, CertificateCause::NotOurTls, CertificateCause::NotValidated),
            ("caa", CertificateCause::Caa, CertificateCause::Caa, CertificateCause::Caa),
            ("serverInternal", CertificateCause::CaError, CertificateCause::CaError, CertificateCause::CaError),
            ("malformed", CertificateCause::Rejected, CertificateCause::NotValidated, CertificateCause::NotValidated),
            (
                "rejectedIdentifier",
                CertificateCause::RejectedName,
                CertificateCause::RejectedName,
                CertificateCause::RejectedName,
            ),
        ] {
            assert_eq!(CertificateCause::of_rejection(&urn(name)), order, "{name}");
            assert_eq!(CertificateCause::of_validation(&urn(name)), http, "{name}");
            assert_eq!(CertificateCause::of_dns_validation(&urn(name)), dns, "{name}");
        }
        let persistent = CertificateCause::of_persistent_validation(&urn("unauthorized"));
        assert_eq!(persistent, CertificateCause::WrongPersistentRecord);
    }
}
