//! AdamW in one pass.

use crate::Team;
use crate::elementwise::ELEMENTS_PER_TASK;
use crate::simd::map::spans;
use crate::simd::{Kernel, Simd};
use crate::team::SharedMut;

/// The numbers of one AdamW step (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay; 0 for norms and embeddings.
    pub weight_decay: f32,
    /// Number of this step, from 1: for the bias corrections.
    pub step: u32,
}

/// The factor that clips a gradient: `min(1, max_norm / sqrt(squares))` (Pascanu et al., arXiv 1211.5063), rounded once; 1 if `max_norm` is 0.
/// `squares` is the sum of the squares of the gradient. NaN, with which [`adamw`] changes nothing, unless that and the loss are finite.
pub fn clip_factor(squares: f64, loss: f64, max_norm: f64) -> f32 {
    let norm = squares.sqrt();
    if !(norm.is_finite() && loss.is_finite()) {
        f32::NAN
    } else if max_norm > 0.0 && norm > max_norm {
        (max_norm / norm) as f32
    } else {
        1.0
    }
}

impl AdamW {
    /// Panics if [`adamw`] does not take param, grad, m and v of these lengths, or counts no such step, on any device.
    #[track_caller]
    pub fn check(&self, [param, grad, m, v]: [usize; 4]) {
        assert!([grad, m, v] == [param; 3], "adamw: grad {grad}, m {m} and v {v} elements, param {param}");
        assert!(self.step > 0, "adamw: steps count from 1");
    }
}

/// With `g' = grad_scale g`: `m = beta1 m + (1 - beta1) g'`, `v = beta2 v + (1 - beta2) g'^2`,
/// `param = param (1 - lr weight_decay) - lr m^ / (sqrt(v^) + eps)`, where `m^` and `v^` are m and v over `1 - beta^step`.
/// In place, one pass. All slices have the length of `param`. `grad_scale` is the [`clip_factor`]; where that is NaN nothing changes.
///
/// Panics if a length differs or `args.step` is 0.
///
/// Accuracy: m within 4 roundings of its terms, v within 6 relative, the update within 12 relative and what the error of m
/// brings. The corrections are computed in `f64` and applied as one factor each. Cost: 28 bytes an element moved (16 read, 12
/// written). Source: arXiv 1711.05101, algorithm 2, with the bias corrections of Kingma and Ba, arXiv 1412.6980.
#[track_caller]
pub fn adamw(
    team: &Team,
    args: &AdamW,
    grad_scale: f32,
    param: &mut [f32],
    grad: &[f32],
    m: &mut [f32],
    v: &mut [f32],
) {
    args.check([param.len(), grad.len(), m.len(), v.len()]);
    if grad_scale.is_nan() {
        return;
    }
    let factors = Factors::of(args);
    let level = team.level();
    let (m, v) = (SharedMut::new(m), SharedMut::new(v));
    team.run_chunks_mut(param, ELEMENTS_PER_TASK, |task, param| {
        let first = task * ELEMENTS_PER_TASK;
        let grad = &grad[first..][..param.len()];
        // SAFETY: task t alone touches the elements of its own piece, the same in m and v as in param.
        let (m, v) = unsafe { (m.slice(first, param.len()), v.slice(first, param.len())) };
        level.dispatch(Step { factors, grad_scale, param, grad, m, v });
    });
}

/// The scalars of a step, one for each multiplication. The GPU's kernel takes them as they are.
#[derive(Clone, Copy, Debug)]
pub struct Factors {
    /// As in [`AdamW`].
    pub beta1: f32,
    /// `1 - beta1`.
    pub one_minus_beta1: f32,
    /// As in [`AdamW`].
    pub beta2: f32,
    /// `1 - beta2`.
    pub one_minus_beta2: f32,
    /// `1 - lr weight_decay`.
    pub decay: f32,
    /// `-lr / (1 - beta1^step)`.
    pub minus_step_size: f32,
    /// `1 / sqrt(1 - beta2^step)`.
    pub root_correction: f32,
    /// As in [`AdamW`].
    pub eps: f32,
}

impl Factors {
    /// Of a step; computed in `f64`.
    pub fn of(args: &AdamW) -> Factors {
        let (lr, beta1, beta2) = (args.lr as f64, args.beta1 as f64, args.beta2 as f64);
        let correction = |beta: f64| 1.0 - beta.powf(args.step as f64);
        Factors {
            beta1: args.beta1,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: args.beta2,
            one_minus_beta2: (1.0 - beta2) as f32,
            decay: (1.0 - lr * args.weight_decay as f64) as f32,
            minus_step_size: (-lr / correction(beta1)) as f32,
            root_correction: (1.0 / correction(beta2).sqrt()) as f32,
            eps: args.eps,
        }
    }
}

struct Step<'a> {
    factors: Factors,
    grad_scale: f32,
    param: &'a mut [f32],
    grad: &'a [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
}

