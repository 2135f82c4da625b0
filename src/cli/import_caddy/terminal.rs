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
            lost(format!("`redir {}`: it is 404 here", words.join(" ")))
        }),
        "respond" | "error" => {
            let (body, status) = answer(line, args);
            if template(&body, Placeholders::None).is_none() {
                return lost("an answer with placeholders: it is 404 here".into());
            }
            Some(Action::Respond { status, content_type: None, body })
        }
        "reverse_proxy" => proxy::read(line, args, remarks)
            .map(|upstream| Action::Proxy(Kind::Http, upstream))
            .or(Some(Action::Nothing)),
        "file_server" => lost("`file_server`: files are not served, it is 404 here; put a web server behind an upstream".into()),
        "php_fastcgi" => lost("`php_fastcgi`: FastCGI is not spoken, it is 404 here; put nginx or Caddy before PHP, and that behind an upstream".into()),
        other => lost(format!("`{other}`: it is 404 here")),
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
