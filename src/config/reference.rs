//! Every key of the file, described once for its users: the source of the JSON Schema and of the reference pages.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};
use toml::de::DeValue;

use super::{
    kind,
    plan::{Access, BodyPath, Kind, PathMatch},
    schema as strict,
};

/// One key.
struct Key {
    name: &'static str,
    shape: Shape,
    default: &'static str,
    doc: &'static str,
}

/// What a value looks like.
#[derive(Clone, Copy)]
enum Shape {
    Text,
    Switch,
    Count,
    Size,
    Span,
    Words(&'static [&'static str]),
    TextList,
    OneOrMore,
    Directory,
    Certificates,
    KeyPair,
    Transports,
    Free,
    Upstream,
    Tls,
    Respond,
    Health,
    Routes,
    Edits,
    RedirectTo,
    FieldConditions,
    BasicAuth,
    ForwardAuth,
    Copied,
}

/// A table of the file.
struct Table {
    name: &'static str,
    doc: &'static str,
    keys: &'static [Key],
}

const fn key(name: &'static str, shape: Shape, default: &'static str, doc: &'static str) -> Key {
    Key { name, shape, default, doc }
}

use Shape::{
    BasicAuth, Certificates, Copied, Count, Directory, Edits, FieldConditions, ForwardAuth, Free, Health, KeyPair,
    OneOrMore, RedirectTo, Respond, Routes, Size, Span, Switch, Text, TextList, Tls, Transports, Upstream, Words,
};

const KINDS: Shape = Words(&["synapse", "homeserver", "lk-jwt", "livekit", "mas", "http"]);
const SITE_KINDS: Shape = Words(&["synapse", "homeserver", "lk-jwt", "livekit", "mas", "http", "turn", "tcp"]);

