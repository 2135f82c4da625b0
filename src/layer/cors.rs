//! Preflights that the edge answers itself, and the care never to send a second `Access-Control-Allow-Origin`: two
//! values are as good as none to a browser.

use http::{HeaderName, StatusCode, header};

use crate::message::{Fields, Response, Value};

const ANY: Value<'static> = Value::from_static("*");

/// How long a browser may remember the preflight of lk-jwt-service, which sends no age itself: a day saves a round trip
/// before every call.
const MAX_AGE: Value<'static> = Value::from_static("86400");

/// The answer that Synapse gives to every OPTIONS (`synapse/http/server.py`, `set_cors_headers`).
#[must_use]
pub fn synapse_preflight(path: &str) -> Response {
    let rendezvous = path.contains("/rendezvous");
    let (allow, expose) = if rendezvous {
        ("Content-Type, If-Match, If-None-Match", "Synapse-Trace-Id, Server, ETag")
    } else {
        ("X-Requested-With, Content-Type, Authorization, Date", "Synapse-Trace-Id, Server")
    };
    preflight(&[
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, POST, PUT, DELETE, OPTIONS"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, allow),
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, expose),
    ])
}

/// The answer of lk-jwt-service to a preflight, as it stands when the service itself gave none.
#[must_use]
pub fn lk_jwt_preflight() -> Response {
    preflight(&[
        (header::ACCESS_CONTROL_ALLOW_METHODS, "POST"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "Accept, Content-Type, Content-Length, Accept-Encoding, X-CSRF-Token"),
        (header::ACCESS_CONTROL_MAX_AGE, "86400"),
    ])
}

/// Whether a request is the preflight of a browser (Fetch, "CORS-preflight request").
#[must_use]
pub fn is_preflight(method: &http::Method, fields: &Fields) -> bool {
    *method == http::Method::OPTIONS
        && fields.contains(header::ORIGIN)
        && fields.contains(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// The answer to a preflight on a route with `cors = true`: what it asks for is allowed, without credentials.
#[must_use]
pub fn route_preflight(asked: &Fields) -> Response {
    let mut response = Response::of(StatusCode::NO_CONTENT);
    let fields = &mut response.fields;
    open(fields);
    for (ask, answer) in [
        (header::ACCESS_CONTROL_REQUEST_METHOD, header::ACCESS_CONTROL_ALLOW_METHODS),
        (header::ACCESS_CONTROL_REQUEST_HEADERS, header::ACCESS_CONTROL_ALLOW_HEADERS),
    ] {
        if let Some(value) = asked.get(&ask) {
            fields.append(answer, value);
        }
    }
    fields.append(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    let vary = Value::from_static("Access-Control-Request-Method, Access-Control-Request-Headers");
    fields.append(header::VARY, vary);
    response
}

/// Whether an upstream's answer to OPTIONS would satisfy a browser.
#[must_use]
pub fn is_preflight_answer(status: StatusCode, fields: &Fields) -> bool {
    status.is_success() && fields.contains(header::ACCESS_CONTROL_ALLOW_ORIGIN)
}

/// Lets a browser remember a preflight that does not say for how long it holds.
pub fn remember(fields: &mut Fields) {
    fields.insert_if_absent(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
}

/// Lets any origin read an answer that the edge made.
pub fn open(fields: &mut Fields) {
    fields.insert_if_absent(header::ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
}

/// The three fields that the Matrix specification asks of every answer under `/.well-known/matrix/`, redirects and
/// errors included ("Well-known URIs", and v1.20 on redirects).
pub fn well_known(fields: &mut Fields) {
    open(fields);
    let methods = Value::from_static("GET, POST, PUT, DELETE, OPTIONS");
    fields.insert_if_absent(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    let allowed = Value::from_static("X-Requested-With, Content-Type, Authorization");
    fields.insert_if_absent(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
}

fn preflight(fields: &[(HeaderName, &'static str)]) -> Response {
    let mut response = Response::of(StatusCode::NO_CONTENT);
    open(&mut response.fields);
    for (name, value) in fields {
        response.fields.insert(name.clone(), Value::from_static(value));
    }
    response
}
