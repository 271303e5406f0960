//! Whose connections are accepted.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};

use swarmline_scheduler::PeerId;

/// Whose keys are accepted. Clones share one rule, so that a change reaches every server at once; connections of a
/// peer that is trusted no longer are closed when it next sends something.
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
    /// Any key; the peer must still prove that it holds it.
    #[must_use]
    pub fn anyone() -> Self {
        Self { rule: Arc::new(RwLock::new(Rule::Anyone)) }
    }

    /// These keys only.
    #[must_use]
    pub fn keys(keys: impl IntoIterator<Item = PeerId>) -> Self {
        Self { rule: Arc::new(RwLock::new(Rule::Keys(keys.into_iter().collect()))) }
    }

    /// From now on these keys only, for every clone.
    pub fn set_keys(&self, keys: impl IntoIterator<Item = PeerId>) {
        let keys = keys.into_iter().collect();
        *self.rule.write().unwrap_or_else(PoisonError::into_inner) = Rule::Keys(keys);
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
