//! The validated configuration: immutable, complete, and free of contradictions.
//!
//! Plain data. After [`load`](super::load) has returned a `Plan`, nothing reads a string from the file again. `Eq` lets a
//! reload see what changed; `Debug` lets tests take a picture.

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, Method, StatusCode, Uri};
use ipnet::IpNet;

use super::{edits::FieldEdit, template::Template};

/// Everything that the edge does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The sockets and what is believed of those who connect.
    pub listen: Listen,
    /// How certificates are ordered; used by the sites whose [`SiteTls`] is `Acme`.
    pub acme: Acme,
    /// Where certificates, the account and the internal CA are kept.
    pub storage: PathBuf,
    /// Oldest TLS version offered.
    pub tls_min: TlsVersion,
    /// The sites, in the order of the file.
    pub sites: Vec<Site>,
    /// Compression for routes that allow it.
    pub compression: Compression,
    /// Bounds on what a client may send.
    pub limits: Limits,
    /// Bounds on silence.
    pub timeouts: Timeouts,
    /// What is logged and how.
    pub log: Log,
    /// The admin server.
    pub admin: Admin,
    /// What the Matrix deployment behind the sites looks like, for `doctor` and the words of `check`.
    pub matrix: Option<Matrix>,
}

impl Plan {
    /// Every upstream of HTTP: of the routes, and of the services that are asked who may come.
    pub fn upstreams(&self) -> impl Iterator<Item = &Upstream> {
        self.sites.iter().flat_map(|site| &site.routes).flat_map(|route| {
            let served = if let Action::Proxy(upstream) = &route.action { Some(upstream) } else { None };
            let asked = route.guard.forward_auth.as_ref().map(|asked| &asked.upstream);
            served.into_iter().chain(asked)
        })
    }

    /// The keys in which `next` differs and which take effect at the next start only: the number of threads is that of the
    /// sockets, and what is stored in one place is not moved to another.
    #[must_use]
    pub fn restart_needed(&self, next: &Self) -> Vec<&'static str> {
        let changed = [
            ("listen.threads", self.listen.threads != next.listen.threads),
            ("storage.path", self.storage != next.storage),
            ("log.format", self.log.format != next.log.format),
            ("log.file", self.log.file != next.log.file),
        ];
        changed.into_iter().filter_map(|(key, changed)| changed.then_some(key)).collect()
    }
}

/// `[listen]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// Plain addresses.
    pub http: Vec<SocketAddr>,
    /// TLS addresses.
    pub https: Vec<SocketAddr>,
    /// Worker threads.
    pub threads: NonZeroUsize,
    /// The https port that clients see.
    pub public_port: u16,
    /// Peers that must open with a PROXY protocol header; from all others it is refused.
    pub proxy_protocol: Vec<IpNet>,
    /// Peers whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
}

/// `[acme]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acme {
    /// Contact of the account, without `mailto:`.
    pub email: Option<String>,
    /// Directory URLs in order of fallback; never empty.
    pub directories: Vec<Directory>,
    /// Kinds of challenge in order of preference; never empty.
    pub challenges: Vec<Challenge>,
    /// How records are set and looked up in DNS.
    pub dns: Option<Dns>,
}

/// One certificate authority.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directory {
    /// The directory.
    pub url: String,
    /// The staging directory of the same CA, where failed orders are tried again first.
    pub staging: Option<String>,
    /// A profile that the CA must offer.
    pub profile: Option<String>,
    /// External account binding.
    pub eab: Option<Eab>,
    /// PEM roots to trust for the directory itself.
    pub ca_file: Option<PathBuf>,
}

/// How control of a name is proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Challenge {
    /// RFC 8555 section 8.3.
    Http01,
    /// RFC 8737.
    TlsAlpn01,
    /// RFC 8555 section 8.4.
    Dns01,
    /// draft-ietf-acme-dns-persist.
    DnsPersist01,
}

/// `acme.dns`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// Who sets the records; none where only the servers are named.
    pub provider: Option<DnsProvider>,
    /// The authoritative servers of the names; where there are none, DNS is asked for them.
    pub nameservers: Vec<SocketAddr>,
    /// How long a record may take to appear at them.
    pub propagation: Duration,
}

