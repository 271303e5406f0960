//! Readers and replicas, message by message.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::*;
use crate::fixtures::{a, b, member, restarted};
use crate::{
    Duration, Envelope, Hop, Incarnation, Instance, Member, MemberState, Membership, Message, PeerId,
    PeerTable, Rng, Time,
};

const STAGES: u16 = 3;
const SECOND: Duration = Duration::from_secs(1);

/// What a replica does with a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Conduct {
    Computes,
    /// It takes the pass and never replies.
    Silent,
    Fails,
}

struct World {
    now: Time,
    reader: Reader<String>,
    replicas: BTreeMap<Instance, (Predictions<String>, PeerTable, Conduct)>,
    table: Membership,
    /// Messages in a hundred that are lost, and what draws them.
    loss: u64,
    rng: Rng,
    predicted: Vec<String>,
    failed: Vec<Failure>,
    replaced: Vec<(PeerId, u16)>,
}

fn me() -> Instance {
    Instance::new(PeerId([0xEE; 32]), Incarnation(1))
}

fn reading(instance: Instance) -> Member {
    let address = SocketAddr::from(([127, 0, 0, 1], 4_000));
    Member { instance, state: MemberState::Reading, address }
}

impl World {
    fn of(replicas: &[Hop]) -> Self {
        let mut members: Vec<_> = replicas.iter().copied().map(member).chain([reading(me())]).collect();
        members.sort_by_key(|member| member.instance.peer);
        let process =
            |hop: &Hop| (hop.instance, (Predictions::new(), PeerTable::new(*hop), Conduct::Computes));
        let mut world = Self {
            now: Time(0),
            reader: Reader::new(Config { stages: STAGES, seed: 3 }),
            replicas: replicas.iter().map(process).collect(),
            table: Membership { version: 1, members, ..Membership::default() },
            loss: 0,
            rng: Rng::new(0),
            predicted: Vec::new(),
            failed: Vec::new(),
            replaced: Vec::new(),
        };
        world.publish();
        world
    }

    fn pairs() -> Self {
        Self::of(&(0..STAGES).flat_map(|stage| [a(stage), b(stage)]).collect::<Vec<_>>())
    }

    fn publish(&mut self) {
        for (_, table, _) in self.replicas.values_mut() {
            table.update(self.table.clone());
        }
        self.tell(Event::Membership(self.table.clone().into()));
    }

    /// The replica leaves the table, and its process is gone.
    fn remove(&mut self, hop: Hop) {
        self.replicas.remove(&hop.instance);
        self.table.members.retain(|member| member.instance != hop.instance);
        self.table.version += 1;
        self.publish();
    }

    fn conduct(&mut self, hop: Hop, conduct: Conduct) {
        self.replicas.get_mut(&hop.instance).unwrap().2 = conduct;
    }

    fn predict(&mut self, text: &str) {
        self.tell(Event::Predict { ids: text.to_owned(), position: 0 });
    }

    fn tell(&mut self, event: Event<String>) {
        self.reader.handle(self.now, event);
        while let Some(action) = self.reader.poll_action() {
            match action {
                Action::Send { to, envelope } => self.ask(to, envelope),
                Action::Predicted(logits) => self.predicted.push(logits),
                Action::Failed(failure) => self.failed.push(failure),
                Action::Replaced { replica, stage } => self.replaced.push((replica, stage.0)),
            }
        }
    }

    fn ask(&mut self, to: PeerId, envelope: Envelope<String>) {
        let hop = self.table.members.iter().find(|member| member.instance.peer == to).and_then(Member::hop);
        let hop = hop.expect("a replica is asked");
        let Message::Prediction(message) = envelope.message else { panic!("{envelope:?}") };
        if self.is_lost() {
            return;
        }
        let Some((replica, table, conduct)) = self.replicas.get_mut(&hop.instance) else { return };
        replica.on_message(hop.stage.unwrap(), table, me(), (message, envelope.ids, envelope.payload));
        let mut replies = Vec::new();
        while let Some(action) = replica.poll_action() {
            match action {
                ServingAction::Execute(_) if *conduct == Conduct::Silent => {}
                ServingAction::Execute(_) if *conduct == Conduct::Fails => {
                    replica.on_computed(Err("a number in it is not finite".to_owned()));
                }
                ServingAction::Execute(job) => {
                    let passed = format!("{}{}", job.activation, job.pass.stage.0);
                    replica.on_computed(Ok(if passed.len() == 3 { job.ids + &passed } else { passed }));
                }
                ServingAction::Send { message, payload, .. } => replies.push((message, payload)),
            }
        }
        for (message, payload) in replies {
            if self.is_lost() {
                continue;
            }
            let envelope = Envelope::with_payload(Message::Prediction(message), payload);
            self.tell(Event::Received { from: hop.instance, envelope });
        }
    }

