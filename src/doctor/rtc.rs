//! Calls: the transports of the homeserver, lk-jwt-service, and the SFU.

use futures_util::future::join_all;
use http::Method;
use serde_json::json;

use super::{
    DirectProbe, ProbeContext,
    ask::{Cors, ProbeRequest, ProbeResponse},
    finding::{Check, Finding, Layer},
    names::origin_at,
};
use crate::{
    config::{
        plan::{Kind, Matrix},
        versions,
    },
    conn::Fetch,
    error::ServerFailure,
};

pub const TRANSPORTS: &str = "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports";

/// Tests the transports endpoint without an account.
pub async fn transports(context: &ProbeContext<'_>, matrix: &Matrix) -> Vec<Finding> {
    let check = Check::new(Layer::Rtc, "rtc.transports", &matrix.homeserver);
    if context.wanted.account.is_some() {
        // With an account the list itself is read.
        return Vec::new();
    }
    if matrix.rtc_services().next().is_none() {
        return vec![check.skip("the configuration has no call service (rtc.foci)")];
    }
    let (way, direct) = match context.homeserver(matrix) {
        Ok(way) => way,
        Err(reason) => return vec![check.skip(reason)],
    };
    let response = ProbeRequest::get(format!("{}{TRANSPORTS}", matrix.homeserver)).ask(&way).await;
    let own = match direct {
        Some(direct) => ProbeRequest::get(direct.url(TRANSPORTS)).ask(&direct.service.client).await.ok(),
        None => None,
    };
    let who = match own {
        Some(own) if own.status == 401 => "Synapse answers, and vestibule adds missing transports",
        Some(_) => "vestibule answers in place of Synapse",
        None => "the endpoint answers",
    };
    vec![match response {
        Ok(response) => without_token(&check, &response, who),
        Err(error) => check.silent(&error, "read Synapse's log"),
    }]
}

fn without_token(check: &Check, response: &ProbeResponse, who: &str) -> Finding {
    if response.is(401, "M_MISSING_TOKEN") {
        return check.ok(format!("{who}; to see the list, pass --token or --user"));
    }
    off(check, response)
}

/// The finding that the endpoint is missing.
pub fn off(check: &Check, response: &ProbeResponse) -> Finding {
    let fix = "set matrix.rtc_transports = \"fill\" and a site of kind `lk-jwt`, or `msc4143_enabled: true` and `matrix_rtc: {transports: …}` in homeserver.yaml";
    let fact = format!(
        "clients since August 2026 find no call service here ({}): MISSING_MATRIX_RTC_TRANSPORT",
        response.words()
    );
    check.fail(if response.status == 404 { "off" } else { "other" }, fact, fix)
}

/// Tests each lk-jwt-service (rows 3 and 12).
pub async fn jwt(context: &ProbeContext<'_>, matrix: &Matrix) -> Vec<Finding> {
    if matrix.rtc_services().next().is_none() {
        return vec![Check::new(Layer::Rtc, "rtc.jwt", "[matrix]").skip("the configuration has no call service")];
    }
    join_all(matrix.rtc_services().map(|url| jwt_at(context, url))).await
}

async fn jwt_at(context: &ProbeContext<'_>, url: &str) -> Finding {
    let check = Check::new(Layer::Rtc, "rtc.jwt", url);
    if url.ends_with('/') {
        return check.fail("slash", "the URL ends with a slash, to which clients append /sfu/get", "remove the slash");
    }
    let direct = context.service(Kind::LkJwt, url);
    if let Some(down) = direct.as_ref().and_then(|direct| direct.down) {
        return check.skip(down);
    }
    let way = match context.way(url) {
        Ok(way) => way,
        Err(reason) => return check.skip(reason),
    };
    match jwt_answers(&check, url, &way, direct.as_ref()).await {
        Ok(finding) | Err(finding) => finding,
    }
}

async fn jwt_answers(
    check: &Check,
    url: &str,
    way: &Fetch,
    direct: Option<&DirectProbe<'_>>,
) -> Result<Finding, Finding> {
    let silent = |error: ServerFailure| check.silent(&error, "make the name resolve to vestibule");
    let put = |method: Method, path: &str| {
        let request = ProbeRequest::get(format!("{url}{path}")).method(method);
        async move { request.ask(way).await.map_err(silent) }
    };
    let health = put(Method::GET, "/healthz").await?;
    let old = put(Method::GET, "/sfu/get").await?;
    if health.status == 404 || old.status == 404 {
        let fact = format!(
            "/healthz and /sfu/get return {} and {}: the service does not receive those paths",
            health.words(),
            old.words()
        );
        return Err(check.fail(
            "prefix",
            fact,
            "remove the prefix before lk-jwt-service (strip_prefix = true) and proxy all of its paths",
        ));
    }
    if health.status != 200 || old.status != 405 {
        let fact =
            format!("/healthz returns {}, and GET /sfu/get returns {} instead of 405", health.words(), old.words());
        return Err(check.fail("other", fact, "proxy that address to lk-jwt-service only"));
    }
    let preflight = ProbeRequest::preflight(format!("{url}/sfu/get"), "POST").ask(way).await.map_err(silent)?;
    if !preflight.status.is_success() || preflight.cors() != Cors::Open {
        let fact = format!("the preflight of /sfu/get returns {}: web clients cannot call it", preflight.words());
        return Err(check.fail(
            "preflight",
            fact,
            "pass OPTIONS, and do not add a second Access-Control-Allow-Origin header",
        ));
    }
    let new = ProbeRequest::post(format!("{url}/get_token"), &json!({})).ask(way).await.map_err(silent)?;
    if new.status == 404 {
        return Err(no_get_token(check, direct).await);
    }
    if new.status != 400 || new.cors() != Cors::Open {
        let fact = format!("an empty request to /get_token returns {} instead of 400 with CORS", new.words());
        return Err(check.fail("other", fact, "proxy that address to lk-jwt-service only"));
    }
    Ok(check.ok("serves /sfu/get for older clients and /get_token for newer ones"))
}

