//! `forward_auth`: a service that is asked about each request whether it may come.

use http::{HeaderName, Uri};
use toml::de::DeValue;

use super::{
    edits, matching,
    plan::CopiedField,
    raw::{self, Upstream},
    template::Template,
    tree::{At, Item, Problem, Section, kind_of, one_or_more, parsed, string},
    value,
};

/// What the file says of it.
pub struct ForwardAuth {
    pub upstream: At<Upstream>,
    pub path: Uri,
    pub send_fields: Option<Vec<HeaderName>>,
    pub copy_fields: Vec<CopiedField>,
    pub login_path: Option<At<String>>,
    pub sign_in: Option<Template>,
}

const HELP: &str =
    "write it like { url = \"http://authelia:9091/api/authz/forward-auth\", copy_fields = [\"Remote-User\"] }";

/// Reads the table; `None` for `false`, and for a table whose upstream is wrong, which has been noted.
pub fn read(section: &Section<'_, '_, '_>, item: &Item<'_>) -> Result<Option<ForwardAuth>, Problem> {
    let table = match item.get_ref() {
        DeValue::Table(table) => table,
        DeValue::Boolean(false) => return Ok(None),
        other => return Err(Problem::new(format!("expected a table or false, found {}", kind_of(other))).help(HELP)),
    };
    let inner = Section::new(section.reader, section.path("forward_auth"), table, item.span());
    let url = inner.get("url", parsed(url));
    let upstream = raw::upstream(&inner, "upstream");
    let path = inner.get("path", parsed(target));
    let (send_fields, copy_fields) =
        (inner.get("send_fields", one_or_more(parsed(name))), inner.get("copy_fields", copied));
    let login_path = inner.get("login_path", parsed(matching::plain_path));
    let sign_in = inner.get("sign_in", |item| string(item).and_then(matching::target));
    let (says_url, says_upstream) = (inner.item("url").is_some(), inner.item("upstream").is_some());
    inner.finish();
    if says_url && (says_upstream || path.is_some()) {
        return Err(Problem::new("`url` is `upstream` and `path` in one").help("keep it, or the two"));
    }
    if !says_url && !says_upstream {
        return Err(Problem::new("`forward_auth` needs a `url` or an `upstream`").help(HELP));
    }
    let asked = match url {
        Some(At { value: (server, path), span }) => {
            let upstream = Upstream { servers: vec![server], ..Upstream::default() };
            Some((At { value: upstream, span }, path))
        }
        None => upstream.map(|upstream| (upstream, path.map_or_else(|| Uri::from_static("/"), |at| at.value))),
    };
    Ok(asked.map(|(upstream, path)| ForwardAuth {
        upstream,
        path,
        send_fields: send_fields.map(|at| at.value),
        copy_fields: copy_fields.map(|at| at.value).unwrap_or_default(),
        login_path,
        sign_in: sign_in.map(|at| at.value),
    }))
}

/// A server and a path with its query.
fn url(text: &str) -> Result<(super::plan::Server, Uri), Problem> {
    let start = text.find("://").map_or(0, |at| at + 3);
    let (origin, path) = text.split_at(text[start..].find('/').map_or(text.len(), |at| start + at));
    Ok((value::server(origin)?, target(if path.is_empty() { "/" } else { path })?))
}

fn target(text: &str) -> Result<Uri, Problem> {
    let uri: Option<Uri> = text.parse().ok().filter(|_| text.starts_with('/') && !text.contains('#'));
    uri.ok_or_else(|| Problem::new(format!("`{text}` is not a path")).help("write it like \"/api/authz/forward-auth\""))
}

fn name(text: &str) -> Result<HeaderName, Problem> {
    edits::name(text, edits::Message::Request)
}

/// `["Remote-User"]`, or `{ "X-Auth-User" = "Remote-User" }` from the name in the answer to that in the request.
fn copied(item: &Item<'_>) -> Result<Vec<CopiedField>, Problem> {
    let DeValue::Table(table) = item.get_ref() else {
        let names = one_or_more(parsed(name))(item)?;
        return Ok(names.into_iter().map(|name| CopiedField { from: name.clone(), to: name }).collect());
    };
    let pair = |(from, to): (&toml::Spanned<toml::de::DeString<'_>>, &Item<'_>)| {
        let from = from.get_ref().parse().map_err(|_| Problem::new("this is not a field name").at(from.span()))?;
        let to = string(to).and_then(name).map_err(|problem| problem.at(to.span()))?;
        Ok(CopiedField { from, to })
    };
    table.iter().map(pair).collect()
}
