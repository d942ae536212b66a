//! Kernels as nvcc makes them (`tests/kernels`), against plain Rust. Made by nvcc 13.0.88 `-ptx -O3 -arch=compute_80`, with
//! `.version` lowered to 7.4 as `cuda/compile.py` does: they are input, so nothing looks whether they are stale.

mod common;

use common::{Params, download_f32, download_u32, uniform, upload};
use half::bf16;
use ptx::{Error, Memory, Module, Options, Report, launch};

fn load(name: &str) -> Module {
    let path = format!("{}/tests/kernels/{name}.ptx", env!("CARGO_MANIFEST_DIR"));
    Module::parse(name, &std::fs::read_to_string(path).unwrap()).unwrap()
}

fn sum_squares(entry: &str, columns: usize, block: u32, options: Options) -> Result<(Vec<f32>, Report), Error> {
    let rows = 3;
    let mut memory = Memory::new();
    let x: Vec<f32> = (0..rows * columns).map(|i| uniform(1, i)).collect();
    let x = upload(&mut memory, &x, f32::to_le_bytes);
    let sum = memory.alloc(4 * rows);
    let params = Params::new().u64(x).u64(sum).u32(columns as u32);
    let report = launch(&load("reduce"), entry, [rows as u32, 1, 1], [block, 1, 1], 0, &params, &mut memory, options)?;
    Ok((download_f32(&memory, sum, rows), report))
}

#[test]
fn reduction_with_shuffles() {
    for columns in [1, 31, 256, 1000] {
        for block in [32, 64, 256] {
            let results: Vec<_> = (0..4)
                .map(|seed| {
                    sum_squares("row_sum_squares", columns, block, Options { seed: Some(seed), ..Options::default() })
                        .unwrap()
                })
                .collect();
            for (row, &sum) in results[0].0.iter().enumerate() {
                let x = (row * columns..(row + 1) * columns).map(|i| f64::from(uniform(1, i)));
                let exact: f64 = x.map(|x| x * x).sum();
                let bound = (columns + 4) as f64 * 2f64.powi(-24) * exact;
                assert!(
                    (f64::from(sum) - exact).abs() <= bound,
                    "row_sum_squares {columns} {block}: {sum} for {exact}"
                );
            }
            assert!(results.iter().all(|r| r.0 == results[0].0), "row_sum_squares: bits depend on the order");
            assert_eq!(results[0].1.global_read_bytes, 4 * 3 * columns as u64, "each element once");
            assert_eq!(results[0].1.barriers, 3);
        }
    }
}

#[test]
fn a_missing_barrier_is_found() {
    let mut found = 0;
    for seed in 0..8 {
        let options = Options { seed: Some(seed), races: false, ..Options::default() };
        if let Err(error) = sum_squares("row_sum_squares_without_barrier", 100, 256, options) {
            let error = error.to_string();
            assert!(error.contains("never written") && error.contains("`ld.shared.f32"), "{error}");
            found += 1;
        }
    }
    // Warp 0 is the last of eight in one order of eight.
    assert!(found >= 5, "a missing barrier found for {found} of 8 seeds");
    let race = sum_squares("row_sum_squares_without_barrier", 100, 256, Options::default()).unwrap_err().to_string();
    assert!(race.contains("race") || race.contains("never written"), "{race}");
}

#[test]
fn gemv_bf16() {
    for (rows, columns) in [(1, 8), (7, 256), (9, 1032)] {
        let mut memory = Memory::new();
        let w: Vec<bf16> = (0..rows * columns).map(|i| bf16::from_f32(uniform(1, i))).collect();
        let x: Vec<f32> = (0..columns).map(|i| uniform(2, i)).collect();
        let (w_at, x_at) = (upload(&mut memory, &w, bf16::to_le_bytes), upload(&mut memory, &x, f32::to_le_bytes));
        let y = memory.alloc(4 * rows);
        let params = Params::new().u64(w_at).u64(x_at).u64(y).u32(rows as u32).u32(columns as u32);
        let grid = [rows.div_ceil(4) as u32, 1, 1];
        let report =
            launch(&load("gemv"), "gemv", grid, [128, 1, 1], 0, &params, &mut memory, Options::default()).unwrap();
        for (row, &y) in download_f32(&memory, y, rows).iter().enumerate() {
            let products = (0..columns).map(|c| w[row * columns + c].to_f64() * f64::from(x[c]));
            let (exact, abs) = products.fold((0.0, 0.0), |(s, a), p| (s + p, a + p.abs()));
            let bound = (columns + 4) as f64 * 2f64.powi(-24) * abs;
            assert!((f64::from(y) - exact).abs() <= bound, "gemv {rows} x {columns} row {row}: {y} for {exact}");
        }
        assert_eq!(report.global_read_bytes, (rows * columns * (2 + 4)) as u64, "weights once, x once for each row");
        assert_eq!(report.global_written_bytes, 4 * rows as u64);
    }
}

