//! A simulated run: its size, its speed and its faults.

use std::collections::BTreeSet;

use crate::coordinator::FeedPolicy;
use crate::feeder::AveragingSchedule;
use crate::keeper::Interval;
#[cfg(test)]
use crate::mutation::Mutation;
use crate::router::Policy;
use crate::{Admission, Duration, Purpose, Rng};

use super::act::Act;
use super::donor_act::DonorAct;
use super::executor::time_between;
use super::fault::{End, Fault, Way};
use super::feeder_act::FeederAct;
use super::network::Links;
use super::uplink::Uplinks;

const SECOND: Duration = Duration::from_secs(1);

/// A run and its faults. Everything else follows from `seed`.
///
/// ```
/// use swarmline_scheduler::sim::{Fault, Scenario, World};
/// use swarmline_scheduler::{Admission, Duration};
///
/// let crash = Fault::Crash { replica: 3, loud: false, back_after: Some(Duration::from_secs(20)) };
/// let scenario = Scenario::new(7, 4, 2, 200, Admission::Asynchronous(16))
///     .with_service_times(vec![Duration::from_millis(20), Duration::from_millis(40)])
///     .with_averaging(20, 4)
///     .with_fault(Duration::from_secs(5), crash);
/// let report = World::new(scenario)?.run()?;
/// assert_eq!((report.counts.finished, report.counts.lost), (200, 0));
/// println!("{report}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Scenario {
    /// Equal seeds give equal runs.
    pub seed: u64,
    /// Stages of the pipeline.
    pub stages: u16,
    /// Replicas of each stage.
    pub replicas: u16,
    /// Replicas that join after every place is taken. Default 0.
    pub spares: u16,
    /// Feeders besides the first, from the beginning. Default 0.
    pub more_feeders: u16,
    /// Training microbatches of the run.
    pub total: u64,
    /// The limit of microbatches in flight.
    pub admission: Admission,
    /// Ids that the feeder leases at a time. Default 32.
    pub lease_count: u64,
    /// Slots by replica; the list repeats for further replicas. Default 64.
    pub slots: Vec<usize>,
    /// Mean time of a forward by replica; the list repeats for further replicas. Default 5 ms.
    pub service_times: Vec<Duration>,
    /// The times of messages.
    pub links: Links,
    /// Jobs in a thousand that the executor refuses. Default 0.
    pub refused_per_mille: u64,
    /// Noise messages in a thousand real messages. Default 0.
    pub noise_per_mille: u64,
    /// The faults, each with its time.
    pub faults: Vec<(Duration, Fault)>,
    /// Evaluations by command.
    pub evaluations: Vec<Measure>,
    /// The peers that may feed the run. A run that any member may feed evicts no liar. Default [`FeedPolicy::Members`].
    pub feed: FeedPolicy,
    /// The schedule of averaging rounds. Default none.
    pub averaging: Option<AveragingSchedule>,
    /// Contributions of one optimizer step, at least 1. Default 1.
    pub gradient_accumulation_steps: u64,
    /// When the keeper keeps a checkpoint. Default `None`: the run has no keeper.
    pub keeping: Option<Interval>,
    /// Files in a thousand that the keeper's target does not take. Default 0.
    pub unwritten_per_mille: u64,
    /// The routing policy. Default uniform.
    pub router: Policy,
    /// How long a reply is awaited before its status is requested. Default 3 s.
    pub status_after: Duration,
    /// Executor time of a copy or a mean of an averaging round, in thousandths of a forward. Default 125.
    pub averaging_per_mille: u32,
    /// Time at which the feeder is told to stop. Default never.
    pub duration: Option<Duration>,
    /// The account counts from this time on. Default 0.
    pub measure_from: Duration,
    /// How long a stopping feeder waits for the microbatches in flight. Default 10 s.
    pub stop_within: Duration,
    /// The rule that a test breaks on purpose.
    #[cfg(test)]
    pub(crate) mutation: Option<Mutation>,
    /// Events after which a run that is not over counts as stuck. Default 400,000.
    pub steps_max: u64,
}

