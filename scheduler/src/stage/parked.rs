//! Forwards that are faster than the table.
//!
//! The coordinator tells everyone of a newcomer at once, but not in one instant: a neighbour that knows more may
//! send before this replica has heard of it. Such a forward waits a moment for the table.

use std::collections::VecDeque;

use super::microbatch::Arrival;
use crate::{Duration, Hop, MicrobatchId, Time};

/// Forwards from senders the table does not place yet, at most; the oldest gives way.
pub const EARLY_MAX: usize = 64;

/// How long such a forward waits for the table.
pub const EARLY_PATIENCE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
struct Parked<P> {
    until: Time,
    sender: Hop,
    arrival: Arrival<P>,
}

/// The forwards that wait, oldest first.
#[derive(Clone, Debug)]
pub(super) struct Early<P> {
    parked: VecDeque<Parked<P>>,
}

impl<P> Early<P> {
    pub(super) fn new() -> Self {
        Self { parked: VecDeque::new() }
    }

    /// Adds a forward; the id of the one that gave way for it.
    pub(super) fn park(&mut self, now: Time, sender: Hop, arrival: Arrival<P>) -> Option<MicrobatchId> {
        let full = self.parked.len() >= EARLY_MAX;
        let displaced = if full { self.parked.pop_front() } else { None };
        self.parked.push_back(Parked { until: now + EARLY_PATIENCE, sender, arrival });
        displaced.map(|parked| parked.arrival.microbatch)
    }

    /// Takes out one that has waited long enough.
    pub(super) fn pop_expired(&mut self, now: Time) -> Option<MicrobatchId> {
        self.parked.pop_front_if(|parked| parked.until <= now).map(|parked| parked.arrival.microbatch)
    }

    /// Takes out all whose sender is `placed` by now.
    pub(super) fn take_placed(&mut self, placed: impl Fn(&Hop) -> bool) -> Vec<(Hop, Arrival<P>)> {
        let all = std::mem::take(&mut self.parked);
        let (ready, waiting): (VecDeque<_>, VecDeque<_>) =
            all.into_iter().partition(|parked| placed(&parked.sender));
        self.parked = waiting;
        ready.into_iter().map(|parked| (parked.sender, parked.arrival)).collect()
    }

    pub(super) fn next_expiry(&self) -> Option<Time> {
        self.parked.front().map(|parked| parked.until)
    }
}
