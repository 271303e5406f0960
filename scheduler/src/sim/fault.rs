//! What can go wrong in the simulated world.

use std::collections::BTreeSet;

use crate::Duration;

/// One thing that goes wrong. Replicas are meant by index.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The process dies.
    Crash {
        /// The replica.
        replica: usize,
        /// Its connections are reset; otherwise they run into their timeout.
        loud: bool,
        /// When it is started again, if it is.
        back_after: Option<Duration>,
    },
    /// The process is asked to leave in mid-flight, and comes back a while later.
    Leave {
        /// The replica.
        replica: usize,
    },
    /// The device does nothing for a while.
    Stall {
        /// The replica.
        replica: usize,
        /// For how long.
        lasts: Duration,
    },
    /// The process is stopped for a while.
    Suspend {
        /// The replica.
        replica: usize,
        /// For how long.
        lasts: Duration,
    },
    /// The chunks of its state that it sends to joiners are wrong.
    Lie {
        /// The replica.
        replica: usize,
        /// For how long.
        lasts: Duration,
    },
    /// Messages get lost, silently.
    Loss {
        /// Messages in a thousand.
        per_mille: u64,
        /// For how long.
        lasts: Duration,
    },
    /// Messages are late.
    Delay {
        /// Up to so much.
        extra: Duration,
        /// For how long.
        lasts: Duration,
    },
    /// Two replicas cannot reach each other.
    BrokenLink {
        /// One of them.
        a: usize,
        /// The other one.
        b: usize,
        /// For how long.
        lasts: Duration,
    },
    /// The feeder and a replica cannot reach each other.
    BrokenFeederLink {
        /// The replica.
        replica: usize,
        /// For how long.
        lasts: Duration,
    },
    /// These replicas are cut off from every other peer.
    Partition {
        /// The replicas.
        part: BTreeSet<usize>,
        /// For how long.
        lasts: Duration,
    },
    /// The feeder dies and is started again.
    FeederCrash {
        /// When it is.
        back_after: Duration,
    },
    /// Another feeder takes over.
    Succession {
        /// The former feeder is dead; otherwise it is only cut off from the coordinator.
        dies: bool,
        /// When the other one starts.
        after: Duration,
    },
}

impl Fault {
    /// For the count of paths taken.
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
            Self::FeederCrash { .. } => "feeder crash",
            Self::Succession { dies: true, .. } => "succession after a death",
            Self::Succession { dies: false, .. } => "succession while the former feeder lives",
        }
    }
}
