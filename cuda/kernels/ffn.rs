//! The FFN of a decoded token, or of several, dense and sparse, with equal bits.

use super::gated_activation::Any;
use super::gemv::for_tokens;
use super::{Float, THREADS, rows_aligned};
use crate::stream::Launch;
use crate::{Buffer, Device, Error, Kernel, Module, Slice, SliceMut};
use kernels::{Activation, Beta};

static MODULE: Module = Module { name: "ffn", ptx: include_str!("ffn.ptx") };

const fn kernel(entry: &'static str) -> Kernel {
    Kernel { module: &MODULE, entry }
}

/// By the element type, then for at most 1, 2, 4 and 8 tokens.
static GATE: [[Kernel; 4]; 2] = [
    [kernel("ffn_gate_1"), kernel("ffn_gate_2"), kernel("ffn_gate_4"), kernel("ffn_gate_8")],
    [kernel("ffn_gate_bf16_1"), kernel("ffn_gate_bf16_2"), kernel("ffn_gate_bf16_4"), kernel("ffn_gate_bf16_8")],
];
static UP_DOWN: [[Kernel; 4]; 2] = [
    [kernel("ffn_up_down_1"), kernel("ffn_up_down_2"), kernel("ffn_up_down_4"), kernel("ffn_up_down_8")],
    [
        kernel("ffn_up_down_bf16_1"),
        kernel("ffn_up_down_bf16_2"),
        kernel("ffn_up_down_bf16_4"),
        kernel("ffn_up_down_bf16_8"),
    ],
];
static SUM: Kernel = kernel("ffn_sum");

/// Neurons of a tile, the unit of work of a block. Of the .cu; the order of the sum of y hangs on it.
pub const TILE: usize = 64;
/// Of the .cu.
const MAX_TILES: usize = 1024;
/// d_ff at most.
pub const MAX_NEURONS: usize = MAX_TILES * TILE;
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
    tokens: usize,
    tiles: usize,
    neurons: Buffer<u32>,
    values: Buffer<f32>,
    /// Four numbers for each tile.
    counts: Buffer<u32>,
    sums: Buffer<f32>,
    totals: Buffer<u32>,
    /// For what a single token has by value.
    zeros: Buffer<u32>,
}

impl FfnScratch {
    /// For FFNs of `d_ff` neurons, and rows of `d_model`, of one token at a time.
    pub fn new(device: &Device, d_ff: usize, d_model: usize) -> Result<FfnScratch, Error> {
        FfnScratch::for_tokens(device, d_ff, d_model, 1)
    }

    /// For at most so many tokens at once.
    pub fn for_tokens(device: &Device, d_ff: usize, d_model: usize, tokens: usize) -> Result<FfnScratch, Error> {
        let tiles = d_ff.div_ceil(TILE);
        Ok(FfnScratch {
            tokens,
            tiles,
            neurons: Buffer::stale(device, tiles * TILE)?,
            values: Buffer::stale(device, tiles * TILE * tokens.next_power_of_two())?,
            counts: Buffer::stale(device, 4 * tiles)?,
            sums: Buffer::stale(device, tiles * tokens * d_model)?,
            totals: Buffer::stale(device, 2)?,
            zeros: Buffer::zeros(device, 1)?,
        })
    }

    /// How many neurons of each tile were in use by the last call.
    pub fn counts(&self) -> Slice<'_, u32> {
        self.counts.as_slice().part(0..self.tiles)
    }
}

/// The FFN of one token under RELU from the active neurons alone, as [`kernels::sparse::ffn_sparse`]: y overwritten, or added to (the residual).
///
/// Shapes: weights `[F, C]`, x and y `[C]`; F at most [`MAX_NEURONS`]. Equal, bit for bit, to [`ffn_dense`] with RELU, for finite weights and x.
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
    alone("ffn_sparse", weights, Activation::Relu, false, x, scratch, beta, y)
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
    alone("ffn_dense", weights, act, true, x, scratch, beta, y)
}

#[allow(clippy::too_many_arguments)] // of the two above, and which it is
#[track_caller]
fn alone<W: Float>(
    op: &str,
    weights: FfnWeights<W>,
    act: Activation,
    all: bool,
    x: Slice<f32>,
    scratch: &mut FfnScratch,
    beta: Beta,
    y: SliceMut<f32>,
) -> Result<(), Error> {
    let FfnScratch { tiles, neurons, values, counts, sums, totals, zeros, .. } = scratch;
    let of = Neurons { act, all, all_too: Some(zeros.as_slice()) };
    let (positions, samples) = (zeros.as_slice(), zeros.as_slice());
    let lists = Lists { tiles: *tiles, neurons, values, counts, sums };
    run(op, weights, of, Tokens { positions, samples }, x, lists, beta, y, totals.as_mut())
}

/// Where the tokens of a batch stand: what their draws are made from, in device memory, so that a recorded launch serves every step.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a> {
    /// Of each token, its position, which is added to the `first_token` of the mask site.
    pub positions: Slice<'a, u32>,
    /// Its sample's number, which is added to the `step` of the mask site.
    pub samples: Slice<'a, u32>,
}

/// Which neurons the FFN of a batch uses.
#[derive(Clone, Copy, Debug)]
pub struct Neurons<'a> {
    act: Activation,
    all: bool,
    /// All, if this number in device memory is not 0.
    all_too: Option<Slice<'a, u32>>,
}

impl<'a> Neurons<'a> {
    /// All of them, under any activation.
    pub fn all(act: Activation) -> Neurons<'a> {
        Neurons { act, all: true, all_too: None }
    }

    /// Under RELU, those that are active; or all of them, with equal bits, where a number in device memory is not 0.
    pub fn active(all: Slice<'a, u32>) -> Neurons<'a> {
        Neurons { act: Activation::Relu, all: false, all_too: Some(all) }
    }
}

