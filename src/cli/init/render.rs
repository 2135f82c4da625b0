//! The files of a deployment as text: a pure function of names, addresses and secrets. The examples under `config/` are
//! its output for example.org; a test keeps them in step.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
};

use crate::config::{SCHEMA_URL, versions};

/// What a deployment is made from. Every name is a host name in lower case; nothing here is checked again.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// The name after the colon in user ids.
    pub server_name: String,
    /// Where the homeserver is; may be the server name itself.
    pub homeserver: String,
    /// Where calls are.
    pub layout: Layout,
    /// The relay for callers who reach nothing but port 443.
    pub turn: Option<Turn>,
    /// The contact of the ACME account.
    pub email: Option<String>,
    /// Where the services are for each other.
    pub addresses: Addresses,
    /// What nobody else may know.
    pub secrets: Secrets,
}

/// LiveKit's relay, behind a site of kind `turn`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Its public name.
    pub host: String,
    /// LiveKit's own address: the only private one that the relay may reach.
    pub address: IpAddr,
}

/// The network of the containers, and LiveKit's address in it. Fixed, since the relay is told of it; of a range from which
/// Docker takes no network by itself (its default pools begin at 172.17.0.0), and which home routers do not use.
pub const NETWORK: &str = "172.16.83.0/24";
const LIVEKIT_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 16, 83, 10);

/// The port of the relay; TLS has ended before it.
const TURN_PORT: u16 = 5349;

impl Turn {
    /// `turn.SERVER_NAME`, with the address that compose gives LiveKit.
    #[must_use]
    pub fn in_compose(server_name: &str) -> Self {
        Self { host: format!("turn.{server_name}"), address: LIVEKIT_ADDRESS.into() }
    }
}

/// Which names the call services have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `jwt.matrixrtc.SERVER_NAME` and `matrixrtc.SERVER_NAME`.
    ThreeHosts,
    /// The homeserver's own, under `/livekit/jwt` and `/livekit/sfu`.
    OneHost,
}

/// Where the services find each other: `HOST:PORT`, or a host alone for PostgreSQL.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// Synapse.
    pub synapse: String,
    /// lk-jwt-service.
    pub lk_jwt: String,
    /// LiveKit's signalling.
    pub livekit: String,
    /// PostgreSQL.
    pub postgres: String,
    /// The address that Synapse and LiveKit listen on.
    pub bind: String,
    /// Where Synapse finds the registration of lk-jwt-service.
    pub registration: String,
}

impl Default for Addresses {
    /// The names that compose gives them.
    fn default() -> Self {
        Self {
            synapse: "synapse:8008".into(),
            lk_jwt: "lk-jwt-service:8080".into(),
            livekit: "livekit:7880".into(),
            postgres: "postgres".into(),
            bind: "0.0.0.0".into(),
            registration: format!("/etc/synapse/{REGISTRATION}"),
        }
    }
}

/// What nobody else may know; each is generated once in the life of a deployment.
#[derive(Clone)]
pub struct Secrets {
    /// Signs the tokens with which clients enter a call.
    pub livekit: String,
    /// Synapse's password at PostgreSQL.
    pub postgres: String,
    /// What lk-jwt-service shows to Synapse. It can act for every local user.
    pub as_token: String,
    /// What Synapse shows to lk-jwt-service.
    pub hs_token: String,
}

impl Secrets {
    /// New ones: 64 hexadecimal digits each, from the system's generator. LiveKit warns below 32 characters.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn generate() -> std::io::Result<Self> {
        Ok(Self { livekit: secret()?, postgres: secret()?, as_token: secret()?, hs_token: secret()? })
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets(…)")
    }
}

pub(super) fn secret() -> std::io::Result<String> {
    let mut bytes = [0_u8; 32];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| std::io::Error::other("the system gives no random numbers"))?;
    Ok(bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

/// One file of a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its name in the folder.
    pub name: &'static str,
    /// Its permissions.
    pub mode: u32,
    /// What is in it.
    pub text: String,
}

/// The id of the key that [`Secrets::livekit`] belongs to. Everybody may know it: it stands in every token.
pub const LIVEKIT_KEY: &str = "matrix-rtc";

/// The registration of lk-jwt-service as an application service of the homeserver.
pub const REGISTRATION: &str = "rtc-registration.yaml";