#[test]
fn philox_equals_rust() {
    let n = 1000;
    let mut memory = Memory::new();
    let out = memory.alloc(16 * n);
    let seed = 0x0123_4567_89ab_cdef_u64;
    let params = Params::new().u64(out).u32(n as u32).u32(u32::MAX - 500).u64(seed);
    launch(&load("philox"), "philox", [8, 1, 1], [128, 1, 1], 0, &params, &mut memory, Options::default()).unwrap();
    for (i, draws) in download_u32(&memory, out, 4 * n).chunks(4).enumerate() {
        let mut c = [(u32::MAX - 500).wrapping_add(i as u32), 1, 2, 3];
        let mut k = [seed as u32, (seed >> 32) as u32];
        for _ in 0..7 {
            let (p, q) = (u64::from(c[0]) * 0xD251_1F53, u64::from(c[2]) * 0xCD9E_8D57);
            c = [(q >> 32) as u32 ^ c[1] ^ k[0], q as u32, (p >> 32) as u32 ^ c[3] ^ k[1], p as u32];
            k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
        }
        assert_eq!(draws, c, "counter {i}");
    }
}

#[test]
fn gemm_tile_by_tensor_cores() {
    for (m, n, k) in [(64, 64, 32), (1, 1, 64), (70, 65, 96)] {
        let mut memory = Memory::new();
        let a: Vec<bf16> = (0..m * k).map(|i| bf16::from_f32(uniform(1, i))).collect();
        let b: Vec<bf16> = (0..n * k).map(|i| bf16::from_f32(uniform(2, i))).collect();
        let (a_at, b_at) = (upload(&mut memory, &a, bf16::to_le_bytes), upload(&mut memory, &b, bf16::to_le_bytes));
        let c_at = memory.alloc(4 * m * n);
        let [m32, n32, k32] = [m, n, k].map(|x| x as u32);
        let params = Params::new().u64(a_at).u64(b_at).u64(c_at).u32(m32).u32(n32).u32(k32);
        let grid = [n32.div_ceil(64), m32.div_ceil(64), 1];
        let report = launch(
            &load("gemm_tile"),
            "gemm_tile",
            grid,
            [128, 1, 1],
            0,
            &params,
            &mut memory,
            Options { seed: None, ..Options::default() },
        )
        .unwrap();
        for (i, &c) in download_f32(&memory, c_at, m * n).iter().enumerate() {
            let (row, column) = (i / n, i % n);
            let products = (0..k).map(|j| a[row * k + j].to_f64() * b[column * k + j].to_f64());
            let (exact, abs) = products.fold((0.0, 0.0), |(s, a), p| (s + p, a + p.abs()));
            let bound = (k + 4) as f64 * 2f64.powi(-24) * abs;
            assert!((f64::from(c) - exact).abs() <= bound, "gemm_tile {m} {n} {k} ({row}, {column}): {c} for {exact}");
        }
        assert_eq!(report.mma, u64::from(grid[0] * grid[1] * 4 * 8 * k32 / 16));
        // None of ldmatrix: its rows are 80 bytes apart. Of copies: eight threads fill 64 bytes of two such rows, which
        // share 4 banks.
        let copies = u64::from(grid[0] * grid[1] * k32 / 32) * 2 * 64 * 4;
        assert_eq!(report.bank_conflicts, copies / 8, "gemm_tile {m} {n} {k}: bank conflicts");
    }
}

#[test]
fn forms_of_floats() {
    let module = load("forms");
    let x: Vec<f32> = (0..32).map(|i| 3.0 * uniform(5, i)).collect();
    let d: Vec<f64> = (0..32).map(|i| f64::from(uniform(6, i)) + 1e-9).collect();
    let mut memory = Memory::new();
    let (x_at, d_at) = (upload(&mut memory, &x, f32::to_le_bytes), upload(&mut memory, &d, f64::to_le_bytes));
    let rows = 23;
    let out = memory.alloc(4 * 32 * rows);
    // struct Pair { float a; unsigned char b[5]; long long c; } at offset 24.
    let mut params = [Params::new().u64(out).u64(x_at).u64(d_at).to_vec(), 0.5f32.to_le_bytes().to_vec()].concat();
    params.extend([1, 2, 3, 4, 5, 0, 0, 0, 0, 0, 0, 0]);
    params.extend((-9i64).to_le_bytes());
    let which = 3u32;
    params.extend(which.to_le_bytes());
    launch(&module, "forms_float", [1; 3], [32, 1, 1], 0, &params, &mut memory, Options::default()).unwrap();
    let results = download_f32(&memory, out, 32 * rows);
    for i in 0..32 {
        let (v, stack) = (x[i], |j: usize| x[j] + j as f32);
        let chosen = match (which as usize + i) % 6 {
            0 => v + 1.0,
            1 => v * 2.0,
            2 => -v,
            3 => 5.0,
            4 => v * v,
            _ => v,
        };
        let w = f64::from(v);
        let next = f64::from(x[(i + 1) % 32]) + 3.0;
        let thrice = (0..i % 4).fold(w, |x, _| 3.0 * x + 1.0);
        let erf = w.signum() * erf(w.abs());
        // Results and their errors in ULPs of f32: exact ones first, else those of the programming guide's table.
        let expected = [
            (f64::from(stack((i * which as usize) & 15) + (i & 7) as f32 + 1.0), 0.0),
            (f64::from(chosen), 0.0),
            (w.exp(), 2.0),
            (w.abs().ln(), 2.0),
            (f64::from(v * 1e6).sin(), 2.0),
            (w.abs().powf(1.5), 9.0),
            (w.tanh(), 2.0),
            (erf, 3.0),
            (w / next, 2.0),
            (w.abs().sqrt(), 1.0),
            (1.0 / w.abs().sqrt(), 2.0),
            (f64::from(v * 7.0).floor(), 0.0),
            (f64::from(v * 7.0).round_ties_even(), 0.0),
            (d[i] / d[(i + 1) % 32], 1.0),
            (d[i].abs().sqrt(), 1.0),
            (d[i].exp(), 1.0),
            (0.5 + (i % 5 + 1) as f64 - 9.0, 0.0),
            (thrice, 4.0),
            (w.min(0.25), 0.0),
            (w.max(-0.25), 0.0),
            (2f64.copysign(w), 0.0),
            (f64::from(v * 100.0).trunc(), 0.0),
            (w.clamp(0.0, 1.0), 0.0),
        ];
        for (k, &(expected, ulps)) in expected.iter().enumerate() {
            let result = f64::from(results[32 * k + i]);
            let bound = ulps * 2f64.powi(-23) * expected.abs();
            assert!(
                (result - expected).abs() <= bound,
                "forms_float row {k} of x = {v:e}: {result:e} for {expected:e}"
            );
        }
    }
}

