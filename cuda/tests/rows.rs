//! Kernels that go by rows - norm, rope, embedding, loss - and the reductions, in the interpreter, against the references and the CPU's.

use cuda::Buffer;
use cuda::ops::embedding::{embedding, embedding_backward};
use cuda::ops::lm_head_loss::{lm_head_loss, lm_head_loss_backward};
use cuda::ops::reduce;
use cuda::ops::rms_norm::{rms_norm, rms_norm_backward};
use cuda::ops::rope::rope;
use cuda::ops::softmax_loss::{softmax_loss, softmax_loss_backward, softmax_loss_backward_bf16};
use cuda_testing::{bits, device, on, stale};
use half::bf16;
use kernels::rope::{RopeShape, Rotation};
use kernels::testing::{ROUNDING, assert_within, uniform, uniform_bf16, widened};
use kernels::{Beta, Isa, Level, Team, reference};

#[test]
fn rms_norm_matches_reference() {
    let device = device();
    for (n, c) in [(0, 3), (3, 1), (5, 7), (3, 8), (2, 100), (4, 257), (2, 1000), (2, 5000)] {
        let (x, weight) = (uniform(1, n * c), uniform(2, c));
        let (x_on, weight_on) = (on(&device, &x), on(&device, &weight));
        let (mut y, mut y_bf16) = (stale::<f32>(&device, n * c), stale::<bf16>(&device, n * c));
        let (mut inv_rms, mut inv_rms_bf16) = (stale(&device, n), stale(&device, n));
        rms_norm(x_on.as_slice(), weight_on.as_slice(), 1e-5, y.as_mut(), inv_rms.as_mut()).unwrap();
        rms_norm(x_on.as_slice(), weight_on.as_slice(), 1e-5, y_bf16.as_mut(), inv_rms_bf16.as_mut()).unwrap();
        let (y_ref, inv_rms_ref) = reference::rms_norm(&x, &weight, 1e-5);
        let relative = (c as f64 / 2.0 + 4.0) * ROUNDING;
        let what = format!("rms_norm [{n}, {c}]");
        let y = y.to_vec().unwrap();
        assert_within(&format!("{what} inv_rms"), &inv_rms.to_vec().unwrap(), &inv_rms_ref, |i| {
            relative * inv_rms_ref[i]
        });
        assert_within(&format!("{what} y"), &y, &y_ref, |i| (relative + 3.0 * ROUNDING) * y_ref[i].abs());
        let rounded: Vec<bf16> = y.iter().map(|&y| bf16::from_f32(y)).collect();
        assert_eq!(y_bf16.to_vec().unwrap(), rounded, "{what} bf16");
        assert_eq!(bits(&inv_rms.to_vec().unwrap()), bits(&inv_rms_bf16.to_vec().unwrap()), "{what} bf16 inv_rms");
    }
}