const TABLES: &[Table] = &[
    Table {
        name: "listen",
        doc: "The addresses to listen on, and which peers are trusted.",
        keys: &[
            key(
                "http",
                TextList,
                "[\"[::]:80\"]",
                "Plain HTTP: ACME HTTP-01, well-known documents, redirect to https. `[]` turns it off.",
            ),
            key(
                "https",
                TextList,
                "[\"[::]:443\"]",
                "TLS with HTTP/1.1 and HTTP/2. Add `\"[::]:8448\"` for federation without delegation.",
            ),
            key("threads", Count, "one per core", "Worker threads, 1 to 1024. Takes effect at the next start."),
            key("public_port", Count, "443", "The https port that clients connect to, for redirects and derived URLs."),
            key(
                "proxy_protocol",
                TextList,
                "[]",
                "Networks of load balancers that send the PROXY protocol, version 1 or 2; required from them, rejected from all others.",
            ),
            key(
                "trusted_proxies",
                TextList,
                "[]",
                "Networks of reverse proxies in front of this one. Their `X-Forwarded-For` is trusted and read from right to left.",
            ),
        ],
    },
    Table {
        name: "acme",
        doc: "Obtaining certificates by ACME.",
        keys: &[
            key("email", Text, "none", "Contact of the account at the CA."),
            key(
                "directory",
                Directory,
                "\"letsencrypt\"",
                "`letsencrypt`, `letsencrypt-staging`, `zerossl`, a URL, a table `{ url, profile, eab_kid, eab_hmac_key, ca_file }` with settings of its own, or a list of these in order of fallback.",
            ),
            key(
                "challenges",
                OneOrMore,
                "[\"tls-alpn-01\", \"http-01\"]",
                "Allowed challenges, in order of preference: `tls-alpn-01`, `http-01`, `dns-01`, `dns-persist-01`. With `acme.dns`, `dns-01` is the last of the default.",
            ),
            key(
                "dns",
                Free,
                "none",
                "Sets the records of DNS-01: `{ command = [\"/path\"], timeout = \"60s\" }` is called with `present` or `cleanup`, the name and the value; `{ provider = \"cloudflare\", api_token = \"${TOKEN}\" }` asks the API of a hosted provider: `bunny`, `cloudflare`, `desec`, `digitalocean`, `dnsimple` (with `account_id`), `gandi`, `hetzner`, `ionos` (`api_token` is prefix and secret with a dot between), `linode`, `netlify`, `porkbun` (with `api_secret`), `vultr`; `zone` and `api_url` are found by themselves; `{ provider = \"acme-dns\", api_url = \"https://auth.example.org\", username = \"…\", password = \"${PASSWORD}\", subdomain = \"…\" }` has what its registration answered, and `_acme-challenge` is an alias (`CNAME`) to it; `{ provider = \"rfc2136\", server = \"192.0.2.1\", zone = \"example.org\", key_name = \"acme\", key_secret = \"${TSIG}\", key_algorithm = \"hmac-sha256\" }` sends dynamic updates (`key_secret_file` names a file, as `api_token_file`, `api_secret_file` and `password_file` do). `nameservers = [\"192.0.2.1\"]` are asked for the record before the CA is told, in place of those that DNS names; `propagation_timeout = \"120s\"` bounds the wait.",
            ),
            key(
                "profile",
                Text,
                "none",
                "A profile that the CA offers, such as `shortlived`; for directories that are written as strings, as are the next three.",
            ),
            key("eab_kid", Text, "none", "Key identifier of an external account binding."),
            key("eab_hmac_key", Text, "none", "MAC key of an external account binding, base64url."),
            key("ca_file", Text, "none", "PEM file of roots to trust for the directory itself (a private CA)."),
        ],
    },
    Table {
        name: "storage",
        doc: "Data that must survive a restart.",
        keys: &[key(
            "path",
            Text,
            "\"/var/lib/vestibule\"",
            "Directory for certificates, the ACME account and the internal CA. Takes effect at the next start.",
        )],
    },
    Table {
        name: "tls",
        doc: "TLS for all sites.",
        keys: &[
            key(
                "certificates",
                Certificates,
                "\"acme\"",
                "Where certificates come from unless a site sets `tls`. `internal` is a local CA in the storage; `vestibule ca` prints its root. `{ cert = \"a.pem\", key = \"b.pem\" }`, or a list of such pairs, serves each site with the pair for its name; only sites with `tls = \"acme\"` then order.",
            ),
            key("min_version", Words(&["1.2", "1.3"]), "\"1.2\"", "Oldest TLS version that is offered."),
        ],
    },
    Table {
        name: "matrix",
        doc: "The Matrix deployment. Keys that are left out are derived from the sites.",
        keys: &[
            key(
                "server_name",
                Text,
                "none",
                "The name after the colon in user IDs; its site serves the well-known documents.",
            ),
            key(
                "homeserver",
                Text,
                "`https://` and the one `synapse` or `homeserver` site",
                "`m.homeserver.base_url`.",
            ),
            key(
                "rtc_service",
                Transports,
                "the one `lk-jwt` and the one `livekit` site or route",
                "URL of the MatrixRTC authorisation service; or `{ url = \"wss://…\", livekit_service_url = \"https://…\" }`, at least one of them, where `url` is the SFU's `LIVEKIT_URL` to the letter; or a list of these in order of preference.",
            ),
            key("federation", Text, "the homeserver's host with its port", "`m.server`; always written with a port."),
            key(
                "well_known_max_age",
                Span,
                "\"1h\"",
                "`Cache-Control: public, max-age` of the documents; `off` is `no-store`.",
            ),
            key(
                "rtc_transports",
                Words(&["fill", "pass"]),
                "\"fill\"",
                "Whether the MSC4143 transports endpoint is answered if the homeserver has no answer (`fill`), or only forwarded (`pass`). The answer has the SFU's `url` if the homeserver hands out call tokens (MSC4195), which the edge checks at start, after a reload and every five minutes.",
            ),
            key(
                "client",
                Free,
                "empty",
                "Further members of `/.well-known/matrix/client`, carried unchanged into the JSON.",
            ),
            key("server", Free, "empty", "Further members of `/.well-known/matrix/server`."),
            key(
                "support",
                Free,
                "empty",
                "Members of `/.well-known/matrix/support`; without any, the document is 404.",
            ),
        ],
    },
    Table {
        name: "compression",
        doc: "Compression of responses, on routes that allow it.",
        keys: &[
            key(
                "encodings",
                TextList,
                "[\"zstd\", \"br\", \"gzip\"]",
                "Of `zstd`, `br` and `gzip`, in order of preference; `[]` turns compression off.",
            ),
            key("min_size", Size, "\"512B\"", "Shorter bodies are not compressed."),
        ],
    },
    Table {
        name: "limits",
        doc: "Limits on what a client may send.",
        keys: &[
            key("header_bytes", Size, "\"32KiB\"", "All fields of a request head together; over it, 431."),
            key("header_count", Count, "128", "Number of fields of a request head, at most 512; over it, 431."),
            key(
                "request_target",
                Size,
                "\"64KiB\"",
                "The request target; over it, 414. LiveKit needs this much. To Synapse, the whole head is limited to 16 KiB.",
            ),
            key(
                "connections",
                Count,
                "from the file limit",
                "Connections in total, with descriptors left for upstreams.",
            ),
            key("connections_per_ip", Count, "no limit", "Connections per address; an IPv6 /64 counts as one address."),
            key("streams_per_connection", Count, "256", "Requests in flight on one HTTP/2 connection."),
        ],
    },
    Table {
        name: "timeouts",
        doc: "Limits on waiting. None of them limits a transfer that makes progress.",
        keys: &[
            key("handshake", Span, "\"10s\"", "From accept to the end of the TLS handshake."),
            key("header", Span, "\"15s\"", "From the first byte of a request head to its last; then 408."),
            key("keep_alive", Span, "\"5m\"", "A connection without a request in flight."),
            key("body_stall", Span, "\"60s\"", "A body, in either direction, without progress."),
            key(
                "tunnel_idle",
                Span,
                "\"2h\"",
                "A WebSocket, or a connection of a `turn` or `tcp` site, without traffic.",
            ),
            key(
                "drain",
                Span,
                "\"8s\"",
                "How long to wait for uploads and responses in flight after SIGTERM, while everything is still served; the exit takes half a second more, and `docker stop` kills after 10 s.",
            ),
        ],
    },
    Table {
        name: "log",
        doc: "The log, on standard error or in a file.",
        keys: &[
            key(
                "file",
                Text,
                "standard error",
                "A file to log to. SIGHUP opens it again, for log rotation. Takes effect at the next start.",
            ),
            key(
                "level",
                Text,
                "\"info\"",
                "A level (`error`, `warn`, `info`, `debug`, `trace`, `off`), or levels per module as in `RUST_LOG`, which overrides it.",
            ),
            key(
                "format",
                Words(&["text", "json"]),
                "text on a terminal, else json",
                "Format of a line. Takes effect at the next start.",
            ),
            key("access", Switch, "true", "Whether each request is logged."),
            key(
                "client_ip",
                Words(&["full", "masked", "none"]),
                "\"full\"",
                "How much of a client's address is logged; `masked` is its /24 or /48.",
            ),
        ],
    },
    Table {
        name: "admin",
        doc: "The admin interface.",
        keys: &[
            key(
                "listen",
                Text,
                "\"127.0.0.1:9180\"",
                "An address of loopback, `unix:/path`, or `off`: a page at `/`, `/health`, `/ready`, `/metrics`, `/certificates`, `/upstreams`, `/status`, `POST /reload`, `POST /renew/HOST`. To open the page of a unix socket: `vestibule dashboard`.",
            ),
            key(
                "allow_remote",
                Switch,
                "false",
                "Allows `admin.listen` to be an address that other hosts can reach. There is no password; for a scraper on another host use `metrics`.",
            ),
            key(
                "hosts",
                TextList,
                "[]",
                "Names that a request may give as its `Host`, besides addresses and localhost: for instance the name of the container, by which Prometheus scrapes. Any other is refused, so that no web page can reach the admin server through a browser.",
            ),
            key(
                "metrics",
                Text,
                "none",
                "A further address, which other hosts may reach and which serves `/metrics` and `/health` and nothing else: \"0.0.0.0:9100\".",
            ),
        ],
    },
];

