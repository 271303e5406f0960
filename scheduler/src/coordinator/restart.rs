//! A coordinator that was started again with its key. It has forgotten its run, but every member has the table that it
//! signed last. A member that it does not know returns that table to it, and with the newest one the coordinator goes on
//! where it stood: the same members in their states, the same leases, the same trained stages.
//!
//! The tables that it publishes from then on are newer than any that it published before, since the upper half of a
//! version counts its starts.

use crate::{Duration, Membership, Time};

/// How long a coordinator that was started again places no replica and leases no ids, unless a member has returned a
/// table before. Members send a heartbeat every second and give up on one after three.
pub const RETURN_WITHIN: Duration = Duration::from_secs(5);

/// The state of a coordinator that was started again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Restart {
    until: Time,
    /// The launch that this start drew for itself. Tables of it tell nothing of the run before.
    own: u64,
    /// Version of the newest table that was returned.
    returned: Option<u64>,
}

impl Restart {
    pub(super) fn at(now: Time, own: u64) -> Self {
        Self { until: now + RETURN_WITHIN, own, returned: None }
    }

    /// Whether members may still come that the coordinator does not know of.
    pub(super) fn waits(&self, now: Time) -> bool {
        self.returned.is_none() && now < self.until
    }

    /// The end of the time to return.
    pub(super) fn until(&self) -> Time {
        self.until
    }

    /// Whether no table has been returned so far.
    pub(super) fn is_first(&self) -> bool {
        self.returned.is_none()
    }

    /// Notes a table that a caller returned; `false` if it says nothing of the run before, or nothing new. After the time
    /// to return no further table is taken, and none at all if ids are leased by then: the run has gone on. Any key may
    /// return a table, and the first table of a launch, without members, is signed too.
    pub(super) fn take(&mut self, now: Time, table: &Membership, has_leased: bool) -> bool {
        let is_of_the_run = table.version > 0 && table.launch != self.own;
        let in_time = now < self.until;
        let newer = match self.returned {
            None => in_time || !has_leased,
            Some(known) => in_time && table.version > known,
        };
        let newer = newer && is_of_the_run;
        if newer {
            self.returned = Some(table.version);
        }
        newer
    }
}
