//! Links between peers: some lose, some are broken, some lead into another part of the world.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Duration, PeerId, Rng, Time};

use super::executor::time_between;

/// No message takes less.
const DELAY_MIN: Duration = Duration::from_micros(100);

/// How long messages take.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Links {
    /// A message takes a random time below this, so messages overtake each other. Default 40 ms.
    pub delay_max: Duration,
    /// A chunk of a state takes up to this much longer. Default 300 ms.
    pub chunk_delay_max: Duration,
    /// One way of some pairs of replicas, by index, on top of that. Default none.
    pub distances: BTreeMap<(usize, usize), Duration>,
}

impl Default for Links {
    fn default() -> Self {
        Self {
            delay_max: Duration::from_millis(40),
            chunk_delay_max: Duration::from_millis(300),
            distances: BTreeMap::new(),
        }
    }
}

impl Links {
    /// Messages between all pairs take a random time below `delay_max`.
    #[must_use]
    pub fn with_delay(delay_max: Duration) -> Self {
        Self { delay_max, ..Self::default() }
    }

    /// How much longer a message between two replicas takes, one way.
    #[must_use]
    pub fn distance(&self, a: usize, b: usize) -> Duration {
        self.distances.get(&(a.min(b), a.max(b))).copied().unwrap_or_default()
    }

    pub(super) fn delay(&self, rng: &mut Rng) -> Duration {
        time_between(rng, DELAY_MIN, self.delay_max)
    }
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Lost,
    Delivered { extra: Duration },
}

/// Disturbances, each until a time.
#[derive(Debug, Default)]
pub(super) struct Network {
    broken: Vec<(PeerId, PeerId, Time)>,
    split: Vec<(BTreeSet<PeerId>, Time)>,
    lossy: Option<(u64, Time)>,
    slow: Option<(Duration, Time)>,
}

impl Network {
    /// Nothing passes between two peers, either way.
    pub(super) fn break_link(&mut self, a: PeerId, b: PeerId, until: Time) {
        self.broken.push((a, b, until));
    }

    /// Nothing passes between these peers and all others, the coordinator included.
    pub(super) fn split(&mut self, part: BTreeSet<PeerId>, until: Time) {
        self.split.push((part, until));
    }

    /// So many messages in a thousand are lost, silently.
    pub(super) fn lose(&mut self, per_mille: u64, until: Time) {
        self.lossy = Some((per_mille, until));
    }

    /// Messages take up to so much longer.
    pub(super) fn slow_down(&mut self, extra: Duration, until: Time) {
        self.slow = Some((extra, until));
    }

    fn cut(&self, now: Time, from: PeerId, to: PeerId) -> bool {
        let link =
            |&(a, b, until): &(PeerId, PeerId, Time)| until > now && [(a, b), (b, a)].contains(&(from, to));
        let apart = |(part, until): &(BTreeSet<PeerId>, Time)| {
            *until > now && part.contains(&from) != part.contains(&to)
        };
        self.broken.iter().any(link) || self.split.iter().any(apart)
    }

    /// `control` messages are repeated by their transport: a cut stops them, loss does not.
    pub(super) fn fate(&self, rng: &mut Rng, now: Time, from: PeerId, to: PeerId, control: bool) -> Fate {
        let dropped =
            self.lossy.is_some_and(|(rate, until)| until > now && !control && rng.chance(rate, 1_000));
        if dropped || self.cut(now, from, to) {
            return Fate::Lost;
        }
        let extra = self.slow.filter(|(_, until)| *until > now).map_or(Duration::ZERO, |(extra, _)| extra);
        let nanos = u64::try_from(extra.as_nanos()).unwrap_or(u64::MAX);
        Fate::Delivered { extra: Duration::from_nanos(rng.below(nanos.max(1))) }
    }
}