const SITE: &[Key] = &[
    key(
        "kind",
        SITE_KINDS,
        "\"http\"",
        "The service behind it; decides the open paths and the limits, see below. `homeserver` is any but Synapse: Conduit and its descendants, Dendrite. `mas` is the Matrix Authentication Service. Connections of a `turn` or `tcp` site are not HTTP: the name in the TLS handshake selects the upstream, and every key for HTTP is an error.",
    ),
    key(
        "upstream",
        Upstream,
        "none",
        "`http://…`, `https://…`, `unix:/path`, a list of them, or a table. On a `turn` or `tcp` site, `tcp://host:port`.",
    ),
    key(
        "mas",
        Upstream,
        "none",
        "On a `synapse` site, the Matrix Authentication Service: `login`, `logout` and `refresh` of every version below `/_matrix/client/`, with what is below them, go there and nothing else does. The service's own site has `kind = \"mas\"`.",
    ),
    key(
        "redirect",
        RedirectTo,
        "none",
        "Redirect (308) to this origin; path and query are kept. On a `synapse` or `homeserver` site, only `/` is redirected. Or to a URL or a path with `{path}`, `{query}`, `{uri}` and `{host}`; `{ to, status }` selects 301, 302, 303, 307 or 308.",
    ),
    key(
        "files",
        Text,
        "none",
        "A folder whose files are served: the `index.html` of a folder, ranges, `ETag` and `Last-Modified`, and `.br`, `.zst` and `.gz` beside a file in its place. Hidden files (but those of `.well-known`) and links that lead out of the folder are 404. The path is that of the request: with `strip_prefix`, without the prefix.",
    ),
    key(
        "spa",
        Switch,
        "false",
        "With `files`: a path without a file gets `index.html`, for applications that have their own paths.",
    ),
    key(
        "routes",
        Routes,
        "none",
        "A table of routes by path: `\"/prefix\"` by whole segments, `\"=/exact\"`, or `\"/a/*/b\"`, where `*` is any bytes, slashes included. `{name}` in place of a segment of the first two is any one segment: `\"/a/{name}/b\"`. Exact comes before pattern before prefix, longer before shorter. Or a list of tables with `path`, of which the first that matches is used.",
    ),
    key(
        "well_known",
        Switch,
        "true for `server_name`, `synapse` and `homeserver` sites",
        "Whether the well-known documents are served here.",
    ),
    key(
        "tls",
        Tls,
        "`tls.certificates`",
        "`acme`, `internal`, `wildcard` (the certificate of the site `*.` above it), `off` (plain HTTP only), `passthrough` (on a `tcp` site: the upstream ends TLS and has the certificate), or `{ cert = \"a.pem\", key = \"b.pem\" }`, watched, the last good pair kept.",
    ),
    key("compress", Switch, "true", "Whether responses may be compressed."),
    key(
        "max_body",
        Size,
        "by kind",
        "Largest request body; over it, 413. For every route that sets neither it nor a `kind`.",
    ),
    key(
        "body_stall",
        Span,
        "`timeouts.body_stall`",
        "A body that the service sends or takes, without progress. `off` for event streams with long silences. For every route that does not set it.",
    ),
    key("hsts", Switch, "false", "Whether `Strict-Transport-Security` is sent (a year, this host)."),
    key(
        "request_fields",
        Edits,
        "none",
        "Changes of request fields on the way upstream, for every route: `{ set = { \"X-Real-IP\" = \"{client_ip}\" }, add = { … }, default = { … }, remove = [\"X-Name\"] }`. Placeholders: `{client_ip}`, `{host}`, `{scheme}`, `{request_id}`.",
    ),
    key(
        "response_fields",
        Edits,
        "none",
        "The same for responses, redirects and errors included. `default` sets a field that the response does not have.",
    ),
    key(
        "security_fields",
        Switch,
        "false",
        "Whether responses get the fields that Element Web recommends, where they have none: `X-Frame-Options`, `X-Content-Type-Options`, `X-XSS-Protection`, `Content-Security-Policy`.",
    ),
    key(
        "cors",
        Switch,
        "false",
        "Whether every origin may read responses (`Access-Control-Allow-Origin: *`), and preflights are answered.",
    ),
    key(
        "basic_auth",
        BasicAuth,
        "none",
        "The users that may come, with passwords (RFC 7617): a table, see below. Holds for every route that has none of its own. The well-known documents stay open. On such a site routes match any spelling of a path, as with `deny`.",
    ),
    key(
        "forward_auth",
        ForwardAuth,
        "none",
        "A service that is asked about each request (Authelia, Authentik, oauth2-proxy): a table, see below. An answer with 2xx lets the request pass, any other goes to the client, and none is 502. Holds for every route that has none of its own.",
    ),
    key(
        "admin_from",
        TextList,
        "[]",
        "Networks that may reach `/_synapse/admin/` on a `synapse` site, `/api/admin/` on a `mas` site.",
    ),
];

