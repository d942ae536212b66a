use super::*;
use crate::gemv::{Dots, gemv};
use crate::reference::{self, dequantize, quantize, quantize_x};
use crate::sparse::rows_axpy;
use crate::testing::{assert_within, dot_bound, lengths, rounded_rows, teams, uniform, widened_rows};
use crate::{Beta, Mat, Team};

/// Rows of every kind: plain, tiny, with an outlier in each block, of one sign, of zeros, and of few values, with ties.
fn rows(len: usize) -> Vec<(&'static str, Vec<f32>)> {
    let plain = uniform(1, len);
    let of = |f: fn(usize, f32) -> f32| plain.iter().enumerate().map(|(i, &w)| f(i, w)).collect();
    vec![
        ("plain", plain.clone()),
        ("small", of(|_, w| 1e-3 * w)),
        ("tiny", of(|_, w| 1e-5 * w)),
        ("below every scale", of(|_, w| 1e-7 * w)),
        ("outliers", of(|i, w| if i % 32 == 7 { 100.0 * w } else { w })),
        ("positive", of(|_, w| w.abs() + 0.1)),
        ("negative", of(|_, w| -w.abs() - 0.1)),
        ("zeros", of(|i, w| if i / 32 % 2 == 0 { 0.0 } else { w })),
        ("few values", of(|i, w| if i % 32 == 0 { 127.0 } else { (w * 9.0).round() * 0.5 })),
        ("both ends", of(|i, w| [w, 2.0, -2.0][i % 3])),
    ]
}

fn check_rounding<const BITS: u32>() {
    let half_f16 = f64::powi(2.0, -25);
    let mut worst = 0.0f64;
    for len in lengths().skip(1) {
        for (kind, w) in rows(len) {
            let expected = dequantize(&quantize(BITS, &w));
            for level in Level::available() {
                let mut row = vec![Quantized::<BITS>([0xAA; LINE]); Quantized::<BITS>::row_len(len)];
                Quantized::round_row(level, &w, &mut row);
                let mut back = vec![f32::NAN; len];
                Quantized::widen_row(level, &row, &mut back);
                let what = format!("round_row {} {level} {len} {kind}", Quantized::<BITS>::NAME);
                assert_within(&what, &back, &expected, |_| 0.0);
            }
            for (block, back) in w.chunks(32).zip(expected.chunks(32)) {
                let largest = block.iter().fold(0.0f64, |m, &w| m.max(w.abs() as f64));
                let scale = largest / if BITS == 8 { 127.0 } else { 8.0 };
                // Half a step, of a scale that f16 made larger by 2^-11 at most (below 2^-14 by 2^-25); the quotient is rounded to
                // f32. A number beyond the last q is cut there: by all that f16 made the scale smaller, and in q4 by one step
                // more, at the end that has no -8.
                let step = scale * (1.0 + f64::powi(2.0, -10)) + half_f16;
                let cut = if BITS == 8 { 127.0 } else { 8.0 } * (scale * f64::powi(2.0, -11)).max(half_f16);
                let first = block.iter().find(|w| w.abs() as f64 == largest).unwrap();
                for (&w, &back) in block.iter().zip(back) {
                    let beyond = BITS == 4 && w * first < 0.0 && w.abs() as f64 > 7.4 * scale;
                    let bound = if beyond { step + cut } else { (step / 2.0).max(cut) };
                    let error = (w as f64 - back).abs();
                    assert!(error <= bound, "round_row {}: {w:e} became {back:e}, off by more than {bound:e}", BITS);
                    if largest > 0.01 {
                        worst = worst.max(error / step);
                    }
                }
            }
        }
    }
    let reached = if BITS == 8 { 0.49 } else { 0.99 };
    assert!(worst > reached, "round_row {BITS}: a bound that is never near, {worst} of a step");
}

#[test]
fn rows_are_rounded_as_the_reference_rounds_them_and_within_the_bound() {
    check_rounding::<8>();
    check_rounding::<4>();
}

