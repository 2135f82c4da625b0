//! Why a server cannot be reached or used, and how to fix it: the only table of causes and fixes.
//!
//! The log, the status, the operator's page and the findings of doctor show the fix of a failure from here.

mod certificate;

pub use certificate::{CertificateCause, ORDER_FAILURE_LABELS};

use std::{error::Error, io};

use super::{Kind, ProxyError, chain};

/// Why a server cannot be reached or used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum FailureCause {
    /// The name does not resolve to an address.
    #[error("the name has no address")]
    NoAddress,
    /// The name server did not answer, so that it is not known whether the name resolves.
    #[error("the name server does not answer")]
    NameServer,
    /// Nothing listens on the port, or a firewall rejects the connection.
    #[error("connection refused")]
    Refused,
    /// The connection was not accepted in time.
    #[error("connecting took too long")]
    TimedOut,
    /// This machine has no route to the address.
    #[error("no route to the address")]
    NoRoute,
    /// The unix socket does not exist.
    #[error("the socket does not exist")]
    NoSuchSocket,
    /// This process may not open the unix socket.
    #[error("access to the socket is denied")]
    AccessDenied,
    /// This process has no file descriptor left for a connection.
    #[error("no socket is left for a connection")]
    NoSocket,
    /// The certificate is signed by an authority that is not trusted.
    #[error("the certificate is signed by an unknown authority")]
    UnknownAuthority,
    /// The certificate has expired.
    #[error("the certificate has expired")]
    Expired,
    /// The certificate is not valid yet.
    #[error("the certificate is not valid yet")]
    NotYetValid,
    /// The certificate is for another name.
    #[error("the certificate is for another name")]
    WrongName,
    /// The certificate is invalid in another way.
    #[error("the certificate is invalid")]
    BadCertificate,
    /// The server has no certificate for the name (the alert `unrecognized_name`).
    #[error("the server has no certificate for the name")]
    NoCertificate,
    /// The server requires a client certificate (the alert `certificate_required`).
    #[error("the server requires a client certificate")]
    NoClientCertificate,
    /// TLS was expected, and the server speaks something else.
    #[error("the server does not speak TLS")]
    NotTls,
    /// HTTP was expected, and the server speaks TLS.
    #[error("the server speaks TLS, not plain HTTP")]
    NotPlain,
    /// The TLS handshake failed for another reason.
    #[error("the TLS handshake failed")]
    Handshake,
    /// The response is not HTTP.
    #[error("the response is not HTTP")]
    NotHttp,
    /// The server closed the connection without a response.
    #[error("the server closed the connection")]
    Closed,
    /// The server accepted the connection and did not respond in time.
    #[error("the server did not respond in time")]
    NoResponse,
    /// The server responded to the health check with an error status.
    #[error("the health check failed")]
    Unhealthy,
    /// Any other cause.
    #[error("unknown")]
    Other,
}

/// The role of the server that failed: the same cause needs another fix in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A service behind the proxy, which `upstream` names.
    Upstream,
    /// An address that a public name resolves to.
    Public,
    /// The listener of the proxy on this machine.
    Listener,
    /// A CA that `acme.directory` names.
    Authority,
}

impl FailureCause {
    /// All causes, for tests of the table.
    #[cfg(test)]
    pub const ALL: [Self; 23] = [
        Self::NoAddress,
        Self::NameServer,
        Self::Refused,
        Self::TimedOut,
        Self::NoRoute,
        Self::NoSuchSocket,
        Self::AccessDenied,
        Self::NoSocket,
        Self::UnknownAuthority,
        Self::Expired,
        Self::NotYetValid,
        Self::WrongName,
        Self::BadCertificate,
        Self::NoCertificate,
        Self::NoClientCertificate,
        Self::NotTls,
        Self::NotPlain,
        Self::Handshake,
        Self::NotHttp,
        Self::Closed,
        Self::NoResponse,
        Self::Unhealthy,
        Self::Other,
    ];