/// Who sets records in DNS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsProvider {
    /// A command, called with `present` or `cleanup`, the name and the value.
    Command {
        /// The program and its first arguments; never empty.
        command: Vec<String>,
        /// How long it may take.
        timeout: Duration,
    },
    /// Dynamic updates.
    Rfc2136(Rfc2136),
    /// The API of a hosted provider.
    Hosted(HostedDns),
    /// acme-dns, to which `_acme-challenge` is an alias.
    AcmeDns(AcmeDns),
}

/// A hosted provider whose API is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsHost {
    /// bunny.net.
    Bunny,
    /// Cloudflare.
    Cloudflare,
    /// deSEC.
    Desec,
    /// DigitalOcean.
    DigitalOcean,
    /// DNSimple.
    DnSimple,
    /// Gandi LiveDNS.
    Gandi,
    /// Hetzner Cloud DNS.
    Hetzner,
    /// IONOS.
    Ionos,
    /// Linode (Akamai).
    Linode,
    /// Netlify.
    Netlify,
    /// Porkbun.
    Porkbun,
    /// Vultr.
    Vultr,
}

impl DnsHost {
    /// Every one, in the order of their names.
    pub const ALL: [Self; 12] = [
        Self::Bunny,
        Self::Cloudflare,
        Self::Desec,
        Self::DigitalOcean,
        Self::DnSimple,
        Self::Gandi,
        Self::Hetzner,
        Self::Ionos,
        Self::Linode,
        Self::Netlify,
        Self::Porkbun,
        Self::Vultr,
    ];

    /// The name in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bunny => "bunny",
            Self::Cloudflare => "cloudflare",
            Self::Desec => "desec",
            Self::DigitalOcean => "digitalocean",
            Self::DnSimple => "dnsimple",
            Self::Gandi => "gandi",
            Self::Hetzner => "hetzner",
            Self::Ionos => "ionos",
            Self::Linode => "linode",
            Self::Netlify => "netlify",
            Self::Porkbun => "porkbun",
            Self::Vultr => "vultr",
        }
    }
}

/// An account at a hosted provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostedDns {
    /// Which.
    pub host: DnsHost,
    /// The key of its API.
    pub token: Secret,
    /// A second key, where it has two.
    pub secret: Option<Secret>,
    /// The number of the account, where its API names it.
    pub account: Option<String>,
    /// The zone; where there is none, the account is asked for it.
    pub zone: Option<String>,
    /// Where the API is, if not where it is for everyone.
    pub url: Option<String>,
}

/// An account at an acme-dns server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcmeDns {
    /// Where its API is.
    pub url: String,
    /// What the registration has answered.
    pub username: String,
    /// The same.
    pub password: Secret,
    /// The same.
    pub subdomain: String,
}

/// A server that takes dynamic updates (RFC 2136), and the key that signs them (RFC 8945).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rfc2136 {
    /// Where it listens.
    pub address: SocketAddr,
    /// The zone; where there is none, the server is asked for it.
    pub zone: Option<String>,
    /// The name of the key.
    pub key_name: String,
    /// The key, base64.
    pub key_secret: Secret,
    /// How it signs.
    pub algorithm: TsigAlgorithm,
}

/// An algorithm of TSIG.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TsigAlgorithm {
    /// SHA-256.
    HmacSha256,
    /// SHA-384.
    HmacSha384,
    /// SHA-512.
    HmacSha512,
}

/// A secret: as it is, or in a file that is read when it is needed.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// As it is.
    Text(Box<str>),
    /// The file.
    File(PathBuf),
}

impl Secret {
    /// The secret.
    ///
    /// # Errors
    /// The file cannot be read; which, and why.
    pub fn read(&self) -> Result<String, (String, std::io::Error)> {
        match self {
            Self::Text(text) => Ok(text.to_string()),
            Self::File(path) => std::fs::read_to_string(path)
                .map(|text| text.trim().to_owned())
                .map_err(|error| (path.display().to_string(), error)),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text(..)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// External account binding (RFC 8555 section 7.3.4).
#[derive(Clone, PartialEq, Eq)]
pub struct Eab {
    /// Key identifier.
    pub kid: String,
    /// The MAC key, decoded.
    pub hmac_key: Vec<u8>,
}

impl fmt::Debug for Eab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Eab").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// A TLS version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// RFC 5246.
    V1_2,
    /// RFC 8446.
    V1_3,
}

/// The host of the site that answers every name which no other site has.
pub const CATCH_ALL: &str = "*";

/// A host name, a wildcard for names one label below another, [`CATCH_ALL`], or an IP address: valid, lower case, without a
/// trailing dot and without brackets.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hostname(pub(super) Arc<str>);

impl Hostname {
    /// Whether it stands for more than one name: for every name one label below another (`*.example.org`), or for every
    /// name that no other site has.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with('*')
    }

    /// Whether it stands for every name that no other site has.
    #[must_use]
    pub fn is_catch_all(&self) -> bool {
        &*self.0 == CATCH_ALL
    }

    /// The address, where it is one.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.0.parse().ok()
    }

