//! Fields that are set, added and removed, and the placeholders in their values.

use super::{Remark, lexer::Token, model::Edit, parser::Directive};
use crate::config::{
    edits::{FRAMING, OF_THE_CLIENT},
    plan::CATCH_ALL,
};

/// Which placeholders a text may have.
#[derive(Clone, Copy)]
pub enum Placeholders<'h> {
    /// None.
    None,
    /// Those of field values.
    Field,
    /// Those of redirects of a host.
    Redirect {
        /// The host.
        host: &'h str,
        /// Whether it speaks plain HTTP.
        plain: bool,
    },
}

/// The changes of `header`.
pub fn response(line: &Directive, args: &[Token], remarks: &mut Vec<Remark>) -> Vec<Edit> {
    named(line, args).iter().flat_map(|(line, name, values)| response_edit(*line, name, values, remarks)).collect()
}

/// The changes of `request_header`.
pub fn request(line: &Directive, args: &[Token], remarks: &mut Vec<Remark>) -> Vec<Edit> {
    named(line, args).iter().flat_map(|(line, name, values)| request_edit(*line, name, values, remarks)).collect()
}

/// Each field with its line and what stands behind it.
fn named(line: &Directive, args: &[Token]) -> Vec<(usize, String, Vec<String>)> {
    let words = |args: &[Token]| args.iter().map(|token| token.text.clone()).collect::<Vec<_>>();
    let mut found = Vec::new();
    if let [field, values @ ..] = args {
        found.push((line.line, field.text.trim_end_matches(':').to_owned(), words(values)));
    }
    for inner in line.block.iter().flatten().filter(|inner| inner.name != "defer") {
        found.push((inner.line, inner.name.trim_end_matches(':').to_owned(), words(&inner.args)));
    }
    found
}

/// One change of a response.
pub fn response_edit(line: usize, name: &str, values: &[String], remarks: &mut Vec<Remark>) -> Option<Edit> {
    let edit = edit(name, values, Placeholders::Field);
    match edit {
        Some(edit) if FRAMING.contains(&edit.name.to_ascii_lowercase().as_str()) => None,
        Some(edit) => Some(edit),
        None => {
            remarks.push(Remark::lost(line, format!("the field `{}`", [name, &values.join(" ")].join(" ").trim())));
            None
        }
    }
}

/// One change of a request; what proxies usually have to be told to say, we say.
pub fn request_edit(line: usize, name: &str, values: &[String], remarks: &mut Vec<Remark>) -> Option<Edit> {
    let lower = name.trim_start_matches(['+', '?', '>', '-']).to_ascii_lowercase();
    let value = values.first().map_or("", String::as_str);
    let client = [
        "{remote_host}",
        "{remote}",
        "{client_ip}",
        "{http.request.remote.host}",
        "{header.X-Forwarded-For}",
        "{http.request.header.X-Forwarded-For}",
        "",
    ];
    let host = ["{host}", "{hostport}", "{http.request.host}", "{http.request.hostport}", "{header.Host}"];
    let scheme = ["{scheme}", "{http.request.scheme}"];
    let removes = name.starts_with('-');
    let is_ours = !removes
        && match lower.as_str() {
            "host" | "x-forwarded-host" => host.contains(&value),
            "x-forwarded-for" => client.contains(&value),
            "x-forwarded-proto" => scheme.contains(&value),
            "connection" | "upgrade" => true,
            _ => false,
        };
    if is_ours || (removes && ["proxy", "forwarded", "connection"].contains(&lower.as_str())) {
        return None;
    }
    let text = || [name, &values.join(" ")].join(" ").trim().to_owned();
    if lower == "host" {
        remarks.push(Remark::lost(
            line,
            format!(
                "`{}`: the upstream receives the host that the client requested; another one is `host` in its table",
                text()
            ),
        ));
        return None;
    }
    if OF_THE_CLIENT.contains(&lower.as_str()) {
        let help = if removes {
            "upstreams always receive it"
        } else {
            "vestibule sets this field itself; if a proxy in front knows the client, list its networks in listen.trusted_proxies"
        };
        remarks.push(Remark::lost(line, format!("`{}`: {help}", text())));
        return None;
    }
    match edit(name, values, Placeholders::Field) {
        Some(edit) if !FRAMING.contains(&lower.as_str()) => Some(edit),
        _ => {
            remarks.push(Remark::lost(line, format!("the request field `{}`", text())));
            None
        }
    }
}

