//! What befalls which peer at what time: a value that can be written down, and replayed by real processes.

use serde::{Deserialize, Serialize};

use crate::sim::Fault;
use crate::{Duration, Rng};

use super::churn::Churn;
use super::peers::exponential;

/// Mean time until a peer that crashed is back.
const BACK_AFTER: Duration = Duration::from_secs(60);
/// Length of a slow time, and how much slower the peer is.
const SLOW_FOR: Duration = Duration::from_secs(60);
const SLOW_PERCENT: u32 = 400;
/// Mean time between two slow times: three tenths of the time are slow.
const SLOW_AFTER: Duration = Duration::from_secs(140);
/// Share of a spot fleet that is taken away in an hour.
const SPOT_SHARE: f64 = 0.61;
/// Most peers that are taken away at the same instant.
const SPOT_GROUP_MAX: u64 = 6;

/// What befalls the peers of a workload, in order of time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The strikes.
    pub strikes: Vec<Strike>,
}

/// What befalls one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Strike {
    /// Milliseconds since the beginning.
    pub at_ms: u64,
    /// The peer, by index.
    pub peer: usize,
    /// What befalls it.
    pub what: What,
}

/// What befalls a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// It dies, and is started again without any state.
    Crash {
        /// Its packets vanish, as after SIGKILL; otherwise its connections are closed.
        silent: bool,
        /// Milliseconds until it is started again.
        back_after_ms: u64,
    },
    /// From now on its jobs take this many hundredths of their time.
    Pace {
        /// 100 is its own speed.
        percent: u32,
    },
}

impl Trace {
    /// Draws what befalls `peers` peers in `length`; an epoch takes them `epoch`.
    pub(super) fn draw(churn: Churn, seed: u64, peers: usize, epoch: Duration, length: Duration) -> Self {
        let mut rng = Rng::new(seed ^ 0xC0FFEE);
        let mut strikes = match churn {
            Churn::Calm | Churn::NarrowUplinks => Vec::new(),
            Churn::Crashes(percent) => {
                // The probability to survive an epoch is that of an exponential life time.
                let survives = 1.0 - f64::from(percent.min(99)) / 100.0;
                let mean = epoch.div_f64(-survives.ln());
                (0..peers).flat_map(|peer| crashes(&mut rng, peer, mean, length)).collect()
            }
            Churn::Slowdowns => (0..peers).flat_map(|peer| slow_times(&mut rng, peer, length)).collect(),
            Churn::Spot => removals(&mut rng, peers, length),
        };
        strikes.sort_unstable();
        Self { strikes }
    }

    /// The strikes as faults of a simulated world.
    pub(super) fn faults(&self) -> Vec<(Duration, Fault)> {
        let fault = |strike: &Strike| {
            let replica = strike.peer;
            let fault = match strike.what {
                What::Crash { silent, back_after_ms } => {
                    let back_after = Some(Duration::from_millis(back_after_ms));
                    Fault::Crash { replica, loud: !silent, back_after }
                }
                What::Pace { percent } => Fault::Pace { replica, percent },
            };
            (Duration::from_millis(strike.at_ms), fault)
        };
        self.strikes.iter().map(fault).collect()
    }
}

fn strike(at: Duration, peer: usize, what: What) -> Strike {
    Strike { at_ms: millis(at), peer, what }
}

fn crash(rng: &mut Rng) -> (What, Duration) {
    let back_after = exponential(rng, BACK_AFTER);
    (What::Crash { silent: rng.chance(1, 2), back_after_ms: millis(back_after) }, back_after)
}

/// The crashes of one peer, which lives for `mean` on average.
fn crashes(rng: &mut Rng, peer: usize, mean: Duration, length: Duration) -> Vec<Strike> {
    let mut strikes = Vec::new();
    let mut at = exponential(rng, mean);
    while at < length {
        let (what, back_after) = crash(rng);
        strikes.push(strike(at, peer, what));
        at += back_after + exponential(rng, mean);
    }
    strikes
}

/// The slow times of one peer.
fn slow_times(rng: &mut Rng, peer: usize, length: Duration) -> Vec<Strike> {
    let mut strikes = Vec::new();
    // The first is under way at the beginning in three tenths of the cases, as any later time finds it.
    let mut at = if rng.chance(3, 10) { Duration::ZERO } else { exponential(rng, SLOW_AFTER) };
    while at < length {
        strikes.push(strike(at, peer, What::Pace { percent: SLOW_PERCENT }));
        at += SLOW_FOR;
        strikes.push(strike(at, peer, What::Pace { percent: 100 }));
        at += exponential(rng, SLOW_AFTER);
    }
    strikes
}

