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

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};
    use crate::ops::testing::gpu;
    use kernels::reference;
    use kernels::rope::RopeShape;

    #[test]
    fn rope_gradients() {
        for ([b, seq_len, n_heads, head_dim], first_position) in
            [([1, 1, 1, 2], 0), ([2, 3, 1, 4], 0), ([1, 2, 3, 6], 5), ([2, 2, 2, 10], 1)]
        {
            let tables = [3, 4].map(|seed| input(seed, [8, head_dim / 2]));
            let [cos, sin] = [0, 1].map(|i| tables[i].to_vec::<f32>().unwrap());
            let shape = RopeShape { n_heads, head_dim, seq_len, first_position };
            // Two terms: a number, cos times and sin times.
            let check = GradCheck::new("rope", &[input(1, [b, seq_len, n_heads, head_dim])]).roundings(2);
            check.run(
                |x| x[0].rope(&tables[0], &tables[1], first_position),
                |x| reference::rope(x[0], &cos, &sin, shape, 1.0),
            );
            // r and dx. A pair's gradient has two terms, of which the differences see one result each.
            let gpu = gpu();
            let [cos_there, sin_there] = [0, 1].map(|i| tables[i].to_device(&gpu).unwrap());
            check.in_bf16(2).on(&gpu).run(
                |x| x[0].rope(&cos_there, &sin_there, first_position),
                |x| reference::rope(x[0], &cos, &sin, shape, 1.0),
            );
        }
    }
}
