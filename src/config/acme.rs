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
    plan::{self, AcmeDns, Challenge, Dns, DnsHost, DnsProvider, Eab, HostedDns, Rfc2136, Secret, TsigAlgorithm},
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
    /// `dns` is there and wrong: nothing that follows from its absence is told.
    dns_is_broken: bool,
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
        let mut acme = Self {
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
            dns_is_broken: false,
        };
        acme.dns_is_broken = acme.dns.is_none() && section.mentions("dns");
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
        let has_provider = self.dns_is_broken || self.dns.as_ref().is_some_and(|dns| dns.value.provider.is_some());
        let Some(list) = &self.challenges else {
            let usual = [Challenge::TlsAlpn01, Challenge::Http01];
            return usual.into_iter().chain(has_provider.then_some(Challenge::Dns01)).collect();
        };
        if list.value.contains(&Challenge::Dns01) && !has_provider {
            let help = "set acme.dns = { provider = \"…\", … } or { command = [\"/path\"] }";
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

/// The keys of `acme.dns` whatever sets the records.
const DNS_KEYS: &[&str] = &["provider", "command", "nameservers", "propagation_timeout"];

const RFC2136_KEYS: &[&str] = &["server", "zone", "key_name", "key_secret", "key_secret_file", "key_algorithm"];
const ACME_DNS_KEYS: &[&str] = &["api_url", "username", "password", "password_file", "subdomain"];
const HOSTED_KEYS: &[&str] = &["api_token", "api_token_file", "zone", "api_url"];

const DNS_HELP: &str = "write it like { provider = \"cloudflare\", api_token = \"${DNS_TOKEN}\" }, \
                        or { command = [\"/path\"] }";

fn dns(item: &Item<'_>, dir: &Path) -> Result<Dns, Problem> {
    let DeValue::Table(table) = item.get_ref() else {
        return Err(Problem::new(format!("expected a table, found {}", kind_of(item.get_ref()))).help(DNS_HELP));
    };
    let of = Values { table, dir };
    let named = of.get("provider", string)?;
    let command = of.get("command", one_or_more(text))?;
    if named.is_some() && command.is_some() {
        return Err(Problem::new("`provider` and `command` are two ways to do one thing").help("keep one of them"));
    }
    let host = DnsHost::ALL.into_iter().find(|host| Some(host.as_str()) == named);
    of.check_keys(match (named, host) {
        (Some("rfc2136"), _) => &[DNS_KEYS, RFC2136_KEYS],
        (Some("acme-dns"), _) => &[DNS_KEYS, ACME_DNS_KEYS],
        (_, Some(DnsHost::DnSimple)) => &[DNS_KEYS, HOSTED_KEYS, &["account_id"]],
        (_, Some(DnsHost::Porkbun)) => &[DNS_KEYS, HOSTED_KEYS, &["api_secret", "api_secret_file"]],
        (_, Some(_)) => &[DNS_KEYS, HOSTED_KEYS],
        (Some(other), None) => return Err(no_provider(other, table)),
        (None, None) => &[DNS_KEYS, &["timeout"]],
    })?;
    let provider = match (named, host, command) {
        (_, Some(host), _) => Some(DnsProvider::Hosted(hosted(&of, host)?)),
        (Some("acme-dns"), ..) => Some(DnsProvider::AcmeDns(acme_dns(&of)?)),
        (Some(_), ..) => Some(DnsProvider::Rfc2136(rfc2136(&of)?)),
        (None, _, Some(command)) => {
            let timeout = of.get("timeout", parsed(value::bounded))?.unwrap_or(COMMAND_TIMEOUT);
            Some(DnsProvider::Command { command, timeout })
        }
        (None, None, None) => None,
    };
    let nameservers = of.get("nameservers", list(parsed(dns_server)))?.unwrap_or_default();
    if provider.is_none() && nameservers.is_empty() {
        return Err(Problem::new("`acme.dns` needs a `provider` or a `command`").help(DNS_HELP));
    }
    let propagation = of.get("propagation_timeout", parsed(value::bounded))?.unwrap_or(PROPAGATION);
    Ok(Dns { provider, nameservers, propagation })
}

fn no_provider(name: &str, table: &toml::de::DeTable<'_>) -> Problem {
    let known = || DnsHost::ALL.iter().map(|host| host.as_str()).chain(["acme-dns", "rfc2136"]);
    let problem = Problem::new(format!("`{name}` is not a DNS provider"));
    let problem = problem.help(match closest(name, known()) {
        Some(likely) => format!("did you mean `{likely}`?"),
        None => {
            let known: Vec<_> = known().collect();
            format!("known: {}; for any other, set `command` to a program that sets the record", known.join(", "))
        }
    });
    match table.get("provider") {
        Some(item) => problem.at(item.span()),
        None => problem,
    }
}

fn hosted(of: &Values<'_, '_>, host: DnsHost) -> Result<HostedDns, Problem> {
    let account = match host {
        DnsHost::DnSimple => Some(of.needed("dnsimple", "account_id", text)?),
        _ => None,
    };
    if account.as_ref().is_some_and(|account| account.is_empty() || !account.bytes().all(|b| b.is_ascii_alphanumeric()))
    {
        return Err(Problem::new("`account_id` is the number of the account").help("write it like \"12345\""));
    }
    Ok(HostedDns {
        host,
        token: of.needed_secret(host.as_str(), "api_token")?,
        secret: match host {
            DnsHost::Porkbun => Some(of.needed_secret("porkbun", "api_secret")?),
            _ => None,
        },
        account,
        zone: of.get("zone", parsed(value::hostname))?.map(|zone| zone.as_str().to_owned()),
        url: of.get("api_url", parsed(value::directory_url))?,
    })
}

fn acme_dns(of: &Values<'_, '_>) -> Result<AcmeDns, Problem> {
    const NAME: &str = "acme-dns";
    Ok(AcmeDns {
        url: of.needed(NAME, "api_url", parsed(value::directory_url))?,
        username: of.needed(NAME, "username", text)?,
        password: of.needed_secret(NAME, "password")?,
        subdomain: of.needed(NAME, "subdomain", text)?,
    })
}

fn rfc2136(of: &Values<'_, '_>) -> Result<Rfc2136, Problem> {
    const NAME: &str = "rfc2136";
    let algorithms = word(&[
        ("hmac-sha256", TsigAlgorithm::HmacSha256),
        ("hmac-sha384", TsigAlgorithm::HmacSha384),
        ("hmac-sha512", TsigAlgorithm::HmacSha512),
    ]);
    Ok(Rfc2136 {
        address: of.needed(NAME, "server", parsed(dns_server))?,
        zone: of.get("zone", parsed(value::hostname))?.map(|zone| zone.as_str().to_owned()),
        key_name: of.needed(NAME, "key_name", text)?,
        key_secret: of.needed_secret(NAME, "key_secret")?,
        algorithm: of.get("key_algorithm", algorithms)?.unwrap_or(TsigAlgorithm::HmacSha256),
    })
}

/// The values of `acme.dns`, one by one.
struct Values<'t, 'i> {
    table: &'t toml::de::DeTable<'i>,
    dir: &'t Path,
}

impl<'t, 'i> Values<'t, 'i> {
    fn check_keys(&self, known: &[&[&str]]) -> Result<(), Problem> {
        let known = known.concat();
        let Some((key, _)) = self.table.iter().find(|(key, _)| !known.contains(&key.get_ref().as_ref())) else {
            return Ok(());
        };
        let problem = Problem::new(format!("unknown key `{}`", key.get_ref())).at(key.span());
        Err(problem.help(match closest(key.get_ref(), known.iter().copied()) {
            Some(likely) => format!("did you mean `{likely}`?"),
            None => format!("known here: {}", known.join(", ")),
        }))
    }

    fn get<T>(&self, key: &str, parse: impl FnOnce(&'t Item<'i>) -> Result<T, Problem>) -> Result<Option<T>, Problem> {
        let Some(item) = self.table.get(key) else { return Ok(None) };
        parse(item).map(Some).map_err(|problem| problem.at(item.span()))
    }

    fn needed<T>(
        &self,
        provider: &str,
        key: &str,
        parse: impl FnOnce(&'t Item<'i>) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        let missing = || Problem::new(format!("`{provider}` needs `{key}`"));
        self.get(key, parse)?.ok_or_else(|| missing().help(format!("set acme.dns.{key}")))
    }

    /// A secret as it is, or in a file.
    fn needed_secret(&self, provider: &str, key: &str) -> Result<Secret, Problem> {
        let file_key = format!("{key}_file");
        let path = |item| string(item).and_then(|text| value::path(self.dir, text));
        match (self.get(key, text)?, self.get(&file_key, path)?) {
            (Some(secret), None) if secret.is_empty() => Err(Problem::new(format!("`{key}` is empty"))),
            (Some(secret), None) => Ok(Secret::Text(secret.into())),
            (None, Some(file)) => Ok(Secret::File(file)),
            (None, None) => Err(Problem::new(format!("`{provider}` needs `{key}`"))
                .help(format!("set {key} = \"${{…}}\", or {file_key} to the path of a file with it"))),
            (Some(_), Some(_)) => {
                Err(Problem::new(format!("`{key}` and `{file_key}` are the same thing")).help("keep one of them"))
            }
        }
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
