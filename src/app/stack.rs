//! The layers of the request path, outermost first. This is the only place that names them all.
//!
//! ```text
//! handle    who is the client > log > { walk } > rescue > hsts
//!   walk    site by host > acme token > well-known > https redirect > route by path > access > preflight > guard > action
//!     proxy loop > body bound > preflight > compress > hop > forwarded > head bound > transports > upstream > hop > compress
//! ```
//!
//! - The log is outside rescue, so that it records the status the client got; rescue is outside everything that can fail.
//! - The well-known documents come before any redirect and before the upstream.
//! - Bodies are bounded before a byte goes upstream; the head is bounded last, when it is as it will be written.
//! - Compression sees the answer after the hop-by-hop fields are gone and before the log counts it.

use std::{borrow::Cow, net::IpAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, StatusCode, Uri, Version, header, uri::Scheme};
use ipnet::IpNet;
use tracing::warn;

use super::{
    guard::{Admission, Decision, Guard, Guards},
    rtc_probe,
};
use crate::{
    clock::Clock,
    config::{
        edits::FieldEdit,
        plan::{self, Kind as SiteKind},
        template::Template,
    },
    conn::{ClientHandle, ConnInfo, RequestObservers},
    error::{Kind, ProxyError},
    layer::{
        access,
        access_log::{AccessLog, Exchange},
        basic_auth::Passwords,
        compress::{AcceptedEncodings, Compress},
        conditions, cors,
        edit_fields::{self, FieldEdits, ReadyEdits, Values},
        files::Files,
        forwarded::{Client, forwarded_scheme},
        hop, limit, loop_detection, redirect,
        request_id::{RequestId, X_REQUEST_ID},
        rescue::{self, Form},
        respond::{Fixed, WellKnown},
        response_head,
        rtc_transports::RtcTransports,
    },
    message::{Fields, Request, Response},
    route::{self, PathMatcher, Router, bare_host},
    serve,
    stream::{self, Forwarder},
    telemetry::{LogThrottle, Metrics, SiteNumbers},
    upstream::{self, Upstream},
};

/// Looks up the key authorization of an HTTP-01 token.
pub type Http01 = Arc<dyn Fn(&str, IpAddr) -> BoxFuture<'static, Option<String>> + Send + Sync>;

const ACME_CHALLENGE: &str = "/.well-known/acme-challenge/";
const MATRIX_WELL_KNOWN: &str = "/.well-known/matrix/";

/// Everything that one configuration makes of a request. A request sees one generation from its first byte to its last;
/// a reload makes a new one beside it.
pub struct Generation {
    router: Router<Site, Arc<Route>>,
    /// The sites with TLS that are addresses, each with its key in the router.
    addresses: Box<[(IpAddr, Box<str>)]>,
    /// Whether the site for every other name has a certificate.
    has_tls_catch_all: bool,
    listen: plan::Listen,
    handshake: Option<Duration>,
    settings: Arc<serve::Settings>,
    compress: Compress,
    http01: Http01,
    log: AccessLog,
    /// Whose redirects have been explained.
    redirects: LogThrottle,
}

struct Site {
    /// Its host, with its port where it is on one only.
    name: Arc<str>,
    numbers: SiteNumbers,
    /// Whether it answers every name that no other site has.
    is_catch_all: bool,
    /// Whether the site is served over TLS, so that plain HTTP redirects.
    secure: bool,
    /// Whether its certificate is ordered from a CA, which may come to validate.
    ordered: bool,
    hsts: bool,
    well_known: Option<WellKnown>,
    /// Where its connections go that are not HTTP; then it has no routes.
    stream: Option<Arc<Forwarder>>,
    /// Of the answers that no route gives.
    response_fields: Option<FieldEdits>,
}

