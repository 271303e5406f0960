//! The data plane: frames between neighbours over QUIC.
//!
//! One socket both listens and dials. A connection, whoever dialled it, carries frames both ways: a peer behind a
//! NAT that dialled out can be answered. Each frame has a stream of its own, so that a lost packet delays one frame
//! and not those behind it. If two peers dial each other at once both connections stay, and nothing is lost.
//!
//! Delivery is at least once while the peer lives: a frame counts as delivered when the other side's QUIC has
//! acknowledged all of it. When a connection breaks, what was not acknowledged is sent once more over a new one; what
//! cannot be delivered comes back in [`NetEvent::Unreachable`].

mod connection;
mod counters;
mod handshake;
mod link;
mod peers;
mod receive;
#[cfg(test)]
mod tests;
mod tuning;

use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Endpoint, EndpointConfig, TokioRuntime, VarInt};
use swarmline_proto::PROTOCOL_VERSION;
use swarmline_scheduler::{Incarnation, Message, PeerId};
use tokio::sync::{Semaphore, mpsc, watch};

pub use self::counters::BytesSent;
pub use self::handshake::HandshakeError;
pub use self::link::LinkError;
pub use self::tuning::Congestion;

use self::counters::Counters;
use self::link::Outgoing;
use self::peers::{Peers, PushError};
use super::digest::ManifestDigest;
use super::frame::{self, FrameError, FrameLimits};
use super::identity::Identity;
use super::tls::TlsError;
use super::trust::Trust;

/// Connections at a time, all peers together. More are refused.
const CONNECTIONS_MAX: usize = 1024;
/// Incoming handshakes at a time; more are refused, so that strangers cannot keep the processor busy with signatures.
const HANDSHAKES_MAX: usize = 64;
/// Frames that wait for one peer, whatever the window.
const OUTBOX_FRAMES_MAX: usize = 1024;
/// The same, for small windows: room for control messages beside the microbatches.
const OUTBOX_FRAMES_MIN: usize = 32;
/// Events that wait for the reader, whatever the window. A full queue stops reading from the network.
const EVENTS_MAX: usize = 256;
/// The same, for small windows.
const EVENTS_MIN: usize = 32;
/// How long [`DataPlane::close`] waits for frames that are on their way.
const FLUSH_MAX: Duration = Duration::from_secs(2);
/// How long [`DataPlane::close`] waits for peers to hear that the connection is closed.
const FAREWELL_MAX: Duration = Duration::from_secs(1);

/// Application error codes, on connections and streams.
mod code {
    use quinn::VarInt;

    /// The process ends or leaves.
    pub(super) const CLOSED: VarInt = VarInt::from_u32(0);
    /// The handshake failed.
    pub(super) const REJECTED: VarInt = VarInt::from_u32(1);
    /// A frame, or too many of them, broke the rules.
    pub(super) const MALFORMED: VarInt = VarInt::from_u32(2);
    /// A newer connection took the place of this one.
    pub(super) const SUPERSEDED: VarInt = VarInt::from_u32(3);
    /// The key is not trusted any longer.
    pub(super) const UNTRUSTED: VarInt = VarInt::from_u32(4);
    /// A frame could not be written in time.
    pub(super) const STALLED: VarInt = VarInt::from_u32(5);
}

/// What this side says of itself in a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeInfo {
    /// Version of the protocol.
    pub protocol_version: u32,
    /// Digest of the run manifest.
    pub manifest: ManifestDigest,
    /// Which start of this process.
    pub incarnation: Incarnation,
}

impl HandshakeInfo {
    /// A process of this release, in the run with this manifest.
    #[must_use]
    pub fn new(manifest: ManifestDigest, incarnation: Incarnation) -> Self {
        Self { protocol_version: PROTOCOL_VERSION, manifest, incarnation }
    }
}

/// Sizes and choices of a data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long frames may be.
    pub limits: FrameLimits,
    /// Microbatches in flight; decides how many bytes and frames may wait.
    pub window: usize,
    /// How fast to send over a path that loses packets.
    pub congestion: Congestion,
}

