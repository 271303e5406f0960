//! A liar at work: a member with a place that says what is not so.

use crate::replica::Event;
use crate::{
    Attempt, Block, Duration, Envelope, Heartbeat, Hop, Instance, Loss, Message, MicrobatchId, Purpose,
    Refusal, Replica, RouteKey, RouteProof, StageIndex, Status,
};

use super::super::act::Act;
use super::super::payload::Payload;
use super::World;

/// Microbatches that a liar lies about at a time.
const LIES_MAX: usize = 16;

/// Ids that no feeder has: of the last block, and the last of the first one.
const MADE_UP: [MicrobatchId; 2] =
    [MicrobatchId((Block::COUNT as u64 - 1) * Block::IDS), MicrobatchId(Block::IDS - 1)];

/// A liar's view of the run.
struct Liar {
    me: Hop,
    stage: StageIndex,
    feeder: Instance,
    /// Microbatches that the liar was never handed.
    elsewhere: Vec<MicrobatchId>,
    before: Vec<Hop>,
    after: Vec<Hop>,
}

impl World {
    pub(super) fn begin_act(&mut self, index: usize, act: Act, lasts: Duration) {
        let now = self.now();
        let process = &mut self.replicas[index];
        process.act = Some((act, now + lasts));
        self.model.liars.insert(process.instance.peer);
    }

    /// What the liar says once a second, unprovoked.
    pub(super) fn lie(&mut self, index: usize) {
        let Some((act, liar)) = self.act_of(index).and_then(|(act, me)| Some((act, self.liar(index, me)?)))
        else {
            return;
        };
        let lies = match act {
            Act::FalseClaims => liar.claims(&[Hop::feeder(liar.feeder)]),
            Act::BorrowedClaims => liar.route().map_or_else(Vec::new, |route| liar.claims(&route)),
            Act::FalseRefusals => liar.refusals(),
            Act::ForgedForwards => liar.forwards(),
            Act::ForgedRequests => liar.requests(),
            Act::BlackHole => liar.offers(),
            Act::InventedPaths | Act::HugeWeight | Act::WildNumbers | Act::TwoMeans | Act::SilentOwner => {
                Vec::new()
            }
        };
        for (to, lie) in lies {
            self.model.forged(&lie);
            self.post(liar.me.instance, to.peer(), lie);
        }
    }

    /// What the liar says to a message, in place of its machine. Returns the event for the machine, if it is to have it.
    pub(super) fn swallow(&mut self, index: usize, event: Event<Payload>) -> Option<Event<Payload>> {
        let Event::Received { from, envelope: Envelope { message, .. } } = &event else { return Some(event) };
        let Some((act, me)) = self.act_of(index) else { return Some(event) };
        let answer = match (act, message) {
            (Act::BlackHole, Message::Forward { .. }) => None,
            (Act::BlackHole, &Message::StatusRequest { microbatch, attempt, .. }) => {
                Some(Message::StatusReply { microbatch, attempt, status: Status::Held })
            }
            (Act::InventedPaths, &Message::Forward { microbatch, attempt, purpose: Purpose::Train, .. })
                if me.stage == Some(StageIndex(0)) =>
            {
                let loss = Loss { sum: 1.0, ..Loss::default() };
                let path = self.invented_path(index, me);
                path.map(|path| Message::Backward { microbatch, attempt, loss, path })
            }
            _ => return Some(event),
        };
        if let Some(answer) = answer {
            self.post(me.instance, from.peer, answer.into());
        }
        None
    }

    /// The way in which a replica lies now, and its place.
    pub(super) fn act_of(&self, index: usize) -> Option<(Act, Hop)> {
        let (act, _) = self.replicas[index].act.filter(|(_, until)| self.now() < *until)?;
        let replica = self.replicas[index].replica.as_ref().filter(|replica| replica.is_serving())?;
        Some((act, replica.config().stage.hop()))
    }

    fn liar(&self, index: usize, me: Hop) -> Option<Liar> {
        let replica = self.replicas[index].replica.as_ref()?;
        let (stage, feeder) = (me.stage?, self.latest());
        let elsewhere = self.model.open_elsewhere(self.latest_index(), me.peer(), LIES_MAX);
        let at = |other: Option<u16>| at_stage(replica, other.map(StageIndex));
        let (before, after) = (at(stage.0.checked_sub(1)), at(stage.0.checked_add(1)));
        Some(Liar { me, stage, feeder: feeder.instance, elsewhere, before, after })
    }

