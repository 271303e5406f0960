//! The data plane: frames between neighbours over QUIC.
//!
//! One socket both listens and dials. A connection carries frames both ways, whichever peer dialled it, so a peer
//! behind a NAT gets replies on the connection that it dialled. Each frame has a stream of its own, so a lost packet
//! delays one frame and not those behind it; short messages overtake long frames (`lane`). If two peers dial each other
//! at once, both connections stay, and no frame is lost.
//!
//! Delivery is at least once while the peer lives: a frame is delivered when the peer's QUIC has acknowledged all of
//! it. When a connection breaks, unacknowledged frames are sent once more over a new connection; frames that cannot be
//! delivered come back in [`NetEvent::Unreachable`].

mod connection;
mod counters;
mod event;
mod handshake;
mod lane;
mod link;
mod peers;
mod receive;
mod recycling;
#[cfg(test)]
mod tests;
mod tuning;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Endpoint, EndpointConfig, TokioRuntime, VarInt};
use swarmline_proto::PROTOCOL_VERSION;
use swarmline_scheduler::{Envelope, Incarnation, Instance, Message, PeerId};
use tokio::sync::{Semaphore, mpsc, watch};

pub use self::counters::BytesSent;
pub use self::event::NetEvent;
pub use self::handshake::HandshakeError;
pub use self::link::LinkError;
pub use self::tuning::Congestion;

use self::counters::Counters;
use self::link::Outgoing;
use self::peers::{Peers, PushError, Pushed};
use super::digest::ManifestDigest;
use super::frame::{self, FrameError, FrameLimits};
use super::identity::Identity;
use super::tls::TlsError;
use super::trust::Trust;

/// Usual limit of the open connections, all peers together. For a further one the least recently used one is closed.
pub const CONNECTIONS_MAX: usize = 1024;
/// Limit of the concurrent incoming handshakes; further ones are refused, so that strangers cannot keep the processor
/// busy with signatures.
const HANDSHAKES_MAX: usize = 64;
/// Limit of the events that wait for the reader. A full queue stops reads from the network.
const EVENTS_MAX: usize = 256;
/// That limit for small windows.
const EVENTS_MIN: usize = 32;
/// Longest wait of [`DataPlane::close`] for frames in flight.
const FLUSH_MAX: Duration = Duration::from_secs(2);
/// Longest wait of [`DataPlane::close`] for peers to acknowledge the close.
const FAREWELL_MAX: Duration = Duration::from_secs(1);

/// Application error codes of QUIC, on connections and streams.
mod code {
    use quinn::VarInt;

    /// The process ends or leaves.
    pub(super) const CLOSED: VarInt = VarInt::from_u32(0);
    /// The handshake failed.
    pub(super) const REJECTED: VarInt = VarInt::from_u32(1);
    /// A frame, or too many of them, broke the rules.
    pub(super) const MALFORMED: VarInt = VarInt::from_u32(2);
    /// A newer connection replaces this connection.
    pub(super) const SUPERSEDED: VarInt = VarInt::from_u32(3);
    /// The key is no longer trusted.
    pub(super) const UNTRUSTED: VarInt = VarInt::from_u32(4);
    /// A frame could not be written in time.
    pub(super) const STALLED: VarInt = VarInt::from_u32(5);
    /// The connection makes room for one with another peer.
    pub(super) const RECYCLED: VarInt = VarInt::from_u32(6);
}

/// This process's part of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeInfo {
    /// Version of the protocol.
    pub protocol_version: u32,
    /// Digest of the run manifest.
    pub manifest: ManifestDigest,
    /// Number of this start of the process.
    pub incarnation: Incarnation,
}

impl HandshakeInfo {
    /// A process of this release in the run with `manifest`.
    #[must_use]
    pub fn new(manifest: ManifestDigest, incarnation: Incarnation) -> Self {
        Self { protocol_version: PROTOCOL_VERSION, manifest, incarnation }
    }
}

