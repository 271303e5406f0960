//! A standby that attacks every member throughout a run, and a stranger that tries to connect.

use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use quinn::Connection;
use swarmline::net::control::{Control, HEARTBEAT_INTERVAL, MemberStats, Placement};
use swarmline::net::frame::{self, FrameLimits};
use swarmline::net::table_log::TableReader;
use swarmline::net::{Identity, Invite};
use swarmline::report::Event;
use swarmline_proto::{PROTOCOL_VERSION, v1};
use swarmline_scheduler::{
    Attempt, Envelope, Hop, Incarnation, Instance, Loss, Member, Message, MicrobatchId, Purpose, Refusal,
    Role, RouteKey, RouteProof, StageIndex, WeightVersion,
};
use tokio::sync::oneshot;

use crate::process::Process;
use crate::recipe::Recipe;
use crate::rogue::{Rogue, registration, throw};
use crate::swarm::{Swarm, account};

const STANDBY: [u8; 32] = [66; 32];
const STRANGER: [u8; 32] = [99; 32];
const ME: Incarnation = Incarnation(1);
/// Pause between two rounds, so that the run gets time too.
const PAUSE: Duration = Duration::from_millis(20);
/// Wider than any member's limits, so that the attacker can send frames that are too long for the run.
const LIMITS: FrameLimits = FrameLimits {
    header_bytes_max: 4096,
    ids_bytes_max: 1 << 20,
    activation_bytes_max: 1 << 20,
    logits_bytes_max: 1024,
};
/// Distance of the ids of the run that are lied about in one round.
const LIE_EVERY: u64 = 64;
/// An id that no feeder has leased.
const FOREIGN: u64 = 1 << 40;
/// `SWL` and version 2 of the frame layout.
const MAGIC: u32 = 0x5357_4C02;

/// Parts of the victims' lines about the frames of [`malformed`].
const SIGNS: [&str; 5] = [
    "the header is announced with 4294967295 bytes",
    "the activation or gradient is announced with 4294967296 bytes",
    "the token ids is announced with 65536 bytes",
    "the frame ends inside the activation or gradient",
    "not a swarmline frame",
];

#[test]
fn a_run_under_attack_loses_nothing() {
    let recipe = Recipe { steps: 1000, ..Recipe::asynchronous() };
    let mut swarm = Swarm::serve(&recipe);
    let attack = Attack::begin(&swarm.invite, recipe.steps);
    let mut feeder = swarm.start_feeder(&[]);
    feeder.hear("that it has its text", |event| matches!(event, Event::Corpus { .. }).then_some(()));
    hear_every_sign(&mut swarm.replicas);
    assert_eq!(feeder.end(), 0);
    attack.end();
    let replicas = swarm.end();

    let account = account(&mut feeder);
    assert_eq!((account.injected, account.finished), (recipe.steps, recipe.steps));
    assert_eq!((account.lost, account.refused, account.ungranted), (0, 0, 0));
    for replica in replicas {
        assert_eq!((replica.steps, replica.refused), (recipe.steps, 0), "{replica:?}");
    }
}

/// Waits until every victim has reported every kind of malformed frame, which it does only now and then.
fn hear_every_sign(victims: &mut [Process]) {
    for victim in victims {
        for sign in SIGNS {
            victim.hear(sign, |event| match event {
                Event::Incident(incident) => incident.to_string().contains(sign).then_some(()),
                _ => None,
            });
        }
    }
}

/// An attack in a thread of its own, until it is ended or dropped.
struct Attack {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Attack {
    fn begin(invite: &str, microbatches: u64) -> Self {
        let invite: Invite = invite.parse().unwrap();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let mut attacker = Attacker::join(&invite, microbatches).await;
                tokio::select! {
                    _ = stopped => attacker.control.leave("done").await,
                    () = attacker.attack() => {}
                }
            });
        });
        Self { stop, thread }
    }

    fn end(self) {
        let _ = self.stop.send(());
        self.thread.join().unwrap();
    }
}

/// A genuine member of the run, and a stranger's key.
struct Attacker {
    standby: Rogue,
    stranger: Rogue,
    control: Control,
    table: TableReader,
    microbatches: u64,
}

