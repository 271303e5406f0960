//! A bounded memory of ids that had their end here.

use std::collections::{BTreeMap, VecDeque};

use crate::MicrobatchId;

/// Ids remembered; the oldest end is forgotten first.
///
/// Not a watermark over the ids: feeders work through ranges far apart, so a low id is no old id. A duplicate
/// later than this many ends is taken for new; the feeder then ignores its outcome.
pub(crate) const ENDED_MAX: usize = 65_536;

/// What is remembered of each ended id.
#[derive(Clone, Debug)]
pub(crate) struct Ended<T> {
    by_id: BTreeMap<MicrobatchId, T>,
    by_age: VecDeque<MicrobatchId>,
}

impl<T> Ended<T> {
    pub(crate) fn new() -> Self {
        Self { by_id: BTreeMap::new(), by_age: VecDeque::new() }
    }

    pub(crate) fn get(&self, microbatch: MicrobatchId) -> Option<&T> {
        self.by_id.get(&microbatch)
    }

    /// Remembers how `microbatch` ended. A repeated id keeps its age: it is forgotten with its first end.
    pub(crate) fn insert(&mut self, microbatch: MicrobatchId, how: T) {
        if self.by_id.insert(microbatch, how).is_some() {
            return;
        }
        self.by_age.push_back(microbatch);
        if self.by_age.len() > ENDED_MAX
            && let Some(oldest) = self.by_age.pop_front()
        {
            self.by_id.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgets_the_oldest_end_and_nothing_else() {
        let mut ended = Ended::new();
        for id in (0..=ENDED_MAX as u64).rev() {
            ended.insert(MicrobatchId(id), id);
        }
        ended.insert(MicrobatchId(0), 7);
        assert_eq!(ended.get(MicrobatchId(ENDED_MAX as u64)), None);
        assert_eq!(ended.get(MicrobatchId(0)), Some(&7));
        assert_eq!((ended.by_id.len(), ended.by_age.len()), (ENDED_MAX, ENDED_MAX));
    }
}
