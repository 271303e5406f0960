//! Every eligible replica is as likely as the others.
use std::collections::BTreeMap;

use crate::rng::Rng;
use crate::router::{Choice, Router, RouterFactory, Settled};
use crate::{Hop, MicrobatchId, Time};

/// Settings of [`Uniform`]: there are none.
#[derive(Clone, Copy, Debug, Default)]
pub struct UniformConfig;

impl RouterFactory for UniformConfig {
    fn build(&self, seed: u64) -> Box<dyn Router> {
        Box::new(Uniform { rng: Rng::new(seed), resident: BTreeMap::new() })
    }
}

/// Draws uniformly and looks at nothing: the baseline.
#[derive(Clone, Debug)]
pub struct Uniform {
    rng: Rng,
    resident: BTreeMap<Hop, u32>,
}

impl Router for Uniform {
    fn choose(&mut self, _now: Time, choice: &Choice<'_>) -> Option<Hop> {
        self.rng.pick(choice.candidates).map(|candidate| candidate.hop)
    }

    fn on_sent(&mut self, _now: Time, to: Hop, _microbatch: MicrobatchId) {
        *self.resident.entry(to).or_default() += 1;
    }

    fn on_settled(&mut self, _now: Time, to: Hop, _microbatch: MicrobatchId, _how: Settled) {
        if let Some(resident) = self.resident.get_mut(&to) {
            *resident = resident.saturating_sub(1);
            if *resident == 0 {
                self.resident.remove(&to);
            }
        }
    }

    fn resident(&self, hop: &Hop) -> u32 {
        self.resident.get(hop).copied().unwrap_or(0)
    }
}
