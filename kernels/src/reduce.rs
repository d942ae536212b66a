//! Reductions in a fixed order.

use crate::Team;
use crate::scratch;
use crate::simd::map::{self, spans};
use crate::simd::{Kernel, Simd};

/// Elements summed in `f32`; their sums are added in `f64`. Fixed, because it decides the order, and the error: at worst
/// (level scalar, 8 accumulators) a term takes part in 512 additions.
const BLOCK: usize = 4096;

/// Blocks a task takes: 256 KiB, some microseconds of reading.
const BLOCKS_PER_TASK: usize = 16;

/// Columns a task takes of a sum over rows: 1 KiB of each row, 22 tasks at F = 5632.
const COLUMNS_PER_TASK: usize = 256;

/// Rows counted in `f32` before the counts move to integers; far below 2^24, up to which `f32` counts exactly.
const ROWS_PER_COUNT: usize = 1 << 16;

/// `sum x`, accumulated in `f32` within blocks of 4096 and in `f64` across them.
///
/// Accuracy: within `516 2^-24 sum |x|` for any length (512 additions in a block, 3 to join the accumulators, 1 spare).
/// The order depends on the level and the length only: the same bits for any number of threads.
pub fn sum(team: &Team, x: &[f32]) -> f64 {
    sum_blocks(team, x, Term::Plain)
}

/// `sum |x|`, in the order and with the accuracy of [`sum`].
pub fn sum_abs(team: &Team, x: &[f32]) -> f64 {
    sum_blocks(team, x, Term::Abs)
}

/// `sum x^2`, in the order and with the accuracy of [`sum`] (its spare rounding is the square's).
pub fn sum_squares(team: &Team, x: &[f32]) -> f64 {
    sum_blocks(team, x, Term::Square)
}

/// What is summed of each element.
#[derive(Clone, Copy)]
enum Term {
    Plain,
    Abs,
    Square,
}

fn sum_blocks(team: &Team, x: &[f32], term: Term) -> f64 {
    let level = team.level();
    scratch::with(x.len().div_ceil(BLOCK), |sums| {
        team.run_chunks_mut(sums, BLOCKS_PER_TASK, |task, sums| {
            let x = &x[task * BLOCKS_PER_TASK * BLOCK..];
            level.dispatch(BlockSums { x: &x[..x.len().min(sums.len() * BLOCK)], term, sums });
        });
        // From +0 on: `Iterator::sum` of nothing is -0.
        sums.iter().fold(0.0, |total, &sum| total + sum as f64)
    })
}

/// `sums[i]`: of the terms of block i of x.
struct BlockSums<'a> {
    x: &'a [f32],
    term: Term,
    sums: &'a mut [f32],
}

impl Kernel for BlockSums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (sum, x) in self.sums.iter_mut().zip(self.x.chunks(BLOCK)) {
            *sum = match self.term {
                Term::Plain => map::sum(s, x),
                Term::Abs => map::sum_abs(s, x),
                Term::Square => map::dot(s, x, x),
            };
        }
    }
}

/// `sum_rows[c] += sum_n x[n, c]`, rows in order.
///
/// Shapes: x `[N, C]`, C the length of `sums`. Panics if x is not a whole number of rows.
/// Accuracy: within `N 2^-24 sum_n |x[n, c]|` (and the old value). Tasks own columns: the same bits for any number of threads.
#[track_caller]
pub fn sum_rows(team: &Team, x: &[f32], sums: &mut [f32]) {
    let c = sums.len();
    assert!(c > 0 && x.len().is_multiple_of(c), "sum_rows: x {} elements for rows of {c}", x.len());
    let level = team.level();
    team.run_chunks_mut(sums, COLUMNS_PER_TASK, |task, sums| {
        level.dispatch(SumRows { x, c, first_column: task * COLUMNS_PER_TASK, sums });
    });
}

struct SumRows<'a> {
    x: &'a [f32],
    c: usize,
    first_column: usize,
    sums: &'a mut [f32],
}

impl Kernel for SumRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.x.chunks_exact(self.c) {
            let row = &row[self.first_column..][..self.sums.len()];
            for at in spans(s, row.len()) {
                at.store(s, s.add(at.load(s, self.sums), at.load(s, row)), self.sums);
            }
        }
    }
}

/// `counts[f] += number of rows n with g[n, f] > 0` (NaN is not): from it come the zeros of a layer under RELU and its dead
/// neurons. Exact; wraps beyond 2^32.
///
/// Shapes: g `[N, F]`, F the length of `counts`. Panics if g is not a whole number of rows.
#[track_caller]
pub fn count_positive(team: &Team, g: &[f32], counts: &mut [u32]) {
    let f = counts.len();
    assert!(f > 0 && g.len().is_multiple_of(f), "count_positive: g {} elements for rows of {f}", g.len());
    let level = team.level();
    team.run_chunks_mut(counts, COLUMNS_PER_TASK, |task, counts| {
        level.dispatch(CountPositive { g, f, first_column: task * COLUMNS_PER_TASK, counts });
    });
}

struct CountPositive<'a> {
    g: &'a [f32],
    f: usize,
    first_column: usize,
    counts: &'a mut [u32],
}

