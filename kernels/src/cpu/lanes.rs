//! Sums over a slice in one fixed order that still fills vector registers.

/// Interleaved partial sums; part of the specification of every reduction.
pub(super) const LANES: usize = 16;

/// Sum of `x` in [`LANES`] interleaved parts, then a fixed tree.
#[inline(always)]
pub(super) fn tree(mut sums: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}

/// `sum f(x_i, y_i)`, where `f(accumulator, x, y)` adds one term.
#[inline(always)]
pub(super) fn fold2(x: &[f32], y: &[f32], f: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    let (x_body, x_tail) = x.as_chunks::<LANES>();
    let (y_body, y_tail) = y.as_chunks::<LANES>();
    for (x, y) in x_body.iter().zip(y_body) {
        for i in 0..LANES {
            sums[i] = f(sums[i], x[i], y[i]);
        }
    }
    for i in 0..x_tail.len() {
        sums[i] = f(sums[i], x_tail[i], y_tail[i]);
    }
    tree(sums)
}

/// `x . y`
#[inline(always)]
pub(super) fn dot(x: &[f32], y: &[f32]) -> f32 {
    fold2(
        x,
        y,
        #[inline(always)]
        |sum, x, y| x.mul_add(y, sum),
    )
}

/// `sum x_i y_i z_i`
#[inline(always)]
pub(super) fn dot3(x: &[f32], y: &[f32], z: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let (x_body, x_tail) = x.as_chunks::<LANES>();
    let (y_body, y_tail) = y.as_chunks::<LANES>();
    let (z_body, z_tail) = z.as_chunks::<LANES>();
    for ((x, y), z) in x_body.iter().zip(y_body).zip(z_body) {
        for i in 0..LANES {
            sums[i] = (x[i] * y[i]).mul_add(z[i], sums[i]);
        }
    }
    for i in 0..x_tail.len() {
        sums[i] = (x_tail[i] * y_tail[i]).mul_add(z_tail[i], sums[i]);
    }
    tree(sums)
}

/// The largest number of `x`, negative infinity if there is none; NaN is skipped.
#[inline(always)]
pub(super) fn max(x: &[f32]) -> f32 {
    let mut tops = [f32::NEG_INFINITY; LANES];
    let (body, tail) = x.as_chunks::<LANES>();
    for x in body {
        for i in 0..LANES {
            tops[i] = if x[i] > tops[i] { x[i] } else { tops[i] };
        }
    }
    for i in 0..tail.len() {
        tops[i] = if tail[i] > tops[i] { tail[i] } else { tops[i] };
    }
    let mut top = tops[0];
    for x in tops {
        top = if x > top { x } else { top };
    }
    top
}

/// The sum of `x`.
#[inline(always)]
pub(super) fn sum(x: &[f32]) -> f32 {
    fold2(
        x,
        x,
        #[inline(always)]
        |sum, x, _| sum + x,
    )
}