/// Sizes and choices of a data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Longest parts of a frame.
    pub limits: FrameLimits,
    /// Limit of the microbatches in flight; the limits of bytes and frames in queues follow from it.
    pub window: usize,
    /// Congestion control.
    pub congestion: Congestion,
    /// Limit of the open connections, all peers together.
    pub connections_max: usize,
}

/// Errors of starting the data plane.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The socket could not be opened.
    #[error("cannot listen on UDP {address}: {source}; is another process using the port?")]
    Socket {
        /// The address to listen on.
        address: SocketAddr,
        /// Error of the operating system.
        source: io::Error,
    },
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// An envelope that was not queued.
#[derive(Clone, Debug, thiserror::Error)]
#[error("nothing is sent to peer {to:?}: {reason}")]
pub struct SendError {
    /// The receiver.
    pub to: PeerId,
    /// The cause.
    pub reason: SendFailure,
    /// The envelope.
    pub envelope: Box<Envelope<Bytes>>,
}

/// Reasons why an envelope is not queued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendFailure {
    /// The queue is full: the peer is slower than the frames sent to it.
    #[error("{capacity} frames wait for it already; choose another peer, or wait")]
    Full {
        /// Capacity of the queue, frames.
        capacity: usize,
    },
    /// The envelope is longer than the run allows.
    #[error("the message does not fit into a frame: {0}")]
    TooLong(FrameError),
    /// The table of peers is full, and frames for every one of them are on their way.
    #[error("frames for {limit} other peers are on their way; wait until one of them has its frames")]
    TooManyPeers {
        /// Limit of the peers.
        limit: usize,
    },
    /// The data plane is closed.
    #[error("the data plane is closed")]
    Closed,
}

/// The data plane of a process. Dropping it closes all connections at once.
#[derive(Debug)]
pub struct DataPlane {
    shared: Arc<Shared>,
}

/// State that all tasks of a data plane share.
#[derive(Debug)]
struct Shared {
    identity: Identity,
    endpoint: Endpoint,
    transport: Arc<quinn::TransportConfig>,
    handshake: HandshakeInfo,
    handshakes: Arc<Semaphore>,
    settings: Settings,
    trust: Trust,
    peers: Peers,
    events: mpsc::Sender<NetEvent>,
    sent: Counters,
    /// Number of frames queued by `send` that are neither delivered nor given back.
    outstanding: watch::Sender<usize>,
}

/// Opens the UDP socket of a data plane at `address` (port 0: any free one).
///
/// # Errors
/// If the address is taken or not this machine's.
pub fn bind_socket(address: SocketAddr) -> Result<UdpSocket, BindError> {
    UdpSocket::bind(address).map_err(|source| BindError::Socket { address, source })
}

impl DataPlane {
    /// Listens on `address` (port 0: any free one) for peers that `trust` admits. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// If the socket cannot be opened.
    pub fn bind(
        identity: &Identity,
        address: SocketAddr,
        handshake: HandshakeInfo,
        trust: Trust,
        settings: Settings,
    ) -> Result<(Self, mpsc::Receiver<NetEvent>), BindError> {
        let socket = bind_socket(address)?;
        Self::start(identity, socket, handshake, trust, settings)
    }

    /// As [`DataPlane::bind`], on a socket of [`bind_socket`]: a peer sends its port to the coordinator before it gets
    /// the manifest.
    ///
    /// # Errors
    /// If the socket or TLS cannot be set up.
    pub fn start(
        identity: &Identity,
        socket: UdpSocket,
        handshake: HandshakeInfo,
        trust: Trust,
        settings: Settings,
    ) -> Result<(Self, mpsc::Receiver<NetEvent>), BindError> {
        let address = socket.local_addr().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
        let transport = Arc::new(tuning::transport(&settings));
        let server = tuning::server(identity, trust.clone(), Arc::clone(&transport))?;
        let runtime = Arc::new(TokioRuntime);
        let endpoint = Endpoint::new(EndpointConfig::default(), Some(server), socket, runtime)
            .map_err(|source| BindError::Socket { address, source })?;
        let (events, receiver) =
            mpsc::channel(settings.window.saturating_mul(2).clamp(EVENTS_MIN, EVENTS_MAX));
        let shared = Arc::new(Shared {
            identity: identity.clone(),
            endpoint,
            transport,
            handshake,
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            settings,
            trust,
            peers: Peers::new(settings),
            events,
            sent: Counters::default(),
            outstanding: watch::Sender::new(0),
        });
        tokio::spawn(connection::accept(Arc::clone(&shared)));
        Ok((Self { shared }, receiver))
    }

