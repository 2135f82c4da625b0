//! Routes: which one answers, and what it changes of the request and of the response.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::support::{
    Client, Edge, Origin, client,
    origin::{answer, ok},
};

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
async fn a_site_for_every_other_name_answers_plain_http() {
    let (named, rest) = (named("named").await, named("rest").await);
    let edge = Edge::start(&format!(
        "[sites.\"*\"]\ntls = \"off\"\nupstream = \"{}\"\n[sites.\"{HOST}\"]\ntls = \"off\"\nupstream = \"{}\"\n\
         [sites.\"b.example.org\"]\nupstream = \"{}\"\n",
        rest.url(),
        named.url(),
        named.url(),
    ));
    let mut client = Client::plain(edge.http()).await;
    for (host, answer) in [(HOST, "named /x"), ("c.example.org", "rest /x"), ("[::1]:80", "rest /x"), ("x", "rest /x")]
    {
        assert_eq!(client.get(host, "/x").await.text(), answer, "{host}");
    }
    assert_eq!(client.get("b.example.org", "/x").await.status, 308);
    // It has no certificate, and no part in TLS.
    assert!(client::tls(&edge, "c.example.org", &["http/1.1"]).await.is_err());
    let mut client = Client::tls(&edge, "b.example.org").await;
    assert_eq!(client.get("c.example.org", "/x").await.status, 421);
    assert_eq!(client.get("b.example.org", "/x").await.text(), "named /x");
}