#[test]
fn rms_norm_backward_matches_reference() {
    let device = device();
    // 1025 rows: two to a block, and one in the last.
    for (n, c) in [(0, 3), (5, 1), (4, 7), (3, 8), (300, 33), (3, 257), (2, 1000), (1025, 9), (2, 4100)] {
        let (x, weight) = (uniform(1, n * c), uniform(2, c));
        let dy = uniform_bf16(3, n * c);
        let dy_wide = widened(&dy);
        let (_, inv_rms) = reference::rms_norm(&x, &weight, 1e-5);
        let inv_rms: Vec<f32> = inv_rms.iter().map(|&r| r as f32).collect();
        let [x_on, weight_on, inv_rms_on, dy_on] = [&x, &weight, &inv_rms, &dy_wide].map(|x| on(&device, x));
        let dy_bf16 = on(&device, &dy);
        for beta in [Beta::Zero, Beta::One] {
            let (old, old_gain) = (uniform(4, n * c), uniform(5, c));
            let destinations = || match beta {
                Beta::One => (on(&device, &old), on(&device, &old_gain)),
                Beta::Zero => (stale(&device, n * c), on(&device, &old_gain)),
            };
            let inputs = (x_on.as_slice(), weight_on.as_slice(), inv_rms_on.as_slice());
            let (mut dx, mut d_weight) = destinations();
            rms_norm_backward(dy_on.as_slice(), inputs.0, inputs.1, inputs.2, beta, dx.as_mut(), d_weight.as_mut())
                .unwrap();
            let (dx, d_weight) = (dx.to_vec().unwrap(), d_weight.to_vec().unwrap());

            let (mut dx_ref, mut d_weight_ref, abs) = reference::rms_norm_backward(&dy_wide, &x, &weight, &inv_rms);
            if beta == Beta::One {
                dx_ref.iter_mut().zip(&old).for_each(|(d, &o)| *d += o as f64);
            }
            d_weight_ref.iter_mut().zip(&old_gain).for_each(|(d, &o)| *d += o as f64);
            let what = format!("rms_norm_backward [{n}, {c}] {beta:?}");
            assert_within(&format!("{what} dx"), &dx, &dx_ref, |i| {
                (c + 8) as f64 * ROUNDING * (abs.dx[i] + f64::from(beta == Beta::One) * old[i].abs() as f64)
            });
            assert_within(&format!("{what} d_weight"), &d_weight, &d_weight_ref, |i| {
                (n + 8) as f64 * ROUNDING * (abs.d_weight[i] + old_gain[i].abs() as f64)
            });

            // dy in bf16: the same numbers, and so the same bits.
            let (mut dx_again, mut d_weight_again) = destinations();
            let outputs = (dx_again.as_mut(), d_weight_again.as_mut());
            rms_norm_backward(dy_bf16.as_slice(), inputs.0, inputs.1, inputs.2, beta, outputs.0, outputs.1).unwrap();
            assert_eq!(bits(&dx_again.to_vec().unwrap()), bits(&dx), "{what} bf16 dx");
            assert_eq!(bits(&d_weight_again.to_vec().unwrap()), bits(&d_weight), "{what} bf16 d_weight");
        }
    }
}

#[test]
fn rope_matches_reference() {
    let device = device();
    for half in [1, 3, 4, 8, 17, 64] {
        for (n_heads, seq_len, batch, first_position) in [(3, 5, 2, 0), (1, 1, 4, 9), (2, 20, 1, 3)] {
            let shape = RopeShape { n_heads, head_dim: 2 * half, seq_len, first_position };
            let tables = (first_position + seq_len) * half;
            let angle = |i: usize| (i / half) as f64 * f64::powf(1e4, -((i % half) as f64) / half as f64);
            let (cos, sin): (Vec<f32>, Vec<f32>) =
                (0..tables).map(|i| (angle(i).cos() as f32, angle(i).sin() as f32)).unzip();
            let x = uniform_bf16(1, batch * seq_len * n_heads * 2 * half);
            let wide = widened(&x);
            let [x_on, cos_on, sin_on] = [&wide, &cos, &sin].map(|x| on(&device, x));
            for (rotation, sign) in [(Rotation::Forward, 1.0), (Rotation::Backward, -1.0)] {
                let what = format!("rope {shape:?} {rotation:?}");
                let mut y = stale::<f32>(&device, x.len());
                rope(x_on.as_slice(), cos_on.as_slice(), sin_on.as_slice(), shape, rotation, y.as_mut()).unwrap();
                let y = y.to_vec().unwrap();
                let expected = reference::rope(&wide, &cos, &sin, shape, sign);
                assert_within(&what, &y, &expected, |i| {
                    let position = first_position + i / (n_heads * 2 * half) % seq_len;
                    let angle = position * half + i % half;
                    let (a, b) = (wide[i], if i % (2 * half) < half { wide[i + half] } else { wide[i - half] });
                    3.0 * ROUNDING * ((a * cos[angle]).abs() + (b * sin[angle]).abs()) as f64
                });
                let mut y_bf16 = stale::<bf16>(&device, x.len());
                rope(
                    on(&device, &x).as_slice(),
                    cos_on.as_slice(),
                    sin_on.as_slice(),
                    shape,
                    rotation,
                    y_bf16.as_mut(),
                )
                .unwrap();
                let rounded: Vec<bf16> = y.iter().map(|&y| bf16::from_f32(y)).collect();
                assert_eq!(y_bf16.to_vec().unwrap(), rounded, "{what} bf16");
            }
        }
    }
}

