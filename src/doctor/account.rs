//! What only a user of the homeserver can see. A session that is opened for it is closed again.

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
    rtc::{self, TRANSPORTS},
};
use crate::{config::plan::Matrix, conn::Fetch};

/// 2001:db8::/32, in which nobody is (RFC 3849). Each time another address of it: Synapse remembers those of a month.
const DOCUMENTATION: u128 = 0x2001_0db8 << 96;

/// A Synapse with workers writes down where it has seen somebody after up to 5 s.
const TRIES: usize = 8;
const PAUSE: Duration = Duration::from_secs(1);

/// How long the long poll is; just under the 60 s after which a badly set up proxy hangs up.
const POLL: u64 = 55_000;

/// Bound on everything that is looked at as a user.
const EXAMINATION: Duration = Duration::from_secs(160);

/// Bound on the probe: there is time to sign in before that, and to sign out after it.
pub const LIMIT: Duration = Duration::from_secs(190);

/// A user's way to the homeserver.
struct Session<'a> {
    context: &'a ProbeContext<'a>,
    matrix: &'a Matrix,
    way: Fetch,
    direct: Option<DirectProbe<'a>>,
    token: String,
    user: String,
}

/// Everything that needs an account.
pub async fn probe(context: &ProbeContext<'_>, matrix: &Matrix) -> Vec<Finding> {
    let check = Check::new(Layer::Homeserver, "account", &matrix.homeserver);
    let Some(account) = &context.wanted.account else {
        let what = "upload sizes, delayed events, the client address that Synapse sees and a token for a call need --token or --user";
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
        // A session that stays is listed among the user's devices; there is nothing more to be done about it.
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
                let fact = format!("{user} cannot sign in with that password: {}", response.words());
                Err(check.fail("login", fact, "give the right password, or the access token of a session with --token"))
            }
        },
        Err(error) => Err(check.fail("silent", format!("there is no answer ({error})"), "see Synapse's log")),
    }
}

