//! The faults of the simulated world.

use std::collections::BTreeSet;

use crate::Duration;

use super::act::Act;
use super::donor_act::DonorAct;
use super::feeder_act::FeederAct;

/// Shortest cut of a feeder from the coordinator: long enough for the coordinator to count it as dead.
pub(super) const CUT_OFF: Duration = Duration::from_secs(20);
/// The cut lasts this much longer, so that the former feeder hears of its successor late.
pub(super) const CUT_OFF_LONGER: Duration = Duration::from_secs(5);

/// A fault. Replicas are named by index.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The process dies.
    Crash {
        /// The replica.
        replica: usize,
        /// Its connections are reset; otherwise they run into their timeout.
        loud: bool,
        /// Time until it is started again; `None` if never.
        back_after: Option<Duration>,
    },
    /// The process is asked to leave while it holds microbatches, and comes back a while later.
    Leave {
        /// The replica.
        replica: usize,
    },
    /// The device computes nothing for a while.
    Stall {
        /// The replica.
        replica: usize,
        /// Length of the stall.
        lasts: Duration,
    },
    /// From now on its jobs take this many hundredths of their time, until another fault of this kind or its death.
    Pace {
        /// The replica.
        replica: usize,
        /// 100 is the speed of the beginning.
        percent: u32,
    },
    /// The process is suspended for a while.
    Suspend {
        /// The replica.
        replica: usize,
        /// Length of the suspension.
        lasts: Duration,
    },
    /// What it gives to joiners is wrong.
    Lie {
        /// The replica.
        replica: usize,
        /// The way in which it lies.
        act: DonorAct,
        /// Length of the fault.
        lasts: Duration,
    },
    /// It lies.
    Byzantine {
        /// The replica.
        replica: usize,
        /// The way in which it lies.
        act: Act,
        /// Length of the fault.
        lasts: Duration,
    },
    /// The first feeder lies, and is gone for good afterwards. The run has another feeder.
    LyingFeeder {
        /// The way in which it lies.
        act: FeederAct,
        /// Length of the fault.
        lasts: Duration,
    },
    /// The copies of its numbers that it makes for averaging rounds are late.
    SlowCopy {
        /// The replica.
        replica: usize,
        /// The lateness of each copy.
        by: Duration,
        /// Length of the fault.
        lasts: Duration,
    },
    /// Messages get lost, silently.
    Loss {
        /// Messages in a thousand.
        per_mille: u64,
        /// Length of the fault.
        lasts: Duration,
    },
    /// Messages are late.
    Delay {
        /// Upper limit of the random extra delay.
        extra: Duration,
        /// Length of the fault.
        lasts: Duration,
    },
    /// Messages from and to the coordinator are late: heartbeats, their answers and tables.
    LateControl {
        /// Upper limit of the random extra delay of each message.
        extra: Duration,
        /// Length of the fault.
        lasts: Duration,
    },
    /// The link between two peers is broken.
    BrokenLink {
        /// One end.
        a: End,
        /// The other end.
        b: End,
        /// The directions that carry nothing.
        way: Way,
        /// Length of the fault; `None` if the two never meet again.
        lasts: Option<Duration>,
    },
    /// These replicas are cut off from every other peer.
    Partition {
        /// The replicas.
        part: BTreeSet<usize>,
        /// Length of the fault.
        lasts: Duration,
    },
    /// The coordinator reaches no member, and no member reaches it.
    CoordinatorOutage {
        /// Length of the fault.
        lasts: Duration,
    },
    /// The coordinator's process stands still for a while; requests wait.
    CoordinatorFreeze {
        /// Length of the fault.
        lasts: Duration,
    },
    /// The coordinator dies and is started again with its key.
    CoordinatorRestart {
        /// Time until the start.
        back_after: Duration,
        /// Its log is there; otherwise it has forgotten the run.
        keeps_log: bool,
    },
    /// The power of the feeder fails: records that are not durable are lost. It is started again.
    FeederCrash {
        /// Time until the start.
        back_after: Duration,
        /// The journal is there after the crash; otherwise the feeder succeeds itself.
        keeps_journal: bool,
    },
    /// Every process that is placed on a stage dies at the same time.
    StageCrash {
        /// The stage.
        stage: u16,
        /// Time until they are started again.
        back_after: Duration,
    },
    /// The keeper's process dies. Its checkpoints stay.
    KeeperCrash {
        /// Time until it is started again.
        back_after: Duration,
    },
    /// Another feeder takes over.
    Succession {
        /// The former feeder dies; otherwise it is only cut off from the coordinator.
        dies: bool,
        /// Time until the successor starts.
        after: Duration,
    },
}