    /// The cause of an error: that of the innermost error in its chain that has one.
    #[must_use]
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        let mut found = Self::Other;
        let mut next = Some(error);
        while let Some(error) = next {
            found = Self::of_one(error).filter(|cause| *cause != Self::Other).unwrap_or(found);
            next = error.source();
        }
        found
    }

    fn of_one(error: &(dyn Error + 'static)) -> Option<Self> {
        if let Some(cause) = error.downcast_ref::<Self>() {
            return Some(*cause);
        }
        if let Some(failure) = error.downcast_ref::<ServerFailure>() {
            return Some(failure.cause);
        }
        if let Some(name) = error.downcast_ref::<UnresolvedName>() {
            return Some(name.cause());
        }
        if let Some(error) = error.downcast_ref::<ProxyError>() {
            return Self::of_kind(error.kind);
        }
        let error = error.downcast_ref::<io::Error>()?;
        // `source` of an I/O error is that of the error inside, not that error itself.
        let inner = error.get_ref().map(|inner| Self::of(inner)).filter(|cause| *cause != Self::Other);
        inner.or_else(|| Self::of_io(error))
    }

    fn of_kind(kind: Kind) -> Option<Self> {
        match kind {
            Kind::ConnectTimeout => Some(Self::TimedOut),
            Kind::ResponseTimeout => Some(Self::NoResponse),
            Kind::Reset => Some(Self::Closed),
            Kind::BadResponse => Some(Self::NotHttp),
            _ => None,
        }
    }

    fn of_io(error: &io::Error) -> Option<Self> {
        // EMFILE and ENFILE: this process has too many files open, or the system has.
        if matches!(error.raw_os_error(), Some(23 | 24)) {
            return Some(Self::NoSocket);
        }
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Some(Self::Refused),
            io::ErrorKind::TimedOut => Some(Self::TimedOut),
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable | io::ErrorKind::AddrNotAvailable => {
                Some(Self::NoRoute)
            }
            io::ErrorKind::NotFound => Some(Self::NoSuchSocket),
            io::ErrorKind::PermissionDenied => Some(Self::AccessDenied),
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => Some(Self::Closed),
            _ => None,
        }
    }

    /// Whether no connection could be established, so that the service behind the server is not at fault.
    #[must_use]
    pub const fn is_unreachable(self) -> bool {
        !matches!(self, Self::NotHttp | Self::Closed | Self::NoResponse | Self::Unhealthy | Self::Other)
    }

    /// How to fix it, for a server in this role.
    #[must_use]
    pub const fn fix(self, role: Role) -> &'static str {
        match role {
            Role::Upstream => self.fix_of_upstream(),
            Role::Public => self.fix_of_public_name(),
            Role::Listener => self.fix_of_listener(),
            Role::Authority => self.fix_of_authority(),
        }
    }

    const fn fix_of_upstream(self) -> &'static str {
        match self {
            Self::NoAddress => {
                "correct the name in `upstream`; in compose it is the name of the service, on a network that vestibule shares"
            }
            Self::NameServer => {
                "check the name servers in /etc/resolv.conf; in compose, check that the service runs and shares a network with vestibule"
            }
            Self::Refused => {
                "start the service and read its log; if it runs, correct the port in `upstream`, and let it listen on an address that vestibule can reach, not only on its own 127.0.0.1"
            }
            Self::TimedOut => {
                "correct the address in `upstream`, start its machine, or open the port in the firewall between it and vestibule"
            }
            Self::NoRoute => "correct the address in `upstream`, or connect this machine to its network",
            Self::NoSuchSocket => "start the service, or correct the path in `upstream`",
            Self::AccessDenied => {
                "give the user that runs vestibule write permission for the socket and access to its directory"
            }
            Self::NoSocket => {
                "raise the limit of open files of vestibule (LimitNOFILE of systemd, `ulimits` of compose)"
            }
            Self::UnknownAuthority => {
                "give the service a certificate of a public CA, or set `ca_file` in the table of its upstream to the root of its CA; within one host or private network, http:// needs no certificate"
            }
            Self::Expired => "renew the certificate of the service",
            Self::NotYetValid => {
                "correct the clock of this machine, or that of the machine that issued the certificate"
            }
            Self::WrongName => {
                "set `upstream`, or `server_name` in its table, to a name in the certificate, or give the service a certificate for that name"
            }
            Self::BadCertificate => "replace the certificate of the service",
            Self::NoCertificate => "set `upstream` to a name that the service has a certificate for",
            Self::NoClientCertificate => {
                "set `client_certificate` in the table of the upstream to one that the service accepts"
            }
            Self::NotTls => "use http:// in `upstream`, or the port on which the service speaks TLS",
            Self::NotPlain => "use https:// in `upstream`, or the port on which the service speaks plain HTTP",
            Self::Handshake => "make the service accept TLS 1.2 or 1.3, and read its log",
            Self::NotHttp => "correct the port in `upstream`: the service there does not speak HTTP/1.1",
            Self::Closed => "read the log of the service: it closed the connection without a response",
            Self::NoResponse => "read the log of the service: it accepts connections, but does not respond in time",
            Self::Unhealthy => "read the log of the service, and check that `health.path` is a path that returns 2xx",
            Self::Other => "read the log of the service",
        }
    }

    const fn fix_of_public_name(self) -> &'static str {
        match self {
            Self::NoAddress => "create an A record for the name (and an AAAA record if this machine has IPv6)",
            Self::NameServer => "check the name servers in /etc/resolv.conf, and the name servers of the domain",
            Self::Refused => {
                "open the port in the firewall and forward it to vestibule; if the address belongs to another machine, correct the DNS record"
            }
            Self::TimedOut | Self::NoResponse => {
                "open the port in the firewall and forward it to vestibule; if only this machine cannot reach it, make the name resolve to vestibule's private address inside the network"
            }
            Self::NoRoute => "test from a machine with a route to that address (IPv6?)",
            Self::UnknownAuthority => {
                "use a public CA and not its staging environment; for a private CA, pass its root to doctor with --ca-file"
            }
            Self::Expired => {
                "`vestibule status` shows why it was not renewed; replace a certificate that comes from a file"
            }
            Self::NotYetValid => "correct the clock of this machine",
            Self::WrongName => "use a certificate for this host, or let vestibule obtain one (tls = \"acme\")",
            Self::BadCertificate => "replace the certificate",
            Self::NoCertificate => "`vestibule status` shows the last error of the CA",
            Self::NoClientCertificate
            | Self::NotTls
            | Self::NotPlain
            | Self::NotHttp
            | Self::Handshake
            | Self::Closed => "find out which program listens on that port instead of vestibule",
            Self::NoSocket => "raise the limit of open files of this shell (`ulimit -n`)",
            Self::NoSuchSocket | Self::AccessDenied | Self::Unhealthy | Self::Other => {
                "read the log of vestibule and of the service behind it"
            }
        }
    }

    const fn fix_of_listener(self) -> &'static str {
        match self {
            Self::Refused | Self::TimedOut | Self::NoResponse | Self::NoRoute => "start `vestibule run` with this file",
            _ => self.fix_of_public_name(),
        }
    }

    const fn fix_of_authority(self) -> &'static str {
        match self {
            Self::NoAddress => "correct the host in `acme.directory`, or the name servers in /etc/resolv.conf",
            Self::NameServer => {
                "check the name servers in /etc/resolv.conf, and let the firewall permit DNS (port 53) to them"
            }
            Self::Refused | Self::TimedOut | Self::NoRoute | Self::AccessDenied => {
                "let the firewall permit outgoing connections to the CA (port 443), and check the route to the internet"
            }
            Self::NoSocket => {
                "raise the limit of open files of vestibule (LimitNOFILE of systemd, `ulimits` of compose)"
            }
            Self::UnknownAuthority => {
                "install the roots of the public CAs (package ca-certificates); for a private CA, set `ca_file` in `[acme]` to its root"
            }
            Self::Expired | Self::NotYetValid => {
                "set the clock of this machine; if it is right, the CA must renew its certificate"
            }
            Self::WrongName | Self::BadCertificate | Self::NoCertificate | Self::NoClientCertificate => {
                "correct the host in `acme.directory`; if it is right, find out what intercepts connections to the CA"
            }
            Self::NotTls | Self::NotPlain | Self::NotHttp => "correct the scheme and port in `acme.directory`",
            Self::NoSuchSocket | Self::Handshake | Self::Closed | Self::NoResponse | Self::Unhealthy | Self::Other => {
                "wait: vestibule tries again by itself; if it lasts, read the status page of the CA and check the firewall"
            }
        }
    }
}

