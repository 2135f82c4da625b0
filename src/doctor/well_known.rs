//! The documents under `/.well-known/matrix/`, as a browser of another origin gets them.

use futures_util::future::{join, join_all};
use http::header;
use serde_json::Value;

use super::{
    Exam, Verdict,
    ask::{Answer, Cors, Question},
    finding::{Ask, Finding, Layer},
    names::{authority, origin, server_name_origin},
};
use crate::config::plan::Matrix;

/// Redirects that are followed; Synapse and browsers give up later.
const HOPS: usize = 5;

const FOCI: &str = "org.matrix.msc4143.rtc_foci";

/// A place where documents are looked for.
struct Place {
    origin: String,
    host: String,
    /// It is the server name itself, where every client looks first.
    first: bool,
}

/// The documents of every place, compared with each other and with the configuration.
pub async fn probe(exam: &Exam<'_>, matrix: &Matrix) -> Vec<Finding> {
    let places = places(exam, matrix);
    let client = async {
        let asked = join_all(places.iter().map(|place| fetch(exam, place, "client"))).await;
        let mut findings = Vec::new();
        let mut reference: Option<(Value, &str)> = None;
        for (place, asked) in places.iter().zip(asked) {
            let ask = Ask::new(Layer::WellKnown, "well-known.client", &place.host);
            let (finding, document) = match asked {
                Err(finding) => (finding, None),
                Ok(answer) => client(&ask, place, &answer, matrix, reference.as_ref()),
            };
            let sound = finding.verdict != Verdict::Fail;
            findings.push(finding);
            if place.first {
                findings.extend(foci(document.as_ref(), matrix, &place.host));
            }
            // A document that is wrong by itself is no measure of another.
            if let (None, Some(document), true) = (&reference, document, sound) {
                reference = Some((document, &place.host));
            }
        }
        findings
    };
    let others = async {
        let wanted =
            places.iter().filter(|place| place.first).flat_map(|place| ["server", "support"].map(|n| (place, n)));
        join_all(wanted.map(|(place, name)| other(exam, place, name))).await
    };
    let (mut client, others) = join(client, others).await;
    client.extend(others);
    client
}

fn places(exam: &Exam<'_>, matrix: &Matrix) -> Vec<Place> {
    let place = |origin: String, first| Some(Place { host: authority(&origin)?.0, origin, first });
    let ours = exam.plan.sites.iter().filter(|site| site.well_known.is_some());
    let origins = ours.map(|site| origin(exam.plan, site.host.as_str()));
    let first = server_name_origin(exam.plan, &matrix.server_name);
    let mut places: Vec<Place> = place(first, true).into_iter().collect();
    for origin in origins {
        if !places.iter().any(|place| place.origin == origin) {
            places.extend(place(origin, false));
        }
    }
    places
}

/// Gets a document, through redirects that a browser may follow too, with its preflight.
async fn fetch(exam: &Exam<'_>, place: &Place, name: &'static str) -> Result<Answer, Finding> {
    let id = match name {
        "client" => "well-known.client",
        "server" => "well-known.server",
        _ => "well-known.support",
    };
    let ask = Ask::new(Layer::WellKnown, id, &place.host);
    let first = format!("{}/.well-known/matrix/{name}", place.origin);
    let mut url = first.clone();
    for _ in 0..HOPS {
        let way = exam.way(&url).map_err(|reason| ask.skip(reason))?;
        let answer = Question::get(&url).ask(&way).await.map_err(|error| {
            ask.fail("silent", format!("there is no answer ({error})"), format!("serve {first} from the edge"))
        })?;
        if answer.cors() != Cors::Open {
            return Err(cors(&ask, &answer, &url, &first));
        }
        if !answer.status.is_redirection() {
            let preflight = Question::preflight(&url, "GET").ask(&way).await;
            let passes = preflight.is_ok_and(|answer| answer.status.is_success() && answer.cors() == Cors::Open);
            return if passes {
                Ok(answer)
            } else {
                let fact = "a preflight (OPTIONS) is not answered with 2xx and Access-Control-Allow-Origin";
                Err(ask.fail("preflight", fact, format!("let the edge answer {first}, or answer OPTIONS there")))
            };
        }
        url = absolute(&url, answer.field(header::LOCATION));
    }
    Err(ask.fail("redirects", format!("more than {HOPS} redirects follow each other"), format!("serve {first} itself")))
}

