//! Causal attention of many queries, forward and backward.

use super::{Float, rows_aligned};
use crate::stream::Launch;
use crate::{Buffer, Error, Kernel, Module, Slice, SliceMut};
use kernels::Beta;
use kernels::attention::AttentionShape;

static FORWARD_MODULE: Module = Module { name: "attention", ptx: include_str!("attention.ptx") };
static BACKWARD_MODULE: Module = Module { name: "attention_backward", ptx: include_str!("attention_backward.ptx") };

const fn forward(entry: &'static str) -> Kernel {
    Kernel { module: &FORWARD_MODULE, entry }
}

const fn backward(entry: &'static str) -> Kernel {
    Kernel { module: &BACKWARD_MODULE, entry }
}

/// By the element type, then for D up to 64 and up to 128.
type Kernels = [[Kernel; 2]; 2];

static FORWARD: Kernels = [
    [forward("attention_64"), forward("attention_128")],
    [forward("attention_bf16_64"), forward("attention_bf16_128")],
];
static BACKWARD_KV: Kernels = [
    [backward("attention_backward_kv_64"), backward("attention_backward_kv_128")],
    [backward("attention_backward_kv_bf16_64"), backward("attention_backward_kv_bf16_128")],
];
static BACKWARD_Q: Kernels = [
    [backward("attention_backward_q_64"), backward("attention_backward_q_128")],
    [backward("attention_backward_q_bf16_64"), backward("attention_backward_q_bf16_128")],
];
static DELTA: [Kernel; 2] = [backward("attention_delta"), backward("attention_delta_bf16")];

/// Threads of a block for f32 and bf16. Of the .cu.
const THREADS: [u32; 2] = [256, 128];
/// Queries of a block of the forward for f32 and bf16. Of the .cu.
const FORWARD_ROWS: [usize; 2] = [32, 64];
/// Queries or keys of a block of the backward, as [`Kernels`]. Of the .cu.
const BACKWARD_ROWS: [[usize; 2]; 2] = [[32, 16], [64, 64]];
/// Rows of a block of delta, one for each warp.
const DELTA_ROWS: usize = 8;
/// D. Of the .cu.
pub const MAX_DIM: usize = 128;

/// That of the CPU, and what is a GPU's own.
#[track_caller]
fn check(op: &str, shape: AttentionShape, like_q: &[(&str, usize)], like_k: &[(&str, usize)], lse: usize) {
    shape.check(op, like_q, like_k, lse);
    assert!(shape.head_dim <= MAX_DIM, "{op}: heads of {}, at most {MAX_DIM} on a GPU", shape.head_dim);
}

/// The one of [`Kernels`], or of numbers like them, for this element type and head.
fn pick<T: Float, K>(table: &[[K; 2]; 2], shape: AttentionShape) -> &K {
    &T::of(table)[usize::from(shape.head_dim > MAX_DIM / 2)]
}

/// With the shape as parameters.
fn with_shape(launch: Launch<'_>, shape: AttentionShape) -> Launch<'_> {
    let launch = launch.arg(shape.q_len).arg(shape.kv_len).arg(shape.n_heads).arg(shape.n_kv_heads);
    launch.arg(shape.head_dim)
}

/// `out = softmax(scale Q K^T + causal mask) V`, and `lse`, the logarithm of each softmax's sum, as [`kernels::attention::attention`].
///
/// Shapes as in [`AttentionShape`], D at most 128: q, out `[B, Tq, H, D]`; k, v `[B, Tk, K, D]`; lse `[B, H, Tq]`. Tensors are f32, computed
/// with plain multiply-adds, or bf16, on tensor cores; lse is f32 for both.
///
/// Accuracy: in f32 that of the CPU kernel, with blocks of 32 keys. In bf16 the sums of products are as in
/// [`gemm_bf16`](super::gemm_bf16::gemm_bf16), each probability is rounded to bf16 before it meets V (2^-8 of it), its sum is not, and out is rounded. NaN and infinities
/// in v may reach the queries up to 63 before their position, because 0 times NaN is NaN.
///
/// Operations: `4 D` for each visible pair, and those above the diagonal in its blocks; D counts as 64 or 128. Bytes: q and out once; K and V once
/// for each 64 queries (32 in f32) of each head, mostly from the L2. D that is no multiple of 8, or a slice that does not begin at 16 bytes, is
/// copied element by element, far slower.
/// Source: Dao, arXiv 2307.08691; GQA arXiv 2305.13245.
#[track_caller]
pub fn attention<T: Float>(
    shape: AttentionShape,
    scale: f32,
    q: Slice<T>,
    k: Slice<T>,
    v: Slice<T>,
    out: SliceMut<T>,
    lse: SliceMut<f32>,
) -> Result<(), Error> {
    let (like_q, like_k) = ([("q", q.len()), ("out", out.len())], [("k", k.len()), ("v", v.len())]);
    check("attention", shape, &like_q, &like_k, lse.len());
    let aligned = [q, k, v, out.as_slice()].iter().all(|&x| rows_aligned(x, shape.head_dim));
    let blocks = shape.batch * shape.n_heads * shape.q_len.div_ceil(*T::of(&FORWARD_ROWS));
    let launch = Launch::new(pick::<T, _>(&FORWARD, shape), blocks, *T::of(&THREADS)).arg(q).arg(k).arg(v);
    let launch = with_shape(launch, shape).arg(scale).arg(aligned);
    // SAFETY: the parameters are those of the kernels; a block reads the rows of its head that exist, and writes those of its queries.
    unsafe { launch.arg(&out).arg(&lse).run() }
}

/// What the backward of attention reads, as [`kernels::attention::AttentionSaved`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionSaved<'a, T> {
    /// Queries, as given to the forward.
    pub q: Slice<'a, T>,
    /// Keys.
    pub k: Slice<'a, T>,
    /// Values.
    pub v: Slice<'a, T>,
    /// The forward's result.
    pub out: Slice<'a, T>,
    /// The forward's `lse`.
    pub lse: Slice<'a, f32>,
}

