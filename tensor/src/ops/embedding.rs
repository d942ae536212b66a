use super::{Place, place, with_float};
use crate::check::{expect_matrix, expect_shape, reads, reads_float, reads_u32, writes};
use crate::{DType, Tensor};

/// `out[.., :] = table[tokens[..], :]`. Shapes: float table `[V, C]`; tokens `[..]` of u32, each below V; out `[.., C]` of f32. A token
/// that is not below V panics on the CPU; a GPU, where tokens are not looked at, makes a row of NaN.
#[track_caller]
pub fn embedding(table: &Tensor, tokens: &Tensor) -> Tensor {
    let [_, c] = expect_matrix("embedding", "table", table);
    let place = place("embedding", &[reads_float("table", table), reads_u32("tokens", tokens)]);
    let mut out = place.stale(tokens.shape.and(c), DType::F32);
    let (table, tokens) = (table.contiguous(), tokens.contiguous());
    match place {
        Place::Cpu(team) => {
            kernels::embedding::embedding(&team, table.slice::<f32>(), tokens.slice(), c, out.slice_mut())
        }
        Place::Cuda(gpu) => with_float!(table.dtype, T => {
            let (table, tokens) = (table.cuda_slice::<T>(), tokens.cuda_slice());
            gpu.done(cuda::ops::embedding::embedding(table, tokens, c, out.cuda_slice_mut()));
        }),
    }
    out
}

/// `d_table[tokens[..], :] += d_out[.., :]`, in the order of the tokens. Shapes as in [`embedding`].
#[track_caller]
pub fn embedding_backward(d_out: &Tensor, tokens: &Tensor, d_table: &mut Tensor) {
    let op = "embedding_backward";
    let [_, c] = expect_matrix(op, "d_table", d_table);
    expect_shape(op, "d_out", d_out, &tokens.shape.and(c));
    let place = place(op, &[reads("d_out", d_out), reads_u32("tokens", tokens), writes("d_table", d_table)]);
    let (d_out, tokens) = (d_out.contiguous(), tokens.contiguous());
    match place {
        Place::Cpu(team) => {
            kernels::embedding::embedding_backward(&team, d_out.slice(), tokens.slice(), c, d_table.slice_mut())
        }
        Place::Cuda(gpu) => {
            let (d_out, tokens) = (d_out.cuda_slice(), tokens.cuda_slice());
            gpu.done(cuda::ops::embedding::embedding_backward(d_out, tokens, c, d_table.cuda_slice_mut()));
        }
    }
}
