//! A swarm in the middle of a run: its peers, spread evenly over the stages.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use swarmline_scheduler::{
    BlockTally, Heartbeat, Hop, Incarnation, Instance, Lease, LeasedRange, Member, MemberState, Membership,
    MicrobatchId, PeerId, Rng, StageIndex, TableChange, TableUpdate,
};

/// Peers of the swarms measured.
pub(super) const PEERS: [usize; 5] = [64, 256, 1_024, 4_096, 10_000];
/// Stages of each of them.
pub(super) const STAGES: u16 = 8;
/// Time that a replica takes for a microbatch, forward and backward.
pub(super) const MICROBATCH: Duration = Duration::from_millis(300);

/// The replicas of a run and its feeder.
pub(super) struct Swarm {
    pub(super) feeder: Hop,
    /// By stage.
    pub(super) replicas: Vec<Vec<Hop>>,
    by_peer: BTreeMap<PeerId, Hop>,
}

impl Swarm {
    pub(super) fn new(peers: usize) -> Self {
        let mut rng = Rng::new(1);
        let each = peers / usize::from(STAGES);
        let replicas: Vec<Vec<Hop>> = (0..STAGES)
            .map(|stage| (0..each).map(|_| Hop::replica(StageIndex(stage), instance(&mut rng))).collect())
            .collect();
        let by_peer = replicas.iter().flatten().map(|&hop| (hop.peer(), hop)).collect();
        Self { feeder: Hop::feeder(instance(&mut rng)), replicas, by_peer }
    }

    /// Time between two microbatches, if every replica computes all the time.
    pub(super) fn pace(&self) -> Duration {
        MICROBATCH / u32::try_from(self.replicas[0].len()).expect("few replicas")
    }

    pub(super) fn replica(&self, peer: PeerId) -> Option<Hop> {
        self.by_peer.get(&peer).copied()
    }

    /// A replica of each stage of `stages`, another one for each `turn`.
    pub(super) fn path(&self, stages: std::ops::Range<u16>, turn: u64) -> Vec<Hop> {
        let pick = |stage: u16| {
            let replicas = &self.replicas[usize::from(stage)];
            replicas[usize::try_from(turn).expect("small") % replicas.len()]
        };
        stages.rev().map(pick).collect()
    }

    pub(super) fn members(&self) -> Vec<Member> {
        let mut hops: Vec<Hop> = self.replicas.iter().flatten().copied().chain([self.feeder]).collect();
        hops.sort_by_key(Hop::peer);
        hops.into_iter().map(member).collect()
    }

    pub(super) fn membership(&self) -> Membership {
        let ids = MicrobatchId(0).block().ids();
        let lease = Lease { first: MicrobatchId(ids.start), count: ids.end - ids.start, epoch: 0 };
        let tally = BlockTally::new(lease.first.block());
        let leases = vec![LeasedRange { lease, feeder: self.feeder.peer(), tally }];
        Membership { version: 1, members: self.members(), leases, ..Membership::default() }
    }
}

/// The changes of a table that one more member enters and leaves in turn.
pub(super) struct Changes {
    /// The table without its members.
    rest: Membership,
    joiner: Member,
    is_member: bool,
}

impl Changes {
    /// Changes of this table, by a replica of `stage`.
    pub(super) fn new(table: &Membership, stage: StageIndex) -> Self {
        let rest = Membership { members: Vec::new(), ..table.clone() };
        let joiner = member(Hop::replica(stage, instance(&mut Rng::new(2))));
        Self { rest, joiner, is_member: false }
    }
}

impl Iterator for Changes {
    type Item = TableUpdate;

    fn next(&mut self) -> Option<TableUpdate> {
        let base = self.rest.version;
        self.rest.version += 1;
        self.is_member = !self.is_member;
        let (removed, members) = if self.is_member {
            (Vec::new(), vec![self.joiner.clone()])
        } else {
            (vec![self.joiner.instance.peer], Vec::new())
        };
        let now = Membership { members, ..self.rest.clone() };
        Some(TableUpdate::Change(Arc::new(TableChange { base, removed, now })))
    }
}

pub(super) fn instance(rng: &mut Rng) -> Instance {
    let mut key = [0; 32];
    key.fill_with(|| rng.next_u64().to_le_bytes()[0]);
    Instance::new(PeerId(key), Incarnation(1))
}

pub(super) fn member(hop: Hop) -> Member {
    Member {
        instance: hop.instance,
        state: hop.stage.map_or(MemberState::Feeding, MemberState::Serving),
        address: address(),
    }
}

pub(super) fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 4_000))
}

/// The heartbeat of a replica that has computed `counter` jobs and has room.
pub(super) fn heartbeat(counter: u64) -> Heartbeat {
    let service = Some(MICROBATCH / 3);
    Heartbeat { counter, service, credit: 1_000, ..Heartbeat::default() }
}
