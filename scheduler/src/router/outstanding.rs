//! Number of microbatches that each replica has not returned to this sender.

use std::collections::BTreeMap;

use crate::Hop;

/// Microbatches handed over and not completed, by replica.
///
/// A replica without a microbatch has no entry, so the microbatches in flight bound the memory, however many replicas
/// come and go.
#[derive(Clone, Debug, Default)]
pub struct Outstanding {
    counts: BTreeMap<Hop, u32>,
}

impl Outstanding {
    /// Counts one more microbatch at `hop`.
    pub fn add(&mut self, hop: Hop) {
        let count = self.counts.entry(hop).or_default();
        *count = count.saturating_add(1);
    }

    /// Counts one less at `hop`; nothing changes if it has none.
    pub fn remove(&mut self, hop: &Hop) {
        let Some(count) = self.counts.get_mut(hop) else { return };
        *count -= 1;
        if *count == 0 {
            self.counts.remove(hop);
        }
    }

    /// Number of microbatches at `hop`.
    #[must_use]
    pub fn of(&self, hop: &Hop) -> u32 {
        self.counts.get(hop).copied().unwrap_or(0)
    }

    /// Whether no replica has a microbatch.
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
        let mut outstanding = Outstanding::default();
        outstanding.add(hop(1));
        outstanding.add(hop(1));
        outstanding.add(hop(2));
        outstanding.remove(&hop(1));
        assert_eq!((outstanding.of(&hop(1)), outstanding.of(&hop(2)), outstanding.of(&hop(3))), (1, 1, 0));
        outstanding.remove(&hop(1));
        outstanding.remove(&hop(2));
        outstanding.remove(&hop(3));
        assert!(outstanding.is_empty());
    }
}
