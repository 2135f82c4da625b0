//! Certificates from PEM files that another program renews: watched, and the last good pair kept.

use std::{
    fs, io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{
    sync::oneshot,
    time::{MissedTickBehavior, interval},
};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::{CertError, Certificate, CertificateTask, Store};
use crate::{config::plan::KeyPairFiles, error::chain};

/// How often the files are looked at. Reading two small files costs nothing, and sees every way of replacing them: in
/// place, by rename, through a link of another link.
const LOOK: Duration = Duration::from_secs(2);

/// Which of the files is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The only pair, whatever it is for: the operator has given it to this site.
    Given,
    /// The pair that is for the name and ends last.
    Covering,
}

/// Starts the task of a name whose certificate is in files; the receiver is told when they have been read once. Reading is
/// done on a thread for blocking calls: the files may be on a network.
pub fn spawn(
    task: CertificateTask,
    store: Arc<Store>,
    pairs: Vec<KeyPairFiles>,
    choice: Choice,
    tasks: &TaskTracker,
) -> oneshot::Receiver<()> {
    let (sender, loaded) = oneshot::channel();
    let mut watch = Watch { task, pairs, choice, seen: None };
    let stop = watch.task.stop.clone();
    tasks.spawn(stop.run_until_cancelled_owned(async move {
        let mut sender = Some(sender);
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            watch = store
                .run(|_| {
                    watch.reload_if_changed();
                    watch
                })
                .await;
            // Nobody waits for it after a while.
            let _ = sender.take().map(|sender| sender.send(()));
        }
    }));
    loaded
}

/// What stood in the two files of each pair, or why they could not be read.
type FileContents = Vec<Result<(Vec<u8>, Vec<u8>), io::ErrorKind>>;

struct Watch {
    task: CertificateTask,
    pairs: Vec<KeyPairFiles>,
    choice: Choice,
    seen: Option<FileContents>,
}

impl Watch {
    /// Reads the files, and does something only where they are not what they were.
    fn reload_if_changed(&mut self) {
        let read = |path: &Path| read(path).map_err(|error| error.kind());
        let both = |pair: &KeyPairFiles| read(&pair.cert).and_then(|cert| Ok((cert, read(&pair.key)?)));
        let now: FileContents = self.pairs.iter().map(both).collect();
        if self.seen.as_ref() == Some(&now) {
            return;
        }
        let renewed = self.seen.replace(now).is_some();
        let host = &*self.task.host;
        match choose(&self.pairs, host, self.choice) {
            Ok((pair, certificate)) => {
                self.task.install(&certificate);
                if renewed {
                    info!(site = host, file = %pair.cert.display(), "certificate loaded");
                }
                let faults = certificate.faults(host, self.task.clock.now());
                for fault in &faults {
                    warn!(site = host, file = %pair.cert.display(), fix = fault.cause.fix(), "{}", fault.text);
                }
                if let Some(first) = faults.first() {
                    let fix = first.cause.fix().to_owned();
                    let texts: Vec<_> = faults.iter().map(|fault| fault.text.as_str()).collect();
                    self.task.note(1, Some(texts.join("; ")), Some(fix));
                }
            }
            Err(error) => {
                let kept = if self.task.resolver.knows(host) { "the last good one stays" } else { "none is served" };
                warn!(site = host, error = chain(&error), fix = error.cause().fix(), "certificate not loaded, {kept}");
                self.task.failed(&error);
            }
        }
    }
}

/// The pair to serve for a host.
fn choose<'a>(
    pairs: &'a [KeyPairFiles],
    host: &str,
    choice: Choice,
) -> Result<(&'a KeyPairFiles, Certificate), CertError> {
    let mut failed = None;
    let mut best: Option<(&KeyPairFiles, Certificate)> = None;
    for pair in pairs {
        match load(&pair.cert, &pair.key) {
            Ok(certificate) if choice == Choice::Given || certificate.covers(host) => {
                if best.as_ref().is_none_or(|(_, other)| other.not_after < certificate.not_after) {
                    best = Some((pair, certificate));
                }
            }
            Ok(_) => {}
            Err(error) => failed = Some(error),
        }
    }
    best.ok_or_else(|| failed.unwrap_or_else(|| CertError::NotCovered(host.to_owned())))
}

/// What is wrong with the certificate in files that would be served for a host, in words.
#[must_use]
pub fn inspect(pairs: &[KeyPairFiles], host: &str, now: SystemTime) -> Vec<String> {
    let choice = if pairs.len() == 1 { Choice::Given } else { Choice::Covering };
    match choose(pairs, host, choice) {
        Ok((pair, certificate)) => {
            let file = pair.cert.display();
            certificate.faults(host, now).into_iter().map(|fault| format!("{file}: {}", fault.text)).collect()
        }
        Err(error) => vec![chain(&error)],
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

    /// A CA and a certificate of it for `names`, without its chain.
    fn issued(names: &[&str], end: i32) -> (String, String, String) {
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        ca.distinguished_name.push(rcgen::DnType::CommonName, "a CA");
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params =
            rcgen::CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        params.not_after = rcgen::date_time_ymd(end, 1, 1);
        let leaf = params.signed_by(&key, &rcgen::Issuer::new(ca, ca_key)).unwrap().pem();
        (leaf, ca_pem, key.serialize_pem())
    }

    #[test]
    fn what_is_wrong_with_a_certificate_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
        let files = [KeyPairFiles { cert: cert.clone(), key: key.clone() }];
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let faults = |leaf: &str, private: &str, host: &str| {
            fs::write(&cert, leaf).unwrap();
            fs::write(&key, private).unwrap();
            inspect(&files, host, now).join("\n")
        };
        let (leaf, ca, private) = issued(&["a.example", "*.b.example"], 2040);
        let whole = format!("{leaf}{ca}");
        assert_eq!(faults(&whole, &private, "a.example"), "");
        assert_eq!(faults(&whole, &private, "x.b.example"), "");
        assert!(faults(&whole, &private, "c.example").contains("is not for c.example"));
        assert!(faults(&whole, &private, "x.y.b.example").contains("is not for"));
        assert!(faults(&leaf, &private, "a.example").contains("without its chain"));
        let (old, ca, old_key) = issued(&["a.example"], 2020);
        assert!(faults(&format!("{old}{ca}"), &old_key, "a.example").contains("has expired at 2020-01-01"));
        assert!(faults(&whole, &old_key, "a.example").contains("does not fit"));
        let itself = pair();
        assert_eq!(faults(&itself.0, &itself.1, "a.example"), "", "a certificate of its own needs no chain");
    }

    #[test]
    fn of_several_files_the_one_for_the_name_that_ends_last_is_served() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, names: &[&str], end| {
            let (leaf, ca, key) = issued(names, end);
            let pair = KeyPairFiles { cert: folder.path().join(name), key: folder.path().join(format!("{name}.key")) };
            fs::write(&pair.cert, format!("{leaf}{ca}")).unwrap();
            fs::write(&pair.key, key).unwrap();
            pair
        };
        let pairs =
            [write("a", &["a.example"], 2040), write("wild", &["*.example"], 2041), write("b", &["b.test"], 2050)];
        let chosen = |host| choose(&pairs, host, Choice::Covering).map(|(pair, _)| pair.cert.clone());
        assert_eq!(chosen("a.example").unwrap(), pairs[1].cert);
        assert_eq!(chosen("b.test").unwrap(), pairs[2].cert);
        assert!(matches!(chosen("c.test"), Err(CertError::NotCovered(_))));
    }
}
