//! Fields that a site or route sets, adds, fills in or removes, on the request or on the response.

use std::{net::IpAddr, sync::Arc};

use http::{HeaderName, HeaderValue, uri::Scheme};

use crate::{
    config::{
        edits::{FieldChange, FieldEdit},
        template::{Part, Placeholder, Template},
    },
    message::{Fields, Value},
};

/// What placeholders stand for in one request.
pub struct Values<'a> {
    /// The client.
    pub client_ip: IpAddr,
    /// How the client came.
    pub scheme: &'a Scheme,
    /// The host of the request, without its port.
    pub host: &'a str,
    /// The id of the exchange.
    pub request_id: &'a str,
    /// The raw path.
    pub path: &'a str,
    /// The raw query, without its question mark.
    pub query: Option<&'a str>,
}

/// The edits of a site and a route, in the order in which they apply.
#[derive(Debug)]
pub struct FieldEdits {
    edits: Vec<FieldEdit>,
    /// The edits with their values filled in, where no value depends on the request: the usual case costs a reference.
    fixed: Option<ReadyEdits>,
}

/// Edits whose placeholders are filled in: they may outlive the request.
#[derive(Debug, Clone)]
pub struct ReadyEdits(Arc<[ReadyEdit]>);

#[derive(Debug)]
struct ReadyEdit {
    name: HeaderName,
    change: ReadyChange,
}

#[derive(Debug)]
enum ReadyChange {
    Set(HeaderValue),
    Add(HeaderValue),
    Default(HeaderValue),
    Remove,
}

impl FieldEdits {
    /// The edits of a plan; `None` where there are none.
    #[must_use]
    pub fn new(edits: Vec<FieldEdit>) -> Option<Self> {
        let mut all = Self { edits, fixed: None };
        if all.edits.is_empty() {
            return None;
        }
        let is_fixed = all.edits.iter().all(|edit| match &edit.change {
            FieldChange::Set(value) | FieldChange::Add(value) | FieldChange::Default(value) => {
                value.as_text().is_some()
            }
            FieldChange::Remove => true,
        });
        if is_fixed {
            let values = Values {
                client_ip: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
                scheme: &Scheme::HTTPS,
                host: "",
                request_id: "",
                path: "",
                query: None,
            };
            all.fixed = Some(all.fill(&values));
        }
        Some(all)
    }

    /// The edits for one request.
    #[must_use]
    pub fn ready(&self, values: &Values<'_>) -> ReadyEdits {
        self.fixed.clone().unwrap_or_else(|| self.fill(values))
    }

    fn fill(&self, values: &Values<'_>) -> ReadyEdits {
        let ready = self.edits.iter().map(|edit| {
            let value = |template| field_value(template, values);
            let change = match &edit.change {
                FieldChange::Set(template) => ReadyChange::Set(value(template)),
                FieldChange::Add(template) => ReadyChange::Add(value(template)),
                FieldChange::Default(template) => ReadyChange::Default(value(template)),
                FieldChange::Remove => ReadyChange::Remove,
            };
            ReadyEdit { name: edit.name.clone(), change }
        });
        ReadyEdits(ready.collect())
    }
}

impl ReadyEdits {
    /// Applies the edits.
    pub fn apply(&self, fields: &mut Fields) {
        for edit in &*self.0 {
            match &edit.change {
                ReadyChange::Set(value) => {
                    fields.remove(&edit.name);
                    fields.append(edit.name.clone(), value.into());
                }
                ReadyChange::Add(value) => fields.append(edit.name.clone(), value.into()),
                ReadyChange::Default(value) => {
                    if !fields.contains(&edit.name) {
                        fields.append(edit.name.clone(), value.into());
                    }
                }
                ReadyChange::Remove => fields.remove(&edit.name),
            }
        }
    }
}

/// The text of a template for one request.
#[must_use]
pub fn fill(template: &Template, values: &Values<'_>) -> String {
    let mut text = String::new();
    for part in template.parts() {
        match part {
            Part::Text(part) => text.push_str(part),
            Part::Placeholder(Placeholder::ClientIp) => text.push_str(&values.client_ip.to_string()),
            Part::Placeholder(Placeholder::Host) => text.push_str(values.host),
            Part::Placeholder(Placeholder::Scheme) => text.push_str(values.scheme.as_str()),
            Part::Placeholder(Placeholder::RequestId) => text.push_str(values.request_id),
            Part::Placeholder(Placeholder::Path) => text.push_str(values.path),
            Part::Placeholder(Placeholder::Query) => text.push_str(values.query.unwrap_or_default()),
            Part::Placeholder(Placeholder::Uri) => {
                text.push_str(values.path);
                if let Some(query) = values.query {
                    text.push('?');
                    text.push_str(query);
                }
            }
        }
    }
    text
}

fn field_value(template: &Template, values: &Values<'_>) -> HeaderValue {
    // Text of the file was checked when it was read, and a host or an id of a request has no control characters: what
    // could not be a value all the same is an empty one.
    let text = fill(template, values);
    Value::new(text.as_bytes()).map_or(HeaderValue::from_static(""), Value::to_owned)
}

#[cfg(test)]
mod tests {
    use http::header;

    use super::*;
    use crate::config::template::OF_FIELDS;

    fn edit(name: HeaderName, change: impl FnOnce(Template) -> FieldChange, text: &str) -> FieldEdit {
        FieldEdit { name, change: change(Template::parse(text, OF_FIELDS).unwrap()) }
    }

    #[test]
    fn fields_are_set_added_filled_in_and_removed() {
        let edits = FieldEdits::new(vec![
            FieldEdit { name: header::SERVER, change: FieldChange::Remove },
            edit(header::X_FRAME_OPTIONS, FieldChange::Set, "DENY"),
            edit(header::VIA, FieldChange::Add, "{client_ip} {host} {scheme}"),
            edit(header::ETAG, FieldChange::Default, "\"mine\""),
            edit(header::AGE, FieldChange::Default, "1"),
        ])
        .unwrap();
        let values = Values {
            client_ip: "192.0.2.7".parse().unwrap(),
            scheme: &Scheme::HTTPS,
            host: "a.example.org",
            request_id: "id",
            path: "/x",
            query: Some("y"),
        };
        let mut fields = Fields::new();
        for (name, value) in [
            (header::SERVER, "x"),
            (header::X_FRAME_OPTIONS, "a"),
            (header::X_FRAME_OPTIONS, "b"),
            (header::VIA, "first"),
            (header::ETAG, "\"theirs\""),
        ] {
            fields.append(name, Value::from_static(value));
        }
        edits.ready(&values).apply(&mut fields);
        let all: Vec<_> = fields.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        assert_eq!(
            all,
            ["via: first", "etag: \"theirs\"", "x-frame-options: DENY", "via: 192.0.2.7 a.example.org https", "age: 1"]
        );
    }
}
