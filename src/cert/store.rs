//! What must survive a restart, in one folder: a file for each thing, written so that there is always a whole one.

use std::{
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::sleep;

/// How often a lock is tried that another process or task holds.
const LOCK_AGAIN: Duration = Duration::from_millis(200);

/// A temporary file older than this is left over from a process that was killed while it wrote: a write takes
/// milliseconds, on a slow network file system seconds.
const LEFT_OVER: Duration = Duration::from_secs(3600);

/// The folder.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

/// The storage failed.
#[derive(Debug, thiserror::Error)]
#[error("the storage cannot {what} {path}")]
pub struct StoreError {
    what: &'static str,
    path: String,
    #[source]
    source: io::Error,
}

impl Store {
    /// A folder, which need not exist yet.
    #[must_use]
    pub const fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Reads a file; `None` if there is none.
    ///
    /// # Errors
    /// There is one, and it cannot be read.
    pub fn load(&self, name: &str) -> Result<Option<String>, StoreError> {
        let path = self.dir.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(failed("read", &path, source)),
        }
    }

    /// Writes a file, as a whole or not at all: beside it, to the disk, then over it (rename(2) is atomic), then the
    /// folder to the disk. Nobody but the owner may read it.
    ///
    /// # Errors
    /// The folder cannot be written, or the disk is full; what was there stays.
    pub fn save(&self, name: &str, text: &str) -> Result<(), StoreError> {
        let path = self.dir.join(name);
        let folder = path.parent().unwrap_or(&self.dir);
        self.make(folder)?;
        let file_name = path.file_name().unwrap_or_default().to_string_lossy();
        write_beside(folder, &file_name, text)
            .and_then(|written| written.persist(&path).map_err(|error| error.error))
            .map_err(|source| failed("write", &path, source))?;
        // Of processes that were killed while they wrote.
        remove_files(folder, &temporary_prefix(&file_name), LEFT_OVER);
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| failed("write", folder, source))
    }

    /// Removes a file; one that is not there is no error.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.dir.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path, error)),
            _ => Ok(()),
        }
    }

    /// Removes the files of a folder that were not written for so long.
    pub fn remove_older(&self, folder: &str, age: Duration) {
        remove_files(&self.dir.join(folder), "", age);
    }

    /// Runs storage work on a thread for blocking calls, so that a file system that hangs holds up neither signals nor
    /// the admin listener nor a handshake.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> T + Send + 'static) -> T {
        let store = self.clone();
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is shutting down, and drops this future next.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// Moves a file out of the way that is of no use any more; where it is now. `why` becomes part of its name.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn set_aside(&self, name: &str, why: &str) -> Result<PathBuf, StoreError> {
        let path = self.dir.join(name);
        let mut names = (1_u32..).map(|n| self.dir.join(format!("{name}.{why}-{n}")));
        let aside = names.find(|path| !path.exists()).unwrap_or_else(|| self.dir.join(format!("{name}.{why}")));
        fs::rename(&path, &aside).map_err(|source| failed("move", &path, source))?;
        Ok(aside)
    }

    /// Takes a lock that dies with its holder. Blocks while another holds it; for what takes a moment.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn lock(&self, name: &str) -> Result<File, StoreError> {
        let (file, path) = self.lock_file(name)?;
        file.lock().map_err(|source| failed("lock", &path, source))?;
        Ok(file)
    }

    /// Takes the lock for work that takes long. Asks again and again instead of waiting in the kernel: a thread that
    /// waits there cannot be called back when the process ends.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub async fn lock_patiently(&self, name: &str) -> Result<File, StoreError> {
        loop {
            let name = name.to_owned();
            if let Some(file) = self.run(move |store| store.try_lock(&name)).await? {
                return Ok(file);
            }
            sleep(LOCK_AGAIN).await;
        }
    }

    fn try_lock(&self, name: &str) -> Result<Option<File>, StoreError> {
        let (file, path) = self.lock_file(name)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(failed("lock", &path, source)),
        }
    }

    fn lock_file(&self, name: &str) -> Result<(File, PathBuf), StoreError> {
        self.make(&self.dir)?;
        let path = self.dir.join(format!(".{name}.lock"));
        let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        Ok((open.map_err(|source| failed("lock", &path, source))?, path))
    }

    /// Tests whether the folder can be written.
    ///
    /// # Errors
    /// It cannot.
    pub fn probe(&self) -> Result<(), StoreError> {
        self.make(&self.dir)?;
        write_beside(&self.dir, "probe", "probe")
            .and_then(tempfile::NamedTempFile::close)
            .map_err(|source| failed("write", &self.dir, source))
    }

    fn make(&self, folder: &Path) -> Result<(), StoreError> {
        if folder.is_dir() {
            return Ok(());
        }
        let made = fs::create_dir_all(folder).and_then(|()| fs::set_permissions(folder, Permissions::from_mode(0o700)));
        made.map_err(|source| failed("create", folder, source))
    }
}

/// Writes a temporary file to the disk. Its name is random: several processes share the storage, and in containers all
/// of them have the process id 1.
fn write_beside(folder: &Path, file_name: &str, text: &str) -> io::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::Builder::new().prefix(&temporary_prefix(file_name)).tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    Ok(file)
}

fn temporary_prefix(file_name: &str) -> String {
    format!(".{file_name}.tmp-")
}

/// Removes the files of a folder that begin with `prefix` and were not written for so long. They only take room, so that
/// an error is no matter.
fn remove_files(folder: &Path, prefix: &str, age: Duration) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let is_old = |entry: &fs::DirEntry| {
        let written = entry.metadata().ok().and_then(|metadata| metadata.modified().ok()?.elapsed().ok());
        entry.file_name().to_string_lossy().starts_with(prefix) && written.is_some_and(|since| since > age)
    };
    for entry in entries.flatten().filter(is_old) {
        let _ = fs::remove_file(entry.path());
    }
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError { what, path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_whole_private_and_survive() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("state"));
        assert_eq!(store.load("a/b.json").unwrap(), None);
        store.save("a/b.json", "one").unwrap();
        store.save("a/b.json", "two").unwrap();
        assert_eq!(store.load("a/b.json").unwrap().unwrap(), "two");
        let mode = |path: &str| fs::metadata(folder.path().join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("state/a"), mode("state/a/b.json")), (0o700, 0o600));
        assert_eq!(fs::read_dir(folder.path().join("state/a")).unwrap().count(), 1, "nothing is left beside it");
        let aside = store.set_aside("a/b.json", "damaged").unwrap();
        assert_eq!((store.load("a/b.json").unwrap(), fs::read_to_string(aside).unwrap().as_str()), (None, "two"));
    }

    #[test]
    fn writers_do_not_meet_and_what_a_kill_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().to_owned());
        // What a process with the same number left, an hour ago and just now.
        let (old, new) = (folder.path().join(".a.tmp-old"), folder.path().join(".a.tmp-new"));
        fs::write(&old, "half").unwrap();
        fs::write(&new, "half").unwrap();
        File::options().write(true).open(&old).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let store = &store;
                scope.spawn(move || (0..25).for_each(|_| store.save("a", &writer.to_string().repeat(100)).unwrap()));
            }
        });
        let text = store.load("a").unwrap().unwrap();
        assert!(text.len() == 100 && text.bytes().all(|b| b == text.as_bytes()[0]), "{text}");
        assert!(!old.exists() && new.exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Store::new(file.join("state")).save("a", "x").unwrap_err();
        assert!(error.to_string().contains("file/state"), "{error}");
    }
}
