//! Proof that a replica is on the route of a microbatch.
//!
//! The feeder makes a key for the replica of stage 0 that it sends a microbatch to, and each replica derives the key of
//! the replica that it hands the microbatch to. A replica that claims, refuses or evaluates a microbatch shows its key and
//! its route; the feeder derives the same chain. A peer that was never handed the microbatch knows no key of it, so its
//! word about it is worth nothing. What a replica does with a microbatch that it was handed, a key cannot tell.
//!
//! A key names the peer, not its start: a message to a start that is gone reaches the next one, which is as honest. Grants
//! tell starts apart.

use std::fmt;

use crate::{Hop, MicrobatchId};

/// Length of a [`RouteKey`], bytes.
pub const ROUTE_KEY_BYTES: usize = 16;

/// The secret that a feeder makes its keys from. It must outlive a restart of the feeder.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct RouteSecret(pub [u8; 32]);

impl fmt::Debug for RouteSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RouteSecret")
    }
}

/// The key of one hop on the route of a microbatch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteKey(pub [u8; ROUTE_KEY_BYTES]);

impl RouteKey {
    /// The key of a replica of stage 0.
    #[must_use]
    pub fn first(secret: &RouteSecret, microbatch: MicrobatchId, to: Hop) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(&secret.0);
        hasher.update(&microbatch.0.to_be_bytes());
        Self::finish(hasher, to)
    }

    /// The key of the next hop.
    #[must_use]
    pub fn next(&self, to: Hop) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        Self::finish(hasher, to)
    }

    fn finish(mut hasher: blake3::Hasher, to: Hop) -> Self {
        hasher.update(&to.stage.map_or(u16::MAX, |stage| stage.0).to_be_bytes());
        hasher.update(&to.instance.peer.0);
        let mut key = [0; ROUTE_KEY_BYTES];
        hasher.finalize_xof().fill(&mut key);
        Self(key)
    }
}

/// What a replica shows to the feeder of a microbatch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteProof {
    /// The microbatch.
    pub microbatch: MicrobatchId,
    /// The hops before the replica, the feeder first.
    pub route: Vec<Hop>,
    /// The key of the replica.
    pub key: RouteKey,
}

impl RouteProof {
    /// Whether `shown_by` was handed the microbatch on this route, which begins at the feeder with this secret.
    #[must_use]
    pub fn holds(&self, secret: &RouteSecret, shown_by: Hop) -> bool {
        let hops = self.route.iter().skip(1).copied().chain([shown_by]);
        let stages = (0..).map(|stage| Some(crate::StageIndex(stage)));
        if !hops.clone().map(|hop| hop.stage).eq(stages.take(self.route.len())) {
            return false;
        }
        let key = hops.fold(None, |key: Option<RouteKey>, hop| {
            Some(key.map_or_else(|| RouteKey::first(secret, self.microbatch, hop), |key| key.next(hop)))
        });
        key == Some(self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{a, b, feeder, restarted};

    const ID: MicrobatchId = MicrobatchId(7);
    const SECRET: RouteSecret = RouteSecret([3; 32]);

    fn key(hops: &[Hop]) -> RouteKey {
        let first = RouteKey::first(&SECRET, ID, hops[0]);
        hops[1..].iter().fold(first, |key, &hop| key.next(hop))
    }

    fn proof(before: &[Hop], key: RouteKey) -> RouteProof {
        let route = std::iter::once(feeder()).chain(before.iter().copied()).collect();
        RouteProof { microbatch: ID, route, key }
    }

    #[test]
    fn every_hop_of_a_route_can_prove_it() {
        let hops = [a(0), b(1), a(2)];
        for stage in 0..hops.len() {
            let shown = proof(&hops[..stage], key(&hops[..=stage]));
            assert!(shown.holds(&SECRET, hops[stage]), "{stage}");
        }
    }

    #[test]
    fn a_replica_that_starts_again_can_prove_what_was_addressed_to_its_former_start() {
        let sound = proof(&[a(0)], key(&[a(0), a(1)]));
        assert!(sound.holds(&SECRET, restarted(a(1))));
    }

    #[test]
    fn no_other_replica_route_microbatch_or_feeder_passes() {
        let sound = proof(&[a(0)], key(&[a(0), a(1)]));
        assert!(sound.holds(&SECRET, a(1)));
        assert!(!sound.holds(&SECRET, b(1)));
        assert!(!sound.holds(&RouteSecret::default(), a(1)));
        let others = [
            RouteProof { microbatch: MicrobatchId(8), ..sound.clone() },
            RouteProof { route: vec![feeder(), b(0)], ..sound.clone() },
            RouteProof { route: vec![feeder()], ..sound.clone() },
            RouteProof { route: Vec::new(), ..sound.clone() },
            RouteProof { key: key(&[a(0)]), ..sound },
        ];
        assert!(others.iter().all(|other| !other.holds(&SECRET, a(1))));
    }
}
