//! Rotary embedding of new tokens, whose keys and values join a cache, at positions in device memory.

use super::attention_cached::Heads;
use super::{Float, THREADS};
use crate::stream::Launch;
use crate::{Error, Kernel, Module, Slice, SliceMut};

static MODULE: Module = Module { name: "kv_append", ptx: include_str!("kv_append.ptx") };
static KERNELS: [Kernel; 2] =
    [Kernel { module: &MODULE, entry: "kv_append" }, Kernel { module: &MODULE, entry: "kv_append_bf16" }];

/// Caches that are written to: [`CachedKv`](super::attention_cached::CachedKv), `[caches, K, capacity, D]` each.
#[derive(Debug)]
pub struct CacheMut<'a, E> {
    /// Keys.
    pub k: SliceMut<'a, E>,
    /// Values.
    pub v: SliceMut<'a, E>,
    /// Positions that there is room for.
    pub capacity: usize,
}

/// Where each of the new tokens goes, in device memory: its position, and the number of its cache.
#[derive(Clone, Copy, Debug)]
pub struct Slots<'a> {
    /// Below the capacity.
    pub positions: Slice<'a, u32>,
    /// Below the number of caches.
    pub cache: Slice<'a, u32>,
}

/// `q = rope(q)` in its place; `rope(k)` and v at the tokens' positions of their caches, rounded to nearest if those are bf16. With the bits of
/// [`rope`](super::rope::rope).
///
/// Shapes: cos, sin `[positions, D / 2]`, of the capacity at least, D even; q `[N, H, D]`; k, v `[N, K, D]`. A token whose position or cache does not exist
/// cannot be refused here: it is left out. No two tokens may have the same place. Bytes: 8 H D and 8 or 12 each for k and v, a token. One launch.
#[allow(clippy::too_many_arguments)] // three tensors and where they go
#[track_caller]
pub fn kv_append<E: Float>(
    heads: Heads,
    slots: Slots,
    cos: Slice<f32>,
    sin: Slice<f32>,
    q: SliceMut<f32>,
    k: Slice<f32>,
    v: Slice<f32>,
    to: CacheMut<E>,
) -> Result<(), Error> {
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    let CacheMut { k: k_cache, v: v_cache, capacity } = to;
    let Slots { positions, cache } = slots;
    let (n, half, of_cache) = (positions.len(), head_dim / 2, n_kv_heads * capacity * head_dim);
    assert!(
        head_dim > 0 && head_dim.is_multiple_of(2) && cache.len() == n,
        "kv_append: heads of {head_dim} (even), {n} positions and {} caches",
        cache.len()
    );
    assert!(
        q.len() == n * n_heads * head_dim && k.len() == n * n_kv_heads * head_dim && v.len() == k.len(),
        "kv_append: q {}, k {} and v {} elements for {n} tokens of {heads:?}",
        q.len(),
        k.len(),
        v.len()
    );
    assert!(
        of_cache > 0 && k_cache.len().is_multiple_of(of_cache) && v_cache.len() == k_cache.len(),
        "kv_append: {} keys and {} values for caches of [{n_kv_heads}, {capacity}, {head_dim}]",
        k_cache.len(),
        v_cache.len()
    );
    assert!(
        cos.len() == sin.len() && cos.len() >= capacity * half,
        "kv_append: cos {} and sin {} elements for {capacity} positions of {half} angles",
        cos.len(),
        sin.len()
    );
    let pairs = n * (n_heads + 2 * n_kv_heads) * half;
    let launch = Launch::new(E::of(&KERNELS), pairs.div_ceil(THREADS), THREADS as u32).arg(positions).arg(cache);
    let launch = launch.arg(cos).arg(sin).arg(n).arg(n_heads).arg(n_kv_heads).arg(head_dim).arg(capacity);
    let launch = launch.arg(k_cache.len() / of_cache).arg(k).arg(v).arg(&q).arg(&k_cache).arg(&v_cache);
    // SAFETY: the parameters are those of the kernels; a thread touches a pair of its token, and one in a cache at a position that exists.
    unsafe { launch.run() }
}
