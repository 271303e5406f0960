//! A peer that breaks the protocol. It speaks QUIC by hand, because the library sends only whole frames.

use std::net::SocketAddr;
use std::sync::Arc;

use prost::Message as _;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use swarmline::net::control::Registration;
use swarmline_proto::v1;
use swarmline_scheduler::{Incarnation, Member, ProcessNumber, Role};

/// DER of an ed25519 private key (RFC 8410) up to the 32 bytes of the seed.
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// Longest reply to Hello, bytes.
const REPLY_BYTES_MAX: usize = 4096;

/// The first request of a process to join in this role.
pub(crate) fn registration(role: Role, data_address: SocketAddr) -> Registration {
    let (incarnation, process) = (Incarnation(1), ProcessNumber(1));
    Registration { incarnation, process, take_over: false, role, data_address, holds: None }
}

/// Dials any member with one key.
pub(crate) struct Rogue {
    endpoint: Endpoint,
    hello: Vec<u8>,
}

impl Rogue {
    /// The peer whose key has this seed. Must be called in a tokio runtime.
    pub(crate) fn new(seed: [u8; 32], hello: &v1::Hello) -> Self {
        let mut endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        endpoint.set_default_client_config(client(seed));
        Self { endpoint, hello: hello.encode_to_vec() }
    }

    /// Connects and sends Hello; an error if the victim rejects this peer, or is gone.
    pub(crate) async fn intrude(&self, victim: &Member) -> anyhow::Result<Connection> {
        let connection = self.endpoint.connect(victim.address, "swarmline")?.await?;
        let (mut send, mut receive) = connection.open_bi().await?;
        send.write_all(&self.hello).await?;
        send.finish()?;
        let reply = v1::HandshakeReply::decode(receive.read_to_end(REPLY_BYTES_MAX).await?.as_slice())?;
        anyhow::ensure!(matches!(reply.reply, Some(v1::handshake_reply::Reply::Welcome(_))), "{reply:?}");
        Ok(connection)
    }
}

/// Writes `bytes` on a stream of their own, as far as the victim reads them.
pub(crate) async fn throw(connection: &Connection, bytes: &[u8]) -> anyhow::Result<()> {
    let mut stream = connection.open_uni().await?;
    // Both calls fail if the victim stops the stream.
    let _ = stream.write_all(bytes).await;
    let _ = stream.finish();
    Ok(())
}

fn client(seed: [u8; 32]) -> ClientConfig {
    let key = PrivatePkcs8KeyDer::from([PKCS8_PREFIX.as_slice(), &seed].concat());
    let key = ring::sign::any_eddsa_type(&key).unwrap();
    let public = CertificateDer::from(key.public_key().unwrap().to_vec());
    let key = Arc::new(CertifiedKey::new(vec![public], key));
    let provider = Arc::new(ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible(provider)))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(key)));
    config.alpn_protocols = vec![b"swarmline-data/1".to_vec()];
    ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()))
}

/// A verifier that accepts every key without proof.
#[derive(Debug)]
struct Gullible(Arc<CryptoProvider>);

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_tls13_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
