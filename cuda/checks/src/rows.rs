//! Kernels that go by rows - norm, rope, embedding, loss - and the reductions, against the references and the CPU's.

use crate::Run;
use cuda::ops::embedding::{embedding, embedding_backward};
use cuda::ops::lm_head_loss::{Factor, lm_head_loss, lm_head_loss_backward};
use cuda::ops::reduce;
use cuda::ops::rms_norm::{rms_norm, rms_norm_backward};
use cuda::ops::rope::rope;
use cuda::ops::softmax_loss::{softmax_loss, softmax_loss_backward, softmax_loss_backward_bf16};
use cuda::{Buffer, Error};
use half::bf16;
use kernels::rope::{RopeShape, Rotation};
use kernels::testing::{ROUNDING, uniform, uniform_bf16, widened};
use kernels::{Beta, Isa, Level, Team, Weight, reference};

pub fn rms_norm_matches_reference(run: &mut Run) -> Result<(), Error> {
    let small = [(0, 3), (3, 1), (5, 7), (3, 8), (2, 100), (4, 257), (2, 1000), (2, 5000)];
    for (n, c) in run.sizes(&small, &[(1500, 2048), (70_001, 20)]) {
        let (x, weight) = (uniform(1, n * c), uniform(2, c));
        let (x_on, weight_on) = (run.on(&x)?, run.on(&weight)?);
        let (mut y, mut y_bf16) = (run.stale::<f32>(n * c)?, run.stale::<bf16>(n * c)?);
        let [mut inv_rms, mut inv_rms_bf16] = run.all_stale(n)?;
        rms_norm(x_on.as_slice(), weight_on.as_slice(), 1e-5, y.as_mut(), inv_rms.as_mut())?;
        rms_norm(x_on.as_slice(), weight_on.as_slice(), 1e-5, y_bf16.as_mut(), inv_rms_bf16.as_mut())?;
        let (y_ref, inv_rms_ref) = reference::rms_norm(&x, &weight, 1e-5);
        let relative = (c as f64 / 2.0 + 4.0) * ROUNDING;
        let what = format!("rms_norm [{n}, {c}]");
        let y = y.to_vec()?;
        run.within(&format!("{what} inv_rms"), &inv_rms.to_vec()?, &inv_rms_ref, |i| relative * inv_rms_ref[i]);
        run.within(&format!("{what} y"), &y, &y_ref, |i| (relative + 3.0 * ROUNDING) * y_ref[i].abs());
        let rounded: Vec<bf16> = y.iter().map(|&y| bf16::from_f32(y)).collect();
        run.same(&format!("{what} bf16"), &y_bf16.to_vec()?, &rounded);
        run.same_bits(&format!("{what} bf16 inv_rms"), &inv_rms.to_vec()?, &inv_rms_bf16.to_vec()?);
    }
    Ok(())
}