struct Route {
    kind: SiteKind,
    access: Vec<plan::AccessRule>,
    conditions: plan::Conditions,
    strip: Option<String>,
    rewrite: plan::Rewrite,
    cors: bool,
    guard: Option<Arc<Guard>>,
    request_fields: Option<FieldEdits>,
    response_fields: Option<FieldEdits>,
    max_body: Vec<plan::BodyRule>,
    compress: bool,
    transports: Option<Arc<RtcTransports>>,
    root_redirect: Option<String>,
    action: Action,
}

enum Action {
    Proxy(Upstream),
    Redirect(String),
    RedirectTo(Template, StatusCode),
    Respond(Fixed),
    Files(Files),
    Deny,
    NotFound,
}

impl Generation {
    /// Builds the request path that a plan describes.
    #[must_use]
    pub fn new(plan: &plan::Plan, env: &upstream::Env, http01: Http01, metrics: &Metrics, clock: Clock) -> Self {
        let streams = stream_env(plan, env, metrics);
        let passwords = Arc::new(Passwords::none());
        let sites = plan.sites.iter().map(|site| {
            // Who may come must not depend on how a path is spelled.
            let any_spelling = site.routes.iter().any(|route| !route.guard.is_open());
            let mut guards = Guards::new(&passwords, env);
            let routes = site.routes.iter().map(|route| {
                let guard = guards.of(&route.guard);
                (matcher(route, any_spelling), Arc::new(Route { guard, ..Route::new(route, site, env) }))
            });
            let routes = routes.collect();
            (site.host.authority().into(), site.port, Site::new(site, metrics, &streams), routes)
        });
        let secure = plan.sites.iter().filter(|site| site.tls != plan::SiteTls::Off);
        let mut addresses: Vec<(IpAddr, Box<str>)> =
            secure.filter_map(|site| Some((site.host.address()?, site.host.authority().into()))).collect();
        addresses.sort();
        addresses.dedup();
        Self {
            router: Router::new(sites),
            addresses: addresses.into(),
            has_tls_catch_all: plan.sites.iter().any(|site| site.host.is_catch_all() && site.tls.has_certificate()),
            listen: plan.listen.clone(),
            handshake: plan.timeouts.handshake,
            settings: Arc::new(serve::Settings {
                dropped: metrics.dropped_fields(),
                ..serve::Settings::new(&plan.limits, &plan.timeouts, clock)
            }),
            compress: Compress::new(&plan.compression, metrics.saved()),
            http01,
            log: AccessLog::new(plan.log.access, plan.log.client_ip, metrics),
            redirects: LogThrottle::new(Duration::MAX),
        }
    }

    /// The site that a client of TLS means who names none, as clients of an address do: that of the address to which it is
    /// connected, else the only one there is, since behind a translation of addresses ours is another.
    pub fn address_site(&self, local: Option<IpAddr>) -> Option<&str> {
        let local = local.map(|ip| ip.to_canonical());
        match &*self.addresses {
            [(_, only)] => Some(only),
            several => several.iter().find(|(address, _)| Some(*address) == local).map(|(_, name)| &**name),
        }
    }

    /// Whether a handshake for this name, or for none, is that of the site for every other name.
    pub fn is_for_catch_all(&self, name: Option<&str>, port: u16) -> bool {
        let site = || self.router.site(name.unwrap_or(plan::CATCH_ALL), port);
        self.has_tls_catch_all && site().is_some_and(|found| found.site.is_catch_all && found.site.secure)
    }

    /// What forwards the connections of a name, if they are not HTTP.
    pub fn stream(&self, name: &str, port: u16) -> Option<Arc<Forwarder>> {
        self.router.site(name, port)?.site.stream.clone()
    }

    /// All forwarders of connections that are not HTTP.
    pub fn streams(&self) -> impl Iterator<Item = &Arc<Forwarder>> {
        self.router.sites().filter_map(|(_, site)| site.site.stream.as_ref())
    }

    /// Bound on handshakes, the PROXY protocol's header included.
    pub const fn handshake(&self) -> Option<Duration> {
        self.handshake
    }

