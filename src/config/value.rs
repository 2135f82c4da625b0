//! Parsers for the small languages inside strings: sizes, durations, names, networks, addresses, URLs.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use http::Uri;
use ipnet::IpNet;

use super::{
    diagnostic::closest,
    plan::{CATCH_ALL, Hostname, Server, TcpServer},
    punycode,
    tree::{Problem, visible},
};

/// `"64MiB"`, `"16KiB"`, `"512B"` or `"off"`.
pub fn size(text: &str) -> Result<Option<u64>, Problem> {
    const UNITS: [(&str, u64); 8] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
        ("", 1),
    ];
    if text == "off" {
        return Ok(None);
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = UNITS.iter().find(|(name, _)| *name == unit.trim()).filter(|(name, _)| !name.is_empty());
    let value = number.parse::<u64>().ok().zip(unit).and_then(|(n, (_, unit))| n.checked_mul(*unit));
    value.map(Some).ok_or_else(|| {
        Problem::new(format!("`{text}` is not a size")).help("write it like \"64MiB\", \"512B\" or \"off\"")
    })
}

/// `"30s"`, `"5m"`, `"24h"`, `"250ms"` or `"off"`.
pub fn duration(text: &str) -> Result<Option<Duration>, Problem> {
    if text == "off" {
        return Ok(None);
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let millis = match unit.trim() {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" | "min" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000),
        _ => None,
    };
    let value = number.parse::<u64>().ok().zip(millis).and_then(|(n, unit)| n.checked_mul(unit));
    // A year is more than any silence; larger numbers would overflow an instant.
    match value.filter(|value| *value <= 366 * 86_400_000) {
        Some(millis) => Ok(Some(Duration::from_millis(millis))),
        None => Err(Problem::new(format!("`{text}` is not a duration"))
            .help("write it like \"30s\", \"5m\", \"24h\", \"250ms\" or \"off\"")),
    }
}

/// A duration that cannot be `off`.
pub fn bounded(text: &str) -> Result<Duration, Problem> {
    duration(text)?.ok_or_else(|| Problem::new("this cannot be off").help("write a duration like \"8s\""))
}

/// A network, or a single address.
pub fn network(text: &str) -> Result<IpNet, Problem> {
    let single = || text.parse::<IpAddr>().ok().map(IpNet::from);
    let network = text.parse::<IpNet>().ok().map(|network| network.trunc()).or_else(single);
    network.ok_or_else(|| {
        Problem::new(format!("`{text}` is not a network")).help("write it like \"10.0.0.0/8\" or \"2001:db8::/32\"")
    })
}

/// An address with a port.
pub fn address(text: &str) -> Result<SocketAddr, Problem> {
    let help = "write it like \"0.0.0.0:443\" or \"[::]:443\"";
    match text.strip_prefix(':').map(|port| format!("[::]:{port}")) {
        Some(any) => any.parse().map_err(|_| Problem::new(format!("`{text}` is not an address")).help(help)),
        None => text.parse().map_err(|_| Problem::new(format!("`{text}` is not an address with a port")).help(help)),
    }
}

/// The name of a site: a host name, `*.` before one, `*` alone, or an address.
pub fn site_name(text: &str) -> Result<Hostname, Problem> {
    if text == CATCH_ALL {
        return Ok(Hostname(CATCH_ALL.into()));
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if let Ok(address) = bare.parse::<IpAddr>() {
        let address = address.to_canonical();
        if address.is_unspecified() || address.is_multicast() {
            let help = "write the address that clients connect to";
            return Err(Problem::new(format!("`{text}` is no address of one machine")).help(help));
        }
        return Ok(Hostname(address.to_string().into()));
    }
    let Some(parent) = text.strip_prefix("*.") else { return hostname(text) };
    let parent = hostname(parent)?;
    if parent.as_str().contains('.') {
        Ok(Hostname(format!("*.{parent}").into()))
    } else {
        Err(Problem::new(format!("`{text}` is a wildcard of too many names")).help("write it like \"*.example.org\""))
    }
}

/// The name of a site as its table has it: [`site_name`], and a port if it is on one only.
pub fn site_key(text: &str) -> Result<(Hostname, Option<u16>), Problem> {
    // The colons of an address without brackets are its own.
    let split = text.rsplit_once(':').filter(|(host, _)| !host.contains(':') || host.ends_with(']'));
    match split.filter(|(_, port)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())) {
        Some((host, port)) if is_port(port) => Ok((site_name(host)?, port.parse().ok())),
        Some((_, port)) => Err(Problem::new(format!("`{port}` is not a port")).help("ports are 1 to 65535")),
        None => site_name(text).map(|host| (host, None)),
    }
}

/// A host name, made lower case.
pub fn hostname(text: &str) -> Result<Hostname, Problem> {
    visible(text)?;
    if text.parse::<IpAddr>().is_ok() || text.starts_with('[') {
        let help = "write a host name";
        return Err(Problem::new(format!("`{text}` is an address, not a name")).help(help));
    }
    if text.contains('*') {
        let help = "a wildcard is a site of its own: \"*.example.org\"";
        return Err(Problem::new(format!("`{text}` is not a host name")).help(help));
    }
    if text.contains("://") || text.contains('/') || text.contains(':') {
        let authority = text.split_once("://").map_or(text, |(_, rest)| rest).split('/').next().unwrap_or_default();
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let problem = Problem::new(format!("`{text}` is more than a host name"));
        return Err(match is_name(host) {
            Ok(()) => problem.help(format!("write \"{host}\"")),
            Err(_) => problem.help("leave out the scheme, the port and the path"),
        });
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    is_name(name)?;
    Ok(Hostname(name.to_ascii_lowercase().into()))
}

/// Whether this can be the name of a host (RFC 1123 section 2.1), with the underscores that compose puts into names.
fn is_name(name: &str) -> Result<(), Problem> {
    if !name.is_ascii() {
        let problem = Problem::new(format!("`{name}` is not ASCII"));
        return Err(match punycode::to_ascii(name) {
            Some(ascii) => problem.help(format!("write \"{ascii}\"")),
            None => problem.help("write it in its `xn--` form"),
        });
    }
    let labels = || name.split('.');
    let odd = |c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.');
    let is_numeric = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    let fault = if name.is_empty() {
        "it is empty".to_owned()
    } else if name.starts_with('.') {
        "it begins with a dot".to_owned()
    } else if labels().any(str::is_empty) {
        "two dots have nothing between them".to_owned()
    } else if let Some(c) = name.chars().find(|c| odd(*c)) {
        if c == ' ' { "it contains a space".to_owned() } else { format!("it contains `{c}`") }
    } else if let Some(label) = labels().find(|label| label.starts_with('-') || label.ends_with('-')) {
        format!("`{label}` begins or ends with a hyphen")
    } else if labels().any(|label| label.len() > 63) {
        "a label has more than 63 characters".to_owned()
    } else if name.len() > 253 {
        "it has more than 253 characters".to_owned()
    } else if labels().next_back().is_some_and(is_numeric) {
        "only an address ends in a number".to_owned()
    } else {
        return Ok(());
    };
    Err(Problem::new(format!("`{name}` is not a host name: {fault}")).help("write it like \"matrix.example.org\""))
}

/// Checks the host and the port of a URL; what comes after them is for others to check.
fn has_valid_authority(url: &str) -> Result<(), Problem> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        return Err(Problem::new("a URL here has no user and no password").help("leave out everything up to the `@`"));
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']').filter(|(ip, _)| ip.parse::<Ipv6Addr>().is_ok()) else {
                return Err(
                    Problem::new(format!("`{authority}` is not an IPv6 address")).help("write it like [2001:db8::1]")
                );
            };
            (address, port.strip_prefix(':').or_else(|| (!port.is_empty()).then_some(port)))
        }
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    if host.parse::<Ipv4Addr>().is_err() && host.parse::<Ipv6Addr>().is_err() {
        is_name(host.strip_suffix('.').unwrap_or(host))?;
    }
    match port {
        Some(port) if !is_port(port) => {
            Err(Problem::new(format!("`{port}` is not a port")).help("ports are 1 to 65535"))
        }
        _ => Ok(()),
    }
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port != 0)
}

