//! The members of the run as this peer knows them: the coordinator's table and this peer's own verdicts.

mod pairs;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use crate::places::working;
use crate::router::Pairing;
use crate::{
    Hop, Instance, LeasedRange, Member, MemberState, Membership, MicrobatchId, PeerId, Quarantine,
    StageIndex, Table, TableChange, TableUpdate, Time, WeightsPolicy,
};

use pairs::Pairs;

/// The membership table with lookups, and the quarantine of this peer.
#[derive(Clone, Debug, Default)]
pub struct PeerTable {
    owner: Option<Hop>,
    table: Arc<Table>,
    /// The replicas that the owner may hand microbatches to.
    downstream: Pairs,
    /// The peers that may hand microbatches to the owner; a feeder has none.
    upstream: Pairs,
    /// The replicas that the table before had placed and this one has not.
    departed: Vec<Hop>,
    /// The hops that came or went with this table, of members that serve or feed. Only a feeder looks at all of them.
    moved: Vec<Hop>,
    /// The stages whose replicas, loading or serving, are others than in the table before.
    touched: BTreeSet<StageIndex>,
    /// A keeper came or went with this table.
    touches_keepers: bool,
    /// Contains members only, so the table bounds it.
    quarantine: Quarantine,
}

impl PeerTable {
    /// The empty table, version 0. Of large stages the owner works with a part: see [`Pairing`].
    #[must_use]
    pub fn new(owner: Hop) -> Self {
        Self { owner: Some(owner), ..Self::default() }
    }

    /// Takes over a newer table; `false` and no change if `update` makes no newer one of this one.
    pub fn update(&mut self, update: impl Into<TableUpdate>) -> bool {
        let update = update.into();
        if !update.is_news(self.version()) {
            return false;
        }
        let (change, next) = match update {
            TableUpdate::Change(change) => (change, None),
            TableUpdate::Shared(change, table) if change.applies_to(self.version()) => (change, Some(table)),
            TableUpdate::Shared(_, table) | TableUpdate::Whole(table) => {
                (Arc::new(self.table.change_to(&table)), Some(table))
            }
        };
        self.follow(&change, next);
        true
    }

    /// Follows a change of the table, which makes `next` of it.
    fn follow(&mut self, change: &TableChange, next: Option<Arc<Table>>) {
        self.departed.clear();
        self.touched.clear();
        self.touches_keepers = false;
        let mut moved = Vec::new();
        for peer in &change.removed {
            self.note(*peer, None, &mut moved);
        }
        for member in &change.now.members {
            self.note(member.instance.peer, Some(member), &mut moved);
        }
        self.departed.sort_unstable_by_key(Hop::peer);
        match next {
            Some(table) => self.table = table,
            None => {
                Arc::make_mut(&mut self.table).apply(change);
            }
        }
        self.pair(&moved);
        let is_feeder = self.owner.is_some_and(|owner| owner.stage.is_none());
        self.moved = if is_feeder { moved } else { Vec::new() };
    }

    /// Notes that the entry of a member is to change, and adds the hops that come or go by that to `moved`.
    fn note(&mut self, peer: PeerId, now: Option<&Member>, moved: &mut Vec<Hop>) {
        let before = self.table.members().get(&peer);
        if let Some(before) = before {
            let hop = before.hop().filter(|hop| hop.stage.is_some());
            self.departed.extend(hop.filter(|_| now.and_then(Member::hop) != hop));
            if now.map(|member| member.instance) != Some(before.instance) {
                self.quarantine.succeeded(before.instance);
            }
        }
        let both = [before, now].into_iter().flatten();
        self.touched.extend(both.clone().filter_map(|member| member.state.stage()));
        self.touches_keepers |= both.clone().any(|member| matches!(member.state, MemberState::Keeping(_)));
        moved.extend(both.filter_map(working));
    }

