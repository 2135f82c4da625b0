//! Makes the plan from the file: defaults, derived values, and the rules that span several keys.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    ops::Range,
    sync::Arc,
    time::Duration,
};

use super::{
    edits::{self, FieldChange, FieldEdit},
    forward_auth::ForwardAuth,
    invisible, kind, loops,
    plan::{
        self, Access, AccessRule, Acme, Action, Admin, AdminListen, BodyPath, BodyRule, Challenge, ClientIpLog,
        Compression, Encoding, Files, FixedAnswer, Guard, Hostname, Kind, Limits, Listen, Log, Matching, Matrix,
        PathMatch, Plan, Rewrite, Route, RtcDocuments, RtcTransport, Server, Site, SiteTls, Stream, StreamKind,
        Timeouts, TlsVersion, Upstream, WellKnown,
    },
    raw::{self, Issuer, Raw, RtcService},
    tree::{At, Reader},
    well_known,
};

const STORAGE: &str = "/var/lib/vestibule";
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9180);

/// Bound on one dial.
pub const CONNECT: Duration = Duration::from_secs(5);
const RESPONSE: Duration = Duration::from_secs(300);
/// How long the answer of `forward_auth` is waited for: a client waits for it before anything else happens.
const FORWARD_AUTH: Duration = Duration::from_secs(30);
const RETRY_CONNECT: Duration = Duration::from_secs(5);
const WELL_KNOWN_AGE: Duration = Duration::from_secs(3600);

/// `http::Uri` holds no more.
const MAX_TARGET: u64 = 65_534;

/// Endings of names that no public CA signs: reserved by RFC 2606, RFC 6761, RFC 6762, RFC 8375 and ICANN, or never
/// delegated.
const PRIVATE_ENDINGS: [&str; 14] = [
    "local",
    "lan",
    "internal",
    "home.arpa",
    "test",
    "localhost",
    "localdomain",
    "example",
    "invalid",
    "home",
    "corp",
    "intranet",
    "private",
    "onion",
];

/// Validates the file as a whole. Errors are noted; the plan is then not used.
pub fn compile(raw: Raw, reader: &Reader<'_>) -> Plan {
    let listen = listen(&raw, reader);
    let acme = raw.acme.compile(reader);
    loops::check(&raw, &listen, reader);
    let matrix = matrix(&raw, &listen, reader);
    one_listener_for_http01(&raw, &listen, &acme, reader);
    let documents = matrix.as_ref().map(|matrix| documents(matrix, raw.matrix.as_ref()));
    let fill = raw.matrix.as_ref().and_then(|matrix| matrix.rtc_transports.as_ref()).is_none_or(|fill| fill.value);
    let transports = matrix.as_ref().filter(|_| fill).and_then(well_known::rtc_documents).map(Arc::new);
    let issuer = raw.tls_certificates.as_ref().map_or(&Issuer::Acme, |issuer| &issuer.value);
    let server_name = raw.matrix.as_ref().and_then(|matrix| matrix.server_name.as_ref());
    // Any site may be the one whose name could not be read.
    let may_be_server = raw.matrix.is_some() && server_name.is_none();
    let mut sites = Vec::new();
    for site in &raw.sites {
        if let Some(stream) = &site.stream {
            let tls = site_tls(site, issuer, &raw, &listen, &acme, reader);
            check_port(site, &tls, &sites, &listen, reader);
            sites.extend(stream_site(site, stream, tls, reader));
            continue;
        }
        let is_server = server_name.is_some_and(|name| host_of(&name.value) == site.host.value.as_str());
        let is_homeserver = kind_of(&site.root).is_homeserver();
        let is_public = site.is_on(listen.public_port);
        let wants = site.well_known.as_ref().map_or(is_public && (is_server || is_homeserver), |wants| wants.value);
        if site.host.value.is_wildcard() && is_homeserver {
            let help = "clients are told one name: write the site with it";
            reader.error_with(site.host.span.clone(), "a homeserver has one name, and no wildcard", help);
        }
        if let (true, None, Some(wants)) = (wants, &matrix, &site.well_known) {
            let help = "set matrix.server_name, or leave `well_known` out";
            reader.error_with(wants.span.clone(), "there are no well-known documents to serve", help);
        }
        let tls = site_tls(site, issuer, &raw, &listen, &acme, reader);
        check_port(site, &tls, &sites, &listen, reader);
        sites.push(Site {
            host: site.host.value.clone(),
            port: site.port,
            tls,
            well_known: documents.clone().filter(|_| wants),
            routes: routes(site, wants || may_be_server, transports.as_ref(), reader),
            hsts: site.hsts.as_ref().is_some_and(|hsts| hsts.value),
            stream: None,
            request_fields: site.root.request_fields.clone(),
            response_fields: response_fields(&site.root),
        });
    }
    if raw.sites.is_empty() && !raw.broken_sites {
        reader.error_with(0..0, "the file has no site", "write a table like [sites.\"matrix.example.org\"]");
    }
    Plan {
        listen,
        acme,
        storage: raw.storage_path.map_or_else(|| STORAGE.into(), |path| path.value),
        tls_min: raw.tls_min_version.map_or(TlsVersion::V1_2, |version| version.value),
        sites,
        compression: Compression {
            encodings: raw
                .encodings
                .map_or_else(|| vec![Encoding::Zstd, Encoding::Brotli, Encoding::Gzip], |list| list.value),
            min_size: raw.min_size.map_or(512, |size| size.value.unwrap_or(0)),
        },
        limits: limits(&raw.limits, reader),
        timeouts: timeouts(&raw.timeouts),
        log: Log {
            file: raw.log.file.map(|file| file.value),
            level: raw.log.level.map_or_else(|| "info".into(), |level| level.value),
            format: raw.log.format.map(|format| format.value),
            access: raw.log.access.is_none_or(|access| access.value),
            client_ip: raw.log.client_ip.map_or(ClientIpLog::Full, |how| how.value),
        },
        admin: Admin {
            listen: admin_listen(&raw.admin, reader),
            hosts: raw.admin.hosts.as_ref().map(|hosts| hosts.value.clone()).unwrap_or_default(),
            metrics: raw.admin.metrics.as_ref().map(|metrics| metrics.value),
        },
        matrix,
    }
}

