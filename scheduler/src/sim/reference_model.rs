//! The reference model: the rules that hold in every run.

pub(super) mod averaging;
mod claims;
mod keeping;
mod waits;

use std::collections::{BTreeMap, BTreeSet};

use crate::feeder::{self, Continued, Outcome, Record, TakenOver};
use crate::replica::{self, InitialState, Note};
use crate::stage::Note as StageNote;
use crate::transfer::{DownloadNote, StateId, TransferMessage};
use crate::{
    Attempt, Block, Envelope, Feeder, Hop, Instance, Message, MicrobatchId, PeerId, Purpose, Refusal,
    Replica, StageIndex, Status, TableUpdate, Time,
};

use super::payload::Payload;
use averaging::Means;

/// Watches the events and actions of every machine.
#[derive(Debug, Default)]
pub(super) struct ReferenceModel {
    /// The time of the current event.
    pub(super) now: Time,
    /// The first rule that was broken.
    pub(super) broken: Option<String>,
    /// The microbatches injected, each with its feeder.
    pub(super) injected: BTreeMap<MicrobatchId, usize>,
    pub(super) outcomes: BTreeMap<MicrobatchId, Outcome>,
    pub(super) evaluated: u64,
    pub(super) measured: Vec<feeder::Measured>,
    /// For each microbatch and stage, the one instance that applied its gradients.
    pub(super) applied: BTreeMap<(MicrobatchId, StageIndex), Instance>,
    /// The grants of each feeder.
    granted: BTreeMap<(MicrobatchId, StageIndex), BTreeMap<usize, Hop>>,
    /// The contributions of each replica that is gone which no other replica has.
    pub(super) lost: BTreeMap<Hop, Vec<MicrobatchId>>,
    /// The peers that each microbatch was handed to.
    handed: BTreeMap<MicrobatchId, BTreeSet<PeerId>>,
    /// The replicas that lie.
    pub(super) liars: BTreeSet<PeerId>,
    /// The feeder that lies.
    pub(super) lying_feeder: Option<usize>,
    /// Its blocks: its word about them may be false.
    pub(super) deceitful: BTreeSet<Block>,
    /// The microbatches that a liar has handed on with a key of its own.
    deceived: BTreeSet<MicrobatchId>,
    /// The times of the outcomes, by microbatch and feeder.
    decided: BTreeMap<(MicrobatchId, usize), Time>,
    /// The ranges of ids that were leased, by first id: their end, and their feeder.
    leased: BTreeMap<MicrobatchId, (MicrobatchId, usize)>,
    /// Half-open ranges of ids that a successor never heard of.
    unknown: Vec<(MicrobatchId, MicrobatchId)>,
    /// The observations of each replica since it started.
    seen: BTreeMap<usize, Seen>,
    /// The replicas that lie to joiners.
    pub(super) lying_donors: BTreeSet<PeerId>,
    /// The honest donors that each joiner has compared since it asked last.
    compared: BTreeMap<PeerId, BTreeSet<PeerId>>,
    /// The copies that replicas made of their state.
    exported: BTreeMap<Instance, BTreeMap<StateId, Vec<u64>>>,
    pub(super) in_flight_max: u64,
    pub(super) finished: u32,
    pub(super) means: Means,
    /// Number of times that each fault struck and each recovery path was taken.
    pub(super) paths: BTreeMap<&'static str, u64>,
}

/// The observations of one start of a replica.
#[derive(Debug, Default)]
struct Seen {
    /// Number of the latest attempt. A microbatch with an entry was handed on: later hints are of no use.
    attempts: BTreeMap<MicrobatchId, Option<Attempt>>,
    /// Microbatches that took a slot.
    slotted: BTreeSet<MicrobatchId>,
    /// Holders at the next stage that the replica was told of and has not asked.
    told: BTreeMap<MicrobatchId, Hop>,
}

impl ReferenceModel {
    pub(super) fn path(&mut self, name: &'static str) {
        *self.paths.entry(name).or_default() += 1;
    }

    pub(super) fn require(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds && self.broken.is_none() {
            self.broken = Some(otherwise());
        }
    }

