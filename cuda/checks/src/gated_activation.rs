//! The gated activation: its draws are the CPU's, and so are its bits.

use crate::Run;
use cuda::Error;
use cuda::ops::Float;
use cuda::ops::gated_activation::{gated_activation, gated_activation_backward};
use half::bf16;
use kernels::testing::{ROUNDING, uniform};
use kernels::{Activation, Fixed, Isa, Level, MaskSite, Positive, Team, activation, reference};

const SITE: MaskSite = MaskSite { seed: 0x0123_4567_89AB_CDEF, first_token: 5, layer: 3, stream: 1, step: 77 };

/// One for each kernel and each kind in both places of a pair.
fn acts() -> Vec<Activation> {
    let pair = |first, second, positive| Activation::pair(0.4, [first, second], positive, SITE);
    vec![
        Activation::Relu,
        Activation::Silu,
        Activation::Gelu,
        Activation::Relu2,
        Activation::Tanh,
        Activation::stochastic(0.3, SITE),
        pair(Fixed::Relu, Fixed::Silu, Positive::Silu),
        pair(Fixed::Gelu, Fixed::Relu2, Positive::Silu),
        pair(Fixed::Tanh, Fixed::Gelu, Positive::Identity),
    ]
}

/// How far psi may be off in roundings of itself, and psi' in units of 2^-24: those of the CPU kernels.
const VALUE: f64 = 10.0;
const SLOPE: f64 = 4.0;

fn gates(seed: u64, len: usize) -> Vec<f32> {
    let special = [0.0, -0.0, 1e-40, -1e-40, 80.0, -80.0, 1e-3, f32::NAN, f32::INFINITY];
    let mut g: Vec<f32> = uniform(seed, len).into_iter().map(|x| 8.0 * x).collect();
    // Not in the first columns: their draws are for others.
    g.iter_mut().rev().zip(special).for_each(|(g, s)| *g = s);
    g
}

fn forward<T: Float>(run: &Run, act: Activation, g: &[T], u: &[T], d_ff: usize) -> Result<Vec<T>, Error> {
    let ([g, u], mut h) = (run.all_on([g, u])?, run.stale(g.len())?);
    gated_activation(act, g.as_slice(), u.as_slice(), d_ff, h.as_mut())?;
    h.to_vec()
}

/// `[dg, du, h]`.
fn backward<T: Float>(
    run: &Run,
    act: Activation,
    l1: f32,
    inputs: [&[T]; 3],
    d_ff: usize,
) -> Result<[Vec<T>; 3], Error> {
    let [dh, g, u] = run.all_on(inputs)?;
    let [mut dg, mut du, mut h] = run.all_stale::<T, 3>(g.len())?;
    let (dg_s, du_s, h_s) = (dg.as_mut(), du.as_mut(), h.as_mut());
    gated_activation_backward(act, l1, dh.as_slice(), g.as_slice(), u.as_slice(), d_ff, dg_s, du_s, h_s)?;
    Ok([dg.to_vec()?, du.to_vec()?, h.to_vec()?])
}

pub fn gated_activation_matches_reference(run: &mut Run) -> Result<(), Error> {
    let small = [(0, 5), (1, 1), (3, 7), (2, 8), (5, 9), (3, 100), (2, 1024), (1, 2053)];
    for (n, d_ff) in run.sizes(&small, &[(97, 2816), (91, 1027)]) {
        let len = n * d_ff;
        let (g, u, dh) =
            (uniform(1, len).iter().map(|x| 8.0 * x).collect::<Vec<_>>(), uniform(2, len), uniform(3, len));
        for act in acts() {
            for l1 in [0.0, 0.03] {
                let what = format!("[{n}, {d_ff}] {act:?} l1={l1}");
                let h = forward(run, act, &g, &u, d_ff)?;
                let [dg, du, h_again] = backward(run, act, l1, [&dh, &g, &u], d_ff)?;
                run.same_bits(&format!("gated_activation_backward h {what}"), &h, &h_again);
                let (dg_ref, du_ref, h_ref) = reference::gated_activation_backward(act, l1, &dh, &g, &u, d_ff);
                let relative = |x: f64, k: f64| k * ROUNDING * x.abs() + f64::powi(2.0, -149);
                run.within(&format!("gated_activation {what}"), &h, &h_ref, |i| relative(h_ref[i], VALUE + 1.0));
                run.within(&format!("gated_activation_backward du {what}"), &du, &du_ref, |i| {
                    relative(du_ref[i], VALUE + 2.0)
                });
                let factor = |i: usize| (dh[i].abs() + l1) as f64 * u[i].abs() as f64;
                run.within(&format!("gated_activation_backward dg {what}"), &dg, &dg_ref, |i| {
                    relative(factor(i), SLOPE) + relative(dg_ref[i], 4.0)
                });
            }
        }
    }
    Ok(())
}

