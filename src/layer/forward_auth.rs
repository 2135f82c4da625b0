//! A service that is asked about each request whether it may come: Authelia, Authentik, oauth2-proxy and their kind.
//!
//! Its answer with 2xx lets the request pass, with the fields that it may say of the user; any other answer is the
//! client's. What it may say is taken off the request first, or a client could say it of itself.

use std::{future::poll_fn, pin::Pin, sync::Arc};

use http::{HeaderName, Method, header};
use http_body::Body as _;

use super::forwarded::Client;
use crate::{
    config::plan,
    error::{Kind, ProxyError},
    message::{Body, Fields, Request, Response, Value},
    wire::is_of_one_hop,
};

const X_FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
const X_FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// A body that is read to its end, so that the connection can be used again; a longer one costs a connection.
const MAX_BODY: usize = 64 << 10;

/// What a request says of its own body, of a part that it wants and of a copy that it has: the question has no body, and
/// its answer is not the document. And what asks for a WebSocket.
const OF_THE_REQUEST_ALONE: [&str; 11] = [
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "range",
    "te",
];

/// A service that is asked.
pub struct ForwardAuth {
    plan: Arc<plan::ForwardAuth>,
}

impl ForwardAuth {
    /// The service of a plan.
    #[must_use]
    pub const fn new(plan: Arc<plan::ForwardAuth>) -> Self {
        Self { plan }
    }

    /// Where a client is sent that is not logged in, in place of an answer with 401.
    #[must_use]
    pub fn sign_in(&self) -> Option<&crate::config::template::Template> {
        self.plan.sign_in.as_ref()
    }

    /// The question about a request.
    ///
    /// # Errors
    /// The target cannot stand in a field.
    pub fn question(&self, request: &Request, client: &Client) -> Result<Request, ProxyError> {
        let target = Value::new(request.target().as_bytes())
            .map_err(|error| ProxyError::new(Kind::BadRequest("the target cannot stand in a field"), error))?;
        let mut fields = Fields::new();
        for (name, value) in request.fields.iter().filter(|(name, _)| self.sends(name)) {
            fields.append(name.clone(), value);
        }
        client.announce(&mut fields);
        fields.insert(X_FORWARDED_METHOD, Value::new(request.method.as_str().as_bytes()).expect("a method is a token"));
        fields.insert(X_FORWARDED_URI, target);
        let ip = client.ip.to_string();
        fields.insert(X_REAL_IP, Value::new(ip.as_bytes()).expect("an address is a valid value"));
        Ok(Request {
            method: Method::GET,
            uri: self.plan.path.clone(),
            version: request.version,
            fields,
            body: Body::empty(),
        })
    }

    fn sends(&self, name: &HeaderName) -> bool {
        let is_wanted = self.plan.send_fields.as_ref().is_none_or(|wanted| wanted.contains(name));
        // What a user logs in with goes to the service even where it says what becomes of it.
        let is_proof = *name == header::AUTHORIZATION || *name == header::COOKIE;
        *name == header::HOST
            || is_wanted
                && (is_proof || !self.may_say(name))
                && !is_of_one_hop(name)
                && !name.as_str().starts_with("sec-websocket-")
                && !OF_THE_REQUEST_ALONE.contains(&name.as_str())
    }

    /// Takes off a request what only the service may say.
    pub fn forget(&self, fields: &mut Fields) {
        fields.retain(|name, _| !self.may_say(name));
    }

    /// Whether a field is one that the service may say, for a program behind CGI, too, to which `_` is `-`.
    fn may_say(&self, name: &HeaderName) -> bool {
        let dashed = |b: u8| if b == b'_' { b'-' } else { b };
        let name = name.as_str().bytes().map(dashed);
        self.plan.copy_fields.iter().any(|copied| copied.to.as_str().bytes().map(dashed).eq(name.clone()))
    }