    /// Records the violation of a rule, if `rule` is one.
    pub(super) fn check(&mut self, rule: Result<(), String>) {
        if let Err(rule) = rule {
            self.require(false, || rule);
        }
    }

    pub(super) fn finished(&mut self) {
        self.finished += 1;
    }

    pub(super) fn in_flight(&mut self, count: u64) {
        self.in_flight_max = self.in_flight_max.max(count);
    }

    /// A replica starts without any microbatch.
    pub(super) fn started(&mut self, index: usize) {
        self.seen.remove(&index);
    }

    pub(super) fn applied(&mut self, microbatch: MicrobatchId, stage: StageIndex, by: Instance) {
        if self.is_deceitful(microbatch) {
            return;
        }
        let before = self.applied.insert((microbatch, stage), by);
        self.require(before.is_none(), || format!("{microbatch} is applied twice at {stage}"));
        let mut granted = self.granted.get(&(microbatch, stage)).into_iter().flat_map(BTreeMap::values);
        let granted = granted.any(|hop| hop.instance == by);
        self.require(granted, || format!("{microbatch} is applied ungranted at {stage}"));
    }

    /// Whether a successor could not know that the microbatch was injected.
    pub(super) fn unknown(&self, microbatch: MicrobatchId) -> bool {
        self.unknown.iter().any(|(first, end)| (first..end).contains(&&microbatch))
    }

    // --- Feeders --------------------------------------------------------------------------------------------

    /// Number of training microbatches that finished.
    pub(super) fn finished_training(&self) -> u64 {
        self.outcomes.values().filter(|outcome| matches!(outcome, Outcome::Finished { .. })).count() as u64
    }

    fn grant(&mut self, feeder: usize, microbatch: MicrobatchId, to: Hop) {
        let Some(stage) = to.stage else { return };
        self.means.granted(to.instance);
        let before = self.granted.entry((microbatch, stage)).or_default().insert(feeder, to);
        self.require(before.is_none() || self.is_deceitful(microbatch), || {
            format!("{microbatch} is granted twice at {stage}")
        });
    }

    /// A replica handed its grant back: it applies the microbatch no more.
    fn withdraw(&mut self, feeder: usize, microbatch: MicrobatchId, from: Hop) {
        self.path("grant handed back");
        let Some(stage) = from.stage else { return };
        let by = self.granted.entry((microbatch, stage)).or_default().remove(&feeder);
        self.require(by == Some(from), || format!("{from:?} hands back {microbatch}, which {by:?} has"));
        let applied = self.applied.get(&(microbatch, stage)) == Some(&from.instance);
        self.require(!applied, || format!("{from:?} hands back {microbatch}, which it has applied"));
    }

    fn taken_over(&mut self, feeder: usize, taken: &TakenOver) {
        self.path("taken over");
        self.unknown.push((taken.end, MicrobatchId(taken.lease.ids().end)));
        for Continued { microbatch, grants, .. } in &taken.continued {
            self.path("continued by a successor");
            grants.iter().for_each(|&hop| self.grant(feeder, *microbatch, hop));
        }
    }

    fn decide(&mut self, feeder: usize, microbatch: MicrobatchId, outcome: &Outcome) {
        let before = self.decided.insert((microbatch, feeder), self.now);
        self.require(before.is_none(), || format!("{microbatch} has two outcomes"));
        // A successor may decide again about a microbatch that the former feeder finished without an announcement.
        let finished = matches!(self.outcomes.get(&microbatch), Some(Outcome::Finished { .. }));
        if !finished {
            self.outcomes.insert(microbatch, outcome.clone());
        }
    }

