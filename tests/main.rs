//! The black-box tests of the program: one binary, so that one link serves them all.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot go on says so and stops")]

mod support;

mod admin;
mod attacks;
mod cli;
mod compression;
mod config;
mod errors;
mod files;
mod forwarding;
mod http2;
mod import_caddy;
mod life;
mod matrix;
mod pressure;
mod progress;
mod reload;
mod routes;
mod semantics;
mod service;
mod shapes;
mod smuggling;
mod soak;
mod stream;
mod streaming;
mod tls;
mod uploads;
mod upstream_tls;
mod websocket;
