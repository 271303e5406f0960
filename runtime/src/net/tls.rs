//! TLS 1.3 between keys instead of names: both peers present a raw public key (RFC 7250). QUIC and gRPC use it alike.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible,
    ServerConfig, SignatureScheme,
};
use swarmline_scheduler::PeerId;

use super::identity::Identity;
use super::trust::Trust;

/// Name sent where the protocol demands one. Only keys are verified.
pub(super) const SERVER_NAME: &str = "swarmline";

/// DER of an ed25519 SubjectPublicKeyInfo (RFC 8410) up to the 32 bytes of the key.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The TLS library refused our own settings: a defect of this program or its build.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up TLS: {0}; this is a defect of swarmline, please report it")]
pub struct TlsError(#[from] Error);

/// Settings of a listener that accepts the keys that `trust` admits.
pub(super) fn server(identity: &Identity, trust: Trust, alpn: &[u8]) -> Result<ServerConfig, TlsError> {
    let provider = provider();
    let verifier = Arc::new(TrustedClients { trust, algorithms: provider.signature_verification_algorithms });
    let key = Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified(identity)?));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(key);
    // A resumed session would skip the verifier, and with it the current keys of `trust`.
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
}

/// Settings of a dialler that accepts only the key in `pin`. For one connection.
pub(super) fn client(identity: &Identity, pin: &Arc<Pin>, alpn: &[u8]) -> Result<ClientConfig, TlsError> {
    let provider = provider();
    let key = Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified(identity)?));
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(pin) as Arc<dyn ServerCertVerifier>)
        .with_client_cert_resolver(key);
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
}

/// The key that the peer presented: a SubjectPublicKeyInfo in place of an X.509 certificate.
pub(super) fn presented_key(presented: &CertificateDer<'_>) -> Option<PeerId> {
    let key = presented.as_ref().strip_prefix(SPKI_PREFIX.as_slice())?;
    key.try_into().ok().map(PeerId)
}

/// The provider of this crate alone: another user of the library in the process may install a different one.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certified(identity: &Identity) -> Result<Arc<CertifiedKey>, TlsError> {
    let private = identity.to_pkcs8().map_err(|error| Error::General(error.to_string()))?;
    let public = [SPKI_PREFIX.as_slice(), &identity.peer().0].concat();
    let key = ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(private.as_bytes()))?;
    Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(public)], key)))
}

fn require_key(presented: &CertificateDer<'_>) -> Result<PeerId, Error> {
    presented_key(presented).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))
}

fn verify_signature(
    message: &[u8],
    presented: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let spki = SubjectPublicKeyInfoDer::from(presented.as_ref());
    verify_tls13_signature_with_raw_key(message, &spki, signature, algorithms)
}

fn no_tls12() -> Error {
    Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13)
}

#[derive(Debug)]
struct TrustedClients {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for TrustedClients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        presented: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if self.trust.admits(&require_key(presented)?) {
            Ok(ClientCertVerified::assertion())
        } else {
            // This error becomes the alert "access denied".
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        presented: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, presented, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// The only key that a dialler accepts. The pin keeps a wrong key that was presented, because TLS and QUIC report the
/// failure as text.
#[derive(Debug)]
pub(super) struct Pin {
    expected: PeerId,
    presented: OnceLock<PeerId>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Pin {
    pub(super) fn new(expected: PeerId) -> Arc<Self> {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        Arc::new(Self { expected, presented: OnceLock::new(), algorithms })
    }

    /// The key that was presented, if it was another key.
    pub(super) fn wrong_key(&self) -> Option<PeerId> {
        self.presented.get().copied().filter(|presented| *presented != self.expected)
    }
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        presented: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let presented = require_key(presented)?;
        if *self.presented.get_or_init(|| presented) == self.expected && presented == self.expected {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        presented: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, presented, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
