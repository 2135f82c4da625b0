//! The homeserver as its clients reach it: versions and switches, addresses untouched, what must stay closed.

use futures_util::future::join_all;
use serde_json::Value;

use super::{
    ProbeContext,
    ask::{Cors, ProbeRequest},
    finding::{Check, Finding, Layer},
    names::authority,
};
use crate::{
    config::plan::{Access, BodyPath, Kind, Matrix, Route},
    conn::Fetch,
    error::ServerFailure,
};

/// The first requests of a client.
pub async fn probe(context: &ProbeContext<'_>, matrix: &Matrix) -> Vec<Finding> {
    let check = |id| Check::new(Layer::Homeserver, id, &matrix.homeserver);
    let (way, direct) = match context.homeserver(matrix) {
        Ok(way) => way,
        Err(reason) => return vec![check("homeserver.versions").skip(reason)],
    };
    let versions = match versions(&check("homeserver.versions"), &way, matrix).await {
        Ok(versions) => versions,
        Err(mut finding) => {
            let own = match &direct {
                Some(direct) => {
                    ProbeRequest::get(direct.url("/_matrix/client/versions")).ask(&direct.service.client).await.ok()
                }
                None => None,
            };
            if own.is_some_and(|response| response.status == 200) {
                finding.fact = format!("{}, although the homeserver itself returns the right response", finding.fact);
            }
            return vec![finding];
        }
    };
    let is_synapse = may_be_synapse(context, matrix);
    let newest = versions["versions"].as_array().and_then(|list| list.last()).and_then(Value::as_str).unwrap_or("?");
    let mut findings = vec![check("homeserver.versions").ok(format!("speaks Matrix up to {newest}"))];
    findings.push(delayed_events(&check("homeserver.delayed_events"), &versions, &way, matrix, is_synapse).await);
    findings.push(state_after(&check("homeserver.state_after"), &versions, is_synapse));
    findings.push(match is_synapse {
        true => untouched(&check("homeserver.uri"), &way, matrix).await,
        // Others are free to take these paths for one.
        false => check("homeserver.uri").skip("only Synapse is known to answer other spellings of a path with 404"),
    });
    findings.push(login(&check("homeserver.login"), &way, matrix).await);
    findings.push(upload(&check("homeserver.upload"), context, &way, matrix).await);
    findings
}

async fn versions(check: &Check, way: &Fetch, matrix: &Matrix) -> Result<Value, Finding> {
    let fix = "proxy all of /_matrix/ at that address to the homeserver";
    let response = ProbeRequest::get(format!("{}/_matrix/client/versions", matrix.homeserver)).ask(way).await;
    let response = response.map_err(|error| check.silent(&error, fix))?;
    if response.status != 200 || !response.json()["versions"].is_array() {
        return Err(check.fail("other", format!("/_matrix/client/versions returns {}", response.words()), fix));
    }
    match response.cors() {
        Cors::Open => Ok(response.json()),
        Cors::Several => {
            let fact = "responses have two Access-Control-Allow-Origin headers: browsers reject them";
            Err(check.fail(
                "cors",
                fact,
                "remove the CORS headers that a server in front of vestibule adds: Synapse sends its own",
            ))
        }
        Cors::Missing | Cors::Other => {
            let fact = "responses have no Access-Control-Allow-Origin header: browsers reject them";
            Err(check.fail("cors", fact, "make the server in front of vestibule pass all headers"))
        }
    }
}

/// Whether delayed events are on, and the endpoint that keeps a member in a call answers (row 8).
async fn delayed_events(check: &Check, versions: &Value, way: &Fetch, matrix: &Matrix, is_synapse: bool) -> Finding {
    if versions["unstable_features"]["org.matrix.msc4140"] != true {
        let fact = "delayed events are off: a participant that crashes stays in the call";
        let fix = match is_synapse {
            true => "set `max_event_delay_duration: 24h` in homeserver.yaml",
            false => "turn delayed events (MSC4140) on, in a version of the homeserver that has them",
        };
        return check.fail("off", fact, fix);
    }
    let url = format!("{}/_matrix/client/unstable/org.matrix.msc4140/delayed_events/doctor/restart", matrix.homeserver);
    match ProbeRequest::post(url, &Value::Object(serde_json::Map::new())).ask(way).await {
        Ok(response) if response.status == 404 && response.errcode() == "M_NOT_FOUND" => {
            check.ok("on, and can be restarted without an account")
        }
        Ok(response) if response.status == 429 => {
            let fact = "even the first request is rate-limited: all clients share one limit";
            let fix = "set `x_forwarded: true` on Synapse's listener, so that it counts per client, and rc_delayed_event_mgmt to {per_second: 1, burst_count: 20}";
            check.fail("limited", fact, fix)
        }
        Ok(response) => {
            let fact = format!("a restart of a delayed event returns {}", response.words());
            check.fail("other", fact, "update Synapse")
        }
        Err(error) => check.silent(&error, "read the homeserver's log"),
    }
}

