//! Rotary position embedding, in the half-rotation form of Hugging Face Llama.

use crate::{Team, reference};

/// The layout of a tensor of heads `[N, H, D]` whose row n is at position `first_position + n % seq_len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RopeShape {
    /// H.
    pub n_heads: usize,
    /// D, even.
    pub head_dim: usize,
    /// T: rows of one sequence.
    pub seq_len: usize,
    /// Position of the first row of each sequence (0 in training).
    pub first_position: usize,
}

/// Forward, or its transpose (the rotation by the negative angle), which is the backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// By `+angle`.
    Forward,
    /// By `-angle`.
    Backward,
}

/// With halves `a = x[.., i]` and `b = x[.., i + D/2]`: `y = (a cos - b sin, b cos + a sin)`.
/// Shapes: x, y `[N, H, D]`; cos, sin `[max_seq, D / 2]`.
pub fn rope(_team: &Team, x: &[f32], cos: &[f32], sin: &[f32], shape: RopeShape, rotation: Rotation, y: &mut [f32]) {
    let sign = if rotation == Rotation::Forward { 1.0 } else { -1.0 };
    y.iter_mut().zip(reference::rope(x, cos, sin, shape, sign)).for_each(|(y, r)| *y = r as f32);
}