    /// Local address of the socket.
    ///
    /// # Errors
    /// If the operating system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.shared.endpoint.local_addr()
    }

    /// Queues `envelope` for the peer `to`, which listens at `address`, and returns at once. Uses a live connection
    /// with the peer or dials. Short messages overtake long ones; apart from that, envelopes for one peer are sent in
    /// order. They may arrive out of order. A tensor of a microbatch that is on its way already is not queued twice, and
    /// a status request for it is dropped. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// If the envelope is too long, or the peer's queue is full. The error has the envelope.
    pub fn send(&self, to: PeerId, address: SocketAddr, envelope: Envelope<Bytes>) -> Result<(), SendError> {
        let frame = match frame::encode(&envelope, &self.shared.settings.limits) {
            Ok(frame) => frame,
            Err(error) => {
                let reason = SendFailure::TooLong(error);
                return Err(SendError { to, reason, envelope: Box::new(envelope) });
            }
        };
        self.shared.outstanding.send_modify(|frames| *frames += 1);
        let start = |outbox| {
            tokio::spawn(link::run(Arc::clone(&self.shared), to, outbox));
        };
        let pushed = self.shared.peers.push(to, address, Outgoing::new(envelope, frame), start);
        if !matches!(pushed, Ok(Pushed::Queued)) {
            self.shared.settle();
        }
        pushed.map(drop).map_err(|(error, outgoing)| {
            let reason = match error {
                PushError::Full { capacity } => SendFailure::Full { capacity },
                PushError::TooManyPeers { limit } => SendFailure::TooManyPeers { limit },
                PushError::Closed => SendFailure::Closed,
            };
            SendError { to, reason, envelope: Box::new(outgoing.envelope) }
        })
    }

    /// QUIC's estimate of the round trip to every connected peer.
    #[must_use]
    pub fn round_trips(&self) -> Vec<(Instance, Duration)> {
        self.shared.peers.round_trips()
    }

    /// Bytes of all frames sent so far: preambles, headers, ids and payloads, retries included.
    #[must_use]
    pub fn bytes_sent(&self) -> BytesSent {
        self.shared.sent.read()
    }

    /// Refuses further envelopes, waits up to 2 s for envelopes in flight, and closes all connections, so that peers
    /// notice at once.
    pub async fn close(&self) {
        let mut outstanding = self.shared.outstanding.subscribe();
        let flushed = tokio::time::timeout(FLUSH_MAX, outstanding.wait_for(|frames| *frames == 0));
        if flushed.await.is_err() {
            tracing::warn!(frames = *self.shared.outstanding.borrow(), "closing with frames undelivered");
        }
        self.shared.shut(code::CLOSED, b"the peer left");
        // A peer that misses the close notices by its idle timeout.
        let _ = tokio::time::timeout(FAREWELL_MAX, self.shared.endpoint.wait_idle()).await;
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        self.shared.shut(code::CLOSED, b"the peer stopped");
    }
}

impl Shared {
    /// Closing the outboxes ends the tasks that send, closing the endpoint those that receive.
    fn shut(&self, code: VarInt, reason: &[u8]) {
        self.peers.close();
        self.endpoint.close(code, reason);
    }

    /// `peer` has acknowledged a frame.
    fn delivered(&self, peer: &PeerId, message: &Message) {
        self.peers.delivered(peer, message);
        self.settle();
    }

    /// A frame for `peer` is given back.
    fn given_back(&self, peer: &PeerId, message: &Message) {
        self.peers.given_back(peer, message);
        self.settle();
    }

    fn settle(&self) {
        self.outstanding.send_modify(|outstanding| *outstanding = outstanding.saturating_sub(1));
    }
}
