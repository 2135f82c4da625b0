//! The homeserver as its clients reach it: versions and switches, addresses untouched, what must stay closed.

use futures_util::future::join_all;
use serde_json::Value;

use super::{
    Exam,
    ask::{Cors, Question},
    finding::{Ask, Finding, Layer},
    names::authority,
};
use crate::{
    config::plan::{BodyPath, Kind, Matrix, Route, Verdict as Access},
    conn::Fetch,
};

/// What clients ask first, and what it says.
pub async fn probe(exam: &Exam<'_>, matrix: &Matrix) -> Vec<Finding> {
    let ask = |id| Ask::new(Layer::Homeserver, id, &matrix.homeserver);
    let (way, straight) = match exam.homeserver(matrix) {
        Ok(way) => way,
        Err(reason) => return vec![ask("homeserver.versions").skip(reason)],
    };
    let versions = match versions(&ask("homeserver.versions"), &way, matrix).await {
        Ok(versions) => versions,
        Err(mut finding) => {
            let own = match &straight {
                Some(straight) => {
                    Question::get(straight.url("/_matrix/client/versions")).ask(&straight.service.ask).await.ok()
                }
                None => None,
            };
            if own.is_some_and(|answer| answer.status == 200) {
                finding.fact = format!("{}, although Synapse itself answers rightly", finding.fact);
            }
            return vec![finding];
        }
    };
    let newest = versions["versions"].as_array().and_then(|list| list.last()).and_then(Value::as_str).unwrap_or("?");
    let mut findings = vec![ask("homeserver.versions").ok(format!("speaks Matrix up to {newest}"))];
    findings.push(delayed_events(&ask("homeserver.delayed_events"), &versions, &way, matrix).await);
    findings.push(state_after(&ask("homeserver.state_after"), &versions));
    findings.push(untouched(&ask("homeserver.uri"), &way, matrix).await);
    findings.push(login(&ask("homeserver.login"), &way, matrix).await);
    findings.push(upload(&ask("homeserver.upload"), exam, &way, matrix).await);
    findings
}

async fn versions(ask: &Ask, way: &Fetch, matrix: &Matrix) -> Result<Value, Finding> {
    let fix = "let the whole of /_matrix/ of that address go to Synapse";
    let answer = Question::get(format!("{}/_matrix/client/versions", matrix.homeserver)).ask(way).await;
    let answer = answer.map_err(|error| ask.fail("silent", format!("there is no answer ({error})"), fix))?;
    if answer.status != 200 || !answer.json()["versions"].is_array() {
        return Err(ask.fail("other", format!("/_matrix/client/versions is answered with {}", answer.words()), fix));
    }
    match answer.cors() {
        Cors::Open => Ok(answer.json()),
        Cors::Several => {
            let fact = "answers have two Access-Control-Allow-Origin: browsers refuse them";
            Err(ask.fail("cors", fact, "let nothing in front of the edge add CORS headers: Synapse does"))
        }
        Cors::Missing | Cors::Other => {
            let fact = "answers have no Access-Control-Allow-Origin: browsers refuse them";
            Err(ask.fail("cors", fact, "let nothing in front of the edge remove headers"))
        }
    }
}

/// The switch, and whether the endpoint that keeps a member in a call can be had (row 8).
async fn delayed_events(ask: &Ask, versions: &Value, way: &Fetch, matrix: &Matrix) -> Finding {
    if versions["unstable_features"]["org.matrix.msc4140"] != true {
        let fact = "delayed events are off: who leaves a call badly stays in it as a ghost";
        return ask.fail("off", fact, "set `max_event_delay_duration: 24h` in homeserver.yaml");
    }
    let url = format!("{}/_matrix/client/unstable/org.matrix.msc4140/delayed_events/doctor/restart", matrix.homeserver);
    match Question::post(url, &Value::Object(serde_json::Map::new())).ask(way).await {
        Ok(answer) if answer.status == 404 && answer.errcode() == "M_NOT_FOUND" => {
            ask.ok("on, and can be kept alive without an account")
        }
        Ok(answer) if answer.status == 429 => {
            let fact = "the first request is one too many already: others use up the same limit";
            let fix = "set `x_forwarded: true` on Synapse's listener, so that it counts per client, and rc_delayed_event_mgmt to {per_second: 1, burst_count: 20}";
            ask.fail("limited", fact, fix)
        }
        Ok(answer) => {
            let fact = format!("a restart of a delayed event is answered with {}", answer.words());
            ask.fail("other", fact, "use a Synapse of this year")
        }
        Err(error) => ask.fail("silent", format!("there is no answer ({error})"), "see Synapse's log"),
    }
}

