//! Attention of many queries, forward and backward, in f32 and on tensor cores, in the interpreter, against the reference.

use cuda::ops::Float;
use cuda::ops::attention::{AttentionSaved, attention, attention_backward};
use cuda::{Buffer, Device, SliceMut};
use cuda_testing::{device, on, stale};
use half::bf16;
use kernels::attention::AttentionShape;
use kernels::testing::{ROUNDING, assert_within, underflow_bound, uniform};
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

    fn forward<T: Rounded>(&self, device: &Device) -> (Vec<f32>, Vec<f32>) {
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|x| on(device, &rounded::<T>(x)));
        let (mut out, mut lse) = (stale::<T>(device, q.len()), stale(device, self.lse.len()));
        let to = (out.as_mut(), lse.as_mut());
        attention(self.shape, self.scale, q.as_slice(), k.as_slice(), v.as_slice(), to.0, to.1).unwrap();
        (wide(&out.to_vec().unwrap()), lse.to_vec().unwrap())
    }

    /// From the forward of the reference, rounded; into `old` or, with [`Beta::Zero`], what nobody wrote.
    fn backward<T: Rounded>(&self, device: &Device, old: Option<&[Vec<f32>; 3]>) -> [Vec<f32>; 3] {
        let out: Vec<f32> = self.out.iter().map(|&x| x as f32).collect();
        let lse = on(device, &self.lse.iter().map(|&x| x as f32).collect::<Vec<_>>());
        let [q, k, v, out, d_out] =
            [&self.q, &self.k, &self.v, &out, &self.d_out].map(|x| on(device, &rounded::<T>(x)));
        let saved = AttentionSaved {
            q: q.as_slice(),
            k: k.as_slice(),
            v: v.as_slice(),
            out: out.as_slice(),
            lse: lse.as_slice(),
        };
        let (beta, mut gradients): (Beta, [Buffer<T>; 3]) = match old {
            Some(old) => (Beta::One, old.each_ref().map(|old| on(device, &rounded(old)))),
            None => (Beta::Zero, [&q, &k, &v].map(|x| stale(device, x.len()))),
        };
        let [dq, dk, dv]: [SliceMut<T>; 3] = gradients.each_mut().map(Buffer::as_mut);
        attention_backward(self.shape, self.scale, saved, d_out.as_slice(), beta, dq, dk, dv).unwrap();
        gradients.map(|g| wide(&g.to_vec().unwrap()))
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

    /// Forward and backward, both betas, and each twice: the interpreter takes threads and blocks in another order each time.
    fn check<T: Rounded>(&self, device: &Device) {
        let Case { shape, abs, .. } = self;
        let what = format!("{} {shape:?} score {:.1}", T::TYPE, abs.score);
        let p_error = self.probability_error::<T>();
        let (out, lse) = self.forward::<T>(device);
        // A dot of the probabilities, each rounded to the type, with a column of V; then the result is rounded.
        let out_error = (1.0 + p_error) * (1.0 + T::UNIT) * (1.0 + (shape.kv_len + 4) as f64 * T::SUM) - 1.0;
        assert_within(&format!("attention {what} out"), &out, &self.out, |i| {
            let error = out_error * abs.out[i] + underflow_bound(shape.kv_len, 1.0);
            error + T::UNIT * (self.out[i].abs() + error)
        });
        assert_within(&format!("attention {what} lse"), &lse, &self.lse, |i| {
            p_error + 3.0 * ROUNDING * (self.lse[i].abs() + abs.score)
        });
        assert!((out, lse) == self.forward::<T>(device), "attention {what}: bits differ from run to run");

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
            let actual = self.backward::<T>(device, old);
            let bounds = [("dq", &abs.dq, ds_error), ("dk", &abs.dk, ds_error), ("dv", &abs.dv, dv_error)];
            for (i, (name, abs, error)) in bounds.into_iter().enumerate() {
                let before = |j: usize| old.map_or(0.0, |old| f64::from(old[i][j]));
                let sum: Vec<f64> = self.gradients[i].iter().enumerate().map(|(j, g)| g + before(j)).collect();
                let error = (1.0 + error) * (1.0 + (terms[i] + 8) as f64 * T::SUM) - 1.0;
                assert_within(&format!("attention_backward {what} {name}"), &actual[i], &sum, |j| {
                    let largest = largest_q * (2.0 * shape.head_dim as f64 + 1.0);
                    let error = error * abs[j] + underflow_bound(terms[i], largest);
                    let rounding = ROUNDING * (before(j).abs() + sum[j].abs());
                    error + rounding + T::UNIT * (sum[j].abs() + error + rounding)
                });
            }
            if old.is_none() {
                let again = self.backward::<T>(device, old);
                assert!(actual == again, "attention_backward {what}: bits differ from run to run");
            }
        }
    }
}

fn check_both(shape: AttentionShape, size: f32) {
    let device = device();
    Case::new::<f32>(shape, size).check::<f32>(&device);
    Case::new::<bf16>(shape, size).check::<bf16>(&device);
}

