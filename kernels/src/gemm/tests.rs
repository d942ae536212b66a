use super::*;
use crate::reference;
use crate::testing::{assert_within, dot_bound, teams, uniform};

/// How an operand lies in memory.
#[derive(Clone, Copy, Debug)]
enum Layout {
    RowMajor,
    ColumnMajor,
    /// Row-major in a wider matrix.
    Strided,
    /// Every third element of a row: neither stride is 1.
    Gaps,
}

const LAYOUTS: [Layout; 4] = [Layout::RowMajor, Layout::ColumnMajor, Layout::Strided, Layout::Gaps];

impl Layout {
    fn data(self, seed: u64, rows: usize, cols: usize) -> Vec<f32> {
        uniform(seed, rows * cols * 3 + 7 * rows + cols)
    }

    fn mat(self, data: &[f32], rows: usize, cols: usize) -> Mat<'_> {
        match self {
            Layout::RowMajor => Mat::new(&data[..rows * cols], rows, cols),
            Layout::ColumnMajor => Mat::new(&data[..rows * cols], cols, rows).t(),
            Layout::Strided => Mat::strided(data, rows, cols, cols + 5, 1),
            Layout::Gaps => Mat::strided(data, rows, cols, 3 * cols + 1, 3),
        }
    }
}

/// One product on one team, held to the reference: C wider than N, NaN before it with `Beta::Zero`, and untouched between rows.
fn check(team: &Team, (m, n, k): (usize, usize, usize), (la, lb): (Layout, Layout), beta: Beta) {
    let (a, b) = (la.data(1, m, k), lb.data(2, k, n));
    let (a, b) = (la.mat(&a, m, k), lb.mat(&b, k, n));
    let row_stride = n + 3;
    let old = if beta == Beta::One { uniform(3, m * row_stride) } else { vec![f32::NAN; m * row_stride] };
    let mut c = old.clone();
    gemm(team, a, b, beta, MatMut::strided(&mut c, m, n, row_stride));
    let (mut expected, mut abs) = reference::gemm(a, b);
    let what = format!("gemm {} {}t [{m}, {k}] x [{k}, {n}] {la:?} {lb:?} {beta:?}", team.level(), team.threads());
    let mut product = Vec::new();
    for i in 0..m {
        for j in 0..row_stride {
            let at = i * row_stride + j;
            if j < n {
                product.push(c[at]);
                if beta == Beta::One {
                    expected[i * n + j] += old[at] as f64;
                    abs[i * n + j] += old[at].abs() as f64;
                }
            } else {
                assert_eq!(c[at].to_bits(), old[at].to_bits(), "{what}: wrote beyond its columns at ({i}, {j})");
            }
        }
    }
    assert_within(&what, &product, &expected, |i| dot_bound(k, abs[i]));
}

/// All small sizes of one extent, with a few of the others: every height and width of a tile, and its neighbours.
#[test]
fn gemm_matches_reference_at_every_small_size() {
    for team in teams().iter().filter(|team| team.threads() == 1) {
        let layouts = (Layout::RowMajor, Layout::RowMajor);
        for m in 0..=29 {
            for n in [1, 15, 17, 32, 33] {
                check(team, (m, n, 5), layouts, Beta::One);
            }
        }
        for n in 0..=65 {
            for m in [1, 6, 13, 14, 15] {
                check(team, (m, n, 3), layouts, Beta::Zero);
            }
        }
        for k in 0..=65 {
            for (m, n) in [(1, 1), (15, 33), (14, 32)] {
                check(team, (m, n, k), layouts, Beta::Zero);
            }
        }
    }
}

#[test]
fn gemm_matches_reference_in_every_layout() {
    for team in teams() {
        for la in LAYOUTS {
            for lb in LAYOUTS {
                for shape in [(1, 1, 1), (5, 7, 9), (14, 32, 16), (31, 70, 50), (67, 33, 300), (3, 300, 2)] {
                    for beta in [Beta::Zero, Beta::One] {
                        check(&team, shape, (la, lb), beta);
                    }
                }
            }
        }
    }
}
