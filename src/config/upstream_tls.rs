//! The keys of an upstream's table about TLS to its servers, and the `Host` that they get.

use std::{path::PathBuf, sync::Arc};

use super::{
    plan::{KeyPairFiles, Server, UpstreamHost, UpstreamTls},
    raw::key_pair,
    tree::{At, Problem, Section, boolean, parsed, string},
    value,
};

/// The keys, which mean nothing for a server without TLS.
const KEYS: [&str; 4] = ["ca_file", "server_name", "insecure_skip_verify", "client_certificate"];

/// What the file says of TLS.
#[derive(Clone, Default)]
pub struct RawTls {
    pub ca_file: Option<At<PathBuf>>,
    pub client_certificate: Option<At<KeyPairFiles>>,
    server_name: Option<At<String>>,
    insecure_skip_verify: Option<At<bool>>,
}

impl RawTls {
    /// Reads the keys, and notes what they cannot mean for these servers.
    pub fn read(section: &Section<'_, '_, '_>, servers: &[Server]) -> Self {
        let dir = section.reader.source().dir.clone();
        let tls = Self {
            ca_file: section.get("ca_file", |item| string(item).and_then(|text| value::path(&dir, text))),
            server_name: section.get("server_name", parsed(verified_name)),
            insecure_skip_verify: section.get("insecure_skip_verify", boolean),
            client_certificate: section.get("client_certificate", |item| key_pair(item, &dir)),
        };
        if !servers.is_empty() && !servers.iter().any(|server| matches!(server, Server::Https { .. })) {
            for (key, item) in KEYS.iter().filter_map(|key| Some((key, section.item(key)?))) {
                let message = format!("`{key}` is for TLS, and no server of this upstream speaks it");
                let help = "write the server as \"https://host:port\", or leave the key out";
                section.reader.error_with(item.span(), message, help);
            }
        }
        if let (Some(ca_file), Some(At { value: true, .. })) = (&tls.ca_file, &tls.insecure_skip_verify) {
            let message = "with `insecure_skip_verify` nothing is verified, and `ca_file` means nothing";
            section.reader.error_with(ca_file.span.clone(), message, "keep `ca_file` alone");
        }
        tls
    }

    /// The settings, unless they are the usual ones.
    pub fn compile(&self) -> Option<Arc<UpstreamTls>> {
        let skips = self.insecure_skip_verify.as_ref().is_some_and(|skip| skip.value);
        let is_usual =
            self.ca_file.is_none() && self.server_name.is_none() && self.client_certificate.is_none() && !skips;
        (!is_usual).then(|| {
            Arc::new(UpstreamTls {
                ca_file: self.ca_file.as_ref().map(|at| at.value.clone()),
                server_name: self.server_name.as_ref().map(|at| at.value.clone()),
                verify: !skips,
                client_certificate: self.client_certificate.as_ref().map(|at| at.value.clone()),
            })
        })
    }
}

/// The name in a certificate: a host name, or an address.
fn verified_name(text: &str) -> Result<String, Problem> {
    let name = value::site_name(text)?;
    if name.is_wildcard() {
        let help = "write a name that the certificate is for, as \"app.internal\"";
        return Err(Problem::new("a server has one name, and no wildcard").help(help));
    }
    Ok(name.as_str().to_owned())
}

/// `host = …`: a name or an address, with a port where it has one; or `{upstream}`.
pub fn host(text: &str) -> Result<UpstreamHost, Problem> {
    if text == "{upstream}" {
        return Ok(UpstreamHost::OfServer);
    }
    let help =
        "write it like \"app.internal\" or \"app.internal:8443\", or \"{upstream}\" for host and port of the server";
    if text.contains(['/', '{', '}', '@', '?', '#']) {
        return Err(Problem::new(format!("`{text}` is not a host")).help(help));
    }
    // Whatever can stand in the URL of a server can be its host.
    match value::server(&format!("http://{text}"))? {
        Server::Http { .. } => Ok(UpstreamHost::Fixed(text.to_owned())),
        Server::Https { .. } | Server::Unix(_) => Err(Problem::new(format!("`{text}` is not a host")).help(help)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_with_or_without_a_port() {
        for text in ["app.internal", "app:8443", "127.0.0.1", "[::1]:80", "a_b"] {
            assert_eq!(host(text).unwrap(), UpstreamHost::Fixed(text.to_owned()));
        }
        assert_eq!(host("{upstream}").unwrap(), UpstreamHost::OfServer);
        for text in ["", "a b", "https://a", "a/b", "u@a", "a:0", "a:x", "::1", "{host}", "a?b"] {
            assert!(host(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_verified_name_is_one_name_or_address() {
        for (text, name) in [("App.Internal", "app.internal"), ("127.0.0.1", "127.0.0.1"), ("::1", "::1")] {
            assert_eq!(verified_name(text).unwrap(), name);
        }
        for text in ["*.example.org", "a:443", "https://a", ""] {
            assert!(verified_name(text).is_err(), "{text}");
        }
    }
}
