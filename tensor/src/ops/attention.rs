use super::{Place, place, with_float};
use crate::check::{expect_shape, reads, reads_float, reads_like};
use crate::{Beta, DType, Tensor};
use cuda::ops::attention as on_gpu;
use kernels::attention::{self as kernel, AttentionSaved, AttentionShape};

/// The result of [`attention`].
pub struct Attention {
    /// `[B, Tq, H, D]`.
    pub out: Tensor,
    /// The logarithm of each softmax's sum, `[B, H, Tq]`: for the backward.
    pub lse: Tensor,
}

#[track_caller]
fn shape_of(op: &str, q: &Tensor, k: &Tensor, v: &Tensor) -> AttentionShape {
    let (&[batch, q_len, n_heads, head_dim], &[b_k, kv_len, n_kv_heads, d_k]) = (&*q.shape, &*k.shape) else {
        panic!("{op}: q {} and k {}: not [B, T, H, D]", q.shape, k.shape)
    };
    assert!(k.shape == v.shape, "{op}: k {} and v {} differ", k.shape, v.shape);
    let fits =
        batch == b_k && head_dim == d_k && kv_len >= q_len && n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads);
    assert!(fits, "{op}: q {} and k {}: equal B and D, T of k no less, heads of q a multiple", q.shape, k.shape);
    AttentionShape { batch, q_len, kv_len, n_heads, n_kv_heads, head_dim }
}

/// Causal attention, `softmax(scale Q K^T) V`, with grouped key-value heads.
/// Shapes: float q `[B, Tq, H, D]`; k, v `[B, Tk, K, D]`, Tk at least Tq, K dividing H. D is at most 128 on a GPU. In bf16 the softmax is f32,
/// its probabilities rounded before they meet V.
#[track_caller]
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f32) -> Attention {
    let shape = shape_of("attention", q, k, v);
    let operands = [reads_float("q", q), reads_like("k", k, q.dtype), reads_like("v", v, q.dtype)];
    let place = place("attention", &operands);
    let mut out = place.stale(q.shape, q.dtype);
    let mut lse = place.stale([shape.batch, shape.n_heads, shape.q_len], DType::F32);
    let (q, k, v) = (q.contiguous(), k.contiguous(), v.contiguous());
    match place {
        Place::Cpu(team) => {
            let (q, k, v) = (q.slice(), k.slice(), v.slice());
            kernel::attention(&team, shape, scale, q, k, v, out.slice_mut(), lse.slice_mut());
        }
        Place::Cuda(gpu) => with_float!(q.dtype, T => {
            let (q, k, v) = (q.cuda_slice::<T>(), k.cuda_slice(), v.cuda_slice());
            gpu.done(on_gpu::attention(shape, scale, q, k, v, out.cuda_slice_mut(), lse.cuda_slice_mut()));
        }),
    }
    Attention { out, lse }
}

/// The gradients `(dq, dk, dv)` of [`attention`], in its element type, which d_out has too.
#[track_caller]
pub fn attention_backward(
    d_out: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    forward: &Attention,
    scale: f32,
) -> (Tensor, Tensor, Tensor) {
    let shape = shape_of("attention_backward", q, k, v);
    expect_shape("attention_backward", "d_out", d_out, &q.shape);
    expect_shape("attention_backward", "out", &forward.out, &q.shape);
    expect_shape("attention_backward", "lse", &forward.lse, &[shape.batch, shape.n_heads, shape.q_len]);
    let Attention { out, lse } = forward;
    let like_q = |name, x| reads_like(name, x, q.dtype);
    let operands = [
        reads_float("q", q),
        like_q("k", k),
        like_q("v", v),
        like_q("d_out", d_out),
        like_q("out", out),
        reads("lse", lse),
    ];
    let place = place("attention_backward", &operands);
    let [mut dq, mut dk, mut dv] = [q, k, v].map(|x| place.stale(x.shape, q.dtype));
    let [q, k, v, out, lse, d_out] = [q, k, v, out, lse, d_out].map(Tensor::contiguous);
    match place {
        Place::Cpu(team) => {
            let saved = AttentionSaved { q: q.slice(), k: k.slice(), v: v.slice(), out: out.slice(), lse: lse.slice() };
            let (dq_s, dk_s, dv_s) = (dq.slice_mut(), dk.slice_mut(), dv.slice_mut());
            kernel::attention_backward(&team, shape, scale, saved, d_out.slice(), Beta::Zero, dq_s, dk_s, dv_s);
        }
        Place::Cuda(gpu) => with_float!(q.dtype, T => {
            let (q, k, v) = (q.cuda_slice::<T>(), k.cuda_slice(), v.cuda_slice());
            let saved = on_gpu::AttentionSaved { q, k, v, out: out.cuda_slice(), lse: lse.cuda_slice() };
            let (dq, dk, dv) = (dq.cuda_slice_mut(), dk.cuda_slice_mut(), dv.cuda_slice_mut());
            let d_out = d_out.cuda_slice();
            gpu.done(on_gpu::attention_backward(shape, scale, saved, d_out, Beta::Zero, dq, dk, dv));
        }),
    }
    (dq, dk, dv)
}
