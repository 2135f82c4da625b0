//! Matrix: well-known documents, kinds of sites, and the layouts of the guide.

use std::sync::{Arc, Mutex};

use crate::support::{Client, Edge, Origin, origin};

async fn guide() -> (Edge, Origin, Origin, Origin) {
    let (synapse, jwt, livekit) =
        (Origin::echoing_targets().await, Origin::echoing_targets().await, Origin::echoing_targets().await);
    let edge = Edge::start(&format!(
        r#"
[matrix]
server_name = "example.org"
[sites."matrix.example.org"]
kind     = "synapse"
upstream = "{}"
[sites."jwt.matrixrtc.example.org"]
kind     = "lk-jwt"
upstream = "{}"
[sites."matrixrtc.example.org"]
kind     = "livekit"
upstream = "{}"
[sites."example.org"]
redirect = "https://www.example.org"
"#,
        synapse.url(),
        jwt.url(),
        livekit.url()
    ));
    (edge, synapse, jwt, livekit)
}

/// What clients have asked of a homeserver, without the edge's own question about call tokens.
fn asked(synapse: &Origin) -> Vec<String> {
    let mut seen = synapse.seen();
    seen.retain(|request| !request.contains("/rtc/livekit/get_token "));
    seen
}

#[tokio::test]
async fn the_guides_four_names_work() {
    let (edge, _synapse, _jwt, _livekit) = guide().await;
    for (host, target, status, body) in [
        ("matrix.example.org", "/", 200, "/"),
        ("matrix.example.org", "/_matrix/client/versions", 200, "/_matrix/client/versions"),
        ("matrix.example.org", "/_synapse/client/pick_idp", 200, "/_synapse/client/pick_idp"),
        ("jwt.matrixrtc.example.org", "/sfu/get", 200, "/sfu/get"),
        ("jwt.matrixrtc.example.org", "/get_token", 200, "/get_token"),
        ("matrixrtc.example.org", "/", 200, "/"),
        ("matrixrtc.example.org", "/rtc/v1/validate?access_token=x", 200, "/rtc/v1/validate?access_token=x"),
    ] {
        let answer = Client::tls(&edge, host).await.get(host, target).await;
        assert_eq!((answer.status, answer.text().as_str()), (status, body), "{host}{target}");
    }
    let answer = Client::tls(&edge, "example.org").await.get("example.org", "/a?b").await;
    assert_eq!((answer.status, answer.field("location").unwrap().as_str()), (308, "https://www.example.org/a?b"));
}

#[tokio::test]
async fn a_browser_gets_a_page_on_a_closed_path() {
    let (edge, ..) = guide().await;
    for (target, content_type) in [("/_synapse/metrics", "application/json"), ("/x", "text/html; charset=utf-8")] {
        let accept = "text/html,application/xhtml+xml,*/*;q=0.8";
        let request = format!("GET {target} HTTP/1.1\r\nHost: matrix.example.org\r\nAccept: {accept}\r\n\r\n");
        let answer = Client::tls(&edge, "matrix.example.org").await.ask(&request).await;
        assert_eq!((answer.status, answer.field("content-type").as_deref()), (404, Some(content_type)), "{target}");
    }
}

#[tokio::test]
async fn paths_that_are_nobodys_business_are_closed() {
    let (edge, synapse, jwt, livekit) = guide().await;
    for (host, target) in [
        ("matrix.example.org", "/x"),
        ("matrix.example.org", "/_synapse/admin/v1/server_version"),
        ("matrix.example.org", "/_synapse/metrics"),
        ("matrix.example.org", "/_synapse/mas/x"),
        ("matrix.example.org", "/_synapse/replication/x"),
        ("matrix.example.org", "//_synapse/admin/v1/server_version"),
        ("matrix.example.org", "/_matrixx"),
        ("jwt.matrixrtc.example.org", "/"),
        ("jwt.matrixrtc.example.org", "/sfu/get/x"),
        ("matrixrtc.example.org", "/debug/pprof"),
        ("matrixrtc.example.org", "/rtcx"),
    ] {
        let answer = Client::tls(&edge, host).await.get(host, target).await;
        assert_eq!(answer.status, 404, "{host}{target}");
        assert_eq!(answer.field("access-control-allow-origin").as_deref(), Some("*"));
        if host != "matrixrtc.example.org" {
            assert_eq!(answer.json()["errcode"], "M_UNRECOGNIZED");
        }
    }
    assert_eq!(asked(&synapse).len() + jwt.seen().len() + livekit.seen().len(), 0);
}

