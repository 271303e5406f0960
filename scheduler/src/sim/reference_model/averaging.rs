//! What must hold of averaging, whatever happens: a mean is made of shares of one round, each of them once and as it was
//! copied; a majority holds it before anybody applies it; and whoever applies one in a gathering applies the same.

use std::collections::{BTreeMap, BTreeSet};

use super::super::averaging::Numbers;
use super::super::state::mean;
use crate::Attempt;
use crate::averaging::{APPLYING_MAX, AveragingMessage, Content, GatheringId, PartIndex, Participant, Round};

/// Watches the rounds of everybody.
#[derive(Debug, Default)]
pub(crate) struct Means {
    seed: u64,
    /// What each start of a replica is at.
    members: BTreeMap<Participant, Member>,
    /// Everything that was copied, with its weight.
    shares: BTreeMap<(GatheringId, PartIndex), BTreeMap<Participant, (u64, Numbers)>>,
    proposals: BTreeMap<(GatheringId, PartIndex, Attempt), Proposal>,
    applied: BTreeMap<(GatheringId, PartIndex), Applied>,
}

/// One start of a replica.
#[derive(Debug, Default)]
struct Member {
    /// The last round begun.
    begun: Option<Round>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    gathering: GatheringId,
    /// How many take part.
    size: usize,
    applied: BTreeSet<PartIndex>,
    /// Means without an answer.
    applying: usize,
}

/// What the owner of one attempt wants everybody to take, and who has.
#[derive(Debug)]
struct Proposal {
    mean: Numbers,
    holders: BTreeSet<Participant>,
}

#[derive(Debug)]
struct Applied {
    mean: Numbers,
    by: BTreeSet<Participant>,
}

impl Means {
    pub(in crate::sim) fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// `me` has copied its numbers for a round.
    pub(in crate::sim) fn begin(
        &mut self,
        me: Participant,
        gathering: GatheringId,
        size: usize,
        weight: u64,
        parts: &[Numbers],
    ) {
        let (seed, round) = (self.seed, gathering.round);
        let member = self.members.entry(me).or_default();
        assert!(member.open.is_none(), "seed {seed}: {me:?} is in two rounds");
        assert!(member.begun < Some(round), "seed {seed}: {me:?} begins {round:?} after {:?}", member.begun);
        member.begun = Some(round);
        member.open = Some(Open { gathering, size, applied: BTreeSet::new(), applying: 0 });
        for share in parts {
            let before =
                self.shares.entry((gathering, share.part)).or_default().insert(me, (weight, share.clone()));
            assert_eq!(before, None, "seed {seed}: {me:?} copies {:?} twice", share.part);
        }
    }

    /// `me` owns a part and computes its mean.
    pub(in crate::sim) fn reduce(&self, me: Participant, part: PartIndex, inputs: &[(u64, Numbers)]) {
        let (seed, gathering) = (self.seed, self.open(me).gathering);
        let shares = &self.shares[&(gathering, part)];
        let mut heard = BTreeSet::new();
        for (weight, share) in inputs {
            let &[from] = share.of.as_slice() else { panic!("seed {seed}: {share:?} is no share") };
            assert!(
                *weight > 0 && heard.insert(from),
                "seed {seed}: {from:?} counts as {weight} in {heard:?}"
            );
            let copied = shares.get(&from);
            assert_eq!(copied, Some(&(*weight, share.clone())), "seed {seed}: {from:?} gave something else");
        }
        assert!(!inputs.is_empty(), "seed {seed}: a mean of nothing");
    }

