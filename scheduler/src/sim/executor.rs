//! An executor without tensors: keeps the books on stashes and gradients and takes a random time.

use std::collections::BTreeSet;

use crate::stage::{Completion, Done, Evaluation, Job};
use crate::{Duration, Loss, MicrobatchId, Refusal, Rng, Time, WeightVersion};

#[derive(Debug, Default)]
pub(super) struct Executor {
    pub(super) stashes: BTreeSet<MicrobatchId>,
    /// Whose gradients wait for a word of the feeder.
    waiting: Option<MicrobatchId>,
    free_at: Time,
}

/// What a job does. Jobs run in order, so effects can be noted at once.
#[derive(Debug, Default)]
pub(super) struct Effect {
    /// The answer, and when it is there.
    pub(super) answer: Option<(Time, Completion<u8>)>,
    /// Its gradients are in the weights now.
    pub(super) applied: Option<MicrobatchId>,
}

impl Executor {
    /// Answers nothing until then.
    pub(super) fn wedge(&mut self, until: Time) {
        self.free_at = self.free_at.max(until);
    }

    /// Does something between two jobs; when it is done.
    pub(super) fn busy(&mut self, now: Time, service: Duration) -> Time {
        self.free_at = self.free_at.max(now) + service;
        self.free_at
    }

    pub(super) fn run(
        &mut self,
        now: Time,
        job: &Job<u8>,
        last: bool,
        refuse: bool,
        service: Duration,
    ) -> Effect {
        let microbatch = job.microbatch();
        match job {
            Job::Forget { .. } => {
                assert!(self.stashes.remove(&microbatch), "forget of {microbatch} without a stash");
                return Effect::default();
            }
            Job::Drop { .. } => {
                assert_eq!(self.waiting.take(), Some(microbatch), "drop of what does not wait");
                return Effect::default();
            }
            _ => {}
        }
        self.free_at = self.free_at.max(now) + service * forwards(job) / FORWARD;
        let applies = matches!(job, Job::Apply { .. });
        if refuse && !applies {
            self.stashes.remove(&microbatch);
            let done = Done::Refused(Refusal::NonFinite);
            return Effect { answer: Some((self.free_at, Completion { microbatch, done })), applied: None };
        }
        let (done, applied) = self.compute(job, last);
        Effect { answer: Some((self.free_at, Completion { microbatch, done })), applied }
    }

    fn compute(&mut self, job: &Job<u8>, last: bool) -> (Done<u8>, Option<MicrobatchId>) {
        let loss = Loss { sum: 2.0, tokens: 1 };
        let version = WeightVersion(1);
        match *job {
            Job::Forward { microbatch, .. } => {
                assert!(self.stashes.insert(microbatch), "{microbatch} is stashed twice");
                (Done::Forwarded { version, code: 1 }, None)
            }
            Job::LossAndBackward { microbatch, granted, .. } => {
                (Done::LossAndBackward { loss, gradient: 1 }, self.gradients(microbatch, granted))
            }
            Job::Backward { microbatch, granted, .. } => {
                assert!(self.stashes.remove(&microbatch), "backward of {microbatch} without a stash");
                (Done::Backwarded { gradient: 1 }, self.gradients(microbatch, granted))
            }
            Job::Apply { microbatch } => {
                assert_eq!(self.waiting.take(), Some(microbatch), "apply of what does not wait");
                (Done::Applied, Some(microbatch))
            }
            Job::Evaluate { cut, .. } => {
                assert!(last || !cut, "only the last stage cuts");
                let evaluation =
                    if last { Evaluation::Loss(loss) } else { Evaluation::Code { version, code: 1 } };
                (Done::Evaluated(evaluation), None)
            }
            Job::Forget { .. } | Job::Drop { .. } => (Done::Refused(Refusal::Unknown), None),
        }
    }

    fn gradients(&mut self, microbatch: MicrobatchId, granted: bool) -> Option<MicrobatchId> {
        assert_eq!(self.waiting, None, "other gradients wait");
        if !granted {
            self.waiting = Some(microbatch);
        }
        granted.then_some(microbatch)
    }
}

/// What a forward costs, in the unit of [`forwards`].
const FORWARD: u32 = 8;

/// What a training microbatch costs a replica in all, in the time of a forward.
pub(super) const FORWARDS_PER_MICROBATCH: u32 = 3;

/// A backward costs two forwards, and to add gradients up costs little.
fn forwards(job: &Job<u8>) -> u32 {
    match job {
        Job::Forward { .. } | Job::Evaluate { .. } => FORWARD,
        Job::Backward { .. } => 2 * FORWARD,
        Job::LossAndBackward { .. } => FORWARDS_PER_MICROBATCH * FORWARD,
        Job::Apply { .. } | Job::Drop { .. } | Job::Forget { .. } => 1,
    }
}

/// A time in `from..to`.
pub(super) fn time_between(rng: &mut Rng, from: Duration, to: Duration) -> Duration {
    let span = u64::try_from(to.saturating_sub(from).as_nanos()).unwrap_or(u64::MAX);
    from + Duration::from_nanos(rng.below(span.max(1)))
}
