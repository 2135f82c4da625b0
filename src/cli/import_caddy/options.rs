//! The global options, and `tls` of a site.

use super::{
    Remark,
    emit::{list, quote},
    lexer::Token,
    logs,
    model::{Site, TargetConfig},
    order,
    parser::Directive,
    proxy::seconds,
};

const DIRECTORIES: [(&str, &str); 3] = [
    ("https://acme-v02.api.letsencrypt.org/directory", "letsencrypt"),
    ("https://acme-staging-v02.api.letsencrypt.org/directory", "letsencrypt-staging"),
    ("https://acme.zerossl.com/v2/DV90", "zerossl"),
];

/// What `private_ranges` of Caddy stands for.
const PRIVATE: [&str; 6] = ["192.168.0.0/16", "172.16.0.0/12", "10.0.0.0/8", "127.0.0.0/8", "fd00::/8", "::1/128"];

/// The ports that Caddy listens on.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// `http_port`.
    pub http: u16,
    /// `https_port`.
    pub https: u16,
}

fn first(line: &Directive) -> &str {
    line.args.first().map_or("", |token| token.text.as_str())
}

/// Takes the block of global options in.
pub fn read(options: &[Directive], model: &mut TargetConfig, remarks: &mut Vec<Remark>) -> Ports {
    let mut ports = Ports { http: 80, https: 443 };
    for line in options {
        let value = first(line);
        match line.name.as_str() {
            "http_port" => ports.http = value.parse().unwrap_or(80),
            "https_port" => ports.https = value.parse().unwrap_or(443),
            "local_certs" => drop(model.set("tls", "certificates", quote("internal"))),
            "default_bind" => model.bind = line.args.iter().map(|token| token.text.clone()).collect(),
            "debug" => drop(model.set("log", "level", quote("debug"))),
            "grace_period" => {
                if let Some(duration) = seconds(value) {
                    model.set("timeouts", "drain", quote(&duration));
                }
            }
            "servers" => line.block.iter().flatten().for_each(|line| server(line, model, remarks)),
            "cert_issuer" => issuer(&line.args, line, model, None, remarks),
            "auto_https" if value == "disable_redirects" => {
                remarks.push(Remark::note(
                    line.line,
                    "`auto_https disable_redirects`: vestibule always redirects http to https",
                ));
            }
            "log" => logs::read(line, model, remarks),
            "default_sni" | "fallback_sni" => {
                let text = format!(
                    "`{} {value}`: vestibule refuses a client that sends no server name; a site \"*\" with a certificate of its own would serve it",
                    line.name
                );
                remarks.push(Remark::lost(line.line, text));
            }
            "order" if order::is_known(value) => {
                remarks.push(Remark::lost(
                    line.line,
                    format!("`order {value}`: directives are read in Caddy's own order"),
                ));
            }
            // Who has these has them for Caddy's own sake.
            "admin"
            | "storage"
            | "persist_config"
            | "skip_install_trust"
            | "order"
            | "ocsp_stapling"
            | "ocsp_interval"
            | "renew_interval"
            | "storage_clean_interval"
            | "key_type"
            | "metrics"
            | "shutdown_delay"
            | "renewal_window_ratio" => {}
            _ if acme(line, model, remarks) => {}
            other => remarks.push(Remark::lost(line.line, format!("the global option `{other}`"))),
        }
    }
    ports
}

/// What stands in the global options, in `tls` and in `issuer`; whether it was one of these.
fn acme(line: &Directive, model: &mut TargetConfig, remarks: &mut Vec<Remark>) -> bool {
    let value = first(line);
    let agrees = match line.name.as_str() {
        "email" => model.set("acme", "email", quote(value)),
        "acme_ca" | "ca" | "dir" => model.set("acme", "directory", directory(value)),
        "acme_ca_root" | "ca_root" | "trusted_roots" => model.set("acme", "ca_file", quote(value)),
        "acme_eab" | "eab" => {
            let inner = |name: &str| line.block.iter().flatten().find(|line| line.name == name).map(first);
            let second = line.args.get(1).map(|token| token.text.as_str());
            let (kid, key) = (inner("key_id").unwrap_or(value), inner("mac_key").or(second).unwrap_or_default());
            model.set("acme", "eab_kid", quote(kid)) && model.set("acme", "eab_hmac_key", quote(key))
        }
        _ => return false,
    };
    if !agrees {
        let text =
            format!("`{} {value}`: there is only one value for all sites, and an earlier line sets another", line.name);
        remarks.push(Remark::lost(line.line, text));
    }
    true
}

fn directory(url: &str) -> String {
    let known = DIRECTORIES.iter().find(|(known, _)| *known == url);
    quote(known.map_or(url, |(_, name)| name))
}

