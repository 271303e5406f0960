//! An executor without tensors: it runs its tasks one after the other, and keeps account of stashes, gradients and
//! weights. A task takes effect when it has run: a process that dies before takes the effect along.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::averaging::{self, GroupId, PartIndex, Reply};
use crate::stage::{Evaluation, Job, JobOutcome, JobReply};
use crate::transfer::{ChunkSketch, Manifest, SketchSeed, StateId};
use crate::{Duration, Instance, Loss, MicrobatchId, Refusal, Rng, Time, WeightVersion};

use super::payload::{Numbers, Payload};
use super::state::{self, Weights};

#[derive(Debug)]
pub(super) struct Executor {
    /// The tasks that have not run, in order.
    tasks: VecDeque<Task>,
    pub(super) stashes: BTreeSet<MicrobatchId>,
    pub(super) weights: Weights,
    /// The microbatch whose gradients wait for the feeder's answer.
    waiting: Option<MicrobatchId>,
    free_at: Time,
    /// Copies of the state for joiners and keepers.
    copies: BTreeMap<StateId, Vec<u64>>,
    /// The words of a state that is being downloaded.
    inbox: Vec<u64>,
}

/// A forged state is so far from an honest one: further than honest ones are from each other.
const FORGED: f64 = 1e12;

/// A task of the executor.
#[derive(Clone, Debug)]
pub(super) enum Task {
    /// A job of a microbatch.
    Compute {
        job: Job<Payload>,
        /// The job fails.
        refuse: bool,
    },
    /// A job of an averaging round in `group`.
    Average { job: averaging::Job<Payload>, group: Option<GroupId>, members: Vec<Instance> },
    /// Step with the contributions that wait for the rest of their step.
    StepRest,
    /// Copy the state for joiners.
    Export(StateId),
    /// Take over the state that was downloaded.
    Import,
}

/// The effect of a job.
#[derive(Debug, Default)]
pub(super) struct Effect {
    pub(super) reply: Option<JobReply<Payload>>,
    /// The microbatch whose gradients the job applied.
    pub(super) applied: Option<MicrobatchId>,
}

/// A job that contradicts an earlier job.
pub(super) type Misuse = String;

impl Executor {
    pub(super) fn new(fragments: u32, gradient_accumulation_steps: u64) -> Self {
        Self {
            tasks: VecDeque::new(),
            stashes: BTreeSet::new(),
            weights: Weights::initial(fragments, gradient_accumulation_steps),
            waiting: None,
            free_at: Time::default(),
            copies: BTreeMap::new(),
            inbox: Vec::new(),
        }
    }

    /// Delays all replies until then.
    pub(super) fn stall(&mut self, until: Time) {
        self.free_at = self.free_at.max(until);
    }

    /// Queues a task whose cost in forwards is worth `service` each. Returns the time at which it will have run.
    pub(super) fn submit(&mut self, now: Time, task: Task, service: Duration) -> Time {
        self.free_at = self.free_at.max(now) + service * task.forwards() / FORWARD;
        self.tasks.push_back(task);
        self.free_at
    }

    /// Takes the task that has run; its effect is still to be noted.
    pub(super) fn take_done(&mut self) -> Option<Task> {
        self.tasks.pop_front()
    }

