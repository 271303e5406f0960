//! What a simulated run looks like.

use crate::{Admission, Duration, Purpose};

/// A run and what goes wrong in it. Everything else follows from `seed`.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) stages: u16,
    /// Replicas that join after every stage is taken.
    pub(crate) spares: u16,
    pub(crate) total: u64,
    pub(crate) admission: Admission,
    pub(crate) lease_count: u64,
    /// Slots of every replica.
    pub(crate) slots: usize,
    /// Every message takes a time below this, so messages overtake each other.
    pub(crate) delay_max: Duration,
    /// Every job takes a time below this.
    pub(crate) service_max: Duration,
    /// Jobs in a thousand that the executor refuses.
    pub(crate) refused_per_mille: u64,
    /// Made-up messages per real one, in thousandths.
    pub(crate) garbage_per_mille: u64,
    /// Replicas that are killed, by index and time, and whether they come back.
    pub(crate) kills: Vec<Kill>,
    pub(crate) evaluations: Vec<Measure>,
    /// Events after which a run that is not over is stuck.
    pub(crate) steps_max: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Kill {
    pub(crate) replica: usize,
    pub(crate) at: Duration,
    /// Time until its next start joins.
    pub(crate) back_after: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Measure {
    pub(crate) at: Duration,
    pub(crate) count: u64,
    pub(crate) purpose: Purpose,
}

impl Scenario {
    /// Nothing goes wrong.
    pub(crate) fn new(seed: u64, stages: u16, total: u64, admission: Admission) -> Self {
        Self {
            seed,
            stages,
            spares: 0,
            total,
            admission,
            lease_count: 32,
            slots: 64,
            delay_max: Duration::from_millis(40),
            service_max: Duration::from_millis(10),
            refused_per_mille: 0,
            garbage_per_mille: 0,
            kills: Vec::new(),
            evaluations: Vec::new(),
            steps_max: 400_000,
        }
    }
}
