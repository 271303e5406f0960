//! Messages of rounds that others have begun sooner.

use std::collections::BTreeMap;

use super::group::{GatheringId, Participant};
use super::message::AveragingMessage;

/// Messages kept for each member: a share for the part owned here, the mean of the part it owns, that this one is
/// settled, and a share for a part owned here later.
pub const EARLY_PER_MEMBER: usize = 4;

/// What arrived before this replica could use it, in order of arrival for each member.
#[derive(Debug)]
pub(super) struct Early<P> {
    messages: BTreeMap<Participant, Vec<AveragingMessage<P>>>,
}

impl<P> Default for Early<P> {
    fn default() -> Self {
        Self { messages: BTreeMap::new() }
    }
}

impl<P> Early<P> {
    /// Keeps a message of a member; `false` if there is no room.
    pub(super) fn keep(&mut self, from: Participant, message: AveragingMessage<P>) -> bool {
        let kept = self.messages.entry(from).or_default();
        let room = kept.len() < EARLY_PER_MEMBER;
        if room {
            kept.push(message);
        }
        room
    }

    /// Takes out what is about the gatherings that `is_wanted` picks.
    pub(super) fn take(
        &mut self,
        is_wanted: impl Fn(GatheringId) -> bool,
    ) -> Vec<(Participant, AveragingMessage<P>)> {
        let mut taken = Vec::new();
        for (&from, kept) in &mut self.messages {
            let wanted = kept.extract_if(.., |message| is_wanted(message.gathering));
            taken.extend(wanted.map(|message| (from, message)));
        }
        taken
    }

    /// Drops what came from others than `is_member` picks.
    pub(super) fn retain(&mut self, is_member: impl Fn(&Participant) -> bool) {
        self.messages.retain(|from, _| is_member(from));
    }
}
