//! The products, in f32 and on tensor cores, against the reference.

use crate::Run;
use cuda::Error;
use cuda::ops::Float;
use cuda::ops::gemm::{Mat, gemm};
use cuda::ops::gemm_bf16::{gemm_bf16, gemm_bf16_add};
use half::bf16;
use kernels::testing::{ROUNDING, uniform, uniform_bf16, widened};
use kernels::{Beta, Weight, reference};

/// The bound of the launch's documentation.
fn bound(k: usize, abs: f64) -> f64 {
    (k + 4) as f64 * 2f64.powi(-23) * abs
}

/// Around the sizes of tiles, of pieces of 16 bytes, and none; and long K, along which `A^T B` is cut where rows are aligned.
const SHAPES: [[usize; 3]; 13] = [
    [1, 1, 1],
    [128, 128, 32],
    [3, 5, 0],
    [8, 16, 40],
    [129, 8, 33],
    [7, 136, 72],
    [130, 131, 65],
    [64, 200, 96],
    [264, 24, 8],
    [2060, 8, 8],
    [40, 24, 1000],
    [136, 8, 530],
    [5, 7, 530],
];

/// Names, and which operand is transposed.
const LAYOUTS: [(&str, [bool; 2]); 3] = [("NN", [false, false]), ("NT", [false, true]), ("TN", [true, false])];

/// The matrix `[rows, cols]` in device memory, which may lie there transposed.
fn mat<T: Float>(x: cuda::Slice<T>, rows: usize, cols: usize, transposed: bool) -> Mat<T> {
    if transposed { Mat::new(x, cols, rows).t() } else { Mat::new(x, rows, cols) }
}

/// As [`mat`], for the reference.
fn host_mat<T: Weight>(x: &[T], rows: usize, cols: usize, transposed: bool) -> kernels::Mat<'_, T> {
    if transposed { kernels::Mat::new(x, cols, rows).t() } else { kernels::Mat::new(x, rows, cols) }
}

/// Rows of C that are compared: all, or of a large one those around the edges of tiles and some between.
fn compared(m: usize) -> Vec<usize> {
    let is_near_an_edge = |row: usize| (row + 2) % 1024 < 4;
    (0..m).filter(|&row| m <= 512 || is_near_an_edge(row) || row % 397 == 5 || row + 2 >= m).collect()
}

/// These rows of a matrix `[rows, cols]`.
fn rows_of<T: Copy>(x: &[T], cols: usize, rows: &[usize]) -> Vec<T> {
    rows.iter().flat_map(|&row| &x[row * cols..(row + 1) * cols]).copied().collect()
}

/// The product and its absolute values in these rows of C, from A and B as they lie in memory.
fn reference_rows<T: Weight>(
    [a, b]: [&[T]; 2],
    [m, n, k]: [usize; 3],
    [a_transposed, b_transposed]: [bool; 2],
    rows: &[usize],
) -> (Vec<f64>, Vec<f64>) {
    let a: Vec<T> = if a_transposed {
        rows.iter().flat_map(|&row| (0..k).map(move |i| a[i * m + row])).collect()
    } else {
        rows_of(a, k, rows)
    };
    reference::gemm(host_mat(&a, rows.len(), k, false), host_mat(b, k, n, b_transposed))
}

pub fn gemm_bf16_matches_reference_in_all_transposes(run: &mut Run) -> Result<(), Error> {
    for [m, n, k] in run.sizes(&SHAPES, &[[1031, 1033, 1027], [4104, 2056, 520], [520, 4104, 2056], [768, 768, 8192]]) {
        let (a, b) = (uniform_bf16(1, m * k), uniform_bf16(2, k * n));
        let [a_on, b_on] = run.all_on([&a, &b])?;
        let old = uniform(3, m * n);
        let old_bf16 = uniform_bf16(4, m * n);
        let rows = compared(m);
        let of_rows = |c: &[f32]| rows_of(c, n, &rows);
        for (name, transposed) in LAYOUTS {
            let (product, abs) = reference_rows([&a, &b], [m, n, k], transposed, &rows);
            let (a, b) = (mat(a_on.as_slice(), m, k, transposed[0]), mat(b_on.as_slice(), k, n, transposed[1]));
            for beta in [Beta::Zero, Beta::One] {
                let what = format!("gemm_bf16 {name} [{m}, {n}, {k}] {beta:?}");
                let mut c = if beta == Beta::One { run.on(&old)? } else { run.stale(m * n)? };
                gemm_bf16(a, b, beta, c.as_mut())?;
                let kept = |old: Vec<f32>| if beta == Beta::One { old } else { vec![0.0; old.len()] };
                let before = kept(of_rows(&old));
                let expected: Vec<f64> = product.iter().zip(&before).map(|(p, &b)| p + b as f64).collect();
                let total = |i: usize, before: &[f32]| abs[i] + before[i].abs() as f64;
                run.within(&what, &of_rows(&c.to_vec()?), &expected, |i| bound(k, total(i, &before)));

                let mut c = if beta == Beta::One { run.on(&old_bf16)? } else { run.stale::<bf16>(m * n)? };
                gemm_bf16(a, b, beta, c.as_mut())?;
                let before = kept(of_rows(&widened(&old_bf16)));
                let expected: Vec<f64> = product.iter().zip(&before).map(|(p, &b)| p + b as f64).collect();
                let rounded =
                    |i: usize| bound(k, total(i, &before)) * (1.0 + 2f64.powi(-8)) + expected[i].abs() * 2f64.powi(-8);
                run.within(&format!("{what} bf16"), &of_rows(&widened(&c.to_vec()?)), &expected, rounded);
            }
        }
    }
    Ok(())
}

