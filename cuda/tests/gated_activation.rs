//! The gated activation in the interpreter: its draws are the CPU's, and so are its bits.

use cuda::Device;
use cuda::ops::Float;
use cuda::ops::gated_activation::{gated_activation, gated_activation_backward};
use cuda_testing::{bits, device, on, stale};
use half::bf16;
use kernels::testing::{ROUNDING, assert_within, uniform};
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

fn forward<T: Float>(device: &Device, act: Activation, g: &[T], u: &[T], d_ff: usize) -> Vec<T> {
    let (g, u, mut h) = (on(device, g), on(device, u), stale(device, g.len()));
    gated_activation(act, g.as_slice(), u.as_slice(), d_ff, h.as_mut()).unwrap();
    h.to_vec().unwrap()
}

/// `[dg, du, h]`.
fn backward<T: Float>(device: &Device, act: Activation, l1: f32, [dh, g, u]: [&[T]; 3], d_ff: usize) -> [Vec<T>; 3] {
    let [dh, g, u] = [dh, g, u].map(|x| on(device, x));
    let [mut dg, mut du, mut h] = [(); 3].map(|_| stale::<T>(device, g.len()));
    let (dg_s, du_s, h_s) = (dg.as_mut(), du.as_mut(), h.as_mut());
    gated_activation_backward(act, l1, dh.as_slice(), g.as_slice(), u.as_slice(), d_ff, dg_s, du_s, h_s).unwrap();
    [dg, du, h].map(|x| x.to_vec().unwrap())
}

#[test]
fn gated_activation_matches_reference() {
    let device = device();
    for (n, d_ff) in [(0, 5), (1, 1), (3, 7), (2, 8), (5, 9), (3, 100), (2, 1024), (1, 2053)] {
        let len = n * d_ff;
        let (g, u, dh) =
            (uniform(1, len).iter().map(|x| 8.0 * x).collect::<Vec<_>>(), uniform(2, len), uniform(3, len));
        for act in acts() {
            for l1 in [0.0, 0.03] {
                let what = format!("[{n}, {d_ff}] {act:?} l1={l1}");
                let h = forward(&device, act, &g, &u, d_ff);
                let [dg, du, h_again] = backward(&device, act, l1, [&dh, &g, &u], d_ff);
                assert_eq!(bits(&h), bits(&h_again), "gated_activation_backward h {what}");
                let (dg_ref, du_ref, h_ref) = reference::gated_activation_backward(act, l1, &dh, &g, &u, d_ff);
                let relative = |x: f64, k: f64| k * ROUNDING * x.abs() + f64::powi(2.0, -149);
                assert_within(&format!("gated_activation {what}"), &h, &h_ref, |i| relative(h_ref[i], VALUE + 1.0));
                assert_within(&format!("gated_activation_backward du {what}"), &du, &du_ref, |i| {
                    relative(du_ref[i], VALUE + 2.0)
                });
                let factor = |i: usize| (dh[i].abs() + l1) as f64 * u[i].abs() as f64;
                assert_within(&format!("gated_activation_backward dg {what}"), &dg, &dg_ref, |i| {
                    relative(factor(i), SLOPE) + relative(dg_ref[i], 4.0)
                });
            }
        }
    }
}

/// Special values, and every draw: where the CPU has fused multiply-adds, not a bit differs.
#[test]
fn gated_activation_has_the_bits_of_the_cpu() {
    let Ok(level) = Level::new(Isa::Avx2) else { return };
    let (device, team) = (device(), Team::serial(level));
    for (n, d_ff) in [(3, 13), (5, 120), (2, 1031)] {
        let len = n * d_ff;
        let (g, u, dh) = (gates(1, len), uniform(2, len), uniform(3, len));
        for act in acts() {
            let [mut dg, mut du, mut h] = [(); 3].map(|_| vec![0.0; len]);
            activation::gated_activation_backward(&team, act, 0.01, &dh, &g, &u, d_ff, &mut dg, &mut du, &mut h);
            let actual = backward(&device, act, 0.01, [&dh, &g, &u], d_ff);
            for (name, actual, expected) in [("dg", &actual[0], &dg), ("du", &actual[1], &du), ("h", &actual[2], &h)] {
                assert_eq!(bits(actual), bits(expected), "gated_activation_backward {name} [{n}, {d_ff}] {act:?}");
            }
            assert_eq!(bits(&forward(&device, act, &g, &u, d_ff)), bits(&h), "gated_activation [{n}, {d_ff}] {act:?}");
        }
    }
}

/// In bf16, everything is computed in f32 and rounded once.
#[test]
fn gated_activation_of_bf16_is_that_of_f32_rounded() {
    let device = device();
    let round = |x: &[f32]| x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
    let widen = |x: &[bf16]| x.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
    let rounded = |x: &[f32]| bits(&widen(&round(x)));
    for (n, d_ff) in [(3, 13), (5, 120), (2, 1032)] {
        let len = n * d_ff;
        let [g, u, dh] = [round(&gates(1, len)), round(&uniform(2, len)), round(&uniform(3, len))];
        let [g_wide, u_wide, dh_wide] = [&g, &u, &dh].map(|x| widen(x));
        for act in acts() {
            let what = format!("bf16 [{n}, {d_ff}] {act:?}");
            let wide = forward(&device, act, &g_wide, &u_wide, d_ff);
            assert_eq!(bits(&widen(&forward(&device, act, &g, &u, d_ff))), rounded(&wide), "gated_activation {what}");
            let wide = backward(&device, act, 0.01, [&dh_wide, &g_wide, &u_wide], d_ff);
            let narrow = backward(&device, act, 0.01, [&dh, &g, &u], d_ff);
            for (narrow, wide) in narrow.iter().zip(&wide) {
                assert_eq!(bits(&widen(narrow)), rounded(wide), "gated_activation_backward {what}");
            }
        }
    }
}

/// With g = -1 and u = 1, h is SILU(-1) where the draw is below the threshold and 0 elsewhere: the mask itself, for 10^6 elements at each p.
#[test]
fn the_stochastic_mask_is_that_of_the_cpu_for_a_million_elements() {
    let device = device();
    let (n, d_ff) = (977, 1024);
    let (g, u) = (on(&device, &vec![-1.0f32; n * d_ff]), on(&device, &vec![1.0f32; n * d_ff]));
    let draws: Vec<u32> = (0..n * d_ff).map(|i| reference::draw16(SITE, i / d_ff, i % d_ff)).collect();
    for p in [0.0, 0.3, 0.7, 1.0] {
        let act = Activation::stochastic(p, SITE);
        let Activation::Stochastic { threshold, .. } = act else { unreachable!() };
        let mut h = stale(&device, n * d_ff);
        gated_activation(act, g.as_slice(), u.as_slice(), d_ff, h.as_mut()).unwrap();
        for (i, (h, &draw)) in h.to_vec().unwrap().into_iter().zip(&draws).enumerate() {
            assert_eq!(
                h != 0.0,
                draw < threshold,
                "gated_activation p={p}: the mask of row {}, column {}",
                i / d_ff,
                i % d_ff
            );
        }
    }
}