pub fn rms_norm_backward_matches_reference(run: &mut Run) -> Result<(), Error> {
    // 1025 rows: two to a block, and one in the last.
    let small = [(0, 3), (5, 1), (4, 7), (3, 8), (300, 33), (3, 257), (2, 1000), (1025, 9), (2, 4100)];
    for (n, c) in run.sizes(&small, &[(2051, 2048), (9, 12_000), (50_001, 20)]) {
        let (x, weight) = (uniform(1, n * c), uniform(2, c));
        let dy = uniform_bf16(3, n * c);
        let dy_wide = widened(&dy);
        let (_, inv_rms) = reference::rms_norm(&x, &weight, 1e-5);
        let inv_rms: Vec<f32> = inv_rms.iter().map(|&r| r as f32).collect();
        let [x_on, weight_on, inv_rms_on, dy_on] = run.all_on([&x, &weight, &inv_rms, &dy_wide])?;
        let dy_bf16 = run.on(&dy)?;
        for beta in [Beta::Zero, Beta::One] {
            let (old, old_gain) = (uniform(4, n * c), uniform(5, c));
            let destinations = |run: &Run| -> Result<[Buffer<f32>; 2], Error> {
                let dx = if beta == Beta::One { run.on(&old)? } else { run.stale(n * c)? };
                Ok([dx, run.on(&old_gain)?])
            };
            let inputs = (x_on.as_slice(), weight_on.as_slice(), inv_rms_on.as_slice());
            let [mut dx, mut d_weight] = destinations(run)?;
            rms_norm_backward(dy_on.as_slice(), inputs.0, inputs.1, inputs.2, beta, dx.as_mut(), d_weight.as_mut())?;
            let (dx, d_weight) = (dx.to_vec()?, d_weight.to_vec()?);

            let (mut dx_ref, mut d_weight_ref, abs) = reference::rms_norm_backward(&dy_wide, &x, &weight, &inv_rms);
            if beta == Beta::One {
                dx_ref.iter_mut().zip(&old).for_each(|(d, &o)| *d += o as f64);
            }
            d_weight_ref.iter_mut().zip(&old_gain).for_each(|(d, &o)| *d += o as f64);
            let what = format!("rms_norm_backward [{n}, {c}] {beta:?}");
            run.within(&format!("{what} dx"), &dx, &dx_ref, |i| {
                (c + 8) as f64 * ROUNDING * (abs.dx[i] + f64::from(beta == Beta::One) * old[i].abs() as f64)
            });
            run.within(&format!("{what} d_weight"), &d_weight, &d_weight_ref, |i| {
                (n + 8) as f64 * ROUNDING * (abs.d_weight[i] + old_gain[i].abs() as f64)
            });

            // dy in bf16: the same numbers, and so the same bits.
            let [mut dx_again, mut d_weight_again] = destinations(run)?;
            let outputs = (dx_again.as_mut(), d_weight_again.as_mut());
            rms_norm_backward(dy_bf16.as_slice(), inputs.0, inputs.1, inputs.2, beta, outputs.0, outputs.1)?;
            run.same_bits(&format!("{what} bf16 dx"), &dx_again.to_vec()?, &dx);
            run.same_bits(&format!("{what} bf16 d_weight"), &d_weight_again.to_vec()?, &d_weight);
        }
    }
    Ok(())
}

pub fn rope_matches_reference(run: &mut Run) -> Result<(), Error> {
    for half in [1, 3, 4, 8, 17, 64] {
        let small = [(3, 5, 2, 0), (1, 1, 4, 9), (2, 20, 1, 3)];
        for (n_heads, seq_len, batch, first_position) in run.sizes(&small, &[(5, 301, 7, 1000)]) {
            let shape = RopeShape { n_heads, head_dim: 2 * half, seq_len, first_position };
            let tables = (first_position + seq_len) * half;
            let angle = |i: usize| (i / half) as f64 * f64::powf(1e4, -((i % half) as f64) / half as f64);
            let (cos, sin): (Vec<f32>, Vec<f32>) =
                (0..tables).map(|i| (angle(i).cos() as f32, angle(i).sin() as f32)).unzip();
            let x = uniform_bf16(1, batch * seq_len * n_heads * 2 * half);
            let wide = widened(&x);
            let [x_on, cos_on, sin_on] = run.all_on([&wide, &cos, &sin])?;
            for (rotation, sign) in [(Rotation::Forward, 1.0), (Rotation::Backward, -1.0)] {
                let what = format!("rope {shape:?} {rotation:?}");
                let mut y = run.stale::<f32>(x.len())?;
                rope(x_on.as_slice(), cos_on.as_slice(), sin_on.as_slice(), shape, rotation, y.as_mut())?;
                let y = y.to_vec()?;
                let expected = reference::rope(&wide, &cos, &sin, shape, sign);
                run.within(&what, &y, &expected, |i| {
                    let position = first_position + i / (n_heads * 2 * half) % seq_len;
                    let angle = position * half + i % half;
                    let (a, b) = (wide[i], if i % (2 * half) < half { wide[i + half] } else { wide[i - half] });
                    3.0 * ROUNDING * ((a * cos[angle]).abs() + (b * sin[angle]).abs()) as f64
                });
                let (x_on, mut y_bf16) = (run.on(&x)?, run.stale::<bf16>(x.len())?);
                rope(x_on.as_slice(), cos_on.as_slice(), sin_on.as_slice(), shape, rotation, y_bf16.as_mut())?;
                let rounded: Vec<bf16> = y.iter().map(|&y| bf16::from_f32(y)).collect();
                run.same(&format!("{what} bf16"), &y_bf16.to_vec()?, &rounded);
            }
        }
    }
    Ok(())
}

