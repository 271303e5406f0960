//! Peers for the tests of single machines.

use std::net::SocketAddr;

use crate::{Block, Hop, Incarnation, Instance, Lease, LeasedRange, Member, MemberState, PeerId, StageIndex};

/// The feeder of every test.
pub(crate) fn feeder() -> Hop {
    Hop::feeder(Instance::new(PeerId([0; 32]), Incarnation(1)))
}

/// The first replica of a stage.
pub(crate) fn a(stage: u16) -> Hop {
    replica(stage, 1)
}

/// The second replica of a stage.
pub(crate) fn b(stage: u16) -> Hop {
    replica(stage, 101)
}

fn replica(stage: u16, key: u16) -> Hop {
    let peer = PeerId([u8::try_from(stage + key).unwrap(); 32]);
    Hop::replica(StageIndex(stage), Instance::new(peer, Incarnation(1)))
}

/// The next start of the same peer.
pub(crate) fn restarted(hop: Hop) -> Hop {
    let Instance { peer, incarnation } = hop.instance;
    Hop { instance: Instance::new(peer, Incarnation(incarnation.0 + 1)), ..hop }
}

/// The entry of `hop` in the coordinator's table.
pub(crate) fn member(hop: Hop) -> Member {
    Member {
        instance: hop.instance,
        state: hop.stage.map_or(MemberState::Feeding, MemberState::Serving),
        address: SocketAddr::from(([127, 0, 0, 1], 4_000)),
    }
}

/// The first block belongs to [`feeder`].
pub(crate) fn leases() -> Vec<LeasedRange> {
    let lease = Lease { first: Block(0).first(), count: Block::IDS, epoch: 0 };
    vec![LeasedRange::new(lease, feeder().peer())]
}
