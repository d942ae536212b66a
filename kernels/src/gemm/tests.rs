use super::*;
use crate::reference;
use crate::simd::Level;
use crate::testing::{assert_within, dot_bound, teams, uniform, uniform_bf16, widened};
use half::bf16;
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

/// The two products.
#[derive(Clone, Copy, Debug)]
enum Op {
    Gemm,
    GemmBf16,
}

const OPS: [Op; 2] = [Op::Gemm, Op::GemmBf16];

impl Op {
    fn name(self) -> &'static str {
        match self {
            Op::Gemm => "gemm",
            Op::GemmBf16 => "gemm_bf16",
        }
    }

    fn run<A: Weight, B: Weight>(self, team: &Team, a: Mat<A>, b: Mat<B>, beta: Beta, c: MatMut) {
        match self {
            Op::Gemm => gemm(team, a, b, beta, c),
            Op::GemmBf16 => gemm_bf16(team, a, b, beta, c),
        }
    }

    fn rounds(self, level: Level) -> bool {
        matches!(self, Op::GemmBf16) && level.has_dot_bf16()
    }

    /// What the product makes of its operands.
    fn operand(self, level: Level, data: &[f32]) -> Vec<f32> {
        if self.rounds(level) { data.iter().map(|&x| bf16::round(x).widen()).collect() } else { data.to_vec() }
    }

    /// For the operands as above: a product of normal numbers that is subnormal may be taken for 0.
    fn bound(self, level: Level, k: usize, sum_abs: f64) -> f64 {
        dot_bound(k, sum_abs) + if self.rounds(level) { k as f64 * f64::from(f32::MIN_POSITIVE) } else { 0.0 }
    }
}

/// One product on one team, held to the reference: C wider than N, NaN before it with `Beta::Zero`, and untouched between rows.
fn check(team: &Team, (m, n, k): (usize, usize, usize), layouts: (Layout, Layout), beta: Beta) {
    for op in OPS {
        check_op(op, team, (m, n, k), layouts, beta);
    }
}

fn check_op(op: Op, team: &Team, (m, n, k): (usize, usize, usize), (la, lb): (Layout, Layout), beta: Beta) {
    let (level, name) = (team.level(), op.name());
    let (a_data, b_data) = (la.data(1, m, k), lb.data(2, k, n));
    let (a, b) = (la.mat(&a_data, m, k), lb.mat(&b_data, k, n));
    let row_stride = n + 3;
    let old = if beta == Beta::One { uniform(3, m * row_stride) } else { vec![f32::NAN; m * row_stride] };
    let mut c = old.clone();
    op.run(team, a, b, beta, MatMut::strided(&mut c, m, n, row_stride));
    let (a_data, b_data) = (op.operand(level, &a_data), op.operand(level, &b_data));
    let (mut expected, mut abs) = reference::gemm(la.mat(&a_data, m, k), lb.mat(&b_data, k, n));
    let what = format!("{name} {level} {}t [{m}, {k}] x [{k}, {n}] {la:?} {lb:?} {beta:?}", team.threads());
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
    assert_within(&what, &product, &expected, |i| op.bound(level, k, abs[i]));
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
        for op in OPS {
            for lb in LAYOUTS {
                for (m, n, k) in [(1, 1, 1), (2, 33, 17), (5, 7, 9), (31, 70, 50), (67, 33, 300), (300, 130, 600)] {
                    let (a, b) = (uniform_bf16(1, m * k), uniform_bf16(2, lb.data(2, k, n).len()));
                    let (wide_a, wide_b) = (widened(&a), widened(&b));
                    let (a, b) = (Mat::new(&a, m, k), lb.mat(&b, k, n));
                    let (wide_a, wide_b) = (Mat::new(&wide_a, m, k), lb.mat(&wide_b, k, n));
                    let name = op.name();
                    let what = format!("{name} {} {}t [{m}, {k}] x [{k}, {n}] {lb:?}", team.level(), team.threads());
                    let expected = bits(op, &team, wide_a, wide_b);
                    assert_eq!(bits(op, &team, wide_a, b), expected, "{what}: B of bf16");
                    assert_eq!(bits(op, &team, a, b), expected, "{what}: both of bf16");
                    assert_eq!(bits(op, &team, a, wide_b), expected, "{what}: A of bf16");
                }
            }
        }
    }
}