    /// Who has to open with a PROXY protocol header.
    pub fn proxy_protocol(&self) -> &[IpNet] {
        &self.listen.proxy_protocol
    }

    /// Bounds on connections that begin now.
    pub fn settings(&self) -> Arc<serve::Settings> {
        self.settings.clone()
    }

    /// The upstreams and what leads to them, a host or a host and a path, for the admin.
    pub fn services(&self) -> impl Iterator<Item = (String, &Upstream)> {
        self.router.sites().flat_map(|(_, site)| {
            let host = &*site.site.name;
            let routes = site.routes().filter_map(move |(path, route)| match &route.action {
                Action::Proxy(upstream) => Some((format!("{host}{path}").trim_end_matches('/').to_owned(), upstream)),
                _ => None,
            });
            let mut guards: Vec<&Arc<Guard>> = Vec::new();
            for guard in site.routes().filter_map(|(_, route)| route.guard.as_ref()) {
                if !guards.iter().any(|known| Arc::ptr_eq(known, guard)) {
                    guards.push(guard);
                }
            }
            let asked =
                guards.into_iter().filter_map(move |guard| Some((format!("{host} (forward_auth)"), guard.upstream()?)));
            routes.chain(asked)
        })
    }

    /// The homeservers whose answer about call tokens matters. A route of its own may lead these requests elsewhere than the
    /// rest, to a worker.
    pub fn rtc_probes(&self) -> impl Iterator<Item = rtc_probe::Probe> {
        self.router.sites().flat_map(|(host, site)| {
            site.routes().filter_map(move |(_, route)| {
                let endpoint = route.transports.as_ref()?.token_endpoint()?;
                let asked = site
                    .route(plan::RTC_GET_TOKEN[0], |route| route.conditions.is_empty())
                    .filter(|asked| asked.kind.is_homeserver());
                let Action::Proxy(upstream) = &asked.unwrap_or(route).action else { return None };
                Some(rtc_probe::Probe { host: host.to_owned(), upstream: upstream.clone(), endpoint })
            })
        })
    }

    /// The upstreams, for probes.
    pub fn upstreams(&self) -> impl Iterator<Item = &Upstream> {
        self.services().map(|(_, upstream)| upstream)
    }

    /// Walks to where something has to be waited for.
    fn walk(&self, request: Request, context: &mut RequestContext<'_>) -> Result<Dispatch, ProxyError> {
        let path = request.uri.path();
        if let Some(answer) = self.acme_token(&request, context) {
            return Ok(answer);
        }
        let found = self.site(&request, context.conn)?;
        context.hsts = found.site.hsts;
        context.exchange.at_site(&found.site.numbers);
        context.edit(found.site.response_fields.as_ref(), &request);
        if let Some(documents) = &found.site.well_known
            && let Some(answer) = documents.answer(&request)
        {
            return Ok(Dispatch::Local(answer));
        }
        if found.site.secure && context.client.scheme == Scheme::HTTP {
            self.explain_redirect(&request, context.conn);
            return self.to_https(&request).map(Dispatch::Local);
        }
        if path == "*" {
            return self.whole_server(request, context, found);
        }
        let client = context.client.ip;
        let accepts = |route: &Arc<Route>| {
            route.conditions.is_empty() || conditions::are_met(&route.conditions, &request, client, route::is_like)
        };
        let route = found.route(path, accepts).ok_or(Kind::NoRoute)?;
        context.form = context.form.on(route.kind);
        context.cors = route.cors;
        context.edit(route.response_fields.as_ref(), &request);
        if !access::allows(&route.access, &route.inner_path(path), client) {
            return Err(Kind::NoRoute.into());
        }
        if route.cors && cors::is_preflight(&request.method, &request.fields) {
            return Ok(Dispatch::Local(cors::route_preflight(&request.fields)));
        }
        match &route.guard {
            None => self.act(request, context, route),
            Some(guard) => self.admit(request, context, route, guard),
        }
    }