/// A site whose connections are not HTTP: nothing of HTTP is there to be compiled.
fn stream_site(site: &raw::Site, raw: &super::stream::Stream, tls: SiteTls, reader: &Reader<'_>) -> Option<Site> {
    let kind = raw.kind.value;
    let span = site.tls.as_ref().map_or_else(|| raw.kind.span.clone(), |tls| tls.span.clone());
    if tls == SiteTls::Off {
        let message = format!("a site of kind `{}` is found by the name in its TLS handshake", kind.as_str());
        reader.error_with(span, message, "take tls = \"off\" away");
    }
    if site.host.value.is_catch_all() {
        let message = format!("a site of kind `{}` has a name: the site `*` is of HTTP", kind.as_str());
        reader.error_with(raw.kind.span.clone(), message, "write the site with its host name");
    }
    if raw.upstream.is_none() && !raw.broken {
        let message = format!("a site of kind `{}` needs an upstream", kind.as_str());
        reader.error_with(raw.kind.span.clone(), message, "set upstream = \"tcp://host:port\"");
    }
    let upstream = raw.upstream.as_ref()?.value.clone();
    Some(Site {
        host: site.host.value.clone(),
        port: site.port,
        tls,
        well_known: None,
        routes: Vec::new(),
        hsts: false,
        stream: Some(Stream { kind, upstream }),
        request_fields: Vec::new(),
        response_fields: Vec::new(),
    })
}

fn listen(raw: &Raw, reader: &Reader<'_>) -> Listen {
    let any = |port| vec![SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), port)];
    let listen = Listen {
        http: raw.listen.http.as_ref().map_or_else(|| any(80), |list| list.value.clone()),
        https: raw.listen.https.as_ref().map_or_else(|| any(443), |list| list.value.clone()),
        threads: raw
            .listen
            .threads
            .as_ref()
            .and_then(|n| NonZeroUsize::new(usize::try_from(n.value).ok()?))
            .unwrap_or_else(cores),
        public_port: raw.listen.public_port.as_ref().and_then(|port| u16::try_from(port.value).ok()).unwrap_or(443),
        proxy_protocol: raw.listen.proxy_protocol.as_ref().map(|list| list.value.clone()).unwrap_or_default(),
        trusted_proxies: raw.listen.trusted_proxies.as_ref().map(|list| list.value.clone()).unwrap_or_default(),
    };
    let mut seen = std::collections::HashSet::new();
    let twice = listen.http.iter().chain(&listen.https).find(|addr| addr.port() != 0 && !seen.insert(**addr));
    if let (Some(addr), Some(list)) = (twice, raw.listen.https.as_ref().or(raw.listen.http.as_ref())) {
        reader.error_with(list.span.clone(), format!("{addr} is there twice"), "keep one of the two");
    }
    if listen.http.is_empty()
        && listen.https.is_empty()
        && let Some(list) = raw.listen.https.as_ref().or(raw.listen.http.as_ref())
    {
        let help = "set an address in listen.https, like [\"[::]:443\"]";
        reader.error_with(list.span.clone(), "the edge listens on no address", help);
    }
    listen
}

fn cores() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// The deployment as a whole, as far as it can be derived from the sites.
fn matrix(raw: &Raw, listen: &Listen, reader: &Reader<'_>) -> Option<Matrix> {
    let found = raw
        .sites
        .iter()
        .find(|site| kind_of(&site.root).is_homeserver() && site.well_known.as_ref().is_none_or(|wants| wants.value));
    let Some(matrix) = &raw.matrix else {
        if let Some(site) = found {
            reader.error_with(
                site.host.span.clone(),
                "a homeserver needs a `matrix.server_name`",
                "add [matrix] with server_name = \"example.org\", the name after the colon in user ids",
            );
        }
        return None;
    };
    if !matrix.names_server {
        let help = "server_name = \"example.org\" is the name after the colon in user ids";
        reader.error_with(matrix.span.clone(), "`matrix.server_name` is missing", help);
    }
    let homeserver = homeserver(raw, matrix, listen, reader);
    let rtc_transports = rtc_transports(raw, matrix, listen, reader);
    no_call_service(raw, matrix, &rtc_transports, reader);
    let (server_name, homeserver) = (matrix.server_name.clone()?, homeserver?);
    let host = host_of(&server_name.value).to_owned();
    let serves = |site: &&raw::Site| site.well_known.as_ref().is_some_and(|wants| wants.value);
    let catch_all = raw.sites.iter().filter(serves).find(|site| site.host.value.is_catch_all());
    let named = |site: &&raw::Site| site.host.value.as_str() == host && site.is_on(listen.public_port);
    let site = raw.sites.iter().find(named).or(catch_all);
    if !raw.broken_sites && site.is_none_or(|site| site.stream.is_some()) {
        let what = if site.is_some() { "is not a site of HTTP" } else { "has no site" };
        let help = format!("add [sites.\"{host}\"], or serve https://{host}/.well-known/matrix/ from where it is");
        reader.warn(
            server_name.span,
            format!("`{host}` {what}, so its well-known documents are not served here"),
            help,
        );
    }
    let federation = matrix.federation.as_ref().map_or_else(|| homeserver.clone(), |at| at.value.clone());
    Some(Matrix { server_name: server_name.value, federation: with_port(&federation), homeserver, rtc_transports })
}

fn homeserver(raw: &Raw, matrix: &raw::Matrix, listen: &Listen, reader: &Reader<'_>) -> Option<String> {
    if matrix.names_homeserver {
        return matrix.homeserver.as_ref().map(|url| url.value.clone());
    }
    let mut found: Vec<_> = raw.sites.iter().filter(|site| kind_of(&site.root).is_homeserver()).collect();
    // One that is on every port as well as on that of federation is told without a port.
    if found.iter().any(|site| site.port.is_none()) {
        found.retain(|site| site.port.is_none());
    }
    match found.as_slice() {
        [site] => Some(public_url(site, "", listen)),
        [] => {
            let help = "add a site with kind = \"synapse\", or set matrix.homeserver";
            if !raw.broken_sites {
                reader.error_with(matrix.span.clone(), "no site is a homeserver", help);
            }
            None
        }
        several => {
            let names: Vec<_> = several.iter().map(|site| public_url(site, "", listen)).collect();
            choose(reader, matrix.span.clone(), "matrix.homeserver", &names);
            None
        }
    }
}

