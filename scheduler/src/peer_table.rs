//! Who takes part, as this peer knows it: the coordinator's table and this peer's own verdicts.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::router::Sample;
use crate::{
    Hop, Incarnation, Member, Membership, MicrobatchId, PeerId, Quarantine, StageIndex, Standing, Succession,
    Time,
};

/// The membership table with lookups, and who is quarantined here.
#[derive(Clone, Debug, Default)]
pub struct PeerTable {
    version: u64,
    members: BTreeMap<PeerId, Member>,
    sample: Sample,
    stages: BTreeMap<StageIndex, Serving>,
    feeders: usize,
    successions: Vec<Succession>,
    /// Only members are ever in here, so the table bounds it.
    quarantine: Quarantine,
}

/// Who serves a stage. Drawn up once for every table, so that a decision does not look at all members.
#[derive(Clone, Debug, Default)]
struct Serving {
    /// Those this peer looks at, by peer id.
    sample: Vec<Hop>,
    /// How many there are.
    count: usize,
}

impl PeerTable {
    /// Nobody, version 0. Whose table it is decides which replicas of a stage with more than
    /// [`CANDIDATES_MAX`](crate::router::CANDIDATES_MAX) are eligible: for every owner others.
    #[must_use]
    pub fn new(owner: PeerId) -> Self {
        Self { sample: Sample::new(owner), ..Self::default() }
    }

    /// Takes over a newer table; `false` and no change if `membership` is not newer.
    pub fn update(&mut self, membership: Membership) -> bool {
        if membership.version <= self.version {
            return false;
        }
        self.version = membership.version;
        self.members = membership.members.into_iter().map(|member| (member.peer, member)).collect();
        self.stages = serving(&self.members, self.sample);
        self.feeders = self.feeders().count();
        self.successions = membership.successions;
        let members = &self.members;
        let stays = |peer, start| members.get(&peer).is_some_and(|member| member.incarnation == start);
        self.quarantine.retain(stays);
        true
    }

    /// Version of the table taken over last; 0 before the first.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// All members, by peer id.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// The member with this key, if it is this start of it.
    #[must_use]
    pub fn get(&self, peer: PeerId, incarnation: Incarnation) -> Option<&Member> {
        self.members.get(&peer).filter(|member| member.incarnation == incarnation)
    }

    /// Where the data plane of a member listens.
    #[must_use]
    pub fn address(&self, peer: PeerId) -> Option<SocketAddr> {
        self.members.get(&peer).map(|member| member.address)
    }

    /// Replicas that serve `stage`, by peer id.
    pub fn serving(&self, stage: StageIndex) -> impl Iterator<Item = &Member> {
        self.members.values().filter(move |member| member.standing == Standing::Serving(stage))
    }

