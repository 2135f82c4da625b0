//! The checks that need an account of the homeserver. A session that is opened for them is closed again.

use std::{
    net::Ipv6Addr,
    time::{Duration, SystemTime},
};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::{
    Account, DirectProbe, ProbeContext,
    ask::ProbeRequest,
    finding::{Check, Finding, Layer},
    homeserver::{media_limit, size},
    join, media,
    rtc::{self, TRANSPORTS},
    tokens, turn,
};
use crate::{
    config::plan::{Matrix, RTC_GET_TOKEN},
    conn::Fetch,
    error::ServerFailure,
};

/// The state event of a member of a call.
const CALL_MEMBER: &str = "org.matrix.msc3401.call.member";

/// 2001:db8::/32, which is for documentation (RFC 3849). Each run uses another address of it: Synapse keeps those of a month.
const DOCUMENTATION: u128 = 0x2001_0db8 << 96;

/// How often the client address is requested: a Synapse with workers stores it after up to 5 s.
const TRIES: usize = 8;
const PAUSE: Duration = Duration::from_secs(1);

/// The length of the long poll in milliseconds, just under the 60 s after which a badly configured proxy closes it.
const POLL: u64 = 55_000;

/// Time limit of all checks with an account.
const EXAMINATION: Duration = Duration::from_secs(160);

/// Time limit of the probe, with time to log in before and to log out after the checks.
pub const LIMIT: Duration = Duration::from_secs(190);

/// A session of a user at the homeserver.
struct Session<'a> {
    context: &'a ProbeContext<'a>,
    matrix: &'a Matrix,
    way: Fetch,
    direct: Option<DirectProbe<'a>>,
    token: String,
    user: String,
}

/// Runs the checks that need an account.
pub async fn probe(context: &ProbeContext<'_>, matrix: &Matrix) -> Vec<Finding> {
    let check = Check::new(Layer::Homeserver, "account", &matrix.homeserver);
    let Some(account) = &context.wanted.account else {
        let what = "to test upload sizes, delayed events, the client address that Synapse sees and call tokens, pass --token or --user";
        return vec![check.skip(what)];
    };
    let (way, direct) = match context.homeserver(matrix) {
        Ok(way) => way,
        Err(reason) => return vec![check.skip(reason)],
    };
    let (token, ours) = match account {
        Account::Token(token) => (token.clone(), false),
        Account::Password { user, password } => match login(&check, matrix, &way, user, password).await {
            Ok(token) => (token, true),
            Err(finding) => return vec![finding],
        },
    };
    let mut session = Session { context, matrix, way, direct, token, user: String::new() };
    let examined = timeout(EXAMINATION, session.examine(&check)).await;
    if ours {
        // If it fails, the session stays among the user's devices; nothing more can be done.
        let _ = session.post("/_matrix/client/v3/logout", &json!({})).await;
    }
    examined.unwrap_or_else(|_| vec![super::slow(&check, EXAMINATION)])
}

async fn login(check: &Check, matrix: &Matrix, way: &Fetch, user: &str, password: &str) -> Result<String, Finding> {
    let body = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": user },
        "password": password,
        "initial_device_display_name": "vestibule doctor",
    });
    match ProbeRequest::post(format!("{}/_matrix/client/v3/login", matrix.homeserver), &body).ask(way).await {
        Ok(response) => match response.json()["access_token"].as_str() {
            Some(token) => Ok(token.to_owned()),
            None => {
                let fact = format!("{user} cannot log in with that password: {}", response.words());
                Err(check.fail(
                    "login",
                    fact,
                    "use the right password, or pass the access token of a session with --token",
                ))
            }
        },
        Err(error) => Err(check.silent(&error, "read Synapse's log")),
    }
}

