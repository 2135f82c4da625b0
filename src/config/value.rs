//! The small languages inside strings: sizes, durations, names, networks, addresses.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use http::Uri;
use ipnet::IpNet;

use super::{
    diagnostic::closest,
    plan::{Hostname, Server, TcpServer},
    tree::Problem,
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
        Problem::new(format!("`{text}` is no size")).help("write it like \"64MiB\", \"512B\" or \"off\"")
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
        None => Err(Problem::new(format!("`{text}` is no duration"))
            .help("write it like \"30s\", \"5m\", \"24h\", \"250ms\" or \"off\"")),
    }
}

/// A duration that cannot be `off`.
pub fn bounded(text: &str) -> Result<Duration, Problem> {
    duration(text)?.ok_or_else(|| Problem::new("this cannot be off"))
}

/// A network, or a single address.
pub fn network(text: &str) -> Result<IpNet, Problem> {
    let single = || text.parse::<IpAddr>().ok().map(IpNet::from);
    let network = text.parse::<IpNet>().ok().map(|network| network.trunc()).or_else(single);
    network.ok_or_else(|| {
        Problem::new(format!("`{text}` is no network")).help("write it like \"10.0.0.0/8\" or \"2001:db8::/32\"")
    })
}

/// An address with a port.
pub fn address(text: &str) -> Result<SocketAddr, Problem> {
    let help = "write it like \"0.0.0.0:443\" or \"[::]:443\"";
    match text.strip_prefix(':').map(|port| format!("[::]:{port}")) {
        Some(any) => any.parse().map_err(|_| Problem::new(format!("`{text}` is no address")).help(help)),
        None => text.parse().map_err(|_| Problem::new(format!("`{text}` is no address with a port")).help(help)),
    }
}

/// The name of a site: a host name, or `*.` before one.
pub fn site_name(text: &str) -> Result<Hostname, Problem> {
    let Some(parent) = text.strip_prefix("*.") else { return hostname(text) };
    let parent = hostname(parent)?;
    if parent.as_str().contains('.') {
        Ok(Hostname(format!("*.{parent}").into()))
    } else {
        Err(Problem::new(format!("`{text}` stands for too many names")).help("write it like \"*.example.org\""))
    }
}

/// A host name, made lower case.
pub fn hostname(text: &str) -> Result<Hostname, Problem> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if name.parse::<IpAddr>().is_ok() || name.starts_with('[') {
        return Err(Problem::new(format!("`{text}` is an address, not a name")).help("certificates are for names"));
    }
    if name.contains('*') {
        return Err(
            Problem::new(format!("`{text}` is no name")).help("a wildcard is a site of its own: \"*.example.org\"")
        );
    }
    if name.contains("://") || name.contains('/') || name.contains(':') {
        return Err(Problem::new(format!("`{text}` is more than a host name"))
            .help("leave the scheme, the port and the path away"));
    }
    if !name.is_ascii() {
        return Err(Problem::new(format!("`{text}` is not ASCII")).help("write it in its punycode form (xn--…)"));
    }
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(Problem::new(format!("`{text}` is no host name")));
    }
    Ok(Hostname(name.into()))
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
    let help = "write the name after the colon in user ids, as \"example.org\", with a port if it has one";
    if text.contains('/') {
        return Err(Problem::new(format!("`{text}` is more than a name")).help(help));
    }
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let host = hostname(host)?;
    match port {
        None => Ok(host.as_str().to_owned()),
        Some(port) => match port.parse::<u16>() {
            Ok(port) => Ok(format!("{host}:{port}")),
            Err(_) => Err(Problem::new(format!("`{port}` is no port"))),
        },
    }
}

/// How much is logged: a level, or what `RUST_LOG` takes: levels for parts of the program.
pub fn log_level(text: &str) -> Result<String, Problem> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let level = |part: &str| part.split_once('=').map_or(part, |(_, level)| level).trim().to_ascii_lowercase();
    match text.split(',').map(level).find(|level| !LEVELS.contains(&level.as_str())) {
        None => Ok(text.to_owned()),
        Some(unknown) => Err(Problem::new(format!("`{unknown}` is no level")).help(match closest(&unknown, LEVELS) {
            Some(likely) => format!("did you mean `{likely}`?"),
            None => format!("one of: {}", LEVELS.join(", ")),
        })),
    }
}