/// The group by which both containers read [`REGISTRATION`]: that of Synapse in its own image, and added to
/// lk-jwt-service's. Nobody else may read it.
pub const REGISTRATION_GROUP: u32 = 991;

const SYNAPSE: &str = versions::SYNAPSE.image;
const LK_JWT: &str = versions::LK_JWT.image;
const LIVEKIT: &str = versions::LIVEKIT.image;
const POSTGRES: &str = versions::POSTGRES;

impl Deployment {
    /// Every name that needs a DNS record, the server name first.
    #[must_use]
    pub fn hosts(&self) -> Vec<String> {
        let mut hosts = vec![self.server_name.clone()];
        if self.homeserver != self.server_name {
            hosts.push(self.homeserver.clone());
        }
        if self.layout == Layout::ThreeHosts {
            hosts.extend([self.jwt_host(), self.sfu_host()]);
        }
        hosts.extend(self.turn.iter().map(|turn| turn.host.clone()));
        hosts
    }

    /// `livekit_service_url`: clients append `/sfu/get` to it.
    #[must_use]
    pub fn jwt_url(&self) -> String {
        match self.layout {
            Layout::ThreeHosts => format!("https://{}", self.jwt_host()),
            Layout::OneHost => format!("https://{}/livekit/jwt", self.homeserver),
        }
    }

    /// `LIVEKIT_URL`: where clients open the WebSocket of a call.
    #[must_use]
    pub fn sfu_url(&self) -> String {
        match self.layout {
            Layout::ThreeHosts => format!("wss://{}", self.sfu_host()),
            Layout::OneHost => format!("wss://{}/livekit/sfu", self.homeserver),
        }
    }

    fn jwt_host(&self) -> String {
        format!("jwt.matrixrtc.{}", self.server_name)
    }

    fn sfu_host(&self) -> String {
        format!("matrixrtc.{}", self.server_name)
    }
}

/// All files of a deployment with compose.
#[must_use]
pub fn render(deployment: &Deployment) -> Vec<File> {
    let file = |name, text| File { name, mode: 0o644, text };
    vec![
        file("vestibule.toml", vestibule_toml(deployment)),
        file("compose.yaml", compose(deployment)),
        file("livekit.yaml", livekit(deployment)),
        file("homeserver-lines.yaml", homeserver_lines(deployment)),
        File { name: REGISTRATION, mode: 0o640, text: registration(deployment) },
        File { name: ".env", mode: 0o600, text: env(&deployment.secrets) },
    ]
}

/// The edge's own file.
#[must_use]
pub fn vestibule_toml(deployment: &Deployment) -> String {
    let Deployment { server_name, homeserver, addresses, .. } = deployment;
    let Addresses { synapse, lk_jwt, livekit, .. } = addresses;
    let email = match &deployment.email {
        Some(email) => format!("email = \"{email}\""),
        None => format!("# email = \"you@{server_name}\"      # for mail from the CA about your certificates"),
    };
    let mut text = format!(
        r#"#:schema {SCHEMA_URL}
# The reverse proxy of {server_name}. To validate it: `vestibule check`. All keys: `vestibule reference`.

[acme]
{email}

[matrix]
server_name = "{server_name}"

[sites."{homeserver}"]
kind     = "synapse"
upstream = "http://{synapse}"
"#
    );
    match deployment.layout {
        Layout::ThreeHosts => {
            let (jwt, sfu) = (deployment.jwt_host(), deployment.sfu_host());
            text += &format!(
                r#"
[sites."{jwt}"]
kind     = "lk-jwt"
upstream = "http://{lk_jwt}"

[sites."{sfu}"]
kind     = "livekit"
upstream = "http://{livekit}"
"#
            );
        }
        Layout::OneHost => {
            text += &format!(
                r#"
[sites."{homeserver}".routes]
"/livekit/jwt" = {{ kind = "lk-jwt",  upstream = "http://{lk_jwt}", strip_prefix = true }}
"/livekit/sfu" = {{ kind = "livekit", upstream = "http://{livekit}", strip_prefix = true }}
"#
            );
        }
    }
    if let Some(turn) = &deployment.turn {
        text += &turn_site(turn, livekit);
    }
    if homeserver != server_name {
        text += &format!(
            r#"
# Clients and other homeservers look for the well-known documents here. For other paths, add a redirect or an upstream.
[sites."{server_name}"]
# redirect = "https://www.{server_name}"
"#
        );
    }
    text
}

