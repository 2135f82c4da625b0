//! The values by which a route chooses its requests and changes their paths.

use http::{HeaderName, Method, StatusCode, Uri};
use toml::de::DeValue;

use super::{
    template::{OF_REDIRECTS, Template},
    tree::{Item, Problem, integer, kind_of, string},
};

/// `redirect` with a path, a placeholder or a status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedirectTo {
    pub to: Template,
    pub status: StatusCode,
}

/// Whether a `redirect` is more than an origin whose path and query are kept.
pub fn is_redirect_to(item: &Item<'_>) -> bool {
    match item.get_ref() {
        DeValue::Table(_) => true,
        DeValue::String(text) => {
            let after_scheme = text.split_once("://").map_or(&**text, |(_, rest)| rest);
            text.contains('{') || after_scheme.trim_end_matches('/').contains('/') || text.starts_with('/')
        }
        _ => false,
    }
}

/// `"https://example.org/new{path}"`, or `{ to = "…", status = 301 }`.
pub fn redirect_to(item: &Item<'_>) -> Result<RedirectTo, Problem> {
    let DeValue::Table(table) = item.get_ref() else {
        return Ok(RedirectTo { to: target(string(item)?)?, status: StatusCode::PERMANENT_REDIRECT });
    };
    let (mut to, mut status) = (None, StatusCode::PERMANENT_REDIRECT);
    for (key, item) in table.iter() {
        match key.get_ref().as_ref() {
            "to" => to = Some(string(item).and_then(target).map_err(|problem| problem.at(item.span()))?),
            "status" => {
                let code = integer(item, 300..=399).map_err(|problem| problem.at(item.span()))?;
                if ![301, 302, 303, 307, 308].contains(&code) {
                    let problem = Problem::new(format!("{code} does not redirect")).at(item.span());
                    return Err(problem.help("one of 301, 302, 303, 307, 308"));
                }
                status = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(status);
            }
            other => {
                let problem = Problem::new(format!("unknown key `{other}`")).at(key.span());
                return Err(problem.help("known here: to, status"));
            }
        }
    }
    let to = to.ok_or_else(|| {
        Problem::new("a redirect needs `to`").help("write it like { to = \"https://example.org{uri}\", status = 301 }")
    })?;
    Ok(RedirectTo { to, status })
}

/// A URL or a path, with the placeholders of redirects.
pub fn target(text: &str) -> Result<Template, Problem> {
    let help = "write it like \"https://example.org/new{path}\" or \"/login\"";
    let template = Template::parse(text, OF_REDIRECTS)?;
    // As it would be with every placeholder filled in.
    let sample = OF_REDIRECTS.iter().fold(text.to_owned(), |text, name| {
        text.replace(&format!("{{{name}}}"), if *name == "path" || *name == "uri" { "/x" } else { "x" })
    });
    let sample = sample.replace("{{", "x").replace("}}", "x");
    let is_path = sample.starts_with('/') && !sample.starts_with("//");
    let uri: Option<Uri> = sample.parse().ok();
    let is_url = uri.as_ref().is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.authority().is_some_and(|to| !to.as_str().contains('@'))
    });
    if (is_path && uri.is_some()) || is_url {
        Ok(template)
    } else {
        Err(Problem::new(format!("`{text}` is not a URL or a path")).help(help))
    }
}

/// A path that takes the place of another, or stands before it.
pub fn plain_path(text: &str) -> Result<String, Problem> {
    let is_path = text.starts_with('/') && !text.contains(['?', '#', ' ']) && text.parse::<Uri>().is_ok();
    if is_path {
        Ok(text.to_owned())
    } else {
        Err(Problem::new(format!("`{text}` is not a path")).help("write it like \"/new\""))
    }
}

/// A method, in upper case as clients send it.
pub fn method(text: &str) -> Result<Method, Problem> {
    let method: Method = text.parse().map_err(|_| Problem::new(format!("`{text}` is not a method")))?;
    if text != text.to_ascii_uppercase() {
        let problem =
            Problem::new(format!("methods are case-sensitive: `{text}` is not `{}`", text.to_ascii_uppercase()));
        return Err(problem.help(format!("write \"{}\"", text.to_ascii_uppercase())));
    }
    Ok(method)
}

/// `{ "X-Name" = "pattern", "X-Other" = true }`: `*` in a pattern is any bytes, `true` is any value.
pub fn field_conditions(item: &Item<'_>) -> Result<Vec<(HeaderName, String)>, Problem> {
    let help = "write it like { \"X-Name\" = \"value\" }, with `*` for any bytes, or true for any value";
    let DeValue::Table(table) = item.get_ref() else {
        return Err(Problem::new(format!("expected a table of fields, found {}", kind_of(item.get_ref()))).help(help));
    };
    let mut conditions = Vec::new();
    for (key, item) in table.iter() {
        let name = key.get_ref().parse::<HeaderName>();
        let name = name.map_err(|_| Problem::new(format!("`{}` is not a field name", key.get_ref())).at(key.span()))?;
        let pattern = match item.get_ref() {
            DeValue::Boolean(true) => "*".to_owned(),
            _ => string(item).map_err(|problem| problem.at(item.span()).help(help))?.to_owned(),
        };
        conditions.push((name, pattern));
    }
    Ok(conditions)
}
