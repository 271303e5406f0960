//! The reference model: what must hold, whatever happens.

use std::collections::{BTreeMap, BTreeSet};

use crate::feeder::{self, Outcome, Record};
use crate::{
    Attempt, Feeder, Holding, Hop, Incarnation, Message, MicrobatchId, PeerId, Purpose, Stage, StageIndex,
    stage,
};

/// Watches what goes in and comes out of every machine.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    seed: u64,
    pub(crate) injected: BTreeSet<MicrobatchId>,
    pub(crate) outcomes: BTreeMap<MicrobatchId, Outcome>,
    pub(crate) evaluated: u64,
    pub(crate) measured: Vec<feeder::Measured>,
    /// Who applied what: one start of one replica for each microbatch and stage, ever.
    pub(crate) applied: BTreeMap<(MicrobatchId, StageIndex), (PeerId, Incarnation)>,
    granted: BTreeMap<(MicrobatchId, StageIndex), Hop>,
    attempts: BTreeMap<(usize, MicrobatchId), Attempt>,
    /// What a replica has sent or asked for already: later hints are of no use to it.
    handed_on: BTreeSet<(usize, MicrobatchId)>,
    /// Microbatches that took a slot.
    slotted: BTreeMap<usize, BTreeSet<MicrobatchId>>,
    /// Holders at the next stage a replica was told of and has not asked.
    told: BTreeMap<(usize, MicrobatchId), Hop>,
    pub(crate) in_flight_max: u64,
    pub(crate) finished: u32,
    /// How often each fault struck and each way to recover was gone.
    pub(crate) paths: BTreeMap<&'static str, u64>,
}

impl Judge {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    pub(super) fn path(&mut self, name: &'static str) {
        *self.paths.entry(name).or_default() += 1;
    }

    pub(super) fn finished(&mut self) {
        self.finished += 1;
    }

    pub(super) fn in_flight(&mut self, count: u64) {
        self.in_flight_max = self.in_flight_max.max(count);
    }

    /// A replica starts from nothing.
    pub(super) fn started(&mut self, index: usize) {
        self.attempts.retain(|(replica, _), _| *replica != index);
        self.told.retain(|(replica, _), _| *replica != index);
        self.handed_on.retain(|(replica, _)| *replica != index);
        self.slotted.remove(&index);
    }

    pub(super) fn applied(
        &mut self,
        microbatch: MicrobatchId,
        stage: StageIndex,
        peer: PeerId,
        incarnation: Incarnation,
    ) {
        let before = self.applied.insert((microbatch, stage), (peer, incarnation));
        assert_eq!(before, None, "seed {}: {microbatch} is applied twice at {stage}", self.seed);
        let granted = self.granted.get(&(microbatch, stage)).map(|hop| (hop.peer, hop.incarnation));
        assert_eq!(
            granted,
            Some((peer, incarnation)),
            "seed {}: {microbatch} ungranted at {stage}",
            self.seed
        );
    }

    pub(super) fn feeder_acts(&mut self, action: &feeder::Action<u8>, feeder: &Feeder<u8>) {
        let seed = self.seed;
        match action {
            feeder::Action::Journal(Record::Granted { microbatch, to }) => {
                let key = (*microbatch, to.stage.unwrap());
                assert_eq!(self.granted.insert(key, *to), None, "seed {seed}: {key:?} is granted twice");
            }
            feeder::Action::Send { to, message: Message::Granted { granted, denied } } => {
                let claimant = feeder.table().members().find(|member| member.peer == *to);
                assert!(claimant.is_some() || granted.is_empty(), "seed {seed}: a grant to nobody");
                self.paths.entry("claim denied").and_modify(|n| *n += denied.len() as u64).or_insert(0);
                for id in granted {
                    let known = self.granted.iter().any(|((granted, _), hop)| {
                        granted == id && hop.peer == *to && feeder.table().placed(hop)
                    });
                    assert!(known, "seed {seed}: {id} is granted to a start that is none");
                }
            }
            feeder::Action::Send {
                message: Message::Forward { microbatch, purpose: Purpose::Train, attempt, .. },
                ..
            } => {
                if !self.injected.insert(*microbatch) {
                    self.path("sent again by the feeder");
                }
                assert!(*attempt == Attempt(0) || self.injected.contains(microbatch));
            }
            feeder::Action::Send { message: Message::Ask { .. }, .. } => self.path("asked by the feeder"),
            feeder::Action::Outcome { microbatch, outcome } if microbatch.is_evaluation() => {
                self.evaluated += u64::from(matches!(outcome, Outcome::Evaluated { .. }));
            }
            feeder::Action::Outcome { microbatch, outcome } => {
                let before = self.outcomes.insert(*microbatch, outcome.clone());
                assert_eq!(before, None, "seed {seed}: {microbatch} has two outcomes");
                if matches!(outcome, Outcome::Finished { .. }) {
                    for stage in (0..feeder.config().stages).map(StageIndex) {
                        let granted = self.granted.contains_key(&(*microbatch, stage));
                        assert!(granted, "seed {seed}: {microbatch} finished, {stage} ungranted");
                    }
                } else {
                    self.path("refused");
                }
            }
            feeder::Action::EvaluationDone(measured) => self.measured.push(*measured),
            _ => {}
        }
    }

