//! The FFN of one token, dense and sparse, with equal bits.

use super::gated_activation::Any;
use super::{Float, THREADS, rows_aligned};
use crate::stream::Launch;
use crate::{Buffer, Device, Error, Kernel, Module, Slice, SliceMut};
use kernels::{Activation, Beta};

static MODULE: Module = Module { name: "ffn", ptx: include_str!("ffn.ptx") };

const fn kernel(entry: &'static str) -> Kernel {
    Kernel { module: &MODULE, entry }
}

static GATE: [Kernel; 2] = [kernel("ffn_gate"), kernel("ffn_gate_bf16")];
static UP_DOWN: [Kernel; 2] = [kernel("ffn_up_down"), kernel("ffn_up_down_bf16")];
static SUM: Kernel = kernel("ffn_sum");

/// Neurons of a tile, the unit of work of a block. Of the .cu; the order of the sum of y hangs on it.
pub const TILE: usize = 64;
/// Of the .cu.
const MAX_TILES: usize = 1024;
/// Columns of a block of the last sum.
const COLUMNS: usize = 32;

/// The weights of an FFN, as [`kernels::sparse::FfnWeights`]: all `[F, C]`, so that a neuron is one row in each.
#[derive(Clone, Copy, Debug)]
pub struct FfnWeights<'a, W> {
    /// gate_proj.
    pub gate: Slice<'a, W>,
    /// up_proj.
    pub up: Slice<'a, W>,
    /// down_proj transposed.
    pub down_t: Slice<'a, W>,
}

/// Working memory of an FFN, kept by the caller from token to token.
#[derive(Debug)]
pub struct FfnScratch {
    neurons: Buffer<u32>,
    values: Buffer<f32>,
    counts: Buffer<u32>,
    sums: Buffer<f32>,
}

impl FfnScratch {
    /// For FFNs of `d_ff` neurons, and rows of `d_model`.
    pub fn new(device: &Device, d_ff: usize, d_model: usize) -> Result<FfnScratch, Error> {
        let tiles = d_ff.div_ceil(TILE);
        Ok(FfnScratch {
            neurons: Buffer::stale(device, tiles * TILE)?,
            values: Buffer::stale(device, tiles * TILE)?,
            counts: Buffer::stale(device, tiles)?,
            sums: Buffer::stale(device, tiles * d_model)?,
        })
    }

    /// How many neurons of each tile were in use by the last call: what the density is measured by.
    pub fn counts(&self) -> Slice<'_, u32> {
        self.counts.as_slice()
    }
}

/// The FFN of one token under RELU from the active neurons alone, as [`kernels::sparse::ffn_sparse`]: y overwritten, or added to (the residual).
///
/// Shapes: weights `[F, C]`, x and y `[C]`; F at most 65536. Equal, bit for bit, to [`ffn_dense`] with RELU, for finite weights and x.
/// Accuracy: that of the CPU kernel, and `F / 64` more roundings of the sums. Bytes: gate in full, up and down_t only in the active rows; the
/// sums of tiles with active neurons, 8 C each, stay in the L2. Three launches.
#[track_caller]
pub fn ffn_sparse<W: Float>(
    weights: FfnWeights<W>,
    x: Slice<f32>,
    scratch: &mut FfnScratch,
    beta: Beta,
    y: SliceMut<f32>,
) -> Result<(), Error> {
    run("ffn_sparse", weights, Activation::Relu, false, x, scratch, beta, y)
}

/// The FFN of one token over all neurons, under any activation, as [`kernels::sparse::ffn_dense`]: y overwritten, or added to.
///
/// Shapes as [`ffn_sparse`]; the token is row 0 of the mask site. Bytes: all three matrices, 12 F C, or 6 F C in bf16. Three launches.
#[track_caller]
pub fn ffn_dense<W: Float>(
    weights: FfnWeights<W>,
    act: Activation,
    x: Slice<f32>,
    scratch: &mut FfnScratch,
    beta: Beta,
    y: SliceMut<f32>,
) -> Result<(), Error> {
    run("ffn_dense", weights, act, true, x, scratch, beta, y)
}

#[allow(clippy::too_many_arguments)] // of the two above, and which it is
#[track_caller]
fn run<W: Float>(
    op: &str,
    FfnWeights { gate, up, down_t }: FfnWeights<W>,
    act: Activation,
    all: bool,
    x: Slice<f32>,
    scratch: &mut FfnScratch,
    beta: Beta,
    y: SliceMut<f32>,
) -> Result<(), Error> {
    let (c, len) = (x.len(), gate.len());
    assert!(
        c > 0 && y.len() == c && len.is_multiple_of(c) && up.len() == len && down_t.len() == len,
        "{op}: gate {len}, up {} and down_t {} elements must all be [F, C], x {c} and y {} both [C]",
        up.len(),
        down_t.len(),
        y.len()
    );
    let d_ff = len / c;
    let tiles = d_ff.div_ceil(TILE);
    assert!(tiles <= MAX_TILES, "{op}: {d_ff} neurons, at most {} on a GPU", MAX_TILES * TILE);
    let FfnScratch { neurons, values, counts, sums } = scratch;
    assert!(
        neurons.len() >= tiles * TILE && counts.len() >= tiles && sums.len() >= tiles * c,
        "{op}: scratch for {} neurons and {} sums; [F, C] is [{d_ff}, {c}]",
        neurons.len(),
        sums.len()
    );
    let aligned = [gate, up, down_t].iter().all(|&w| rows_aligned(w, c)) && x.is_aligned();
    let (neurons, values, counts, sums) = (neurons.as_mut(), values.as_mut(), counts.as_mut(), sums.as_mut());

    let launch =
        Any::of(act).args(Launch::new(W::of(&GATE), tiles, THREADS as u32)).arg(all).arg(gate).arg(x).arg(d_ff).arg(c);
    // SAFETY: the parameters are those of the kernels; block t touches the rows of tile t, its 64 places in the lists, and counts[t].
    unsafe { launch.arg(aligned).arg(&neurons).arg(&values).arg(&counts).run()? };

    let launch = Launch::new(W::of(&UP_DOWN), tiles, THREADS as u32).arg(up).arg(down_t).arg(x).arg(c).arg(aligned);
    let launch = launch.arg(neurons.as_slice()).arg(values.as_slice()).arg(counts.as_slice());
    // SAFETY: the parameters are those of the kernels; the lists hold neurons below F, and block t writes row t of the sums.
    unsafe { launch.arg(&sums).run()? };

    let launch = Launch::new(&SUM, c.div_ceil(COLUMNS), THREADS as u32).arg(sums.as_slice()).arg(counts.as_slice());
    // SAFETY: the parameters are those of the kernel; it reads the rows of sums that were written, and touches y below C.
    unsafe { launch.arg(tiles).arg(c).arg(beta == Beta::One).arg(&y).run() }
}
