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
    let g = project(&x, "gate_proj", &w[at.gate_proj]); // [B, T, F]
    if let Some(probe) = probe {
        probe.see(layer, g.value());
    }
    let u = project(&x, "up_proj", &w[at.up_proj]); // [B, T, F]
    drop(x);
    let _scope = g.tape().scope("down_proj");
    let (down_proj, act) = (&w[at.down_proj], psi.layer(layer));
    let Some(penalty) = penalty else {
        return g.gated_down_proj(&u, down_proj, act); // [B, T, C]
    };
    let (y, sum) = g.gated_down_proj_l1(&u, down_proj, act, penalty.factor());
    penalty.add(sum);
    y
}
