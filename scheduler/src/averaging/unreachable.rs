//! Members that cannot be reached, but are still in the list.

use std::collections::BTreeMap;

use crate::{Duration, Instance, Time};

/// A member is left out this long after it was lost: by then the coordinator has noticed the death, or the member
/// lives.
pub(super) const LEFT_OUT_FOR: Duration = Duration::from_secs(15);

/// The members that a new round counts as absent.
#[derive(Debug, Default)]
pub(super) struct Unreachable {
    until: BTreeMap<Instance, Time>,
}

impl Unreachable {
    pub(super) fn insert(&mut self, now: Time, instance: Instance) {
        self.until.insert(instance, now + LEFT_OUT_FOR);
    }

    /// A message of the member arrived.
    pub(super) fn heard(&mut self, instance: Instance) {
        self.until.remove(&instance);
    }

    pub(super) fn contains(&self, now: Time, instance: Instance) -> bool {
        self.until.get(&instance).is_some_and(|&until| now < until)
    }

    pub(super) fn retain(&mut self, is_member: impl Fn(&Instance) -> bool) {
        self.until.retain(|instance, _| is_member(instance));
    }
}
