//! Peers that are caught lying. A false proof has two possible authors: the replica that shows it, and the replica that it
//! says it was handed the microbatch by. Both are noted, and the liar is the one of whom more is false than sound.

use std::collections::{BTreeMap, BTreeSet};

use crate::PeerId;

/// False statements that a peer takes part in before it is struck.
const FALSE_MAX: u32 = 8;

/// Statements of one peer remembered; beyond that old ones count half.
const REMEMBERED: u32 = 1_024;

/// Statements about microbatches, by peer.
#[derive(Clone, Debug, Default)]
pub(super) struct Suspicion {
    by_peer: BTreeMap<PeerId, Statements>,
    struck: BTreeSet<PeerId>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Statements {
    sound: u32,
    false_ones: u32,
}

impl Suspicion {
    /// A statement of the peer proved sound.
    pub(super) fn sound(&mut self, peer: PeerId) {
        self.note(peer, |statements| statements.sound += 1);
    }

    /// The peer may be the author of a false statement. Returns whether it is struck for it.
    pub(super) fn doubt(&mut self, peer: PeerId) -> bool {
        let statements = self.note(peer, |statements| statements.false_ones += 1);
        let is_liar = statements.false_ones >= FALSE_MAX && statements.false_ones > statements.sound;
        is_liar && self.struck.insert(peer)
    }

    pub(super) fn is_struck(&self, peer: PeerId) -> bool {
        self.struck.contains(&peer)
    }

    /// Forgets a peer that has left.
    pub(super) fn forget(&mut self, peer: PeerId) {
        self.by_peer.remove(&peer);
        self.struck.remove(&peer);
    }

    fn note(&mut self, peer: PeerId, change: impl FnOnce(&mut Statements)) -> Statements {
        let statements = self.by_peer.entry(peer).or_default();
        change(statements);
        if statements.sound + statements.false_ones > REMEMBERED {
            *statements = Statements { sound: statements.sound / 2, false_ones: statements.false_ones / 2 };
        }
        *statements
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIAR: PeerId = PeerId([1; 32]);
    const HONEST: PeerId = PeerId([2; 32]);

    #[test]
    fn the_liar_is_struck_once_and_the_peer_that_it_names_is_not() {
        let mut suspicion = Suspicion::default();
        (0..20).for_each(|_| suspicion.sound(HONEST));
        let struck: Vec<_> = (0..20).filter(|_| suspicion.doubt(LIAR)).collect();
        assert_eq!(struck, [FALSE_MAX as i32 - 1]);
        assert!((0..20).all(|_| !suspicion.doubt(HONEST)));
        assert!(suspicion.is_struck(LIAR) && !suspicion.is_struck(HONEST));
        suspicion.forget(LIAR);
        assert!(!suspicion.is_struck(LIAR));
    }

    #[test]
    fn old_statements_fade() {
        let mut suspicion = Suspicion::default();
        (0..100_000).for_each(|_| suspicion.sound(LIAR));
        assert!((0..3 * REMEMBERED).any(|_| suspicion.doubt(LIAR)));
    }
}