fn state_after(ask: &Ask, versions: &Value) -> Finding {
    let flags = &versions["unstable_features"];
    if flags["org.matrix.msc4222"] == true || flags["org.matrix.simplified_msc3575"] == true {
        return ask.ok("sync tells of call members in order");
    }
    let fact = "state_after in /sync is off: clients may see call members late";
    ask.warn("off", fact, "set `experimental_features: {msc4222_enabled: true}` in homeserver.yaml")
}

/// Federation signs the target as it is written, so nothing may make it prettier.
async fn untouched(ask: &Ask, way: &Fetch, matrix: &Matrix) -> Finding {
    for path in ["/_matrix/client/%76ersions", "//_matrix/client/versions", "/_matrix/client/./versions"] {
        match Question::get(format!("{}{path}", matrix.homeserver)).ask(way).await {
            Ok(answer) if answer.status == 200 => {
                let fact = format!(
                    "{path} is answered as if it were /_matrix/client/versions: addresses are rewritten on the way"
                );
                return ask.fail(
                    "rewritten",
                    fact,
                    "turn off normalising of addresses in what stands before or behind the edge",
                );
            }
            Ok(_) => {}
            Err(error) => return ask.fail("silent", format!("there is no answer ({error})"), "see Synapse's log"),
        }
    }
    ask.ok("addresses arrive as they were written")
}

/// Whether and how people sign in (row 15).
async fn login(ask: &Ask, way: &Fetch, matrix: &Matrix) -> Finding {
    let base = &matrix.homeserver;
    let flows = Question::get(format!("{base}/_matrix/client/v3/login")).ask(way).await;
    let metadata = Question::get(format!("{base}/_matrix/client/v1/auth_metadata")).ask(way).await;
    let whoami = Question::get(format!("{base}/_matrix/client/v3/account/whoami")).token("doctor").ask(way).await;
    let flows = match flows {
        Ok(answer) if answer.status == 200 => answer.json(),
        Ok(answer) => {
            let fix = "let /_matrix/client/v3/login go to Synapse, or to the authentication service if there is one";
            return ask.fail("other", format!("/_matrix/client/v3/login is answered with {}", answer.words()), fix);
        }
        Err(error) => return ask.fail("silent", format!("there is no answer ({error})"), "see Synapse's log"),
    };
    if whoami.is_ok_and(|answer| answer.status == 503) {
        let fact = "Synapse cannot ask its authentication service about a token (503)";
        return ask.fail(
            "delegation",
            fact,
            "let Synapse reach the endpoint of matrix_authentication_service, and see its log",
        );
    }
    let kinds: Vec<&str> =
        flows["flows"].as_array().into_iter().flatten().filter_map(|flow| flow["type"].as_str()).collect();
    let issuer = metadata.ok().filter(|answer| answer.status == 200).map(|answer| answer.json());
    match issuer.as_ref().and_then(|metadata| metadata["issuer"].as_str()) {
        Some(issuer) => ask.ok(format!("people sign in at {issuer}")),
        None if kinds.is_empty() => ask.fail(
            "none",
            "there is no way to sign in",
            "see password_config and the SSO settings in homeserver.yaml",
        ),
        None => ask.ok(format!("people sign in by {}", kinds.join(", "))),
    }
}

