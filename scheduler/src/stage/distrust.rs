//! Upstream peers of which this replica takes nothing of a feeder, for that feeder found that what they handed over is
//! forged. The feeder expects that of an honest replica: who goes on showing false proofs of one upstream lies. A feeder
//! may lie as well, so its word counts for its own microbatches only.

use std::collections::BTreeMap;

use crate::{Duration, PeerId, Time};

/// Time without forwards from a peer that handed over something forged.
pub(super) const DISTRUST: Duration = Duration::from_secs(60);

/// Times after which a peer is never trusted again.
const TIMES_MAX: u32 = 2;

/// The peers that are not trusted, by feeder; the owner [`keep`](Distrust::keep)s members only.
#[derive(Clone, Debug, Default)]
pub(super) struct Distrust {
    by_feeder: BTreeMap<(PeerId, PeerId), Spell>,
}

#[derive(Clone, Copy, Debug)]
struct Spell {
    times: u32,
    until: Time,
}

impl Distrust {
    /// The feeder says that the peer handed over something forged. What it handed over before that is known counts once.
    pub(super) fn note(&mut self, now: Time, feeder: PeerId, peer: PeerId) {
        let spell = self.by_feeder.entry((feeder, peer)).or_insert(Spell { times: 0, until: now });
        if spell.until <= now {
            *spell = Spell { times: spell.times + 1, until: now + DISTRUST };
        }
    }

    /// Whether nothing of the feeder is taken from the peer.
    pub(super) fn holds(&self, now: Time, feeder: PeerId, peer: PeerId) -> bool {
        self.by_feeder.get(&(feeder, peer)).is_some_and(|spell| spell.until > now || spell.times >= TIMES_MAX)
    }

    pub(super) fn keep(&mut self, is_member: impl Fn(PeerId) -> bool) {
        self.by_feeder.retain(|&(feeder, peer), _| is_member(feeder) && is_member(peer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PeerId = PeerId([1; 32]);
    const FEEDER: PeerId = PeerId([2; 32]);

    #[test]
    fn a_peer_is_trusted_again_once_and_then_never() {
        let mut distrust = Distrust::default();
        let at = |minutes: u32| Time::default() + minutes * DISTRUST;
        assert!(!distrust.holds(at(0), FEEDER, PEER));
        (0..5).for_each(|_| distrust.note(at(0), FEEDER, PEER));
        assert!(distrust.holds(at(0), FEEDER, PEER) && !distrust.holds(at(1), FEEDER, PEER));
        distrust.note(at(1), FEEDER, PEER);
        assert!(distrust.holds(at(1), FEEDER, PEER) && distrust.holds(at(1_000), FEEDER, PEER));
        assert!(!distrust.holds(at(1), PEER, PEER), "of another feeder");
        distrust.keep(|_| false);
        assert!(!distrust.holds(at(1), FEEDER, PEER));
    }
}
