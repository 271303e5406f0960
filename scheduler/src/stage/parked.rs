//! Forwards that overtook the table.
//!
//! The coordinator sends a new table to every member, but it does not reach them in one instant: a neighbour with the
//! newer table may send before this replica knows it, and a feeder may send its first ids. Such a forward waits a moment
//! for the table.

use std::collections::VecDeque;

use super::microbatch::Arrival;
use crate::{Duration, Hop, MicrobatchId, PeerTable, Time};

/// Forwards whose sender or feeder the table does not name yet, at most; the oldest gives way.
pub const PARKED_MAX: usize = 64;

/// How long such a forward waits for the table.
pub const PARKED_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
struct Entry<P> {
    until: Time,
    sender: Hop,
    arrival: Arrival<P>,
}

/// The forwards that wait, oldest first.
#[derive(Clone, Debug)]
pub(super) struct Parked<P> {
    entries: VecDeque<Entry<P>>,
}

impl<P> Parked<P> {
    pub(super) fn new() -> Self {
        Self { entries: VecDeque::new() }
    }

    /// Adds a forward. Returns the id of the forward that gave way for it.
    pub(super) fn park(&mut self, now: Time, sender: Hop, arrival: Arrival<P>) -> Option<MicrobatchId> {
        let full = self.entries.len() >= PARKED_MAX;
        let displaced = if full { self.entries.pop_front() } else { None };
        self.entries.push_back(Entry { until: now + PARKED_TIMEOUT, sender, arrival });
        displaced.map(|entry| entry.arrival.id)
    }

    /// Takes out a forward that has waited for [`PARKED_TIMEOUT`].
    pub(super) fn pop_expired(&mut self, now: Time) -> Option<MicrobatchId> {
        self.entries.pop_front_if(|entry| entry.until <= now).map(|entry| entry.arrival.id)
    }

    /// Takes out the forwards that are `expected` by now.
    pub(super) fn take_expected(
        &mut self,
        expected: impl Fn(&Hop, MicrobatchId) -> bool,
    ) -> Vec<(Hop, Arrival<P>)> {
        let all = std::mem::take(&mut self.entries);
        let (ready, waiting): (VecDeque<_>, VecDeque<_>) =
            all.into_iter().partition(|entry| expected(&entry.sender, entry.arrival.id));
        self.entries = waiting;
        ready.into_iter().map(|entry| (entry.sender, entry.arrival)).collect()
    }

    pub(super) fn next_expiry(&self) -> Option<Time> {
        self.entries.front().map(|entry| entry.until)
    }
}

/// Whether the table has the sender of a forward, and a feeder that decides about its microbatch.
pub(super) fn is_expected(table: &PeerTable, sender: &Hop, id: MicrobatchId) -> bool {
    table.placed(sender) && table.lessee(id).is_some()
}