/// Tokens below `vocab`, with repetitions.
fn tokens(len: usize, vocab: usize) -> Vec<u32> {
    uniform(9, len).iter().map(|x| ((x.abs() * vocab as f32) as u32).min(vocab as u32 - 1)).collect()
}

#[test]
fn embedding_matches_reference() {
    let device = device();
    for d_model in [1, 7, 8, 100, 2056] {
        for (n, vocab) in [(0, 3), (1, 1), (40, 7)] {
            let (table, tokens) = (uniform_bf16(1, vocab * d_model), tokens(n, vocab));
            let wide = widened(&table);
            let expected = reference::embedding(&wide, &tokens, d_model);
            let tokens = on(&device, &tokens);
            let mut out = stale(&device, n * d_model);
            embedding(on(&device, &wide).as_slice(), tokens.as_slice(), d_model, out.as_mut()).unwrap();
            assert_within(&format!("embedding C={d_model} N={n}"), &out.to_vec().unwrap(), &expected, |_| 0.0);
            let mut out = stale(&device, n * d_model);
            embedding(on(&device, &table).as_slice(), tokens.as_slice(), d_model, out.as_mut()).unwrap();
            assert_within(&format!("embedding bf16 C={d_model} N={n}"), &out.to_vec().unwrap(), &expected, |_| 0.0);
        }
    }
}

#[test]
fn an_unknown_token_is_nan_forward_and_nothing_backward() {
    let device = device();
    let (table, tokens) = (on(&device, &[1.0f32, 2.0, 3.0, 4.0]), on(&device, &[1u32, 2, u32::MAX, 0]));
    let mut out = stale(&device, 8);
    embedding(table.as_slice(), tokens.as_slice(), 2, out.as_mut()).unwrap();
    let nan = f32::NAN;
    assert_eq!(bits(&out.to_vec().unwrap()), bits(&[3.0, 4.0, nan, nan, nan, nan, 1.0, 2.0]), "embedding");
    let mut d_table = on(&device, &[0.0f32; 4]);
    embedding_backward(on(&device, &[1.0; 8]).as_slice(), tokens.as_slice(), 2, d_table.as_mut()).unwrap();
    assert_eq!(d_table.to_vec().unwrap(), [1.0; 4], "embedding_backward");
}

/// Rows are added in their order, as the CPU adds them: not a bit differs.
#[test]
fn embedding_backward_has_the_bits_of_the_cpu() {
    let (device, team) = (device(), Team::serial(Level::best()));
    for d_model in [1, 7, 8, 100, 1032] {
        for (n, vocab) in [(0, 3), (1, 1), (40, 7), (600, 5), (300, 100)] {
            if n * d_model > 100_000 {
                continue;
            }
            let (d_out, tokens, old) = (uniform(1, n * d_model), tokens(n, vocab), uniform(2, vocab * d_model));
            let mut expected = old.clone();
            kernels::embedding::embedding_backward(&team, &d_out, &tokens, d_model, &mut expected);
            let mut d_table = on(&device, &old);
            let (d_out, tokens) = (on(&device, &d_out), on(&device, &tokens));
            embedding_backward(d_out.as_slice(), tokens.as_slice(), d_model, d_table.as_mut()).unwrap();
            let what = format!("embedding_backward C={d_model} N={n} V={vocab}");
            assert_eq!(bits(&d_table.to_vec().unwrap()), bits(&expected), "{what}");
        }
    }
}