fn server(line: &Directive, model: &mut TargetConfig, remarks: &mut Vec<Remark>) {
    match line.name.as_str() {
        "trusted_proxies" if first(line) == "static" => {
            model.set("listen", "trusted_proxies", list(&networks(&line.args[1..])));
        }
        "listener_wrappers" => {
            for wrapper in line.block.iter().flatten() {
                let allowed = wrapper.block.iter().flatten().find(|line| line.name == "allow");
                match (wrapper.name.as_str(), allowed) {
                    ("tls", _) => {}
                    ("proxy_protocol", Some(allowed)) => {
                        model.set("listen", "proxy_protocol", list(&networks(&allowed.args)));
                    }
                    (other, _) => remarks.push(Remark::lost(wrapper.line, format!("the listener wrapper `{other}`"))),
                }
            }
        }
        "protocols"
        | "timeouts"
        | "max_header_size"
        | "log_credentials"
        | "metrics"
        | "name"
        | "keepalive_interval"
        | "trusted_proxies_strict"
        | "strict_sni_host"
        | "enable_full_duplex"
        | "trace" => {
            remarks.push(Remark::note(
                line.line,
                format!("`{}` has no equivalent: vestibule uses a fixed value", line.name),
            ));
        }
        other => remarks.push(Remark::lost(line.line, format!("`{other}` of `servers`"))),
    }
}

/// Networks, with `private_ranges` spelled out.
pub fn networks(args: &[Token]) -> Vec<String> {
    let mut all = Vec::new();
    for token in args {
        if token.text == "private_ranges" {
            all.extend(PRIVATE.map(str::to_owned));
        } else {
            all.push(token.text.clone());
        }
    }
    all
}

/// `tls` of a site.
pub fn tls(line: &Directive, site: &mut Site, model: &mut TargetConfig, remarks: &mut Vec<Remark>) {
    match line.args.as_slice() {
        [] => {}
        [one] if one.text == "internal" => site.tls = Some(quote("internal")),
        [one] if one.text == "force_automate" => {}
        [one] if one.text.contains('@') => {
            let line = Directive { name: "email".into(), ..line.clone() };
            acme(&line, model, remarks);
        }
        [cert, key] => site.tls = Some(format!("{{ cert = {}, key = {} }}", quote(&cert.text), quote(&key.text))),
        _ => remarks.push(Remark::lost(line.line, format!("`tls {}`", first(line)))),
    }
    for line in line.block.iter().flatten() {
        match line.name.as_str() {
            "protocols" if first(line) == "tls1.3" => drop(model.set("tls", "min_version", quote("1.3"))),
            "protocols"
            | "ciphers"
            | "curves"
            | "alpn"
            | "key_type"
            | "reuse_private_keys"
            | "insecure_secrets_log"
            | "renewal_window_ratio" => {
                remarks.push(Remark::note(
                    line.line,
                    format!("`{}` has no equivalent: vestibule uses a fixed value", line.name),
                ));
            }
            "issuer" => issuer(&line.args, line, model, Some(&mut *site), remarks),
            _ if acme(line, model, remarks) => {}
            "dns"
            | "dns_challenge_override_domain"
            | "resolvers"
            | "propagation_delay"
            | "propagation_timeout"
            | "dns_ttl" => {
                let text = format!(
                    "`{}`: vestibule uses the challenges HTTP-01 and TLS-ALPN-01, which need port 80 or 443; if the CA cannot \
                     reach them, set acme.dns",
                    line.name
                );
                remarks.push(Remark::note(line.line, text));
            }
            other => remarks.push(Remark::lost(line.line, format!("`{other}` of `tls`"))),
        }
    }
}

fn issuer(
    args: &[Token],
    line: &Directive,
    model: &mut TargetConfig,
    site: Option<&mut Site>,
    remarks: &mut Vec<Remark>,
) {
    match (args.first().map_or("", |token| token.text.as_str()), site) {
        ("internal", Some(site)) => site.tls = Some(quote("internal")),
        ("internal", None) => drop(model.set("tls", "certificates", quote("internal"))),
        ("acme", _) => {
            if let Some(url) = args.get(1) {
                model.set("acme", "directory", directory(&url.text));
            }
            for line in line.block.iter().flatten() {
                if !acme(line, model, remarks) {
                    remarks.push(Remark::lost(line.line, format!("`{}` of the issuer `acme`", line.name)));
                }
            }
        }
        ("zerossl", _) => {
            remarks.push(Remark::lost(
                line.line,
                "the issuer `zerossl` with an API key: set acme.eab_kid and acme.eab_hmac_key",
            ));
        }
        (other, _) => remarks.push(Remark::lost(line.line, format!("the issuer `{other}`"))),
    }
}
