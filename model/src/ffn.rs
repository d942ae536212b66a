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

use crate::{LatentPenalty, LayerNames, Leaves, Probe, PsiAt};
use autograd::Var;

/// `y = W2 (psi(W1 x) * (W3 x))`. Shapes: x and the result `[B, T, C]`. `probe` sees g, `penalty` is for h.
pub(crate) fn ffn<'t>(
    x: Var<'t>,
    w: &Leaves<'t>,
    layer: usize,
    psi: PsiAt,
    probe: Option<&mut Probe>,
    penalty: Option<&mut LatentPenalty>,
) -> Var<'t> {
    let at = LayerNames::new(layer);
    let hidden = x.gated_hidden(&w[at.gate_proj], &w[at.up_proj], psi.layer(layer)); // g, u and h [B, T, F]
    drop(x);
    if let Some(probe) = probe {
        probe.see(layer, hidden.gate().value());
    }
    let _scope = w.tape().scope("down_proj");
    let Some(penalty) = penalty else {
        return hidden.down_proj(&w[at.down_proj]); // [B, T, C]
    };
    let (y, sum) = hidden.down_proj_l1(&w[at.down_proj], penalty.factor());
    penalty.add(sum);
    y
}
