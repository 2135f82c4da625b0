//! The well-known documents of Matrix out of hand-written JSON, mended where that is possible.

use serde_json::{Map, Value};

use super::{Remark, model::Documents};

/// Which of the documents a pattern of a path is about.
pub fn document(pattern: &str) -> Option<&'static str> {
    let path = pattern.strip_prefix("/.well-known/matrix/")?.trim_end_matches(['*', '/']);
    ["client", "server", "support"].into_iter().find(|name| *name == path)
}

/// Takes a document in: what we derive, and what is carried on.
pub fn take(which: &str, text: &str, host: &str, line: usize, documents: &mut Documents) -> Vec<Remark> {
    let mut remarks = Vec::new();
    let path = format!("/.well-known/matrix/{which}");
    let Some((mut members, mended)) = object(text) else {
        return vec![Remark::lost(line, format!("{path} is not a JSON object and cannot be corrected"))];
    };
    if let Some(how) = mended {
        remarks.push(Remark::mended(line, format!("the JSON of {path} {how}, so no client can read it")));
    }
    if without_null(&mut members) {
        remarks.push(Remark::lost(line, format!("`null` in {path}: TOML has no null")));
    }
    match which {
        "client" => {
            documents.hosts.1.push(host.to_owned());
            client(members, line, documents, &mut remarks);
        }
        "server" => {
            documents.hosts.0.push(host.to_owned());
            server(members, line, documents, &mut remarks);
        }
        _ => merge(&mut documents.support, members, line, &mut remarks),
    }
    remarks
}

fn client(mut members: Map<String, Value>, line: usize, documents: &mut Documents, remarks: &mut Vec<Remark>) {
    if let Some(base) = members.get("m.homeserver").and_then(|one| one.get("base_url")).and_then(Value::as_str) {
        let base = base.trim_end_matches('/').to_owned();
        if documents.homeserver.get_or_insert_with(|| base.clone()) != &base {
            remarks.push(Remark::lost(line, format!("another document names a homeserver other than {base}")));
        }
        members.remove("m.homeserver");
    }
    let foci = members.get("org.matrix.msc4143.rtc_foci").and_then(Value::as_array);
    let urls: Option<Vec<&str>> = foci.map(|foci| foci.iter().filter_map(livekit_url).collect());
    // A focus of another kind, or with more to say, stays as it is written.
    if let (Some(foci), Some(urls)) = (foci, &urls)
        && foci.len() == urls.len()
    {
        for url in urls {
            if url.ends_with('/') {
                let text = format!("{url} must not end with `/`: clients append `/sfu/get` to it");
                remarks.push(Remark::mended(line, text));
            }
            let url = url.trim_end_matches('/').to_owned();
            if !documents.rtc_services.contains(&url) {
                documents.rtc_services.push(url);
            }
        }
        members.remove("org.matrix.msc4143.rtc_foci");
    }
    merge(&mut documents.client, members, line, remarks);
}

fn livekit_url(focus: &Value) -> Option<&str> {
    let focus = focus.as_object().filter(|focus| focus.len() == 2)?;
    focus.get("type").filter(|kind| *kind == "livekit")?;
    focus.get("livekit_service_url")?.as_str().filter(|url| url.starts_with("https://"))
}

fn server(mut members: Map<String, Value>, line: usize, documents: &mut Documents, remarks: &mut Vec<Remark>) {
    if let Some(Value::String(server)) = members.remove("m.server") {
        let has_port = server.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        if !has_port {
            let text = format!("`m.server` without a port means an SRV record or port 8448; it becomes {server}:443");
            remarks.push(Remark::mended(line, text));
        }
        let server = if has_port { server } else { format!("{server}:443") };
        if documents.federation.get_or_insert_with(|| server.clone()) != &server {
            remarks.push(Remark::lost(line, format!("another document names a server other than {server}")));
        }
    }
    merge(&mut documents.server, members, line, remarks);
}

fn merge(into: &mut Map<String, Value>, members: Map<String, Value>, line: usize, remarks: &mut Vec<Remark>) {
    for (key, value) in members {
        match into.get(&key) {
            Some(old) if *old != value => {
                remarks.push(Remark::lost(line, format!("another document has a different `{key}`")));
            }
            Some(_) => {}
            None => {
                into.insert(key, value);
            }
        }
    }
}

/// An object, and how it had to be mended.
fn object(text: &str) -> Option<(Map<String, Value>, Option<String>)> {
    let read = |text: &str| serde_json::from_str::<Map<String, Value>>(text).ok();
    if let Some(members) = read(text) {
        return Some((members, None));
    }
    let (closed, missing) = close(text);
    if let Some(members) = read(&closed) {
        let last = if missing.len() == 1 { "its last" } else { "the last" };
        return Some((members, Some(format!("lacks {last} `{missing}`"))));
    }
    read(&without_commas(&closed)).map(|members| (members, Some("has extra commas or wrong brackets".into())))
}

/// A text with what it leaves open closed, and what that took.
fn close(text: &str) -> (String, String) {
    let (mut open, mut in_string, mut escaped) = (Vec::new(), false, false);
    for c in text.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            '{' if !in_string => open.push('}'),
            '[' if !in_string => open.push(']'),
            '}' | ']' if !in_string => {
                open.pop();
            }
            _ => {}
        }
    }
    let missing: String = in_string.then_some('"').into_iter().chain(open.into_iter().rev()).collect();
    (format!("{}{missing}", text.trim_end().trim_end_matches(',')), missing)
}

/// A text without commas before a closing bracket.
fn without_commas(text: &str) -> String {
    let (mut out, mut in_string, mut escaped) = (String::new(), false, false);
    for c in text.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            '}' | ']' if !in_string => {
                let len = out.trim_end().trim_end_matches(',').len();
                out.truncate(len);
            }
            _ => {}
        }
        out.push(c);
    }
    out
}

fn without_null(members: &mut Map<String, Value>) -> bool {
    fn clean(value: &mut Value) -> bool {
        match value {
            Value::Object(members) => without_null(members),
            Value::Array(items) => {
                let before = items.len();
                items.retain(|item| !item.is_null());
                let fewer = items.len() != before;
                items.iter_mut().fold(fewer, |any, item| clean(item) || any)
            }
            Value::Number(number) => {
                // TOML's integers end where an i64 does.
                let too_large = number.is_u64() && number.as_i64().is_none();
                if too_large {
                    *value = Value::String(number.to_string());
                }
                too_large
            }
            _ => false,
        }
    }
    let before = members.len();
    members.retain(|_, value| !value.is_null());
    let fewer = members.len() != before;
    members.values_mut().fold(fewer, |any, value| clean(value) || any)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_mended() {
        for (text, how) in [
            (r#"{"a":1}"#, None),
            (r#"{"a":{"b":[1]}"#, Some("lacks its last `}`")),
            (r#"{"a":{"b":[1"#, Some("lacks the last `]}}`")),
            (r#"{"a":[1,],}"#, Some("has extra commas or wrong brackets")),
            (r#"{"a":"}\"{"#, Some("lacks the last `\"}`")),
        ] {
            assert_eq!(object(text).unwrap().1.as_deref(), how, "{text}");
        }
        for hopeless in ["", "[]", "not json", "{'a':1}", "{\"a\":1}}"] {
            assert!(object(hopeless).is_none(), "{hopeless}");
        }
    }
}
