//! Certificates from PEM files that somebody else renews: watched, and the last good pair kept.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::{CertError, Certificate, CertificateTask};
use crate::error::chain;

/// How often the files are looked at. Reading two small files costs nothing, and sees every way of replacing them: in
/// place, by rename, through a link of another link.
const LOOK: Duration = Duration::from_secs(2);

/// Keeps a name served from its files. The first look is taken at once, so that a start does not refuse its first client.
pub fn spawn(task: CertificateTask, cert: PathBuf, key: PathBuf, tasks: &TaskTracker) {
    let mut watch = Watch { task, cert, key, seen: None };
    watch.reload_if_changed();
    tasks.spawn(async move {
        let stop = watch.task.stop.clone();
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            watch.reload_if_changed();
        }
    });
}

/// What stood in the two files, or why they could not be read.
type FileContents = Result<(Vec<u8>, Vec<u8>), io::ErrorKind>;

struct Watch {
    task: CertificateTask,
    cert: PathBuf,
    key: PathBuf,
    seen: Option<FileContents>,
}

impl Watch {
    /// Reads the files, and does something only where they are not what they were.
    fn reload_if_changed(&mut self) {
        let read = |path: &Path| read(path).map_err(|error| error.kind());
        let now = read(&self.cert).and_then(|cert| Ok((cert, read(&self.key)?)));
        if self.seen.as_ref() == Some(&now) {
            return;
        }
        let renewed = self.seen.is_some();
        self.seen = Some(now);
        match load(&self.cert, &self.key) {
            Ok(certificate) => {
                self.task.install(&certificate);
                if certificate.not_after <= self.task.clock.now() {
                    warn!(site = &*self.task.host, file = %self.cert.display(), "the certificate has expired");
                } else if renewed {
                    info!(site = &*self.task.host, file = %self.cert.display(), "certificate loaded");
                }
            }
            Err(error) => {
                let kept = if self.task.resolver.knows(&self.task.host) {
                    "the last good one stays"
                } else {
                    "none is served"
                };
                warn!(site = &*self.task.host, error = chain(&error), "certificate not loaded, {kept}");
                self.task.failed(&error);
            }
        }
    }
}

/// Reads a chain and its key.
pub fn load(cert: &Path, key: &Path) -> Result<Certificate, CertError> {
    let read = |path: &Path| read(path).map_err(|source| CertError::Read { path: path.display().to_string(), source });
    let pem = |path: &Path, what| CertError::Pem { path: path.display().to_string(), what };
    let certs: Vec<_> =
        CertificateDer::pem_slice_iter(&read(cert)?).collect::<Result<_, _>>().map_err(|_| pem(cert, "certificate"))?;
    if certs.is_empty() {
        return Err(pem(cert, "certificate"));
    }
    let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| pem(key, "key"))?;
    Certificate::new(certs, private)
}

/// Reads a file, and only that: a pipe would be waited for, and all that waits for us with it.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is no regular file"));
    }
    fs::read(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec!["a.example".into()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_pair_is_loaded_and_a_mismatch_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
        assert!(matches!(load(&cert, &key), Err(CertError::Read { .. })));
        let (mine, other) = (pair(), pair());
        fs::write(&cert, &mine.0).unwrap();
        fs::write(&key, &mine.1).unwrap();
        assert!(load(&cert, &key).is_ok());
        fs::write(&key, &other.1).unwrap();
        assert!(matches!(load(&cert, &key), Err(CertError::Mismatch(_))));
        fs::write(&key, "no key").unwrap();
        assert!(matches!(load(&cert, &key), Err(CertError::Pem { what: "key", .. })));
        fs::remove_file(&key).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&key).status().unwrap().success());
        assert!(matches!(load(&cert, &key), Err(CertError::Read { .. })), "nobody waits for a pipe");
    }
}