const ROUTE: &[Key] = &[
    key("kind", KINDS, "\"http\"", "As for a site."),
    key("upstream", Upstream, "none", "As for a site."),
    key(
        "strip_prefix",
        Switch,
        "see kinds",
        "Whether the prefix is removed from the path before the request is forwarded.",
    ),
    key("add_prefix", Text, "none", "Put before the path that is forwarded, after `strip_prefix`."),
    key("rewrite", Text, "none", "The path that is forwarded in place of the request's; the query is kept."),
    key(
        "methods",
        OneOrMore,
        "all",
        "Only requests with one of these methods; others go to the next route that matches.",
    ),
    key(
        "fields",
        FieldConditions,
        "none",
        "Only requests with all of these fields: `{ \"X-Name\" = \"value\" }`, `*` for any bytes, or `true` for any value.",
    ),
    key("files", Text, "none", "As for a site."),
    key("spa", Switch, "false", "As for a site."),
    key("from", OneOrMore, "all", "Only clients in one of these networks."),
    key(
        "deny",
        Switch,
        "false",
        "403 for everything that the route matches, in any spelling of the path: percent-encoded, in upper case, with dot segments or repeated slashes.",
    ),
    key("redirect", RedirectTo, "none", "As for a site."),
    key("request_fields", Edits, "none", "As for a site; applied after the site's."),
    key("response_fields", Edits, "none", "As for a site; applied after the site's."),
    key("security_fields", Switch, "false", "As for a site."),
    key("cors", Switch, "that of the site", "As for a site."),
    key("basic_auth", BasicAuth, "that of the site", "As for a site; `false` asks for none here."),
    key("forward_auth", ForwardAuth, "that of the site", "As for a site; `false` asks nobody here."),
    key("respond", Respond, "none", "A fixed response: a text, or `{ status, content_type, body }`."),
    key(
        "max_body",
        Size,
        "by kind, or that of the site",
        "As for a site. That of the site holds where the route has no `kind`.",
    ),
    key("body_stall", Span, "that of the site", "As for a site."),
    key("compress", Switch, "true", "As for a site."),
];

const UPSTREAM: &[Key] = &[
    key("servers", OneOrMore, "required", "The addresses."),
    key("connect_timeout", Span, "\"5s\"", "Limit on one connection attempt."),
    key("response_timeout", Span, "\"300s\"", "Limit on waiting for a response head."),
    key(
        "retry_connect",
        Span,
        "\"5s\"",
        "How long a refused connection is retried before the client gets an error. On a `turn` or `tcp` site `off`.",
    ),
    key("balance", Words(&["least-requests", "round-robin"]), "\"least-requests\"", "How a server is chosen."),
    key("health", Health, "none", "Active probes: `{ path = \"/health\", interval = \"10s\" }`."),
    key(
        "host",
        Text,
        "that of the request",
        "The `Host` that the servers get: a name, with a port where it has one, or `{upstream}` for host and port of the server. `X-Forwarded-Host` stays that of the request.",
    ),
    key(
        "ca_file",
        Text,
        "the system's roots",
        "PEM file of the roots that certificates of `https://` servers are verified against, and no others (a private CA). Read at start and at every reload, as are the files of `client_certificate`; one that cannot be used is an error there.",
    ),
    key(
        "server_name",
        Text,
        "the host in `servers`",
        "The name that `https://` servers are asked for (SNI) and that their certificates must be for.",
    ),
    key(
        "insecure_skip_verify",
        Switch,
        "false",
        "Accepts any certificate of `https://` servers: whoever is between can read and change everything. `ca_file` is the better way.",
    ),
    key(
        "client_certificate",
        KeyPair,
        "none",
        "`{ cert = \"a.pem\", key = \"b.pem\" }`, the certificate that `https://` servers get which ask for one.",
    ),
    key(
        "proxy_protocol",
        Words(&["none", "v2"]),
        "none",
        "On a `turn` or `tcp` site: `v2` sends a PROXY protocol header with the client's address before its bytes.",
    ),
];