impl Kernel for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let f = self.factors;
        for at in spans(s, self.param.len()) {
            let g = s.mul(s.splat(self.grad_scale), at.load(s, self.grad));
            let m = s.mul_add(s.splat(f.beta1), at.load(s, self.m), s.mul(s.splat(f.one_minus_beta1), g));
            let g_squared = s.mul(s.splat(f.one_minus_beta2), s.mul(g, g));
            let v = s.mul_add(s.splat(f.beta2), at.load(s, self.v), g_squared);
            let denominator = s.mul_add(s.sqrt(v), s.splat(f.root_correction), s.splat(f.eps));
            let decayed = s.mul(s.splat(f.decay), at.load(s, self.param));
            at.store(s, s.mul_add(s.splat(f.minus_step_size), s.div(m, denominator), decayed), self.param);
            at.store(s, m, self.m);
            at.store(s, v, self.v);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use crate::simd::Level;
    use crate::testing::{ROUNDING, assert_within, lengths, teams, uniform};

    const ARGS: AdamW = AdamW { lr: 3e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 7 };

    #[test]
    fn adamw_matches_reference() {
        // The usual numbers, the first step from zero moments, and a late step with a slow second moment.
        let cases = [
            (ARGS, 0.6),
            (AdamW { step: 1, weight_decay: 0.0, ..ARGS }, 1.0),
            (AdamW { step: 100_000, beta2: 0.999, eps: 1e-3, ..ARGS }, 0.6),
        ];
        for team in teams() {
            for len in lengths().chain([2 * ELEMENTS_PER_TASK + 17]) {
                for (args, grad_scale) in &cases {
                    let (param, grad) = (uniform(1, len), uniform(2, len));
                    let fresh = if args.step == 1 { 0.0 } else { 1.0 };
                    let m: Vec<f32> = uniform(3, len).iter().map(|x| fresh * x).collect();
                    let v: Vec<f32> = uniform(4, len).iter().map(|x| fresh * x.abs()).collect();
                    let (mut param_new, mut m_new, mut v_new) = (param.clone(), m.clone(), v.clone());
                    adamw(&team, args, *grad_scale, &mut param_new, &grad, &mut m_new, &mut v_new);

                    let (param_ref, m_ref, v_ref) = reference::adamw(args, *grad_scale, &param, &grad, &m, &v);
                    let what = format!("adamw {} len={len} step={}", team.level(), args.step);
                    // g', 1 - beta1, their product and the sum are rounded; the other term at most twice.
                    let m_bound = |i: usize| {
                        let (old, new) = (m[i] as f64 * args.beta1 as f64, grad[i] as f64 * (1.0 - args.beta1 as f64));
                        4.0 * ROUNDING * (old.abs() + new.abs())
                    };
                    assert_within(&format!("{what} m"), &m_new, &m_ref, m_bound);
                    assert_within(&format!("{what} v"), &v_new, &v_ref, |i| 6.0 * ROUNDING * v_ref[i]);
                    assert_within(&format!("{what} param"), &param_new, &param_ref, |i| {
                        let correction = |beta: f32| 1.0 - (beta as f64).powf(args.step as f64);
                        let denominator = (v_ref[i] / correction(args.beta2)).sqrt() + args.eps as f64;
                        let factor = args.lr as f64 / correction(args.beta1) / denominator;
                        // The update: the root has half of the 6 of v and its own, its correction and product, eps, the
                        // quotient, the step size and the product: 10, and 2 for the sum. The decayed parameter: 4.
                        12.0 * ROUNDING * factor * m_ref[i].abs()
                            + factor * m_bound(i)
                            + 4.0 * ROUNDING * param[i].abs() as f64
                    });
                }
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let len = 3 * ELEMENTS_PER_TASK + 5;
        for level in Level::available() {
            let bits = |threads| {
                let (mut param, mut m, mut v) = (uniform(1, len), uniform(2, len), vec![0.5; len]);
                adamw(&Team::new(level, threads), &ARGS, 0.6, &mut param, &uniform(3, len), &mut m, &mut v);
                [param, m, v].concat().into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            assert!(bits(1) == bits(2) && bits(1) == bits(3), "adamw {level}: bits differ between thread counts");
        }
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        assert_eq!(clip_factor(4.0, 1.0, 1.0), 0.5, "clip_factor");
        assert_eq!([clip_factor(4.0, 1.0, 2.0), clip_factor(4.0, 1.0, 0.0), clip_factor(0.0, 1.0, 1.0)], [1.0; 3]);
        for (squares, loss) in [(f64::INFINITY, 1.0), (f64::NAN, 1.0), (1.0, f64::NAN), (1.0, f64::NEG_INFINITY)] {
            let factor = clip_factor(squares, loss, 1.0);
            assert!(factor.is_nan(), "clip_factor of {squares} and {loss}: {factor}");
            let (mut param, mut m, mut v) = ([1.0], [2.0], [3.0]);
            adamw(&Team::serial(Level::SCALAR), &ARGS, factor, &mut param, &[4.0], &mut m, &mut v);
            assert_eq!((param, m, v), ([1.0], [2.0], [3.0]), "adamw");
        }
    }

    #[test]
    #[should_panic(expected = "adamw: grad 3, m 4 and v 4 elements, param 4")]
    fn lengths_must_agree() {
        adamw(&Team::serial(Level::SCALAR), &ARGS, 1.0, &mut [0.0; 4], &[0.0; 3], &mut [0.0; 4], &mut [0.0; 4]);
    }
}
