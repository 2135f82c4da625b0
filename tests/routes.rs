//! Routes: which one answers, and what it changes of the request and of the response.

use crate::support::{Client, Edge, Origin, origin::ok};

const HOST: &str = "a.example.org";

/// An upstream that names itself and the target that reached it.
async fn named(name: &'static str) -> Origin {
    Origin::answering(move |request| ok(&format!("{name} {}", request.split(' ').nth(1).unwrap_or_default()))).await
}

#[tokio::test]
async fn exact_comes_before_pattern_before_prefix() {
    let (exact, pattern, prefix) = (named("exact").await, named("pattern").await, named("prefix").await);
    let edge = Edge::start(&format!(
        "[sites.\"{HOST}\".routes]\n\"/\" = {{ upstream = \"{prefix}\" }}\n\"/_matrix/client/*/login\" = {{ upstream = \"{pattern}\" }}\n\
         \"=/_matrix/client/v3/login\" = {{ upstream = \"{exact}\" }}\n",
        prefix = prefix.url(),
        pattern = pattern.url(),
        exact = exact.url(),
    ));
    let mut client = Client::tls(&edge, HOST).await;
    for (target, answer) in [
        ("/_matrix/client/v3/login", "exact"),
        ("/_matrix/client/v3/login?x", "exact"),
        ("/_matrix/client/v3/login/", "prefix"),
        ("/_matrix/client/r0/login", "pattern"),
        ("/_matrix/client/unstable/a/login", "pattern"),
        ("/_matrix/client/%76%33/login", "pattern"),
        ("/_matrix/client/login", "prefix"),
    ] {
        assert_eq!(client.get(HOST, target).await.text(), format!("{answer} {target}"));
    }
}

#[tokio::test]
async fn a_list_is_tried_in_its_order_with_conditions() {
    let (posts, marked, rest) = (named("posts").await, named("marked").await, named("rest").await);
    let edge = Edge::start(&format!(
        "[sites.\"{HOST}\"]\n[[sites.\"{HOST}\".routes]]\npath = \"/admin\"\nfrom = \"192.0.2.0/24\"\nupstream = \"{rest}\"\n\
         [[sites.\"{HOST}\".routes]]\npath = \"/admin\"\ndeny = true\n\
         [[sites.\"{HOST}\".routes]]\npath = \"/\"\nmethods = [\"POST\", \"PUT\"]\nupstream = \"{posts}\"\n\
         [[sites.\"{HOST}\".routes]]\npath = \"/\"\nfields = {{ \"X-Mark\" = \"a*c\", \"X-Any\" = true }}\nupstream = \"{marked}\"\n\
         [[sites.\"{HOST}\".routes]]\npath = \"/\"\nfrom = \"127.0.0.0/8\"\nupstream = \"{rest}\"\n",
        rest = rest.url(),
        posts = posts.url(),
        marked = marked.url(),
    ));
    let mut client = Client::tls(&edge, HOST).await;
    let mut ask =
        async |line: &str, fields: &str| client.ask(&format!("{line} HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n")).await;
    assert_eq!(ask("POST /x", "Content-Length: 0\r\n").await.text(), "posts /x");
    assert_eq!(ask("GET /x", "X-Mark: abc\r\nX-Any: 1\r\n").await.text(), "marked /x");
    assert_eq!(ask("GET /x", "X-Mark: abd\r\nX-Any: 1\r\n").await.text(), "rest /x");
    assert_eq!(ask("GET /x", "X-Mark: abc\r\n").await.text(), "rest /x");
    for spelling in ["/%61dmin", "//admin/x", "/x/../Admin", "/%2e/admin"] {
        assert_eq!(ask(&format!("POST {spelling}"), "Content-Length: 0\r\n").await.status, 403, "{spelling}");
    }
    let denied = ask("GET /admin/x", "").await;
    assert_eq!((denied.status, denied.text().contains("access is denied")), (403, true), "{}", denied.text());
}

