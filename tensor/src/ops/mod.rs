//! Every operation on tensors: checks the shapes, makes the result, and runs the kernel of the device where the operands lie.
//!
//! An op has the name of its kernel. Results are new tensors; where a gradient or product may be added to what is there, the
//! destination and a [`Beta`](crate::Beta) are arguments. Operands that are views are made contiguous first, except the
//! factors of [`matmul()`], which keep their strides.
//!
//! All of them panic, at the line of their caller, if an operand has another shape or element type than the op's
//! documentation says, if the operands lie on different devices, or if a destination is not contiguous or shares its
//! storage. The message names the op, the operand, both shapes and the axis.

mod adamw;
mod attention;
mod elementwise;
mod embedding;
mod gated_activation;
mod lm_head_loss;
mod matmul;
mod reduce;
mod rms_norm;
mod rope;

pub use adamw::{AdamW, adamw};
pub use attention::{Attention, attention, attention_backward};
pub use elementwise::*;
pub use embedding::{embedding, embedding_backward};
pub use gated_activation::{GatedGradients, gated_activation, gated_activation_backward};
pub use lm_head_loss::{LossGradients, lm_head_loss, lm_head_loss_backward};
pub use matmul::{matmul, matmul_into};
pub use reduce::{count_positive, first_non_finite, sum, sum_abs, sum_squares, sum_to};
pub use rms_norm::{rms_norm, rms_norm_backward};
pub use rope::{Rotation, rope};

use crate::Storage;
use crate::check::Operand;
use kernels::Team;
use std::sync::Arc;

/// Where an op runs: decided by its operands, which must all lie on one device.
pub(crate) enum Place {
    /// On the CPU, by this team.
    Cpu(Arc<Team>),
}

/// The place of `operands`. Panics if they lie on different devices or on one whose kernels are not written, are not of
/// the element type, or are to be written and may not.
#[track_caller]
pub(crate) fn place(op: &str, operands: &[Operand]) -> Place {
    let first = operands[0].tensor;
    for operand in operands {
        let (a, b) = (first.device(), operand.tensor.device());
        assert!(a == b, "{op}: operands on {a:?} and {b:?}; move them to one with to_device");
        operand.check(op);
    }
    match first.storage() {
        Storage::Cpu(_) => Place::Cpu(Team::current()),
        Storage::Cuda(buffer) => {
            panic!("{op}: no kernel for {:?}; move the operands to the cpu with to_device", buffer.device())
        }
    }
}

#[cfg(test)]
mod tests;
