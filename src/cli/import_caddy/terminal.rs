//! Directives that answer a request.

use super::{
    Remark,
    fields::{Placeholders, template},
    lexer::Token,
    model::Action,
    order,
    parser::Directive,
    proxy,
};
use crate::config::plan::Kind;

/// Their names.
pub const IS: [&str; 9] =
    ["redir", "abort", "error", "respond", "metrics", "reverse_proxy", "php_fastcgi", "file_server", "acme_server"];

/// Reads one whose matcher has been taken off; `None` where it answers nothing.
pub fn read(line: &Directive, args: &[Token], host: &str, plain: bool, remarks: &mut Vec<Remark>) -> Option<Action> {
    let mut lost = |text: String| {
        remarks.push(Remark::lost(line.line, text));
        Some(Action::Nothing)
    };
    match order::name(line) {
        "abort" => Some(Action::Deny),
        "redir" => redirect(args, host, plain).or_else(|| {
            let words: Vec<_> = args.iter().map(|token| token.text.as_str()).collect();
            lost(format!("`redir {}`: it returns 404", words.join(" ")))
        }),
        "respond" | "error" => {
            let (body, status) = answer(line, args);
            if template(&body, Placeholders::None).is_none() {
                return lost("a response with placeholders: it returns 404".into());
            }
            Some(Action::Respond { status, content_type: None, body })
        }
        "reverse_proxy" => proxy::read(line, args, remarks)
            .map(|upstream| Action::Proxy(Kind::Http, upstream))
            .or(Some(Action::Nothing)),
        "file_server" => Some(files(line, args, remarks)),
        "php_fastcgi" => lost("`php_fastcgi`: FastCGI is not supported, so it returns 404; run nginx or Caddy in front of PHP, and set that as the upstream".into()),
        other => lost(format!("`{other}`: it returns 404")),
    }
}

/// `file_server`; its folder is known later, unless it is said here.
fn files(line: &Directive, args: &[Token], remarks: &mut Vec<Remark>) -> Action {
    let mut root = String::new();
    let mut lost = |line: usize, text: &str| remarks.push(Remark::lost(line, format!("`{text}` of `file_server`")));
    if args.iter().any(|token| token.text == "browse") {
        lost(line.line, "browse");
    }
    for inner in line.block.iter().flatten() {
        let first = inner.args.first().map_or("", |token| token.text.as_str());
        match (inner.name.as_str(), first) {
            ("root", path) => path.clone_into(&mut root),
            // Hidden files are, and precompressed ones are looked for.
            ("precompressed" | "disable_canonical_uris", _) | ("index", "index.html") => {}
            ("hide", _) if inner.args.iter().all(|token| token.text.starts_with('.')) => {}
            (other, _) => lost(inner.line, other),
        }
    }
    Action::Files { root, spa: false }
}

/// Whether `try_files` ends with the index of the folder; `None` where it does something else.
pub fn tries(args: &[Token]) -> Option<bool> {
    let own = ["{path}", "{path}/", "{path}/index.html", "{http.request.uri.path}", "{uri}"];
    let words: Vec<&str> = args.iter().map(|token| token.text.as_str()).collect();
    let (last, before) = words.split_last()?;
    let is_own = before.iter().all(|word| own.contains(word));
    match *last {
        _ if !is_own => None,
        "/index.html" | "index.html" => Some(true),
        "=404" => Some(false),
        last => own.contains(&last).then_some(false),
    }
}

/// Caddy redirects with 302 unless it is told otherwise.
fn redirect(args: &[Token], host: &str, plain: bool) -> Option<Action> {
    let target = &args.first()?.text;
    let status = match args.get(1).map_or("302", |token| token.text.as_str()) {
        "permanent" => 301,
        "temporary" => 302,
        code => code.parse().ok().filter(|code| [301, 302, 303, 307, 308].contains(code))?,
    };
    let to = template(target, Placeholders::Redirect { host, plain })?;
    let is_url =
        to.starts_with("https://") || to.starts_with("http://") || (to.starts_with('/') && !to.starts_with("//"));
    let to = if to == "{uri}" || to == "{path}" { return None } else { to };
    is_url.then_some(Action::Redirect { to, status })
}

/// The body and the status of `respond` and `error`.
fn answer(line: &Directive, args: &[Token]) -> (String, u16) {
    let status = |token: &Token| (token.text.len() == 3).then(|| token.text.parse::<u16>().ok()).flatten();
    let default = if line.name == "error" { 500 } else { 200 };
    let inner = line.block.iter().flatten().find(|line| line.name == "body").and_then(|line| line.args.first());
    let inner = inner.map(|token| token.text.clone()).unwrap_or_default();
    let (body, code) = match args {
        [] => (inner, None),
        [one] => match status(one) {
            Some(code) => (inner, Some(code)),
            None => (one.text.clone(), None),
        },
        [body, code, ..] => (body.text.clone(), status(code)),
    };
    let code = code.filter(|code| (200..=599).contains(code)).unwrap_or(default);
    // What `error` says is for handlers of errors, not for the client.
    (if line.name == "error" { String::new() } else { body }, code)
}