/// An evaluation by command.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    /// The time of the command.
    pub at: Duration,
    /// Number of held-out microbatches.
    pub count: u64,
    /// `Evaluate` or `EvaluateCut`.
    pub purpose: Purpose,
}

impl Scenario {
    /// A run without faults of `stages` stages with `replicas` replicas each.
    #[must_use]
    pub fn new(seed: u64, stages: u16, replicas: u16, total: u64, admission: Admission) -> Self {
        Self {
            seed,
            stages,
            replicas,
            spares: 0,
            more_feeders: 0,
            total,
            admission,
            lease_count: 32,
            slots: vec![64],
            service_times: vec![Duration::from_millis(5)],
            links: Links::default(),
            refused_per_mille: 0,
            noise_per_mille: 0,
            faults: Vec::new(),
            evaluations: Vec::new(),
            feed: FeedPolicy::Members,
            averaging: None,
            gradient_accumulation_steps: 1,
            keeping: None,
            unwritten_per_mille: 0,
            router: Policy::Uniform,
            status_after: Duration::from_secs(3),
            averaging_per_mille: 125,
            duration: None,
            measure_from: Duration::ZERO,
            stop_within: Duration::from_secs(10),
            #[cfg(test)]
            mutation: None,
            steps_max: 400_000,
        }
    }

    /// Sets the mean time of a forward by replica; the list repeats for further replicas.
    #[must_use]
    pub fn with_service_times(self, service_times: Vec<Duration>) -> Self {
        Self { service_times, ..self }
    }

    /// Sets the times of messages.
    #[must_use]
    pub fn with_links(self, links: Links) -> Self {
        Self { links, ..self }
    }

    /// Lets replicas average one of `fragments` fragments every `interval` microbatches.
    #[must_use]
    pub fn with_averaging(self, interval: u64, fragments: u64) -> Self {
        Self { averaging: Some(AveragingSchedule { interval, fragments }), ..self }
    }

    /// Sets the routing policy.
    #[must_use]
    pub fn with_router(self, router: Policy) -> Self {
        Self { router, ..self }
    }

    /// Adds a fault that strikes `at` this time, counted from the beginning.
    #[must_use]
    pub fn with_fault(mut self, at: Duration, fault: Fault) -> Self {
        self.faults.push((at, fault));
        self
    }

    /// Lets the feeder stop after this time.
    #[must_use]
    pub fn with_duration(self, duration: Duration) -> Self {
        Self { duration: Some(duration), ..self }
    }

