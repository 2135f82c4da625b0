//! Every key of the file, described once for its users: the source of the JSON Schema and of the reference pages.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

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
    Transports,
    Free,
    Upstream,
    Tls,
    Respond,
    Health,
    Routes,
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
    Certificates, Count, Directory, Free, Health, OneOrMore, Respond, Routes, Size, Span, Switch, Text, TextList, Tls,
    Transports, Upstream, Words,
};

const KINDS: Shape = Words(&["synapse", "lk-jwt", "livekit", "http"]);
const SITE_KINDS: Shape = Words(&["synapse", "lk-jwt", "livekit", "http", "turn", "tcp"]);

const TABLES: &[Table] = &[
    Table {
        name: "listen",
        doc: "The addresses, and what is believed of those who connect.",
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
            key("public_port", Count, "443", "The https port that clients see, for redirects and derived URLs."),
            key(
                "proxy_protocol",
                TextList,
                "[]",
                "Networks of load balancers that speak PROXY protocol v1 or v2 to us; from them it is required, from others it is refused.",
            ),
            key("trusted_proxies", TextList, "[]", "Networks whose `X-Forwarded-For` is believed, right to left."),
        ],
    },
    Table {
        name: "acme",
        doc: "How certificates are ordered.",
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
                "The kinds that may be used, in this order: `tls-alpn-01`, `http-01`, `dns-01`, `dns-persist-01`. With `acme.dns`, `dns-01` is the last of the default.",
            ),
            key(
                "dns",
                Free,
                "none",
                "Sets the records of DNS-01: `{ command = [\"/path\"], timeout = \"60s\" }` is called with `present` or `cleanup`, the name and the value; `{ provider = \"rfc2136\", server = \"192.0.2.1\", zone = \"example.org\", key_name = \"acme\", key_secret = \"${TSIG}\", key_algorithm = \"hmac-sha256\" }` sends dynamic updates (`key_secret_file` names a file). `nameservers = [\"192.0.2.1\"]` are asked for the record before the CA is told, in place of those that DNS names; `propagation_timeout = \"120s\"` bounds the wait.",
            ),
            key(
                "profile",
                Text,
                "none",
                "A profile that the CA offers, such as `shortlived`; for directories that are written as strings, as are the next three.",
            ),
            key("eab_kid", Text, "none", "Key identifier of an external account binding."),
            key("eab_hmac_key", Text, "none", "MAC key of an external account binding, base64url."),
            key("ca_file", Text, "none", "PEM roots to trust for the directory itself (a private CA)."),
        ],
    },
    Table {
        name: "storage",
        doc: "What must survive a restart.",
        keys: &[key(
            "path",
            Text,
            "\"/var/lib/vestibule\"",
            "Folder of certificates, the ACME account and the internal CA. Takes effect at the next start.",
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
                "`internal` signs with a local CA in the storage; `vestibule ca` prints its root. `{ cert = \"a.pem\", key = \"b.pem\" }`, or a list of such pairs, serves each site with the pair that is for its name; only sites with `tls = \"acme\"` then order.",
            ),
            key("min_version", Words(&["1.2", "1.3"]), "\"1.2\"", "Oldest version offered."),
        ],
    },
    Table {
        name: "matrix",
        doc: "The Matrix deployment. What is left out is derived from the sites.",
        keys: &[
            key(
                "server_name",
                Text,
                "none",
                "The name after the colon in user ids; its site serves the well-known documents.",
            ),
            key("homeserver", Text, "`https://` and the one `synapse` site", "`m.homeserver.base_url`."),
            key(
                "rtc_service",
                Transports,
                "the one `lk-jwt` and the one `livekit` site or route",
                "URL of the MatrixRTC authorisation service; or `{ url = \"wss://…\", livekit_service_url = \"https://…\" }`, at least one of them, where `url` is the SFU's `LIVEKIT_URL` to the letter; or a list of these in order of preference.",
            ),
            key("federation", Text, "the homeserver's host with its port", "`m.server`; always written with a port."),
            key("well_known_max_age", Span, "\"1h\"", "`Cache-Control: public, max-age` of the documents."),
            key(
                "rtc_transports",
                Words(&["fill", "pass"]),
                "\"fill\"",
                "Whether the MSC4143 transports endpoint is answered where Synapse has nothing to say, or only passed. The answer has the SFU's `url` where the homeserver hands out call tokens (MSC4195), which it is asked at start, after a reload and every five minutes.",
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
        doc: "Compression of answers, on routes that allow it.",
        keys: &[
            key(
                "encodings",
                TextList,
                "[\"zstd\", \"br\", \"gzip\"]",
                "In order of preference on a tie; `[]` turns compression off.",
            ),
            key("min_size", Size, "\"512B\"", "Bodies with a known length below this are left alone."),
        ],
    },
    Table {
        name: "limits",
        doc: "Bounds on what a client may send.",
        keys: &[
            key("header_bytes", Size, "\"32KiB\"", "All fields of a request head together; over it, 431."),
            key("header_count", Count, "128", "Number of fields of a request head, at most 512; over it, 431."),
            key(
                "request_target",
                Size,
                "\"64KiB\"",
                "The request target; over it, 414. LiveKit's can be that long; towards Synapse 16 KiB hold for the whole head.",
            ),
            key("connections", Count, "from the file limit", "Connections in all, with room left for upstreams."),
            key("connections_per_ip", Count, "no bound", "Connections per address; IPv6 counts by /64."),
            key("streams_per_connection", Count, "256", "Requests in flight on one HTTP/2 connection."),
        ],
    },
    Table {
        name: "timeouts",
        doc: "Bounds on silence; none of them limits how long something takes that goes on.",
        keys: &[
            key("handshake", Span, "\"10s\"", "From accept to the end of the TLS handshake."),
            key("header", Span, "\"15s\"", "From the first byte of a request head to its last; then 408."),
            key("keep_alive", Span, "\"5m\"", "A connection without a request."),
            key("body_stall", Span, "\"60s\"", "A body, in either direction, of which no byte moves."),
            key(
                "tunnel_idle",
                Span,
                "\"2h\"",
                "A WebSocket, or a connection of a `turn` or `tcp` site, in which no byte moves.",
            ),
            key(
                "drain",
                Span,
                "\"8s\"",
                "How long uploads and answers in flight are waited for after SIGTERM, while everything is served on; the end takes half a second more, and `docker stop` kills after 10 s.",
            ),
        ],
    },
    Table {
        name: "log",
        doc: "What is logged, to standard error.",
        keys: &[
            key("level", Text, "\"info\"", "A filter as `RUST_LOG` has it; `RUST_LOG` wins."),
            key(
                "format",
                Words(&["text", "json"]),
                "text on a terminal, else json",
                "The form of a line. Takes effect at the next start.",
            ),
            key("access", Switch, "true", "One event per exchange."),
            key(
                "client_ip",
                Words(&["full", "masked", "none"]),
                "\"full\"",
                "How much of a client's address is written; `masked` is its /24 or /48.",
            ),
        ],
    },
    Table {
        name: "admin",
        doc: "The door for the operator.",
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
                "Lets `admin.listen` be an address that others can reach; there is no password. For a scraper on another host use `metrics`.",
            ),
            key(
                "hosts",
                TextList,
                "[]",
                "Names that a request may give as its `Host`, besides addresses and localhost: for instance the name of the container, by which Prometheus scrapes. Any other is refused, so that no web page can reach the admin server by way of a browser.",
            ),
            key(
                "metrics",
                Text,
                "none",
                "A further address, which others may reach, that serves `/metrics` and `/health` and nothing else: \"0.0.0.0:9100\".",
            ),
        ],
    },
];

