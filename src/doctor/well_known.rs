//! The documents under `/.well-known/matrix/`, as a browser of another origin receives them.

use futures_util::future::{join, join_all};
use http::header;
use serde_json::Value;

use super::{
    ProbeContext, Verdict,
    ask::{Cors, ProbeRequest, ProbeResponse},
    finding::{Check, Finding, Layer},
    names::{authority, origin_at, server_name_origin},
};
use crate::config::plan::Matrix;

/// The number of redirects that are followed; Synapse and browsers follow more.
const HOPS: usize = 5;

const FOCI: &str = "org.matrix.msc4143.rtc_foci";

/// An origin at which clients look for documents.
struct DocumentOrigin {
    origin: String,
    host: String,
    /// Whether it is the server name itself, where every client looks first.
    first: bool,
}

/// Compares the documents of all origins with each other and with the configuration.
pub async fn probe(context: &ProbeContext<'_>, matrix: &Matrix) -> Vec<Finding> {
    let places = places(context, matrix);
    let client = async {
        let asked = join_all(places.iter().map(|place| fetch(context, place, "client"))).await;
        let mut findings = Vec::new();
        let mut reference: Option<(Value, &str)> = None;
        for (place, asked) in places.iter().zip(asked) {
            let check = Check::new(Layer::WellKnown, "well-known.client", &place.host);
            let (finding, document) = match asked {
                Err(finding) => (finding, None),
                Ok(response) => client(&check, place, &response, matrix, reference.as_ref()),
            };
            let sound = finding.verdict != Verdict::Fail;
            findings.push(finding);
            if place.first {
                findings.extend(foci(document.as_ref(), matrix, &place.host));
            }
            // A document with a fault is not compared with others.
            if let (None, Some(document), true) = (&reference, document, sound) {
                reference = Some((document, &place.host));
            }
        }
        findings
    };
    let others = async {
        let wanted =
            places.iter().filter(|place| place.first).flat_map(|place| ["server", "support"].map(|n| (place, n)));
        join_all(wanted.map(|(place, name)| other(context, place, name))).await
    };
    let (mut client, others) = join(client, others).await;
    client.extend(others);
    client
}

fn places(context: &ProbeContext<'_>, matrix: &Matrix) -> Vec<DocumentOrigin> {
    let place = |origin: String, first| Some(DocumentOrigin { host: authority(&origin)?.0, origin, first });
    let ours = context.plan.sites.iter().filter(|site| site.well_known.is_some() && !site.host.is_wildcard());
    let origins = ours.map(|site| origin_at(context.plan, site.host.as_str(), site.port));
    let first = server_name_origin(context.plan, &matrix.server_name);
    let mut places: Vec<DocumentOrigin> = place(first, true).into_iter().collect();
    for origin in origins {
        if !places.iter().any(|place| place.origin == origin) {
            places.extend(place(origin, false));
        }
    }
    places
}

/// Fetches a document through redirects that a browser would follow, with its preflight.
async fn fetch(
    context: &ProbeContext<'_>,
    place: &DocumentOrigin,
    name: &'static str,
) -> Result<ProbeResponse, Finding> {
    let id = match name {
        "client" => "well-known.client",
        "server" => "well-known.server",
        _ => "well-known.support",
    };
    let check = Check::new(Layer::WellKnown, id, &place.host);
    let first = format!("{}/.well-known/matrix/{name}", place.origin);
    let mut url = first.clone();
    for _ in 0..HOPS {
        let way = context.way(&url).map_err(|reason| check.skip(reason))?;
        let response = ProbeRequest::get(&url)
            .ask(&way)
            .await
            .map_err(|error| check.silent(&error, format!("serve {first} with vestibule")))?;
        if response.cors() != Cors::Open {
            return Err(cors(&check, &response, &url, &first));
        }
        if !response.status.is_redirection() {
            let preflight = ProbeRequest::preflight(&url, "GET").ask(&way).await;
            let passes = preflight.is_ok_and(|response| response.status.is_success() && response.cors() == Cors::Open);
            return if passes {
                Ok(response)
            } else {
                let fact = "a preflight (OPTIONS) does not return 2xx with Access-Control-Allow-Origin";
                Err(check.fail("preflight", fact, format!("serve {first} with vestibule, or answer OPTIONS there")))
            };
        }
        url = absolute(&url, response.field(header::LOCATION));
    }
    Err(check.fail(
        "redirects",
        format!("there are more than {HOPS} redirects in a row"),
        format!("serve {first} without redirects"),
    ))
}