    /// As it stands in a URL and in the `Host` field: an IPv6 address in brackets.
    #[must_use]
    pub fn authority(&self) -> Cow<'_, str> {
        if self.0.contains(':') { format!("[{}]", self.0).into() } else { (&*self.0).into() }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name, shared.
    #[must_use]
    pub fn shared(&self) -> Arc<str> {
        self.0.clone()
    }
}

impl fmt::Debug for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `[sites.HOST]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Its name.
    pub host: Hostname,
    /// The port of ours on which alone it answers; `None` for all.
    pub port: Option<u16>,
    /// Where its certificate comes from.
    pub tls: SiteTls,
    /// The documents that it answers by itself, before any route.
    pub well_known: Option<Arc<WellKnown>>,
    /// The routes, longest prefix first; the site's own upstream is the one with prefix `/`.
    pub routes: Vec<Route>,
    /// Whether `Strict-Transport-Security` is sent.
    pub hsts: bool,
    /// Where its connections go if they are not HTTP; then there are no routes and no documents.
    pub stream: Option<Stream>,
    /// Changes of the fields of every request that goes upstream; those of a route follow.
    pub request_fields: Vec<FieldEdit>,
    /// Changes of the fields of every response; those of a route follow.
    pub response_fields: Vec<FieldEdit>,
}

impl Site {
    /// How it is called: its host, with its port where it is on one only.
    #[must_use]
    pub fn name(&self) -> Arc<str> {
        self.port.map_or_else(|| self.host.shared(), |port| format!("{}:{port}", self.host.authority()).into())
    }
}

/// Where the certificate of a site comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SiteTls {
    /// Ordered and renewed by us.
    Acme,
    /// Signed by the local CA in the storage.
    Internal,
    /// PEM files of the site's own, watched.
    Files(KeyPairFiles),
    /// The one of several PEM files that is for the site's name, watched.
    SharedFiles(Arc<[KeyPairFiles]>),
    /// The certificate of the wildcard site above it.
    Wildcard,
    /// Plain HTTP only.
    Off,
    /// TLS does not end here: the upstream has the certificate.
    Passthrough,
}

impl SiteTls {
    /// Whether we hold a certificate of the site's own.
    #[must_use]
    pub const fn has_certificate(&self) -> bool {
        !matches!(self, Self::Off | Self::Passthrough | Self::Wildcard)
    }
}

/// A site whose connections are not HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// What speaks on them.
    pub kind: StreamKind,
    /// Where they go.
    pub upstream: TcpUpstream,
}

/// What speaks on a connection that is not HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// TURN over TLS (RFC 8656 section 3.1): the client speaks first, and begins with a STUN message.
    Turn,
    /// Anything.
    Tcp,
}

impl StreamKind {
    /// As it is written in the file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Turn => "turn",
            Self::Tcp => "tcp",
        }
    }
}

/// A set of servers that take TCP connections for the same thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpUpstream {
    /// How it is called in logs and metrics: the first server as written.
    pub name: Arc<str>,
    /// At least one.
    pub servers: Vec<TcpServer>,
    /// Bound on one dial.
    pub connect_timeout: Duration,
    /// How long refused dials are tried again before the connection is closed.
    pub retry_connect: Duration,
    /// How a server is picked.
    pub balance: Balance,
    /// Whether a PROXY protocol header (version 2) goes before the client's bytes.
    pub proxy_protocol: bool,
}

/// One address of a [`TcpUpstream`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TcpServer {
    /// A name or an address, without brackets.
    pub host: Arc<str>,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for TcpServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "tcp://[{host}]:{port}") } else { write!(f, "tcp://{host}:{port}") }
    }
}

/// A certificate and its key in PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyPairFiles {
    /// The chain, leaf first.
    pub cert: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// The `/.well-known/matrix/` documents of a site, ready to be sent. A document that is not configured is `None`: 404.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WellKnown {
    /// `/.well-known/matrix/client`.
    pub client: Option<Bytes>,
    /// `/.well-known/matrix/server`.
    pub server: Option<Bytes>,
    /// `/.well-known/matrix/support`.
    pub support: Option<Bytes>,
    /// `Cache-Control: public, max-age`, in whole seconds; zero is `no-store`.
    pub max_age: Duration,
}

/// What happens to the requests that it matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The path as the file has it, raw bytes, starting with `/`; a prefix has no trailing slash unless it is `/` itself.
    pub prefix: String,
    /// How `prefix` is compared with the path of a request.
    pub matching: Matching,
    /// What a request must meet besides its path; a request that does not goes to the next route that matches.
    pub conditions: Conditions,
    /// How the path is changed before it goes upstream.
    pub rewrite: Rewrite,
    /// Changes of the fields of a request before it goes upstream.
    pub request_fields: Vec<FieldEdit>,
    /// Changes of the fields of a response.
    pub response_fields: Vec<FieldEdit>,
    /// Whether every origin may read the responses, and preflights are answered.
    pub cors: bool,
    /// Who may come.
    pub guard: Guard,
    /// What answers.
    pub action: Action,
    /// The preset that `access` and the defaults came from.
    pub kind: Kind,
    /// Which paths pass, first match wins; paths are as the upstream sees them, after `strip_prefix`.
    pub access: Vec<AccessRule>,
    /// Whether the prefix is taken off the path before it goes upstream.
    pub strip_prefix: bool,
    /// Whether answers may be compressed.
    pub compress: bool,
    /// Bounds on request bodies, first match wins; none means no bound.
    pub max_body: Vec<BodyRule>,
    /// How long a body may stand still between the service and us, where that is not [`Timeouts::body_stall`].
    pub body_stall: Option<Option<Duration>>,
    /// What `/_matrix/…/rtc/transports` answers with where Synapse has nothing to say; `None` passes.
    pub rtc_transports: Option<Arc<RtcDocuments>>,
    /// Where a browser that asks for `/` is sent (308 to this origin), on a route that otherwise goes upstream.
    pub root_redirect: Option<String>,
}

impl Route {
    /// What is taken off the path before it goes upstream.
    #[must_use]
    pub fn stripped(&self) -> Option<&str> {
        let prefix = self.prefix.trim_end_matches('*').trim_end_matches('/');
        Some(prefix).filter(|prefix| self.strip_prefix && !prefix.is_empty())
    }
}

/// Who may come: whoever meets all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guard {
    /// Users with passwords.
    pub basic_auth: Option<Arc<BasicAuth>>,
    /// Whomever a service lets pass; it is asked last.
    pub forward_auth: Option<Arc<ForwardAuth>>,
}

impl Guard {
    /// Whether everyone may come.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.basic_auth.is_none() && self.forward_auth.is_none()
    }
}

/// `forward_auth`: a service that is asked about each request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardAuth {
    /// The service.
    pub upstream: Upstream,
    /// The path and query of the question.
    pub path: Uri,
    /// The fields of a request that go with the question, besides those of the edge; `None` is all.
    pub send_fields: Option<Vec<HeaderName>>,
    /// The fields of the answer that the request gets.
    pub copy_fields: Vec<CopiedField>,
    /// Where a client is sent instead of an answer with 401.
    pub sign_in: Option<Template>,
}

/// A field of an answer that becomes one of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopiedField {
    /// Its name in the answer.
    pub from: HeaderName,
    /// Its name in the request.
    pub to: HeaderName,
}

/// `basic_auth`: the users that may come (RFC 7617).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BasicAuth {
    /// What a browser shows when it asks for a password.
    pub realm: String,
    /// At least one.
    pub users: Vec<User>,
    /// Whether the service gets the `Authorization` field.
    pub pass_authorization: bool,
}

/// A user of [`BasicAuth`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name, without a colon.
    pub name: Box<str>,
    /// What the password is verified against.
    pub password: PasswordHash,
}

/// The hash of a password, with bounded costs.
#[derive(Clone, PartialEq, Eq)]
pub enum PasswordHash {
    /// `$2a$`, `$2b$`, `$2x$` or `$2y$`.
    Bcrypt(Box<str>),
    /// RFC 9106.
    Argon2id(Argon2id),
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bcrypt(_) => "Bcrypt(..)",
            Self::Argon2id(_) => "Argon2id(..)",
        })
    }
}

/// A hash of argon2id and its parameters.
#[derive(Clone, PartialEq, Eq)]
pub struct Argon2id {
    /// KiB.
    pub memory: u32,
    /// Passes over the memory.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
    /// The salt.
    pub salt: Vec<u8>,
    /// The hash.
    pub hash: Vec<u8>,
}

/// How the path of a route is compared with the raw path of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Matching {
    /// `"=/path"`: this path only. In it and in a prefix, a segment `{name}` is any one segment.
    Exact,
    /// `"/a/*/b"`: each `*` stands for any bytes, slashes included, and for none.
    Pattern,
    /// `"/path"`: this path and everything below it, by whole segments.
    Prefix,
}

/// What a request must meet besides its path. Empty lists ask for nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions {
    /// One of these methods.
    pub methods: Vec<Method>,
    /// Each of these fields, with a value of this pattern (`*` is any bytes).
    pub fields: Vec<(HeaderName, String)>,
    /// A client in one of these networks.
    pub from: Vec<IpNet>,
}

impl Conditions {
    /// Whether nothing is asked for.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.methods.is_empty() && self.fields.is_empty() && self.from.is_empty()
    }
}

/// How a path is changed before it goes upstream, after `strip_prefix`; the query stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rewrite {
    /// Not at all.
    Keep,
    /// This is put before it.
    AddPrefix(String),
    /// This takes its place.
    Path(String),
}

/// What a site or route is for; a preset of rules and limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A Synapse homeserver.
    Synapse,
    /// Another homeserver: Conduit and its descendants, Dendrite.
    Homeserver,
    /// element-hq/lk-jwt-service.
    LkJwt,
    /// A LiveKit SFU.
    Livekit,
    /// element-hq/matrix-authentication-service.
    Mas,
    /// Anything else.
    Http,
}

impl Kind {
    /// Whether it is a homeserver, of whatever make.
    #[must_use]
    pub const fn is_homeserver(self) -> bool {
        matches!(self, Self::Synapse | Self::Homeserver)
    }

    /// As it is written in the file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Synapse => "synapse",
            Self::Homeserver => "homeserver",
            Self::LkJwt => "lk-jwt",
            Self::Livekit => "livekit",
            Self::Mas => "mas",
            Self::Http => "http",
        }
    }
}

/// What answers a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// An upstream.
    Proxy(Upstream),
    /// 308 to this origin (`https://host[:port]`, no trailing slash) with path and query kept.
    Redirect(String),
    /// A redirect to wherever the template leads.
    RedirectTo {
        /// An absolute URL, or a path of this host.
        to: Template,
        /// 301, 302, 303, 307 or 308.
        status: StatusCode,
    },
    /// A fixed answer.
    Respond(FixedAnswer),
    /// Files of a folder.
    Files(Files),
    /// 403 for everything.
    Deny,
    /// 404 for everything.
    NotFound,
}

