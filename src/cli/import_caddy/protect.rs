//! Directives that ask who comes. What cannot be carried over is closed, never open.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{
    Remark,
    emit::{self, list, quote},
    fields::{Placeholders, template},
    lexer::{ENV, Token},
    model::Upstream,
    parser::Directive,
    proxy, transport,
};
use crate::config;

/// `basic_auth`, as a table of ours; what cannot be carried of it.
pub fn basic_auth(line: &Directive, args: &[Token]) -> Result<String, String> {
    if let Some(algorithm) = args.first().filter(|algorithm| !["bcrypt", "argon2id"].contains(&algorithm.text.as_str()))
    {
        return Err(format!("hashes of `{}`", algorithm.text));
    }
    let mut users = Vec::new();
    for user in line.block.iter().flatten() {
        let Some(hash) = user.args.first() else { return Err(format!("the user `{}` without a hash", user.name)) };
        users.push(format!("{} = {}", quote(&user.name), hashed(&hash.text).ok_or("a hash that is none")?));
    }
    if users.is_empty() {
        return Err("no users".into());
    }
    let realm = args.get(1).map(|realm| format!("realm = {}, ", quote(&realm.text))).unwrap_or_default();
    // As Caddy does it.
    Ok(format!("{{ {realm}users = {{ {} }}, pass_authorization = true }}", users.join(", ")))
}

/// A hash as it stands in our file. Caddy takes it in base64 as well.
fn hashed(text: &str) -> Option<String> {
    if text.starts_with(ENV) {
        return Some(quote(text));
    }
    let text =
        if text.starts_with('$') { text.to_owned() } else { String::from_utf8(STANDARD.decode(text).ok()?).ok()? };
    // Its dollar signs are not escaped, so that it can be compared with the Caddyfile.
    config::is_password_hash(&text).then(|| format!("\"{text}\""))
}

/// `forward_auth`, as a table of ours; what cannot be carried of it.
pub fn forward_auth(
    line: &Directive,
    args: &[Token],
    host: &str,
    plain: bool,
    remarks: &mut Vec<Remark>,
) -> Result<String, String> {
    let (mut tls, mut keeps_host, mut path, mut copied, mut sign_in) = (false, false, None, Vec::new(), None);
    let block = line.block.as_deref().unwrap_or_default();
    for line in block.iter().filter(|line| !line.name.starts_with('@')) {
        let words: Vec<&str> = line.args.iter().map(|token| token.text.as_str()).collect();
        match (line.name.as_str(), words.as_slice()) {
            ("uri", [uri]) if uri.starts_with('/') && !uri.contains(['{', '#', ' ']) => path = Some(*uri),
            ("copy_headers", names) => {
                copied.extend(names.iter().map(|name| (*name).to_owned()));
                copied.extend(line.block.iter().flatten().map(|line| line.name.clone()));
            }
            ("header_up", [name, value]) if is_sent_anyway(name, value) => {
                keeps_host |= name.eq_ignore_ascii_case("host");
            }
            ("transport", ["http"])
                if line.block.iter().flatten().all(|line| line.name == "tls" && line.args.is_empty()) =>
            {
                tls = true;
            }
            ("trusted_proxies", _) => {
                let text =
                    "`trusted_proxies`: what stands in front of this edge is written into listen.trusted_proxies";
                remarks.push(Remark::note(line.line, text));
            }
            ("handle_response", [matcher]) if is_401(block, matcher) => {
                let redirect = |inner: &Directive| {
                    let words: Vec<&str> = inner.args.iter().map(|token| token.text.as_str()).collect();
                    let to = match words.as_slice() {
                        _ if inner.name != "redir" => return None,
                        ["*", to] | [to] | ["*", to, "302" | "temporary"] | [to, "302" | "temporary"] => to,
                        _ => return None,
                    };
                    template(to, Placeholders::Redirect { host, plain })
                };
                match line.block.as_deref() {
                    Some([one]) => sign_in = Some(redirect(one).ok_or("an answer of its own to 401")?),
                    _ => return Err("an answer of its own to 401".into()),
                }
            }
            (other, _) => return Err(format!("`{other}`")),
        }
    }
    let mut servers = Vec::new();
    for server in args {
        servers.extend(proxy::addresses(&server.text, tls).ok_or_else(|| format!("the upstream `{}`", server.text))?);
    }
    let path = path.ok_or("no `uri`")?;
    let mut upstream = Upstream { servers, ..Upstream::default() };
    if !keeps_host {
        transport::default_host(&mut upstream);
    }
    let asked = match upstream.servers.as_slice() {
        [] => return Err("no upstream".into()),
        [one] if upstream.keys.is_empty() && !one.starts_with("unix:") => {
            format!("url = {}", quote(&format!("{one}{path}")))
        }
        _ => format!("upstream = {}, path = {}", emit::upstream(&upstream), quote(path)),
    };
    let copied = copy_fields(&copied)?;
    let sign_in = sign_in.map(|to| format!(", sign_in = {}", quote(&to))).unwrap_or_default();
    Ok(format!("{{ {asked}{copied}{sign_in} }}"))
}

/// Whether we say a field to the service by ourselves.
fn is_sent_anyway(name: &str, value: &str) -> bool {
    let is_one = |known: &[&str]| known.contains(&value.replace("http.request.", "").as_str());
    match name.to_ascii_lowercase().as_str() {
        "x-real-ip" | "x-forwarded-for" => is_one(&["{remote_host}", "{client_ip}", "{remote}", "{remote.host}"]),
        "x-forwarded-uri" => is_one(&["{uri}", "{orig_uri}"]),
        "x-forwarded-method" => is_one(&["{method}", "{orig_method}"]),
        "x-forwarded-host" | "host" => is_one(&["{host}", "{hostport}"]),
        "x-forwarded-proto" => is_one(&["{scheme}"]),
        _ => false,
    }
}

/// Whether a named matcher of the block means the status 401 alone.
fn is_401(block: &[Directive], matcher: &str) -> bool {
    let words = |line: &Directive| line.args.iter().map(|token| token.text.clone()).collect::<Vec<_>>().join(" ");
    let found = block.iter().find(|line| line.name == matcher);
    found.is_some_and(|line| match line.block.as_deref() {
        None | Some([]) => words(line) == "status 401",
        Some([one]) => line.args.is_empty() && one.name == "status" && words(one) == "401",
        Some(_) => false,
    })
}

/// The fields that come back, `A>B` where they change their names.
fn copy_fields(names: &[String]) -> Result<String, String> {
    let is_ours = |name: &str| {
        let lower = name.to_ascii_lowercase();
        config::edits::FRAMING.contains(&lower.as_str()) || config::edits::OF_THE_CLIENT.contains(&lower.as_str())
    };
    for name in names {
        let (from, to) = name.split_once('>').unwrap_or((name, name));
        if from.parse::<http::HeaderName>().is_err() || to.parse::<http::HeaderName>().is_err() || is_ours(to) {
            return Err(format!("the field `{name}`"));
        }
    }
    Ok(match names.iter().any(|name| name.contains('>')) {
        _ if names.is_empty() => String::new(),
        false => format!(", copy_fields = {}", list(names)),
        true => {
            let pairs = names.iter().map(|name| name.split_once('>').unwrap_or((name, name)));
            let pairs: Vec<_> = pairs.map(|(from, to)| format!("{} = {}", quote(from), quote(to))).collect();
            format!(", copy_fields = {{ {} }}", pairs.join(", "))
        }
    })
}