const SITE: &[Key] = &[
    key(
        "kind",
        SITE_KINDS,
        "\"http\"",
        "A preset of open paths, limits and manners. Connections of a `turn` or `tcp` site are not HTTP: the name in the TLS handshake leads them to the upstream, and every key that is for HTTP is an error.",
    ),
    key(
        "upstream",
        Upstream,
        "none",
        "`http://…`, `https://…`, `unix:/path`, a list of them, or a table. On a `turn` or `tcp` site, `tcp://host:port`.",
    ),
    key("redirect", Text, "none", "308 to this origin, path and query kept. On a `synapse` site, where `/` is sent."),
    key("routes", Routes, "none", "Path prefix = route. Whole segments match, the longest wins."),
    key(
        "well_known",
        Switch,
        "true for `server_name` and `synapse` sites",
        "Whether the well-known documents are served here.",
    ),
    key(
        "tls",
        Tls,
        "`tls.certificates`",
        "`acme`, `internal`, `wildcard` (the certificate of the site `*.` above it), `off` (plain HTTP only), `passthrough` (on a `tcp` site: the upstream ends TLS and has the certificate), or `{ cert = \"a.pem\", key = \"b.pem\" }`, watched, the last good pair kept.",
    ),
    key("compress", Switch, "true", "Whether answers may be compressed."),
    key("max_body", Size, "by kind", "Largest request body; over it, 413."),
    key("hsts", Switch, "false", "Whether `Strict-Transport-Security` is sent (a year, this host)."),
    key("admin_from", TextList, "[]", "Networks that may reach `/_synapse/admin/` on a `synapse` site."),
];

const ROUTE: &[Key] = &[
    key("kind", KINDS, "\"http\"", "As of a site."),
    key("upstream", Upstream, "none", "As of a site."),
    key("strip_prefix", Switch, "false", "Whether the prefix is taken off the path before it goes upstream."),
    key("redirect", Text, "none", "308 to this origin, path and query kept."),
    key("respond", Respond, "none", "A fixed answer: a text, or `{ status, content_type, body }`."),
    key("max_body", Size, "by kind", "As of a site."),
    key("compress", Switch, "true", "As of a site."),
];

