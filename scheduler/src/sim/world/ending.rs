//! The end of a run: its condition, its rules and its report.

use std::collections::BTreeSet;

use crate::coordinator::RunState;
use crate::sim::process::{FeederProcess, ReplicaProcess};
use crate::sim::report::{ReplicaReport, Report};
use crate::{Feeder, Incarnation, Replica, Time};

use super::super::delivery::Delivery;
use super::World;

impl World {
    /// Whether the feeders have ended, no microbatch is held, no task is left, no fault is to come, and every replica has
    /// left if the run is finished.
    pub(super) fn is_over(&self) -> bool {
        let ended = self.has_forgotten_end() || (self.is_fed() && self.has_left());
        ended && self.held() == 0 && self.faults_left() == 0 && self.is_idle()
    }

    /// A coordinator that was started again after it ended the run learns so from the table alone, which may have reached
    /// no member: then it waits for members, and they wait for it.
    fn has_forgotten_end(&self) -> bool {
        self.ended_with.is_some() && self.coordinator.state() != RunState::Finished
    }

    /// Whether the feeders of the beginning and the last one have ended, or died after every microbatch had its outcome.
    fn is_fed(&self) -> bool {
        let finished = self.coordinator.state() == RunState::Finished;
        let first = self.feeders.iter().take(self.scenario.feeders());
        let mut feeders = first.filter(|feeder| feeder.machine.is_some()).chain([self.latest()]);
        feeders.all(|feeder| feeder.ended || (finished && feeder.machine.is_none()))
    }

    fn is_idle(&self) -> bool {
        let mut alive = self.replicas.iter().filter(|process| process.is_alive());
        alive.all(|process| process.executor.is_idle())
    }

    fn has_left(&self) -> bool {
        let finished = self.coordinator.state() == RunState::Finished;
        let keeps = self.keeper.as_ref().is_some_and(|keeper| keeper.machine.is_some());
        !finished || !(keeps || self.replicas.iter().any(ReplicaProcess::is_alive))
    }

    fn faults_left(&self) -> usize {
        let faults = |delivery: &&Delivery| {
            matches!(delivery, Delivery::Fault(_) | Delivery::Resume(..) | Delivery::LiarGone)
        };
        self.queue.events().filter(faults).count()
    }

    /// Checks that no microbatch is lost and no stash is left.
    pub(super) fn check_ending(&mut self) {
        let stashes = self.stashes();
        self.model.require(stashes == 0, || format!("{stashes} stashes are left behind"));
        let total = match self.scenario.duration {
            Some(_) => self.model.injected.len() as u64,
            None => self.scenario.total,
        };
        self.check_outcomes(total);
        self.check_lost();
        let feeder = self.latest().machine.as_ref();
        let counts = feeder.map(Feeder::counts).unwrap_or_default();
        // The blocks of one feeder of several may have gone to another, and the run may be finished before it knows.
        let is_judge = self.scenario.feeders() == 1 || feeder.is_some_and(Feeder::is_trained);
        let sound = !is_judge || (counts.in_flight, counts.lost, counts.ungranted) == (0, 0, 0);
        let decided = match self.scenario.duration {
            Some(_) => counts.finished + counts.refused + counts.inherited,
            // The last report of a feeder may still be on its way.
            None if self.has_forgotten_end() => self.ended_with.unwrap_or_default(),
            None => feeder.map_or(0, Feeder::settled_of_run).max(self.coordinator.run_progress().settled),
        };
        // A successor abandons ids that the former feeder may have injected, and had not.
        let abandoned = self.model.outcomes.keys().filter(|id| !self.model.injected.contains_key(id)).count();
        let lied = self.model.lying_feeder.is_some();
        let complete = decided >= total && (lied || decided <= total + abandoned as u64);
        let ends = || {
            format!("{decided} of {total} microbatches have an outcome, the last feeder counts {counts:?}")
        };
        self.model.require(sound && complete, ends);
    }

    fn check_outcomes(&mut self, total: u64) {
        let model = &self.model;
        let without: Vec<_> = model
            .injected
            .keys()
            .filter(|id| !model.outcomes.contains_key(id) && !model.is_deceitful(**id))
            .copied()
            .collect();
        for id in without {
            let unknown = self.model.unknown(id);
            self.model.require(unknown, || format!("{id} has no outcome"));
            self.model.path("unknown to every replica");
        }
        let first = |by: &&usize| **by < self.scenario.feeders();
        let feeders: BTreeSet<_> = self.model.injected.values().filter(first).collect();
        if feeders.len() > 1 {
            self.model.path("fed by several at once");
        }
        let decided = self.model.outcomes.len() as u64;
        if self.feeders.len() == 1 {
            self.model.require(decided == total, || format!("{decided} of {total} have an outcome"));
        }
    }

    /// A feeder that was started again has no reports of replicas, and several feeders each count a part.
    fn check_lost(&mut self) {
        let [FeederProcess { instance, machine: Some(feeder), .. }] = &*self.feeders else { return };
        if instance.incarnation == Incarnation(1) {
            let (counted, table) = (feeder.counts().contributions_lost, feeder.table());
            self.model.check_lost(counted, |hop| table.get(hop.instance).is_none());
        }
    }

    fn stashes(&self) -> usize {
        let alive = self.replicas.iter().filter(|process| process.is_alive());
        alive.map(|process| process.executor.stashes.len()).sum()
    }

    pub(super) fn report(&mut self) -> Report {
        let trained_at = self.trained_at.unwrap_or(self.now());
        self.end_measurement(trained_at);
        let replica = |process: &ReplicaProcess| {
            let stage = process.replica.as_ref().map(Replica::stage);
            ReplicaReport {
                instance: process.instance,
                stage: stage.map(|stage| stage.config().stage),
                applied: stage.map_or(0, |stage| stage.counts().applied),
                weights: process.executor.weights.words(),
            }
        };
        Report {
            seed: self.scenario.seed,
            time: self.now().since(Time(0)),
            training_time: trained_at.since(Time(0)),
            steps: self.queue.steps(),
            finished: self.model.finished_training(),
            counts: self.latest().machine.as_ref().map(Feeder::counts).unwrap_or_default(),
            measured: self.model.measured.clone(),
            in_flight_max: self.model.in_flight_max,
            account: self.account(),
            recoveries: self.recoveries.times(Time(0) + self.scenario.measure_from, trained_at),
            paths: self.model.paths.clone(),
            replicas: self.replicas.iter().map(replica).collect(),
        }
    }
}
