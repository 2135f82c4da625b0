//! The order in which Caddy takes the directives of a block.

use std::cmp::Reverse;

use super::{
    conditions::{self, Matcher, Named},
    parser::Directive,
};

/// Caddy's order of directives, as far as they matter here; a `handle_path` is a `handle`. What is not here comes first, so
/// that it is reached and named.
const ORDER: [&str; 29] = [
    "map",
    "vars",
    "root",
    "log_append",
    "log_skip",
    "log_name",
    "header",
    "request_body",
    "redir",
    "method",
    "rewrite",
    "uri",
    "try_files",
    "basic_auth",
    "forward_auth",
    "request_header",
    "encode",
    "templates",
    "invoke",
    "handle",
    "route",
    "abort",
    "error",
    "respond",
    "metrics",
    "reverse_proxy",
    "php_fastcgi",
    "file_server",
    "acme_server",
];

/// Whether the place of a directive of this name in the order matters here.
pub fn is_known(name: &str) -> bool {
    ORDER.contains(&name)
}

/// The name by which a directive is sorted and read.
pub fn name(directive: &Directive) -> &str {
    match directive.name.as_str() {
        "basicauth" => "basic_auth",
        "skip_log" => "log_skip",
        "handle_path" => "handle",
        other => other,
    }
}

/// The directives of a block in Caddy's order; those of a `route` keep their own.
pub fn sorted<'d>(directives: &'d [Directive], named: &Named) -> Vec<&'d Directive> {
    let mut ordered: Vec<(&Directive, usize, Matcher)> = Vec::new();
    for directive in directives.iter().filter(|directive| !directive.name.starts_with('@')) {
        let rank = ORDER.iter().position(|known| *known == name(directive)).unwrap_or(0);
        let (matcher, _) = conditions::of(directive, named);
        // Caddy's comparison is no total order, so that it has to be done one by one.
        let at =
            ordered.iter().rposition(|(_, other, known)| *other < rank || (*other == rank && !before(&matcher, known)));
        ordered.insert(at.map_or(0, |at| at + 1), (directive, rank, matcher));
    }
    ordered.into_iter().map(|(directive, ..)| directive).collect()
}

/// Whether of two directives of a name, the one with the matcher `a` comes first although it was written later.
fn before(a: &Matcher, b: &Matcher) -> bool {
    match (a.single_path(), b.single_path()) {
        (Some(a), Some(b)) => {
            let (bare_a, bare_b) = (a.trim_end_matches('*'), b.trim_end_matches('*'));
            // The longer first, then by the alphabet; of `/a` and `/a*` the exact one.
            let rank = |bare: &str| Reverse(bare.chars().count());
            (rank(bare_a), bare_a, a.len()) < (rank(bare_b), bare_b, b.len())
        }
        _ => !a.is_all() && b.is_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{lexer::lex, parser::parse},
        *,
    };

    #[test]
    fn directives_are_taken_in_caddys_order() {
        let text = "a.b {\n reverse_proxy a\n handle /x {\n }\n handle /x/y* {\n }\n handle {\n }\n @m method GET\n handle @m {\n }\n redir /r /s\n respond /z 1\n}\n";
        let file = parse(&lex(text).unwrap()).unwrap();
        let body = &file.sites[0].body;
        let order: Vec<_> = sorted(body, &conditions::scope(body, &Named::new()))
            .into_iter()
            .map(|line| line.args.first().map_or("", |token| token.text.as_str()))
            .collect();
        assert_eq!(order, ["/r", "/x/y*", "/x", "@m", "", "/z", "a"]);
    }
}
