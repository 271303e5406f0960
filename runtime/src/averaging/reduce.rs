//! The mean of a part over the replicas of a stage. Only the owner of a part computes it, and the owner applies the
//! bytes that it sends.

use bytes::Bytes;
use swarmline_scheduler::averaging::Fault;

use super::part::{NUMBER_BYTES, Numbers};

/// The mean of `inputs`, each with its weight (above 0), number by number: summed in f64 in the order given, and
/// rounded once. Equal inputs are their own mean, bit for bit, while weights sum to less than 2^29.
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
    let column = |of: fn(&Numbers) -> &[f32]| {
        let columns: Vec<&[f32]> = parts.iter().map(of).collect();
        mean(&columns, &weights, len)
    };
    let mean = Numbers {
        weights: column(|part| &part.weights),
        moments1: column(|part| &part.moments1),
        moments2: column(|part| &part.moments2),
    };
    Ok(mean.to_bytes())
}

fn mean(columns: &[&[f32]], weights: &[f64], len: usize) -> Vec<f32> {
    let all: f64 = weights.iter().sum();
    let at = |index: usize| {
        let terms = columns.iter().zip(weights).map(|(column, weight)| f64::from(column[index]) * weight);
        (terms.sum::<f64>() / all) as f32
    };
    (0..len).map(at).collect()
}
