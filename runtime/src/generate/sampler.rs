//! The choice of the next token.

use swarmline_kernels::random::uniform_u64;

/// The stream of random numbers that draws tokens.
const STREAM: u64 = 0;

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token every time. Default 0.
    pub temperature: f32,
    /// Share of the probability, 0 to 1, that the most likely tokens must reach to be drawn from (nucleus sampling,
    /// arXiv 1904.09751). Default 1: all tokens.
    pub top_p: f32,
    /// Seed of the draws. Default 0.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, seed: 0 }
    }
}

/// Chooses tokens. Equal logits and settings give equal tokens.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    drawn: u64,
}

impl Sampler {
    /// A sampler at its first token.
    #[must_use]
    pub fn new(sampling: Sampling) -> Self {
        Self { sampling, drawn: 0 }
    }

    /// The next token; `None` if a logit is not finite, or without any.
    pub fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        if !logits.iter().all(|logit| logit.is_finite()) {
            return None;
        }
        let Sampling { temperature, .. } = self.sampling;
        let ranked = ranked(logits);
        let (&first, best) = (ranked.first()?, logits[*ranked.first()? as usize]);
        if temperature <= 0.0 {
            return Some(first);
        }
        let weight = |&id: &u32| f64::from((logits[id as usize] - best) / temperature).exp();
        self.draw(&ranked, &ranked.iter().map(weight).collect::<Vec<_>>())
    }

    /// One of the `ids`, in proportion to their `weights`, which fall, within the nucleus.
    fn draw(&mut self, ids: &[u32], weights: &[f64]) -> Option<u32> {
        let Sampling { top_p, seed, .. } = self.sampling;
        let nucleus = f64::from(top_p) * weights.iter().sum::<f64>();
        let (mut count, mut sum) = (0, 0.0);
        while count < ids.len() && (count == 0 || sum < nucleus) {
            sum += weights[count];
            count += 1;
        }
        // 53 bits are exact in an f64.
        let uniform = (uniform_u64(seed, STREAM, self.drawn) >> 11) as f64 / (1u64 << 53) as f64;
        self.drawn += 1;
        let mut rest = uniform * sum;
        let drawn = weights[..count].iter().position(|weight| {
            rest -= weight;
            rest < 0.0
        });
        ids.get(drawn.unwrap_or(count - 1)).copied()
    }
}

/// All ids, the most likely first; of equally likely ones the lowest.
fn ranked(logits: &[f32]) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f32, top_p: f32, seed: u64) -> Sampler {
        Sampler::new(Sampling { temperature, top_p, seed })
    }

    #[test]
    fn without_a_temperature_the_most_likely_token_is_chosen_and_of_equals_the_first() {
        assert_eq!(sampler(0.0, 1.0, 0).choose(&[0.0, 3.0, -1.0, 3.0]), Some(1));
    }

    #[test]
    fn tokens_are_drawn_as_often_as_their_probability_says() {
        let (mut sampler, draws) = (sampler(2.0, 1.0, 7), 20_000);
        let mut counts = [0; 3];
        for _ in 0..draws {
            counts[sampler.choose(&[2.0 * 6f32.ln(), 0.0, 2.0 * 3f32.ln()]).unwrap() as usize] += 1;
        }
        for (count, share) in counts.iter().zip([0.6, 0.1, 0.3]) {
            assert!((f64::from(*count) / f64::from(draws) - share).abs() < 0.01, "{counts:?}");
        }
    }

    #[test]
    fn a_nucleus_has_the_fewest_tokens_that_reach_its_share() {
        let logits = [5f32.ln(), 3f32.ln(), 2f32.ln()];
        for (top_p, tokens) in [(0.0, 1), (0.5, 1), (0.51, 2), (0.79, 2), (0.81, 3), (1.0, 3)] {
            let mut sampler = sampler(1.0, top_p, 3);
            let drawn: std::collections::BTreeSet<_> = (0..500).map(|_| sampler.choose(&logits)).collect();
            assert_eq!(drawn.len(), tokens, "{top_p}");
        }
    }

    #[test]
    fn a_seed_repeats_its_draws() {
        let draws = |seed| {
            let mut sampler = sampler(1.0, 1.0, seed);
            (0..50).map(|_| sampler.choose(&[0.0; 9]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
    }

    #[test]
    fn a_number_that_is_not_finite_is_no_choice() {
        assert_eq!(sampler(0.0, 1.0, 0).choose(&[0.0, f32::NAN]), None);
        assert_eq!(sampler(1.0, 1.0, 0).choose(&[f32::INFINITY, 0.0]), None);
        assert_eq!(sampler(1.0, 1.0, 0).choose(&[]), None);
    }
}