/// What happened on the network. `Debug` leaves payloads out.
#[derive(Clone)]
pub enum NetEvent {
    /// A peer is connected; comes before its first message, and again when it returns as a new incarnation.
    Connected {
        /// Which peer.
        peer: PeerId,
        /// Which start of it.
        incarnation: Incarnation,
    },
    /// A message arrived.
    Message {
        /// Who sent it; proven by its key.
        from: PeerId,
        /// Which start of the sender.
        incarnation: Incarnation,
        /// The message. After a reconnection it may be one that came before.
        message: Message<Bytes>,
    },
    /// A peer sent something that is not a frame of this run. Its other frames are unaffected; after repeated ones the
    /// connection is closed.
    Malformed {
        /// Who.
        from: PeerId,
        /// What was wrong.
        error: FrameError,
    },
    /// The last connection with a peer ended; comes after its last message.
    Disconnected {
        /// Which peer.
        peer: PeerId,
        /// Which start of it.
        incarnation: Incarnation,
        /// Why, for people.
        reason: String,
    },
    /// Messages could not be delivered.
    Unreachable {
        /// To whom.
        peer: PeerId,
        /// Why.
        reason: LinkError,
        /// The messages, in the order they were sent. The peer may have seen some of them.
        undelivered: Vec<Message<Bytes>>,
    },
}

impl fmt::Debug for NetEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected { peer, incarnation } => write!(f, "Connected({peer:?}, {})", incarnation.0),
            Self::Message { from, message, .. } => write!(f, "Message({from:?}, {})", brief(message)),
            Self::Malformed { from, error } => write!(f, "Malformed({from:?}, {error})"),
            Self::Disconnected { peer, reason, .. } => write!(f, "Disconnected({peer:?}, {reason})"),
            Self::Unreachable { peer, reason, undelivered } => {
                let undelivered: Vec<String> = undelivered.iter().map(brief).collect();
                write!(f, "Unreachable({peer:?}, {reason}, {undelivered:?})")
            }
        }
    }
}

fn brief(message: &Message<Bytes>) -> String {
    match message {
        Message::Forward { microbatch, attempt, .. } => format!("forward {microbatch}.{}", attempt.0),
        Message::Backward { microbatch, attempt, .. } => format!("backward {microbatch}.{}", attempt.0),
        Message::Evaluated { microbatch, attempt, .. } => format!("evaluated {microbatch}.{}", attempt.0),
        Message::Refused { microbatch, .. } => format!("refused {microbatch}"),
        Message::Ask { microbatch, attempt, .. } => format!("ask {microbatch}.{}", attempt.0),
        Message::Holds { microbatch, attempt, .. } => format!("holds {microbatch}.{}", attempt.0),
        Message::Passed { microbatch, attempt, .. } => format!("passed {microbatch}.{}", attempt.0),
        Message::Held { microbatch, .. } => format!("held {microbatch}"),
        Message::Claim { microbatches, .. } => format!("claim of {}", microbatches.len()),
        Message::Granted { granted, .. } => format!("grant of {}", granted.len()),
        Message::Ended { .. } => "ended".to_owned(),
        Message::Averaged { round } => format!("averaged {}", round.0),
        Message::Adopt { range, from, .. } => format!("adopt {range} from {from}"),
        Message::Inventory(inventory) => format!("inventory of {}", inventory.range),
        Message::Beat(_) => "beat".to_owned(),
        Message::Averaging(message) => {
            format!("averaging {}.{}.{}", message.gathering.round.0, message.part.0, message.attempt.0)
        }
        Message::Transfer(_) => "transfer".to_owned(),
    }
}

