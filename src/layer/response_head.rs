//! What every answer of a site carries: `Strict-Transport-Security` where it is asked for.
//!
//! No `Server` of our own: Synapse's passes, since clients are told to read it (`Access-Control-Expose-Headers`).

use http::header;

use crate::message::{Fields, Value};

/// A year, without subdomains: a site speaks for itself only (RFC 6797 section 6.1).
const YEAR: Value<'static> = Value::from_static("max-age=31536000");

/// Adds the field over TLS, unless upstream did (RFC 6797 section 7.2 forbids it on plain HTTP).
pub fn hsts(fields: &mut Fields, secure: bool) {
    if secure {
        fields.insert_if_absent(header::STRICT_TRANSPORT_SECURITY, YEAR);
    }
}
