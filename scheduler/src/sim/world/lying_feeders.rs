//! A lying feeder at work. The first feeder lies, beside honest ones, and is gone for good afterwards.

use crate::averaging::Round;
use crate::feeder::Action;
use crate::{
    AckRange, Attempt, BlockTally, Duration, Envelope, Feeder, Hop, Instance, LeasedRange, Message,
    MicrobatchId, PeerId, Purpose, Role, RouteKey, StageIndex,
};

use super::super::connections::IDLE;
use super::super::delivery::Delivery;
use super::super::feeder_act::FeederAct;
use super::super::payload::Payload;
use super::super::process::FeederProcess;
use super::World;

/// The feeder that lies.
pub(super) const LIAR: usize = 0;
/// Lies of one kind that a feeder tells a replica, a second.
const LIES: u64 = 16;
/// The first index of the ids of its block that a liar takes without a lease.
const UNLEASED: u64 = 1 << 20;

impl World {
    pub(super) fn begin_feeder_act(&mut self, act: FeederAct, lasts: Duration) {
        self.feeders[LIAR].act = Some(act);
        self.model.lying_feeder = Some(LIAR);
        self.note_deceitful_blocks();
        self.queue.schedule_in(lasts, Delivery::LiarGone);
    }

    /// Notes the blocks that a lying feeder has: it may take over those of others.
    pub(super) fn note_deceitful_blocks(&mut self) {
        if self.model.lying_feeder.is_some() {
            let peer = self.feeders[LIAR].instance.peer;
            let own = self.leases(|leased| leased.feeder == peer);
            self.model.deceitful.extend(own.iter().map(|leased| leased.lease.first.block()));
        }
    }

    /// The liar is found out: its process ends for good, and other feeders take over its ids.
    pub(super) fn end_feeder_act(&mut self) {
        let liar = &mut self.feeders[LIAR];
        liar.is_gone = true;
        liar.lose_power();
        let instance = liar.instance;
        self.break_connections(instance, IDLE);
    }

    /// A liar may have taken over the ids of a feeder that was away: an honest successor waits for its end.
    pub(super) fn succeed_liar(&mut self) {
        if self.model.lying_feeder.is_some() {
            self.feeders.push(FeederProcess::new(self.feeders.len(), Role::Successor));
            self.soon(Delivery::StartFeeder(self.feeders.len() - 1));
        }
    }

    fn feeder_act(&self, index: usize) -> Option<FeederAct> {
        self.feeders[index].act.filter(|_| self.feeders[index].machine.is_some())
    }

    /// What a lying feeder does in place of an action of its machine.
    pub(super) fn pervert(&self, index: usize, action: Action<Payload>) -> Option<Action<Payload>> {
        let (Some(act), Action::Send { to, envelope }) = (self.feeder_act(index), &action) else {
            return Some(action);
        };
        let reply = match (act, &envelope.message) {
            (FeederAct::NoOutcomes, Message::Outcomes { .. })
            | (FeederAct::NoGrants, Message::ClaimReply { .. }) => return None,
            (FeederAct::EveryGrant, Message::ClaimReply { granted, denied, forged }) => {
                let granted = [granted.as_slice(), denied, forged].concat();
                Message::ClaimReply { granted, denied: Vec::new(), forged: Vec::new() }
            }
            (FeederAct::FalseForgeries, Message::ClaimReply { granted, denied, forged }) => {
                let forged = [granted.as_slice(), denied, forged].concat();
                Message::ClaimReply { granted: Vec::new(), denied: Vec::new(), forged }
            }
            _ => return Some(action),
        };
        Some(Action::Send { to: *to, envelope: reply.into() })
    }

    /// What a feeder tells the coordinator about its blocks.
    pub(super) fn tallies(&self, index: usize) -> Vec<BlockTally> {
        let tallies = self.feeders[index].machine.as_ref().map(Feeder::tallies).unwrap_or_default();
        let lie = |tally: BlockTally| match self.feeder_act(index) {
            Some(FeederAct::FalseOutcomes) => {
                BlockTally { injected: tally.leased, settled: tally.leased, ..tally }
            }
            Some(FeederAct::FalseTallies) => {
                BlockTally { leased: u64::MAX, injected: u64::MAX, settled: u64::MAX, ..tally }
            }
            _ => tally,
        };
        tallies.into_iter().map(lie).collect()
    }

    /// What a lying feeder says once a second, unprovoked.
    pub(super) fn lie_as_feeder(&mut self, index: usize) {
        let Some(act) = self.feeder_act(index) else { return };
        let me = self.feeders[index].instance;
        let lies = match act {
            FeederAct::FalseOutcomes => self.outcomes(|leased| leased.feeder == me.peer),
            FeederAct::OutcomesOfOthers => self.outcomes(|leased| leased.feeder != me.peer),
            FeederAct::EndlessRounds => self.round_calls(),
            FeederAct::UnleasedIds => return self.inject_unleased(me),
            _ => return,
        };
        let replicas: Vec<PeerId> = self.replicas.iter().map(|process| process.instance.peer).collect();
        for (to, lie) in replicas.iter().flat_map(|&to| lies.iter().map(move |lie| (to, lie.clone()))) {
            self.post(me, to, lie.into());
        }
    }

    fn leases(&self, which: impl Fn(&LeasedRange) -> bool) -> Vec<LeasedRange> {
        self.coordinator.membership().leases.into_iter().filter(which).collect()
    }

    /// All ids of these blocks have their outcome.
    fn outcomes(&self, which: impl Fn(&LeasedRange) -> bool) -> Vec<Message> {
        let all = |leased: &LeasedRange| {
            let ids = leased.lease.ids();
            AckRange { first: ids.start, end: ids.end, open: Vec::new() }
        };
        vec![Message::Outcomes { ranges: self.leases(which).iter().map(all).collect() }]
    }

    /// Rounds that follow each other at once, and one that ends all rounds.
    fn round_calls(&self) -> Vec<Message> {
        let seconds = self.now().0 / 1_000_000_000;
        let call = |number: u64| Message::RoundCall {
            round: Round(number),
            is_closing: number.is_multiple_of(2),
            weights: Vec::new(),
        };
        (0..LIES).map(|lie| call(seconds * LIES + lie)).chain([call(u64::MAX)]).collect()
    }

    fn inject_unleased(&mut self, me: Instance) {
        let count = self.now().0 / 1_000_000_000 * LIES;
        let firsts = self.leases(|_| true).into_iter().map(|leased| leased.lease.first.0);
        let firsts: Vec<u64> = firsts.map(|first| first + UNLEASED).chain([u64::MAX / 4]).collect();
        let ids = firsts.iter().flat_map(|first| (0..LIES).map(move |lie| MicrobatchId(first + count + lie)));
        let stage = StageIndex(0);
        let replicas: Vec<Instance> = self.table.places().placed_on(stage).collect();
        for (to, id) in ids.flat_map(|id| replicas.iter().map(move |&to| (to, id))).collect::<Vec<_>>() {
            let lie = forward(me, id);
            self.model.forged(&lie);
            self.post(me, to.peer, lie);
        }
    }
}

fn forward(me: Instance, microbatch: MicrobatchId) -> Envelope<Payload> {
    let message = Message::Forward {
        microbatch,
        attempt: Attempt(0),
        purpose: Purpose::Train,
        is_retry: microbatch.0.is_multiple_of(2),
        route: vec![Hop::feeder(me)],
        key: RouteKey::default(),
        downstream_holder: None,
        version: Default::default(),
    };
    Envelope { message, ids: Payload::Tokens, payload: Payload::Empty }
}
