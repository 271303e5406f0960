//! What a part needs of its round, and how it speaks to the other members.

use std::collections::VecDeque;

use crate::transfer::ChunkHash;
use crate::{Attempt, Time};

use super::adaptive_timeout::AdaptiveTimeout;
use super::counts::Note;
use super::event::Action;
use super::group::{Group, MemberSet, PartIndex};
use super::message::{AveragingMessage, Content};
use super::reducer::Mean;
use super::votes::MeanId;

/// The round of a part, and the queues for the actions and notes of the part.
#[derive(Debug)]
pub(super) struct Context<'a, P> {
    pub(super) now: Time,
    pub(super) group: &'a mut Group,
    pub(super) part: PartIndex,
    /// Weight of this replica in the mean.
    pub(super) weight: u64,
    /// Contributions of this replica that no mean has carried.
    pub(super) uncarried: u64,
    /// A newer round waits: a part whose owner is overdue is given up.
    pub(super) superseded: bool,
    pub(super) timeout: &'a mut AdaptiveTimeout,
    pub(super) digest: fn(&P) -> (u64, ChunkHash),
    pub(super) actions: &'a mut VecDeque<Action<P>>,
    pub(super) notes: &'a mut Vec<Note>,
}

impl<P: Clone + Default> Context<'_, P> {
    pub(super) fn send(&mut self, member: usize, attempt: Attempt, content: Content, payload: P) {
        let Some(to) = self.group.instance(member) else { return };
        let message = AveragingMessage { group: self.group.id, part: self.part, attempt, content };
        self.actions.push_back(Action::Send { to: to.peer, message, payload });
    }

    pub(super) fn broadcast(&mut self, attempt: Attempt, content: &Content, payload: &P) {
        for member in self.group.others().collect::<Vec<_>>() {
            self.send(member, attempt, content.clone(), payload.clone());
        }
    }

    pub(super) fn note(&mut self, note: Note) {
        self.notes.push(note);
    }

    pub(super) fn malformed(&mut self, from: usize) {
        self.notes.extend(self.group.instance(from).map(Note::Malformed));
    }

    pub(super) fn late(&mut self, from: usize) {
        self.notes.extend(self.group.instance(from).map(Note::Late));
    }

    pub(super) fn mean(&self, contributors: MemberSet, numbers: P) -> Mean<P> {
        let (_, digest) = (self.digest)(&numbers);
        Mean { id: MeanId { contributors, digest }, numbers }
    }

    pub(super) fn is_owner(&self, member: usize, attempt: Attempt) -> bool {
        attempt.0 < self.group.attempts() && self.group.owner(self.part, attempt) == member
    }
}
