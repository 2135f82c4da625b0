//! Where the log goes: standard error, or a file that can be opened again after it was rotated.

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal as _, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Rights of a new file: a log has the addresses of clients in it.
const MODE: u32 = 0o640;

/// Asks for the file to be opened again. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Reopen(Arc<AtomicBool>);

impl Reopen {
    /// Asks; the next write does it.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The writer behind the log.
pub struct Output {
    file: Option<(PathBuf, File)>,
    reopen: Reopen,
}

impl Output {
    /// Opens a file, or standard error where none is named or it cannot be opened; then with the reason.
    pub fn open(path: Option<&Path>) -> (Self, Reopen, Option<io::Error>) {
        let reopen = Reopen::default();
        let (file, problem) = match path.map(|path| (path, append(path))) {
            None => (None, None),
            Some((path, Ok(file))) => (Some((path.to_owned(), file)), None),
            Some((_, Err(error))) => (None, Some(error)),
        };
        (Self { file, reopen: reopen.clone() }, reopen, problem)
    }

    /// Whether a person reads along.
    pub fn is_terminal(&self) -> bool {
        self.file.is_none() && io::stderr().is_terminal()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some((path, file)) = &mut self.file else { return io::stderr().write(bytes) };
        if self.reopen.0.swap(false, Ordering::Relaxed) {
            // Where the new file cannot be had, the lines go on to the old one.
            match append(path) {
                Ok(new) => *file = new,
                Err(error) => writeln!(file, "{path:?} cannot be opened again: {error}")?,
            }
        }
        file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.file {
            Some((_, file)) => file.flush(),
            None => io::stderr().flush(),
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(MODE).open(path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_rotated_file_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("log"), folder.path().join("log.1"));
        let (mut output, reopen, problem) = Output::open(Some(&path));
        assert!(problem.is_none());
        output.write_all(b"one\n").unwrap();
        fs::rename(&path, &old).unwrap();
        output.write_all(b"two\n").unwrap();
        reopen.request();
        output.write_all(b"three\n").unwrap();
        assert_eq!(fs::read_to_string(&old).unwrap(), "one\ntwo\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_told() {
        assert!(Output::open(Some(Path::new("/nonexistent/log"))).2.is_some());
    }
}
