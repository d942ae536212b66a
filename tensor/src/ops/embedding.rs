use super::{Place, expect_shape, place};
use crate::{DType, Shape, Tensor};

#[track_caller]
fn check_tokens(op: &str, table: &Tensor, tokens: &Tensor) -> usize {
    assert!(table.shape.rank() == 2, "{op}: table has shape {}, not [V, C]", table.shape);
    assert_eq!(tokens.dtype, DType::U32, "{op}: tokens of {}", tokens.dtype);
    table.shape[1]
}

/// `out[.., :] = table[tokens[..], :]`. Shapes: table `[V, C]`; tokens `[..]` of u32, each below V; out `[.., C]`.
#[track_caller]
pub fn embedding(table: &Tensor, tokens: &Tensor) -> Tensor {
    let c = check_tokens("embedding", table, tokens);
    match place("embedding", &[table, tokens]) {
        Place::Cpu(team) => {
            let mut dims = tokens.shape.to_vec();
            dims.push(c);
            let mut out = Tensor::stale(Shape::new(&dims), DType::F32);
            let (table, tokens) = (table.contiguous(), tokens.contiguous());
            kernels::embedding::embedding(&team, table.slice(), tokens.slice(), c, out.slice_mut());
            out
        }
    }
}

/// `d_table[tokens[..], :] += d_out[.., :]`, in the order of the tokens. Shapes as in [`embedding`].
#[track_caller]
pub fn embedding_backward(d_out: &Tensor, tokens: &Tensor, d_table: &mut Tensor) {
    let c = check_tokens("embedding_backward", d_table, tokens);
    let mut dims = tokens.shape.to_vec();
    dims.push(c);
    expect_shape("embedding_backward", "d_out", d_out, &dims);
    match place("embedding_backward", &[d_out, tokens, d_table]) {
        Place::Cpu(team) => {
            let (d_out, tokens) = (d_out.contiguous(), tokens.contiguous());
            kernels::embedding::embedding_backward(&team, d_out.slice(), tokens.slice(), c, d_table.slice_mut());
        }
    }
}
