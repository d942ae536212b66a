use super::{Place, place, rows_and_cols};
use crate::{Beta, DType, Storage, Tensor};
use kernels::{Mat, MatMut};

/// `C = A B` for matrices A `[M, K]` and B `[K, N]`, views of any strides: transposes cost nothing.
/// Panics unless both are matrices of f32 with one K.
#[track_caller]
pub fn matmul(a: &Tensor, b: &Tensor) -> Tensor {
    assert!(a.shape.rank() == 2 && b.shape.rank() == 2, "matmul: {} x {}: not matrices", a.shape, b.shape);
    let mut c = Tensor::stale([a.shape[0], b.shape[1]], DType::F32);
    matmul_into(a, b, Beta::Zero, &mut c);
    c
}

/// `C = A B`, or `C += A B` with [`Beta::One`]. C may have any axes that make M rows of N, such as `[B, T, N]`.
/// Panics as [`matmul`], and unless C is contiguous and unshared.
#[track_caller]
pub fn matmul_into(a: &Tensor, b: &Tensor, beta: Beta, c: &mut Tensor) {
    assert!(a.shape.rank() == 2 && b.shape.rank() == 2, "matmul: {} x {}: not matrices", a.shape, b.shape);
    let ([m, k], [k_b, n]) = ([a.shape[0], a.shape[1]], [b.shape[0], b.shape[1]]);
    assert!(k == k_b, "matmul: {} x {}: axis 1 of the first is {k}, axis 0 of the second {k_b}", a.shape, b.shape);
    let (rows, cols) = rows_and_cols("matmul", "the destination", c);
    assert!((rows, cols) == (m, n), "matmul: {} x {} into a destination of shape {}", a.shape, b.shape, c.shape);
    match place("matmul", &[a, b, c]) {
        Place::Cpu(team) => kernels::gemm::gemm(&team, mat(a), mat(b), beta, MatMut::new(c.slice_mut(), m, n)),
    }
}

/// A matrix on the CPU, with its strides.
#[track_caller]
fn mat(x: &Tensor) -> Mat<'_> {
    assert_eq!(x.dtype, DType::F32, "matmul: a factor of {}", x.dtype);
    let Storage::Cpu(block) = &x.storage else { unreachable!("place() said the cpu") };
    let data = &block.elements::<f32>()[x.offset..];
    Mat::strided(data, x.shape[0], x.shape[1], x.strides[0], x.strides[1])
}
