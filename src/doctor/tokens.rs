//! Call tokens from the homeserver (MSC4195): whether it issues them, also to other homeservers, and which versions run
//! behind it.

use http::Method;
use serde_json::json;

use super::{
    ProbeContext,
    ask::{ProbeRequest, ProbeResponse},
    files,
    finding::{Check, Finding, Layer},
};
use crate::{
    config::{
        plan::{Kind, Matrix, RTC_GET_TOKEN},
        versions::{self, Assessment, Version},
    },
    conn::Fetch,
    error::ServerFailure,
};

/// The path at which other homeservers request tokens for their users.
const FEDERATION: &str = "/_matrix/federation/v1/rtc/livekit/get_token";

const LINES: &str = "set `experimental_features: {msc4502_enabled: true, msc4512_enabled: true}`, and name the registration of lk-jwt-service in `app_service_config_files` (vestibule init SERVER_NAME --add calls)";

/// Tests call tokens without an account.
pub async fn probe(context: &ProbeContext<'_>, matrix: &Matrix) -> Vec<Finding> {
    let check = Check::new(Layer::Rtc, "rtc.tokens", &matrix.homeserver);
    let mut findings = vec![service_version(context, matrix).await];
    if matrix.rtc_transports.is_empty() {
        findings.push(check.skip("the configuration has no call service (rtc.jwt)"));
        return findings;
    }
    let way = match context.homeserver(matrix) {
        Ok((way, _)) => way,
        Err(reason) => {
            findings.push(check.skip(reason));
            return findings;
        }
    };
    let version = homeserver_version(&way, matrix).await;
    findings.push(release(matrix, version.as_deref()));
    match ask(&way, matrix).await {
        Ok(response) if response.status == 404 => findings.push(unserved(&check, context, version.as_deref())),
        Ok(response) if response.status.is_server_error() => {
            let fact = format!("a request for a call token returns {}", response.words());
            findings.push(check.fail("other", fact, "read Synapse's log"));
        }
        Ok(_) => {
            findings.push(check.ok("the homeserver issues call tokens; to request one, pass --token or --user"));
            findings.push(federation(context, matrix).await);
        }
        Err(error) => findings.push(check.silent(&error, "read Synapse's log")),
    }
    findings
}

/// Requests a token without an account, as Element Call does to detect the endpoint.
pub async fn ask(way: &Fetch, matrix: &Matrix) -> Result<ProbeResponse, ServerFailure> {
    let request = |path: &str| ProbeRequest::post(format!("{}{path}", matrix.homeserver), &json!({}));
    let response = request(RTC_GET_TOKEN[0]).ask(way).await?;
    if response.status == 404 { request(RTC_GET_TOKEN[1]).ask(way).await } else { Ok(response) }
}

/// The reason why the endpoints are missing: the version of Synapse, a setting, or the registration.
fn unserved(check: &Check, context: &ProbeContext<'_>, version: Option<&str>) -> Finding {
    let fact = "the homeserver issues no call tokens, so newer clients use the deprecated endpoints";
    if let Some(version) =
        version.and_then(Version::parse).filter(|version| *version < versions::SYNAPSE.minimums[0].version)
    {
        let fact = format!("{fact}: Synapse {version} has no MSC4512");
        return check.warn(
            "msc4512",
            fact,
            format!("update Synapse to {} or later", versions::SYNAPSE.minimums[0].version),
        );
    }
    let missing = context.wanted.homeserver.as_deref().map(files::missing_token_lines);
    match missing {
        Some(Ok(missing)) if missing.is_empty() => {
            let fact = "homeserver.yaml has the settings for call tokens, but Synapse does not serve them: the registration is not loaded";
            let fix = "restart Synapse, and make sure that the registration has `io.element.msc4512.proxy_prefix: rtc/livekit`";
            check.fail("registration", fact, fix)
        }
        Some(Ok(missing)) => {
            check.warn("lines", format!("{fact}: homeserver.yaml lacks {}", missing.join(" and ")), LINES)
        }
        _ => check.warn("unserved", fact, LINES),
    }
}