/// An end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The feeder that decides at the time of the fault.
    Feeder,
    /// A replica.
    Replica(usize),
}

impl End {
    fn replica(self) -> Option<usize> {
        if let Self::Replica(index) = self { Some(index) } else { None }
    }
}

/// The directions in which a link is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Both.
    Both,
    /// Nothing arrives at `b`. Connections end, since `a` hears no acknowledgement.
    ToB,
}

impl Fault {
    /// Time from its begin until the world is whole again; zero for what never ends.
    pub(super) fn lasts(&self) -> Duration {
        match self {
            Self::Crash { back_after, .. } => back_after.unwrap_or_default(),
            Self::Leave { .. } | Self::Pace { .. } => Duration::ZERO,
            Self::BrokenLink { lasts, .. } => lasts.unwrap_or_default(),
            Self::Stall { lasts, .. }
            | Self::Suspend { lasts, .. }
            | Self::Lie { lasts, .. }
            | Self::Byzantine { lasts, .. }
            | Self::LyingFeeder { lasts, .. }
            | Self::SlowCopy { lasts, .. }
            | Self::Loss { lasts, .. }
            | Self::Delay { lasts, .. }
            | Self::LateControl { lasts, .. }
            | Self::Partition { lasts, .. }
            | Self::CoordinatorOutage { lasts }
            | Self::CoordinatorFreeze { lasts } => *lasts,
            Self::FeederCrash { back_after, .. }
            | Self::CoordinatorRestart { back_after, .. }
            | Self::StageCrash { back_after, .. }
            | Self::KeeperCrash { back_after } => *back_after,
            Self::Succession { dies: true, after } => *after,
            Self::Succession { dies: false, after } => (*after).max(CUT_OFF) + CUT_OFF_LONGER,
        }
    }

    /// The replicas that the fault names.
    pub(super) fn replicas(&self) -> Vec<usize> {
        match self {
            Self::Crash { replica, .. }
            | Self::Leave { replica }
            | Self::Stall { replica, .. }
            | Self::Pace { replica, .. }
            | Self::Suspend { replica, .. }
            | Self::Lie { replica, .. }
            | Self::Byzantine { replica, .. }
            | Self::SlowCopy { replica, .. } => vec![*replica],
            Self::BrokenLink { a, b, .. } => [a.replica(), b.replica()].into_iter().flatten().collect(),
            Self::Partition { part, .. } => part.iter().copied().collect(),
            Self::Loss { .. }
            | Self::Delay { .. }
            | Self::LateControl { .. }
            | Self::CoordinatorOutage { .. }
            | Self::CoordinatorFreeze { .. }
            | Self::CoordinatorRestart { .. }
            | Self::FeederCrash { .. }
            | Self::StageCrash { .. }
            | Self::KeeperCrash { .. }
            | Self::LyingFeeder { .. }
            | Self::Succession { .. } => Vec::new(),
        }
    }

    /// The name in [`Report::paths`](super::Report::paths).
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Crash { loud: true, .. } => "loud crash",
            Self::Crash { loud: false, .. } => "silent crash",
            Self::Leave { .. } => "leave",
            Self::Stall { .. } => "stall",
            Self::Pace { .. } => "change of pace",
            Self::Suspend { .. } => "suspension",
            Self::Lie { act, .. } => act.name(),
            Self::Byzantine { act, .. } => act.name(),
            Self::LyingFeeder { act, .. } => act.name(),
            Self::SlowCopy { .. } => "slow copy",
            Self::Loss { .. } => "loss",
            Self::Delay { .. } => "delay",
            Self::LateControl { .. } => "late control",
            Self::BrokenLink { lasts: None, way: Way::ToB, .. } => "one-way link that never heals",
            Self::BrokenLink { lasts: None, .. } => "link that never heals",
            Self::BrokenLink { way: Way::ToB, .. } => "one-way link",
            Self::BrokenLink { a: End::Replica(_), b: End::Replica(_), .. } => "broken link",
            Self::BrokenLink { .. } => "broken feeder link",
            Self::Partition { .. } => "partition",
            Self::CoordinatorOutage { .. } => "coordinator outage",
            Self::CoordinatorFreeze { .. } => "coordinator freeze",
            Self::CoordinatorRestart { .. } => "coordinator restart",
            Self::FeederCrash { keeps_journal: true, .. } => "feeder crash",
            Self::FeederCrash { keeps_journal: false, .. } => "lost journal",
            Self::StageCrash { .. } => "stage crash",
            Self::KeeperCrash { .. } => "keeper crash",
            Self::Succession { dies: true, .. } => "succession after a death",
            Self::Succession { dies: false, .. } => "succession while the former feeder lives",
        }
    }
}
