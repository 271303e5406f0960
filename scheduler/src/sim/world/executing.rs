//! The tasks of executors: they take effect when they have run.

use crate::averaging::{APPLYING_MAX, Reply};
use crate::replica::Event;
use crate::transfer::{SketchSeed, StateId};
use crate::{Duration, Instance, averaging, stage};

use super::super::delivery::Delivery;
use super::super::donor_act::DonorAct;
use super::super::executor::Task;
use super::super::payload::Payload;
use super::World;

/// Reducing the contributions to a part takes a random time below this.
const REDUCTION_MAX: Duration = Duration::from_millis(20);

impl World {
    pub(super) fn compute(&mut self, index: usize, job: stage::Job<Payload>) {
        let refuse = self.rng.chance(self.scenario.refused_per_mille, 1_000);
        let service = self.replicas[index].service;
        let service = self.time_between(service / 2, service * 3 / 2);
        self.submit(index, Task::Compute { job, refuse }, service);
    }

    pub(super) fn average(&mut self, index: usize, job: averaging::Job<Payload>) {
        let process = &self.replicas[index];
        let group = process.replica.as_ref().and_then(|replica| replica.averaging().group());
        let (group, members) = group.map_or((None, Vec::new()), |(id, members)| (Some(id), members));
        let reduces = matches!(job, averaging::Job::Reduce { .. });
        let task = Task::Average { job, group, members };
        if reduces {
            self.reduce(index, task);
        } else {
            self.submit_short(index, task);
            let process = &self.replicas[index];
            let (me, applying) = (process.instance, process.executor.applying());
            self.model
                .require(applying <= APPLYING_MAX, || format!("{me:?} applies {applying} means at once"));
        }
    }

    /// A thread of its own computes means.
    fn reduce(&mut self, index: usize, task: Task) {
        let Some(event) = self.effect(index, task) else { return };
        let delay = self.time_between(Duration::ZERO, REDUCTION_MAX);
        let incarnation = self.replicas[index].instance.incarnation;
        self.queue.schedule_in(delay, Delivery::Replica(index, incarnation, event));
    }

    /// Submits a copy of the state, which a donor makes between two jobs.
    pub(super) fn export(&mut self, index: usize, state: StateId) {
        let takes = self.time_between(Duration::ZERO, self.scenario.links.export_max);
        self.submit(index, Task::Export(state), takes);
    }

    /// A thread of its own computes the projections of a copy.
    pub(super) fn sketch(&mut self, index: usize, to: Instance, state: StateId, seed: SketchSeed) {
        let process = &self.replicas[index];
        let Some(sketch) = process.executor.sketch(state, seed) else { return };
        let incarnation = process.instance.incarnation;
        let event = Event::Sketched { to, state, seed, sketch };
        let delay = self.time_between(Duration::ZERO, REDUCTION_MAX);
        self.queue.schedule_in(delay, Delivery::Replica(index, incarnation, event));
    }

    /// Submits a task that takes an eighth of a forward; a task of an averaging round takes what the scenario says.
    pub(super) fn submit_short(&mut self, index: usize, task: Task) {
        let service = self.replicas[index].service;
        let is_averaging = matches!(task, Task::Average { .. });
        let share = self.scenario.averaging_per_mille;
        self.submit(index, task, if is_averaging { service * share / 125 } else { service });
    }

    fn submit(&mut self, index: usize, task: Task, service: Duration) {
        let now = self.now();
        let process = &mut self.replicas[index];
        let at = process.executor.submit(now, task, service);
        self.queue.schedule(at, Delivery::Ran(index, process.instance.incarnation));
        self.note_activity(index);
    }

    /// The oldest task of the executor has run.
    pub(super) fn on_ran(&mut self, index: usize) {
        let Some(task) = self.replicas[index].executor.take_done() else { return };
        self.note_activity(index);
        let lateness = self.lateness(index, &task);
        let Some(event) = self.effect(index, task) else { return };
        if lateness == Duration::ZERO {
            return self.at_replica(index, event);
        }
        self.model.path("copy was late");
        let incarnation = self.replicas[index].instance.incarnation;
        self.queue.schedule_in(lateness, Delivery::Replica(index, incarnation, event));
    }

    /// The lateness of the reply to a task.
    fn lateness(&self, index: usize, task: &Task) -> Duration {
        let copies = matches!(task, Task::Average { job: averaging::Job::Snapshot { .. }, .. });
        let (by, until) = self.replicas[index].slow_copies;
        if copies && self.now() < until { by } else { Duration::ZERO }
    }

    /// A process that ends in order lets its executor finish.
    pub(super) fn finish_tasks(&mut self, index: usize) {
        while let Some(task) = self.replicas[index].executor.take_done() {
            self.effect(index, task);
        }
    }

