//! Numbers in memory that begins with a cache line.

use bytemuck::{Pod, Zeroable};

/// The numbers of one cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Line([f32; 16]);

// SAFETY: all bits zero are zeros.
unsafe impl Zeroable for Line {}
// SAFETY: 64 bytes of f32 aligned to 64 bytes leave no padding, and any bits are numbers.
unsafe impl Pod for Line {}

impl Line {
    /// Numbers of a line.
    pub(super) const LEN: usize = 16;
    pub(super) const ZERO: Self = Self([0.0; Self::LEN]);

    pub(super) fn numbers(lines: &[Self]) -> &[f32] {
        bytemuck::cast_slice(lines)
    }

    pub(super) fn numbers_mut(lines: &mut [Self]) -> &mut [f32] {
        bytemuck::cast_slice_mut(lines)
    }
}
