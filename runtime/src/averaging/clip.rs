//! Centered clipping: how far a contribution may pull a mean.
//!
//! One contribution with wild numbers would be the mean, however small its weight. So each is clipped to a ball around
//! a robust centre: the median of all contributions, number by number, which a minority cannot move far. A contribution
//! outside is pulled in along the line to the centre (Karimireddy, He, Jaggi 2021, "Learning from History for Byzantine
//! Robust Optimization", ICML; there the centre is the last mean, which not every replica has).
//!
//! The radius follows from the contributions, so it needs no setting and shrinks as training slows down. Replicas
//! differ honestly: a fast one has taken more steps and lies further out. So a contribution may lie a few times
//! ([`Reach`]) as far as the median contribution, or as the median *for each microbatch in it*, whichever is more. The
//! number of microbatches is confirmed by feeders. Honest contributions stay inside, and then the mean is the plain one,
//! bit for bit. Of two contributions none can be told apart as wild.
//!
//! Where most contributions are equal, as in rows of the embedding that few replicas have met, they give no scale. There
//! weights may lie as far from the centre as the centre from zero, and moments stay as most replicas have them: a moment
//! out of nothing would be a step without a limit.

/// How far from the centre a contribution may lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reach {
    /// How many times as far as the median contribution.
    times: f64,
    /// Where most contributions are equal: the part of the centre's own length.
    of_length: f64,
}

/// The reach of weights.
pub(super) const WEIGHTS: Reach = Reach { times: 4.0, of_length: 1.0 };

/// The reach of moments. Few numbers dominate them, so distances vary more.
pub(super) const MOMENTS: Reach = Reach { times: 16.0, of_length: 0.0 };

/// Contributions that lie too far out, and where they are pulled.
#[derive(Debug)]
pub(super) struct Clipping {
    centre: Vec<f32>,
    /// By contribution: the part of its difference from the centre that stays.
    scales: Vec<f64>,
}

impl Clipping {
    /// `None` if every contribution is within reach. `columns` are as long as each other; `weights` are above 0.
    pub(super) fn of(columns: &[&[f32]], weights: &[f64], reach: Reach) -> Option<Self> {
        if columns.len() < 3 {
            return None;
        }
        let len = columns.first().map_or(0, |column| column.len());
        let centre: Vec<f32> = (0..len)
            .map(|index| median(columns.iter().map(|column| f64::from(column[index]))) as f32)
            .collect();
        let distances: Vec<f64> = columns.iter().map(|column| distance(column, &centre)).collect();
        let typical = median(distances.iter().copied());
        let typical_each = median(distances.iter().zip(weights).map(|(distance, weight)| distance / weight));
        let length = centre.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>().sqrt();
        let radius = |weight: f64| {
            let typical = typical.max(typical_each * weight);
            if typical > 0.0 { reach.times * typical } else { reach.of_length * length }
        };
        let scale = |(&distance, &weight): (&f64, &f64)| {
            let radius = radius(weight);
            if distance <= radius { 1.0 } else { radius / distance }
        };
        let scales: Vec<f64> = distances.iter().zip(weights).map(scale).collect();
        scales.iter().any(|&scale| scale < 1.0).then_some(Self { centre, scales })
    }

    /// The number at `index` of a contribution, clipped.
    pub(super) fn clipped(&self, contribution: usize, index: usize, number: f32) -> f64 {
        let centre = f64::from(self.centre[index]);
        centre + self.scales[contribution] * (f64::from(number) - centre)
    }
}

fn distance(column: &[f32], centre: &[f32]) -> f64 {
    let squares =
        column.iter().zip(centre).map(|(number, centre)| (f64::from(*number) - f64::from(*centre)).powi(2));
    squares.sum::<f64>().sqrt()
}