/// What is not a number must not pass for one, and does not leave its block.
#[test]
fn a_block_that_is_not_finite_becomes_nan() {
    fn check<const BITS: u32>(bad: f32) {
        let mut w = uniform(1, 200);
        w[70] = bad;
        let row = rounded_rows::<Quantized<BITS>>(&w, 200);
        let back = widened_rows(&row, 200);
        let what = format!("round_row {BITS} of {bad}");
        assert!(back[64..96].iter().all(|w| w.is_nan()), "{what}: {:?}", &back[64..96]);
        assert!(back[..64].iter().chain(&back[96..]).all(|w| w.is_finite()), "{what}: another block");
        let team = Team::serial(Level::best());
        let mut y = [0.0];
        for x in [uniform(2, 200), vec![0.0; 200]] {
            gemv(&team, &row, &x, &mut y);
            assert!(y[0].is_nan(), "gemv {what}: {}", y[0]);
            gemv(&team, i8_dot(&row), &x, &mut y);
            assert!(y[0].is_nan(), "gemv {what} x i8: {}", y[0]);
        }
        // In x.
        let good = rounded_rows::<Quantized<BITS>>(&uniform(1, 200), 200);
        gemv(&team, i8_dot(&good), &w, &mut y);
        assert!(!y[0].is_finite() || bad.is_finite(), "gemv {what} in x: {}", y[0]);
        gemv(&team, &good, &w, &mut y);
        assert!(!y[0].is_finite() || bad.is_finite(), "gemv {what} in x, exact: {}", y[0]);
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        check::<8>(bad);
        check::<4>(bad);
    }
    // Beyond the largest scale.
    check::<8>(1e7);
    check::<4>(1e6);
}

#[test]
fn gemv_of_quantised_rows_matches_reference() {
    fn check<const BITS: u32>(team: &Team, m: usize, k: usize) {
        let (w, x) = (rounded_rows::<Quantized<BITS>>(&uniform(1, m * k), k), uniform(2, k));
        let wide = widened_rows(&w, k);
        let name = Quantized::<BITS>::NAME;
        let what = format!("{} {}t [{m}, {k}]", team.level(), team.threads());

        let mut y = vec![f32::NAN; m];
        gemv(team, &w, &x, &mut y);
        let (y_ref, abs) = reference::gemm(Mat::new(&wide, m, k), Mat::new(&x, k, 1));
        assert_within(&format!("gemv {name} {what}"), &y, &y_ref, |i| dot_bound(k, abs[i]));

        // With x rounded: near the dot with the rounded x, and as near to that with x as x is to its rounding.
        let mut y = vec![f32::NAN; m];
        gemv(team, i8_dot(&w), &x, &mut y);
        let blocks = quantize_x(&x);
        let x_rounded = dequantize(&blocks);
        let dot = |row: &[f32], x: &dyn Fn(usize) -> f64| -> f64 {
            row.iter().enumerate().map(|(k, &w)| w as f64 * x(k)).sum()
        };
        let rounded: Vec<f64> = wide.chunks(k).map(|row| dot(row, &|k| x_rounded[k])).collect();
        let rounded_abs =
            |i: usize| -> f64 { wide[i * k..][..k].iter().zip(&x_rounded).map(|(&w, x)| (w as f64 * x).abs()).sum() };
        assert_within(&format!("gemv {name} x i8 {what}, of the rounded x"), &y, &rounded, |i| {
            dot_bound(k, rounded_abs(i))
        });
        // x / s is rounded to f32, twice, at a size of 127 at most: 2^-15 of a step.
        let step = |k: usize| blocks[k / 32].scale as f64 * (1.0 + f64::powi(2.0, -14));
        assert_within(&format!("gemv {name} x i8 {what}"), &y, &y_ref, |i| {
            let of_x: f64 = (0..k).map(|k_| (wide[i * k + k_] as f64).abs() * step(k_) / 2.0).sum();
            of_x + dot_bound(k, rounded_abs(i))
        });
    }
    for team in teams() {
        for k in lengths().skip(1).chain([384, 512, 640, 2048]) {
            for m in [0, 1, 3, 9, if k == 1000 { 300 } else { 37 }] {
                check::<8>(&team, m, k);
                check::<4>(&team, m, k);
            }
        }
    }
}

#[test]
fn gemm_i8_matches_reference() {
    fn check<const BITS: u32>(team: &Team, (n, m, k): (usize, usize, usize)) {
        let (w, x) = (rounded_rows::<Quantized<BITS>>(&uniform(1, m * k), k), uniform(2, n * k));
        let wide = widened_rows(&w, k);
        let rounded: Vec<f32> = x.chunks(k).flat_map(|x| dequantize(&quantize_x(x))).map(|x| x as f32).collect();
        let (y_ref, abs) = reference::gemm(Mat::new(&rounded, n, k), Mat::new(&wide, m, k).t());
        for beta in [Beta::Zero, Beta::One] {
            let before = if beta == Beta::One { uniform(3, n * m) } else { vec![f32::NAN; n * m] };
            let mut y = before.clone();
            gemm_i8(team, &x, i8_dot(&w), k, beta, &mut y);
            let before = |i: usize| if beta == Beta::One { before[i] as f64 } else { 0.0 };
            let expected: Vec<f64> = y_ref.iter().enumerate().map(|(i, y)| y + before(i)).collect();
            let what = format!("gemm_i8 q{BITS} {} {}t [{n}, {k}] x [{m}, {k}] {beta:?}", team.level(), team.threads());
            // The reference's x is rounded to f32: a term is off by one rounding more.
            assert_within(&what, &y, &expected, |i| dot_bound(k + 2, abs[i] + before(i).abs()));
        }
    }
    for team in teams() {
        for k in [1, 31, 32, 33, 127, 128, 300, 512, 640, 1100] {
            for (n, m) in [(0, 3), (3, 0), (1, 1), (5, 33), (6, 64), (7, 31), (13, 130)] {
                check::<8>(&team, (n, m, k));
                check::<4>(&team, (n, m, k));
            }
        }
    }
}