/// The site that leads to LiveKit's relay, on the host of its signalling.
#[must_use]
pub fn turn_site(Turn { host, .. }: &Turn, livekit: &str) -> String {
    let livekit = livekit.rsplit_once(':').map_or(livekit, |(host, _)| host);
    format!(
        r#"
# Media for callers whose firewall blocks everything but 443: TURN inside TLS, to LiveKit's relay.
[sites."{host}"]
kind     = "turn"
upstream = "tcp://{livekit}:{TURN_PORT}"
"#
    )
}

/// The stack, with every secret taken from `.env`.
#[must_use]
pub fn compose(deployment: &Deployment) -> String {
    let web = match &deployment.turn {
        Some(_) => format!(
            "  web:\n    ipam:\n      # LiveKit has a fixed address in it.\n      config: [{{ subnet: {NETWORK} }}]\n"
        ),
        None => "  web:\n".into(),
    };
    let rest = r#"  data:
    internal: true

volumes:
  vestibule:
  synapse:
  postgres:
"#;
    let networks = ["networks:\n", &web, rest].concat();
    [edge_service(deployment), homeserver_services(deployment), call_services(deployment), networks].concat()
}

fn edge_service(deployment: &Deployment) -> String {
    let server_name = &deployment.server_name;
    let aliases: String = deployment.hosts().iter().map(|host| format!("\n          - {host}")).collect();
    let version = env!("CARGO_PKG_VERSION");
    format!(
        r#"# {server_name}: homeserver, calls, and reverse proxy. Beside this file: vestibule.toml, livekit.yaml,
# homeserver-lines.yaml, and, with secrets, .env and {REGISTRATION}. To start:
#   docker compose run --rm --no-deps synapse generate
#   docker compose up --detach
services:
  vestibule:
    image: vestibule:{version}          # docker build -t vestibule:{version} . in its source
    restart: unless-stopped
    read_only: true
    cap_drop: [ALL]
    # Docker keeps every line without these limits, and the access log is on by default.
    logging: &logging
      driver: json-file
      options: {{ max-size: 20m, max-file: "5" }}
    ports:
      - "80:80"
      - "443:443"
    volumes:
      # The directory, not the file, or edits by programs that replace the file are not seen. vestibule cannot read the secrets.
      - ./:/etc/vestibule:ro
      - vestibule:/var/lib/vestibule
    networks:
      web:
        # The public names resolve to vestibule inside the network too: lk-jwt-service uses https://{server_name} and LIVEKIT_URL, and
        # many routers do not route that back.
        aliases:{aliases}

"#
    )
}

fn homeserver_services(deployment: &Deployment) -> String {
    let Deployment { server_name, addresses, .. } = deployment;
    let postgres = &addresses.postgres;
    format!(
        r#"  synapse:
    image: {SYNAPSE}
    # The file from `generate`, with its keys and secrets; homeserver-lines.yaml overrides it.
    command: run -c /data/homeserver.yaml -c /etc/synapse/homeserver-lines.yaml
    restart: unless-stopped
    logging: *logging
    depends_on:
      postgres:
        condition: service_healthy
    environment:
      SYNAPSE_SERVER_NAME: {server_name}
      SYNAPSE_REPORT_STATS: "no"
      # PostgreSQL's client library reads it, so only .env contains the password.
      PGPASSWORD: ${{POSTGRES_PASSWORD:?}}
    volumes:
      - synapse:/data
      - ./homeserver-lines.yaml:/etc/synapse/homeserver-lines.yaml:ro
      - ./{REGISTRATION}:/etc/synapse/{REGISTRATION}:ro
    networks: [web, data]

  {postgres}:
    image: {POSTGRES}
    restart: unless-stopped
    logging: *logging
    environment:
      POSTGRES_USER: synapse
      POSTGRES_PASSWORD: ${{POSTGRES_PASSWORD:?}}
      # Synapse requires this collation, which cannot be changed after the first start.
      POSTGRES_INITDB_ARGS: --encoding=UTF8 --locale=C
    volumes:
      - postgres:/var/lib/postgresql/data
    healthcheck:
      test: [CMD, pg_isready, --quiet, --host=127.0.0.1, --username=synapse]
      interval: 10s
      start_period: 60s
    networks: [data]

"#
    )
}

