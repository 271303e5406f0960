//! Weighs replicas by the microbatches they have not returned: the default.

use crate::rng::Rng;
use crate::router::{Candidate, Choice, Outstanding, Router, RouterFactory};
use crate::{Duration, Hop, Time};

/// Forward and backward together cost about three forwards.
const FORWARDS_PER_MICROBATCH: u128 = 3;

/// Shortest service time that counts. A replica that reports less would have a score near zero, however many
/// microbatches it has.
const SERVICE_MIN: Duration = Duration::from_micros(1);

/// Settings of [`LeastOutstanding`].
#[derive(Clone, Copy, Debug)]
pub struct LeastOutstandingConfig {
    /// Candidates whose score is at most this many percent above the best are as good as the best. Default 10.
    pub tolerance_percent: u32,
}

impl Default for LeastOutstandingConfig {
    fn default() -> Self {
        Self { tolerance_percent: 10 }
    }
}

impl RouterFactory for LeastOutstandingConfig {
    fn build(&self, seed: u64) -> Box<dyn Router> {
        Box::new(LeastOutstanding {
            config: *self,
            rng: Rng::new(seed),
            outstanding: Outstanding::default(),
            scores: Vec::new(),
        })
    }
}

/// Draws among the replicas that would return a microbatch soonest.
///
/// ```text
/// score(q) = (senders * outstanding(q) + 1) * 3 * service(q) + rtt(q)
/// ```
///
/// `outstanding(q)` are the microbatches that this sender handed to `q` and has not got back; the other senders are
/// assumed to have handed it as many. Only a returned gradient counts, not an accepted or quickly answered forward, so
/// a replica that takes microbatches and returns none soon has the worst score.
///
/// A replica of unknown service time counts as fast as the fastest known replica, and gets at most one microbatch of
/// this sender: enough to learn the time, and no herd.
#[derive(Clone, Debug)]
pub struct LeastOutstanding {
    config: LeastOutstandingConfig,
    rng: Rng,
    outstanding: Outstanding,
    /// Scratch space of a decision, kept for its allocation.
    scores: Vec<(u128, Hop)>,
}

impl LeastOutstanding {
    fn score(&self, candidate: &Candidate, senders: u32, fastest: Duration) -> Option<u128> {
        let outstanding = self.outstanding.of(&candidate.hop);
        if candidate.service.is_none() && outstanding > 0 {
            return None;
        }
        let service = candidate.service.unwrap_or(fastest).max(SERVICE_MIN).as_nanos();
        let queue = u128::from(senders.max(1)) * u128::from(outstanding) + 1;
        let wait = queue.saturating_mul(FORWARDS_PER_MICROBATCH).saturating_mul(service);
        // The activation goes there, and the gradient comes back.
        Some(wait.saturating_add(candidate.rtt.as_nanos()))
    }
}

impl Router for LeastOutstanding {
    fn choose(&mut self, _now: Time, choice: &Choice<'_>) -> Option<Hop> {
        let fastest = choice.candidates.iter().filter_map(|candidate| candidate.service).min();
        let fastest = fastest.unwrap_or(SERVICE_MIN);
        let mut scores = std::mem::take(&mut self.scores);
        scores.clear();
        scores.extend(
            choice.candidates.iter().filter_map(|candidate| {
                Some((self.score(candidate, choice.senders, fastest)?, candidate.hop))
            }),
        );
        let best = scores.iter().map(|(score, _)| *score).min().unwrap_or(0);
        let limit =
            best.saturating_add((best / 100).saturating_mul(u128::from(self.config.tolerance_percent)));
        scores.retain(|(score, _)| *score <= limit);
        let chosen = self.rng.pick(&scores).map(|(_, hop)| *hop);
        self.scores = scores;
        chosen
    }

    fn outstanding(&self) -> &Outstanding {
        &self.outstanding
    }

    fn outstanding_mut(&mut self) -> &mut Outstanding {
        &mut self.outstanding
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::MicrobatchId;
    use crate::router::Completion;
    use crate::router::fixtures::{alone, candidate, hop};

    const NOW: Time = Time(0);

    fn drawn(router: &mut dyn Router, choice: &Choice<'_>) -> BTreeSet<Hop> {
        (0..100).filter_map(|_| router.choose(NOW, choice)).collect()
    }

    #[test]
    fn draws_among_those_within_a_tenth_of_the_best() {
        let candidates = [candidate(1, 100), candidate(2, 110), candidate(3, 111)];
        let mut router = LeastOutstandingConfig::default().build(1);
        assert_eq!(drawn(&mut *router, &alone(&candidates)), [hop(1), hop(2)].into());
        assert_eq!(router.choose(NOW, &alone(&[])), None);
    }

    #[test]
    fn a_microbatch_not_returned_weighs_as_much_as_there_are_senders() {
        let candidates = [candidate(1, 100), candidate(2, 250)];
        let mut router = LeastOutstandingConfig::default().build(1);
        router.on_sent(NOW, hop(1), MicrobatchId(0));
        assert_eq!(drawn(&mut *router, &alone(&candidates)), [hop(1)].into());
        let among_two = Choice { candidates: &candidates, senders: 2 };
        assert_eq!(drawn(&mut *router, &among_two), [hop(2)].into());
        router.on_completed(NOW, hop(1), MicrobatchId(0), Completion::Returned);
        assert_eq!(drawn(&mut *router, &among_two), [hop(1)].into());
    }

    #[test]
    fn a_round_trip_counts() {
        let far = Candidate { rtt: Duration::from_millis(100), ..candidate(1, 100) };
        let mut router = LeastOutstandingConfig::default().build(1);
        assert_eq!(drawn(&mut *router, &alone(&[far, candidate(2, 120)])), [hop(2)].into());
        assert_eq!(drawn(&mut *router, &alone(&[far, candidate(2, 160)])), [hop(1)].into());
    }

    #[test]
    fn the_unknown_get_one_each() {
        let unmeasured = Candidate::unknown(hop(1));
        let mut router = LeastOutstandingConfig::default().build(1);
        let both = [unmeasured, candidate(2, 100)];
        assert_eq!(drawn(&mut *router, &alone(&both)), [hop(1), hop(2)].into());
        router.on_sent(NOW, hop(1), MicrobatchId(0));
        assert_eq!(drawn(&mut *router, &alone(&both)), [hop(2)].into());
        assert_eq!(router.choose(NOW, &alone(&[unmeasured])), None);
        router.on_completed(NOW, hop(1), MicrobatchId(0), Completion::Lost);
        assert_eq!(router.choose(NOW, &alone(&[unmeasured])), Some(hop(1)));
    }

    #[test]
    fn absurd_figures_do_not_overflow() {
        let absurd = Candidate { hop: hop(1), service: Some(Duration::MAX), rtt: Duration::MAX };
        let mut router = LeastOutstandingConfig { tolerance_percent: u32::MAX }.build(1);
        (0..9).for_each(|id| router.on_sent(NOW, hop(1), MicrobatchId(id)));
        let choice = Choice { candidates: &[absurd], senders: u32::MAX };
        assert_eq!(router.choose(NOW, &choice), Some(hop(1)));
        let free = Candidate { service: Some(Duration::ZERO), ..absurd };
        assert_eq!(router.choose(NOW, &Choice { candidates: &[free], senders: 0 }), Some(hop(1)));
    }
}