const BASIC_AUTH: &[Key] = &[
    key(
        "users",
        Free,
        "required",
        "Names and the hashes of their passwords, bcrypt (`$2y$…`, as Caddy and `htpasswd -B` write it) or `$argon2id$…`. Ten wrong passwords of an address (an IPv6 /64 counts as one), and then more than one in six seconds, are 429; so are those of all addresses together above 100 and one a second, except where somebody has logged in.",
    ),
    key("realm", Text, "\"restricted\"", "What a browser shows when it asks for the password."),
    key("pass_authorization", Switch, "false", "Whether the upstream gets the `Authorization` field."),
];

const FORWARD_AUTH: &[Key] = &[
    key(
        "url",
        Text,
        "required, or `upstream`",
        "Address and path of the question: `http://authelia:9091/api/authz/forward-auth`.",
    ),
    key(
        "upstream",
        Upstream,
        "of `url`",
        "As for a site, in place of `url`. An answer is waited for 30 s unless a table says otherwise.",
    ),
    key("path", Text, "\"/\"", "With `upstream`: the path of the question, and its query."),
    key(
        "send_fields",
        OneOrMore,
        "all",
        "The fields of the request that go with the question. `Host`, `X-Forwarded-Method`, `-Uri`, `-Host`, `-Proto`, `-For` and `X-Real-IP` always do; what a request says of its body, of ranges and of copies never does.",
    ),
    key(
        "copy_fields",
        Copied,
        "[]",
        "The fields of the answer that the request gets, `[\"Remote-User\"]` or `{ \"X-Auth-User\" = \"Remote-User\" }`. A client's own fields of these names are removed.",
    ),
    key(
        "login_path",
        Text,
        "none",
        "A path below which everything goes to the service without a question, `/oauth2` or `/outpost.goauthentik.io`, for those who have their pages on the same host.",
    ),
    key(
        "sign_in",
        Text,
        "none",
        "Redirect (302) to this URL or path in place of an answer with 401, as for `redirect`: `/oauth2/sign_in?rd={uri}`.",
    ),
];

const HEALTH: &[Key] = &[
    key("path", Text, "required", "Path of the request; any 2xx is healthy."),
    key("interval", Span, "\"10s\"", "Time between two probes, at least a second."),
];

fn shape(of: Shape) -> Value {
    let text_list = json!({ "type": "array", "items": { "type": "string" } });
    match of {
        Text => json!({ "type": "string" }),
        Size => json!({ "type": "string", "pattern": "^(off|[0-9]+ ?(B|KiB|MiB|GiB|KB|MB|GB))$" }),
        Span => json!({ "type": "string", "pattern": "^(off|[0-9]+ ?(ms|s|m|min|h|d))$" }),
        Switch => json!({ "type": "boolean" }),
        Count => json!({ "type": "integer", "minimum": 1 }),
        Words(words) => json!({ "enum": words }),
        TextList => text_list,
        OneOrMore => json!({ "anyOf": [{ "type": "string" }, text_list] }),
        Transports => {
            let addresses = json!({ "url": { "type": "string" }, "livekit_service_url": { "type": "string" } });
            let table =
                json!({ "type": "object", "properties": addresses, "minProperties": 1, "additionalProperties": false });
            let one = json!({ "anyOf": [{ "type": "string" }, table] });
            json!({ "anyOf": [one, { "type": "array", "items": one }] })
        }
        Free => json!({ "type": "object" }),
        Upstream => {
            let mut table = object(UPSTREAM);
            table["required"] = json!(["servers"]);
            json!({ "anyOf": [{ "type": "string" }, text_list, table] })
        }
        Directory => {
            let text = json!({ "type": "string" });
            let keys = json!({ "url": text, "profile": text, "eab_kid": text, "eab_hmac_key": text, "ca_file": text });
            let table =
                json!({ "type": "object", "properties": keys, "required": ["url"], "additionalProperties": false });
            let one = json!({ "anyOf": [text, table] });
            json!({ "anyOf": [text, table, { "type": "array", "items": one }] })
        }
        Certificates => {
            let files = shape(KeyPair);
            json!({ "anyOf": [{ "enum": ["acme", "internal"] }, files, { "type": "array", "items": files }] })
        }
        KeyPair => {
            let files = json!({ "cert": { "type": "string" }, "key": { "type": "string" } });
            json!({ "type": "object", "properties": files, "required": ["cert", "key"], "additionalProperties": false })
        }
        Tls => {
            json!({ "anyOf": [{ "enum": ["acme", "internal", "wildcard", "off", "passthrough"] }, shape(KeyPair)] })
        }
        Respond => {
            let status = json!({ "type": "integer", "minimum": 200, "maximum": 599 });
            let parts = json!({ "status": status, "content_type": { "type": "string" }, "body": { "type": "string" } });
            json!({ "anyOf": [{ "type": "string" }, { "type": "object", "properties": parts, "additionalProperties": false }] })
        }
        Health => {
            let mut table = object(HEALTH);
            table["properties"]["path"] = json!({ "type": "string", "pattern": "^/[^ ]*$" });
            table["required"] = json!(["path"]);
            table
        }
        Routes => routes(),
        Edits => {
            let values = json!({ "type": "object", "additionalProperties": shape(OneOrMore) });
            let parts = json!({ "set": values, "add": values, "default": values, "remove": shape(OneOrMore) });
            json!({ "type": "object", "properties": parts, "additionalProperties": false })
        }
        RedirectTo => {
            let parts = json!({ "to": { "type": "string" }, "status": { "enum": [301, 302, 303, 307, 308] } });
            json!({ "anyOf": [
                { "type": "string" },
                { "type": "object", "properties": parts, "required": ["to"], "additionalProperties": false },
            ] })
        }
        BasicAuth => basic_auth(),
        Copied => json!({ "anyOf": [
            { "type": "string" },
            { "type": "array", "items": { "type": "string" } },
            { "type": "object", "additionalProperties": { "type": "string" } },
        ] }),
        ForwardAuth => forward_auth(),
        FieldConditions => json!({
            "type": "object",
            "additionalProperties": { "anyOf": [{ "type": "string" }, { "const": true }] },
        }),
    }
}