/// Why the data plane could not start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The socket could not be opened.
    #[error("cannot listen on UDP {address}: {source}; is another process using the port?")]
    Socket {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Why a message was not taken. It comes back to the caller.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SendError {
    /// Too many frames wait for this peer: it is slower than what is sent to it.
    #[error("{capacity} frames wait for peer {peer:?} already; choose another peer, or wait")]
    Full {
        /// To whom.
        peer: PeerId,
        /// Frames that may wait.
        capacity: usize,
        /// The message.
        message: Box<Message<Bytes>>,
    },
    /// The message is longer than the run allows.
    #[error("a message for peer {peer:?} does not fit into a frame: {error}")]
    TooLong {
        /// To whom.
        peer: PeerId,
        /// Which part is too long.
        error: FrameError,
        /// The message.
        message: Box<Message<Bytes>>,
    },
    /// As many peers as this process keeps track of.
    #[error("{limit} peers are known already; peer {peer:?} is one too many")]
    TooManyPeers {
        /// To whom.
        peer: PeerId,
        /// Peers that are kept track of.
        limit: usize,
        /// The message.
        message: Box<Message<Bytes>>,
    },
    /// The data plane is closed.
    #[error("the data plane is closed; nothing is sent to peer {peer:?}")]
    Closed {
        /// To whom.
        peer: PeerId,
        /// The message.
        message: Box<Message<Bytes>>,
    },
}

/// One side of the data plane. Dropping it closes all connections at once.
#[derive(Debug)]
pub struct DataPlane {
    shared: Arc<Shared>,
}

/// What all tasks of one data plane use.
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
    /// Frames accepted by `send` whose fate is open.
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

    /// As [`DataPlane::bind`], on a socket that [`bind_socket`] opened before the run was known: a peer tells the
    /// coordinator its port and learns the manifest in return.
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
            peers: Peers::default(),
            events,
            sent: Counters::default(),
            outstanding: watch::Sender::new(0),
        });
        tokio::spawn(connection::accept(Arc::clone(&shared)));
        Ok((Self { shared }, receiver))
    }

    /// Where this side listens.
    ///
    /// # Errors
    /// If the operating system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.shared.endpoint.local_addr()
    }

    /// Queues `message` for the peer `to`, which listens at `address`, and returns at once. Uses a live connection
    /// with the peer if there is one, whoever dialled it; else dials. Messages to one peer are sent in order; they
    /// may arrive in another. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// If the message does not fit, or the peer's queue is full; it comes back in the error.
    pub fn send(&self, to: PeerId, address: SocketAddr, message: Message<Bytes>) -> Result<(), SendError> {
        let frame = match frame::encode(&message, &self.shared.settings.limits) {
            Ok(frame) => frame,
            Err(error) => {
                return Err(SendError::TooLong { peer: to, error, message: Box::new(message) });
            }
        };
        self.shared.outstanding.send_modify(|frames| *frames += 1);
        let start = |outbox| {
            tokio::spawn(link::run(Arc::clone(&self.shared), to, outbox));
        };
        let outgoing = Outgoing::new(message, frame);
        let capacity = self.shared.outbox_frames();
        self.shared.peers.push(to, address, outgoing, capacity, start).map_err(|(error, outgoing)| {
            self.shared.settle(1);
            let message = Box::new(outgoing.message);
            match error {
                PushError::Full => SendError::Full { peer: to, capacity, message },
                PushError::TooManyPeers { limit } => SendError::TooManyPeers { peer: to, limit, message },
                PushError::Closed => SendError::Closed { peer: to, message },
            }
        })
    }

    /// Bytes of all frames sent so far: preambles, headers, ids and payloads, and those sent again.
    #[must_use]
    pub fn bytes_sent(&self) -> BytesSent {
        self.shared.sent.read()
    }

    /// Takes no more messages, waits up to 2 s for those on their way, and closes all connections, so that the peers
    /// know at once.
    pub async fn close(&self) {
        let mut outstanding = self.shared.outstanding.subscribe();
        let flushed = tokio::time::timeout(FLUSH_MAX, outstanding.wait_for(|frames| *frames == 0));
        if flushed.await.is_err() {
            tracing::warn!(frames = *self.shared.outstanding.borrow(), "closing with frames undelivered");
        }
        self.shared.shut(code::CLOSED, b"the peer left");
        // Nothing depends on the farewell: peers that miss it notice by their idle timeout.
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

    fn settle(&self, frames: usize) {
        self.outstanding.send_modify(|outstanding| *outstanding = outstanding.saturating_sub(frames));
    }

    fn outbox_frames(&self) -> usize {
        self.settings.window.saturating_mul(2).clamp(OUTBOX_FRAMES_MIN, OUTBOX_FRAMES_MAX)
    }
}
