//! A replica with a valid key that lies: it claims and refuses microbatches that it was never handed, keeps those that it
//! was handed, promises endless credit, and hands on microbatches that no feeder injected.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use swarmline::config::{Manifest, Run};
use swarmline::net::control::{Control, HEARTBEAT_INTERVAL, MemberStats, Placement, Registration};
use swarmline::net::frame::FrameLimits;
use swarmline::net::quic::{
    CONNECTIONS_MAX, Congestion, DataPlane, HandshakeInfo, NetEvent, Settings, bind_socket,
};
use swarmline::net::table_log::TableReader;
use swarmline::net::trust::Trust;
use swarmline::net::{Identity, Invite};
use swarmline::packing::{Codec, TokenCodec};
use swarmline::report::{Event, Incident};
use swarmline_scheduler::{
    Attempt, Envelope, Heartbeat, Hop, Incarnation, Instance, Member, Message, MicrobatchId, PeerId, Purpose,
    Refusal, Role, RouteKey, RouteProof, StageIndex, Status, WeightVersion,
};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::recipe::Recipe;
use crate::rogue::registration;
use crate::swarm::{Swarm, account, serving};

const STAGES: u16 = 3;
const REPLICAS: usize = 3;
const STEPS: u64 = 600;
const MICROBATCHES: u64 = STEPS * REPLICAS as u64;

const ME: Incarnation = Incarnation(1);
const STAGE: StageIndex = StageIndex(1);
/// The time between two rounds of lies.
const LIES_EVERY: Duration = Duration::from_millis(100);
/// An id that no feeder of the test comes near.
const NEVER_INJECTED: u64 = 1 << 30;
/// The ids of one false claim.
const CLAIMED: u64 = 64;

#[test]
fn a_liar_among_eight_honest_replicas_is_named_and_the_run_finishes_without_it() {
    let more = "[averaging]\ninterval = 20\nfragments = 5\n".to_owned();
    let recipe =
        Recipe { stages: STAGES.into(), replicas: REPLICAS, steps: STEPS, more, ..Recipe::asynchronous() };
    let mut swarm = Swarm::coordinate(&recipe);
    let honest = |swarm: &mut Swarm, indices: Range<usize>| {
        for index in indices {
            let mut replica = swarm.start_replica(&format!("replica {index}"), &[]);
            serving(&mut replica);
            swarm.replicas.push(replica);
        }
    };
    // The liar is the last replica of its stage: it would keep a joiner waiting for its state.
    let all = usize::from(STAGES) * REPLICAS;
    honest(&mut swarm, 0..all - 2);
    let liar = Liar::join(&swarm.invite);
    honest(&mut swarm, all - 2..all - 1);
    let mut feeder = swarm.start_feeder(&[]);
    feeder.hear("that the replica lies", |event| match event {
        Event::Incident(Incident::ReplicaLies { peer, .. }) if peer == liar.name() => Some(()),
        _ => None,
    });
    swarm.coordinator.hear("that the replica is evicted", |event| match event {
        Event::Incident(Incident::ReplicaEvicted { peer, .. }) if peer == liar.name() => Some(()),
        _ => None,
    });
    liar.is_refused(&swarm.invite);
    assert_eq!(feeder.end(), 0, "{}", feeder.errors());
    let struck = feeder.lines().iter().filter(|line| line.contains("replica_lies"));
    assert_eq!(struck.count(), 1, "the honest replicas that it names are not");
    let report = account(&mut feeder);
    assert_eq!(
        (report.finished, report.lost, report.refused, report.ungranted),
        (MICROBATCHES, 0, 0, 0),
        "{report:?}"
    );
    swarm.end();
}

/// A replica of stage 1 that computes nothing.
struct Liar {
    peer: PeerId,
    identity: Identity,
    /// Its tasks end with it.
    runtime: Runtime,
}

impl Liar {
    fn join(invite: &str) -> Self {
        let runtime = Runtime::new().unwrap();
        let identity = Identity::ephemeral().unwrap();
        let invite: Invite = invite.parse().unwrap();
        let peer = identity.peer();
        runtime.block_on(async {
            let socket = bind_socket("127.0.0.1:0".parse().unwrap()).unwrap();
            let data_address = socket.local_addr().unwrap();
            let registration = registration(Role::Replica, data_address);
            let (mut control, joined) = Control::join(&invite, &identity, registration).await.unwrap();
            assert_eq!(joined.placement, Placement::Stage(STAGE));
            control.ready(STAGE, false).await.unwrap();
            let handshake = HandshakeInfo::new(joined.digest, ME);
            let (plane, arrivals) =
                DataPlane::start(&identity, socket, handshake, Trust::anyone(), settings()).unwrap();
            let table = control.follow(joined.tables);
            let run = Manifest::from_bytes(&joined.manifest).unwrap().run().clone();
            tokio::spawn(async move {
                while control.heartbeat(&MemberStats::default()).await.is_ok() {
                    tokio::time::sleep(HEARTBEAT_INTERVAL).await;
                }
            });
            tokio::spawn(Lies { me: Instance::new(peer, ME), run, table, plane, told: 0 }.tell(arrivals));
        });
        Self { peer, identity, runtime }
    }