/// Tokens below `vocab`, with repetitions.
fn tokens(len: usize, vocab: usize) -> Vec<u32> {
    uniform(9, len).iter().map(|x| ((x.abs() * vocab as f32) as u32).min(vocab as u32 - 1)).collect()
}

pub fn embedding_matches_reference(run: &mut Run) -> Result<(), Error> {
    for d_model in [1, 7, 8, 100, 2056] {
        for (n, vocab) in run.sizes(&[(0, 3), (1, 1), (40, 7)], &[(3001, 4099)]) {
            let (table, tokens) = (uniform_bf16(1, vocab * d_model), tokens(n, vocab));
            let wide = widened(&table);
            let expected = reference::embedding(&wide, &tokens, d_model);
            let tokens = run.on(&tokens)?;
            let mut out = run.stale(n * d_model)?;
            embedding(run.on(&wide)?.as_slice(), tokens.as_slice(), d_model, out.as_mut())?;
            run.within(&format!("embedding C={d_model} N={n}"), &out.to_vec()?, &expected, |_| 0.0);
            let mut out = run.stale(n * d_model)?;
            embedding(run.on(&table)?.as_slice(), tokens.as_slice(), d_model, out.as_mut())?;
            run.within(&format!("embedding bf16 C={d_model} N={n}"), &out.to_vec()?, &expected, |_| 0.0);
        }
    }
    Ok(())
}

pub fn an_unknown_token_is_nan_in_embedding_and_nothing_backward(run: &mut Run) -> Result<(), Error> {
    let (table, tokens) = (run.on(&[1.0f32, 2.0, 3.0, 4.0])?, run.on(&[1u32, 2, u32::MAX, 0])?);
    let mut out = run.stale(8)?;
    embedding(table.as_slice(), tokens.as_slice(), 2, out.as_mut())?;
    let nan = f32::NAN;
    run.same_bits("embedding of an unknown token", &out.to_vec()?, &[3.0, 4.0, nan, nan, nan, nan, 1.0, 2.0]);
    let mut d_table = run.on(&[0.0f32; 4])?;
    embedding_backward(run.on(&[1.0; 8])?.as_slice(), tokens.as_slice(), 2, d_table.as_mut())?;
    run.same("embedding_backward of an unknown token", &d_table.to_vec()?, &[1.0; 4]);
    Ok(())
}

/// Rows are added in their order, as the CPU adds them: not a bit differs.
pub fn embedding_backward_has_the_bits_of_the_cpu(run: &mut Run) -> Result<(), Error> {
    let team = Team::serial(Level::best());
    for d_model in [1, 7, 8, 100, 1032] {
        // What the interpreter runs in seconds.
        let small = [(0, 3), (1, 1), (40, 7), (600, 5), (300, 100)].into_iter().filter(|(n, _)| n * d_model <= 100_000);
        for (n, vocab) in run.sizes(&small.collect::<Vec<_>>(), &[(8209, 1009), (5000, 3)]) {
            let (d_out, tokens, old) = (uniform(1, n * d_model), tokens(n, vocab), uniform(2, vocab * d_model));
            let mut expected = old.clone();
            kernels::embedding::embedding_backward(&team, &d_out, &tokens, d_model, &mut expected);
            let mut d_table = run.on(&old)?;
            let (d_out, tokens) = (run.on(&d_out)?, run.on(&tokens)?);
            embedding_backward(d_out.as_slice(), tokens.as_slice(), d_model, d_table.as_mut())?;
            let what = format!("embedding_backward C={d_model} N={n} V={vocab}");
            run.same_bits(&what, &d_table.to_vec()?, &expected);
        }
    }
    Ok(())
}