    /// Goes on with a request that may come, now or when that is known.
    fn admit(
        &self,
        request: Request,
        context: &mut RequestContext<'_>,
        route: &Arc<Route>,
        guard: &Arc<Guard>,
    ) -> Result<Dispatch, ProxyError> {
        context.guard = Some(guard.clone());
        let sign_in = guard.sign_in(&context.values(&request));
        match guard.admit(request, &context.client, sign_in)? {
            Admission::Granted(request) => self.act(request, context, route),
            Admission::Pending(decision) => Ok(Dispatch::Guarded(decision, route.clone())),
        }
    }

    /// Goes on with a request once it is known whether it may come.
    fn decided(
        &self,
        decision: Decision,
        context: &mut RequestContext<'_>,
        route: &Route,
    ) -> Result<Dispatch, ProxyError> {
        match decision {
            Decision::Admit(request) => self.act(*request, context, route),
            Decision::Refuse(response) => {
                let back = ResponseContext { asked: None, preflight: false };
                Ok(Dispatch::Upstream { answer: Box::pin(std::future::ready(Ok(response))), back })
            }
        }
    }

    /// Does what a route does.
    fn act(&self, request: Request, context: &mut RequestContext<'_>, route: &Route) -> Result<Dispatch, ProxyError> {
        let path = request.uri.path();
        if let (Some(origin), "/") = (&route.root_redirect, path) {
            return redirect::to(origin, request.target()).map(Dispatch::Local);
        }
        match &route.action {
            Action::Proxy(upstream) => self.proxy(request, context, route, upstream),
            Action::RedirectTo(to, status) => {
                let location = edit_fields::fill(to, &context.values(&request));
                redirected(redirect::location(&location, *status)?, path).map(Dispatch::Local)
            }
            Action::Files(files) => {
                let path = route.inner_path(path).into_owned();
                Ok(self.files(request, route, files.clone(), path))
            }
            Action::Deny => Err(Kind::Denied.into()),
            Action::Redirect(origin) => redirected(redirect::to(origin, request.target())?, path).map(Dispatch::Local),
            Action::Respond(fixed) => Ok(Dispatch::Local(fixed.answer())),
            Action::NotFound => Err(Kind::NoRoute.into()),
        }
    }

    /// `OPTIONS *` asks a server and no path (RFC 9110 section 9.3.7): the one service behind everything answers it, or we.
    fn whole_server(
        &self,
        request: Request,
        context: &mut RequestContext<'_>,
        found: &route::Site<Site, Arc<Route>>,
    ) -> Result<Dispatch, ProxyError> {
        match found.route("/", |route| route.conditions.is_empty()) {
            Some(route) if route.kind == SiteKind::Http && route.strip.is_none() && route.guard.is_none() => {
                match &route.action {
                    Action::Proxy(upstream) => self.proxy(request, context, route, upstream),
                    _ => Ok(Dispatch::Local(rescue::options())),
                }
            }
            _ => Ok(Dispatch::Local(rescue::options())),
        }
    }

    /// The site that the connection and the `Host` field agree on. A connection serves the name that its handshake was
    /// for and no other, so that a certificate never speaks for a site that it does not name.
    fn site(&self, request: &Request, conn: &ConnInfo) -> Result<&route::Site<Site, Arc<Route>>, ProxyError> {
        let host = request.fields.get(header::HOST).and_then(|host| host.to_str()).unwrap_or_default();
        let site = self.router.site(host, conn.port);
        let Some(tls) = &conn.tls else { return site.ok_or_else(|| Kind::NoRoute.into()) };
        match (&tls.sni, site) {
            (Some(sni), Some(site)) if site.site.secure && bare_host(host).eq_ignore_ascii_case(sni) => Ok(site),
            // Without a name it was for the site that takes every other name.
            (None, Some(site)) if site.site.secure && site.site.is_catch_all => Ok(site),
            _ => Err(Kind::Misdirected.into()),
        }
    }

