use super::*;
use crate::reference;
use crate::simd::Level;
use crate::testing::{assert_within, dot_bound, teams, uniform, uniform_bf16, widened};
use proptest::prelude::*;

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

    fn mat<W: Weight>(self, data: &[W], rows: usize, cols: usize) -> Mat<'_, W> {
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

#[test]
fn a_product_with_bf16_has_the_bits_of_the_widened_matrix() {
    for team in teams() {
        for lb in LAYOUTS {
            for (m, n, k) in [(1, 1, 1), (2, 33, 17), (5, 7, 9), (31, 70, 50), (67, 33, 300), (300, 130, 600)] {
                let a = uniform(1, m * k);
                let b = uniform_bf16(2, lb.data(2, k, n).len());
                let wide = widened(&b);
                let (a, b, wide) = (Mat::new(&a, m, k), lb.mat(&b, k, n), lb.mat(&wide, k, n));
                let what = format!("gemm bf16 {} {}t [{m}, {k}] x [{k}, {n}] {lb:?}", team.level(), team.threads());
                assert_eq!(bits(&team, a, b), bits(&team, a, wide), "{what}");
            }
        }
    }
}

/// More than one outer block of K and of N.
#[test]
fn gemm_matches_reference_beyond_one_packing_of_b() {
    for team in teams() {
        check(&team, (5, 1500, 3100), (Layout::RowMajor, Layout::ColumnMajor), Beta::Zero);
        check(&team, (5, 1500, 3100), (Layout::ColumnMajor, Layout::RowMajor), Beta::One);
    }
}

fn bits<W: Weight>(team: &Team, a: Mat, b: Mat<W>) -> Vec<u32> {
    let mut c = uniform(3, a.rows() * b.cols());
    gemm(team, a, b, Beta::One, MatMut::new(&mut c, a.rows(), b.cols()));
    c.iter().map(|c| c.to_bits()).collect()
}

#[test]
fn bits_do_not_depend_on_threads_place_or_strides() {
    let (m, n, k) = (311, 203, 700);
    for level in Level::available() {
        for (la, lb) in [(Layout::RowMajor, Layout::ColumnMajor), (Layout::ColumnMajor, Layout::Gaps)] {
            let (a, b) = (la.data(1, m, k), lb.data(2, k, n));
            let (a, b) = (la.mat(&a, m, k), lb.mat(&b, k, n));
            let one = bits(&Team::serial(level), a, b);
            for threads in [2, 3] {
                assert_eq!(bits(&Team::new(level, threads), a, b), one, "gemm {level} {threads} threads {la:?} {lb:?}");
            }
            let mut serial = uniform(3, m * n);
            level.dispatch(Serial { a, b, beta: Beta::One, c: MatMut::new(&mut serial, m, n) });
            assert!(serial.iter().zip(&one).all(|(c, o)| c.to_bits() == *o), "gemm serial {level} {la:?} {lb:?}");

            let mut whole = vec![f32::NAN; m * n];
            gemm(&Team::new(level, 2), a, b, Beta::Zero, MatMut::new(&mut whole, m, n));
            for (rows, cols) in [(0..1, 0..n), (5..140, 3..50), (300..m, 202..n), (17..18, 64..65)] {
                let (a, b) = (a.part(rows.clone(), 0..k), b.part(0..k, cols.clone()));
                let mut part = vec![f32::NAN; rows.len() * cols.len()];
                gemm(&Team::serial(level), a, b, Beta::Zero, MatMut::new(&mut part, rows.len(), cols.len()));
                for (i, part) in part.chunks(cols.len()).enumerate() {
                    let row = &whole[(rows.start + i) * n..][cols.clone()];
                    let same = row.iter().zip(part).all(|(w, p)| w.to_bits() == p.to_bits());
                    assert!(same, "gemm {level} {la:?} {lb:?}: rows {rows:?} x columns {cols:?}, row {i} alone differ");
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "gemm: A [2, 3] x B [4, 5] into C [2, 5]")]
fn gemm_names_the_shapes_that_do_not_fit() {
    let data = [0.0; 20];
    gemm(
        &Team::serial(Level::SCALAR),
        Mat::new(&data[..6], 2, 3),
        Mat::new(&data, 4, 5),
        Beta::Zero,
        MatMut::new(&mut [0.0; 10], 2, 5),
    );
}

/// Extents and strides whose products wrap to something small: the kernels would go by pointers out of the data.
#[test]
fn a_matrix_whose_size_wraps_does_not_fit() {
    let (root, half) = (1usize << (usize::BITS / 2), 1usize << (usize::BITS - 1));
    let panics = |f: fn(usize)| std::panic::catch_unwind(move || f(root)).is_err();
    assert!(panics(|root| assert!(Mat::<f32>::new(&[], root, root).rows() > 0)), "gemm: Mat::new");
    assert!(panics(|root| assert!(MatMut::new(&mut [], root, root).rows > 0)), "gemm: MatMut::new");
    let data = || [0.0f32; 4];
    for (rows, cols, row_stride, col_stride) in
        [(3, 1, half, 1), (1, 3, 1, half), (3, 3, half, half), (2, 2, usize::MAX, 1)]
    {
        let strided = move || Mat::strided(&data(), rows, cols, row_stride, col_stride).rows();
        assert!(std::panic::catch_unwind(strided).is_err(), "gemm: Mat::strided [{rows}, {cols}] by {row_stride}");
    }
    for (rows, cols, row_stride) in [(3, 1, half), (2, 2, usize::MAX)] {
        let strided = move || MatMut::strided(&mut data(), rows, cols, row_stride).rows;
        assert!(std::panic::catch_unwind(strided).is_err(), "gemm: MatMut::strided [{rows}, {cols}] by {row_stride}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn gemm_matches_reference_in_any_shape(
        m in 0usize..90, n in 0usize..90, k in 0usize..300, la in 0usize..4, lb in 0usize..4, one: bool, threads in 1usize..4,
    ) {
        for level in Level::available() {
            let beta = if one { Beta::One } else { Beta::Zero };
            check(&Team::new(level, threads), (m, n, k), (LAYOUTS[la], LAYOUTS[lb]), beta);
        }
    }
}
