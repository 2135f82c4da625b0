//! `transport http` of `reverse_proxy`: time limits, and TLS to the servers.

use super::{Remark, emit::quote, lexer::ENV, model::Upstream, parser::Directive, proxy::seconds};
use crate::config;

/// Reads one line of its block. Whether it makes the transport speak TLS.
pub fn read(line: &Directive, upstream: &mut Upstream, remarks: &mut Vec<Remark>) -> bool {
    let words: Vec<&str> = line.args.iter().map(|token| token.text.as_str()).collect();
    let first = words.first().copied().unwrap_or_default();
    let mut lost = |text: String| remarks.push(Remark::lost(line.line, text));
    match (line.name.as_str(), words.as_slice()) {
        ("tls", _) => {}
        ("tls_insecure_skip_verify", _) => upstream.set("insecure_skip_verify", "true".into()),
        // It is so without being said.
        ("tls_server_name", ["{http.reverse_proxy.upstream.host}"]) => {}
        ("tls_server_name", [name]) if is_name(name) => upstream.set("server_name", quote(name)),
        ("tls_server_name", _) => {
            lost(format!("`tls_server_name {first}`: certificates must be for the host of the server"));
        }
        ("tls_trusted_ca_certs", files) => roots(files, upstream, &mut lost),
        ("tls_trust_pool", ["file", files @ ..]) => {
            let below = line.block.iter().flatten().filter(|inner| inner.name == "pem_file");
            let below = below.flat_map(|inner| &inner.args).map(|token| token.text.as_str());
            roots(&files.iter().copied().chain(below).collect::<Vec<_>>(), upstream, &mut lost);
        }
        ("tls_trust_pool", _) => lost(format!(
            "`tls_trust_pool {first}`: the system's roots are used; write the roots to a file, and set ca_file to it"
        )),
        ("tls_client_auth", [cert, key]) => {
            upstream.set("client_certificate", format!("{{ cert = {}, key = {} }}", quote(cert), quote(key)));
        }
        ("tls_client_auth", _) => lost(
            "`tls_client_auth` with a name: only files are supported, and the upstream gets no client certificate"
                .into(),
        ),
        ("dial_timeout" | "response_header_timeout", _) => {
            let key = if line.name == "dial_timeout" { "connect_timeout" } else { "response_timeout" };
            match seconds(first) {
                Some(duration) => upstream.set(key, quote(&duration)),
                None => lost(format!("`{} {first}`", line.name)),
            }
        }
        (
            "keepalive"
            | "keepalive_interval"
            | "keepalive_idle_conns"
            | "keepalive_idle_conns_per_host"
            | "compression"
            | "read_buffer"
            | "write_buffer"
            | "max_conns_per_host"
            | "max_response_header"
            | "read_timeout"
            | "write_timeout"
            | "dial_fallback_delay"
            | "expect_continue_timeout"
            | "versions"
            | "resolvers"
            | "tls_timeout",
            _,
        ) => {
            let text = format!("`{}` has no equivalent: vestibule uses a fixed value", line.name);
            remarks.push(Remark::note(line.line, text));
        }
        (other, _) => lost(format!("`{other}` of `transport http`")),
    }
    line.name.starts_with("tls")
}

fn roots(files: &[&str], upstream: &mut Upstream, lost: &mut impl FnMut(String)) {
    match files {
        [file] if !file.contains('{') => upstream.set("ca_file", quote(file)),
        _ => lost(format!(
            "the roots in `{}`: the system's are used; put all of them into one file, and set ca_file to it",
            files.join(" ")
        )),
    }
}

fn is_name(text: &str) -> bool {
    text.contains(ENV) || config::site_name(text).is_ok_and(|name| !name.is_wildcard())
}

/// Sets the `Host` of an upstream whose lines do not: Caddy (2.11) says the server's to one that speaks TLS.
pub fn default_host(upstream: &mut Upstream) {
    if upstream.servers.iter().any(|server| server.starts_with("https://")) {
        upstream.set("host", quote("{upstream}"));
    }
}

/// The `host` of an upstream that gets this `Host`, where our file has it.
pub fn host(values: &[String]) -> Option<String> {
    match values {
        [own] if own == "{upstream_hostport}" || own == "{http.reverse_proxy.upstream.hostport}" => {
            Some(quote("{upstream}"))
        }
        [host] if host.contains(ENV) || (!host.contains('{') && config::is_upstream_host(host)) => Some(quote(host)),
        _ => None,
    }
}
