//! The specification: every kernel as plain scalar loops in `f64`, one function of the same name.
//!
//! Nothing here is fast and nothing here is shared with the kernels. A function returns what its kernel computes from
//! zeroed destinations; where a test needs the size of the rounding error, the function returns beside each result the same
//! sum taken over absolute values (`abs`), from which [`testing::dot_bound`](crate::testing::dot_bound) gives the bound.

mod activation;
mod attention;
mod lm_head_loss;
mod matrix;
mod norm;
mod optimizer;
mod quant;
mod reduce;
mod rope;
mod sparse;

pub use activation::*;
pub use attention::*;
pub use lm_head_loss::*;
pub use matrix::*;
pub use norm::*;
pub use optimizer::*;
pub use quant::*;
pub use reduce::*;
pub use rope::*;
pub use sparse::*;