    /// The effect of a task that has run, and its reply.
    fn effect(&mut self, index: usize, task: Task) -> Option<Event<Payload>> {
        match task {
            Task::Compute { job, refuse } => self.computed(index, &job, refuse),
            Task::Average { job, group, members } => self.averaged(index, &job, group, &members),
            Task::StepRest => {
                self.model.path("stepped with fewer contributions");
                self.replicas[index].executor.weights.step();
                None
            }
            Task::Export(state) => Some(self.exported(index, state)),
            Task::Import => Some(self.imported(index)),
        }
    }

    fn computed(&mut self, index: usize, job: &stage::Job<Payload>, refuse: bool) -> Option<Event<Payload>> {
        let process = &mut self.replicas[index];
        let stage = process.replica.as_ref()?.config().stage.stage;
        let me = process.instance;
        let last = stage.0 + 1 == self.scenario.stages;
        let effect = match process.executor.compute(job, last, refuse) {
            Ok(effect) => effect,
            Err(misuse) => {
                self.model.require(false, || format!("{misuse} at {me:?}"));
                return None;
            }
        };
        if let Some(microbatch) = effect.applied {
            self.model.applied(microbatch, stage, me);
        }
        if matches!(job, stage::Job::Forward { .. }) {
            self.check_slots(index);
        }
        effect.reply.map(Event::Completed)
    }

    pub(super) fn check_slots(&mut self, index: usize) {
        let process = &self.replicas[index];
        if let Some(replica) = &process.replica {
            self.model.slots(index, replica, &process.executor.stashes);
        }
    }

    // --- Averaging ------------------------------------------------------------------------------------------

    fn averaged(
        &mut self,
        index: usize,
        job: &averaging::Job<Payload>,
        group: Option<averaging::GroupId>,
        members: &[Instance],
    ) -> Option<Event<Payload>> {
        let process = &mut self.replicas[index];
        let me = process.instance;
        let reply = process.executor.average(job, me, group);
        let rule = reply
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|reply| self.watch_average(me, job, reply.as_ref(), members));
        self.model.check(rule);
        reply.ok().flatten().map(Event::Averaged)
    }

    fn watch_average(
        &mut self,
        me: Instance,
        job: &averaging::Job<Payload>,
        reply: Option<&Reply<Payload>>,
        members: &[Instance],
    ) -> Result<(), String> {
        match (job, reply) {
            (averaging::Job::Snapshot { .. }, Some(Reply::Snapshot { uncarried, weight, parts, .. })) => {
                self.model.path("averaging round");
                let first = parts.iter().find_map(|part| match part {
                    Payload::Numbers(numbers) => Some(numbers.group),
                    _ => None,
                });
                let group = first.ok_or_else(|| format!("{me:?} copies no part"))?;
                let now = self.now();
                self.model.means.begin(now, me, (group, members.len()), (*uncarried, *weight), parts)
            }
            (averaging::Job::Reduce { part, inputs, .. }, _) => {
                // Of several feeders none bounds weights.
                self.model.means.reduce(me, *part, inputs, self.feeders.len() == 1)
            }
            (averaging::Job::Apply { part, mean, contributed, .. }, _) => {
                if !contributed {
                    self.model.path("left out of a mean");
                }
                if self.model.means.apply(me, *part, mean, *contributed)? {
                    self.model.path("averaged");
                    let Payload::Numbers(numbers) = mean else { return Ok(()) };
                    let left_out = members.iter().filter(|member| !numbers.of.contains(member));
                    if left_out.copied().any(|member| !self.lives(member)) {
                        self.model.path("averaged without a dead member");
                    }
                }
                Ok(())
            }
            (averaging::Job::Finish { round, complete, .. }, _) => {
                let now = self.now();
                self.model.means.finish(now, me, *round, *complete)
            }
            (averaging::Job::Snapshot { .. }, _) => Ok(()),
        }
    }

    fn lives(&self, member: Instance) -> bool {
        let process = self.replica_of(member.peer).map(|index| &self.replicas[index]);
        process.is_some_and(|process| process.instance == member && process.is_alive())
    }

    // --- States ---------------------------------------------------------------------------------------------

    fn exported(&mut self, index: usize, state: StateId) -> Event<Payload> {
        let forges = self.donor_act(index) == Some(DonorAct::ForgedState);
        let process = &mut self.replicas[index];
        let (manifest, words) = process.executor.export(state, forges);
        if !forges {
            self.model.exports(process.instance, state, words);
        }
        Event::Exported { state, manifest: Some(manifest) }
    }

    fn imported(&mut self, index: usize) -> Event<Payload> {
        let process = &mut self.replicas[index];
        let words = process.executor.import();
        self.model.imports(process.instance, &words);
        Event::Imported(true)
    }
}
