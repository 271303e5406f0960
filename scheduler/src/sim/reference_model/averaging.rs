//! The rules of averaging that hold in every run. A mean is made of contributions of one round, each counted once and
//! as it was copied. A majority has accepted a mean before any member applies it. Members of a group apply the same
//! mean. A round that a member counts as carried has its contribution in every mean.

use std::collections::{BTreeMap, BTreeSet};

use crate::averaging::{APPLYING_MAX, AveragingMessage, Content, GroupId, PartIndex, Round};
use crate::{Attempt, Instance};

use super::super::payload::{Numbers, Payload};
use super::super::state::mean;

/// Watches the rounds of every replica. Each method fails with the rule that was broken.
#[derive(Debug, Default)]
pub(in crate::sim) struct Means {
    members: BTreeMap<Instance, Member>,
    /// Every contribution copied, with its weight.
    contributions: BTreeMap<(GroupId, PartIndex), BTreeMap<Instance, (u64, Numbers)>>,
    /// Every mean computed.
    means: BTreeMap<(GroupId, PartIndex), Vec<Numbers>>,
    proposals: BTreeMap<(GroupId, PartIndex, Attempt), Proposal>,
    applied: BTreeMap<(GroupId, PartIndex), Applied>,
}

#[derive(Debug, Default)]
struct Member {
    /// The last round begun.
    begun: Option<Round>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    group: GroupId,
    /// Number of members.
    size: usize,
    /// Contributions of the member that no mean has carried.
    uncarried: u64,
    /// Parts whose mean lacks the member's contribution.
    left_out: BTreeSet<PartIndex>,
    applied: BTreeSet<PartIndex>,
    /// Means without a reply of the executor.
    applying: usize,
}

/// The mean that the owner of one attempt proposed, and the members that have accepted it.
#[derive(Debug)]
struct Proposal {
    mean: Numbers,
    acceptors: BTreeSet<Instance>,
}

#[derive(Debug)]
struct Applied {
    mean: Numbers,
    by: BTreeSet<Instance>,
}

type Rule = Result<(), String>;

fn require(holds: bool, otherwise: impl FnOnce() -> String) -> Rule {
    if holds { Ok(()) } else { Err(otherwise()) }
}

fn numbers(payload: &Payload) -> Result<&Numbers, String> {
    if let Payload::Numbers(numbers) = payload {
        Ok(numbers)
    } else {
        Err(format!("{payload:?} is no numbers"))
    }
}

impl Means {
    /// `me` has copied its numbers for a round.
    pub(in crate::sim) fn begin(
        &mut self,
        me: Instance,
        (group, size): (GroupId, usize),
        (uncarried, weight): (u64, u64),
        parts: &[Payload],
    ) -> Rule {
        let round = group.round;
        let member = self.members.entry(me).or_default();
        require(member.open.is_none(), || format!("{me:?} is in two rounds"))?;
        require(member.begun < Some(round), || format!("{me:?} begins {round:?} after {:?}", member.begun))?;
        member.begun = Some(round);
        member.open = Some(Open {
            group,
            size,
            uncarried,
            left_out: BTreeSet::new(),
            applied: BTreeSet::new(),
            applying: 0,
        });
        require(weight <= uncarried, || format!("{me:?} weighs more than it has to give"))?;
        for part in parts {
            let part = numbers(part)?;
            let copied = self.contributions.entry((group, part.part)).or_default();
            let before = copied.insert(me, (weight, part.clone()));
            require(before.is_none(), || format!("{me:?} copies {:?} twice", part.part))?;
        }
        Ok(())
    }

    /// `me` owns a part and computes its mean.
    pub(in crate::sim) fn reduce(
        &mut self,
        me: Instance,
        part: PartIndex,
        inputs: &[(u64, Payload)],
    ) -> Rule {
        let group = self.open(me)?.group;
        let copied = self.contributions.get(&(group, part));
        let mut heard = BTreeSet::new();
        for (weight, input) in inputs {
            let input = numbers(input)?;
            let &[from] = input.of.as_slice() else { return Err(format!("{input:?} is no contribution")) };
            require(*weight > 0 && heard.insert(from), || {
                format!("{from:?} counts as {weight} in {heard:?}")
            })?;
            let given = copied.and_then(|copied| copied.get(&from));
            let same = given.is_some_and(|(given, numbers)| given >= weight && numbers == input);
            require(same, || format!("{from:?} contributed other numbers than it copied"))?;
        }
        let parts =
            inputs.iter().map(|(weight, input)| numbers(input).map(|input| (*weight, &*input.values)));
        let values = mean(parts.collect::<Result<Vec<_>, _>>()?);
        let of = heard.into_iter().collect();
        self.means.entry((group, part)).or_default().push(Numbers { group, part, of, values });
        require(!inputs.is_empty(), || "a mean without contributions".to_owned())
    }

