//! The importer's check of itself: requests derived from both files, and what each file makes of them.
//!
//! ```text
//! samples (requests) > caddy (its directives, request to decision) = ours (the plan, request to decision) ? remark
//! ```
//!
//! Both sides are pure functions. `caddy` walks the directives in their order and knows nothing of the rules that were made
//! of them; `ours` reads the text that is printed. A difference that no remark explains becomes a remark, with the request
//! that shows it. Fields that are set are not compared, and letters are compared in their case, as we do.

mod caddy;
mod ours;
mod samples;

use std::{fmt, path::PathBuf};

use super::{
    Remark, RemarkKind,
    lexer::{ENV, ENV_DEFAULT, ENV_END},
    options::Ports,
    parser::{Directive, File, SiteBlock},
};
use crate::config::{self, plan::Kind};

/// A request as far as a decision depends on it.
#[derive(Debug, Clone)]
struct SampleRequest {
    host: String,
    port: u16,
    /// Whether it comes without TLS.
    plain: bool,
    method: String,
    path: String,
    fields: Vec<(String, String)>,
    client: std::net::IpAddr,
}

impl fmt::Display for SampleRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.plain { "http" } else { "https" };
        write!(f, "`{} {scheme}://{}{}`", self.method, self.host, self.path)?;
        for (name, value) in &self.fields {
            write!(f, " with `{name}: {value}`")?;
        }
        Ok(())
    }
}

/// What a file makes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Decision {
    /// Whether a password is asked for.
    basic_auth: bool,
    /// Whether a service is asked.
    forward_auth: bool,
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// It is passed on to these servers, with this path.
    Proxy { servers: Vec<String>, path: String },
    /// It is sent elsewhere.
    Redirect { to: String, status: u16 },
    /// It gets this answer.
    Respond { status: u16, body: String },
    /// It gets a file of a folder by this path.
    Files { root: String, path: String, spa: bool },
    /// It gets one of the well-known documents.
    Document,
    /// It is refused.
    Refused,
    /// Nothing is there; closed by the kind of a route, or left open by all.
    Nothing,
}

impl Decision {
    /// Whether nobody gets anything by it.
    fn is_closed(&self) -> bool {
        match &self.outcome {
            Outcome::Refused | Outcome::Nothing => true,
            Outcome::Respond { status, .. } => *status >= 400,
            _ => false,
        }
    }

    /// Whether everyone gets an empty answer.
    fn is_open_and_empty(&self) -> bool {
        self.outcome == Outcome::Nothing && !self.basic_auth && !self.forward_auth
    }

    /// Whether the two are the same for the client.
    fn is_like(&self, other: &Self) -> bool {
        if self.is_closed() && other.is_closed() {
            // 404 in place of an empty 200 or 403 in place of a connection that ends: nobody gets anything by either.
            return !matches!((&self.outcome, &other.outcome), (Outcome::Respond { .. }, Outcome::Respond { .. }))
                || self.outcome == other.outcome;
        }
        let is_document = |one: &Self| matches!(one.outcome, Outcome::Document);
        let answers = |one: &Self| matches!(one.outcome, Outcome::Respond { status: 200, .. } | Outcome::Document);
        let same = self.outcome == other.outcome
            || ((is_document(self) || is_document(other)) && answers(self) && answers(other));
        let guarded = |one: &Self| (one.basic_auth, one.forward_auth);
        same && guarded(self) == guarded(other)
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Proxy { servers, path } => write!(f, "forwards it to {} as {path}", servers.join(" "))?,
            Outcome::Redirect { to, status } => write!(f, "redirects it to {to} ({status})")?,
            Outcome::Respond { status, .. } => write!(f, "answers {status}")?,
            Outcome::Files { root, path, .. } => write!(f, "looks for {path} in {root}")?,
            Outcome::Document => f.write_str("answers with the well-known document")?,
            Outcome::Refused => f.write_str("refuses it")?,
            Outcome::Nothing => f.write_str("has nothing there")?,
        }
        match (self.basic_auth, self.forward_auth) {
            (true, _) => f.write_str(", for those with a password"),
            (_, true) => f.write_str(", for those whom a service lets pass"),
            _ => Ok(()),
        }
    }
}

