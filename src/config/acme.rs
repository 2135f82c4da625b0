//! `[acme]`: what the file says of the CAs, and what it means.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use toml::de::DeValue;

use super::{
    diagnostic::closest,
    plan::{self, Challenge, Dns, DnsProvider, Eab, Rfc2136, Secret, TsigAlgorithm},
    tree::{At, Item, Problem, Reader, Section, kind_of, list, one_or_more, parsed, string, word},
    value,
};

const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
const LETS_ENCRYPT_STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";
const ZEROSSL: &str = "https://acme.zerossl.com/v2/DV90";

/// Where a name server listens (RFC 1035 section 4.2).
const DNS_PORT: u16 = 53;

/// How long a command of `acme.dns` may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a record may take to appear at the authoritative servers: those of large providers take a minute.
const PROPAGATION: Duration = Duration::from_secs(120);

/// The CAs that have a name here.
const NAMED: [&str; 3] = ["letsencrypt", "letsencrypt-staging", "zerossl"];

/// What the file says, value by value.
#[derive(Default)]
pub struct Acme {
    pub email: Option<At<String>>,
    pub directory: Option<At<Vec<Directory>>>,
    pub challenges: Option<At<Vec<Challenge>>>,
    pub dns: Option<At<Dns>>,
    /// What holds for the directories that are written as strings.
    pub profile: Option<At<String>>,
    pub eab_kid: Option<At<String>>,
    pub eab_hmac_key: Option<At<Vec<u8>>>,
    pub ca_file: Option<At<PathBuf>>,
}

/// An entry of `acme.directory`.
pub struct Directory {
    url: String,
    span: Range<usize>,
    /// A table says everything of its directory itself.
    own: Option<Own>,
}

#[derive(Default)]
struct Own {
    profile: Option<String>,
    eab_kid: Option<String>,
    eab_hmac_key: Option<Vec<u8>>,
    ca_file: Option<PathBuf>,
}

impl Acme {
    /// Reads the section.
    pub fn read(section: Section<'_, '_, '_>) -> Self {
        let dir = section.reader.source().dir.clone();
        let text = |item| string(item).map(str::to_owned);
        let acme = Self {
            email: section.get("email", parsed(value::email)),
            directory: section.get("directory", one_or_more(|item| Directory::read(item, &dir))),
            challenges: section.get(
                "challenges",
                one_or_more(word(&[
                    ("tls-alpn-01", Challenge::TlsAlpn01),
                    ("http-01", Challenge::Http01),
                    ("dns-01", Challenge::Dns01),
                    ("dns-persist-01", Challenge::DnsPersist01),
                ])),
            ),
            dns: section.get("dns", |item| dns(item, &dir)),
            profile: section.get("profile", text),
            eab_kid: section.get("eab_kid", text),
            eab_hmac_key: section.get("eab_hmac_key", parsed(mac_key)),
            ca_file: section.get("ca_file", |item| string(item).and_then(|text| value::path(&dir, text))),
        };
        section.finish();
        acme
    }

    /// Whether certificates come from a CA that has no name here, which may sign other names than public ones.
    pub fn names_private_ca(&self) -> bool {
        let is_private = |entry: &Directory| ![LETS_ENCRYPT, LETS_ENCRYPT_STAGING, ZEROSSL].contains(&&*entry.url);
        self.directory.as_ref().is_some_and(|list| list.value.iter().any(is_private))
    }

    /// The files that it names.
    pub fn files(&self) -> Vec<At<&Path>> {
        let shared = self.ca_file.iter().map(|at| At { value: &*at.value, span: at.span.clone() });
        let entries = self.directory.iter().flat_map(|list| &list.value);
        let own = entries
            .filter_map(|entry| Some(At { value: entry.own.as_ref()?.ca_file.as_deref()?, span: entry.span.clone() }));
        shared.chain(own).collect()
    }

