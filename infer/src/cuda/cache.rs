//! Keys and values of the sequences on a GPU.

use super::weights::Element;
use cuda::ops::attention_cached::{CachedKv, Heads};
use cuda::ops::kv_append::CacheMut;
use cuda::{Buffer, Device, Error};

/// For each layer the keys and the values of several caches, `[caches, K, capacity, D]` each. Number 0 is the engine's own sequence, the others are
/// branches. What is in them is not counted here.
pub(super) struct Caches<E> {
    heads: Heads,
    layers: Vec<Layer<E>>,
}

/// A layer knows its own shape, so that one that could not grow leaves those before it, which could, in order.
struct Layer<E> {
    k: Buffer<E>,
    v: Buffer<E>,
    caches: usize,
    capacity: usize,
}

impl<E: Element> Layer<E> {
    fn new(device: &Device, heads: Heads, caches: usize, capacity: usize) -> Result<Layer<E>, Error> {
        let elements = caches * heads.n_kv_heads * capacity * heads.head_dim;
        Ok(Layer { k: Buffer::stale(device, elements)?, v: Buffer::stale(device, elements)?, caches, capacity })
    }

    /// Takes over the first positions of the caches of another, as many as `held` says for each.
    fn copy_from(&mut self, other: &Layer<E>, heads: Heads, held: &[usize]) -> Result<(), Error> {
        let (k, d) = (heads.n_kv_heads, heads.head_dim);
        for (to, from) in [(&mut self.k, &other.k), (&mut self.v, &other.v)] {
            if self.capacity == other.capacity {
                let all = from.len();
                to.as_mut().part(0..all).copy_from(from.as_slice())?;
                continue;
            }
            for (cache, held) in held.iter().take(other.caches).enumerate().filter(|&(_, &held)| held > 0) {
                for head in cache * k..(cache + 1) * k {
                    let (at, from_at) = (head * self.capacity * d, head * other.capacity * d);
                    let mut to = to.as_mut().part(at..at + held * d);
                    to.copy_from(from.as_slice().part(from_at..from_at + held * d))?;
                }
            }
        }
        Ok(())
    }
}

impl<E: Element> Caches<E> {
    /// One cache, empty.
    pub fn new(device: &Device, n_layers: usize, heads: Heads, capacity: usize) -> Result<Caches<E>, Error> {
        let layers = (0..n_layers).map(|_| Layer::new(device, heads, 1, capacity)).collect::<Result<_, Error>>()?;
        Ok(Caches { heads, layers })
    }

    /// How many there are in every layer.
    pub fn count(&self) -> usize {
        self.layers.iter().map(|layer| layer.caches).min().unwrap_or(1)
    }

    /// Positions that each has room for in every layer.
    pub fn capacity(&self) -> usize {
        self.layers.iter().map(|layer| layer.capacity).min().unwrap_or(0)
    }

    /// The most positions that a cache has room for in any layer.
    pub fn largest(&self) -> usize {
        self.layers.iter().map(|layer| layer.capacity).max().unwrap_or(0)
    }

    /// Makes so many caches of this capacity, which keep what is `held` in those that there are. Layer by layer: the memory of both is needed
    /// for one of them.
    pub fn reshape(&mut self, caches: usize, capacity: usize, held: &[usize]) -> Result<(), Error> {
        for layer in &mut self.layers {
            if (layer.caches, layer.capacity) != (caches, capacity) {
                let mut grown = Layer::new(layer.k.device(), self.heads, caches, capacity)?;
                grown.copy_from(layer, self.heads, held)?;
                *layer = grown;
            }
        }
        Ok(())
    }

    /// Makes cache number `to` a copy of number 0, the room behind its positions included.
    pub fn copy_first(&mut self, to: usize) -> Result<(), Error> {
        assert!(to > 0, "Caches::copy_first: onto itself");
        for layer in &mut self.layers {
            let one = layer.k.len() / layer.caches;
            for buffer in [&mut layer.k, &mut layer.v] {
                let (first, others) = buffer.as_mut().split_at(one);
                others.part((to - 1) * one..to * one).copy_from(first.as_slice())?;
            }
        }
        Ok(())
    }

    /// All of a layer, to be read.
    pub fn layer(&self, layer: usize) -> CachedKv<'_, E> {
        let Layer { k, v, capacity, .. } = &self.layers[layer];
        CachedKv { k: k.as_slice(), v: v.as_slice(), capacity: *capacity }
    }

    /// All of a layer, to be written.
    pub fn layer_mut(&mut self, layer: usize) -> CacheMut<'_, E> {
        let Layer { k, v, capacity, .. } = &mut self.layers[layer];
        CacheMut { k: k.as_mut(), v: v.as_mut(), capacity: *capacity }
    }
}
