//! Magnitudes of numbers, compared as integers.

/// The bits of infinity: a number is finite if its magnitude is below.
pub(super) const INFINITE: i32 = 0x7F80_0000;

/// The bits of `|x|`, in the order of the numbers, with NaN on top; signed, as every instruction set compares those.
#[inline(always)]
pub(super) fn magnitude(bits: u32) -> i32 {
    (bits & 0x7FFF_FFFF) as i32
}

/// The bits of the largest magnitude of `x`, 0 if there is none.
#[inline(always)]
pub(super) fn largest_bits(x: &[f32]) -> i32 {
    let mut largest = 0;
    for x in x {
        largest = largest.max(magnitude(x.to_bits()));
    }
    largest
}