/// What bf16 cannot hold, in every layout, as if rounded before: ties, values beyond the largest, subnormal numbers, infinities
/// and NaN.
#[test]
fn gemm_bf16_rounds_the_same_in_every_layout() {
    const SPECIAL: [u32; 14] = [
        0x3F80_8000,
        0x3F81_8000,
        0x3F80_8001,
        0x3F80_7FFF,
        0x7F7F_FFFF,
        0xFF7F_0000,
        0x0000_0001,
        0x007F_FFFF,
        0x807F_0000,
        0x0080_0000,
        0x8000_0000,
        0x7F80_0000,
        0xFF80_0000,
        0x7FC0_0001,
    ];
    for level in Level::available().filter(|level| level.has_dot_bf16()) {
        let team = Team::serial(level);
        let one = [1.0];
        for la in LAYOUTS {
            // An outer product with 1: C is what became of A.
            for m in [1, SPECIAL.len(), 40] {
                let mut a = vec![f32::NAN; la.data(1, m, 1).len()];
                let at = |a: &[f32], i: usize| la.mat(a, m, 1).at(i, 0);
                for i in 0..m {
                    let special = f32::from_bits(SPECIAL[i % SPECIAL.len()]);
                    let place = i * la.mat(&a, m, 1).row_stride;
                    a[place] = special;
                }
                let mut c = vec![f32::NAN; m];
                gemm_bf16(&team, la.mat(&a, m, 1), Mat::new(&one, 1, 1), Beta::Zero, MatMut::new(&mut c, m, 1));
                for (i, &c) in c.iter().enumerate() {
                    let x = at(&a, i);
                    let rounded = if x.is_subnormal() { 0.0 } else { bf16::round(x).widen() };
                    let same = c == rounded || c.is_nan() && rounded.is_nan();
                    assert!(same, "gemm_bf16 {level} {la:?}: {x:e} as {c:e}, not {rounded:e}");
                }
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

fn bits<A: Weight, B: Weight>(op: Op, team: &Team, a: Mat<A>, b: Mat<B>) -> Vec<u32> {
    let mut c = uniform(3, a.rows() * b.cols());
    op.run(team, a, b, Beta::One, MatMut::new(&mut c, a.rows(), b.cols()));
    c.iter().map(|c| c.to_bits()).collect()
}

#[test]
fn bits_do_not_depend_on_threads_place_or_strides() {
    for (level, op) in Level::available().flat_map(|level| OPS.map(|op| (level, op))) {
        for layouts in [(Layout::RowMajor, Layout::ColumnMajor), (Layout::ColumnMajor, Layout::Gaps)] {
            check_bits(level, op, layouts);
        }
    }
}

fn check_bits(level: Level, op: Op, (la, lb): (Layout, Layout)) {
    let (m, n, k) = (311, 203, 701);
    let name = op.name();
    let (a, b) = (la.data(1, m, k), lb.data(2, k, n));
    let (a, b) = (la.mat(&a, m, k), lb.mat(&b, k, n));
    let one = bits(op, &Team::serial(level), a, b);
    for threads in [2, 3] {
        assert_eq!(bits(op, &Team::new(level, threads), a, b), one, "{name} {level} {threads} threads {la:?} {lb:?}");
    }
    let mut serial = uniform(3, m * n);
    let c = MatMut::new(&mut serial, m, n);
    match op.rounds(level) {
        true => level.dispatch_dot_bf16(Serial { operands: Pairs, a, b, beta: Beta::One, c }),
        false => level.dispatch(Serial { operands: Exact, a, b, beta: Beta::One, c }),
    }
    assert!(serial.iter().zip(&one).all(|(c, o)| c.to_bits() == *o), "{name} serial {level} {la:?} {lb:?}");

    let mut whole = vec![f32::NAN; m * n];
    op.run(&Team::new(level, 2), a, b, Beta::Zero, MatMut::new(&mut whole, m, n));
    for (rows, cols) in [(0..1, 0..n), (5..140, 3..50), (300..m, 202..n), (17..18, 64..65)] {
        let (a, b) = (a.part(rows.clone(), 0..k), b.part(0..k, cols.clone()));
        let mut part = vec![f32::NAN; rows.len() * cols.len()];
        op.run(&Team::serial(level), a, b, Beta::Zero, MatMut::new(&mut part, rows.len(), cols.len()));
        for (i, part) in part.chunks(cols.len()).enumerate() {
            let row = &whole[(rows.start + i) * n..][cols.clone()];
            let same = row.iter().zip(part).all(|(w, p)| w.to_bits() == p.to_bits());
            assert!(same, "{name} {level} {la:?} {lb:?}: rows {rows:?} x columns {cols:?}, row {i} alone differ");
        }
    }
}

/// What [`k_block`] promises, and that other parts are another sum.
#[test]
fn parts_of_k_have_the_bits_of_the_whole() {
    for (m, n, k) in [(20, 33, 1100), (7, 64, 2049), (5, 40, 300), (6, 17, 1)] {
        let (a, b, before) = (uniform(1, m * k), uniform(2, k * n), uniform(3, m * n));
        let (a, b) = (Mat::new(&a, m, k), Mat::new(&b, k, n));
        for level in Level::available() {
            let team = Team::new(level, 2);
            for (op, is_bf16, first) in [(Op::Gemm, false, Beta::Zero), (Op::GemmBf16, true, Beta::One)] {
                let product = |at_once: usize| {
                    let (mut c, mut beta) = (before.clone(), first);
                    for start in (0..k).step_by(at_once) {
                        let part = start..k.min(start + at_once);
                        let (a, b) = (a.part(0..m, part.clone()), b.part(part, 0..n));
                        op.run(&team, a, b, beta, MatMut::new(&mut c, m, n));
                        beta = Beta::One;
                    }
                    c.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                };
                let (whole, block) = (product(k), k_block(level, is_bf16, k));
                assert!(product(block) == whole, "gemm {level}: parts of {block} of {k} differ from the whole");
                if k > 1000 {
                    assert!(product(200) != whole, "gemm {level}: parts of 200 of {k} are no other sum");
                }
            }
        }
    }
}

/// Level by level: without the dot product nothing is rounded, with it the operands are.
#[test]
fn gemm_bf16_is_gemm_where_there_is_no_dot_product() {
    let (m, n, k) = (37, 41, 53);
    let (a, b) = (uniform(1, m * k), uniform(2, k * n));
    let (a, b) = (Mat::new(&a, m, k), Mat::new(&b, k, n));
    for level in Level::available() {
        let team = Team::serial(level);
        let same = bits(Op::Gemm, &team, a, b) == bits(Op::GemmBf16, &team, a, b);
        assert_eq!(same, !level.has_dot_bf16(), "gemm_bf16 {level}");
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