impl Session<'_> {
    async fn get(&self, path: &str) -> Result<super::ask::ProbeResponse, ServerFailure> {
        ProbeRequest::get(format!("{}{path}", self.matrix.homeserver)).token(&self.token).ask(&self.way).await
    }

    async fn post(&self, path: &str, body: &Value) -> Result<super::ask::ProbeResponse, ServerFailure> {
        ProbeRequest::post(format!("{}{path}", self.matrix.homeserver), body).token(&self.token).ask(&self.way).await
    }

    async fn examine(&mut self, check: &Check) -> Vec<Finding> {
        let whoami = match self.get("/_matrix/client/v3/account/whoami").await {
            Ok(response) if response.status == 200 => response.json(),
            Ok(response) => {
                let fact = format!("the homeserver rejects the token: {}", response.words());
                return vec![check.fail("token", fact, "pass the access token of an open session")];
            }
            Err(error) => {
                return vec![check.silent(&error, "read Synapse's log")];
            }
        };
        self.user = whoami["user_id"].as_str().unwrap_or_default().to_owned();
        let mut findings = vec![check.ok(format!("logged in as {}", self.user))];
        let (finding, sfu) = self.transports().await;
        findings.push(finding);
        findings.push(self.media().await);
        findings.push(self.delays().await);
        findings.push(self.client_address().await);
        let by_service = self.call().await;
        let (by_homeserver, pass) = self.call_by_homeserver(sfu, &by_service).await;
        findings.push(by_homeserver);
        findings.extend(by_service.findings);
        if let Some(Pass { sfu, jwt }) = by_service.pass.or(pass) {
            let joined = join::join(self.context, &sfu, &jwt).await;
            findings.push(media::candidates(self.context, &sfu, &joined).await);
            findings.extend(turn::allocation(self.context, &joined).await);
        }
        findings.extend(self.power_levels().await);
        if self.context.wanted.slow {
            findings.push(self.sync().await);
        }
        findings
    }

    /// The list of transports (row 1), and the first SFU in it.
    async fn transports(&self) -> (Finding, Option<String>) {
        let check = Check::new(Layer::Rtc, "rtc.transports", &self.matrix.homeserver);
        let response = match self.get(TRANSPORTS).await {
            Ok(response) if response.status == 200 => response.json(),
            Ok(response) => return (rtc::off(&check, &response), None),
            Err(error) => {
                return (check.silent(&error, "read Synapse's log"), None);
            }
        };
        let list = response["rtc_transports"].as_array().map(Vec::as_slice).unwrap_or_default();
        let sfu = list.iter().find_map(|entry| entry["url"].as_str()).map(str::to_owned);
        let are_served = tokens::ask(&self.way, self.matrix).await.ok().map(|response| response.status != 404);
        (self.assess_transports(&check, list, sfu.as_deref(), are_served), sfu)
    }

    /// Assesses the list: a `url` requires tokens from the homeserver, and clients need a `url` to request them.
    fn assess_transports(&self, check: &Check, list: &[Value], sfu: Option<&str>, are_served: Option<bool>) -> Finding {
        let urls: Vec<&str> = list.iter().filter_map(|entry| entry["livekit_service_url"].as_str()).collect();
        let ours: Vec<_> = self.matrix.rtc_services().collect();
        match (urls.first(), sfu, are_served) {
            (None, None, _) if list.is_empty() => {
                let fact = "the list is empty: clients remember for a day that there are no calls";
                let fix = "set matrix.rtc_transports = \"fill\" and a site of kind `lk-jwt`, or add matrix_rtc.transports to homeserver.yaml, or turn msc4143_enabled off";
                check.fail("empty", fact, fix)
            }
            (_, Some(sfu), Some(false)) => {
                let fact = format!(
                    "the list names {sfu}, but the homeserver issues no tokens for it: newer clients cannot call"
                );
                let fix = "follow the fix of rtc.tokens, or remove `url` from matrix_rtc.transports in homeserver.yaml";
                check.fail("promise", fact, fix)
            }
            (Some(first), ..) if !ours.is_empty() && !ours.iter().any(|url| url == first) => {
                let fact = format!("the homeserver names {first}, but the well-known document {}", ours[0]);
                check.fail(
                    "differs",
                    fact,
                    "set matrix_rtc.transports in homeserver.yaml and matrix.rtc_service to the same address",
                )
            }
            (_, None, Some(true)) => {
                let fact = "the homeserver issues call tokens, but the list names no SFU: newer clients use the deprecated endpoints";
                let url = self.matrix.sfus().next().unwrap_or("wss://…");
                check.warn("no_url", fact, format!("add `url: {url}` to matrix_rtc.transports in homeserver.yaml"))
            }
            (Some(first), ..) => check.ok(format!("leads to {first}")),
            (None, Some(sfu), _) => check.ok(format!("leads to {sfu}")),
            (None, None, _) => check.ok("leads to transports of another kind"),
        }
    }

    /// Whether the proxy accepts uploads as large as Synapse does (row 10).
    async fn media(&self) -> Finding {
        let check = Check::new(Layer::Homeserver, "homeserver.upload_limit", &self.matrix.homeserver);
        let response = match self.get("/_matrix/client/v1/media/config").await {
            Ok(response) if response.status == 200 => response.json(),
            Ok(response) => {
                return check.skip(format!("Synapse does not report its upload limit: {}", response.words()));
            }
            Err(error) => return check.skip(format!("no response ({error})")),
        };
        let Some(theirs) = response["m.upload.size"].as_u64() else {
            return check.skip("Synapse does not report its upload limit");
        };
        match media_limit(self.context, self.matrix) {
            Some(ours) if ours < theirs => {
                let fact = format!("Synapse accepts {}, but vestibule only {}", size(theirs), size(ours));
                check.fail("edge", fact, "raise max_body of the site, or lower max_upload_size in homeserver.yaml")
            }
            _ => check.ok(format!("Synapse accepts {}, and vestibule no less", size(theirs))),
        }
    }

    /// The longest delay of events that Synapse announces (row 8); not every Synapse does.
    async fn delays(&self) -> Finding {
        let check = Check::new(Layer::Homeserver, "homeserver.delay", &self.matrix.homeserver);
        let response = match self.get("/_matrix/client/v3/capabilities").await {
            Ok(response) if response.status == 200 => response.json(),
            Ok(response) => return check.skip(format!("Synapse reports no capabilities: {}", response.words())),
            Err(error) => return check.skip(format!("no response ({error})")),
        };
        match response["capabilities"]["org.matrix.msc4140.delayed_events"]["max_delay_ms"].as_u64() {
            Some(0) => {
                check.fail("off", "events cannot be delayed", "set `max_event_delay_duration: 24h` in homeserver.yaml")
            }
            Some(delay) => check.ok(format!("events can be delayed by up to {} s", delay / 1000)),
            None => check.skip("Synapse does not announce the longest delay"),
        }
    }

    /// Whether Synapse trusts `X-Forwarded-For` from the proxy (row 13): after a direct request with an unused
    /// address, that address must be among those at which Synapse has seen the user.
    async fn client_address(&self) -> Finding {
        let check = Check::new(Layer::Homeserver, "homeserver.client_address", &self.matrix.homeserver);
        let Some(direct) = &self.direct else { return check.skip("the homeserver is not behind this vestibule") };
        let nonce =
            self.context.reach.clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let nobody = Ipv6Addr::from_bits(DOCUMENTATION | (nonce & u128::from(u64::MAX))).to_string();
        let mut seen = Vec::new();
        for _ in 0..TRIES {
            match self.came_from(direct, &nobody).await {
                Ok(addresses) => seen = addresses,
                Err(reason) => return check.skip(reason),
            }
            if seen.contains(&nobody) {
                let fact = format!(
                    "Synapse trusts the address that vestibule sends, and last saw {} at {}",
                    self.user,
                    last(&seen)
                );
                return check.ok(fact);
            }
            sleep(PAUSE).await;
        }
        let fact = format!("Synapse sees every client as {}, and rate-limits and bans them together", last(&seen));
        check.fail("proxy", fact, "set `x_forwarded: true` on Synapse's listener")
    }

    /// The addresses at which Synapse has seen the user, the latest first; the request names `address` as its client.
    async fn came_from(&self, direct: &DirectProbe<'_>, address: &str) -> Result<Vec<String>, String> {
        let request = ProbeRequest::get(direct.url(&format!("/_matrix/client/v3/admin/whois/{}", self.escaped_user())))
            .field(http::HeaderName::from_static("x-forwarded-for"), address)
            .token(&self.token);
        let response = request.ask(&direct.service.client).await.map_err(|error| format!("no response ({error})"))?;
        if response.status != 200 {
            return Err(format!("Synapse does not report the addresses of the user: {}", response.words()));
        }
        let devices = response.json()["devices"].as_object().cloned().unwrap_or_default();
        let sessions = devices.values().flat_map(|device| device["sessions"].as_array().into_iter().flatten());
        let connections = sessions.flat_map(|session| session["connections"].as_array().into_iter().flatten());
        let mut seen: Vec<(u64, String)> =
            connections.filter_map(|one| Some((one["last_seen"].as_u64()?, one["ip"].as_str()?.to_owned()))).collect();
        seen.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        Ok(seen.into_iter().map(|(_, ip)| ip).collect())
    }

    fn escaped_user(&self) -> String {
        utf8_percent_encode(&self.user, NON_ALPHANUMERIC).to_string()
    }

    /// Requests a call token as an older client does: lk-jwt-service verifies the user with the homeserver and creates a
    /// room on the SFU (rows 4 and 5).
    async fn call(&self) -> ServiceCall {
        let Some(service) = self.matrix.rtc_services().next() else { return ServiceCall::default() };
        let check = Check::new(Layer::Rtc, "rtc.call", service);
        let direct = self.context.service(crate::config::plan::Kind::LkJwt, service);
        let down = direct.and_then(|direct| direct.down.map(str::to_owned));
        let way = match down.map_or_else(|| self.context.way(service), Err) {
            Ok(way) => way,
            Err(reason) => return check.skip(reason).into(),
        };
        let user = self.escaped_user();
        let token = match self.post(&format!("/_matrix/client/v3/user/{user}/openid/request_token"), &json!({})).await {
            Ok(response) if response.status == 200 => response.json(),
            Ok(response) => return check.skip(format!("Synapse issues no OpenID token: {}", response.words())).into(),
            Err(error) => return check.skip(format!("no response ({error})")).into(),
        };
        let room = self.call_room().await;
        let id = room.as_ref().map_or_else(|_| format!("!doctor:{}", self.matrix.server_name), |room| room.id.clone());
        let body = json!({ "room": id, "openid_token": token, "device_id": "DOCTOR" });
        let response = ProbeRequest::post(format!("{service}/sfu/get"), &body).ask(&way).await;
        if let Ok(room) = room {
            self.leave(room).await;
        }
        match response {
            Ok(response) if response.status == 200 => {
                let answer = response.json();
                let url = answer["url"].as_str().unwrap_or_default();
                let (finding, pass) = self.enter(&check, url, answer["jwt"].as_str().unwrap_or_default()).await;
                ServiceCall { findings: vec![finding], livekit_url: Some(url.to_owned()), pass }
            }
            Ok(response) => refused(&check, &response).into(),
            Err(error) => check.silent(&error, "read lk-jwt-service's log").into(),
        }
    }

    /// The room of `--room`, or a temporary room.
    async fn call_room(&self) -> Result<CallRoom, String> {
        if let Some(id) = &self.context.wanted.room {
            return Ok(CallRoom { id: id.clone(), is_ours: false });
        }
        let body = json!({ "preset": "private_chat", "name": "vestibule doctor" });
        let response = self.post("/_matrix/client/v3/createRoom", &body).await.map_err(|error| error.to_string())?;
        match response.json()["room_id"].as_str() {
            Some(id) => Ok(CallRoom { id: id.to_owned(), is_ours: true }),
            None => Err(format!("no room can be created: {}", response.words())),
        }
    }

    async fn leave(&self, room: CallRoom) {
        if room.is_ours {
            let id = utf8_percent_encode(&room.id, NON_ALPHANUMERIC);
            // A room that stays is empty and private; there is nothing more to be done about it.
            let _ = self.post(&format!("/_matrix/client/v3/rooms/{id}/leave"), &json!({})).await;
            let _ = self.post(&format!("/_matrix/client/v3/rooms/{id}/forget"), &json!({})).await;
        }
    }

    /// A token for a call by way of the homeserver. What is broken for both ways is named once, by the old one.
    async fn call_by_homeserver(&self, sfu: Option<String>, old: &ServiceCall) -> (Finding, Option<Pass>) {
        let check = Check::new(Layer::Rtc, "rtc.call_by_homeserver", &self.matrix.homeserver);
        let Some(url) = sfu.or_else(|| self.matrix.sfus().next().map(str::to_owned)) else {
            return (check.skip("neither the homeserver nor the configuration names an SFU"), None);
        };
        let service = self.matrix.rtc_services().next();
        let direct = service.and_then(|url| self.context.service(crate::config::plan::Kind::LkJwt, url));
        if let Some(down) = direct.and_then(|direct| direct.down) {
            return (check.skip(down), None);
        }
        let room = match self.call_room().await {
            Ok(room) => room,
            Err(reason) => return (check.skip(reason), None),
        };
        let body = json!({ "url": url, "room_id": room.id, "slot_id": "m.call#ROOM", "member_id": "vestibule-doctor" });
        let mut response = self.post(RTC_GET_TOKEN[0], &body).await;
        if response.as_ref().is_ok_and(|response| response.status == 404) {
            response = self.post(RTC_GET_TOKEN[1], &body).await;
        }
        let named = self.context.wanted.room.as_deref();
        self.leave(room).await;
        let (finding, pass) = match response {
            Ok(response) if response.status == 200 => {
                self.enter(&check, &url, response.json()["jwt"].as_str().unwrap_or_default()).await
            }
            Ok(response) => (refused_by_homeserver(&check, &response, &url, old.livekit_url.as_deref(), named), None),
            Err(error) => (check.silent(&error, "read Synapse's log"), None),
        };
        let fault =
            |finding: &Finding| finding.fix.as_ref().and_then(|_| finding.id.rsplit('.').next().map(str::to_owned));
        match old.findings.iter().find(|finding| fault(finding).is_some()) {
            Some(same) if fault(same) == fault(&finding) => {
                (check.skip(format!("for the same reason ({})", same.id)), None)
            }
            _ => (finding, pass),
        }
    }

    /// Presents the token to its SFU.
    async fn enter(&self, check: &Check, url: &str, jwt: &str) -> (Finding, Option<Pass>) {
        let http = url.replacen("ws", "http", 1);
        let known = rtc::sfus(self.context);
        let url_is_known = known.iter().any(|known| known.trim_end_matches('/') == http.trim_end_matches('/'));
        if !url_is_known && !known.is_empty() {
            let fact = format!(
                "clients are sent to {url}, but vestibule serves LiveKit at {}",
                known[0].replacen("http", "ws", 1)
            );
            return (check.fail("url", fact, "set LIVEKIT_URL of lk-jwt-service to that address"), None);
        }
        let way = match self.context.way(&http) {
            Ok(way) => way,
            Err(reason) => return (check.skip(reason), None),
        };
        let validate = format!("{}/rtc/validate?access_token={jwt}", http.trim_end_matches('/'));
        let finding = match ProbeRequest::get(validate).ask(&way).await {
            Ok(response) if response.status == 200 => {
                let pass = Pass { sfu: http, jwt: jwt.to_owned() };
                return (check.ok(format!("a call token is issued, and {url} accepts it")), Some(pass));
            }
            Ok(response) if response.status == 401 => {
                let fact = "LiveKit rejects the tokens of lk-jwt-service";
                check.fail("key", fact, "set LIVEKIT_KEY and LIVEKIT_SECRET to a pair of `keys` in livekit.yaml")
            }
            Ok(response) => {
                check.fail("other", format!("LiveKit returns {} for a token", response.words()), "read LiveKit's log")
            }
            Err(error) => check.fail("silent", format!("LiveKit does not answer ({error})"), "read LiveKit's log"),
        };
        (finding, None)
    }

    /// Whether the power levels of the room of `--room` let its members join calls.
    async fn power_levels(&self) -> Option<Finding> {
        let room = self.context.wanted.room.as_ref()?;
        let check = Check::new(Layer::Rtc, "rtc.power_levels", room);
        let id = utf8_percent_encode(room, NON_ALPHANUMERIC);
        let response = match self.get(&format!("/_matrix/client/v3/rooms/{id}/state/m.room.power_levels/")).await {
            Ok(response) if response.status == 200 => response.json(),
            Ok(response) => return Some(check.skip(format!("its power levels cannot be read: {}", response.words()))),
            Err(error) => return Some(check.skip(format!("no response ({error})"))),
        };
        let members = response["users_default"].as_i64().unwrap_or(0);
        let needed =
            response["events"][CALL_MEMBER].as_i64().or_else(|| response["state_default"].as_i64()).unwrap_or(50);
        Some(if needed > members {
            let fact = format!(
                "members have power level {members}, but need {needed} to join a call ({CALL_MEMBER}): clients show \"Connection lost\""
            );
            let fix = format!(
                "set `\"{CALL_MEMBER}\": {members}` under `events` of the power levels (in Element: room settings, roles and permissions, calls)"
            );
            check.fail("closed", fact, fix)
        } else {
            check.ok("members can join calls")
        })
    }

    /// Nothing on the way may abort a long poll (row 11).
    async fn sync(&self) -> Finding {
        let check = Check::new(Layer::Homeserver, "homeserver.sync", &self.matrix.homeserver);
        let filter = "%7B%22room%22%3A%7B%22rooms%22%3A%5B%5D%7D%2C%22presence%22%3A%7B%22types%22%3A%5B%5D%7D%7D";
        let since = match self.get(&format!("/_matrix/client/v3/sync?timeout=0&filter={filter}")).await {
            Ok(response) => response.json()["next_batch"].as_str().unwrap_or_default().to_owned(),
            Err(error) => return check.skip(format!("no response ({error})")),
        };
        let path = format!("/_matrix/client/v3/sync?timeout={POLL}&since={since}&filter={filter}");
        let way = match self.context.preconditions.way(&self.matrix.homeserver) {
            Ok(address) => (self.context.reach.patient)(address),
            Err(reason) => return check.skip(reason),
        };
        match ProbeRequest::get(format!("{}{path}", self.matrix.homeserver)).token(&self.token).ask(&way).await {
            Ok(response) if response.status == 200 => check.ok("a long poll is not aborted"),
            Ok(response) => check.fail(
                "cut",
                format!("a long poll returns {}", response.words()),
                "raise the timeouts of the server in front of vestibule to more than two minutes",
            ),
            Err(error) => check.fail(
                "cut",
                format!("a long poll is aborted ({error})"),
                "raise the timeouts of the server in front of vestibule to more than two minutes",
            ),
        }
    }
}

