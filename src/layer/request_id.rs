//! A name for every exchange, so that an error page, a line in our log and a line in Synapse's speak of the same thing.

use std::{
    cell::Cell,
    hash::{BuildHasher as _, RandomState},
};

use http::{HeaderName, HeaderValue};

use crate::message::{Fields, Value};

/// The field that carries the id upstream (Synapse: `request_id_header` of the listener).
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest id that is taken over from a trusted proxy.
const MAX_LEN: usize = 64;

/// The id of one exchange: sixteen hexadecimal digits, or what a trusted proxy called it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(Id);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Id {
    /// In place, without an allocation.
    Own([u8; 16]),
    Given(HeaderValue),
}

impl RequestId {
    /// A new id. Unique in this process, and not to be guessed from another id.
    #[must_use]
    pub fn new() -> Self {
        thread_local!(static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(0)));
        let state = STATE.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        STATE.set(state);
        let id = mix(state);
        Self(Id::Own(std::array::from_fn(|at| b"0123456789abcdef"[(id >> (60 - 4 * at) & 15) as usize])))
    }

    /// The id that a trusted proxy gave, if it is one that may stand in a log.
    #[must_use]
    pub fn from_trusted(fields: &Fields) -> Option<Self> {
        let value = fields.get(X_REQUEST_ID)?;
        let fits = (1..=MAX_LEN).contains(&value.as_bytes().len())
            && value.as_bytes().iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b));
        fits.then(|| Self(Id::Given(value.to_owned())))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Id::Own(digits) => std::str::from_utf8(digits).expect("made of digits"),
            Id::Given(value) => value.to_str().expect("made of letters, digits and dashes"),
        }
    }

    /// As a field value.
    #[must_use]
    pub fn value(&self) -> Value<'_> {
        match &self.0 {
            Id::Own(digits) => Value::new(digits).expect("digits are a valid value"),
            Id::Given(value) => value.into(),
        }
    }
}

impl Default for RequestId {
    fn default() -> Self {
        Self::new()
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection, so ids of one thread never repeat.
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ() {
        let ids: std::collections::HashSet<_> = (0..1000).map(|_| RequestId::new().as_str().to_owned()).collect();
        assert_eq!(ids.len(), 1000);
    }

    #[test]
    fn an_id_that_could_forge_a_log_line_is_not_taken_over() {
        let id = |value: &'static str| {
            RequestId::from_trusted(&Fields::from_iter([(X_REQUEST_ID, Value::from_static(value))]))
        };
        assert_eq!(id("abc-123_x.y").unwrap().as_str(), "abc-123_x.y");
        assert!(id("a b").is_none() && id("").is_none() && id("a\"}").is_none());
    }
}
