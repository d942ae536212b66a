use super::{Place, place};
use crate::check::{expect_matrix, reads, rows_and_cols, writes};
use crate::{Beta, DType, Storage, Tensor};
use kernels::{Mat, MatMut};

/// `C = A B` for matrices A `[M, K]` and B `[K, N]`, views of any strides: transposes cost nothing.
/// Panics unless both are matrices of f32 with one K.
#[track_caller]
pub fn matmul(a: &Tensor, b: &Tensor) -> Tensor {
    let ([m, _], [_, n]) = (expect_matrix("matmul", "a", a), expect_matrix("matmul", "b", b));
    let mut c = Tensor::stale([m, n], DType::F32);
    matmul_into(a, b, Beta::Zero, &mut c);
    c
}

/// `C = A B`, or `C += A B` with [`Beta::One`]. C may have any axes that make M rows of N, such as `[B, T, N]`.
/// Panics as [`matmul()`], and unless C is contiguous and unshared.
#[track_caller]
pub fn matmul_into(a: &Tensor, b: &Tensor, beta: Beta, c: &mut Tensor) {
    let ([m, k], [k_b, n]) = (expect_matrix("matmul", "a", a), expect_matrix("matmul", "b", b));
    assert!(k == k_b, "matmul: {} x {}: axis 1 of a is {k}, axis 0 of b is {k_b}", a.shape, b.shape);
    let (rows, cols) = rows_and_cols("matmul", "c", c);
    assert!((rows, cols) == (m, n), "matmul: {} x {} into c {}, expected {m} rows of {n}", a.shape, b.shape, c.shape);
    match place("matmul", &[reads("a", a), reads("b", b), writes("c", c)]) {
        Place::Cpu(team) => kernels::gemm::gemm(&team, mat(a), mat(b), beta, MatMut::new(c.slice_mut(), m, n)),
    }
}

/// A matrix on the CPU, with its strides.
fn mat(x: &Tensor) -> Mat<'_> {
    let Storage::Cpu(block) = &x.storage else { unreachable!("place() said the cpu") };
    let data = &block.elements::<f32>()[x.offset..];
    Mat::strided(data, x.shape[0], x.shape[1], x.strides[0], x.strides[1])
}
