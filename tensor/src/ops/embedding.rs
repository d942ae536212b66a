use super::{Place, place};
use crate::check::{expect_matrix, expect_shape, reads, reads_u32, writes};
use crate::{DType, Tensor};

/// `out[.., :] = table[tokens[..], :]`. Shapes: table `[V, C]`; tokens `[..]` of u32, each below V; out `[.., C]`.
#[track_caller]
pub fn embedding(table: &Tensor, tokens: &Tensor) -> Tensor {
    let [_, c] = expect_matrix("embedding", "table", table);
    match place("embedding", &[reads("table", table), reads_u32("tokens", tokens)]) {
        Place::Cpu(team) => {
            let mut out = Tensor::stale(tokens.shape.and(c), DType::F32);
            let (table, tokens) = (table.contiguous(), tokens.contiguous());
            kernels::embedding::embedding(&team, table.slice::<f32>(), tokens.slice(), c, out.slice_mut());
            out
        }
    }
}

/// `d_table[tokens[..], :] += d_out[.., :]`, in the order of the tokens. Shapes as in [`embedding`].
#[track_caller]
pub fn embedding_backward(d_out: &Tensor, tokens: &Tensor, d_table: &mut Tensor) {
    let op = "embedding_backward";
    let [_, c] = expect_matrix(op, "d_table", d_table);
    expect_shape(op, "d_out", d_out, &tokens.shape.and(c));
    match place(op, &[reads("d_out", d_out), reads_u32("tokens", tokens), writes("d_table", d_table)]) {
        Place::Cpu(team) => {
            let (d_out, tokens) = (d_out.contiguous(), tokens.contiguous());
            kernels::embedding::embedding_backward(&team, d_out.slice(), tokens.slice(), c, d_table.slice_mut());
        }
    }
}
