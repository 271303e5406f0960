//! Neighbours that misbehave towards a living replica.

use std::time::Duration;

use bytes::Bytes;
use swarmline::config::{Manifest, Run};
use swarmline::net::control::{Control, HEARTBEAT_INTERVAL, Joined, MemberStats, Placement};
use swarmline::net::digest::ManifestDigest;
use swarmline::net::frame::FrameLimits;
use swarmline::net::quic::{
    CONNECTIONS_MAX, Congestion, DataPlane, HandshakeInfo, NetEvent, Settings, bind_socket,
};
use swarmline::net::table_log::TableReader;
use swarmline::net::trust::Trust;
use swarmline::net::{Identity, Invite};
use swarmline::packing::{Codec, TokenCodec};
use swarmline_scheduler::{
    Attempt, Envelope, Hop, Incarnation, Instance, Loss, Member, MemberState, Message, MicrobatchId, PeerId,
    Purpose, Refusal, Role, RouteKey, StageIndex, WeightVersion,
};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::process::Process;
use crate::recipe::Recipe;
use crate::rogue::registration;
use crate::swarm::{STAGES, Swarm, last_word, serving};

/// Limit of each step.
const PATIENCE: Duration = Duration::from_secs(40);
/// Wider than any replica's limits, so that the test can send frames that are too long for the run.
const LIMITS: FrameLimits = FrameLimits {
    header_bytes_max: 4096,
    ids_bytes_max: 1 << 20,
    activation_bytes_max: 1 << 20,
    logits_bytes_max: 1024,
};
const ME: Incarnation = Incarnation(1);

#[test]
fn a_microbatch_that_is_none_is_refused_and_the_next_one_is_served() {
    let (mut swarm, mut neighbour) = swarm_behind_a_neighbour();
    let (ids, activation) = (neighbour.ids(), neighbour.activation());
    let nan = f32::NAN.to_le_bytes().repeat(activation.len() / 4);
    assert_eq!(neighbour.refused(0, ids.clone(), nan), Refusal::NonFinite);
    let malformed = |refusal| assert!(matches!(refusal, Refusal::Malformed(_)), "{refusal:?}");
    malformed(neighbour.refused(1, ids.clone(), activation[4..].to_vec()));
    malformed(neighbour.refused(2, ids[1..].to_vec(), activation.clone()));
    neighbour.send(neighbour.forward(3, ids.clone(), vec![0; 1 << 20]));
    neighbour.send(neighbour.backward(77, activation.clone()));
    neighbour.send(neighbour.forward(4, ids, activation));
    let Message::Backward { microbatch, loss, .. } = neighbour.reply() else {
        panic!("a good microbatch has a gradient");
    };
    assert_eq!(microbatch, MicrobatchId(4));
    assert!(loss.mean().is_finite());

    let victim: &mut Process = &mut swarm.replicas[0];
    victim.interrupt();
    assert_eq!(victim.end(), 0);
    assert_eq!(last_word(victim).refused, 3);
}

#[test]
fn a_stranger_and_a_peer_of_another_run_are_turned_away_with_the_reason() {
    let (_swarm, neighbour) = swarm_behind_a_neighbour();
    let good = HandshakeInfo::new(neighbour.digest, ME);
    let other = ManifestDigest([7; 32]);
    let reason = neighbour.turned_away(&neighbour.identity, HandshakeInfo { manifest: other, ..good });
    assert!(reason.contains(&other.to_string()) && reason.contains(&good.manifest.to_string()), "{reason}");
    let reason = neighbour.turned_away(&neighbour.identity, HandshakeInfo { protocol_version: 999, ..good });
    let versions = ["999".to_owned(), format!("version {}", good.protocol_version)];
    assert!(versions.iter().all(|version| reason.contains(version)), "{reason}");
    let reason = neighbour.turned_away(&Identity::from_seed([9; 32]), good);
    assert!(reason.contains("does not trust the key"), "{reason}");
}

