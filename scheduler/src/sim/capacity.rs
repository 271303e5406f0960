//! The upper bound of the microbatches that the live replicas of a world could have computed.

use std::collections::BTreeMap;

use crate::topology::{Capacity, StageGraph};
use crate::{Duration, Hop, Time};

use super::executor::FORWARDS_PER_MICROBATCH;

/// The capacity of each replica over the time that it served. The bound of the run is the maximum flow through all
/// replicas: queues carry microbatches over the time in which another stage is the bottleneck, so the sum of momentary
/// bounds is no bound.
#[derive(Debug, Default)]
pub(super) struct CapacityMeter {
    since: Time,
    serving: Vec<Serving>,
    served: BTreeMap<Hop, Capacity>,
    closed: bool,
}

/// A replica that serves, and the time of one forward.
#[derive(Clone, Copy, Debug)]
pub(super) struct Serving {
    pub(super) hop: Hop,
    pub(super) service: Duration,
}

impl CapacityMeter {
    /// Notes that from now on exactly `serving` serve.
    pub(super) fn note(&mut self, now: Time, serving: Vec<Serving>) {
        self.advance(now);
        self.serving = serving;
    }

    /// Training is over: capacity no longer counts.
    pub(super) fn close(&mut self, now: Time) {
        self.advance(now);
        self.closed = true;
    }

    /// Microbatches that the replicas could have computed until `now`.
    pub(super) fn microbatches(&mut self, now: Time, stages: u16) -> f64 {
        self.advance(now);
        let served = self.served.iter().map(|(&hop, &capacity)| (hop, capacity));
        StageGraph::new(stages, served).bound().microbatches()
    }

    fn advance(&mut self, now: Time) {
        let time = now.since(self.since);
        self.since = now;
        for &Serving { hop, service } in self.serving.iter().filter(|_| !self.closed) {
            let capacity = Capacity::one_every(service * FORWARDS_PER_MICROBATCH).over(time);
            let served = self.served.entry(hop).or_default();
            *served = *served + capacity;
        }
    }
}
