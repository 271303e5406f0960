//! The owner's side of a part: shares are gathered, a mean is proposed, and takers are counted.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Attempt, Time};

/// What a member gave the owner.
#[derive(Clone, Debug)]
pub(super) enum Given<P> {
    /// Its own numbers.
    Share { weight: u64, share: P },
    /// A mean it took from an earlier owner.
    Kept { of: Attempt, mean: P },
}

/// What an owner does with what it was given.
#[derive(Clone, Debug)]
pub(super) enum Verdict<P> {
    /// Propose this mean: an earlier owner may have settled it.
    Adopt(P),
    /// Reduce these shares, each with its weight.
    Reduce(Vec<(u64, P)>),
    /// There is nothing to reduce.
    Nothing,
}

#[derive(Clone, Debug)]
enum Phase {
    Gathering,
    /// The members whose shares are being reduced, in the order they were handed over.
    Reducing(Vec<usize>),
    /// The members that hold the mean proposed, the owner included.
    Proposed(BTreeSet<usize>),
}

/// The place where one attempt at a part is reduced.
#[derive(Clone, Debug)]
pub(super) struct Desk<P> {
    since: Time,
    given: BTreeMap<usize, Given<P>>,
    phase: Phase,
}

impl<P: Clone> Desk<P> {
    /// A desk with the owner's own share on it.
    pub(super) fn new(now: Time, owner: usize, own: Given<P>) -> Self {
        Self { since: now, given: BTreeMap::from([(owner, own)]), phase: Phase::Gathering }
    }

    /// When the first share was there.
    pub(super) fn since(&self) -> Time {
        self.since
    }

    pub(super) fn is_gathering(&self) -> bool {
        matches!(self.phase, Phase::Gathering)
    }

    /// Puts a share on the desk; `false` if it is too late, or a second one.
    pub(super) fn take(&mut self, from: usize, given: Given<P>) -> bool {
        let fits = self.is_gathering() && !self.given.contains_key(&from);
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

    /// Ends the gathering. The mean of the latest earlier owner goes before all shares; shares without weight add
    /// nothing.
    pub(super) fn conclude(&mut self) -> Verdict<P> {
        if let Some(mean) = self.latest_kept() {
            return Verdict::Adopt(mean);
        }
        let mut members = Vec::new();
        let mut shares = Vec::new();
        for (&member, given) in &self.given {
            if let Given::Share { weight, share } = given
                && *weight > 0
            {
                members.push(member);
                shares.push((*weight, share.clone()));
            }
        }
        if shares.is_empty() {
            return Verdict::Nothing;
        }
        self.phase = Phase::Reducing(members);
        Verdict::Reduce(shares)
    }

    /// Takes the share at place `input` of the last [`Verdict::Reduce`] off the desk and gathers no more; returns
    /// whose it was. `None` if nothing is being reduced, or there is no such place.
    pub(super) fn refuse(&mut self, input: usize) -> Option<usize> {
        let Phase::Reducing(members) = &self.phase else { return None };
        let &member = members.get(input)?;
        self.given.remove(&member);
        Some(member)
    }

    pub(super) fn is_reducing(&self) -> bool {
        matches!(self.phase, Phase::Reducing(_))
    }

    /// The mean is proposed; `owner` holds it first. The shares are not needed any more.
    pub(super) fn propose(&mut self, owner: usize) {
        self.given.clear();
        self.phase = Phase::Proposed(BTreeSet::from([owner]));
    }

    /// Another member holds the mean; returns how many do now, the owner included.
    pub(super) fn held_by(&mut self, member: usize) -> usize {
        match &mut self.phase {
            Phase::Proposed(holders) => {
                holders.insert(member);
                holders.len()
            }
            Phase::Gathering | Phase::Reducing(_) => 0,
        }
    }

    fn latest_kept(&self) -> Option<P> {
        let kept = self.given.values().filter_map(|given| match given {
            Given::Kept { of, mean } => Some((*of, mean)),
            Given::Share { .. } => None,
        });
        kept.max_by_key(|(of, _)| *of).map(|(_, mean)| mean.clone())
    }
}
