//! The gated feed-forward network (arXiv 2509.22358):
//!
//! ```text
//! g = W1 x            gate_proj   [F, C]
//! u = W3 x            up_proj     [F, C]
//! h = psi(g) * u      elementwise
//! y = W2 h            down_proj   [C, F]
//! ```
//!
//! The names on the right are the checkpoint's, and the only ones used elsewhere.

use crate::project::project;
use crate::{LayerNames, Leaves, Probe, PsiAt};
use autograd::Var;

/// `y = W2 (psi(W1 x) * (W3 x))`. Shapes: x and the result `[B, T, C]`. `probe` sees g.
pub(crate) fn ffn<'t>(x: Var<'t>, w: &Leaves<'t>, layer: usize, psi: PsiAt, probe: Option<&mut Probe>) -> Var<'t> {
    let at = LayerNames::new(layer);
    let g = project(&x, "gate_proj", &w[at.gate_proj]); // [B, T, F]
    if let Some(probe) = probe {
        probe.see(layer, g.value());
    }
    let u = project(&x, "up_proj", &w[at.up_proj]); // [B, T, F]
    drop(x);
    let _scope = g.tape().scope("down_proj");
    g.gated_down_proj(&u, &w[at.down_proj], psi.layer(layer)) // [B, T, C]
}