#[tokio::test]
async fn the_one_host_layout_strips_its_prefixes() {
    let (synapse, jwt, livekit) =
        (Origin::echoing_targets().await, Origin::echoing_targets().await, Origin::echoing_targets().await);
    let edge = Edge::start(&format!(
        r#"
[matrix]
server_name = "example.org"
[sites."example.org"]
[sites."matrix.example.org"]
kind     = "synapse"
upstream = "{}"
[sites."matrix.example.org".routes]
"/livekit/jwt" = {{ kind = "lk-jwt",  upstream = "{}", strip_prefix = true }}
"/livekit/sfu" = {{ kind = "livekit", upstream = "{}", strip_prefix = true }}
"#,
        synapse.url(),
        jwt.url(),
        livekit.url()
    ));
    let host = "matrix.example.org";
    for (target, body) in [
        ("/livekit/jwt/sfu/get", "/sfu/get"),
        ("/livekit/jwt/healthz?x", "/healthz?x"),
        ("/livekit/sfu", "/"),
        ("/livekit/sfu/rtc/v1?a=%2F&a", "/rtc/v1?a=%2F&a"),
        ("/twirp/livekit.RoomService/ListRooms", "/twirp/livekit.RoomService/ListRooms"),
        ("/_matrix/client/versions", "/_matrix/client/versions"),
    ] {
        let answer = Client::tls(&edge, host).await.get(host, target).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, body), "{target}");
    }
    let client = Client::tls(&edge, host).await.get(host, "/.well-known/matrix/client").await;
    let url = client.json()["org.matrix.msc4143.rtc_foci"][0]["livekit_service_url"].clone();
    assert_eq!(url, "https://matrix.example.org/livekit/jwt");
    assert_eq!(livekit.seen().len(), 3);
}

#[tokio::test]
async fn well_known_documents_are_answered_everywhere_and_first() {
    let (edge, synapse, _jwt, _livekit) = guide().await;
    for host in ["example.org", "matrix.example.org"] {
        for secure in [true, false] {
            for (method, name, status) in [
                ("GET", "client", 200),
                ("HEAD", "client", 200),
                ("GET", "server?x=y", 200),
                ("GET", "support", 404),
                ("OPTIONS", "client", 204),
                ("POST", "server", 405),
            ] {
                let request = format!(
                    "{method} /.well-known/matrix/{name} HTTP/1.1\r\nHost: {host}\r\nOrigin: https://app\r\n\r\n"
                );
                let answer = if secure {
                    Client::tls(&edge, host).await.ask(&request).await
                } else {
                    Client::plain(edge.http()).await.ask(&request).await
                };
                assert_eq!(answer.status, status, "{secure} {request}");
                for field in ["origin", "methods", "headers"] {
                    assert!(answer.field(&format!("access-control-allow-{field}")).is_some(), "{request}");
                }
                if status == 200 {
                    assert_eq!(answer.field("content-type").as_deref(), Some("application/json"));
                    assert_eq!(answer.field("cache-control").as_deref(), Some("public, max-age=3600"));
                    assert!(answer.field("etag").is_some());
                }
            }
        }
    }
    assert_eq!(asked(&synapse).len(), 0);
    // Where there is no document, the redirect can be followed by a browser.
    let other = Client::plain(edge.http()).await.get("matrixrtc.example.org", "/.well-known/matrix/client").await;
    assert_eq!((other.status, other.field("access-control-allow-origin").as_deref()), (308, Some("*")));
}