    /// `me` says something to another member.
    pub(in crate::sim) fn say(&mut self, me: Participant, message: &AveragingMessage<Numbers>) {
        let (seed, key) = (self.seed, (message.gathering, message.part, message.attempt));
        match &message.content {
            Content::Mean { mean } => {
                let holders = BTreeSet::from([me]);
                let proposal = self.proposals.entry(key).or_insert(Proposal { mean: mean.clone(), holders });
                assert_eq!(&proposal.mean, mean, "seed {seed}: two means are proposed in {key:?}");
            }
            Content::Held => {
                let proposal = self.proposals.get_mut(&key);
                proposal
                    .unwrap_or_else(|| panic!("seed {seed}: nothing to hold in {key:?}"))
                    .holders
                    .insert(me);
            }
            Content::Share { .. }
            | Content::Kept { .. }
            | Content::Settled
            | Content::Nothing
            | Content::Absent => {}
        }
    }

    /// `me` takes a mean into its numbers; whether those who have are a majority, just now.
    pub(in crate::sim) fn apply(&mut self, me: Participant, part: PartIndex, mean: &Numbers) -> bool {
        let seed = self.seed;
        let open = self.open_mut(me);
        let (gathering, majority) = (open.gathering, open.size / 2 + 1);
        open.applying += 1;
        assert!(open.applying <= APPLYING_MAX, "seed {seed}: {me:?} applies too much at once");
        assert!(open.applied.insert(part), "seed {seed}: {me:?} applies {part:?} twice");
        assert_eq!((mean.gathering, mean.part), (gathering, part), "seed {seed}: {me:?} mixes rounds");
        assert!(self.is_mean(mean), "seed {seed}: {mean:?} is not the mean of what it is made of");
        let holders = self.holders(mean);
        assert!(holders >= majority, "seed {seed}: {holders} hold what {me:?} applies, not {majority}");
        let by = BTreeSet::new();
        let applied = self.applied.entry((gathering, part)).or_insert(Applied { mean: mean.clone(), by });
        assert_eq!(&applied.mean, mean, "seed {seed}: two means of {part:?} are applied");
        applied.by.insert(me) && applied.by.len() == majority
    }

    /// The executor of `me` is done with a mean.
    pub(in crate::sim) fn answered(&mut self, me: Participant) {
        self.open_mut(me).applying -= 1;
    }

    /// `me` is done with a round.
    pub(in crate::sim) fn finish(&mut self, me: Participant, round: Round) {
        let open = self.members.get_mut(&me).and_then(|member| member.open.take());
        let open = open.map(|open| open.gathering.round);
        assert_eq!(open, Some(round), "seed {}: {me:?} ends another round than its own", self.seed);
    }

    /// Whether `me` is inside a round.
    pub(in crate::sim) fn is_open(&self, me: Participant) -> bool {
        self.members.get(&me).is_some_and(|member| member.open.is_some())
    }

    /// Whether the numbers are the mean of what those had copied whose shares are said to be in it.
    fn is_mean(&self, numbers: &Numbers) -> bool {
        let Some(shares) = self.shares.get(&(numbers.gathering, numbers.part)) else { return false };
        let of =
            numbers.of.iter().map(|from| shares.get(from).map(|(weight, share)| (*weight, &*share.numbers)));
        of.collect::<Option<Vec<_>>>().is_some_and(|of| mean(of) == numbers.numbers)
    }

    /// How many at most hold a mean that the owner of one attempt gave them.
    fn holders(&self, mean: &Numbers) -> usize {
        let key = |attempt| (mean.gathering, mean.part, Attempt(attempt));
        let proposals = self.proposals.range(key(0)..=key(u32::MAX)).map(|(_, proposal)| proposal);
        proposals
            .filter(|proposal| proposal.mean == *mean)
            .map(|proposal| proposal.holders.len())
            .max()
            .unwrap_or(0)
    }

    fn open(&self, me: Participant) -> &Open {
        let open = self.members.get(&me).and_then(|member| member.open.as_ref());
        open.unwrap_or_else(|| panic!("seed {}: {me:?} is in no round", self.seed))
    }

    fn open_mut(&mut self, me: Participant) -> &mut Open {
        let open = self.members.get_mut(&me).and_then(|member| member.open.as_mut());
        open.unwrap_or_else(|| panic!("seed {}: {me:?} is in no round", self.seed))
    }
}