fn cors(check: &Check, response: &ProbeResponse, url: &str, first: &str) -> Finding {
    let fix = match response.cors() {
        Cors::Several => "make only one of the servers on the way add Access-Control-Allow-Origin".to_owned(),
        _ => format!("serve {first} with vestibule, or add the header `Access-Control-Allow-Origin: *` there"),
    };
    let words = response.words();
    match response.cors() {
        Cors::Several => check.fail(
            "cors",
            format!("the response has two Access-Control-Allow-Origin headers, which browsers reject ({words})"),
            fix,
        ),
        _ if response.status == 404 => check.fail(
            "missing",
            "it is not served (404 without CORS)",
            format!("serve {first} with vestibule, or with the text that `vestibule check` prints"),
        ),
        _ if response.status.is_redirection() => {
            check.fail("redirect", format!("{url} redirects without CORS, which browsers do not follow"), fix)
        }
        _ => check.fail(
            "cors",
            format!("the response has no Access-Control-Allow-Origin header, which browsers need ({words})"),
            fix,
        ),
    }
}

fn absolute(url: &str, location: &str) -> String {
    match (location.starts_with('/'), url.match_indices('/').nth(2)) {
        (true, Some((at, _))) => format!("{}{location}", &url[..at]),
        _ => location.to_owned(),
    }
}

/// The document of a response, or what is wrong with it.
fn document(check: &Check, response: &ProbeResponse, missing: &str) -> Result<Value, Finding> {
    let fix = "let vestibule serve it, which generates the document from its configuration";
    if response.status == 404 {
        return Err(check.fail("missing", "it is not served (404)", missing));
    }
    if response.status != 200 {
        return Err(check.fail(
            "status",
            format!("it returns {}: clients report a misconfigured server", response.words()),
            fix,
        ));
    }
    match serde_json::from_slice(&response.body) {
        Ok(document @ Value::Object(_)) => {
            let kind = response.field(header::CONTENT_TYPE);
            if kind.starts_with("application/json") {
                return Ok(document);
            }
            let fix = format!("{fix}, or set Content-Type: application/json");
            Err(check.fail("type", format!("it is sent as {kind:?} and not as application/json"), fix))
        }
        Ok(_) => Err(check.fail("json", "it is JSON, but not an object", fix)),
        Err(_) if response.words().ends_with("page") => Err(check.fail(
            "html",
            "an HTML page is served in its place",
            "route the path to the document before the website",
        )),
        Err(error) => Err(check.fail("json", format!("it is not valid JSON ({error})"), fix)),
    }
}

fn client(
    check: &Check,
    place: &DocumentOrigin,
    response: &ProbeResponse,
    matrix: &Matrix,
    reference: Option<&(Value, &str)>,
) -> (Finding, Option<Value>) {
    let missing =
        format!("serve {}/.well-known/matrix/client with the text that `vestibule check` prints", place.origin);
    let document = match document(check, response, &missing) {
        Ok(document) => document,
        Err(finding) => return (finding, None),
    };
    let base = document["m.homeserver"]["base_url"].as_str().unwrap_or_default();
    let finding = if base.trim_end_matches('/') != matrix.homeserver.trim_end_matches('/') {
        let fact = format!("it sends clients to {base:?}, but the homeserver is at {}", matrix.homeserver);
        check.fail("homeserver", fact, "set m.homeserver.base_url there, or matrix.homeserver here")
    } else if let Some((other, host)) = reference.filter(|(other, _)| *other != document) {
        let key = first_difference(other, &document);
        let fix = "serve both from one source, as vestibule does on every site with `well_known`";
        check.fail("differs", format!("it is not the same as on {host}: `{key}` differs"), fix)
    } else if document.get("org.matrix.msc3575.proxy").is_some() {
        let fact = "it names a sliding-sync proxy, which no client uses any more";
        check.warn("dead", fact, "remove org.matrix.msc3575.proxy from it")
    } else {
        check.ok(format!("leads to {base}"))
    };
    (finding, Some(document))
}