impl FromStr for Hostname {
    /// What is wrong with it, in words.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        hostname(text).map_err(Problem::in_words)
    }
}

/// A Matrix server name: a host name with an optional port.
pub fn server_name(text: &str) -> Result<String, Problem> {
    if text.contains('/') {
        let help = "write the name after the colon in user ids, as \"example.org\", with a port if it has one";
        return Err(Problem::new(format!("`{text}` is more than a name")).help(help));
    }
    name_with_port(text)
}

/// The host and port that other servers connect to.
pub fn federation(text: &str) -> Result<String, Problem> {
    let Some((_, rest)) = text.split_once("://") else { return name_with_port(text.trim_end_matches('/')) };
    let name = name_with_port(rest.split('/').next().unwrap_or_default())?;
    Err(Problem::new(format!("`{text}` is a URL; `m.server` is a host with a port")).help(format!("write \"{name}\"")))
}

fn name_with_port(text: &str) -> Result<String, Problem> {
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let host = hostname(host)?;
    match port {
        None => Ok(host.as_str().to_owned()),
        Some(port) if is_port(port) => Ok(format!("{host}:{port}")),
        Some(port) => Err(Problem::new(format!("`{port}` is not a port")).help("ports are 1 to 65535")),
    }
}

/// The URL of an ACME directory.
pub fn directory_url(text: &str) -> Result<String, Problem> {
    has_valid_authority(text)?;
    let is_http = text.parse::<Uri>().is_ok_and(|uri| matches!(uri.scheme_str(), Some("https" | "http")));
    if is_http { Ok(text.to_owned()) } else { Err(Problem::new(format!("`{text}` is not an https URL"))) }
}