async fn no_get_token(check: &Check, direct: Option<&DirectProbe<'_>>) -> Finding {
    let own = match direct {
        Some(direct) => ProbeRequest::post(direct.url("/get_token"), &json!({})).ask(&direct.service.client).await.ok(),
        None => None,
    };
    if own.is_some_and(|response| response.status != 404) {
        let fact = "/get_token is not proxied, although lk-jwt-service has it";
        return check.fail("paths", fact, "proxy /get_token and /delegate_delayed_leave as well as /sfu/get");
    }
    let fact = format!(
        "lk-jwt-service is older than 0.4: it has no /get_token, and the vulnerability {}",
        versions::LK_JWT_ADVISORY
    );
    check.fail("old", fact, format!("update lk-jwt-service to {}", versions::LK_JWT.tested))
}

/// Tests each SFU of the configuration (rows 5 and 6).
pub async fn sfu(context: &ProbeContext<'_>) -> Vec<Finding> {
    let probes = sfus(context).into_iter().map(|url| async move {
        let check = Check::new(Layer::Rtc, "rtc.sfu", &url);
        if let Some(down) = context.service(Kind::Livekit, &url).and_then(|direct| direct.down.map(str::to_owned)) {
            return check.skip(down);
        }
        match context.way(&url) {
            Err(reason) => check.skip(reason),
            Ok(way) => match sfu_answers(&check, &url, &way).await {
                Ok(finding) | Err(finding) => finding,
            },
        }
    });
    let found = join_all(probes).await;
    if found.is_empty() {
        return vec![
            Check::new(Layer::Rtc, "rtc.sfu", "[sites]").skip("the configuration has no site of kind `livekit`"),
        ];
    }
    found
}

/// The public URL of each SFU, without a trailing slash. The root `/twirp` of a mounted SFU is not a URL for clients.
pub fn sfus(context: &ProbeContext<'_>) -> Vec<String> {
    let mut urls: Vec<String> = Vec::new();
    let services = context.reach.services.iter().filter(|service| service.kind == Kind::Livekit);
    // A site of many names has no URL that is known.
    for service in services.filter(|service| service.prefix != "/twirp" && !service.host.starts_with('*')) {
        let url =
            format!("{}{}", origin_at(context.plan, &service.host, service.port), service.prefix.trim_end_matches('/'));
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    urls
}

async fn sfu_answers(check: &Check, url: &str, way: &Fetch) -> Result<Finding, Finding> {
    let silent = |error: ServerFailure| check.silent(&error, "make the name resolve to vestibule");
    let get = |path: &str| {
        let request = ProbeRequest::get(format!("{url}{path}"));
        async move { request.ask(way).await.map_err(silent) }
    };
    let root = get("/").await?;
    let new = get("/rtc/v1/validate").await?;
    if root.status != 200 || !root.body.trim_ascii().eq_ignore_ascii_case(b"OK") {
        let fact = format!("{url}/ returns {}, where LiveKit returns OK", root.words());
        return Err(check.fail(
            "other",
            fact,
            "proxy that address to LiveKit's port 7880, without the prefix (strip_prefix = true)",
        ));
    }
    if new.status == 404 {
        let old = get("/rtc/validate").await?;
        let (what, fact, fix) = match old.status.as_u16() {
            401 => (
                "old",
                "LiveKit is older than 1.9.10: it has no /rtc/v1, which current clients need",
                "update LiveKit to the version that `vestibule init` writes",
            ),
            _ => (
                "prefix",
                "LiveKit does not receive the paths under /rtc",
                "remove the prefix before LiveKit (strip_prefix = true)",
            ),
        };
        return Err(check.fail(what, fact, fix));
    }
    let upgrade = ProbeRequest::websocket(format!("{url}/rtc/v1")).ask(way).await.map_err(silent)?;
    match (new.status.as_u16(), upgrade.status.as_u16()) {
        (401, 401) => {}
        (401, 404) => {
            let fact = "a WebSocket arrives at LiveKit as a plain request: a server on the way removes Upgrade";
            return Err(check.fail(
                "upgrade",
                fact,
                "make the server in front of vestibule pass Upgrade and Connection",
            ));
        }
        (validate, upgrade) => {
            let fact = format!(
                "without a token, /rtc/v1/validate returns {validate} and a WebSocket {upgrade} instead of 401"
            );
            return Err(check.fail("other", fact, "proxy that address to LiveKit's port 7880 only"));
        }
    }
    let rooms = ProbeRequest::post(format!("{url}/twirp/livekit.RoomService/ListRooms"), &json!({}))
        .ask(way)
        .await
        .map_err(silent)?;
    if !matches!(rooms.status.as_u16(), 401 | 403) {
        let fact = format!("/twirp/ returns {}, so lk-jwt-service cannot create rooms", rooms.words());
        return Err(check.fail("twirp", fact, "proxy /twirp/ to LiveKit too"));
    }
    if get("/debug/rooms").await?.status == 200 {
        let fact = "LiveKit's /debug is open to the internet";
        return Err(check.fail("debug", fact, "run LiveKit without --dev, and do not proxy /debug"));
    }
    Ok(check.ok("accepts WebSockets, has /rtc/v1, and /debug is closed"))
}