/// A swarm in which the test serves stage 0.
fn swarm_behind_a_neighbour() -> (Swarm, Neighbour) {
    let mut swarm = Swarm::coordinate(&Recipe::exact());
    let neighbour = Neighbour::join(&swarm.invite);
    for stage in 1..STAGES {
        let mut replica = swarm.start_replica(&format!("replica {stage}"), &[]);
        assert_eq!(usize::from(serving(&mut replica)), stage);
        swarm.replicas.push(replica);
    }
    (swarm, neighbour)
}

/// A feeder and a replica of stage 0 that compute nothing and send arbitrary messages.
struct Neighbour {
    runtime: Runtime,
    identity: Identity,
    feeder: PeerId,
    digest: ManifestDigest,
    run: Run,
    table: TableReader,
    plane: DataPlane,
    arrivals: mpsc::Receiver<NetEvent>,
    /// What the feeder hears.
    heard: mpsc::Receiver<NetEvent>,
    _feeder: DataPlane,
}

impl Neighbour {
    fn join(invite: &str) -> Self {
        let runtime = Runtime::new().unwrap();
        let invite: Invite = invite.parse().unwrap();
        let joining = async {
            let mut feeder = Seat::take(&invite, Role::Feeder).await;
            let (lease, _) = feeder.control.lease(None, 8, &[]).await.unwrap();
            assert_eq!((lease.first, lease.count), (MicrobatchId(0), 8));
            let mut replica = Seat::take(&invite, Role::Replica).await;
            assert_eq!(replica.joined.placement, Placement::Stage(StageIndex(0)));
            replica.control.ready(StageIndex(0), false).await.unwrap();
            (feeder, replica)
        };
        let (feeder, replica) = runtime.block_on(joining);
        let run = Manifest::from_bytes(&replica.joined.manifest).unwrap().run().clone();
        let digest = replica.joined.digest;
        let table = runtime.block_on(async { replica.control.follow(replica.joined.tables) });
        runtime.spawn(beat(feeder.control));
        runtime.spawn(beat(replica.control));
        Self {
            runtime,
            identity: replica.identity,
            feeder: feeder.identity.peer(),
            digest,
            run,
            table,
            plane: replica.plane,
            arrivals: replica.arrivals,
            heard: feeder.arrivals,
            _feeder: feeder.plane,
        }
    }

    /// Well-formed token ids.
    fn ids(&self) -> Vec<u8> {
        let tokens = TokenCodec::new(&self.run);
        tokens.encode(&vec![65; tokens.ids()]).unwrap()
    }

    /// A well-formed activation.
    fn activation(&self) -> Vec<u8> {
        let layer = self.run.layers_of(StageIndex(1)).start;
        vec![0; Codec::in_front_of(&self.run, layer).byte_len()]
    }

    fn forward(&self, id: u64, ids: Vec<u8>, activation: Vec<u8>) -> Envelope<Bytes> {
        let feeder = Hop::feeder(Instance::new(self.feeder, ME));
        let replica = Hop::replica(StageIndex(0), Instance::new(self.identity.peer(), ME));
        let message = Message::Forward {
            microbatch: MicrobatchId(id),
            attempt: Attempt(0),
            purpose: Purpose::Train,
            is_retry: false,
            downstream_holder: None,
            route: vec![feeder, replica],
            key: RouteKey::default(),
            version: WeightVersion(0),
        };
        Envelope { message, ids: ids.into(), payload: activation.into() }
    }

    fn backward(&self, id: u64, gradient: Vec<u8>) -> Envelope<Bytes> {
        let message = Message::Backward {
            microbatch: MicrobatchId(id),
            attempt: Attempt(0),
            loss: Loss { sum: 1.0, tokens: 1 },
            path: Vec::new(),
        };
        Envelope::with_payload(message, gradient.into())
    }