#[tokio::test]
async fn preflights_are_answered() {
    let (edge, synapse, jwt, _) = guide().await;
    let request =
        "OPTIONS /_matrix/client/v3/login HTTP/1.1\r\nHost: matrix.example.org\r\nOrigin: https://app\r\n\r\n";
    let answer = Client::tls(&edge, "matrix.example.org").await.ask(request).await;
    assert_eq!((answer.status, asked(&synapse).len()), (204, 0));
    assert!(answer.field("access-control-allow-headers").unwrap().contains("Authorization"));
    // The stand-in answers OPTIONS without CORS, as a service that is not there would.
    let request = "OPTIONS /sfu/get HTTP/1.1\r\nHost: jwt.matrixrtc.example.org\r\nOrigin: https://app\r\n\r\n";
    let answer = Client::tls(&edge, "jwt.matrixrtc.example.org").await.ask(request).await;
    assert_eq!((answer.status, jwt.seen().len()), (204, 1));
    assert_eq!(answer.field("access-control-max-age").as_deref(), Some("86400"));
}

#[tokio::test]
async fn what_synapse_would_choke_on_is_told() {
    let (edge, synapse, _jwt, _livekit) = guide().await;
    let host = "matrix.example.org";
    let fields = format!("Host: {host}\r\nOrigin: https://app\r\n");
    for (request, status, errcode) in [
        (
            format!("POST /_matrix/media/v3/upload HTTP/1.1\r\n{fields}Content-Length: 67108865\r\n\r\n"),
            413,
            "M_TOO_LARGE",
        ),
        (format!("PUT /_matrix/client/v3/x HTTP/1.1\r\n{fields}Content-Length: 16777217\r\n\r\n"), 413, "M_TOO_LARGE"),
        (
            format!(
                "POST /_matrix/media/v3/upload HTTP/1.1\r\n{fields}Transfer-Encoding: chunked\r\n\r\n10001\r\n{}",
                "x".repeat(0x10001)
            ),
            411,
            "M_UNKNOWN",
        ),
        (format!("GET /_matrix/{} HTTP/1.1\r\n{fields}\r\n", "a".repeat(17_000)), 414, "M_UNKNOWN"),
        (format!("GET /_matrix/x HTTP/1.1\r\n{fields}X: {}\r\n\r\n", "a".repeat(17_000)), 431, "M_UNKNOWN"),
    ] {
        let answer = Client::tls(&edge, host).await.ask(&request).await;
        assert_eq!(answer.status, status, "{}", &request[..60]);
        assert_eq!(answer.json()["errcode"], errcode);
        assert_eq!(answer.field("access-control-allow-origin").as_deref(), Some("*"));
    }
    assert_eq!(asked(&synapse).len(), 0, "nothing of it reached Synapse");
}

