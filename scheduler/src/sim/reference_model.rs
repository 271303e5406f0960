//! The reference model: what must hold, whatever happens.

pub(super) mod averaging;

use std::collections::{BTreeMap, BTreeSet};

use super::averaging::Means;
use crate::feeder::{self, Continued, Outcome, Record, TakenOver};
use crate::{
    Attempt, Feeder, Holding, Hop, Incarnation, Message, MicrobatchId, PeerId, Purpose, Refusal, Stage,
    StageIndex, stage,
};

/// Watches what goes in and comes out of every machine.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    seed: u64,
    /// What was injected, and by which feeder.
    pub(crate) injected: BTreeMap<MicrobatchId, usize>,
    pub(crate) outcomes: BTreeMap<MicrobatchId, Outcome>,
    pub(crate) evaluated: u64,
    pub(crate) measured: Vec<feeder::Measured>,
    /// Who applied what: one start of one replica for each microbatch and stage, ever.
    pub(crate) applied: BTreeMap<(MicrobatchId, StageIndex), (PeerId, Incarnation)>,
    /// What each feeder has granted.
    granted: BTreeMap<(MicrobatchId, StageIndex), BTreeMap<usize, Hop>>,
    /// Which feeders gave an outcome.
    decided: BTreeSet<(MicrobatchId, usize)>,
    /// Ids that a successor never heard of, half-open.
    unknown: Vec<(MicrobatchId, MicrobatchId)>,
    /// What each replica has seen since it started.
    seen: BTreeMap<usize, Seen>,
    pub(crate) in_flight_max: u64,
    pub(crate) finished: u32,
    pub(super) means: Means,
    /// How often each fault struck and each way to recover was gone.
    pub(crate) paths: BTreeMap<&'static str, u64>,
}

/// What one start of a replica has seen and done.
#[derive(Debug, Default)]
struct Seen {
    /// Number of the latest sending; whatever is in here was handed on, and later hints are of no use.
    attempts: BTreeMap<MicrobatchId, Option<Attempt>>,
    /// Microbatches that took a slot.
    slotted: BTreeSet<MicrobatchId>,
    /// Holders at the next stage it was told of and has not asked.
    told: BTreeMap<MicrobatchId, Hop>,
}