/// A mail address, without `mailto:`.
pub fn email(text: &str) -> Result<String, Problem> {
    let address = text.strip_prefix("mailto:").unwrap_or(text);
    let wrong = || Problem::new(format!("`{text}` is not a mail address")).help("write it like \"admin@example.org\"");
    let (local, domain) = address.split_once('@').ok_or_else(wrong)?;
    if local.is_empty() || !domain.contains('.') || address.contains([' ', ',']) {
        return Err(wrong());
    }
    is_name(domain)?;
    Ok(address.to_owned())
}

/// A filter for the log: a level, or a list of levels for parts of the program, as `RUST_LOG` has it.
pub fn log_level(text: &str) -> Result<String, Problem> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let level = |part: &str| part.split_once('=').map_or(part, |(_, level)| level).trim().to_ascii_lowercase();
    match text.split(',').map(level).find(|level| !LEVELS.contains(&level.as_str())) {
        None => Ok(text.to_owned()),
        Some(unknown) => {
            Err(Problem::new(format!("`{unknown}` is not a log level")).help(match closest(&unknown, LEVELS) {
                Some(likely) => format!("did you mean `{likely}`?"),
                None => format!("one of: {}", LEVELS.join(", ")),
            }))
        }
    }
}

/// The address of an upstream server.
pub fn server(text: &str) -> Result<Server, Problem> {
    if let Some(path) = text.strip_prefix("unix:") {
        let path = PathBuf::from(path.strip_prefix("//").unwrap_or(path));
        return if path.is_absolute() {
            Ok(Server::Unix(path))
        } else {
            let help = "write it like \"unix:/run/synapse/main.sock\"";
            Err(Problem::new("the path of a unix socket must be absolute").help(help))
        };
    }
    let help = "write it like \"http://synapse:8008\", \"https://host\" or \"unix:/path\"";
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(Problem::new(format!("`{text}` has no scheme")).help(help));
    };
    match scheme {
        "http" | "https" => {}
        "tcp" => {
            let help = "set kind = \"tcp\" or kind = \"turn\" on the site, for connections that are not HTTP";
            return Err(Problem::new("the scheme `tcp` is not for sites of HTTP").help(help));
        }
        "ws" | "wss" => {
            let help = format!("write \"{}://{rest}\": WebSocket needs nothing else", scheme.replace("ws", "http"));
            return Err(Problem::new(format!("the scheme `{scheme}` is not used for upstreams")).help(help));
        }
        other => return Err(Problem::new(format!("the scheme `{other}` is not supported")).help(help)),
    }
    has_valid_authority(text)?;
    let uri: Uri = text.parse().map_err(|_| Problem::new(format!("`{text}` is not a URL")).help(help))?;
    if uri.path_and_query().is_some_and(|path| path.as_str() != "/") || text.contains('#') {
        let help = "leave it out: requests keep their own path, and `strip_prefix` removes a prefix";
        return Err(Problem::new("an upstream has no path").help(help));
    }
    let authority = uri.authority().ok_or_else(|| Problem::new(format!("`{text}` is not a URL")).help(help))?;
    let (host, port) = (authority.host().trim_matches(['[', ']']).to_owned(), authority.port_u16());
    Ok(match scheme {
        "https" => Server::Https { host, port: port.unwrap_or(443) },
        _ => Server::Http { host, port: port.unwrap_or(80) },
    })
}