    /// The replica of stage 1, once every stage is served.
    fn victim(&self) -> Member {
        let mut table = self.table.clone();
        let complete = async {
            while table.table().members().len() != STAGES + 1 {
                table.changed().await.unwrap();
            }
        };
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, complete).await }).unwrap();
        let members = table.table().membership().members;
        let placed = |member: &&Member| {
            use MemberState::{Loading, Serving};
            [Loading(StageIndex(1)), Serving(StageIndex(1))].contains(&member.state)
        };
        members.iter().find(placed).unwrap().clone()
    }

    fn send(&self, envelope: Envelope<Bytes>) {
        let (victim, _guard) = (self.victim(), self.runtime.enter());
        self.plane.send(victim.instance.peer, victim.address, envelope).unwrap();
    }

    /// The victim's next outcome of a microbatch.
    fn reply(&mut self) -> Message {
        let Self { runtime, arrivals, heard, .. } = self;
        runtime.block_on(async {
            loop {
                let either = async {
                    tokio::select! { event = arrivals.recv() => event, event = heard.recv() => event }
                };
                let event = tokio::time::timeout(PATIENCE, either).await;
                if let NetEvent::Received { envelope, .. } = event.unwrap().unwrap()
                    && let message = envelope.message
                    && matches!(message, Message::Backward { .. } | Message::Refused { .. })
                {
                    return message;
                }
            }
        })
    }

    /// Sends a microbatch; returns the reason of its refusal.
    fn refused(&mut self, id: u64, ids: Vec<u8>, activation: Vec<u8>) -> Refusal {
        self.send(self.forward(id, ids, activation));
        match self.reply() {
            Message::Refused { proof, by, reason } => {
                assert_eq!((proof.microbatch, by.stage), (MicrobatchId(id), Some(StageIndex(1))));
                reason
            }
            other => panic!("{other:?} is no refusal"),
        }
    }

    /// Dials the victim with another identity or handshake; returns the error.
    fn turned_away(&self, identity: &Identity, handshake: HandshakeInfo) -> String {
        let (victim, envelope) = (self.victim(), self.forward(0, self.ids(), self.activation()));
        self.runtime.block_on(async {
            let anywhere = "127.0.0.1:0".parse().unwrap();
            let (plane, mut arrivals) =
                DataPlane::bind(identity, anywhere, handshake, Trust::anyone(), settings()).unwrap();
            plane.send(victim.instance.peer, victim.address, envelope).unwrap();
            loop {
                let event = tokio::time::timeout(PATIENCE, arrivals.recv()).await;
                if let NetEvent::Unreachable { reason, .. } = event.unwrap().unwrap() {
                    return reason.to_string();
                }
            }
        })
    }
}

/// A member that does nothing by itself.
struct Seat {
    identity: Identity,
    control: Control,
    joined: Joined,
    plane: DataPlane,
    arrivals: mpsc::Receiver<NetEvent>,
}

impl Seat {
    async fn take(invite: &Invite, role: Role) -> Self {
        let identity = Identity::ephemeral().unwrap();
        let socket = bind_socket("127.0.0.1:0".parse().unwrap()).unwrap();
        let data_address = socket.local_addr().unwrap();
        let registration = registration(role, data_address);
        let (control, joined) = Control::join(invite, &identity, registration).await.unwrap();
        let handshake = HandshakeInfo::new(joined.digest, ME);
        let (plane, arrivals) =
            DataPlane::start(&identity, socket, handshake, Trust::anyone(), settings()).unwrap();
        Self { identity, control, joined, plane, arrivals }
    }
}

/// Keeps a member in the table.
async fn beat(mut control: Control) {
    while control.heartbeat(&MemberStats::default()).await.is_ok() {
        tokio::time::sleep(HEARTBEAT_INTERVAL).await;
    }
}

fn settings() -> Settings {
    Settings {
        limits: LIMITS,
        window: 8,
        congestion: Congestion::default(),
        connections_max: CONNECTIONS_MAX,
    }
}
