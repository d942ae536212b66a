use super::{Place, place, with_float};
use crate::check::{expect_matrix, reads_float, reads_like, rows_and_cols, writes_like};
use crate::{Beta, DType, Element, Storage, Tensor};
use cuda::ops::gemm::Mat as DenseMat;
use kernels::{Mat, MatMut};

/// `C = A B` for matrices A `[M, K]` and B `[K, N]`, views of any strides: transposes cost nothing (on a GPU, if
/// only one is transposed and nothing else is a view; others are copied). In bf16 the sums are f32, and C is rounded.
/// Panics unless both are matrices of one float type with one K.
#[track_caller]
pub fn matmul(a: &Tensor, b: &Tensor) -> Tensor {
    let ([m, _], [_, n]) = (expect_matrix("matmul", "a", a), expect_matrix("matmul", "b", b));
    let mut c = Tensor::stale_on(&a.device(), [m, n], a.dtype);
    matmul_into(a, b, Beta::Zero, &mut c);
    c
}

/// `C = A B`, or `C += A B` with [`Beta::One`]. C may have any axes that make M rows of N, such as `[B, T, N]`.
/// A product of bf16 may go into C of f32, unrounded. Panics as [`matmul()`], and unless C is contiguous and unshared.
#[track_caller]
pub fn matmul_into(a: &Tensor, b: &Tensor, beta: Beta, c: &mut Tensor) {
    let ([m, k], [k_b, n]) = (expect_matrix("matmul", "a", a), expect_matrix("matmul", "b", b));
    assert!(k == k_b, "matmul: {} x {}: axis 1 of a is {k}, axis 0 of b is {k_b}", a.shape, b.shape);
    let (rows, cols) = rows_and_cols("matmul", "c", c);
    assert!((rows, cols) == (m, n), "matmul: {} x {} into c {}, expected {m} rows of {n}", a.shape, b.shape, c.shape);
    let c_dtype = if c.dtype == a.dtype { c.dtype } else { DType::F32 };
    match place("matmul", &[reads_float("a", a), reads_like("b", b, a.dtype), writes_like("c", c, c_dtype)]) {
        Place::Cpu(team) => kernels::gemm::gemm(&team, mat(a), mat(b), beta, MatMut::new(c.slice_mut(), m, n)),
        Place::Cuda(gpu) => {
            // The kernel takes dense matrices, of which one may be transposed; the rest is copied.
            let is_transposed = |x: &Tensor| !x.is_contiguous() && x.t().is_contiguous();
            let a = if is_transposed(a) { a.clone() } else { a.contiguous() };
            let b = if is_transposed(b) && !is_transposed(&a) { b.clone() } else { b.contiguous() };
            gpu.done(match a.dtype {
                DType::Bf16 => with_float!(c_dtype, C => {
                    cuda::ops::gemm_bf16::gemm_bf16(cuda_mat(&a), cuda_mat(&b), beta, c.cuda_slice_mut::<C>())
                }),
                _ => cuda::ops::gemm::gemm(cuda_mat(&a), cuda_mat(&b), beta, c.cuda_slice_mut()),
            });
        }
    }
}

/// A matrix on a GPU, dense as it is or as its transpose.
pub(super) fn cuda_mat<T: Element>(x: &Tensor) -> DenseMat<'_, T> {
    let Storage::Cuda(buffer) = &x.storage else { unreachable!("place() said a GPU") };
    let data = buffer.as_slice().cast().part(x.range());
    let &[rows, cols] = &*x.shape else { unreachable!("a matrix was expected") };
    if x.is_contiguous() { DenseMat::new(data, rows, cols) } else { DenseMat::new(data, cols, rows).t() }
}

/// A matrix on the CPU, with its strides.
fn mat(x: &Tensor) -> Mat<'_> {
    let Storage::Cpu(block) = &x.storage else { unreachable!("place() said the cpu") };
    let data = &block.elements::<f32>()[x.offset..];
    Mat::strided(data, x.shape[0], x.shape[1], x.strides[0], x.strides[1])
}
