//! The rules of averaging that hold in every run. A mean is made of contributions of one round, each counted once and
//! as it was copied. A majority has accepted a mean before any member applies it. Members of a group apply the same
//! mean. A round that a member counts as carried has its contribution in every mean. Every round ends in time.
//!
//! A liar says what it wants; the rules are about the others. What it contributes weighs no more than it was granted and
//! pulls no mean far from the honest contributions.

use std::collections::{BTreeMap, BTreeSet};

use crate::averaging::{APPLYING_MAX, AveragingMessage, Content, GroupId, MeanId, PartIndex, Round};
use crate::feeder::SINCE_THE_CALL;
use crate::{Attempt, Duration, Instance, Time};

use super::super::payload::{Numbers, Payload, digest};
use super::super::state::{REACH, mean};

/// Longest round of the simulated world.
const ROUND_MAX: Duration = Duration::from_secs(300);

/// Watches the rounds of every replica. Each method fails with the rule that was broken.
#[derive(Debug, Default)]
pub(in crate::sim) struct Means {
    members: BTreeMap<Instance, Member>,
    /// Every contribution copied, with its weight.
    contributions: BTreeMap<(GroupId, PartIndex), BTreeMap<Instance, (u64, Numbers)>>,
    /// Every mean computed.
    means: BTreeMap<(GroupId, PartIndex), Vec<Numbers>>,
    proposals: BTreeMap<(GroupId, PartIndex), Vec<Proposal>>,
    applied: BTreeMap<(GroupId, PartIndex), Vec<Applied>>,
    /// Grants of each replica.
    granted: BTreeMap<Instance, u64>,
    /// Replicas that have lied in a round.
    liars: BTreeSet<Instance>,
    /// Whether a liar has made two members apply different means.
    pub(in crate::sim) divided: bool,
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
    began: Time,
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

/// A mean that an owner proposed, and the members that have accepted it.
#[derive(Debug)]
struct Proposal {
    attempt: Attempt,
    by: Instance,
    id: MeanId,
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
        now: Time,
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
            began: now,
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
        bounded: bool,
    ) -> Rule {
        let group = self.open(me)?.group;
        let inputs = inputs.iter().map(|(weight, input)| numbers(input).map(|input| (*weight, input)));
        let inputs: Vec<(u64, &Numbers)> = inputs.collect::<Result<_, _>>()?;
        let mut heard = BTreeSet::new();
        for &(weight, input) in &inputs {
            let from = self.check_input((group, part), weight, input, bounded)?;
            let counts = weight > 0 && heard.insert(from);
            require(counts, || format!("{from:?} counts as {weight} in {heard:?}"))?;
        }
        let values = mean(inputs.iter().map(|(weight, input)| (*weight, &*input.values)));
        self.check_reach(&inputs, &values)?;
        let of = heard.into_iter().collect();
        self.means.entry((group, part)).or_default().push(Numbers { group, part, of, values });
        require(!inputs.is_empty(), || "a mean without contributions".to_owned())
    }

    /// Checks one contribution to a mean: it is as it was copied, or a liar's that weighs no more than it was granted.
    /// Returns its member.
    fn check_input(
        &self,
        part: (GroupId, PartIndex),
        weight: u64,
        input: &Numbers,
        bounded: bool,
    ) -> Result<Instance, String> {
        let &[from] = input.of.as_slice() else { return Err(format!("{input:?} is no contribution")) };
        let copied = self.contributions.get(&part).and_then(|copied| copied.get(&from));
        let same = copied.is_some_and(|(given, numbers)| *given >= weight && numbers == input);
        let lies = self.liars.contains(&from);
        require(same || lies, || format!("{from:?} contributed other numbers than it copied"))?;
        let granted = self.granted.get(&from).copied().unwrap_or(0);
        let allowed = same || !bounded || weight <= granted + SINCE_THE_CALL;
        require(allowed, || format!("{from:?} weighs {weight}, and was granted {granted}"))?;
        Ok(from)
    }