    /// Feeders, by peer id.
    pub fn feeders(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| member.standing == Standing::Feeding)
    }

    /// Whether the coordinator put this start of this peer where `hop` says.
    ///
    /// A replica still listed as loading counts: its neighbour may hear of it before the table does.
    #[must_use]
    pub fn placed(&self, hop: &Hop) -> bool {
        self.get(hop.peer, hop.incarnation).is_some_and(|member| match (member.standing, hop.stage) {
            (Standing::Feeding, None) => true,
            (Standing::Loading(at) | Standing::Serving(at), Some(stage)) => at == stage,
            (Standing::Feeding | Standing::Standby | Standing::Loading(_) | Standing::Serving(_), _) => false,
        })
    }

    /// Whether somebody serves `stage`.
    #[must_use]
    pub fn serves(&self, stage: StageIndex) -> bool {
        self.stages.contains_key(&stage)
    }

    /// Whether every stage below `stages` has somebody who serves it.
    #[must_use]
    pub fn serves_all(&self, stages: u16) -> bool {
        (0..stages).all(|stage| self.serves(StageIndex(stage)))
    }

    /// Replicas of `stage` a microbatch may be sent to now, by peer id; at most
    /// [`CANDIDATES_MAX`](crate::router::CANDIDATES_MAX). Quarantined ones only if there are no others.
    pub fn eligible(&self, now: Time, stage: StageIndex) -> impl Iterator<Item = Hop> {
        self.quarantine.admit(now, self.sample(stage))
    }

    /// Peers that hand microbatches to one replica of `stage`; at least 1.
    ///
    /// The replicas of the stage before, or the feeders; of those only the expected number that have it in their
    /// sample.
    #[must_use]
    pub fn senders(&self, stage: StageIndex) -> u32 {
        let before = match stage.0.checked_sub(1).map(StageIndex) {
            Some(before) => self.stages.get(&before).map_or(0, |serving| serving.count),
            None => self.feeders,
        };
        let count = self.stages.get(&stage).map_or(1, |serving| serving.count);
        let expected = (before * self.sample(stage).len()).div_ceil(count);
        u32::try_from(expected.max(1)).unwrap_or(u32::MAX)
    }

    /// All replicas of `stage` as hops, by peer id.
    #[must_use]
    pub fn hops(&self, stage: StageIndex) -> Vec<Hop> {
        let hop =
            |member: &Member| Hop { stage: Some(stage), peer: member.peer, incarnation: member.incarnation };
        self.serving(stage).map(hop).collect()
    }

    /// Who sends microbatches to replicas of `stage`: the replicas before it, or the feeders.
    #[must_use]
    pub fn senders_to(&self, stage: StageIndex) -> Vec<Hop> {
        match stage.0.checked_sub(1) {
            Some(before) => self.hops(StageIndex(before)),
            None => {
                let hop =
                    |member: &Member| Hop { stage: None, peer: member.peer, incarnation: member.incarnation };
                self.feeders().map(hop).collect()
            }
        }
    }

    /// Whether this start of this peer is a feeder.
    #[must_use]
    pub fn feeds(&self, peer: PeerId, incarnation: Incarnation) -> bool {
        self.get(peer, incarnation).is_some_and(|member| member.standing == Standing::Feeding)
    }

    /// Every replica of every stage, loading ones included.
    #[must_use]
    pub fn replicas(&self) -> Vec<Hop> {
        let hop = |member: &Member| match member.standing {
            Standing::Loading(stage) | Standing::Serving(stage) => {
                Some(Hop { stage: Some(stage), peer: member.peer, incarnation: member.incarnation })
            }
            Standing::Standby | Standing::Feeding => None,
        };
        self.members.values().filter_map(hop).collect()
    }

    /// The ranges of ids that have gone to a successor.
    #[must_use]
    pub fn successions(&self) -> &[Succession] {
        &self.successions
    }

    /// Who has taken over the range this microbatch is from, if anybody has.
    #[must_use]
    pub fn successor(&self, microbatch: MicrobatchId) -> Option<Hop> {
        let succession = self.successions.iter().find(|succession| succession.lease.contains(microbatch))?;
        let member = self.members.get(&succession.feeder)?;
        Some(Hop { stage: None, peer: member.peer, incarnation: member.incarnation })
    }

    fn sample(&self, stage: StageIndex) -> &[Hop] {
        self.stages.get(&stage).map_or(&[], |serving| &serving.sample)
    }

    /// Stops choosing a member for a while: it could not be reached. Others than members are ignored.
    pub fn quarantine(&mut self, now: Time, peer: PeerId, incarnation: Incarnation) {
        if self.get(peer, incarnation).is_some() {
            self.quarantine.failed(now, peer, incarnation);
        }
    }

    /// Ends a quarantine: the peer was heard.
    pub fn heard(&mut self, peer: PeerId, incarnation: Incarnation) {
        self.quarantine.succeeded(peer, incarnation);
    }

    /// When the next quarantine ends that has not ended at `now`.
    #[must_use]
    pub fn next_release(&self, now: Time) -> Option<Time> {
        self.quarantine.next_release(now)
    }
}