#[tokio::test]
async fn transports_are_filled_in_and_tokens_are_checked() {
    let synapse = Origin::answering(|request| {
        let good = request.contains("Bearer good") || request.contains("bearer good");
        match request.split(' ').nth(1).unwrap() {
            "/_matrix/client/v3/account/whoami" if good => origin::ok("{}"),
            "/_matrix/client/v3/account/whoami" => {
                origin::answer("401 Unauthorized", &[], r#"{"errcode":"M_UNKNOWN_TOKEN"}"#)
            }
            _ => origin::answer("404 Not Found", &[], r#"{"errcode":"M_UNRECOGNIZED","error":"x"}"#),
        }
    })
    .await;
    let edge = Edge::start(&format!(
        "[matrix]\nserver_name = \"matrix.example.org\"\nrtc_service = \"https://jwt.example.org\"\n\
         [sites.\"matrix.example.org\"]\nkind = \"synapse\"\nupstream = \"{}\"\n",
        synapse.url()
    ));
    let host = "matrix.example.org";
    for path in ["unstable/org.matrix.msc4143", "v1"] {
        for (token, status) in [("good", 200), ("bad", 401)] {
            let request = format!(
                "GET /_matrix/client/{path}/rtc/transports HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\r\n"
            );
            let answer = Client::tls(&edge, host).await.ask(&request).await;
            assert_eq!(answer.status, status, "{path} {token}");
            if status == 200 {
                assert_eq!(answer.json()["rtc_transports"][0]["livekit_service_url"], "https://jwt.example.org");
            }
        }
    }
}

/// A homeserver of which everything about calls can be changed while it runs.
#[derive(Default)]
struct Homeserver {
    hands_out_tokens: bool,
    unstable: Option<&'static str>,
    stable: Option<&'static str>,
}

impl Homeserver {
    fn answer(&self, request: &str) -> Vec<u8> {
        let unrecognized = || origin::answer("404 Not Found", &[], r#"{"errcode":"M_UNRECOGNIZED","error":"x"}"#);
        let unauthorized = || origin::answer("401 Unauthorized", &[], r#"{"errcode":"M_MISSING_TOKEN"}"#);
        let good = request.to_ascii_lowercase().contains("bearer good");
        match (request.split(' ').nth(1).unwrap(), self.unstable, self.stable) {
            ("/_matrix/client/v1/rtc/livekit/get_token", ..) if self.hands_out_tokens => unauthorized(),
            ("/_matrix/client/unstable/org.matrix.msc4143/rtc/transports", Some(list), _)
            | ("/_matrix/client/v1/rtc/transports", _, Some(list)) => {
                if good {
                    origin::ok(list)
                } else {
                    unauthorized()
                }
            }
            ("/_matrix/client/v3/account/whoami", ..) => {
                if good {
                    origin::ok("{}")
                } else {
                    unauthorized()
                }
            }
            _ => unrecognized(),
        }
    }
}

const LAYOUTS: [(&str, &str, &str); 2] = [
    (
        "[sites.\"rtc.example.org\"]\nkind = \"livekit\"\nupstream = \"http://127.0.0.1:1\"\n\
         [sites.\"jwt.example.org\"]\nkind = \"lk-jwt\"\nupstream = \"http://127.0.0.1:1\"\n",
        "wss://rtc.example.org",
        "https://jwt.example.org",
    ),
    (
        "[sites.\"matrix.example.org\".routes]\n\
         \"/livekit/jwt\" = { kind = \"lk-jwt\", upstream = \"http://127.0.0.1:1\", strip_prefix = true }\n\
         \"/livekit/sfu\" = { kind = \"livekit\", upstream = \"http://127.0.0.1:1\", strip_prefix = true }\n",
        "wss://matrix.example.org/livekit/sfu",
        "https://matrix.example.org/livekit/jwt",
    ),
];

async fn transports(edge: &Edge, path: &str) -> serde_json::Value {
    let request = format!(
        "GET /_matrix/client/{path}/rtc/transports HTTP/1.1\r\nHost: matrix.example.org\r\nAuthorization: Bearer good\r\n\r\n"
    );
    let answer = Client::tls(edge, "matrix.example.org").await.ask(&request).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    answer.json()
}

/// A homeserver that hands out tokens or not, its list empty, missing or its own, both paths, both layouts, and an update
/// of the homeserver behind a running edge.
#[tokio::test(flavor = "multi_thread")]
async fn transports_name_the_sfu_where_the_homeserver_hands_out_tokens() {
    const OWN: &str = r#"{"rtc_transports":[{"type":"livekit","livekit_service_url":"https://own"}]}"#;
    let own: serde_json::Value = serde_json::from_str(OWN).unwrap();
    for (sites, sfu, service) in LAYOUTS {
        let old = serde_json::json!([{ "type": "livekit", "livekit_service_url": service }]);
        let new = serde_json::json!([
            { "type": "m.livekit", "url": sfu },
            { "type": "livekit", "url": sfu, "livekit_service_url": service },
        ]);
        let state = Arc::new(Mutex::new(Homeserver::default()));
        let synapse = Origin::answering({
            let state = state.clone();
            move |request| state.lock().unwrap().answer(request)
        })
        .await;
        let edge = Edge::start(&format!(
            "[matrix]\nserver_name = \"matrix.example.org\"\n\
             [sites.\"matrix.example.org\"]\nkind = \"synapse\"\nupstream = \"{}\"\n{sites}",
            synapse.url()
        ));
        for (probe, hands_out_tokens) in [false, true, false].into_iter().enumerate() {
            state.lock().unwrap().hands_out_tokens = hands_out_tokens;
            if probe > 0 {
                assert!(edge.command(&["reload"]).status.success());
            }
            edge.wait_for_logs("whether the homeserver hands out call tokens", probe + 1);
            let ours = if hands_out_tokens { &new } else { &old };
            for list in [None, Some("{}"), Some(r#"{"rtc_transports":[]}"#), Some(OWN)] {
                state.lock().unwrap().unstable = list;
                let expected = if list == Some(OWN) { &own["rtc_transports"] } else { ours };
                let unstable = transports(&edge, "unstable/org.matrix.msc4143").await;
                assert_eq!(&unstable["rtc_transports"], expected, "{sfu} {hands_out_tokens} {list:?}");
                assert!(unstable.get("transports").is_none());
                let stable = transports(&edge, "v1").await;
                assert_eq!((&stable["transports"], &stable["rtc_transports"]), (expected, expected), "{list:?}");
            }
            state.lock().unwrap().stable = Some(r#"{"transports":[{"type":"m.livekit","url":"wss://own"}]}"#);
            assert_eq!(
                transports(&edge, "v1").await.to_string(),
                r#"{"transports":[{"type":"m.livekit","url":"wss://own"}]}"#
            );
            *state.lock().unwrap() = Homeserver::default();
        }
        let probes = synapse.seen().iter().filter(|request| request.contains("/get_token ")).count();
        // Both paths where the first is not served; and never for a client.
        assert_eq!(probes, 2 + 1 + 2, "{:?}", synapse.seen());
        let client = Client::tls(&edge, "matrix.example.org")
            .await
            .get("matrix.example.org", "/.well-known/matrix/client")
            .await;
        assert_eq!(client.json()["org.matrix.msc4143.rtc_foci"], old);
    }
}

#[tokio::test]
async fn another_homeserver_has_its_api_open_and_none_of_the_limits_of_synapse() {
    let upstream = Origin::echoing_targets().await;
    let edge = Edge::start(&format!(
        "[matrix]\nserver_name = \"example.org\"\n[sites.\"example.org\"]\nkind = \"homeserver\"\nupstream = \"{}\"\n\
         redirect = \"https://www.example.org\"\n[sites.\"example.org\".routes]\n\"/_continuwuity\" = {{ upstream = \"{}\" }}\n\
         [sites.\"jwt.example.org\"]\nkind = \"lk-jwt\"\nupstream = \"http://127.0.0.1:1\"\n",
        upstream.url(),
        upstream.url()
    ));
    let mut client = Client::tls(&edge, "example.org").await;
    for target in ["/_matrix/client/versions", "/_matrix/federation/v1/version", "/_continuwuity/account/reset"] {
        assert_eq!(client.get("example.org", target).await.text(), target);
    }
    for target in ["/_synapse/admin/v1/users", "/_synapse/client/x", "/_dendrite/admin", "/health", "/x", "/_matrixx"] {
        let answer = client.get("example.org", target).await;
        assert_eq!((answer.status, answer.json()["errcode"].as_str()), (404, Some("M_UNRECOGNIZED")), "{target}");
    }
    let answer = client.get("example.org", "/").await;
    assert_eq!((answer.status, answer.field("location").unwrap().as_str()), (308, "https://www.example.org/"));
    let documents = client.get("example.org", "/.well-known/matrix/client").await.json();
    assert_eq!(documents["m.homeserver"]["base_url"], "https://example.org");
    let server = client.get("example.org", "/.well-known/matrix/server").await.json();
    assert_eq!(server["m.server"], "example.org:443");
    // Synapse takes no head of more than 16 KiB, no body without a length, and has one answer to all preflights.
    let long = format!("/_matrix/{}", "a".repeat(20_000));
    assert_eq!(client.get("example.org", &long).await.text(), long);
    let upload = "POST /_matrix/media/v3/upload HTTP/1.1\r\nHost: example.org\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    assert_eq!(client.ask(upload).await.status, 200);
    assert!(asked(&upstream).pop().unwrap().to_lowercase().contains("transfer-encoding: chunked"));
    let preflight = "OPTIONS /_matrix/client/v3/login HTTP/1.1\r\nHost: example.org\r\nOrigin: https://app\r\n\r\n";
    assert_eq!(client.ask(preflight).await.text(), "/_matrix/client/v3/login");
}

#[tokio::test]
async fn log_ins_go_to_the_authentication_service_and_nothing_else_does() {
    let named = |name: &'static str| {
        Origin::answering(move |_| {
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()).into_bytes()
        })
    };
    let (synapse, mas) = (named("synapse").await, named("mas").await);
    let edge = Edge::start(&format!(
        "[matrix]\nserver_name = \"example.org\"\nrtc_service = []\n[sites.\"example.org\"]\nkind = \"synapse\"\n\
         upstream = \"{}\"\nmas = \"{}\"\n[sites.\"auth.example.org\"]\nkind = \"mas\"\nupstream = \"{}\"\n",
        synapse.url(),
        mas.url(),
        mas.url()
    ));
    let mut client = Client::tls(&edge, "example.org").await;
    for path in [
        "/_matrix/client/v3/login",
        "/_matrix/client/r0/login",
        "/_matrix/client/v3/login/sso/redirect?redirectUrl=x",
        "/_matrix/client/v1/login/get_token",
        "/_matrix/client/v3/logout",
        "/_matrix/client/r0/logout/all",
        "/_matrix/client/v3/refresh",
        "/_matrix/client/unstable/refresh",
    ] {
        assert_eq!(client.get("example.org", path).await.text(), "mas", "{path}");
    }
    for path in [
        "/_matrix/client/versions",
        "/_matrix/client/v3/register",
        "/_matrix/client/v3/loginx",
        "/_matrix/client/v3/rooms/!a:b/state/m.x/login",
        "/_matrix/client/v3/user/a/login",
        "/_matrix/login",
        "/_matrix/client/login",
    ] {
        assert_eq!(client.get("example.org", path).await.text(), "synapse", "{path}");
    }
    // MAS answers preflights itself.
    let preflight = "OPTIONS /_matrix/client/v3/login HTTP/1.1\r\nHost: example.org\r\nOrigin: https://app\r\n\r\n";
    assert_eq!(client.ask(preflight).await.text(), "mas");
    let mut client = Client::tls(&edge, "auth.example.org").await;
    for path in ["/", "/account/", "/.well-known/openid-configuration", "/oauth2/token", "/api/v1/x"] {
        assert_eq!(client.get("auth.example.org", path).await.text(), "mas", "{path}");
    }
    for path in ["/api/admin", "/api/admin/v1/users"] {
        assert_eq!(client.get("auth.example.org", path).await.status, 404, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_homeserver_without_transports_gets_ours() {
    let homeserver = Origin::answering(|request| Homeserver::default().answer(request)).await;
    let (sites, _, service) = LAYOUTS[0];
    let edge = Edge::start(&format!(
        "[matrix]\nserver_name = \"matrix.example.org\"\n[sites.\"matrix.example.org\"]\nkind = \"homeserver\"\n\
         upstream = \"{}\"\n{sites}",
        homeserver.url()
    ));
    let list = transports(&edge, "unstable/org.matrix.msc4143").await;
    assert_eq!(list["rtc_transports"], serde_json::json!([{ "type": "livekit", "livekit_service_url": service }]));
}
