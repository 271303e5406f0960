//! Settings of QUIC, with reasons.

use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::{BbrConfig, CubicConfig};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, IdleTimeout, ServerConfig, TransportConfig, VarInt};

use super::Settings;
use crate::net::frame::{BULK_BYTES_MAX, BULK_FRAMES};
use crate::net::identity::Identity;
use crate::net::tls::{self, Pin, TlsError};
use crate::net::trust::Trust;

/// Protocol name negotiated in the TLS handshake.
const ALPN: &[u8] = b"swarmline-data/1";
/// Idle timeout of a peer: long enough for a Wi-Fi roaming, short enough that a microbatch is sent to another replica
/// before the pipeline runs dry.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(5);
/// Five pings within [`IDLE_MAX`], which also keep a NAT binding open.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Limit of the unread bytes of a stream. A link of 1 Gbit/s carries them in 0.5 s.
const STREAM_WINDOW_MAX: u32 = 64 << 20;
/// Limit of the unread or unacknowledged bytes of a connection: the memory that one peer can take here.
const CONNECTION_WINDOW_MAX: u32 = 256 << 20;
/// Bytes of a connection's window that long frames leave to short messages.
const CONTROL_WINDOW: u32 = 1 << 20;
/// Bounds of the long frames that a peer may have in flight to this process.
const BULK_STREAMS_MIN: u32 = 16;
const BULK_STREAMS_MAX: u32 = 512;
/// Streams that a peer may have open beside those: room for short messages when every long frame stands still.
pub(super) const CONTROL_STREAMS: u32 = 64;
/// Only the handshake has a bidirectional stream.
const BIDIRECTIONAL_STREAMS_MAX: u32 = 1;

/// Congestion control: the sending rate over a path that loses packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// Paces by measured bandwidth and delay. Default: home links lose packets for reasons other than congestion, and
    /// at 1 % loss on 80 Mbit/s and 50 ms this moved 54 to 66 Mbit/s where Cubic moved 3.
    #[default]
    Bbr,
    /// Halves its rate, roughly, at every loss. Kinder to other traffic on a full but clean link.
    Cubic,
}

pub(super) fn transport(settings: &Settings) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MAX.as_millis() as u32))))
        .stream_receive_window(VarInt::from_u32(stream_window(settings)))
        .receive_window(VarInt::from_u32(connection_window(settings)))
        .send_window(connection_window(settings).into())
        .max_concurrent_uni_streams(VarInt::from_u32(streams(settings)))
        .max_concurrent_bidi_streams(VarInt::from_u32(BIDIRECTIONAL_STREAMS_MAX))
        // Otherwise a stream that has begun is finished before any other, whatever their priorities.
        .send_fairness(true)
        .datagram_receive_buffer_size(None);
    match settings.congestion {
        Congestion::Bbr => config.congestion_controller_factory(Arc::new(BbrConfig::default())),
        Congestion::Cubic => config.congestion_controller_factory(Arc::new(CubicConfig::default())),
    };
    config
}

/// Frames in flight from one peer.
pub(super) fn streams(settings: &Settings) -> u32 {
    bulk_streams(settings) + CONTROL_STREAMS
}

/// Long frames in flight to one peer. Twice the window: a peer may send the activation of every microbatch and a
/// gradient of every microbatch.
pub(super) fn bulk_streams(settings: &Settings) -> u32 {
    let window = u32::try_from(settings.window).unwrap_or(u32::MAX);
    let bulk_frames = BULK_FRAMES as u32;
    window.saturating_mul(2).saturating_add(bulk_frames).clamp(BULK_STREAMS_MIN, BULK_STREAMS_MAX)
}

/// Bytes of long frames in flight to one peer after which no further one is begun; the latest one may exceed it.
pub(super) fn bulk_bytes(settings: &Settings) -> u32 {
    connection_window(settings) - stream_window(settings) - CONTROL_WINDOW
}

fn connection_window(settings: &Settings) -> u32 {
    let window = u32::try_from(settings.window).unwrap_or(u32::MAX);
    let (bulk, bulk_frames) = (BULK_BYTES_MAX as u32, BULK_FRAMES as u32);
    // Room for parts of a round and chunks of a state, beside that of the microbatches.
    stream_window(settings)
        .saturating_mul(window.saturating_add(1))
        .saturating_add(bulk * bulk_frames + CONTROL_WINDOW)
        .min(CONNECTION_WINDOW_MAX)
}

fn stream_window(settings: &Settings) -> u32 {
    let frame = u32::try_from(settings.limits.frame_bytes_max()).unwrap_or(u32::MAX);
    frame.max(BULK_BYTES_MAX as u32).min(STREAM_WINDOW_MAX)
}

pub(super) fn server(
    identity: &Identity,
    trust: Trust,
    transport: Arc<TransportConfig>,
) -> Result<ServerConfig, TlsError> {
    let tls =
        QuicServerConfig::try_from(tls::server(identity, trust, ALPN)?).map_err(|error| no_cipher(&error))?;
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(transport);
    Ok(config)
}

pub(super) fn client(
    identity: &Identity,
    pin: &Arc<Pin>,
    transport: Arc<TransportConfig>,
) -> Result<ClientConfig, TlsError> {
    let tls =
        QuicClientConfig::try_from(tls::client(identity, pin, ALPN)?).map_err(|error| no_cipher(&error))?;
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(transport);
    Ok(config)
}

fn no_cipher(error: &quinn::crypto::rustls::NoInitialCipherSuite) -> TlsError {
    TlsError::from(rustls::Error::General(error.to_string()))
}
