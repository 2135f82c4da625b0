//! What Caddy makes of the directives of a block before any request comes: their order, and which of them are one.

use std::cmp::Reverse;

use super::{
    conditions::{self, Matcher, Named},
    lexer::Token,
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

/// The directives of a block as Caddy runs them, one after the other: in its order, those of a `route` in the order that is written;
/// those beside each other with one matcher joined, so that it is asked once. Of `rewrite` and `handle`, the first that matches
/// is taken; so it is of `root`, whose last one counts here.
pub fn steps(block: &[Directive], is_route: bool, named: &Named) -> Vec<Directive> {
    let written = || block.iter().filter(|directive| !directive.name.starts_with('@'));
    let mut ordered: Vec<&Directive> = if is_route { written().collect() } else { sorted(written(), named) };
    let roots: Vec<usize> = (0..ordered.len()).filter(|at| ordered[*at].name == "root").collect();
    let reversed: Vec<_> = roots.iter().rev().map(|at| ordered[*at]).collect();
    roots.into_iter().zip(reversed).for_each(|(at, root)| ordered[at] = root);

    let mut found = Vec::new();
    let mut rest = &*ordered;
    while let Some(first) = rest.first() {
        let (same, others) = rest.split_at(joined(rest, &ordered, named));
        found.push(if same.len() > 1 { as_one(same, named) } else { (*first).clone() });
        rest = others;
    }
    found
}

/// How many directives from the first on are one; 1 where joining makes no difference.
fn joined(rest: &[&Directive], all: &[&Directive], named: &Named) -> usize {
    let is_handle = |line: &Directive| name(line) == "handle";
    let are_several = all.iter().filter(|line| is_handle(line)).count() > 1;
    // Each `rewrite` is joined with others alone, and so are the handles of a block that has several.
    let group = |line: &Directive| match name(line) {
        "rewrite" => Some("rewrite"),
        "handle" if are_several => Some("handle"),
        _ => None,
    };
    let matcher = |line| conditions::of(line, named).0;
    let of_first = (group(rest[0]), matcher(rest[0]));
    let same = rest.iter().take_while(|line| (group(line), matcher(line)) == of_first).count();
    // Without a matcher nothing is asked twice.
    let differs = !of_first.1.is_all() && rest[..same - 1].iter().any(|line| moves(line));
    if of_first.0.is_some() || differs { same } else { 1 }
}

/// Whether a directive may change the path of the requests that it leaves to others.
fn moves(line: &Directive) -> bool {
    let inside = || line.block.iter().flatten().any(moves);
    match name(line) {
        "uri" | "rewrite" => true,
        "handle" | "route" => line.name == "handle_path" || inside(),
        _ => false,
    }
}

/// Directives with one matcher as one that has it.
fn as_one(same: &[&Directive], named: &Named) -> Directive {
    if name(same[0]) == "rewrite" {
        // The last one has its way, whatever path the others have made (a placeholder in it would see theirs).
        return (*same[same.len() - 1]).clone();
    }
    let is_handle = same.iter().all(|line| name(line) == "handle");
    let block = same.iter().map(|line| unconditional(line, named)).collect();
    let matcher = same[0].args[..same[0].args.len() - conditions::of(same[0], named).1.len()].to_vec();
    let name = if is_handle { "handle" } else { "route" };
    Directive { name: name.into(), args: matcher, block: Some(block), line: same[0].line }
}

/// A directive without its matcher.
fn unconditional(line: &Directive, named: &Named) -> Directive {
    let word = |text: &str| Token { text: text.into(), line: line.line, begins_line: false, quoted: false };
    let (matcher, args) = conditions::of(line, named);
    let bare = Directive { args: [&[word("*")], args].concat(), ..line.clone() };
    if name(line) != "handle" {
        return bare;
    }
    // It is not one of several handles any more, and `handle_path` has its path for a prefix.
    let prefix = matcher.single_path().filter(|_| line.name == "handle_path").map(|path| {
        let prefix = path.trim_end_matches('*').trim_end_matches('/');
        let args = vec![word("*"), word("strip_prefix"), word(prefix)];
        Directive { name: "uri".into(), args, block: None, line: line.line }
    });
    let handle = Directive { name: "handle".into(), ..bare };
    let block = prefix.into_iter().chain([handle]).collect();
    Directive { name: "route".into(), args: vec![word("*")], block: Some(block), line: line.line }
}

/// Directives in Caddy's order.
fn sorted<'d>(directives: impl Iterator<Item = &'d Directive>, named: &Named) -> Vec<&'d Directive> {
    let mut ordered: Vec<(&Directive, usize, Matcher)> = Vec::new();
    for directive in directives {
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
        let order: Vec<_> = steps(body, false, &conditions::scope(body, &Named::new()))
            .into_iter()
            .map(|line| line.args.first().map_or(String::new(), |token| token.text.clone()))
            .collect();
        assert_eq!(order, ["/r", "/x/y*", "/x", "@m", "", "/z", "a"]);
    }

    #[test]
    fn directives_with_one_matcher_are_one() {
        let names = |body: &str| {
            let file = parse(&lex(&format!("a.b {{\n{body}\n}}\n")).unwrap()).unwrap();
            let body = &file.sites[0].body;
            let steps = steps(body, false, &conditions::scope(body, &Named::new()));
            steps.into_iter().map(|line| (line.name, line.block.map_or(0, |block| block.len()))).collect::<Vec<_>>()
        };
        let one = |name: &str, count| (name.to_owned(), count);
        let joined = [one("route", 2)];
        assert_eq!(names("uri /b/* strip_prefix /b\nreverse_proxy /b/* x"), joined);
        assert_eq!(names("@m path /b/*\nuri @m strip_prefix /b\nreverse_proxy /b/* x"), joined);
        assert_eq!(names("handle_path /b/* {\n}\nreverse_proxy /b/* x"), joined);
        // The second handle gets what the first one leaves.
        assert_eq!(
            names("handle /b/* {\n}\nhandle_path /b/* {\n}\nreverse_proxy /b/* x"),
            [one("handle", 2), one("reverse_proxy", 0)]
        );
        // What is rewritten is asked for again.
        assert_eq!(names("rewrite /b/* /x\nreverse_proxy /b/* x"), [one("rewrite", 0), one("reverse_proxy", 0)]);
        // Joining would make no difference.
        assert_eq!(names("header /b/* A b\nreverse_proxy /b/* x"), [one("header", 0), one("reverse_proxy", 0)]);
    }
}
