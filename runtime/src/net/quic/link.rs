//! Sends the frames of one lane to one peer: finds or makes a connection, keeps order, retries once, gives back the
//! rest.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{Connection, ConnectionError, StoppedError, VarInt};
use swarmline_scheduler::{Envelope, Instance, PeerId};
use tokio::task::JoinSet;

use super::connection::{self, HANDSHAKE_MAX};
use super::handshake::{self, HandshakeError};
use super::lane::Lane;
use super::peers::{Outbox, was_recycled};
use super::recycling::RECYCLED_MAX;
use super::{NetEvent, Shared, code, tuning};
use crate::net::frame::Encoded;
use crate::net::tls::{Pin, SERVER_NAME};

/// Times that a frame is sent: once, and once more after its connection broke.
const SENDINGS_MAX: u32 = 2;
/// Times that a peer is dialled before its frames are given back.
const DIALS_MAX: u32 = 2;
/// Pause between two dials; the peer may just be restarting.
const DIAL_PAUSE: Duration = Duration::from_millis(250);
/// Time without any frame after which the task ends; a later frame starts a new task.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Time that a receiver gets for any frame, however short.
const STALL_MAX: Duration = Duration::from_secs(20);
/// Slowest link that is served: a frame gets further time in proportion to its length.
const BYTES_PER_SECOND_MIN: u64 = 16 << 10;

/// Reasons why envelopes come back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// No connection could be made.
    #[error("cannot connect to peer {peer} at {address}: {cause}")]
    Dial {
        /// The peer.
        peer: PeerId,
        /// Its address, according to the membership table.
        address: SocketAddr,
        /// The failure of the handshake.
        cause: HandshakeError,
    },
    /// The connection broke, and so did its successor.
    #[error("lost peer {peer:?}: {cause}; its microbatches go to other peers")]
    Lost {
        /// The peer.
        peer: PeerId,
        /// The cause, one line.
        cause: String,
    },
    /// The peer stopped the frame as malformed before it had all of it. Faults found later are in the peer's log only.
    #[error("peer {peer:?} refused a frame as malformed (code {code}); its log says why")]
    FrameRefused {
        /// The peer.
        peer: PeerId,
        /// Error code of the peer.
        code: u64,
    },
}

/// An envelope and its frame.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) envelope: Envelope<Bytes>,
    frame: Encoded,
    /// Times that it was sent, but for those that were forgiven.
    sendings: u32,
    forgiven: u32,
}

impl Outgoing {
    pub(super) fn new(envelope: Envelope<Bytes>, frame: Encoded) -> Self {
        Self { envelope, frame, sendings: 0, forgiven: 0 }
    }

    /// Its connection was recycled while it was on its way. A peer that takes short frames and recycles under each long
    /// one would get the long one without end, so a frame is forgiven [`RECYCLED_MAX`] times.
    fn forgive(&mut self) {
        if self.forgiven < RECYCLED_MAX && self.sendings > 0 {
            self.forgiven += 1;
            self.sendings -= 1;
        }
    }
}

/// The latest dial of a peer that failed, and when. The lanes of a peer share it: one of them dials, and the other,
/// which waits for the lock meanwhile, takes the connection or the error.
pub(super) type Dialling = Arc<tokio::sync::Mutex<Option<(Instant, LinkError)>>>;

