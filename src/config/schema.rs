//! What the JSON Schema of the file says beyond the type of a value: patterns and ranges, so that an editor rejects what
//! one value alone makes invalid, and takes a `${NAME}` wherever the file does.

use serde_json::{Value, json};

/// A label of a host name, and what the patterns below are made of.
const LABEL: &str = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?";

fn host() -> String {
    format!(r"{LABEL}(\.{LABEL})*\.?")
}

/// A host or an address, with a port.
fn authority() -> String {
    format!(r"({}|\[[0-9A-Fa-f:.]+\])(:[0-9]{{1,5}})?", host())
}

/// The schema of a key, stricter than its type alone.
pub fn refine(key: &str, mut schema: Value) -> Value {
    let text = |pattern: &str| Some(json!({ "type": "string", "pattern": format!("^({pattern})$") }));
    let words = |words: &[&str]| Some(json!({ "enum": words }));
    let constraint = match key {
        "http" | "https" => text(r"(\[[0-9A-Fa-f:.]+\]|[0-9.]*):[0-9]{1,5}"),
        "proxy_protocol" | "trusted_proxies" | "admin_from" | "from" => text(r"[0-9A-Fa-f:.]+(/[0-9]{1,3})?"),
        "email" => text(&format!("(mailto:)?[^@ ,]+@{LABEL}(\\.{LABEL})+")),
        "server_name" | "federation" => text(&format!("{}(:[0-9]{{1,5}})?", host())),
        "homeserver" | "rtc_service" => text(&format!("https?://{}(/[^?#]*)?", authority())),
        "redirect" => text("(https?:/)?/[^ ]*"),
        "add_prefix" | "rewrite" => text("/[^?# ]*"),
        "methods" => text("[!#$%&'*+.^_`|~0-9A-Z-]+"),
        "directory" => text(&format!("letsencrypt|letsencrypt-staging|zerossl|https?://{}(/.*)?", authority())),
        "upstream" | "servers" => text(&format!("(https?|tcp)://{}/?|unix:(//)?/.*", authority())),
        "challenges" => words(&["tls-alpn-01", "http-01", "dns-01", "dns-persist-01"]),
        "encodings" => words(&["zstd", "br", "gzip"]),
        "eab_hmac_key" => text("[A-Za-z0-9_+/-]+=*"),
        "level" => text("([^=,]+=)?(off|error|warn|info|debug|trace)(,([^=,]+=)?(off|error|warn|info|debug|trace))*"),
        "listen" => text(r"off|unix:/.*|(\[[0-9A-Fa-f:.]+\]|[0-9.]*):[0-9]{1,5}"),
        _ => None,
    };
    if let Some(constraint) = constraint {
        constrain(&mut schema, &constraint);
    }
    match key {
        // A process that never ends, a dial without a bound.
        "drain" | "connect_timeout" | "interval" => never_off(&mut schema),
        "header_bytes" | "request_target" => never_off(&mut schema),
        _ => {}
    }
    let most = match key {
        "threads" => 1024_u32,
        "public_port" => 65_535,
        "header_count" => 512,
        "streams_per_connection" => 10_000,
        _ => u32::MAX,
    };
    if schema["type"] == "integer" {
        schema["maximum"] = json!(most);
    }
    schema
}

/// Puts a constraint in place of every plain string: the value, an alternative of it, or an element of its list.
fn constrain(schema: &mut Value, constraint: &Value) {
    if *schema == json!({ "type": "string" }) {
        *schema = constraint.clone();
    } else if let Some(alternatives) = schema.get_mut("anyOf").and_then(Value::as_array_mut) {
        alternatives.iter_mut().for_each(|alternative| constrain(alternative, constraint));
    } else if let Some(items) = schema.get_mut("items") {
        constrain(items, constraint);
    }
}

fn never_off(schema: &mut Value) {
    if let Some(pattern) = schema["pattern"].as_str() {
        schema["pattern"] = json!(pattern.replace("off|", ""));
    }
}

/// Names of hosts, as keys.
pub fn host_names() -> Value {
    json!({ "anyOf": [{ "pattern": format!(r"^(\*|(\*\.)?{})(:[0-9]{{1,5}})?$", host()) }, { "pattern": VARIABLE }] })
}

/// Paths of routes, as keys.
pub fn paths() -> Value {
    json!({ "anyOf": [{ "pattern": "^(=|= +)?/[^?# ]*$" }, { "pattern": VARIABLE }] })
}

/// A string whose value is only known with the environment.
const VARIABLE: &str = r"\$\{";

/// Lets every value be a string with a variable in it, whatever else it has to be.
pub fn accept_variables(schema: &mut Value) {
    let Value::Object(map) = schema else {
        if let Value::Array(items) = schema {
            items.iter_mut().for_each(accept_variables);
        }
        return;
    };
    for (name, inner) in map.iter_mut() {
        match (name.as_str(), inner) {
            ("properties", Value::Object(properties)) => properties.values_mut().for_each(accept_variables),
            ("anyOf" | "items" | "additionalProperties", inner) => accept_variables(inner),
            _ => {}
        }
    }
    let is_constrained = map.contains_key("enum")
        || (map.contains_key("pattern") && map.contains_key("type"))
        || map.get("type").is_some_and(|kind| kind == "integer" || kind == "boolean");
    if is_constrained {
        let description = map.remove("description");
        let plain = Value::Object(std::mem::take(map));
        map.insert("anyOf".into(), json!([plain, { "type": "string", "pattern": VARIABLE }]));
        map.extend(description.map(|description| ("description".to_owned(), description)));
    }
}