impl Session<'_> {
    async fn get(&self, path: &str) -> Result<super::ask::ProbeResponse, String> {
        ProbeRequest::get(format!("{}{path}", self.matrix.homeserver)).token(&self.token).ask(&self.way).await
    }

    async fn post(&self, path: &str, body: &Value) -> Result<super::ask::ProbeResponse, String> {
        ProbeRequest::post(format!("{}{path}", self.matrix.homeserver), body).token(&self.token).ask(&self.way).await
    }

    async fn examine(&mut self, check: &Check) -> Vec<Finding> {
        let whoami = match self.get("/_matrix/client/v3/account/whoami").await {
            Ok(response) if response.status == 200 => response.json(),
            Ok(response) => {
                let fact = format!("the homeserver does not take the token: {}", response.words());
                return vec![check.fail("token", fact, "give the access token of a session that is open")];
            }
            Err(error) => {
                return vec![check.fail("silent", format!("there is no answer ({error})"), "see Synapse's log")];
            }
        };
        self.user = whoami["user_id"].as_str().unwrap_or_default().to_owned();
        let mut findings = vec![check.ok(format!("signed in as {}", self.user))];
        findings.push(self.transports().await);
        findings.push(self.media().await);
        findings.push(self.delays().await);
        findings.push(self.client_address().await);
        findings.extend(self.call().await);
        if self.context.wanted.slow {
            findings.push(self.sync().await);
        }
        findings
    }

    /// The list itself (row 1).
    async fn transports(&self) -> Finding {
        let check = Check::new(Layer::Rtc, "rtc.transports", &self.matrix.homeserver);
        let response = match self.get(TRANSPORTS).await {
            Ok(response) if response.status == 200 => response.json(),
            Ok(response) => return rtc::off(&check, &response),
            Err(error) => return check.fail("silent", format!("there is no answer ({error})"), "see Synapse's log"),
        };
        let list = response["rtc_transports"].as_array().map(Vec::as_slice).unwrap_or_default();
        let urls: Vec<&str> = list.iter().filter_map(|entry| entry["livekit_service_url"].as_str()).collect();
        let ours: Vec<_> = self.matrix.rtc_services().collect();
        match urls.first() {
            None if list.is_empty() => {
                let fact = "the list is empty: clients believe for a day that calls are not to be had";
                let fix = "set matrix.rtc_transports = \"fill\" and a site of kind `lk-jwt`, or add matrix_rtc.transports to homeserver.yaml, or turn msc4143_enabled off";
                check.fail("empty", fact, fix)
            }
            Some(first) if !ours.is_empty() && !ours.iter().any(|url| url == first) => {
                let fact = format!("the homeserver leads to {first}, and the well-known document to {}", ours[0]);
                check.fail(
                    "differs",
                    fact,
                    "let matrix_rtc.transports in homeserver.yaml and matrix.rtc_service name the same address",
                )
            }
            Some(first) => check.ok(format!("leads to {first}")),
            None => check.ok("leads to transports of another kind"),
        }
    }

    /// Whether both agree on how large an upload may be (row 10).
    async fn media(&self) -> Finding {
        let check = Check::new(Layer::Homeserver, "homeserver.upload_limit", &self.matrix.homeserver);
        let response = match self.get("/_matrix/client/v1/media/config").await {
            Ok(response) if response.status == 200 => response.json(),
            Ok(response) => {
                return check.skip(format!("Synapse does not say how large an upload may be: {}", response.words()));
            }
            Err(error) => return check.skip(format!("there is no answer ({error})")),
        };
        let Some(theirs) = response["m.upload.size"].as_u64() else {
            return check.skip("Synapse does not say how large an upload may be");
        };
        match media_limit(self.context, self.matrix) {
            Some(ours) if ours < theirs => {
                let fact = format!("Synapse takes {}, and the edge only {}", size(theirs), size(ours));
                check.fail("edge", fact, "raise max_body of the site, or lower max_upload_size in homeserver.yaml")
            }
            _ => check.ok(format!("Synapse takes {}, and the edge no less", size(theirs))),
        }
    }

    /// What clients are told of delayed events (row 8). Synapse does not announce it everywhere.
    async fn delays(&self) -> Finding {
        let check = Check::new(Layer::Homeserver, "homeserver.delay", &self.matrix.homeserver);
        let response = match self.get("/_matrix/client/v3/capabilities").await {
            Ok(response) if response.status == 200 => response.json(),
            Ok(response) => return check.skip(format!("there are no capabilities: {}", response.words())),
            Err(error) => return check.skip(format!("there is no answer ({error})")),
        };
        match response["capabilities"]["org.matrix.msc4140.delayed_events"]["max_delay_ms"].as_u64() {
            Some(0) => {
                check.fail("off", "no event may be delayed", "set `max_event_delay_duration: 24h` in homeserver.yaml")
            }
            Some(delay) => check.ok(format!("events may be delayed by {} s", delay / 1000)),
            None => check.skip("Synapse does not announce for how long events may be delayed"),
        }
    }

    /// Whether Synapse believes what the edge says of a client's address (row 13): asked straight on behalf of an
    /// address that nobody has, it must count that one among those that the user came from.
    async fn client_address(&self) -> Finding {
        let check = Check::new(Layer::Homeserver, "homeserver.client_address", &self.matrix.homeserver);
        let Some(direct) = &self.direct else { return check.skip("the homeserver is not behind this edge") };
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
                let fact =
                    format!("Synapse believes what the edge says, and saw {} last at {}", self.user, last(&seen));
                return check.ok(fact);
            }
            sleep(PAUSE).await;
        }
        let fact = format!("Synapse takes every client for {}, and limits and bans them together", last(&seen));
        check.fail("proxy", fact, "set `x_forwarded: true` on Synapse's listener")
    }

    /// Where Synapse has seen the user, the latest first, asked on behalf of an address.
    async fn came_from(&self, direct: &DirectProbe<'_>, address: &str) -> Result<Vec<String>, String> {
        let request = ProbeRequest::get(direct.url(&format!("/_matrix/client/v3/admin/whois/{}", self.escaped_user())))
            .field(http::HeaderName::from_static("x-forwarded-for"), address)
            .token(&self.token);
        let response =
            request.ask(&direct.service.client).await.map_err(|error| format!("there is no answer ({error})"))?;
        if response.status != 200 {
            return Err(format!("Synapse does not say where it has seen the user: {}", response.words()));
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

    /// A token for a call, as a client gets it: the call service asks the homeserver who we are and the SFU for a room
    /// (rows 4 and 5).
    async fn call(&self) -> Vec<Finding> {
        let Some(service) = self.matrix.rtc_services().next() else { return Vec::new() };
        let check = Check::new(Layer::Rtc, "rtc.call", service);
        let direct = self.context.service(crate::config::plan::Kind::LkJwt, service);
        let down = direct.and_then(|direct| direct.down.map(str::to_owned));
        let way = match down.map_or_else(|| self.context.way(service), Err) {
            Ok(way) => way,
            Err(reason) => return vec![check.skip(reason)],
        };
        let user = self.escaped_user();
        let token = match self.post(&format!("/_matrix/client/v3/user/{user}/openid/request_token"), &json!({})).await {
            Ok(response) if response.status == 200 => response.json(),
            Ok(response) => return vec![check.skip(format!("Synapse gives no OpenID token: {}", response.words()))],
            Err(error) => return vec![check.skip(format!("there is no answer ({error})"))],
        };
        let body = json!({ "room": format!("!doctor:{}", self.matrix.server_name), "openid_token": token, "device_id": "DOCTOR" });
        match ProbeRequest::post(format!("{service}/sfu/get"), &body).ask(&way).await {
            Ok(response) if response.status == 200 => self.enter(&check, &response.json()).await,
            Ok(response) => vec![refused(&check, &response)],
            Err(error) => {
                vec![check.fail("silent", format!("there is no answer ({error})"), "see lk-jwt-service's log")]
            }
        }
    }

    /// Shows the token to the SFU that it is for.
    async fn enter(&self, check: &Check, pass: &Value) -> Vec<Finding> {
        let (url, jwt) = (pass["url"].as_str().unwrap_or_default(), pass["jwt"].as_str().unwrap_or_default());
        let http = url.replacen("ws", "http", 1);
        let known = rtc::sfus(self.context);
        let url_is_known = known.iter().any(|known| known.trim_end_matches('/') == http.trim_end_matches('/'));
        if !url_is_known && !known.is_empty() {
            let fact = format!(
                "clients are sent to {url}, and the edge serves LiveKit at {}",
                known[0].replacen("http", "ws", 1)
            );
            return vec![check.fail("url", fact, "set LIVEKIT_URL of lk-jwt-service to that address")];
        }
        let way = match self.context.way(&http) {
            Ok(way) => way,
            Err(reason) => return vec![check.skip(reason)],
        };
        let validate = format!("{}/rtc/validate?access_token={jwt}", http.trim_end_matches('/'));
        vec![match ProbeRequest::get(validate).ask(&way).await {
            Ok(response) if response.status == 200 => {
                check.ok(format!("a token for a call is given, and taken at {url}"))
            }
            Ok(response) if response.status == 401 => {
                let fact = "LiveKit does not take the tokens of lk-jwt-service";
                check.fail("key", fact, "let LIVEKIT_KEY and LIVEKIT_SECRET be a pair of `keys` in livekit.yaml")
            }
            Ok(response) => {
                check.fail("other", format!("LiveKit answers a token with {}", response.words()), "see LiveKit's log")
            }
            Err(error) => check.fail("silent", format!("LiveKit does not answer ({error})"), "see LiveKit's log"),
        }]
    }

    /// A long poll must not be cut by anything on the way (row 11).
    async fn sync(&self) -> Finding {
        let check = Check::new(Layer::Homeserver, "homeserver.sync", &self.matrix.homeserver);
        let filter = "%7B%22room%22%3A%7B%22rooms%22%3A%5B%5D%7D%2C%22presence%22%3A%7B%22types%22%3A%5B%5D%7D%7D";
        let since = match self.get(&format!("/_matrix/client/v3/sync?timeout=0&filter={filter}")).await {
            Ok(response) => response.json()["next_batch"].as_str().unwrap_or_default().to_owned(),
            Err(error) => return check.skip(format!("there is no answer ({error})")),
        };
        let path = format!("/_matrix/client/v3/sync?timeout={POLL}&since={since}&filter={filter}");
        let way = match self.context.preconditions.way(&self.matrix.homeserver) {
            Ok(address) => (self.context.reach.patient)(address),
            Err(reason) => return check.skip(reason),
        };
        match ProbeRequest::get(format!("{}{path}", self.matrix.homeserver)).token(&self.token).ask(&way).await {
            Ok(response) if response.status == 200 => check.ok("a long poll is not cut"),
            Ok(response) => check.fail(
                "cut",
                format!("a long poll ends with {}", response.words()),
                "raise the timeouts of what stands before the edge over two minutes",
            ),
            Err(error) => check.fail(
                "cut",
                format!("a long poll is cut ({error})"),
                "raise the timeouts of what stands before the edge over two minutes",
            ),
        }
    }
}

/// The latest address that is somebody's.
fn last(seen: &[String]) -> &str {
    seen.iter().find(|address| !address.starts_with("2001:db8:")).map_or("an unknown address", String::as_str)
}

fn refused(check: &Check, response: &super::ask::ProbeResponse) -> Finding {
    let fact = format!("lk-jwt-service gives no token: {}", response.words());
    let said = response.json()["error"].as_str().unwrap_or_default().to_owned();
    match (response.status.as_u16(), response.errcode().as_str()) {
        (401, _) | (500, "M_LOOKUP_FAILED") => check.fail(
            "openid",
            format!("{fact}: it cannot ask the homeserver who a user is"),
            "let the names lead to the edge inside the container network as well (aliases of the edge's service in compose.yaml)",
        ),
        (500, "M_UNKNOWN") if said.contains("SFU") => check.fail(
            "room",
            format!("{fact}: it cannot make a room on LiveKit"),
            "let LIVEKIT_URL be reachable from lk-jwt-service's container, and its key and secret a pair of livekit.yaml",
        ),
        _ => check.fail("refused", format!("{fact} {said}"), "see lk-jwt-service's log"),
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
            look: Arc::new(|_, _| Box::pin(async { Ok(PeerCertificate { leaf: "".into(), trust: Ok(()) }) })),
            nameserver: None,
            services: Vec::new(),
            clock: Clock::system(),
        };
        let account = Account::Password { user: "u".into(), password: "p".into() };
        let wanted = ProbeOptions { account: Some(account), ..ProbeOptions::default() };
        let diagnosis = examine(&plan, &reach, &wanted, &|_, _, _| {}).await;
        assert!(signed_out.load(Ordering::Relaxed), "{diagnosis}");
        assert!(diagnosis.0.iter().any(|finding| finding.id == "account.timeout"), "{diagnosis}");
    }
}