/// The address of a server that takes TCP connections.
pub fn tcp_server(text: &str) -> Result<TcpServer, Problem> {
    let help = "write it like \"tcp://livekit:5349\"";
    let Some(address) = text.strip_prefix("tcp://") else {
        return Err(Problem::new(format!("`{text}` is no TCP server")).help(help));
    };
    if address.contains('@') {
        return Err(Problem::new("user and password do not belong in an upstream"));
    }
    let authority = address.parse::<http::uri::Authority>().ok();
    let host = authority.as_ref().map(|authority| authority.host().trim_matches(['[', ']'])).unwrap_or_default();
    match authority.as_ref().and_then(http::uri::Authority::port_u16) {
        Some(port) if port > 0 && !host.is_empty() => Ok(TcpServer { host: host.into(), port }),
        _ => Err(Problem::new(format!("`{text}` is no host and port")).help(help)),
    }
}

/// A scheme and an authority, without a slash at the end.
pub fn origin(text: &str) -> Result<String, Problem> {
    let url = url(text)?;
    let authority_at = url.find("://").map_or(0, |at| at + 3);
    if let Some(path) = url[authority_at..].find('/') {
        let help = format!("write \"{}\": path and query of the request are kept", &url[..authority_at + path]);
        return Err(Problem::new("a redirect leads to an origin, without a path").help(help));
    }
    Ok(url)
}

