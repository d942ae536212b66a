//! Rotary position embedding, in the half-rotation form of Hugging Face Llama.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Tensor, ops};

struct Rope {
    cos: Tensor,
    sin: Tensor,
    first_position: usize,
    x_slot: Option<Slot>,
}

impl<'t> Var<'t> {
    /// Turns each pair `(x[i], x[i + D/2])` of a head by the angle of its position p:
    /// `y[i] = x[i] cos - x[i + D/2] sin`, `y[i + D/2] = x[i + D/2] cos + x[i] sin`, with `cos[p, i]` and `sin[p, i]`
    /// (Su et al. 2021, eq. 34). Row t is at position `first_position + t`.
    ///
    /// Shapes: x, y `[B, T, H, D]`; cos, sin `[max_seq, D / 2]`. Panics if the table ends before the last position.
    #[track_caller]
    pub fn rope(&self, cos: &Tensor, sin: &Tensor, first_position: usize) -> Var<'t> {
        let y = ops::rope(&self.value, cos, sin, first_position, ops::Rotation::Forward);
        self.tape.record("rope", y, &[self], || Rope {
            cos: cos.clone(),
            sin: sin.clone(),
            first_position,
            x_slot: self.slot,
        })
    }
}

impl Op for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    /// The transpose of a rotation is the rotation back: `dx = rope(dy)` by the negative angles.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        let dx = ops::rope(&dy, &self.cos, &self.sin, self.first_position, ops::Rotation::Backward);
        grads.add(self.x_slot, dx);
    }
}
