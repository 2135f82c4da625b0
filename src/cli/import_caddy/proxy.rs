//! `reverse_proxy`: its servers and subdirectives.

use super::{
    Remark,
    emit::quote,
    fields,
    lexer::{ENV, Token},
    model::Upstream,
    parser::Directive,
    transport,
};

/// The paths of lk-jwt-service.
pub const JWT_PATHS: [&str; 5] = ["/sfu/get", "/get_token", "/delegate_delayed_leave", "/sfu_webhook", "/healthz"];

/// No service has more servers in one line.
const MAX_SERVERS: u16 = 64;

/// Reads a directive whose matcher has been taken off.
pub fn read(directive: &Directive, args: &[Token], remarks: &mut Vec<Remark>) -> Option<Upstream> {
    let mut proxy = Proxy { upstream: Upstream::default(), tls: false, says_host: false, remarks };
    let mut servers: Vec<_> = args.to_vec();
    for line in directive.block.iter().flatten() {
        if line.name == "to" {
            servers.extend(line.args.iter().cloned());
        } else {
            proxy.subdirective(line, servers.len());
        }
    }
    let mut all = Vec::new();
    for server in &servers {
        match addresses(&server.text, proxy.tls) {
            Some(addresses) if proxy.tls && addresses.iter().any(|address| address.starts_with("unix:")) => {
                let text = format!("the upstream `{}`: TLS over a unix socket is not supported", server.text);
                proxy.remarks.push(Remark::lost(server.line, text));
            }
            Some(addresses) => all.extend(addresses),
            None => proxy.remarks.push(Remark::lost(server.line, format!("the upstream `{}`", server.text))),
        }
    }
    if servers.is_empty() {
        proxy.remarks.push(Remark::lost(directive.line, "a `reverse_proxy` without an upstream"));
    }
    let says_host = proxy.says_host;
    let mut upstream = proxy.upstream;
    if !upstream.health.is_empty() && !upstream.health.iter().any(|(key, _)| *key == "path") {
        upstream.health.clear();
    }
    if upstream.keys.iter().any(|(key, _)| *key == "insecure_skip_verify") {
        // Where nothing is verified, it is not verified against these either.
        upstream.keys.retain(|(key, _)| *key != "ca_file");
    }
    upstream.servers = all;
    if !says_host {
        transport::default_host(&mut upstream);
    }
    (!upstream.servers.is_empty()).then_some(upstream)
}

struct Proxy<'r> {
    upstream: Upstream,
    tls: bool,
    /// Whether a line says which `Host` it gets.
    says_host: bool,
    remarks: &'r mut Vec<Remark>,
}

impl Proxy<'_> {
    fn subdirective(&mut self, line: &Directive, servers: usize) {
        let first = line.args.first().map_or("", |token| token.text.as_str());
        match line.name.as_str() {
            "health_uri" | "health_path" if first.starts_with('/') => self.upstream.health.push(("path", quote(first))),
            "health_interval" => {
                if let Some(interval) = seconds(first) {
                    self.upstream.health.push(("interval", quote(&interval)));
                }
            }
            "lb_try_duration" => self.key("retry_connect", line, first),
            "lb_policy" => match first {
                "round_robin" => self.upstream.set("balance", quote("round-robin")),
                "random" | "random_choose" | "least_conn" => {}
                _ if servers < 2 => {}
                other => self.lost(line, format!("`lb_policy {other}`: the server with the fewest requests is chosen")),
            },
            "header_up" | "header_down" => {
                let values: Vec<_> = line.args.iter().skip(1).map(|token| token.text.clone()).collect();
                let name = first.trim_end_matches(':');
                self.says_host |= line.name == "header_up" && name.eq_ignore_ascii_case("host");
                if line.name == "header_up"
                    && name.eq_ignore_ascii_case("host")
                    && let Some(host) = transport::host(&values)
                {
                    self.upstream.set("host", host);
                } else if line.name == "header_up" {
                    self.upstream.request_fields.extend(fields::request_edit(line.line, name, &values, self.remarks));
                } else {
                    self.upstream.response_fields.extend(fields::response_edit(line.line, name, &values, self.remarks));
                }
            }
            "transport" if first == "http" => {
                for line in line.block.iter().flatten() {
                    self.tls |= transport::read(line, &mut self.upstream, self.remarks);
                }
            }
            // It is always so.
            "flush_interval" | "request_buffers" | "response_buffers" | "stream_buffer_size" => {}
            "lb_retries"
            | "lb_try_interval"
            | "lb_retry_match"
            | "fail_duration"
            | "max_fails"
            | "unhealthy_status"
            | "unhealthy_latency"
            | "unhealthy_request_count"
            | "health_port"
            | "health_timeout"
            | "health_status"
            | "health_body"
            | "health_headers"
            | "health_passes"
            | "health_fails"
            | "health_method"
            | "health_follow_redirects"
            | "health_interval_jitter"
            | "stream_timeout"
            | "stream_close_delay" => {
                self.remarks.push(Remark::note(
                    line.line,
                    format!("`{}` has no equivalent: vestibule uses a fixed value", line.name),
                ));
            }
            "trusted_proxies" => {
                self.lost(line, "`trusted_proxies` of one upstream: use listen.trusted_proxies".into());
            }
            other => self.lost(line, format!("`{other}` of `reverse_proxy`")),
        }
    }

    fn key(&mut self, key: &'static str, line: &Directive, text: &str) {
        match seconds(text) {
            Some(duration) => self.upstream.set(key, quote(&duration)),
            None => self.lost(line, format!("`{} {text}`", line.name)),
        }
    }

    fn lost(&mut self, line: &Directive, text: String) {
        self.remarks.push(Remark::lost(line.line, text));
    }
}

