//! A provider that is a command: called with `present` or `cleanup`, the name of the record and its value.

use std::{
    io::{self, Read as _, Seek as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};

use super::DnsError;

/// How often it is looked whether the command has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What a command says beyond this is no use in a message.
const MAX_WORDS: usize = 500;

/// What is done to a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is added; others of the same name stay.
    Present,
    /// It is removed, and no other of the same name.
    Cleanup,
}

impl Action {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Present => "present",
            Self::Cleanup => "cleanup",
        }
    }
}

/// Runs the command on a thread for blocking calls. The value of a record is no secret: the world reads it from DNS.
pub async fn run(
    command: Vec<String>,
    action: Action,
    name: String,
    value: String,
    limit: Duration,
) -> Result<(), DnsError> {
    let work = move || run_now(&command, action, &name, &value, limit);
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(DnsError::Command),
        Err(error) => Err(DnsError::Command(error.to_string())),
    }
}

fn run_now(command: &[String], action: Action, name: &str, value: &str, limit: Duration) -> Result<(), String> {
    let Some((program, arguments)) = command.split_first() else { return Err("the command is empty".into()) };
    let what = format!("`{program} {}`", action.as_str());
    let failed = |error: io::Error| format!("{what}: {error}");
    // A file and not a pipe: nobody reads a pipe while the command is waited for.
    let mut words = tempfile::tempfile().map_err(failed)?;
    let mut child = Command::new(program)
        .args(arguments)
        .args([action.as_str(), name, value])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(words.try_clone().map_err(failed)?)
        // A group of its own, so that what the command has started ends with it.
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let until = Instant::now() + limit;
    let status = loop {
        match child.try_wait().map_err(failed)? {
            Some(status) => break status,
            None if Instant::now() >= until => {
                end(&mut child).map_err(failed)?;
                return Err(format!("{what} did not end within {} s", limit.as_secs()));
            }
            None => std::thread::sleep(LOOK_AGAIN),
        }
    };
    if status.success() {
        return Ok(());
    }
    let mut said = Vec::new();
    // What it said is only for the message.
    let _ = words.rewind().and_then(|()| words.read_to_end(&mut said));
    let said: String =
        String::from_utf8_lossy(&said).chars().filter(|c| !c.is_control() || *c == ' ').take(MAX_WORDS).collect();
    Err(format!("{what} failed ({status}): {}", said.trim()))
}

/// Kills the command and everything that it has started and not put into a group of its own.
fn end(child: &mut Child) -> io::Result<ExitStatus> {
    kill_process_group(Pid::from_child(child), Signal::KILL)?;
    child.wait()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Vec<String> {
        ["/bin/sh", "-c", script, "hook"].map(str::to_owned).to_vec()
    }

    async fn call(script: &str, limit: Duration) -> Result<(), DnsError> {
        run(shell(script), Action::Present, "_acme-challenge.a.example".into(), "value".into(), limit).await
    }

    #[tokio::test]
    async fn a_command_gets_three_words_and_its_failure_is_told() {
        let minute = Duration::from_secs(60);
        let right = r#"[ "$*" = "present _acme-challenge.a.example value" ]"#;
        assert!(call(right, minute).await.is_ok());
        let failed = call("echo no such zone >&2; exit 3", minute).await.unwrap_err().to_string();
        assert!(failed.contains("no such zone") && failed.contains('3'), "{failed}");
        let late = call("sleep 60", Duration::from_millis(100)).await.unwrap_err().to_string();
        assert!(late.contains("did not end"), "{late}");
        let none = run(vec!["/no/such".into()], Action::Cleanup, "a".into(), "b".into(), minute).await;
        assert!(none.unwrap_err().to_string().contains("/no/such"));
    }
    #[tokio::test]
    async fn what_a_late_command_has_started_ends_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let (pid, late) = (folder.path().join("pid"), folder.path().join("late"));
        let script = format!("(sleep 2; echo > {}) & echo $! > {}; wait", late.display(), pid.display());
        let told = call(&script, Duration::from_millis(500)).await.unwrap_err().to_string();
        assert!(told.contains("did not end"), "{told}");
        let pid = std::fs::read_to_string(pid).unwrap();
        // Whoever inherits it may take a moment to clear a dead process away.
        let state = || std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        for _ in 0..100 {
            if state().is_empty() || state().contains(") Z ") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it lives on: {}", state());
    }
}
