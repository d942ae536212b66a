//! Rotary position embedding, in the half-rotation form of Hugging Face Llama.

use crate::Team;
use crate::elementwise::ELEMENTS_PER_TASK;
use crate::simd::map::spans;
use crate::simd::{Kernel, Simd};

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

impl RopeShape {
    /// Panics if [`rope`] does not take x, cos, sin and y of these lengths, on any device.
    #[track_caller]
    pub fn check(&self, [x, cos, sin, y]: [usize; 4]) {
        let &RopeShape { n_heads, head_dim, seq_len, first_position } = self;
        let row_len = n_heads * head_dim;
        assert!(
            row_len > 0 && head_dim.is_multiple_of(2) && y.is_multiple_of(row_len) && x == y,
            "rope: x {x} and y {y} elements for rows of {n_heads} heads of {head_dim} (even)"
        );
        let (positions, half) = (first_position + seq_len.min(y / row_len), head_dim / 2);
        assert!(
            seq_len > 0 && cos == sin && cos >= positions * half,
            "rope: cos {cos} and sin {sin} elements for {positions} positions of {half} angles (seq_len {seq_len})"
        );
    }
}

/// Forward, or its transpose (the rotation by the negative angle), which is the backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// By `+angle`.
    Forward,
    /// By `-angle`.
    Backward,
}

/// With halves `a = x[.., i]` and `b = x[.., i + D/2]`: `y = (a cos - b sin, b cos + a sin)`, at row `position` of the tables.
/// A rotation is orthogonal: the gradient of x is that of y turned back, [`Rotation::Backward`].
///
/// Shapes: x, y `[N, H, D]`; cos, sin `[max_seq, D / 2]`.
///
/// Panics if a length does not fit, D is odd, or the tables end before the last position.
/// Accuracy: within `3 2^-24 (|a cos| + |b sin|)`. Cost: 8 bytes an element moved; the tables stay in cache.
/// Source: Su et al., arXiv 2104.09864, eq. 34, with the pairs `(i, i + D/2)`.
#[track_caller]
pub fn rope(team: &Team, x: &[f32], cos: &[f32], sin: &[f32], shape: RopeShape, rotation: Rotation, y: &mut [f32]) {
    shape.check([x.len(), cos.len(), sin.len(), y.len()]);
    let row_len = shape.n_heads * shape.head_dim;
    let level = team.level();
    let rows_per_task = (ELEMENTS_PER_TASK / row_len).max(1);
    team.run_chunks_mut(y, rows_per_task * row_len, |task, y| {
        let first_row = task * rows_per_task;
        let x = &x[first_row * row_len..][..y.len()];
        level.dispatch(Rope { x, cos, sin, shape, rotation, first_row, y });
    });
}

struct Rope<'a> {
    x: &'a [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    shape: RopeShape,
    rotation: Rotation,
    first_row: usize,
    y: &'a mut [f32],
}

impl Kernel for Rope<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let RopeShape { n_heads, head_dim, seq_len, first_position } = self.shape;
        let (row_len, half) = (n_heads * head_dim, head_dim / 2);
        let sign = s.splat(if self.rotation == Rotation::Forward { 1.0 } else { -1.0 });
        let rows = self.x.chunks_exact(row_len).zip(self.y.chunks_exact_mut(row_len));
        for (row, (x, y)) in (self.first_row..).zip(rows) {
            let angles = (first_position + row % seq_len) * half;
            let (cos, sin) = (&self.cos[angles..][..half], &self.sin[angles..][..half]);
            for (x, y) in x.chunks_exact(head_dim).zip(y.chunks_exact_mut(head_dim)) {
                let ((a, b), (y_a, y_b)) = (x.split_at(half), y.split_at_mut(half));
                for at in spans(s, half) {
                    let (cos, sin) = (at.load(s, cos), s.mul(sign, at.load(s, sin)));
                    let (a, b) = (at.load(s, a), at.load(s, b));
                    at.store(s, s.sub(s.mul(a, cos), s.mul(b, sin)), y_a);
                    at.store(s, s.mul_add(a, sin, s.mul(b, cos)), y_b);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use crate::simd::Level;
    use crate::testing::{ROUNDING, assert_within, lengths, teams, uniform};

    /// Tables `[max_seq, half]` of angles `position * 10000^(-i / half)`.
    fn tables(max_seq: usize, half: usize) -> (Vec<f32>, Vec<f32>) {
        let angle = |i: usize| (i / half) as f64 * f64::powf(1e4, -((i % half) as f64) / half as f64);
        (0..max_seq * half).map(|i| (angle(i).cos() as f32, angle(i).sin() as f32)).unzip()
    }

    #[test]
    fn rope_matches_reference() {
        for team in teams() {
            for half in lengths().skip(1) {
                for (n_heads, seq_len, batch, first_position) in [(3, 5, 2, 0), (1, 1, 4, 9), (2, 70, 1, 3)] {
                    let shape = RopeShape { n_heads, head_dim: 2 * half, seq_len, first_position };
                    let (cos, sin) = tables(first_position + seq_len, half);
                    let x = uniform(1, batch * seq_len * n_heads * 2 * half);
                    for (rotation, sign) in [(Rotation::Forward, 1.0), (Rotation::Backward, -1.0)] {
                        let mut y = vec![f32::NAN; x.len()];
                        rope(&team, &x, &cos, &sin, shape, rotation, &mut y);
                        let expected = reference::rope(&x, &cos, &sin, shape, sign);
                        let what = format!("rope {} {shape:?} {rotation:?}", team.level());
                        // Two products and a sum: each term is rounded at most twice, and once more by the other's error.
                        assert_within(&what, &y, &expected, |i| {
                            let position = first_position + i / (n_heads * 2 * half) % seq_len;
                            let angle = position * half + i % half;
                            let (a, b) = (x[i], if i % (2 * half) < half { x[i + half] } else { x[i - half] });
                            3.0 * ROUNDING * ((a * cos[angle]).abs() + (b * sin[angle]).abs()) as f64
                        });
                    }
                }
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let shape = RopeShape { n_heads: 3, head_dim: 34, seq_len: 700, first_position: 0 };
        let (cos, sin) = tables(700, 17);
        let x = uniform(1, 2 * 700 * 3 * 34);
        for level in Level::available() {
            let bits = |threads| {
                let mut y = vec![0.0; x.len()];
                rope(&Team::new(level, threads), &x, &cos, &sin, shape, Rotation::Forward, &mut y);
                y.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            assert!(bits(1) == bits(2) && bits(1) == bits(3), "rope {level}: bits differ between thread counts");
        }
    }

    #[test]
    #[should_panic(expected = "rope: cos 8 and sin 8 elements for 5 positions of 2 angles")]
    fn positions_beyond_the_tables_are_refused() {
        let shape = RopeShape { n_heads: 1, head_dim: 4, seq_len: 8, first_position: 3 };
        rope(&Team::serial(Level::SCALAR), &[0.0; 8], &[0.0; 8], &[0.0; 8], shape, Rotation::Forward, &mut [0.0; 8]);
    }
}