/// `files = …` of a site or route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The folder.
    pub root: PathBuf,
    /// Whether a path without a file gets the `index.html` of the folder.
    pub spa: bool,
}

/// `respond = …` of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedAnswer {
    /// The status.
    pub status: StatusCode,
    /// The media type.
    pub content_type: String,
    /// The content.
    pub body: Bytes,
}

/// One line of an allow-list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRule {
    /// Which paths.
    pub path: PathMatch,
    /// What happens to them.
    pub verdict: Access,
}

/// A condition on a raw path, without its query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    /// This path only.
    Exact(&'static str),
    /// This path and everything below it, by whole segments: `/rtc` takes `/rtc` and `/rtc/v1`, not `/rtcx`.
    Under(&'static str),
    /// Every path.
    Any,
}

/// What an [`AccessRule`] decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// It goes on.
    Pass,
    /// It goes on if the client is in one of these networks, else it is as if nothing were there.
    PassFrom(Vec<IpNet>),
    /// 404, in the form that fits the kind.
    NotFound,
}

/// One bound on request bodies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BodyRule {
    /// Which paths.
    pub path: BodyPath,
    /// The most bytes; `None` is no bound.
    pub limit: Option<u64>,
}

/// Which paths a [`BodyRule`] speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyPath {
    /// Media uploads: `/_matrix/media/*/upload*`, `/_matrix/client/*/media/upload*`.
    MatrixMedia,
    /// All.
    Any,
}

