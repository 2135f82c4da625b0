//! Policy: what the proxy removes, adds or rejects on the request path. One file, one concern.
//!
//! A layer is a small value built with all it needs and called by `app/stack.rs`, which alone knows the order:
//!
//! ```text
//!   request_id > access_log > rescue > response_head >            (every request)
//!     access > basic_auth > forward_auth > respond | redirect | files > limit >          (by site and route)
//!       loop_detection > rtc_transports > compress > hop > forwarded > upstream
//! ```

pub mod access;
pub mod access_log;
pub mod basic_auth;
pub mod compress;
pub mod conditions;
pub mod cors;
pub mod edit_fields;
pub mod files;
pub mod forward_auth;
pub mod forwarded;
pub mod hop;
pub mod limit;
pub mod loop_detection;
pub mod redirect;
pub mod request_id;
pub mod rescue;
pub mod respond;
pub mod response_head;
pub mod rtc_transports;
