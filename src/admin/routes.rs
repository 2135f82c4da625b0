//! The resources of the admin server, and who may ask for them.
//!
//! The server has no password; its address decides who may reach it. A web browser on the same machine may not do so on behalf
//! of a web page: a request with an `Origin` of another site is refused, and so is a `Host` that is neither an address nor
//! one of `admin.hosts` (DNS rebinding). What changes something asks a browser for the token of our own page.

use std::{collections::HashSet, convert::Infallible, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{self, HOST, ORIGIN},
    request::Parts,
};
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{AdminHandlers, Certificate, Reloaded, page};
use crate::error::BoxError;

/// A response of the admin server.
pub type Response = http::Response<UnsyncBoxBody<Bytes, BoxError>>;

/// The formats of `/metrics`.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

/// The field in which our own page sends its token.
const TOKEN: HeaderName = HeaderName::from_static("x-vestibule-token");

/// How often the page is told what is new.
const TELL: Duration = Duration::from_secs(2);

/// Everything that a text/html response may load: its own style and script.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Which resources an address serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All of them.
    All,
    /// `/metrics` and `/health`: what a scraper on another host needs.
    Scrape,
}

/// A resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resource<'a> {
    Page,
    Style,
    Script,
    Events,
    Health,
    Ready,
    Metrics,
    Certificates,
    Upstreams,
    Status,
    Reload,
    Takeover,
    Renew(&'a str),
    Doctor,
}

impl<'a> Resource<'a> {
    fn at(path: &'a str) -> Option<Self> {
        Some(match path {
            "/" => Self::Page,
            "/page.css" => Self::Style,
            "/page.js" => Self::Script,
            "/events" => Self::Events,
            "/health" => Self::Health,
            "/ready" => Self::Ready,
            "/metrics" => Self::Metrics,
            "/certificates" => Self::Certificates,
            "/upstreams" => Self::Upstreams,
            "/status" => Self::Status,
            "/reload" => Self::Reload,
            "/takeover" => Self::Takeover,
            "/doctor" => Self::Doctor,
            _ => Self::Renew(path.strip_prefix("/renew/").filter(|host| !host.is_empty())?),
        })
    }

    const fn is_in(self, scope: Scope) -> bool {
        matches!(scope, Scope::All) || matches!(self, Self::Health | Self::Metrics)
    }

    /// The methods that it has.
    const fn allow(self) -> &'static str {
        match self {
            Self::Reload | Self::Takeover | Self::Renew(_) => "POST",
            Self::Doctor => "GET, HEAD, POST",
            _ => "GET, HEAD",
        }
    }
}

/// The resources at one address. Cheap to clone.
#[derive(Clone)]
pub struct Pages {
    handlers: Arc<dyn AdminHandlers>,
    hosts: Arc<HashSet<String>>,
    scope: Scope,
    /// What our own page shows in order to act; new for each process.
    token: Arc<str>,
    stop: CancellationToken,
}

impl Pages {
    /// The resources of a scope, for requests to an address, localhost or one of `hosts`; streams end with `stop`.
    pub fn new(handlers: Arc<dyn AdminHandlers>, hosts: &[String], scope: Scope, stop: CancellationToken) -> Self {
        let hosts = hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        Self { handlers, hosts: Arc::new(hosts), scope, token: super::token().into(), stop }
    }

