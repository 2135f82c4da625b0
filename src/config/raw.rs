//! The file as it is written: every value parsed on its own, nothing filled in, nothing compared.
//!
//! The keys are described for their users in `reference.rs`; a test keeps the two in step.

use std::{
    net::SocketAddr,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::{StatusCode, Uri};
use ipnet::IpNet;
use toml::de::{DeTable, DeValue};

use super::{
    acme::Acme,
    basic_auth,
    edits::{self, FieldEdit},
    forward_auth::{self, ForwardAuth},
    matching,
    plan::{
        Balance, BasicAuth, ClientIpLog, Conditions, Encoding, Health, Hostname, KeyPairFiles, Kind, LogFormat,
        RtcTransport, Server, StreamKind, TlsVersion, UpstreamHost,
    },
    stream,
    tree::{At, Item, Problem, Reader, Section, boolean, integer, kind_of, list, one_or_more, parsed, string, word},
    upstream_tls::{self, RawTls},
    value,
};

/// A size or duration that may be `off`.
pub type Bound<T> = Option<At<Option<T>>>;

/// The file.
#[derive(Default)]
pub struct Raw {
    pub listen: Listen,
    pub acme: Acme,
    pub storage_path: Option<At<PathBuf>>,
    pub tls_certificates: Option<At<Issuer>>,
    pub tls_min_version: Option<At<TlsVersion>>,
    pub matrix: Option<Matrix>,
    pub sites: Vec<Site>,
    /// Whether a site or a kind is invalid or misspelled, so that a site that seems to be missing may only be broken.
    pub broken_sites: bool,
    pub encodings: Option<At<Vec<Encoding>>>,
    pub min_size: Bound<u64>,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub log: Log,
    pub admin: Admin,
}

impl Raw {
    /// The files that it names.
    pub fn files(&self) -> Vec<At<&Path>> {
        let of_upstreams = self.upstreams().filter_map(|upstream| upstream.tls.client_certificate.as_ref());
        let of_upstreams = of_upstreams.map(|at| At { value: &at.value, span: at.span.clone() });
        let pairs = self
            .pairs()
            .into_iter()
            .chain(of_upstreams)
            .flat_map(|at| [&*at.value.cert, &*at.value.key].map(|path| At { value: path, span: at.span.clone() }));
        let roots = self.upstreams().filter_map(|upstream| upstream.tls.ca_file.as_ref());
        let roots = roots.map(|at| At { value: at.value.as_path(), span: at.span.clone() });
        self.acme.files().into_iter().chain(pairs).chain(roots).collect()
    }

    /// Every upstream of HTTP: of the routes, and of the services that are asked who may come.
    fn upstreams(&self) -> impl Iterator<Item = &Upstream> {
        let routes = self.sites.iter().flat_map(|site| std::iter::once(&site.root).chain(&site.routes));
        routes.flat_map(|route| {
            let asked = route.forward_auth.as_ref().and_then(|auth| Some(&auth.value.as_ref()?.upstream.value));
            [&route.upstream, &route.mas].into_iter().flatten().map(|at| &at.value).chain(asked)
        })
    }

    /// The sites that are served with certificates in files: the files, the name, and where the file says so.
    pub fn served_files(&self) -> Vec<(&[KeyPairFiles], &str, Range<usize>)> {
        let mut served = Vec::new();
        for site in &self.sites {
            let host = site.host.value.as_str();
            match (&site.tls, &self.tls_certificates) {
                (Some(At { value: Tls::Files(pair), span }), _) => {
                    served.push((std::slice::from_ref(pair), host, span.clone()));
                }
                (None, Some(At { value: Issuer::Files(pairs), span })) => served.push((&**pairs, host, span.clone())),
                _ => {}
            }
        }
        served
    }

    /// The certificates in files that it names, of sites and of all sites together.
    fn pairs(&self) -> Vec<At<&KeyPairFiles>> {
        let own = self.sites.iter().filter_map(|site| {
            let tls = site.tls.as_ref()?;
            let Tls::Files(pair) = &tls.value else { return None };
            Some(At { value: pair, span: tls.span.clone() })
        });
        let shared = self.tls_certificates.iter().flat_map(|at| {
            let Issuer::Files(pairs) = &at.value else { return Vec::new() };
            pairs.iter().map(|pair| At { value: pair, span: at.span.clone() }).collect()
        });
        own.chain(shared).collect()
    }
}

#[derive(Default)]
pub struct Listen {
    pub http: Option<At<Vec<SocketAddr>>>,
    pub https: Option<At<Vec<SocketAddr>>>,
    pub threads: Option<At<u64>>,
    pub public_port: Option<At<u64>>,
    pub proxy_protocol: Option<At<Vec<IpNet>>>,
    pub trusted_proxies: Option<At<Vec<IpNet>>>,
}

/// Where the certificates of a site come from that sets no `tls`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Issuer {
    Acme,
    Internal,
    /// Whichever of these files is for the site's name.
    Files(Arc<[KeyPairFiles]>),
}