/// Sends the frames in `outbox` until it closes or stays empty for [`IDLE_MAX`].
pub(super) async fn run(shared: Arc<Shared>, peer: PeerId, outbox: Outbox) {
    let Outbox { lane, mut frames, dialling } = outbox;
    let mut link = Link::new(shared, peer, lane, dialling);
    loop {
        let room = link.has_room();
        let idle = link.unacknowledged.is_empty();
        tokio::select! {
            Some(Ok((number, fate))) = link.acknowledgements.join_next() => link.learn(number, fate),
            outgoing = frames.recv(), if room => match outgoing {
                Some(outgoing) => link.pending.push_back(outgoing),
                None => break,
            },
            () = tokio::time::sleep(IDLE_MAX), if idle => {
                if link.shared.peers.retire(&link.peer, lane, &frames) {
                    return;
                }
            }
        }
        if let Err(reason) = link.transmit_pending().await {
            // The frames queued behind are for the same dead address.
            while let Ok(outgoing) = frames.try_recv() {
                link.pending.push_back(outgoing);
            }
            let undelivered = std::mem::take(&mut link.pending);
            link.give_back(reason, undelivered).await;
        }
        link.report().await;
    }
    link.finish().await;
}

struct Link {
    shared: Arc<Shared>,
    peer: PeerId,
    lane: Lane,
    dialling: Dialling,
    /// Frames to send, in order.
    pending: VecDeque<Outgoing>,
    /// Frames sent, by number, each with the id of its connection.
    unacknowledged: BTreeMap<u64, (usize, Outgoing)>,
    /// One task for each frame in `unacknowledged`, and perhaps tasks of frames that have been sent again.
    acknowledgements: JoinSet<(u64, Fate)>,
    numbers: u64,
    /// Frames to give back, each with its error.
    failed: Vec<(LinkError, Outgoing)>,
}

/// The fate of a frame: acknowledged, stopped by the peer with a code, or lost with its connection.
type Fate = Result<Option<VarInt>, StoppedError>;

impl Link {
    fn new(shared: Arc<Shared>, peer: PeerId, lane: Lane, dialling: Dialling) -> Self {
        Self {
            shared,
            peer,
            lane,
            dialling,
            pending: VecDeque::new(),
            unacknowledged: BTreeMap::new(),
            acknowledgements: JoinSet::new(),
            numbers: 0,
            failed: Vec::new(),
        }
    }

    fn has_room(&self) -> bool {
        let (frames_max, bytes_max) = self.lane.unacknowledged_max(&self.shared.settings);
        let frames = self.unacknowledged.values().map(|(_, outgoing)| outgoing.frame.bytes());
        self.unacknowledged.len() < frames_max && frames.sum::<usize>() < bytes_max
    }

    fn learn(&mut self, number: u64, fate: Fate) {
        match fate {
            // Not in the map after a recovery: the frame has been queued again.
            Ok(None) => {
                if let Some((_, outgoing)) = self.unacknowledged.remove(&number) {
                    self.shared.delivered(&self.peer, &outgoing.envelope.message);
                }
            }
            Ok(Some(code)) => {
                let refused = LinkError::FrameRefused { peer: self.peer, code: code.into_inner() };
                let outgoing = self.unacknowledged.remove(&number);
                self.failed.extend(outgoing.map(|(_, outgoing)| (refused, outgoing)));
            }
            Err(error) => {
                let (cause, recycled) = match &error {
                    StoppedError::ConnectionLost(end) => (handshake::describe(end), self.is_forgiven(end)),
                    StoppedError::ZeroRttRejected => (error.to_string(), false),
                };
                if let Some((connection, _)) = self.unacknowledged.get(&number) {
                    self.recover(*connection, &cause, recycled);
                }
            }
        }
    }

    /// Queues the unacknowledged frames of a broken connection again, in order, before all others. A connection that
    /// was recycled was not lost: its frames may be sent as often as before, as long as that is no habit (`recycling`).
    fn recover(&mut self, connection: usize, cause: &str, recycled: bool) {
        let broken = self.unacknowledged.extract_if(.., |_, (over, _)| *over == connection);
        let frames: Vec<Outgoing> = broken.map(|(_, (_, outgoing))| outgoing).collect();
        for mut outgoing in frames.into_iter().rev() {
            if recycled {
                outgoing.forgive();
            }
            if outgoing.sendings < SENDINGS_MAX {
                self.pending.push_front(outgoing);
            } else {
                let lost = LinkError::Lost { peer: self.peer, cause: cause.to_owned() };
                self.failed.push((lost, outgoing));
            }
        }
    }