    /// Lets a request pass, with what the service says of its user.
    ///
    /// # Errors
    /// The service does not let it pass: its answer, for the client.
    pub async fn admit(&self, mut answer: Response, fields: &mut Fields) -> Result<(), Response> {
        if !answer.status.is_success() {
            return Err(answer);
        }
        for copied in &self.plan.copy_fields {
            for value in answer.fields.get_all(&copied.from) {
                fields.append(copied.to.clone(), value);
            }
        }
        let mut read = 0;
        while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut answer.body).poll_frame(cx)).await {
            read += frame.data_ref().map_or(0, bytes::Bytes::len);
            if read > MAX_BODY {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(copy: &[&'static str], send: Option<&[&'static str]>) -> ForwardAuth {
        let names = |names: &[&'static str]| names.iter().map(|name| HeaderName::from_static(name)).collect::<Vec<_>>();
        ForwardAuth::new(Arc::new(plan::ForwardAuth {
            upstream: plan::Upstream {
                name: "auth".into(),
                servers: Vec::new(),
                connect_timeout: std::time::Duration::ZERO,
                response_timeout: None,
                retry_connect: std::time::Duration::ZERO,
                balance: plan::Balance::RoundRobin,
                health: None,
                host: plan::UpstreamHost::OfRequest,
                tls: None,
            },
            path: "/verify?x".parse().unwrap(),
            send_fields: send.map(names),
            copy_fields: names(copy)
                .into_iter()
                .map(|name| plan::CopiedField { from: name.clone(), to: name })
                .collect(),
            sign_in: None,
        }))
    }

    fn request() -> Request {
        let fields =
            ["host", "cookie", "range", "content-length", "remote-user", "remote_user", "upgrade", "x-forwarded-uri"];
        let fields = fields.map(|name| (HeaderName::from_static(name), Value::from_static("1")));
        let uri = "/a?b".parse().unwrap();
        Request { method: Method::POST, uri, fields: Fields::from_iter(fields), ..Request::default() }
    }

    fn names(fields: &Fields) -> Vec<&str> {
        fields.names().map(HeaderName::as_str).collect()
    }

    fn client() -> Client {
        let peer = "192.0.2.1:1".parse().unwrap();
        Client::find(&crate::conn::ConnInfo { peer, client: peer, port: 443, tls: None }, &Fields::new(), &[])
    }

    #[test]
    fn the_question_is_a_get_with_what_identifies_the_user() {
        let question = service(&["remote-user"], None).question(&request(), &client()).unwrap();
        assert_eq!((question.method, question.uri.to_string().as_str()), (Method::GET, "/verify?x"));
        assert_eq!(question.fields.get("x-forwarded-method").unwrap(), "POST");
        assert_eq!(
            question.fields.get_all("x-forwarded-uri").map(|value| value.to_str().unwrap()).collect::<Vec<_>>(),
            ["/a?b"]
        );
        assert_eq!(question.fields.items("x-forwarded-for").collect::<Vec<_>>(), [b"192.0.2.1"]);
        let kept: Vec<_> = names(&question.fields).into_iter().filter(|name| !name.starts_with("x-")).collect();
        assert_eq!(kept, ["host", "cookie"]);
        let question = service(&[], Some(&["authorization"])).question(&request(), &client()).unwrap();
        assert!(!question.fields.contains("cookie") && question.fields.contains("host"));
    }

    #[tokio::test]
    async fn what_the_service_may_say_is_said_by_it_alone() {
        let service = service(&["remote-user"], None);
        let mut fields = request().fields;
        service.forget(&mut fields);
        assert!(!fields.contains("remote-user") && !fields.contains("remote_user") && fields.contains("cookie"));
        let mut answer = Response::of(http::StatusCode::NO_CONTENT);
        answer.fields.append(HeaderName::from_static("remote-user"), Value::from_static("alice"));
        answer.fields.append(HeaderName::from_static("x-other"), Value::from_static("x"));
        service.admit(answer, &mut fields).await.unwrap();
        assert_eq!(fields.get("remote-user").unwrap(), "alice");
        assert!(!fields.contains("x-other"));
        let refused = service.admit(Response::of(http::StatusCode::FOUND), &mut fields).await.unwrap_err();
        assert_eq!(refused.status, http::StatusCode::FOUND);
    }
}
