//! Every eligible replica is as likely as the others.

use crate::rng::Rng;
use crate::router::{Router, RouterFactory};
use crate::{Hop, Time};

/// Settings of [`Uniform`]: there are none.
#[derive(Clone, Copy, Debug, Default)]
pub struct UniformConfig;

impl RouterFactory for UniformConfig {
    fn build(&self, seed: u64) -> Box<dyn Router> {
        Box::new(Uniform { rng: Rng::new(seed) })
    }
}

/// Draws uniformly and looks at nothing: the baseline.
#[derive(Clone, Debug)]
pub struct Uniform {
    rng: Rng,
}

impl Router for Uniform {
    fn choose(&mut self, _now: Time, eligible: &[Hop]) -> Option<Hop> {
        self.rng.pick(eligible).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Incarnation, PeerId, StageIndex};

    #[test]
    fn spreads_evenly_and_repeats_by_seed() {
        let hops: Vec<Hop> = (0..4)
            .map(|key| Hop {
                stage: Some(StageIndex(1)),
                peer: PeerId([key; 32]),
                incarnation: Incarnation(1),
            })
            .collect();
        let draw = |seed| {
            let mut router = UniformConfig.build(seed);
            (0..400).filter_map(|_| router.choose(Time(0), &hops)).collect::<Vec<_>>()
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
        for hop in &hops {
            assert!((60..140).contains(&draw(5).iter().filter(|drawn| *drawn == hop).count()));
        }
        assert_eq!(UniformConfig.build(1).choose(Time(0), &[]), None);
    }
}