fn serving(members: &BTreeMap<PeerId, Member>, sample: Sample) -> BTreeMap<StageIndex, Serving> {
    let mut hops = BTreeMap::<StageIndex, Vec<Hop>>::new();
    for &Member { peer, incarnation, standing, .. } in members.values() {
        if let Standing::Serving(stage) = standing {
            hops.entry(stage).or_default().push(Hop { stage: Some(stage), peer, incarnation });
        }
    }
    let serving = |hops: Vec<Hop>| Serving { count: hops.len(), sample: sample.select(hops) };
    hops.into_iter().map(|(stage, hops)| (stage, serving(hops))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::QUARANTINE_MIN;
    use crate::router::CANDIDATES_MAX;

    const OWNER: PeerId = PeerId([0xEE; 32]);
    const A: PeerId = PeerId([1; 32]);
    const B: PeerId = PeerId([2; 32]);

    fn member(peer: PeerId, incarnation: u64, standing: Standing) -> Member {
        let address = SocketAddr::from(([127, 0, 0, 1], 4_000));
        Member { peer, incarnation: Incarnation(incarnation), standing, address }
    }

    fn table(version: u64, members: Vec<Member>) -> PeerTable {
        let mut table = PeerTable::new(OWNER);
        assert!(table.update(Membership { version, members, ..Membership::default() }));
        table
    }

    #[test]
    fn older_tables_are_ignored() {
        let mut table = table(3, vec![member(A, 1, Standing::Serving(StageIndex(0)))]);
        assert!(!table.update(Membership { version: 3, ..Membership::default() }));
        assert!(!table.update(Membership { version: 2, ..Membership::default() }));
        assert!(table.serves_all(1));
        assert!(table.update(Membership { version: 4, ..Membership::default() }));
        assert!(!table.serves_all(1));
    }

    #[test]
    fn lookups_ask_for_the_start_too() {
        let table =
            table(1, vec![member(A, 2, Standing::Loading(StageIndex(1))), member(B, 1, Standing::Feeding)]);
        let hop = |peer, incarnation, stage: Option<u16>| Hop {
            stage: stage.map(StageIndex),
            peer,
            incarnation: Incarnation(incarnation),
        };
        assert!(table.placed(&hop(A, 2, Some(1))));
        assert!(!table.placed(&hop(A, 1, Some(1))));
        assert!(!table.placed(&hop(A, 2, Some(0))));
        assert!(!table.placed(&hop(A, 2, None)));
        assert!(table.placed(&hop(B, 1, None)));
        assert_eq!(table.feeders().count(), 1);
        assert!(table.get(B, Incarnation(9)).is_none());
    }

    #[test]
    fn a_large_stage_is_seen_in_part_and_its_senders_are_shared() {
        let replica = |stage: u16| {
            move |index: u8| {
                let mut key = [index; 32];
                key[0] = stage.to_le_bytes()[0];
                member(PeerId(key), 1, Standing::Serving(StageIndex(stage)))
            }
        };
        let members = (0..10).map(replica(0)).chain((0..128).map(replica(1))).chain((0..8).map(replica(2)));
        let feeder = member(OWNER, 1, Standing::Feeding);
        let table = table(1, members.chain([feeder]).collect());
        let seen = |stage| table.eligible(Time(0), StageIndex(stage)).count();
        assert_eq!([0, 1, 2, 3].map(seen), [10, CANDIDATES_MAX, 8, 0]);
        assert_eq!([0, 1, 2, 3].map(|stage| table.senders(StageIndex(stage))), [1, 5, 128, 1]);
        assert!(table.serves_all(3) && !table.serves_all(4));
    }

    #[test]
    fn a_quarantine_ends_by_time_by_a_message_or_by_a_restart() {
        let stage = StageIndex(0);
        let start = |incarnation| {
            vec![member(A, incarnation, Standing::Serving(stage)), member(B, 1, Standing::Serving(stage))]
        };
        let mut table = table(1, start(1));
        let now = Time(100);
        table.quarantine(now, A, Incarnation(1));
        assert_eq!(table.eligible(now, stage).map(|hop| hop.peer).collect::<Vec<_>>(), [B]);
        assert_eq!(table.next_release(now), Some(now + QUARANTINE_MIN));
        assert_eq!(table.eligible(now + QUARANTINE_MIN, stage).count(), 2);
        table.heard(A, Incarnation(1));
        assert_eq!(table.eligible(now, stage).count(), 2);
        table.quarantine(now, A, Incarnation(1));
        assert!(table.update(Membership { version: 2, members: start(2), ..Membership::default() }));
        assert_eq!(table.eligible(now, stage).count(), 2);
        assert_eq!(table.next_release(now), None);
    }
}
