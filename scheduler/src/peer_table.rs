//! The members of the run as this peer knows them: the coordinator's table and this peer's own verdicts.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::router::Sample;
use crate::{
    Hop, Instance, Member, MemberState, Membership, MicrobatchId, PeerId, Quarantine, StageIndex, Succession,
    Time,
};

/// The membership table with lookups, and the quarantine of this peer.
#[derive(Clone, Debug, Default)]
pub struct PeerTable {
    version: u64,
    members: BTreeMap<PeerId, Member>,
    sample: Sample,
    stages: BTreeMap<StageIndex, Serving>,
    feeders: usize,
    successions: Vec<Succession>,
    trained: Vec<StageIndex>,
    /// Contains members only, so the table bounds it.
    quarantine: Quarantine,
}

/// The replicas that serve a stage. Computed once for every table, so that a decision does not look at all members.
#[derive(Clone, Debug, Default)]
struct Serving {
    /// The replicas that this peer chooses among, by peer id.
    sample: Vec<Hop>,
    /// Number of all replicas that serve the stage.
    count: usize,
}

impl PeerTable {
    /// The empty table, version 0. Of a stage with more than [`CANDIDATES_MAX`](crate::router::CANDIDATES_MAX) replicas
    /// only some are eligible: a different selection for every owner.
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
        self.members = membership.members.into_iter().map(|member| (member.instance.peer, member)).collect();
        self.stages = serving(&self.members, self.sample);
        self.feeders = self.feeders().count();
        self.successions = membership.successions;
        self.trained = membership.trained;
        let members = &self.members;
        self.quarantine.retain(|instance| is_member(members, instance));
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

    /// The member that is this start of this peer; `None` if another start is a member, or none.
    #[must_use]
    pub fn get(&self, instance: Instance) -> Option<&Member> {
        self.members.get(&instance.peer).filter(|member| member.instance == instance)
    }

    /// The start of `peer` that is a member, if any.
    #[must_use]
    pub fn instance(&self, peer: PeerId) -> Option<Instance> {
        self.members.get(&peer).map(|member| member.instance)
    }

    /// Address of a member's data plane.
    #[must_use]
    pub fn address(&self, peer: PeerId) -> Option<SocketAddr> {
        self.members.get(&peer).map(|member| member.address)
    }

    /// Replicas that serve `stage`, by peer id.
    pub fn serving(&self, stage: StageIndex) -> impl Iterator<Item = &Member> {
        self.members.values().filter(move |member| member.state == MemberState::Serving(stage))
    }