/// The address of an upstream server.
pub fn server(text: &str) -> Result<Server, Problem> {
    if let Some(path) = text.strip_prefix("unix:") {
        let path = PathBuf::from(path.strip_prefix("//").unwrap_or(path));
        return if path.is_absolute() {
            Ok(Server::Unix(path))
        } else {
            Err(Problem::new("the path of a unix socket is absolute")
                .help("write it like \"unix:/run/synapse/main.sock\""))
        };
    }
    let help = "write it like \"http://synapse:8008\", \"https://host\" or \"unix:/path\"";
    let uri: Uri = text.parse().map_err(|_| Problem::new(format!("`{text}` is no upstream")).help(help))?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(Problem::new(format!("`{text}` has no scheme")).help(help));
    };
    if authority.as_str().contains('@') {
        return Err(Problem::new("user and password do not belong in an upstream"));
    }
    if uri.path_and_query().is_some_and(|path| path.as_str() != "/") || text.contains('#') {
        return Err(
            Problem::new("an upstream has no path").help("requests keep their own path; `strip_prefix` takes one off")
        );
    }
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    if host.is_empty() || authority.as_str().ends_with(':') {
        return Err(Problem::new(format!("`{text}` is no upstream")).help(help));
    }
    let port = authority.port_u16();
    // `http::Uri` takes any digits, and has no port where they are too many.
    let written = authority.as_str()[authority.host().len()..].strip_prefix(':');
    if let (None | Some(0), Some(written)) = (port, written) {
        return Err(Problem::new(format!("`{written}` is no port")));
    }
    match scheme {
        "http" => Ok(Server::Http { host, port: port.unwrap_or(80) }),
        "https" => Ok(Server::Https { host, port: port.unwrap_or(443) }),
        "tcp" => Err(Problem::new("`tcp` is not spoken here")
            .help("the site needs kind = \"tcp\", or kind = \"turn\", for connections that are not HTTP")),
        "ws" | "wss" => {
            Err(Problem::new(format!("`{scheme}` is not needed"))
                .help("write http or https: WebSocket passes by itself"))
        }
        other => Err(Problem::new(format!("`{other}` is not spoken")).help(help)),
    }
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
    if url[authority_at..].contains('/') {
        return Err(Problem::new("a redirect goes to an origin")
            .help("leave the path away: path and query of the request are kept"));
    }
    Ok(url)
}

/// An http or https URL without query, and without a slash at the end.
pub fn url(text: &str) -> Result<String, Problem> {
    let help = "write it like \"https://matrix.example.org\"";
    let uri: Uri = text.parse().map_err(|_| Problem::new(format!("`{text}` is no URL")).help(help))?;
    match (uri.scheme_str(), uri.authority()) {
        (Some("http" | "https"), Some(authority))
            if !authority.as_str().contains('@') && uri.query().is_none() && !text.contains('#') =>
        {
            Ok(text.trim_end_matches('/').to_owned())
        }
        _ => Err(Problem::new(format!("`{text}` is no http or https URL")).help(help)),
    }
}

/// The address of an SFU, which clients compare with `LIVEKIT_URL` to the letter: nothing of it is made right here.
pub fn sfu(text: &str) -> Result<String, Problem> {
    let help = "write it like \"wss://matrixrtc.example.org\", exactly as LIVEKIT_URL";
    let uri: Uri = text.parse().map_err(|_| Problem::new(format!("`{text}` is no URL")).help(help))?;
    let (Some("wss"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(Problem::new(format!("`{text}` is no wss URL")).help(help));
    };
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
        for bad in ["", "a..b", "-a.b", "a b", "*.a.b", "https://a.b", "a.b:443", "127.0.0.1", "bücher.example"] {
            assert!(hostname(bad).is_err(), "{bad}");
        }
        assert_eq!(server("http://[::1]:8008").unwrap(), Server::Http { host: "::1".into(), port: 8008 });
        assert_eq!(server("https://a.b/").unwrap(), Server::Https { host: "a.b".into(), port: 443 });
        assert_eq!(server("unix:/run/x").unwrap(), Server::Unix("/run/x".into()));
        for bad in ["synapse:8008", "ftp://a", "http://a/path", "http://u:p@a", "unix:relative", "http://", "wss://a"] {
            assert!(server(bad).is_err(), "{bad}");
        }
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
