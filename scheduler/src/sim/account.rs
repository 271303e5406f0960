//! The loss account: what the replicas of a run could have computed, and where it went.
//!
//! At every moment the stage with the least capacity limits the run, so what its replicas do then is where throughput
//! goes. The account takes the time of each of them: a job, a copy, a mean, or a wait. Capacity that is on another stage,
//! or at a replica that loads its state, is missing at this one.

use std::collections::BTreeMap;
use std::fmt;

use crate::topology::{Capacity, StageGraph};
use crate::{Duration, Hop, Instance, MicrobatchId, StageIndex, Time};

/// Where the capacity of a run went. Every figure but the time is in microbatches.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Account {
    /// The measured time.
    pub time: Duration,
    /// Microbatches that finished in it.
    pub finished: f64,
    /// What all running replicas could have computed, spread evenly over the stages.
    pub available: f64,
    /// What the replicas that had their state could have computed: the sum over time of what the narrowest stage could
    /// at each moment.
    pub alive: f64,
    /// The maximum flow through the same replicas. It is no less than `alive`: queues carry microbatches over the time in
    /// which another stage is the narrowest.
    pub bound: f64,
    /// Where the difference of `available` and `finished` went.
    pub losses: Losses,
}

/// The parts of a loss, in microbatches. Their sum is what was available and did not finish.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Losses {
    /// Replicas that had their state and no work.
    pub waiting_for_work: f64,
    /// Replicas that had work and could not begin it before the feeder granted other gradients, and the jobs that apply
    /// gradients after a late grant.
    pub waiting_for_grant: f64,
    /// Jobs of microbatches that another replica of the stage computed too.
    pub recomputation: f64,
    /// Replicas that had no work while microbatches were stuck at dead replicas: each of these could have kept one busy.
    pub undetected_failures: f64,
    /// Capacity of stages beyond that of the narrowest.
    pub placement: f64,
    /// Copies and means of averaging rounds.
    pub averaging: f64,
    /// Replicas that run and do not have their state yet, and the copies that others make for them.
    pub joining: f64,
    /// What the narrowest stages computed less what finished: begun before and finished in the measured time, or the
    /// other way round, and what queues carried over the time in which another stage was the narrowest. It can be
    /// negative.
    pub other: f64,
}

impl Losses {
    /// The parts by name.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, f64); 8] {
        [
            ("waiting for work", self.waiting_for_work),
            ("waiting for a grant", self.waiting_for_grant),
            ("recomputation", self.recomputation),
            ("failures not yet detected", self.undetected_failures),
            ("placement", self.placement),
            ("averaging", self.averaging),
            ("joining", self.joining),
            ("other", self.other),
        ]
    }

    /// The sum of all parts.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.parts().into_iter().map(|(_, part)| part).sum()
    }
}

impl Account {
    /// E1: what finished as a share of what the narrowest stage could compute at each moment.
    #[must_use]
    pub fn e1(&self) -> f64 {
        self.finished / self.alive.max(f64::MIN_POSITIVE)
    }

    /// E3: what finished as a share of what all running replicas could compute on any stage.
    #[must_use]
    pub fn e3(&self) -> f64 {
        self.finished / self.available.max(f64::MIN_POSITIVE)
    }

    /// What finished as a share of the maximum flow.
    #[must_use]
    pub fn share_of_bound(&self) -> f64 {
        self.finished / self.bound.max(f64::MIN_POSITIVE)
    }

    /// Finished microbatches a second.
    #[must_use]
    pub fn throughput(&self) -> f64 {
        self.finished / self.time.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |amount: f64| 100.0 * amount / self.available.max(f64::MIN_POSITIVE);
        write!(
            f,
            "capacity        {:.0} microbatches, of which {:.1} % finished; E1 {:.3}, E3 {:.3}\nlost            ",
            self.available,
            share(self.finished),
            self.e1(),
            self.e3()
        )?;
        for (place, (name, part)) in self.losses.parts().into_iter().enumerate() {
            write!(f, "{}{:.1} % {name}", if place == 0 { "" } else { ", " }, share(part))?;
        }
        Ok(())
    }
}

/// What the scarcer resource of a replica does: its executor, or its uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activity {
    /// Nothing: no work is here.
    Waits,
    /// Nothing: work is here, and other gradients wait for their grant.
    WaitsForGrant,
    /// A job of a microbatch.
    Computes(MicrobatchId),
    /// The job that applies gradients after a late grant.
    AppliesLate,
    Averages,
    /// A copy of the state for a joiner, or its chunks.
    Gives,
}

