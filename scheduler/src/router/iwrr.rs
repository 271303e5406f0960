//! Interleaved weighted round robin by response time: the routing of SWARM, for comparison.

use std::collections::BTreeMap;

use crate::rng::Rng;
use crate::router::{CANDIDATES_MAX, Choice, Completion, Outstanding, Router, RouterFactory};
use crate::{Duration, Hop, MicrobatchId, MovingAverage, Time};

/// Replicas remembered; beyond this number, replicas that are no candidates are forgotten.
const LANES_MAX: usize = 2 * CANDIDATES_MAX;

/// Response time assumed before any was measured. Small: it only sets the order of the first round.
const RESPONSE_GUESS: Duration = Duration::from_millis(1);

/// Settings of [`Iwrr`]: there are none.
#[derive(Clone, Copy, Debug, Default)]
pub struct IwrrConfig;

impl RouterFactory for IwrrConfig {
    fn build(&self, seed: u64) -> Box<dyn Router> {
        Box::new(Iwrr {
            rng: Rng::new(seed),
            lanes: BTreeMap::new(),
            turn: 0,
            expected: RESPONSE_GUESS,
            sent: BTreeMap::new(),
            outstanding: Outstanding::default(),
        })
    }
}

/// Takes replicas in turn, each in inverse proportion to its response time.
///
/// The stochastic wiring of Ryabinin et al., *SWARM Parallelism* (2023, arXiv:2301.11913): every replica has a
/// moving average of its response time and a turn; the earliest turn is chosen and moves on by that average. Here a
/// response lasts from the attempt to the return of the gradient.
///
/// Two things differ. A replica that is new, or was no candidate for a while, starts at the turn of the others instead
/// of at zero, and counts as fast as their mean until it has answered: at zero it would get every microbatch until it
/// had caught up. And the first turn of a new replica is drawn, so that senders do not all begin with the same replica.
///
/// A replica that never answers keeps its share: only its quarantine stops that.
#[derive(Clone, Debug)]
pub struct Iwrr {
    rng: Rng,
    lanes: BTreeMap<Hop, Lane>,
    /// The current turn: that of the last replica sent to. No candidate has an earlier turn.
    turn: u64,
    /// Mean response time of the candidates looked at last.
    expected: Duration,
    /// Attempts that wait for their response; bounded by the microbatches in flight.
    sent: BTreeMap<(Hop, MicrobatchId), Time>,
    outstanding: Outstanding,
}

#[derive(Clone, Copy, Debug)]
struct Lane {
    /// The next turn of the replica, in nanoseconds of response time used up.
    turn: u64,
    response: MovingAverage,
}

impl Iwrr {
    fn expected_response(&self, choice: &Choice<'_>) -> Duration {
        let lanes = choice.candidates.iter().filter_map(|candidate| self.lanes.get(&candidate.hop));
        let (count, sum) = lanes
            .filter_map(|lane| lane.response.get())
            .fold((0, Duration::ZERO), |(count, sum), response| (count + 1, sum.saturating_add(response)));
        sum.checked_div(count).unwrap_or(RESPONSE_GUESS)
    }

    fn enrol(&mut self, choice: &Choice<'_>) {
        for candidate in choice.candidates {
            let (turn, offset) = (self.turn, nanos(self.expected));
            let rng = &mut self.rng;
            let first =
                || Lane { turn: turn.saturating_add(rng.below(offset)), response: MovingAverage::default() };
            let lane = self.lanes.entry(candidate.hop).or_insert_with(first);
            lane.turn = lane.turn.max(turn);
        }
    }

    /// Forgets replicas that are no candidates when there are too many lanes. Candidates are never forgotten: they
    /// would be enrolled again and again.
    fn forget_strangers(&mut self, choice: &Choice<'_>) {
        if self.lanes.len() > LANES_MAX.max(choice.candidates.len()) {
            self.lanes.retain(|hop, _| choice.candidates.iter().any(|candidate| candidate.hop == *hop));
        }
    }
}