    /// Its key, as incidents print it.
    fn name(&self) -> String {
        format!("{:?}", self.peer)
    }

    /// Its key may not come back.
    fn is_refused(&self, invite: &str) {
        let data_address = "127.0.0.1:9".parse().unwrap();
        let incarnation = Incarnation(ME.0 + 1);
        let registration = Registration { incarnation, ..registration(Role::Replica, data_address) };
        let invite: Invite = invite.parse().unwrap();
        let refused = self.runtime.block_on(Control::join(&invite, &self.identity, registration));
        let refusal = refused.map(|_| ()).unwrap_err().to_string();
        assert!(refusal.contains("the key may not come back"), "{refusal}");
    }
}

/// The lies of a replica of stage 1.
struct Lies {
    me: Instance,
    run: Run,
    table: TableReader,
    plane: DataPlane,
    told: u64,
}

impl Lies {
    async fn tell(mut self, mut arrivals: mpsc::Receiver<NetEvent>) {
        let mut rounds = tokio::time::interval(LIES_EVERY);
        loop {
            tokio::select! {
                _ = rounds.tick() => self.tell_all(),
                event = arrivals.recv() => match event {
                    Some(NetEvent::Received { from, envelope, .. }) => self.reply(from, &envelope.message),
                    Some(_) => {}
                    None => return,
                },
            }
        }
    }

    fn tell_all(&mut self) {
        let members = self.table.table().membership().members;
        let hops: Vec<Hop> = members.iter().filter_map(Member::hop).collect();
        let at =
            |stage: Option<u16>| hops.iter().copied().filter(move |hop| hop.stage == stage.map(StageIndex));
        let (Some(feeder), Some(first)) = (at(None).next(), at(Some(0)).next()) else { return };
        self.told += 1;
        for neighbour in at(Some(0)).chain(at(Some(2))) {
            self.send(neighbour, self.boast().into());
        }
        self.send(feeder, self.false_claim(feeder, first).into());
        self.send(feeder, self.false_refusal(feeder, first).into());
        for victim in at(Some(2)) {
            self.send(victim, self.forged_forward(feeder, first));
        }
    }

    /// The fastest replica of all, with room for any number of microbatches.
    fn boast(&self) -> Message {
        let service = Some(Duration::from_micros(1));
        Message::Heartbeat(Heartbeat {
            counter: self.told,
            service,
            credit: u32::MAX,
            ..Heartbeat::default()
        })
    }

    /// Half of the claims name an honest upstream, and half name none.
    fn false_claim(&self, feeder: Hop, first: Hop) -> Message {
        let start = self.told % MICROBATCHES;
        let route = if self.told.is_multiple_of(2) { vec![feeder, first] } else { vec![feeder] };
        let claimed = (start..start + CLAIMED).map(|id| proof(id, route.clone())).collect();
        Message::Claim { stage: STAGE, claimed, forfeited: Vec::new() }
    }

    fn false_refusal(&self, feeder: Hop, first: Hop) -> Message {
        let by = Hop::replica(STAGE, self.me);
        Message::Refused {
            proof: proof(self.told % MICROBATCHES, vec![feeder, first]),
            by,
            reason: Refusal::NonFinite,
        }
    }

    /// A well-formed microbatch that no feeder knows.
    fn forged_forward(&self, feeder: Hop, first: Hop) -> Envelope<Bytes> {
        let tokens = TokenCodec::new(&self.run);
        let layer = self.run.layers_of(StageIndex(2)).start;
        let message = Message::Forward {
            microbatch: MicrobatchId(NEVER_INJECTED + self.told),
            attempt: Attempt(0),
            purpose: Purpose::Train,
            is_retry: false,
            downstream_holder: None,
            route: vec![feeder, first, Hop::replica(STAGE, self.me)],
            key: RouteKey::default(),
            version: WeightVersion(0),
        };
        let ids = tokens.encode(&vec![65; tokens.ids()]).unwrap();
        let activation = vec![0; Codec::in_front_of(&self.run, layer).byte_len()];
        Envelope { message, ids: ids.into(), payload: activation.into() }
    }

    /// It holds what it was handed, and returns nothing.
    fn reply(&self, from: Instance, message: &Message) {
        if let Message::StatusRequest { microbatch, attempt, .. } = *message {
            let reply = Message::StatusReply { microbatch, attempt, status: Status::Held };
            self.send(Hop::replica(StageIndex(0), from), reply.into());
        }
    }

    fn send(&self, to: Hop, envelope: Envelope<Bytes>) {
        let address = self.table.table().get(to.instance).map(|member| member.address);
        if let Some(address) = address {
            // A queue that is full takes the next lie.
            let _ = self.plane.send(to.peer(), address, envelope);
        }
    }
}

fn proof(id: u64, route: Vec<Hop>) -> RouteProof {
    RouteProof { microbatch: MicrobatchId(id), route, key: RouteKey::default() }
}

fn settings() -> Settings {
    let limits = FrameLimits {
        header_bytes_max: 1 << 18,
        ids_bytes_max: 1 << 20,
        activation_bytes_max: 1 << 20,
        logits_bytes_max: 1024,
    };
    Settings { limits, window: 8, congestion: Congestion::default(), connections_max: CONNECTIONS_MAX }
}