    /// The answer to a CA that validates by HTTP-01, over https as well: a proxy in front of us may redirect port 80. A
    /// site whose certificate does not come from a CA has its own answer, or that of the service behind it.
    fn acme_token(&self, request: &Request, context: &RequestContext<'_>) -> Option<Dispatch> {
        let token = request.uri.path().strip_prefix(ACME_CHALLENGE)?;
        let host = request.fields.get(header::HOST).and_then(|host| host.to_str()).unwrap_or_default();
        let ordered = self.router.has(host, |site| site.ordered);
        if !ordered || !matches!(request.method, Method::GET | Method::HEAD) {
            return None;
        }
        let authorization = (self.http01)(token, context.client.ip);
        let answer = Box::pin(async move {
            match authorization.await {
                Some(authorization) => Ok(Fixed::text(&authorization).answer()),
                None => Err(Kind::NoRoute.into()),
            }
        });
        Some(Dispatch::Upstream { answer, back: ResponseContext { asked: None, preflight: false } })
    }

    /// Says once of each address what an endless redirect comes of: a front that speaks plain HTTP to us for clients of
    /// https, and is not trusted to say so.
    fn explain_redirect(&self, request: &Request, conn: &ConnInfo) {
        let peer = conn.peer.ip();
        if forwarded_scheme(&request.fields) == Some(Scheme::HTTPS) && self.redirects.allows(peer) {
            warn!(
                client = %peer,
                key = "listen.trusted_proxies",
                "a client that says it forwards https is redirected to https, without end if it is your proxy: \
                 add its address to listen.trusted_proxies"
            );
        }
    }

    fn to_https(&self, request: &Request) -> Result<Response, ProxyError> {
        let host = request.fields.get(header::HOST).and_then(|host| host.to_str()).unwrap_or_default();
        let origin = redirect::https_origin(&bare_host(host).to_ascii_lowercase(), self.listen.public_port);
        redirected(redirect::to(&origin, request.target())?, request.uri.path())
    }

    fn proxy(
        &self,
        mut request: Request,
        context: &mut RequestContext<'_>,
        route: &Route,
        upstream: &Upstream,
    ) -> Result<Dispatch, ProxyError> {
        context.exchange.to_upstream(upstream.name(), route.kind);
        loop_detection::check(&request.fields)?;
        if let Some(prefix) = &route.strip {
            change_target(&mut request, |target| route::strip(target, prefix))?;
        }
        match &route.rewrite {
            plan::Rewrite::Keep => {}
            plan::Rewrite::AddPrefix(prefix) => change_target(&mut request, |target| [prefix, target].concat())?,
            plan::Rewrite::Path(path) => change_target(&mut request, |target| {
                let query = target.find('?').map_or("", |at| &target[at..]);
                [path, query].concat()
            })?,
        }
        limit::bound_body(&mut request, &route.max_body)?;
        let method = request.method.clone();
        if route.kind == SiteKind::Synapse && method == Method::OPTIONS {
            return Ok(Dispatch::Local(cors::synapse_preflight(request.uri.path())));
        }
        let asked = route.compress.then(|| self.compress.request(&method, &mut request.fields));
        hop::request(&method, &mut request.fields, request.version);
        let edits = route.request_fields.as_ref().map(|edits| edits.ready(&context.values(&request)));
        context.client.announce(&mut request.fields);
        loop_detection::announce(&mut request.fields);
        if let Some(edits) = edits {
            edits.apply(&mut request.fields);
        }
        limit::bound_head(&request, route.kind)?;
        let observers = RequestObservers {
            interim: context.client_side.take(),
            phases: context.exchange.phases(),
            client: Some(context.client.ip),
        };
        let answer: BoxFuture<'static, _> = match &route.transports {
            _ if limit::lacks_length(&request, route.kind) => {
                let upstream = upstream.clone();
                Box::pin(async move {
                    limit::give_length(&mut request).await?;
                    upstream.send(request, observers).await
                })
            }
            Some(transports) if transports.takes(request.uri.path()) => {
                let (transports, upstream) = (transports.clone(), upstream.clone());
                Box::pin(async move {
                    transports.answer(request, |request| upstream.send(request, observers.clone())).await
                })
            }
            _ => upstream.send(request, observers),
        };
        let preflight = route.kind == SiteKind::LkJwt && method == Method::OPTIONS;
        Ok(Dispatch::Upstream { answer, back: ResponseContext { asked, preflight } })
    }

    /// Answers with a file, of which a variant that is compressed already is as good as ours.
    fn files(&self, mut request: Request, route: &Route, files: Files, path: String) -> Dispatch {
        let accepted =
            request.fields.list(header::ACCEPT_ENCODING).and_then(|list| HeaderValue::from_bytes(&list).ok());
        let method = request.method.clone();
        let asked = route.compress.then(|| self.compress.request(&method, &mut request.fields));
        let answer = Box::pin(files.answer(request, path, accepted));
        Dispatch::Upstream { answer, back: ResponseContext { asked, preflight: false } }
    }

    /// Walks back with what a service has answered.
    fn back(
        &self,
        answer: Result<Response, ProxyError>,
        back: ResponseContext,
        client: Version,
    ) -> Result<Response, ProxyError> {
        if back.preflight {
            return Ok(lk_jwt_preflight(answer, client));
        }
        let mut response = answer?;
        hop::response(response.status, &mut response.fields, client);
        Ok(match back.asked {
            Some(asked) => self.compress.response(asked, response),
            None => response,
        })
    }
}

