//! What must survive a restart, in one folder: a file for each thing, written so that there is always a whole one.

use std::{
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::sleep;

/// How often a lock is tried that somebody else has.
const LOCK_AGAIN: Duration = Duration::from_millis(200);

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
        let beside = folder.join(format!(".{file_name}.{}", std::process::id()));
        write_whole(&beside, text).and_then(|()| fs::rename(&beside, &path)).map_err(|source| {
            // What is left of the attempt only takes room.
            let _ = fs::remove_file(&beside);
            failed("write", &path, source)
        })?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| failed("write", folder, source))
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

    /// A lock that dies with its holder. Blocks while somebody else has it; for what takes a moment.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn lock(&self, name: &str) -> Result<File, StoreError> {
        let (file, path) = self.lock_file(name)?;
        file.lock().map_err(|source| failed("lock", &path, source))?;
        Ok(file)
    }

    /// The same for what takes long. Asks again and again instead of waiting in the kernel: a thread that waits there
    /// cannot be called back when the process ends.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub async fn lock_patiently(&self, name: &str) -> Result<File, StoreError> {
        let (file, path) = self.lock_file(name)?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => sleep(LOCK_AGAIN).await,
                Err(TryLockError::Error(source)) => return Err(failed("lock", &path, source)),
            }
        }
    }

    fn lock_file(&self, name: &str) -> Result<(File, PathBuf), StoreError> {
        self.make(&self.dir)?;
        let path = self.dir.join(format!(".{name}.lock"));
        let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        Ok((open.map_err(|source| failed("lock", &path, source))?, path))
    }

    /// Tries whether anything can be kept here.
    ///
    /// # Errors
    /// It cannot.
    pub fn probe(&self) -> Result<(), StoreError> {
        let path = self.dir.join(format!(".probe.{}", std::process::id()));
        self.make(&self.dir)?;
        write_whole(&path, "probe")
            .and_then(|()| fs::remove_file(&path))
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

fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    // Left over by a process that was killed in the middle, which had our number.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
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
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Store::new(file.join("state")).save("a", "x").unwrap_err();
        assert!(error.to_string().contains("file/state"), "{error}");
    }
}