fn routes() -> Value {
    let mut listed = object(ROUTE);
    listed["properties"]["path"] = strict::paths();
    listed["required"] = json!(["path"]);
    json!({ "anyOf": [
        { "type": "object", "propertyNames": strict::paths(), "additionalProperties": object(ROUTE) },
        { "type": "array", "items": listed },
    ] })
}

fn basic_auth() -> Value {
    let mut table = object(BASIC_AUTH);
    table["properties"]["users"]["additionalProperties"] = json!({ "type": "string" });
    table["properties"]["users"]["minProperties"] = json!(1);
    table["required"] = json!(["users"]);
    json!({ "anyOf": [table, { "const": false }] })
}

fn forward_auth() -> Value {
    let mut table = object(FORWARD_AUTH);
    table["oneOf"] = json!([
        { "required": ["url"], "not": { "required": ["path"] } },
        { "required": ["upstream"] },
    ]);
    json!({ "anyOf": [table, { "const": false }] })
}

fn object(keys: &[Key]) -> Value {
    let property = |key: &Key| {
        let mut value = strict::refine(key.name, shape(key.shape));
        value["description"] = json!(format!("{} Default: {}.", key.doc, key.default));
        (key.name.to_owned(), value)
    };
    let properties: Map<String, Value> = keys.iter().map(property).collect();
    json!({ "type": "object", "properties": properties, "additionalProperties": false })
}

/// How to write a key, for whoever has written a value of another type: from that value where the meaning is plain.
pub fn right_form(section: &str, key: &str, found: &DeValue<'_>) -> Option<String> {
    let keys = keys_of(section)?;
    let known = keys.iter().find(|known| known.name == key)?;
    let literal = |text: &str| {
        text.starts_with(['"', '[', '{']) || text.parse::<f64>().is_ok() || text == "true" || text == "false"
    };
    let example = || {
        if literal(known.default) && known.default != "[]" {
            return known.default.to_owned();
        }
        match (known.name, known.shape) {
            ("email", _) => "\"admin@example.org\"".into(),
            ("server_name", _) => "\"example.org\"".into(),
            ("homeserver", _) => "\"https://matrix.example.org\"".into(),
            ("rtc_service", _) => "\"https://jwt.matrixrtc.example.org\"".into(),
            ("federation", _) => "\"matrix.example.org:443\"".into(),
            ("send_fields", _) => "[\"Cookie\"]".into(),
            ("url", _) => "\"http://authelia:9091/api/authz/forward-auth\"".into(),
            ("methods", _) => "[\"GET\"]".into(),
            ("path", _) => "\"/health\"".into(),
            ("files", _) => "\"/srv/www\"".into(),
            ("host", _) => "\"app.internal\"".into(),
            ("ca_file", _) => "\"ca.pem\"".into(),
            ("servers", _) => "[\"http://synapse:8008\"]".into(),
            (_, Text) => "\"…\"".into(),
            (_, TextList | OneOrMore | Directory | Transports) => "[\"10.0.0.0/8\"]".into(),
            (_, Switch) => "true".into(),
            (_, Count) => "1000".into(),
            (_, Size) => "\"64MiB\"".into(),
            (_, Span) => "\"30s\"".into(),
            (_, Words(words)) => format!("\"{}\"", words[0]),
            (_, Upstream) => "\"http://synapse:8008\"".into(),
            (_, KeyPair) => "{ cert = \"a.pem\", key = \"b.pem\" }".into(),
            (_, Tls | Certificates) => "\"internal\"".into(),
            (_, Respond) => "\"a text\"".into(),
            (_, Health) => "{ path = \"/health\" }".into(),
            (_, Routes) => "{ \"/path\" = { upstream = \"http://…\" } }".into(),
            (_, BasicAuth) => "{ users = { alice = \"$2y$…\" } }".into(),
            (_, ForwardAuth) => "{ url = \"http://authelia:9091/api/authz/forward-auth\" }".into(),
            (_, Copied) => "[\"Remote-User\"]".into(),
            (_, Free) => "{ \"key\" = \"value\" }".into(),
            (_, Edits) => "{ set = { \"X-Name\" = \"value\" } }".into(),
            (_, RedirectTo) => "\"https://example.org{uri}\"".into(),
            (_, FieldConditions) => "{ \"X-Name\" = \"value\" }".into(),
        }
    };
    let text = match found {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(n) => n.as_str().to_owned(),
        DeValue::Float(n) => n.as_str().to_owned(),
        DeValue::Boolean(value) => value.to_string(),
        _ => return Some(example()),
    };
    let number = text.parse::<u64>().ok();
    Some(match (known.shape, number) {
        (TextList, Some(port)) if matches!(key, "http" | "https") => format!("[\"[::]:{port}\"]"),
        (Text, Some(port)) if key == "listen" => format!("\"127.0.0.1:{port}\""),
        (Upstream | OneOrMore, Some(port)) if matches!(key, "upstream" | "servers") => {
            format!("\"http://127.0.0.1:{port}\"")
        }
        (TextList, None) if found.is_str() => format!("[\"{text}\"]"),
        (Words(words), _) if words.contains(&text.as_str()) => format!("\"{text}\""),
        (Tls, _) if text == "false" => "\"off\"".into(),
        (Size | Span, _) if text == "false" => "\"off\"".into(),
        (Size, Some(bytes)) if bytes >= 1024 => format!("\"{bytes}B\""),
        (Size, Some(number)) => format!("\"{number}MiB\""),
        (Span, Some(seconds)) => format!("\"{seconds}s\""),
        (Count, Some(number)) => number.to_string(),
        (Switch, _) => matches!(text.to_ascii_lowercase().as_str(), "true" | "yes" | "on" | "1").to_string(),
        _ => example(),
    })
}

