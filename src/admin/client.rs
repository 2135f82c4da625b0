//! Asks a running edge; for the commands that do. Blocking: they do nothing else.

use std::{
    io::{self, Read as _},
    net::TcpStream,
    os::unix::net::UnixStream,
    time::Duration,
};

use crate::config::plan::AdminListen;

/// Longer than the door takes at most.
const PATIENCE: Duration = Duration::from_secs(35);

/// No page of ours is as long, and nobody knows who else may listen there.
const LONGEST: u64 = 64 << 20;

/// There is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens.
    #[error("no edge answers at {0}")]
    Away(String, #[source] io::Error),
    /// Somebody else listens.
    #[error("what answers at {0} is no edge")]
    Stranger(String),
}

/// Asks for a page; its status and body.
///
/// # Errors
/// See [`CallError`].
pub fn call(listen: &AdminListen, method: &str, path: &str) -> Result<(u16, String), CallError> {
    let question = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    let (place, answer) = match listen {
        AdminListen::Tcp(addr) => {
            let stream = TcpStream::connect_timeout(addr, Duration::from_secs(5));
            (
                addr.to_string(),
                stream.and_then(|stream| {
                    stream.set_read_timeout(Some(PATIENCE))?;
                    ask(stream, &question)
                }),
            )
        }
        AdminListen::Unix(path) => {
            let stream = UnixStream::connect(path);
            (
                path.display().to_string(),
                stream.and_then(|stream| {
                    stream.set_read_timeout(Some(PATIENCE))?;
                    ask(stream, &question)
                }),
            )
        }
    };
    let answer = answer.map_err(|error| CallError::Away(place.clone(), error))?;
    let answer = String::from_utf8(answer).map_err(|_| CallError::Stranger(place.clone()))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| CallError::Stranger(place.clone()))?;
    // No page of ours is one for browsers, and nobody wants to read one here.
    if head.to_ascii_lowercase().contains("\r\ncontent-type: text/html") {
        return Err(CallError::Stranger(place));
    }
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.map(|status| (status, body.to_owned())).ok_or(CallError::Stranger(place))
}

fn ask(mut stream: impl io::Read + io::Write, question: &str) -> io::Result<Vec<u8>> {
    stream.write_all(question.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer)?;
    Ok(answer)
}
