//! Sites whose connections are not HTTP: what the file says of them, and what it may not say.

use std::time::Duration;

use toml::de::DeValue;

use super::{
    compile::CONNECT,
    plan::{Balance, StreamKind, TcpServer, TcpUpstream},
    raw::balance,
    tree::{At, Item, Section, one_or_more, parsed, word},
    value,
};

/// The kinds, as they are written.
const KINDS: [StreamKind; 2] = [StreamKind::Turn, StreamKind::Tcp];

/// Keys of a site, and of an upstream's table, that mean something only for HTTP.
const HTTP_SITE: [&str; 11] = [
    "mas",
    "redirect",
    "routes",
    "well_known",
    "compress",
    "max_body",
    "body_stall",
    "hsts",
    "admin_from",
    "basic_auth",
    "forward_auth",
];
const HTTP_UPSTREAM: [&str; 7] =
    ["response_timeout", "health", "host", "ca_file", "server_name", "insecure_skip_verify", "client_certificate"];

/// What the file says of such a site.
pub struct Stream {
    pub kind: At<StreamKind>,
    pub upstream: Option<At<TcpUpstream>>,
    /// Whether there is an upstream that is wrong.
    pub broken: bool,
}

/// The kind of a site, if its connections are not HTTP.
pub fn kind(section: &Section<'_, '_, '_>) -> Option<At<StreamKind>> {
    let item = section.item("kind")?;
    let text = item.get_ref().as_str()?;
    let value = KINDS.into_iter().find(|kind| kind.as_str() == text)?;
    Some(At { value, span: item.span() })
}

/// Reads such a site, all but its `tls`.
pub fn read(section: &Section<'_, '_, '_>, kind: At<StreamKind>) -> Stream {
    refuse(section, &HTTP_SITE, kind.value);
    let item = section.item("upstream");
    let upstream = item.and_then(|item| upstream(section, item, kind.value));
    Stream { broken: item.is_some() && upstream.is_none(), kind, upstream }
}

fn refuse(section: &Section<'_, '_, '_>, keys: &[&'static str], kind: StreamKind) {
    for key in keys {
        if let Some(item) = section.item(key) {
            let message = format!("`{key}` is for HTTP, and a site of kind `{}` has none", kind.as_str());
            section.reader.error_with(item.span(), message, format!("take `{key}` away"));
        }
    }
}

fn upstream(section: &Section<'_, '_, '_>, item: &Item<'_>, kind: StreamKind) -> Option<At<TcpUpstream>> {
    let DeValue::Table(table) = item.get_ref() else {
        let servers = section.reader.parse(item, one_or_more(parsed(value::tcp_server)))?;
        return Some(At { value: of(servers.value), span: servers.span });
    };
    let inner = Section::new(section.reader, section.path("upstream"), table, item.span());
    let servers = inner.get("servers", one_or_more(parsed(value::tcp_server)));
    if inner.item("servers").is_none() {
        let help = "write it like servers = [\"tcp://livekit:5349\"]";
        inner.reader.error_with(item.span(), "an upstream needs `servers`", help);
    }
    refuse(&inner, &HTTP_UPSTREAM, kind);
    let mut upstream = of(servers.map(|servers| servers.value).unwrap_or_default());
    if let Some(limit) = inner.get("connect_timeout", parsed(value::bounded)) {
        upstream.connect_timeout = limit.value;
    }
    if let Some(limit) = inner.get("retry_connect", parsed(value::duration)) {
        upstream.retry_connect = limit.value.unwrap_or_default();
    }
    if let Some(how) = inner.get("balance", balance) {
        upstream.balance = how.value;
    }
    if let Some(sent) = inner.get("proxy_protocol", word(&[("v2", true), ("none", false)])) {
        upstream.proxy_protocol = sent.value;
    }
    inner.finish();
    (!upstream.servers.is_empty()).then(|| At { value: upstream, span: item.span() })
}

/// An upstream with the defaults. A client of a service that is away has a back-off of its own, so a refused dial is not
/// repeated unless the file says so.
fn of(servers: Vec<TcpServer>) -> TcpUpstream {
    TcpUpstream {
        name: servers.first().map(TcpServer::to_string).unwrap_or_default().into(),
        servers,
        connect_timeout: CONNECT,
        retry_connect: Duration::ZERO,
        balance: Balance::LeastRequests,
        proxy_protocol: false,
    }
}