    /// Feeders, by peer id.
    pub fn feeders(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| member.state == MemberState::Feeding)
    }

    /// Whether the coordinator has placed this start of this peer at `hop`.
    ///
    /// A replica still listed as loading counts: it may serve before the next table arrives.
    #[must_use]
    pub fn placed(&self, hop: &Hop) -> bool {
        self.get(hop.instance).and_then(Member::hop) == Some(*hop)
    }

    /// Whether a replica serves `stage`.
    #[must_use]
    pub fn serves(&self, stage: StageIndex) -> bool {
        self.stages.contains_key(&stage)
    }

    /// Whether every stage below `stages` is served.
    #[must_use]
    pub fn serves_all(&self, stages: u16) -> bool {
        (0..stages).all(|stage| self.serves(StageIndex(stage)))
    }

    /// Replicas of `stage` that a microbatch may be sent to now, by peer id; at most
    /// [`CANDIDATES_MAX`](crate::router::CANDIDATES_MAX). Quarantined replicas only if there are no others.
    pub fn eligible(&self, now: Time, stage: StageIndex) -> impl Iterator<Item = Hop> {
        self.quarantine.admit(now, self.sample(stage))
    }

    /// Peers that hand microbatches to one replica of `stage`; at least 1.
    ///
    /// The replicas of the stage before, or the feeders; of these only the expected number that have the replica in
    /// their sample.
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

    /// The replicas that serve `stage`, as hops, by peer id.
    #[must_use]
    pub fn hops(&self, stage: StageIndex) -> Vec<Hop> {
        self.serving(stage).map(|member| Hop::replica(stage, member.instance)).collect()
    }

    /// The senders of microbatches to replicas of `stage`: the replicas before it, or the feeders.
    #[must_use]
    pub fn senders_to(&self, stage: StageIndex) -> Vec<Hop> {
        match stage.0.checked_sub(1) {
            Some(before) => self.hops(StageIndex(before)),
            None => self.feeders().map(|member| Hop::feeder(member.instance)).collect(),
        }
    }

    /// Whether this instance is a feeder.
    #[must_use]
    pub fn feeds(&self, instance: Instance) -> bool {
        self.get(instance).is_some_and(|member| member.state == MemberState::Feeding)
    }

    /// Every replica of every stage, loading or serving.
    #[must_use]
    pub fn replicas(&self) -> Vec<Hop> {
        self.members.values().filter_map(Member::hop).filter(|hop| hop.stage.is_some()).collect()
    }

    /// Every replica that the coordinator has placed on `stage`, loading or serving, by peer id.
    pub fn placed_on(&self, stage: StageIndex) -> impl Iterator<Item = Instance> {
        let placed = move |member: &&Member| member.state.stage() == Some(stage);
        self.members.values().filter(placed).map(|member| member.instance)
    }

    /// Whether weights of `stage` have been updated since the run began.
    #[must_use]
    pub fn is_trained(&self, stage: StageIndex) -> bool {
        self.trained.contains(&stage)
    }

    /// The ranges of ids that have gone to a successor.
    #[must_use]
    pub fn successions(&self) -> &[Succession] {
        &self.successions
    }

    /// The feeder that has taken over the range of this microbatch, if any.
    #[must_use]
    pub fn successor(&self, microbatch: MicrobatchId) -> Option<Hop> {
        let succession = self.successions.iter().find(|succession| succession.lease.contains(microbatch))?;
        self.members.get(&succession.feeder).map(|member| Hop::feeder(member.instance))
    }

    fn sample(&self, stage: StageIndex) -> &[Hop] {
        self.stages.get(&stage).map_or(&[], |serving| &serving.sample)
    }

    /// Quarantines a member that failed. An instance that is no member is ignored.
    pub fn quarantine(&mut self, now: Time, instance: Instance) {
        if is_member(&self.members, instance) {
            self.quarantine.failed(now, instance);
        }
    }

    /// Ends the quarantine of a peer that was heard.
    pub fn heard(&mut self, instance: Instance) {
        self.quarantine.succeeded(instance);
    }

    /// The next end of a quarantine after `now`; `None` if no member is in quarantine.
    #[must_use]
    pub fn next_release(&self, now: Time) -> Option<Time> {
        self.quarantine.next_release(now)
    }
}

fn is_member(members: &BTreeMap<PeerId, Member>, instance: Instance) -> bool {
    members.get(&instance.peer).is_some_and(|member| member.instance == instance)
}

