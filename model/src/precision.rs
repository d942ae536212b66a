//! The numbers that training computes with.

use serde::{Deserialize, Serialize};
use std::fmt;
use tensor::DType;

/// The precision of training. Whatever it is, master weights, moments and gradients of weights, the residual stream, norms, softmax and
/// loss are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Everything is f32.
    #[default]
    F32,
    /// Products read bf16 and sum in f32, on tensor cores, and what flows between them is bf16: normalised rows, queries, keys, values, gates
    /// and the gradients of these. The products' weights are copies of the master weights, rounded once a step. On a GPU alone.
    Bf16,
}

impl Precision {
    /// The element type of what products read.
    pub fn dtype(self) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::Bf16,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.dtype().fmt(f)
    }
}
