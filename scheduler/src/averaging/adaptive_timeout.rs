//! How long others are waited for, from how long they took before.

use crate::Duration;

/// Shorter waits would leave out the living: heartbeats tell members of a round up to a second apart.
pub const PATIENCE_MIN: Duration = Duration::from_secs(2);
/// Longer waits would keep a round open beyond any use: the set has its turn again.
pub const PATIENCE_MAX: Duration = Duration::from_secs(15);
/// Until something is measured: a slow executor looks at its weights only between two jobs.
pub const PATIENCE_FIRST: Duration = Duration::from_secs(5);

/// Times the spread seen that is waited: arrivals of one round say little about the worst of the next.
const MARGIN: u32 = 4;
/// A quicker round takes this part off the spread remembered, so one slow round is forgotten after a few.
const FORGET: u32 = 8;

/// The spread of arrivals: the largest lately seen, slowly forgotten.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spread {
    remembered: Option<Duration>,
}

impl Spread {
    /// A share arrived this long after the first of its part.
    pub(super) fn saw(&mut self, after: Duration) {
        let before = self.remembered.unwrap_or_default();
        self.remembered = Some(after.min(PATIENCE_MAX).max(before - before / FORGET));
    }

    /// How long an owner waits for the others.
    pub(super) fn patience(&self) -> Duration {
        self.remembered.map_or(PATIENCE_FIRST, |spread| (spread * MARGIN).clamp(PATIENCE_MIN, PATIENCE_MAX))
    }

    /// How long a member waits for an owner: once for the owner to gather, once for what travels. Not below a floor,
    /// because the owner may have measured a larger spread.
    pub(super) fn patience_with_owner(&self) -> Duration {
        self.patience().max(PATIENCE_FIRST) * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_follows_the_slow_and_forgets_them() {
        let mut spread = Spread::default();
        assert_eq!(spread.patience(), PATIENCE_FIRST);
        spread.saw(Duration::from_millis(1));
        assert_eq!(spread.patience(), PATIENCE_MIN);
        assert_eq!(spread.patience_with_owner(), PATIENCE_FIRST * 2);
        spread.saw(Duration::from_secs(2));
        assert_eq!(spread.patience(), Duration::from_secs(8));
        spread.saw(Duration::from_secs(3_600));
        assert_eq!(spread.patience(), PATIENCE_MAX);
        (0..50).for_each(|_| spread.saw(Duration::ZERO));
        assert_eq!(spread.patience(), PATIENCE_MIN);
    }
}