/// The gradients `dq`, `dk`, `dv` of [`attention`], overwritten or added to as `beta` says, as [`kernels::attention::attention_backward`].
///
/// Three launches: `delta = rowsum(dO * O)` (`4 B H Tq` bytes of working memory); dk and dv, in blocks of keys that go over the queries of all heads
/// of their group, head by head; dq, in blocks of queries that go over keys. No sum is split over blocks: the bits depend on the shape
/// alone, and on the generation of the GPU in bf16.
///
/// Shapes as in [`attention`]: d_out and dq like q, dk and dv like k. Accuracy: in f32 that of the CPU kernel. In bf16, P and dS are rounded before their
/// products, as are the results, and delta comes from a rounded out.
///
/// Operations: `14 D` for each visible pair, where 10 D would do: S and dP are computed for dk and dv, and once more for dq. Bytes: k, v, dk and
/// dv once, q and d_out once for each 64 keys of each key-value head, K and V once for each 64 queries (16 or 32 in f32), mostly from the L2.
/// Source: Dao, arXiv 2307.08691, algorithm 2.
#[allow(clippy::too_many_arguments)] // the tensors of the formula
#[track_caller]
pub fn attention_backward<T: Float>(
    shape: AttentionShape,
    scale: f32,
    saved: AttentionSaved<T>,
    d_out: Slice<T>,
    beta: Beta,
    dq: SliceMut<T>,
    dk: SliceMut<T>,
    dv: SliceMut<T>,
) -> Result<(), Error> {
    let AttentionSaved { q, k, v, out, lse } = saved;
    let like_q = [("q", q.len()), ("out", out.len()), ("d_out", d_out.len()), ("dq", dq.len())];
    let like_k = [("k", k.len()), ("v", v.len()), ("dk", dk.len()), ("dv", dv.len())];
    check("attention_backward", shape, &like_q, &like_k, lse.len());
    let tensors = [q, k, v, out, d_out, dq.as_slice(), dk.as_slice(), dv.as_slice()];
    let aligned = tensors.iter().all(|&x| rows_aligned(x, shape.head_dim));

    let mut delta = Buffer::<f32>::stale(q.device(), shape.lse_elements())?;
    let to = delta.as_mut();
    let launch = Launch::new(T::of(&DELTA), to.len().div_ceil(DELTA_ROWS), 32 * DELTA_ROWS as u32).arg(out).arg(d_out);
    // SAFETY: the parameters are those of the kernels; a warp reads a row of each and writes its delta.
    unsafe { with_shape(launch, shape).arg(shape.batch).arg(aligned).arg(&to).run()? };

    let (rows, threads) = (*pick::<T, _>(&BACKWARD_ROWS, shape), *T::of(&THREADS));
    let launch = |kernels, blocks| {
        let launch = Launch::new(pick::<T, _>(kernels, shape), shape.batch * blocks, threads).arg(q).arg(k).arg(v);
        let launch = with_shape(launch.arg(d_out).arg(lse).arg(delta.as_slice()), shape);
        launch.arg(scale).arg(aligned).arg(beta == Beta::One)
    };
    // SAFETY: the parameters are those of the kernels; a block reads the rows of its head that exist, and writes those of its keys.
    unsafe { launch(&BACKWARD_KV, shape.n_kv_heads * shape.kv_len.div_ceil(rows)).arg(&dk).arg(&dv).run()? };
    // SAFETY: as before, with queries.
    unsafe { launch(&BACKWARD_Q, shape.n_heads * shape.q_len.div_ceil(rows)).arg(&dq).run() }
}
