//! The products, in f32 and on tensor cores, in the interpreter, against the reference.

use cuda::Buffer;
use cuda::ops::gemm::{Mat, gemm};
use cuda::ops::gemm_bf16::gemm_bf16;
use cuda_testing::{device, on, stale};
use half::bf16;
use kernels::testing::{ROUNDING, assert_within, uniform, uniform_bf16, widened};
use kernels::{Beta, reference};

/// The bound of the launch's documentation.
fn bound(k: usize, abs: f64) -> f64 {
    (k + 4) as f64 * 2f64.powi(-23) * abs
}

/// Around the sizes of tiles, of pieces of 16 bytes, and none.
const SHAPES: [[usize; 3]; 9] = [
    [1, 1, 1],
    [128, 128, 32],
    [3, 5, 0],
    [8, 16, 40],
    [129, 8, 33],
    [7, 136, 72],
    [130, 131, 65],
    [64, 200, 96],
    [264, 24, 8],
];

#[test]
fn gemm_bf16_matches_reference_in_all_transposes() {
    let device = device();
    for [m, n, k] in SHAPES {
        let (a, b) = (uniform_bf16(1, m * k), uniform_bf16(2, k * n));
        let (a_on, b_on) = (on(&device, &a), on(&device, &b));
        let old = uniform(3, m * n);
        let old_bf16 = uniform_bf16(4, m * n);
        for (name, a_transposed, b_transposed) in [("NN", false, false), ("NT", false, true), ("TN", true, false)] {
            let mat = |data, rows, cols, transposed: bool| {
                if transposed {
                    kernels::gemm::Mat::new(data, cols, rows).t()
                } else {
                    kernels::gemm::Mat::new(data, rows, cols)
                }
            };
            let (product, abs) = reference::gemm(mat(&a, m, k, a_transposed), mat(&b, k, n, b_transposed));
            let mat = |buffer: &'static str, transposed: bool| {
                let (data, rows, cols) = if buffer == "a" { (a_on.as_slice(), m, k) } else { (b_on.as_slice(), k, n) };
                if transposed { Mat::new(data, cols, rows).t() } else { Mat::new(data, rows, cols) }
            };
            for beta in [Beta::Zero, Beta::One] {
                let what = format!("gemm_bf16 {name} [{m}, {n}, {k}] {beta:?}");
                let mut c = if beta == Beta::One { on(&device, &old) } else { stale(&device, m * n) };
                gemm_bf16(mat("a", a_transposed), mat("b", b_transposed), beta, c.as_mut()).unwrap();
                let old_at = |i: usize| if beta == Beta::One { f64::from(old[i]) } else { 0.0 };
                let expected: Vec<f64> = product.iter().enumerate().map(|(i, p)| p + old_at(i)).collect();
                assert_within(&what, &c.to_vec().unwrap(), &expected, |i| bound(k, abs[i] + old_at(i).abs()));

                let mut c: Buffer<bf16> =
                    if beta == Beta::One { on(&device, &old_bf16) } else { stale(&device, m * n) };
                gemm_bf16(mat("a", a_transposed), mat("b", b_transposed), beta, c.as_mut()).unwrap();
                let old_at = |i: usize| if beta == Beta::One { old_bf16[i].to_f64() } else { 0.0 };
                let expected: Vec<f64> = product.iter().enumerate().map(|(i, p)| p + old_at(i)).collect();
                let rounded = |i: usize| {
                    bound(k, abs[i] + old_at(i).abs()) * (1.0 + 2f64.powi(-8)) + expected[i].abs() * 2f64.powi(-8)
                };
                assert_within(&format!("{what} bf16"), &widened(&c.to_vec().unwrap()), &expected, rounded);
            }
        }
    }
}

#[test]
fn operands_may_begin_anywhere() {
    let device = device();
    let [m, n, k] = [9, 24, 16];
    let (a, b) = (uniform_bf16(1, m * k + 3), uniform_bf16(2, n * k + 8));
    let (a_on, b_on) = (on(&device, &a), on(&device, &b));
    for (a_at, b_at, c_at) in [(0, 8, 1), (3, 0, 4)] {
        let mut c: Buffer<f32> = stale(&device, m * n + 4);
        let (a_part, b_part) = (a_on.as_slice().part(a_at..a_at + m * k), b_on.as_slice().part(b_at..b_at + n * k));
        gemm_bf16(Mat::new(a_part, m, k), Mat::new(b_part, n, k).t(), Beta::Zero, c.as_mut().part(c_at..c_at + m * n))
            .unwrap();
        let (expected, abs) = reference::gemm(
            kernels::gemm::Mat::new(&a[a_at..a_at + m * k], m, k),
            kernels::gemm::Mat::new(&b[b_at..b_at + n * k], n, k).t(),
        );
        let c = c.as_slice().part(c_at..c_at + m * n).to_vec().unwrap();
        assert_within(&format!("gemm_bf16 from {a_at}, {b_at} to {c_at}"), &c, &expected, |i| bound(k, abs[i]));
    }
}

#[test]
#[should_panic(
    expected = "gemm_bf16: A [2, 3] x B [4, 5] into C of 10 elements: A's columns must be B's rows, and C [2, 5]"
)]
fn shapes_must_fit() {
    let device = device();
    let (a, b) = (on(&device, &uniform_bf16(1, 6)), on(&device, &uniform_bf16(1, 20)));
    let mut c: Buffer<f32> = stale(&device, 10);
    let _ = gemm_bf16(Mat::new(a.as_slice(), 2, 3), Mat::new(b.as_slice(), 4, 5), Beta::Zero, c.as_mut());
}

#[test]
fn gemm_matches_reference_in_all_transposes() {
    let device = device();
    for [m, n, k] in SHAPES {
        let (a, b, old) = (uniform(1, m * k), uniform(2, k * n), uniform(3, m * n));
        let (a_on, b_on) = (on(&device, &a), on(&device, &b));
        for (name, a_transposed, b_transposed) in [("NN", false, false), ("NT", false, true), ("TN", true, false)] {
            let (host_a, device_a) = if a_transposed {
                (kernels::gemm::Mat::new(&a, k, m).t(), Mat::new(a_on.as_slice(), k, m).t())
            } else {
                (kernels::gemm::Mat::new(&a, m, k), Mat::new(a_on.as_slice(), m, k))
            };
            let (host_b, device_b) = if b_transposed {
                (kernels::gemm::Mat::new(&b, n, k).t(), Mat::new(b_on.as_slice(), n, k).t())
            } else {
                (kernels::gemm::Mat::new(&b, k, n), Mat::new(b_on.as_slice(), k, n))
            };
            let (product, abs) = reference::gemm(host_a, host_b);
            for beta in [Beta::Zero, Beta::One] {
                let mut c = if beta == Beta::One { on(&device, &old) } else { stale(&device, m * n) };
                gemm(device_a, device_b, beta, c.as_mut()).unwrap();
                let old_at = |i: usize| if beta == Beta::One { f64::from(old[i]) } else { 0.0 };
                let expected: Vec<f64> = product.iter().enumerate().map(|(i, p)| p + old_at(i)).collect();
                assert_within(&format!("gemm {name} [{m}, {n}, {k}] {beta:?}"), &c.to_vec().unwrap(), &expected, |i| {
                    (k + 4) as f64 * ROUNDING * (abs[i] + old_at(i).abs())
                });
            }
        }
    }
}