/// The middle number, or the mean of the middle two; 0 if there are none.
fn median(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_unstable_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    match (numbers.get(middle.wrapping_sub(1)), numbers.get(middle)) {
        (Some(below), Some(above)) if numbers.len().is_multiple_of(2) => (below + above) / 2.0,
        (_, Some(middle)) => *middle,
        (_, None) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use swarmline_kernels::random;

    use super::*;

    const LEN: usize = 2_000;

    /// A number of about a normal distribution.
    fn noise(stream: u64, index: usize) -> f64 {
        let uniform = |draw: u64| {
            let bits = random::uniform_u64(7, stream, index as u64 * 12 + draw);
            (bits >> 11) as f64 / (1_u64 << 53) as f64
        };
        (0..12).map(uniform).sum::<f64>() - 6.0
    }

    /// Replicas that started from the same numbers and took as many steps each: a common drift, and noise that is many
    /// times as large.
    fn replicas(steps: &[u32]) -> (Vec<Vec<f32>>, Vec<f64>) {
        let column = |(replica, &steps): (usize, &u32)| {
            let walk = |index| {
                let noise: f64 =
                    (0..steps).map(|step| noise(replica as u64 * 1_000 + u64::from(step), index)).sum();
                (1.0 + 1e-3 * (f64::from(steps) * 0.2 * noise_of_run(index) + noise)) as f32
            };
            (0..LEN).map(walk).collect()
        };
        (
            steps.iter().enumerate().map(column).collect(),
            steps.iter().map(|&steps| f64::from(steps)).collect(),
        )
    }

    fn noise_of_run(index: usize) -> f64 {
        noise(u64::MAX, index)
    }

    fn clipping(columns: &[Vec<f32>], weights: &[f64]) -> Option<Clipping> {
        Clipping::of(&columns.iter().map(Vec::as_slice).collect::<Vec<_>>(), weights, WEIGHTS)
    }

    fn mean(columns: &[Vec<f32>], weights: &[f64]) -> Vec<f64> {
        let clipping = clipping(columns, weights);
        let all: f64 = weights.iter().sum();
        let number = |replica: usize, index: usize| match &clipping {
            Some(clipping) => clipping.clipped(replica, index, columns[replica][index]),
            None => f64::from(columns[replica][index]),
        };
        let at = |index| (0..columns.len()).map(|one| weights[one] * number(one, index)).sum::<f64>() / all;
        (0..LEN).map(at).collect()
    }

    #[test]
    fn honest_replicas_of_any_speed_are_never_clipped() {
        let speeds: [&[u32]; 6] =
            [&[1, 1], &[1, 1, 1], &[1, 1, 30], &[1, 30, 30], &[1, 2, 4, 8, 16, 32], &[20; 8]];
        for steps in speeds {
            let (columns, weights) = replicas(steps);
            assert!(clipping(&columns, &weights).is_none(), "{steps:?}");
        }
    }

    #[test]
    fn a_wild_contribution_moves_the_mean_no_further_than_an_honest_one_could() {
        for (steps, wild) in [(vec![8; 3], 1e30), (vec![8; 8], 1e6), (vec![4, 8, 16, 8], 50.0)] {
            let (mut columns, weights) = replicas(&steps);
            let honest = mean(&columns[1..], &weights[1..]);
            let reach =
                distance(&columns[1], &honest.iter().map(|&number| number as f32).collect::<Vec<_>>());
            columns[0] = vec![wild; LEN];
            let moved = mean(&columns, &weights);
            let by = moved.iter().zip(&honest).map(|(one, other)| (one - other).powi(2)).sum::<f64>().sqrt();
            let share = weights[0] / weights.iter().sum::<f64>();
            println!(
                "{steps:?}: the mean moves by {:.2} of a typical distance, share {share:.2}",
                by / reach
            );
            assert!(by < share * 3.0 * WEIGHTS.times * reach, "{steps:?}: {by} of {reach}");
        }
    }

    #[test]
    fn two_of_three_that_are_equal_do_not_take_the_third_for_wild() {
        let columns = [vec![1.0; LEN], vec![1.0; LEN], vec![1.5; LEN]];
        assert!(clipping(&columns, &[1.0; 3]).is_none());
    }

    #[test]
    fn a_wild_third_does_not_prevail_where_the_others_are_equal() {
        let columns = [vec![0.5; LEN], vec![0.5; LEN], vec![1e30; LEN]];
        let weights = mean(&columns, &[1.0; 3]);
        assert!(weights.iter().all(|number| (number - 2.0 / 3.0).abs() < 1e-6), "{}", weights[0]);
        let moments = [vec![0.0; LEN], vec![0.0; LEN], vec![1e30; LEN]];
        let columns: Vec<&[f32]> = moments.iter().map(Vec::as_slice).collect();
        let clipping = Clipping::of(&columns, &[1.0; 3], MOMENTS).unwrap();
        assert_eq!(clipping.clipped(2, 0, 1e30), 0.0);
    }
}