    /// The path of a gradient over the first replica of each stage, to `me`.
    fn invented_path(&self, index: usize, me: Hop) -> Option<Vec<Hop>> {
        let replica = self.replicas[index].replica.as_ref()?;
        let first = |stage| at_stage(replica, Some(StageIndex(stage))).first().copied();
        (1..self.scenario.stages).rev().map(first).chain([Some(me)]).collect()
    }
}

fn at_stage(replica: &Replica<Payload>, stage: Option<StageIndex>) -> Vec<Hop> {
    let placed = |stage| replica.table().placed_on(stage).map(move |instance| Hop::replica(stage, instance));
    stage.into_iter().flat_map(placed).collect()
}

impl Liar {
    /// A route that ends at a replica of the stage before.
    fn route(&self) -> Option<Vec<Hop>> {
        let upstream = *self.before.first()?;
        let passed = (0..self.stage.0).map(|stage| Hop::replica(StageIndex(stage), upstream.instance));
        Some(std::iter::once(Hop::feeder(self.feeder)).chain(passed).collect())
    }

    fn proof(&self, microbatch: MicrobatchId, route: Vec<Hop>) -> RouteProof {
        RouteProof { microbatch, route, key: RouteKey([microbatch.0 as u8; 16]) }
    }

    fn claims(&self, route: &[Hop]) -> Vec<(Hop, Envelope<Payload>)> {
        let claimed: Vec<_> = self.elsewhere.iter().map(|&id| self.proof(id, route.to_vec())).collect();
        let claim = Message::Claim { stage: self.stage, claimed, forfeited: Vec::new() };
        vec![(Hop::feeder(self.feeder), claim.into())]
    }

    fn refusals(&self) -> Vec<(Hop, Envelope<Payload>)> {
        let refusal = |&id: &MicrobatchId| {
            let proof = self.proof(id, vec![Hop::feeder(self.feeder)]);
            let refused = Message::Refused { proof, by: self.me, reason: Refusal::Undeliverable };
            (Hop::feeder(self.feeder), refused.into())
        };
        self.elsewhere.iter().map(refusal).collect()
    }

    /// The way of a made-up microbatch up to the liar.
    fn way(&self) -> Vec<Hop> {
        let passed = (0..self.stage.0).map(|stage| Hop::replica(StageIndex(stage), self.me.instance));
        std::iter::once(Hop::feeder(self.feeder)).chain(passed).chain([self.me]).collect()
    }

    fn forwards(&self) -> Vec<(Hop, Envelope<Payload>)> {
        let forward = |microbatch| Envelope {
            message: Message::Forward {
                microbatch,
                attempt: Attempt(0),
                purpose: Purpose::Train,
                is_retry: false,
                route: self.way(),
                key: RouteKey::default(),
                downstream_holder: None,
                version: Default::default(),
            },
            ids: Payload::Tokens,
            payload: Payload::Activation,
        };
        let ids = || self.elsewhere.iter().copied().chain(MADE_UP);
        self.after.iter().flat_map(|&to| ids().map(move |id| (to, forward(id)))).collect()
    }

    fn requests(&self) -> Vec<(Hop, Envelope<Payload>)> {
        let request = |microbatch| Message::StatusRequest {
            microbatch,
            attempt: Attempt(1_000),
            route: self.way(),
            key: RouteKey::default(),
        };
        let ids = || self.elsewhere.iter().copied();
        self.after.iter().flat_map(|&to| ids().map(move |id| (to, request(id).into()))).collect()
    }

    /// Heartbeats of a replica that is always idle and the fastest of all.
    fn offers(&self) -> Vec<(Hop, Envelope<Payload>)> {
        let service = Some(Duration::from_micros(1));
        let heartbeat = Heartbeat { counter: 1, service, credit: 1_000_000, ..Heartbeat::default() };
        let feeder = (self.stage == StageIndex(0)).then(|| Hop::feeder(self.feeder));
        let senders = self.before.iter().copied().chain(feeder);
        senders.map(|to| (to, Message::Heartbeat(heartbeat).into())).collect()
    }
}