#[tokio::test]
async fn a_site_of_one_port_answers_there_alone() {
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (one, plain) = (free(), free());
    let edge = Edge::start(&format!("[sites.\"{HOST}\".routes]\n\"/\" = {{ respond = \"first\" }}\n"));
    let site = |name: &str, tls: &str, answer: &str| {
        format!("[sites.\"{name}\"]\n{tls}[sites.\"{name}\".routes]\n\"/\" = {{ respond = \"{answer}\" }}\n")
    };
    let sites = [
        site(HOST, "", "every"),
        site(&format!("{HOST}:{}", one.port()), "", "one"),
        site(&format!("{HOST}:{}", plain.port()), "tls = \"off\"\n", "plain"),
        site(&format!("b.example.org:{}", one.port()), "", "only"),
        site(&format!("*:{}", plain.port()), "tls = \"off\"\n", "rest"),
    ];
    let config = Edge::config(edge.path("").as_path(), "", &sites.concat())
        .replace("http = [\"127.0.0.1:0\"]", &format!("http = [\"127.0.0.1:0\", \"{plain}\"]"))
        .replace("https = [\"127.0.0.1:0\"]", &format!("https = [\"127.0.0.1:0\", \"{one}\"]"));
    std::fs::write(edge.path("vestibule.toml"), config).unwrap();
    edge.wait_for_log("the new configuration is in effect");
    let there = format!("{HOST}:{}", one.port());
    // Where the connection comes to, the name, the host of the request, and who answers. What a client writes as its port
    // says nothing.
    for (address, name, host, answer) in [
        (edge.https(), HOST, HOST, "every"),
        (edge.https(), HOST, there.as_str(), "every"),
        (one, HOST, HOST, "one"),
        (one, HOST, there.as_str(), "one"),
        (one, "b.example.org", "b.example.org", "only"),
    ] {
        let mut client = Client::tls_at(address, &edge.root(), name).await;
        assert_eq!(client.get(host, "/").await.text(), answer, "{address} {host}");
    }
    let mut elsewhere = Client::tls_at(edge.https(), &edge.root(), "b.example.org").await;
    assert_eq!(elsewhere.get("b.example.org", "/").await.status, 421);
    for (address, host, status, answer) in [
        (plain, HOST, 200, "plain"),
        (plain, "c.example.org", 200, "rest"),
        (edge.http(), HOST, 308, ""),
        (edge.http(), "b.example.org", 404, "Not Found"),
    ] {
        let found = Client::plain(address).await.get(host, "/").await;
        assert_eq!(found.status, status, "{address} {host}");
        assert!(status == 404 || found.text() == answer, "{}", found.text());
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

/// `user:secret`, as a client sends it.
fn basic(credentials: &str) -> String {
    format!("Authorization: Basic {}\r\n", STANDARD.encode(credentials))
}

#[tokio::test]
async fn a_password_is_asked_for_and_stays_with_the_edge() {
    let upstream = Origin::answering(|_| ok("in")).await;
    // The least cost, so that the test is quick.
    let hash = bcrypt::hash_with_salt("secret", 4, [1; 16]).unwrap();
    let edge = Edge::start(&format!(
        "[sites.\"{HOST}\"]\nupstream = \"{url}\"\n\
         basic_auth = {{ realm = \"Panel\", users = {{ alice = \"{hash}\" }} }}\n\
         [sites.\"{HOST}\".routes]\n\"/open\" = {{ upstream = \"{url}\", basic_auth = false }}\n\
         \"/kept\" = {{ upstream = \"{url}\", basic_auth = {{ users = {{ bob = \"{hash}\" }}, pass_authorization = true }} }}\n\
         \"/text\" = {{ respond = \"hello\" }}\n",
        url = upstream.url(),
    ));
    let mut client = Client::tls(&edge, HOST).await;
    let mut ask = async |target: &str, fields: &str| {
        client.ask(&format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n")).await
    };
    for target in ["/", "/text", "/kept", "/openx"] {
        let answer = ask(target, "").await;
        let realm = if target == "/kept" { "restricted" } else { "Panel" };
        let challenge = format!("Basic realm=\"{realm}\", charset=\"UTF-8\"");
        assert_eq!((answer.status, answer.field("www-authenticate")), (401, Some(challenge)), "{target}");
    }
    // What leads out of what is open leads to a password, whoever reads the path.
    for spelling in ["/open/../x", "/open/%2e%2e/x", "//kept", "/%6bept", "/KEPT"] {
        assert_eq!(ask(spelling, "").await.status, 401, "{spelling}");
    }
    for wrong in ["alice:Secret", "bob:secret", "alice", "eve:secret"] {
        assert_eq!(ask("/", &basic(wrong)).await.status, 401, "{wrong}");
    }
    assert!(upstream.seen().is_empty());
    assert_eq!(ask("/", &basic("alice:secret")).await.text(), "in");
    assert_eq!(ask("/text", &basic("alice:secret")).await.text(), "hello");
    assert_eq!(ask("/kept/x", &basic("bob:secret")).await.text(), "in");
    assert_eq!(ask("/open", &basic("eve:x")).await.text(), "in");
    let passed: Vec<_> =
        upstream.seen().iter().map(|seen| seen.to_lowercase().contains("\r\nauthorization: ")).collect();
    assert_eq!(passed, [false, true, true]);
    assert!(!edge.log().contains("secret"), "{}", edge.log());
}

#[tokio::test]
async fn guesses_of_a_password_are_bounded_for_each_address() {
    let hash = bcrypt::hash_with_salt("secret", 4, [1; 16]).unwrap();
    let edge = Edge::with(
        "trusted_proxies = [\"127.0.0.0/8\"]",
        &format!(
            "[sites.\"{HOST}\"]\nbasic_auth = {{ users = {{ alice = \"{hash}\" }} }}\n[sites.\"{HOST}\".routes]\n\"/\" = {{ respond = \"in\" }}\n"
        ),
    );
    let mut client = Client::tls(&edge, HOST).await;
    let mut guess = async |password: &str, from: &str| {
        let fields =
            format!("X-Forwarded-For: {from}\r\nX-Forwarded-Proto: https\r\n{}", basic(&format!("alice:{password}")));
        client.ask(&format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n")).await
    };
    let mut refused = None;
    for n in 0..40 {
        let answer = guess(&n.to_string(), "192.0.2.1").await;
        if answer.status == 429 {
            refused = Some(answer);
            break;
        }
        assert_eq!(answer.status, 401, "{n}");
    }
    let refused = refused.expect("no guess of forty was refused");
    assert!(refused.field("retry-after").unwrap().parse::<u32>().unwrap() > 0);
    assert_eq!(guess("secret", "192.0.2.1").await.status, 429, "the right password is not told from a wrong one");
    assert_eq!(guess("secret", "192.0.2.2").await.text(), "in");
}

/// Knows Alice by her cookie and sends everyone else to its own page.
async fn auth_service() -> Origin {
    Origin::answering(|request| {
        let lower = request.to_lowercase();
        match request {
            _ if lower.starts_with("get /pages/") => ok("log in here"),
            _ if lower.contains("\r\ncookie: alice\r\n") => {
                answer("204 No Content", &[("Remote-User", "alice"), ("X-Other", "x")], "")
            }
            _ if lower.contains("\r\ncookie: none\r\n") => answer("401 Unauthorized", &[], "who?"),
            _ => answer("302 Found", &[("Location", "https://auth.example.org/"), ("Set-Cookie", "s=1")], "this way"),
        }
    })
    .await
}

#[tokio::test]
async fn a_service_is_asked_who_may_come_and_says_who_it_is() {
    let (auth, app) = (auth_service().await, Origin::answering(|_| ok("in")).await);
    let edge = Edge::start(&format!(
        "[sites.\"{HOST}\"]\nupstream = \"{app}\"\n\
         forward_auth = {{ url = \"{auth}/verify?x=1\", copy_fields = [\"Remote-User\"], login_path = \"/pages\" }}\n\
         [sites.\"{HOST}\".routes]\n\"/open\" = {{ upstream = \"{app}\", forward_auth = false }}\n\
         \"/panel\" = {{ upstream = \"{app}\", forward_auth = {{ upstream = \"{auth}\", sign_in = \"/pages/in?rd={{uri}}\" }} }}\n",
        auth = auth.url(),
        app = app.url(),
    ));
    let mut client = Client::tls(&edge, HOST).await;
    let mut ask =
        async |line: &str, fields: &str| client.ask(&format!("{line} HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n")).await;
    // Its own answer, untouched.
    let refused = ask("GET /x", "Remote-User: alice\r\n").await;
    assert_eq!((refused.status, refused.text().as_str()), (302, "this way"));
    assert_eq!(
        (refused.field("location").unwrap(), refused.field("set-cookie").unwrap()),
        ("https://auth.example.org/".into(), "s=1".into())
    );
    assert!(app.seen().is_empty());
    let forged = "Cookie: alice\r\nRemote-User: root\r\nREMOTE_USER: root\r\nX-Forwarded-Uri: /open\r\nX-Forwarded-Method: GET\r\n";
    let admitted =
        ask("POST /x/%2F?q=1", format!("{forged}Content-Length: 4\r\n\r\nbody").trim_end_matches("\r\n")).await;
    assert_eq!(admitted.text(), "in");
    let question = auth.seen().pop().unwrap().to_lowercase();
    assert!(question.starts_with("get /verify?x=1 http/1.1\r\n"), "{question}");
    for said in [
        "x-forwarded-method: post",
        "x-forwarded-uri: /x/%2f?q=1",
        "x-forwarded-host: a.example.org",
        "x-forwarded-proto: https",
        "x-forwarded-for: 127.0.0.1",
    ] {
        let name = said.split(':').next().unwrap();
        assert_eq!(question.matches(&format!("\r\n{name}:")).count(), 1, "{question}");
        assert!(question.contains(&format!("\r\n{said}\r\n")), "{said}: {question}");
    }
    assert!(!question.contains("content-length: 4") && !question.contains("root"), "{question}");
    let seen = app.seen().pop().unwrap().to_lowercase();
    assert!(seen.contains("\r\nremote-user: alice\r\n") && seen.ends_with("body"), "{seen}");
    assert!(!seen.contains("root") && !seen.contains("x-other"), "{seen}");
    // Nobody is asked about what is open.
    let asked = auth.seen().len();
    assert_eq!(ask("GET /open", "").await.text(), "in");
    assert_eq!(ask("GET /open/../x", "").await.status, 302, "a spelling leads around the service");
    assert_eq!(ask("GET /pages/in", "").await.text(), "log in here");
    assert_eq!(auth.seen().len(), asked + 2);
    let sign_in = ask("GET /panel/x?y", "Cookie: none\r\n").await;
    assert_eq!((sign_in.status, sign_in.field("location").unwrap()), (302, "/pages/in?rd=/panel/x?y".into()));
    assert_eq!(ask("GET /", "Cookie: none\r\n").await.text(), "who?");
}

#[tokio::test]
async fn what_a_service_protects_is_closed_while_it_is_away() {
    let app = Origin::answering(|_| ok("in")).await;
    let away = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let edge = Edge::start(&format!(
        "[sites.\"{HOST}\"]\nupstream = \"{app}\"\n\
         forward_auth = {{ upstream = {{ servers = \"http://{away}\", retry_connect = \"off\" }} }}\n",
        app = app.url(),
    ));
    let mut client = Client::tls(&edge, HOST).await;
    assert_eq!(client.get(HOST, "/").await.status, 502);
    assert!(app.seen().is_empty());
}