pub fn sums_match_reference(run: &mut Run) -> Result<(), Error> {
    for len in run.sizes(&[0, 1, 3, 255, 1000, 8191, 8192, 8193, 30_000], &[10_000_019]) {
        for shift in [0, 1] {
            let x = uniform(1, len + shift);
            let x_on = run.on(&x)?;
            let (x, x_on) = (&x[shift..], x_on.as_slice().part(shift..len + shift));
            let (totals, mut of_squares) = (run.all_stale(1)?, run.on(&[2.5f64])?);
            let [mut total, mut of_abs] = totals;
            reduce::sum(x_on, Beta::Zero, total.as_mut())?;
            let mut rounded = run.stale::<f32>(1)?;
            reduce::round_total(total.as_slice(), 0.3, rounded.as_mut())?;
            let expected = (0.3 * total.to_vec()?[0]) as f32;
            run.same_bits(&format!("round_total len={len}"), &rounded.to_vec()?, &[expected]);
            let mut check = |name: &str, total: Buffer<f64>, expected: f64, abs: f64| -> Result<(), Error> {
                // 32 additions in f32; the product of sum_squares is part of its addition. In f64, far less.
                run.number_within(&format!("{name} len={len}"), total.to_vec()?[0], expected, 32.5 * ROUNDING * abs);
                Ok(())
            };
            let (expected, abs) = reference::sum(x);
            let squares = reference::sum_squares(x);
            check("sum", total, expected, abs)?;
            reduce::sum_abs(x_on, Beta::Zero, of_abs.as_mut())?;
            check("sum_abs", of_abs, abs, abs)?;
            reduce::sum_squares(x_on, Beta::One, of_squares.as_mut())?;
            check("sum_squares", of_squares, 2.5 + squares, 2.5 + squares)?;
        }
    }
    Ok(())
}

pub fn sum_rows_and_count_positive_match_reference(run: &mut Run) -> Result<(), Error> {
    let small = [(0, 3), (1, 1), (7, 33), (257, 5), (600, 40), (70_000, 1)];
    for (n, c) in run.sizes(&small, &[(8209, 1031), (2_000_003, 3)]) {
        let (x, old) = (uniform(1, n * c), uniform(2, c));
        let (x_on, mut sums, mut counts) = (run.on(&x)?, run.on(&old)?, run.on(&vec![7u32; c])?);
        reduce::sum_rows(x_on.as_slice(), sums.as_mut())?;
        reduce::count_positive(x_on.as_slice(), counts.as_mut())?;
        let (expected, abs) = reference::sum_rows(&x, c);
        let expected: Vec<f64> = expected.iter().zip(&old).map(|(e, &o)| e + o as f64).collect();
        run.within(&format!("sum_rows [{n}, {c}]"), &sums.to_vec()?, &expected, |i| {
            (n + 8) as f64 * ROUNDING * (abs[i] + old[i].abs() as f64)
        });
        let expected: Vec<u32> = reference::count_positive(&x, c).iter().map(|n| n + 7).collect();
        run.same(&format!("count_positive [{n}, {c}]"), &counts.to_vec()?, &expected);
    }
    Ok(())
}

pub fn softmax_loss_matches_reference(run: &mut Run) -> Result<(), Error> {
    let small = [(3, 1, 1, 1.0), (4, 5, 8, 1.0), (2, 257, 260, 1.0), (3, 1000, 1000, 20.0), (1, 5000, 5008, 1e4)];
    for (n, v, stride, size) in run.sizes(&small, &[(300, 32_000, 32_000, 3.0), (3, 128_255, 128_256, 10.0)]) {
        let z: Vec<f32> = uniform(1, n * stride).iter().map(|z| size * z).collect();
        let (targets, scale) = (tokens(n, v), 0.7f32);
        let (z_on, targets_on) = (run.on(&z)?, run.on(&targets)?);
        let mut losses = run.stale(n)?;
        softmax_loss(z_on.as_slice(), v, targets_on.as_slice(), losses.as_mut())?;
        let losses = losses.to_vec()?;

        let (mut dz, mut losses_again) = (run.on(&z)?, run.stale(n)?);
        softmax_loss_backward(dz.as_mut(), v, targets_on.as_slice(), scale, losses_again.as_mut())?;
        run.same(&format!("softmax_loss_backward [{n}, {v}]: losses"), &losses_again.to_vec()?, &losses);
        let (mut dz_bf16, mut losses_bf16) = (run.on(&vec![bf16::ZERO; n * stride])?, run.stale(n)?);
        let outputs = (dz_bf16.as_mut(), losses_bf16.as_mut());
        softmax_loss_backward_bf16(z_on.as_slice(), v, targets_on.as_slice(), scale, outputs.0, outputs.1)?;
        run.same(&format!("softmax_loss_backward_bf16 [{n}, {v}]: losses"), &losses_bf16.to_vec()?, &losses);
        let (dz, dz_bf16) = (dz.to_vec()?, dz_bf16.to_vec()?);

        for row in 0..n {
            let (at, target) = (row * stride, targets[row] as usize);
            let z_row: Vec<f64> = z[at..at + v].iter().map(|&z| z as f64).collect();
            let max = z_row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = max + z_row.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
            let what = format!("softmax_loss [{n}, {v}] row {row}");
            // Each exponential: its argument's rounding (at most 2 max |z|) and 2 ULP; the sum of V terms. The loss is computed in f64 from there.
            let relative = (2.0 * size as f64 + 4.0 + v as f64) * ROUNDING;
            let expected = log_sum - z_row[target];
            run.number_within(&what, losses[row], expected, relative);
            // A probability: that of its own exponential and of the sum, the quotient and the product; then p - 1 and scale.
            let expected: Vec<f64> =
                (0..v).map(|j| scale as f64 * ((z_row[j] - log_sum).exp() - f64::from(j == target))).collect();
            let bound = |j: usize| {
                let p = (z_row[j] - log_sum).exp();
                scale as f64 * (p * (2.0 * relative + 4.0 * ROUNDING) + 2.0 * ROUNDING * f64::from(j == target)) + 1e-44
            };
            run.within(&format!("softmax_loss_backward [{n}, {v}] row {row}"), &dz[at..at + v], &expected, bound);
            run.same_bits(&format!("{what}: beyond V"), &dz[at + v..at + stride], &z[at + v..at + stride]);
            let rounded: Vec<bf16> = dz[at..at + v].iter().map(|&d| bf16::from_f32(d)).collect();
            run.same(&format!("{what} bf16"), &dz_bf16[at..at + v], &rounded);
        }
    }
    Ok(())
}

