//! Table look-up and its transpose.

use crate::elementwise::ELEMENTS_PER_TASK;
use crate::simd::map::spans;
use crate::simd::{Kernel, Simd};
use crate::team::SharedMut;
use crate::{RowFormat, Team};

/// Columns whose gradients one task of the backward sums. Longer runs of memory against more tasks (16 at C = 2048): with
/// 64, 128 and 256 columns, 2048 tokens of C = 2048 took 0.58, 0.38 and 0.44 ns an element (Zen 5, avx512, 1 thread).
const COLUMNS_PER_TASK: usize = 128;

/// `out[n, :] = table[tokens[n], :]`, widened. Exact.
///
/// Shapes: table `[V, C]` in any [`RowFormat`], C = `d_model`; tokens `[N]`, each below V; out `[N, C]`.
///
/// Panics if a length does not fit or a token is not below V.
#[track_caller]
pub fn embedding<W: RowFormat>(team: &Team, table: &[W], tokens: &[u32], d_model: usize, out: &mut [f32]) {
    let row_len = W::row_len(d_model);
    assert!(
        d_model > 0 && table.len().is_multiple_of(row_len),
        "embedding: table has {} units of {} for rows of {d_model}",
        table.len(),
        W::NAME
    );
    check("embedding", "out", table.len() / row_len * d_model, tokens, d_model, out.len());
    let rows_per_task = (ELEMENTS_PER_TASK / d_model).max(1);
    team.run_chunks_mut(out, rows_per_task * d_model, |task, out| {
        let tokens = &tokens[task * rows_per_task..];
        for (out, &token) in out.chunks_exact_mut(d_model).zip(tokens) {
            W::widen_row(team.level(), &table[token as usize * row_len..][..row_len], out);
        }
    });
}

/// `d_table[tokens[n], :] += d_out[n, :]`, rows in order: the gradient of [`embedding`].
///
/// Shapes: d_out `[N, C]`, C = `d_model`; tokens `[N]`, each below V; d_table `[V, C]`.
///
/// Panics if a length does not fit or a token is not below V.
/// Accuracy: within `k 2^-24` of the sum of absolute values for a token that occurs k times.
/// Tasks own columns and walk all rows in order: no atomics, the same bits for any number of threads.
#[track_caller]
pub fn embedding_backward(team: &Team, d_out: &[f32], tokens: &[u32], d_model: usize, d_table: &mut [f32]) {
    check("embedding_backward", "d_out", d_table.len(), tokens, d_model, d_out.len());
    let level = team.level();
    let d_table = SharedMut::new(d_table);
    team.run(d_model.div_ceil(COLUMNS_PER_TASK), |task| {
        level.dispatch(Scatter { d_out, tokens, d_model, first_column: task * COLUMNS_PER_TASK, d_table: &d_table });
    });
}

#[track_caller]
fn check(name: &str, rows: &str, table_len: usize, tokens: &[u32], d_model: usize, rows_len: usize) {
    assert!(
        d_model > 0 && table_len.is_multiple_of(d_model) && rows_len == tokens.len() * d_model,
        "{name}: table {table_len} and {rows} {rows_len} elements for {} tokens of d_model {d_model}",
        tokens.len()
    );
    let vocab = table_len / d_model;
    if let Some((n, token)) = tokens.iter().enumerate().find(|&(_, &token)| token as usize >= vocab) {
        panic!("{name}: token {token} in place {n} is not below the {vocab} rows of the table");
    }
}

struct Scatter<'a> {
    d_out: &'a [f32],
    tokens: &'a [u32],
    d_model: usize,
    first_column: usize,
    d_table: &'a SharedMut<'a, f32>,
}