#[test]
fn sums_match_reference() {
    let device = device();
    for len in [0, 1, 3, 255, 1000, 8191, 8192, 8193, 30_000] {
        for shift in [0, 1] {
            let x = uniform(1, len + shift);
            let x_on = on(&device, &x);
            let (x, x_on) = (&x[shift..], x_on.as_slice().part(shift..len + shift));
            let check = |name: &str, total: Buffer<f64>, expected: f64, abs: f64| {
                // 32 additions in f32; the product of sum_squares is part of its addition. In f64, far less.
                let (actual, bound) = (total.to_vec().unwrap()[0], 32.5 * ROUNDING * abs);
                assert!(
                    (actual - expected).abs() <= bound,
                    "{name} len={len}: {actual:e}, expected {expected:e}, bound {bound:e}"
                );
            };
            let (expected, abs) = reference::sum(x);
            let squares = reference::sum_squares(x);
            let mut total = stale(&device, 1);
            reduce::sum(x_on, Beta::Zero, total.as_mut()).unwrap();
            check("sum", total, expected, abs);
            let mut total = stale(&device, 1);
            reduce::sum_abs(x_on, Beta::Zero, total.as_mut()).unwrap();
            check("sum_abs", total, abs, abs);
            let mut total = on(&device, &[2.5f64]);
            reduce::sum_squares(x_on, Beta::One, total.as_mut()).unwrap();
            check("sum_squares", total, 2.5 + squares, 2.5 + squares);
        }
    }
}

#[test]
fn sum_rows_and_count_positive_match_reference() {
    let device = device();
    for (n, c) in [(0, 3), (1, 1), (7, 33), (257, 5), (600, 40), (70_000, 1)] {
        let (x, old) = (uniform(1, n * c), uniform(2, c));
        let (x_on, mut sums, mut counts) = (on(&device, &x), on(&device, &old), on(&device, &vec![7u32; c]));
        reduce::sum_rows(x_on.as_slice(), sums.as_mut()).unwrap();
        reduce::count_positive(x_on.as_slice(), counts.as_mut()).unwrap();
        let (expected, abs) = reference::sum_rows(&x, c);
        let expected: Vec<f64> = expected.iter().zip(&old).map(|(e, &o)| e + o as f64).collect();
        assert_within(&format!("sum_rows [{n}, {c}]"), &sums.to_vec().unwrap(), &expected, |i| {
            (n + 8) as f64 * ROUNDING * (abs[i] + old[i].abs() as f64)
        });
        let expected: Vec<u32> = reference::count_positive(&x, c).iter().map(|n| n + 7).collect();
        assert_eq!(counts.to_vec().unwrap(), expected, "count_positive [{n}, {c}]");
    }
}