impl Attacker {
    async fn join(invite: &Invite, microbatches: u64) -> Self {
        // No peer ever dials a standby.
        let data_address = "127.0.0.1:9".parse().unwrap();
        let registration = registration(Role::Replica, data_address);
        let identity = Identity::from_seed(STANDBY);
        let (control, joined) = Control::join(invite, &identity, registration).await.unwrap();
        assert_eq!(joined.placement, Placement::Standby);
        let hello = v1::Hello {
            protocol_version: PROTOCOL_VERSION,
            manifest_digest: joined.digest.0.to_vec(),
            incarnation: ME.0,
        };
        let table = control.follow(joined.tables);
        let mut heartbeats = control.clone();
        tokio::spawn(async move {
            while heartbeats.heartbeat(&MemberStats::default()).await.is_ok() {
                tokio::time::sleep(HEARTBEAT_INTERVAL).await;
            }
        });
        let (standby, stranger) = (Rogue::new(STANDBY, &hello), Rogue::new(STRANGER, &hello));
        Self { standby, stranger, control, table, microbatches }
    }

    async fn attack(&self) {
        // Closing a connection drops frames that its victim has not read: each stays open for another round.
        let mut connections = Vec::new();
        for round in 0.. {
            // Fails when the run is over and the victims are gone.
            if let Ok(opened) = self.attack_every_member(round).await {
                connections = opened;
            }
            tokio::time::sleep(PAUSE).await;
        }
        drop(connections);
    }

    async fn attack_every_member(&self, round: u64) -> anyhow::Result<Vec<Connection>> {
        let me = Identity::from_seed(STANDBY).peer();
        let members = self.table.table().membership().members;
        let mut connections = Vec::new();
        for victim in members.iter().filter(|member| member.instance.peer != me) {
            assert!(self.stranger.intrude(victim).await.is_err(), "{victim:?} lets a stranger in");
            connections.push(self.attack_one(victim, round).await?);
        }
        Ok(connections)
    }

    async fn attack_one(&self, victim: &Member, round: u64) -> anyhow::Result<Connection> {
        let connection = self.standby.intrude(victim).await?;
        for frame in malformed() {
            throw(&connection, &frame).await?;
        }
        for id in (round % LIE_EVERY..self.microbatches).step_by(LIE_EVERY as usize).chain([FOREIGN]) {
            for lie in lies(MicrobatchId(id)) {
                throw(&connection, &whole(&lie)).await?;
            }
        }
        Ok(connection)
    }
}

/// Bytes that are not frames of this run, in the order of [`SIGNS`].
fn malformed() -> [Vec<u8>; 5] {
    let huge = v1::Backward { loss: Some(v1::Loss::default()), ..Default::default() };
    let huge = v1::frame::Message::Backward(huge);
    let huge = v1::Frame { message: Some(huge), ids_bytes: 0, payload_bytes: 4 << 30 }.encode_to_vec();
    let preamble = |header_bytes: u32| [MAGIC.to_be_bytes(), header_bytes.to_be_bytes()].concat();
    let mut truncated = whole(&forward(MicrobatchId(FOREIGN), 8));
    truncated.pop();
    [
        preamble(u32::MAX),
        [preamble(u32::try_from(huge.len()).unwrap()), huge].concat(),
        whole(&forward(MicrobatchId(FOREIGN), 1 << 16)),
        truncated,
        vec![0xEE; 300],
    ]
}

/// Well-formed frames from a peer that has no part in this microbatch.
fn lies(microbatch: MicrobatchId) -> [Envelope<Bytes>; 4] {
    let (attempt, loss) = (Attempt(0), Loss { sum: 1.0, tokens: 1 });
    let proof = || RouteProof { microbatch, route: vec![hop(None)], key: RouteKey::default() };
    [
        forward(microbatch, 8),
        Message::Backward { microbatch, attempt, loss, path: Vec::new() }.into(),
        Message::Evaluated { proof: proof(), attempt, loss }.into(),
        Message::Refused { proof: proof(), by: hop(Some(StageIndex(3))), reason: Refusal::Unknown }.into(),
    ]
}

fn forward(microbatch: MicrobatchId, ids_bytes: usize) -> Envelope<Bytes> {
    let message = Message::Forward {
        microbatch,
        attempt: Attempt(0),
        purpose: Purpose::Train,
        is_retry: false,
        downstream_holder: None,
        route: vec![hop(None)],
        key: RouteKey::default(),
        version: WeightVersion(0),
    };
    Envelope { message, ids: vec![65; ids_bytes].into(), payload: vec![0; 8].into() }
}

fn hop(stage: Option<StageIndex>) -> Hop {
    Hop { stage, instance: Instance::new(Identity::from_seed(STANDBY).peer(), ME) }
}

fn whole(envelope: &Envelope<Bytes>) -> Vec<u8> {
    frame::encode(envelope, &LIMITS).unwrap().to_vec()
}