    pub(super) fn feeder_acts(
        &mut self,
        index: usize,
        action: &feeder::Action<Payload>,
        receiver: Option<Instance>,
        feeder: &Feeder<Payload>,
    ) {
        match action {
            feeder::Action::Journal(Record::Granted { microbatch, to }) => {
                self.check_grant(index, *microbatch, *to);
                self.grant(index, *microbatch, *to);
            }
            feeder::Action::Journal(Record::Withdrawn { microbatch, from }) => {
                self.withdraw(index, *microbatch, *from);
            }
            feeder::Action::Journal(Record::TakenOver(taken)) => self.taken_over(index, taken),
            feeder::Action::Send { to, envelope } => {
                self.hands(*to, &envelope.message);
                self.feeder_sends(index, (*to, receiver), &envelope.message, feeder);
            }
            feeder::Action::Outcome { microbatch, outcome } if microbatch.is_evaluation() => {
                self.evaluated += u64::from(matches!(outcome, Outcome::Evaluated { .. }));
            }
            feeder::Action::Outcome { microbatch, outcome } => {
                self.feeder_decides(index, *microbatch, outcome, feeder);
            }
            feeder::Action::Evaluated(measured) => self.measured.push(*measured),
            feeder::Action::Struck { .. } if self.lying_feeder == Some(index) => {}
            feeder::Action::Struck { replica, .. } => self.strikes(*replica),
            _ => {}
        }
    }

    fn feeder_sends(
        &mut self,
        index: usize,
        (to, receiver): (PeerId, Option<Instance>),
        message: &Message,
        feeder: &Feeder<Payload>,
    ) {
        match message {
            Message::ClaimReply { granted, denied, forged } => {
                self.refuses(forged, to);
                if !denied.is_empty() {
                    self.path("claim denied");
                }
                for &id in granted {
                    let stages = (id, StageIndex(0))..=(id, StageIndex(u16::MAX));
                    let granted = self.granted.range(stages).flat_map(|(_, by)| by.get(&index));
                    let grants: Vec<Hop> = granted.filter(|hop| hop.peer() == to).copied().collect();
                    self.require(!grants.is_empty(), || format!("{id} is granted twice"));
                    let lives = grants.iter().any(|hop| Some(hop.instance) == receiver);
                    self.require(lives, || format!("{id} is granted to a start that is gone"));
                }
            }
            Message::Forward { microbatch, purpose: Purpose::Train, is_retry, .. } => {
                let by = *self.injected.entry(*microbatch).or_insert(index);
                self.require(*is_retry || by == index, || format!("{microbatch} is injected twice"));
                if *is_retry {
                    self.path("retried by the feeder");
                }
            }
            Message::StatusRequest { microbatch, .. } => {
                self.path("status requested by the feeder");
                self.asks(feeder.awaited(*microbatch), *microbatch, feeder.table());
            }
            _ => {}
        }
    }

    fn feeder_decides(
        &mut self,
        index: usize,
        microbatch: MicrobatchId,
        outcome: &Outcome,
        feeder: &Feeder<Payload>,
    ) {
        self.decide(index, microbatch, outcome);
        if matches!(outcome, Outcome::Refused { reason: Refusal::Abandoned, .. }) {
            self.path("abandoned by a successor");
        } else if matches!(outcome, Outcome::Finished { .. }) {
            for stage in (0..feeder.config().stages).map(StageIndex) {
                let granted = self.granted.get(&(microbatch, stage));
                let granted = granted.is_some_and(|by| by.contains_key(&index));
                self.require(granted, || format!("{microbatch} is finished, but ungranted at {stage}"));
            }
        } else {
            self.path("refused");
        }
    }

    // --- Replicas -------------------------------------------------------------------------------------------

    pub(super) fn replica_hears(
        &mut self,
        index: usize,
        event: &replica::Event<Payload>,
        replica: &Replica<Payload>,
    ) {
        match event {
            replica::Event::Membership(update) => {
                self.seen.entry(index).or_default().told.retain(|_, holder| stays(update, holder.instance));
            }
            replica::Event::Received { from, envelope } if replica.is_serving() => {
                self.replica_receives(index, *from, &envelope.message, replica);
            }
            replica::Event::Received { from, envelope } => {
                if let Message::Transfer(TransferMessage::Sketch { .. }) = envelope.message {
                    self.compares(replica.config().stage.me.peer, Some(from.peer));
                }
            }
            replica::Event::Confirmed(replica::Confirmation::Unreachable) => self.path("unreachable"),
            _ => {}
        }
    }