    /// A run with faults, all drawn from the seed: 3 to 5 stages of 2 or 3 replicas with unequal slots and speeds, at
    /// least 40 microbatches and 5 faults; mostly with averaging rounds.
    #[must_use]
    pub fn drawn(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x5EED);
        let stages = draw_u16(&mut rng, 3, 3);
        let replicas = draw_u16(&mut rng, 2, 2);
        let window = u32::from(draw_u16(&mut rng, 3, 14));
        let admission =
            if rng.chance(1, 5) { Admission::Synchronous(window) } else { Admission::Asynchronous(window) };
        let mut scenario = Self::new(seed, stages, replicas, 40 + rng.below(40), admission);
        scenario.spares = draw_u16(&mut rng, 0, 3);
        scenario.slots = (0..7).map(|_| usize::from(draw_u16(&mut rng, 1, 8))).collect();
        let service = || time_between(&mut rng, Duration::from_millis(20), Duration::from_millis(400));
        scenario.service_times = std::iter::repeat_with(service).take(5).collect();
        scenario.refused_per_mille = if rng.chance(1, 4) { 5 } else { 0 };
        scenario.lease_count = 8 + rng.below(40);
        scenario.router = rng.pick(Policy::ALL).copied().unwrap_or_default();
        if rng.chance(1, 5) {
            // A download takes minutes, and a donor pauses for it.
            scenario.links.chunk_delay_max = time_between(&mut rng, SECOND, 20 * SECOND);
            scenario.links.export_max = 10 * SECOND;
        }
        let faults = 5 + rng.below(6);
        scenario.faults = (0..faults).map(|_| scenario.draw_fault(&mut rng)).collect();
        let averaging = AveragingSchedule { interval: 5 + rng.below(16), fragments: 1 + rng.below(3) };
        scenario.averaging = rng.chance(4, 5).then_some(averaging);
        scenario.draw_death_of_successor(&mut rng);
        scenario.more_feeders = u16::from(rng.chance(1, 5));
        scenario.draw_liar(&mut rng);
        scenario.draw_restarts_of_coordinator(&mut rng);
        scenario.draw_lasting_link(&mut rng);
        scenario.draw_uplinks(seed);
        scenario.draw_lying_feeder(seed);
        scenario.draw_lying_donor(seed);
        scenario.draw_accumulation(seed);
        scenario.draw_keeper(seed);
        scenario
    }

    /// In an eighth of the runs a link that never heals; half of them are broken before the two meet.
    fn draw_lasting_link(&mut self, rng: &mut Rng) {
        if !rng.chance(1, 8) {
            return;
        }
        let members = self.members() as u64;
        let mut end = || usize::try_from(rng.below(members)).unwrap_or(0);
        let ends = (end(), end());
        let fault = self.draw_broken_link(rng, ends, None);
        let at = if rng.chance(1, 2) { time_between(rng, SECOND, 25 * SECOND) } else { Duration::ZERO };
        self.faults.push((at, fault));
    }

    /// In a fifth of the runs the coordinator is started again, in a third of these twice. Half of the first restarts
    /// follow another fault, so that they strike while the run recovers.
    fn draw_restarts_of_coordinator(&mut self, rng: &mut Rng) {
        if !rng.chance(1, 5) {
            return;
        }
        let other = rng.pick(&self.faults).map_or(Duration::ZERO, |(at, _)| *at);
        let soon = other + time_between(rng, Duration::ZERO, 20 * SECOND);
        let any = time_between(rng, SECOND / 2, 40 * SECOND);
        let mut at = if rng.chance(1, 2) { soon } else { any };
        for _ in 0..(if rng.chance(1, 3) { 2 } else { 1 }) {
            let longest = if rng.chance(1, 2) { SECOND } else { 40 * SECOND };
            let back_after = time_between(rng, Duration::ZERO, longest);
            self.faults.push((at, Fault::CoordinatorRestart { back_after, keeps_log: rng.chance(1, 2) }));
            at += back_after + time_between(rng, SECOND / 10, 20 * SECOND);
        }
    }

    /// Thin uplinks in a quarter of the runs, which are short ones then, drawn apart from the faults: they shift no other
    /// draw.
    fn draw_uplinks(&mut self, seed: u64) {
        let mut rng = Rng::new(seed ^ 0x0B17);
        if rng.chance(1, 4) {
            let frame_time = time_between(&mut rng, Duration::from_millis(20), Duration::from_millis(600));
            let queue_max = usize::from(draw_u16(&mut rng, 1, 4));
            self.links.uplinks = Some(Uplinks { frame_time, queue_max });
            self.total = 40;
        }
    }

    /// One liar in a quarter of the runs.
    fn draw_liar(&mut self, rng: &mut Rng) {
        if let Some(&act) = rng.pick(&Act::ALL).filter(|_| rng.chance(1, 4)) {
            let replica = usize::try_from(rng.below(self.members() as u64)).unwrap_or(0);
            let at = time_between(rng, 2 * SECOND, 20 * SECOND);
            let lasts = time_between(rng, 5 * SECOND, 60 * SECOND);
            self.faults.push((at, Fault::Byzantine { replica, act, lasts }));
        }
    }

    /// A lying feeder beside an honest one in a fifth of the runs, drawn apart from the faults. A coordinator that is
    /// started again does not know what it has given out, and believes feeders; over a link that never heals the honest
    /// feeder may be the one that is missing.
    fn draw_lying_feeder(&mut self, seed: u64) {
        let mut rng = Rng::new(seed ^ 0xFEED);
        let lasts = |(_, fault): &(Duration, Fault)| {
            matches!(fault, Fault::CoordinatorRestart { .. } | Fault::BrokenLink { lasts: None, .. })
        };
        let is_alone = !self.faults.iter().any(lasts);
        if let Some(&act) = rng.pick(&FeederAct::ALL).filter(|_| rng.chance(1, 5) && is_alone) {
            self.more_feeders = 1;
            let at = time_between(&mut rng, 2 * SECOND, 12 * SECOND);
            let lasts = time_between(&mut rng, 5 * SECOND, 60 * SECOND);
            self.faults.push((at, Fault::LyingFeeder { act, lasts }));
        }
    }

    /// A donor that lies while other replicas of its stage come back in a fifth of the runs, drawn apart from the faults;
    /// in half of these, stages are so wide that most donors are honest.
    fn draw_lying_donor(&mut self, seed: u64) {
        let mut rng = Rng::new(seed ^ 0xD0);
        let Some(&act) = rng.pick(&DonorAct::ALL).filter(|_| rng.chance(1, 5)) else { return };
        if rng.chance(1, 2) {
            self.replicas = self.replicas.max(4);
        }
        let stages = usize::from(self.stages);
        let replica = usize::try_from(rng.below(u64::from(self.stages))).unwrap_or(0);
        let at = time_between(&mut rng, 5 * SECOND, 15 * SECOND);
        self.faults.push((at, Fault::Lie { replica, act, lasts: 60 * SECOND }));
        let back_after = Some(time_between(&mut rng, SECOND / 10, 5 * SECOND));
        self.faults.push((at + SECOND, Fault::Crash { replica: replica + stages, loud: true, back_after }));
    }

    /// Optimizer steps of several contributions in a third of the runs, drawn apart from the faults.
    fn draw_accumulation(&mut self, seed: u64) {
        let mut rng = Rng::new(seed ^ 0xACC);
        if rng.chance(1, 3) {
            self.gradient_accumulation_steps = 2 + rng.below(4);
        }
    }

    /// A keeper in a quarter of the runs, drawn apart from the faults. In most of them a stage
    /// loses all its replicas, in some the keeper dies.
    fn draw_keeper(&mut self, seed: u64) {
        let mut rng = Rng::new(seed ^ 0x4EE9);
        if !rng.chance(1, 4) {
            return;
        }
        self.keeping = Some(Interval::Time(time_between(&mut rng, SECOND, 5 * SECOND)));
        self.unwritten_per_mille = if rng.chance(1, 4) { 100 } else { 0 };
        if rng.chance(3, 4) {
            let stage = draw_u16(&mut rng, 0, u64::from(self.stages));
            let at = time_between(&mut rng, 5 * SECOND, 25 * SECOND);
            let back_after = time_between(&mut rng, SECOND / 10, 60 * SECOND);
            self.faults.push((at, Fault::StageCrash { stage, back_after }));
        }
        if rng.chance(1, 2) {
            let at = time_between(&mut rng, 3 * SECOND, 40 * SECOND);
            let back_after = time_between(&mut rng, SECOND / 10, 30 * SECOND);
            self.faults.push((at, Fault::KeeperCrash { back_after }));
        }
    }

    /// Faults that are drawn alone rarely strike a successor while it feeds.
    fn draw_death_of_successor(&mut self, rng: &mut Rng) {
        let succession = |(_, fault): &&(Duration, Fault)| matches!(fault, Fault::Succession { .. });
        let began = self.faults.iter().find(succession).map(|(at, _)| *at);
        if let Some(began) = began.filter(|_| rng.chance(1, 2)) {
            let at = began + time_between(rng, 10 * SECOND, 30 * SECOND);
            let back_after = time_between(rng, SECOND, 8 * SECOND);
            self.faults.push((at, Fault::FeederCrash { back_after, keeps_journal: true }));
        }
    }

    fn draw_fault(&self, rng: &mut Rng) -> (Duration, Fault) {
        let at = time_between(rng, Duration::from_millis(500), Duration::from_secs(25));
        let members = self.members() as u64;
        let replica = usize::try_from(rng.below(members)).unwrap_or(0);
        let other = usize::try_from(rng.below(members)).unwrap_or(0);
        let lasts = time_between(rng, Duration::from_millis(300), Duration::from_secs(20));
        let back = time_between(rng, Duration::from_millis(100), Duration::from_secs(20));
        let fault = match rng.below(23) {
            0..=1 => Fault::Crash { replica, loud: true, back_after: Some(back) },
            2..=4 => Fault::Crash { replica, loud: false, back_after: Some(back) },
            5..=6 => Fault::Leave { replica },
            7 => Fault::Stall { replica, lasts },
            8 => Fault::Suspend { replica, lasts },
            9 => Fault::Loss { per_mille: 20 + rng.below(200), lasts },
            10 => Fault::Delay { extra: lasts / 10, lasts },
            11..=12 => self.draw_broken_link(rng, (replica, other), Some(lasts)),
            13 => Fault::Partition { part: BTreeSet::from([replica, other]), lasts },
            14 | 22 => Fault::FeederCrash { back_after: back, keeps_journal: rng.chance(4, 5) },
            15 => Fault::Succession { dies: true, after: back },
            16 => Fault::Succession { dies: false, after: back },
            17 => Fault::Lie { replica, act: DonorAct::WrongChunks, lasts },
            18 => Fault::LateControl { extra: lasts / 2, lasts },
            19 => Fault::CoordinatorOutage { lasts: 3 * lasts },
            20 => Fault::CoordinatorFreeze { lasts: 3 * lasts },
            _ => Fault::SlowCopy { replica, by: lasts / 2, lasts: 3 * lasts },
        };
        (at, fault)
    }

    fn draw_broken_link(&self, rng: &mut Rng, (a, b): (usize, usize), lasts: Option<Duration>) -> Fault {
        let b = if rng.chance(1, 2) { End::Feeder } else { End::Replica(b) };
        let ends = if rng.chance(1, 2) { (End::Replica(a), b) } else { (b, End::Replica(a)) };
        let way = if rng.chance(1, 2) { Way::Both } else { Way::ToB };
        Fault::BrokenLink { a: ends.0, b: ends.1, way, lasts }
    }

    /// The time at which the last fault is over.
    #[must_use]
    pub fn faults_end(&self) -> Duration {
        self.faults.iter().map(|(at, fault)| *at + fault.lasts()).max().unwrap_or_default()
    }

    /// Number of replica processes.
    #[must_use]
    pub fn members(&self) -> usize {
        usize::from(self.stages) * usize::from(self.replicas) + usize::from(self.spares)
    }

    /// Number of feeders of the beginning.
    pub(super) fn feeders(&self) -> usize {
        1 + usize::from(self.more_feeders)
    }

    pub(super) fn slots_of(&self, index: usize) -> usize {
        self.slots[index % self.slots.len()]
    }

    pub(super) fn service_of(&self, index: usize) -> Duration {
        self.service_times[index % self.service_times.len()]
    }

    /// Fragments that the numbers of a stage are divided into; 0 without averaging.
    pub(super) fn fragments(&self) -> u32 {
        self.averaging.map_or(0, |schedule| u32::try_from(schedule.fragments).unwrap_or(u32::MAX))
    }
}

/// A number in `first..first + count`.
fn draw_u16(rng: &mut Rng, first: u16, count: u64) -> u16 {
    first + u16::try_from(rng.below(count)).unwrap_or(0)
}
