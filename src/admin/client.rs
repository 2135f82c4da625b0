//! Asks a running edge; for the commands that do.

use std::{sync::Arc, time::Duration};

use http::{Method, header};
use http_body_util::BodyExt as _;

use crate::{
    client::{Builder, Destination, Roots},
    config::plan::{AdminListen, Server},
    error::{BoxError, Kind},
    message::{Body, Request, Value},
};

/// Bound on a request and its response. Longer than the admin server takes at most.
const DEADLINE: Duration = Duration::from_secs(35);

/// The longest response that is read. No document of the admin server is as long, and another program may listen there.
const MAX_RESPONSE: usize = 64 << 20;

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The address does not accept, or stays silent.
    #[error("no edge answers at {0}")]
    Away(String, #[source] BoxError),
    /// Another program listens.
    #[error("what answers at {0} is no edge")]
    Stranger(String),
}

/// Sends a request without a body to the admin server of a running edge; returns the status and the text of its response.
///
/// # Errors
/// See [`CallError`].
pub async fn call(listen: &AdminListen, method: Method, path: &str) -> Result<(u16, String), CallError> {
    let (place, server) = match listen {
        AdminListen::Tcp(addr) => (addr.to_string(), Server::Http { host: addr.ip().to_string(), port: addr.port() }),
        AdminListen::Unix(path) => (path.display().to_string(), Server::Unix(path.clone())),
    };
    let resolve = Arc::new(move |_: &str, _| Some(Destination::Server(server.clone())));
    let fetch = Builder::new(Roots::none(), DEADLINE).max_response(MAX_RESPONSE).resolve(resolve).build();
    let mut request = Request::new(Body::empty());
    request.method = method;
    request.uri = format!("http://localhost{path}").parse().map_err(|_| CallError::Stranger(place.clone()))?;
    let response = fetch(request).await.map_err(|error| match error.kind {
        Kind::Connect | Kind::ResponseTimeout => {
            CallError::Away(place.clone(), error.source.unwrap_or_else(|| error.kind.into()))
        }
        _ => CallError::Stranger(place.clone()),
    })?;
    // The page is for browsers; no command asks for it.
    let content_type = response.fields.get(header::CONTENT_TYPE).and_then(Value::to_str).unwrap_or_default();
    if content_type.starts_with("text/html") {
        return Err(CallError::Stranger(place));
    }
    let body = response.body.collect().await.map_err(|_| CallError::Stranger(place.clone()))?.to_bytes();
    let text = String::from_utf8(body.into()).map_err(|_| CallError::Stranger(place))?;
    Ok((response.status.as_u16(), text))
}
