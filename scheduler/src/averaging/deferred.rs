//! Messages of rounds that have begun at other members but not yet here.

use std::collections::BTreeMap;

use super::group::GroupId;
use super::message::AveragingMessage;
use crate::Instance;

/// Messages kept for each member: the news that its copy is under way, a contribution to the part owned here, the mean
/// of the part that the member owns, the notice that this mean is chosen, and a contribution to a part owned here
/// later.
pub const DEFERRED_PER_MEMBER: usize = 5;

/// Messages that arrived before this replica could use them, in order of arrival for each member.
#[derive(Debug)]
pub(super) struct Deferred<P> {
    messages: BTreeMap<Instance, Vec<(AveragingMessage, P)>>,
}

impl<P> Default for Deferred<P> {
    fn default() -> Self {
        Self { messages: BTreeMap::new() }
    }
}

impl<P> Deferred<P> {
    /// Keeps a message of a member; `false` if there is no room.
    pub(super) fn keep(&mut self, from: Instance, message: AveragingMessage, payload: P) -> bool {
        let kept = self.messages.entry(from).or_default();
        let room = kept.len() < DEFERRED_PER_MEMBER;
        if room {
            kept.push((message, payload));
        }
        room
    }

    /// Takes out the messages about the groups that `is_wanted` picks.
    pub(super) fn take(
        &mut self,
        is_wanted: impl Fn(GroupId) -> bool,
    ) -> Vec<(Instance, AveragingMessage, P)> {
        let mut taken = Vec::new();
        for (&from, kept) in &mut self.messages {
            let wanted = kept.extract_if(.., |(message, _)| is_wanted(message.group));
            taken.extend(wanted.map(|(message, payload)| (from, message, payload)));
        }
        taken
    }

    /// Drops the messages of instances that `is_member` does not pick.
    pub(super) fn retain(&mut self, is_member: impl Fn(&Instance) -> bool) {
        self.messages.retain(|from, _| is_member(from));
    }
}
