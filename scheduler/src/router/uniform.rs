//! Uniform random routing.

use crate::rng::Rng;
use crate::router::{Choice, Outstanding, Router, RouterFactory};
use crate::{Hop, Time};

/// Settings of [`Uniform`]: there are none.
#[derive(Clone, Copy, Debug, Default)]
pub struct UniformConfig;

impl RouterFactory for UniformConfig {
    fn build(&self, seed: u64) -> Box<dyn Router> {
        Box::new(Uniform { rng: Rng::new(seed), outstanding: Outstanding::default() })
    }
}

/// Draws every candidate with the same probability: the baseline.
#[derive(Clone, Debug)]
pub struct Uniform {
    rng: Rng,
    outstanding: Outstanding,
}

impl Router for Uniform {
    fn choose(&mut self, _now: Time, choice: &Choice<'_>) -> Option<Hop> {
        self.rng.pick(choice.candidates).map(|candidate| candidate.hop)
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
    use super::*;
    use crate::router::Candidate;
    use crate::router::fixtures::{alone, candidate};

    #[test]
    fn spreads_evenly_and_repeats_by_seed() {
        let candidates = [1, 2, 3, 4].map(|index| candidate(index, 100));
        let draw = |seed| {
            let mut router = UniformConfig.build(seed);
            (0..400).filter_map(|_| router.choose(Time(0), &alone(&candidates))).collect::<Vec<_>>()
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
        for Candidate { hop, .. } in candidates {
            assert!((60..140).contains(&draw(5).iter().filter(|drawn| **drawn == hop).count()));
        }
        assert_eq!(UniformConfig.build(1).choose(Time(0), &alone(&[])), None);
    }
}