fn first_difference(one: &Value, other: &Value) -> String {
    let keys = [one, other].into_iter().filter_map(Value::as_object).flat_map(serde_json::Map::keys);
    keys.into_iter().find(|key| one.get(key) != other.get(key)).cloned().unwrap_or_default()
}

/// The call services in the client document, which clients before August 2026 read.
fn foci(document: Option<&Value>, matrix: &Matrix, host: &str) -> Option<Finding> {
    let check = Check::new(Layer::Rtc, "rtc.foci", host);
    let Some(document) = document else {
        return Some(check.skip("there is no client document (well-known.client)"));
    };
    let list = [FOCI, "m.rtc_foci"].iter().find_map(|key| document.get(key)?.as_array());
    let urls: Vec<&str> =
        list.into_iter().flatten().filter_map(|focus| focus["livekit_service_url"].as_str()).collect();
    let ours = matrix.rtc_services().next();
    let Some(first) = urls.first() else {
        let fix = "add a site of kind `lk-jwt`, or add the list that `vestibule check` prints to the document";
        let fact = format!("the client document has no {FOCI}: Element says MISSING_MATRIX_RTC_FOCUS");
        return Some(check.fail("missing", fact, fix));
    };
    Some(match urls.iter().find(|url| url.ends_with('/') || !url.starts_with("https://")) {
        Some(url) if url.ends_with('/') => {
            let fact = format!("{url} ends with a slash, to which clients append /sfu/get");
            check.fail("slash", fact, "remove the slash")
        }
        Some(url) => {
            check.fail("scheme", format!("{url} is not https, and a page on https cannot call it"), "write https://")
        }
        None if ours.is_some() && !matrix.rtc_services().any(|ours| ours == *first) => {
            let fact = format!("it names {first}, but the configuration {}", ours.unwrap_or_default());
            check.fail("differs", fact, "serve the text that `vestibule check` prints, or set matrix.rtc_service")
        }
        None => check.ok(format!("leads to {first}")),
    })
}

/// The form of the server and support documents; `federation.rs` tests where the former leads.
async fn other(context: &ProbeContext<'_>, place: &DocumentOrigin, name: &'static str) -> Finding {
    let id = if name == "server" { "well-known.server" } else { "well-known.support" };
    let check = Check::new(Layer::WellKnown, id, &place.host);
    let response = match fetch(context, place, name).await {
        Ok(response) => response,
        // Homeservers need no CORS: a document that returns 404 is only missing.
        Err(finding) if finding.id.ends_with(".missing") => return check.skip("it is not served"),
        Err(finding) => return finding,
    };
    if response.status == 404 {
        return check.skip(if name == "server" {
            "it is not served"
        } else {
            "it is not configured ([matrix.support])"
        });
    }
    match document(&check, &response, "") {
        Err(finding) => finding,
        Ok(document) if name == "server" => match document["m.server"].as_str() {
            Some(server) => check.ok(format!("leads to {server}")),
            None => check.fail("member", "it has no m.server", "serve the text that `vestibule check` prints"),
        },
        Ok(document) if document.get("contacts").is_none() && document.get("support_page").is_none() => {
            check.fail("member", "it has neither contacts nor support_page", "set one of them in [matrix.support]")
        }
        Ok(_) => check.ok("has a contact"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_may_be_a_path() {
        assert_eq!(absolute("https://a:8443/b/c", "/d"), "https://a:8443/d");
        assert_eq!(absolute("https://a/b", "https://e/f"), "https://e/f");
    }

    #[test]
    fn the_first_member_that_differs_is_named() {
        let one = serde_json::json!({ "a": 1, "b": 2 });
        let other = serde_json::json!({ "a": 1, "c": 2 });
        assert_eq!(first_difference(&one, &other), "b");
    }
}
