//! The program as a whole: starts the modules, connects them, and keeps them in step with the configuration.
//!
//! One control thread (the first) looks after certificates, the admin server, signals and reloads; the workers do
//! nothing but serve.

mod checkup;
mod control;
mod edge;
mod guard;
mod handlers;
mod pipeline;
mod rtc_probe;
mod signal;
mod stack;
mod takeover;
mod worker;

pub use checkup::{ProbeOverrides, Redirection, checkup};
pub use control::{Outcome, run};
pub use edge::{Edge, Start, StartError};
pub use pipeline::ListenerKind;
pub(crate) use stack::matcher;