/// Where calls are: as the file says, and else from its sites.
fn rtc_transports(raw: &Raw, matrix: &raw::Matrix, listen: &Listen, reader: &Reader<'_>) -> Vec<RtcTransport> {
    let services = public_urls(raw, Kind::LkJwt, listen);
    let sfus: Vec<_> = public_urls(raw, Kind::Livekit, listen).iter().map(|url| websocket(url)).collect();
    let Some(named) = &matrix.rtc_service else {
        if services.len() > 1 {
            choose(reader, matrix.span.clone(), "matrix.rtc_service", &services);
        }
        return match (sfus.as_slice(), services.as_slice()) {
            ([url], []) => vec![RtcTransport { url: Some(url.clone()), service: None }],
            (_, services) => services.iter().map(|service| beside(service, services, &sfus)).collect(),
        };
    };
    let transport = |named: &RtcService| match named {
        RtcService::Url(service) => beside(service, &services, &sfus),
        RtcService::Transport(transport) => transport.clone(),
    };
    named.value.iter().map(transport).collect()
}

/// A service and the SFU that it admits to. It is only known for certain where this file has one of each; a `url` is a
/// promise, so that none is better than a guess.
fn beside(service: &str, services: &[String], sfus: &[String]) -> RtcTransport {
    let url = match (services, sfus) {
        ([ours], [sfu]) if ours == service => Some(sfu.clone()),
        _ => None,
    };
    RtcTransport { url, service: Some(service.to_owned()) }
}

/// The public addresses of every site and route of a kind.
fn public_urls(raw: &Raw, kind: Kind, listen: &Listen) -> Vec<String> {
    let of_kind = |site: &raw::Site| -> Vec<String> {
        let routes = std::iter::once(&site.root).chain(&site.routes).filter(|route| kind_of(route) == kind);
        routes.map(|route| public_url(site, route.prefix.value.trim_end_matches('/'), listen)).collect()
    };
    // A site with many names has no address to tell.
    let sites = raw.sites.iter().filter(|site| !site.host.value.is_wildcard());
    let mut found: Vec<_> = sites.map(|site| (site.port, of_kind(site))).filter(|(_, urls)| !urls.is_empty()).collect();
    if found.iter().any(|(port, _)| port.is_none()) {
        found.retain(|(port, _)| port.is_none());
    }
    found.into_iter().flat_map(|(_, urls)| urls).collect()
}

fn websocket(url: &str) -> String {
    url.replacen("https://", "wss://", 1)
}

/// Warns where a homeserver is there and nothing for calls. `rtc_service = []` says that this is meant.
fn no_call_service(raw: &Raw, matrix: &raw::Matrix, transports: &[RtcTransport], reader: &Reader<'_>) {
    let writes_its_own = matrix.client.as_ref().is_some_and(|client| client.contains_key(well_known::RTC_FOCI));
    let homeserver = raw.sites.iter().find(|site| kind_of(&site.root).is_homeserver());
    let Some(site) = homeserver else { return };
    if transports.is_empty() && !matrix.names_rtc_service && !writes_its_own && !raw.broken_sites {
        let help = "add a site with kind = \"lk-jwt\", or set matrix.rtc_service ([] if there are no calls)";
        let message = "no call service: Element Call reports MISSING_MATRIX_RTC_FOCUS";
        reader.warn(site.host.span.clone(), message, help);
    }
}

fn choose(reader: &Reader<'_>, span: Range<usize>, key: &str, choices: &[String]) {
    let help = format!("set {key} = \"{}\"", choices[0]);
    reader.error_with(span, format!("`{key}` can be {}", choices.join(" or ")), help);
}

fn public_url(site: &raw::Site, prefix: &str, listen: &Listen) -> String {
    let host = site.host.value.authority();
    match site.port.unwrap_or(listen.public_port) {
        443 => format!("https://{host}{prefix}"),
        port => format!("https://{host}:{port}{prefix}"),
    }
}

/// A host with its port, of a URL or of a name: `m.server` without one would mean SRV records and port 8448.
fn with_port(url: &str) -> String {
    let (scheme, authority) = url.split_once("://").unwrap_or(("https", url));
    let authority = authority.split('/').next().unwrap_or(authority);
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    match (has_port, scheme) {
        (true, _) => authority.to_owned(),
        (false, "http") => format!("{authority}:80"),
        (false, _) => format!("{authority}:443"),
    }
}

fn host_of(server_name: &str) -> &str {
    server_name.split(':').next().unwrap_or(server_name)
}

fn documents(matrix: &Matrix, raw: Option<&raw::Matrix>) -> Arc<WellKnown> {
    let max_age =
        raw.and_then(|raw| raw.well_known_max_age.as_ref()).map_or(WELL_KNOWN_AGE, |age| age.value.unwrap_or_default());
    Arc::new(WellKnown {
        client: Some(well_known::client(matrix, raw.and_then(|raw| raw.client.as_ref()))),
        server: Some(well_known::server(matrix, raw.and_then(|raw| raw.server.as_ref()))),
        support: well_known::support(raw.and_then(|raw| raw.support.as_ref())),
        max_age,
    })
}

/// HTTP-01 as the only challenge needs a plain listener; one error, however many sites need certificates.
fn one_listener_for_http01(raw: &Raw, listen: &Listen, acme: &Acme, reader: &Reader<'_>) {
    let by_default = raw.tls_certificates.as_ref().is_none_or(|issuer| issuer.value == Issuer::Acme);
    let is_acme = |site: &raw::Site| site.tls.as_ref().map_or(by_default, |tls| tls.value == raw::Tls::Acme);
    if listen.http.is_empty()
        && acme.challenges == [Challenge::Http01]
        && raw.sites.iter().any(is_acme)
        && let Some(challenges) = &raw.acme.challenges
    {
        let help = "set listen.http, or allow \"tls-alpn-01\"";
        reader.error_with(challenges.span.clone(), "HTTP-01 needs an address in listen.http, and there is none", help);
    }
}