#[test]
fn attention_matches_reference_for_every_length() {
    for lens in [[0, 3], [1, 1], [1, 65], [2, 3], [15, 17], [63, 64], [33, 70]] {
        check_both(shape(1, lens, [1, 1], 16), 1.0);
    }
}

/// Over several blocks of queries and of keys, where whole blocks are hidden.
#[test]
fn attention_matches_reference_over_blocks() {
    check_both(shape(1, [130, 130], [1, 1], 16), 2.0);
    check_both(shape(1, [40, 139], [1, 1], 16), 2.0);
}

#[test]
fn attention_matches_reference_for_every_grouping() {
    check_both(shape(2, [19, 23], [4, 2], 16), 1.0);
    check_both(shape(1, [19, 23], [3, 1], 16), 1.0);
    check_both(shape(1, [70, 70], [2, 1], 16), 1.0);
}

#[test]
fn attention_matches_reference_for_every_head_dim() {
    for head_dim in [1, 20, 32, 48, 64, 72] {
        check_both(shape(1, [9, 21], [2, 1], head_dim), 1.0);
    }
}

#[test]
fn attention_matches_reference_for_heads_of_128() {
    check_both(shape(1, [35, 35], [2, 1], 128), 1.0);
    check_both(shape(1, [66, 67], [1, 1], 112), 1.0);
}

/// Scores of +-80 and more: without the running maximum their exponentials would overflow.
#[test]
fn attention_is_stable_for_large_scores() {
    let shape = shape(1, [70, 75], [2, 1], 16);
    let largest = Case::new::<f32>(shape, 150.0).lse.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    assert!(largest > 80.0, "the case is too tame: lse up to {largest}");
    check_both(shape, 150.0);
}

/// A NaN in a query reaches that query's output and no other.
#[test]
fn attention_does_not_hide_nan() {
    fn check<T: Rounded>() {
        let mut case = Case::new::<T>(shape(1, [70, 70], [1, 1], 16), 1.0);
        case.q[35 * 16 + 3] = f32::NAN;
        let (out, lse) = case.forward::<T>(&device());
        let nan = |x: &[f32]| x.iter().map(|x| x.is_nan()).collect::<Vec<_>>();
        assert_eq!(nan(&out), (0..70 * 16).map(|i| i / 16 == 35).collect::<Vec<_>>(), "attention {} out", T::TYPE);
        assert_eq!(nan(&lse), (0..70).map(|i| i == 35).collect::<Vec<_>>(), "attention {} lse", T::TYPE);
    }
    check::<f32>();
    check::<bf16>();
}

/// Slices that do not begin at multiples of 16 bytes have the bits of those that do.
#[test]
fn operands_may_begin_anywhere() {
    fn check<T: Rounded>() {
        let (device, case) = (device(), Case::new::<T>(shape(1, [9, 12], [2, 1], 16), 1.0));
        let (out, lse) = case.forward::<T>(&device);
        let at = |x: &[f32], from: usize| on(&device, &[vec![T::round(f32::NAN); from], rounded(x)].concat());
        let (q, k, v) = (at(&case.q, 1), at(&case.k, 3), at(&case.v, 2));
        let (mut out_at, mut lse_at) = (stale::<T>(&device, out.len() + 1), stale(&device, lse.len()));
        let [q, k, v] = [(&q, 1), (&k, 3), (&v, 2)].map(|(x, from)| x.as_slice().part(from..x.len()));
        attention(case.shape, case.scale, q, k, v, out_at.as_mut().part(1..out.len() + 1), lse_at.as_mut()).unwrap();
        let out_at = out_at.as_slice().part(1..out.len() + 1).to_vec().unwrap();
        assert!(wide(&out_at) == out && lse_at.to_vec().unwrap() == lse, "attention {} from odd places", T::TYPE);
    }
    check::<f32>();
    check::<bf16>();
}

#[test]
#[should_panic(expected = "attention: out has 15 elements for [1, 2, 1, 8]")]
fn shapes_must_fit() {
    let device = device();
    let (x, mut out, mut lse) = (on(&device, &[0.0f32; 16]), stale(&device, 15), stale(&device, 2));
    let (x, lse) = (x.as_slice(), lse.as_mut());
    let _ = attention(shape(1, [2, 2], [1, 1], 8), 1.0, x, x, x, out.as_mut(), lse);
}

#[test]
#[should_panic(expected = "attention: heads of 136, at most 128 on a GPU")]
fn heads_beyond_128_are_refused() {
    let device = device();
    let (x, mut out, mut lse) = (on(&device, &[0.0f32; 136]), stale(&device, 136), stale(&device, 1));
    let (x, lse) = (x.as_slice(), lse.as_mut());
    let _ = attention(shape(1, [1, 1], [1, 1], 136), 1.0, x, x, x, out.as_mut(), lse);
}
