//! The faults of the simulated world.

use std::collections::BTreeSet;

use crate::Duration;

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
    /// The process is suspended for a while.
    Suspend {
        /// The replica.
        replica: usize,
        /// Length of the suspension.
        lasts: Duration,
    },
    /// The chunks of its state that it sends to joiners are wrong.
    Lie {
        /// The replica.
        replica: usize,
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
    /// Two replicas cannot reach each other.
    BrokenLink {
        /// One replica.
        a: usize,
        /// The other replica.
        b: usize,
        /// Length of the fault.
        lasts: Duration,
    },
    /// The feeder and a replica cannot reach each other.
    BrokenFeederLink {
        /// The replica.
        replica: usize,
        /// Length of the fault.
        lasts: Duration,
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
    /// The feeder dies and is started again.
    FeederCrash {
        /// Time until the start.
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

impl Fault {
    /// The replicas that the fault names.
    pub(super) fn replicas(&self) -> Vec<usize> {
        match self {
            Self::Crash { replica, .. }
            | Self::Leave { replica }
            | Self::Stall { replica, .. }
            | Self::Suspend { replica, .. }
            | Self::Lie { replica, .. }
            | Self::BrokenFeederLink { replica, .. } => vec![*replica],
            Self::BrokenLink { a, b, .. } => vec![*a, *b],
            Self::Partition { part, .. } => part.iter().copied().collect(),
            Self::Loss { .. }
            | Self::Delay { .. }
            | Self::CoordinatorOutage { .. }
            | Self::FeederCrash { .. }
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
            Self::Suspend { .. } => "suspension",
            Self::Lie { .. } => "lie",
            Self::Loss { .. } => "loss",
            Self::Delay { .. } => "delay",
            Self::BrokenLink { .. } => "broken link",
            Self::BrokenFeederLink { .. } => "broken feeder link",
            Self::Partition { .. } => "partition",
            Self::CoordinatorOutage { .. } => "coordinator outage",
            Self::FeederCrash { .. } => "feeder crash",
            Self::Succession { dies: true, .. } => "succession after a death",
            Self::Succession { dies: false, .. } => "succession while the former feeder lives",
        }
    }
}