    /// What it means.
    pub fn compile(&self, reader: &Reader<'_>) -> plan::Acme {
        let shared_eab = eab("acme.", &self.eab_kid, &self.eab_hmac_key, reader);
        let shared = plan::Directory {
            url: String::new(),
            staging: None,
            profile: self.profile.as_ref().map(|profile| profile.value.clone()),
            eab: shared_eab,
            ca_file: self.ca_file.as_ref().map(|path| path.value.clone()),
        };
        let directories = match &self.directory {
            None => {
                vec![plan::Directory { url: LETS_ENCRYPT.into(), staging: Some(LETS_ENCRYPT_STAGING.into()), ..shared }]
            }
            Some(list) => list.value.iter().filter_map(|entry| entry.compile(&shared, self, reader)).collect(),
        };
        plan::Acme {
            email: self.email.as_ref().map(|email| email.value.clone()),
            directories,
            challenges: self.challenges(reader),
            dns: self.dns.as_ref().map(|dns| dns.value.clone()),
        }
    }
}

impl Acme {
    fn challenges(&self, reader: &Reader<'_>) -> Vec<Challenge> {
        let has_provider = self.dns.as_ref().is_some_and(|dns| dns.value.provider.is_some());
        let Some(list) = &self.challenges else {
            let usual = [Challenge::TlsAlpn01, Challenge::Http01];
            return usual.into_iter().chain(has_provider.then_some(Challenge::Dns01)).collect();
        };
        if list.value.contains(&Challenge::Dns01) && !has_provider {
            let help = "set acme.dns = { command = [\"/path\"] } or { provider = \"rfc2136\", … }";
            reader.error_with(list.span.clone(), "`dns-01` needs a provider that sets records in DNS", help);
        }
        list.value.clone()
    }
}

impl Directory {
    fn read(item: &Item<'_>, dir: &Path) -> Result<Self, Problem> {
        let span = item.span();
        let DeValue::Table(table) = item.get_ref() else {
            return Ok(Self { url: known(string(item)?)?, span, own: None });
        };
        let (mut url, mut own) = (None, Own::default());
        for (key, item) in table.iter() {
            let at = |problem: Problem| problem.at(item.span());
            let text = || string(item).map(str::to_owned).map_err(at);
            match key.get_ref().as_ref() {
                "url" => url = Some(known(&text()?).map_err(at)?),
                "profile" => own.profile = Some(text()?),
                "eab_kid" => own.eab_kid = Some(text()?),
                "eab_hmac_key" => own.eab_hmac_key = Some(mac_key(&text()?).map_err(at)?),
                "ca_file" => own.ca_file = Some(value::path(dir, &text()?).map_err(at)?),
                other => {
                    const KEYS: [&str; 5] = ["url", "profile", "eab_kid", "eab_hmac_key", "ca_file"];
                    let problem = Problem::new(format!("unknown key `{other}`")).at(key.span());
                    return Err(problem.help(match closest(other, KEYS) {
                        Some(likely) => format!("did you mean `{likely}`?"),
                        None => format!("known here: {}", KEYS.join(", ")),
                    }));
                }
            }
        }
        match url {
            Some(url) => Ok(Self { url, span, own: Some(own) }),
            None => Err(Problem::new("a directory needs its `url`")
                .help("write it like { url = \"letsencrypt\", profile = \"shortlived\" }")),
        }
    }