fn edit(name: &str, values: &[String], placeholders: Placeholders<'_>) -> Option<Edit> {
    let (how, bare) = match name.split_at_checked(1) {
        Some(("-", bare)) => ("remove", bare),
        Some(("+", bare)) => ("add", bare),
        Some(("?", bare)) => ("default", bare),
        Some((">", bare)) => ("set", bare),
        _ => ("set", name),
    };
    let bare = bare.trim_start_matches(['>', '+']);
    if bare.is_empty() || bare.parse::<http::HeaderName>().is_err() {
        return None;
    }
    let value = match values {
        [] => String::new(),
        [one] => template(one, placeholders)?,
        // A search and its replacement.
        _ => return None,
    };
    let has_control = value.chars().any(char::is_control);
    (!has_control && (how == "remove" || !values.is_empty())).then(|| Edit { how, name: bare.to_owned(), value })
}

/// A text with Caddy's placeholders as one with ours; `None` where it has one that we do not have.
pub fn template(text: &str, allowed: Placeholders<'_>) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, after) = rest.split_at(at);
        out.push_str(before);
        let name = after[1..].split('}').next().unwrap_or_default();
        let is_placeholder = after.starts_with('{')
            && !name.is_empty()
            && name.len() + 1 < after.len()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-[]".contains(&b));
        if is_placeholder {
            out.push_str(&placeholder(name, allowed)?);
            rest = &after[name.len() + 2..];
        } else {
            let brace = &after[..1];
            out.push_str(brace);
            if !matches!(allowed, Placeholders::None) {
                out.push_str(brace);
            }
            rest = &after[1..];
        }
    }
    Some(out + rest)
}

fn placeholder(name: &str, allowed: Placeholders<'_>) -> Option<String> {
    let name = name.strip_prefix("http.request.").unwrap_or(name);
    let ours = |text: &str| Some(format!("{{{text}}}"));
    match (allowed, name) {
        (Placeholders::Field, "host" | "hostport") => ours("host"),
        (Placeholders::Field, "remote_host" | "remote" | "client_ip" | "remote.host" | "http.vars.client_ip") => {
            ours("client_ip")
        }
        (Placeholders::Field, "scheme") => ours("scheme"),
        (Placeholders::Field, "uuid") => ours("request_id"),
        (Placeholders::Redirect { host: CATCH_ALL, .. }, "host" | "hostport") => ours("host"),
        (Placeholders::Redirect { host, .. }, "host" | "hostport") => Some(host.replace('{', "{{").replace('}', "}}")),
        (Placeholders::Redirect { plain, .. }, "scheme") => Some(if plain { "http" } else { "https" }.into()),
        (Placeholders::Redirect { .. }, "uri" | "orig_uri") => ours("uri"),
        (Placeholders::Redirect { .. }, "path" | "uri.path" | "orig_uri.path") => ours("path"),
        (Placeholders::Redirect { .. }, "query" | "uri.query") => ours("query"),
        // The labels of a name that is not known.
        (Placeholders::Redirect { host: CATCH_ALL, .. }, _) => None,
        (Placeholders::Redirect { host, .. }, name) => {
            let index: usize =
                name.strip_prefix("labels.").or_else(|| name.strip_prefix("host.labels."))?.parse().ok()?;
            host.rsplit('.').nth(index).map(str::to_owned)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_become_ours() {
        let redirect = |text: &str| template(text, Placeholders::Redirect { host: "a.b.c", plain: false });
        assert_eq!(redirect("{scheme}://www.{host}{uri}").as_deref(), Some("https://www.a.b.c{uri}"));
        assert_eq!(redirect("https://{labels.2}.x/{http.request.uri.path}").as_deref(), Some("https://a.x/{path}"));
        assert_eq!(redirect("https://x/{re.1}"), None);
        let anywhere = |text: &str| template(text, Placeholders::Redirect { host: "*", plain: true });
        assert_eq!(anywhere("https://www.{host}{uri}").as_deref(), Some("https://www.{host}{uri}"));
        assert_eq!(anywhere("https://{labels.0}.x"), None);
        assert_eq!(template("{\"a\": {}}", Placeholders::None).as_deref(), Some("{\"a\": {}}"));
        assert_eq!(template("{client_ip} { x", Placeholders::Field).as_deref(), Some("{client_ip} {{ x"));
    }
}
