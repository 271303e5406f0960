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
    /// The replicas that serve, by process, and since when.
    serving: BTreeMap<usize, (Time, Serving)>,
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
    /// Notes whether a process serves from now on, and where.
    pub(super) fn note(&mut self, now: Time, process: usize, serving: Option<Serving>) {
        if self.closed {
            return;
        }
        let before = match serving {
            Some(serving) => self.serving.insert(process, (now, serving)),
            None => self.serving.remove(&process),
        };
        self.count(now, before);
    }

    /// Training is over: capacity no longer counts.
    pub(super) fn close(&mut self, now: Time) {
        for serving in std::mem::take(&mut self.serving).into_values() {
            self.count(now, Some(serving));
        }
        self.closed = true;
    }

    /// Microbatches that the replicas could have computed until `now`. Capacity counts no further.
    pub(super) fn microbatches(&mut self, now: Time, stages: u16) -> f64 {
        self.close(now);
        let served = self.served.iter().map(|(&hop, &capacity)| (hop, capacity));
        StageGraph::new(stages, served).bound().microbatches()
    }

    fn count(&mut self, now: Time, served: Option<(Time, Serving)>) {
        if let Some((since, Serving { hop, service })) = served {
            let capacity = Capacity::one_every(service * FORWARDS_PER_MICROBATCH).over(now.since(since));
            let sum = self.served.entry(hop).or_default();
            *sum = *sum + capacity;
        }
    }
}