fn cors(ask: &Ask, answer: &Answer, url: &str, first: &str) -> Finding {
    let fix = match answer.cors() {
        Cors::Several => "let only one of the servers on the way add Access-Control-Allow-Origin".to_owned(),
        _ => format!("let the edge answer {first}, or add the header `Access-Control-Allow-Origin: *` there"),
    };
    let words = answer.words();
    match answer.cors() {
        Cors::Several => ask.fail(
            "cors",
            format!("the answer has two Access-Control-Allow-Origin: a browser refuses it ({words})"),
            fix,
        ),
        _ if answer.status == 404 => ask.fail(
            "missing",
            "it is not served (404 without CORS)",
            format!("serve {first}, from the edge or with the text that `vestibule check` prints"),
        ),
        _ if answer.status.is_redirection() => {
            ask.fail("redirect", format!("{url} redirects without CORS, which a browser does not follow"), fix)
        }
        _ => ask.fail("cors", format!("the answer has no Access-Control-Allow-Origin for browsers ({words})"), fix),
    }
}

fn absolute(url: &str, location: &str) -> String {
    match (location.starts_with('/'), url.match_indices('/').nth(2)) {
        (true, Some((at, _))) => format!("{}{location}", &url[..at]),
        _ => location.to_owned(),
    }
}

/// The document of an answer, or what is wrong with it.
fn document(ask: &Ask, answer: &Answer, missing: &str) -> Result<Value, Finding> {
    let fix = "let the edge answer it, which writes the document from the configuration";
    if answer.status == 404 {
        return Err(ask.fail("missing", "it is not served (404)", missing));
    }
    if answer.status != 200 {
        return Err(ask.fail(
            "status",
            format!("it is answered with {}: clients say that the server is misconfigured", answer.words()),
            fix,
        ));
    }
    match serde_json::from_slice(&answer.body) {
        Ok(document @ Value::Object(_)) => {
            let kind = answer.field(header::CONTENT_TYPE);
            if kind.starts_with("application/json") {
                return Ok(document);
            }
            let fix = format!("{fix}, or set Content-Type: application/json");
            Err(ask.fail("type", format!("it is sent as {kind:?} and not as application/json"), fix))
        }
        Ok(_) => Err(ask.fail("json", "it is JSON, but no object", fix)),
        Err(_) if answer.words().ends_with("page") => {
            Err(ask.fail("html", "a web page is served in its place", "answer the path before the web site does"))
        }
        Err(error) => Err(ask.fail("json", format!("it is no valid JSON ({error})"), fix)),
    }
}

fn client(
    ask: &Ask,
    place: &Place,
    answer: &Answer,
    matrix: &Matrix,
    reference: Option<&(Value, &str)>,
) -> (Finding, Option<Value>) {
    let missing =
        format!("serve {}/.well-known/matrix/client with the text that `vestibule check` prints", place.origin);
    let document = match document(ask, answer, &missing) {
        Ok(document) => document,
        Err(finding) => return (finding, None),
    };
    let base = document["m.homeserver"]["base_url"].as_str().unwrap_or_default();
    let finding = if base.trim_end_matches('/') != matrix.homeserver.trim_end_matches('/') {
        let fact = format!("it leads clients to {base:?}, and the homeserver is at {}", matrix.homeserver);
        ask.fail("homeserver", fact, "set m.homeserver.base_url there, or matrix.homeserver here")
    } else if let Some((other, host)) = reference.filter(|(other, _)| *other != document) {
        let key = first_difference(other, &document);
        let fix = "serve both from one source: the edge does on every site with `well_known`";
        ask.fail("differs", format!("it is not the same as on {host}: `{key}` differs"), fix)
    } else if document.get("org.matrix.msc3575.proxy").is_some() {
        let fact = "it names a sliding-sync proxy, which nothing uses any more";
        ask.warn("dead", fact, "remove org.matrix.msc3575.proxy from it")
    } else {
        ask.ok(format!("leads to {base}"))
    };
    (finding, Some(document))
}