impl Router for Iwrr {
    fn choose(&mut self, _now: Time, choice: &Choice<'_>) -> Option<Hop> {
        self.expected = self.expected_response(choice);
        self.enrol(choice);
        self.forget_strangers(choice);
        let turn = |hop: &Hop| self.lanes.get(hop).map_or(u64::MAX, |lane| lane.turn);
        choice.candidates.iter().map(|candidate| candidate.hop).min_by_key(|hop| (turn(hop), hop.peer()))
    }

    fn outstanding(&self) -> &Outstanding {
        &self.outstanding
    }

    fn outstanding_mut(&mut self) -> &mut Outstanding {
        &mut self.outstanding
    }

    fn on_sent(&mut self, now: Time, to: Hop, microbatch: MicrobatchId) {
        self.outstanding.add(to);
        self.sent.insert((to, microbatch), now);
        if let Some(lane) = self.lanes.get_mut(&to) {
            self.turn = self.turn.max(lane.turn);
            let response = lane.response.get().unwrap_or(self.expected);
            lane.turn = lane.turn.saturating_add(nanos(response).max(1));
        }
    }

    fn on_completed(&mut self, now: Time, to: Hop, microbatch: MicrobatchId, how: Completion) {
        self.outstanding.remove(&to);
        let Some(since) = self.sent.remove(&(to, microbatch)) else { return };
        if let (Completion::Returned, Some(lane)) = (how, self.lanes.get_mut(&to)) {
            lane.response.add(now.since(since));
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::Candidate;
    use crate::router::fixtures::{alone, hop};

    /// Sends `count` microbatches one after another; replica `index` answers after `index` hundred milliseconds.
    /// Returns how many each of four replicas got.
    fn send(router: &mut dyn Router, candidates: &[Candidate], count: u64) -> [u32; 4] {
        let mut got = [0; 4];
        for id in 0..count {
            let to = router.choose(Time(0), &alone(candidates)).unwrap();
            let index = (1..=4).find(|index| hop(*index) == to).unwrap();
            got[usize::from(index) - 1] += 1;
            router.on_sent(Time(0), to, MicrobatchId(id));
            let answered = Time(0) + Duration::from_millis(100) * u32::from(index);
            router.on_completed(answered, to, MicrobatchId(id), Completion::Returned);
        }
        got
    }

    fn candidates(indices: &[u16]) -> Vec<Candidate> {
        indices.iter().map(|&index| Candidate::unknown(hop(index))).collect()
    }

    #[test]
    fn shares_go_as_the_inverse_of_response_times() {
        let mut router = IwrrConfig.build(3);
        let got = send(&mut *router, &candidates(&[1, 2, 4]), 1_400);
        for (share, expected) in got.into_iter().zip([800_u32, 400, 0, 200]) {
            assert!(share.abs_diff(expected) <= 3, "{got:?}");
        }
    }

    #[test]
    fn a_replica_that_comes_late_or_again_gets_no_more_than_its_share() {
        let mut router = IwrrConfig.build(3);
        send(&mut *router, &candidates(&[1, 2]), 3_000);
        let got = send(&mut *router, &candidates(&[1, 2, 4]), 70);
        assert!(got[3].abs_diff(10) <= 2, "{got:?}");
        send(&mut *router, &candidates(&[1, 4]), 3_000);
        let got = send(&mut *router, &candidates(&[1, 2, 4]), 70);
        assert!(got[1].abs_diff(20) <= 2, "{got:?}");
    }

    #[test]
    fn replicas_that_left_are_forgotten() {
        let mut router = Iwrr {
            rng: Rng::new(1),
            lanes: BTreeMap::new(),
            turn: 0,
            expected: RESPONSE_GUESS,
            sent: BTreeMap::new(),
            outstanding: Outstanding::default(),
        };
        for index in 0..1_000 {
            let to = router.choose(Time(0), &alone(&candidates(&[index]))).unwrap();
            router.on_sent(Time(0), to, MicrobatchId(1));
            router.on_completed(Time(9), to, MicrobatchId(1), Completion::Lost);
            assert!(router.lanes.len() <= LANES_MAX + 1);
        }
        assert!(router.sent.is_empty() && router.outstanding.is_empty());
    }
}