/// The keys of a table, by its name in messages.
fn keys_of(section: &str) -> Option<&'static [Key]> {
    if let Some(table) = TABLES.iter().find(|table| table.name == section) {
        return Some(table.keys);
    }
    let inner = section.rsplit(['"', ' ']).next()?;
    match (inner, section.contains(".routes.\"")) {
        (".upstream", _) => Some(UPSTREAM),
        (".upstream.health", _) => Some(HEALTH),
        (inner, _) if inner.ends_with(".basic_auth") => Some(BASIC_AUTH),
        (inner, _) if inner.ends_with(".forward_auth") => Some(FORWARD_AUTH),
        (inner, _) if inner.starts_with(".routes[") => Some(ROUTE),
        ("", true) => Some(ROUTE),
        ("", false) if section.starts_with("sites.\"") => Some(SITE),
        _ => None,
    }
}

/// What the names of sites are.
const SITES_DOC: &str = "One table per host name or address. `*.example.org` is every name one label below, `*` every name that no \
    other site has, and TLS without a name (SNI). `*` has no certificate by ACME: it is plain HTTP (`tls = \"off\"`), or has a \
    certificate of its own, in files or `internal` (for clients that do not verify the name). With a port, as \
    `example.org:8448`, a site answers on that port of `listen` only, and before one of the same name without; a name has \
    one certificate.";

/// The JSON Schema (draft 2020-12) of the file, for editors.
#[must_use]
pub fn schema() -> Value {
    let mut properties = Map::new();
    for table in TABLES {
        let mut value = object(table.keys);
        value["description"] = json!(table.doc);
        properties.insert(table.name.to_owned(), value);
    }
    let sites = json!({
        "type": "object",
        "propertyNames": strict::host_names(),
        "additionalProperties": object(SITE),
        "description": SITES_DOC,
    });
    properties.insert("sites".to_owned(), sites);
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_URL,
        "title": "vestibule.toml",
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    });
    strict::accept_variables(&mut schema);
    schema
}

/// Where editors find the schema of this version; `repository` in Cargo.toml is the one place to change it.
pub const SCHEMA_URL: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/raw/branch/main/config/vestibule.schema.json");

/// What holds for all values.
const PREFACE: &str = "\
Before the file is parsed, `${NAME}` and `${NAME:-default}` are replaced from the environment; `${NAME:?text}` is an error with
that text if NAME is unset or empty, and `$$` is a dollar sign. Sizes are `\"512B\"`, `\"16KiB\"`, `\"64MiB\"`, `\"1GiB\"` or
`\"off\"`; durations are `\"250ms\"`, `\"30s\"`, `\"5m\"`, `\"24h\"` or `\"off\"`. `off` removes a limit, and is an error where there must be
one. Networks are `\"10.0.0.0/8\"` or a single address. Paths of files are relative to the directory of the configuration file.
";