/// Whatever else is in the product, and with the instruction or without.
#[test]
fn gemm_i8_bits_of_an_element_depend_on_its_token_and_its_row() {
    let (n, m, k) = (20, 70, 600);
    let (w, x) = (rounded_rows::<Q4>(&uniform(1, m * k), k), uniform(2, n * k));
    let row_len = Q4::row_len(k);
    for team in teams() {
        let mut all = vec![0.0; n * m];
        gemm_i8(&team, &x, i8_dot(&w), k, Beta::Zero, &mut all);
        for (token, row) in [(0, 0), (7, 33), (19, 69), (6, 64)] {
            let mut one = [0.0];
            let w = i8_dot(&w[row * row_len..][..row_len]);
            gemm_i8(&Team::serial(team.level()), &x[token * k..][..k], w, k, Beta::Zero, &mut one);
            assert_eq!(one[0], all[token * m + row], "gemm_i8 {} {}t [{token}, {row}]", team.level(), team.threads());
        }
        // Of two W at once, the second added to ones.
        let (low, high) = i8_dot(&w).split_at(30 * row_len);
        let (mut first, mut second) = (vec![f32::NAN; n * 30], vec![1.0; n * 40]);
        let products = &mut [
            I8Product { w: low, beta: Beta::Zero, y: &mut first },
            I8Product { w: high, beta: Beta::One, y: &mut second },
        ];
        gemm_i8_each(&team, &x, k, products);
        for (token, all) in all.chunks(m).enumerate() {
            let added: Vec<f32> = all[30..].iter().map(|y| 1.0 + y).collect();
            let same = first[token * 30..][..30] == all[..30] && second[token * 40..][..40] == added;
            assert!(same, "gemm_i8_each {} {}t token {token}", team.level(), team.threads());
        }
    }
}

#[test]
#[should_panic(
    expected = "gemm_i8: x has 70 elements, w 4 units of q8 x i8 in rows of 3, y 4 for [N, 35], [M, 35] and [N, M]"
)]
fn gemm_i8_names_the_lengths_that_do_not_fit() {
    let (w, team) = (rounded_rows::<Q8>(&[1.0; 70], 35), Team::serial(Level::SCALAR));
    gemm_i8(&team, &[1.0; 70], i8_dot(&w), 35, Beta::Zero, &mut [0.0; 4]);
    gemm_i8(&team, &[1.0; 70], i8_dot(&w[..4]), 35, Beta::Zero, &mut [0.0; 4]);
}

/// With VNNI, x is cut into digits: a block is off by what its largest x loses, and by the sums of the digits below it.
#[test]
fn digits_keep_x_to_a_part_of_the_largest_in_its_block() {
    fn check<const BITS: u32>(team: &Team, kind: &str, x: &[f32]) {
        let (m, k) = (9, x.len());
        let w = rounded_rows::<Quantized<BITS>>(&uniform(1, m * k), k);
        let wide = widened_rows(&w, k);
        let mut y = vec![f32::NAN; m];
        gemv(team, &w, x, &mut y);
        let (y_ref, abs) = reference::gemm(Mat::new(&wide, m, k), Mat::new(x, k, 1));
        let what = format!("gemv {} {} [{m}, {k}] {kind}", Quantized::<BITS>::NAME, team.level());
        assert_within(&what, &y, &y_ref, |i| {
            let blocks = wide[i * k..][..k].chunks(BLOCK).zip(x.chunks(BLOCK));
            let of_x: f64 = blocks
                .map(|(w, x)| {
                    let largest = x.iter().fold(f64::powi(2.0, -97), |m, &x| m.max(x.abs() as f64));
                    largest * w.iter().map(|&w| w.abs() as f64).sum::<f64>()
                })
                .sum();
            dot_bound(k, abs[i]) + f64::powi(2.0, -29) * 1.02 * of_x
        });
    }
    for team in teams() {
        for k in [1, 32, 96, 129, 384, 600, 2048] {
            let plain = uniform(2, k);
            let of =
                |f: fn(usize, f32) -> f32| -> Vec<f32> { plain.iter().enumerate().map(|(i, &x)| f(i, x)).collect() };
            for (kind, x) in [
                ("outliers", of(|i, x| if i % 32 == 5 { 1e4 * x } else { x })),
                ("all sizes", of(|i, x| x * f32::powi(2.0, -(i as i32 % 40)))),
                ("powers of two", of(|i, x| f32::powi(2.0, -(i as i32 % 31)).copysign(x))),
                ("just below them", of(|i, x| f32::powi(2.0, -(i as i32 % 31)).next_down().copysign(x))),
                ("large", of(|_, x| 1e30 * x)),
                ("tiny", of(|_, x| 1e-33 * x)),
                ("below every scale", of(|_, x| 1e-40 * x)),
            ] {
                check::<8>(&team, kind, &x);
                check::<4>(&team, kind, &x);
            }
        }
    }
}