    /// Whether the end of a connection is held against no frame.
    fn is_forgiven(&self, end: &ConnectionError) -> bool {
        is_no_loss(end) && !self.shared.peers.recycles_excessively(&self.peer)
    }

    /// Sends the pending frames. An error means that the peer cannot be reached now.
    async fn transmit_pending(&mut self) -> Result<(), LinkError> {
        while !self.pending.is_empty() {
            let connection = self.connection().await?;
            let Some(mut outgoing) = self.pending.pop_front() else { break };
            outgoing.sendings += 1;
            let number = self.numbers;
            self.numbers += 1;
            let written = write(&connection, &outgoing.frame, self.lane.priority(number)).await;
            match written {
                Ok(fate) => {
                    self.shared.sent.add(&outgoing.envelope.message, outgoing.frame.bytes());
                    self.unacknowledged.insert(number, (connection.stable_id(), outgoing));
                    self.acknowledgements.spawn(async move { (number, fate.await) });
                }
                Err(cause) => {
                    // A closed connection acknowledges no frame: this frame is recovered with the others.
                    let recycled = connection.close_reason().is_some_and(|end| self.is_forgiven(&end));
                    connection.close(code::STALLED, b"a frame could not be written");
                    self.unacknowledged.insert(number, (connection.stable_id(), outgoing));
                    self.recover(connection.stable_id(), &cause, recycled);
                }
            }
        }
        Ok(())
    }

    /// A connection with the peer, dialled if there is none.
    async fn connection(&self) -> Result<Connection, LinkError> {
        if let Some(connection) = self.shared.peers.connection(&self.peer) {
            return Ok(connection);
        }
        let asked = Instant::now();
        let mut failed = self.dialling.lock().await;
        if let Some((at, error)) = &*failed
            && *at >= asked
        {
            return Err(error.clone());
        }
        let dialled = self.dial_until_connected().await;
        *failed = dialled.as_ref().err().map(|error| (Instant::now(), error.clone()));
        dialled
    }

    async fn dial_until_connected(&self) -> Result<Connection, LinkError> {
        let mut dials = 0;
        loop {
            // The peer may have dialled in the meantime.
            if let Some(connection) = self.shared.peers.connection(&self.peer) {
                return Ok(connection);
            }
            dials += 1;
            match self.dial().await {
                Ok(connection) => return Ok(connection),
                Err(error) if dials >= DIALS_MAX || !worth_another_dial(&error) => return Err(error),
                Err(_) => tokio::time::sleep(DIAL_PAUSE).await,
            }
        }
    }

    /// Makes a connection and enters it into the table of peers.
    async fn dial(&self) -> Result<Connection, LinkError> {
        let address = self
            .shared
            .peers
            .address(&self.peer)
            .ok_or_else(|| LinkError::Lost { peer: self.peer, cause: "its address is unknown".to_owned() })?;
        let waited_ms = u64::try_from(HANDSHAKE_MAX.as_millis()).unwrap_or(u64::MAX);
        tokio::time::timeout(HANDSHAKE_MAX, self.shake_hands(address))
            .await
            .unwrap_or(Err(HandshakeError::Timeout { waited_ms }))
            .map_err(|cause| LinkError::Dial { peer: self.peer, address, cause })
    }