/// A set of endpoints that serve the same thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// How it is called in logs and metrics: the first server as written, without credentials.
    pub name: Arc<str>,
    /// At least one.
    pub servers: Vec<Server>,
    /// Bound on one dial.
    pub connect_timeout: Duration,
    /// Bound on the wait for a response head; `None` waits for ever.
    pub response_timeout: Option<Duration>,
    /// How long refused dials are tried again before the client hears of it.
    pub retry_connect: Duration,
    /// How an endpoint is picked.
    pub balance: Balance,
    /// Active probes.
    pub health: Option<Health>,
    /// The `Host` that its servers get.
    pub host: UpstreamHost,
    /// TLS to its `https` servers; `None` is the usual.
    pub tls: Option<Arc<UpstreamTls>>,
}

/// The `Host` of requests to an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpstreamHost {
    /// That of the client's request.
    OfRequest,
    /// Host and port of the server that is chosen.
    OfServer,
    /// This one.
    Fixed(String),
}

/// TLS to the servers of an upstream, where it is not as usual.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UpstreamTls {
    /// PEM roots in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// The name that is asked for and verified, in place of that of the server.
    pub server_name: Option<String>,
    /// Whether the server's certificate is verified at all.
    pub verify: bool,
    /// The certificate by which the edge identifies itself.
    pub client_certificate: Option<KeyPairFiles>,
}

