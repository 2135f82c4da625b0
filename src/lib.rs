//! vestibule: the TLS reverse proxy of a self-hosted Matrix homeserver with Element Call.
//!
//! ```text
//!   composition   cli ── app            knows every room; holds the order of things
//!                  │
//!   rooms          listen   tls   serve   stream   route   layer   upstream   (the road: a request walks them left to right)
//!                  cert     admin  doctor                                  (beside the road)
//!                  │
//!   instruments    client                                                   (one way to the outside each, for what is beside the road)
//!                  │
//!   vocabulary     clock  error  message  conn  drain  wire  config  telemetry   (words every room may use; no I/O except telemetry's output)
//! ```
//!
//! Why there are two HTTP implementations: on the road we have our own (`wire`, `serve`, `upstream`), because it was measured:
//! no task and no channel for a connection to a service costs 28 % less CPU than a client that has them, 10 allocations an
//! exchange instead of 27, and our HTTP/2 does a small answer with a quarter less work. Beside the road (the ACME client,
//! doctor, the demo, the commands, the admin server) those microseconds do not matter and a well-kept library does: hyper,
//! hyper-util and tower. It also makes the prober independent of the probed: what doctor finds wrong, it does not share.
//!
//! Invariants, held by `tests/tidy.rs` where a program can hold them:
//! - No room imports another room. Only `app` knows the order.
//! - After `config::load` returns, nothing reads a string from the file again.
//! - Every task is tracked. On SIGTERM everything is served until nothing in flight is waited for; then it ends at once.
//! - `accept` never fails; a listener ends only when told to.
//! - The request path and query are forwarded byte for byte (Synapse asks for this).
//! - No total timeout on a request; only heads, handshakes and silence are timed.
//! - A request sees exactly one generation of the configuration; a failed reload changes nothing.
//! - Only `layer/rescue.rs` turns an error into a status. Only `cli` prints.
//! - Secrets (keys, tokens, Authorization, Cookie, access_token in queries) never reach a log.

pub mod cli;

pub mod app;

pub mod layer;
pub mod listen;
pub mod route;
pub mod serve;
pub mod stream;
pub mod tls;
pub mod upstream;

pub mod admin;
pub mod cert;
pub mod doctor;

pub mod client;

pub mod clock;
pub mod config;
pub mod conn;
pub mod drain;
pub mod error;
pub mod message;
pub mod telemetry;
pub mod wire;