/// Tests whether other homeservers can request tokens for their users.
async fn federation(context: &ProbeContext<'_>, matrix: &Matrix) -> Finding {
    let base = format!("https://{}", matrix.federation);
    let check = Check::new(Layer::Rtc, "rtc.tokens_federation", &base);
    let way = match context.way(&base) {
        Ok(way) => way,
        Err(reason) => return check.skip(reason),
    };
    let fix = "proxy all of /_matrix/federation/ at that address to Synapse, and add `federation` to its listener";
    match ProbeRequest::post(format!("{base}{FEDERATION}"), &json!({})).ask(&way).await {
        Ok(response) if matches!(response.status.as_u16(), 400 | 401 | 403) => {
            check.ok("other homeservers can request tokens for their users")
        }
        Ok(_) if !federates(&way, &base).await => check.skip("federation does not answer there (federation.listener)"),
        Ok(response) => {
            let fact =
                format!("users of other homeservers get no call token: {} returns {}", FEDERATION, response.words());
            check.fail("unserved", fact, fix)
        }
        Err(error) => {
            let fact = format!("users of other homeservers get no call token: no response ({error})");
            check.fail("silent", fact, fix)
        }
    }
}

/// Whether an address answers federation requests.
async fn federates(way: &Fetch, base: &str) -> bool {
    let version = ProbeRequest::get(format!("{base}/_matrix/federation/v1/version")).ask(way).await;
    version.is_ok_and(|response| response.status == 200)
}

/// The version that Synapse reports, `None` for any other server.
async fn homeserver_version(way: &Fetch, matrix: &Matrix) -> Option<String> {
    let response =
        ProbeRequest::get(format!("{}/_matrix/federation/v1/version", matrix.homeserver)).ask(way).await.ok()?;
    let server = &response.json()["server"];
    (server["name"] == "Synapse").then(|| server["version"].as_str().map(str::to_owned)).flatten()
}

fn release(matrix: &Matrix, version: Option<&str>) -> Finding {
    let check = Check::new(Layer::Homeserver, "homeserver.release", &matrix.homeserver);
    let Some(version) = version.and_then(Version::parse) else {
        return check.skip("version unknown: it is not Synapse");
    };
    match versions::SYNAPSE.assess(version) {
        // If no tokens are issued, rtc.tokens reports it with the fix.
        Assessment::Below(_) | Assessment::Untested => {
            let fact = format!(
                "Synapse {version} is older than {}, which this release was tested with",
                versions::SYNAPSE.tested
            );
            check.warn("untested", fact, format!("update Synapse to {}", versions::SYNAPSE.tested))
        }
        Assessment::Current => check.ok(format!("Synapse {version}")),
    }
}

/// The version of lk-jwt-service. It reports none, so its endpoints and the tag of its image must do.
async fn service_version(context: &ProbeContext<'_>, matrix: &Matrix) -> Finding {
    let url = matrix.rtc_services().next().unwrap_or("[matrix]");
    let check = Check::new(Layer::Rtc, "rtc.jwt_version", url);
    let unknown = "version unknown: neither its endpoints nor an image tag in --compose show it";
    let Some(direct) = context.service(Kind::LkJwt, url) else { return check.skip(unknown) };
    if let Some(down) = direct.down {
        return check.skip(down);
    }
    let serves = async |method: Method, path: &str| {
        let request = ProbeRequest::post(direct.url(path), &json!({})).method(method);
        request.ask(&direct.service.client).await.is_ok_and(|response| response.status != 404)
    };
    let update = format!("update lk-jwt-service to {}", versions::LK_JWT.tested);
    if serves(Method::POST, RTC_GET_TOKEN[0]).await {
        return check.ok("0.10 or later, by its endpoints");
    }
    if serves(Method::POST, RTC_GET_TOKEN[1]).await {
        let fact = format!(
            "0.7 to 0.9, by its endpoints: it lacks the stable ones, and 0.7 has the vulnerability {}",
            versions::LK_JWT_ADVISORY
        );
        return check.warn("old", fact, update);
    }
    if !serves(Method::GET, "/get_token").await {
        return check.skip("older than 0.4 (rtc.jwt.old)");
    }
    if !serves(Method::GET, "/delegate_delayed_leave").await {
        let fact = format!("older than 0.6, by its endpoints: it has the vulnerability {}", versions::LK_JWT_ADVISORY);
        return check.fail("old", fact, update);
    }
    match context.wanted.compose.as_deref().and_then(|path| files::image_version(path, "lk-jwt-service")) {
        Some(version) => match versions::LK_JWT.assess(version) {
            Assessment::Current => check.ok(format!("{version}, by its image tag")),
            Assessment::Below(_) | Assessment::Untested => {
                check.skip(format!("{version}, by its image tag (files.compose)"))
            }
        },
        None => check.skip(unknown),
    }
}
