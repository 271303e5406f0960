//! What a feeder has seen of a replica. It is the reason of a strike, and of an eviction by the coordinator.

/// False statements of a replica before it is convicted.
const FALSE_MAX: u32 = 8;

/// Statements of a replica about microbatches, as a feeder counts them. Old statements count half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Statements that proved false, or that only this replica can have made false.
    pub false_ones: u32,
    /// Statements that proved sound.
    pub sound: u32,
}

impl Evidence {
    /// Whether the replica lies: more of what it says is false than sound.
    #[must_use]
    pub fn convicts(&self) -> bool {
        self.false_ones >= FALSE_MAX && self.false_ones > self.sound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_convicted_when_more_is_false_than_sound_and_not_for_a_few() {
        let convicts = |false_ones, sound| Evidence { false_ones, sound }.convicts();
        assert!(convicts(FALSE_MAX, 0) && convicts(100, 99));
        assert!(!convicts(FALSE_MAX - 1, 0) && !convicts(100, 100));
    }
}
