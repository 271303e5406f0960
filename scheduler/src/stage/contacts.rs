//! The neighbours that a replica exchanges heartbeats with.

use std::collections::BTreeSet;

use crate::Hop;

/// The peers that can hand microbatches to this replica, and the replicas that it can hand them to. They are the pairs of
/// the routing and the peers that have work of each other, so the heartbeats of a replica do not grow with the swarm.
#[derive(Clone, Debug, Default)]
pub(super) struct Contacts {
    senders: BTreeSet<Hop>,
    receivers: BTreeSet<Hop>,
    /// Contacts that wait for a heartbeat of their own before the next one to all.
    waiting: BTreeSet<Hop>,
}

impl Contacts {
    /// Replaces the contacts after a change of the table. Only the new ones wait for a heartbeat.
    pub(super) fn renew(&mut self, senders: BTreeSet<Hop>, receivers: BTreeSet<Hop>) {
        let known = |hop: &&Hop| self.senders.contains(*hop) || self.receivers.contains(*hop);
        let newcomers: BTreeSet<Hop> =
            senders.iter().chain(&receivers).filter(|hop| !known(hop)).copied().collect();
        self.waiting.retain(|hop| senders.contains(hop) || receivers.contains(hop));
        self.waiting.extend(newcomers);
        (self.senders, self.receivers) = (senders, receivers);
    }

    /// A microbatch came from `sender`. Returns whether that is a new contact.
    pub(super) fn meet(&mut self, sender: Hop) -> bool {
        let is_new = self.senders.insert(sender);
        if is_new {
            self.waiting.insert(sender);
        }
        is_new
    }

    /// The contact needs a heartbeat at once.
    pub(super) fn hurry(&mut self, contact: Hop) {
        self.waiting.insert(contact);
    }

    /// The peers that can hand microbatches to this replica.
    pub(super) fn senders(&self) -> &BTreeSet<Hop> {
        &self.senders
    }

    /// The replicas that this replica can hand microbatches to.
    pub(super) fn receivers(&self) -> &BTreeSet<Hop> {
        &self.receivers
    }

    /// All contacts, which need not wait any longer.
    pub(super) fn take_waiting(&mut self) -> BTreeSet<Hop> {
        std::mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{a, b, feeder};

    #[test]
    fn only_new_contacts_wait_for_a_heartbeat() {
        let mut contacts = Contacts::default();
        contacts.renew([a(0)].into(), [a(2)].into());
        assert_eq!(contacts.take_waiting(), [a(0), a(2)].into());
        contacts.renew([a(0), b(0)].into(), [a(2)].into());
        assert_eq!(contacts.take_waiting(), [b(0)].into());
        contacts.renew([a(0)].into(), [].into());
        assert!(contacts.meet(feeder()) && !contacts.meet(a(0)));
        assert_eq!(contacts.take_waiting(), [feeder()].into());
    }
}
