//! Fixtures for the tests of routers.

use crate::router::{Candidate, Choice};
use crate::{Duration, Hop, Incarnation, Instance, PeerId, StageIndex};

/// Replica number `index` of stage 1; a higher index is a higher peer id.
pub(super) fn hop(index: u16) -> Hop {
    let mut key = [0; 32];
    key[..2].copy_from_slice(&index.to_be_bytes());
    Hop::replica(StageIndex(1), Instance::new(PeerId(key), Incarnation(1)))
}

/// A replica without a round trip that computes a forward in `service_ms`.
pub(super) fn candidate(index: u16, service_ms: u64) -> Candidate {
    let service = Some(Duration::from_millis(service_ms));
    Candidate { hop: hop(index), service, rtt: Duration::ZERO }
}

/// The choice of the only sender.
pub(super) fn alone(candidates: &[Candidate]) -> Choice<'_> {
    Choice { candidates, senders: 1 }
}