    fn compile(&self, shared: &plan::Directory, acme: &Acme, reader: &Reader<'_>) -> Option<plan::Directory> {
        let staging = (self.url == LETS_ENCRYPT).then(|| LETS_ENCRYPT_STAGING.to_owned());
        let (eab, names_kid) = match &self.own {
            None => (shared.eab.clone(), acme.eab_kid.is_some() || acme.eab_hmac_key.is_some()),
            Some(own) => {
                let at = |value: Option<String>| value.map(|value| At { value, span: self.span.clone() });
                let key = own.eab_hmac_key.clone().map(|value| At { value, span: self.span.clone() });
                (eab("", &at(own.eab_kid.clone()), &key, reader), own.eab_kid.is_some() || own.eab_hmac_key.is_some())
            }
        };
        if self.url == ZEROSSL && eab.is_none() && !names_kid {
            reader.error_with(
                self.span.clone(),
                "ZeroSSL needs an external account binding",
                "set eab_kid and eab_hmac_key from its console: in acme, or in a table { url = \"zerossl\", … }",
            );
        }
        let (profile, ca_file) = match &self.own {
            None => (shared.profile.clone(), shared.ca_file.clone()),
            Some(own) => (own.profile.clone(), own.ca_file.clone()),
        };
        Some(plan::Directory { url: self.url.clone(), staging, profile, eab, ca_file })
    }
}

/// The URL of a directory: of a CA that has a name here, or as it is written.
fn known(name: &str) -> Result<String, Problem> {
    match name {
        "letsencrypt" => Ok(LETS_ENCRYPT.into()),
        "letsencrypt-staging" => Ok(LETS_ENCRYPT_STAGING.into()),
        "zerossl" => Ok(ZEROSSL.into()),
        url if url.contains("://") => value::directory_url(url),
        _ => Err(Problem::new(format!("`{name}` is not an ACME directory")).help(match closest(name, NAMED) {
            Some(likely) => format!("did you mean `{likely}`?"),
            None => format!("one of {}, or a URL", NAMED.join(", ")),
        })),
    }
}

fn eab(prefix: &str, kid: &Option<At<String>>, key: &Option<At<Vec<u8>>>, reader: &Reader<'_>) -> Option<Eab> {
    let alone = |span: &Range<usize>, is: &str, other: &str| {
        let message = format!("`{prefix}{is}` needs `{prefix}{other}`");
        reader.error_with(span.clone(), message, format!("set {prefix}{other} as well"));
    };
    match (kid, key) {
        (Some(kid), Some(key)) => Some(Eab { kid: kid.value.clone(), hmac_key: key.value.clone() }),
        (Some(kid), None) => {
            alone(&kid.span, "eab_kid", "eab_hmac_key");
            None
        }
        (None, Some(key)) => {
            alone(&key.span, "eab_hmac_key", "eab_kid");
            None
        }
        (None, None) => None,
    }
}

/// The keys of `acme.dns`.
const DNS_KEYS: [&str; 11] = [
    "provider",
    "command",
    "timeout",
    "nameservers",
    "propagation_timeout",
    "server",
    "zone",
    "key_name",
    "key_secret",
    "key_secret_file",
    "key_algorithm",
];

const DNS_HELP: &str = "write it like { command = [\"/path\"] }, or { provider = \"rfc2136\", server = \"192.0.2.1\", \
                        key_name = \"acme\", key_secret = \"${TSIG_SECRET}\" }";

fn dns(item: &Item<'_>, dir: &Path) -> Result<Dns, Problem> {
    let DeValue::Table(table) = item.get_ref() else {
        return Err(Problem::new(format!("expected a table, found {}", kind_of(item.get_ref()))).help(DNS_HELP));
    };
    if let Some((key, _)) = table.iter().find(|(key, _)| !DNS_KEYS.contains(&key.get_ref().as_ref())) {
        let problem = Problem::new(format!("unknown key `{}`", key.get_ref())).at(key.span());
        return Err(problem.help(match closest(key.get_ref(), DNS_KEYS) {
            Some(likely) => format!("did you mean `{likely}`?"),
            None => format!("known here: {}", DNS_KEYS.join(", ")),
        }));
    }
    let of = Values(table);
    let provider = match (of.get("provider", string)?, of.get("command", one_or_more(text))?) {
        (Some(_), Some(_)) => {
            return Err(Problem::new("`provider` and `command` are two ways to do one thing").help("keep one of them"));
        }
        (None, Some(command)) => {
            let timeout = of.get("timeout", parsed(value::bounded))?.unwrap_or(COMMAND_TIMEOUT);
            Some(DnsProvider::Command { command, timeout })
        }
        (Some("rfc2136"), None) => Some(DnsProvider::Rfc2136(rfc2136(&of, dir)?)),
        (Some(other), None) => {
            let help = "rfc2136 is known; for any other, set `command` to a program that sets the record";
            return Err(Problem::new(format!("`{other}` is not a DNS provider")).help(help));
        }
        (None, None) => None,
    };
    let nameservers = of.get("nameservers", list(parsed(dns_server)))?.unwrap_or_default();
    if provider.is_none() && nameservers.is_empty() {
        return Err(Problem::new("`acme.dns` needs a `provider` or a `command`").help(DNS_HELP));
    }
    let propagation = of.get("propagation_timeout", parsed(value::bounded))?.unwrap_or(PROPAGATION);
    Ok(Dns { provider, nameservers, propagation })
}

