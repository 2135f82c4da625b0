//! The errors of a request, with their causes; why a server cannot be used, with the fix.
//!
//! Only `layer/rescue.rs` decides which status and which body an error becomes.

mod cause;

pub use cause::{CertificateCause, FailureCause, ORDER_FAILURE_LABELS, Role, ServerFailure, UnresolvedName};

use http::StatusCode;

/// The cause of an error, whatever its type.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An error in the processing of a request.
#[derive(Debug, thiserror::Error)]
#[error("{kind}")]
pub struct ProxyError {
    /// The kind of error.
    pub kind: Kind,
    /// The cause, for the log; never shown to a client.
    pub source: Option<BoxError>,
}

impl ProxyError {
    /// An error of this kind with its cause.
    pub fn new(kind: Kind, source: impl Into<BoxError>) -> Self {
        Self { kind, source: Some(source.into()) }
    }
}

impl From<Kind> for ProxyError {
    fn from(kind: Kind) -> Self {
        Self { kind, source: None }
    }
}

/// An error with its chain of sources, as one line.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let all = std::iter::successors(Some(error), |error| error.source());
    all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The kind of error of a request. Its text is what the client reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Kind {
    /// The request breaks the grammar of HTTP (RFC 9110, 9112, 9113); the text says where.
    #[error("the request is malformed: {0}")]
    BadRequest(&'static str),
    /// No site or route takes this path.
    #[error("nothing is served here")]
    NoRoute,
    /// The configuration closes this path to this client (`deny`).
    #[error("access is denied")]
    Denied,
    /// No user of `basic_auth` has this name and this password.
    #[error("a user name and a password are needed")]
    Unauthorized,
    /// Too many passwords were wrong.
    #[error("there were too many attempts; try again in a while")]
    TooManyAttempts,
    /// CONNECT, TRACE, or a method that the resource does not have.
    #[error("the method is not allowed here")]
    MethodNotAllowed,
    /// The head did not arrive within `timeouts.header`.
    #[error("the request head arrived too slowly")]
    HeadTooSlow,
    /// The upstream needs a `Content-Length` (Synapse answers a chunked upload with 400).
    #[error("the upload must say its length")]
    LengthRequired,
    /// The body is over `max_body`.
    #[error("the request body is larger than the limit")]
    BodyTooLarge,
    /// The request target is over `limits.request_target`, or over what the upstream takes.
    #[error("the request target is too long")]
    TargetTooLong,
    /// The connection was made for another host.
    #[error("this connection does not serve that host")]
    Misdirected,
    /// The head is over `limits.header_bytes` or `limits.header_count`, or over what the upstream takes.
    #[error("the request head is too large")]
    HeadTooLarge,
    /// An extended CONNECT for a protocol that is not WebSocket (RFC 8441 section 4).
    #[error("the protocol is not supported")]
    UnknownProtocol,
    /// The request body stopped moving for `timeouts.body_stall`.
    #[error("the request body arrived too slowly")]
    BodyTooSlow,
    /// No endpoint of the upstream could be dialled within `retry_connect`.
    #[error("the service behind this address does not answer")]
    Connect,
    /// Every endpoint is at its bound or known to be down, or the edge sheds load.
    #[error("the service is not available now")]
    Unavailable,
    /// The dial took longer than `connect_timeout`.
    #[error("the service behind this address could not be reached in time")]
    ConnectTimeout,
    /// The upstream closed or reset before it sent a response head.
    #[error("the service behind this address hung up")]
    Reset,
    /// What the upstream sent is not an HTTP response that may be passed on.
    #[error("the service behind this address gave an answer that makes no sense")]
    BadResponse,
    /// No response head within `response_timeout`.
    #[error("the service behind this address took too long to answer")]
    ResponseTimeout,
    /// The request has our own token in `CDN-Loop`: an upstream leads back to us (RFC 8586).
    #[error("the request has come back to the edge that sent it: an upstream leads to the edge itself")]
    LoopDetected,
    /// The client left; nobody reads the answer.
    #[error("the client left")]
    ClientGone,
    /// A bug of ours; the log has the cause.
    #[error("the edge failed")]
    Internal,
}

/// Who is to blame, for the log and the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The one who asked.
    Client,
    /// The service behind us.
    Upstream,
    /// Ourselves.
    Proxy,
}

impl Kind {
    /// The status of the answer; 499 (client closed the request) is only ever seen in the log.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::TooManyAttempts => StatusCode::TOO_MANY_REQUESTS,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::HeadTooSlow | Self::BodyTooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::LengthRequired => StatusCode::LENGTH_REQUIRED,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::UnknownProtocol => StatusCode::NOT_IMPLEMENTED,
            Self::Connect | Self::Reset | Self::BadResponse => StatusCode::BAD_GATEWAY,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::LoopDetected => StatusCode::LOOP_DETECTED,
            Self::ConnectTimeout | Self::ResponseTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::ClientGone => StatusCode::from_u16(499).expect("499 is three digits"),
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Who is to blame.
    #[must_use]
    pub const fn fault(self) -> Fault {
        match self {
            Self::Connect | Self::ConnectTimeout | Self::Reset | Self::BadResponse | Self::ResponseTimeout => {
                Fault::Upstream
            }
            Self::Unavailable | Self::LoopDetected | Self::Internal => Fault::Proxy,
            _ => Fault::Client,
        }
    }

    /// Whether one of our bounds is what ended the exchange.
    #[must_use]
    pub const fn is_limit(self) -> bool {
        matches!(
            self,
            Self::HeadTooSlow
                | Self::BodyTooSlow
                | Self::BodyTooLarge
                | Self::TargetTooLong
                | Self::HeadTooLarge
                | Self::ConnectTimeout
                | Self::ResponseTimeout
        )
    }

    /// A short stable word for logs and metrics.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::BadRequest(_) => "bad_request",
            Self::NoRoute => "no_route",
            Self::Denied => "denied",
            Self::Unauthorized => "unauthorized",
            Self::TooManyAttempts => "too_many_attempts",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::HeadTooSlow => "head_too_slow",
            Self::LengthRequired => "length_required",
            Self::BodyTooLarge => "body_too_large",
            Self::TargetTooLong => "target_too_long",
            Self::Misdirected => "misdirected",
            Self::HeadTooLarge => "head_too_large",
            Self::UnknownProtocol => "unknown_protocol",
            Self::BodyTooSlow => "body_too_slow",
            Self::Connect => "connect",
            Self::Unavailable => "unavailable",
            Self::ConnectTimeout => "connect_timeout",
            Self::Reset => "reset",
            Self::BadResponse => "bad_response",
            Self::ResponseTimeout => "response_timeout",
            Self::LoopDetected => "loop_detected",
            Self::ClientGone => "client_gone",
            Self::Internal => "internal",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_told_from_the_outside_in() {
        let inner = std::io::Error::other(ProxyError::new(Kind::Connect, "nobody listens"));
        assert_eq!(chain(&inner), "the service behind this address does not answer: nobody listens");
    }
}
