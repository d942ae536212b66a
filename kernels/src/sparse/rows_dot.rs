use crate::gemv::{dots, rows_per_task};
use crate::simd::{Kernel, Simd};
use crate::{RowFormat, Team};

/// `out[j] = dot(w[rows[j], :], x)`: the active rows of up_proj (BLIS's dotxf, with gaps between the rows).
///
/// Shapes: w `[F, C]` in any [`RowFormat`], x `[C]`, rows and out of one length.
///
/// Panics if a length does not fit or a row lies outside w. The bits of an element are those that
/// [`gemv`](crate::gemv::gemv) gives for that row, and as accurate. Cost: the rows are read once, 4 C bytes each (bf16: 2 C, q8: 1.06 C,
/// q4: 0.56 C), the next ones prefetched: memory-bound.
#[track_caller]
pub fn rows_dot<W: RowFormat>(team: &Team, w: &[W], rows: &[u32], x: &[f32], out: &mut [f32]) {
    let c = x.len();
    assert!(
        c > 0 && w.len().is_multiple_of(W::row_len(c)) && rows.len() == out.len(),
        "rows_dot: {} rows into {} of w with {} units of {}, x {c}",
        rows.len(),
        out.len(),
        w.len(),
        W::NAME
    );
    let per_task = rows_per_task::<W>(c);
    W::with_x(team.level(), x, |x| {
        team.run_chunks_mut(out, per_task, |task, out| {
            let rows = &rows[task * per_task..][..out.len()];
            W::dispatch(team.level(), RowsDot { w, rows, x, out });
        });
    });
}

struct RowsDot<'a, W> {
    w: &'a [W],
    rows: &'a [u32],
    x: &'a [f32],
    out: &'a mut [f32],
}

impl<W: RowFormat> Kernel for RowsDot<'_, W> {
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
    use crate::packed::PackedBf16;
    use crate::quant::{Q4, Q8, i8_dot};
    use crate::testing::{rounded_rows, teams, uniform, uniform_bf16};

    #[test]
    fn rows_dot_has_the_bits_of_gemv() {
        for team in teams() {
            for (f, c) in [(1, 1), (40, 7), (300, 64), (1000, 100), (77, 515)] {
                has_the_bits_of_gemv(&team, &uniform(1, f * c), c);
                has_the_bits_of_gemv(&team, &uniform_bf16(1, f * c), c);
                has_the_bits_of_gemv(&team, &rounded_rows::<PackedBf16>(&uniform(1, f * c), c), c);
                let (q8, q4) = (rounded_rows::<Q8>(&uniform(1, f * c), c), rounded_rows::<Q4>(&uniform(1, f * c), c));
                has_the_bits_of_gemv(&team, &q8, c);
                has_the_bits_of_gemv(&team, &q4, c);
                has_the_bits_of_gemv(&team, i8_dot(&q8), c);
                has_the_bits_of_gemv(&team, i8_dot(&q4), c);
            }
        }
    }

    fn has_the_bits_of_gemv<W: RowFormat>(team: &Team, w: &[W], c: usize) {
        let (f, x) = (w.len() / W::row_len(c), uniform(2, c));
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