/// The outcome of requesting a token from lk-jwt-service.
#[derive(Default)]
struct ServiceCall {
    findings: Vec<Finding>,
    /// Its `LIVEKIT_URL`.
    livekit_url: Option<String>,
    pass: Option<Pass>,
}

/// A call token that the SFU accepts.
struct Pass {
    /// The URL of the SFU with `https`.
    sfu: String,
    jwt: String,
}

impl From<Finding> for ServiceCall {
    fn from(finding: Finding) -> Self {
        Self { findings: vec![finding], livekit_url: None, pass: None }
    }
}

/// A room for which a token is requested.
struct CallRoom {
    id: String,
    is_ours: bool,
}

/// The faulty part between homeserver, lk-jwt-service and SFU, derived from the response to a request for a token.
fn refused_by_homeserver(
    check: &Check,
    response: &super::ask::ProbeResponse,
    url: &str,
    livekit_url: Option<&str>,
    room: Option<&str>,
) -> Finding {
    let fact = format!("the homeserver issues no token: {}", response.words());
    match (response.status.as_u16(), response.errcode().as_str()) {
        (404, _) => check.skip("the homeserver issues no call tokens (rtc.tokens)"),
        (400, "M_INVALID_PARAM") => {
            let (said, fix) = differing_urls(url, livekit_url);
            check.fail("url", format!("{fact}: {said}"), fix)
        }
        (401, _) => {
            let fact = format!("{fact}: lk-jwt-service rejects the hs_token of Synapse");
            check.fail("hs_token", fact, "give both the same registration file, and restart both")
        }
        (403, _) if room.is_some() => {
            let fact = format!("{fact}: lk-jwt-service reports that the account has not joined the room");
            let fix = "pass a room that the account has joined; if it has, use the registration that Synapse has loaded (as_token, msc4502_enabled)";
            check.fail("not_joined", fact, fix)
        }
        (403, _) => {
            let fact = format!("{fact}: lk-jwt-service finds no member in a room that doctor has just created");
            let fix = "give Synapse and lk-jwt-service the same registration (hs_token, as_token), set msc4502_enabled, and restart both";
            check.fail("membership", fact, fix)
        }
        (500, "M_UNKNOWN") if response.json()["error"].as_str().is_some_and(|said| said.contains("SFU")) => check.fail(
            "room",
            format!("{fact}: lk-jwt-service cannot create a room on LiveKit"),
            "make LIVEKIT_URL reachable from lk-jwt-service's container, and set its key and secret to a pair of livekit.yaml",
        ),
        (500 | 502 | 504, _) => {
            let fact = format!("{fact}: Synapse cannot reach lk-jwt-service");
            check.fail("unreachable", fact, "set proxy_url of the registration to an address of lk-jwt-service in Synapse's network")
        }
        _ => check.fail("refused", format!("{fact} {}", response.json()["error"].as_str().unwrap_or_default()), "read lk-jwt-service's log"),
    }
}