impl Kernel for CountPositive<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (zero, one) = (s.splat(0.0), s.splat(1.0));
        for rows in self.g.chunks(ROWS_PER_COUNT * self.f) {
            let mut counts = [0.0; COLUMNS_PER_TASK];
            let counts = &mut counts[..self.counts.len()];
            for row in rows.chunks_exact(self.f) {
                let row = &row[self.first_column..][..counts.len()];
                for at in spans(s, row.len()) {
                    let positive = s.select(s.lt(zero, at.load(s, row)), one, zero);
                    at.store(s, s.add(at.load(s, counts), positive), counts);
                }
            }
            for (total, &count) in self.counts.iter_mut().zip(&*counts) {
                *total = total.wrapping_add(count as u32);
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
    use proptest::prelude::*;

    #[test]
    fn sums_match_reference() {
        for team in teams() {
            for len in lengths().chain([BLOCK, BLOCK + 1, 5 * BLOCK - 1, 3 * BLOCKS_PER_TASK * BLOCK + 777]) {
                let shift = len % 7;
                let x = &uniform(1, len + shift)[shift..];
                let what = format!("{} len={len}", team.level());
                let check = |name: &str, actual: f64, expected: f64, abs: f64| {
                    let (error, bound) = ((actual - expected).abs(), 516.0 * ROUNDING * abs);
                    assert!(error <= bound, "{name} {what}: {actual:e}, expected {expected:e}, bound {bound:e}");
                };
                let (expected, abs) = reference::sum(x);
                check("sum", sum(&team, x), expected, abs);
                check("sum_abs", sum_abs(&team, x), abs, abs);
                let expected = reference::sum_squares(x);
                check("sum_squares", sum_squares(&team, x), expected, expected);
            }
        }
    }

    #[test]
    fn the_sum_of_nothing_is_plus_zero() {
        for team in teams() {
            assert_eq!(sum(&team, &[]).to_bits(), 0, "sum {}", team.level());
            assert_eq!(sum_squares(&team, &[]).to_bits(), 0, "sum_squares {}", team.level());
            assert_eq!(sum_abs(&team, &[]).to_bits(), 0, "sum_abs {}", team.level());
            assert!(sum_abs(&team, &[1.0, f32::NAN]).is_nan(), "sum_abs {}", team.level());
        }
    }

    #[test]
    fn sum_rows_and_count_positive_match_reference() {
        for team in teams() {
            for c in lengths().skip(1) {
                for n in [0, 1, 2, 37] {
                    let (mut x, old) = (uniform(1, n * c), uniform(2, c));
                    x.iter_mut().zip([0.0, -0.0, f32::MIN_POSITIVE]).for_each(|(x, special)| *x = special);
                    let mut sums = old.clone();
                    sum_rows(&team, &x, &mut sums);
                    let (mut expected, abs) = reference::sum_rows(&x, c);
                    expected.iter_mut().zip(&old).for_each(|(e, &o)| *e += o as f64);
                    // Higham's gamma_n = n u / (1 - n u); at n <= 37 the denominator is covered by one more rounding.
                    assert_within(&format!("sum_rows {} [{n}, {c}]", team.level()), &sums, &expected, |i| {
                        (n as f64 + f64::from(n > 1)) * ROUNDING * (abs[i] + old[i].abs() as f64)
                    });

                    let mut counts = vec![5; c];
                    count_positive(&team, &x, &mut counts);
                    let expected: Vec<u32> = reference::count_positive(&x, c).iter().map(|n| n + 5).collect();
                    assert_eq!(counts, expected, "count_positive {} [{n}, {c}]", team.level());
                }
            }
        }
    }

    #[test]
    fn count_positive_counts_beyond_a_block_of_rows() {
        let n = 2 * ROWS_PER_COUNT + 3;
        let mut g = vec![1.0; n * 2];
        g.iter_mut().step_by(2).for_each(|g| *g = f32::NAN);
        for team in teams() {
            let mut counts = [0; 2];
            count_positive(&team, &g, &mut counts);
            assert_eq!(counts, [0, n as u32], "count_positive {}", team.level());
        }
    }

    proptest! {
        #[test]
        fn bits_do_not_depend_on_threads(c in 1usize..700, n in 0usize..400, seed: u32) {
            let x = uniform(seed as u64, n * c);
            for level in Level::available() {
                let results = [1, 2, 3].map(|threads| {
                    let team = Team::new(level, threads);
                    let mut sums = uniform(2, c);
                    sum_rows(&team, &x, &mut sums);
                    let sums: Vec<u32> = sums.into_iter().map(f32::to_bits).collect();
                    (sum(&team, &x).to_bits(), sum_abs(&team, &x).to_bits(), sum_squares(&team, &x).to_bits(), sums)
                });
                prop_assert!(results[0] == results[1] && results[0] == results[2], "sum {} [{}, {}]", level, n, c);
            }
        }
    }

    #[test]
    #[should_panic(expected = "sum_rows: x 7 elements for rows of 3")]
    fn rows_must_be_whole() {
        sum_rows(&Team::serial(Level::SCALAR), &[0.0; 7], &mut [0.0; 3]);
    }
}