/// Special values, and every draw: where the CPU has fused multiply-adds, not a bit differs.
pub fn gated_activation_has_the_bits_of_the_cpu(run: &mut Run) -> Result<(), Error> {
    let Ok(level) = Level::new(Isa::Avx2) else { return Ok(()) };
    let team = Team::serial(level);
    for (n, d_ff) in run.sizes(&[(3, 13), (5, 120), (2, 1031)], &[(1021, 1032), (509, 2049)]) {
        let len = n * d_ff;
        let (g, u, dh) = (gates(1, len), uniform(2, len), uniform(3, len));
        for act in acts() {
            let [mut dg, mut du, mut h] = [(); 3].map(|_| vec![0.0; len]);
            activation::gated_activation_backward(&team, act, 0.01, &dh, &g, &u, d_ff, &mut dg, &mut du, &mut h);
            let actual = backward(run, act, 0.01, [&dh, &g, &u], d_ff)?;
            let h_alone = forward(run, act, &g, &u, d_ff)?;
            for (name, actual, expected) in [("dg", &actual[0], &dg), ("du", &actual[1], &du), ("h", &actual[2], &h)] {
                run.same_bits(&format!("gated_activation_backward {name} [{n}, {d_ff}] {act:?}"), actual, expected);
            }
            run.same_bits(&format!("gated_activation [{n}, {d_ff}] {act:?}"), &h_alone, &h);
        }
    }
    Ok(())
}

/// In bf16, everything is computed in f32 and rounded once.
pub fn gated_activation_of_bf16_is_that_of_f32_rounded(run: &mut Run) -> Result<(), Error> {
    let round = |x: &[f32]| x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
    let widen = |x: &[bf16]| x.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
    let rounded = |x: &[f32]| widen(&round(x));
    for (n, d_ff) in run.sizes(&[(3, 13), (5, 120), (2, 1032)], &[(1021, 1032), (509, 2049)]) {
        let len = n * d_ff;
        let [g, u, dh] = [round(&gates(1, len)), round(&uniform(2, len)), round(&uniform(3, len))];
        let [g_wide, u_wide, dh_wide] = [&g, &u, &dh].map(|x| widen(x));
        for act in acts() {
            let what = format!("bf16 [{n}, {d_ff}] {act:?}");
            let wide = forward(run, act, &g_wide, &u_wide, d_ff)?;
            let narrow = forward(run, act, &g, &u, d_ff)?;
            run.same_bits(&format!("gated_activation {what}"), &widen(&narrow), &rounded(&wide));
            let wide = backward(run, act, 0.01, [&dh_wide, &g_wide, &u_wide], d_ff)?;
            let narrow = backward(run, act, 0.01, [&dh, &g, &u], d_ff)?;
            for (narrow, wide) in narrow.iter().zip(&wide) {
                run.same_bits(&format!("gated_activation_backward {what}"), &widen(narrow), &rounded(wide));
            }
        }
    }
    Ok(())
}

/// With g = -1 and u = 1, h is SILU(-1) where the draw is below the threshold and 0 elsewhere: the mask itself, for 10^6 elements at each p.
pub fn the_stochastic_mask_is_that_of_the_cpu_for_a_million_elements(run: &mut Run) -> Result<(), Error> {
    let (n, d_ff) = (977, 1024);
    let (g, u) = (run.on(&vec![-1.0f32; n * d_ff])?, run.on(&vec![1.0f32; n * d_ff])?);
    let draws: Vec<u32> = (0..n * d_ff).map(|i| reference::draw16(SITE, i / d_ff, i % d_ff)).collect();
    for p in [0.0, 0.3, 0.7, 1.0] {
        let act = Activation::stochastic(p, SITE);
        let Activation::Stochastic { threshold, .. } = act else { unreachable!() };
        let mut h = run.stale(n * d_ff)?;
        gated_activation(act, g.as_slice(), u.as_slice(), d_ff, h.as_mut())?;
        let mask: Vec<bool> = h.to_vec()?.iter().map(|&h| h != 0.0).collect();
        let expected: Vec<bool> = draws.iter().map(|&draw| draw < threshold).collect();
        run.same(&format!("gated_activation p={p}: the mask [{n}, {d_ff}]"), &mask, &expected);
    }
    Ok(())
}
