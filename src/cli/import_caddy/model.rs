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
    /// What everything gets that no route takes.
    pub root: Option<Action>,
    /// Where a browser goes that comes to `/` of a homeserver.
    pub front: Option<String>,
    /// Longer prefixes.
    pub routes: Vec<Route>,
    /// Its own `tls` as TOML.
    pub tls: Option<String>,
    /// `Strict-Transport-Security` is sent.
    pub hsts: bool,
    /// The bound on bodies, as TOML.
    pub max_body: Option<String>,
    /// It serves the documents, although it is neither the server name nor the homeserver.
    pub well_known: bool,
}

/// A route of a site.
#[derive(Debug, Clone)]
pub struct Route {
    /// Its prefix.
    pub prefix: String,
    /// What it does.
    pub action: Action,
    /// Whether the prefix is taken off.
    pub strip: bool,
}

/// What happens to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It is passed on.
    Proxy(Kind, Upstream),
    /// It is sent to another origin.
    Redirect(String),
    /// It gets this answer.
    Respond {
        /// The status.
        status: u16,
        /// The type, where it is known.
        content_type: Option<String>,
        /// The body.
        body: String,
    },
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
}
