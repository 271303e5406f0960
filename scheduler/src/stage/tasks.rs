//! Microbatches that wait for the executor.

use std::collections::VecDeque;

use crate::MicrobatchId;

/// First come first served, but what was lost before goes first: others have waited for it longest.
#[derive(Clone, Debug, Default)]
pub(super) struct Tasks {
    recovery: VecDeque<MicrobatchId>,
    regular: VecDeque<MicrobatchId>,
}

impl Tasks {
    pub(super) fn push(&mut self, id: MicrobatchId, recovers: bool) {
        if recovers { self.recovery.push_back(id) } else { self.regular.push_back(id) }
    }

    /// Takes the first that may start now.
    pub(super) fn pop(&mut self, startable: impl Fn(MicrobatchId) -> bool) -> Option<MicrobatchId> {
        [&mut self.recovery, &mut self.regular].into_iter().find_map(|queue| {
            let index = queue.iter().position(|&id| startable(id))?;
            queue.remove(index)
        })
    }

    pub(super) fn remove(&mut self, id: MicrobatchId) {
        self.recovery.retain(|&queued| queued != id);
        self.regular.retain(|&queued| queued != id);
    }

    pub(super) fn front(&self) -> Option<MicrobatchId> {
        self.recovery.front().or_else(|| self.regular.front()).copied()
    }

    pub(super) fn len(&self) -> usize {
        self.recovery.len() + self.regular.len()
    }
}
