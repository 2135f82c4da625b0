//! A name for every exchange, so that an error page, a line in our log and a line in Synapse's speak of the same thing.

use std::cell::RefCell;

use aws_lc_rs::rand;
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
    /// A new id: 64 random bits, so that one does not tell another.
    #[must_use]
    pub fn new() -> Self {
        let id = RANDOM.with_borrow_mut(Random::next);
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

thread_local!(static RANDOM: RefCell<Random> = const { RefCell::new(Random::new()) });

/// Random bytes are drawn for so many ids at once: a draw costs a microsecond, whatever its size.
const DRAWN: usize = 64;

/// Random numbers of one thread.
struct Random {
    bytes: [u8; 8 * DRAWN],
    left: usize,
}

impl Random {
    const fn new() -> Self {
        Self { bytes: [0; 8 * DRAWN], left: 0 }
    }

    fn next(&mut self) -> u64 {
        if self.left == 0 {
            rand::fill(&mut self.bytes).expect("the system has random bytes once it has started");
            self.left = DRAWN;
        }
        self.left -= 1;
        let number = &mut self.bytes[8 * self.left..8 * (self.left + 1)];
        let id = u64::from_ne_bytes((&*number).try_into().expect("eight bytes"));
        // What has been used is not kept.
        number.fill(0);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_does_not_tell_the_next_one() {
        let ids: Vec<u64> = (0..10_000).map(|_| u64::from_str_radix(RequestId::new().as_str(), 16).unwrap()).collect();
        let steps: std::collections::HashSet<_> = ids.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
        assert_eq!(steps.len(), ids.len() - 1, "the same step twice");
        // The mixing function of SplitMix64 can be undone, and its states are a constant apart: so ids were once made.
        let states: std::collections::HashSet<_> =
            ids.windows(2).map(|pair| unmix(pair[1]).wrapping_sub(unmix(pair[0]))).collect();
        assert_eq!(states.len(), ids.len() - 1);
    }

    /// The inverse of the finaliser of SplitMix64.
    fn unmix(mut z: u64) -> u64 {
        z = (z ^ (z >> 31) ^ (z >> 62)).wrapping_mul(0x3196_42b2_d24d_8ec3);
        z = (z ^ (z >> 27) ^ (z >> 54)).wrapping_mul(0x96de_1b17_3f11_9089);
        z ^ (z >> 30) ^ (z >> 60)
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