    fn replica_receives(
        &mut self,
        index: usize,
        from: Instance,
        message: &Message,
        replica: &Replica<Payload>,
    ) {
        let (stage, table) = (replica.stage(), replica.table());
        let next = Some(StageIndex(stage.config().stage.0 + 1));
        let known = table.get(from).is_some();
        let seen = self.seen.entry(index).or_default();
        match message {
            Message::Forward { microbatch, is_retry, downstream_holder, purpose: Purpose::Train, .. }
                if !stage.holds(*microbatch) =>
            {
                if *is_retry {
                    seen.slotted.remove(microbatch);
                } else {
                    seen.slotted.insert(*microbatch);
                }
                // It may have been here before, and have been given back with what was known of it.
                seen.told.remove(microbatch);
                let placed = |holder: &Hop| holder.stage == next && table.placed(holder);
                if let Some(holder) = downstream_holder.filter(|holder| known && placed(holder)) {
                    seen.told.insert(*microbatch, holder);
                }
            }
            Message::OrphanNotice { microbatch, holder } => {
                let is_first = !seen.attempts.contains_key(microbatch);
                let useful = holder.stage == next && stage.holds(*microbatch) && is_first;
                if known && useful && table.placed(holder) {
                    seen.told.insert(*microbatch, *holder);
                }
            }
            Message::StatusReply { microbatch, status, .. } => {
                if seen.told.get(microbatch).is_some_and(|holder| holder.instance == from) {
                    seen.told.remove(microbatch);
                }
                match status {
                    Status::Held => {}
                    Status::Missing => self.path("denied by a holder"),
                    Status::Busy => self.path("busy"),
                    Status::GivenBack => self.path("given back"),
                }
            }
            _ => {}
        }
    }

    pub(super) fn replica_acts(
        &mut self,
        index: usize,
        action: &replica::Action<Payload>,
        replica: &Replica<Payload>,
    ) {
        match action {
            replica::Action::Send { to, envelope } => {
                self.hands(*to, &envelope.message);
                if let Message::Transfer(TransferMessage::Request) = envelope.message {
                    self.compares(replica.config().stage.me.peer, None);
                }
                self.replica_sends(index, envelope, replica);
            }
            replica::Action::Counted(Note::Stage(note)) => self.replica_counts(index, note, replica),
            replica::Action::Counted(Note::Download(note)) => match note {
                DownloadNote::Wrong(_) => self.path("a donor lied"),
                DownloadNote::Lost(_) => self.path("a donor was lost"),
                DownloadNote::Silent(_) => self.path("a donor was silent"),
                DownloadNote::Unusable(donor, _) if self.lying_donors.contains(&donor.peer) => {
                    self.path("a donor offered no state");
                }
                DownloadNote::Unfit(_) | DownloadNote::Unusable(..) => {
                    self.require(false, || format!("{note:?}"));
                }
                DownloadNote::Declined(..) | DownloadNote::TooOld(_) | DownloadNote::NoDonor => {}
            },
            replica::Action::Counted(Note::Began(initial)) => match initial {
                InitialState::Downloaded { .. } => self.path("began with a downloaded state"),
                InitialState::Initial { was_trained: true } => self.path("a stage lost its updates"),
                InitialState::Kept => self.path("began with the state it kept"),
                InitialState::Restored { .. } => self.path("began with the state of a keeper"),
                InitialState::Initial { was_trained: false } | InitialState::Given => {}
            },
            replica::Action::Confirm => self.path("suspension noticed"),
            replica::Action::Ready { .. } => self.path("ready"),
            _ => {}
        }
    }

    fn replica_sends(&mut self, index: usize, envelope: &Envelope<Payload>, replica: &Replica<Payload>) {
        let seen = self.seen.entry(index).or_default();
        match &envelope.message {
            Message::Forward { microbatch, attempt, purpose: Purpose::Train, .. } => {
                let told = seen.told.get(microbatch).copied();
                // A reply to an earlier attempt is no reply to a later attempt.
                let before = seen.attempts.insert(*microbatch, Some(*attempt)).flatten();
                self.require(told.is_none(), || {
                    format!("{microbatch} is retried, but its holder {told:?} was not asked")
                });
                self.require(before.is_none_or(|before| before < *attempt), || {
                    format!("{microbatch} is sent as {attempt:?} after {before:?}")
                });
            }
            Message::StatusRequest { microbatch, .. } => {
                seen.told.remove(microbatch);
                seen.attempts.entry(*microbatch).or_default();
                self.asks(replica.stage().awaited(*microbatch), *microbatch, replica.table());
            }
            Message::StatusReply { microbatch, status: Status::Busy, .. } => {
                seen.told.remove(microbatch);
            }
            Message::OrphanNotice { .. } => self.path("orphan notice"),
            _ => {}
        }
    }

