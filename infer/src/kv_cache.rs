//! Keys and values of the positions so far.

use crate::buffer::Buffer;
use crate::{CacheMemory, EngineOptions, KvFormat};
use half::bf16;
use kernels::attention::{AttentionShape, CachedKv, attention_cached};
use kernels::{RowFormat, Team, Weight};
use model::Config;

/// Positions that a growing cache begins with; from there it doubles.
const FIRST_CAPACITY: usize = 256;

/// For each layer, the keys (after RoPE) and the values of positions `0 .. len`, each `[K, capacity, D]`: what a head
/// reads is one stretch of memory.
pub(crate) struct KvCache {
    layers: Layers,
    /// K and D.
    heads: usize,
    head_dim: usize,
    len: usize,
    capacity: usize,
    context: usize,
}

enum Layers {
    F32(Vec<Layer<f32>>),
    Bf16(Vec<Layer<bf16>>),
}

/// The same expression for the layers of both formats.
macro_rules! in_any_format {
    ($layers:expr, $name:ident => $result:expr) => {
        match $layers {
            Layers::F32($name) => $result,
            Layers::Bf16($name) => $result,
        }
    };
}

struct Layer<W> {
    k: Buffer<W>,
    v: Buffer<W>,
}

impl<W: Weight> Layer<W> {
    fn all(n_layers: usize, elements: usize) -> Vec<Layer<W>> {
        (0..n_layers).map(|_| Layer { k: Buffer::stale(elements), v: Buffer::stale(elements) }).collect()
    }

    /// Takes over the first `len` positions of `other`, which has the same heads of D and other room.
    fn copy_from(&mut self, other: &Layer<W>, heads: usize, row: usize) {
        for (to, from) in [(&mut self.k, &other.k), (&mut self.v, &other.v)] {
            let (to_head, from_head) = (to.len() / heads, from.len() / heads);
            for (to, from) in to.chunks_exact_mut(to_head).zip(from.chunks_exact(from_head)) {
                to[..row].copy_from_slice(&from[..row]);
            }
        }
    }

    /// Puts `[n, K, D]` behind the first `len` positions of each head, rounded to the nearest there is.
    fn write(&mut self, team: &Team, (heads, d): (usize, usize), len: usize, k: &[f32], v: &[f32]) {
        for (to, from) in [(&mut self.k, k), (&mut self.v, v)] {
            let room = to.len() / heads;
            let of_head = |head: usize, to: &mut [W]| {
                let rows = from.chunks_exact(d).skip(head).step_by(heads);
                to[len * d..].chunks_exact_mut(d).zip(rows).for_each(|(to, row)| W::round_row(team.level(), row, to));
            };
            if from.len() == heads * d {
                // A single position is not worth a call of other threads.
                to.chunks_exact_mut(room).enumerate().for_each(|(head, to)| of_head(head, to));
            } else {
                team.run_chunks_mut(to, room, of_head);
            }
        }
    }
}