/// The reference of all keys as Markdown tables.
#[must_use]
pub fn markdown() -> String {
    let mut out = format!("{PREFACE}\n");
    let mut table = |name: &str, doc: &str, keys: &[Key]| {
        let rows = keys.iter().fold(String::new(), |mut rows, key| {
            let default = key.default.replace('|', "\\|");
            writeln!(rows, "| `{}` | {default} | {}{} |", key.name, key.doc, allowed(key.shape))
                .expect("a String takes everything");
            rows
        });
        write!(out, "### {name}\n\n{doc}\n\n| key | default | meaning |\n|---|---|---|\n{rows}\n")
            .expect("a String takes everything");
    };
    for section in TABLES {
        table(&format!("`[{}]`", section.name), section.doc, section.keys);
    }
    table("`[sites.\"HOST\"]`", SITES_DOC, SITE);
    table("`[sites.\"HOST\".routes]`", "`\"/path\" = { … }`, or in a list, each with its `path`.", ROUTE);
    table("upstream as a table", "`upstream = { servers = [\"…\"], … }`", UPSTREAM);
    table("basic_auth as a table", "`basic_auth = { users = { alice = \"$2y$…\" }, … }`", BASIC_AUTH);
    table("forward_auth as a table", "`forward_auth = { url = \"http://…\", … }`", FORWARD_AUTH);
    table("health as a table", "`health = { path = \"/health\", … }`", HEALTH);
    out + &kinds()
}

/// The allowed values, where there are few.
fn allowed(shape: Shape) -> String {
    match shape {
        Words(words) => {
            let words: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
            format!(" One of {}.", words.join(", "))
        }
        _ => String::new(),
    }
}

/// What each kind of an HTTP site opens and limits.
fn kinds() -> String {
    let mut rows = String::new();
    for kind in [Kind::Synapse, Kind::Homeserver, Kind::LkJwt, Kind::Livekit, Kind::Mas, Kind::Http] {
        let path = |path: &PathMatch| match path {
            PathMatch::Exact(path) => format!("`{path}`"),
            PathMatch::Under(path) => format!("`{}/…`", path.trim_end_matches('/')),
            PathMatch::Any if kind == Kind::Mas => "every other path".to_owned(),
            PathMatch::Any => "every path".to_owned(),
        };
        let open = kind::access(kind, Vec::new()).into_iter().map(|rule| match rule.verdict {
            Access::PassFrom(_) => format!("{} from `admin_from`", path(&rule.path)),
            Access::Pass | Access::NotFound => path(&rule.path),
        });
        let limits = kind::max_body(kind).into_iter().map(|rule| {
            let size = rule.limit.map_or_else(|| "no limit".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
            match rule.path {
                BodyPath::MatrixMedia => format!("{size} for media"),
                BodyPath::Any => size,
            }
        });
        let (open, limits) = (open.collect::<Vec<_>>().join(", "), limits.collect::<Vec<_>>().join(", "));
        let limits = if limits.is_empty() { "no limit".to_owned() } else { limits };
        writeln!(rows, "| `{}` | {open} | {limits} |", kind.as_str()).expect("a String takes everything");
    }
    format!(
        "### kinds\n\nThe paths that a kind opens, and the largest request body; every other path answers 404.\n\n\
         | kind | open | `max_body` |\n|---|---|---|\n{rows}\n\
         A `lk-jwt` or `livekit` route below a prefix that its service does not know, like `/livekit/jwt`, has `strip_prefix = true`\n\
         by default.\n"
    )
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::{Severity, parse};

    /// Writes a file that has a wrong value for every key of the reference, and one key too many in every table: each
    /// must be found by name, which shows that parser and reference know the same keys.
    #[test]
    fn the_parser_and_the_reference_know_the_same_keys() {
        let wrong = |keys: &[Key]| keys.iter().map(|key| format!("{} = 1979-05-27\n", key.name)).collect::<String>();
        let mut text = String::new();
        let mut expected = 0;
        for table in TABLES {
            write!(text, "[{}]\n{}zzz = 1\n", table.name, wrong(table.keys)).unwrap();
            expected += table.keys.len() + 1;
        }
        write!(text, "[sites.\"a.b\"]\n{}zzz = 1\n", wrong(SITE)).unwrap();
        write!(text, "[sites.\"c.d\".routes.\"/x\"]\n{}zzz = 1\n", wrong(ROUTE)).unwrap();
        write!(text, "[sites.\"e.f\".upstream]\n{}zzz = 1\n", wrong(UPSTREAM)).unwrap();
        write!(text, "[sites.\"g.h\".basic_auth]\n{}zzz = 1\n", wrong(BASIC_AUTH)).unwrap();
        write!(text, "[sites.\"i.j\".forward_auth]\n{}zzz = 1\n", wrong(FORWARD_AUTH)).unwrap();
        expected += SITE.len() + ROUTE.len() + UPSTREAM.len() + BASIC_AUTH.len() + FORWARD_AUTH.len() + 5;
        let report = parse("t", &text, PathBuf::new(), &|_| None).unwrap_err();
        let unknown: Vec<_> = report.diagnostics.iter().filter(|d| d.message.contains("unknown key")).collect();
        assert_eq!(unknown.len(), TABLES.len() + 5, "{}", report.render());
        let errors = report.diagnostics.iter().filter(|d| d.severity == Severity::Error);
        let lines: std::collections::BTreeSet<_> = errors.map(|d| report.position(d).0).collect();
        assert!(lines.len() >= expected, "{} of {expected}\n{}", lines.len(), report.render());
    }
}
