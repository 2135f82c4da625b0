//! 308 to another origin, path and query kept byte for byte. 308 and not 301: the method and the body stay, so that a
//! client that posts to the wrong scheme is not turned into one that gets.

use http::{StatusCode, header};

use crate::{
    error::{Kind, ProxyError},
    message::{Response, Value},
};

/// The answer that sends a client to `origin` (scheme and authority, no trailing slash).
///
/// # Errors
/// The target cannot stand in a field.
pub fn to(origin: &str, path_and_query: &str) -> Result<Response, ProxyError> {
    let location = [origin, if path_and_query == "*" { "/" } else { path_and_query }].concat();
    let location = Value::new(location.as_bytes())
        .map_err(|error| ProxyError::new(Kind::BadRequest("the target cannot be a location"), error))?;
    let mut response = Response::of(StatusCode::PERMANENT_REDIRECT);
    response.fields.insert(header::LOCATION, location);
    Ok(response)
}

/// The answer that sends a client to a URL or a path of this host.
///
/// # Errors
/// The location cannot stand in a field.
pub fn location(location: &str, status: StatusCode) -> Result<Response, ProxyError> {
    let location = Value::new(location.as_bytes())
        .map_err(|error| ProxyError::new(Kind::BadRequest("the target cannot be a location"), error))?;
    let mut response = Response::of(status);
    response.fields.insert(header::LOCATION, location);
    Ok(response)
}

/// The https origin of a host, with the port where it is not the usual one.
#[must_use]
pub fn https_origin(host: &str, public_port: u16) -> String {
    if public_port == 443 { format!("https://{host}") } else { format!("https://{host}:{public_port}") }
}