    /// Answers a request.
    pub async fn respond(&self, request: &Parts) -> Response {
        if let Err(why) = self.admit(request) {
            return text(StatusCode::FORBIDDEN, why);
        }
        let Some(resource) = Resource::at(request.uri.path()).filter(|resource| resource.is_in(self.scope)) else {
            return text(StatusCode::NOT_FOUND, self.index());
        };
        let allow = resource.allow();
        if !allow.split(", ").any(|method| request.method == method) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("{allow} only\n"));
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
            return response;
        }
        if request.method == Method::POST { self.act(resource).await } else { self.read(resource, request) }
    }

    fn read(&self, resource: Resource<'_>, request: &Parts) -> Response {
        let handlers = &self.handlers;
        match resource {
            Resource::Page => page::html(&self.token),
            Resource::Style => document("text/css; charset=utf-8", page::STYLE),
            Resource::Script => document("text/javascript; charset=utf-8", page::SCRIPT),
            Resource::Events if request.method == Method::HEAD => document("text/event-stream", ""),
            Resource::Events => self.events(),
            Resource::Health => text(StatusCode::OK, "ok\n"),
            Resource::Ready => match handlers.unready() {
                reasons if reasons.is_empty() => {
                    let untried =
                        handlers.untried().into_iter().map(|server| format!("{server} has not been tried yet\n"));
                    text(StatusCode::OK, format!("ready\n{}", untried.collect::<String>()))
                }
                reasons => text(StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n"),
            },
            Resource::Metrics => {
                let openmetrics = wants_openmetrics(&request.headers);
                let content_type = if openmetrics { OPENMETRICS } else { CLASSIC };
                document(content_type, handlers.metrics(openmetrics))
            }
            Resource::Certificates => json(&handlers.certificates()),
            Resource::Upstreams => json(&handlers.upstreams()),
            Resource::Status => json(&handlers.status()),
            Resource::Doctor => json(&handlers.doctor()),
            Resource::Reload | Resource::Takeover | Resource::Renew(_) => unreachable!("an action"),
        }
    }

    async fn act(&self, resource: Resource<'_>) -> Response {
        match resource {
            Resource::Renew(host) => {
                let host = host.to_ascii_lowercase();
                if self.handlers.renew(&host) {
                    let said = format!("a new certificate for {host} is being ordered; see /certificates\n");
                    text(StatusCode::ACCEPTED, said)
                } else {
                    text(StatusCode::NOT_FOUND, not_renewed(&host, &self.handlers.certificates()))
                }
            }
            Resource::Takeover => {
                if self.handlers.take_over().await {
                    text(StatusCode::OK, "the addresses are yours\n")
                } else {
                    text(StatusCode::CONFLICT, "the process is stopping\n")
                }
            }
            Resource::Doctor if self.handlers.diagnose() => text(StatusCode::ACCEPTED, "doctor is running\n"),
            Resource::Doctor => text(StatusCode::CONFLICT, "doctor is running already\n"),
            _ => match self.handlers.reload().await {
                Reloaded::Fine(said) => text(StatusCode::OK, said),
                Reloaded::BadFile(report) => text(StatusCode::UNPROCESSABLE_ENTITY, report),
                Reloaded::Failed(problem) => text(StatusCode::CONFLICT, problem),
            },
        }
    }

    /// Server-sent events: `overview` every two seconds, `traffic` whenever there is a new sample.
    fn events(&self) -> Response {
        let mut ticks = interval(TELL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let state = (ticks, self.handlers.clone(), 0);
        let events = stream::unfold(state, |(mut ticks, handlers, seen)| async move {
            ticks.tick().await;
            let mut text = event("overview", &handlers.overview());
            let traffic = handlers.traffic(seen);
            if traffic.last != seen || seen == 0 {
                text += &event("traffic", &traffic);
            }
            Some((Ok::<_, Infallible>(Frame::data(Bytes::from(text))), (ticks, handlers, traffic.last)))
        });
        let events = events.take_until(self.stop.clone().cancelled_owned());
        response(StatusCode::OK, "text/event-stream", StreamBody::new(events))
    }

    fn admit(&self, request: &Parts) -> Result<(), &'static str> {
        let host = request.headers.get(HOST).map_or(Some(""), |host| host.to_str().ok()).unwrap_or("?");
        if !self.knows(host) {
            return Err("this Host is not known here: add it to admin.hosts\n");
        }
        let fields = |name: &str| request.headers.get(name).map(HeaderValue::as_bytes);
        let navigates = fields("sec-fetch-mode") == Some(b"navigate") && request.method == Method::GET;
        if matches!(fields("sec-fetch-site"), Some(b"cross-site" | b"same-site")) && !navigates {
            return Err("this is not for pages of other sites\n");
        }
        let Some(origin) = request.headers.get(ORIGIN) else { return Ok(()) };
        let own = origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://"));
        if !own.is_some_and(|own| own.eq_ignore_ascii_case(host)) {
            return Err("this is not for pages of other sites\n");
        }
        let token = request.headers.get(TOKEN).map_or(&b""[..], HeaderValue::as_bytes);
        let acts = !matches!(request.method, Method::GET | Method::HEAD);
        if acts && !super::is_token(token, &self.token) {
            return Err("reload the page: it is of another process\n");
        }
        Ok(())
    }

    /// Whether a `Host` is one that no foreign DNS can have made: an address, localhost, or a name of `admin.hosts`.
    fn knows(&self, host: &str) -> bool {
        let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|c| c.is_ascii_digit()));
        let name = name.map_or(host, |(name, _)| name).to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        let is_address = |text: &str| text.parse::<IpAddr>().is_ok();
        host.is_empty()
            || name == "localhost"
            || is_address(name.trim_matches(['[', ']']))
            || is_address(host)
            || self.hosts.contains(name)
    }

    const fn index(&self) -> &'static str {
        match self.scope {
            Scope::All => {
                "/ /health /ready /metrics /certificates /upstreams /status /doctor, POST /reload /takeover /renew/HOST /doctor\n"
            }
            Scope::Scrape => "/health /metrics\n",
        }
    }
}

fn wants_openmetrics(fields: &HeaderMap) -> bool {
    let mut accepted = fields.get_all(header::ACCEPT).iter();
    accepted.any(|value| value.to_str().is_ok_and(|list| list.contains("openmetrics-text")))
}