/// Compares a Caddyfile with what was made of it; adds a remark for each difference that none explains.
pub fn check(file: &File, toml: &str, ports: Ports, remarks: &mut Vec<Remark>) {
    let variables = ["example.org", "8080", "/srv/example"];
    let has_variables = toml.contains("${");
    let plan = variables.iter().find_map(|value| {
        let env = |_: &str| Some((*value).to_owned());
        config::parse("imported", toml, PathBuf::from("/etc/vestibule"), &env).ok().map(|(plan, _)| (plan, *value))
    });
    let Some((plan, value)) = plan else {
        if !has_variables && remarks.iter().all(|remark| remark.what != RemarkKind::Lost) {
            remarks.push(Remark::lost(1, "`vestibule check` refuses the result: correct what it names"));
        }
        return;
    };
    let sites: Vec<SiteBlock> = file.sites.iter().map(|site| filled_site(site, value)).collect();
    let caddy = caddy::CaddyRouter::new(&sites, ports);
    let ours = ours::PlanRouter::new(&plan);
    let mut told = Vec::new();
    let mut found = Vec::new();
    for sample in samples::all(&caddy, &ours) {
        let Some((theirs, trace)) = caddy.decide(&sample) else { continue };
        let Some(ours) = ours.decide(&sample) else { continue };
        let line = trace.last().copied().unwrap_or(1);
        if theirs.is_like(&ours.decision) || told.contains(&line) || is_explained(&trace, remarks) {
            continue;
        }
        if is_of_kind(&theirs, &ours) {
            continue;
        }
        told.push(line);
        let text = format!("{sample}: Caddy {theirs}; vestibule {}", ours.decision);
        // The documents are what a client would look for there.
        let is_better = theirs.is_open_and_empty() || ours.decision.outcome == Outcome::Document;
        found.push(if is_better { Remark::note(line, text) } else { Remark::lost(line, text) });
    }
    remarks.append(&mut found);
}

/// Whether a difference is what a kind is for, and in the reference: it opens the paths of its service beside those that
/// were routed, and lk-jwt-service gets what newer clients ask it for.
fn is_of_kind(theirs: &Decision, ours: &ours::Ours) -> bool {
    let is_empty = theirs.is_open_and_empty() || matches!(theirs.outcome, Outcome::Respond { status: 404, .. });
    let opens = is_empty && (ours.kind != Kind::Http || ours.decision.outcome == Outcome::Document);
    opens || ours.kind == Kind::LkJwt
}

/// Whether something was said of a directive that a request meets.
fn is_explained(trace: &[usize], remarks: &[Remark]) -> bool {
    let (site, steps) = trace.split_first().map_or((0, trace), |(site, steps)| (*site, steps));
    remarks.iter().any(|remark| {
        let of_site = remark.line == site && (remark.what == RemarkKind::Lost || remark.text.contains("opens only"));
        of_site || steps.contains(&remark.line)
    })
}

/// A server without the port that is usual for its scheme.
fn usual(server: &str) -> String {
    let port = if server.starts_with("https://") { ":443" } else { ":80" };
    server.strip_suffix(port).unwrap_or(server).to_owned()
}

/// A site with a value for each variable of the environment.
fn filled_site(site: &SiteBlock, value: &str) -> SiteBlock {
    let mut site = site.clone();
    for token in &mut site.addresses {
        token.text = filled(&token.text, value);
    }
    fill(&mut site.body, value);
    site
}

fn fill(directives: &mut [Directive], value: &str) {
    for directive in directives {
        directive.name = filled(&directive.name, value);
        for token in &mut directive.args {
            token.text = filled(&token.text, value);
        }
        fill(directive.block.as_deref_mut().unwrap_or_default(), value);
    }
}

