//! What a simulated run looks like.

use std::collections::BTreeSet;

use super::executor::time_between;
use super::fault::Fault;
use crate::feeder::Carrying;
use crate::mutation::Mutation;
use crate::router::Policy;
use crate::{Admission, Duration, Purpose, Rng};

/// A run and what goes wrong in it. Everything else follows from `seed`.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) stages: u16,
    /// Of each stage.
    pub(crate) replicas: u16,
    /// Replicas that join after every place is taken.
    pub(crate) spares: u16,
    pub(crate) total: u64,
    pub(crate) admission: Admission,
    pub(crate) lease_count: u64,
    /// Slots by replica; the list is gone through in turn.
    pub(crate) slots: Vec<usize>,
    /// Mean time of a job by replica; the list is gone through in turn.
    pub(crate) services: Vec<Duration>,
    /// Every message takes a time below this, so messages overtake each other.
    pub(crate) delay_max: Duration,
    /// Jobs in a thousand that the executor refuses.
    pub(crate) refused_per_mille: u64,
    /// Made-up messages per real one, in thousandths.
    pub(crate) garbage_per_mille: u64,
    pub(crate) faults: Vec<(Duration, Fault)>,
    pub(crate) evaluations: Vec<Measure>,
    /// When replicas average, if they do.
    pub(crate) averaging: Option<Carrying>,
    pub(crate) router: Policy,
    /// How long an answer is waited for before somebody asks.
    pub(crate) ask_after: Duration,
    /// When the feeder is told to stop, if it is.
    pub(crate) stop_at: Option<Duration>,
    pub(crate) mutation: Option<Mutation>,
    /// Events after which a run that is not over is stuck.
    pub(crate) steps_max: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Measure {
    pub(crate) at: Duration,
    pub(crate) count: u64,
    pub(crate) purpose: Purpose,
}

impl Scenario {
    /// Nothing goes wrong.
    pub(crate) fn new(seed: u64, stages: u16, replicas: u16, total: u64, admission: Admission) -> Self {
        Self {
            seed,
            stages,
            replicas,
            spares: 0,
            total,
            admission,
            lease_count: 32,
            slots: vec![64],
            services: vec![Duration::from_millis(5)],
            delay_max: Duration::from_millis(40),
            refused_per_mille: 0,
            garbage_per_mille: 0,
            faults: Vec::new(),
            evaluations: Vec::new(),
            averaging: None,
            router: Policy::Uniform,
            ask_after: Duration::from_secs(3),
            stop_at: None,
            mutation: None,
            steps_max: 400_000,
        }
    }

    /// Everything that can go wrong, drawn from the seed: 3 to 5 stages of 2 or 3 replicas with unequal slots and
    /// speeds, at least 40 microbatches and 5 faults; mostly with averaging rounds.
    pub(crate) fn drawn(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x5EED);
        let stages = u16::try_from(3 + rng.below(3)).unwrap();
        let replicas = u16::try_from(2 + rng.below(2)).unwrap();
        let window = u32::try_from(3 + rng.below(14)).unwrap();
        let admission =
            if rng.chance(1, 5) { Admission::Synchronous(window) } else { Admission::Asynchronous(window) };
        let mut scenario = Self::new(seed, stages, replicas, 40 + rng.below(40), admission);
        scenario.spares = u16::try_from(rng.below(3)).unwrap();
        scenario.slots = (0..7).map(|_| usize::try_from(1 + rng.below(8)).unwrap()).collect();
        let service = || time_between(&mut rng, Duration::from_millis(20), Duration::from_millis(400));
        scenario.services = std::iter::repeat_with(service).take(5).collect();
        scenario.refused_per_mille = if rng.chance(1, 4) { 5 } else { 0 };
        scenario.lease_count = 8 + rng.below(40);
        scenario.router = *rng.pick(&Policy::ALL).unwrap();
        let faults = 5 + rng.below(6);
        scenario.faults = (0..faults).map(|_| scenario.draw_fault(&mut rng)).collect();
        let carrying = Carrying { every: 5 + rng.below(16), sets: 1 + rng.below(3) };
        scenario.averaging = rng.chance(4, 5).then_some(carrying);
        scenario
    }

    fn draw_fault(&self, rng: &mut Rng) -> (Duration, Fault) {
        let at = time_between(rng, Duration::from_millis(500), Duration::from_secs(25));
        let members = self.members() as u64;
        let replica = usize::try_from(rng.below(members)).unwrap();
        let other = usize::try_from(rng.below(members)).unwrap();
        let lasts = time_between(rng, Duration::from_millis(300), Duration::from_secs(20));
        let back = time_between(rng, Duration::from_millis(100), Duration::from_secs(20));
        let fault = match rng.below(16) {
            0..=1 => Fault::Crash { replica, loud: true, back_after: Some(back) },
            2..=4 => Fault::Crash { replica, loud: false, back_after: Some(back) },
            5 => Fault::Leave { replica },
            6 => Fault::Wedge { replica, lasts },
            7 => Fault::Suspend { replica, lasts },
            8 => Fault::Loss { per_mille: 20 + rng.below(200), lasts },
            9 => Fault::Delay { extra: lasts / 10, lasts },
            10 => Fault::BrokenLink { a: replica, b: other, lasts },
            11 => Fault::BrokenFeederLink { replica, lasts },
            12 => Fault::Partition { part: BTreeSet::from([replica, other]), lasts },
            13 => Fault::FeederCrash { back_after: back },
            14 => Fault::Succession { dies: true, after: back },
            _ => Fault::Succession { dies: false, after: back },
        };
        (at, fault)
    }

    pub(crate) fn members(&self) -> usize {
        usize::from(self.stages * self.replicas + self.spares)
    }

    pub(crate) fn slots_of(&self, index: usize) -> usize {
        self.slots[index % self.slots.len()]
    }

    pub(crate) fn service_of(&self, index: usize) -> Duration {
        self.services[index % self.services.len()]
    }
}
