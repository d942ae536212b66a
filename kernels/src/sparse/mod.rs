//! The FFN of one token, dense and sparse, with equal bits.
//!
//! All three matrices are `[F, C]` (`down_t` is down_proj transposed), so that a neuron is one contiguous row in each:
//! `g = gate x`, then for each neuron i in use `h_i = psi(g_i) * (up_i . x)` and `y += h_i * down_t_i`.
//!
//! Neurons are cut into chunks by their index. The rows of a chunk are added one after the other into a sum of its own, and
//! the sums are added in order, to +0. A neuron with `psi(g_i) = 0` adds a zero, which leaves every sum as it is, but
//! perhaps for the sign of a zero, which the last addition drops. So leaving such neurons out changes no bit of y,
//! provided that weights and x are finite (0 times infinity is NaN).

use crate::Team;

mod batch;
mod ffn;
mod filter;
mod prompt;
mod rows_axpy;
mod rows_dot;
mod select;

pub use batch::{BatchCounts, ffn_dense_batch, ffn_sparse_batch};
pub use ffn::{FfnScratch, FfnWeights, ffn_dense, ffn_sparse};
pub use filter::{FILTER_VERSION, FilterLine, Filtered, GateFilter, ffn_filtered, gate_filter_lines};
pub use prompt::ffn_sparse_prompt;
pub(crate) use rows_axpy::axpy_group;
pub use rows_axpy::rows_axpy;
pub use rows_dot::rows_dot;
pub use select::select_active;

/// Most neurons in a chunk. A chunk costs one more row of sums.
const MAX_CHUNK: usize = 512;

/// Neurons in a chunk for `F = d_ff`: a function of the shape alone, because the order of the sum of y hangs on it. Small
/// FFNs get smaller chunks, so that there are some 16 tasks to share.
fn chunk_len(d_ff: usize) -> usize {
    (d_ff / 16).next_multiple_of(32).clamp(32, MAX_CHUNK)
}

/// The neurons that a task of one sparse token takes: one or several chunks, one after the other. Which ones changes no bit, since each
/// chunk has a sum of its own.
#[derive(Clone, Copy)]
struct Run {
    first: usize,
    len: usize,
    /// Neurons in a chunk.
    chunk: usize,
}

impl Run {
    /// Chunks of a task. Rows with gaps are slow to begin with, so that long runs of them are fast: with all 16 chunks of d_ff 5632 in
    /// one, a thread of a Zen 5 takes 4.5 % less time for the filtered FFN and 2 % less for the sparse one (bf16, 90 % zeros). Several
    /// threads get four tasks each, for one that is held up to leave its share to the others.
    fn chunks(team: &Team, d_ff: usize) -> usize {
        let chunks = d_ff.div_ceil(chunk_len(d_ff));
        match team.threads() {
            1 => chunks.max(1),
            threads => chunks.div_ceil(4 * threads).max(1),
        }
    }

    /// That of task number `task`.
    fn of(team: &Team, d_ff: usize, task: usize) -> Run {
        let chunk = chunk_len(d_ff);
        let most = Run::chunks(team, d_ff) * chunk;
        let first = task * most;
        Run { first, len: most.min(d_ff - first), chunk }
    }
}