#[test]
fn softmax_loss_matches_reference() {
    let device = device();
    for (n, v, stride, size) in
        [(3, 1, 1, 1.0), (4, 5, 8, 1.0), (2, 257, 260, 1.0), (3, 1000, 1000, 20.0), (1, 5000, 5008, 1e4)]
    {
        let z: Vec<f32> = uniform(1, n * stride).iter().map(|z| size * z).collect();
        let (targets, scale) = (tokens(n, v), 0.7f32);
        let (z_on, targets_on) = (on(&device, &z), on(&device, &targets));
        let mut losses = stale(&device, n);
        softmax_loss(z_on.as_slice(), v, targets_on.as_slice(), losses.as_mut()).unwrap();
        let losses = losses.to_vec().unwrap();

        let (mut dz, mut losses_again) = (on(&device, &z), stale(&device, n));
        softmax_loss_backward(dz.as_mut(), v, targets_on.as_slice(), scale, losses_again.as_mut()).unwrap();
        assert_eq!(losses, losses_again.to_vec().unwrap(), "softmax_loss_backward [{n}, {v}]: losses");
        let (mut dz_bf16, mut losses_bf16) = (on(&device, &vec![bf16::ZERO; n * stride]), stale(&device, n));
        let outputs = (dz_bf16.as_mut(), losses_bf16.as_mut());
        softmax_loss_backward_bf16(z_on.as_slice(), v, targets_on.as_slice(), scale, outputs.0, outputs.1).unwrap();
        assert_eq!(losses, losses_bf16.to_vec().unwrap(), "softmax_loss_backward_bf16 [{n}, {v}]: losses");
        let (dz, dz_bf16) = (dz.to_vec().unwrap(), dz_bf16.to_vec().unwrap());

        for row in 0..n {
            let (at, target) = (row * stride, targets[row] as usize);
            let z_row: Vec<f64> = z[at..at + v].iter().map(|&z| z as f64).collect();
            let max = z_row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = max + z_row.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
            let what = format!("softmax_loss [{n}, {v}] row {row}");
            // Each exponential: its argument's rounding (at most 2 max |z|) and 2 ULP; the sum of V terms. The loss is computed in f64 from there.
            let relative = (2.0 * size as f64 + 4.0 + v as f64) * ROUNDING;
            let expected = log_sum - z_row[target];
            assert!(
                (losses[row] - expected).abs() <= relative,
                "{what}: {} expected {expected}, bound {relative:e}",
                losses[row]
            );
            // A probability: that of its own exponential and of the sum, the quotient and the product; then p - 1 and scale.
            let expected: Vec<f64> =
                (0..v).map(|j| scale as f64 * ((z_row[j] - log_sum).exp() - f64::from(j == target))).collect();
            let bound = |j: usize| {
                let p = (z_row[j] - log_sum).exp();
                scale as f64 * (p * (2.0 * relative + 4.0 * ROUNDING) + 2.0 * ROUNDING * f64::from(j == target)) + 1e-44
            };
            assert_within(&format!("softmax_loss_backward [{n}, {v}] row {row}"), &dz[at..at + v], &expected, bound);
            assert_eq!(bits(&dz[at + v..at + stride]), bits(&z[at + v..at + stride]), "{what}: beyond V");
            let rounded: Vec<bf16> = dz[at..at + v].iter().map(|&d| bf16::from_f32(d)).collect();
            assert_eq!(dz_bf16[at..at + v], rounded, "{what} bf16");
        }
    }
}

#[test]
fn softmax_loss_does_not_hide_nan_or_a_wrong_target() {
    let device = device();
    let mut z = uniform(1, 300);
    z[150] = f32::NAN;
    z[299] = f32::INFINITY;
    let (z, targets) = (on(&device, &z), on(&device, &[1u32, 2, 3]));
    let mut losses = stale(&device, 3);
    softmax_loss(z.as_slice(), 100, targets.as_slice(), losses.as_mut()).unwrap();
    let losses = losses.to_vec().unwrap();
    assert!(losses[0].is_finite() && losses[1].is_nan() && !losses[2].is_finite(), "softmax_loss: {losses:?}");
    let mut losses = stale(&device, 1);
    softmax_loss(z.as_slice().part(0..100), 100, on(&device, &[100u32]).as_slice(), losses.as_mut()).unwrap();
    assert!(losses.to_vec().unwrap()[0].is_nan(), "softmax_loss: a target that is not there");
}

#[test]
fn rope_has_the_bits_of_the_cpu() {
    let Ok(level) = Level::new(Isa::Avx2) else { return };
    let shape = RopeShape { n_heads: 3, head_dim: 34, seq_len: 7, first_position: 2 };
    let (x, cos, sin) = (uniform(1, 14 * 3 * 34), uniform(2, 9 * 17), uniform(3, 9 * 17));
    let mut expected = vec![0.0; x.len()];
    kernels::rope::rope(&Team::serial(level), &x, &cos, &sin, shape, Rotation::Backward, &mut expected);
    let device = device();
    let [x_on, cos, sin] = [&x, &cos, &sin].map(|x| on(&device, x));
    let mut y = stale(&device, x.len());
    rope(x_on.as_slice(), cos.as_slice(), sin.as_slice(), shape, Rotation::Backward, y.as_mut()).unwrap();
    assert_eq!(bits(&y.to_vec().unwrap()), bits(&expected), "rope");
}

