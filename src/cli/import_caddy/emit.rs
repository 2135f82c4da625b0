//! The model as TOML, in the order in which a person would write it.

use serde_json::{Map, Value};

use super::{
    lexer::{ENV, ENV_DEFAULT, ENV_END},
    model::{Action, Site, TargetConfig, Upstream},
};
use crate::config::plan::Kind;

/// The tables in their order; `matrix` and the sites follow.
const TABLES: [&str; 7] = ["listen", "acme", "storage", "tls", "timeouts", "log", "compression"];

/// The part of `[matrix]` that has to be said: keys and values.
pub type Matrix = Vec<(&'static str, String)>;

/// Writes the file.
pub fn write(name: &str, model: &TargetConfig, matrix: &Matrix) -> String {
    let mut text = format!("# From {name}, by `vestibule import-caddy`. Every key: `vestibule reference`.\n");
    for table in TABLES {
        let keys: Vec<_> = model.settings.iter().filter(|(of, _, _)| *of == table).collect();
        if !keys.is_empty() {
            text += &format!("\n[{table}]\n");
        }
        for (_, key, value) in keys {
            text += &format!("{key} = {value}\n");
        }
    }
    if !matrix.is_empty() {
        text += "\n[matrix]\n";
        for (key, value) in matrix {
            text += &format!("{key} = {value}\n");
        }
        let documents = &model.documents;
        for (table, members) in
            [("client", &documents.client), ("server", &documents.server), ("support", &documents.support)]
        {
            if !members.is_empty() {
                text += &format!("\n[matrix.{table}]\n{}", members_of(members));
            }
        }
    }
    for site in &model.sites {
        text += &site_table(site);
    }
    text
}

fn members_of(members: &Map<String, Value>) -> String {
    members.iter().map(|(key, value)| format!("{} = {}\n", quote(key), json(value))).collect()
}

fn site_table(site: &Site) -> String {
    let host = quote(&site.host);
    let mut text = format!("\n[sites.{host}]\n");
    match &site.root {
        Some(Action::Proxy(kind, server)) => {
            if *kind != Kind::Http {
                text += &format!("kind     = {}\n", quote(kind.as_str()));
            }
            text += &format!("upstream = {}\n", upstream(server));
        }
        Some(Action::Redirect(origin)) => text += &format!("redirect = {}\n", quote(origin)),
        Some(Action::Respond { .. }) | None => {}
    }
    if let Some(front) = &site.front {
        text += &format!("redirect = {}\n", quote(front));
    }
    for (key, value) in [("tls", &site.tls), ("max_body", &site.max_body)] {
        if let Some(value) = value {
            text += &format!("{key} = {value}\n");
        }
    }
    for key in [("hsts", site.hsts), ("well_known", site.well_known)].iter().filter(|key| key.1) {
        text += &format!("{} = true\n", key.0);
    }
    let everything = site.root.as_ref().filter(|root| matches!(root, Action::Respond { .. }));
    if everything.is_some() || !site.routes.is_empty() {
        text += &format!("[sites.{host}.routes]\n");
    }
    for route in &site.routes {
        let strip = if route.strip { ", strip_prefix = true" } else { "" };
        text += &format!("{} = {{ {}{strip} }}\n", quote(&route.prefix), action(&route.action));
    }
    everything.map(|root| text.clone() + &format!("\"/\" = {{ {} }}\n", action(root))).unwrap_or(text)
}

fn action(action: &Action) -> String {
    match action {
        Action::Proxy(Kind::Http, server) => format!("upstream = {}", upstream(server)),
        Action::Proxy(kind, server) => format!("kind = {}, upstream = {}", quote(kind.as_str()), upstream(server)),
        Action::Redirect(origin) => format!("redirect = {}", quote(origin)),
        Action::Respond { status: 200, content_type: None, body } => format!("respond = {}", quote(body)),
        Action::Respond { status, content_type, body } => {
            let content_type =
                content_type.as_ref().map(|kind| format!(", content_type = {}", quote(kind))).unwrap_or_default();
            let body = if body.is_empty() { String::new() } else { format!(", body = {}", quote(body)) };
            format!("respond = {{ status = {status}{content_type}{body} }}")
        }
    }
}

fn upstream(upstream: &Upstream) -> String {
    let servers = match upstream.servers.as_slice() {
        [one] => quote(one),
        several => list(several),
    };
    if upstream.keys.is_empty() && upstream.health.is_empty() {
        return servers;
    }
    let table =
        |keys: &[(&str, String)]| keys.iter().map(|(key, value)| format!("{key} = {value}")).collect::<Vec<_>>();
    let mut keys = vec![format!("servers = {}", list(&upstream.servers))];
    keys.extend(table(&upstream.keys));
    if !upstream.health.is_empty() {
        keys.push(format!("health = {{ {} }}", table(&upstream.health).join(", ")));
    }
    format!("{{ {} }}", keys.join(", "))
}

/// An array of strings.
pub fn list(items: &[String]) -> String {
    format!("[{}]", items.iter().map(|item| quote(item)).collect::<Vec<_>>().join(", "))
}

/// A string, with its variables of the environment as we write them.
pub fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            ENV => out.push_str("${"),
            ENV_DEFAULT => out.push_str(":-"),
            ENV_END => out.push('}'),
            '$' => out.push_str("$$"),
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out + "\""
}

/// JSON as TOML in one line. `null` has no form; `well_known` has taken it out.
fn json(value: &Value) -> String {
    match value {
        Value::Null => "\"\"".into(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => match number.as_i64() {
            Some(number) => number.to_string(),
            None => format!("{:?}", number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => quote(text),
        Value::Array(items) => format!("[{}]", items.iter().map(json).collect::<Vec<_>>().join(", ")),
        Value::Object(members) => {
            let members: Vec<_> =
                members.iter().map(|(key, value)| format!("{} = {}", quote(key), json(value))).collect();
            format!("{{ {} }}", members.join(", "))
        }
    }
}