/// The FFN of several tokens, as [`kernels::sparse::ffn_sparse_batch`] and [`kernels::sparse::ffn_dense_batch`]: the gate is read in full, up and
/// down_t in the rows that any token uses, each once.
///
/// Shapes: weights `[F, C]`, x and y `[N, C]`, N at most [`MAX_TOKENS`](super::gemv::MAX_TOKENS) and what the scratch is for; `totals` two: pairs of a token and a neuron whose
/// psi(g) is not 0, and neurons for which that is so for any token. Each row of y has the bits that [`ffn_sparse`] or [`ffn_dense`] gives for its row of x.
/// Bytes: as for one token, with the share of neurons that any token uses; sums of a tile 8 C for each token that uses it. Three launches.
#[allow(clippy::too_many_arguments)] // two results
#[track_caller]
pub fn ffn_batch<W: Float>(
    weights: FfnWeights<W>,
    neurons: Neurons,
    tokens: Tokens,
    x: Slice<f32>,
    scratch: &mut FfnScratch,
    beta: Beta,
    y: SliceMut<f32>,
    totals: SliceMut<u32>,
) -> Result<(), Error> {
    let n = tokens.positions.len();
    assert!(n <= scratch.tokens, "ffn_batch: {n} tokens, scratch for {}", scratch.tokens);
    let FfnScratch { tiles, neurons: list, values, counts, sums, .. } = scratch;
    let lists = Lists { tiles: *tiles, neurons: list, values, counts, sums };
    run("ffn_batch", weights, neurons, tokens, x, lists, beta, y, totals)
}

/// The working memory of the launches.
struct Lists<'a> {
    tiles: usize,
    neurons: &'a mut Buffer<u32>,
    values: &'a mut Buffer<f32>,
    counts: &'a mut Buffer<u32>,
    sums: &'a mut Buffer<f32>,
}

#[allow(clippy::too_many_arguments)] // of `ffn_batch`
#[track_caller]
fn run<W: Float>(
    op: &str,
    FfnWeights { gate, up, down_t }: FfnWeights<W>,
    Neurons { act, all, all_too }: Neurons,
    Tokens { positions, samples }: Tokens,
    x: Slice<f32>,
    lists: Lists,
    beta: Beta,
    y: SliceMut<f32>,
    totals: SliceMut<u32>,
) -> Result<(), Error> {
    let n = positions.len();
    // Without it all are used anyway, and the number is not looked at.
    let all_too = all_too.unwrap_or(positions.part(0..n.min(1)));
    let (gate_kernel, up_down_kernel) = (for_tokens(op, W::of(&GATE), n), for_tokens(op, W::of(&UP_DOWN), n));
    let (c, len) = (x.len() / n, gate.len());
    assert!(
        c > 0
            && x.len() == n * c
            && y.len() == x.len()
            && len.is_multiple_of(c)
            && up.len() == len
            && down_t.len() == len,
        "{op}: gate {len}, up {} and down_t {} elements must all be [F, C], x {} and y {} both [N, C], {n} tokens",
        up.len(),
        down_t.len(),
        x.len(),
        y.len()
    );
    assert!(
        samples.len() == n && all_too.len() == 1 && totals.len() == 2,
        "{op}: {} samples for {n} tokens, {} numbers that say whether all neurons are used, {} totals",
        samples.len(),
        all_too.len(),
        totals.len()
    );
    let d_ff = len / c;
    let tiles = d_ff.div_ceil(TILE);
    assert!(tiles <= MAX_TILES, "{op}: {d_ff} neurons, at most {MAX_NEURONS} on a GPU");
    assert!(
        lists.tiles == tiles && lists.sums.len() >= tiles * n * c,
        "{op}: scratch for {} tiles of {TILE} neurons and {} sums; [F, C] is [{d_ff}, {c}], {n} tokens",
        lists.tiles,
        lists.sums.len()
    );
    let aligned = [gate, up, down_t].iter().all(|&w| rows_aligned(w, c)) && x.is_aligned();
    let Lists { neurons, values, counts, sums, .. } = lists;
    let (neurons, values, counts, sums) = (neurons.as_mut(), values.as_mut(), counts.as_mut(), sums.as_mut());

    let launch = Any::of(act).args(Launch::new(gate_kernel, tiles, THREADS as u32)).arg(positions).arg(samples);
    let launch = launch.arg(all).arg(all_too).arg(gate).arg(x).arg(n).arg(d_ff).arg(c).arg(aligned);
    // SAFETY: the parameters are those of the kernels; block t touches the rows of tile t, its 64 places in the lists, and its counts.
    unsafe { launch.arg(&neurons).arg(&values).arg(&counts).run()? };

    let launch = Launch::new(up_down_kernel, tiles, THREADS as u32).arg(up).arg(down_t).arg(x).arg(n).arg(c);
    let launch = launch.arg(aligned).arg(neurons.as_slice()).arg(values.as_slice()).arg(&counts);
    // SAFETY: the parameters are those of the kernels; the lists hold neurons below F, and block t writes rows t n .. t n + n of the sums.
    unsafe { launch.arg(&sums).run()? };

    let launch = Launch::new(&SUM, [c.div_ceil(COLUMNS), n], THREADS as u32).arg(sums.as_slice()).arg(&counts);
    // SAFETY: the parameters are those of the kernel; it reads the rows of sums that were written, and touches y below N C and two totals.
    unsafe { launch.arg(tiles).arg(c).arg(beta == Beta::One).arg(&y).arg(&totals).run() }
}
