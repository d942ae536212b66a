//! Where gradients add up.

use crate::tape::Var;
use tensor::{Beta, DType, Device, Shape, Tensor, ops};

/// Names the place of a variable's gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub(crate) index: usize,
    /// Whether the variable is a leaf, not the result of an op.
    pub(crate) leaf: bool,
}

/// The gradients of variables, by slot. Those of leaves stay until they are taken or cleared, so that several backward
/// passes (micro-batches) add up; those of intermediate results are consumed on the way.
///
/// A gradient has the element type of its variable's value, so that what flows back along bf16 is bf16; but for a matrix that
/// [`linear`](Var::linear) multiplies by it is f32: a sum over all tokens of all micro-batches.
#[derive(Default)]
pub struct Gradients {
    slots: Vec<Option<Tensor>>,
    /// Whether the op whose backward runs is the last one of the forward, whose gradient is the 1 that a backward begins with.
    pub(crate) at_the_last: bool,
}

impl Gradients {
    /// The gradient of a leaf, if any reached it. It may be a view, and other tensors may share its storage.
    pub fn get(&self, leaf: &Var) -> Option<&Tensor> {
        self.at(leaf.slot?.index)
    }

    /// The gradient in slot `index`: that of the `index`-th leaf of the tape, counted from 0.
    pub fn at(&self, index: usize) -> Option<&Tensor> {
        self.slots.get(index)?.as_ref()
    }

    /// Forgets all gradients. Their memory returns to the pool.
    pub fn clear(&mut self) {
        self.slots.clear();
    }

    /// Adds `d` to the gradient in `slot`; nothing if the gradient is not wanted. The first one is moved in, not copied.
    ///
    /// Panics if the gradient there has another shape. Several slots, and a saved tensor, may share one `d`: a gradient is written in
    /// place only where nothing shares it.
    pub fn add(&mut self, slot: Option<Slot>, d: Tensor) {
        let Some(slot) = slot else { return };
        let before = self.take_slot(slot);
        if let Some(sum) = &before {
            assert!(sum.shape() == d.shape(), "a gradient of shape {} is added to one of {}", d.shape(), sum.shape());
        }
        let sum = match before {
            None => d,
            Some(sum) if [&sum, &d].iter().any(|x| x.dtype() != DType::F32) => ops::add(&sum, &d),
            Some(mut sum) if is_writable(&sum) => {
                ops::axpy(1.0, &d, &mut sum);
                sum
            }
            Some(sum) if is_writable(&d) => {
                let mut d = d;
                ops::axpy(1.0, &sum, &mut d);
                d
            }
            Some(sum) => ops::add(&sum, &d),
        };
        *self.entry(slot) = Some(sum);
    }

    /// Lets `f` write or add a gradient of `shape` and `dtype` into its buffer on `device`: the [`Beta`] says whether there is something to
    /// add to. Does nothing if the gradient is not wanted.
    pub fn accumulate(
        &mut self,
        slot: Option<Slot>,
        device: &Device,
        shape: Shape,
        dtype: DType,
        f: impl FnOnce(Beta, &mut Tensor),
    ) {
        if slot.is_some() {
            let (beta, mut d) = self.take_or_stale(slot, device, shape, dtype);
            f(beta, &mut d);
            self.add(slot, d);
        }
    }

    /// As [`accumulate`](Gradients::accumulate), for kernels that only add, in f32: the buffer begins with zeros.
    pub fn accumulate_onto_zeros(
        &mut self,
        slot: Option<Slot>,
        device: &Device,
        shape: Shape,
        f: impl FnOnce(&mut Tensor),
    ) {
        if slot.is_some() {
            let mut d = self.take_or_zeros(slot, device, shape);
            f(&mut d);
            self.add(slot, d);
        }
    }

    /// For kernels that make several gradients at once: takes out what is in `slot`, to be added to ([`Beta::One`]), or else
    /// a buffer of `shape` and `dtype` on `device` to be overwritten ([`Beta::Zero`]). It goes back by [`add`](Gradients::add). A gradient that is
    /// not wanted has a buffer too, since such a kernel writes it all the same.
    pub fn take_or_stale(&mut self, slot: Option<Slot>, device: &Device, shape: Shape, dtype: DType) -> (Beta, Tensor) {
        match slot.and_then(|slot| self.take_slot(slot)) {
            Some(sum) => (Beta::One, into_writable(sum)),
            None => (Beta::Zero, Tensor::stale_on(device, shape, dtype)),
        }
    }

    /// As [`take_or_stale`](Gradients::take_or_stale), for kernels that only add: what is in `slot`, or else zeros.
    pub fn take_or_zeros(&mut self, slot: Option<Slot>, device: &Device, shape: Shape) -> Tensor {
        slot.and_then(|slot| self.take_slot(slot)).map_or_else(|| Tensor::zeros_on(device, shape), into_writable)
    }

    /// Whether the op whose backward runs was given the number 1 that a backward begins with. It then need not look at it, which on a GPU
    /// would wait for it.
    pub fn dy_is_one(&self) -> bool {
        self.at_the_last
    }

    pub(crate) fn take_slot(&mut self, slot: Slot) -> Option<Tensor> {
        self.slots.get_mut(slot.index)?.take()
    }

    fn entry(&mut self, slot: Slot) -> &mut Option<Tensor> {
        if self.slots.len() <= slot.index {
            self.slots.resize_with(slot.index + 1, || None);
        }
        &mut self.slots[slot.index]
    }
}

/// Whether a gradient may be written in place. It may not while another slot shares it (an addition hands the same one to
/// both of its inputs), nor as a view with gaps or repeated elements (the gradient of a sum is one number, repeated).
fn is_writable(tensor: &Tensor) -> bool {
    tensor.is_unique() && tensor.is_contiguous()
}

fn into_writable(tensor: Tensor) -> Tensor {
    if is_writable(&tensor) { tensor } else { ops::copy(&tensor) }
}