pub fn softmax_loss_does_not_hide_nan_or_a_wrong_target(run: &mut Run) -> Result<(), Error> {
    let mut z = uniform(1, 300);
    z[150] = f32::NAN;
    z[299] = f32::INFINITY;
    let (z, targets) = (run.on(&z)?, run.on(&[1u32, 2, 3])?);
    let mut losses = run.stale(3)?;
    softmax_loss(z.as_slice(), 100, targets.as_slice(), losses.as_mut())?;
    let losses = losses.to_vec()?;
    let right = losses[0].is_finite() && losses[1].is_nan() && !losses[2].is_finite();
    run.holds(&format!("softmax_loss of finite, NaN and infinite logits: {losses:?}"), right);
    let mut losses = run.stale(1)?;
    softmax_loss(z.as_slice().part(0..100), 100, run.on(&[100u32])?.as_slice(), losses.as_mut())?;
    let loss = losses.to_vec()?[0];
    run.holds(&format!("softmax_loss of a target that is not there: {loss}"), loss.is_nan());
    Ok(())
}

pub fn rope_has_the_bits_of_the_cpu(run: &mut Run) -> Result<(), Error> {
    let Ok(level) = Level::new(Isa::Avx2) else { return Ok(()) };
    let shape = RopeShape { n_heads: 3, head_dim: 34, seq_len: 7, first_position: 2 };
    let (x, cos, sin) = (uniform(1, 14 * 3 * 34), uniform(2, 9 * 17), uniform(3, 9 * 17));
    let mut expected = vec![0.0; x.len()];
    kernels::rope::rope(&Team::serial(level), &x, &cos, &sin, shape, Rotation::Backward, &mut expected);
    let [x_on, cos, sin] = run.all_on([&x, &cos, &sin])?;
    let mut y = run.stale(x.len())?;
    rope(x_on.as_slice(), cos.as_slice(), sin.as_slice(), shape, Rotation::Backward, y.as_mut())?;
    run.same_bits("rope", &y.to_vec()?, &expected);
    Ok(())
}

/// 2049 rows are two chunks.
pub fn lm_head_loss_matches_reference(run: &mut Run) -> Result<(), Error> {
    let small = [(0, 3, 5), (1, 1, 1), (5, 7, 11), (2049, 2, 3)];
    for shape in run.sizes(&small, &[(2100, 40, 1003), (130, 100, 8191)]) {
        lm_head_loss_of::<f32>(run, shape, ROUNDING, 0.0)?;
        // Tensor cores cut sums off; the gradient of the logits and dx are rounded.
        lm_head_loss_of::<bf16>(run, shape, 2.0 * ROUNDING, f64::powi(2.0, -8))?;
    }
    Ok(())
}