pub struct Matrix {
    pub span: Range<usize>,
    pub server_name: Option<At<String>>,
    /// Whether the key is there, even if its value is invalid.
    pub names_server: bool,
    pub homeserver: Option<At<String>>,
    pub names_homeserver: bool,
    pub rtc_service: Option<At<Vec<RtcService>>>,
    pub names_rtc_service: bool,
    pub federation: Option<At<String>>,
    pub well_known_max_age: Bound<Duration>,
    pub rtc_transports: Option<At<bool>>,
    pub client: Option<serde_json::Map<String, serde_json::Value>>,
    pub server: Option<serde_json::Map<String, serde_json::Value>>,
    pub support: Option<serde_json::Map<String, serde_json::Value>>,
}

/// One value of `matrix.rtc_service`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RtcService {
    /// The address of the authorisation service alone.
    Url(String),
    /// A table.
    Transport(RtcTransport),
}

pub struct Site {
    pub host: At<Hostname>,
    /// The only port that it is on.
    pub port: Option<u16>,
    pub root: Route,
    pub routes: Vec<Route>,
    pub well_known: Option<At<bool>>,
    pub tls: Option<At<Tls>>,
    pub hsts: Option<At<bool>>,
    /// What is said of a site whose connections are not HTTP; then `root` and `routes` say nothing.
    pub stream: Option<stream::Stream>,
    /// Whether the routes are a list, which is tried in its order.
    pub in_order: bool,
}

impl Site {
    /// How it is called: its host, with its port where it is on one only.
    pub fn name(&self) -> String {
        let host = &self.host.value;
        self.port.map_or_else(|| host.to_string(), |port| format!("{}:{port}", host.authority()))
    }

