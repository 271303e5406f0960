//! Upstream peers of which this replica takes nothing, for the feeder found that what they handed over is forged. The
//! feeder expects that of an honest replica: who goes on showing false proofs of one upstream lies.

use std::collections::BTreeMap;

use crate::{Duration, PeerId, Time};

/// Time without forwards from a peer that handed over something forged.
pub(super) const DISTRUST: Duration = Duration::from_secs(60);

/// Times after which a peer is never trusted again.
const TIMES_MAX: u32 = 2;

/// The peers that are not trusted; the owner [`keep`](Distrust::keep)s members only.
#[derive(Clone, Debug, Default)]
pub(super) struct Distrust {
    by_peer: BTreeMap<PeerId, Spell>,
}

#[derive(Clone, Copy, Debug)]
struct Spell {
    times: u32,
    until: Time,
}

impl Distrust {
    /// The peer handed over something forged. What it handed over before that is known counts once.
    pub(super) fn note(&mut self, now: Time, peer: PeerId) {
        let spell = self.by_peer.entry(peer).or_insert(Spell { times: 0, until: now });
        if spell.until <= now {
            *spell = Spell { times: spell.times + 1, until: now + DISTRUST };
        }
    }

    pub(super) fn holds(&self, now: Time, peer: PeerId) -> bool {
        self.by_peer.get(&peer).is_some_and(|spell| spell.until > now || spell.times >= TIMES_MAX)
    }

    pub(super) fn keep(&mut self, is_member: impl Fn(PeerId) -> bool) {
        self.by_peer.retain(|&peer, _| is_member(peer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PeerId = PeerId([1; 32]);

    #[test]
    fn a_peer_is_trusted_again_once_and_then_never() {
        let mut distrust = Distrust::default();
        let at = |minutes: u32| Time::default() + minutes * DISTRUST;
        assert!(!distrust.holds(at(0), PEER));
        (0..5).for_each(|_| distrust.note(at(0), PEER));
        assert!(distrust.holds(at(0), PEER) && !distrust.holds(at(1), PEER));
        distrust.note(at(1), PEER);
        assert!(distrust.holds(at(1), PEER) && distrust.holds(at(1_000), PEER));
        distrust.keep(|_| false);
        assert!(!distrust.holds(at(1), PEER));
    }
}
