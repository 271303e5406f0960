//! The first messages on a connection: they compare protocol and run, and exchange incarnations.

use std::time::Duration;

use prost::Message as _;
use quinn::{Connection, ConnectionError};
use swarmline_proto::v1;
use swarmline_scheduler::{Incarnation, PeerId};

use super::HandshakeInfo;
use crate::net::digest::ManifestDigest;
use crate::net::wire;

/// Longest message of a handshake, bytes.
const MESSAGE_BYTES_MAX: usize = 4096;
/// Longest wait for a rejection to arrive before the connection is closed.
const REJECTION_MAX: Duration = Duration::from_secs(1);

/// Reasons why two peers do not connect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The peers run different releases.
    #[error("it speaks protocol version {theirs}, this process {ours}; run the same release on both sides")]
    Version {
        /// Version of this process.
        ours: u32,
        /// Version of the peer.
        theirs: u32,
    },
    /// The peers are in different runs.
    #[error("it is in the run with manifest {theirs}, this process in {ours}; join the same coordinator")]
    Digest {
        /// Digest of this process.
        ours: ManifestDigest,
        /// Digest of the peer.
        theirs: ManifestDigest,
    },
    /// Another reason, in the peer's words.
    #[error("it rejected this process: {0}")]
    Rejected(String),
    /// The peer does not trust this process's key.
    #[error("it does not trust the key of this process; the run may be closed to it, ask its coordinator")]
    Untrusted,
    /// Another peer listens at the address.
    #[error("{presented} answered instead; the address may have a new owner")]
    WrongKey {
        /// Key of the listener.
        presented: PeerId,
    },
    /// The reply is not a handshake.
    #[error("its reply is not a handshake ({0}); run the same release on both sides")]
    Malformed(String),
    /// The connection broke.
    #[error("{0}")]
    Lost(String),
    /// The peer did not answer in time.
    #[error("no answer within {waited_ms} ms; is it running, and is UDP let through?")]
    Timeout {
        /// Time waited, milliseconds.
        waited_ms: u64,
    },
}

/// QUIC error code of TLS alert 0; the other alerts follow.
const TLS_ALERT_BASE: u64 = 0x100;
/// The alerts of a refused key: access_denied, and bad_certificate from less precise peers.
const TLS_ALERTS_UNTRUSTED: [u64; 2] = [49, 42];

impl From<ConnectionError> for HandshakeError {
    fn from(error: ConnectionError) -> Self {
        if let ConnectionError::ConnectionClosed(close) = &error {
            let alert = u64::from(close.error_code).checked_sub(TLS_ALERT_BASE);
            if alert.is_some_and(|alert| TLS_ALERTS_UNTRUSTED.contains(&alert)) {
                return Self::Untrusted;
            }
        }
        Self::Lost(describe(&error))
    }
}

/// The end of a connection, one line; text from the peer is made safe to log.
pub(super) fn describe(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let reason = String::from_utf8_lossy(&close.reason);
            format!("closed by the peer: {} (code {})", wire::single_line(&reason), close.error_code)
        }
        ConnectionError::TimedOut => "it fell silent".to_owned(),
        ConnectionError::LocallyClosed => "closed by this process".to_owned(),
        other => wire::single_line(&other.to_string()),
    }
}

/// The dialler's part of the handshake. Returns the incarnation of the peer.
pub(super) async fn greet(
    connection: &Connection,
    ours: &HandshakeInfo,
) -> Result<Incarnation, HandshakeError> {
    let (mut send, mut receive) = connection.open_bi().await?;
    let hello = v1::Hello {
        protocol_version: ours.protocol_version,
        manifest_digest: ours.manifest.0.to_vec(),
        incarnation: ours.incarnation.0,
    };
    send.write_all(&hello.encode_to_vec()).await.map_err(|error| lost(connection, &error))?;
    send.finish().map_err(|error| lost(connection, &error))?;
    let reply = receive.read_to_end(MESSAGE_BYTES_MAX).await.map_err(|error| lost(connection, &error))?;
    match v1::HandshakeReply::decode(reply.as_slice()).map_err(malformed)?.reply {
        Some(v1::handshake_reply::Reply::Welcome(welcome)) => Ok(Incarnation(welcome.incarnation)),
        Some(v1::handshake_reply::Reply::Rejected(rejected)) => Err(rejection(&rejected, ours)),
        None => Err(HandshakeError::Malformed("an empty reply".to_owned())),
    }
}

/// The listener's part of the handshake. Returns the incarnation of the peer, or tells the peer the mismatch.
pub(super) async fn answer(
    connection: &Connection,
    ours: &HandshakeInfo,
) -> Result<Incarnation, HandshakeError> {
    use v1::handshake_reply::Reply;
    let (mut send, mut receive) = connection.accept_bi().await?;
    let hello = receive.read_to_end(MESSAGE_BYTES_MAX).await.map_err(|error| lost(connection, &error))?;
    let verdict = judge(&hello, ours);
    let reply = match &verdict {
        Ok(_) => Reply::Welcome(v1::Welcome { incarnation: ours.incarnation.0 }),
        Err(error) => Reply::Rejected(v1::Rejected {
            reason: wire::single_line(&error.to_string()),
            protocol_version: ours.protocol_version,
            manifest_digest: ours.manifest.0.to_vec(),
        }),
    };
    let reply = v1::HandshakeReply { reply: Some(reply) }.encode_to_vec();
    send.write_all(&reply).await.map_err(|error| lost(connection, &error))?;
    send.finish().map_err(|error| lost(connection, &error))?;
    if verdict.is_err() {
        // The caller closes the connection, which would overtake the reply.
        let _ = tokio::time::timeout(REJECTION_MAX, send.stopped()).await;
    }
    verdict
}

fn judge(hello: &[u8], ours: &HandshakeInfo) -> Result<Incarnation, HandshakeError> {
    let hello = v1::Hello::decode(hello).map_err(malformed)?;
    compare(hello.protocol_version, &hello.manifest_digest, ours)?;
    Ok(Incarnation(hello.incarnation))
}

fn compare(version: u32, digest: &[u8], ours: &HandshakeInfo) -> Result<(), HandshakeError> {
    if version != ours.protocol_version {
        return Err(HandshakeError::Version { ours: ours.protocol_version, theirs: version });
    }
    let theirs = wire::decode_digest(digest).map_err(malformed)?;
    if theirs != ours.manifest {
        return Err(HandshakeError::Digest { ours: ours.manifest, theirs });
    }
    Ok(())
}

/// The error of a rejection: a mismatch that this process can see itself, or the peer's reason.
fn rejection(rejected: &v1::Rejected, ours: &HandshakeInfo) -> HandshakeError {
    match compare(rejected.protocol_version, &rejected.manifest_digest, ours) {
        Err(error @ (HandshakeError::Version { .. } | HandshakeError::Digest { .. })) => error,
        _ => HandshakeError::Rejected(wire::single_line(&rejected.reason)),
    }
}

fn malformed(error: impl Into<Box<dyn std::error::Error>>) -> HandshakeError {
    HandshakeError::Malformed(wire::single_line(&error.into().to_string()))
}

/// The cause of a failed stream: the connection's close reason, or `error`.
fn lost(connection: &Connection, error: &dyn std::error::Error) -> HandshakeError {
    match connection.close_reason() {
        Some(reason) => reason.into(),
        None => malformed(error.to_string()),
    }
}