/// An http or https URL without query, and without a slash at the end.
pub fn url(text: &str) -> Result<String, Problem> {
    let help = "write it like \"https://matrix.example.org\"";
    let Some((scheme, _)) = text.split_once("://") else {
        let problem = Problem::new(format!("`{text}` is not a URL: it has no scheme"));
        let host = text.split(['/', ':']).next().unwrap_or_default();
        return Err(if is_name(host).is_ok() {
            problem.help(format!("write \"https://{text}\""))
        } else {
            problem.help(help)
        });
    };
    if !matches!(scheme, "http" | "https") {
        return Err(Problem::new(format!("`{text}` is not an http or https URL")).help(help));
    }
    has_valid_authority(text)?;
    let uri: Uri = text.parse().map_err(|_| Problem::new(format!("`{text}` is not a URL")).help(help))?;
    if uri.query().is_some() || text.contains('#') {
        return Err(Problem::new("the URL has a query or a fragment").help("leave out everything from the `?` or `#`"));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// The address of an SFU, which clients compare with `LIVEKIT_URL` to the letter: nothing of it is made right here.
pub fn sfu(text: &str) -> Result<String, Problem> {
    let help = "write it like \"wss://matrixrtc.example.org\", exactly as LIVEKIT_URL";
    let uri: Uri = text.parse().map_err(|_| Problem::new(format!("`{text}` is not a URL")).help(help))?;
    let (Some("wss"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(Problem::new(format!("`{text}` is not a wss URL")).help(help));
    };
    has_valid_authority(text)?;
    if text.ends_with('/') {
        return Err(Problem::new("the address of an SFU has no slash at its end").help(help));
    }
    if !text.starts_with("wss://") || authority.as_str().contains('@') || uri.query().is_some() || text.contains('#') {
        return Err(Problem::new(format!("`{text}` is more than the address of an SFU")).help(help));
    }
    Ok(text.to_owned())
}

/// A path, relative to the folder of the configuration file.
pub fn path(dir: &Path, text: &str) -> Result<PathBuf, Problem> {
    if text.is_empty() { Err(Problem::new("the path is empty")) } else { Ok(dir.join(text)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations() {
        assert_eq!(size("64MiB").unwrap(), Some(64 << 20));
        assert_eq!(size("512B").unwrap(), Some(512));
        assert_eq!(size("off").unwrap(), None);
        for bad in ["", "64", "MiB", "1.5MiB", "-1B", "64 Mib", "99999999999GiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!(duration("250ms").unwrap(), Some(Duration::from_millis(250)));
        assert_eq!(duration("24h").unwrap(), Some(Duration::from_secs(86_400)));
        assert_eq!(duration("off").unwrap(), None);
        for bad in ["", "30", "s", "1y", "-1s", "1.5s", "9999999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_are_ports() {
        for bad in ["http://a:99999", "https://a:0", "http://[::1]:x"] {
            assert!(server(bad).is_err(), "{bad}");
        }
        assert_eq!(server_name("Example.org:8448").unwrap(), "example.org:8448");
        for bad in ["https://example.org", "example.org/", "example.org:x", "example.org:99999"] {
            assert!(server_name(bad).is_err(), "{bad}");
        }
        assert_eq!(log_level("vestibule=debug,warn").unwrap(), "vestibule=debug,warn");
        for bad in ["loud", "debgu", "warn,loud"] {
            assert!(log_level(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_and_servers() {
        assert_eq!(hostname("Matrix.Example.ORG.").unwrap().as_str(), "matrix.example.org");
        for bad in [
            "",
            ".",
            "a..b",
            ".a.b",
            "-a.b",
            "a b",
            "*.a.b",
            "https://a.b",
            "a.b:443",
            "127.0.0.1",
            "1.2.3",
            "bücher.example",
            "a\u{200b}.b",
            " a.b",
        ] {
            assert!(hostname(bad).is_err(), "{bad}");
        }
        assert_eq!(server("http://[::1]:8008").unwrap(), Server::Http { host: "::1".into(), port: 8008 });
        assert_eq!(server("https://a.b/").unwrap(), Server::Https { host: "a.b".into(), port: 443 });
        assert_eq!(server("unix:/run/x").unwrap(), Server::Unix("/run/x".into()));
        for bad in ["synapse:8008", "ftp://a", "http://a/path", "http://u:p@a", "unix:relative", "http://", "wss://a"] {
            assert!(server(bad).is_err(), "{bad}");
        }
        for host in [
            ".domain.tld",
            "a..b",
            "-a.b",
            "a.b-",
            "a,b",
            "256.1.1.1",
            "[::1",
            "[a.b]",
            "a:",
            "a:0",
            "a:x",
            "bücher.example",
        ] {
            let bad = format!("https://{host}");
            let all = [
                url(&bad).err(),
                origin(&bad).err(),
                server(&bad).map(|_| String::new()).err(),
                directory_url(&bad).err(),
            ];
            assert!(all.iter().all(Option::is_some), "{bad}: {all:?}");
        }
        for good in
            ["https://a.b", "http://a_b:8080", "https://a.b.", "http://10.0.0.1:1", "https://[2001:db8::1]:8448"]
        {
            assert!(url(good).is_ok() && server(good).is_ok(), "{good}");
        }
        assert_eq!(federation("https://a.b/").unwrap_err().in_words().rsplit(": ").next(), Some("write \"a.b\""));
        assert_eq!(url("https://a.b/c/").unwrap(), "https://a.b/c");
        assert!(origin("https://a.b/c").is_err());
        for good in ["wss://a.b", "wss://a.b:8443", "wss://a.b/livekit/sfu"] {
            assert_eq!(sfu(good).unwrap(), good);
        }
        for bad in
            ["a.b", "https://a.b", "ws://a.b", "wss://a.b/", "wss://a.b/c/", "wss://u@a.b", "wss://a.b?c", "WSS://a.b"]
        {
            assert!(sfu(bad).is_err(), "{bad}");
        }
    }
}
