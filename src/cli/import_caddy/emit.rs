//! The model as TOML, in the order in which a person would write it.

use serde_json::{Map, Value};

use super::{
    lexer::{ENV, ENV_DEFAULT, ENV_END, SEGMENT},
    model::{Action, Edit, Route, Site, TargetConfig, Upstream},
    write_routes,
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
        if let Some(age) = &documents.max_age {
            text += &format!("well_known_max_age = {age}\n");
        }
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
    let host = quote(&site.name());
    let mut text = format!("\n[sites.{host}]\n");
    match &site.root {
        Some(Action::Proxy(kind, server)) => {
            if *kind != Kind::Http {
                text += &format!("kind     = {}\n", quote(kind.as_str()));
            }
            text += &format!("upstream = {}\n", upstream(server));
            if let Some(mas) = &site.mas {
                text += &format!("mas      = {}\n", upstream(mas));
            }
        }
        Some(other) => text += &format!("{}\n", action(other).join("\n")),
        None => {}
    }
    for (key, value) in [
        ("tls", &site.tls),
        ("max_body", &site.max_body),
        ("basic_auth", &site.basic_auth),
        ("forward_auth", &site.forward_auth),
    ] {
        if let Some(value) = value {
            text += &format!("{key} = {value}\n");
        }
    }
    if site.hsts {
        text += "hsts = true\n";
    }
    if let Some(well_known) = site.well_known {
        text += &format!("well_known = {well_known}\n");
    }
    for (key, list) in [("request_fields", &site.request_fields), ("response_fields", &site.response_fields)] {
        if !list.is_empty() {
            text += &format!("{key} = {}\n", edits(list));
        }
    }
    if write_routes::fits_a_table(&site.routes) {
        if !site.routes.is_empty() {
            text += &format!("[sites.{host}.routes]\n");
        }
        for route in &site.routes {
            text += &format!("{} = {{ {} }}\n", quote(&route.prefix), keys(route).join(", "));
        }
    } else {
        for route in &site.routes {
            text += &format!("[[sites.{host}.routes]]\npath = {}\n{}\n", quote(&route.prefix), keys(route).join("\n"));
        }
    }
    text
}

/// The keys of a route, each with its value.
fn keys(route: &Route) -> Vec<String> {
    let mut keys = Vec::new();
    for (key, values) in [("methods", &route.methods), ("from", &route.from)] {
        if !values.is_empty() {
            keys.push(format!("{key} = {}", list(values)));
        }
    }
    if !route.fields.is_empty() {
        let pairs: Vec<_> =
            route.fields.iter().map(|(name, value)| format!("{} = {}", quote(name), quote(value))).collect();
        keys.push(format!("fields = {{ {} }}", pairs.join(", ")));
    }
    keys.extend(action(&route.action));
    if route.strip {
        keys.push("strip_prefix = true".into());
    }
    for (key, value) in [("add_prefix", &route.add_prefix), ("rewrite", &route.rewrite)] {
        keys.extend(value.as_ref().map(|value| format!("{key} = {}", quote(value))));
    }
    let protected = [("basic_auth", &route.basic_auth), ("forward_auth", &route.forward_auth)];
    for (key, value) in [("max_body", &route.max_body)].into_iter().chain(protected) {
        keys.extend(value.as_ref().map(|value| format!("{key} = {value}")));
    }
    for (key, list) in [("request_fields", &route.request_fields), ("response_fields", &route.response_fields)] {
        if !list.is_empty() {
            keys.push(format!("{key} = {}", edits(list)));
        }
    }
    keys
}

/// Changes of fields, in the order in which they are applied.
fn edits(edits: &[Edit]) -> String {
    let mut parts = Vec::new();
    for how in ["set", "add", "default"] {
        let mut names: Vec<&str> = Vec::new();
        for edit in edits.iter().filter(|edit| edit.how == how) {
            if !names.iter().any(|name| name.eq_ignore_ascii_case(&edit.name)) {
                names.push(&edit.name);
            }
        }
        let pair = |name: &&str| {
            let values = edits.iter().filter(|edit| edit.how == how && edit.name.eq_ignore_ascii_case(name));
            let values: Vec<_> = values.map(|edit| edit.value.clone()).collect();
            let value = if let [one] = values.as_slice() { quote(one) } else { list(&values) };
            format!("{} = {value}", quote(name))
        };
        if !names.is_empty() {
            parts.push(format!("{how} = {{ {} }}", names.iter().map(pair).collect::<Vec<_>>().join(", ")));
        }
    }
    let removed: Vec<_> = edits.iter().filter(|edit| edit.how == "remove").map(|edit| edit.name.clone()).collect();
    if !removed.is_empty() {
        parts.push(format!("remove = {}", list(&removed)));
    }
    format!("{{ {} }}", parts.join(", "))
}

/// The keys of what a route does.
fn action(action: &Action) -> Vec<String> {
    let one = match action {
        Action::Proxy(Kind::Http, server) => format!("upstream = {}", upstream(server)),
        Action::Proxy(kind, server) => {
            return vec![format!("kind = {}", quote(kind.as_str())), format!("upstream = {}", upstream(server))];
        }
        Action::Redirect { to, status } => match (status, to.strip_suffix("{uri}")) {
            (308, Some(origin)) if origin.matches('/').count() == 2 && !origin.contains('{') => {
                format!("redirect = {}", quote(origin))
            }
            (308, _) => format!("redirect = {{ to = {} }}", quote(to)),
            _ => format!("redirect = {{ to = {}, status = {status} }}", quote(to)),
        },
        Action::Files { root, spa: true } => return vec![format!("files = {}", quote(root)), "spa = true".into()],
        Action::Files { root, spa: false } => format!("files = {}", quote(root)),
        Action::Deny => "deny = true".into(),
        Action::Nothing => "respond = { status = 404 }".into(),
        Action::Respond { status: 200, content_type: None, body } => format!("respond = {}", quote(body)),
        Action::Respond { status, content_type, body } => {
            let content_type =
                content_type.as_ref().map(|kind| format!(", content_type = {}", quote(kind))).unwrap_or_default();
            let body = if body.is_empty() { String::new() } else { format!(", body = {}", quote(body)) };
            format!("respond = {{ status = {status}{content_type}{body} }}")
        }
    };
    vec![one]
}

/// An upstream: its servers, or a table.
pub fn upstream(upstream: &Upstream) -> String {
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
            SEGMENT => out.push_str("{segment}"),
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