/// The difference between the SFU of the transports and `LIVEKIT_URL`, if lk-jwt-service reports the latter, and the fix.
fn differing_urls(url: &str, livekit_url: Option<&str>) -> (String, &'static str) {
    let alike = "set LIVEKIT_URL and `url` in matrix_rtc.transports to exactly the same text";
    match livekit_url {
        Some(theirs) if theirs == url => (
            format!("LIVEKIT_URL of lk-jwt-service is {theirs:?} too, so Synapse uses another lk-jwt-service"),
            "set proxy_url of the registration to the lk-jwt-service of the site, and restart Synapse",
        ),
        Some(theirs) if theirs.trim_end_matches('/') == url.trim_end_matches('/') => (
            format!(
                "the transports name {url:?}, but LIVEKIT_URL of lk-jwt-service is {theirs:?}: only the trailing slash differs"
            ),
            alike,
        ),
        Some(theirs) => {
            (format!("the transports name {url:?}, but LIVEKIT_URL of lk-jwt-service is {theirs:?}"), alike)
        }
        None => (format!("the transports name {url:?}, but LIVEKIT_URL of lk-jwt-service is another"), alike),
    }
}

/// The latest address that is not one of our probes.
fn last(seen: &[String]) -> &str {
    seen.iter().find(|address| !address.starts_with("2001:db8:")).map_or("an unknown address", String::as_str)
}

