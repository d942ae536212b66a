//! Table look-up and its transpose.

use super::{Float, THREADS, rows_aligned};
use crate::stream::Launch;
use crate::{Error, Kernel, Module, Slice, SliceMut};

static MODULE: Module = Module { name: "embedding", ptx: include_str!("embedding.ptx") };
static FORWARD: [Kernel; 2] =
    [Kernel { module: &MODULE, entry: "embedding" }, Kernel { module: &MODULE, entry: "embedding_bf16" }];
static BACKWARD: Kernel = Kernel { module: &MODULE, entry: "embedding_backward" };

/// Columns of a block of the backward, four to a thread.
const COLUMNS: usize = 4 * THREADS;

/// `out[n, :] = table[tokens[n], :]`, widened, as [`kernels::embedding::embedding`]. Exact.
///
/// Shapes: table `[V, C]`, C = `d_model`; tokens `[N]`; out `[N, C]`. A token that is not below V cannot be refused here, where the tokens are not
/// known: its row becomes NaN. Bytes: a row of the table and one of out for each token.
#[track_caller]
pub fn embedding<W: Float>(
    table: Slice<W>,
    tokens: Slice<u32>,
    d_model: usize,
    out: SliceMut<f32>,
) -> Result<(), Error> {
    check("embedding", "out", table.len(), tokens.len(), d_model, out.len());
    let aligned = rows_aligned(table, d_model) && rows_aligned(out.as_slice(), d_model);
    let launch = Launch::new(W::of(&FORWARD), tokens.len(), THREADS as u32).arg(table).arg(tokens);
    // SAFETY: the parameters are those of the kernels; block n touches row n of out, and a row of the table that exists.
    unsafe { launch.arg(table.len() / d_model).arg(d_model).arg(aligned).arg(&out).run() }
}

/// `d_table[tokens[n], :] += d_out[n, :]`, rows in order, as [`kernels::embedding::embedding_backward`], with its bits.
///
/// Shapes: d_out `[N, C]`, C = `d_model`; tokens `[N]`; d_table `[V, C]`. A token that is not below V adds nothing. No atomics: the first place
/// of a token owns its row. Bytes: 4 N C read, and the rows of the tokens read and written; every block reads the tokens, some N^2 / 2 words in
/// all, from the L2 (16 Ki tokens: half a gigabyte).
#[track_caller]
pub fn embedding_backward(
    d_out: Slice<f32>,
    tokens: Slice<u32>,
    d_model: usize,
    d_table: SliceMut<f32>,
) -> Result<(), Error> {
    check("embedding_backward", "d_out", d_table.len(), tokens.len(), d_model, d_out.len());
    let aligned = rows_aligned(d_out, d_model) && rows_aligned(d_table.as_slice(), d_model);
    let grid = [tokens.len(), d_model.div_ceil(COLUMNS)];
    let launch = Launch::new(&BACKWARD, grid, THREADS as u32).arg(d_out).arg(tokens).arg(tokens.len());
    // SAFETY: the parameters are those of the kernel; blocks touch rows of d_table that exist, each row by one block for each strip of columns.
    unsafe { launch.arg(d_table.len() / d_model).arg(d_model).arg(aligned).arg(&d_table).run() }
}

#[track_caller]
fn check(name: &str, rows: &str, table_len: usize, n: usize, d_model: usize, rows_len: usize) {
    assert!(
        d_model > 0 && table_len.is_multiple_of(d_model) && rows_len == n * d_model && (table_len > 0 || n == 0),
        "{name}: table {table_len} and {rows} {rows_len} elements for {n} tokens of d_model {d_model}"
    );
}