impl KvCache {
    /// An empty cache of a model for at most `context` positions.
    pub fn new(config: &Config, context: usize, options: &EngineOptions) -> KvCache {
        let (n_layers, heads, head_dim) = (config.n_layers, config.n_kv_heads, config.head_dim);
        let capacity = match options.cache {
            CacheMemory::Fixed => context,
            CacheMemory::Growing => context.min(FIRST_CAPACITY),
        };
        let elements = heads * capacity * head_dim;
        let layers = match options.kv {
            KvFormat::F32 => Layers::F32(Layer::all(n_layers, elements)),
            KvFormat::Bf16 => Layers::Bf16(Layer::all(n_layers, elements)),
        };
        KvCache { layers, heads, head_dim, len: 0, capacity, context }
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The most positions that it may hold.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Makes room for `n` more positions: all are to be written before [`advance`](KvCache::advance) counts them.
    /// Panics beyond the context; the engine checks first.
    pub fn reserve(&mut self, n: usize) {
        let needed = self.len + n;
        assert!(needed <= self.context, "KvCache::reserve: {needed} positions in a context of {}", self.context);
        if needed > self.capacity {
            self.capacity = needed.next_power_of_two().min(self.context);
            let (heads, elements) = (self.heads, self.heads * self.capacity * self.head_dim);
            let held = self.len * self.head_dim;
            in_any_format!(&mut self.layers, layers => for layer in layers {
                let mut grown = Layer { k: Buffer::stale(elements), v: Buffer::stale(elements) };
                grown.copy_from(layer, heads, held);
                *layer = grown;
            });
        }
    }

    /// Puts keys and values of new positions behind those that are held in `layer`, `[n, K, D]` each: rounded to nearest if the cache is
    /// bf16.
    pub fn write(&mut self, team: &Team, layer: usize, k: &[f32], v: &[f32]) {
        let (shape, len) = ((self.heads, self.head_dim), self.len);
        in_any_format!(&mut self.layers, layers => layers[layer].write(team, shape, len, k, v));
    }

    /// [`attention_cached`] of `shape.q_len` queries over the keys and values of the first `shape.kv_len` positions in `layer`: those held and
    /// new ones that were [written](KvCache::write).
    pub fn attention(
        &self,
        team: &Team,
        layer: usize,
        (shape, scale): (AttentionShape, f32),
        q: &[f32],
        out: &mut [f32],
        lse: &mut [f32],
    ) {
        let capacity = self.capacity;
        in_any_format!(&self.layers, layers => {
            let Layer { k, v } = &layers[layer];
            attention_cached(team, shape, scale, q, CachedKv { k, v, capacity }, out, lse);
        });
    }

    /// Counts `n` new positions, which every layer has written.
    pub fn advance(&mut self, n: usize) {
        self.len += n;
    }

    /// Holds what `other`, a cache of the same model, holds.
    pub fn copy_from(&mut self, other: &KvCache) {
        self.len = 0;
        self.reserve(other.len);
        let (heads, held) = (self.heads, other.len * self.head_dim);
        match (&mut self.layers, &other.layers) {
            (Layers::F32(to), Layers::F32(from)) => {
                to.iter_mut().zip(from).for_each(|(to, from)| to.copy_from(from, heads, held))
            }
            (Layers::Bf16(to), Layers::Bf16(from)) => {
                to.iter_mut().zip(from).for_each(|(to, from)| to.copy_from(from, heads, held))
            }
            _ => unreachable!("an engine keeps all caches in one format"),
        }
        self.len = other.len;
    }

    /// Forgets the positions from `len` on, if there are any. Keeps the memory.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Psi, preset};

    const FORMATS: [KvFormat; 2] = [KvFormat::F32, KvFormat::Bf16];

    impl KvCache {
        /// Keys and values of the positions held, `[len, K, D]`.
        fn held(&self, layer: usize) -> [Vec<f32>; 2] {
            let (d, heads) = (self.head_dim, self.heads);
            let at = |i: usize| (i / d % heads * self.capacity + i / d / heads) * d + i % d;
            in_any_format!(&self.layers, layers => {
                let Layer { k, v } = &layers[layer];
                [k, v].map(|buffer| (0..self.len * heads * d).map(|i| buffer[at(i)].widen()).collect())
            })
        }

        /// Appends a position of keys `x, x + 1, ..` and values `-x, -x - 1, ..` in all layers.
        fn append(&mut self, x: impl Fn(usize) -> f32) {
            let team = Team::current();
            self.reserve(1);
            for layer in 0..in_any_format!(&self.layers, layers => layers.len()) {
                let row: Vec<f32> = (0..self.heads * self.head_dim).map(|i| x(layer) + i as f32).collect();
                self.write(&team, layer, &row, &row.iter().map(|x| -x).collect::<Vec<_>>());
            }
            self.advance(1);
        }
    }

    /// A cache of so many layers and heads of 3.
    fn cache(n_layers: usize, heads: usize, context: usize, cache: CacheMemory, kv: KvFormat) -> KvCache {
        let config = preset("tiny", 256).unwrap();
        let config = Config { n_layers, n_heads: heads, n_kv_heads: heads, head_dim: 3, ..config };
        KvCache::new(&config, context, &EngineOptions { cache, kv, ..EngineOptions::new(Psi::Relu) })
    }

    /// A position of each number, as a cache of the format holds it.
    fn expected(format: KvFormat, width: usize, numbers: impl Iterator<Item = f32>) -> [Vec<f32>; 2] {
        let round = |x| if format == KvFormat::Bf16 { bf16::round(x).widen() } else { x };
        let k: Vec<f32> = numbers.flat_map(|x| (0..width).map(move |i| round(x + i as f32))).collect();
        let v = k.iter().map(|x| -x).collect();
        [k, v]
    }

    #[test]
    fn growing_keeps_what_is_held() {
        for format in FORMATS {
            let mut cache = cache(2, 2, 1000, CacheMemory::Growing, format);
            for position in 0..1000 {
                cache.append(|layer| (position * 2 + layer) as f32);
            }
            assert_eq!(cache.capacity, 1000, "the capacity ends at the context, not at the next power of two");
            for layer in 0..2 {
                let numbers = (0..1000).map(|position| (position * 2 + layer) as f32);
                assert!(cache.held(layer) == expected(format, 6, numbers), "{format}: layer {layer}");
            }
        }
    }

    #[test]
    fn a_copy_holds_the_same_and_goes_its_own_way() {
        for format in FORMATS {
            let new = || self::cache(1, 2, 600, CacheMemory::Growing, format);
            let (mut cache, mut copy) = (new(), new());
            (0..9).for_each(|_| copy.append(|_| 99.0));
            // More positions than a cache begins with room for, then fewer.
            for len in [300, 4] {
                cache.truncate(len);
                (cache.len()..len).for_each(|position| cache.append(|_| position as f32));
                copy.copy_from(&cache);
                copy.append(|_| 7.0);
                cache.append(|_| 8.0);
                for (cache, last) in [(&copy, 7.0), (&cache, 8.0)] {
                    let numbers = (0..len).map(|position| position as f32).chain([last]);
                    assert!(cache.held(0) == expected(format, 6, numbers), "{format}: {len} positions");
                }
            }
        }
    }

    #[test]
    fn a_fixed_cache_takes_its_memory_at_once() {
        let cache = cache(1, 8, 777, CacheMemory::Fixed, KvFormat::F32);
        assert_eq!(cache.capacity, 777);
    }

    #[test]
    #[should_panic(expected = "11 positions in a context of 10")]
    fn the_context_is_a_limit() {
        cache(1, 2, 10, CacheMemory::Growing, KvFormat::F32).reserve(11);
    }
}