/// 2049 rows are two chunks.
#[test]
fn lm_head_loss_matches_reference() {
    let device = device();
    for (n, c, v) in [(0, 3, 5), (1, 1, 1), (5, 7, 11), (2049, 2, 3)] {
        let (x, w, old, scale) = (uniform(1, n * c), uniform(2, v * c), uniform(3, v * c), 0.25);
        let targets: Vec<u32> = (0..n as u32).map(|i| i * 7 % v as u32).collect();
        let (x_on, w_on, targets_on) = (on(&device, &x), on(&device, &w), on(&device, &targets));
        let (x_on, w_on, targets_on) = (x_on.as_slice(), w_on.as_slice(), targets_on.as_slice());
        let (loss_ref, dx_ref, dw_ref) = reference::lm_head_loss(&x, &w, &targets, c, scale);
        // The bounds in the CPU kernel's documentation: a row of the loss, a probability, then products of V and of N terms.
        let abs = reference::lm_head_loss_abs(&x, &w, &targets, c, scale);
        let of_logit = (c + 4) as f64 * ROUNDING * abs.logit;
        let of_loss = n as f64 * (2.0 * of_logit + (2.0 * abs.logit + v as f64 + 4.0) * ROUNDING);
        let relative = 2.0 * of_logit + (4.0 * abs.logit + v as f64 + 12.0) * ROUNDING;
        for beta in [Beta::Zero, Beta::One] {
            let what = format!("lm_head_loss [{n}, {c}] {v} {beta:?}");
            let mut losses = [(); 2].map(|_| stale::<f64>(&device, 1));
            lm_head_loss(x_on, w_on, targets_on, c, losses[0].as_mut()).unwrap();
            let mut dx = stale(&device, n * c);
            let mut dw = if beta == Beta::One { on(&device, &old) } else { stale(&device, v * c) };
            let outputs = (dx.as_mut(), dw.as_mut(), losses[1].as_mut());
            lm_head_loss_backward(x_on, w_on, targets_on, c, scale, outputs.0, beta, outputs.1, outputs.2).unwrap();
            let [loss, again] = losses.map(|loss| loss.to_vec().unwrap()[0]);
            assert!((loss - loss_ref).abs() <= of_loss, "{what}: {loss}, expected {loss_ref} within {of_loss:e}");
            assert_eq!(loss.to_bits(), again.to_bits(), "{what}: the loss beside gradients");
            let of_dx = |i: usize| abs.dx[i] * (relative + (v + 4) as f64 * ROUNDING);
            assert_within(&format!("{what} dx"), &dx.to_vec().unwrap(), &dx_ref, of_dx);
            let kept = |i: usize| f64::from(beta == Beta::One) * old[i] as f64;
            let dw_ref: Vec<f64> = dw_ref.iter().enumerate().map(|(i, d)| d + kept(i)).collect();
            let of_products = (n + 5) as f64 * ROUNDING;
            assert_within(&format!("{what} dw"), &dw.to_vec().unwrap(), &dw_ref, |i| {
                abs.dw[i] * (relative + of_products) + of_products * kept(i).abs()
            });
        }
    }
}

#[test]
fn first_non_finite_is_the_first() {
    let device = device();
    for (len, bad) in
        [(0, vec![]), (5, vec![]), (5, vec![4]), (9000, vec![8999]), (20_000, vec![17_000, 8193, 9000, 12_345])]
    {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = uniform(1, len);
            bad.iter().for_each(|&i| x[i] = value);
            let mut position = on(&device, &[u64::MAX]);
            reduce::first_non_finite(on(&device, &x).as_slice(), position.as_mut()).unwrap();
            let expected = bad.iter().min().map_or(u64::MAX, |&i| i as u64);
            assert_eq!(position.to_vec().unwrap(), [expected], "first_non_finite len={len} {value}");
        }
    }
}