    fn is_lost(&mut self) -> bool {
        self.rng.below(100) < self.loss
    }

    /// A replica that is silent computes from now on, without what it held.
    fn heal(&mut self, hop: Hop) {
        if let Some((replica, _, conduct @ Conduct::Silent)) = self.replicas.get_mut(&hop.instance) {
            (*replica, *conduct) = (Predictions::new(), Conduct::Computes);
        }
    }

    /// The replica is a member again, as another start, if it is none.
    fn bring_back(&mut self, hop: Hop) {
        if self.table.instance(hop.peer()).is_some() {
            return;
        }
        self.replicas.insert(hop.instance, (Predictions::new(), PeerTable::new(hop), Conduct::Computes));
        let place = self.table.members.partition_point(|member| member.instance.peer < hop.peer());
        self.table.members.insert(place, member(hop));
        self.table.version += 1;
        self.publish();
    }

    /// Lets time pass until the reader waits for nothing, or for so long.
    fn pass(&mut self, within: Duration) {
        let end = self.now + within;
        while let Some(at) = self.reader.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.tell(Event::Timeout);
        }
        self.now = end;
    }
}

#[test]
fn a_text_goes_through_every_stage_once_and_comes_back_as_logits() {
    let mut world = World::pairs();
    for text in ["a", "b"] {
        world.predict(text);
    }
    assert_eq!(world.predicted, ["a012", "b012"]);
    assert_eq!((world.failed.len(), world.replaced.len(), world.reader.poll_timeout()), (0, 0, None));
}

#[test]
fn a_replica_that_leaves_dies_or_is_silent_in_a_pass_is_replaced() {
    for lost in ["left", "died", "silent"] {
        for stage in 0..STAGES {
            let mut world = World::pairs();
            world.conduct(a(stage), Conduct::Silent);
            let (mut passes, mut asked) = (0, false);
            while !asked {
                passes += 1;
                world.predict("x");
                asked = world.predicted.len() < passes;
            }
            match lost {
                "left" => world.remove(a(stage)),
                "died" => world.tell(Event::PeerLost(a(stage).instance)),
                _ => world.pass(30 * SECOND),
            }
            assert_eq!(world.predicted.len(), passes, "{lost} at stage {stage}");
            assert_eq!(world.replaced, [(a(stage).instance.peer, stage)], "{lost}");
        }
    }
}

#[test]
fn a_stage_without_a_replica_ends_the_pass_after_a_while_unless_one_comes() {
    let mut world = World::of(&[a(0), a(2)]);
    world.predict("x");
    world.pass(9 * SECOND);
    assert_eq!(world.failed, []);
    world.pass(2 * SECOND);
    assert_eq!(world.failed, [Failure::Unserved { stage: StageIndex(1) }]);
    assert!(world.failed[0].to_string().contains("no replica serves stage 1"), "{}", world.failed[0]);

    let mut world = World::pairs();
    [a(1), b(1)].into_iter().for_each(|hop| world.remove(hop));
    world.predict("x");
    world.pass(5 * SECOND);
    world.bring_back(restarted(a(1)));
    assert_eq!((world.predicted.len(), world.failed.len()), (1, 0));
}

#[test]
fn a_stage_whose_replicas_never_reply_ends_the_pass() {
    let mut world = World::pairs();
    [a(1), b(1)].into_iter().for_each(|hop| world.conduct(hop, Conduct::Silent));
    world.predict("x");
    world.pass(STAGE_WITHIN + SECOND);
    assert_eq!(world.failed, [Failure::Unanswered { stage: StageIndex(1) }]);
    assert_eq!(world.reader.poll_timeout(), None);
}

