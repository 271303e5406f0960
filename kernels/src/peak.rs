//! Peaks of this machine: loops that only multiply or only move numbers, for a caller to time.

use std::hint::black_box;

use pulp::{Arch, Simd, WithSimd};

/// Independent sums: more than the latency of a fused multiply-add hides on two units, few enough that 16
/// registers hold them together with both factors.
const CHAINS: usize = 12;

/// Runs `rounds` rounds of fused multiply-adds in registers, with the best instructions of this machine, on the
/// calling thread. Returns the number of floating-point operations, two a multiply-add.
#[must_use]
pub fn multiply_adds(rounds: u64) -> u64 {
    Arch::new().dispatch(Chains { rounds })
}

/// `a = b + scale c` with the best instructions of this machine, on the calling thread: the triad of STREAM. Reads
/// two arrays and writes one, `12 a.len()` bytes in all.
///
/// # Panics
/// If the three differ in length.
pub fn triad(a: &mut [f32], b: &[f32], c: &[f32], scale: f32) {
    assert!(a.len() == b.len() && a.len() == c.len(), "arrays of one length");
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
                *a = *b + scale * *c;
            }
        },
    );
}

struct Chains {
    rounds: u64,
}

impl WithSimd for Chains {
    type Output = u64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> u64 {
        // 1 is a fixed point of x -> 0.5 x + 0.5, so the sums stay ordinary numbers however long this runs.
        let (factor, term) = (simd.splat_f32s(black_box(0.5)), simd.splat_f32s(black_box(0.5)));
        let mut sums = [simd.splat_f32s(black_box(1.0)); CHAINS];
        for _ in 0..self.rounds {
            for chain in 0..CHAINS {
                sums[chain] = simd.mul_add_f32s(sums[chain], factor, term);
            }
        }
        for sum in sums {
            black_box(simd.reduce_sum_f32s(sum));
        }
        2 * self.rounds * (CHAINS * S::F32_LANES) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::{CHAINS, multiply_adds, triad};

    #[test]
    fn operations_are_counted_by_the_lane() {
        let once = multiply_adds(1);
        assert!(once >= 2 * CHAINS as u64 && once.is_multiple_of(2 * CHAINS as u64));
        assert_eq!(multiply_adds(1000), 1000 * once);
    }

    #[test]
    fn triad_adds_a_scaled_array() {
        let mut a = vec![0.0; 37];
        let b: Vec<f32> = (0..37).map(|i| i as f32).collect();
        triad(&mut a, &b, &b, 2.0);
        assert!(a.iter().zip(&b).all(|(a, b)| *a == 3.0 * b));
    }
}