/// Warns of a name that no public CA signs.
fn signable(host: &Hostname, span: Range<usize>, raw: &Raw, reader: &Reader<'_>) {
    // A private CA signs what it likes.
    if raw.acme.names_private_ca() {
        return;
    }
    let address = host.address();
    let host = host.as_str();
    let ending = PRIVATE_ENDINGS
        .iter()
        .find(|ending| host.strip_suffix(**ending).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')));
    let why = match ending {
        _ if host.contains('_') => "it has an underscore".to_owned(),
        Some(ending) => format!("`.{ending}` is not a public domain"),
        None if address.is_some_and(is_private) => "it is not a public address".to_owned(),
        None if address.is_some() => return,
        None if !host.contains('.') => "it is not below a public domain".to_owned(),
        None => return,
    };
    let help = "set tls = \"internal\" to sign it with the local CA";
    reader.warn(span, format!("no public CA signs `{host}`: {why}"), help);
}

/// Whether an address is for use inside a network only.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => ip.is_private() || ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_loopback() || ip.is_unicast_link_local(),
    }
}

fn site_tls(
    site: &raw::Site,
    issuer: &Issuer,
    raw: &Raw,
    listen: &Listen,
    acme: &Acme,
    reader: &Reader<'_>,
) -> SiteTls {
    let tls = match (said_tls(site, raw).map(|tls| &tls.value), issuer) {
        (Some(raw::Tls::Acme), _) | (None, Issuer::Acme) => SiteTls::Acme,
        (Some(raw::Tls::Internal), _) | (None, Issuer::Internal) => SiteTls::Internal,
        (Some(raw::Tls::Wildcard), _) => SiteTls::Wildcard,
        (Some(raw::Tls::Off), _) => SiteTls::Off,
        (Some(raw::Tls::Files(pair)), _) => SiteTls::Files(pair.clone()),
        (None, Issuer::Files(pairs)) => SiteTls::SharedFiles(pairs.clone()),
        (Some(raw::Tls::Passthrough), _) => SiteTls::Passthrough,
    };
    let span = site.tls.as_ref().map_or_else(|| site.host.span.clone(), |tls| tls.span.clone());
    if site.host.value.is_catch_all() && matches!(tls, SiteTls::Acme | SiteTls::SharedFiles(_) | SiteTls::Wildcard) {
        let help = "set tls = \"off\", or tls = { cert = \"a.pem\", key = \"b.pem\" }";
        reader.error_with(span, "the site `*` needs a certificate of its own: no CA signs one for every name", help);
        return tls;
    }
    let is_tcp = site.stream.as_ref().is_some_and(|stream| stream.kind.value == StreamKind::Tcp);
    if tls == SiteTls::Passthrough && !is_tcp {
        let help = "set kind = \"tcp\", or let TLS end here";
        reader.error_with(
            span,
            "`passthrough` is for a site of kind `tcp`: what speaks inside TLS cannot be known here",
            help,
        );
    } else if tls != SiteTls::Off && listen.https.is_empty() {
        let help = "set listen.https, or tls = \"off\"";
        reader.error_with(span, "the site has TLS, and listen.https is empty", help);
    } else if tls == SiteTls::Off && listen.http.is_empty() {
        let help = "set listen.http, or give the site TLS";
        reader.error_with(span, "the site has no TLS, and listen.http is empty", help);
    } else if tls == SiteTls::Off
        && let Some(hsts) = site.hsts.as_ref().filter(|hsts| hsts.value)
    {
        let help = "remove `hsts`, or give the site TLS";
        reader.error_with(hsts.span.clone(), "`hsts` needs TLS", help);
    } else if tls == SiteTls::Acme && site.host.value.is_wildcard() && !proves_wildcards(acme) {
        let help = "set acme.dns = { command = [\"/path\"] } or { provider = \"rfc2136\", … }, or challenges = \"dns-persist-01\"";
        reader.error_with(span, "no CA signs a wildcard without a proof in DNS", help);
    } else if tls == SiteTls::Wildcard && !is_below_a_wildcard(site, raw) {
        let help = "add a site \"*.example.org\" whose name is one label above it";
        reader.error_with(span, "no site is a wildcard for this name", help);
    } else if tls == SiteTls::Acme && site.host.value.address().is_some() && !proves_addresses(acme) {
        let help = "add \"http-01\" or \"tls-alpn-01\" to acme.challenges, or set tls = \"internal\"";
        reader.error_with(span, "an address cannot be proven in DNS", help);
    } else if tls == SiteTls::Acme {
        signable(&site.host.value, span, raw, reader);
    }
    tls
}

/// What a site says of its certificate; one of one port that says nothing has that of its name.
fn said_tls<'r>(site: &'r raw::Site, raw: &'r Raw) -> Option<&'r At<raw::Tls>> {
    let of_name = |other: &&raw::Site| other.host.value == site.host.value && other.port.is_none();
    let said = || raw.sites.iter().find(of_name)?.tls.as_ref().filter(|tls| tls.value != raw::Tls::Off);
    site.tls.as_ref().or_else(|| site.port.and_then(|_| said()))
}

