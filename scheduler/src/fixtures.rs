//! Who takes part in the stories of single machines.

use std::net::SocketAddr;

use crate::{Hop, Incarnation, Member, PeerId, StageIndex, Standing};

/// The feeder.
pub(crate) fn feeder() -> Hop {
    Hop { stage: None, peer: PeerId([0; 32]), incarnation: Incarnation(1) }
}

/// One replica of a stage.
pub(crate) fn a(stage: u16) -> Hop {
    replica(stage, 1)
}

/// Another one.
pub(crate) fn b(stage: u16) -> Hop {
    replica(stage, 101)
}

fn replica(stage: u16, key: u16) -> Hop {
    let peer = PeerId([u8::try_from(stage + key).unwrap(); 32]);
    Hop { stage: Some(StageIndex(stage)), peer, incarnation: Incarnation(1) }
}

/// The next start of the same peer.
pub(crate) fn restarted(hop: Hop) -> Hop {
    Hop { incarnation: Incarnation(hop.incarnation.0 + 1), ..hop }
}

/// How the coordinator's table lists it.
pub(crate) fn member(hop: Hop) -> Member {
    Member {
        peer: hop.peer,
        incarnation: hop.incarnation,
        standing: hop.stage.map_or(Standing::Feeding, Standing::Serving),
        address: SocketAddr::from(([127, 0, 0, 1], 4_000)),
    }
}
