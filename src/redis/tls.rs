//! TLS to Redis: whose word for a server's certificate is taken.

use std::{path::Path, sync::Arc};

use fred::types::config::{TlsConfig, TlsConnector};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject as _},
};

use super::RedisError;

/// Only the authorities of a file, instead of those of the system.
pub(super) fn trusting(ca_file: &Path) -> Result<TlsConfig, RedisError> {
    let unusable =
        |problem: String| RedisError::Configuration(format!("redis.ca_file {}: {problem}", ca_file.display()));
    let certificates = CertificateDer::pem_file_iter(ca_file).map_err(|error| unusable(error.to_string()))?;
    let mut authorities = RootCertStore::empty();
    for certificate in certificates {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        authorities.add(certificate).map_err(|error| unusable(error.to_string()))?;
    }
    if authorities.is_empty() {
        return Err(unusable("holds no certificate".to_owned()));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(error.to_string()))?
        .with_root_certificates(authorities)
        .with_no_client_auth();
    Ok(TlsConnector::from(config).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_vouches_for_nobody_is_refused_by_its_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (path, problem) in
            [(Path::new("/nowhere/ca.pem"), "/nowhere/ca.pem"), (file.path(), "holds no certificate")]
        {
            let Err(error) = trusting(path) else { panic!("{path:?} is refused") };
            assert!(error.to_string().contains(problem), "{error}");
        }
    }
}