/// A process that runs.
#[derive(Clone, Copy, Debug)]
struct Process {
    capacity: Capacity,
    /// `None` while its state is not loaded.
    serves: Option<Hop>,
    activity: Activity,
    /// Until then everything is counted.
    since: Time,
    /// [`Meter::blame`] at that time.
    blamed: f64,
}

/// Takes the time of every process of a world.
#[derive(Debug)]
pub(super) struct Meter {
    from: Time,
    until: Option<Time>,
    processes: BTreeMap<usize, Process>,
    by_stage: Vec<Capacity>,
    /// The stage with the least capacity.
    narrowest: usize,
    /// Since then capacities are counted.
    counted_to: Time,
    /// Microbatches at dead replicas.
    stuck: usize,
    /// Replicas that wait for work.
    waiting: usize,
    /// Seconds of waiting of one replica that stuck microbatches are to blame for, since the beginning.
    blame: f64,
    blame_to: Time,
    account: Account,
    /// Work of the narrowest stages, by microbatch and replica: its worth is known in the end.
    work: BTreeMap<(MicrobatchId, Hop), f64>,
    served: BTreeMap<Hop, Capacity>,
    finished_before: Option<u64>,
}

impl Meter {
    /// A meter of the time from `from` on.
    pub(super) fn new(stages: u16, from: Duration) -> Self {
        Self {
            from: Time(0) + from,
            until: None,
            processes: BTreeMap::new(),
            by_stage: vec![Capacity::default(); stages.into()],
            narrowest: 0,
            counted_to: Time(0),
            stuck: 0,
            waiting: 0,
            blame: 0.0,
            blame_to: Time(0),
            account: Account::default(),
            work: BTreeMap::new(),
            served: BTreeMap::new(),
            finished_before: None,
        }
    }

    /// Whether the time before the measured time has just passed: then `finished` is what finished in it.
    pub(super) fn begins(&self, now: Time) -> bool {
        self.finished_before.is_none() && now >= self.from
    }

    /// The measured time begins; `finished` microbatches have finished before.
    pub(super) fn begin(&mut self, finished: u64) {
        self.finished_before = Some(finished);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.until.is_some()
    }

    /// Notes what a process is: `None` if it does not run, and where it serves if it does.
    pub(super) fn note_process(&mut self, now: Time, index: usize, runs: Option<(Capacity, Option<Hop>)>) {
        if self.is_closed() {
            return;
        }
        self.count_all(now);
        self.change_waiting(now, index, |meter| match runs {
            Some((capacity, serves)) => {
                let before = meter.processes.get(&index);
                let same = before.filter(|before| before.serves == serves).map(|before| before.activity);
                let activity = same.unwrap_or(Activity::Waits);
                let process = Process { capacity, serves, activity, since: now, blamed: meter.blame };
                meter.processes.insert(index, process);
            }
            None => {
                meter.processes.remove(&index);
            }
        });
        self.by_stage.fill(Capacity::default());
        for process in self.processes.values() {
            if let Some(stage) = process.serves.and_then(|hop| hop.stage) {
                let sum = &mut self.by_stage[usize::from(stage.0)];
                *sum = *sum + process.capacity;
            }
        }
        let stages = 0..self.by_stage.len();
        self.narrowest = stages.min_by_key(|&stage| self.by_stage[stage]).unwrap_or(0);
    }

    /// Notes what a process does from now on.
    pub(super) fn note_activity(&mut self, now: Time, index: usize, activity: Activity) {
        let before = self.processes.get(&index).map(|process| process.activity);
        if self.is_closed() || before.is_none_or(|before| before == activity) {
            return;
        }
        self.count(now, index);
        self.change_waiting(now, index, |meter| {
            if let Some(process) = meter.processes.get_mut(&index) {
                process.activity = activity;
            }
        });
    }

    /// Notes how many microbatches are stuck at dead replicas.
    pub(super) fn note_stuck(&mut self, now: Time, stuck: usize) {
        self.move_blame(now);
        self.stuck = stuck;
    }

    /// The end of the measured time. `finished` are all microbatches that have finished by then.
    pub(super) fn close(&mut self, now: Time, finished: u64) {
        if self.is_closed() {
            return;
        }
        self.count_all(now);
        self.until = Some(now);
        self.account.time = now.since(self.from);
        let before = self.finished_before.unwrap_or(finished);
        self.account.finished = as_f64(finished.saturating_sub(before));
    }