fn refused(check: &Check, response: &super::ask::ProbeResponse) -> Finding {
    let fact = format!("lk-jwt-service issues no token: {}", response.words());
    let said = response.json()["error"].as_str().unwrap_or_default().to_owned();
    match (response.status.as_u16(), response.errcode().as_str()) {
        (401, _) | (500, "M_LOOKUP_FAILED") => check.fail(
            "openid",
            format!("{fact}: it cannot verify users with the homeserver"),
            "make the names resolve to vestibule inside the container network too (aliases of vestibule's service in compose.yaml)",
        ),
        (500, "M_UNKNOWN") if said.contains("SFU") => check.fail(
            "room",
            format!("{fact}: it cannot create a room on LiveKit"),
            "make LIVEKIT_URL reachable from lk-jwt-service's container, and set its key and secret to a pair of livekit.yaml",
        ),
        (403, "M_FORBIDDEN") => check.fail(
            "not_joined",
            format!("{fact}: it reports that the account has not joined the room"),
            "pass a room that the account has joined; if it has, use the registration that Synapse has loaded (as_token, msc4502_enabled)",
        ),
        _ => check.fail("refused", format!("{fact} {said}"), "read lk-jwt-service's log"),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::Ipv4Addr,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
    };

    use super::*;
    use crate::{
        clock::Clock,
        conn::PeerCertificate,
        doctor::{ProbeOptions, ProbeTargets, examine},
        error::Kind,
        message::{Body, Request, Response},
    };

    /// A homeserver that lets people in and out, and has no answer to anything else.
    fn stuck(signed_out: Arc<AtomicBool>) -> Fetch {
        Arc::new(move |request: Request| {
            let path = request.uri.path().to_owned();
            let signed_out = signed_out.clone();
            Box::pin(async move {
                if path.ends_with("/logout") {
                    signed_out.store(true, Ordering::Relaxed);
                } else if !path.ends_with("/login") {
                    sleep(Duration::from_secs(3600)).await;
                    return Err(Kind::ResponseTimeout.into());
                }
                Ok(Response::new(Body::full(r#"{"access_token":"t"}"#)))
            })
        })
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_signed_in_signs_out_whatever_happens() {
        let text = "[matrix]\nserver_name = \"a.example\"\nhomeserver = \"https://a.example\"\n[sites.\"a.example\"]\n";
        let (plan, _) = crate::config::parse("t", text, ".".into(), &|_| None).unwrap();
        let signed_out = Arc::new(AtomicBool::new(false));
        let fetch = stuck(signed_out.clone());
        let via: super::super::ClientFactory = Arc::new(move |_| fetch.clone());
        let reach = ProbeTargets {
            resolve: Arc::new(|_, port| Box::pin(async move { Ok(vec![(Ipv4Addr::LOCALHOST, port).into()]) })),
            via: via.clone(),
            patient: via,
            connect_tls: Arc::new(|_, _| Box::pin(async { Err(std::io::ErrorKind::Unsupported.into()) })),
            look: Arc::new(|_, _| Box::pin(async { Ok(PeerCertificate { leaf: "".into(), trust: Ok(()) }) })),
            nameserver: None,
            services: Vec::new(),
            authorities: Vec::new(),
            lasting_records: Vec::new(),
            clock: Clock::system(),
        };
        let account = Account::Password { user: "u".into(), password: "p".into() };
        let wanted = ProbeOptions { account: Some(account), ..ProbeOptions::default() };
        let diagnosis = examine(&plan, &reach, &wanted, &|_, _, _| {}).await;
        assert!(signed_out.load(Ordering::Relaxed), "{diagnosis}");
        assert!(diagnosis.0.iter().any(|finding| finding.id == "account.timeout"), "{diagnosis}");
    }
}
