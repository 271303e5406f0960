//! What the living replicas of a world could have done at best.

use crate::topology::{Capacity, StageGraph};
use crate::{Duration, Instance, Member, MemberState, Membership, PeerId, PeerTable, StageIndex, Time};

use super::executor::FORWARDS_PER_MICROBATCH;

/// The bound of the swarm, summed up over time: it changes whenever a replica begins to serve, leaves, dies or stops.
#[derive(Debug, Default)]
pub(super) struct CapacityMeter {
    since: Time,
    bound: Capacity,
    /// Microbatches that could have been done before `since`.
    microbatches: f64,
    closed: bool,
}

/// A replica that serves, and how long it takes for a forward.
pub(super) struct Serving {
    pub(super) instance: Instance,
    pub(super) stage: StageIndex,
    pub(super) service: Duration,
}

impl CapacityMeter {
    /// From now on exactly these serve.
    pub(super) fn note(&mut self, now: Time, stages: u16, serving: &[Serving]) {
        self.advance(now);
        let member = |one: &Serving| Member {
            instance: one.instance,
            state: MemberState::Serving(one.stage),
            address: super::process::address(),
        };
        let mut table = PeerTable::new(PeerId([0; 32]));
        let members = serving.iter().map(member).collect();
        table.update(Membership { version: 1, members, ..Membership::default() });
        let capacity = |instance: Instance| {
            let service = serving.iter().find(|one| one.instance == instance).map(|one| one.service);
            Capacity::one_every(service.unwrap_or_default() * FORWARDS_PER_MICROBATCH)
        };
        self.bound = StageGraph::new(&table, stages, capacity).bound();
    }

    /// Training is over: nothing more could have been done.
    pub(super) fn close(&mut self, now: Time) {
        self.advance(now);
        self.closed = true;
    }

    /// Microbatches that could have been done until `now`.
    pub(super) fn microbatches(&mut self, now: Time) -> f64 {
        self.advance(now);
        self.microbatches
    }

    fn advance(&mut self, now: Time) {
        if !self.closed {
            self.microbatches += self.bound.per_second() * now.since(self.since).as_secs_f64();
        }
        self.since = now;
    }
}
