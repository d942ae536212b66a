//! Attention of one token, or of several, over the keys and values in a cache each.

use super::{Float, THREADS, rows_aligned};
use crate::stream::Launch;
use crate::{Buffer, Device, Error, Kernel, Module, Slice, SliceMut};

static MODULE: Module = Module { name: "attention_cached", ptx: include_str!("attention_cached.ptx") };

const fn kernel(entry: &'static str) -> Kernel {
    Kernel { module: &MODULE, entry }
}

static PART: [Kernel; 2] = [kernel("attention_part"), kernel("attention_part_bf16")];
static JOIN: Kernel = kernel("attention_join");

/// Keys of a part, the unit of work of a block. Of the .cu; the order of the sums hangs on it.
const KEYS: usize = 128;
/// Query heads of a key-value head. Of the .cu.
pub const MAX_GROUP: usize = 16;
/// D. Of the .cu.
pub const MAX_DIM: usize = 256;

/// Keys and values of one sequence or several, in a cache each with room for `capacity` positions, as [`kernels::attention::CachedKv`]:
/// `[caches, K, capacity, D]` each.
#[derive(Clone, Copy, Debug)]
pub struct CachedKv<'a, W> {
    /// Keys.
    pub k: Slice<'a, W>,
    /// Values.
    pub v: Slice<'a, W>,
    /// Positions that there is room for.
    pub capacity: usize,
}

/// Heads of a decoding step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// H, at most 16 K.
    pub n_heads: usize,
    /// K.
    pub n_kv_heads: usize,
    /// D, at most 256.
    pub head_dim: usize,
}

/// Working memory, kept by the caller from token to token: what the parts of the keys add up to.
#[derive(Debug)]
pub struct AttentionScratch {
    sums: Buffer<f32>,
    maxima: Buffer<f32>,
    totals: Buffer<f32>,
    /// The number of the cache where there is one.
    zero: Buffer<u32>,
}

impl AttentionScratch {
    /// For one token at a time, and a cache of this capacity.
    pub fn new(device: &Device, heads: Heads, capacity: usize) -> Result<AttentionScratch, Error> {
        AttentionScratch::for_tokens(device, heads, capacity, 1)
    }

    /// For at most so many tokens at once.
    pub fn for_tokens(device: &Device, heads: Heads, capacity: usize, n: usize) -> Result<AttentionScratch, Error> {
        let rows = n * capacity.div_ceil(KEYS) * heads.n_heads;
        Ok(AttentionScratch {
            sums: Buffer::stale(device, rows * heads.head_dim)?,
            maxima: Buffer::stale(device, rows)?,
            totals: Buffer::stale(device, rows)?,
            zero: Buffer::zeros(device, 1)?,
        })
    }
}

/// `out = softmax(scale q K^T) V` over the first `kv_len` positions of a cache, for one token, as
/// [`kernels::attention::attention_cached`] with `q_len` 1; `lse` is the logarithm of each softmax's sum.
///
/// Shapes: q, out `[H, D]`; lse `[H]`; one cache. `kv_len[0]`, between 1 and the capacity, is read on the device, so that one recorded launch serves every
/// position; beyond the capacity the cache is read as far as it goes. Accuracy: as the CPU kernel, with `Tk / 128` more roundings.
/// Bytes: K and V once up to `kv_len`: 8 Tk K D, or 4 Tk K D in bf16. Two launches; the grid is that of the capacity.
#[allow(clippy::too_many_arguments)] // the tensors of the formula
#[track_caller]
pub fn attention_cached<W: Float>(
    heads: Heads,
    scale: f32,
    q: Slice<f32>,
    cache: CachedKv<W>,
    kv_len: Slice<u32>,
    scratch: &mut AttentionScratch,
    out: SliceMut<f32>,
    lse: SliceMut<f32>,
) -> Result<(), Error> {
    let AttentionScratch { sums, maxima, totals, zero } = scratch;
    let parts = [sums.as_mut(), maxima.as_mut(), totals.as_mut()];
    run(heads, scale, q, cache, Places { kv_len, cache: zero.as_slice() }, parts, out, lse)
}