fn call_services(deployment: &Deployment) -> String {
    let server_name = &deployment.server_name;
    let (sfu_url, synapse) = (deployment.sfu_url(), &deployment.addresses.synapse);
    let network = match &deployment.turn {
        Some(Turn { address, .. }) => format!(
            "\n      web:\n        # The only private address that the relay in livekit.yaml may reach.\n        ipv4_address: {address}"
        ),
        None => " [web]".into(),
    };
    format!(
        r#"  lk-jwt-service:
    image: {LK_JWT}
    restart: unless-stopped
    logging: *logging
    # Synapse's group, which can read {REGISTRATION}.
    group_add: ["{REGISTRATION_GROUP}"]
    environment:
      # Exactly the `url` of the transports in homeserver-lines.yaml, or clients get no token.
      LIVEKIT_URL: {sfu_url}
      LIVEKIT_KEY: {LIVEKIT_KEY}
      LIVEKIT_SECRET: ${{LIVEKIT_SECRET:?}}
      # As an application service of Synapse, which issues its tokens; any other setup is deprecated.
      LIVEKIT_AS_REGISTRATION_FILE: /etc/{REGISTRATION}
      LIVEKIT_HS_SERVER_NAME: {server_name}
      # The server whose users may start calls here.
      LIVEKIT_FULL_ACCESS_HOMESERVERS: {server_name}
      # The internal address of the homeserver, without its rate limits per client address.
      LIVEKIT_CS_API_URL_OVERRIDES: {server_name}=http://{synapse}
    volumes:
      - ./{REGISTRATION}:/etc/{REGISTRATION}:ro
    # No healthcheck: the image has no program for one.
    networks: [web]

  livekit:
    image: {LIVEKIT}
    command: --config /etc/livekit.yaml
    restart: unless-stopped
    logging: *logging
    environment:
      LIVEKIT_KEYS: "{LIVEKIT_KEY}: ${{LIVEKIT_SECRET:?}}"
    ports:
      # Media does not pass through vestibule: open both ports to the internet.
      - "7881:7881"                 # ICE over TCP, not TLS
      - "7882:7882/udp"             # all media, multiplexed
    volumes:
      - ./livekit.yaml:/etc/livekit.yaml:ro
    healthcheck:
      test: [CMD, wget, --quiet, --spider, "http://127.0.0.1:7880/"]
      interval: 30s
      start_period: 30s
    networks:{network}

"#
    )
}

/// The registration of lk-jwt-service at Synapse, with the names that Synapse 1.163 reads and those that are stable.
#[must_use]
pub fn registration(deployment: &Deployment) -> String {
    let Deployment { addresses: Addresses { lk_jwt, .. }, secrets, .. } = deployment;
    let Secrets { as_token, hs_token, .. } = secrets;
    format!(
        r#"# lk-jwt-service as an application service of Synapse. Only those two may read this file: the as_token can act for
# every user of this homeserver. Generated once; after a change, restart both.
id: livekit
as_token: {as_token}
hs_token: {hs_token}
sender_localpart: _lk_jwt_service
namespaces: {{ users: [{{ exclusive: false, regex: '.*' }}] }}     # it looks up the members of rooms
url: null                                                      # it receives no events
io.element.msc4502.scopes: ["urn:matrix:client:io.element.msc4502:rooms:is_joined"]
io.element.msc4512.proxy_prefix: rtc/livekit
io.element.msc4512.proxy_url: http://{lk_jwt}
scopes: ["urn:matrix:client:rooms:is_joined"]
proxy_prefix: rtc/livekit
proxy_url: http://{lk_jwt}
"#
    )
}

/// LiveKit's configuration, without its secret.
#[must_use]
pub fn livekit(deployment: &Deployment) -> String {
    let Addresses { lk_jwt, livekit, bind, .. } = &deployment.addresses;
    let port = port(livekit);
    let (internal, turn) = match &deployment.turn {
        Some(turn) => (INTERNAL_ADDRESS, relay(turn, bind)),
        None => ("", String::new()),
    };
    format!(
        r#"port: {port}
bind_addresses: ["{bind}"]
rtc:
  tcp_port: 7881
  udp_port: 7882
  # LiveKit must announce the public address to clients; behind Docker's bridge it would announce its own.
  use_external_ip: true
{internal}room:
  # Otherwise anyone with a token can create rooms, whatever LIVEKIT_FULL_ACCESS_HOMESERVERS says.
  auto_create: false
webhook:
  # Tells lk-jwt-service when a participant loses the connection. The name of the key, not its secret.
  api_key: {LIVEKIT_KEY}
  urls: ["http://{lk_jwt}/sfu_webhook"]
{turn}logging:
  level: info
"#
    )
}