const UPSTREAM: &[Key] = &[
    key("servers", OneOrMore, "required", "The addresses."),
    key("connect_timeout", Span, "\"5s\"", "Bound on one dial."),
    key("response_timeout", Span, "\"300s\"", "Bound on the wait for a response head."),
    key(
        "retry_connect",
        Span,
        "\"5s\"",
        "How long refused dials are tried again before the client hears of it. On a `turn` or `tcp` site `off`.",
    ),
    key("balance", Words(&["least-requests", "round-robin"]), "\"least-requests\"", "How a server is picked."),
    key("health", Health, "none", "Active probes: `{ path = \"/health\", interval = \"10s\" }`."),
    key(
        "proxy_protocol",
        Words(&["none", "v2"]),
        "none",
        "On a `turn` or `tcp` site: `v2` sends a PROXY protocol header with the client's address before its bytes.",
    ),
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
        Upstream => json!({ "anyOf": [{ "type": "string" }, text_list, object(UPSTREAM)] }),
        Directory => {
            let text = json!({ "type": "string" });
            let keys = json!({ "url": text, "profile": text, "eab_kid": text, "eab_hmac_key": text, "ca_file": text });
            let table =
                json!({ "type": "object", "properties": keys, "required": ["url"], "additionalProperties": false });
            let one = json!({ "anyOf": [text, table] });
            json!({ "anyOf": [text, table, { "type": "array", "items": one }] })
        }
        Certificates => {
            let files = shape(Tls)["anyOf"][1].clone();
            json!({ "anyOf": [{ "enum": ["acme", "internal"] }, files, { "type": "array", "items": files }] })
        }
        Tls => {
            let files = json!({ "cert": { "type": "string" }, "key": { "type": "string" } });
            let files = json!({ "type": "object", "properties": files, "required": ["cert", "key"], "additionalProperties": false });
            json!({ "anyOf": [{ "enum": ["acme", "internal", "wildcard", "off", "passthrough"] }, files] })
        }
        Respond => {
            let parts = json!({ "status": { "type": "integer" }, "content_type": { "type": "string" }, "body": { "type": "string" } });
            json!({ "anyOf": [{ "type": "string" }, { "type": "object", "properties": parts, "additionalProperties": false }] })
        }
        Health => {
            let parts = json!({ "path": { "type": "string" }, "interval": shape(Span) });
            json!({ "type": "object", "properties": parts, "required": ["path"], "additionalProperties": false })
        }
        Routes => json!({ "type": "object", "additionalProperties": object(ROUTE) }),
    }
}

fn object(keys: &[Key]) -> Value {
    let property = |key: &Key| {
        let mut value = shape(key.shape);
        value["description"] = json!(format!("{} Default: {}.", key.doc, key.default));
        (key.name.to_owned(), value)
    };
    let properties: Map<String, Value> = keys.iter().map(property).collect();
    json!({ "type": "object", "properties": properties, "additionalProperties": false })
}

/// The JSON Schema (draft 2020-12) of the file, for editors.
#[must_use]
pub fn schema() -> Value {
    let mut properties = Map::new();
    for table in TABLES {
        let mut value = object(table.keys);
        value["description"] = json!(table.doc);
        properties.insert(table.name.to_owned(), value);
    }
    let sites =
        json!({ "type": "object", "additionalProperties": object(SITE), "description": "One table per host name." });
    properties.insert("sites".to_owned(), sites);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "vestibule.toml",
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    })
}

/// The reference of all keys as Markdown tables.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::new();
    let mut table = |name: &str, doc: &str, keys: &[Key]| {
        let rows = keys.iter().fold(String::new(), |mut rows, key| {
            let default = key.default.replace('|', "\\|");
            writeln!(rows, "| `{}` | {default} | {} |", key.name, key.doc).expect("a String takes everything");
            rows
        });
        write!(out, "### {name}\n\n{doc}\n\n| key | default | meaning |\n|---|---|---|\n{rows}\n")
            .expect("a String takes everything");
    };
    for section in TABLES {
        table(&format!("`[{}]`", section.name), section.doc, section.keys);
    }
    table("`[sites.\"HOST\"]`", "One table per host name.", SITE);
    table("`[sites.\"HOST\".routes]`", "`\"/prefix\" = { … }`", ROUTE);
    table("upstream as a table", "`upstream = { servers = [\"…\"], … }`", UPSTREAM);
    out
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
        expected += SITE.len() + ROUTE.len() + UPSTREAM.len() + 3;
        let report = parse("t", &text, PathBuf::new(), &|_| None).unwrap_err();
        let unknown: Vec<_> = report.diagnostics.iter().filter(|d| d.message.contains("unknown key")).collect();
        assert_eq!(unknown.len(), TABLES.len() + 3, "{}", report.render());
        let errors = report.diagnostics.iter().filter(|d| d.severity == Severity::Error);
        let lines: std::collections::BTreeSet<_> = errors.map(|d| report.position(d).0).collect();
        assert!(lines.len() >= expected, "{} of {expected}\n{}", lines.len(), report.render());
    }
}