/// D may lie anywhere as well: the last small shape's does.
pub fn gemm_bf16_add_has_the_bits_of_adding_in_place(run: &mut Run) -> Result<(), Error> {
    let small = [([130, 132, 40], 0), ([3, 5, 8], 0), ([66, 8, 0], 0), ([9, 24, 16], 1)];
    for ([m, n, k], d_at) in run.sizes(&small, &[([2100, 1032, 768], 0), ([1024, 2048, 2048], 2)]) {
        let [x, w] = run.all_on([&uniform_bf16(1, m * k), &uniform_bf16(2, n * k)])?;
        let (x, w) = (Mat::new(x.as_slice(), m, k), Mat::new(w.as_slice(), n, k).t());
        let old = uniform(3, m * n + d_at);
        let (d, mut c, mut in_place) = (run.on(&old)?, run.stale(m * n)?, run.on(&old[d_at..])?);
        gemm_bf16_add(x, w, d.as_slice().part(d_at..d_at + m * n), c.as_mut())?;
        gemm_bf16(x, w, Beta::One, in_place.as_mut())?;
        run.same_bits(&format!("gemm_bf16_add [{m}, {n}, {k}] from {d_at}"), &c.to_vec()?, &in_place.to_vec()?);
    }
    Ok(())
}

pub fn gemm_bf16_takes_operands_that_begin_anywhere(run: &mut Run) -> Result<(), Error> {
    let [m, n, k] = [9, 24, 16];
    let (a, b) = (uniform_bf16(1, m * k + 3), uniform_bf16(2, n * k + 8));
    let [a_on, b_on] = run.all_on([&a, &b])?;
    for (a_at, b_at, c_at) in [(0, 8, 1), (3, 0, 4)] {
        let mut c = run.stale::<f32>(m * n + 4)?;
        let (a_part, b_part) = (a_on.as_slice().part(a_at..a_at + m * k), b_on.as_slice().part(b_at..b_at + n * k));
        let to = c.as_mut().part(c_at..c_at + m * n);
        gemm_bf16(Mat::new(a_part, m, k), Mat::new(b_part, n, k).t(), Beta::Zero, to)?;
        let (a, b) = (&a[a_at..a_at + m * k], &b[b_at..b_at + n * k]);
        let (expected, abs) = reference::gemm(host_mat(a, m, k, false), host_mat(b, k, n, true));
        let c = c.as_slice().part(c_at..c_at + m * n).to_vec()?;
        run.within(&format!("gemm_bf16 from {a_at}, {b_at} to {c_at}"), &c, &expected, |i| bound(k, abs[i]));
    }
    Ok(())
}

pub fn gemm_matches_reference_in_all_transposes(run: &mut Run) -> Result<(), Error> {
    for [m, n, k] in run.sizes(&SHAPES, &[[1031, 1033, 1027], [520, 2056, 1024]]) {
        let (a, b, old) = (uniform(1, m * k), uniform(2, k * n), uniform(3, m * n));
        let [a_on, b_on] = run.all_on([&a, &b])?;
        let rows = compared(m);
        for (name, transposed) in LAYOUTS {
            let (product, abs) = reference_rows([&a, &b], [m, n, k], transposed, &rows);
            for beta in [Beta::Zero, Beta::One] {
                let mut c = if beta == Beta::One { run.on(&old)? } else { run.stale(m * n)? };
                let (a, b) = (mat(a_on.as_slice(), m, k, transposed[0]), mat(b_on.as_slice(), k, n, transposed[1]));
                gemm(a, b, beta, c.as_mut())?;
                let before = rows_of(&old, n, &rows);
                let before = |i: usize| if beta == Beta::One { before[i] as f64 } else { 0.0 };
                let expected: Vec<f64> = product.iter().enumerate().map(|(i, p)| p + before(i)).collect();
                let c = rows_of(&c.to_vec()?, n, &rows);
                run.within(&format!("gemm {name} [{m}, {n}, {k}] {beta:?}"), &c, &expected, |i| {
                    (k + 4) as f64 * ROUNDING * (abs[i] + before(i).abs())
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stands for a large product: the rows that are computed are those of the whole one.
    #[test]
    fn rows_of_a_large_product_are_rows_of_it() {
        let [m, n, k] = [1100, 5, 7];
        let (a, b) = (uniform(1, m * k), uniform(2, k * n));
        let rows = compared(m);
        assert!(rows.len() < 20 && [0, 5, 1022, 1023, 1024, 1025, 1098, 1099].iter().all(|row| rows.contains(row)));
        assert_eq!(compared(300), (0..300).collect::<Vec<_>>());
        for (name, transposed) in LAYOUTS {
            let whole = reference::gemm(host_mat(&a, m, k, transposed[0]), host_mat(&b, k, n, transposed[1]));
            let of_rows = reference_rows([&a, &b], [m, n, k], transposed, &rows);
            assert_eq!(of_rows.0, rows_of(&whole.0, n, &rows), "{name}");
            assert_eq!(of_rows.1, rows_of(&whole.1, n, &rows), "{name}");
        }
    }
}
