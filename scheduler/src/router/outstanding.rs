//! How many microbatches lie with each replica, as their sender knows it.

use std::collections::BTreeMap;

use crate::Hop;

/// Microbatches handed over and not settled, by replica.
///
/// A replica with none has no entry, so the microbatches in flight bound the memory, however many replicas come and
/// go.
#[derive(Clone, Debug, Default)]
pub struct Residents {
    counts: BTreeMap<Hop, u32>,
}

impl Residents {
    /// One more lies with `hop`.
    pub fn add(&mut self, hop: Hop) {
        let count = self.counts.entry(hop).or_default();
        *count = count.saturating_add(1);
    }

    /// One less lies with `hop`; nothing changes if none did.
    pub fn remove(&mut self, hop: &Hop) {
        let Some(count) = self.counts.get_mut(hop) else { return };
        *count -= 1;
        if *count == 0 {
            self.counts.remove(hop);
        }
    }

    /// How many lie with `hop`.
    #[must_use]
    pub fn of(&self, hop: &Hop) -> u32 {
        self.counts.get(hop).copied().unwrap_or(0)
    }

    /// Whether nothing lies anywhere.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::fixtures::hop;

    #[test]
    fn counts_up_and_down_and_keeps_nothing() {
        let mut residents = Residents::default();
        residents.add(hop(1));
        residents.add(hop(1));
        residents.add(hop(2));
        residents.remove(&hop(1));
        assert_eq!((residents.of(&hop(1)), residents.of(&hop(2)), residents.of(&hop(3))), (1, 1, 0));
        residents.remove(&hop(1));
        residents.remove(&hop(2));
        residents.remove(&hop(3));
        assert!(residents.is_empty());
    }
}