/// Notes a port that no address of `listen` has or that speaks otherwise, and two certificates of one name.
fn check_port(site: &raw::Site, tls: &SiteTls, before: &[Site], listen: &Listen, reader: &Reader<'_>) {
    let span = || site.tls.as_ref().map_or_else(|| site.host.span.clone(), |tls| tls.span.clone());
    if let Some(port) = site.port {
        let has = |list: &[SocketAddr]| list.iter().any(|address| address.port() == port);
        match (has(&listen.http), has(&listen.https)) {
            (false, false) => {
                let help = format!("add \"[::]:{port}\" to listen.https, or to listen.http");
                reader.error_with(site.host.span.clone(), format!("`listen` has no address with port {port}"), help);
            }
            (true, false) if *tls != SiteTls::Off => {
                reader.error_with(span(), format!("port {port} is plain HTTP (listen.http)"), "set tls = \"off\"");
            }
            (false, true) if *tls == SiteTls::Off => {
                reader.error_with(span(), format!("port {port} has TLS (listen.https)"), "take tls = \"off\" away");
            }
            _ => {}
        }
    }
    let other = |other: &&Site| other.host == site.host.value && other.tls.has_certificate() && other.tls != *tls;
    if let Some(other) = before.iter().find(other).filter(|_| tls.has_certificate()) {
        let message = format!("`{}` has another certificate on the site `{}`", site.host.value, other.name());
        reader.error_with(span(), message, "a name has one certificate: set the same `tls`");
    }
}

fn proves_addresses(acme: &Acme) -> bool {
    acme.challenges.iter().any(|challenge| matches!(challenge, Challenge::Http01 | Challenge::TlsAlpn01))
}

fn proves_wildcards(acme: &Acme) -> bool {
    acme.challenges.iter().any(|challenge| matches!(challenge, Challenge::Dns01 | Challenge::DnsPersist01))
}

fn is_below_a_wildcard(site: &raw::Site, raw: &Raw) -> bool {
    let Some((_, parent)) = site.host.value.as_str().split_once('.') else { return false };
    raw.sites.iter().any(|other| {
        other.host.value.as_str().strip_prefix("*.") == Some(parent) && site.host.value != other.host.value
    })
}

fn kind_of(route: &raw::Route) -> Kind {
    route.kind.as_ref().map_or(Kind::Http, |kind| kind.value)
}

fn routes(
    site: &raw::Site,
    well_known: bool,
    transports: Option<&Arc<RtcDocuments>>,
    reader: &Reader<'_>,
) -> Vec<Route> {
    let mut routes: Vec<Route> = Vec::new();
    let mut spans: Vec<Range<usize>> = Vec::new();
    for raw in &site.routes {
        if let Some(route) = route(raw, transports, reader) {
            // In a list the first match decides, so that one path may stand there with several conditions.
            let same = |other: &Route| other.prefix == route.prefix && other.matching == route.matching;
            if let Some(first) = routes.iter().position(same).filter(|_| !site.in_order) {
                let message = format!("the route `{}` is defined twice", raw.prefix.value);
                reader.error_twice(raw.prefix.span.clone(), spans[first].clone(), message);
            }
            routes.push(route);
            spans.push(raw.prefix.span.clone());
        }
    }
    let root = &site.root;
    let says_nothing = root.upstream.is_none()
        && root.redirect.is_none()
        && root.redirect_to.is_none()
        && root.files.is_none()
        && !root.broken;
    match (says_nothing, kind_of(root)) {
        (true, Kind::Http) if !well_known && site.routes.is_empty() => {
            let help = "set upstream = \"http://…\", redirect = \"https://…\" or files = \"/path\"";
            reader.error_with(site.host.span.clone(), format!("the site `{}` serves nothing", site.name()), help);
        }
        (true, Kind::Http) => {}
        (true, kind) => {
            let span = root.kind.as_ref().map_or_else(|| site.host.span.clone(), |kind| kind.span.clone());
            let help = "set upstream = \"http://…\"";
            reader.error_with(span, format!("a site of kind `{}` needs an upstream", kind.as_str()), help);
        }
        // What the site's own table says of fields is the site's, and holds for every route.
        (false, _) => routes.extend(route(root, transports, reader).map(|root| Route {
            request_fields: Vec::new(),
            response_fields: Vec::new(),
            ..root
        })),
    }
    let cors = root.cors.as_ref().is_some_and(|cors| cors.value);
    let guard = guard(root, &Guard::default());
    let mas = mas_routes(root, reader);
    for (route, raw) in routes.iter_mut().zip(&site.routes) {
        route.cors = raw.cors.as_ref().map_or(cors, |cors| cors.value);
        route.body_stall = route.body_stall.or_else(|| body_stall(root));
        // A route with a kind keeps what its service can take, which a number for the whole site was not meant to raise.
        if let (None, None, Some(limit)) = (&raw.max_body, &raw.kind, max_body(root)) {
            route.max_body = limit;
        }
        route.guard = self::guard(raw, &guard);
    }
    // First, where the first that matches is used.
    routes.splice(..0, login_routes(site, &routes, reader));
    routes.splice(..0, mas);
    routes.extend(root_twirp(&routes));
    if !site.in_order {
        routes.sort_by_key(|route| {
            (route.matching, std::cmp::Reverse(length(&route.prefix)), has_segments(&route.prefix))
        });
    }
    routes
}

/// The length of a path by which routes are sorted; a name in braces stands for a segment of one byte.
fn length(path: &str) -> usize {
    path.split('/').map(|segment| 1 + if segment.starts_with('{') { 1 } else { segment.len() }).sum()
}

fn has_segments(path: &str) -> bool {
    path.contains('{')
}

/// What the Matrix Authentication Service answers in place of Synapse, as its documentation on reverse proxies has it: by
/// whole segments, so that nothing of a room goes there.
const MAS_PATHS: [&str; 3] =
    ["/_matrix/client/{version}/login", "/_matrix/client/{version}/logout", "/_matrix/client/{version}/refresh"];

/// The routes of `mas`; what the site says of all its routes holds for them.
fn mas_routes(root: &raw::Route, reader: &Reader<'_>) -> Vec<Route> {
    let Some(mas) = &root.mas else { return Vec::new() };
    if kind_of(root) != Kind::Synapse {
        let help = "leave it out, or set kind = \"synapse\"; a site of the service itself has kind = \"mas\"";
        reader.error_with(mas.span.clone(), "`mas` is for sites of kind `synapse`", help);
    }
    let of_path = |path: &&str| {
        let prefix = At { value: (*path).to_owned(), span: mas.span.clone() };
        let kind = Some(At { value: Kind::Mas, span: mas.span.clone() });
        let route =
            route(&raw::Route { kind, upstream: Some(mas.clone()), ..raw::Route::empty(prefix) }, None, reader)?;
        Some(Route {
            cors: root.cors.as_ref().is_some_and(|cors| cors.value),
            guard: guard(root, &Guard::default()),
            compress: root.compress.as_ref().is_none_or(|compress| compress.value),
            body_stall: body_stall(root),
            ..route
        })
    };
    MAS_PATHS.iter().filter_map(of_path).collect()
}

