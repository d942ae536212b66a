//! Matrix product in all transposes.

use crate::{Beta, Team, reference};

/// A matrix in a slice, with a stride for rows and one for columns (in elements): transposing swaps them.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// The row-major matrix `[rows, cols]` in `data`. Panics if `data` has another length.
    #[track_caller]
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "Mat::new: {} elements for [{rows}, {cols}]", data.len());
        Mat { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// A matrix `[rows, cols]` with any strides, in elements. Panics if an element would lie outside `data`.
    #[track_caller]
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Self {
        let fits = rows == 0 || cols == 0 || (rows - 1) * row_stride + (cols - 1) * col_stride < data.len();
        assert!(fits, "Mat::strided: [{rows}, {cols}] by ({row_stride}, {col_stride}) in {} elements", data.len());
        Mat { data, rows, cols, row_stride, col_stride }
    }

    /// The transposed view.
    pub fn t(self) -> Self {
        Mat { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// Number of rows.
    pub fn rows(self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(self) -> usize {
        self.cols
    }

    /// Element `(i, j)`.
    pub fn at(self, i: usize, j: usize) -> f32 {
        self.data[i * self.row_stride + j * self.col_stride]
    }
}

/// The destination of a product: row-major, with a row stride of its own.
#[derive(Debug)]
pub struct MatMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a> MatMut<'a> {
    /// The row-major matrix `[rows, cols]` in `data`. Panics if `data` has another length.
    #[track_caller]
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "MatMut::new: {} elements for [{rows}, {cols}]", data.len());
        MatMut { data, rows, cols, row_stride: cols }
    }

    /// A matrix `[rows, cols]` whose rows begin `row_stride` elements apart. Panics if an element would lie outside `data`.
    #[track_caller]
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        let fits = rows == 0 || cols == 0 || (rows - 1) * row_stride + cols <= data.len();
        assert!(
            fits && row_stride >= cols,
            "MatMut::strided: [{rows}, {cols}] by {row_stride} in {} elements",
            data.len()
        );
        MatMut { data, rows, cols, row_stride }
    }
}

/// `C = A B` or, with [`Beta::One`], `C += A B`. Shapes: A `[M, K]`, B `[K, N]`, C `[M, N]`, A and B with any strides.
pub fn gemm(_team: &Team, a: Mat, b: Mat, beta: Beta, c: MatMut) {
    assert!(
        a.cols == b.rows && a.rows == c.rows && b.cols == c.cols,
        "gemm: [{}, {}] x [{}, {}] into [{}, {}]",
        a.rows,
        a.cols,
        b.rows,
        b.cols,
        c.rows,
        c.cols
    );
    let product = reference::gemm(a, b).0;
    for i in 0..c.rows {
        for j in 0..c.cols {
            let dst = &mut c.data[i * c.row_stride + j];
            *dst = product[i * c.cols + j] as f32 + if beta == Beta::One { *dst } else { 0.0 };
        }
    }
}