impl Site {
    fn new(plan: &plan::Site, metrics: &Metrics, streams: &stream::Env) -> Self {
        let name = plan.name();
        let passthrough = plan.tls == plan::SiteTls::Passthrough;
        let forwarder = |stream| Arc::new(Forwarder::new(name.clone(), stream, passthrough, streams));
        let stream = plan.stream.as_ref().map(forwarder);
        Self {
            name: name.clone(),
            numbers: metrics.of_site(name),
            is_catch_all: plan.host.is_catch_all(),
            // A site that is not HTTP has nothing to redirect to, and answers nothing on a connection of HTTP.
            secure: plan.stream.is_none() && plan.tls != plan::SiteTls::Off,
            ordered: plan.tls == plan::SiteTls::Acme,
            hsts: plan.hsts,
            well_known: plan.well_known.as_deref().map(WellKnown::new),
            stream,
            response_fields: FieldEdits::new(plan.response_fields.clone()),
        }
    }
}

/// What the forwarders of a plan share.
fn stream_env(plan: &plan::Plan, env: &upstream::Env, metrics: &Metrics) -> stream::Env {
    stream::Env {
        dialer: Arc::new(|server| {
            let dialer = Arc::new(upstream::TcpDialer::new(server.host.clone(), server.port));
            Arc::new(move || {
                let dialer = dialer.clone();
                Box::pin(async move { dialer.dial().await })
            })
        }),
        dials: env.dials.clone(),
        drain: env.drain.clone(),
        handshake: plan.timeouts.handshake,
        idle: plan.timeouts.tunnel_idle,
        log: plan.log.access,
        client_ip: plan.log.client_ip,
        metrics: metrics.clone(),
    }
}

