//! The micro-kernel of AVX512-BF16: that of AVX-512 on pairs of bf16.
//!
//! A word of a strip or panel holds two terms that follow each other; one instruction adds both products to an
//! f32. For the rest such words pass for f32 numbers, so packing and tiles are those of the other kernels.

use super::{
    avx512::{AHEAD, HEIGHT, LANES, VECTORS, kernel, micro_kernel},
    tile::Kernel,
};
use std::{arch::x86_64::*, mem::transmute};

pub(super) static KERNEL: Kernel = kernel(true, compute);

/// `sum + a0 b0 + a1 b1` in every lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply_add(a: __m512, b: __m512, sum: __m512) -> __m512 {
    // SAFETY: both types are 64 bytes of which all patterns are values.
    let [a, b] = unsafe { [transmute::<__m512, __m512bh>(a), transmute::<__m512, __m512bh>(b)] };
    _mm512_dpbf16_ps(sum, a, b)
}

micro_kernel!("avx512f,avx512bf16", multiply_add);