    async fn shake_hands(&self, address: SocketAddr) -> Result<Connection, HandshakeError> {
        let shared = &self.shared;
        let lost = |error: &dyn std::error::Error| HandshakeError::Lost(error.to_string());
        let pin = Pin::new(self.peer);
        let config = tuning::client(&shared.identity, &pin, Arc::clone(&shared.transport))
            .map_err(|error| lost(&error))?;
        let connecting =
            shared.endpoint.connect_with(config, address, SERVER_NAME).map_err(|error| lost(&error))?;
        let connection = connecting.await.map_err(|error| match pin.wrong_key() {
            Some(presented) => HandshakeError::WrongKey { presented },
            None => error.into(),
        })?;
        let incarnation = match handshake::greet(&connection, &shared.handshake).await {
            Ok(incarnation) => incarnation,
            Err(error) => {
                connection.close(code::REJECTED, b"handshake failed");
                return Err(error);
            }
        };
        let instance = Instance::new(self.peer, incarnation);
        if !connection::register(shared, &connection, instance).await {
            return Err(HandshakeError::Lost("this process has no room for more peers".to_owned()));
        }
        connection::spawn_serve(shared, &connection, instance);
        Ok(connection)
    }

    /// Gives back the frames that failed one by one.
    async fn report(&mut self) {
        for (reason, outgoing) in std::mem::take(&mut self.failed) {
            self.give_back(reason, [outgoing]).await;
        }
    }

    async fn give_back(&self, reason: LinkError, frames: impl IntoIterator<Item = Outgoing>) {
        let undelivered: Vec<_> = frames.into_iter().map(|outgoing| outgoing.envelope).collect();
        undelivered
            .iter()
            .for_each(|envelope: &Envelope<_>| self.shared.given_back(&self.peer, &envelope.message));
        let event = NetEvent::Unreachable { peer: self.peer, reason, undelivered };
        // Fails only if the reader is gone.
        let _ = self.shared.events.send(event).await;
    }

    /// Gives back all frames left: the data plane is closed, so no further acknowledgement comes.
    async fn finish(mut self) {
        let sent = std::mem::take(&mut self.unacknowledged).into_values().map(|(_, outgoing)| outgoing);
        let undelivered: Vec<Outgoing> = sent.chain(std::mem::take(&mut self.pending)).collect();
        if !undelivered.is_empty() {
            let reason = LinkError::Lost { peer: self.peer, cause: "this process closed".to_owned() };
            self.give_back(reason, undelivered).await;
        }
    }
}

/// Whether a connection ended without a sign that the peer is lost: one of the two made room, or this process closed it.
fn is_no_loss(end: &ConnectionError) -> bool {
    was_recycled(end) || matches!(end, ConnectionError::LocallyClosed)
}

/// A rejection is final, except for lack of trust: the peer may have an older table.
fn worth_another_dial(error: &LinkError) -> bool {
    let LinkError::Dial { cause, .. } = error else { return false };
    matches!(cause, HandshakeError::Lost(_) | HandshakeError::Timeout { .. } | HandshakeError::Untrusted)
}

/// Writes a frame on a stream of its own. The future resolves to the fate of the frame.
async fn write(
    connection: &Connection,
    frame: &Encoded,
    priority: i32,
) -> Result<impl Future<Output = Fate> + Send + 'static, String> {
    let allowed = STALL_MAX.saturating_add(Duration::from_secs(frame.bytes() as u64 / BYTES_PER_SECOND_MIN));
    let written = tokio::time::timeout(allowed, async {
        let mut stream = connection.open_uni().await.map_err(|error| handshake::describe(&error))?;
        // Fails only if the stream is closed.
        let _ = stream.set_priority(priority);
        let mut pieces: Vec<Bytes> =
            frame.clone().into_pieces().into_iter().filter(|piece| !piece.is_empty()).collect();
        match stream.write_all_chunks(&mut pieces).await {
            // If the peer stops the stream midway, the fate has the code.
            Ok(()) | Err(quinn::WriteError::Stopped(_)) => {}
            Err(error) => return Err(error.to_string()),
        }
        let fate = stream.stopped();
        // Fails only after a refusal.
        let _ = stream.finish();
        Ok(fate)
    });
    written.await.unwrap_or_else(|_| Err(format!("it took no frame for {} s", allowed.as_secs())))
}
