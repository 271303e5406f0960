//! Messages of rounds that have begun at other members but not yet here.

use std::collections::BTreeMap;

use super::draw::GROUP_MAX;
use super::group::{GroupId, PARTS_IN_FLIGHT};
use super::message::AveragingMessage;
use crate::Instance;

/// Messages with numbers kept for each member. A pair shares the parts in flight: each sends contributions to the parts
/// that the other owns, and the means of its own.
pub(super) const NUMBERS_PER_MEMBER: usize = PARTS_IN_FLIGHT;

/// Messages kept for each member: those with numbers, its votes, and the news that its copy is under way.
pub const DEFERRED_PER_MEMBER: usize = 1 + 3 * PARTS_IN_FLIGHT;

/// Messages of rounds that are further ahead are not kept: a member has heard of no such round, and messages of it would
/// take the room of others. A call may overtake the messages of the other members, and a few calls may be lost.
pub(super) const ROUNDS_AHEAD_MAX: u64 = 8;

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
    /// Keeps a message of a member; `false` if there is no room for it, or for more members than a group has.
    pub(super) fn keep(&mut self, from: Instance, message: AveragingMessage, payload: P) -> bool {
        if self.messages.len() >= GROUP_MAX && !self.messages.contains_key(&from) {
            return false;
        }
        let kept = self.messages.entry(from).or_default();
        let numbers = kept.iter().filter(|(kept, _)| kept.content.has_payload()).count();
        let room = kept.len() < DEFERRED_PER_MEMBER
            && (numbers < NUMBERS_PER_MEMBER || !message.content.has_payload());
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
        self.messages.retain(|_, kept| !kept.is_empty());
        taken
    }

    /// Drops the messages of instances that `is_member` does not pick.
    pub(super) fn retain(&mut self, is_member: impl Fn(&Instance) -> bool) {
        self.messages.retain(|from, _| is_member(from));
    }
}
