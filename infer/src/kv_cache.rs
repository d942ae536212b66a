//! Keys and values of the positions so far.

use crate::CacheMemory;
use crate::buffer::Buffer;

/// Positions that a growing cache begins with; from there it doubles.
const FIRST_CAPACITY: usize = 256;

/// For each layer, the keys (after RoPE) and the values of positions `0 .. len`, each `[capacity, K, D]`.
pub(crate) struct KvCache {
    layers: Vec<Layer>,
    /// K D: elements of a position.
    width: usize,
    len: usize,
    capacity: usize,
    context: usize,
}

struct Layer {
    k: Buffer,
    v: Buffer,
}

impl KvCache {
    /// An empty cache for at most `context` positions of `width` elements.
    pub fn new(n_layers: usize, width: usize, context: usize, memory: CacheMemory) -> KvCache {
        let capacity = match memory {
            CacheMemory::Fixed => context,
            CacheMemory::Growing => context.min(FIRST_CAPACITY),
        };
        let buffer = || Buffer::stale(capacity * width);
        let layers = (0..n_layers).map(|_| Layer { k: buffer(), v: buffer() }).collect();
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
            for buffer in self.layers.iter_mut().flat_map(|layer| [&mut layer.k, &mut layer.v]) {
                let mut grown = Buffer::stale(size);
                grown[..kept].copy_from_slice(&buffer[..kept]);
                *buffer = grown;
            }
        }
    }

    /// The places of keys and values of `n` new positions in `layer`, `[n, K, D]` each.
    pub fn new_rows(&mut self, layer: usize, n: usize) -> (&mut [f32], &mut [f32]) {
        let range = self.len * self.width..(self.len + n) * self.width;
        let Layer { k, v } = &mut self.layers[layer];
        (&mut k[range.clone()], &mut v[range])
    }

    /// Keys and values of the positions held and `n` new ones in `layer`, `[len + n, K, D]` each.
    pub fn rows(&self, layer: usize, n: usize) -> (&[f32], &[f32]) {
        let end = (self.len + n) * self.width;
        let Layer { k, v } = &self.layers[layer];
        (&k[..end], &v[..end])
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
        for (to, from) in self.layers.iter_mut().zip(&other.layers) {
            to.k[..held].copy_from_slice(&from.k[..held]);
            to.v[..held].copy_from_slice(&from.v[..held]);
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

    #[test]
    fn growing_keeps_what_is_held() {
        let mut cache = KvCache::new(2, 3, 1000, CacheMemory::Growing);
        for position in 0..1000 {
            cache.reserve(1);
            for layer in 0..2 {
                let (k, v) = cache.new_rows(layer, 1);
                k.fill((position * 2 + layer) as f32);
                v.fill(-((position * 2 + layer) as f32));
            }
            cache.advance(1);
        }
        assert_eq!(cache.capacity, 1000, "the capacity ends at the context, not at the next power of two");
        for layer in 0..2 {
            let (k, v) = cache.rows(layer, 0);
            let expected = (0..1000).flat_map(|position| [(position * 2 + layer) as f32; 3]);
            assert!(k.iter().copied().eq(expected.clone()) && v.iter().copied().eq(expected.map(|x| -x)));
        }
    }

    #[test]
    fn a_copy_holds_the_same_and_goes_its_own_way() {
        let append = |cache: &mut KvCache, value: f32| {
            cache.reserve(1);
            let (k, v) = cache.new_rows(0, 1);
            k.fill(value);
            v.fill(-value);
            cache.advance(1);
        };
        let new = || KvCache::new(1, 2, 600, CacheMemory::Growing);
        let (mut cache, mut copy) = (new(), new());
        (0..9).for_each(|_| append(&mut copy, 99.0));
        // More positions than a cache begins with room for, then fewer.
        for len in [300, 4] {
            cache.truncate(len);
            (cache.len()..len).for_each(|position| append(&mut cache, position as f32));
            copy.copy_from(&cache);
            append(&mut copy, 7.0);
            append(&mut cache, 8.0);
            let expected = |last| (0..len).map(|position| position as f32).chain([last]).flat_map(|x| [x; 2]);
            for (cache, last) in [(&copy, 7.0), (&cache, 8.0)] {
                let (k, v) = cache.rows(0, 0);
                assert!(k.iter().copied().eq(expected(last)) && v.iter().copied().eq(expected(last).map(|x| -x)));
            }
        }
    }

    #[test]
    fn a_fixed_cache_takes_its_memory_at_once() {
        let cache = KvCache::new(1, 8, 777, CacheMemory::Fixed);
        assert_eq!(cache.capacity, 777);
    }

    #[test]
    #[should_panic(expected = "11 positions in a context of 10")]
    fn the_context_is_a_limit() {
        KvCache::new(1, 2, 10, CacheMemory::Growing).reserve(11);
    }
}