    /// `me` sends a message to another member.
    pub(in crate::sim) fn send(
        &mut self,
        me: Instance,
        message: &AveragingMessage,
        payload: &Payload,
    ) -> Rule {
        let &AveragingMessage { group, part, attempt, ref content } = message;
        match *content {
            Content::Accept { contributors } => {
                let mean = numbers(payload)?.clone();
                let named = contributors.0.count_ones() as usize;
                require(named == mean.of.len(), || format!("{contributors:?} are named for {mean:?}"))?;
                let id = MeanId { contributors, digest: digest(payload).1 };
                self.propose(
                    (group, part),
                    Proposal { attempt, by: me, id, mean, acceptors: BTreeSet::from([me]) },
                )
            }
            Content::Accepted { mean } => {
                let proposals = self.proposals.entry((group, part)).or_default();
                let proposal = proposals.iter_mut().find(|proposal| proposal.id == mean);
                let is_known = proposal.is_some_and(|proposal| {
                    proposal.acceptors.insert(me);
                    true
                });
                require(is_known || self.liars.contains(&me), || {
                    format!("{me:?} accepts what no owner proposed")
                })
            }
            // A liar may have accepted a mean of its own and told no member.
            Content::Promise { of, contributors } => {
                let id = MeanId { contributors, digest: digest(payload).1 };
                let (mean, acceptors) = (numbers(payload)?.clone(), BTreeSet::from([me]));
                self.propose((group, part), Proposal { attempt: of, by: me, id, mean, acceptors })
            }
            Content::Contribution { .. } | Content::Copying | Content::Empty { .. } | Content::NotAMember => {
                Ok(())
            }
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
        let (group, size) = (open.group, open.size);
        open.applying += 1;
        require(open.applying <= APPLYING_MAX, || format!("{me:?} applies too much at once"))?;
        require(open.applied.insert(part), || format!("{me:?} applies {part:?} twice"))?;
        require(mean.of.contains(&me) == contributed, || format!("{me:?} mistakes who is in {mean:?}"))?;
        if !contributed {
            open.left_out.insert(part);
        }
        require((mean.group, mean.part) == (group, part), || format!("{me:?} mixes rounds"))?;
        if self.liars.contains(&me) {
            return Ok(false);
        }
        let made_up = self.proposed(mean).iter().any(|proposal| self.liars.contains(&proposal.by));
        require(made_up || self.is_mean(mean), || format!("{mean:?} is not the mean of its contributions"))?;
        self.check_votes(me, mean, size)?;
        let applied = self.applied.entry((group, part)).or_default();
        if applied.iter().all(|applied| &applied.mean != mean) {
            applied.push(Applied { mean: mean.clone(), by: BTreeSet::new() });
        }
        let applied = applied.iter_mut().find(|applied| &applied.mean == mean);
        Ok(applied.is_some_and(|applied| applied.by.insert(me) && applied.by.len() == majority(size)))
    }

    fn propose(&mut self, part: (GroupId, PartIndex), proposal: Proposal) -> Rule {
        let proposals = self.proposals.entry(part).or_default();
        if let Some(known) = proposals.iter_mut().find(|known| known.id == proposal.id) {
            known.acceptors.extend(proposal.acceptors);
            return Ok(());
        }
        let Proposal { attempt, by, .. } = proposal;
        let is_first = proposals.iter().all(|known| known.attempt != attempt);
        proposals.push(proposal);
        require(is_first || self.liars.contains(&by), || format!("{by:?} proposes two means of {part:?}"))
    }

    /// Checks that a majority has accepted the mean that a member applies, and that two means are applied only if a liar
    /// has proposed two.
    fn check_votes(&mut self, me: Instance, mean: &Numbers, size: usize) -> Rule {
        let part = (mean.group, mean.part);
        let proposed = self.proposed(mean);
        let mut acceptors: BTreeSet<_> = proposed.iter().flat_map(|proposal| &proposal.acceptors).collect();
        // Its own vote may be withheld.
        acceptors.insert(&me);
        let (accepted, needed) = (acceptors.len(), majority(size));
        require(accepted >= needed, || {
            format!("{accepted} members have accepted the mean that {me:?} applies, not {needed}")
        })?;
        let proposals = self.proposals.get(&part).into_iter().flatten();
        let deceived = proposals.filter(|proposal| self.liars.contains(&proposal.by)).count() > 1;
        let mut applied = self.applied.get(&part).into_iter().flatten();
        let differs = applied.any(|applied| &applied.mean != mean);
        self.divided |= differs;
        require(!differs || deceived, || format!("two means of {part:?} are applied"))
    }

    /// Checks that a liar pulls a mean no further from the honest contributions than clipping allows. Of two
    /// contributions none can be told apart as wild.
    fn check_reach(&self, inputs: &[(u64, &Numbers)], mean: &[f64]) -> Rule {
        let lies = |input: &&(u64, &Numbers)| input.1.of.iter().any(|from| self.liars.contains(from));
        let honest: Vec<_> = inputs.iter().filter(|input| !lies(input)).collect();
        let liar = inputs.iter().find(lies);
        let (Some((said, liar)), true) = (liar, honest.len() > 1) else { return Ok(()) };
        let spread = honest.iter().flat_map(|one| honest.iter().map(|other| distance(one.1, other.1)));
        let spread = spread.fold(0.0, f64::max);
        let lightest = honest.iter().map(|(weight, _)| *weight).min().unwrap_or(1);
        let reach = if spread > 0.0 {
            REACH * spread * (*said as f64 / lightest as f64).max(1.0)
        } else {
            length(honest[0].1)
        };
        let within = |(index, mean): (usize, &f64)| {
            let numbers = honest.iter().map(|(_, numbers)| numbers.values[index]);
            let (low, high) =
                (numbers.clone().fold(f64::INFINITY, f64::min), numbers.fold(f64::NEG_INFINITY, f64::max));
            (low - reach..=high + reach).contains(mean)
        };
        require(mean.iter().enumerate().all(within), || {
            format!("{:?} pulls a mean to {mean:?}, far from {honest:?}", liar.of)
        })
    }

    /// The executor of `me` has applied a mean.
    pub(in crate::sim) fn replied(&mut self, me: Instance) -> Rule {
        self.open_mut(me)?.applying -= 1;
        Ok(())
    }

    /// `me` has ended a round.
    pub(in crate::sim) fn finish(&mut self, now: Time, me: Instance, round: Round, complete: bool) -> Rule {
        let open = self.members.get_mut(&me).and_then(|member| member.open.take());
        let Some(open) = open.filter(|open| open.group.round == round) else {
            return Err(format!("{me:?} ends another round than its own"));
        };
        let lasted = now.since(open.began);
        require(lasted <= ROUND_MAX, || format!("{round:?} of {me:?} lasted {lasted:?}"))?;
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

    /// The proposals of the mean.
    fn proposed(&self, mean: &Numbers) -> Vec<&Proposal> {
        let proposals = self.proposals.get(&(mean.group, mean.part)).into_iter().flatten();
        proposals.filter(|proposal| proposal.mean == *mean).collect()
    }

    // --- What the rules need to know ------------------------------------------------------------------------

    /// A replica was granted a microbatch.
    pub(in crate::sim) fn granted(&mut self, to: Instance) {
        *self.granted.entry(to).or_default() += 1;
    }

    /// A replica says something else than its machine.
    pub(in crate::sim) fn lies(&mut self, liar: Instance) {
        self.liars.insert(liar);
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

fn distance(one: &Numbers, other: &Numbers) -> f64 {
    let squares = one.values.iter().zip(&other.values).map(|(one, other)| (one - other).powi(2));
    squares.sum::<f64>().sqrt()
}

fn length(numbers: &Numbers) -> f64 {
    numbers.values.iter().map(|number| number.powi(2)).sum::<f64>().sqrt()
}

fn majority(size: usize) -> usize {
    size / 2 + 1
}