    /// Pairs the hops that `moved` with the owner.
    fn pair(&mut self, moved: &[Hop]) {
        let Some(owner) = self.owner else { return };
        let next = StageIndex(owner.stage.map_or(0, |stage| stage.0.saturating_add(1)));
        let (pairing, of_stage) = (self.pairing(next), moved_in(moved, Some(next)));
        let pairs = |pairing: &Pairing, hop: &Hop| pairing.pairs(owner.peer(), hop.peer());
        self.downstream.follow(pairing, self.table.places().serving(next), &of_stage, pairs);
        let Some(stage) = owner.stage else { return };
        let before = stage.0.checked_sub(1).map(StageIndex);
        let (pairing, of_stage) = (self.pairing(stage), moved_in(moved, before));
        let pairs = |pairing: &Pairing, hop: &Hop| pairing.pairs(hop.peer(), owner.peer());
        self.upstream.follow(pairing, self.table.places().senders_to(stage), &of_stage, pairs);
    }

    /// The table taken over last.
    #[must_use]
    pub fn shared(&self) -> Arc<Table> {
        self.table.clone()
    }

    /// The table taken over last.
    #[must_use]
    pub fn membership(&self) -> Membership {
        self.table.membership()
    }

    /// Version of the table taken over last; 0 before the first.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.table.rest().version
    }

    /// The launch that the table taken over last is of; 0 before the first.
    #[must_use]
    pub fn launch(&self) -> u64 {
        self.table.rest().launch
    }

    /// All members, by peer id.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.table.members().values()
    }

    /// The member that is this start of this peer; `None` if another start is a member, or none.
    #[must_use]
    pub fn get(&self, instance: Instance) -> Option<&Member> {
        self.table.get(instance)
    }

    /// The start of `peer` that is a member, if any.
    #[must_use]
    pub fn instance(&self, peer: PeerId) -> Option<Instance> {
        self.table.members().get(&peer).map(|member| member.instance)
    }

    /// Address of a member's data plane.
    #[must_use]
    pub fn address(&self, peer: PeerId) -> Option<SocketAddr> {
        self.table.members().get(&peer).map(|member| member.address)
    }

    /// Replicas that serve `stage`, by peer id.
    pub fn serving(&self, stage: StageIndex) -> impl Iterator<Item = &Member> {
        self.entries(self.table.places().serving(stage))
    }

    /// Feeders, by peer id.
    pub fn feeders(&self) -> impl Iterator<Item = &Member> {
        self.entries(self.table.places().feeders())
    }

    fn entries<'a>(&'a self, hops: &'a BTreeSet<Hop>) -> impl Iterator<Item = &'a Member> {
        hops.iter().filter_map(|hop| self.table.members().get(&hop.peer()))
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
        !self.hops(stage).is_empty()
    }

    /// Whether every stage below `stages` is served.
    #[must_use]
    pub fn serves_all(&self, stages: u16) -> bool {
        (0..stages).all(|stage| self.serves(StageIndex(stage)))
    }

    /// Replicas that serve the narrowest of the first `stages` stages.
    #[must_use]
    pub fn width(&self, stages: u16) -> usize {
        (0..stages).map(|stage| self.hops(StageIndex(stage)).len()).min().unwrap_or(0)
    }

    /// The replicas of the next stage that the owner may hand microbatches to, by peer id.
    #[must_use]
    pub fn downstream(&self) -> &BTreeSet<Hop> {
        self.downstream.hops()
    }

    /// The replicas that [`downstream`](Self::downstream) lost and got with this table.
    pub(crate) fn downstream_changes(&self) -> (&[Hop], &[Hop]) {
        (self.downstream.left(), self.downstream.entered())
    }

    /// The peers that may hand microbatches to the owner: of the replicas before it, or of the feeders; by peer id.
    #[must_use]
    pub fn upstream(&self) -> &BTreeSet<Hop> {
        self.upstream.hops()
    }

    /// The expected number of peers that may hand microbatches to one replica of `stage`; at least 1.
    #[must_use]
    pub fn senders(&self, stage: StageIndex) -> u32 {
        let expected = self.pairing(stage).expected(self.table.places().senders_to(stage).len());
        u32::try_from(expected).unwrap_or(u32::MAX)
    }

    /// The replicas that serve `stage`, as hops, by peer id.
    #[must_use]
    pub fn hops(&self, stage: StageIndex) -> &BTreeSet<Hop> {
        self.table.places().serving(stage)
    }

    /// The replicas that the table before had placed, and that no longer have their place; by peer id.
    #[must_use]
    pub fn departed(&self) -> &[Hop] {
        &self.departed
    }

    /// The replicas and feeders that serve or feed since this table, or did until it, at the table of a feeder. One whose
    /// entry changed otherwise may be among them.
    pub(crate) fn moved(&self) -> &[Hop] {
        &self.moved
    }

    /// Whether the replicas of `stage`, loading or serving, are others than in the table before.
    #[must_use]
    pub fn touches(&self, stage: StageIndex) -> bool {
        self.touched.contains(&stage)
    }

    /// Whether the peers that may take the state of `stage`, placed there or keepers, are others than in the table before.
    #[must_use]
    pub fn touches_takers(&self, stage: StageIndex) -> bool {
        self.touches(stage) || self.touches_keepers
    }

    fn pairing(&self, stage: StageIndex) -> Pairing {
        Pairing::new(self.table.places().senders_to(stage).len(), self.hops(stage).len())
    }

    /// Whether this instance is a feeder.
    #[must_use]
    pub fn feeds(&self, instance: Instance) -> bool {
        self.get(instance).is_some_and(|member| member.state == MemberState::Feeding)
    }

    /// Every replica of every stage, loading or serving.
    #[must_use]
    pub fn replicas(&self) -> Vec<Hop> {
        self.table.members().values().filter_map(Member::hop).filter(|hop| hop.stage.is_some()).collect()
    }

    /// Every replica that the coordinator has placed on `stage`, loading or serving, by peer id.
    pub fn placed_on(&self, stage: StageIndex) -> impl Iterator<Item = Instance> {
        self.table.places().placed_on(stage)
    }

    /// The members that may take the state of `stage` from its replicas: the replicas placed on it, and keepers as far as
    /// the policy of the run allows; each by peer id.
    pub fn takers_of(&self, stage: StageIndex, policy: WeightsPolicy) -> impl Iterator<Item = Instance> {
        let keepers = self.table.places().keepers().iter();
        let keepers = keepers.filter(move |(_, kept)| policy.allows(*kept, stage));
        self.placed_on(stage).chain(keepers.map(|(keeper, _)| *keeper))
    }

    /// Whether weights of `stage` have been updated since the run began.
    #[must_use]
    pub fn is_trained(&self, stage: StageIndex) -> bool {
        self.table.rest().trained.contains(&stage)
    }

    /// Whether a replica may come back that holds the weights of `stage`.
    #[must_use]
    pub fn is_awaited(&self, stage: StageIndex) -> bool {
        self.table.rest().awaited.contains(&stage)
    }

    /// Whether this instance is a reader.
    #[must_use]
    pub fn reads(&self, instance: Instance) -> bool {
        self.get(instance).is_some_and(|member| member.state == MemberState::Reading)
    }

    /// Whether this instance is a keeper.
    #[must_use]
    pub fn is_keeper(&self, instance: Instance) -> bool {
        self.get(instance).is_some_and(|member| matches!(member.state, MemberState::Keeping(_)))
    }

    /// Whether a keeper gives the state of `stage`, which no replica serves.
    #[must_use]
    pub fn is_restorable(&self, stage: StageIndex) -> bool {
        self.table.rest().restorable.contains(&stage)
    }

    /// The keepers that may have the state of `stage`, by peer id.
    pub fn keepers_of(&self, stage: StageIndex) -> impl Iterator<Item = Instance> {
        let keepers = self.table.places().keepers().iter();
        let keepers = keepers.filter(move |(_, kept)| kept.is_none_or(|kept| kept == stage));
        keepers.map(|(keeper, _)| *keeper)
    }

    /// The ranges of ids that feeders decide about, by first id.
    #[must_use]
    pub fn leases(&self) -> &[LeasedRange] {
        &self.table.rest().leases
    }

    fn open_leases(&self) -> impl Iterator<Item = &LeasedRange> {
        self.leases().iter().filter(|leased| leased.is_open())
    }

    /// Whether several feeders have ids that are open.
    pub(crate) fn is_shared(&self) -> bool {
        let mut feeders = self.open_leases().map(|leased| leased.feeder);
        feeders.next().is_some_and(|first| feeders.any(|feeder| feeder != first))
    }

    /// The ids that `feeder` decides about, as ascending numbers.
    pub fn leased_by(&self, feeder: PeerId) -> impl Iterator<Item = Range<u64>> {
        self.open_leases().filter(move |leased| leased.feeder == feeder).map(|leased| leased.lease.ids())
    }

    /// The feeder that decides about this id, whether or not it is a member now; `None` if the id is not leased. Held-out
    /// text has the feeder of its block.
    #[must_use]
    pub fn lessee(&self, microbatch: MicrobatchId) -> Option<PeerId> {
        let leased = self.block_of(microbatch).filter(|leased| leased.is_open())?;
        let covers = microbatch.is_evaluation() || leased.lease.contains(microbatch);
        covers.then_some(leased.feeder)
    }

    /// Whether the microbatch has no feeder any more: its block is closed, or a successor has the block and the id was never
    /// given out.
    #[must_use]
    pub fn is_closed(&self, microbatch: MicrobatchId) -> bool {
        self.block_of(microbatch).is_some_and(|leased| {
            let was_given = microbatch.is_evaluation() || leased.lease.contains(microbatch);
            !leased.is_open() || (leased.lease.epoch > 0 && !was_given)
        })
    }

    /// The range of the block that the id belongs to.
    fn block_of(&self, microbatch: MicrobatchId) -> Option<&LeasedRange> {
        let block = microbatch.block();
        let place = self.leases().binary_search_by_key(&block, |leased| leased.lease.first.block()).ok()?;
        self.leases().get(place)
    }

    /// The lessee of this id, if it is a member.
    #[must_use]
    pub fn feeder_of(&self, microbatch: MicrobatchId) -> Option<Hop> {
        self.table.members().get(&self.lessee(microbatch)?).map(|member| Hop::feeder(member.instance))
    }

    /// The feeder that calls averaging rounds and measures by schedule: the member with the lowest range. Feeders and
    /// replicas read the same table, so all of them follow one clock.
    #[must_use]
    pub fn caller(&self) -> Option<PeerId> {
        self.open_leases().map(|leased| leased.feeder).find(|peer| self.table.members().contains_key(peer))
    }

    /// Quarantines a member that failed. An instance that is no member is ignored.
    pub fn quarantine(&mut self, now: Time, instance: Instance) {
        if self.get(instance).is_some() {
            self.quarantine.failed(now, instance);
        }
    }

    /// Whether an instance is in quarantine now.
    #[must_use]
    pub fn is_quarantined(&self, now: Time, instance: Instance) -> bool {
        self.quarantine.holds(now, instance)
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

/// The hops of `moved` that stand at this place of the pipeline.
fn moved_in(moved: &[Hop], stage: Option<StageIndex>) -> Vec<Hop> {
    moved.iter().filter(|hop| hop.stage == stage).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Incarnation;
    use crate::health::QUARANTINE_MIN;
    use crate::{Block, Lease};

    const OWNER: Hop = Hop::feeder(start(PeerId([0xEE; 32]), 1));
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

    fn replica(stage: u16, index: u16) -> Member {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&[stage.to_be_bytes(), index.to_be_bytes()].concat());
        member(PeerId(key), 1, MemberState::Serving(StageIndex(stage)))
    }

    #[test]
    fn a_sender_and_a_replica_agree_that_they_work_together() {
        let members: Vec<Member> =
            (0..2).flat_map(|stage| (0..300).map(move |index| replica(stage, index))).collect();
        let seen_by = |member: &Member| {
            let mut table = PeerTable::new(member.hop().unwrap());
            table.update(Membership { version: 1, members: members.clone(), ..Membership::default() });
            table
        };
        let (sender, next) = (&members[7], StageIndex(1));
        let table = seen_by(sender);
        let chosen = table.downstream();
        assert!((40..140).contains(&chosen.len()), "{}", chosen.len());
        assert_eq!(table.senders(next), 98);
        for replica in members.iter().filter(|member| member.state.stage() == Some(next)) {
            let hop = replica.hop().unwrap();
            let knows = seen_by(replica).upstream().contains(&sender.hop().unwrap());
            assert_eq!(knows, chosen.contains(&hop), "{hop:?}");
        }
    }

    #[test]
    fn a_table_names_the_replicas_that_lost_their_place() {
        let mut table = table(1, (0..3).map(|index| replica(0, index)).collect());
        let mut moved = replica(0, 1);
        moved.state = MemberState::Loading(StageIndex(1));
        let members = vec![replica(0, 0), moved];
        assert!(table.update(Membership { version: 2, members, ..Membership::default() }));
        let departed: Vec<Member> = vec![replica(0, 1), replica(0, 2)];
        assert_eq!(table.departed(), departed.iter().filter_map(Member::hop).collect::<Vec<_>>());
        assert!(table.serves_all(1) && !table.serves_all(2));
    }

    #[test]
    fn every_id_has_the_feeder_that_the_table_names() {
        let lease = |block: u32, count, epoch| Lease { first: Block(block).first(), count, epoch };
        let leases = vec![LeasedRange::new(lease(0, 40, 1), B), LeasedRange::new(lease(2, Block::IDS, 0), A)];
        let mut table = PeerTable::new(OWNER);
        let members = vec![member(A, 1, MemberState::Feeding)];
        table.update(Membership { version: 1, members, leases, ..Membership::default() });
        let id = |block: u32, index: u64| MicrobatchId(Block(block).first().0 + index);
        assert_eq!(
            [id(0, 39), id(0, 40), id(1, 0), id(2, 9)].map(|id| table.lessee(id)),
            [Some(B), None, None, Some(A)]
        );
        assert_eq!(table.lessee(MicrobatchId::evaluation(Block(0), 99)), Some(B));
        let closed = [id(0, 39), id(0, 40), id(2, 40), MicrobatchId::evaluation(Block(0), 99)]
            .map(|id| table.is_closed(id));
        assert_eq!(
            closed,
            [false, true, false, false],
            "of a block that was taken over, what was never given out"
        );
        assert_eq!((table.feeder_of(id(0, 1)), table.caller()), (None, Some(A)), "B is away");
        assert_eq!(table.feeder_of(id(2, 1)), Some(Hop::feeder(start(A, 1))));
        assert_eq!(table.leased_by(A).collect::<Vec<_>>(), [Block(2).ids()]);
    }

    #[test]
    fn a_quarantine_ends_by_time_by_a_message_or_by_a_restart() {
        let members = |incarnation| vec![member(A, incarnation, MemberState::Serving(StageIndex(0)))];
        let mut table = table(1, members(1));
        let (now, failed) = (Time(100), start(A, 1));
        table.quarantine(now, failed);
        assert!(table.is_quarantined(now, failed));
        assert_eq!(table.next_release(now), Some(now + QUARANTINE_MIN));
        assert!(!table.is_quarantined(now + QUARANTINE_MIN, failed));
        table.heard(failed);
        assert!(!table.is_quarantined(now, failed));
        table.quarantine(now, failed);
        assert!(table.update(Membership { version: 2, members: members(2), ..Membership::default() }));
        assert!(!table.is_quarantined(now, failed) && !table.is_quarantined(now, start(A, 2)));
        assert_eq!(table.next_release(now), None);
    }
}
