//! The keys whose connections are accepted.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};

use swarmline_scheduler::PeerId;

/// The rule that accepts keys. Clones share the rule, so a change reaches every server at once. The connection of a
/// peer that is no longer trusted is closed at its next frame.
#[derive(Clone, Debug)]
pub struct Trust {
    rule: Arc<RwLock<Rule>>,
}

#[derive(Debug)]
enum Rule {
    Anyone,
    Keys(BTreeSet<PeerId>),
}

impl Trust {
    /// Accepts any key that the peer proves.
    #[must_use]
    pub fn anyone() -> Self {
        Self { rule: Arc::new(RwLock::new(Rule::Anyone)) }
    }

    /// Accepts these keys only.
    #[must_use]
    pub fn keys(keys: impl IntoIterator<Item = PeerId>) -> Self {
        Self { rule: Arc::new(RwLock::new(Rule::Keys(keys.into_iter().collect()))) }
    }

    /// Accepts these keys only from now on, in every clone.
    pub fn set_keys(&self, keys: impl IntoIterator<Item = PeerId>) {
        let keys = keys.into_iter().collect();
        *self.rule.write().unwrap_or_else(PoisonError::into_inner) = Rule::Keys(keys);
    }

    /// Accepts the keys `added` too from now on, and `removed` no more. A rule that accepts any key stays as it is.
    pub fn change_keys(
        &self,
        removed: impl IntoIterator<Item = PeerId>,
        added: impl IntoIterator<Item = PeerId>,
    ) {
        if let Rule::Keys(keys) = &mut *self.rule.write().unwrap_or_else(PoisonError::into_inner) {
            removed.into_iter().for_each(|key| {
                keys.remove(&key);
            });
            keys.extend(added);
        }
    }

    /// Whether `peer` is accepted now.
    #[must_use]
    pub fn admits(&self, peer: &PeerId) -> bool {
        match &*self.rule.read().unwrap_or_else(PoisonError::into_inner) {
            Rule::Anyone => true,
            Rule::Keys(keys) => keys.contains(peer),
        }
    }
}
