//! The documents under `/.well-known/matrix/`, made from values and never from text, so that the JSON is always valid.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::plan::{Matrix, RtcDocument, RtcDocuments, RtcTransport};

/// The member that tells older clients of the service for calls.
pub const RTC_FOCI: &str = "org.matrix.msc4143.rtc_foci";

/// Members that the user adds to a document, or sets instead of ours.
type Members = Map<String, Value>;

/// The client document: where the homeserver is, and who lets a client into a call.
pub fn client(matrix: &Matrix, further: Option<&Members>) -> Bytes {
    let mut document = Members::new();
    document.insert("m.homeserver".into(), json!({ "base_url": matrix.homeserver }));
    if matrix.rtc_services().next().is_some() {
        // Only older clients read it, which know no `url`.
        document.insert(RTC_FOCI.into(), services(matrix));
    }
    finish(document, further)
}

/// The server document: where federation goes.
pub fn server(matrix: &Matrix, further: Option<&Members>) -> Bytes {
    finish(Members::from_iter([("m.server".into(), json!(matrix.federation))]), further)
}

/// The support document, which only the user can write.
pub fn support(further: Option<&Members>) -> Option<Bytes> {
    further.filter(|further| !further.is_empty()).map(|further| finish(Members::new(), Some(further)))
}

/// What the transports endpoint answers (MSC4143). A `url` promises that the homeserver hands out tokens for it, so that
/// there is an answer without one.
pub fn rtc_documents(matrix: &Matrix) -> Option<RtcDocuments> {
    let services = matrix.rtc_services().next().is_some().then(|| rtc_document(services(matrix)));
    let sfus = matrix.sfus().next().is_some();
    let sfus = sfus.then(|| rtc_document(matrix.rtc_transports.iter().flat_map(both_types).collect()));
    (services.is_some() || sfus.is_some()).then_some(RtcDocuments { services, sfus })
}

/// The stable path says `transports`; an earlier draft of it said `rtc_transports`, as the unstable path does.
fn rtc_document(list: Value) -> RtcDocument {
    RtcDocument {
        unstable: json!({ "rtc_transports": &list }).to_string().into(),
        stable: json!({ "transports": &list, "rtc_transports": &list }).to_string().into(),
    }
}

fn services(matrix: &Matrix) -> Value {
    matrix.rtc_services().map(|url| json!({ "type": "livekit", "livekit_service_url": url })).collect()
}

/// A transport under its type of MSC4195, and under the one before it. Clients skip the type that they do not know.
fn both_types(transport: &RtcTransport) -> Vec<Value> {
    let stable = transport.url.as_ref().map(|url| json!({ "type": "m.livekit", "url": url }));
    let mut unstable = Members::from_iter([("type".into(), json!("livekit"))]);
    unstable.extend(transport.url.as_ref().map(|url| ("url".into(), json!(url))));
    unstable.extend(transport.service.as_ref().map(|url| ("livekit_service_url".into(), json!(url))));
    stable.into_iter().chain([Value::Object(unstable)]).collect()
}

fn finish(mut document: Members, further: Option<&Members>) -> Bytes {
    document.extend(further.into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())));
    Value::Object(document).to_string().into()
}
