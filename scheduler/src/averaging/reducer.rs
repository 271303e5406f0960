//! The owner's side of a part: contributions are collected and reduced to the mean that the owner proposes.

use std::collections::BTreeMap;

use crate::{Attempt, Time};

use super::group::MemberSet;
use super::votes::MeanId;

/// A mean and its numbers.
#[derive(Clone, Debug)]
pub(super) struct Mean<P> {
    pub(super) id: MeanId,
    pub(super) numbers: P,
}

/// A message of a member to the owner.
#[derive(Clone, Debug)]
pub(super) enum Given<P> {
    /// The member's own numbers.
    Contribution { weight: u64, numbers: P },
    /// A mean that it accepted from an earlier owner.
    Promise { of: Attempt, mean: Mean<P> },
}

/// The decision of an owner about the contributions.
#[derive(Clone, Debug)]
pub(super) enum Decision<P> {
    /// Propose this mean: it may be chosen already.
    Adopt(Mean<P>),
    /// Reduce these contributions, each with its weight.
    Reduce(Vec<(u64, P)>),
    /// The members heard have nothing to reduce.
    Empty,
}

#[derive(Clone, Debug)]
enum Phase {
    Collecting,
    /// The members whose contributions are being reduced, in the order of the job's inputs.
    Reducing(Vec<usize>),
}

/// The owner's state of one attempt at a part.
#[derive(Clone, Debug)]
pub(super) struct Reducer<P> {
    since: Time,
    given: BTreeMap<usize, Given<P>>,
    phase: Phase,
}

impl<P: Clone> Reducer<P> {
    /// A reducer with the owner's own contribution.
    pub(super) fn new(now: Time, owner: usize, own: Given<P>) -> Self {
        Self { since: now, given: BTreeMap::from([(owner, own)]), phase: Phase::Collecting }
    }

    /// The time of the first contribution.
    pub(super) fn since(&self) -> Time {
        self.since
    }

    pub(super) fn is_collecting(&self) -> bool {
        matches!(self.phase, Phase::Collecting)
    }

    /// Takes a contribution; `false` if it is late, or the member's second.
    pub(super) fn take(&mut self, from: usize, given: Given<P>) -> bool {
        let fits = self.is_collecting() && !self.given.contains_key(&from);
        if fits {
            self.given.insert(from, given);
        }
        fits
    }

    pub(super) fn has(&self, member: usize) -> bool {
        self.given.contains_key(&member)
    }

    pub(super) fn len(&self) -> usize {
        self.given.len()
    }

    /// Ends the collection. The mean of the latest earlier owner takes precedence over all contributions; contributions
    /// without weight are left out.
    pub(super) fn conclude(&mut self) -> Decision<P> {
        if let Some(mean) = self.latest_promised() {
            return Decision::Adopt(mean);
        }
        let mut members = Vec::new();
        let mut contributions = Vec::new();
        for (&member, given) in &self.given {
            if let Given::Contribution { weight, numbers } = given
                && *weight > 0
            {
                members.push(member);
                contributions.push((*weight, numbers.clone()));
            }
        }
        if contributions.is_empty() {
            return Decision::Empty;
        }
        self.phase = Phase::Reducing(members);
        Decision::Reduce(contributions)
    }

    /// Drops the contribution at index `input` of the last [`Decision::Reduce`]. Returns its member; `None` if nothing
    /// is being reduced, or there is no such index.
    pub(super) fn refuse(&mut self, input: usize) -> Option<usize> {
        let Phase::Reducing(members) = &self.phase else { return None };
        let &member = members.get(input)?;
        self.given.remove(&member);
        Some(member)
    }

    pub(super) fn is_reducing(&self) -> bool {
        matches!(self.phase, Phase::Reducing(_))
    }

    /// The members whose contributions are being reduced.
    pub(super) fn contributors(&self) -> MemberSet {
        match &self.phase {
            Phase::Reducing(members) => MemberSet::of(members.iter().copied()),
            Phase::Collecting => MemberSet::default(),
        }
    }

    /// The members that have contributed or promised.
    pub(super) fn heard(&self) -> MemberSet {
        MemberSet::of(self.given.keys().copied())
    }

    fn latest_promised(&self) -> Option<Mean<P>> {
        let promised = self.given.values().filter_map(|given| match given {
            Given::Promise { of, mean } => Some((*of, mean)),
            Given::Contribution { .. } => None,
        });
        promised.max_by_key(|(of, _)| *of).map(|(_, mean)| mean.clone())
    }
}
