//! The documents under `/.well-known/matrix/`, made from values and never from text: the JSON is right by construction.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::plan::Matrix;

/// Members that the user adds to a document, or sets instead of ours.
type Members = Map<String, Value>;

/// The client document: where the homeserver is, and who lets a client into a call.
pub fn client(matrix: &Matrix, further: Option<&Members>) -> Bytes {
    let mut document = Members::new();
    document.insert("m.homeserver".into(), json!({ "base_url": matrix.homeserver }));
    if !matrix.rtc_services.is_empty() {
        document.insert("org.matrix.msc4143.rtc_foci".into(), transports(matrix));
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

/// What the MSC4143 endpoint answers.
pub fn rtc_transports(matrix: &Matrix) -> Option<Bytes> {
    (!matrix.rtc_services.is_empty()).then(|| json!({ "rtc_transports": transports(matrix) }).to_string().into())
}

fn transports(matrix: &Matrix) -> Value {
    let transport = |url: &String| json!({ "type": "livekit", "livekit_service_url": url });
    matrix.rtc_services.iter().map(transport).collect()
}

fn finish(mut document: Members, further: Option<&Members>) -> Bytes {
    document.extend(further.into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())));
    Value::Object(document).to_string().into()
}
