//! Forwards that overtook the table.
//!
//! The coordinator tells every member of a new replica at once, but not in one instant: a neighbour that knows more may
//! send before this replica has heard of it. Such a forward waits a moment for the table.

use std::collections::VecDeque;

use super::microbatch::Arrival;
use crate::{Duration, Hop, MicrobatchId, Time};

/// Forwards from senders that the table does not place yet, at most; the oldest gives way.
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

    /// Adds a forward. Returns the id of the one that gave way for it.
    pub(super) fn park(&mut self, now: Time, sender: Hop, arrival: Arrival<P>) -> Option<MicrobatchId> {
        let full = self.entries.len() >= PARKED_MAX;
        let displaced = if full { self.entries.pop_front() } else { None };
        self.entries.push_back(Entry { until: now + PARKED_TIMEOUT, sender, arrival });
        displaced.map(|entry| entry.arrival.id)
    }

    /// Takes out one that has waited long enough.
    pub(super) fn pop_expired(&mut self, now: Time) -> Option<MicrobatchId> {
        self.entries.pop_front_if(|entry| entry.until <= now).map(|entry| entry.arrival.id)
    }

    /// Takes out all whose sender is `placed` by now.
    pub(super) fn take_placed(&mut self, placed: impl Fn(&Hop) -> bool) -> Vec<(Hop, Arrival<P>)> {
        let all = std::mem::take(&mut self.entries);
        let (ready, waiting): (VecDeque<_>, VecDeque<_>) =
            all.into_iter().partition(|entry| placed(&entry.sender));
        self.entries = waiting;
        ready.into_iter().map(|entry| (entry.sender, entry.arrival)).collect()
    }

    pub(super) fn next_expiry(&self) -> Option<Time> {
        self.entries.front().map(|entry| entry.until)
    }
}
