//! TLS to servers with settings of their own: other roots, another name, no verification, a client certificate.

use std::{
    collections::HashMap,
    fs, io,
    path::Path,
    sync::{Arc, LazyLock},
};

use rustls::{
    CertificateError, ClientConfig, Error,
    client::{WebPkiServerVerifier, verify_server_name},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName, pem::PemObject as _},
    server::ParsedCertificate,
    sign::{CertifiedKey, SingleCertAndKey},
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _, time::ASN1Time};

use super::{
    Roots, RootsError,
    verifier::{Presented, Rule, Verifier},
};
use crate::config::plan::{KeyPairFiles, UpstreamTls};

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsClientError {
    /// A file cannot be read.
    #[error("{path} cannot be read")]
    Read {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file has no certificate, or no key.
    #[error("there is no {what} in {path}")]
    Pem {
        /// Which.
        path: String,
        /// What is missing.
        what: &'static str,
    },
    /// A root cannot be used.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// A key does not fit its certificate.
    #[error("the key in {path} does not fit its certificate")]
    Mismatch {
        /// The file of the key.
        path: String,
        /// Why.
        #[source]
        source: Error,
    },
    /// The name cannot be verified.
    #[error("server_name")]
    Name(#[from] InvalidDnsNameError),
}

/// The clients of a plan, by their settings.
#[derive(Default)]
pub struct TlsClients(HashMap<UpstreamTls, TlsClient>);

impl TlsClients {
    /// Reads the files that the settings name.
    ///
    /// # Errors
    /// One cannot be used.
    pub fn load<'a>(settings: impl Iterator<Item = &'a UpstreamTls>, system: &Roots) -> Result<Self, TlsClientError> {
        let client = |settings: &UpstreamTls| Ok((settings.clone(), TlsClient::load(settings, system)?));
        settings.map(client).collect::<Result<_, _>>().map(Self)
    }

    /// The client with these settings.
    #[must_use]
    pub fn get(&self, settings: &UpstreamTls) -> Option<TlsClient> {
        self.0.get(settings).cloned()
    }
}

/// Made when it is needed first: the system's roots take their time.
type LazyConfig = LazyLock<Arc<ClientConfig>, Box<dyn FnOnce() -> Arc<ClientConfig> + Send>>;

/// A client of TLS. Cheap to clone.
#[derive(Clone)]
pub struct TlsClient {
    name: Option<ServerName<'static>>,
    http1: Arc<LazyConfig>,
}

impl TlsClient {
    /// Reads the files that the settings name; `system` are the roots where they name none.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn load(settings: &UpstreamTls, system: &Roots) -> Result<Self, TlsClientError> {
        let (roots, listed) = match &settings.ca_file {
            Some(path) => roots(path)?,
            None => (system.clone(), Vec::new()),
        };
        let key = settings.client_certificate.as_ref().map(key).transpose()?;
        let name = settings.server_name.clone().map(ServerName::try_from).transpose()?;
        let verify = settings.verify;
        let http1 = LazyConfig::new(Box::new(move || Arc::new(config(&roots, listed, verify, key))));
        Ok(Self { name, http1: Arc::new(http1) })
    }

    /// The configuration for HTTP/1.1.
    #[must_use]
    pub fn http1(&self) -> &Arc<ClientConfig> {
        &self.http1
    }

    /// The name to ask for and to verify, where it is not that of the server.
    #[must_use]
    pub const fn name(&self) -> Option<&ServerName<'static>> {
        self.name.as_ref()
    }
}

fn config(
    roots: &Roots,
    listed: Vec<CertificateDer<'static>>,
    verify: bool,
    key: Option<CertifiedKey>,
) -> ClientConfig {
    // The system's are not read where nothing is verified.
    let roots = if verify { roots.clone() } else { Roots::none() };
    let mut config = ClientConfig::clone(roots.http1());
    // A session of another configuration would be resumed without asking anew who the server is.
    config.resumption = rustls::client::Resumption::default();
    let provider = config.crypto_provider().clone();
    if !verify {
        config.dangerous().set_certificate_verifier(Arc::new(Verifier { rule: AnyCertificate, provider }));
    } else if !listed.is_empty() {
        let rule = OwnRoots::new(&roots, listed, provider.clone());
        config.dangerous().set_certificate_verifier(Arc::new(Verifier { rule, provider }));
    }
    if let Some(key) = key {
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(key));
    }
    config
}

/// The roots in a file, and its certificates.
fn roots(path: &Path) -> Result<(Roots, Vec<CertificateDer<'static>>), TlsClientError> {
    let pem = read(path)?;
    let roots = Roots::of_pem(&pem, &path.display().to_string())?;
    let listed: Vec<_> = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).collect();
    if listed.is_empty() {
        return Err(TlsClientError::Pem { path: path.display().to_string(), what: "certificate" });
    }
    Ok((roots, listed))
}

fn key(files: &KeyPairFiles) -> Result<CertifiedKey, TlsClientError> {
    let none = |path: &Path, what| TlsClientError::Pem { path: path.display().to_string(), what };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&read(&files.cert)?)
        .collect::<Result<_, _>>()
        .map_err(|_| none(&files.cert, "certificate"))?;
    if chain.is_empty() {
        return Err(none(&files.cert, "certificate"));
    }
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?).map_err(|_| none(&files.key, "key"))?;
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
        .map_err(|source| TlsClientError::Mismatch { path: files.key.display().to_string(), source })
}

