//! What neighbours downstream last said of themselves, and which of them may be handed a microbatch.

use std::collections::BTreeMap;

use crate::router::{Candidate, Router};
use crate::{Beat, Duration, Hop};

/// The latest beats, by sender.
#[derive(Clone, Debug, Default)]
pub(crate) struct Neighbours {
    beats: BTreeMap<Hop, Beat>,
}

impl Neighbours {
    pub(crate) fn heard(&mut self, sender: Hop, beat: Beat) {
        self.beats.insert(sender, beat);
    }

    /// It said that no slot is free: nothing more until its next beat.
    pub(crate) fn busy(&mut self, hop: Hop) {
        self.beats.entry(hop).or_default().credit = 0;
    }

    pub(crate) fn retain(&mut self, known: impl Fn(&Hop) -> bool) {
        self.beats.retain(|hop, _| known(hop));
    }

    /// Those of `hops` with a credit left. Of one that has not said how much it takes, one microbatch is tried.
    pub(crate) fn candidates(&self, hops: &[Hop], router: &dyn Router) -> Vec<Candidate> {
        let free = |hop: &&Hop| {
            let credit = self.beats.get(*hop).map_or(1, |beat| beat.credit);
            router.resident(hop) < credit
        };
        hops.iter().filter(free).map(|&hop| self.candidate(hop)).collect()
    }

    fn candidate(&self, hop: Hop) -> Candidate {
        let service = self.beats.get(&hop).map(|beat| beat.service).filter(|service| !service.is_zero());
        Candidate { hop, service, rtt: Duration::ZERO }
    }
}