fn event(name: &str, value: &impl Serialize) -> String {
    format!("event: {name}\ndata: {}\n\n", serde_json::to_string(value).unwrap_or_default())
}

/// A line of text.
pub fn text(status: StatusCode, text: impl Into<Bytes>) -> Response {
    response(status, TEXT, Full::<Bytes>::new(text.into()))
}

fn document(content_type: &'static str, text: impl Into<Bytes>) -> Response {
    response(StatusCode::OK, content_type, Full::<Bytes>::new(text.into()))
}

fn json(value: &impl Serialize) -> Response {
    // Only a map whose keys are no strings could fail, and no document has one.
    document(JSON, serde_json::to_string_pretty(value).unwrap_or_default() + "\n")
}

/// A page for browsers.
pub fn html(text: String) -> Response {
    document("text/html; charset=utf-8", text)
}

fn response(
    status: StatusCode,
    content_type: &'static str,
    body: impl Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
) -> Response {
    let mut response = http::Response::new(body.map_err(Into::into).boxed_unsync());
    *response.status_mut() = status;
    let fields = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        fields.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Why no certificate is ordered for a name.
fn not_renewed(host: &str, certificates: &[Certificate]) -> String {
    match certificates.iter().find(|certificate| *certificate.host == *host) {
        Some(found) => format!("{host} has no ACME certificate: its source is \"{}\"\n", found.source),
        None => format!("no site with TLS is named {host}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::Fine, *};

    fn pages(scope: Scope) -> Pages {
        Pages::new(Arc::new(Fine), &["Metrics.example".to_owned()], scope, CancellationToken::new())
    }

    async fn ask(pages: &Pages, method: &str, path: &str, fields: &[(&str, &str)]) -> Response {
        let mut request = http::Request::builder().method(method).uri(path);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        pages.respond(&request.body(()).unwrap().into_parts().0).await
    }

    #[tokio::test]
    async fn a_web_page_of_another_site_gets_nothing() {
        let pages = pages(Scope::All);
        for (name, value, allowed) in [
            ("origin", "https://evil.example", false),
            ("origin", "null", false),
            ("host", "evil.example:9180", false),
            ("host", "127.0.0.1.evil.example", false),
            ("host", "127.0.0.1:9180", true),
            ("host", "localhost", true),
            ("host", "[::1]:9180", true),
            ("host", "metrics.EXAMPLE:9180", true),
            ("sec-fetch-site", "cross-site", false),
            ("sec-fetch-site", "same-origin", true),
        ] {
            let status = ask(&pages, "GET", "/health", &[(name, value)]).await.status();
            assert_eq!(status == StatusCode::OK, allowed, "{name}: {value}");
        }
    }

    #[tokio::test]
    async fn our_own_page_acts_with_its_token_only() {
        let pages = pages(Scope::All);
        let own = [("host", "127.0.0.1:9180"), ("origin", "http://127.0.0.1:9180")];
        assert_eq!(ask(&pages, "POST", "/doctor", &own).await.status(), StatusCode::FORBIDDEN);
        let token = pages.token.clone();
        for (token, status) in [("0123", 403), (&*token, 202)] {
            let fields = [own[0], own[1], ("x-vestibule-token", token)];
            assert_eq!(ask(&pages, "POST", "/doctor", &fields).await.status().as_u16(), status);
            let other = [own[0], ("origin", "http://127.0.0.1:8080"), ("x-vestibule-token", token)];
            assert_eq!(ask(&pages, "POST", "/doctor", &other).await.status(), StatusCode::FORBIDDEN);
        }
        let html = ask(&pages, "GET", "/", &own[..1]).await.into_body().collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&html).contains(&*token));
    }

    #[tokio::test]
    async fn methods_are_named_where_another_is_used() {
        let pages = pages(Scope::All);
        for (method, path, status, allow) in [
            ("HEAD", "/status", 200, None),
            ("POST", "/status", 405, Some("GET, HEAD")),
            ("GET", "/reload", 405, Some("POST")),
            ("DELETE", "/", 405, Some("GET, HEAD")),
            ("GET", "/renew/", 404, None),
        ] {
            let response = ask(&pages, method, path, &[]).await;
            assert_eq!(response.status().as_u16(), status, "{method} {path}");
            assert_eq!(response.headers().get("allow").map(|allow| allow.to_str().unwrap()), allow);
        }
    }

    #[tokio::test]
    async fn a_scraper_gets_numbers_and_nothing_else() {
        let pages = pages(Scope::Scrape);
        for (method, path, status) in [
            ("GET", "/metrics", 200),
            ("GET", "/health", 200),
            ("GET", "/", 404),
            ("GET", "/status", 404),
            ("POST", "/reload", 404),
            ("POST", "/renew/a.example.org", 404),
        ] {
            assert_eq!(ask(&pages, method, path, &[]).await.status().as_u16(), status, "{path}");
        }
    }
}