impl Route {
    fn new(plan: &plan::Route, site: &plan::Site, env: &upstream::Env) -> Self {
        let edits = |site: &[FieldEdit], own: &[FieldEdit]| FieldEdits::new([site, own].concat());
        let env = upstream::Env { body_stall: plan.body_stall.unwrap_or(env.body_stall), ..env.clone() };
        Self {
            conditions: plan.conditions.clone(),
            rewrite: plan.rewrite.clone(),
            cors: plan.cors,
            guard: None,
            request_fields: edits(&site.request_fields, &plan.request_fields),
            response_fields: edits(&site.response_fields, &plan.response_fields),
            kind: plan.kind,
            access: plan.access.clone(),
            strip: plan.stripped().map(str::to_owned),
            max_body: plan.max_body.clone(),
            compress: plan.compress,
            transports: plan.rtc_transports.clone().map(|ours| Arc::new(RtcTransports::new(ours))),
            root_redirect: plan.root_redirect.clone(),
            action: match &plan.action {
                plan::Action::Proxy(upstream) => Action::Proxy(Upstream::new(upstream, &env)),
                plan::Action::Redirect(origin) => Action::Redirect(origin.clone()),
                plan::Action::RedirectTo { to, status } => Action::RedirectTo(to.clone(), *status),
                plan::Action::Files(files) => Action::Files(Files::new(files)),
                plan::Action::Deny => Action::Deny,
                plan::Action::Respond(fixed) => Action::Respond(Fixed::new(fixed)),
                plan::Action::NotFound => Action::NotFound,
            },
        }
    }
}

impl Route {
    /// The path as the service sees it before it is rewritten.
    fn inner_path<'p>(&self, path: &'p str) -> Cow<'p, str> {
        match &self.strip {
            Some(prefix) => Cow::Owned(route::strip(path, prefix)),
            None => Cow::Borrowed(path),
        }
    }
}

/// How far a request has come by itself.
enum Dispatch {
    /// Whether it may come is not known yet.
    Guarded(BoxFuture<'static, Result<Decision, ProxyError>>, Arc<Route>),
    /// It is answered.
    Local(Response),
    /// A service has been asked.
    Upstream { answer: BoxFuture<'static, Result<Response, ProxyError>>, back: ResponseContext },
}

/// What matters of a request on the way back.
struct ResponseContext {
    /// What it said of compression, where the route compresses.
    asked: Option<AcceptedEncodings>,
    /// It is a preflight of the service for call tokens.
    preflight: bool,
}

/// What is known of one request while it walks, besides the request itself.
struct RequestContext<'a> {
    conn: &'a ConnInfo,
    client: Client,
    version: Version,
    /// How an error is told; known better with every step.
    form: Form,
    hsts: bool,
    exchange: Exchange,
    client_side: Option<ClientHandle>,
    /// What the site and the route change of the fields of the response.
    edits: Option<ReadyEdits>,
    cors: bool,
    /// What has asked for a password.
    guard: Option<Arc<Guard>>,
}

impl RequestContext<'_> {
    /// What placeholders stand for.
    fn values<'r>(&'r self, request: &'r Request) -> Values<'r> {
        let host = request.fields.get(header::HOST).and_then(|host| host.to_str()).unwrap_or_default();
        Values {
            client_ip: self.client.ip,
            scheme: &self.client.scheme,
            host: bare_host(host),
            request_id: self.client.id.as_str(),
            path: request.uri.path(),
            query: request.uri.query(),
        }
    }

    fn edit(&mut self, edits: Option<&FieldEdits>, request: &Request) {
        self.edits = edits.map(|edits| edits.ready(&self.values(request)));
    }
}

/// What a connection calls for each of its requests.
#[derive(Clone)]
pub struct EdgeService {
    current: Arc<ArcSwap<Generation>>,
}

impl EdgeService {
    /// A front that follows the current generation.
    #[must_use]
    pub const fn new(current: Arc<ArcSwap<Generation>>) -> Self {
        Self { current }
    }
}