/// The error function of a positive number by its series, whose terms stay small below 3.
fn erf(x: f64) -> f64 {
    let mut term = x;
    let mut sum = x;
    for n in 1..80 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[test]
fn forms_of_integers() {
    let module = load("forms");
    let x: Vec<u64> = (0..32u64).map(|i| (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(i as u32)).collect();
    let mut memory = Memory::new();
    let x_at = upload(&mut memory, &x, u64::to_le_bytes);
    let rows = 27;
    let out = memory.alloc(8 * 32 * rows);
    let n = 13i32;
    let params = Params::new().u64(out).u64(x_at).u32(n as u32);
    launch(&module, "forms_integer", [1; 3], [32, 1, 1], 0, &params, &mut memory, Options::default()).unwrap();
    let results = common::download(&memory, out, 8 * 32 * rows);
    let low = |v: u64| v as u32;
    for i in 0..32 {
        let (v, u, s) = (x[i], x[i] as u32, x[i] as u32 as i32);
        let high = (v >> 32) as u32;
        let wide = u128::from(v) * u128::from(x[(i + 1) % 32]) + u128::from(x[(i + 2) % 32]);
        let pair = [u.to_le_bytes(), high.to_le_bytes()].concat();
        let dot = (0..4).map(|b| i32::from(pair[b] as i8) * i32::from(pair[b + 4] as i8)).sum::<i32>() + 3;
        let shifted = (u64::from(high) << 32 | u64::from(u)) << (i % 32) >> 32;
        let expected: [u64; 27] = [
            v / 13,
            v % 10,
            (v as i64 / 13) as u64,
            ((s / n) as u32).into(),
            ((s % n) as u32).into(),
            (u / 7).into(),
            ((u128::from(v) * u128::from(v)) >> 64) as u64,
            wide as u64,
            (wide >> 64) as u64,
            v.count_ones().into(),
            v.leading_zeros().into(),
            (u.trailing_zeros() + 1).into(),
            u.reverse_bits().into(),
            u32::from_le_bytes([pair[5], pair[1], pair[7], pair[3]]).into(),
            low(shifted).into(),
            (dot as u32).into(),
            s.unsigned_abs().into(),
            (u.abs_diff(77) + 1).into(),
            (0..32).filter(|&l| x[l] & 1 != 0).map(|l| 1 << l).sum(),
            x.iter().any(|&v| low(v) == 5).into(),
            (0..32).filter(|&l| x[l] & 3 == v & 3).map(|l| 1 << l).sum(),
            x.iter().fold(0u32, |sum, &v| sum.wrapping_add(low(v))).into(),
            (x.iter().map(|&v| low(v) as i32).max().unwrap() as u32).into(),
            (u.wrapping_mul(3) as u16).into(),
            i64::from(u as i8) as u64,
            low(x[if i >= 3 { i - 3 } else { i }]).into(),
            x[i / 2],
        ];
        for (k, expected) in expected.into_iter().enumerate() {
            let result = u64::from_le_bytes(results[8 * (32 * k + i)..][..8].try_into().unwrap());
            assert_eq!(result, expected, "forms_integer row {k} of x = {v:#x}: {result:#x} for {expected:#x}");
        }
    }
    let (counter, _) = memory.variable(&module, "counter").unwrap();
    assert_eq!(download_u32(&memory, counter, 1), [3 + 31 * 16]);
}
