//! Counter-based random numbers, the same on every device.
//!
//! Every number is a function of (seed, stream, index) alone: nothing is drawn in sequence, so any part of a
//! tensor can be made anywhere, in any order, with equal bits. The generator is Philox4x32-10 (Salmon, Moraes,
//! Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011). Normal numbers are sums of uniform
//! integers, so no `ln` or `cos` of a platform enters.
//!
//! A purpose ([`Domain`]) is mixed into the key, so that two purposes never read the same words of a seed.

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: u32 = 10;

/// The purpose that random words are drawn for.
///
/// The number is added to the high word of the key; it is part of the specification every backend follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Domain {
    /// Words of [`uniform_u64`].
    Uniform = 0,
    /// Words of [`fill_normal`].
    Normal = 0x6E6F_726D,
    /// Words of [`crate::Backend::anchor`].
    Anchor = 0x616E_6368,
    /// Signs of the quantised packings.
    Signs = 0x7369_676E,
    /// Stochastic rounding of the quantised packings.
    Rounding = 0x726F_756E,
}

/// The key of a `seed` for a purpose: low word of the seed, high word plus the domain (wrapping).
#[must_use]
#[inline(always)]
pub fn key(seed: u64, domain: Domain) -> [u32; 2] {
    [low(seed), high(seed).wrapping_add(domain as u32)]
}

/// Philox4x32 with ten rounds: 128 random bits from a 128-bit counter and a 64-bit key.
#[must_use]
#[inline(always)]
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut a, mut b, mut c, mut d] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        let left = u64::from(a) * u64::from(MULTIPLIER[0]);
        let right = u64::from(c) * u64::from(MULTIPLIER[1]);
        (a, b, c, d) = (high(right) ^ b ^ k0, low(right), high(left) ^ d ^ k1, low(left));
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [a, b, c, d]
}

/// Calls made together by [`philox_lanes`].
pub(crate) const LANES: usize = 16;

/// [`philox4x32`] at the counters `[first + lane, rest..]`, word by word: a loop that fills vector registers.
#[inline(always)]
pub(crate) fn philox_lanes(first: u32, rest: [u32; 3], key: [u32; 2]) -> [[u32; LANES]; 4] {
    let mut words = [[0; LANES]; 4];
    for lane in 0..LANES {
        let counter = [first.wrapping_add(lane as u32), rest[0], rest[1], rest[2]];
        let [a, b, c, d] = philox4x32(counter, key);
        words[0][lane] = a;
        words[1][lane] = b;
        words[2][lane] = c;
        words[3][lane] = d;
    }
    words
}

/// A uniform 64-bit number: words 0 (low) and 1 (high) of the counter (index, stream).
#[must_use]
pub fn uniform_u64(seed: u64, stream: u64, index: u64) -> u64 {
    let words = block(seed, Domain::Uniform, stream, index);
    u64::from(words[0]) | u64::from(words[1]) << 32
}

/// Fills `out` with near-normal numbers of mean 0 and standard deviation `std`.
///
/// Each number is the sum of twelve 16-bit uniforms (so never beyond six deviations); numbers `2i` and `2i+1`
/// share the counters `3i..3i+3` of the stream. Number `i` does not depend on the length of `out`.
pub fn fill_normal(out: &mut [f32], seed: u64, stream: u64, std: f32) {
    // The sum has mean 12 * 65535 / 2 and a deviation of 65536 to ten digits; both are exact in f32.
    let scale = std / 65536.0;
    for (pair, numbers) in (0u64..).zip(out.chunks_mut(2)) {
        let [a, b, c] = [0, 1, 2].map(|i| block(seed, Domain::Normal, stream, 3 * pair + i));
        let sums = [halves(a) + halves([b[0], b[1], 0, 0]), halves([b[2], b[3], 0, 0]) + halves(c)];
        for (number, sum) in numbers.iter_mut().zip(sums) {
            *number = (sum as i32 - 393_210) as f32 * scale;
        }
    }
}

