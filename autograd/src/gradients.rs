//! Where gradients add up.

use crate::tape::Var;
use tensor::{Beta, DType, Shape, Tensor, ops};

/// Names the place of a variable's gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(pub(crate) usize);

/// The gradients of variables, by slot. Those of leaves stay until they are taken or cleared, so that several backward
/// passes (micro-batches) add up; those of intermediate results are consumed on the way.
#[derive(Default)]
pub struct Gradients {
    slots: Vec<Option<Tensor>>,
}

impl Gradients {
    /// The gradient of a leaf, if any reached it.
    pub fn get(&self, leaf: &Var) -> Option<&Tensor> {
        self.at(leaf.slot?.0)
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
    pub fn add(&mut self, slot: Option<Slot>, d: Tensor) {
        let Some(Slot(index)) = slot else { return };
        match self.entry(index) {
            empty @ None => *empty = Some(d),
            Some(sum) => {
                make_unique(sum);
                ops::axpy(1.0, &d, sum);
            }
        }
    }

    /// Lets `f` write or add a gradient of `shape` into its buffer: the [`Beta`] says whether there is something to add to.
    /// Does nothing if the gradient is not wanted.
    pub fn accumulate(&mut self, slot: Option<Slot>, shape: Shape, f: impl FnOnce(Beta, &mut Tensor)) {
        let Some(Slot(index)) = slot else { return };
        match self.entry(index) {
            empty @ None => {
                let mut d = Tensor::stale(shape, DType::F32);
                f(Beta::Zero, &mut d);
                *empty = Some(d);
            }
            Some(sum) => {
                make_unique(sum);
                f(Beta::One, sum);
            }
        }
    }

    /// As [`accumulate`](Gradients::accumulate), for kernels that only add: the buffer begins with zeros.
    pub fn accumulate_onto_zeros(&mut self, slot: Option<Slot>, shape: Shape, f: impl FnOnce(&mut Tensor)) {
        let Some(Slot(index)) = slot else { return };
        let sum = self.entry(index).get_or_insert_with(|| Tensor::zeros(shape));
        make_unique(sum);
        f(sum);
    }

    pub(crate) fn take_slot(&mut self, slot: Slot) -> Option<Tensor> {
        self.entry(slot.0).take()
    }

    fn entry(&mut self, index: usize) -> &mut Option<Tensor> {
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        &mut self.slots[index]
    }
}

/// A gradient that two slots share (an addition hands the same one to both of its inputs) is copied before it is written.
fn make_unique(tensor: &mut Tensor) {
    if !tensor.is_unique() {
        *tensor = ops::scale(1.0, tensor);
    }
}
