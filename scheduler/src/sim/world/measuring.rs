//! What the account of a run is told: which processes run and serve, what each of them does, and which microbatches are
//! stuck at dead ones.

use crate::stage::Job;
use crate::topology::Capacity;
use crate::{Duration, Hop, Incarnation, Instance, MicrobatchId, Replica, StageIndex, Time, feeder, replica};

use super::super::account::{Account, Activity};
use super::super::delivery::Delivery;
use super::super::executor::{FORWARDS_PER_MICROBATCH, Task};
use super::super::payload::Payload;
use super::super::process::Liveness;
use super::super::uplink::Frame;
use super::super::wan::time_of;
use super::World;
use super::replicas::handed_over;

/// A process asks its transport for the round trips of its connections so often, in heartbeats.
const WAYS_MEASURED_EVERY: u64 = 4;

impl World {
    /// Begins and ends the measured time when it is due.
    pub(super) fn measure(&mut self) {
        let now = self.now();
        if self.meter.begins(now) {
            self.meter.begin(self.model.finished_training());
        }
        if let Some(until) = self.scenario.duration.map(|duration| Time(0) + duration)
            && until <= now
        {
            self.end_measurement(until);
        }
    }

    /// The measured time is over, unless it was before.
    pub(super) fn end_measurement(&mut self, now: Time) {
        if !self.meter.is_closed() {
            self.meter.close(now, self.model.finished_training());
        }
    }

    pub(super) fn account(&self) -> Account {
        let applied = |microbatch, stage: StageIndex| self.model.applied.get(&(microbatch, stage)).copied();
        self.meter.account(applied, |microbatch| self.model.outcomes.contains_key(&microbatch))
    }

    // --- Processes ------------------------------------------------------------------------------------------

    /// Notes whether a process runs now, and where it serves.
    pub(super) fn note_capacity(&mut self, index: usize) {
        let process = &self.replicas[index];
        let serves = process.replica.as_ref().filter(|replica| replica.is_serving());
        let serves = serves.map(|replica| replica.config().stage.hop());
        let runs = process.liveness == Liveness::Awake;
        let runs = runs.then(|| (self.compute_of(index).min(self.uplink_of(index, serves)), serves));
        self.meter.note_process(self.queue.now(), index, runs);
        self.note_activity(index);
    }

    /// What its executor can compute.
    fn compute_of(&self, index: usize) -> Capacity {
        Capacity::one_every(self.replicas[index].service * FORWARDS_PER_MICROBATCH)
    }

    /// What its uplink can carry at its stage: token ids and activation of a microbatch go down, its gradient goes up.
    fn uplink_of(&self, index: usize, serves: Option<Hop>) -> Capacity {
        let wan = self.scenario.links.wan.as_deref();
        let Some((wan, rate)) = wan.and_then(|wan| Some((wan, wan.uplink(index)?))) else {
            return Capacity::UNLIMITED;
        };
        let stage = serves.and_then(|hop| hop.stage);
        let is_last = stage.is_some_and(|stage| stage.0 + 1 == self.scenario.stages);
        let down = if is_last { 0 } else { wan.bytes.ids + wan.bytes.tensor };
        let up = if stage == Some(StageIndex(0)) { 0 } else { wan.bytes.tensor };
        Capacity::one_every(time_of(down + up, rate))
    }

    /// Notes what the scarcer of executor and uplink does.
    pub(super) fn note_activity(&mut self, index: usize) {
        let process = &self.replicas[index];
        let Some(replica) = process.replica.as_ref().filter(|replica| replica.is_serving()) else { return };
        let serves = Some(replica.config().stage.hop());
        let activity = if self.uplink_of(index, serves) < self.compute_of(index) {
            let uplink = self.network.uplinks.get(&process.instance);
            uplink.and_then(|uplink| uplink.sending()).map_or(Activity::Waits, activity_of_frame)
        } else {
            match process.executor.running() {
                Some(task) => activity_of_task(task),
                None if replica.stage().waits_for_grant() => Activity::WaitsForGrant,
                None => Activity::Waits,
            }
        };
        self.meter.note_activity(self.queue.now(), index, activity);
    }

    // --- Deaths ---------------------------------------------------------------------------------------------

    /// A process dies with what it has not computed.
    pub(super) fn note_death(&mut self, index: usize) {
        let now = self.now();
        let serving = self.replicas[index].replica.as_ref().filter(|replica| replica.is_serving());
        if let Some(stage) = serving.map(Replica::stage) {
            self.recoveries.dies(now, stage.config().hop(), stage.unfinished());
        }
    }

    /// A message arrives at a start of a process that is dead.
    pub(super) fn note_sent_in_vain(&mut self, index: usize, start: Incarnation, delivery: &Delivery) {
        let Delivery::Replica(_, _, event) = delivery else { return };
        let open = |microbatch: &MicrobatchId| !self.model.outcomes.contains_key(microbatch);
        if let Some(microbatch) = handed_over(event).filter(open) {
            let to = Instance::new(self.replicas[index].instance.peer, start);
            self.recoveries.is_sent(to, microbatch);
        }
    }

    /// A process was handed a microbatch.
    pub(super) fn note_arrival(&mut self, index: usize, microbatch: MicrobatchId) {
        let stage = self.replicas[index].replica.as_ref().map(Replica::stage);
        if let Some(stage) = stage.filter(|stage| stage.holds(microbatch)) {
            self.recoveries.is_mended(self.queue.now(), microbatch, Some(stage.config().stage));
        }
    }

    // --- Ways -----------------------------------------------------------------------------------------------

    /// Tells a replica the round trips of its connections in a swarm over several regions.
    pub(super) fn measure_ways(&mut self, index: usize) {
        let Some(wan) = self.scenario.links.wan.clone() else { return };
        let beat = self.now().0 / u64::try_from(super::HEARTBEAT.as_nanos()).unwrap_or(u64::MAX);
        if !(beat + index as u64).is_multiple_of(WAYS_MEASURED_EVERY) {
            return;
        }
        let peer = self.replicas[index].instance.peer;
        let others: Vec<_> = self.network.connections.of(peer).collect();
        for other in others {
            let time = self.round_trip(wan.path(Some(index), self.replica_of(other.peer)).delay);
            self.at_replica(index, replica::Event::RoundTrip(other, time));
            if let Some(feeder) = self.feeder_of(other.peer) {
                let me = self.replicas[index].instance;
                self.at_feeder(feeder, feeder::Event::RoundTrip(me, time));
            }
        }
    }

    fn round_trip(&self, one_way: Duration) -> Duration {
        2 * (one_way + self.scenario.links.delay_max / 2)
    }
}

fn activity_of_task(task: &Task) -> Activity {
    match task {
        Task::Compute { job: Job::Apply { .. }, .. } => Activity::AppliesLate,
        Task::Compute { job, .. } => Activity::Computes(job.microbatch()),
        Task::Average { .. } | Task::StepRest => Activity::Averages,
        Task::Export(_) | Task::Import => Activity::Gives,
    }
}

fn activity_of_frame(frame: &Frame) -> Activity {
    match (&frame.envelope.payload, frame.microbatch()) {
        (Payload::Chunk(_), _) => Activity::Gives,
        (Payload::Numbers(_), _) => Activity::Averages,
        (_, Some(microbatch)) => Activity::Computes(microbatch),
        (_, None) => Activity::Waits,
    }
}
