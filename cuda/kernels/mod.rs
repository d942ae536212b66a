//! The kernels of the GPU: device slices in, device slices out.
//!
//! Each file is the launch of the kernels in the `.cu` beside it, which is compiled ahead to the `.ptx` beside it (`cuda/compile.py`). Names,
//! arguments and formulas are those of the CPU kernel of the same name in the crate `kernels`, whose documentation holds here too; what
//! differs is said. All of them put their work on the device's stream and return; they panic, at the line of their caller, if a length does
//! not fit or slices lie on different devices, and fail if the driver does.
//!
//! **Same bits each time, on every GPU.** Floats are never added by atomics: partial sums go to memory and are added in an order that depends
//! on shapes only. All arithmetic is IEEE, so that it does not depend on the GPU: elementwise kernels have the bits of the CPU's levels with
//! fused multiply-adds.

pub mod adamw;
pub mod attention;
pub mod attention_cached;
pub mod elementwise;
pub mod embedding;
pub mod ffn;
pub mod gated_activation;
pub mod gemm;
pub mod gemm_bf16;
pub mod gemm_gated_activation;
pub mod gemv;
pub mod kv_append;
pub mod lm_head_loss;
pub mod reduce;
pub mod rms_norm;
pub mod rope;
pub mod softmax_loss;
pub mod strided;

use crate::Slice;
use bytemuck::Pod;
use half::bf16;

/// Threads of a block, where a file does not say otherwise.
const THREADS: usize = 256;
/// Threads that run in step.
const WARP: usize = 32;

/// The element types that kernels compute with: f32, and bf16 where a product reads or writes the tensor. Sums are in f32 for both.
pub trait Float: Pod + sealed::Sealed {
    /// `f32` or `bf16`.
    const NAME: &'static str;
    /// The one of a pair (f32, bf16) that is for this type.
    fn of<K>(pair: &[K; 2]) -> &K;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
}

impl Float for f32 {
    const NAME: &'static str = "f32";
    fn of<K>(pair: &[K; 2]) -> &K {
        &pair[0]
    }
}

impl Float for bf16 {
    const NAME: &'static str = "bf16";
    fn of<K>(pair: &[K; 2]) -> &K {
        &pair[1]
    }
}

/// Whether rows of `row_len` elements begin at multiples of 16 bytes, if the slice does.
fn rows_aligned<T: Pod>(x: Slice<T>, row_len: usize) -> bool {
    x.is_aligned() && (row_len * size_of::<T>()).is_multiple_of(16)
}

/// Threads of a block that takes `len` elements, four at a time to a thread: whole warps, a power of two of them, and at most `most`.
fn threads_for(len: usize, most: usize) -> u32 {
    len.div_ceil(4).next_power_of_two().clamp(WARP, most) as u32
}
