//! The kernels of Silurian: slices in, slices out.
//!
//! Every kernel is one file with the same three parts: a struct of arguments whose `run<S: Simd>` reads like the formula,
//! a public function that states formula, shapes, panics and accuracy, checks lengths and dispatches, and tests that hold
//! it to the scalar specification of the same name in [`reference`](mod@reference), on every level this CPU has.
//!
//! - [`simd`]: the levels, and the one trait they implement.
//! - [`RowFormat`]: how the rows of the token path's weights are stored: in elements of a [`Weight`] type, [packed](mod@packed) or
//!   [quantised](mod@quant).
//! - [`Team`]: threads. Work is cut by shape only, so bits do not depend on how many there are.
//!
//! Shape letters: B batch, T time, N = B T rows (tokens), C d_model, H heads, K kv heads, D head_dim, F d_ff, V vocabulary;
//! GEMM keeps M N K. All matrices are row-major unless a [`Mat`] says otherwise.

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod elementwise;
pub mod embedding;
pub mod gemm;
pub mod gemv;
pub mod gemv_batch;
pub mod limits;
pub mod lm_head_loss;
pub mod packed;
mod panel;
pub mod philox;
mod pointwise;
pub mod quant;
pub mod reduce;
pub mod reference;
pub mod rms_norm;
pub mod rope;
pub mod row_format;
mod scratch;
pub mod simd;
pub mod sparse;
mod stochastic;
pub mod team;
pub mod testing;
pub mod weight;

pub use activation::{Activation, Fixed, MaskSite, Positive};
pub use gemm::{Mat, MatMut};
pub use row_format::RowFormat;
pub use simd::{Isa, Level, LevelError};
pub use team::Team;
pub use weight::Weight;

/// What a kernel does with the destination of a gradient or product: GEMM's beta, which is only ever 0 or 1 here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beta {
    /// Overwrite. The old contents are not read, so they may be stale or NaN.
    Zero,
    /// Add to what is there.
    One,
}
