//! Attention of many queries, forward and backward, in f32 and on tensor cores, against the reference.

use crate::Run;
use cuda::ops::Float;
use cuda::ops::attention::{AttentionSaved, attention, attention_backward};
use cuda::{Buffer, Error, SliceMut};
use half::bf16;
use kernels::attention::AttentionShape;
use kernels::testing::{ROUNDING, underflow_bound, uniform};
use kernels::{Beta, Weight, reference};

/// Half a unit in the last place of bf16, which has eight bits.
const BF16_ROUNDING: f64 = 1.0 / (1 << 8) as f64;

/// What an element type adds to the bounds.
trait Rounded: Float + Weight {
    /// `f32` or `bf16`.
    const TYPE: &'static str = <Self as Float>::NAME;
    /// Of each sum of products, for each term: tensor cores cut off where f32 rounds.
    const SUM: f64;
    /// Of each number that is rounded to the type.
    const UNIT: f64;
}
impl Rounded for f32 {
    const SUM: f64 = ROUNDING;
    const UNIT: f64 = 0.0;
}
impl Rounded for bf16 {
    const SUM: f64 = 2.0 * ROUNDING;
    const UNIT: f64 = BF16_ROUNDING;
}

/// Inputs that the type holds exactly, and what they give.
struct Case {
    shape: AttentionShape,
    scale: f32,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    d_out: Vec<f32>,
    out: Vec<f64>,
    lse: Vec<f64>,
    gradients: [Vec<f64>; 3],
    abs: reference::AttentionAbs,
}

fn rounded<T: Weight>(x: &[f32]) -> Vec<T> {
    x.iter().map(|&x| T::round(x)).collect()
}

fn all_rounded<T: Rounded, const N: usize>(run: &Run, all: [&[f32]; N]) -> Result<[Buffer<T>; N], Error> {
    let all = all.map(rounded::<T>);
    run.all_on(all.each_ref().map(Vec::as_slice))
}

fn wide<T: Weight>(x: &[T]) -> Vec<f32> {
    x.iter().map(|x| x.widen()).collect()
}

fn shape(batch: usize, [q_len, kv_len]: [usize; 2], heads: [usize; 2], head_dim: usize) -> AttentionShape {
    AttentionShape { batch, q_len, kv_len, n_heads: heads[0], n_kv_heads: heads[1], head_dim }
}

impl Case {
    /// `size` multiplies q, and so the scores.
    fn new<T: Weight>(shape: AttentionShape, size: f32) -> Case {
        let of = |seed, len, size: f32| {
            wide(&rounded::<T>(&uniform(seed, len).iter().map(|x| x * size).collect::<Vec<_>>()))
        };
        let (q, d_out) = (of(1, shape.q_elements(), size), of(4, shape.q_elements(), 1.0));
        let (k, v) = (of(2, shape.kv_elements(), 1.0), of(3, shape.kv_elements(), 1.0));
        let scale = 1.0 / (shape.head_dim as f32).sqrt();
        let (out, lse) = reference::attention(shape, scale, &q, &k, &v);
        let (dq, dk, dv) = reference::attention_backward(shape, scale, &q, &k, &v, &d_out);
        let abs = reference::attention_abs(shape, scale, &q, &k, &v, &d_out);
        Case { shape, scale, q, k, v, d_out, out, lse, gradients: [dq, dk, dv], abs }
    }

    fn forward<T: Rounded>(&self, run: &Run) -> Result<(Vec<f32>, Vec<f32>), Error> {
        let [q, k, v] = all_rounded::<T, 3>(run, [&self.q, &self.k, &self.v])?;
        let (mut out, mut lse) = (run.stale::<T>(q.len())?, run.stale(self.lse.len())?);
        let to = (out.as_mut(), lse.as_mut());
        attention(self.shape, self.scale, q.as_slice(), k.as_slice(), v.as_slice(), to.0, to.1)?;
        Ok((wide(&out.to_vec()?), lse.to_vec()?))
    }

    /// From the forward of the reference, rounded; into `old` or, with [`Beta::Zero`], what nobody wrote.
    fn backward<T: Rounded>(&self, run: &Run, old: Option<&[Vec<f32>; 3]>) -> Result<[Vec<f32>; 3], Error> {
        let out: Vec<f32> = self.out.iter().map(|&x| x as f32).collect();
        let lse = run.on(&self.lse.iter().map(|&x| x as f32).collect::<Vec<_>>())?;
        let [q, k, v, out, d_out] = all_rounded::<T, 5>(run, [&self.q, &self.k, &self.v, &out, &self.d_out])?;
        let saved = AttentionSaved {
            q: q.as_slice(),
            k: k.as_slice(),
            v: v.as_slice(),
            out: out.as_slice(),
            lse: lse.as_slice(),
        };
        let (beta, mut gradients): (Beta, [Buffer<T>; 3]) = match old {
            Some(old) => (Beta::One, all_rounded(run, old.each_ref().map(Vec::as_slice))?),
            None => (Beta::Zero, [run.stale(q.len())?, run.stale(k.len())?, run.stale(v.len())?]),
        };
        let [dq, dk, dv]: [SliceMut<T>; 3] = gradients.each_mut().map(Buffer::as_mut);
        attention_backward(self.shape, self.scale, saved, d_out.as_slice(), beta, dq, dk, dv)?;
        let [dq, dk, dv] = gradients;
        Ok([wide(&dq.to_vec()?), wide(&dk.to_vec()?), wide(&dv.to_vec()?)])
    }