/// Without it the relay would have to send to the public address from inside, which many routers do not turn around.
pub const INTERNAL_ADDRESS: &str = "  # And its internal address, which its relay (below) uses.
  advertise_internal_ip: true
";

/// LiveKit's relay, to which the edge forwards what is inside TLS on 443.
#[must_use]
pub fn relay(turn: &Turn, bind: &str) -> String {
    let Turn { host, address } = turn;
    format!(
        r#"turn:
  enabled: true
  domain: {host}
  tls_port: {TURN_PORT}
  external_tls: true                # vestibule terminates TLS
  bind_addresses: ["{bind}"]
  # Only LiveKit itself: with a network here, anyone with a call token could reach every container in it.
  allow_restricted_peer_cidrs: ["{address}/{}"]
"#,
        if address.is_ipv4() { 32 } else { 128 }
    )
}

/// What Synapse needs beside what it generates for itself.
#[must_use]
pub fn homeserver_lines(deployment: &Deployment) -> String {
    let Deployment { homeserver, addresses, .. } = deployment;
    let (sfu_url, jwt_url, port) = (deployment.sfu_url(), deployment.jwt_url(), port(&addresses.synapse));
    let Addresses { postgres, bind, registration, .. } = addresses;
    format!(
        r#"# Synapse's settings for Element Call and for running behind vestibule. Synapse reads this file after homeserver.yaml;
# each key here replaces the same key there.
public_baseurl: https://{homeserver}/
listeners:
  - port: {port}
    type: http
    bind_addresses: ["{bind}"]
    x_forwarded: true               # otherwise all clients share one address and one rate limit
    resources: [{{ names: [client, federation] }}]
experimental_features:
  msc4143_enabled: true             # the transports endpoint, which clients since August 2026 use
  msc4222_enabled: true             # state_after in /sync
  msc4502_enabled: true             # lk-jwt-service may look up the members of rooms
  msc4512_enabled: true             # Synapse issues call tokens through lk-jwt-service
app_service_config_files: ["{registration}"]   # replaces the list in homeserver.yaml: add its files here
max_event_delay_duration: 24h       # turns delayed events on (MSC4140); no flag is needed
matrix_rtc:
  transports:
    - type: livekit
      url: {sfu_url}                # exactly LIVEKIT_URL
      livekit_service_url: {jwt_url}   # for clients older than November 2026
rc_message: {{ per_second: 0.5, burst_count: 30 }}
rc_delayed_event_mgmt: {{ per_second: 1, burst_count: 20 }}
# If your homeserver already has a database, remove these lines.
database:
  name: psycopg2
  args: {{ host: {postgres}, user: synapse, dbname: synapse, cp_min: 5, cp_max: 10 }}   # the password is in PGPASSWORD
"#
    )
}

/// `.env`, which compose reads by itself.
#[must_use]
pub fn env(secrets: &Secrets) -> String {
    let Secrets { livekit, postgres, .. } = secrets;
    format!(
        "# Generated once. With another POSTGRES_PASSWORD, Synapse cannot open its database.\n\
         LIVEKIT_SECRET={livekit}\n\
         POSTGRES_PASSWORD={postgres}\n"
    )
}

