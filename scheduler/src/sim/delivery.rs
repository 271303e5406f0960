//! The events in the queue of the simulated world.

use crate::{Incarnation, MemberState, Membership, StageIndex, coordinator, feeder, replica};

use super::fault::Fault;
use super::payload::Payload;

/// An event that is on its way or due.
#[derive(Clone, Debug)]
pub(super) enum Delivery {
    /// To the coordinator.
    Coordinator(coordinator::Event, Purpose),
    /// To a feeder, if it is still that start of it.
    Feeder(usize, Incarnation, feeder::Event<Payload>),
    /// To a replica, if it is still that start of it.
    Replica(usize, Incarnation, replica::Event<Payload>),
    /// The table, to a replica's process.
    Table(usize, Incarnation, Membership),
    /// The coordinator's answer to a heartbeat or a request to join; `None` if this start is no member.
    State(usize, Incarnation, Option<MemberState>, Purpose),
    /// The coordinator refuses to let this start in: the run is finished.
    NotNeeded(usize, Incarnation),
    /// A replica's process is started.
    Start(usize),
    /// The shard of a replica is built.
    Built(usize, Incarnation, StageIndex),
    /// A replica's process sends its heartbeat.
    Heartbeat(usize, Incarnation),
    /// The coordinator has had its time to confirm a membership.
    ConfirmExpires(usize, Incarnation),
    /// A feeder's process is started.
    StartFeeder(usize),
    /// A feeder's process sends its heartbeat.
    FeederHeartbeat(usize, Incarnation),
    /// A fault strikes.
    Fault(Fault),
    /// A suspended process goes on.
    Resume(usize, Incarnation),
}

/// The purpose of a request to the coordinator; its reply comes back with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A heartbeat, a request to join or any other duty.
    Routine,
    /// After a suspension: is this start still a member?
    Confirm,
}
