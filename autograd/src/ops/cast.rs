//! The same numbers in another element type.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{DType, Tensor, ops};

struct Cast {
    from: DType,
    x_slot: Option<Slot>,
}

impl<'t> Var<'t> {
    /// x rounded to bf16 (to nearest, ties to even) or widened to f32; x itself if it is of that type. Rounding is passed over by the
    /// gradient, as though it were the identity. Panics for u32.
    #[track_caller]
    pub fn cast(&self, dtype: DType) -> Var<'t> {
        if self.value.dtype() == dtype {
            return self.clone();
        }
        let y = ops::cast(&self.value, dtype);
        self.tape.record("cast", y, &[self], || Cast { from: self.value.dtype(), x_slot: self.slot })
    }
}

impl Op for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    /// `dx = dy` in the type of x.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        grads.add(self.x_slot, ops::cast(&dy, self.from));
    }
}

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};
    use crate::ops::testing::gpu;
    use tensor::DType;

    /// Of rounded inputs both ways are the identity, and so is the gradient, but for the rounding of r.
    #[test]
    fn cast_gradients() {
        let identity = |x: &[&[f32]]| x[0].iter().map(|&x| x as f64).collect();
        let check = GradCheck::new("cast", &[input(1, [2, 3, 7])]).on(&gpu()).in_bf16(1);
        check.run(|x| x[0].cast(DType::Bf16), identity);
        check.run(|x| x[0].cast(DType::F32), identity);
        check.run(|x| x[0].cast(DType::F32).cast(DType::Bf16), identity);
    }
}
