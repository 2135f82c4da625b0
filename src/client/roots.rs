//! Trust anchors: the certificate authorities that a TLS server is verified against.

use std::{
    path::Path,
    sync::{Arc, LazyLock},
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{
        CertificateDer,
        pem::{self, PemObject as _},
    },
};

/// A set of trust anchors. Cheap to clone, and to make: the files of the system, which are a hundred and more, are read when
/// something is first verified against them, and not while the process starts.
#[derive(Clone)]
pub struct Roots(Arc<LazyLock<Loaded, Box<dyn FnOnce() -> Loaded + Send>>>);

struct Loaded {
    store: Arc<RootCertStore>,
    http1: Arc<ClientConfig>,
}

/// Why a set of trust anchors cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// The file cannot be read, or is no PEM.
    #[error("no certificates in {path}")]
    File {
        /// As configured.
        path: String,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// A certificate is not one of an authority.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

impl Roots {
    /// No trust anchor: for servers without TLS.
    #[must_use]
    pub fn none() -> Self {
        Self::of(RootCertStore::empty)
    }

    /// The roots of the system, or those of Mozilla where it has none (a minimal image).
    #[must_use]
    pub fn system() -> Self {
        Self::of(system_store)
    }

    /// The roots of the system, the certificates of a PEM file and those of a PEM text.
    ///
    /// # Errors
    /// The file cannot be read, or one of both has something that is no authority.
    pub fn with(file: Option<&Path>, text: Option<&str>) -> Result<Self, RootsError> {
        let mut store = RootCertStore::empty();
        if let Some(path) = file {
            add(&mut store, CertificateDer::pem_file_iter(path), &path.display().to_string())?;
        }
        if let Some(text) = text {
            add(&mut store, Ok(CertificateDer::pem_slice_iter(text.as_bytes())), "the given text")?;
        }
        Ok(Self::of(move || {
            store.roots.append(&mut system_store().roots);
            store
        }))
    }

    /// Only the certificates of a PEM text.
    ///
    /// # Errors
    /// The text has no usable certificate.
    pub fn only(pem: &[u8]) -> Result<Self, RootsError> {
        Self::of_pem(pem, "the given text")
    }

    /// The same, of a text that stands in `place`.
    pub(super) fn of_pem(pem: &[u8], place: &str) -> Result<Self, RootsError> {
        let mut store = RootCertStore::empty();
        add(&mut store, Ok(CertificateDer::pem_slice_iter(pem)), place)?;
        Ok(Self::of(move || store))
    }

    /// A TLS configuration that verifies against these roots and offers HTTP/1.1; sessions are resumed within it.
    #[must_use]
    pub fn http1(&self) -> &Arc<ClientConfig> {
        &self.0.http1
    }

    /// Reads the files, if that is still to be done.
    pub fn load(&self) {
        LazyLock::force(&self.0);
    }

    /// The same, with HTTP/2 preferred.
    pub(super) fn http2(&self) -> Arc<ClientConfig> {
        Arc::new(tls_config(&self.0.store, &[b"h2", b"http/1.1"]))
    }

    /// The same, without ALPN: for what is not HTTP.
    pub(super) fn no_protocol(&self) -> Arc<ClientConfig> {
        Arc::new(tls_config(&self.0.store, &[]))
    }

    /// The certificates.
    pub(super) fn store(&self) -> &Arc<RootCertStore> {
        &self.0.store
    }

    fn of(load: impl FnOnce() -> RootCertStore + Send + 'static) -> Self {
        Self(Arc::new(LazyLock::new(Box::new(|| {
            let store = Arc::new(load());
            Loaded { http1: Arc::new(tls_config(&store, &[b"http/1.1"])), store }
        }))))
    }
}

/// A TLS configuration that verifies against a store and offers these protocols (ALPN), the preferred one first.
fn tls_config(store: &Arc<RootCertStore>, protocols: &[&[u8]]) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for both versions")
        .with_root_certificates(store.clone())
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    config
}

fn add<I>(store: &mut RootCertStore, found: Result<I, pem::Error>, place: &str) -> Result<(), RootsError>
where
    I: Iterator<Item = Result<CertificateDer<'static>, pem::Error>>,
{
    let failed = |source| RootsError::File { path: place.to_owned(), source };
    for certificate in found.map_err(failed)? {
        store.add(certificate.map_err(failed)?)?;
    }
    Ok(())
}

fn system_store() -> RootCertStore {
    let mut store = RootCertStore::empty();
    // A broken certificate among the system's does not matter as long as others are fine.
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if store.is_empty() {
        store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    store
}