    pub(super) fn replica_hears(&mut self, index: usize, event: &stage::Event<u8>, stage: &Stage<u8>) {
        let next = Some(StageIndex(stage.config().stage.0 + 1));
        let stage::Event::Received { message, from, incarnation } = event else {
            if let stage::Event::Membership(membership) = event {
                let gone = |hop: &Hop| {
                    !membership.members.iter().any(|m| (m.peer, m.incarnation) == (hop.peer, hop.incarnation))
                };
                self.told.retain(|(replica, _), holder| *replica != index || !gone(holder));
            }
            return;
        };
        match message {
            Message::Forward { microbatch, anew, holder, purpose: Purpose::Train, .. }
                if !stage.holds(*microbatch) =>
            {
                if !*anew {
                    self.slotted.entry(index).or_default().insert(*microbatch);
                } else {
                    self.slotted.entry(index).or_default().remove(microbatch);
                }
                let known = stage.table().get(*from, *incarnation).is_some();
                let placed = |holder: &Hop| holder.stage == next && stage.table().placed(holder);
                if let Some(holder) = holder.filter(|holder| known && placed(holder)) {
                    self.told.insert((index, *microbatch), holder);
                }
            }
            Message::Held { microbatch, holder } => {
                let first_word = !self.handed_on.contains(&(index, *microbatch));
                if holder.stage == next
                    && stage.holds(*microbatch)
                    && first_word
                    && stage.table().placed(holder)
                {
                    self.told.insert((index, *microbatch), *holder);
                }
            }
            Message::Holds { microbatch, holding, .. } => {
                if *holding == Holding::Missing {
                    self.path("denied by a holder");
                }
                if *holding == Holding::Busy {
                    self.path("busy");
                }
                if self
                    .told
                    .get(&(index, *microbatch))
                    .is_some_and(|h| (h.peer, h.incarnation) == (*from, *incarnation))
                {
                    self.told.remove(&(index, *microbatch));
                }
            }
            _ => {}
        }
    }

    pub(super) fn replica_acts(&mut self, index: usize, action: &stage::Action<u8>, stage: &Stage<u8>) {
        let seed = self.seed;
        match action {
            // A verdict on a neighbour: whoever was told of may be the one.
            stage::Action::Counted(stage::Note::Lost { peer, .. }) => {
                self.told.retain(|(replica, _), holder| *replica != index || holder.peer != *peer);
            }
            stage::Action::Send {
                message: Message::Forward { microbatch, attempt, purpose: Purpose::Train, .. },
                ..
            } => {
                let told = self.told.get(&(index, *microbatch));
                assert!(told.is_none(), "seed {seed}: {microbatch} is sent anew, but {told:?} was not asked");
                self.new_attempt(index, *microbatch, *attempt);
                self.handed_on.insert((index, *microbatch));
            }
            stage::Action::Send { message: Message::Ask { microbatch, .. }, .. } => {
                self.told.remove(&(index, *microbatch));
                self.handed_on.insert((index, *microbatch));
            }
            stage::Action::Counted(note) => match note {
                stage::Note::Rerouted(_) => self.path("sent again by a replica"),
                stage::Note::Restored(_) => self.path("restored"),
                stage::Note::Found(_) => self.path("found downstream"),
                stage::Note::Relayed(_) => self.path("relayed"),
                stage::Note::Refused(_, crate::Refusal::Undeliverable) => self.path("undeliverable"),
                stage::Note::Unexpected(id) => {
                    panic!("seed {seed}: {id} unexpected at {:?}", stage.config().hop())
                }
                _ => {}
            },
            stage::Action::Send {
                message: Message::Holds { microbatch, holding: Holding::Busy, .. },
                ..
            } => {
                self.told.remove(&(index, *microbatch));
            }
            stage::Action::Send { message: Message::Held { .. }, .. } => self.path("held told"),
            _ => {}
        }
    }

    /// Numbers of one sender grow: an answer to an earlier sending is no answer to a later one.
    fn new_attempt(&mut self, index: usize, microbatch: MicrobatchId, attempt: Attempt) {
        let before = self.attempts.insert((index, microbatch), attempt);
        assert!(
            before.is_none_or(|before| before < attempt),
            "seed {}: {attempt:?} after {before:?}",
            self.seed
        );
    }

    /// No more stashes than slots, but for what was sent anew.
    pub(super) fn slots(&self, index: usize, stage: &Stage<u8>, stashes: &BTreeSet<MicrobatchId>) {
        let slots = stage.config().slots;
        assert!(stage.slots_used() <= slots, "seed {}: slots", self.seed);
        let slotted = self.slotted.get(&index).map_or(0, |slotted| slotted.intersection(stashes).count());
        assert!(slotted <= slots, "seed {}: {slotted} stashes for {slots} slots", self.seed);
    }
}
