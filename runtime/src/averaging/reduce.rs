//! The mean of a part over the replicas of a stage. Only the owner of a part computes it, and the owner applies the
//! bytes that it sends.

use bytes::Bytes;
use swarmline_scheduler::averaging::Fault;

use super::clip::{Clipping, MOMENTS, Reach, WEIGHTS};
use super::part::{NUMBER_BYTES, Numbers};

/// The mean of `inputs`, each with its weight (above 0), number by number: summed in f64 in the order given, and
/// rounded once. Equal inputs are their own mean, bit for bit, while weights sum to less than 2^29. Inputs that lie far
/// from the others are clipped (`clip.rs`), the weights and each kind of moments by themselves.
///
/// # Errors
/// The index of the first input that cannot be used. An input must be as long as `own`, with finite numbers and no
/// negative second moment.
pub fn reduce(own: &[u8], inputs: &[(u64, Bytes)]) -> Result<Bytes, (usize, Fault)> {
    let len = own.len() / NUMBER_BYTES;
    let read = |(index, (_, bytes)): (usize, &(u64, Bytes))| {
        Numbers::from_bytes(bytes, len).map_err(|fault| (index, fault))
    };
    let parts: Vec<Numbers> = inputs.iter().enumerate().map(read).collect::<Result<_, _>>()?;
    let weights: Vec<f64> = inputs.iter().map(|(weight, _)| *weight as f64).collect();
    let column = |of: fn(&Numbers) -> &[f32], reach: Reach| {
        let columns: Vec<&[f32]> = parts.iter().map(of).collect();
        mean(&columns, &weights, len, reach)
    };
    let mean = Numbers {
        weights: column(|part| &part.weights, WEIGHTS),
        moments1: column(|part| &part.moments1, MOMENTS),
        moments2: column(|part| &part.moments2, MOMENTS),
    };
    Ok(mean.to_bytes())
}

fn mean(columns: &[&[f32]], weights: &[f64], len: usize, reach: Reach) -> Vec<f32> {
    let all: f64 = weights.iter().sum();
    let clipping = Clipping::of(columns, weights, reach);
    let number = |(input, index): (usize, usize)| match &clipping {
        Some(clipping) => clipping.clipped(input, index, columns[input][index]),
        None => f64::from(columns[input][index]),
    };
    let at = |index: usize| {
        let terms = weights.iter().enumerate().map(|(input, weight)| number((input, index)) * weight);
        (terms.sum::<f64>() / all) as f32
    };
    (0..len).map(at).collect()
}