fn serving(members: &BTreeMap<PeerId, Member>, sample: Sample) -> BTreeMap<StageIndex, Serving> {
    let mut hops = BTreeMap::<StageIndex, Vec<Hop>>::new();
    for &Member { instance, state, .. } in members.values() {
        if let MemberState::Serving(stage) = state {
            hops.entry(stage).or_default().push(Hop::replica(stage, instance));
        }
    }
    let serving = |hops: Vec<Hop>| Serving { count: hops.len(), sample: sample.select(hops) };
    hops.into_iter().map(|(stage, hops)| (stage, serving(hops))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Incarnation;
    use crate::health::QUARANTINE_MIN;
    use crate::router::CANDIDATES_MAX;

    const OWNER: PeerId = PeerId([0xEE; 32]);
    const A: PeerId = PeerId([1; 32]);
    const B: PeerId = PeerId([2; 32]);

    const fn start(peer: PeerId, incarnation: u64) -> Instance {
        Instance::new(peer, Incarnation(incarnation))
    }

    fn member(peer: PeerId, incarnation: u64, state: MemberState) -> Member {
        let address = SocketAddr::from(([127, 0, 0, 1], 4_000));
        Member { instance: start(peer, incarnation), state, address }
    }

    fn table(version: u64, members: Vec<Member>) -> PeerTable {
        let mut table = PeerTable::new(OWNER);
        assert!(table.update(Membership { version, members, ..Membership::default() }));
        table
    }

    #[test]
    fn older_tables_are_ignored() {
        let mut table = table(3, vec![member(A, 1, MemberState::Serving(StageIndex(0)))]);
        assert!(!table.update(Membership { version: 3, ..Membership::default() }));
        assert!(!table.update(Membership { version: 2, ..Membership::default() }));
        assert!(table.serves_all(1));
        assert!(table.update(Membership { version: 4, ..Membership::default() }));
        assert!(!table.serves_all(1));
    }

    #[test]
    fn lookups_ask_for_the_start_too() {
        let table = table(
            1,
            vec![member(A, 2, MemberState::Loading(StageIndex(1))), member(B, 1, MemberState::Feeding)],
        );
        let hop = |peer, incarnation, stage: Option<u16>| Hop {
            stage: stage.map(StageIndex),
            instance: start(peer, incarnation),
        };
        assert!(table.placed(&hop(A, 2, Some(1))));
        assert!(!table.placed(&hop(A, 1, Some(1))));
        assert!(!table.placed(&hop(A, 2, Some(0))));
        assert!(!table.placed(&hop(A, 2, None)));
        assert!(table.placed(&hop(B, 1, None)));
        assert_eq!(table.feeders().count(), 1);
        assert!(table.get(start(B, 9)).is_none());
    }

    #[test]
    fn a_large_stage_is_seen_in_part_and_its_senders_are_shared() {
        let replica = |stage: u16| {
            move |index: u8| {
                let mut key = [index; 32];
                key[0] = stage.to_le_bytes()[0];
                member(PeerId(key), 1, MemberState::Serving(StageIndex(stage)))
            }
        };
        let members = (0..10).map(replica(0)).chain((0..128).map(replica(1))).chain((0..8).map(replica(2)));
        let feeder = member(OWNER, 1, MemberState::Feeding);
        let table = table(1, members.chain([feeder]).collect());
        let seen = |stage| table.eligible(Time(0), StageIndex(stage)).count();
        assert_eq!([0, 1, 2, 3].map(seen), [10, CANDIDATES_MAX, 8, 0]);
        assert_eq!([0, 1, 2, 3].map(|stage| table.senders(StageIndex(stage))), [1, 5, 128, 1]);
        assert!(table.serves_all(3) && !table.serves_all(4));
    }

    #[test]
    fn a_quarantine_ends_by_time_by_a_message_or_by_a_restart() {
        let stage = StageIndex(0);
        let members = |incarnation| {
            vec![
                member(A, incarnation, MemberState::Serving(stage)),
                member(B, 1, MemberState::Serving(stage)),
            ]
        };
        let mut table = table(1, members(1));
        let now = Time(100);
        table.quarantine(now, start(A, 1));
        assert_eq!(table.eligible(now, stage).map(|hop| hop.peer()).collect::<Vec<_>>(), [B]);
        assert_eq!(table.next_release(now), Some(now + QUARANTINE_MIN));
        assert_eq!(table.eligible(now + QUARANTINE_MIN, stage).count(), 2);
        table.heard(start(A, 1));
        assert_eq!(table.eligible(now, stage).count(), 2);
        table.quarantine(now, start(A, 1));
        assert!(table.update(Membership { version: 2, members: members(2), ..Membership::default() }));
        assert_eq!(table.eligible(now, stage).count(), 2);
        assert_eq!(table.next_release(now), None);
    }
}
