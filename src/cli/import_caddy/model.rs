//! What is carried over: our configuration as it will be written, before it is text.

use serde_json::{Map, Value};

use crate::config::plan::Kind;

/// The file to be.
#[derive(Debug, Default)]
pub struct TargetConfig {
    /// Keys of tables other than `matrix` and `sites`: table, key, value as TOML.
    pub settings: Vec<(&'static str, &'static str, String)>,
    /// Ports of `http://` addresses.
    pub http: Vec<u16>,
    /// Ports of all others.
    pub https: Vec<u16>,
    /// `default_bind`: the addresses that are listened on.
    pub bind: Vec<String>,
    /// The sites, in the order of the file.
    pub sites: Vec<Site>,
    /// What the well-known documents said.
    pub documents: Documents,
}

impl TargetConfig {
    /// Sets a key, unless an earlier line of the file has.
    pub fn set(&mut self, table: &'static str, key: &'static str, value: String) -> bool {
        let known = self.settings.iter().find(|(t, k, _)| (*t, *k) == (table, key));
        let agrees = known.is_none_or(|(_, _, old)| *old == value);
        if known.is_none() {
            self.settings.push((table, key, value));
        }
        agrees
    }
}

/// The well-known documents, put together from wherever they stood.
#[derive(Debug, Default)]
pub struct Documents {
    /// `m.homeserver.base_url`.
    pub homeserver: Option<String>,
    /// `livekit_service_url` of every transport.
    pub rtc_services: Vec<String>,
    /// `m.server`.
    pub federation: Option<String>,
    /// Other members.
    pub client: Map<String, Value>,
    /// Other members.
    pub server: Map<String, Value>,
    /// The whole document.
    pub support: Map<String, Value>,
    /// For how long they may be kept, as TOML.
    pub max_age: Option<String>,
    /// Hosts that served `server`, then those that served `client`.
    pub hosts: (Vec<String>, Vec<String>),
}

/// A site.
#[derive(Debug, Clone, Default)]
pub struct Site {
    /// Its name.
    pub host: String,
    /// Its line.
    pub line: usize,
    /// Its port, where it is on one only.
    pub port: Option<u16>,
    /// What everything gets that no route takes.
    pub root: Option<Action>,
    /// The Matrix Authentication Service beside a homeserver.
    pub mas: Option<Upstream>,
    /// Its routes, the first that matches first.
    pub routes: Vec<Route>,
    /// Its own `tls` as TOML.
    pub tls: Option<String>,
    /// `Strict-Transport-Security` is sent.
    pub hsts: bool,
    /// The bound on bodies, as TOML.
    pub max_body: Option<String>,
    /// The users that may come, as TOML.
    pub basic_auth: Option<String>,
    /// The service that is asked who may come, as TOML.
    pub forward_auth: Option<String>,
    /// Changes of the fields of every request.
    pub request_fields: Vec<Edit>,
    /// Changes of the fields of every response.
    pub response_fields: Vec<Edit>,
    /// Whether it serves the documents: `None` as it is by default.
    pub well_known: Option<bool>,
}

impl Site {
    /// How our file calls it: its host, with its port where it is on one only.
    pub fn name(&self) -> String {
        match self.port {
            Some(port) if self.host.contains(':') => format!("[{}]:{port}", self.host),
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.clone(),
        }
    }
}

/// A route of a site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Its path, as our file has it.
    pub prefix: String,
    /// Its line in the Caddyfile.
    pub line: usize,
    /// One of these methods.
    pub methods: Vec<String>,
    /// All of these fields.
    pub fields: Vec<(String, String)>,
    /// A client in one of these networks.
    pub from: Vec<String>,
    /// What it does.
    pub action: Action,
    /// Whether the prefix is taken off.
    pub strip: bool,
    /// `add_prefix`.
    pub add_prefix: Option<String>,
    /// `rewrite`.
    pub rewrite: Option<String>,
    /// The bound on bodies, as TOML.
    pub max_body: Option<String>,
    /// The users that may come, as TOML.
    pub basic_auth: Option<String>,
    /// The service that is asked who may come, as TOML.
    pub forward_auth: Option<String>,
    /// Changes of the fields of a request.
    pub request_fields: Vec<Edit>,
    /// Changes of the fields of a response.
    pub response_fields: Vec<Edit>,
}

/// What happens to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It is passed on.
    Proxy(Kind, Upstream),
    /// It is sent elsewhere, to a target as our file has it.
    Redirect {
        /// Where to.
        to: String,
        /// The status.
        status: u16,
    },
    /// It gets this answer.
    Respond {
        /// The status.
        status: u16,
        /// The type, where it is known.
        content_type: Option<String>,
        /// The body.
        body: String,
    },
    /// It gets a file of this folder, or with `spa` its index.
    Files {
        /// The folder.
        root: String,
        /// `spa`.
        spa: bool,
    },
    /// It is refused.
    Deny,
    /// Nothing answers it.
    Nothing,
}

/// A change of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// What happens: `set`, `add`, `default` or `remove`.
    pub how: &'static str,
    /// The name.
    pub name: String,
    /// The value, as our file has it.
    pub value: String,
}

/// Where requests are passed on to; durations as we write them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Upstream {
    /// Its servers.
    pub servers: Vec<String>,
    /// Further keys of the table, each with its value as TOML.
    pub keys: Vec<(&'static str, String)>,
    /// `health`.
    pub health: Vec<(&'static str, String)>,
    /// `header_up`, until it is that of a rule.
    pub request_fields: Vec<Edit>,
    /// `header_down`, until it is that of a rule.
    pub response_fields: Vec<Edit>,
}

impl Upstream {
    /// Sets a key of the table; the last line that says something of it counts.
    pub fn set(&mut self, key: &'static str, value: String) {
        self.keys.retain(|(known, _)| *known != key);
        self.keys.push((key, value));
    }
}