/// Some SDKs drop the prefix of LiveKit's address and call `/twirp/` at the root of the host (element-call#3710): it goes
/// to LiveKit as well, unless the site has something of its own there.
fn root_twirp(routes: &[Route]) -> Option<Route> {
    const TWIRP: &str = "/twirp";
    let mounted =
        routes.iter().find(|route| route.kind == Kind::Livekit && route.strip_prefix && route.prefix != "/")?;
    let taken = routes.iter().any(|route| match route.prefix.as_str() {
        "/" => matches!(route.kind, Kind::Http | Kind::Livekit),
        prefix => prefix == TWIRP,
    });
    (!taken).then(|| Route { prefix: TWIRP.to_owned(), strip_prefix: false, ..mounted.clone() })
}

fn route(raw: &raw::Route, transports: Option<&Arc<RtcDocuments>>, reader: &Reader<'_>) -> Option<Route> {
    let (matching, prefix) = path(raw, reader)?;
    let kind = kind_of(raw);
    let action = action(raw, kind, reader)?;
    if let (Some(from), false) = (&raw.admin_from, matches!(kind, Kind::Synapse | Kind::Mas)) {
        let help = "leave it out, or set kind = \"synapse\"";
        reader.error_with(from.span.clone(), "`admin_from` is for sites of kind `synapse` or `mas`", help);
    }
    let proxies = matches!(action, Action::Proxy(_));
    if let (Some(spa), false) = (&raw.spa, matches!(action, Action::Files(_))) {
        reader.error_with(spa.span.clone(), "`spa` is for `files`", "leave it out, or set files = \"/path\"");
    }
    let root_redirect = raw.redirect.as_ref().filter(|_| proxies).map(|origin| origin.value.clone());
    let mut access = kind::access(kind, raw.admin_from.as_ref().map(|list| list.value.clone()).unwrap_or_default());
    if root_redirect.is_some() && !access.iter().any(|rule| rule.path == PathMatch::Exact("/")) {
        access.push(AccessRule { path: PathMatch::Exact("/"), verdict: Access::Pass });
    }
    if !proxies {
        access = kind::access(Kind::Http, Vec::new());
    }
    let has_prefix =
        (matching != Matching::Pattern || prefix.find('*') == Some(prefix.len() - 1)) && !has_segments(&prefix);
    if let (Some(strip), false) = (raw.strip_prefix.as_ref().filter(|strip| strip.value), has_prefix) {
        let help = "use rewrite = \"/path\"";
        reader.error_with(strip.span.clone(), "`strip_prefix` needs a path or one with its only `*` at the end", help);
    }
    let strip_prefix = match matching {
        _ if has_segments(&prefix) => false,
        Matching::Pattern => has_prefix && raw.strip_prefix.as_ref().is_some_and(|strip| strip.value),
        Matching::Exact | Matching::Prefix => strips_prefix(raw, kind, &prefix, &access, reader),
    };
    Some(Route {
        prefix,
        matching,
        conditions: raw.conditions.clone(),
        rewrite: rewrite(raw, proxies, reader),
        request_fields: raw.request_fields.clone(),
        response_fields: response_fields(raw),
        cors: raw.cors.as_ref().is_some_and(|cors| cors.value),
        guard: warned_guard(raw, kind, reader),
        action,
        kind,
        access,
        strip_prefix,
        compress: raw.compress.as_ref().is_none_or(|compress| compress.value),
        max_body: max_body(raw).unwrap_or_else(|| kind::max_body(kind)),
        body_stall: body_stall(raw),
        rtc_transports: transports.filter(|_| kind.is_homeserver() && proxies).cloned(),
        root_redirect,
    })
}

fn max_body(raw: &raw::Route) -> Option<Vec<BodyRule>> {
    raw.max_body.as_ref().map(|limit| vec![BodyRule { path: BodyPath::Any, limit: limit.value }])
}

fn body_stall(raw: &raw::Route) -> Option<Option<Duration>> {
    raw.body_stall.as_ref().map(|at| at.value.filter(|limit| !limit.is_zero()))
}

/// Who may come to a route: what it says itself takes the place of what its site says.
fn guard(raw: &raw::Route, of_site: &Guard) -> Guard {
    let asked = |auth: &At<Option<ForwardAuth>>| {
        let auth = auth.value.as_ref()?;
        let mut upstream = upstream_plan(&auth.upstream);
        if auth.upstream.value.response_timeout.is_none() {
            upstream.response_timeout = Some(FORWARD_AUTH);
        }
        Some(Arc::new(plan::ForwardAuth {
            upstream,
            path: auth.path.clone(),
            send_fields: auth.send_fields.clone(),
            copy_fields: auth.copy_fields.clone(),
            sign_in: auth.sign_in.clone(),
        }))
    };
    Guard {
        basic_auth: raw.basic_auth.as_ref().map_or_else(|| of_site.basic_auth.clone(), |auth| auth.value.clone()),
        forward_auth: raw.forward_auth.as_ref().map_or_else(|| of_site.forward_auth.clone(), asked),
    }
}

fn warned_guard(raw: &raw::Route, kind: Kind, reader: &Reader<'_>) -> Guard {
    if let Some(at) = raw.basic_auth.as_ref().filter(|at| at.value.is_some() && kind != Kind::Http) {
        let message =
            format!("clients of `{}` have an access token in `Authorization`, and no password", kind.as_str());
        reader.warn(at.span.clone(), message, "protect a route with `from`, or put `basic_auth` on a route of its own");
    }
    guard(raw, &Guard::default())
}