    /// The largest relative error of a probability: that of the CPU's test (kernels/src/attention/tests.rs), with blocks of 32 keys, and dots of
    /// the type.
    fn probability_error<T: Rounded>(&self) -> f64 {
        let (score, kv_len) = (self.abs.score, self.shape.kv_len as f64);
        let score_error = (self.shape.head_dim + 5) as f64 * T::SUM * score;
        let blocks = (kv_len / 32.0).ceil();
        let first_order =
            2.0 * score_error + (8.0 * score + 2.0 * kv_len.ln() + 10.0 * blocks + kv_len + 12.0) * ROUNDING;
        first_order.exp_m1()
    }

    /// Forward and backward, both betas, and each twice: the interpreter takes threads and blocks in another order each time, as a card may.
    fn check<T: Rounded>(&self, run: &mut Run) -> Result<(), Error> {
        let Case { shape, abs, .. } = self;
        let what = format!("{} {shape:?} score {:.1}", T::TYPE, abs.score);
        let p_error = self.probability_error::<T>();
        let (out, lse) = self.forward::<T>(run)?;
        // A dot of the probabilities, each rounded to the type, with a column of V; then the result is rounded.
        let out_error = (1.0 + p_error) * (1.0 + T::UNIT) * (1.0 + (shape.kv_len + 4) as f64 * T::SUM) - 1.0;
        run.within(&format!("attention {what} out"), &out, &self.out, |i| {
            let error = out_error * abs.out[i] + underflow_bound(shape.kv_len, 1.0);
            error + T::UNIT * (self.out[i].abs() + error)
        });
        run.within(&format!("attention {what} lse"), &lse, &self.lse, |i| {
            p_error + 3.0 * ROUNDING * (self.lse[i].abs() + abs.score)
        });
        let again = self.forward::<T>(run)?;
        run.same_bits(&format!("attention {what} out: from run to run"), &again.0, &out);
        run.same_bits(&format!("attention {what} lse: from run to run"), &again.1, &lse);

        // dS: to the error of P add dP and delta, dots of D terms, three roundings, the rounding of out in delta, and that of dS to the type.
        let dot_error = (shape.head_dim + 12) as f64 * T::SUM;
        let ds_error = (1.0 + p_error + dot_error + T::UNIT) * (1.0 + T::UNIT) - 1.0;
        let dv_error = (1.0 + p_error) * (1.0 + T::UNIT) - 1.0;
        let queries = shape.q_len * shape.n_heads / shape.n_kv_heads;
        let terms = [shape.kv_len, queries, queries];
        let largest_q = self.q.iter().fold(1.0f64, |m, &x| m.max(x.abs() as f64));
        let old =
            [(5, &self.q), (6, &self.k), (7, &self.v)].map(|(seed, x)| wide(&rounded::<T>(&uniform(seed, x.len()))));
        for old in [None, Some(&old)] {
            let actual = self.backward::<T>(run, old)?;
            let bounds = [("dq", &abs.dq, ds_error), ("dk", &abs.dk, ds_error), ("dv", &abs.dv, dv_error)];
            for (i, (name, abs, error)) in bounds.into_iter().enumerate() {
                let before = |j: usize| old.map_or(0.0, |old| f64::from(old[i][j]));
                let sum: Vec<f64> = self.gradients[i].iter().enumerate().map(|(j, g)| g + before(j)).collect();
                let error = (1.0 + error) * (1.0 + (terms[i] + 8) as f64 * T::SUM) - 1.0;
                run.within(&format!("attention_backward {what} {name}"), &actual[i], &sum, |j| {
                    let largest = largest_q * (2.0 * shape.head_dim as f64 + 1.0);
                    let error = error * abs[j] + underflow_bound(terms[i], largest);
                    let rounding = ROUNDING * (before(j).abs() + sum[j].abs());
                    error + rounding + T::UNIT * (sum[j].abs() + error + rounding)
                });
            }
            if old.is_none() {
                let again = self.backward::<T>(run, old)?;
                for (i, (name, ..)) in bounds.into_iter().enumerate() {
                    run.same_bits(&format!("attention_backward {what} {name}: from run to run"), &again[i], &actual[i]);
                }
            }
        }
        Ok(())
    }
}

fn check_both(run: &mut Run, shape: AttentionShape, size: f32) -> Result<(), Error> {
    Case::new::<f32>(shape, size).check::<f32>(run)?;
    Case::new::<bf16>(shape, size).check::<bf16>(run)
}