/// A variable has a value even where it has a default, as for our own file.
fn filled(text: &str, value: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for c in text.chars() {
        match c {
            ENV => {
                inside = true;
                out.push_str(value);
            }
            ENV_END => inside = false,
            _ if inside || c == ENV_DEFAULT => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::import_caddy::{lexer::lex, parser::parse};

    /// The remarks about a Caddyfile of one site and a file of ours.
    fn compared(body: &str, toml: &str, known: &[Remark]) -> Vec<String> {
        let file = parse(&lex(&format!("example.org {{\n{body}\n}}\n")).unwrap()).unwrap();
        let mut remarks = known.to_vec();
        let toml = format!("[sites.\"example.org\"]\n{toml}");
        check(&file, &toml, Ports { http: 80, https: 443 }, &mut remarks);
        remarks.iter().skip(known.len()).map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_the_same_needs_no_remark() {
        let caddy = "handle_path /api/* {\nreverse_proxy api:80\n}\nredir /old https://example.net{uri} 301\nrespond /x 403\nreverse_proxy web:80";
        let ours = "upstream = \"http://web:80\"\n[sites.\"example.org\".routes]\n\"/api/*\" = { upstream = \"http://api:80\", strip_prefix = true }\n\
                    \"=/old\" = { redirect = { to = \"https://example.net{uri}\", status = 301 } }\n\"=/x\" = { respond = { status = 403 } }\n";
        assert_eq!(compared(caddy, ours, &[]), [""; 0]);
    }

    #[test]
    fn each_difference_is_told_with_a_request_that_shows_it() {
        let web = "upstream = \"http://web:80\"\n";
        for (caddy, ours, told) in [
            (
                "reverse_proxy app:80",
                web,
                "2: not converted: `GET https://example.org/`: Caddy forwards it to http://app as /; vestibule forwards it to http://web as /",
            ),
            (
                "handle_path /a/* {\nreverse_proxy web:80\n}\nreverse_proxy web:80",
                web,
                "3: not converted: `GET https://example.org/a/`: Caddy forwards it to http://web as /; vestibule forwards it to http://web as /a/",
            ),
            (
                "basic_auth /p/* {\na $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG\n}\nreverse_proxy web:80",
                web,
                "5: not converted: `GET https://example.org/p/`: Caddy forwards it to http://web as /p/, for those with a password; vestibule forwards it to http://web as /p/",
            ),
            (
                "@in remote_ip 10.0.0.0/8\nrespond @in 403\nreverse_proxy web:80",
                web,
                "3: not converted: `GET https://example.org/`: Caddy answers 403; vestibule forwards it to http://web as /",
            ),
            (
                "@ws header X-A *\nreverse_proxy @ws ws:80\nreverse_proxy web:80",
                web,
                "3: not converted: `GET https://example.org/` with `X-A: v`: Caddy forwards it to http://ws as /; vestibule forwards it to http://web as /",
            ),
            (
                "respond /a 403",
                web,
                "1: note: `GET https://example.org/`: Caddy has nothing there; vestibule forwards it to http://web as /",
            ),
        ] {
            let found = compared(caddy, ours, &[]);
            assert!(found.iter().any(|line| line == told), "{caddy}\n{found:#?}");
        }
    }

    #[test]
    fn a_remark_about_the_directive_explains_its_difference() {
        let (caddy, ours) = ("reverse_proxy app:80", "upstream = \"http://web:80\"\n");
        assert!(compared(caddy, ours, &[Remark::lost(2, "`reverse_proxy`")]).is_empty());
        assert_eq!(compared(caddy, ours, &[Remark::lost(7, "another")]).len(), 1);
        assert_eq!(compared(caddy, ours, &[Remark::note(1, "assumed something of the site")]).len(), 1);
    }

    #[test]
    fn what_check_refuses_is_told() {
        assert_eq!(compared("reverse_proxy app:80", "upstream = 1\n", &[]).len(), 1);
    }
}
