use crate::gemv::{dots, rows_per_task};
use crate::simd::{Kernel, Simd};
use crate::{Team, Weight};

/// `out[j] = dot(w[rows[j], :], x)`: the active rows of up_proj (BLIS's dotxf, with gaps between the rows).
///
/// Shapes: w `[F, C]`, x `[C]`, rows and out of one length.
///
/// Panics if a length does not fit or a row lies outside w. The bits of an element are those that
/// [`gemv`](crate::gemv::gemv) gives for that row. Accuracy: `(C + 4) 2^-24 sum_k |w_k x_k|`. Cost: the rows are read once, 4 C
/// bytes each (bf16: 2 C), the next ones prefetched: memory-bound.
#[track_caller]
pub fn rows_dot<W: Weight>(team: &Team, w: &[W], rows: &[u32], x: &[f32], out: &mut [f32]) {
    let c = x.len();
    assert!(
        c > 0 && w.len().is_multiple_of(c) && rows.len() == out.len(),
        "rows_dot: {} rows into {} of w with {} elements, x {c}",
        rows.len(),
        out.len(),
        w.len()
    );
    let per_task = rows_per_task(c);
    team.run_chunks_mut(out, per_task, |task, out| {
        let rows = &rows[task * per_task..][..out.len()];
        team.level().dispatch(RowsDot { w, rows, x, out });
    });
}

struct RowsDot<'a, W> {
    w: &'a [W],
    rows: &'a [u32],
    x: &'a [f32],
    out: &'a mut [f32],
}

impl<W: Weight> Kernel for RowsDot<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        dots(s, self.w, self.rows, self.x, self.out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemv::gemv;
    use crate::testing::{teams, uniform, uniform_bf16};

    #[test]
    fn rows_dot_has_the_bits_of_gemv() {
        for team in teams() {
            for (f, c) in [(1, 1), (40, 7), (300, 64), (1000, 100), (77, 515)] {
                has_the_bits_of_gemv(&team, &uniform(1, f * c), c);
                has_the_bits_of_gemv(&team, &uniform_bf16(1, f * c), c);
            }
        }
    }

    fn has_the_bits_of_gemv<W: Weight>(team: &Team, w: &[W], c: usize) {
        let (f, x) = (w.len() / c, uniform(2, c));
        let mut all = vec![0.0; f];
        gemv(team, w, &x, &mut all);
        for step in [1, 2, 3, 7] {
            let rows: Vec<u32> = (0..f as u32).step_by(step).collect();
            let mut out = vec![f32::NAN; rows.len()];
            rows_dot(team, w, &rows, &x, &mut out);
            let expected: Vec<f32> = rows.iter().map(|&row| all[row as usize]).collect();
            assert_eq!(out, expected, "rows_dot {} {} [{f}, {c}] every {step}", W::NAME, team.level());
        }
    }
}
