//! Two processes of one configuration: the second one finds the first by `admin.listen`, and refuses to start or takes over.

use std::time::Duration;

use http::Method;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::edge::{Start, StartError};
use crate::{
    admin::{self, CallError},
    config::plan::AdminListen,
};

/// How long a running process may take to say that it runs. It is on this machine.
const ANSWER: Duration = Duration::from_secs(2);

/// How long the admin address may stay taken after a takeover, and how often it is tried.
pub const ADMIN_TRIES: u32 = 20;
pub const ADMIN_PAUSE: Duration = Duration::from_millis(25);

/// Finds a running process, and refuses to start beside it unless it is to be taken over from. Whether there is one.
///
/// # Errors
/// One is running, or a takeover has no way to reach it.
pub async fn find(listen: Option<&AdminListen>, start: Start) -> Result<bool, StartError> {
    let Some(listen) = listen else {
        return if start == Start::Takeover { Err(StartError::NoWayToTakeOver) } else { Ok(false) };
    };
    let Ok(answer) = timeout(ANSWER, admin::call(listen, Method::GET, "/status")).await else {
        warn!(admin = %place(listen), "a process listens there and does not answer");
        return Ok(false);
    };
    let text = match answer {
        Ok((200, text)) => text,
        // Another program: whatever is wrong with that shows when the address is opened.
        Ok(_) | Err(CallError::Away(..) | CallError::Stranger(_)) => {
            if start == Start::Takeover {
                info!(admin = %place(listen), "no process is running that could be taken over from");
            }
            return Ok(false);
        }
    };
    if start == Start::Takeover {
        return Ok(true);
    }
    let status: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let process = status["process"].as_u64().map(|id| format!(" (process {id})")).unwrap_or_default();
    Err(StartError::AlreadyRunning { process, place: place(listen) })
}

/// Makes the running process close its listeners and its admin address, and drain.
///
/// # Errors
/// It does not.
pub async fn take_over(listen: &AdminListen) -> Result<(), StartError> {
    let refused = |source: crate::error::BoxError| StartError::Takeover { place: place(listen), source };
    match admin::call(listen, Method::POST, "/takeover").await {
        Ok((200, _)) => {
            info!(admin = %place(listen), "the addresses are taken over; the process that had them drains");
            Ok(())
        }
        Ok((status, text)) => Err(refused(format!("{status}: {}", text.trim_end()).into())),
        // It has ended by itself meanwhile, which is as good.
        Err(CallError::Away(..)) => Ok(()),
        Err(error) => Err(refused(error.into())),
    }
}

/// Tries until it works, for a moment: the process that was taken over from may still be about to close.
///
/// # Errors
/// The last one.
pub async fn insist<T, E>(mut attempt: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    for _ in 1..ADMIN_TRIES {
        if let Ok(done) = attempt() {
            return Ok(done);
        }
        sleep(ADMIN_PAUSE).await;
    }
    attempt()
}

/// An admin address as the configuration has it.
pub fn place(listen: &AdminListen) -> String {
    match listen {
        AdminListen::Tcp(addr) => addr.to_string(),
        AdminListen::Unix(path) => path.display().to_string(),
    }
}
