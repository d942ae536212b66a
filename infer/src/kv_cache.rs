//! Keys and values of the positions so far.

use crate::buffer::Buffer;
use crate::{CacheMemory, KvFormat};
use half::bf16;
use kernels::attention::{AttentionShape, attention};
use kernels::row_format::round_rows;
use kernels::{Team, Weight};

/// Positions that a growing cache begins with; from there it doubles.
const FIRST_CAPACITY: usize = 256;

/// For each layer, the keys (after RoPE) and the values of positions `0 .. len`, each `[capacity, K, D]`.
pub(crate) struct KvCache {
    layers: Layers,
    /// K D: elements of a position.
    width: usize,
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

    /// Moves to memory of `elements`, of which the first `kept` are held.
    fn grow(&mut self, kept: usize, elements: usize) {
        for buffer in [&mut self.k, &mut self.v] {
            let mut grown = Buffer::stale(elements);
            grown[..kept].copy_from_slice(&buffer[..kept]);
            *buffer = grown;
        }
    }

    /// Each rounded to the nearest there is.
    fn write(&mut self, team: &Team, width: usize, start: usize, k: &[f32], v: &[f32]) {
        for (to, from) in [(&mut self.k, k), (&mut self.v, v)] {
            round_rows(team, from, width, &mut to[start..start + from.len()]);
        }
    }

    fn copy_from(&mut self, other: &Layer<W>, held: usize) {
        self.k[..held].copy_from_slice(&other.k[..held]);
        self.v[..held].copy_from_slice(&other.v[..held]);
    }
}

impl KvCache {
    /// An empty cache for at most `context` positions of `width` elements.
    pub fn new(n_layers: usize, width: usize, context: usize, (memory, format): (CacheMemory, KvFormat)) -> KvCache {
        let capacity = match memory {
            CacheMemory::Fixed => context,
            CacheMemory::Growing => context.min(FIRST_CAPACITY),
        };
        let layers = match format {
            KvFormat::F32 => Layers::F32(Layer::all(n_layers, capacity * width)),
            KvFormat::Bf16 => Layers::Bf16(Layer::all(n_layers, capacity * width)),
        };
        KvCache { layers, width, len: 0, capacity, context }
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
            let (kept, size) = (self.len * self.width, self.capacity * self.width);
            in_any_format!(&mut self.layers, layers => layers.iter_mut().for_each(|layer| layer.grow(kept, size)));
        }
    }

    /// Puts keys and values of new positions behind those that are held in `layer`, `[n, K, D]` each: rounded to nearest if the cache is
    /// bf16.
    pub fn write(&mut self, team: &Team, layer: usize, k: &[f32], v: &[f32]) {
        let start = self.len * self.width;
        in_any_format!(&mut self.layers, layers => layers[layer].write(team, self.width, start, k, v));
    }

    /// [`attention`] of `shape.q_len` queries over the keys and values of the first `shape.kv_len` positions in `layer`: those held and
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
        let end = shape.kv_len * self.width;
        in_any_format!(&self.layers, layers => {
            let Layer { k, v } = &layers[layer];
            attention(team, shape, scale, q, &k[..end], &v[..end], out, lse);
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
        let held = other.len * self.width;
        match (&mut self.layers, &other.layers) {
            (Layers::F32(to), Layers::F32(from)) => {
                to.iter_mut().zip(from).for_each(|(to, from)| to.copy_from(from, held))
            }
            (Layers::Bf16(to), Layers::Bf16(from)) => {
                to.iter_mut().zip(from).for_each(|(to, from)| to.copy_from(from, held))
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

    const FORMATS: [KvFormat; 2] = [KvFormat::F32, KvFormat::Bf16];

    impl KvCache {
        /// Keys and values of the positions held.
        fn held(&self, layer: usize) -> [Vec<f32>; 2] {
            let held = self.len * self.width;
            in_any_format!(&self.layers, layers => {
                let Layer { k, v } = &layers[layer];
                [k, v].map(|buffer| buffer[..held].iter().map(|x| x.widen()).collect())
            })
        }

        /// Appends a position of keys `x` and values `-x` in all layers.
        fn append(&mut self, x: impl Fn(usize) -> f32) {
            let team = Team::current();
            self.reserve(1);
            for layer in 0..in_any_format!(&self.layers, layers => layers.len()) {
                let row = vec![x(layer); self.width];
                self.write(&team, layer, &row, &row.iter().map(|x| -x).collect::<Vec<_>>());
            }
            self.advance(1);
        }
    }

    /// A position of each number, as a cache of the format holds it.
    fn expected(format: KvFormat, width: usize, numbers: impl Iterator<Item = f32>) -> [Vec<f32>; 2] {
        let round = |x| if format == KvFormat::Bf16 { bf16::round(x).widen() } else { x };
        let k: Vec<f32> = numbers.flat_map(|x| vec![round(x); width]).collect();
        let v = k.iter().map(|x| -x).collect();
        [k, v]
    }

    #[test]
    fn growing_keeps_what_is_held() {
        for format in FORMATS {
            let mut cache = KvCache::new(2, 3, 1000, (CacheMemory::Growing, format));
            for position in 0..1000 {
                cache.append(|layer| (position * 2 + layer) as f32);
            }
            assert_eq!(cache.capacity, 1000, "the capacity ends at the context, not at the next power of two");
            for layer in 0..2 {
                let numbers = (0..1000).map(|position| (position * 2 + layer) as f32);
                assert!(cache.held(layer) == expected(format, 3, numbers), "{format}: layer {layer}");
            }
        }
    }

    #[test]
    fn a_copy_holds_the_same_and_goes_its_own_way() {
        for format in FORMATS {
            let new = || KvCache::new(1, 2, 600, (CacheMemory::Growing, format));
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
                    assert!(cache.held(0) == expected(format, 2, numbers), "{format}: {len} positions");
                }
            }
        }
    }

    #[test]
    fn a_fixed_cache_takes_its_memory_at_once() {
        let cache = KvCache::new(1, 8, 777, (CacheMemory::Fixed, KvFormat::F32));
        assert_eq!(cache.capacity, 777);
    }

    #[test]
    #[should_panic(expected = "11 positions in a context of 10")]
    fn the_context_is_a_limit() {
        KvCache::new(1, 2, 10, (CacheMemory::Growing, KvFormat::F32)).reserve(11);
    }
}