impl serve::Handler for EdgeService {
    /// Not an async fn, whose future would own a room for the request at each step of the walk: only the way back waits.
    fn handle(
        &self,
        mut request: Request,
        conn: &Arc<ConnInfo>,
        client_side: ClientHandle,
    ) -> impl Future<Output = Response> + Send {
        let road = self.current.load_full();
        let client = Client::find(conn, &request.fields, &road.listen.trusted_proxies);
        let exchange = road.log.begin(&mut request, conn, client.ip, &client_side, client.id.as_str());
        let mut context = RequestContext {
            conn,
            form: Form::of(request.uri.path(), &request.fields),
            version: request.version,
            hsts: false,
            client,
            exchange,
            client_side: Some(client_side),
            edits: None,
            cors: false,
            guard: None,
        };
        let mut step = road.walk(request, &mut context);
        async move {
            let answer = loop {
                break match step {
                    Ok(Dispatch::Guarded(decision, route)) => {
                        step = decision.await.and_then(|decision| road.decided(decision, &mut context, &route));
                        continue;
                    }
                    Ok(Dispatch::Upstream { answer, back }) => road.back(answer.await, back, context.version),
                    Ok(Dispatch::Local(response)) => Ok(response),
                    Err(error) => Err(error),
                };
            };
            finish(answer, context)
        }
    }

    fn refuse(&self, error: ProxyError, target: Option<&str>, conn: &Arc<ConnInfo>) -> Response {
        let road = self.current.load();
        let id = RequestId::new();
        let form = Form::of(target.unwrap_or_default(), &Fields::new());
        road.log.refused(&error, target, conn, id.as_str());
        rescue::response(&error, form, &id)
    }
}

fn finish(answer: Result<Response, ProxyError>, context: RequestContext<'_>) -> Response {
    let (mut response, error) = match answer {
        Ok(response) => (response, None),
        Err(error) => (rescue::response(&error, context.form, &context.client.id), Some(error)),
    };
    if let Some(Kind::Unauthorized) = error.as_ref().map(|error| error.kind)
        && let Some(challenge) = context.guard.as_ref().and_then(|guard| guard.challenge())
    {
        response.fields.insert(header::WWW_AUTHENTICATE, challenge.into());
    }
    if error.is_none() && response.status.is_server_error() {
        // A user who reports it can name it, and the log knows the rest.
        response.fields.insert(X_REQUEST_ID, context.client.id.value());
    }
    if context.cors {
        cors::open(&mut response.fields);
    }
    if let Some(edits) = &context.edits {
        edits.apply(&mut response.fields);
    }
    if context.hsts {
        response_head::hsts(&mut response.fields, context.conn.tls.is_some());
    }
    context.exchange.finish(response, error.as_ref(), context.client.id.as_str())
}

/// Redirects of the well-known path carry the same CORS fields as its documents, or a browser does not follow them.
fn redirected(mut response: Response, path: &str) -> Result<Response, ProxyError> {
    if path.starts_with(MATRIX_WELL_KNOWN) {
        cors::well_known(&mut response.fields);
    }
    Ok(response)
}

fn lk_jwt_preflight(answer: Result<Response, ProxyError>, client: Version) -> Response {
    match answer {
        Ok(mut response) if cors::is_preflight_answer(response.status, &response.fields) => {
            hop::response(response.status, &mut response.fields, client);
            cors::remember(&mut response.fields);
            response
        }
        _ => cors::lk_jwt_preflight(),
    }
}

/// How a route of the plan is compared with a path.
pub fn matcher(route: &plan::Route, any_spelling: bool) -> PathMatcher {
    let of = |text: &str| match route.matching {
        plan::Matching::Prefix => PathMatcher::prefix(text),
        plan::Matching::Exact => PathMatcher::exact(text),
        plan::Matching::Pattern => PathMatcher::pattern(text),
    };
    match route.action {
        _ if any_spelling => PathMatcher::any_spelling(&route.prefix, of),
        plan::Action::Deny => PathMatcher::any_spelling(&route.prefix, of),
        _ => of(&route.prefix),
    }
}

fn change_target(request: &mut Request, change: impl FnOnce(&str) -> String) -> Result<(), ProxyError> {
    let target = Uri::try_from(change(request.target()))
        .map_err(|error| ProxyError::new(Kind::BadRequest("the target is no path"), error))?;
    request.uri = target;
    Ok(())
}
