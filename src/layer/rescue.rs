//! Turns an error into an answer; the only place that chooses an error status.
//!
//! A Matrix client that gets anything but Matrix JSON with CORS reports a "CORS error" and hides the cause, so the form
//! follows the path and the kind of the site before it follows `Accept`.

use http::header;

use super::{cors, request_id::RequestId};
use crate::{
    config::plan::Kind as SiteKind,
    error::{Kind, ProxyError},
    message::{Body, Fields, Response, Value},
};

/// Seconds after which a client may come back when the service is away: about as long as Synapse takes to start.
const RETRY_AFTER: Value<'static> = Value::from_static("5");

/// Seconds after which the next attempt is allowed, if there is none in between.
const RETRY_ATTEMPT: Value<'static> = Value::from_static(super::basic_auth::EVERY_SECONDS);

/// What every method of HTTP that passes is called, for the `Allow` of a 405 (RFC 9110 section 15.5.6).
const ALLOW: Value<'static> = Value::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");

/// The form of an answer that the edge makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `{"errcode":…,"error":…}` with CORS.
    Matrix,
    /// A small page.
    Html,
    /// A line.
    Text,
}

impl Form {
    /// The form that a client of this path understands.
    #[must_use]
    pub fn of(path: &str, fields: &Fields) -> Self {
        if is_matrix(path) {
            Self::Matrix
        } else if wants_html(fields) {
            Self::Html
        } else {
            Self::Text
        }
    }

    /// The form on a site of this kind: on the hosts of a homeserver and of lk-jwt-service every client but a browser that opens a
    /// page speaks Matrix.
    #[must_use]
    pub const fn on(self, kind: SiteKind) -> Self {
        match (kind, self) {
            (SiteKind::Synapse | SiteKind::Homeserver | SiteKind::LkJwt, Self::Text) => Self::Matrix,
            _ => self,
        }
    }
}

/// The answer to an error. A HEAD gets the head of it; whoever writes it out leaves the body away.
#[must_use]
pub fn response(error: &ProxyError, form: Form, id: &RequestId) -> Response {
    let kind = error.kind;
    let (content_type, body) = match form {
        Form::Matrix => ("application/json", matrix(kind, id)),
        Form::Html => ("text/html; charset=utf-8", html(kind, id)),
        Form::Text => ("text/plain; charset=utf-8", format!("{kind} (request {})\n", id.as_str())),
    };
    let mut response = Response::new(Body::full(body));
    response.status = kind.status();
    let fields = &mut response.fields;
    fields.insert(header::CONTENT_TYPE, Value::from_static(content_type));
    fields.insert(header::CACHE_CONTROL, Value::from_static("no-store"));
    fields.insert(super::request_id::X_REQUEST_ID, id.value());
    cors::open(fields);
    match kind {
        Kind::Unavailable => fields.insert(header::RETRY_AFTER, RETRY_AFTER),
        Kind::TooManyAttempts => fields.insert(header::RETRY_AFTER, RETRY_ATTEMPT),
        Kind::MethodNotAllowed => fields.insert(header::ALLOW, ALLOW),
        _ => {}
    }
    response
}

/// The answer to `OPTIONS *` where no service is there to give it.
#[must_use]
pub fn options() -> Response {
    let mut response = Response::of(http::StatusCode::NO_CONTENT);
    response.fields.insert(header::ALLOW, ALLOW);
    response
}

/// Whether a path belongs to the Matrix APIs (client-server, server-server, well-known).
fn is_matrix(path: &str) -> bool {
    ["/_matrix/", "/_synapse/", "/.well-known/matrix/"].iter().any(|prefix| path.starts_with(prefix))
}

fn wants_html(fields: &Fields) -> bool {
    fields.items(header::ACCEPT).any(|range| {
        range.split(|b| *b == b';').next().is_some_and(|kind| kind.trim_ascii().eq_ignore_ascii_case(b"text/html"))
    })
}

/// Matrix client-server API, "Standard error response".
const fn errcode(kind: Kind) -> &'static str {
    match kind {
        Kind::NoRoute | Kind::MethodNotAllowed | Kind::Misdirected => "M_UNRECOGNIZED",
        Kind::BodyTooLarge => "M_TOO_LARGE",
        Kind::Denied => "M_FORBIDDEN",
        Kind::Unauthorized => "M_UNAUTHORIZED",
        Kind::TooManyAttempts => "M_LIMIT_EXCEEDED",
        _ => "M_UNKNOWN",
    }
}

fn matrix(kind: Kind, id: &RequestId) -> String {
    let error = format!("{kind} (request {})", id.as_str());
    serde_json::json!({ "errcode": errcode(kind), "error": error }).to_string()
}

fn html(kind: Kind, id: &RequestId) -> String {
    let status = kind.status();
    // Nothing of the request is echoed: an error page must not be a way to write into a page.
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{status}</title><style>body{{font:1rem/1.5 system-ui,sans-serif;max-width:40rem;margin:15vh auto;padding:0 1rem}}\
         small{{color:#666}}</style><h1>{status}</h1><p>Sorry: {kind}.</p><p><small>Request {id}</small></p>\n",
        status = status.as_u16(),
        id = id.as_str(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;

    fn headers(accept: &'static str) -> Fields {
        Fields::from_iter([(header::ACCEPT, Value::from_static(accept))])
    }

    #[test]
    fn the_form_follows_the_path_then_the_kind_then_accept() {
        let browser = headers("text/html,application/xhtml+xml,*/*;q=0.8");
        assert_eq!(Form::of("/_matrix/client/versions", &browser), Form::Matrix);
        assert_eq!(Form::of("/", &browser), Form::Html);
        assert_eq!(Form::of("/", &browser).on(SiteKind::Synapse), Form::Html);
        assert_eq!(Form::of("/", &headers("*/*")).on(SiteKind::Synapse), Form::Matrix);
        assert_eq!(Form::of("/_matrix/x", &browser).on(SiteKind::Synapse), Form::Matrix);
        assert_eq!(Form::of("/", &headers("*/*")), Form::Text);
        assert_eq!(Form::of("/", &headers("text/htmlx")), Form::Text);
    }

    #[test]
    fn every_answer_names_the_request_and_can_be_read_from_any_origin() {
        let id = RequestId::new();
        for form in [Form::Matrix, Form::Html, Form::Text] {
            let response = response(&Kind::Unavailable.into(), form, &id);
            assert_eq!(response.status, StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(response.fields.get(header::ACCESS_CONTROL_ALLOW_ORIGIN).unwrap(), "*");
            assert_eq!(response.fields.get(header::RETRY_AFTER).unwrap(), "5");
            let text = std::str::from_utf8(response.body.as_full().unwrap()).unwrap();
            assert!(text.contains(id.as_str()), "{text}");
        }
    }

    #[test]
    fn matrix_errors_are_json() {
        let response = response(&Kind::BodyTooLarge.into(), Form::Matrix, &RequestId::new());
        let json: serde_json::Value = serde_json::from_slice(response.body.as_full().unwrap()).unwrap();
        assert_eq!(json["errcode"], "M_TOO_LARGE");
        assert!(json["error"].is_string());
    }
}
