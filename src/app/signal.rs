//! Signals: SIGTERM and SIGINT drain, a second one or SIGQUIT ends the process at once, SIGHUP reloads. As PID 1 as well,
//! where a signal without a handler is ignored.

use std::io;

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// What the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, SIGINT.
    Stop,
    /// SIGQUIT.
    StopNow,
    /// SIGHUP.
    Reload,
}

/// The signals of this process.
pub struct Signals {
    term: Stream,
    int: Stream,
    quit: Stream,
    hup: Stream,
}

impl Signals {
    /// Takes them over from the system's defaults.
    ///
    /// # Errors
    /// The system refuses.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    /// The next one.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.term.recv() => Signal::Stop,
            _ = self.int.recv() => Signal::Stop,
            _ = self.quit.recv() => Signal::StopNow,
            _ = self.hup.recv() => Signal::Reload,
        }
    }
}
