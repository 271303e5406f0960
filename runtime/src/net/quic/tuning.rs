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
/// Bounds of the unread bytes of a stream. A link of 1 Gbit/s carries the upper bound in 0.5 s.
const STREAM_WINDOW_MIN: u32 = 64 << 10;
const STREAM_WINDOW_MAX: u32 = 64 << 20;
/// Bounds of the unread or unacknowledged bytes of a connection; the upper bound limits the memory that one peer can
/// take here.
const CONNECTION_WINDOW_MIN: u32 = 1 << 20;
const CONNECTION_WINDOW_MAX: u32 = 256 << 20;
/// Bounds of the frames that a peer may have in flight to this process.
const STREAMS_MIN: u32 = 16;
const STREAMS_MAX: u32 = 512;
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
    let frame = u32::try_from(settings.limits.frame_bytes_max()).unwrap_or(u32::MAX);
    let window = u32::try_from(settings.window).unwrap_or(u32::MAX);
    let (bulk, bulk_frames) = (BULK_BYTES_MAX as u32, BULK_FRAMES as u32);
    let stream_window = frame.max(bulk).clamp(STREAM_WINDOW_MIN, STREAM_WINDOW_MAX);
    // Room for parts of a round and chunks of a state, beside that of the microbatches.
    let connection_window = frame
        .saturating_mul(window)
        .saturating_add(bulk * bulk_frames)
        .clamp(CONNECTION_WINDOW_MIN, CONNECTION_WINDOW_MAX);
    // Twice the window: a peer may send the activation of every microbatch and a gradient of every microbatch.
    let streams = window.saturating_mul(2).saturating_add(bulk_frames).clamp(STREAMS_MIN, STREAMS_MAX);
    let mut config = TransportConfig::default();
    config
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MAX.as_millis() as u32))))
        .stream_receive_window(VarInt::from_u32(stream_window))
        .receive_window(VarInt::from_u32(connection_window))
        .send_window(connection_window.into())
        .max_concurrent_uni_streams(VarInt::from_u32(streams))
        .max_concurrent_bidi_streams(VarInt::from_u32(BIDIRECTIONAL_STREAMS_MAX))
        // A receiver can use only whole frames: finish a frame before the next.
        .send_fairness(false)
        .datagram_receive_buffer_size(None);
    match settings.congestion {
        Congestion::Bbr => config.congestion_controller_factory(Arc::new(BbrConfig::default())),
        Congestion::Cubic => config.congestion_controller_factory(Arc::new(CubicConfig::default())),
    };
    config
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