fn state_after(check: &Check, versions: &Value, is_synapse: bool) -> Finding {
    let flags = &versions["unstable_features"];
    if flags["org.matrix.msc4222"] == true || flags["org.matrix.simplified_msc3575"] == true {
        return check.ok("/sync reports call members in order");
    }
    let fact = "state_after in /sync is off: clients may see call members late";
    let fix = match is_synapse {
        true => "set `experimental_features: {msc4222_enabled: true}` in homeserver.yaml",
        false => "update the homeserver to a version with MSC4222",
    };
    check.warn("off", fact, fix)
}

/// Federation signs the request target as it was sent, so nothing may normalise it.
async fn untouched(check: &Check, way: &Fetch, matrix: &Matrix) -> Finding {
    for path in ["/_matrix/client/%76ersions", "//_matrix/client/versions", "/_matrix/client/./versions"] {
        match ProbeRequest::get(format!("{}{path}", matrix.homeserver)).ask(way).await {
            Ok(response) if response.status == 200 => {
                let fact = format!(
                    "{path} is answered as if it were /_matrix/client/versions: a server on the way normalises paths"
                );
                return check.fail(
                    "rewritten",
                    fact,
                    "turn off path normalisation in the servers in front of vestibule and behind it",
                );
            }
            Ok(_) => {}
            Err(error) => return check.silent(&error, "read the homeserver's log"),
        }
    }
    check.ok("paths arrive unchanged")
}

/// Whether and how users log in (row 15).
async fn login(check: &Check, way: &Fetch, matrix: &Matrix) -> Finding {
    let base = &matrix.homeserver;
    let flows = ProbeRequest::get(format!("{base}/_matrix/client/v3/login")).ask(way).await;
    let metadata = ProbeRequest::get(format!("{base}/_matrix/client/v1/auth_metadata")).ask(way).await;
    let whoami = ProbeRequest::get(format!("{base}/_matrix/client/v3/account/whoami")).token("doctor").ask(way).await;
    let flows = match flows {
        Ok(response) if response.status == 200 => response.json(),
        Ok(response) => {
            let fix = "proxy /_matrix/client/v3/login to Synapse, or to the authentication service if there is one";
            return check.fail("other", format!("/_matrix/client/v3/login returns {}", response.words()), fix);
        }
        Err(error) => return check.silent(&error, "read the homeserver's log"),
    };
    if whoami.is_ok_and(|response| response.status == 503) {
        let fact = "Synapse cannot reach its authentication service to verify a token (503)";
        return check.fail(
            "delegation",
            fact,
            "make the endpoint of matrix_authentication_service reachable from Synapse, and read its log",
        );
    }
    let kinds: Vec<&str> =
        flows["flows"].as_array().into_iter().flatten().filter_map(|flow| flow["type"].as_str()).collect();
    let issuer = metadata.ok().filter(|response| response.status == 200).map(|response| response.json());
    match issuer.as_ref().and_then(|metadata| metadata["issuer"].as_str()) {
        Some(issuer) => check.ok(format!("users log in at {issuer}")),
        None if kinds.is_empty() => check.fail(
            "none",
            "there is no way to log in",
            "check the settings of passwords and SSO (password_config in homeserver.yaml of Synapse)",
        ),
        None => check.ok(format!("users log in by {}", kinds.join(", "))),
    }
}

