//! Links between peers, and their disturbances: loss, delay, broken links and partitions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::{Duration, Instance, PeerId, Rng, Time};

use super::connections::Connections;
use super::executor::time_between;
use super::uplink::{Uplink, Uplinks};
use super::wan::Wan;

/// Shortest time of a message.
const DELAY_MIN: Duration = Duration::from_micros(100);

/// The times of messages.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Links {
    /// A message takes a random time below this, so messages overtake each other. Default 40 ms.
    pub delay_max: Duration,
    /// A chunk of a state takes up to this much longer. Default 300 ms.
    pub chunk_delay_max: Duration,
    /// The executor of a donor copies its state in a random time below this. Default 10 ms.
    pub export_max: Duration,
    /// Extra one-way time between two replicas, by index, the lower first. Default none.
    pub distances: BTreeMap<(usize, usize), Duration>,
    /// The uplink of every process. Default `None`: frames take no time.
    pub uplinks: Option<Uplinks>,
    /// The regions of the processes: extra time between any two of them, and the times of frames in place of
    /// [`Uplinks::frame_time`]. Default none.
    pub wan: Option<Arc<Wan>>,
}

impl Default for Links {
    fn default() -> Self {
        Self {
            delay_max: Duration::from_millis(40),
            chunk_delay_max: Duration::from_millis(300),
            export_max: Duration::from_millis(10),
            distances: BTreeMap::new(),
            uplinks: None,
            wan: None,
        }
    }
}

impl Links {
    /// Links on which every message takes a random time below `delay_max`.
    #[must_use]
    pub fn with_delay(delay_max: Duration) -> Self {
        Self { delay_max, ..Self::default() }
    }

    /// Extra one-way time of a message between two replicas.
    #[must_use]
    pub fn distance(&self, a: usize, b: usize) -> Duration {
        self.distances.get(&(a.min(b), a.max(b))).copied().unwrap_or_default()
    }

    pub(super) fn delay(&self, rng: &mut Rng) -> Duration {
        time_between(rng, DELAY_MIN, self.delay_max)
    }
}

/// The fate of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Lost,
    Delivered { extra: Duration },
}

/// A link that carries nothing from one peer to another.
#[derive(Clone, Copy, Debug)]
struct Cut {
    from: PeerId,
    to: PeerId,
    /// `None` if for good.
    until: Option<Time>,
}

/// The current disturbances, each until a time.
#[derive(Debug, Default)]
pub(super) struct Network {
    pub(super) connections: Connections,
    /// By sender; one that has nothing to send has no entry.
    pub(super) uplinks: BTreeMap<Instance, Uplink>,
    cuts: Vec<Cut>,
    split: Vec<(BTreeSet<PeerId>, Time)>,
    lossy: Option<(u64, Time)>,
    slow: Option<(Duration, Time)>,
    late: Option<(Duration, Time)>,
}

impl Network {
    /// Breaks the link from one peer to another; for good without an end.
    pub(super) fn break_link(&mut self, from: PeerId, to: PeerId, until: Option<Time>) {
        self.cuts.push(Cut { from, to, until });
    }

    /// Cuts these peers off from all others, the coordinator included.
    pub(super) fn split(&mut self, part: BTreeSet<PeerId>, until: Time) {
        self.split.push((part, until));
    }

    /// Loses `per_mille` messages in a thousand, silently.
    pub(super) fn lose(&mut self, per_mille: u64, until: Time) {
        self.lossy = Some((per_mille, until));
    }

    /// Delays messages by a random time up to `extra`.
    pub(super) fn slow_down(&mut self, extra: Duration, until: Time) {
        self.slow = Some((extra, until));
    }

    /// Delays messages from and to the coordinator by a random time up to `extra`.
    pub(super) fn delay_control(&mut self, extra: Duration, until: Time) {
        self.late = Some((extra, until));
    }

    fn is_cut(&self, now: Time, from: PeerId, to: PeerId) -> bool {
        let link = |cut: &Cut| (cut.from, cut.to) == (from, to) && cut.until.is_none_or(|until| until > now);
        let apart = |(part, until): &(BTreeSet<PeerId>, Time)| {
            *until > now && part.contains(&from) != part.contains(&to)
        };
        self.cuts.iter().any(link) || self.split.iter().any(apart)
    }

    /// Whether messages arrive in both directions, so that a connection lives.
    pub(super) fn is_whole(&self, now: Time, a: PeerId, b: PeerId) -> bool {
        !self.is_cut(now, a, b) && !self.is_cut(now, b, a)
    }

    /// Draws the fate of a message. The transport repeats `control` messages: a cut stops them, loss does not.
    pub(super) fn fate(&self, rng: &mut Rng, now: Time, from: PeerId, to: PeerId, control: bool) -> Fate {
        let dropped =
            self.lossy.is_some_and(|(rate, until)| until > now && !control && rng.chance(rate, 1_000));
        if dropped || self.is_cut(now, from, to) {
            return Fate::Lost;
        }
        let late = self.late.filter(|_| control);
        let lateness = |disturbance: Option<(Duration, Time)>| {
            disturbance.filter(|(_, until)| *until > now).map_or(Duration::ZERO, |(extra, _)| extra)
        };
        let nanos = u64::try_from((lateness(self.slow) + lateness(late)).as_nanos()).unwrap_or(u64::MAX);
        Fate::Delivered { extra: Duration::from_nanos(rng.below(nanos.max(1))) }
    }
}
