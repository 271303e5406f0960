//! Where a replica is placed, and with what weights it begins. A stage that may be trained begins with initial weights
//! only if no member serves it and no process is awaited with its weights. The table of a joiner may be old, so the
//! coordinator has the last word.

use super::{Action, Coordinator, Reply};
use crate::mutation::Mutation;
use crate::{Instance, MemberState, PeerId, StageIndex, Time};

impl Coordinator {
    /// A replica says that it serves from now on. One that begins with initial weights goes on loading if a process may
    /// have better ones.
    pub(super) fn ready(&mut self, now: Time, from: Instance, stage: StageIndex, initial: bool) -> Reply {
        let Some(entry) = self.members.touch(now, from) else { return self.stranger(from) };
        let state = entry.member.state;
        let has_better = self.may_be_held(stage) || self.is_restorable(stage);
        if state != MemberState::Loading(stage) || (initial && has_better) {
            return Reply::Noted(state);
        }
        if initial && self.trained.binary_search(&stage).is_ok() {
            self.actions.push_back(Action::Reset { stage });
        }
        self.note_restored(from, stage);
        self.members.set_state(from.peer, MemberState::Serving(stage));
        self.holders.forget(from.peer);
        self.publishing.change();
        Reply::Noted(MemberState::Serving(stage))
    }

    /// Whether a process may have trained weights of a stage. Before a table named ids and a replica of every stage none
    /// has.
    fn may_be_held(&self, stage: StageIndex) -> bool {
        let is_served = !self.members.occupancy().is_unserved(stage);
        let has_run = self.has_run && !self.config.breaks(Mutation::BeginBesideTrained);
        has_run && (is_served || self.holders.stages().contains(&stage))
    }

    /// A replica that fell silent, or has come back, with the weights of a stage is awaited until it serves; one that has
    /// come back without is not.
    pub(super) fn await_holder(&mut self, now: Time, peer: PeerId, holds: Option<StageIndex>) {
        match holds.filter(|_| self.has_run) {
            Some(stage) => self.holders.wait_for(now, peer, stage),
            None => self.holders.forget(peer),
        }
    }

    /// A stage that a replica serves has no outage.
    pub(super) fn end_outages(&mut self) {
        let occupancy = self.members.occupancy();
        self.holders.end_outages(|stage| !occupancy.is_unserved(stage));
    }

    /// A table that was returned names no former members: the weights of a stage that none of its members serves may be
    /// with any replica.
    pub(super) fn await_restored(&mut self, now: Time) {
        let unserved: Vec<_> = self.members.occupancy().unserved().collect();
        for stage in unserved.into_iter().filter(|_| self.has_run) {
            self.holders.wait_for_any(now, stage);
        }
    }

    /// Gives a free place to a standby, which takes the state from a replica of the stage. A stage without a replica goes
    /// to the standby that has its weights.
    pub(super) fn promote_standbys(&mut self, now: Time) {
        while !self.is_finished()
            && let Some((peer, stage)) = self.holder_to_promote().or_else(|| self.standby_to_promote())
        {
            let holds = self.members.of_peer(peer).and_then(|standby| standby.holds);
            self.members.set_state(peer, MemberState::Loading(stage));
            self.await_holder(now, peer, holds.filter(|&held| held == stage));
            self.publishing.change();
        }
    }

    fn holder_to_promote(&self) -> Option<(PeerId, StageIndex)> {
        let mut unserved = self.members.occupancy().unserved().filter(|_| !self.waits_for_members);
        unserved.find_map(|stage| Some((self.members.standby_with(stage)?, stage)))
    }

    fn standby_to_promote(&self) -> Option<(PeerId, StageIndex)> {
        let standby = self.members.first_standby()?;
        Some((standby.member.instance.peer, self.place(standby.holds, standby.holds)?))
    }

    /// The stage for a replica that was at `previous`. A replica that holds the state of a stage that no other serves is
    /// placed there even if other replicas wait at the stage for a state.
    pub(super) fn place(
        &self,
        previous: Option<StageIndex>,
        holds: Option<StageIndex>,
    ) -> Option<StageIndex> {
        if self.waits_for_members {
            return None;
        }
        let occupancy = self.members.occupancy();
        let missed = holds.filter(|&stage| occupancy.is_unserved(stage));
        missed.or_else(|| occupancy.place(self.config.replicas_per_stage, previous))
    }
}