/// Groups of peers that are taken away, each of one to [`SPOT_GROUP_MAX`]. One that is away is passed over.
fn removals(rng: &mut Rng, peers: usize, length: Duration) -> Vec<Strike> {
    let group_mean = (1 + SPOT_GROUP_MAX) as f64 / 2.0;
    let mean = Duration::from_secs(3_600).div_f64(SPOT_SHARE * peers as f64 / group_mean);
    let mut away_until = vec![Duration::ZERO; peers];
    let mut strikes = Vec::new();
    let mut at = exponential(rng, mean);
    while at < length {
        for _ in 0..=rng.below(SPOT_GROUP_MAX) {
            let there: Vec<usize> = (0..peers).filter(|&peer| away_until[peer] < at).collect();
            if let Some(&peer) = rng.pick(&there) {
                let (what, back_after) = crash(rng);
                strikes.push(strike(at, peer, what));
                away_until[peer] = at + back_after;
            }
        }
        at += exponential(rng, mean);
    }
    strikes
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);
    const EPOCH: Duration = Duration::from_secs(20);
    const PEERS: usize = 400;

    fn draw(churn: Churn, seed: u64) -> Trace {
        Trace::draw(churn, seed, PEERS, EPOCH, HOUR)
    }

    fn crashes(trace: &Trace) -> Vec<(u64, usize, bool, u64)> {
        let crash = |strike: &Strike| match strike.what {
            What::Crash { silent, back_after_ms } => Some((strike.at_ms, strike.peer, silent, back_after_ms)),
            What::Pace { .. } => None,
        };
        trace.strikes.iter().filter_map(crash).collect()
    }

    /// Crashes and lives are counted: of the epochs that a peer lives at the beginning of, it crashes in X percent.
    #[test]
    fn peers_crash_as_often_as_stated_and_come_back_after_a_minute() {
        for percent in [1_u8, 5, 10, 20] {
            let crashes = crashes(&draw(Churn::Crashes(percent), 11));
            let count = crashes.len() as f64;
            let away: f64 = crashes.iter().map(|(.., back)| *back as f64 / 1e3).sum();
            assert!((away / count / 60.0 - 1.0).abs() < 0.1, "{percent} %: {} s away", away / count);
            let lived = PEERS as f64 * 3_600.0 - away;
            let an_epoch = 1.0 - (-count / lived * EPOCH.as_secs_f64()).exp();
            assert!((100.0 * an_epoch / f64::from(percent) - 1.0).abs() < 0.08, "{percent} %: {an_epoch}");
            let silent = crashes.iter().filter(|(_, _, silent, _)| *silent).count() as f64;
            assert!((silent / count - 0.5).abs() < 0.05, "{percent} %: {silent} of {count} are silent");
        }
    }

    #[test]
    fn equal_seeds_give_equal_traces_and_other_seeds_others() {
        for churn in Churn::ALL {
            assert_eq!(draw(churn, 11), draw(churn, 11));
            let others = draw(churn, 7_930);
            assert!(others.strikes.is_empty() || others != draw(churn, 11), "{churn}");
            let sorted = others.strikes.is_sorted();
            assert!(sorted, "{churn}");
        }
        assert_eq!(draw(Churn::Calm, 11), Trace::default());
    }

    #[test]
    fn peers_are_slow_three_tenths_of_the_time() {
        let trace = draw(Churn::Slowdowns, 11);
        let slow = trace.strikes.iter().filter(|strike| strike.what == What::Pace { percent: SLOW_PERCENT });
        let slow: u64 = slow.map(|strike| 60_000.min(3_600_000 - strike.at_ms)).sum();
        let share = slow as f64 / (PEERS as f64 * 3.6e6);
        assert!((share - 0.3).abs() < 0.01, "{share}");
    }

    #[test]
    fn a_spot_fleet_loses_as_many_as_stated_up_to_six_at_once() {
        let crashes = crashes(&draw(Churn::Spot, 11));
        let share = crashes.len() as f64 / PEERS as f64;
        assert!((share - 0.61).abs() < 0.12, "{share}");
        let at_once = |at| crashes.iter().filter(|crash| crash.0 == at).count();
        let most = crashes.iter().map(|crash| at_once(crash.0)).max();
        assert_eq!(most, Some(6));
    }
}