/// An upload that is too large gets a response that a web client can read (row 10).
async fn upload(check: &Check, context: &ProbeContext<'_>, way: &Fetch, matrix: &Matrix) -> Finding {
    let url = format!("{}/_matrix/media/v3/upload", matrix.homeserver);
    match ProbeRequest::preflight(&url, "POST").ask(way).await {
        Ok(response) if response.status.is_success() && response.cors() == Cors::Open => {}
        Ok(response) => {
            let fact = format!("the preflight of an upload returns {}", response.words());
            return check.fail("preflight", fact, "make the server in front of vestibule pass OPTIONS");
        }
        Err(error) => return check.silent(&error, "read the homeserver's log"),
    }
    let Some(limit) = media_limit(context, matrix) else { return check.ok("web clients can upload") };
    match ProbeRequest::upload(&url, limit + 1).ask(way).await {
        Ok(response) if response.is(413, "M_TOO_LARGE") && response.cors() == Cors::Open => {
            check.ok(format!("up to {}; larger uploads get a readable error", size(limit)))
        }
        Ok(response) => {
            let fact = format!(
                "an upload of more than {} returns {}, which a web client cannot read",
                size(limit),
                response.words()
            );
            check.fail("answer", fact, "raise the body limit of the server in front of vestibule above vestibule's own")
        }
        Err(error) => {
            let fact = format!("an upload of more than {} is aborted ({error})", size(limit));
            check.fail("answer", fact, "raise the body limit of the server in front of vestibule above vestibule's own")
        }
    }
}

/// The upload limit of the route for media.
pub fn media_limit(context: &ProbeContext<'_>, matrix: &Matrix) -> Option<u64> {
    route(context, matrix)?
        .max_body
        .iter()
        .find(|rule| matches!(rule.path, BodyPath::MatrixMedia | BodyPath::Any))?
        .limit
}

fn route<'a>(context: &ProbeContext<'a>, matrix: &Matrix) -> Option<&'a Route> {
    let (host, _) = authority(&matrix.homeserver)?;
    let site = context.plan.sites.iter().find(|site| site.host.as_str() == host)?;
    site.routes.iter().find(|route| route.kind.is_homeserver())
}

/// Whether the homeserver may be Synapse, as far as the file says it.
fn may_be_synapse(context: &ProbeContext<'_>, matrix: &Matrix) -> bool {
    route(context, matrix).is_none_or(|route| route.kind == Kind::Synapse)
}

/// A size in MiB or KiB.
pub fn size(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
        bytes => format!("{} KiB", bytes >> 10),
    }
}

/// Paths that must not be reachable from the internet (row 14).
pub async fn exposed(context: &ProbeContext<'_>, matrix: &Matrix) -> Vec<Finding> {
    let check = Check::new(Layer::Homeserver, "homeserver.exposed", &matrix.homeserver);
    let way = match context.homeserver(matrix) {
        Ok((way, _)) => way,
        Err(reason) => return vec![check.skip(reason)],
    };
    let invited = route(context, matrix).is_some_and(|route| {
        route.access.iter().any(|rule| matches!(&rule.verdict, Access::PassFrom(networks) if !networks.is_empty()))
    });
    let paths = [
        "/_synapse/admin/v1/server_version",
        "/_synapse/metrics",
        "/_synapse/mas/is_localpart_available?localpart=doctor",
        "/_synapse/replication",
    ];
    let asked = join_all(paths.map(|path| ProbeRequest::get(format!("{}{path}", matrix.homeserver)).ask(&way))).await;
    // The statuses of Synapse itself, whether or not it authorises the request.
    let open = |response: &Result<super::ask::ProbeResponse, ServerFailure>| {
        response.as_ref().is_ok_and(|response| matches!(response.status.as_u16(), 200 | 400 | 401 | 405))
    };
    let open: Vec<&str> =
        paths.iter().zip(&asked).filter(|(_, response)| open(response)).map(|(path, _)| *path).collect();
    vec![match open.as_slice() {
        [] => check.ok("the admin API, metrics and replication are closed"),
        [path] if invited && path.starts_with("/_synapse/admin") => {
            check.ok("the admin API is open to this machine, as admin_from says; the rest is closed")
        }
        open => {
            let fix = "proxy only /_matrix/ and /_synapse/client/ to Synapse, as a site of kind `synapse` does";
            check.fail("open", format!("open to the internet: {}", open.join(", ")), fix)
        }
    }]
}