    /// Whether clients find it at a port without being told.
    pub fn is_on(&self, port: u16) -> bool {
        self.port.is_none_or(|only| only == port)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    Acme,
    Internal,
    Wildcard,
    Off,
    Passthrough,
    Files(KeyPairFiles),
}

/// A route, or the site itself, whose prefix is `/`.
pub struct Route {
    pub prefix: At<String>,
    pub kind: Option<At<Kind>>,
    pub upstream: Option<At<Upstream>>,
    /// Of a site of kind `synapse`: where its log-ins go.
    pub mas: Option<At<Upstream>>,
    pub redirect: Option<At<String>>,
    pub redirect_to: Option<At<matching::RedirectTo>>,
    pub deny: Option<At<bool>>,
    pub files: Option<At<PathBuf>>,
    pub spa: Option<At<bool>>,
    pub conditions: Conditions,
    pub add_prefix: Option<At<String>>,
    pub rewrite: Option<At<String>>,
    pub request_fields: Vec<FieldEdit>,
    pub response_fields: Vec<FieldEdit>,
    pub security_fields: Option<At<bool>>,
    pub cors: Option<At<bool>>,
    /// Nothing in it is `false`: the route is open on a site that is not.
    pub basic_auth: Option<At<Option<Arc<BasicAuth>>>>,
    /// Likewise.
    pub forward_auth: Option<At<Option<ForwardAuth>>>,
    pub respond: Option<At<Respond>>,
    pub strip_prefix: Option<At<bool>>,
    pub max_body: Bound<u64>,
    pub body_stall: Bound<Duration>,
    pub compress: Option<At<bool>>,
    pub admin_from: Option<At<Vec<IpNet>>>,
    /// Whether a key of the route is invalid or misspelled, so that what is missing may only be broken.
    pub broken: bool,
}

impl Route {
    /// A route that says nothing.
    pub fn empty(prefix: At<String>) -> Self {
        Self {
            prefix,
            kind: None,
            upstream: None,
            mas: None,
            redirect: None,
            redirect_to: None,
            deny: None,
            files: None,
            spa: None,
            conditions: Conditions::default(),
            add_prefix: None,
            rewrite: None,
            request_fields: Vec::new(),
            response_fields: Vec::new(),
            security_fields: None,
            cors: None,
            basic_auth: None,
            forward_auth: None,
            respond: None,
            strip_prefix: None,
            max_body: None,
            body_stall: None,
            compress: None,
            admin_from: None,
            broken: false,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Respond {
    pub status: StatusCode,
    pub content_type: Option<String>,
    pub body: String,
}

#[derive(Clone, Default)]
pub struct Upstream {
    pub servers: Vec<Server>,
    pub connect_timeout: Option<Duration>,
    pub response_timeout: Option<Option<Duration>>,
    pub retry_connect: Option<Duration>,
    pub balance: Option<Balance>,
    pub health: Option<Health>,
    pub host: Option<UpstreamHost>,
    pub tls: RawTls,
}

#[derive(Default)]
pub struct Limits {
    pub header_bytes: Bound<u64>,
    pub header_count: Option<At<u64>>,
    pub request_target: Bound<u64>,
    pub connections: Option<At<u64>>,
    pub connections_per_ip: Option<At<u64>>,
    pub streams_per_connection: Option<At<u64>>,
}

#[derive(Default)]
pub struct Timeouts {
    pub handshake: Bound<Duration>,
    pub header: Bound<Duration>,
    pub keep_alive: Bound<Duration>,
    pub body_stall: Bound<Duration>,
    pub tunnel_idle: Bound<Duration>,
    pub drain: Option<At<Duration>>,
}

#[derive(Default)]
pub struct Log {
    pub file: Option<At<PathBuf>>,
    pub level: Option<At<String>>,
    pub format: Option<At<LogFormat>>,
    pub access: Option<At<bool>>,
    pub client_ip: Option<At<ClientIpLog>>,
}

#[derive(Default)]
pub struct Admin {
    pub listen: Option<At<AdminListen>>,
    pub allow_remote: Option<At<bool>>,
    pub hosts: Option<At<Vec<String>>>,
    pub metrics: Option<At<SocketAddr>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminListen {
    Off,
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Reads the whole file.
pub fn read(reader: &Reader<'_>, table: &DeTable<'_>, span: Range<usize>) -> Raw {
    let file = Section::new(reader, "", table, span);
    let dir = reader.source().dir.clone();
    let path = |item| string(item).and_then(|text| value::path(&dir, text));
    let mut raw = Raw::default();
    if let Some(section) = file.section("listen") {
        raw.listen = listen(section);
    }
    if let Some(section) = file.section("acme") {
        raw.acme = Acme::read(section);
    }
    if let Some(section) = file.section("storage") {
        raw.storage_path = section.get("path", path);
        section.finish();
    }
    if let Some(section) = file.section("tls") {
        raw.tls_certificates = section.get("certificates", |item| certificates(item, &dir));
        raw.tls_min_version = section.get("min_version", word(&[("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)]));
        section.finish();
    }
    raw.matrix = file.section("matrix").map(matrix);
    raw.broken_sites = file.mentions("sites");
    if let Some(section) = file.section("sites") {
        (raw.sites, raw.broken_sites) = sites(&section);
    }
    if let Some(section) = file.section("compression") {
        raw.encodings = section.get(
            "encodings",
            list(word(&[("zstd", Encoding::Zstd), ("br", Encoding::Brotli), ("gzip", Encoding::Gzip)])),
        );
        raw.min_size = section.get("min_size", parsed(value::size));
        section.finish();
    }
    if let Some(section) = file.section("limits") {
        raw.limits = limits(section);
    }
    if let Some(section) = file.section("timeouts") {
        raw.timeouts = timeouts(section);
    }
    if let Some(section) = file.section("log") {
        raw.log = log(section);
    }
    if let Some(section) = file.section("admin") {
        raw.admin.listen = section.get("listen", parsed(admin_listen));
        raw.admin.allow_remote = section.get("allow_remote", boolean);
        raw.admin.hosts = section.get("hosts", list(parsed(admin_host)));
        raw.admin.metrics = section.get("metrics", parsed(value::address));
        section.finish();
    }
    file.finish();
    raw
}

fn listen(section: Section<'_, '_, '_>) -> Listen {
    let listen = Listen {
        http: section.get("http", list(parsed(value::address))),
        https: section.get("https", list(parsed(value::address))),
        threads: section.get("threads", |item| integer(item, 1..=1024)),
        public_port: section.get("public_port", |item| integer(item, 1..=65_535)),
        proxy_protocol: section.get("proxy_protocol", list(parsed(value::network))),
        trusted_proxies: section.get("trusted_proxies", list(parsed(value::network))),
    };
    section.finish();
    listen
}

fn matrix(section: Section<'_, '_, '_>) -> Matrix {
    let matrix = Matrix {
        span: section.span.clone(),
        names_server: section.mentions("server_name"),
        server_name: section.get("server_name", parsed(value::server_name)),
        names_homeserver: section.mentions("homeserver"),
        homeserver: section.get("homeserver", parsed(value::url)),
        rtc_service: section.get("rtc_service", |item| match item.get_ref() {
            // A deployment without calls says so.
            DeValue::Array(items) if items.is_empty() => Ok(Vec::new()),
            _ => one_or_more(|item| rtc_service(section.reader, item))(item),
        }),
        names_rtc_service: section.mentions("rtc_service"),
        federation: section.get("federation", parsed(value::federation)),
        well_known_max_age: section.get("well_known_max_age", parsed(value::duration)),
        rtc_transports: section.get("rtc_transports", word(&[("fill", true), ("pass", false)])),
        client: members(&section, "client"),
        server: members(&section, "server"),
        support: members(&section, "support"),
    };
    section.finish();
    matrix
}

/// A URL, or a table of both addresses.
fn rtc_service(reader: &Reader<'_>, item: &Item<'_>) -> Result<RtcService, Problem> {
    let DeValue::Table(table) = item.get_ref() else {
        return parsed(value::url)(item).map(RtcService::Url);
    };
    let section = Section::new(reader, "matrix.rtc_service", table, item.span());
    let transport = RtcTransport {
        url: section.get("url", parsed(value::sfu)).map(|url| url.value),
        service: section.get("livekit_service_url", parsed(value::url)).map(|url| url.value),
    };
    let says_nothing = section.item("url").is_none() && section.item("livekit_service_url").is_none();
    section.finish();
    if says_nothing {
        let help = "set url = \"wss://…\" (LIVEKIT_URL), livekit_service_url = \"https://…\", or both";
        return Err(Problem::new("a transport needs an address").help(help));
    }
    Ok(RtcService::Transport(transport))
}

/// Further members of a document, carried unchanged into JSON.
fn members(section: &Section<'_, '_, '_>, key: &'static str) -> Option<serde_json::Map<String, serde_json::Value>> {
    let found = section.get(key, json)?;
    match found.value {
        serde_json::Value::Object(map) => Some(map),
        _ => {
            let help = format!("write [{}] on a line of its own, with the members below", section.path(key));
            section.reader.error_with(found.span, format!("`{}` is a table", section.path(key)), help);
            None
        }
    }
}

fn json(item: &Item<'_>) -> Result<serde_json::Value, Problem> {
    use serde_json::Value;
    let wrong = |what: &str| Problem::new(format!("{what} cannot be written as JSON")).at(item.span());
    Ok(match item.get_ref() {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(n) => i64::from_str_radix(n.as_str(), n.radix()).map_err(|_| wrong("this number"))?.into(),
        DeValue::Float(n) => n
            .as_str()
            .replace('_', "")
            .parse::<f64>()
            .ok()
            .and_then(serde_json::Number::from_f64)
            .ok_or_else(|| wrong("this number"))?
            .into(),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Datetime(_) => return Err(wrong("a date").help("put it between quotes")),
        DeValue::Array(items) => Value::Array(items.iter().map(json).collect::<Result<_, _>>()?),
        DeValue::Table(table) => {
            let member = |(key, item): (&toml::Spanned<toml::de::DeString<'_>>, &Item<'_>)| {
                Ok((key.get_ref().to_string(), json(item)?))
            };
            Value::Object(table.iter().map(member).collect::<Result<_, Problem>>()?)
        }
    })
}

/// The sites, and whether one of them is broken.
fn sites(section: &Section<'_, '_, '_>) -> (Vec<Site>, bool) {
    let mut sites: Vec<Site> = Vec::new();
    let mut broken = false;
    for (key, item) in section.entries().flat_map(|(key, item)| hosts(section.reader, key, item)) {
        let DeValue::Table(table) = item.get_ref() else {
            let message = format!("a site is a table, not {}", kind_of(item.get_ref()));
            section.reader.error_with(
                item.span(),
                message,
                format!("write [sites.\"{}\"] with upstream = \"http://…\"", key.value),
            );
            broken = true;
            continue;
        };
        let host = match value::site_key(&key.value) {
            Ok((value, port)) => Some((At { value, span: key.span.clone() }, port)),
            Err(problem) => {
                // Noted at the key; the site below it is read all the same, for its own errors.
                section.reader.parse(item, |_| Err::<(), _>(problem.at(key.span.clone())));
                None
            }
        };
        let name = format!("sites.\"{}\"", key.value);
        let placeholder = || (At { value: Hostname("invalid".into()), span: key.span.clone() }, None);
        let is_valid = host.is_some();
        let (host, port) = host.unwrap_or_else(placeholder);
        let site = Site { port, ..site(Section::new(section.reader, name, table, item.span()), host) };
        broken |= !is_valid
            || site.stream.as_ref().is_some_and(|stream| stream.broken)
            || site.root.broken
            || site.routes.iter().any(|route| route.broken);
        match sites.iter().find(|other| other.host.value == site.host.value && other.port == site.port) {
            _ if !is_valid => {}
            Some(first) => {
                let message = format!("the site `{}` is defined twice", first.name());
                section.reader.error_twice(site.host.span, first.host.span.clone(), message);
            }
            None => sites.push(site),
        }
    }
    (sites, broken)
}

/// The keys of a site and of a route, any of which shows that a table is one.
const SITE_KEYS: [&str; 29] = [
    "kind",
    "upstream",
    "mas",
    "redirect",
    "routes",
    "well_known",
    "tls",
    "compress",
    "max_body",
    "body_stall",
    "hsts",
    "admin_from",
    "strip_prefix",
    "respond",
    "add_prefix",
    "rewrite",
    "methods",
    "fields",
    "from",
    "deny",
    "request_fields",
    "response_fields",
    "security_fields",
    "cors",
    "basic_auth",
    "forward_auth",
    "path",
    "files",
    "spa",
];

/// A site under its host name; or, where the name is without quotes, the sites that were meant: TOML reads
/// `[sites.matrix.example.org]` as three tables in each other.
fn hosts<'i>(reader: &Reader<'_>, key: At<&'i str>, item: &'i Item<'i>) -> Vec<(At<String>, &'i Item<'i>)> {
    let mut found = Vec::new();
    let mut below = vec![(key.value.to_owned(), key.span.clone(), item)];
    while let Some((name, span, item)) = below.pop() {
        let labels: Option<Vec<_>> = item.get_ref().as_table().map(|table| table.iter().collect());
        let labels = labels.filter(|labels| {
            let is_label = |name: &str, item: &Item<'_>| item.get_ref().is_table() && !SITE_KEYS.contains(&name);
            !labels.is_empty()
                && !key.value.contains('.')
                && labels.iter().all(|(name, item)| is_label(name.get_ref(), item))
        });
        match labels {
            Some(labels) => below.extend(
                labels
                    .into_iter()
                    .map(|(label, item)| (format!("{name}.{}", label.get_ref()), label.span(), item))
                    .rev(),
            ),
            None => found.push((At { value: name, span }, item)),
        }
    }
    for (host, _) in found.iter_mut().filter(|(host, _)| host.value != key.value) {
        host.span = dotted(&reader.source().expanded, host.span.clone());
        let help = format!("write [sites.\"{}\"]", host.value);
        reader.error_with(host.span.clone(), format!("the host name `{}` needs quotes", host.value), help);
    }
    found
}

/// The dotted name that ends with this key, without the `sites` that it begins with.
fn dotted(text: &str, last: Range<usize>) -> Range<usize> {
    // A parser that recovers gives bare keys that are not ASCII, too.
    let is_part = |c: char| c.is_alphanumeric() || "-_.\"'".contains(c);
    let start =
        last.start - text[..last.start].chars().rev().take_while(|c| is_part(*c)).map(char::len_utf8).sum::<usize>();
    let start = if text[start..].starts_with("sites.") { start + "sites.".len() } else { start };
    start..last.end
}

fn site(section: Section<'_, '_, '_>, host: At<Hostname>) -> Site {
    let dir = section.reader.source().dir.clone();
    let root = At { value: "/".to_owned(), span: host.span.clone() };
    if let Some(kind) = stream::kind(&section) {
        let stream = Some(stream::read(&section, kind));
        let tls = section.get("tls", |item| tls(item, &dir));
        section.finish();
        return Site {
            host,
            port: None,
            root: Route::empty(root),
            routes: Vec::new(),
            well_known: None,
            tls,
            hsts: None,
            stream,
            in_order: false,
        };
    }
    let mut broken = false;
    let mut routes = Vec::new();
    let in_order = section.item("routes").is_some_and(|item| item.get_ref().is_array());
    if in_order {
        routes = routes_in_order(&section);
    } else if let Some(table) = section.section("routes") {
        for (key, item) in table.entries() {
            match item.get_ref() {
                DeValue::Table(inner) => {
                    let name = format!("{}.\"{}\"", table.name, key.value);
                    let section = Section::new(table.reader, name, inner, item.span());
                    let prefix = At { value: key.value.to_owned(), span: key.span };
                    routes.push(route(section, prefix));
                }
                other => {
                    let message = format!("a route is a table, not {}", kind_of(other));
                    let help = format!("write \"{}\" = {{ upstream = \"http://…\" }}", key.value);
                    table.reader.error_with(item.span(), message, help);
                    broken = true;
                }
            }
        }
    } else {
        broken = section.mentions("routes");
    }
    let site_keys =
        (section.get("well_known", boolean), section.get("tls", |item| tls(item, &dir)), section.get("hsts", boolean));
    let mut root = route_of(&section, root);
    root.broken |= broken;
    root.mas = upstream(&section, "mas");
    root.admin_from = section.get("admin_from", list(parsed(value::network)));
    let (well_known, tls, hsts) = site_keys;
    section.finish();
    Site { host, port: None, root, routes, well_known, tls, hsts, stream: None, in_order }
}

/// `[[sites.HOST.routes]]`: each says its `path`.
fn routes_in_order(section: &Section<'_, '_, '_>) -> Vec<Route> {
    let Some(DeValue::Array(items)) = section.item("routes").map(|item| item.get_ref()) else { return Vec::new() };
    let mut routes = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let DeValue::Table(inner) = item.get_ref() else {
            section.reader.error(item.span(), format!("a route is a table, not {}", kind_of(item.get_ref())));
            continue;
        };
        let name = format!("{}[{index}]", section.path("routes"));
        let inner = Section::new(section.reader, name, inner, item.span());
        let path = inner.get("path", |item| string(item).map(str::to_owned));
        if inner.item("path").is_none() {
            let help = "write it like path = \"/prefix\", path = \"=/exact\" or path = \"/a/*/b\"";
            inner.reader.error_with(item.span(), "a route in a list needs a `path`", help);
        }
        let missing = At { value: "/".to_owned(), span: item.span() };
        routes.push(route(inner, path.unwrap_or(missing)));
    }
    routes
}

fn tls(item: &Item<'_>, dir: &Path) -> Result<Tls, Problem> {
    match item.get_ref() {
        DeValue::Table(_) => key_pair(item, dir).map(Tls::Files),
        _ => word(&[("acme", 0), ("internal", 1), ("wildcard", 2), ("off", 3), ("passthrough", 4)])(item)
            .map(|which| [Tls::Acme, Tls::Internal, Tls::Wildcard, Tls::Off, Tls::Passthrough][which].clone()),
    }
}

fn certificates(item: &Item<'_>, dir: &Path) -> Result<Issuer, Problem> {
    match item.get_ref() {
        DeValue::Table(_) | DeValue::Array(_) => {
            one_or_more(|item| key_pair(item, dir))(item).map(|pairs| Issuer::Files(pairs.into()))
        }
        _ => word(&[("acme", 0), ("internal", 1)])(item).map(|which| [Issuer::Acme, Issuer::Internal][which].clone()),
    }
}

/// `{ cert = "a.pem", key = "b.pem" }`.
pub fn key_pair(item: &Item<'_>, dir: &Path) -> Result<KeyPairFiles, Problem> {
    const HELP: &str = "write it like { cert = \"a.pem\", key = \"b.pem\" }";
    let DeValue::Table(table) = item.get_ref() else {
        return Err(Problem::new(format!("expected a table, found {}", kind_of(item.get_ref()))).help(HELP));
    };
    let file = |key: &str| match table.get(key) {
        Some(item) => string(item).and_then(|text| value::path(dir, text)).map_err(|problem| problem.at(item.span())),
        None => Err(Problem::new(format!("`{key}` is missing")).help(HELP)),
    };
    if let Some((key, _)) = table.iter().find(|(key, _)| !["cert", "key"].contains(&key.get_ref().as_ref())) {
        return Err(Problem::new(format!("unknown key `{}`", key.get_ref()))
            .at(key.span())
            .help("known here: cert, key"));
    }
    Ok(KeyPairFiles { cert: file("cert")?, key: file("key")? })
}

fn route(section: Section<'_, '_, '_>, prefix: At<String>) -> Route {
    let mut route = route_of(&section, prefix);
    route.strip_prefix = section.get("strip_prefix", boolean);
    route.respond = section.get("respond", respond);
    route.broken |= section.mentions("respond") && route.respond.is_none();
    route.deny = section.get("deny", boolean);
    route.add_prefix = section.get("add_prefix", parsed(matching::plain_path));
    route.rewrite = section.get("rewrite", parsed(matching::plain_path));
    route.conditions = Conditions {
        methods: section.get("methods", one_or_more(parsed(matching::method))).map(|at| at.value).unwrap_or_default(),
        fields: section.get("fields", matching::field_conditions).map(|at| at.value).unwrap_or_default(),
        from: section.get("from", one_or_more(parsed(value::network))).map(|at| at.value).unwrap_or_default(),
    };
    // A condition that was not understood must not become a route for everyone. (`files` and `fields` are alike, so that a
    // key which is nearly one of them says nothing.)
    route.broken |= [
        ("methods", route.conditions.methods.is_empty()),
        ("fields", route.conditions.fields.is_empty()),
        ("from", route.conditions.from.is_empty()),
    ]
    .into_iter()
    .any(|(key, is_empty)| is_empty && section.item(key).is_some());
    section.finish();
    route
}

/// The keys that a site and a route have in common.
fn route_of(section: &Section<'_, '_, '_>, prefix: At<String>) -> Route {
    let kind = section.get("kind", word(KINDS)).and_then(|kind| http_kind(section, kind));
    let upstream = upstream(section, "upstream");
    let (redirect, redirect_to) = match section.item("redirect") {
        Some(item) if matching::is_redirect_to(item) => (None, section.get("redirect", matching::redirect_to)),
        _ => (section.get("redirect", parsed(value::origin)), None),
    };
    let dir = section.reader.source().dir.clone();
    let files = section.get("files", |item| string(item).and_then(|text| value::path(&dir, text)));
    let edits =
        |key, message| section.get(key, |item| edits::parse(item, message)).map(|at| at.value).unwrap_or_default();
    let broken = (section.mentions("kind") && kind.is_none())
        || (section.mentions("upstream") && upstream.is_none())
        || (section.mentions("redirect") && redirect.is_none() && redirect_to.is_none())
        || (section.item("files").is_some() && files.is_none());
    Route {
        prefix,
        kind,
        upstream,
        mas: None,
        redirect,
        redirect_to,
        deny: None,
        files,
        spa: section.get("spa", boolean),
        conditions: Conditions::default(),
        add_prefix: None,
        rewrite: None,
        request_fields: edits("request_fields", edits::Message::Request),
        response_fields: edits("response_fields", edits::Message::Response),
        security_fields: section.get("security_fields", boolean),
        cors: section.get("cors", boolean),
        basic_auth: section.get("basic_auth", |item| basic_auth::read(section, item).map(|auth| auth.map(Arc::new))),
        forward_auth: section.get("forward_auth", |item| forward_auth::read(section, item)),
        respond: None,
        strip_prefix: None,
        max_body: section.get("max_body", parsed(value::size)),
        body_stall: section.get("body_stall", parsed(value::duration)),
        compress: section.get("compress", boolean),
        admin_from: None,
        broken,
    }
}

/// The kind, unless it is one of a whole site: the connections of those have no paths.
fn http_kind(section: &Section<'_, '_, '_>, kind: At<AnyKind>) -> Option<At<Kind>> {
    match kind.value {
        AnyKind::Http(value) => Some(At { value, span: kind.span }),
        AnyKind::Stream(stream) => {
            let message = format!("`{}` is a kind of site, not of route", stream.as_str());
            section.reader.error_with(
                kind.span,
                message,
                "its connections have no paths: give it a host name of its own",
            );
            None
        }
    }
}

/// A kind, of HTTP or not.
#[derive(Clone, Copy)]
enum AnyKind {
    Http(Kind),
    Stream(StreamKind),
}

const KINDS: &[(&str, AnyKind)] = &[
    ("synapse", AnyKind::Http(Kind::Synapse)),
    ("homeserver", AnyKind::Http(Kind::Homeserver)),
    ("lk-jwt", AnyKind::Http(Kind::LkJwt)),
    ("livekit", AnyKind::Http(Kind::Livekit)),
    ("mas", AnyKind::Http(Kind::Mas)),
    ("http", AnyKind::Http(Kind::Http)),
    ("turn", AnyKind::Stream(StreamKind::Turn)),
    ("tcp", AnyKind::Stream(StreamKind::Tcp)),
];

fn respond(item: &Item<'_>) -> Result<Respond, Problem> {
    let DeValue::Table(table) = item.get_ref() else {
        return string(item).map(|body| Respond { status: StatusCode::OK, content_type: None, body: body.to_owned() });
    };
    let mut respond = Respond { status: StatusCode::OK, content_type: None, body: String::new() };
    for (key, item) in table.iter() {
        let at = |problem: Problem| problem.at(item.span());
        match key.get_ref().as_ref() {
            "status" => {
                let code = integer(item, 200..=599).map_err(at)?;
                respond.status =
                    u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or_default();
            }
            "content_type" => respond.content_type = Some(string(item).map_err(at)?.to_owned()),
            "body" => string(item).map_err(at)?.clone_into(&mut respond.body),
            other => {
                let problem = Problem::new(format!("unknown key `{other}`")).at(key.span());
                return Err(problem.help("known here: status, content_type, body"));
            }
        }
    }
    Ok(respond)
}

/// `upstream = …` of whatever table, or another key with a value of its form.
pub fn upstream(section: &Section<'_, '_, '_>, key: &'static str) -> Option<At<Upstream>> {
    let item = section.item(key)?;
    let DeValue::Table(table) = item.get_ref() else {
        let servers = section.get(key, one_or_more(parsed(value::server)))?;
        return Some(At { value: Upstream { servers: servers.value, ..Upstream::default() }, span: servers.span });
    };
    let inner = Section::new(section.reader, section.path(key), table, item.span());
    let servers = inner.get("servers", one_or_more(parsed(value::server)));
    if !inner.mentions("servers") {
        inner.reader.error_with(
            item.span(),
            "an upstream needs `servers`",
            "write it like servers = [\"http://synapse:8008\"]",
        );
    }
    let plain = |at: Option<At<Duration>>| at.map(|at| at.value);
    let servers = servers.map(|servers| servers.value).unwrap_or_default();
    let upstream = Upstream {
        tls: RawTls::read(&inner, &servers),
        servers,
        connect_timeout: plain(inner.get("connect_timeout", parsed(value::bounded))),
        response_timeout: inner.get("response_timeout", parsed(value::duration)).map(|at| at.value),
        retry_connect: inner.get("retry_connect", parsed(value::duration)).map(|at| at.value.unwrap_or_default()),
        balance: inner.get("balance", balance).map(|at| at.value),
        health: inner.section("health").and_then(health),
        host: inner.get("host", parsed(upstream_tls::host)).map(|at| at.value),
    };
    if let Some(item) = inner.item("proxy_protocol") {
        inner.reader.error(item.span(), "`proxy_protocol` is for the upstream of a site of kind `turn` or `tcp`");
    }
    inner.finish();
    (!upstream.servers.is_empty()).then(|| At { value: upstream, span: item.span() })
}

/// How a server is picked among several.
pub fn balance(item: &Item<'_>) -> Result<Balance, Problem> {
    word(&[("least-requests", Balance::LeastRequests), ("round-robin", Balance::RoundRobin)])(item)
}

fn health(section: Section<'_, '_, '_>) -> Option<Health> {
    let path = section.get("path", |item| {
        let text = string(item)?;
        let uri = text.parse::<Uri>().ok().filter(|_| text.starts_with('/'));
        uri.ok_or_else(|| Problem::new(format!("`{text}` is not a path")).help("write it like \"/health\""))
    });
    let interval = section.get("interval", parsed(value::bounded));
    if !section.mentions("path") {
        section.reader.error_with(
            section.span.clone(),
            "`health` needs a `path`",
            "write it like { path = \"/health\" }",
        );
    }
    if let Some(interval) = interval.as_ref().filter(|interval| interval.value < Duration::from_secs(1)) {
        section.reader.error_with(
            interval.span.clone(),
            "the interval is too short",
            "probes are at least \"1s\" apart",
        );
    }
    section.finish();
    let interval = interval.map_or(Duration::from_secs(10), |interval| interval.value);
    path.map(|path| Health { path: path.value, interval })
}

fn limits(section: Section<'_, '_, '_>) -> Limits {
    let limits = Limits {
        header_bytes: section.get("header_bytes", parsed(value::size)),
        header_count: section.get("header_count", |item| integer(item, 1..=512)),
        request_target: section.get("request_target", parsed(value::size)),
        connections: section.get("connections", |item| integer(item, 1..=u64::from(u32::MAX))),
        connections_per_ip: section.get("connections_per_ip", |item| integer(item, 1..=u64::from(u32::MAX))),
        streams_per_connection: section.get("streams_per_connection", |item| integer(item, 1..=10_000)),
    };
    section.finish();
    limits
}

fn timeouts(section: Section<'_, '_, '_>) -> Timeouts {
    let timeouts = Timeouts {
        handshake: section.get("handshake", parsed(value::duration)),
        header: section.get("header", parsed(value::duration)),
        keep_alive: section.get("keep_alive", parsed(value::duration)),
        body_stall: section.get("body_stall", parsed(value::duration)),
        tunnel_idle: section.get("tunnel_idle", parsed(value::duration)),
        drain: section.get("drain", parsed(value::bounded)),
    };
    section.finish();
    timeouts
}

fn log(section: Section<'_, '_, '_>) -> Log {
    let dir = section.reader.source().dir.clone();
    let log = Log {
        file: section.get("file", |item| string(item).and_then(|text| value::path(&dir, text))),
        level: section.get("level", parsed(value::log_level)),
        format: section.get("format", word(&[("text", LogFormat::Text), ("json", LogFormat::Json)])),
        access: section.get("access", boolean),
        client_ip: section.get(
            "client_ip",
            word(&[("full", ClientIpLog::Full), ("masked", ClientIpLog::Masked), ("none", ClientIpLog::None)]),
        ),
    };
    section.finish();
    log
}

/// A `Host` without its port. Names of containers have an underscore now and then.
fn admin_host(text: &str) -> Result<String, Problem> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if text.is_empty() || !text.chars().all(is_name) {
        return Err(Problem::new("write the name alone, without scheme and port"));
    }
    Ok(text.trim_end_matches('.').to_ascii_lowercase())
}

fn admin_listen(text: &str) -> Result<AdminListen, Problem> {
    match (text, text.strip_prefix("unix:")) {
        ("off", _) => Ok(AdminListen::Off),
        (_, Some(path)) if path.starts_with('/') => Ok(AdminListen::Unix(path.into())),
        (_, Some(_)) => Err(Problem::new("the path of a unix socket must be absolute")
            .help("write it like \"unix:/run/vestibule/admin.sock\"")),
        _ => value::address(text).map(AdminListen::Tcp),
    }
}
