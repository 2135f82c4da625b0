//! What the files of the storage have in common: times as numbers, and members that may be broken. A member that is not
//! needed costs itself alone when it cannot be read; members that are not known are passed over.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::Value;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A time as a number since 1970, so many to the second. What no clock shows is no time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct UnixTime<const PER_SECOND: u64>(pub SystemTime);

/// A time in seconds.
pub type Seconds = UnixTime<1>;

/// A time in milliseconds.
pub type Milliseconds = UnixTime<1_000>;

impl<const PER_SECOND: u64> UnixTime<PER_SECOND> {
    /// A time as it will be read back.
    #[must_use]
    pub fn rounded(time: SystemTime) -> SystemTime {
        Self::try_from(u64::from(Self(time))).map_or(time, |rounded| rounded.0)
    }
}

impl<const PER_SECOND: u64> TryFrom<u64> for UnixTime<PER_SECOND> {
    type Error = &'static str;

    fn try_from(number: u64) -> Result<Self, Self::Error> {
        let rest = Duration::from_nanos(number % PER_SECOND * (NANOS_PER_SECOND / PER_SECOND));
        let since = Duration::from_secs(number / PER_SECOND) + rest;
        UNIX_EPOCH.checked_add(since).map(Self).ok_or("a time that no clock shows")
    }
}

impl<const PER_SECOND: u64> From<UnixTime<PER_SECOND>> for u64 {
    fn from(time: UnixTime<PER_SECOND>) -> Self {
        let since = time.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let rest = Self::from(since.subsec_nanos()) / (NANOS_PER_SECOND / PER_SECOND);
        since.as_secs().saturating_mul(PER_SECOND).saturating_add(rest)
    }
}

/// Reads a member; its default where it is broken.
///
/// # Errors
/// The document is no JSON.
pub fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(member: D) -> Result<T, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(member)?).unwrap_or_default())
}

/// Reads a list; items that are broken are left out.
///
/// # Errors
/// The document is no JSON.
pub fn lenient_list<'de, D: Deserializer<'de>, T: DeserializeOwned>(member: D) -> Result<Vec<T>, D::Error> {
    let Value::Array(items) = Value::deserialize(member)? else { return Ok(Vec::new()) };
    Ok(items.into_iter().filter_map(|item| serde_json::from_value(item).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_to_their_unit() {
        let time = UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
        let both = (UnixTime::<1>(time), UnixTime::<1_000>(time));
        let text = serde_json::to_string(&both).unwrap();
        assert_eq!(text, "[1700000000,1700000000123]");
        let (seconds, millis): (Seconds, Milliseconds) = serde_json::from_str(&text).unwrap();
        assert_eq!(time.duration_since(seconds.0).unwrap(), Duration::from_nanos(123_456_789));
        assert_eq!(time.duration_since(millis.0).unwrap(), Duration::from_nanos(456_789));
        assert_eq!(u64::from(UnixTime::<1>(UNIX_EPOCH - Duration::from_secs(5))), 0);
        for broken in ["-1", "1.5", "\"1\"", "null", "18446744073709551615"] {
            assert!(serde_json::from_str::<Seconds>(broken).is_err(), "{broken}");
        }
    }
}
