//! `y[n, :] = table[tokens[n], :]`: table look-up.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Shape, Tensor, ops};

struct Embedding {
    tokens: Tensor,
    table: (Option<Slot>, Shape),
}

impl<'t> Var<'t> {
    /// The row of the table for each token. Shapes: self (table) `[V, C]`; tokens u32 `[..]`, such as `[B, T]`, each below V;
    /// y `[.., C]`.
    #[track_caller]
    pub fn embedding(&self, tokens: &Tensor) -> Var<'t> {
        let y = ops::embedding(&self.value, tokens);
        self.tape.record("embedding", y, &[self], || Embedding {
            tokens: tokens.clone(),
            table: (self.slot, self.value.shape()),
        })
    }
}

impl Op for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    /// `dtable[tokens[n], :] += dy[n, :]`, in the order of the tokens.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        let (slot, shape) = self.table;
        grads.accumulate_onto_zeros(slot, &dy.device(), shape, |d_table| {
            ops::embedding_backward(&dy, &self.tokens, d_table)
        });
    }
}

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};
    use kernels::reference;
    use tensor::Tensor;

    #[test]
    fn embedding_gradients() {
        let tokens: [(&[u32], &[usize]); 4] =
            [(&[0], &[1]), (&[3, 1, 3, 3, 0, 4], &[2, 3]), (&[2, 2], &[2]), (&[4, 0, 1], &[1, 3])];
        for (tokens, shape) in tokens {
            for c in [1, 3, 17] {
                let indices = Tensor::from_slice(tokens, shape);
                // A row's gradient is a sum over its tokens.
                let check = GradCheck::new("embedding", &[input(1, [5, c])]).roundings(tokens.len());
                check.run(|x| x[0].embedding(&indices), |x| reference::embedding(x[0], tokens, c));
            }
        }
    }
}