#[test]
fn what_one_replica_cannot_compute_another_is_asked_for() {
    let mut world = World::pairs();
    world.conduct(a(1), Conduct::Fails);
    (0..8).for_each(|_| world.predict("x"));
    assert_eq!((world.predicted.len(), world.failed.len()), (8, 0));
    assert!(world.replaced.contains(&(a(1).instance.peer, 1)), "it was asked");
    world.conduct(b(1), Conduct::Fails);
    world.predict("x");
    let fault = "a number in it is not finite".to_owned();
    assert_eq!(world.failed, [Failure::Refused { stage: StageIndex(1), fault }]);
}

#[test]
fn a_replica_computes_for_readers_only_and_for_a_few_at_a_time() {
    let readers: Vec<_> = (1..=PREDICTIONS_MAX as u8 + 2)
        .map(|key| Instance::new(PeerId([key + 30; 32]), Incarnation(1)))
        .collect();
    let mut members: Vec<_> =
        readers.iter().copied().map(reading).chain([member(a(0)), member(a(1))]).collect();
    members.sort_by_key(|member| member.instance.peer);
    let mut table = PeerTable::new(a(0));
    table.update(Membership { version: 1, members, ..Membership::default() });
    let mut replica = Predictions::<String>::new();
    let ask = |replica: &mut Predictions<String>, from: Instance, stage| {
        let request = PredictionMessage::Request(Pass { number: 0, stage: StageIndex(stage), position: 0 });
        replica.on_message(StageIndex(0), &table, from, (request, String::new(), String::new()));
        std::iter::from_fn(|| replica.poll_action()).last()
    };
    let declined = |action: Option<ServingAction<String>>| match action {
        Some(ServingAction::Send { message: PredictionMessage::Declined { reason, .. }, .. }) => Some(reason),
        _ => None,
    };
    assert_eq!(declined(ask(&mut replica, a(1).instance, 0)), Some(Decline::NotAReader), "a replica");
    assert_eq!(declined(ask(&mut replica, readers[0], 1)), Some(Decline::NotAReader), "another stage");
    assert!(matches!(ask(&mut replica, readers[0], 0), Some(ServingAction::Execute(_))));
    for _ in 0..PREDICTIONS_OF_READER_MAX {
        assert_eq!(declined(ask(&mut replica, readers[0], 0)), None);
    }
    assert_eq!(declined(ask(&mut replica, readers[0], 0)), Some(Decline::Busy), "a reader has two that wait");
    let waiting =
        readers[1..].iter().filter(|&&reader| declined(ask(&mut replica, reader, 0)).is_none()).count();
    assert_eq!(waiting, PREDICTIONS_MAX - PREDICTIONS_OF_READER_MAX);
}

#[test]
fn whatever_is_lost_dies_and_returns_a_text_gets_its_logits_where_each_stage_has_a_replica() {
    for seed in 0..300 {
        let mut world = World::pairs();
        (world.rng, world.loss) = (Rng::new(seed), seed % 25);
        for pass in 0..5 {
            let text = format!("{pass}:");
            world.predict(&text);
            let began = world.now;
            while world.predicted.len() <= pass && world.failed.is_empty() {
                assert!(world.now < began + 3 * STAGE_WITHIN, "seed {seed}: pass {pass} has no end");
                let stage = world.rng.below(STAGES.into()) as u16;
                let (one, other) =
                    if world.rng.below(2) == 0 { (a(stage), b(stage)) } else { (b(stage), a(stage)) };
                match world.rng.below(6) {
                    0 => world.remove(one),
                    1 => world.tell(Event::PeerLost(one.instance)),
                    2 if world.replicas.contains_key(&one.instance) => world.conduct(one, Conduct::Silent),
                    _ => {}
                }
                world.bring_back(other);
                world.heal(other);
                world.pass(SECOND);
            }
            assert_eq!(world.failed, [], "seed {seed}");
            assert_eq!(world.predicted[pass], format!("{text}012"), "seed {seed}");
        }
    }
}
