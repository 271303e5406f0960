//! Views of matrices by strides.

/// A matrix inside a slice: number `(r, c)` sits at `r * row_stride + c * column_stride`.
#[derive(Clone, Copy, Debug)]
pub(super) struct MatrixView<'a> {
    pub(super) data: &'a [f32],
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
}

impl<'a> MatrixView<'a> {
    /// Rows of `width` numbers, one after the other.
    pub(super) fn rows(data: &'a [f32], width: usize) -> Self {
        Self { data, row_stride: width, column_stride: 1 }
    }

    /// The same numbers read as columns.
    pub(super) fn transposed(self) -> Self {
        Self { row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }

    /// The part that begins at number `(row, column)`, which exists.
    pub(super) fn part(self, row: usize, column: usize) -> Self {
        Self { data: &self.data[row * self.row_stride + column * self.column_stride..], ..self }
    }

    /// Number `(row, column)`.
    pub(super) fn at(self, row: usize, column: usize) -> f32 {
        self.data[row * self.row_stride + column * self.column_stride]
    }

    /// Panics unless `rows x columns` numbers lie inside the slice.
    pub(super) fn check(self, rows: usize, columns: usize) {
        if rows > 0 && columns > 0 {
            let last = (rows - 1) * self.row_stride + (columns - 1) * self.column_stride;
            assert!(last < self.data.len(), "matrix {rows}x{columns} leaves its buffer");
        }
    }
}