/// `rows` orthonormal rows of `width` numbers, row-major: a basis for a boundary.
///
/// Gram-Schmidt, twice, over near-normal rows, in f64 and in a fixed order, then rounded: equal bits on every
/// machine.
///
/// # Panics
///
/// If `rows > width`: no such basis exists.
#[must_use]
pub fn orthonormal_rows(seed: u64, rows: usize, width: usize) -> Vec<f32> {
    assert!(rows <= width, "{rows} orthonormal rows do not fit into width {width}");
    let mut drawn = vec![0.0; rows * width];
    fill_normal(&mut drawn, seed, 0, 1.0);
    let mut basis: Vec<f64> = drawn.iter().map(|&x| f64::from(x)).collect();
    for row in 0..rows {
        let (before, rest) = basis.split_at_mut(row * width);
        let current = &mut rest[..width];
        for _ in 0..2 {
            orthonormalise(current, before);
        }
    }
    basis.iter().map(|&x| x as f32).collect()
}

/// Takes the directions of `before` out of `row` and scales it to length 1.
fn orthonormalise(row: &mut [f64], before: &[f64]) {
    for other in before.chunks_exact(row.len()) {
        let share = dot(row, other);
        row.iter_mut().zip(other).for_each(|(x, y)| *x -= share * y);
    }
    let length = dot(row, row).sqrt();
    row.iter_mut().for_each(|x| *x /= length);
}

/// Eight interleaved sums, then a fixed tree: the order is part of the result.
fn dot(x: &[f64], y: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    for (x, y) in x.chunks(8).zip(y.chunks(8)) {
        for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
            *sum += x * y;
        }
    }
    let [a, b, c, d, e, f, g, h] = sums;
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}

fn block(seed: u64, domain: Domain, stream: u64, index: u64) -> [u32; 4] {
    philox4x32([low(index), high(index), low(stream), high(stream)], key(seed, domain))
}

/// Sum of the 16-bit halves of four words.
fn halves(words: [u32; 4]) -> u32 {
    words.iter().map(|word| (word & 0xFFFF) + (word >> 16)).sum()
}

#[inline(always)]
pub(crate) fn low(x: u64) -> u32 {
    x as u32
}

#[inline(always)]
pub(crate) fn high(x: u64) -> u32 {
    (x >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_answers() {
        // Known-answer vectors of the authors' Random123 distribution, philox4x32 10.
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, answer) in cases {
            assert_eq!(philox4x32(counter, key), answer);
        }
    }

    #[test]
    fn normal_numbers_have_the_moments_of_a_normal() {
        let mut x = vec![0.0; 100_000];
        fill_normal(&mut x, 7, 3, 2.0);
        let moment =
            |power| x.iter().map(|&x| (f64::from(x) / 2.0).powi(power)).sum::<f64>() / x.len() as f64;
        assert!(moment(1).abs() < 0.015, "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.02, "variance {}", moment(2));
        assert!(moment(3).abs() < 0.04, "skew {}", moment(3));
        // Irwin-Hall of twelve has kurtosis 3 - 1.2/12.
        assert!((moment(4) - 2.9).abs() < 0.1, "kurtosis {}", moment(4));
    }

    #[test]
    fn a_normal_number_depends_on_its_index_only() {
        let mut long = vec![0.0; 101];
        let mut short = vec![0.0; 37];
        fill_normal(&mut long, 1, 2, 0.02);
        fill_normal(&mut short, 1, 2, 0.02);
        assert_eq!(long[..37], short);
        fill_normal(&mut short, 1, 3, 0.02);
        assert_ne!(long[..37], short);
    }

    #[test]
    fn uniform_numbers_differ_by_every_argument() {
        let numbers = [
            uniform_u64(0, 0, 0),
            uniform_u64(1, 0, 0),
            uniform_u64(1 << 32, 0, 0),
            uniform_u64(0, 1, 0),
            uniform_u64(0, 1 << 32, 0),
            uniform_u64(0, 0, 1),
            uniform_u64(0, 0, 1 << 32),
        ];
        let distinct: std::collections::BTreeSet<_> = numbers.iter().collect();
        assert_eq!(distinct.len(), numbers.len());
    }

    #[test]
    fn basis_rows_are_orthonormal() {
        for (rows, width) in [(1, 1), (5, 5), (16, 130), (32, 256)] {
            let basis = orthonormal_rows(11, rows, width);
            for i in 0..rows {
                for j in 0..rows {
                    let product: f64 = (0..width)
                        .map(|c| f64::from(basis[i * width + c]) * f64::from(basis[j * width + c]))
                        .sum();
                    let expected = f64::from(u8::from(i == j));
                    assert!((product - expected).abs() < 1e-6, "{rows}x{width}: ({i},{j}) is {product}");
                }
            }
        }
    }
}
