//! Requests that come back to the edge that sent them (RFC 8586): an upstream that leads to our own listener, however many
//! hops lie between.

use std::sync::LazyLock;

use aws_lc_rs::rand;

use crate::{
    error::{Kind, ProxyError},
    message::{CDN_LOOP, Fields, Value},
};

/// The pseudonym of this process. Random, so that two edges in one chain, which is no loop, differ, and no client can make
/// us refuse the request of another.
static TOKEN: LazyLock<String> = LazyLock::new(|| {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).expect("the system has random bytes once it has started");
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("vestibule-{digits}")
});

/// Refuses a request that this process has sent.
///
/// # Errors
/// [`Kind::LoopDetected`].
pub fn check(fields: &Fields) -> Result<(), ProxyError> {
    // A member is an id, and perhaps parameters behind it (section 2).
    let id = |member: &[u8]| member.split(|b| *b == b';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
    if fields.items(CDN_LOOP).any(|member| id(member) == TOKEN.as_bytes()) {
        return Err(Kind::LoopDetected.into());
    }
    Ok(())
}

/// Adds our token to those that other hops have left, which stay.
pub fn announce(fields: &mut Fields) {
    fields.append(CDN_LOOP, Value::new(TOKEN.as_bytes()).expect("letters and digits are a valid value"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_token_is_a_loop() {
        let mut fields = Fields::from_iter([(CDN_LOOP, Value::from_static("other.example; v=1, vestibule-0"))]);
        assert!(check(&fields).is_ok());
        announce(&mut fields);
        assert_eq!(check(&fields).unwrap_err().kind, Kind::LoopDetected);
        assert_eq!(fields.items(CDN_LOOP).count(), 3, "the others stay");
        let decorated = format!("a, {} ; x=\"y,z\" , b", TOKEN.to_uppercase());
        let fields = Fields::from_iter([(CDN_LOOP, Value::new(decorated.as_bytes()).unwrap())]);
        assert!(check(&fields).is_err());
    }
}