/// `cut` is the error of a term of a product's sum, `unit` that of a rounding to the type.
fn lm_head_loss_of<T: Factor + Weight>(
    run: &mut Run,
    (n, c, v): (usize, usize, usize),
    cut: f64,
    unit: f64,
) -> Result<(), Error> {
    let rounded = |seed, len| uniform(seed, len).into_iter().map(T::round).collect::<Vec<T>>();
    let wide = |x: &[T]| x.iter().map(|x| x.widen()).collect::<Vec<f32>>();
    let (x, w, old, scale) = (rounded(1, n * c), rounded(2, v * c), uniform(3, v * c), 0.25);
    let targets: Vec<u32> = (0..n as u32).map(|i| i * 7 % v as u32).collect();
    let (x_on, w_on, targets_on) = (run.on(&x)?, run.on(&w)?, run.on(&targets)?);
    let (x_on, w_on, targets_on) = (x_on.as_slice(), w_on.as_slice(), targets_on.as_slice());
    let (x, w) = (wide(&x), wide(&w));
    let (loss_ref, dx_ref, dw_ref) = reference::lm_head_loss(&x, &w, &targets, c, scale);
    // The bounds in the CPU kernel's documentation: a row of the loss, a probability, then products of V and of N terms.
    let abs = reference::lm_head_loss_abs(&x, &w, &targets, c, scale);
    let of_logit = (c + 4) as f64 * cut * abs.logit;
    let of_loss = n as f64 * (2.0 * of_logit + (2.0 * abs.logit + v as f64 + 4.0) * ROUNDING);
    let relative = 2.0 * of_logit + (4.0 * abs.logit + v as f64 + 12.0) * ROUNDING;
    let of_dz = (1.0 + relative) * (1.0 + unit) - 1.0;
    for beta in [Beta::Zero, Beta::One] {
        let what = format!("lm_head_loss {} [{n}, {c}] {v} {beta:?}", <T as Weight>::NAME);
        let [mut loss, mut again] = run.all_stale::<f64, 2>(1)?;
        lm_head_loss(x_on, w_on, targets_on, c, loss.as_mut())?;
        let mut dx = run.stale::<T>(n * c)?;
        let mut dw = if beta == Beta::One { run.on(&old)? } else { run.stale(v * c)? };
        let outputs = (dx.as_mut(), dw.as_mut(), again.as_mut());
        lm_head_loss_backward(x_on, w_on, targets_on, c, scale, outputs.0, beta, outputs.1, outputs.2)?;
        let (loss, again) = (loss.to_vec()?[0], again.to_vec()?[0]);
        run.number_within(&what, loss, loss_ref, of_loss);
        run.same(&format!("{what}: the loss beside gradients"), &[again.to_bits()], &[loss.to_bits()]);
        run.within(&format!("{what} dx"), &wide(&dx.to_vec()?), &dx_ref, |i| {
            let error = abs.dx[i] * ((1.0 + of_dz) * (1.0 + (v + 4) as f64 * cut) - 1.0);
            error + unit * (dx_ref[i].abs() + error)
        });
        let kept = |i: usize| f64::from(beta == Beta::One) * old[i] as f64;
        let dw_ref: Vec<f64> = dw_ref.iter().enumerate().map(|(i, d)| d + kept(i)).collect();
        let of_products = (n + 5) as f64 * cut;
        run.within(&format!("{what} dw"), &dw.to_vec()?, &dw_ref, |i| {
            abs.dw[i] * ((1.0 + of_dz) * (1.0 + of_products) - 1.0) + of_products * kept(i).abs()
        });
    }
    Ok(())
}

pub fn first_non_finite_is_the_first(run: &mut Run) -> Result<(), Error> {
    let cases: [(usize, &[usize]); 5] =
        [(0, &[]), (5, &[]), (5, &[4]), (9000, &[8999]), (20_000, &[17_000, 8193, 9000, 12_345])];
    for (len, bad) in run.sizes(&cases, &[(5_000_000, &[4_999_999, 3_000_007])]) {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = uniform(1, len);
            bad.iter().for_each(|&i| x[i] = value);
            let mut position = run.on(&[u64::MAX])?;
            reduce::first_non_finite(run.on(&x)?.as_slice(), position.as_mut())?;
            let expected = bad.iter().min().map_or(u64::MAX, |&i| i as u64);
            run.same(&format!("first_non_finite len={len} {value}"), &position.to_vec()?, &[expected]);
        }
    }
    Ok(())
}