/// The paths on which the services of `forward_auth` have their own pages: whoever is not logged in has to reach them.
fn login_routes(site: &raw::Site, routes: &[Route], reader: &Reader<'_>) -> Vec<Route> {
    let services =
        std::iter::once(&site.root).chain(&site.routes).filter_map(|raw| raw.forward_auth.as_ref()?.value.as_ref());
    let mut found: Vec<Route> = Vec::new();
    for service in services {
        let Some(prefix) = &service.login_path else { continue };
        let raw = raw::Route { upstream: Some(service.upstream.clone()), ..raw::Route::empty(prefix.clone()) };
        let Some(login) = route(&raw, None, reader) else { continue };
        let same = |other: &Route| other.prefix == login.prefix && other.matching == login.matching;
        if !routes.iter().chain(&found).any(same) {
            found.push(login);
        }
    }
    found
}

/// Whether the prefix is taken off. Neither LiveKit nor lk-jwt-service knows of one, so below a prefix under which none
/// of its paths is open a service could answer nothing but 404.
fn strips_prefix(raw: &raw::Route, kind: Kind, prefix: &str, access: &[AccessRule], reader: &Reader<'_>) -> bool {
    let only_stripped = prefix != "/"
        && matches!(kind, Kind::LkJwt | Kind::Livekit)
        && !access.iter().any(|rule| kind::meets(&rule.path, prefix));
    match &raw.strip_prefix {
        Some(strip) if !strip.value && only_stripped => {
            let message = format!("every request below `{prefix}` gets 404: `{}` has no such path", kind.as_str());
            reader.warn(strip.span.clone(), message, "leave `strip_prefix` out: the prefix is then removed");
            false
        }
        Some(strip) => strip.value,
        None => only_stripped,
    }
}

/// The fields that a site or a route changes in responses; the recommended ones first, so that an edit can change them.
fn response_fields(raw: &raw::Route) -> Vec<FieldEdit> {
    let security = raw.security_fields.as_ref().is_some_and(|security| security.value);
    let recommended = security.then(edits::security).into_iter().flatten();
    // Defaults come last: they ask what is there.
    let (defaults, others): (Vec<_>, Vec<_>) =
        raw.response_fields.iter().cloned().partition(|edit| matches!(edit.change, FieldChange::Default(_)));
    others.into_iter().chain(defaults).chain(recommended).collect()
}

fn rewrite(raw: &raw::Route, proxies: bool, reader: &Reader<'_>) -> Rewrite {
    let changes = [("add_prefix", &raw.add_prefix), ("rewrite", &raw.rewrite)];
    for (key, at) in changes {
        if let (Some(at), false) = (at, proxies) {
            let help = "leave it away, or set upstream";
            reader.error_with(
                at.span.clone(),
                format!("`{key}` changes what goes upstream, and nothing does here"),
                help,
            );
        }
    }
    match (&raw.add_prefix, &raw.rewrite) {
        (Some(_), Some(at)) => {
            reader.error_with(
                at.span.clone(),
                "`rewrite` replaces the whole path, `add_prefix` keeps it",
                "keep one of them",
            );
            Rewrite::Keep
        }
        (Some(prefix), None) => Rewrite::AddPrefix(prefix.value.trim_end_matches('/').to_owned()),
        (None, Some(path)) => Rewrite::Path(path.value.clone()),
        (None, None) => Rewrite::Keep,
    }
}

/// Whether braces are used as they are meant.
fn has_whole_segments(path: &str, matching: Matching) -> bool {
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let is_whole = |segment: &str| match segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        Some(name) => is_name(name) && matching != Matching::Pattern,
        None => !segment.contains(['{', '}']),
    };
    path.split('/').all(is_whole)
}

fn path(raw: &raw::Route, reader: &Reader<'_>) -> Option<(Matching, String)> {
    let text = raw.prefix.value.as_str();
    let exact = text.strip_prefix('=').map(str::trim_start);
    let matching = match exact {
        Some(_) => Matching::Exact,
        None if text.contains('*') => Matching::Pattern,
        None => Matching::Prefix,
    };
    let text = exact.unwrap_or(text);
    let problem = if let Some(what) = invisible::first(text) {
        Some((format!("the path contains an invisible character: {what}"), "delete it".to_owned()))
    } else if !text.starts_with('/') {
        Some(("a route begins with `/`".to_owned(), format!("write \"/{text}\"")))
    } else if text.contains(['?', '#', ' ']) {
        let plain = text.split(['?', '#', ' ']).next().unwrap_or_default();
        Some(("a route is a path without a query".to_owned(), format!("write \"{plain}\"")))
    } else if matching == Matching::Exact && text.contains('*') {
        let help = format!("write \"{text}\"");
        Some(("a path after `=` is compared as it is, without `*`".to_owned(), help))
    } else if !has_whole_segments(text, matching) {
        let help = "write it like \"/a/{name}/b\", where {name} is any one segment".to_owned();
        Some(("braces are a whole segment, in a path without `*`".to_owned(), help))
    } else {
        None
    };
    match problem {
        Some((problem, help)) => {
            reader.error_with(raw.prefix.span.clone(), problem, help);
            None
        }
        None if text == "/" || matching != Matching::Prefix => Some((matching, text.to_owned())),
        None => Some((matching, text.trim_end_matches('/').to_owned())),
    }
}

fn action(raw: &raw::Route, kind: Kind, reader: &Reader<'_>) -> Option<Action> {
    if raw.broken {
        return None;
    }
    if let Some(action) = other_action(raw, kind, reader) {
        return action;
    }
    match (&raw.upstream, &raw.redirect, &raw.respond) {
        (Some(upstream), None, None) => Some(Action::Proxy(upstream_plan(upstream))),
        // On a homeserver's own site the redirect is for a browser that comes to `/`.
        (Some(upstream), Some(_), None) if kind.is_homeserver() => Some(Action::Proxy(upstream_plan(upstream))),
        (None, Some(origin), None) if raw.kind.is_none() || kind == Kind::Http => {
            Some(Action::Redirect(origin.value.clone()))
        }
        (None, None, Some(answer)) => Some(Action::Respond(fixed(&answer.value))),
        (None, _, None) => {
            let help = "set upstream = \"http://…\"";
            reader.error_with(
                raw.prefix.span.clone(),
                format!("the route `{}` needs an upstream", raw.prefix.value),
                help,
            );
            None
        }
        _ => {
            let set = [
                ("upstream", raw.upstream.is_some()),
                ("redirect", raw.redirect.is_some()),
                ("respond", raw.respond.is_some()),
            ];
            let set: Vec<_> = set.iter().filter(|(_, is_set)| *is_set).map(|(key, _)| format!("`{key}`")).collect();
            let message = format!("{} exclude each other", set.join(" and "));
            reader.error_with(raw.prefix.span.clone(), message, "keep one of them");
            None
        }
    }
}