/// Where the tokens of a batch stand, in device memory.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// Of each token, the positions that it sees, its own among them: 1 to the capacity.
    pub kv_len: Slice<'a, u32>,
    /// Of each token, the number of its cache. Beyond those that there are, the last is read.
    pub cache: Slice<'a, u32>,
}

/// [`attention_cached`] of several tokens, each over a cache that it names, with the bits that it has alone.
///
/// Shapes: q, out `[N, H, D]`; lse `[N, H]`. Several tokens may have one cache.
#[allow(clippy::too_many_arguments)] // the tensors of the formula
#[track_caller]
pub fn attention_cached_batch<W: Float>(
    heads: Heads,
    scale: f32,
    q: Slice<f32>,
    cache: CachedKv<W>,
    places: Places,
    scratch: &mut AttentionScratch,
    out: SliceMut<f32>,
    lse: SliceMut<f32>,
) -> Result<(), Error> {
    let AttentionScratch { sums, maxima, totals, .. } = scratch;
    run(heads, scale, q, cache, places, [sums.as_mut(), maxima.as_mut(), totals.as_mut()], out, lse)
}

#[allow(clippy::too_many_arguments)] // of the two above
#[track_caller]
fn run<W: Float>(
    heads: Heads,
    scale: f32,
    q: Slice<f32>,
    CachedKv { k, v, capacity }: CachedKv<W>,
    Places { kv_len, cache }: Places,
    [sums, maxima, totals]: [SliceMut<f32>; 3],
    out: SliceMut<f32>,
    lse: SliceMut<f32>,
) -> Result<(), Error> {
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    assert!(
        n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads) && n_heads > 0 && head_dim > 0,
        "attention_cached: {n_heads} query heads of {head_dim} cannot share {n_kv_heads} key-value heads"
    );
    let group = n_heads / n_kv_heads;
    assert!(
        group <= MAX_GROUP && head_dim <= MAX_DIM,
        "attention_cached: {group} query heads of {head_dim} to a key-value head, at most {MAX_GROUP} of {MAX_DIM} on a GPU"
    );
    let (n, of_cache, rows) = (kv_len.len(), n_kv_heads * capacity * head_dim, n_heads * head_dim);
    assert!(
        of_cache > 0
            && k.len() >= of_cache
            && k.len().is_multiple_of(of_cache)
            && v.len() == k.len()
            && cache.len() == n,
        "attention_cached: k {} and v {} elements for caches of [{n_kv_heads}, {capacity}, {head_dim}]; kv_len {n}, caches {}",
        k.len(),
        v.len(),
        cache.len()
    );
    assert!(
        q.len() == n * rows && out.len() == n * rows && lse.len() == n * n_heads,
        "attention_cached: q {}, out {} and lse {} elements for [{n}, {n_heads}, {head_dim}]",
        q.len(),
        out.len(),
        lse.len()
    );
    let parts = capacity.div_ceil(KEYS);
    assert!(
        sums.len() >= n * parts * rows && maxima.len() >= n * parts * n_heads,
        "attention_cached: scratch of {} sums for {parts} parts of [{n}, {n_heads}, {head_dim}]",
        sums.len()
    );
    let aligned = rows_aligned(k, head_dim) && rows_aligned(v, head_dim);
    let grid = [parts, n_kv_heads, n];
    let launch = Launch::new(W::of(&PART), grid, THREADS as u32).arg(q).arg(k).arg(v).arg(kv_len).arg(cache).arg(scale);
    let launch = launch.arg(n_kv_heads).arg(group).arg(head_dim).arg(capacity).arg(k.len() / of_cache).arg(aligned);
    // SAFETY: the parameters are those of the kernels; a block touches the keys of its part that are within the capacity, in a cache that exists,
    // and row `part` of its token in the three results.
    unsafe { launch.arg(&sums).arg(&maxima).arg(&totals).run()? };
    let launch = Launch::new(&JOIN, [n_heads, n], THREADS as u32).arg(sums.as_slice()).arg(maxima.as_slice());
    // SAFETY: the parameters are those of the kernel; it reads the parts that were written, at most those of the capacity.
    unsafe { launch.arg(totals.as_slice()).arg(kv_len).arg(capacity).arg(head_dim).arg(&out).arg(&lse).run() }
}
