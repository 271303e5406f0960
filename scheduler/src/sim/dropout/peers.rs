//! The peers of a workload, drawn from its seed.

use crate::{Duration, Rng};

use super::regions::REGIONS;

/// Geometric mean of the forward times.
const FORWARD: f64 = 0.2;
/// Geometric mean of the rates of narrow uplinks, bits a second: about half of what a peer can compute.
const NARROW_UPLINK: f64 = 16e6;
/// The slowest peer takes this many times as long as the fastest. Uplinks differ as much.
const SPREAD: f64 = 4.0;

/// A peer of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its region, a number in [`REGIONS`].
    pub region: usize,
    /// Mean time of a forward; a backward takes two of these.
    pub forward: Duration,
    /// Rate of its uplink where uplinks are narrow, bits a second.
    pub narrow_uplink: u64,
}

/// Draws `count` peers.
pub(super) fn draw(seed: u64, count: usize) -> Vec<Peer> {
    let mut rng = Rng::new(seed ^ 0x9EE5);
    let peer = || Peer {
        region: usize::try_from(rng.below(REGIONS.len() as u64)).unwrap_or(0),
        forward: Duration::from_micros((FORWARD * log_uniform(&mut rng) * 1e6).round() as u64),
        narrow_uplink: (NARROW_UPLINK * log_uniform(&mut rng)).round() as u64,
    };
    std::iter::repeat_with(peer).take(count).collect()
}

/// A factor of 1/2 to 2 whose logarithm is uniform.
fn log_uniform(rng: &mut Rng) -> f64 {
    SPREAD.powf(unit(rng) - 0.5)
}

/// A number in 0..1, of 2^32 steps.
pub(super) fn unit(rng: &mut Rng) -> f64 {
    f64::from(u32::try_from(rng.below(1 << 32)).unwrap_or(0)) / f64::from(u32::MAX)
}

/// A time whose distribution is exponential, to the millisecond: platforms differ in the last bits of a logarithm.
pub(super) fn exponential(rng: &mut Rng, mean: Duration) -> Duration {
    let share = -(1.0 - unit(rng)).max(f64::MIN_POSITIVE).ln();
    Duration::from_millis((mean.as_secs_f64() * share.min(1e6) * 1e3).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forward_times_spread_four_times_around_a_fifth_of_a_second() {
        let peers = draw(11, 4_000);
        let times: Vec<f64> = peers.iter().map(|peer| peer.forward.as_secs_f64()).collect();
        let (low, high) =
            times.iter().fold((1.0_f64, 0.0_f64), |(low, high), &time| (low.min(time), high.max(time)));
        assert!((0.1..0.101).contains(&low) && (0.397..0.4001).contains(&high), "{low} {high}");
        let mean = (times.iter().map(|time| time.ln()).sum::<f64>() / 4_000.0).exp();
        assert!((0.197..0.203).contains(&mean), "{mean}");
        for region in 0..REGIONS.len() {
            let there = peers.iter().filter(|peer| peer.region == region).count();
            assert!((260..410).contains(&there), "{there} of 4,000 in region {region}");
        }
    }

    #[test]
    fn exponential_times_have_their_mean() {
        let mut rng = Rng::new(3);
        let sum: Duration = (0..10_000).map(|_| exponential(&mut rng, Duration::from_secs(60))).sum();
        assert!((580_000..620_000).contains(&sum.as_secs()), "{sum:?}");
    }
}