pub fn attention_matches_reference_for_every_length(run: &mut Run) -> Result<(), Error> {
    for lens in [[0, 3], [1, 1], [1, 65], [2, 3], [15, 17], [63, 64], [33, 70]] {
        check_both(run, shape(1, lens, [1, 1], 16), 1.0)?;
    }
    Ok(())
}

/// Over several blocks of queries and of keys, where whole blocks are hidden.
pub fn attention_matches_reference_over_blocks(run: &mut Run) -> Result<(), Error> {
    check_both(run, shape(1, [130, 130], [1, 1], 16), 2.0)?;
    check_both(run, shape(1, [40, 139], [1, 1], 16), 2.0)?;
    for (heads, head_dim) in run.sizes(&[], &[([3, 1], 128), ([4, 2], 64)]) {
        check_both(run, shape(1, [520, 777], heads, head_dim), 1.0)?;
    }
    Ok(())
}

pub fn attention_matches_reference_for_every_grouping(run: &mut Run) -> Result<(), Error> {
    check_both(run, shape(2, [19, 23], [4, 2], 16), 1.0)?;
    check_both(run, shape(1, [19, 23], [3, 1], 16), 1.0)?;
    check_both(run, shape(1, [70, 70], [2, 1], 16), 1.0)
}

pub fn attention_matches_reference_for_every_head_dim(run: &mut Run) -> Result<(), Error> {
    for head_dim in [1, 20, 32, 48, 64, 72] {
        check_both(run, shape(1, [9, 21], [2, 1], head_dim), 1.0)?;
    }
    Ok(())
}

pub fn attention_matches_reference_for_heads_of_128(run: &mut Run) -> Result<(), Error> {
    check_both(run, shape(1, [35, 35], [2, 1], 128), 1.0)?;
    check_both(run, shape(1, [66, 67], [1, 1], 112), 1.0)
}

/// Scores of +-80 and more: without the running maximum their exponentials would overflow.
pub fn attention_is_stable_for_large_scores(run: &mut Run) -> Result<(), Error> {
    let shape = shape(1, [70, 75], [2, 1], 16);
    let largest = Case::new::<f32>(shape, 150.0).lse.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    run.holds(&format!("attention: the case is too tame, lse up to {largest}"), largest > 80.0);
    check_both(run, shape, 150.0)
}

/// A NaN in a query reaches that query's output and no other.
pub fn attention_does_not_hide_nan(run: &mut Run) -> Result<(), Error> {
    fn check<T: Rounded>(run: &mut Run) -> Result<(), Error> {
        let mut case = Case::new::<T>(shape(1, [70, 70], [1, 1], 16), 1.0);
        case.q[35 * 16 + 3] = f32::NAN;
        let (out, lse) = case.forward::<T>(run)?;
        let nan = |x: &[f32]| x.iter().map(|x| x.is_nan()).collect::<Vec<_>>();
        let expected: Vec<bool> = (0..70 * 16).map(|i| i / 16 == 35).collect();
        run.same(&format!("attention {}: NaN of out", T::TYPE), &nan(&out), &expected);
        let expected: Vec<bool> = (0..70).map(|i| i == 35).collect();
        run.same(&format!("attention {}: NaN of lse", T::TYPE), &nan(&lse), &expected);
        Ok(())
    }
    check::<f32>(run)?;
    check::<bf16>(run)
}

/// Slices that do not begin at multiples of 16 bytes have the bits of those that do.
pub fn attention_takes_operands_that_begin_anywhere(run: &mut Run) -> Result<(), Error> {
    fn check<T: Rounded>(run: &mut Run) -> Result<(), Error> {
        let case = Case::new::<T>(shape(1, [9, 12], [2, 1], 16), 1.0);
        let (out, lse) = case.forward::<T>(run)?;
        let at = |x: &[f32], from: usize| run.on(&[vec![T::round(f32::NAN); from], rounded(x)].concat());
        let (q, k, v) = (at(&case.q, 1)?, at(&case.k, 3)?, at(&case.v, 2)?);
        let (mut out_at, mut lse_at) = (run.stale::<T>(out.len() + 1)?, run.stale(lse.len())?);
        let [q, k, v] = [(&q, 1), (&k, 3), (&v, 2)].map(|(x, from)| x.as_slice().part(from..x.len()));
        attention(case.shape, case.scale, q, k, v, out_at.as_mut().part(1..out.len() + 1), lse_at.as_mut())?;
        let out_at = out_at.as_slice().part(1..out.len() + 1).to_vec()?;
        run.same_bits(&format!("attention {} from odd places", T::TYPE), &wide(&out_at), &out);
        run.same_bits(&format!("attention {} from odd places, lse", T::TYPE), &lse_at.to_vec()?, &lse);
        Ok(())
    }
    check::<f32>(run)?;
    check::<bf16>(run)
}