    /// The account. `applied` tells the replica that applied the gradients of a microbatch at a stage, `is_over` whether
    /// a microbatch has its outcome.
    pub(super) fn account(
        &self,
        applied: impl Fn(MicrobatchId, StageIndex) -> Option<Instance>,
        is_over: impl Fn(MicrobatchId) -> bool,
    ) -> Account {
        let mut account = self.account;
        let mut useful = 0.0;
        let work: Vec<_> =
            self.work.iter().map(|(&(microbatch, hop), &amount)| (microbatch, hop, amount)).collect();
        for done in work.chunk_by(|a, b| (a.0, a.1.stage) == (b.0, b.1.stage)) {
            let (microbatch, Hop { stage, .. }, _) = done[0];
            let sum: f64 = done.iter().map(|(.., amount)| amount).sum();
            let by = stage.and_then(|stage| applied(microbatch, stage));
            let once = if is_over(microbatch) || by.is_some() { done_once(done, by) } else { sum };
            useful += once;
            account.losses.recomputation += sum - once;
        }
        account.losses.other = useful - account.finished;
        let stages = u16::try_from(self.by_stage.len()).unwrap_or(u16::MAX);
        let served = self.served.iter().map(|(&hop, &capacity)| (hop, capacity));
        account.bound = StageGraph::new(stages, served).bound().microbatches();
        account
    }

    // --- Counting -------------------------------------------------------------------------------------------

    /// The part of a time that is measured.
    fn measured(&self, since: Time, now: Time) -> Duration {
        now.since(since.max(self.from))
    }

    /// Counts everything up to now, with the capacities of the time before.
    fn count_all(&mut self, now: Time) {
        for index in self.processes.keys().copied().collect::<Vec<_>>() {
            self.count(now, index);
        }
        let lasted = self.measured(self.counted_to, now).as_secs_f64();
        self.counted_to = now;
        let stages = f64::from(u32::try_from(self.by_stage.len()).unwrap_or(u32::MAX));
        let rates = |capacity: &Capacity| capacity.microbatches();
        let loading: f64 = self.processes.values().filter(|process| process.serves.is_none()).map(rate).sum();
        let mean = self.by_stage.iter().map(rates).sum::<f64>() / stages;
        let narrowest = self.by_stage[self.narrowest].microbatches();
        let account = &mut self.account;
        account.available += (mean + loading / stages) * lasted;
        account.alive += narrowest * lasted;
        account.losses.joining += loading / stages * lasted;
        account.losses.placement += (mean - narrowest) * lasted;
    }

    /// Counts what a process did up to now.
    fn count(&mut self, now: Time, index: usize) {
        self.move_blame(now);
        let Some(process) = self.processes.get_mut(&index) else { return };
        let Process { capacity, serves, activity, since, blamed } = *process;
        (process.since, process.blamed) = (now, self.blame);
        let Some(hop) = serves else { return };
        let lasted = self.measured(since, now);
        let sum = self.served.entry(hop).or_default();
        *sum = *sum + capacity.over(lasted);
        if hop.stage.map(|stage| usize::from(stage.0)) != Some(self.narrowest) {
            return;
        }
        let amount = capacity.microbatches() * lasted.as_secs_f64();
        let losses = &mut self.account.losses;
        match activity {
            Activity::Waits => {
                let blamed = capacity.microbatches() * (self.blame - blamed);
                losses.undetected_failures += blamed;
                losses.waiting_for_work += amount - blamed;
            }
            Activity::WaitsForGrant | Activity::AppliesLate => losses.waiting_for_grant += amount,
            Activity::Averages => losses.averaging += amount,
            Activity::Gives => losses.joining += amount,
            Activity::Computes(microbatch) if amount > 0.0 => {
                *self.work.entry((microbatch, hop)).or_default() += amount;
            }
            Activity::Computes(_) => {}
        }
    }

    // --- Failures -------------------------------------------------------------------------------------------

    fn is_waiting(&self, index: usize) -> bool {
        let process = self.processes.get(&index);
        process.is_some_and(|process| process.serves.is_some() && process.activity == Activity::Waits)
    }

    /// Makes a change that may let a process wait, or end its wait.
    fn change_waiting(&mut self, now: Time, index: usize, change: impl FnOnce(&mut Self)) {
        self.move_blame(now);
        self.waiting -= usize::from(self.is_waiting(index));
        change(self);
        self.waiting += usize::from(self.is_waiting(index));
    }

