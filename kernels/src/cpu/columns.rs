//! Column blocks of a row-major matrix, for different threads.

use std::marker::PhantomData;

/// An exclusive view of some columns of some rows of a matrix.
#[derive(Debug)]
pub(super) struct Columns<'a> {
    first: *mut f32,
    rows: usize,
    stride: usize,
    width: usize,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: a view is an exclusive borrow of plain numbers, like `&mut [f32]`.
unsafe impl Send for Columns<'_> {}

impl Columns<'_> {
    /// The columns of row `row`.
    #[inline(always)]
    pub(super) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: `split` laid `rows` rows of `width` numbers, `stride` apart, inside one borrowed slice, and
        // no other view shares a number with this one; `&mut self` keeps rows of this view apart.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(row * self.stride), self.width) }
    }
}

/// Cuts `data`, rows of `stride` numbers, into views of `rows` rows and `width` columns: first along a row,
/// then downwards. Views at the right edge may be narrower, views at the bottom shorter.
pub(super) fn split(
    data: &mut [f32],
    stride: usize,
    rows: usize,
    width: usize,
) -> impl Iterator<Item = Columns<'_>> {
    data.chunks_mut((rows * stride).max(1)).flat_map(move |band| {
        let rows = band.len() / stride;
        let start = band.as_mut_ptr();
        (0..stride).step_by(width.max(1)).map(move |column| Columns {
            first: start.wrapping_add(column),
            rows,
            stride,
            width: width.min(stride - column),
            owner: PhantomData,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn every_number_belongs_to_one_view() {
        let (rows, stride) = (7, 10);
        for (height, width) in [(1, 1), (2, 3), (3, 10), (7, 5), (9, 12)] {
            let mut data = vec![0.0; rows * stride];
            for (index, mut view) in split(&mut data, stride, height, width).enumerate() {
                for row in 0..view.rows {
                    view.row(row).iter_mut().for_each(|x| *x += 1.0 + index as f32);
                }
            }
            assert!(data.iter().all(|&x| x > 0.0));
            let across = stride.div_ceil(width);
            for (i, &x) in data.iter().enumerate() {
                let expected = (i / stride / height) * across + (i % stride) / width;
                assert_eq!(x, 1.0 + expected as f32, "number {i}, views {height}x{width}");
            }
        }
    }
}