/// The level without VNNI on a CPU that has it.
#[test]
fn dots_in_floats_match_reference() {
    fn check<const BITS: u32>(level: Level, m: usize, k: usize) {
        let (w, x) = (rounded_rows::<Quantized<BITS>>(&uniform(1, m * k), k), uniform(2, k));
        let mut sorted = vec![f32::NAN; Quantized::<BITS>::x_len(k)];
        sort_x(&x, &mut sorted[..blocks_of(k) * BLOCK]);
        let mut y = vec![f32::NAN; m];
        level.dispatch(Dots { w: &w, then: std::ptr::null(), x: &sorted, y: &mut y });
        let (y_ref, abs) = reference::gemm(Mat::new(&widened_rows(&w, k), m, k), Mat::new(&x, k, 1));
        let what = format!("gemv {} {level} without VNNI [{m}, {k}]", Quantized::<BITS>::NAME);
        assert_within(&what, &y, &y_ref, |i| dot_bound(k, abs[i]));
    }
    for level in Level::available() {
        for k in lengths().skip(1).chain([384, 512, 640, 2048]) {
            check::<8>(level, 9, k);
            check::<4>(level, 9, k);
        }
    }
}

#[test]
fn dots_of_bytes_have_the_bits_of_their_emulation() {
    let k = 1000;
    let (w, x) = (rounded_rows::<Q8>(&uniform(1, 5 * k), k), uniform(2, k));
    for level in Level::available() {
        I8Dot::<8>::with_x(level, &x, |x| {
            let (mut y, mut emulated) = ([0.0; 5], [1.0; 5]);
            level.dispatch_dot_i8(Dots { w: i8_dot(&w), then: std::ptr::null(), x, y: &mut y });
            level.dispatch(Dots { w: i8_dot(&w), then: std::ptr::null(), x, y: &mut emulated });
            assert_eq!(y, emulated, "gemv q8 x i8 {level}: with VNNI and without");
        });
    }
}

#[test]
fn rows_axpy_of_quantised_rows_matches_reference() {
    fn check<const BITS: u32>(team: &Team, partial: &mut Vec<f32>, (f, step): (usize, usize), c: usize) {
        let w = rounded_rows::<Quantized<BITS>>(&uniform(1, f * c), c);
        let wide = widened_rows(&w, c);
        let rows: Vec<u32> = (0..f as u32).step_by(step).collect();
        let h = uniform(2, rows.len());
        let [mut y, mut y_i8] = [(); 2].map(|_| vec![f32::NAN; c]);
        partial.fill(f32::NAN);
        rows_axpy(team, &w, &rows, &h, &mut y, partial);
        rows_axpy(team, i8_dot(&w), &rows, &h, &mut y_i8, partial);
        let (mut y_ref, mut abs) = (vec![0.0; c], vec![0.0; c]);
        for (&h, &row) in h.iter().zip(&rows) {
            for (i, &w) in wide[row as usize * c..][..c].iter().enumerate() {
                y_ref[i] += h as f64 * w as f64;
                abs[i] += (h as f64 * w as f64).abs();
            }
        }
        let what = format!("rows_axpy {} {} {}t [{f}, {c}]", Quantized::<BITS>::NAME, team.level(), team.threads());
        assert_within(&what, &y, &y_ref, |i| dot_bound(rows.len(), abs[i]));
        assert_eq!(y, y_i8, "{what}: x i8 differs");
    }
    for team in teams() {
        let mut partial = Vec::new();
        for c in lengths().skip(1).chain([512, 640]) {
            for shape in [(1, 1), (40, 3), (300, 1), (700, 9)] {
                check::<8>(&team, &mut partial, shape, c);
                check::<4>(&team, &mut partial, shape, c);
            }
        }
    }
}