/// A duration of Go as one of ours: whole seconds or milliseconds.
pub fn seconds(text: &str) -> Option<String> {
    let mut millis = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let factor = match &after[..unit] {
            "ns" => 1e-6,
            "us" | "µs" => 1e-3,
            "ms" => 1.0,
            "s" => 1e3,
            "m" => 60e3,
            "h" => 3600e3,
            "d" => 86_400e3,
            _ => return None,
        };
        millis += number.parse::<f64>().ok()? * factor;
        rest = &after[unit..];
    }
    // A year is the most that our durations take.
    let fits = (1.0..=366.0 * 86_400e3).contains(&millis);
    match millis % 1000.0 {
        _ if !fits => None,
        0.0 => Some(format!("{:.0}s", millis / 1000.0)),
        _ => Some(format!("{millis:.0}ms")),
    }
}

/// The servers that one word stands for, as we write them.
pub fn addresses(text: &str, tls: bool) -> Option<Vec<String>> {
    let text = text.strip_prefix("tcp/").unwrap_or(text);
    if let Some(path) = text.strip_prefix("unix/").or_else(|| text.strip_prefix("unix+h2c/")) {
        return path.starts_with('/').then(|| vec![format!("unix:{path}")]);
    }
    let (scheme, authority) = match text.split_once("://") {
        Some((scheme @ ("http" | "https"), authority)) => (if tls { "https" } else { scheme }, authority),
        Some(("h2c", authority)) => ("http", authority),
        Some(_) => return None,
        None => (if tls { "https" } else { "http" }, text),
    };
    let authority = authority.trim_end_matches('/');
    if authority.is_empty() || authority.contains(['{', '/', '@', ' ', '+', '#', '?', '"', '\\']) {
        return None;
    }
    let authority = if authority.starts_with(':') { format!("localhost{authority}") } else { authority.to_owned() };
    if authority.contains(ENV) {
        return Some(vec![format!("{scheme}://{authority}")]);
    }
    let range = authority.rsplit_once(':').and_then(|(host, ports)| Some((host, ports.split_once('-')?)));
    let Some((host, (from, to))) = range else {
        let url = format!("{scheme}://{authority}");
        return url.parse::<http::Uri>().is_ok_and(|uri| uri.host().is_some()).then(|| vec![url]);
    };
    let (from, to): (u16, u16) = (from.parse().ok()?, to.parse().ok()?);
    (from <= to && to - from < MAX_SERVERS)
        .then(|| (from..=to).map(|port| format!("{scheme}://{host}:{port}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        for (text, expected) in [
            ("5s", Some("5s")),
            ("1m30s", Some("90s")),
            ("1.5s", Some("1500ms")),
            ("250ms", Some("250ms")),
            ("0", None),
            ("", None),
            ("5", None),
            ("9999999h", None),
        ] {
            assert_eq!(seconds(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn servers_are_spelled_out() {
        let all = |text: &str| addresses(text, false).map(|all| all.join(" "));
        assert_eq!(all("synapse:8008").as_deref(), Some("http://synapse:8008"));
        assert_eq!(all(":9000").as_deref(), Some("http://localhost:9000"));
        assert_eq!(all("https://[::1]:1/").as_deref(), Some("https://[::1]:1"));
        assert_eq!(all("app:81-82").as_deref(), Some("http://app:81 http://app:82"));
        assert_eq!(all("unix//run/s.sock").as_deref(), Some("unix:/run/s.sock"));
        for not in ["{upstream}", "srv+http://a", "app:1-60000", "http://a/path", ""] {
            assert_eq!(all(not), None, "{not}");
        }
    }
}