/// A failure to reach or use a server: its cause, and its chain of errors as text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct ServerFailure {
    /// The cause, which decides about the fix.
    pub cause: FailureCause,
    text: String,
}

impl ServerFailure {
    /// A failure with this cause.
    pub fn new(cause: FailureCause, text: impl Into<String>) -> Self {
        Self { cause, text: text.into() }
    }

    /// The failure that an error stands for.
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        Self::new(FailureCause::of(error), chain(error))
    }

    /// How to fix it, for a server in this role.
    #[must_use]
    pub const fn fix(&self, role: Role) -> &'static str {
        self.cause.fix(role)
    }
}

impl From<&(dyn Error + 'static)> for ServerFailure {
    fn from(error: &(dyn Error + 'static)) -> Self {
        Self::of(error)
    }
}

impl From<FailureCause> for ServerFailure {
    fn from(cause: FailureCause) -> Self {
        Self::new(cause, cause.to_string())
    }
}

/// A host name that cannot be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the name `{host}` does not resolve ({reason})")]
pub struct UnresolvedName {
    host: String,
    reason: String,
}

impl UnresolvedName {
    /// The error of the system's resolver for a host.
    pub fn new(host: impl Into<String>, error: &io::Error) -> Self {
        Self { host: host.into(), reason: error.to_string() }
    }

    fn cause(&self) -> FailureCause {
        // EAI_AGAIN in the words of glibc and of musl; the standard library keeps no number.
        let is_temporary = ["Temporary failure", "Try again"].iter().any(|words| self.reason.contains(words));
        if is_temporary { FailureCause::NameServer } else { FailureCause::NoAddress }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn io(kind: io::ErrorKind) -> io::Error {
        kind.into()
    }

    fn unresolved(reason: &str) -> io::Error {
        io::Error::other(UnresolvedName::new("synaps", &io::Error::other(reason.to_owned())))
    }

    #[test]
    fn each_error_has_its_cause() {
        for (error, cause) in [
            (unresolved("failed to lookup address information: Name or service not known"), FailureCause::NoAddress),
            (
                unresolved("failed to lookup address information: Temporary failure in name resolution"),
                FailureCause::NameServer,
            ),
            (io(io::ErrorKind::ConnectionRefused), FailureCause::Refused),
            (io(io::ErrorKind::TimedOut), FailureCause::TimedOut),
            (io(io::ErrorKind::HostUnreachable), FailureCause::NoRoute),
            (io(io::ErrorKind::NetworkUnreachable), FailureCause::NoRoute),
            (io(io::ErrorKind::NotFound), FailureCause::NoSuchSocket),
            (io(io::ErrorKind::PermissionDenied), FailureCause::AccessDenied),
            (io(io::ErrorKind::ConnectionReset), FailureCause::Closed),
            (io(io::ErrorKind::UnexpectedEof), FailureCause::Closed),
            (io::Error::from_raw_os_error(24), FailureCause::NoSocket),
            (
                io::Error::new(io::ErrorKind::InvalidData, FailureCause::UnknownAuthority),
                FailureCause::UnknownAuthority,
            ),
            (io::Error::other(ProxyError::from(Kind::ResponseTimeout)), FailureCause::NoResponse),
            (io::Error::other("something else"), FailureCause::Other),
        ] {
            assert_eq!(FailureCause::of(&error), cause, "{error}");
        }
    }

    #[test]
    fn the_innermost_cause_counts() {
        let refused = ProxyError::new(Kind::Reset, io(io::ErrorKind::ConnectionRefused));
        let failure = ServerFailure::of(&refused);
        assert_eq!(failure.cause, FailureCause::Refused);
        assert_eq!(failure.to_string(), "the service behind this address hung up: connection refused");
        let again = ProxyError::new(Kind::Connect, failure);
        assert_eq!(FailureCause::of(&again), FailureCause::Refused);
    }

    #[test]
    fn each_cause_of_an_upstream_has_its_own_fix() {
        let fixes: std::collections::HashSet<_> =
            FailureCause::ALL.iter().map(|cause| cause.fix(Role::Upstream)).collect();
        assert_eq!(fixes.len(), FailureCause::ALL.len());
        for (cause, word) in [
            (FailureCause::NoAddress, "name"),
            (FailureCause::Refused, "start the service"),
            (FailureCause::TimedOut, "firewall"),
            (FailureCause::UnknownAuthority, "root of its CA"),
            (FailureCause::Expired, "renew"),
            (FailureCause::NotYetValid, "clock"),
            (FailureCause::WrongName, "name in the certificate"),
            (FailureCause::NotTls, "http://"),
            (FailureCause::NotPlain, "https://"),
            (FailureCause::Unhealthy, "health.path"),
        ] {
            assert!(cause.fix(Role::Upstream).contains(word), "{cause:?}");
        }
    }

    #[test]
    fn the_fix_depends_on_the_role() {
        for cause in [
            FailureCause::NoAddress,
            FailureCause::Refused,
            FailureCause::UnknownAuthority,
            FailureCause::Expired,
            FailureCause::WrongName,
        ] {
            assert_ne!(cause.fix(Role::Upstream), cause.fix(Role::Public), "{cause:?}");
        }
        assert!(FailureCause::Refused.fix(Role::Listener).contains("vestibule run"));
        assert!(FailureCause::Expired.fix(Role::Public).contains("vestibule status"));
    }
}