#[tokio::test]
async fn fields_are_changed_on_both_ways() {
    let upstream = Origin::answering(|_| {
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nServer: x\r\nX-Powered-By: y\r\nX-Frame-Options: DENY\r\n\r\n"
            .to_vec()
    })
    .await;
    let edge = Edge::start(&format!(
        "[sites.\"{HOST}\"]\nupstream = \"{url}\"\nsecurity_fields = true\n\
         request_fields = {{ set = {{ \"X-Real-IP\" = \"{{client_ip}}\" }}, remove = \"X-Gone\" }}\n\
         response_fields = {{ remove = [\"Server\", \"X-Powered-By\"], set = {{ \"X-Host\" = \"{{host}} {{scheme}} {{{{}}}}\" }} }}\n\
         [sites.\"{HOST}\".routes]\n\
         \"/text\" = {{ respond = \"hello\", response_fields = {{ add = {{ \"X-Two\" = [\"a\", \"b\"] }} }} }}\n",
        url = upstream.url(),
    ));
    let mut client = Client::tls(&edge, HOST).await;
    let answer = client
        .ask(&format!("GET / HTTP/1.1\r\nHost: {HOST}:8443\r\nX-Gone: 1\r\nX-Real-IP: 6.6.6.6\r\nX-Kept: 1\r\n\r\n"))
        .await;
    let seen = upstream.seen().remove(0).to_lowercase();
    assert!(seen.contains("\r\nx-real-ip: 127.0.0.1\r\n") && seen.contains("x-kept: 1"), "{seen}");
    assert!(!seen.contains("x-gone") && !seen.contains("6.6.6.6"), "{seen}");
    assert_eq!(answer.field("x-host").unwrap(), format!("{HOST} https {{}}"));
    assert_eq!((answer.field("server"), answer.field("x-powered-by")), (None, None));
    // What the upstream said of itself stays; what it left out is filled in.
    assert_eq!(answer.field("x-frame-options").unwrap(), "DENY");
    assert_eq!(answer.field("content-security-policy").unwrap(), "frame-ancestors 'self'");
    let text = client.get(HOST, "/text").await;
    assert_eq!((text.all("x-two"), text.field("x-host").is_some()), (vec!["a".to_owned(), "b".into()], true));
    assert_eq!(client.get(HOST, "/text").await.field("x-content-type-options").unwrap(), "nosniff");
}

#[tokio::test]
async fn paths_are_rewritten_and_redirects_lead_anywhere() {
    let upstream = named("up").await;
    let edge = Edge::start(&format!(
        "[sites.\"{HOST}\".routes]\n\
         \"/old\" = {{ upstream = \"{url}\", strip_prefix = true, add_prefix = \"/new\" }}\n\
         \"=/fixed\" = {{ upstream = \"{url}\", rewrite = \"/there/%2F\" }}\n\
         \"/go\" = {{ redirect = \"https://example.net/x{{path}}?from={{host}}&{{query}}\" }}\n\
         \"=/\" = {{ redirect = {{ to = \"/web/\", status = 302 }} }}\n\
         \"/moved\" = {{ redirect = {{ to = \"https://example.net{{uri}}\", status = 301 }} }}\n",
        url = upstream.url(),
    ));
    let mut client = Client::tls(&edge, HOST).await;
    assert_eq!(client.get(HOST, "/old/a%2Fb?c=/old").await.text(), "up /new/a%2Fb?c=/old");
    assert_eq!(client.get(HOST, "/old").await.text(), "up /new/");
    assert_eq!(client.get(HOST, "/fixed?q=1").await.text(), "up /there/%2F?q=1");
    for (target, status, location) in [
        ("/go/%41?a=b", 308, "https://example.net/x/go/%41?from=a.example.org&a=b"),
        ("/", 302, "/web/"),
        ("/moved/x?y", 301, "https://example.net/moved/x?y"),
        ("/moved", 301, "https://example.net/moved"),
    ] {
        let answer = client.get(HOST, target).await;
        assert_eq!((answer.status, answer.field("location").unwrap()), (status, location.to_owned()), "{target}");
    }
}

#[tokio::test]
async fn cors_opens_responses_and_answers_preflights() {
    let upstream = named("up").await;
    let edge = Edge::start(&format!(
        "[sites.\"{HOST}\"]\nupstream = \"{url}\"\ncors = true\n[sites.\"{HOST}\".routes]\n\"/closed\" = {{ upstream = \"{url}\", cors = false }}\n",
        url = upstream.url(),
    ));
    let mut client = Client::tls(&edge, HOST).await;
    let preflight = format!(
        "HTTP/1.1\r\nHost: {HOST}\r\nOrigin: https://x.example\r\nAccess-Control-Request-Method: DELETE\r\nAccess-Control-Request-Headers: x-a, x-b\r\n\r\n"
    );
    let answer = client.ask(&format!("OPTIONS /y {preflight}")).await;
    assert_eq!(answer.status, 204);
    assert_eq!(answer.field("access-control-allow-origin").unwrap(), "*");
    assert_eq!(answer.field("access-control-allow-methods").unwrap(), "DELETE");
    assert_eq!(answer.field("access-control-allow-headers").unwrap(), "x-a, x-b");
    assert_eq!(client.get(HOST, "/y").await.field("access-control-allow-origin").unwrap(), "*");
    assert_eq!(client.ask(&format!("OPTIONS /closed {preflight}")).await.text(), "up /closed");
    assert_eq!(client.get(HOST, "/closed").await.field("access-control-allow-origin"), None);
}
