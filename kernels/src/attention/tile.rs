//! The product of small matrices that lie in L1 and L2, read in place: no packing.
//!
//! The general [`gemm`](crate::gemm::gemm) packs both operands first, which pays when a panel is read many times. A block of
//! attention is read a few times only, and its buffers are laid out so that the right operand always has its columns side
//! by side, padded to whole vectors: what packing would make of it. Measured with all else equal (one thread of a Zen 5,
//! avx512, T = 512, D = 64, busy machine, best of 60): 170 GFLOP/s forward and 176 backward in place, 93 and 104 packed.

use crate::simd::{Isa, Kernel, Simd};
use crate::{Beta, Mat, MatMut};

/// `C = A B` or, with [`Beta::One`], `C += A B`. Shapes: A `[M, K]`, B `[K, N]`, C `[M, N]`. A has any strides; the columns
/// of B are adjacent and N is a multiple of the vector.
///
/// Each element of C is one chain of `mul_add` over K in ascending order.
pub(super) struct Product<'a> {
    pub a: Mat<'a>,
    pub b: Mat<'a>,
    pub beta: Beta,
    pub c: MatMut<'a>,
}

impl Kernel for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Product { a, b, beta, mut c } = self;
        assert!(a.cols == b.rows && a.rows == c.rows && b.cols == c.cols, "attention: product of unequal shapes");
        let whole = b.col_stride == 1 && b.cols.is_multiple_of(S::LANES);
        assert!(whole, "attention: the right operand is not in whole vectors");
        if a.rows == 0 || a.cols == 0 {
            assert!(beta == Beta::One || a.rows == 0, "attention: an empty sum has nothing to overwrite with");
            return;
        }
        // Rows times vectors of C that are held in registers. An FMA of 4 cycles on two pipes needs 8 accumulators; 16 leave
        // room for the operands among the 32 registers of `avx512`, 12 among the 16 of `avx2`. `portable` has its
        // vectors in two registers each, as in GEMM. Loads for 16 FMAs of `avx512`: 8, 10 and 17 (of two a cycle beside two
        // FMAs).
        // SAFETY: the asserts above are the contract.
        unsafe {
            let c = &mut c;
            match S::ISA {
                Isa::Avx512 => {
                    let j = panels::<S, 4, 4>(s, a, b, beta, c, 0);
                    let j = panels::<S, 8, 2>(s, a, b, beta, c, j);
                    panels::<S, 16, 1>(s, a, b, beta, c, j);
                }
                Isa::Avx2 => {
                    let j = panels::<S, 6, 2>(s, a, b, beta, c, 0);
                    panels::<S, 12, 1>(s, a, b, beta, c, j);
                }
                Isa::Portable => {
                    panels::<S, 4, 1>(s, a, b, beta, c, 0);
                }
                Isa::Scalar => {
                    let j = panels::<S, 4, 4>(s, a, b, beta, c, 0);
                    panels::<S, 16, 1>(s, a, b, beta, c, j);
                }
            }
        }
    }
}

/// Columns of C from `j` on, as long as `NV` whole vectors are left. Returns the first column that is left.
///
/// # Safety
/// - A is `[M, K]`, B `[K, N]` with adjacent columns, C `[M, N]`; M and K are not 0.
#[inline(always)]
unsafe fn panels<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    a: Mat,
    b: Mat,
    beta: Beta,
    c: &mut MatMut,
    mut j: usize,
) -> usize {
    while b.cols - j >= NV * S::LANES {
        // SAFETY: the caller's contract; the columns exist.
        unsafe { panel::<S, MR, NV>(s, a, b, beta, c, j) };
        j += NV * S::LANES;
    }
    j
}

/// Columns `j .. j + NV LANES` of C.
///
/// # Safety
/// - A is `[M, K]`, B `[K, N]` with adjacent columns, C `[M, N]`; M and K are not 0; `j + NV LANES <= N`.
#[inline(always)]
unsafe fn panel<S: Simd, const MR: usize, const NV: usize>(s: S, a: Mat, b: Mat, beta: Beta, c: &mut MatMut, j: usize) {
    for i in (0..a.rows).step_by(MR) {
        let rows = MR.min(a.rows - i);
        // Beyond the last row the last one is computed again and not stored.
        let mut a_rows = [a.data.as_ptr(); MR];
        for (r, row) in a_rows.iter_mut().enumerate() {
            // SAFETY: row i + min(r, rows - 1) < M begins inside the data of A.
            *row = unsafe { a.data.as_ptr().add((i + r.min(rows - 1)) * a.row_stride) };
        }
        let mut acc = [[s.splat(0.0); NV]; MR];
        for k in 0..a.cols {
            let mut b_k = [s.splat(0.0); NV];
            for (v, b_k) in b_k.iter_mut().enumerate() {
                // SAFETY: row k of B and these columns of it exist.
                *b_k = unsafe { s.load_ptr(b.data.as_ptr().add(k * b.row_stride + j + v * S::LANES)) };
            }
            for (a_row, acc) in a_rows.iter().zip(&mut acc) {
                // SAFETY: (row r, k) is an element of A.
                let a_rk = s.splat(unsafe { *a_row.add(k * a.col_stride) });
                for (acc, &b_k) in acc.iter_mut().zip(&b_k) {
                    *acc = s.mul_add(a_rk, b_k, *acc);
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            // Not `take(rows)`: with a number known to the compiler the accumulators stay in registers.
            if r < rows {
                for (v, acc) in acc.into_iter().enumerate() {
                    // SAFETY: row i + r < M and these columns of C exist.
                    unsafe {
                        let dst = c.data.as_mut_ptr().add((i + r) * c.row_stride + j + v * S::LANES);
                        s.store_ptr(if beta == Beta::One { s.add(s.load_ptr(dst), acc) } else { acc }, dst);
                    }
                }
            }
        }
    }
}