fn port(address: &str) -> &str {
    address.rsplit_once(':').map_or("", |(_, port)| port)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::config;

    fn deployment(layout: Layout, homeserver: &str) -> Deployment {
        Deployment {
            server_name: "example.org".into(),
            homeserver: homeserver.into(),
            layout,
            turn: Some(Turn::in_compose("example.org")),
            email: Some("admin@example.org".into()),
            addresses: Addresses::default(),
            secrets: Secrets {
                livekit: "l".repeat(64),
                postgres: "p".repeat(64),
                as_token: "a".repeat(64),
                hs_token: "h".repeat(64),
            },
        }
    }

    #[test]
    fn the_examples_are_what_init_writes() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
        let mut files = render(&deployment(Layout::ThreeHosts, "matrix.example.org"));
        files.retain(|file| ![".env", REGISTRATION].contains(&file.name));
        let one_host = vestibule_toml(&deployment(Layout::OneHost, "matrix.example.org"));
        files.push(File { name: "one-host.toml", mode: 0o644, text: one_host });
        assert_eq!(files.len(), 5);
        for file in files {
            let path = folder.join(file.name);
            if std::env::var_os("BLESS").is_some() {
                fs::write(&path, &file.text).unwrap();
            }
            assert_eq!(fs::read_to_string(&path).unwrap(), file.text, "config/{} (BLESS=1 rewrites it)", file.name);
        }
    }

    #[test]
    fn every_layout_is_a_configuration_without_a_warning() {
        for layout in [Layout::ThreeHosts, Layout::OneHost] {
            for homeserver in ["matrix.example.org", "example.org", "synapse.example.net"] {
                let deployment = deployment(layout, homeserver);
                let text = vestibule_toml(&deployment);
                let parsed = config::parse("vestibule.toml", &text, "/".into(), &|_| None);
                let (plan, warnings) = parsed.unwrap_or_else(|report| panic!("{}\n{text}", report.render()));
                assert_eq!(warnings.render(), "", "{text}");
                let matrix = plan.matrix.unwrap();
                assert_eq!(matrix.homeserver, format!("https://{homeserver}"));
                assert_eq!(matrix.rtc_services().collect::<Vec<_>>(), [deployment.jwt_url()]);
                assert_eq!(matrix.sfus().collect::<Vec<_>>(), [deployment.sfu_url()]);
                let mut sites: Vec<_> = plan.sites.iter().map(|site| site.host.as_str().to_owned()).collect();
                let mut hosts = deployment.hosts();
                sites.sort();
                hosts.sort();
                assert_eq!(sites, hosts);
            }
        }
    }

    #[test]
    fn the_relay_reaches_one_private_address_or_is_left_out() {
        let with = deployment(Layout::OneHost, "matrix.example.org");
        let without = Deployment { turn: None, ..with.clone() };
        let of = |deployment: &Deployment, name: &str| {
            render(deployment).into_iter().find(|file| file.name == name).unwrap().text
        };
        assert!(of(&with, "livekit.yaml").contains("allow_restricted_peer_cidrs: [\"172.16.83.10/32\"]"));
        assert!(of(&with, "compose.yaml").contains("ipv4_address: 172.16.83.10"));
        assert!(of(&with, "compose.yaml").contains("- turn.example.org"));
        assert!(of(&with, "vestibule.toml").contains("upstream = \"tcp://livekit:5349\""));
        for name in ["vestibule.toml", "compose.yaml", "livekit.yaml"] {
            let text = of(&without, name);
            assert!(
                !["turn", "ipv4_address", "advertise_internal_ip"].iter().any(|word| text.contains(word)),
                "{text}"
            );
        }
    }

    #[test]
    fn secrets_are_long_random_and_each_in_one_file() {
        let (one, other) = (Secrets::generate().unwrap(), Secrets::generate().unwrap());
        assert!(one.livekit.len() >= 32 && one.livekit != other.livekit && one.livekit != one.postgres);
        assert!(one.as_token.len() == 64 && one.as_token != one.hs_token && one.as_token != other.as_token);
        let deployment = Deployment { secrets: one.clone(), ..deployment(Layout::ThreeHosts, "matrix.example.org") };
        let Secrets { livekit, postgres, as_token, hs_token } = one;
        for file in render(&deployment) {
            let holds = |secrets: [&String; 2]| secrets.map(|secret| file.text.contains(secret));
            let (mode, passwords, tokens) = match file.name {
                ".env" => (0o600, [true; 2], [false; 2]),
                REGISTRATION => (0o640, [false; 2], [true; 2]),
                _ => (0o644, [false; 2], [false; 2]),
            };
            let found = (file.mode, holds([&livekit, &postgres]), holds([&as_token, &hs_token]));
            assert_eq!(found, (mode, passwords, tokens), "{}", file.name);
        }
        let shown = format!("{deployment:?}");
        assert!(![livekit, postgres, as_token, hs_token].iter().any(|secret| shown.contains(secret)));
    }
}
