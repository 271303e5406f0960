//! What feeders and replicas have in common: a heartbeat, frame sizes, and what network events mean to them.

use std::net::UdpSocket;
use std::time::Instant;

use swarmline_scheduler::{Incarnation, Membership, PeerId, PeerTable};
use tokio::sync::{mpsc, watch};

use crate::config::Run;
use crate::error::Error;
use crate::net::Identity;
use crate::net::control::{Control, ControlError, Directive, HEARTBEAT_EVERY, Vitals};
use crate::net::digest::ManifestDigest;
use crate::net::frame::FrameLimits;
use crate::net::quic::{Congestion, DataPlane, HandshakeInfo, NetEvent, Settings};
use crate::net::trust::Trust;
use crate::packing::{Codec, TokenCodec};

/// Bytes of a frame header beside its route: room for the longest claim, announcement and inventory.
const HEADER_BYTES: usize = 32 << 10;
/// Bytes of one hop of a route.
const HOP_BYTES: usize = 64;

/// How long the frames of a run may be: nothing longer is read.
fn frame_limits(run: &Run) -> FrameLimits {
    let cuts = run.stages().map(|stage| Codec::in_front_of(run, run.layers_of(stage).start).byte_len());
    FrameLimits {
        header_bytes_max: HEADER_BYTES + HOP_BYTES * (run.pipeline.stages + 1),
        ids_bytes_max: TokenCodec::new(run).byte_len(),
        code_bytes_max: cuts.max().unwrap_or(0),
    }
}

/// What a member needs to know before its data plane can start.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) run: &'a Run,
    pub(crate) digest: ManifestDigest,
    pub(crate) incarnation: Incarnation,
    pub(crate) identity: &'a Identity,
    /// Microbatches in flight; decides how much may wait.
    pub(crate) window: usize,
}

/// Starts a member's data plane on the socket it told the coordinator of. Only members of `table` are trusted.
pub(crate) fn start_plane(
    plan: &Plan<'_>,
    socket: UdpSocket,
    table: &Membership,
) -> Result<(DataPlane, mpsc::Receiver<NetEvent>, Trust), Error> {
    let trust = Trust::keys(table.members.iter().map(|member| member.peer));
    let settings =
        Settings { limits: frame_limits(plan.run), window: plan.window, congestion: Congestion::default() };
    let handshake = HandshakeInfo::new(plan.digest, plan.incarnation);
    let (plane, arrivals) = DataPlane::start(plan.identity, socket, handshake, trust.clone(), settings)?;
    Ok((plane, arrivals, trust))
}

/// Gives signs of life for a member, whatever else it is busy with. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Heart {
    vitals: watch::Sender<Vitals>,
    heard: watch::Receiver<Heard>,
}

/// What came back.
#[derive(Clone, Debug)]
enum Heard {
    Directive(Directive),
    Expelled(String),
}

impl Heart {
    /// Starts beating; stops when every clone is dropped.
    pub(crate) fn start(mut control: Control) -> Self {
        let (vitals, current) = watch::channel(Vitals::default());
        let (hear, heard) = watch::channel(Heard::Directive(Directive::Continue));
        tokio::spawn(async move {
            let mut silent_since = None;
            // The sender half of `vitals` lives in the clones.
            while current.has_changed().is_ok() {
                tokio::time::sleep(HEARTBEAT_EVERY).await;
                let vitals = *current.borrow();
                match control.heartbeat(&vitals).await {
                    Ok(directive) => {
                        silent_since = None;
                        hear.send_replace(Heard::Directive(directive));
                    }
                    Err(ControlError::NotAMember(reason)) => {
                        hear.send_replace(Heard::Expelled(reason));
                        return;
                    }
                    Err(error) => warn_once(&mut silent_since, &error),
                }
            }
        });
        Self { vitals, heard }
    }

    /// What the next sign of life says.
    pub(crate) fn set_vitals(&self, vitals: Vitals) {
        self.vitals.send_replace(vitals);
    }

    /// The next thing the coordinator wants.
    pub(crate) async fn directive(&mut self) -> Result<Directive, Error> {
        if self.heard.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        match &*self.heard.borrow_and_update() {
            Heard::Directive(directive) => Ok(directive.clone()),
            Heard::Expelled(reason) => Err(ControlError::NotAMember(reason.clone()).into()),
        }
    }
}

/// The coordinator may be gone for a while: one line per incident, with its consequence.
fn warn_once(silent_since: &mut Option<Instant>, error: &ControlError) {
    if silent_since.replace(Instant::now()).is_none() {
        tracing::warn!(%error, "no sign from the coordinator; going on with the last membership table");
    }
}

/// Which start of which peer an event says is lost.
pub(crate) fn lost_peer(event: &NetEvent, table: &PeerTable) -> Option<(PeerId, Incarnation)> {
    match event {
        NetEvent::Disconnected { peer, incarnation, .. } => Some((*peer, *incarnation)),
        NetEvent::Unreachable { peer, .. } => member(table, *peer),
        NetEvent::Connected { .. } | NetEvent::Message { .. } | NetEvent::Malformed { .. } => None,
    }
}

/// The start of `peer` that the table lists.
pub(crate) fn member(table: &PeerTable, peer: PeerId) -> Option<(PeerId, Incarnation)> {
    table.members().find(|member| member.peer == peer).map(|member| (peer, member.incarnation))
}
