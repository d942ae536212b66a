//! Every differentiable operation: one file each, its forward above its backward.
//!
//! All gradient rules at a glance. `dy` is the gradient of the result; a gradient of a broadcast operand is then summed over
//! the axes along which it was repeated. psi is the activation, W2 the FFN's down_proj, as in the paper.
//!
//! | op                 | forward                                  | backward                                            |
//! |--------------------|------------------------------------------|-----------------------------------------------------|
//! | `add`              | `a + b`                                  | `da = dy`, `db = dy`                                |
//! | `sub`              | `a - b`                                  | `da = dy`, `db = -dy`                               |
//! | `mul`              | `a * b`                                  | `da = dy * b`, `db = dy * a`                        |
//! | `div`              | `a / b`                                  | `da = dy / b`, `db = -da * y`                       |
//! | `scale`, `neg`     | `factor x`                               | `dx = factor dy`                                    |
//! | `exp`              | `e^x`                                    | `dx = dy * y`                                       |
//! | `log`              | `ln x`                                   | `dx = dy / x`                                       |
//! | `sigmoid`          | `s(x) = 1 / (1 + e^-x)`                  | `dx = dy * s(x) s(-x)`                              |
//! | `relu`             | `max(x, 0)`                              | `dx = dy` where `x > 0`, else 0                     |
//! | `silu`             | `x s(x)`                                 | `dx = dy * s (1 + x (1 - s))`                       |
//! | `gelu`             | `x Phi(x)`, Phi the normal distribution  | `dx = dy (Phi + x phi)`, phi the normal density     |
//! | `relu2`            | `max(x, 0)^2`                            | `dx = 2 dy max(x, 0)`                               |
//! | `tanh`             | `tanh(x)`                                | `dx = dy (1 - tanh(x)^2)`                           |
//! | `sum`, `mean`      | sum of all elements, over n              | `dx = dy`, `dy / n` everywhere                      |
//! | `sum_to`           | sums over some axes                      | `dx` = dy, repeated along them                      |
//! | `cast`             | x, rounded to bf16 or widened to f32     | `dx = dy` in the type of x                          |
//! | `reshape`          | the same elements                        | `dx = dy` in the shape of x                         |
//! | `transpose`        | two axes exchanged                       | `dx` = dy, exchanged                                |
//! | `narrow`           | a range of one axis                      | `dx = dy` in the range, 0 elsewhere                 |
//! | `matmul`           | `A B`                                    | `dA = dy B^T`, `dB = A^T dy`                        |
//! | `linear`           | `x W^T`                                  | `dx = dy W`, `dW = dy^T x`                          |
//! | `embedding`        | `table[tokens]`                          | `dtable[tokens] += dy`                              |
//! | `rms_norm`         | `n weight`, `n = x r`, `r = 1 / rms(x)`  | `dx = r (dy weight - n mean(dy weight n))`, `dweight = sum dy n` |
//! | `rope`             | pairs turned by their position's angle   | `dx` = dy, turned back                              |
//! | `attention`        | `P V`, `P = softmax(scale Q K^T)`        | `dV = P^T dy`, `dS = P (dy V^T - rowsum(dy O))`, `dQ = scale dS K`, `dK = scale dS^T Q` |
//! | `gated_activation` | `psi(g) * u`                             | `dg = dy u psi'(g)`, `du = dy psi(g)`               |
//! | `gated_down_proj`  | `h W2^T`, `h = psi(g) * u`               | `dh = dy W2` (with a penalty `+ l1 sign(h)`), `dg`, `du` from it as above, `dW2 = dy^T h` |
//! | `lm_head_loss`     | `scale * sum(logsumexp(z) - z[target])`, `z = W x` | `dz = scale (softmax(z) - onehot(target))`, `dx = dy dz W`, `dW = dy dz^T x` |

mod add;
mod attention;
mod cast;
mod div;
mod embedding;
mod exp;
mod gated_activation;
mod gated_down_proj;
mod gelu;
mod linear;
mod lm_head_loss;
mod log;
mod matmul;
mod mul;
mod narrow;
mod relu;
mod relu2;
mod reshape;
mod rms_norm;
mod rope;
mod scale;
mod sigmoid;
mod silu;
mod sub;
mod sum;
mod tanh;
mod transpose;

pub use gated_down_proj::GatedHidden;

use crate::tape::Var;

/// The operators for operands that are given by value: what `&a + &b` does for references.
macro_rules! by_value {
    ($trait:ident, $method:ident) => {
        impl<'t> std::ops::$trait<Var<'t>> for Var<'t> {
            type Output = Var<'t>;
            #[track_caller]
            fn $method(self, other: Var<'t>) -> Var<'t> {
                std::ops::$trait::$method(&self, &other)
            }
        }
        impl<'t> std::ops::$trait<&Var<'t>> for Var<'t> {
            type Output = Var<'t>;
            #[track_caller]
            fn $method(self, other: &Var<'t>) -> Var<'t> {
                std::ops::$trait::$method(&self, other)
            }
        }
        impl<'t> std::ops::$trait<Var<'t>> for &Var<'t> {
            type Output = Var<'t>;
            #[track_caller]
            fn $method(self, other: Var<'t>) -> Var<'t> {
                std::ops::$trait::$method(self, &other)
            }
        }
    };
}

by_value!(Add, add);
by_value!(Sub, sub);
by_value!(Mul, mul);
by_value!(Div, div);

impl<'t> std::ops::Neg for Var<'t> {
    type Output = Var<'t>;
    #[track_caller]
    fn neg(self) -> Var<'t> {
        -&self
    }
}

#[cfg(test)]
mod testing;