/// The action of a route with `deny`, `files` or a redirect that is more than an origin; `None` where it has none of them.
fn other_action(raw: &raw::Route, kind: Kind, reader: &Reader<'_>) -> Option<Option<Action>> {
    let denies = raw.deny.as_ref().filter(|deny| deny.value);
    let action = match (denies, &raw.redirect_to, &raw.files) {
        (None, None, None) => return None,
        (Some(_), ..) => Action::Deny,
        (None, Some(redirect), _) => {
            Action::RedirectTo { to: redirect.value.to.clone(), status: redirect.value.status }
        }
        (None, None, Some(root)) => {
            let spa = raw.spa.as_ref().is_some_and(|spa| spa.value);
            Action::Files(Files { root: root.value.clone(), spa })
        }
    };
    let set = [
        raw.upstream.is_some(),
        raw.redirect.is_some(),
        raw.respond.is_some(),
        denies.is_some(),
        raw.redirect_to.is_some(),
        raw.files.is_some(),
    ];
    if set.iter().filter(|is_set| **is_set).count() > 1 || (raw.kind.is_some() && kind != Kind::Http) {
        let help = "keep one of upstream, redirect, respond, files and deny";
        reader.error_with(raw.prefix.span.clone(), format!("`{}` can do only one thing", raw.prefix.value), help);
        return Some(None);
    }
    Some(Some(action))
}

fn upstream_plan(raw: &At<raw::Upstream>) -> Upstream {
    let raw = &raw.value;
    Upstream {
        name: raw.servers.first().map(Server::to_string).unwrap_or_default().into(),
        servers: raw.servers.clone(),
        connect_timeout: raw.connect_timeout.unwrap_or(CONNECT),
        response_timeout: raw.response_timeout.unwrap_or(Some(RESPONSE)),
        retry_connect: raw.retry_connect.unwrap_or(RETRY_CONNECT),
        balance: raw.balance.unwrap_or(plan::Balance::LeastRequests),
        health: raw.health.clone(),
        host: raw.host.clone().unwrap_or(plan::UpstreamHost::OfRequest),
        tls: raw.tls.compile(),
    }
}

fn fixed(raw: &raw::Respond) -> FixedAnswer {
    FixedAnswer {
        status: raw.status,
        content_type: raw.content_type.clone().unwrap_or_else(|| "text/plain; charset=utf-8".into()),
        body: raw.body.clone().into(),
    }
}

fn limits(raw: &raw::Limits, reader: &Reader<'_>) -> Limits {
    let size = |bound: &raw::Bound<u64>, default: u64, max: u64, name: &str| {
        let Some(bound) = bound else { return usize::try_from(default).unwrap_or(usize::MAX) };
        let value = bound.value.unwrap_or(0);
        if !(1024..=max).contains(&value) {
            let help = format!("write a size from \"1KiB\" to \"{max}B\"");
            reader.error_with(bound.span.clone(), format!("`limits.{name}` is out of range"), help);
        }
        usize::try_from(value).unwrap_or(usize::MAX)
    };
    let count = |at: &Option<At<u64>>| at.as_ref().and_then(|at| usize::try_from(at.value).ok());
    Limits {
        header_bytes: size(&raw.header_bytes, 32 * 1024, 1 << 20, "header_bytes"),
        header_count: count(&raw.header_count).unwrap_or(128),
        request_target: match &raw.request_target {
            // 64 KiB is what people write, and two bytes more than fit.
            Some(bound) if bound.value == Some(64 * 1024) => 65_534,
            bound => size(bound, MAX_TARGET, MAX_TARGET, "request_target"),
        },
        connections: count(&raw.connections),
        connections_per_ip: count(&raw.connections_per_ip),
        streams_per_connection: raw
            .streams_per_connection
            .as_ref()
            .and_then(|n| u32::try_from(n.value).ok())
            .unwrap_or(256),
    }
}

fn timeouts(raw: &raw::Timeouts) -> Timeouts {
    let bound = |at: &raw::Bound<Duration>, seconds| {
        at.as_ref().map_or_else(|| Some(Duration::from_secs(seconds)), |at| at.value.filter(|limit| !limit.is_zero()))
    };
    Timeouts {
        handshake: bound(&raw.handshake, 10),
        header: bound(&raw.header, 15),
        keep_alive: bound(&raw.keep_alive, 300),
        body_stall: bound(&raw.body_stall, 60),
        tunnel_idle: bound(&raw.tunnel_idle, 2 * 3600),
        drain: raw.drain.as_ref().map_or(Duration::from_secs(8), |drain| drain.value),
    }
}

pub fn admin_listen(raw: &raw::Admin, reader: &Reader<'_>) -> Option<AdminListen> {
    let Some(listen) = &raw.listen else { return Some(AdminListen::Tcp(ADMIN)) };
    match &listen.value {
        raw::AdminListen::Off => None,
        raw::AdminListen::Unix(path) => Some(AdminListen::Unix(path.clone())),
        raw::AdminListen::Tcp(addr) => {
            let allowed = raw.allow_remote.as_ref().is_some_and(|allow| allow.value);
            if !addr.ip().is_loopback() && !allowed {
                reader.error_with(
                    listen.span.clone(),
                    "the admin address is reachable from outside, and there is no password",
                    "use 127.0.0.1 or unix:/path, or set allow_remote = true if a firewall protects it",
                );
            }
            Some(AdminListen::Tcp(*addr))
        }
    }
}
