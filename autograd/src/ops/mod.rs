//! Every differentiable operation: one file each, its forward above its backward.
//!
//! | op                 | forward                              | backward                                              |
//! |--------------------|--------------------------------------|-------------------------------------------------------|
//! | `add`              | `a + b`                              | `da = dy`, `db = dy` (summed over broadcast axes)      |
//! | `linear`           | `y = x W^T`                          | `dx = dy W`, `dW = dy^T x`                             |
//! | `gated_down_proj`  | `y = (psi(g) * u) W2^T`              | `dh = dy W2`, `dg = dh u psi'(g)`, `du = dh psi(g)`, `dW2 = dy^T h` |

mod add;
mod attention;
mod embedding;
mod gated_activation;
mod gated_down_proj;
mod linear;
mod lm_head_loss;
mod reshape;
mod rms_norm;
mod rope;