impl Kernel for Scatter<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let columns = COLUMNS_PER_TASK.min(self.d_model - self.first_column);
        for (d_out, &token) in self.d_out.chunks_exact(self.d_model).zip(self.tokens) {
            let d_out = &d_out[self.first_column..][..columns];
            // SAFETY: only the task of these columns touches them, in any row, and it holds one row at a time.
            let sum = unsafe { self.d_table.slice(token as usize * self.d_model + self.first_column, columns) };
            for at in spans(s, columns) {
                at.store(s, s.add(at.load(s, sum), at.load(s, d_out)), sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Q4;
    use crate::reference;
    use crate::simd::Level;
    use crate::testing::{
        ROUNDING, assert_within, lengths, rounded_rows, teams, uniform, uniform_bf16, widened, widened_rows,
    };

    /// Tokens below `vocab`, with repetitions, and the last row of the table among them.
    fn tokens(len: usize, vocab: usize) -> Vec<u32> {
        uniform(9, len).iter().map(|x| ((x.abs() * vocab as f32) as u32).min(vocab as u32 - 1)).collect()
    }

    #[test]
    fn embedding_matches_reference() {
        for team in teams() {
            for d_model in lengths().skip(1) {
                for (n, vocab) in [(0, 3), (1, 1), (40, 7), (300, 100)] {
                    let (table, tokens) = (uniform(1, vocab * d_model), tokens(n, vocab));
                    let mut out = vec![f32::NAN; n * d_model];
                    embedding(&team, &table, &tokens, d_model, &mut out);
                    let expected = reference::embedding(&table, &tokens, d_model);
                    assert_within(&format!("embedding {} C={d_model} N={n}", team.level()), &out, &expected, |_| 0.0);

                    let table = uniform_bf16(1, vocab * d_model);
                    embedding(&team, &table, &tokens, d_model, &mut out);
                    let expected = reference::embedding(&widened(&table), &tokens, d_model);
                    assert_within(&format!("embedding bf16 {} C={d_model}", team.level()), &out, &expected, |_| 0.0);

                    let table = rounded_rows::<Q4>(&uniform(1, vocab * d_model), d_model);
                    embedding(&team, &table, &tokens, d_model, &mut out);
                    let expected = reference::embedding(&widened_rows(&table, d_model), &tokens, d_model);
                    assert_within(&format!("embedding q4 {} C={d_model}", team.level()), &out, &expected, |_| 0.0);
                }
            }
        }
    }

    #[test]
    fn embedding_backward_matches_reference() {
        for team in teams() {
            for d_model in lengths().skip(1) {
                for (n, vocab) in [(0, 3), (1, 1), (40, 7), (300, 100)] {
                    let (d_out, tokens, old) = (uniform(1, n * d_model), tokens(n, vocab), uniform(2, vocab * d_model));
                    let mut d_table = old.clone();
                    embedding_backward(&team, &d_out, &tokens, d_model, &mut d_table);
                    let (mut expected, abs) = reference::embedding_backward(&d_out, &tokens, d_model, vocab);
                    expected.iter_mut().zip(&old).for_each(|(e, &o)| *e += o as f64);
                    let what = format!("embedding_backward {} C={d_model} N={n}", team.level());
                    // Each occurrence is one sum, rounded once.
                    assert_within(&what, &d_table, &expected, |i| {
                        let k = tokens.iter().filter(|&&t| t as usize == i / d_model).count();
                        k as f64 * ROUNDING * (abs[i] + old[i].abs() as f64) * (1.0 + k as f64 * ROUNDING)
                    });
                }
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let (n, vocab, d_model) = (500, 20, 200);
        let (d_out, tokens) = (uniform(1, n * d_model), tokens(n, vocab));
        for level in Level::available() {
            let bits = |threads| {
                let mut d_table = uniform(2, vocab * d_model);
                embedding_backward(&Team::new(level, threads), &d_out, &tokens, d_model, &mut d_table);
                d_table.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            assert!(bits(1) == bits(2) && bits(1) == bits(3), "embedding_backward {level}: bits differ");
        }
    }

    #[test]
    #[should_panic(expected = "embedding: token 5 in place 1 is not below the 5 rows of the table")]
    fn a_token_beyond_the_table_is_refused() {
        embedding(&Team::serial(Level::SCALAR), &[0.0; 10], &[4, 5], 2, &mut [0.0; 4]);
    }

    #[test]
    #[should_panic(expected = "embedding_backward: table 10 and d_out 4 elements for 1 tokens of d_model 2")]
    fn lengths_must_agree() {
        embedding_backward(&Team::serial(Level::SCALAR), &[0.0; 4], &[4], 2, &mut [0.0; 10]);
    }
}