/// One address of an upstream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Server {
    /// Plain HTTP/1.1.
    Http {
        /// A name or an address, without brackets.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// HTTP/1.1 over TLS, verified against the system's roots and the name unless [`Upstream::tls`] says otherwise.
    Https {
        /// A name or an address, without brackets.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// A stream socket in the file system.
    Unix(PathBuf),
}

impl Server {
    /// Host and port as `Host` has them, the port only where it is not that of the scheme (RFC 9110 section 4.2.3).
    #[must_use]
    pub fn authority(&self) -> String {
        let (host, port, usual) = match self {
            Self::Http { host, port } => (host, *port, 80),
            Self::Https { host, port } => (host, *port, 443),
            Self::Unix(_) => return "localhost".to_owned(),
        };
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        if port == usual { host } else { format!("{host}:{port}") }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, host, port) = match self {
            Self::Http { host, port } => ("http", host, port),
            Self::Https { host, port } => ("https", host, port),
            Self::Unix(path) => return write!(f, "unix:{}", path.display()),
        };
        if host.contains(':') { write!(f, "{scheme}://[{host}]:{port}") } else { write!(f, "{scheme}://{host}:{port}") }
    }
}

/// How an endpoint is picked among several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    /// The one with the fewest requests in flight.
    LeastRequests,
    /// One after the other.
    RoundRobin,
}

/// Active probes of an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// What is asked with GET; any 2xx is good.
    pub path: Uri,
    /// Time between two probes.
    pub interval: Duration,
}

/// `[compression]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compression {
    /// Codings in order of preference; empty turns it off.
    pub encodings: Vec<Encoding>,
    /// Bodies with a known length below this are left alone.
    pub min_size: u64,
}

/// A content coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// RFC 8878, window at most 8 MiB (RFC 9659).
    Zstd,
    /// RFC 7932.
    Brotli,
    /// RFC 1952.
    Gzip,
}

impl Encoding {
    /// The token of `Accept-Encoding` and `Content-Encoding`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Brotli => "br",
            Self::Gzip => "gzip",
        }
    }
}

/// `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the fields of a request head.
    pub header_bytes: usize,
    /// Number of the fields of a request head, at most 512.
    pub header_count: usize,
    /// Bytes of a request target, at most 65,534.
    pub request_target: usize,
    /// Connections in all; `None` derives it from the file limit of the process.
    pub connections: Option<usize>,
    /// Connections per address (IPv6: per /64); `None` is no bound.
    pub connections_per_ip: Option<usize>,
    /// Streams in flight on one HTTP/2 connection.
    pub streams_per_connection: u32,
}

