//! vestibule: the TLS reverse proxy of a self-hosted Matrix homeserver with Element Call.
//!
//! ```text
//!   composition   cli ── app            composes the modules, in order
//!                  │
//!   modules        listen   tls   serve   stream   route   layer   upstream   (the request path, from left to right)
//!                  cert     admin  doctor                                  (beside the request path)
//!                  │
//!   clients        client                                                   (outgoing requests of what is beside the request path)
//!                  │
//!   shared         clock  error  message  conn  drain  wire  config  telemetry   (types for every module; no I/O except the output of telemetry)
//! ```
//!
//! Why there are two HTTP implementations: the request path has its own (`wire`, `serve`, `upstream`), for measured reasons:
//! no task and no channel for a connection to a service costs 28 % less CPU than a client that has them, 10 allocations an
//! exchange instead of 27, and our HTTP/2 does a small answer with a quarter less work. Beside the request path (the ACME client,
//! doctor, the demo, the commands, the admin server) those microseconds do not matter and a well-kept library does: hyper,
//! hyper-util and tower. It also makes doctor independent of the code that it tests.
//!
//! Invariants, held by `tests/tidy.rs` where a program can hold them:
//! - No module imports another one of its row. Only `app` knows the order.
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