fn rfc2136(of: &Values<'_, '_>, dir: &Path) -> Result<Rfc2136, Problem> {
    let missing = |key: &str| Problem::new(format!("`rfc2136` needs `{key}`")).help(DNS_HELP);
    let path = |item| string(item).and_then(|text| value::path(dir, text));
    let key_secret = match (of.get("key_secret", text)?, of.get("key_secret_file", path)?) {
        (Some(secret), None) => Secret::Text(secret.into()),
        (None, Some(file)) => Secret::File(file),
        (None, None) => return Err(missing("key_secret")),
        (Some(_), Some(_)) => {
            return Err(Problem::new("`key_secret` and `key_secret_file` are the same thing").help("keep one of them"));
        }
    };
    let algorithms = word(&[
        ("hmac-sha256", TsigAlgorithm::HmacSha256),
        ("hmac-sha384", TsigAlgorithm::HmacSha384),
        ("hmac-sha512", TsigAlgorithm::HmacSha512),
    ]);
    Ok(Rfc2136 {
        address: of.get("server", parsed(dns_server))?.ok_or_else(|| missing("server"))?,
        zone: of.get("zone", parsed(value::hostname))?.map(|zone| zone.as_str().to_owned()),
        key_name: of.get("key_name", text)?.ok_or_else(|| missing("key_name"))?,
        key_secret,
        algorithm: of.get("key_algorithm", algorithms)?.unwrap_or(TsigAlgorithm::HmacSha256),
    })
}

/// The values of a table whose keys are known to be right.
struct Values<'t, 'i>(&'t toml::de::DeTable<'i>);

impl<'t, 'i> Values<'t, 'i> {
    fn get<T>(&self, key: &str, parse: impl FnOnce(&'t Item<'i>) -> Result<T, Problem>) -> Result<Option<T>, Problem> {
        let Some(item) = self.0.get(key) else { return Ok(None) };
        parse(item).map(Some).map_err(|problem| problem.at(item.span()))
    }
}

fn text(item: &Item<'_>) -> Result<String, Problem> {
    string(item).map(str::to_owned)
}

/// The address of a name server, with or without a port.
fn dns_server(text: &str) -> Result<SocketAddr, Problem> {
    let bare = text.trim_matches(['[', ']']).parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DNS_PORT));
    bare.or_else(|_| text.parse()).map_err(|_| {
        Problem::new(format!("`{text}` is not the address of a name server"))
            .help("write it like \"192.0.2.1\" or \"192.0.2.1:53\"")
    })
}

fn mac_key(text: &str) -> Result<Vec<u8>, Problem> {
    use base64::Engine as _;
    // CAs hand it out with and without padding, in both alphabets.
    let text = text.trim_end_matches('=').replace('+', "-").replace('/', "_");
    let key = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text);
    key.map_err(|_| Problem::new("the key is not base64url"))
        .and_then(|key| if key.is_empty() { Err(Problem::new("the key is empty")) } else { Ok(key) })
}