fn first_difference(one: &Value, other: &Value) -> String {
    let keys = [one, other].into_iter().filter_map(Value::as_object).flat_map(serde_json::Map::keys);
    keys.into_iter().find(|key| one.get(key) != other.get(key)).cloned().unwrap_or_default()
}

/// What clients before August 2026, and all that still bundle them, learn of calls.
fn foci(document: Option<&Value>, matrix: &Matrix, host: &str) -> Option<Finding> {
    let ask = Ask::new(Layer::Rtc, "rtc.foci", host);
    let Some(document) = document else {
        return Some(ask.skip("there is no client document to read (well-known.client)"));
    };
    let list = [FOCI, "m.rtc_foci"].iter().find_map(|key| document.get(key)?.as_array());
    let urls: Vec<&str> =
        list.into_iter().flatten().filter_map(|focus| focus["livekit_service_url"].as_str()).collect();
    let Some(first) = urls.first() else {
        let fix =
            "give the edge a site of kind `lk-jwt`, or add the list that `vestibule check` prints to the document";
        let fact = format!("the client document has no {FOCI}: Element says MISSING_MATRIX_RTC_FOCUS");
        return Some(ask.fail("missing", fact, fix));
    };
    Some(match urls.iter().find(|url| url.ends_with('/') || !url.starts_with("https://")) {
        Some(url) if url.ends_with('/') => {
            let fact = format!("{url} ends in a slash, and clients append /sfu/get to it");
            ask.fail("slash", fact, "take the slash off")
        }
        Some(url) => {
            ask.fail("scheme", format!("{url} is not https, which a page on https may not call"), "write https://")
        }
        None if !matrix.rtc_services.is_empty() && !matrix.rtc_services.iter().any(|ours| ours == first) => {
            let fact = format!("it leads to {first}, and the configuration to {}", matrix.rtc_services[0]);
            ask.fail("differs", fact, "serve the text that `vestibule check` prints, or set matrix.rtc_service")
        }
        None => ask.ok(format!("leads to {first}")),
    })
}

/// The server document is judged by where it leads, with federation; here only its form.
async fn other(exam: &Exam<'_>, place: &Place, name: &'static str) -> Finding {
    let id = if name == "server" { "well-known.server" } else { "well-known.support" };
    let ask = Ask::new(Layer::WellKnown, id, &place.host);
    let answer = match fetch(exam, place, name).await {
        Ok(answer) => answer,
        // Homeservers are no browsers: a missing document without CORS is only missing.
        Err(finding) if finding.id.ends_with(".missing") => return ask.skip("it is not served"),
        Err(finding) => return finding,
    };
    if answer.status == 404 {
        return ask.skip(if name == "server" { "it is not served" } else { "it is not configured ([matrix.support])" });
    }
    match document(&ask, &answer, "") {
        Err(finding) => finding,
        Ok(document) if name == "server" => match document["m.server"].as_str() {
            Some(server) => ask.ok(format!("leads to {server}")),
            None => ask.fail("member", "it has no m.server", "serve the text that `vestibule check` prints"),
        },
        Ok(document) if document.get("contacts").is_none() && document.get("support_page").is_none() => {
            ask.fail("member", "it has neither contacts nor support_page", "set one of them in [matrix.support]")
        }
        Ok(_) => ask.ok("names whom to ask"),
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