/// `[timeouts]`; `None` is no bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// From accept to the end of the TLS handshake, PROXY protocol header included.
    pub handshake: Option<Duration>,
    /// From the first byte of a request head to its last.
    pub header: Option<Duration>,
    /// A connection without a request.
    pub keep_alive: Option<Duration>,
    /// A body, in either direction, of which no byte moves.
    pub body_stall: Option<Duration>,
    /// A tunnel in which no byte moves.
    pub tunnel_idle: Option<Duration>,
    /// From SIGTERM to exit.
    pub drain: Duration,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The file; `None` is standard error.
    pub file: Option<PathBuf>,
    /// A filter as `RUST_LOG` has it.
    pub level: String,
    /// `None` decides by whether stderr is a terminal.
    pub format: Option<LogFormat>,
    /// One event per exchange.
    pub access: bool,
    /// How much of a client's address is written.
    pub client_ip: ClientIpLog,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For eyes.
    Text,
    /// One object a line.
    Json,
}

/// How much of a client's address is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientIpLog {
    /// All of it.
    Full,
    /// Its /24, or its /48.
    Masked,
    /// Nothing.
    None,
}

impl ClientIpLog {
    /// The address as it may be written.
    #[must_use]
    pub fn apply(self, ip: IpAddr) -> Option<IpAddr> {
        match (self, ip) {
            (Self::Full, ip) => Some(ip),
            (Self::None, _) => None,
            (Self::Masked, IpAddr::V4(ip)) => Some(IpAddr::V4((ip.to_bits() & 0xffff_ff00).into())),
            (Self::Masked, IpAddr::V6(ip)) => Some(IpAddr::V6((ip.to_bits() & (u128::MAX << 80)).into())),
        }
    }
}

/// `[admin]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Where everything is served.
    pub listen: Option<AdminListen>,
    /// Names by which it may be asked, besides addresses and localhost; in lower case.
    pub hosts: Vec<String>,
    /// Where `/metrics` and `/health` alone are served.
    pub metrics: Option<SocketAddr>,
}

/// `admin.listen`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminListen {
    /// A loopback address.
    Tcp(SocketAddr),
    /// A socket in the file system, mode 0600.
    Unix(PathBuf),
}

impl fmt::Display for AdminListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// The Matrix deployment, as derived from `[matrix]` and the sites.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matrix {
    /// The name after the colon in user ids.
    pub server_name: String,
    /// `m.homeserver.base_url`.
    pub homeserver: String,
    /// Where calls are, in order of preference.
    pub rtc_transports: Vec<RtcTransport>,
    /// `m.server`.
    pub federation: String,
}

impl Matrix {
    /// The authorisation services of the transports, in order of preference.
    pub fn rtc_services(&self) -> impl Iterator<Item = &str> {
        self.rtc_transports.iter().filter_map(|transport| transport.service.as_deref())
    }

    /// The SFUs of the transports, in order of preference.
    pub fn sfus(&self) -> impl Iterator<Item = &str> {
        self.rtc_transports.iter().filter_map(|transport| transport.url.as_deref())
    }
}

/// A LiveKit backend of calls, by its public addresses; at least one of the two is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RtcTransport {
    /// The `wss://` address of the SFU, for clients that get their token from the homeserver (MSC4195). It is the
    /// service's `LIVEKIT_URL` to the letter.
    pub url: Option<String>,
    /// The `https://` address of the authorisation service, for clients that get their token there.
    pub service: Option<String>,
}

/// Where a client of MSC4195 asks the homeserver for a call token, and where it did while that was unstable.
pub const RTC_GET_TOKEN: [&str; 2] =
    ["/_matrix/client/v1/rtc/livekit/get_token", "/_matrix/client/unstable/io.element.msc4195/rtc/livekit/get_token"];

/// The answers of the transports endpoint that stand in for the homeserver's, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RtcDocuments {
    /// With the services alone: for a homeserver that does not hand out call tokens. None where there is no service.
    pub services: Option<RtcDocument>,
    /// With the SFUs as well: for a homeserver that does. None where there is no SFU.
    pub sfus: Option<RtcDocument>,
}

/// One list of transports, in the form of each path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RtcDocument {
    /// For the unstable path.
    pub unstable: Bytes,
    /// For `/v1`.
    pub stable: Bytes,
}
