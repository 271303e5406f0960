//! A member's data plane, which trusts the members of the run and sends to them.

use std::net::UdpSocket;
use std::time::Duration;

use bytes::Bytes;
use swarmline_scheduler::{Envelope, Incarnation, Instance, Message, PeerId, PeerTable, Table, TableUpdate};
use tokio::sync::mpsc;

use crate::config::Run;
use crate::error::Error;
use crate::net::Identity;
use crate::net::digest::ManifestDigest;
use crate::net::frame::FrameLimits;
use crate::net::quic::{
    BytesSent, CONNECTIONS_MAX, Congestion, DataPlane, HandshakeInfo, NetEvent, SendFailure, Settings,
};
use crate::net::trust::Trust;
use crate::packing::{Codec, TokenCodec};

/// Limit of a frame header without its route, bytes: room for the longest claim, outcomes and recovery report.
const HEADER_BYTES: usize = 256 << 10;
/// Limit of a hop of a route, bytes.
const HOP_BYTES: usize = 64;

/// Run and process of a data plane.
#[derive(Debug)]
pub(crate) struct NetworkOptions<'a> {
    pub(crate) run: &'a Run,
    pub(crate) digest: ManifestDigest,
    pub(crate) identity: &'a Identity,
    pub(crate) incarnation: Incarnation,
    /// Limit of the microbatches in flight; the limits of queues follow from it.
    pub(crate) window: usize,
}

/// The data plane of a member.
#[derive(Debug)]
pub(crate) struct Network {
    plane: DataPlane,
    trust: Trust,
}

impl Network {
    /// Starts on the socket whose address the coordinator knows.
    pub(crate) fn start(
        options: &NetworkOptions<'_>,
        socket: UdpSocket,
        table: &Table,
    ) -> Result<(Self, mpsc::Receiver<NetEvent>), Error> {
        let trust = Trust::keys(table.members().keys().copied());
        let limits = frame_limits(options.run);
        let settings = Settings {
            limits,
            window: options.window,
            congestion: Congestion::default(),
            connections_max: CONNECTIONS_MAX,
        };
        let handshake = HandshakeInfo::new(options.digest, options.incarnation);
        let (plane, arrivals) =
            DataPlane::start(options.identity, socket, handshake, trust.clone(), settings)?;
        Ok((Self { plane, trust }, arrivals))
    }

    /// Trusts the members of the newer table from now on, and no other peer.
    pub(crate) fn trust_members(&self, update: &TableUpdate) {
        match update {
            TableUpdate::Whole(table) | TableUpdate::Shared(_, table) => {
                self.trust.set_keys(table.members().keys().copied());
            }
            TableUpdate::Change(change) => {
                let added = change.now.members.iter().map(|member| member.instance.peer);
                self.trust.change_keys(change.removed.iter().copied(), added);
            }
        }
    }

    /// Sends to a member. Returns a message that its full queue did not take.
    pub(crate) fn send(&self, table: &PeerTable, to: PeerId, envelope: Envelope<Bytes>) -> Option<Message> {
        let error = self.plane.send(to, table.address(to)?, envelope).err()?;
        match error.reason {
            SendFailure::Full { .. } | SendFailure::TooManyPeers { .. } => Some(error.envelope.message),
            SendFailure::Closed => None,
            SendFailure::TooLong(_) => {
                tracing::error!(%error, "a message is lost; please report this line");
                None
            }
        }
    }

    pub(crate) fn round_trips(&self) -> Vec<(Instance, Duration)> {
        self.plane.round_trips()
    }

    pub(crate) fn bytes_sent(&self) -> BytesSent {
        self.plane.bytes_sent()
    }

    pub(crate) async fn close(&self) {
        self.plane.close().await;
    }
}

/// Limits of the frames of a run.
fn frame_limits(run: &Run) -> FrameLimits {
    let cuts = run.stages().map(|stage| Codec::in_front_of(run, run.layers_of(stage).start).byte_len());
    FrameLimits {
        header_bytes_max: HEADER_BYTES + HOP_BYTES * (run.pipeline.stages + 1),
        ids_bytes_max: TokenCodec::new(run).byte_len(),
        activation_bytes_max: cuts.max().unwrap_or(0),
        logits_bytes_max: run.model.vocab_size * size_of::<f32>(),
    }
}

/// The member that an event shows as lost. A full queue shows no loss: this process sends more than the link takes.
pub(crate) fn lost_instance(event: &NetEvent, table: &PeerTable) -> Option<Instance> {
    match event {
        NetEvent::Disconnected { instance, .. } => Some(*instance),
        NetEvent::Unreachable { peer, .. } => table.instance(*peer),
        NetEvent::Connected(_)
        | NetEvent::Received { .. }
        | NetEvent::Arriving(_)
        | NetEvent::Malformed { .. } => None,
    }
}