/// Reads a file, and only that: a pipe would be waited for.
fn read(path: &Path) -> Result<Vec<u8>, TlsClientError> {
    let read = || match fs::metadata(path)?.is_file() {
        true => fs::read(path),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "this is no regular file")),
    };
    read().map_err(|source| TlsClientError::Read { path: path.display().to_string(), source })
}

/// Accepts what the certificates of a file vouch for. What such a server often has is itself in the file: a certificate that
/// it has signed with its own key, as that of an authority (`openssl req -x509`). The usual verifier takes an authority for
/// no server; here it is one if it is the very certificate, is for the name, and is valid now.
#[derive(Debug)]
struct OwnRoots {
    usual: Arc<WebPkiServerVerifier>,
    listed: Vec<CertificateDer<'static>>,
}

impl OwnRoots {
    fn new(roots: &Roots, listed: Vec<CertificateDer<'static>>, provider: Arc<CryptoProvider>) -> Self {
        let usual = WebPkiServerVerifier::builder_with_provider(roots.store().clone(), provider).build();
        Self { usual: usual.expect("there is a root"), listed }
    }
}

impl Rule for OwnRoots {
    fn accept(&self, presented: &Presented<'_>) -> Result<(), Error> {
        let verified = presented.verified_by(&*self.usual);
        if verified.is_ok() || !self.listed.iter().any(|listed| **listed == **presented.leaf) {
            return verified;
        }
        verify_server_name(&ParsedCertificate::try_from(presented.leaf)?, presented.name)?;
        let (_, parsed) = X509Certificate::from_der(presented.leaf).map_err(|_| CertificateError::BadEncoding)?;
        let now = i64::try_from(presented.now.as_secs()).ok().and_then(|now| ASN1Time::from_timestamp(now).ok());
        let now = now.ok_or(Error::FailedToGetCurrentTime)?;
        if now > parsed.validity().not_after {
            return Err(CertificateError::Expired.into());
        }
        if now < parsed.validity().not_before {
            return Err(CertificateError::NotValidYet.into());
        }
        Ok(())
    }
}

/// Accepts every certificate.
#[derive(Debug)]
struct AnyCertificate;

impl Rule for AnyCertificate {
    fn accept(&self, _: &Presented<'_>) -> Result<(), Error> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::UnixTime;

    use super::*;
    use crate::error::{FailureCause, chain};

    /// What `openssl req -x509` makes: an authority that is a server as well.
    fn self_signed() -> rcgen::Certificate {
        let mut params = rcgen::CertificateParams::new(["app.internal".to_owned()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2040, 1, 1);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap()
    }

    #[test]
    fn a_server_that_has_signed_itself_is_trusted_by_its_own_certificate() {
        let (own, other) = (self_signed(), self_signed());
        let roots = Roots::only(own.pem().as_bytes()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let rule = OwnRoots::new(&roots, vec![own.der().clone()], provider);
        let verify = |leaf: &rcgen::Certificate, name: &'static str, year: i32| {
            let now = rcgen::date_time_ymd(year, 6, 1).unix_timestamp();
            let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.unsigned_abs()));
            let name = ServerName::try_from(name).unwrap();
            rule.accept(&Presented { leaf: leaf.der(), chain: &[], name: &name, ocsp: &[], now })
        };
        assert_eq!(verify(&own, "app.internal", 2030), Ok(()));
        let cause = |verified: Result<(), Error>| super::super::tls_error::cause(&verified.unwrap_err());
        assert_eq!(cause(verify(&own, "b.internal", 2030)), FailureCause::WrongName);
        assert_eq!(cause(verify(&own, "app.internal", 2041)), FailureCause::Expired);
        assert_eq!(cause(verify(&own, "app.internal", 2019)), FailureCause::NotYetValid);
        assert!(verify(&other, "app.internal", 2030).is_err());
    }

    fn settings(folder: &Path) -> UpstreamTls {
        UpstreamTls {
            ca_file: Some(folder.join("ca.pem")),
            server_name: Some("app.internal".into()),
            verify: true,
            client_certificate: Some(KeyPairFiles { cert: folder.join("c.pem"), key: folder.join("k.pem") }),
        }
    }

    #[test]
    fn settings_whose_files_cannot_be_used_say_which_and_why() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path());
        let made = rcgen::generate_simple_self_signed(["app.internal".to_owned()]).unwrap();
        let other = rcgen::KeyPair::generate().unwrap();
        let load =
            || TlsClient::load(&settings, &Roots::none()).map_err(|error| chain(&error)).err().unwrap_or_default();
        assert!(load().contains("ca.pem cannot be read"), "{}", load());
        for (file, wrong, right, words) in [
            ("ca.pem", String::new(), made.cert.pem(), "there is no certificate in"),
            ("c.pem", "no certificate".into(), made.cert.pem(), "there is no certificate in"),
            ("k.pem", other.serialize_pem(), made.signing_key.serialize_pem(), "does not fit its certificate"),
        ] {
            fs::write(folder.path().join(file), wrong).unwrap();
            let both = load();
            let is_next = both.contains("cannot be read") || both.contains(words);
            assert!(is_next, "{file}: {both}");
            fs::write(folder.path().join(file), right).unwrap();
        }
        assert_eq!(load(), "");
        let clients = TlsClients::load([&settings].into_iter(), &Roots::none()).unwrap();
        assert!(clients.get(&settings).is_some());
        assert!(clients.get(&UpstreamTls { verify: false, ..settings }).is_none());
    }
}
