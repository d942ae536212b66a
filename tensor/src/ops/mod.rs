//! Every operation on tensors: checks the shapes, makes the result, and runs the kernel of the device where the operands lie.
//!
//! An op has the name of its kernel. Results are new tensors; where a gradient or product may be added to what is there, the
//! destination and a [`Beta`](crate::Beta) are arguments. Operands that are views are made contiguous first, except the
//! factors of [`matmul()`], which keep their strides.
//!
//! All of them panic, at the line of their caller, if an operand has another shape or element type than the op's
//! documentation says, if the operands lie on different devices, or if a destination is not contiguous or shares its
//! storage. The message names the op, the operand, both shapes and the axis.
//!
//! **Precision is a property of the operands.** An op whose documentation says *float* takes f32, or, on a GPU, bf16: products then read bf16
//! and sum in f32, and results have the operands' type unless it is said. All others take f32. On the CPU a bf16 operand panics.
//!
//! They [`raise`](crate::failure) if a GPU fails or its memory ends, with the op and the driver's sentence: a panic, unless someone
//! waits for it. What moves data ([`Tensor::to_device`], [`Tensor::to_vec`]) gives the failure as an error.
//! On a GPU an op returns when its kernels are on the stream; only [`first_non_finite`] waits for its number. The others leave theirs
//! there, as a [`Total`].

mod adamw;
mod attention;
mod cast;
mod elementwise;
mod embedding;
mod gated_activation;
mod lm_head_loss;
mod matmul;
mod reduce;
mod rms_norm;
mod rope;

pub use adamw::{AdamW, adamw, clip_factor};
pub use attention::{Attention, attention, attention_backward};
pub use cast::{cast, copy};
pub use elementwise::*;
pub use embedding::{embedding, embedding_backward};
pub use gated_activation::{
    Gated, GatedGradients, gated_activation, gated_activation_backward, gemm_gated_activation,
    gemm_gated_activation_backward,
};
pub use lm_head_loss::{LossGradients, lm_head_loss, lm_head_loss_backward};
use matmul::cuda_mat;
pub use matmul::{matmul, matmul_into};
pub use reduce::{count_positive, first_non_finite, sum, sum_abs, sum_squares, sum_to};
pub use rms_norm::{rms_norm, rms_norm_as, rms_norm_backward};
pub use rope::{Rotation, rope};

use crate::check::Operand;
use crate::total::{At, Total};
use crate::{DType, Device, Shape, Storage, Tensor, failure};
use kernels::Team;
use std::sync::Arc;

/// Where an op runs: decided by its operands, which must all lie on one device.
pub(crate) enum Place<'a> {
    /// On the CPU, by this team.
    Cpu(Arc<Team>),
    /// On a GPU.
    Cuda(Gpu<'a>),
}

impl Place<'_> {
    /// A tensor there, to be overwritten: the op's result. Panics if the memory does not suffice.
    #[track_caller]
    pub(crate) fn stale(&self, shape: impl Into<Shape>, dtype: DType) -> Tensor {
        match self {
            Place::Cpu(_) => Tensor::stale(shape, dtype),
            Place::Cuda(gpu) => gpu.done(Tensor::try_stale_on(&self.device(), shape.into(), dtype)),
        }
    }

    /// All elements `value`, there.
    #[track_caller]
    pub(crate) fn full(&self, value: f32, shape: impl Into<Shape>) -> Tensor {
        Tensor::full_on(&self.device(), value, shape)
    }

    fn device(&self) -> Device {
        match self {
            Place::Cpu(_) => Device::Cpu,
            Place::Cuda(gpu) => Device::Cuda(gpu.device.clone()),
        }
    }
}

/// A GPU that runs an op.
pub(crate) struct Gpu<'a> {
    op: &'a str,
    device: cuda::Device,
}

impl Gpu<'_> {
    /// What a kernel's launch or a copy gave. Panics with the op and the driver's failure if it failed: see the module.
    #[track_caller]
    pub(crate) fn done<T>(&self, outcome: Result<T, cuda::Error>) -> T {
        outcome.unwrap_or_else(|e| failure::raise(self.op, e))
    }

    /// The number that `kernel` makes, which stays on the device.
    #[track_caller]
    pub(crate) fn total(&self, kernel: impl FnOnce(cuda::SliceMut<f64>) -> Result<(), cuda::Error>) -> Total {
        let made = cuda::Buffer::stale(&self.device, 1).and_then(|mut number| {
            kernel(number.as_mut())?;
            Ok(number)
        });
        Total(At::Cuda(self.done(made)))
    }
}

/// The place of `operands`. Panics if they lie on different devices, are not of the element type, or are to be written and
/// may not.
#[track_caller]
pub(crate) fn place<'a>(op: &'a str, operands: &[Operand]) -> Place<'a> {
    let first = operands[0].tensor;
    for operand in operands {
        let (a, b) = (first.device(), operand.tensor.device());
        assert!(a == b, "{op}: operands on {a:?} and {b:?}; move them to one with to_device");
        operand.check(op);
    }
    match first.storage() {
        Storage::Cpu(_) => Place::Cpu(Team::current()),
        Storage::Cuda(buffer) => Place::Cuda(Gpu { op, device: buffer.device().clone() }),
    }
}

/// `$body` with `$t` as the Rust type of `$dtype`, which is f32 or bf16: what [`place`] checked.
macro_rules! with_float {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $t = f32;
                $body
            }
            $crate::DType::Bf16 => {
                type $t = half::bf16;
                $body
            }
            $crate::DType::U32 => unreachable!("place() refuses u32"),
        }
    };
}
use with_float;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_bf16;