/// An upload that is too large is told so in a form that a web client can read (row 10).
async fn upload(ask: &Ask, exam: &Exam<'_>, way: &Fetch, matrix: &Matrix) -> Finding {
    let url = format!("{}/_matrix/media/v3/upload", matrix.homeserver);
    match Question::preflight(&url, "POST").ask(way).await {
        Ok(answer) if answer.status.is_success() && answer.cors() == Cors::Open => {}
        Ok(answer) => {
            let fact = format!("the preflight of an upload is answered with {}", answer.words());
            return ask.fail("preflight", fact, "let OPTIONS pass in what stands before the edge");
        }
        Err(error) => return ask.fail("silent", format!("there is no answer ({error})"), "see Synapse's log"),
    }
    let Some(limit) = media_limit(exam, matrix) else { return ask.ok("uploads may be sent from web pages") };
    match Question::upload(&url, limit + 1).ask(way).await {
        Ok(answer) if answer.is(413, "M_TOO_LARGE") && answer.cors() == Cors::Open => {
            ask.ok(format!("up to {}, and more is refused in words", size(limit)))
        }
        Ok(answer) => {
            let fact = format!(
                "an upload of more than {} is answered with {}, which a web client cannot read",
                size(limit),
                answer.words()
            );
            ask.fail("answer", fact, "raise the body limit of what stands before the edge over that of the edge")
        }
        Err(error) => {
            let fact = format!("an upload of more than {} is cut off ({error})", size(limit));
            ask.fail("answer", fact, "raise the body limit of what stands before the edge over that of the edge")
        }
    }
}

/// How large an upload may be by the route that takes it.
pub fn media_limit(exam: &Exam<'_>, matrix: &Matrix) -> Option<u64> {
    route(exam, matrix)?.max_body.iter().find(|rule| matches!(rule.path, BodyPath::MatrixMedia | BodyPath::Any))?.limit
}

fn route<'a>(exam: &Exam<'a>, matrix: &Matrix) -> Option<&'a Route> {
    let (host, _) = authority(&matrix.homeserver)?;
    let site = exam.plan.sites.iter().find(|site| site.host.as_str() == host)?;
    site.routes.iter().find(|route| route.kind == Kind::Synapse)
}

/// A size as people write it.
pub fn size(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
        bytes => format!("{} KiB", bytes >> 10),
    }
}

/// What the internet must not reach (row 14).
pub async fn exposed(exam: &Exam<'_>, matrix: &Matrix) -> Vec<Finding> {
    let ask = Ask::new(Layer::Homeserver, "homeserver.exposed", &matrix.homeserver);
    let way = match exam.homeserver(matrix) {
        Ok((way, _)) => way,
        Err(reason) => return vec![ask.skip(reason)],
    };
    let invited = route(exam, matrix).is_some_and(|route| {
        route.access.iter().any(|rule| matches!(&rule.verdict, Access::PassFrom(networks) if !networks.is_empty()))
    });
    let paths = [
        "/_synapse/admin/v1/server_version",
        "/_synapse/metrics",
        "/_synapse/mas/is_localpart_available?localpart=doctor",
        "/_synapse/replication",
    ];
    let asked = join_all(paths.map(|path| Question::get(format!("{}{path}", matrix.homeserver)).ask(&way))).await;
    // What Synapse says to a stranger, whether or not it lets him in.
    let open = |answer: &Result<super::ask::Answer, String>| {
        answer.as_ref().is_ok_and(|answer| matches!(answer.status.as_u16(), 200 | 400 | 401 | 405))
    };
    let open: Vec<&str> = paths.iter().zip(&asked).filter(|(_, answer)| open(answer)).map(|(path, _)| *path).collect();
    vec![match open.as_slice() {
        [] => ask.ok("the admin API, metrics and replication are closed"),
        [path] if invited && path.starts_with("/_synapse/admin") => {
            ask.ok("the admin API is open to this machine, as admin_from says; all else is closed")
        }
        open => {
            let fix = "let only /_matrix/ and /_synapse/client/ pass to Synapse, as a site of kind `synapse` does";
            ask.fail("open", format!("open to the internet: {}", open.join(", ")), fix)
        }
    }]
}