impl Judge {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, means: Means::new(seed), ..Self::default() }
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
        self.seen.remove(&index);
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
        let mut granted = self.granted.get(&(microbatch, stage)).into_iter().flat_map(BTreeMap::values);
        assert!(
            granted.any(|hop| (hop.peer, hop.incarnation) == (peer, incarnation)),
            "seed {}: {microbatch} ungranted at {stage}",
            self.seed
        );
    }

    /// Whether a successor could not know that this was injected.
    pub(crate) fn unknown(&self, microbatch: MicrobatchId) -> bool {
        self.unknown.iter().any(|(first, end)| (first..end).contains(&&microbatch))
    }

    fn grant(&mut self, feeder: usize, microbatch: MicrobatchId, to: Hop) {
        let key = (microbatch, to.stage.unwrap());
        let before = self.granted.entry(key).or_default().insert(feeder, to);
        assert_eq!(before, None, "seed {}: {key:?} is granted twice", self.seed);
    }

    fn taken_over(&mut self, feeder: usize, taken: &TakenOver) {
        self.path("taken over");
        let end = taken.lease.first.0 + taken.lease.count;
        self.unknown.push((taken.end, MicrobatchId(end)));
        for Continued { microbatch, grants, .. } in &taken.continued {
            self.path("continued by a successor");
            grants.iter().for_each(|&hop| self.grant(feeder, *microbatch, hop));
        }
    }

    fn decide(&mut self, feeder: usize, microbatch: MicrobatchId, outcome: &Outcome) {
        let first = self.decided.insert((microbatch, feeder));
        assert!(first, "seed {}: {microbatch} has two outcomes", self.seed);
        // What a former feeder finished and could tell nobody may be decided again.
        let finished = matches!(self.outcomes.get(&microbatch), Some(Outcome::Finished { .. }));
        if !finished {
            self.outcomes.insert(microbatch, outcome.clone());
        }
    }

    pub(super) fn feeder_acts(&mut self, index: usize, action: &feeder::Action<u8>, feeder: &Feeder<u8>) {
        let seed = self.seed;
        match action {
            feeder::Action::Journal(Record::Granted { microbatch, to }) => {
                self.grant(index, *microbatch, *to);
            }
            feeder::Action::Journal(Record::TakenOver(taken)) => self.taken_over(index, taken),
            feeder::Action::Send { to, message: Message::Granted { granted, denied } } => {
                if !denied.is_empty() {
                    self.path("claim denied");
                }
                for &id in granted {
                    let stages = (id, StageIndex(0))..=(id, StageIndex(u16::MAX));
                    let of = |hop: &&Hop| hop.peer == *to;
                    let granted = self.granted.range(stages).flat_map(|(_, by)| by.get(&index));
                    let grants: Vec<_> = granted.filter(of).collect();
                    assert!(!grants.is_empty(), "seed {seed}: {id} is granted twice");
                    let lives = grants.iter().any(|hop| feeder.table().placed(hop));
                    assert!(lives, "seed {seed}: {id} is granted to a start that is gone");
                }
            }
            feeder::Action::Send {
                message: Message::Forward { microbatch, purpose: Purpose::Train, attempt, anew, .. },
                ..
            } => {
                let by = *self.injected.entry(*microbatch).or_insert(index);
                assert!(*anew || by == index, "seed {seed}: {microbatch} is injected twice");
                if *anew {
                    self.path("sent again by the feeder");
                }
                assert!(*attempt == Attempt(0) || self.injected.contains_key(microbatch));
            }
            feeder::Action::Send { message: Message::Ask { .. }, .. } => self.path("asked by the feeder"),
            feeder::Action::Outcome { microbatch, outcome } if microbatch.is_evaluation() => {
                self.evaluated += u64::from(matches!(outcome, Outcome::Evaluated { .. }));
            }
            feeder::Action::Outcome { microbatch, outcome } => {
                self.decide(index, *microbatch, outcome);
                if matches!(outcome, Outcome::Refused { reason: Refusal::Abandoned, .. }) {
                    self.path("abandoned by a successor");
                } else if matches!(outcome, Outcome::Finished { .. }) {
                    for stage in (0..feeder.config().stages).map(StageIndex) {
                        let granted = self.granted.get(&(*microbatch, stage));
                        let granted = granted.is_some_and(|by| by.contains_key(&index));
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
        let seen = self.seen.entry(index).or_default();
        let stage::Event::Received { message, from, incarnation } = event else {
            if let stage::Event::Membership(membership) = event {
                let gone = |hop: &Hop| {
                    !membership.members.iter().any(|m| (m.peer, m.incarnation) == (hop.peer, hop.incarnation))
                };
                seen.told.retain(|_, holder| !gone(holder));
            }
            return;
        };
        match message {
            Message::Forward { microbatch, anew, holder, purpose: Purpose::Train, .. }
                if !stage.holds(*microbatch) =>
            {
                if !*anew {
                    seen.slotted.insert(*microbatch);
                } else {
                    seen.slotted.remove(microbatch);
                }
                let known = stage.table().get(*from, *incarnation).is_some();
                let placed = |holder: &Hop| holder.stage == next && stage.table().placed(holder);
                if let Some(holder) = holder.filter(|holder| known && placed(holder)) {
                    seen.told.insert(*microbatch, holder);
                }
            }
            Message::Held { microbatch, holder } => {
                let first_word = !seen.attempts.contains_key(microbatch);
                let known = stage.table().get(*from, *incarnation).is_some();
                if known
                    && holder.stage == next
                    && stage.holds(*microbatch)
                    && first_word
                    && stage.table().placed(holder)
                {
                    seen.told.insert(*microbatch, *holder);
                }
            }
            Message::Holds { microbatch, holding, .. } => {
                let answers = |holder: &Hop| (holder.peer, holder.incarnation) == (*from, *incarnation);
                if seen.told.get(microbatch).is_some_and(answers) {
                    seen.told.remove(microbatch);
                }
                match holding {
                    Holding::Held => {}
                    Holding::Missing => self.path("denied by a holder"),
                    Holding::Busy => self.path("busy"),
                }
            }
            _ => {}
        }
    }

    pub(super) fn replica_acts(&mut self, index: usize, action: &stage::Action<u8>, stage: &Stage<u8>) {
        let seed = self.seed;
        let seen = self.seen.entry(index).or_default();
        match action {
            // A verdict on a neighbour: whoever was told of may be the one.
            stage::Action::Counted(stage::Note::Lost { peer, .. }) => {
                seen.told.retain(|_, holder| holder.peer != *peer);
            }
            stage::Action::Send {
                message: Message::Forward { microbatch, attempt, purpose: Purpose::Train, .. },
                ..
            } => {
                let told = seen.told.get(microbatch);
                assert!(told.is_none(), "seed {seed}: {microbatch} is sent anew, but {told:?} was not asked");
                // An answer to an earlier sending is no answer to a later one.
                let before = seen.attempts.insert(*microbatch, Some(*attempt)).flatten();
                assert!(
                    before.is_none_or(|before| before < *attempt),
                    "seed {seed}: {microbatch} is sent as {attempt:?} after {before:?}"
                );
            }
            stage::Action::Send { message: Message::Ask { microbatch, .. }, .. } => {
                seen.told.remove(microbatch);
                seen.attempts.entry(*microbatch).or_default();
            }
            stage::Action::Counted(note) => match note {
                stage::Note::Rerouted(_) => self.path("sent again by a replica"),
                stage::Note::Restored(_) => self.path("restored"),
                stage::Note::Found(_) => self.path("found downstream"),
                stage::Note::Relayed(_) => self.path("relayed"),
                stage::Note::Refused(_, Refusal::Undeliverable) => self.path("undeliverable"),
                stage::Note::Unexpected(id) => {
                    panic!("seed {seed}: {id} unexpected at {:?}", stage.config().hop())
                }
                _ => {}
            },
            stage::Action::Send {
                message: Message::Holds { microbatch, holding: Holding::Busy, .. },
                ..
            } => {
                seen.told.remove(microbatch);
            }
            stage::Action::Send { message: Message::Held { .. }, .. } => self.path("held told"),
            _ => {}
        }
    }

    /// No more stashes than slots, but for what was sent anew.
    pub(super) fn slots(&self, index: usize, stage: &Stage<u8>, stashes: &BTreeSet<MicrobatchId>) {
        let slots = stage.config().slots;
        assert!(stage.slots_used() <= slots, "seed {}: slots", self.seed);
        let Some(Seen { slotted, .. }) = self.seen.get(&index) else { return };
        let slotted = stashes.iter().filter(|&stash| slotted.contains(stash)).count();
        assert!(slotted <= slots, "seed {}: {slotted} stashes for {slots} slots", self.seed);
    }
}