    fn replica_counts(&mut self, index: usize, note: &StageNote, replica: &Replica<Payload>) {
        match note {
            // The lost neighbour may be the holder that the replica was told of.
            StageNote::Lost { neighbour, .. } => {
                let seen = self.seen.entry(index).or_default();
                seen.told.retain(|_, holder| holder.peer() != neighbour.peer);
            }
            StageNote::Retried(_) => self.path("retried by a replica"),
            StageNote::Recovered(_) => self.path("recovered"),
            StageNote::Found(_) => self.path("found downstream"),
            StageNote::Relayed(_) => self.path("relayed"),
            StageNote::Refused(_, Refusal::Undeliverable) => self.path("undeliverable"),
            StageNote::Unexpected(id) => {
                let at = replica.stage().config().hop();
                self.require(false, || format!("{id} unexpected at {at:?}"));
            }
            _ => {}
        }
    }

    /// Checks that there are no more stashes than slots, apart from stashes of retries.
    pub(super) fn slots(
        &mut self,
        index: usize,
        replica: &Replica<Payload>,
        stashes: &BTreeSet<MicrobatchId>,
    ) {
        let (stage, slots) = (replica.stage(), replica.stage().config().slots);
        let used = stage.slots_used();
        self.require(used <= slots, || format!("{used} slots of {slots} are used"));
        let Some(Seen { slotted, .. }) = self.seen.get(&index) else { return };
        let stashed = stashes.iter().filter(|&stash| slotted.contains(stash)).count();
        self.require(stashed <= slots, || format!("{stashed} stashes for {slots} slots"));
    }

    // --- States ---------------------------------------------------------------------------------------------

    pub(super) fn exports(&mut self, donor: Instance, state: StateId, words: Vec<u64>) {
        self.exported.entry(donor).or_default().insert(state, words);
    }

    /// A joiner begins to compare donors, or has the sketch of one.
    fn compares(&mut self, joiner: PeerId, donor: Option<PeerId>) {
        let compared = self.compared.entry(joiner).or_default();
        match donor {
            None => compared.clear(),
            Some(donor) if self.lying_donors.contains(&donor) => {}
            Some(donor) => {
                compared.insert(donor);
            }
        }
    }

    /// Checks that every piece of the state that a joiner takes over is from a copy of a donor. Of one honest donor and one
    /// that lies no rule can tell which is which.
    pub(super) fn imports(&mut self, joiner: Instance, words: &[u64]) {
        let copies: Vec<_> = self.exported.values().flat_map(BTreeMap::values).collect();
        let is_known = |(place, word)| copies.iter().any(|copy| copy.get(place) == Some(word));
        let known = words.iter().enumerate().all(is_known);
        let lies = !self.lying_donors.is_empty();
        if !known && lies && self.compared.get(&joiner.peer).is_none_or(|honest| honest.len() < 2) {
            return self.path("a joiner was deceived");
        }
        self.require(known, || format!("{joiner:?} takes a state that no donor had"));
    }

    /// Checks a replica that left without unfinished work: `unaveraged` contributions are in its weights only.
    pub(super) fn leaves(&mut self, instance: Instance, unaveraged: u64) {
        self.require(unaveraged == 0, || {
            format!("{instance:?} leaves with {unaveraged} contributions that no other replica has")
        });
    }
}

/// Whether a member is still one after the update.
fn stays(update: &TableUpdate, member: Instance) -> bool {
    match update {
        TableUpdate::Whole(table) | TableUpdate::Shared(_, table) => table.get(member).is_some(),
        TableUpdate::Change(change) => {
            let mut changed = change.now.members.iter().map(|member| member.instance);
            let replaced = changed.any(|now| now.peer == member.peer && now != member);
            !replaced && !change.removed.contains(&member.peer)
        }
    }
}