    fn move_blame(&mut self, now: Time) {
        let lasted = self.measured(self.blame_to, now).as_secs_f64();
        self.blame_to = now;
        if self.waiting > 0 {
            self.blame += lasted * (as_f64(self.stuck as u64) / as_f64(self.waiting as u64)).min(1.0);
        }
    }
}

/// The work of one replica on a microbatch at a stage: of the one that applied it. If that died before, it is the work of
/// the one that did most: another took its place, and had no grant.
fn done_once(done: &[(MicrobatchId, Hop, f64)], by: Option<Instance>) -> f64 {
    let applied = done.iter().find(|(_, hop, _)| Some(hop.instance) == by);
    let most = || done.iter().map(|(.., amount)| *amount).fold(0.0, f64::max);
    applied.map_or_else(|| if by.is_some() { 0.0 } else { most() }, |(.., amount)| *amount)
}

fn rate(process: &Process) -> f64 {
    process.capacity.microbatches()
}

/// Exact up to 2^53.
#[allow(clippy::cast_precision_loss)]
fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{a, b};

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u64) -> Time {
        Time(0) + SECOND * u32::try_from(seconds).unwrap()
    }

    fn one_every(seconds: u32) -> Capacity {
        Capacity::one_every(SECOND * seconds)
    }

    /// Stage 0 does two a second with two replicas, stage 1 one a second with one.
    fn meter() -> Meter {
        let mut meter = Meter::new(2, SECOND * 10);
        for (index, hop) in [a(0), b(0), a(1)].into_iter().enumerate() {
            meter.note_process(at(0), index, Some((one_every(1), Some(hop))));
        }
        meter
    }

    fn is_close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn the_narrowest_stage_is_where_capacity_goes_and_the_parts_sum_to_the_gap() {
        let mut meter = meter();
        let (first, second) = (MicrobatchId(1), MicrobatchId(2));
        meter.note_activity(at(8), 2, Activity::Computes(first));
        meter.begin(4);
        meter.note_activity(at(12), 2, Activity::WaitsForGrant);
        meter.note_activity(at(13), 2, Activity::Averages);
        meter.note_activity(at(15), 2, Activity::Gives);
        meter.note_activity(at(16), 2, Activity::Computes(second));
        meter.note_activity(at(17), 2, Activity::Waits);
        meter.close(at(20), 5);
        let account = meter.account(|id, _| Some(if id == first { a(1) } else { b(1) }.instance), |_| true);
        assert_eq!((account.time, account.finished), (10 * SECOND, 1.0));
        let losses = account.losses;
        let figures = [
            (account.available, 15.0),
            (account.alive, 10.0),
            (account.bound, 10.0),
            (losses.placement, 5.0),
            (losses.waiting_for_grant, 1.0),
            (losses.averaging, 2.0),
            (losses.joining, 1.0),
            (losses.recomputation, 1.0),
            (losses.waiting_for_work, 3.0),
            (losses.other, 1.0),
        ];
        for (index, (measured, expected)) in figures.into_iter().enumerate() {
            assert!(is_close(measured, expected), "figure {index}: {measured} instead of {expected}");
        }
        assert!(is_close(losses.sum(), account.available - account.finished), "{account:?}");
    }

    #[test]
    fn a_stuck_microbatch_is_blamed_for_the_wait_of_one_replica() {
        let mut meter = meter();
        meter.begin(0);
        // Three replicas wait: a third of the wait of each.
        meter.note_stuck(at(10), 1);
        meter.note_stuck(at(13), 9);
        meter.note_stuck(at(15), 0);
        meter.close(at(20), 0);
        let losses = meter.account(|_, _| None, |_| false).losses;
        assert!(is_close(losses.undetected_failures, 1.0 + 2.0), "{losses:?}");
        assert!(is_close(losses.waiting_for_work, 7.0), "{losses:?}");
    }

    #[test]
    fn a_process_that_loads_its_state_counts_as_joining_and_one_that_is_dead_does_not_count() {
        let mut meter = meter();
        meter.note_process(at(10), 0, None);
        meter.note_process(at(12), 0, Some((one_every(1), None)));
        meter.note_process(at(16), 0, Some((one_every(1), Some(a(0)))));
        meter.close(at(20), 0);
        let account = meter.account(|_, _| None, |_| false);
        assert!(is_close(account.losses.joining, 2.0), "{account:?}");
        assert!(is_close(account.available, 15.0 - 1.0), "{account:?}");
        assert!(is_close(account.losses.sum(), account.available), "{account:?}");
    }
}