    /// `me` sends a message to another member.
    pub(in crate::sim) fn send(
        &mut self,
        me: Instance,
        message: &AveragingMessage,
        payload: &Payload,
    ) -> Rule {
        let key = (message.group, message.part, message.attempt);
        match &message.content {
            Content::Accept { contributors } => {
                let mean = numbers(payload)?.clone();
                let named = contributors.0.count_ones() as usize;
                require(named == mean.of.len(), || format!("{contributors:?} are named for {mean:?}"))?;
                let acceptors = BTreeSet::from([me]);
                let proposal = self.proposals.entry(key);
                let proposal = proposal.or_insert(Proposal { mean: mean.clone(), acceptors });
                require(proposal.mean == mean, || format!("two means are proposed in {key:?}"))
            }
            Content::Accepted { .. } => {
                let proposal = self.proposals.get_mut(&key);
                let proposal = proposal.ok_or_else(|| format!("no mean to accept in {key:?}"))?;
                proposal.acceptors.insert(me);
                Ok(())
            }
            Content::Contribution { .. }
            | Content::Promise { .. }
            | Content::Copying
            | Content::Empty { .. }
            | Content::NotAMember => Ok(()),
        }
    }

    /// `me` applies a mean. Returns whether the members that have applied it are just now a majority.
    pub(in crate::sim) fn apply(
        &mut self,
        me: Instance,
        part: PartIndex,
        mean: &Payload,
        contributed: bool,
    ) -> Result<bool, String> {
        let mean = numbers(mean)?;
        let open = self.open_mut(me)?;
        let (group, majority) = (open.group, open.size / 2 + 1);
        open.applying += 1;
        require(open.applying <= APPLYING_MAX, || format!("{me:?} applies too much at once"))?;
        require(open.applied.insert(part), || format!("{me:?} applies {part:?} twice"))?;
        require(mean.of.contains(&me) == contributed, || format!("{me:?} mistakes who is in {mean:?}"))?;
        if !contributed {
            open.left_out.insert(part);
        }
        require((mean.group, mean.part) == (group, part), || format!("{me:?} mixes rounds"))?;
        require(self.is_mean(mean), || format!("{mean:?} is not the mean of its contributions"))?;
        let acceptors = self.acceptors(mean, me);
        require(acceptors >= majority, || {
            format!("{acceptors} members have accepted the mean that {me:?} applies, not {majority}")
        })?;
        let by = BTreeSet::new();
        let applied = self.applied.entry((group, part)).or_insert(Applied { mean: mean.clone(), by });
        require(&applied.mean == mean, || format!("two means of {part:?} are applied"))?;
        Ok(applied.by.insert(me) && applied.by.len() == majority)
    }

    /// The executor of `me` has applied a mean.
    pub(in crate::sim) fn replied(&mut self, me: Instance) -> Rule {
        self.open_mut(me)?.applying -= 1;
        Ok(())
    }

    /// `me` has ended a round.
    pub(in crate::sim) fn finish(&mut self, me: Instance, round: Round, complete: bool) -> Rule {
        let open = self.members.get_mut(&me).and_then(|member| member.open.take());
        let Some(open) = open.filter(|open| open.group.round == round) else {
            return Err(format!("{me:?} ends another round than its own"));
        };
        let carried = open.uncarried == 0 || open.left_out.is_empty();
        require(carried || !complete, || format!("{me:?} counts {round:?} as carried, but was left out"))
    }

    /// Whether `me` is inside a round.
    pub(in crate::sim) fn is_open(&self, me: Instance) -> bool {
        self.members.get(&me).is_some_and(|member| member.open.is_some())
    }

    /// Whether an owner has computed this mean of copies.
    fn is_mean(&self, numbers: &Numbers) -> bool {
        self.means.get(&(numbers.group, numbers.part)).is_some_and(|means| means.contains(numbers))
    }

    /// Number of members that have accepted the mean, in any attempt. The member that applies it has, and tells no member
    /// that is gone.
    fn acceptors(&self, mean: &Numbers, applier: Instance) -> usize {
        let key = |attempt| (mean.group, mean.part, Attempt(attempt));
        let proposals = self.proposals.range(key(0)..=key(u32::MAX)).map(|(_, proposal)| proposal);
        let same = proposals.filter(|proposal| proposal.mean == *mean);
        same.flat_map(|proposal| &proposal.acceptors).chain([&applier]).collect::<BTreeSet<_>>().len()
    }

    fn open(&self, me: Instance) -> Result<&Open, String> {
        let open = self.members.get(&me).and_then(|member| member.open.as_ref());
        open.ok_or_else(|| format!("{me:?} is in no round"))
    }

    fn open_mut(&mut self, me: Instance) -> Result<&mut Open, String> {
        let open = self.members.get_mut(&me).and_then(|member| member.open.as_mut());
        open.ok_or_else(|| format!("{me:?} is in no round"))
    }
}
