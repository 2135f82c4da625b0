//! A request and a response on the request path, and their parts.

mod body;
mod fields;
mod upgrade;

pub use body::{Body, BodyError};
pub use fields::{CDN_LOOP, Fields, InvalidValue, Items, Value};
pub use upgrade::{BoxIo, ClientIo, Io, Transferred, UpgradeHandler};

use http::{Method, StatusCode, Uri, Version, uri::PathAndQuery};

/// A request on the request path.
#[derive(Debug, Default)]
pub struct Request {
    /// The method, any token.
    pub method: Method,
    /// The target: in origin-form on the request path, absolute for a [`Fetch`](crate::conn::Fetch).
    pub uri: Uri,
    /// What its client speaks.
    pub version: Version,
    /// Its fields.
    pub fields: Fields,
    /// Its body.
    pub body: Body,
}

impl Request {
    /// A GET for `/` with this body, as a start.
    #[must_use]
    pub fn new(body: Body) -> Self {
        Self { body, ..Self::default() }
    }

    /// The path and the query as they were sent; `/` where there is neither.
    #[must_use]
    pub fn target(&self) -> &str {
        self.uri.path_and_query().map_or("/", PathAndQuery::as_str)
    }
}

/// A response as it walks back.
#[derive(Debug, Default)]
pub struct Response {
    /// The status.
    pub status: StatusCode,
    /// Its fields.
    pub fields: Fields,
    /// Its body.
    pub body: Body,
    /// What is to become of the byte stream, where this is the 101 of an upgrade.
    pub takeover: Option<UpgradeHandler>,
}

impl Response {
    /// A 200 with this body and no field.
    #[must_use]
    pub fn new(body: Body) -> Self {
        Self { body, ..Self::default() }
    }

    /// An answer without a body.
    #[must_use]
    pub fn of(status: StatusCode) -> Self {
        Self { status, ..Self::default() }
    }
}

/// From the builder of the `http` crate, and from libraries that speak it.
impl From<http::Request<Body>> for Request {
    fn from(request: http::Request<Body>) -> Self {
        let (parts, body) = request.into_parts();
        let http::request::Parts { method, uri, version, headers, .. } = parts;
        Self { method, uri, version, fields: (&headers).into(), body }
    }
}

/// See [`Request`].
impl From<http::Response<Body>> for Response {
    fn from(response: http::Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        Self { status: parts.status, fields: (&parts.headers).into(), body, takeover: None }
    }
}
