//! The events in the queue of the simulated world.

use crate::{Incarnation, Instance, PeerId, StageIndex, TableUpdate, coordinator, feeder, keeper, replica};

use super::fault::Fault;
use super::payload::Payload;

/// An event to come for a process or the world.
#[derive(Clone, Debug)]
pub(super) enum Delivery {
    /// A request to this start of the coordinator.
    Coordinator(u64, coordinator::Event, Purpose),
    /// An event for a feeder, if this start of it still runs.
    Feeder(usize, Incarnation, feeder::Event<Payload>),
    /// An event for a replica, if this start of it still runs.
    Replica(usize, Incarnation, replica::Event<Payload>),
    /// A table for a replica's process.
    Table(usize, Incarnation, TableUpdate),
    /// The coordinator's answer to a replica's process.
    State(usize, Incarnation, coordinator::Reply, Purpose),
    /// The coordinator refuses a start: the run is finished.
    NotNeeded(usize, Incarnation),
    /// A replica's process is started.
    Start(usize),
    /// The shard of a replica is built.
    Built(usize, Incarnation, StageIndex),
    /// The oldest task of a replica's executor has run.
    Ran(usize, Incarnation),
    /// A replica's process sends its heartbeat.
    Heartbeat(usize, Incarnation),
    /// The time of the coordinator to confirm a membership is over.
    ConfirmExpires(usize, Incarnation),
    /// A feeder's process is started.
    StartFeeder(usize),
    /// A feeder's process sends its heartbeat.
    FeederHeartbeat(usize, Incarnation),
    /// The records among the first pending actions of a feeder are durable.
    Synced(usize, Incarnation, usize),
    /// The keeper's process is started.
    StartKeeper,
    /// An event for the keeper, if this start of it still runs.
    Keeper(Incarnation, keeper::Event<Payload>),
    /// The coordinator's answer to the keeper, and whether it says that the run is over.
    KeeperReply(Incarnation, coordinator::Reply, bool),
    /// The keeper's process sends its heartbeat.
    KeeperHeartbeat(Incarnation),
    /// Nothing may have arrived over this connection for too long.
    Idle(Instance, Instance),
    /// An uplink has sent a frame.
    FrameSent(Instance),
    /// A dial may have failed.
    DialFails(Instance, PeerId),
    /// A fault strikes.
    Fault(Fault),
    /// The lying feeder is gone.
    LiarGone,
    /// A suspended process goes on.
    Resume(usize, Incarnation),
}

/// The purpose of a request to the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A usual request.
    Routine,
    /// A heartbeat that asks for the membership after a suspension.
    Confirm,
    /// The report of a replica that it serves: the reply says nothing.
    Ready,
    /// The report of a feeder that its work is done.
    Done,
    /// A table that is returned to a coordinator that does not know the process.
    Return {
        /// The heartbeat before asked for the membership after a suspension.
        confirms: bool,
    },
}

impl Purpose {
    pub(super) fn confirms(self) -> bool {
        matches!(self, Self::Confirm | Self::Return { confirms: true })
    }
}
