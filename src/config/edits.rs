//! `request_fields` and `response_fields`: the fields that a site or a route sets, adds, fills in and removes.

use http::HeaderName;
use toml::de::DeValue;

use super::{
    template::{OF_FIELDS, Template},
    tree::{Item, Problem, kind_of, string},
};

/// One change of one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldEdit {
    /// Which field.
    pub name: HeaderName,
    /// What happens to it.
    pub change: FieldChange,
}

/// What happens to a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FieldChange {
    /// It has this value and no other.
    Set(Template),
    /// It has this value besides those it has.
    Add(Template),
    /// It has this value if it has none.
    Default(Template),
    /// It is removed.
    Remove,
}

/// Which message is edited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    /// The request, on its way to the upstream.
    Request,
    /// The response, on its way to the client.
    Response,
}

/// Fields that frame a message or belong to one connection (RFC 9110 section 7.6.1): the edge writes them itself.
pub const FRAMING: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Request fields in which the upstream trusts the edge's word about the client.
pub const OF_THE_CLIENT: [&str; 6] =
    ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-request-id", "forwarded", "cdn-loop"];

/// Parses `{ set = { … }, add = { … }, default = { … }, remove = [ … ] }`.
///
/// # Errors
/// Another shape, a name or value that no field can have, or a field that belongs to the edge.
pub(super) fn parse(item: &Item<'_>, message: Message) -> Result<Vec<FieldEdit>, Problem> {
    let help = "write it like { set = { \"X-Name\" = \"value\" }, remove = [\"Server\"] }";
    let DeValue::Table(table) = item.get_ref() else {
        return Err(Problem::new(format!("expected a table, found {}", kind_of(item.get_ref()))).help(help));
    };
    let (mut edits, mut problems) = (Vec::new(), Vec::new());
    for (key, item) in table.iter() {
        let change: fn(Template) -> FieldChange = match key.get_ref().as_ref() {
            "set" => FieldChange::Set,
            "add" => FieldChange::Add,
            "default" => FieldChange::Default,
            "remove" => {
                for item in list_of(item) {
                    match string(item).and_then(|text| name(text, message)) {
                        Ok(name) => edits.push(FieldEdit { name, change: FieldChange::Remove }),
                        Err(problem) => problems.push(problem.at(item.span())),
                    }
                }
                continue;
            }
            other => {
                let problem = Problem::new(format!("unknown key `{other}`")).at(key.span());
                problems.push(problem.help(format!("known here: set, add, default, remove; {help}")));
                continue;
            }
        };
        let DeValue::Table(fields) = item.get_ref() else {
            let problem = Problem::new(format!("expected a table of fields, found {}", kind_of(item.get_ref())));
            problems.push(problem.at(item.span()).help(help));
            continue;
        };
        for (key, item) in fields.iter() {
            let name = name(key.get_ref(), message).map_err(|problem| problems.push(problem.at(key.span())));
            for item in list_of(item) {
                match (&name, string(item).and_then(value)) {
                    (Ok(name), Ok(value)) => edits.push(FieldEdit { name: name.clone(), change: change(value) }),
                    (Err(()), Ok(_)) => {}
                    (_, Err(problem)) => problems.push(problem.at(item.span())),
                }
            }
        }
    }
    if let Some(problem) = Problem::all(problems) {
        return Err(problem);
    }
    // A field is removed before it is set or added, whatever the order in the file.
    edits.sort_by_key(|edit| edit.change != FieldChange::Remove);
    Ok(edits)
}

/// The items of a list, or the one item that stands for it.
fn list_of<'a, 'i>(item: &'a Item<'i>) -> Vec<&'a Item<'i>> {
    match item.get_ref() {
        DeValue::Array(items) => items.iter().collect(),
        _ => vec![item],
    }
}

pub(super) fn name(text: &str, message: Message) -> Result<HeaderName, Problem> {
    let name: HeaderName = text.parse().map_err(|_| Problem::new(format!("`{text}` is not a field name")))?;
    let text = name.as_str();
    if FRAMING.contains(&text) {
        return Err(Problem::new(format!("`{text}` frames the message; the edge writes it itself")));
    }
    if message == Message::Request && OF_THE_CLIENT.contains(&text) {
        return Err(Problem::new(format!("`{text}` tells the upstream who the client is; the edge writes it itself")));
    }
    Ok(name)
}

fn value(text: &str) -> Result<Template, Problem> {
    if text.bytes().any(|byte| byte < b' ' && byte != b'\t' || byte == 0x7f) {
        return Err(Problem::new("a field value has no line breaks or control characters"));
    }
    Template::parse(text.trim(), OF_FIELDS)
}

/// The fields that Element Web's installation notes recommend ("Configuration best practices"), where the upstream sets
/// none of its own.
pub(super) fn security() -> impl Iterator<Item = FieldEdit> {
    [
        (http::header::X_FRAME_OPTIONS, "SAMEORIGIN"),
        (http::header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (http::header::X_XSS_PROTECTION, "1; mode=block"),
        (http::header::CONTENT_SECURITY_POLICY, "frame-ancestors 'self'"),
    ]
    .into_iter()
    .map(|(name, text)| FieldEdit {
        name,
        change: FieldChange::Default(Template::parse(text, &[]).expect("there is no brace in it")),
    })
}