    /// The task that runs.
    pub(super) fn running(&self) -> Option<&Task> {
        self.tasks.front()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Means that wait to be applied.
    pub(super) fn applying(&self) -> usize {
        let applies = |task: &&Task| matches!(task, Task::Average { job: averaging::Job::Apply { .. }, .. });
        self.tasks.iter().filter(applies).count()
    }

    /// The microbatches whose contributions no other replica has. What a round has carried others have, even if its end
    /// is still to be noted here.
    pub(super) fn own(&self) -> Vec<MicrobatchId> {
        let mut weights = self.weights.clone();
        for task in &self.tasks {
            if let Task::Average { job: averaging::Job::Finish { round, complete, .. }, .. } = *task {
                weights.finish(round, complete);
            }
        }
        weights.own().collect()
    }

    // --- Microbatches ---------------------------------------------------------------------------------------

    /// Notes the effect of a job.
    pub(super) fn compute(&mut self, job: &Job<Payload>, last: bool, refuse: bool) -> Result<Effect, Misuse> {
        let microbatch = job.microbatch();
        match job {
            Job::Forget { .. } => {
                expect(self.stashes.remove(&microbatch), microbatch, "is forgotten without a stash")?;
                return Ok(Effect::default());
            }
            Job::Drop { .. } => {
                expect(self.waiting.take() == Some(microbatch), microbatch, "is dropped, but does not wait")?;
                return Ok(Effect::default());
            }
            _ => {}
        }
        let reply = |outcome| Some(JobReply { microbatch, outcome });
        let applies = matches!(job, Job::Apply { .. });
        if refuse && !applies {
            self.stashes.remove(&microbatch);
            return Ok(Effect { reply: reply(JobOutcome::Refused(Refusal::NonFinite)), applied: None });
        }
        let (outcome, applied) = self.result(job, last)?;
        if let Some(applied) = applied {
            self.weights.contribute(applied);
        }
        Ok(Effect { reply: reply(outcome), applied })
    }

    fn result(
        &mut self,
        job: &Job<Payload>,
        last: bool,
    ) -> Result<(JobOutcome<Payload>, Option<MicrobatchId>), Misuse> {
        let loss = Loss { sum: 2.0, tokens: 1 };
        let version = WeightVersion(1);
        let (activation, gradient) = (Payload::Activation, Payload::Gradient);
        Ok(match *job {
            Job::Forward { microbatch, .. } => {
                expect(self.stashes.insert(microbatch), microbatch, "is stashed twice")?;
                (JobOutcome::Forwarded { version, activation }, None)
            }
            Job::LossAndBackward { microbatch, granted, .. } => {
                let applied = self.gradients(microbatch, granted)?;
                (JobOutcome::LossAndBackward { loss, gradient }, applied)
            }
            Job::Backward { microbatch, granted, .. } => {
                expect(self.stashes.remove(&microbatch), microbatch, "goes backward without a stash")?;
                let applied = self.gradients(microbatch, granted)?;
                (JobOutcome::Backwarded { gradient }, applied)
            }
            Job::Apply { microbatch } => {
                expect(self.waiting.take() == Some(microbatch), microbatch, "is applied, but does not wait")?;
                (JobOutcome::Applied, Some(microbatch))
            }
            Job::Evaluate { microbatch, cut, .. } => {
                expect(last || !cut, microbatch, "is cut before the last stage")?;
                let evaluation = if last {
                    Evaluation::Loss(loss)
                } else {
                    Evaluation::Activation { version, activation }
                };
                (JobOutcome::Evaluated(evaluation), None)
            }
            Job::Forget { .. } | Job::Drop { .. } => (JobOutcome::Refused(Refusal::Unknown), None),
        })
    }

    fn gradients(&mut self, microbatch: MicrobatchId, granted: bool) -> Result<Option<MicrobatchId>, Misuse> {
        expect(self.waiting.is_none(), microbatch, "has gradients while others wait")?;
        if !granted {
            self.waiting = Some(microbatch);
        }
        Ok(granted.then_some(microbatch))
    }

    // --- Averaging ------------------------------------------------------------------------------------------

    /// Does a job of an averaging round in `group`; the result is `None` for jobs without a reply.
    pub(super) fn average(
        &mut self,
        job: &averaging::Job<Payload>,
        me: Instance,
        group: Option<GroupId>,
    ) -> Result<Option<Reply<Payload>>, Misuse> {
        let closed = || format!("{me:?}: a job of a round that is not open");
        Ok(match *job {
            averaging::Job::Snapshot { round, fragment, parts } => {
                let group = group.ok_or_else(closed)?;
                let (uncarried, weight, parts) = self.weights.snapshot(round, fragment, parts);
                let numbers = |(part, values)| {
                    Payload::Numbers(Numbers { group, part: PartIndex(part), of: vec![me], values })
                };
                let parts = (0..).zip(parts).map(numbers).collect();
                Some(Reply::Snapshot { round, uncarried, weight, parts })
            }
            averaging::Job::Reduce { round, part, attempt, ref inputs, .. } => {
                Some(Reply::Reduced { round, part, attempt, outcome: Ok(reduce(part, inputs)) })
            }
            averaging::Job::Apply { round, part, ref mean, contributed } => {
                let Payload::Numbers(numbers) = mean else { return Err(closed()) };
                self.weights.apply(round, part, &numbers.values, contributed).ok_or_else(closed)?;
                Some(Reply::Applied { round, part, applied: true })
            }
            averaging::Job::Finish { round, complete, .. } => {
                self.weights.finish(round, complete).ok_or_else(closed)?;
                None
            }
        })
    }

    // --- States ---------------------------------------------------------------------------------------------

    /// Copies the state, or forges one. Returns its manifest and its words.
    pub(super) fn export(&mut self, state: StateId, forges: bool) -> (Manifest, Vec<u64>) {
        let mut words = self.weights.words();
        if forges {
            words.iter_mut().for_each(|word| *word = (f64::from_bits(*word) + FORGED).to_bits());
        }
        self.copies.insert(state, words.clone());
        (state::manifest(&words, WeightVersion(1)), words)
    }

    pub(super) fn chunk(&self, state: StateId, offset: u64, bytes: u32) -> Option<Vec<u64>> {
        Some(state::words_at(self.copies.get(&state)?, offset, bytes))
    }

    /// The projections of every chunk of a copy.
    pub(super) fn sketch(&self, state: StateId, seed: SketchSeed) -> Option<Vec<ChunkSketch>> {
        Some(state::sketch(self.copies.get(&state)?, seed))
    }

    pub(super) fn release(&mut self, state: StateId) {
        self.copies.remove(&state);
    }

    pub(super) fn begin_state(&mut self) {
        self.inbox.clear();
    }

    pub(super) fn store(&mut self, offset: u64, words: &[u64]) {
        state::store(&mut self.inbox, offset, words);
    }

    /// Takes over the downloaded state. Returns its words.
    pub(super) fn import(&mut self) -> Vec<u64> {
        let words = std::mem::take(&mut self.inbox);
        self.weights.import(&words);
        words
    }
}

fn reduce(part: PartIndex, inputs: &[(u64, Payload)]) -> Payload {
    let numbers: Vec<(u64, &Numbers)> = inputs
        .iter()
        .filter_map(|(weight, payload)| match payload {
            Payload::Numbers(numbers) => Some((*weight, numbers)),
            _ => None,
        })
        .collect();
    let Some(&(_, first)) = numbers.first() else { return Payload::Empty };
    Payload::Numbers(Numbers {
        group: first.group,
        part,
        of: numbers.iter().flat_map(|(_, numbers)| numbers.of.clone()).collect(),
        values: state::mean(numbers.iter().map(|(weight, numbers)| (*weight, &*numbers.values))),
    })
}

fn expect(holds: bool, microbatch: MicrobatchId, otherwise: &str) -> Result<(), Misuse> {
    if holds { Ok(()) } else { Err(format!("{microbatch} {otherwise}")) }
}

/// Cost of a forward, in the unit of [`Task::forwards`].
const FORWARD: u32 = 8;

/// Total cost of a training microbatch at a replica, in forwards.
pub(in crate::sim) const FORWARDS_PER_MICROBATCH: u32 = 3;

impl Task {
    /// Its cost. A backward costs two forwards; applying gradients or copying numbers costs little.
    fn forwards(&self) -> u32 {
        let job = match self {
            Self::Compute { job, .. } => job,
            Self::Export(_) => return FORWARD,
            Self::Average { .. } | Self::Import | Self::StepRest => return 1,
        };
        match job {
            Job::Forward { .. } | Job::Evaluate { .. } => FORWARD,
            Job::Backward { .. } => 2 * FORWARD,
            Job::LossAndBackward { .. } => FORWARDS_PER_MICROBATCH * FORWARD,
            Job::Apply { .. } => 1,
            Job::Drop { .. } | Job::Forget { .. } => 0,
        }
    }
}

/// A time in `from..to`.
pub(super) fn time_between(rng: &mut Rng, from: Duration, to: Duration) -> Duration {
    let span = u64::try_from(to.saturating_sub(from).as_nanos()).unwrap_or(u64::MAX);
    from + Duration::from_nanos(rng.below(span.max(1)))
}
