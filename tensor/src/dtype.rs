//! Element types.

use std::fmt;

/// The type of a tensor's elements. Both take four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision: weights, activations, gradients.
    F32,
    /// Token numbers.
    U32,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        4
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::U32 => "u32",
        })
    }
}
