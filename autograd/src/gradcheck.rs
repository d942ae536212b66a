//! Are an op's gradients those of its formula? For the ops here, and for your own.
//!
//! [`GradCheck`] compares the tape's gradient of `sum(r * out)`, r random and fixed, with differences of a *reference*: the
//! forward formula once more, from f32 inputs to f64 results, sharing nothing with the op. Only gradients are compared; that
//! the forward's values are right is for the tests of its kernel.
//!
//! # The numbers
//!
//! Central differences `D(h) = (F(x + h) - F(x - h)) / 2h` at `h = 2^-10, 2^-11, 2^-12` are extrapolated twice (Richardson;
//! Romberg's table): the error of the result R3 is of order h^6. `x + h` is exact in f32 for the inputs of [`input`], so the
//! reference sees the very step that the quotient divides by.
//!
//! # The bound
//!
//! Nothing is tuned. With `S` the sum of the absolute values of the terms of a gradient and k the number of roundings on the
//! longest way to it, `|tape - R3|` is at most
//!
//! - rounding, `(k + 4) 2^-24 S`, that of a dot product (Higham, section 3.1);
//! - truncation, `|R3 - R2|`, where R2 is one extrapolation less, and so off by much more than R3 is;
//! - the noise of the f64 reference, `(k + 4) 2^-53 sum |r out|`, divided by the smallest step and doubled, since the
//!   coefficients of the extrapolation add up to less than 2.
//!
//! In bf16 ([`GradCheck::in_bf16`]) a product's sums are cut off, not rounded, by tensor cores: 2^-23 for 2^-24; and n roundings to bf16 on the
//! longest way to the gradient add `e^(n 2^-8) - 1` of S.
//!
//! Where truncation is more than the other two, the check fails: then the inputs are within a step of a kink, such as RELU's
//! at 0, where a difference proves nothing.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Tape, Var};
use kernels::testing::{ROUNDING, uniform};
use tensor::{DType, Device, Shape, Tensor, ops, pool};

/// Half a unit in the last place of bf16, which has eight bits.
const BF16_ROUNDING: f64 = 1.0 / (1 << 8) as f64;

/// The first of three steps, each half of the one before. For inputs of 1/8 and more a relative step of 2^-7, whose fourth
/// power, over the 4 * 5! of R2's error term, is below rounding even where a function varies as fast as `1 / x`.
const STEP: f64 = 1.0 / 1024.0;

/// Inputs with more elements are checked along two directions, if [`GradCheck::sizes`] are given: the cost of looking
/// at each element grows with the square of their number.
const EACH_ELEMENT: usize = 256;

/// For each input, the sum of the absolute values of the terms of each element's gradient, from the inputs and r.
type Sizes<'a> = dyn Fn(&[&[f32]], &[f32]) -> Vec<Vec<f64>> + 'a;

/// A check of one op, or of an expression of several. See the [module](self).
///
/// ```
/// use autograd::gradcheck::{GradCheck, input};
///
/// let square = |x: &[&[f32]]| x[0].iter().map(|&x| x as f64 * x as f64).collect();
/// GradCheck::new("square", &[input(1, [3, 5])]).roundings(2).run(|x| &x[0] * &x[0], square);
/// ```
pub struct GradCheck<'a> {
    name: &'a str,
    inputs: Vec<Tensor>,
    roundings: usize,
    sizes: Option<Box<Sizes<'a>>>,
    device: Device,
    /// n, where inputs are bf16.
    bf16_roundings: Option<usize>,
}

/// An input fit for a check: reproducible values in `-1.125 ..= 1.125`, at least 1/8 away from 0, on a grid of 2^-23.
pub fn input(seed: u64, shape: impl Into<Shape>) -> Tensor {
    let shape = shape.into();
    let mut values = uniform(seed, shape.elements());
    values.iter_mut().filter(|x| x.abs() < 0.125).for_each(|x| *x += 0.125f32.copysign(*x));
    Tensor::from_slice(&values, shape)
}

/// r: the weights of the results in the sum whose gradient is checked. A reference that adds a term of its own to that sum
/// divides it by the weight of the result that it puts it in.
pub(crate) fn weights_of_results(results: usize) -> Vec<f32> {
    uniform(0x5EED, results)
}

impl<'a> GradCheck<'a> {
    /// A check of `name` at these inputs; what is not differentiated (tokens, tables) stays with the closures of
    /// [`run`](GradCheck::run).
    pub fn new(name: &'a str, inputs: &[Tensor]) -> Self {
        GradCheck {
            name,
            inputs: inputs.to_vec(),
            roundings: 0,
            sizes: None,
            device: Device::Cpu,
            bf16_roundings: None,
        }
    }

    /// Sets k: the most terms that are summed on the way to a gradient, and what functions such as exp add, in roundings.
    pub fn roundings(self, k: usize) -> Self {
        GradCheck { roundings: k, ..self }
    }

    /// Says how S is computed: needed where terms cancel inside the backward, as in a softmax. Without it S is the sum over
    /// the results of `|r| |d result / d input|`, from the differences.
    pub fn sizes(self, sizes: impl Fn(&[&[f32]], &[f32]) -> Vec<Vec<f64>> + 'a) -> Self {
        GradCheck { sizes: Some(Box::new(sizes)), ..self }
    }

    /// Puts the inputs on a device. Tensors that the closures keep must be there too.
    pub fn on(self, device: &Device) -> Self {
        GradCheck { device: device.clone(), ..self }
    }

    /// Rounds the inputs to bf16, which then is their type, and sets n: the most roundings to bf16 on the way to a gradient, that of its own
    /// result and of r among them. Where the op gives bf16, r is rounded too. For a GPU: see [`on`](GradCheck::on).
    pub fn in_bf16(self, n: usize) -> Self {
        let rounded = |x: &Tensor| ops::cast(&ops::cast(x, DType::Bf16), DType::F32);
        GradCheck { bf16_roundings: Some(n), inputs: self.inputs.iter().map(rounded).collect(), ..self }
    }

    /// Runs the op on every choice of inputs whose gradient is wanted; then twice into the same [`Gradients`].
    /// Panics with the name, the input and the element if a gradient is not that of the reference.
    ///
    /// Turns on NaN in recycled memory ([`pool::set_poison`]), so that what a kernel forgot to write shows.
    #[track_caller]
    pub fn run(&self, forward: impl for<'t> Fn(&[Var<'t>]) -> Var<'t>, reference: impl Fn(&[&[f32]]) -> Vec<f64>) {
        pool::set_poison(true);
        let values: Vec<Vec<f32>> = self.inputs.iter().map(to_vec).collect();
        let values: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
        let out = reference(&values);
        let r = weights_of_results(out.len());
        let tape = |wanted: &dyn Fn(usize) -> bool, grads: &mut Gradients| self.gradients(&forward, &r, wanted, grads);

        let once = tape(&|_| true, &mut Gradients::default());
        let mut grads = Gradients::default();
        tape(&|_| true, &mut grads);
        let twice = tape(&|_| true, &mut grads);

        let sizes = self.sizes.as_ref().map(|sizes| sizes(&values, &r));
        let results = out.iter().zip(&r).map(|(o, &r)| (o * r as f64).abs()).sum::<f64>();
        let noise = (self.roundings + 4) as f64 * f64::EPSILON / 2.0 * results * 2.0 / (STEP / 4.0);
        for i in 0..values.len() {
            let sizes = sizes.as_ref().map(|sizes| sizes[i].as_slice());
            for (place, direction) in directions(i, &once[i], sizes.is_some()) {
                let slope = Slope::new(&values, i, &direction, &r, &reference);
                let size = sizes.map_or(slope.size, |sizes| direction.iter().map(|&(e, _)| sizes[e]).sum());
                let along = |g: &[f32]| direction.iter().map(|&(e, sign)| g[e] as f64 * sign).sum::<f64>();
                let what = format!("{}: the gradient of input {i} {}, {place}", self.name, self.inputs[i].shape());
                self.compare(&what, &slope, size, noise, [along(&once[i]), along(&twice[i])]);
            }
        }
        self.check_subsets(&once, tape);
    }

    /// Panics unless the tape's slopes, after one backward and after two, are that of the differences.
    #[track_caller]
    fn compare(&self, what: &str, slope: &Slope, size: f64, noise: f64, tape: [f64; 2]) {
        let truncation = slope.truncation;
        for (passes, tape) in [1, 2].into_iter().zip(tape) {
            let times = passes as f64;
            let mut rounding = (passes * self.roundings + 4) as f64 * ROUNDING * times * size + times * noise;
            if let Some(n) = self.bf16_roundings {
                // The sum of two passes is rounded once more.
                let of_bf16 = ((n + passes - 1) as f64 * BF16_ROUNDING).exp_m1();
                rounding = 2.0 * rounding + of_bf16 * times * size;
            }
            let kink = truncation > rounding;
            assert!(
                !kink,
                "{what}: a kink within the step: {truncation:.3e} of truncation, {rounding:.3e} of rounding"
            );
            let expected = times * slope.value;
            let (off, bound) = ((tape - expected).abs(), rounding + times * truncation);
            assert!(
                off <= bound,
                "{what}, after {passes} backward: {tape:.8e}, by differences {expected:.8e}: off by {off:.3e}, bound {bound:.3e}"
            );
        }
    }

    /// With some inputs constant, the gradients of the others keep their bits, and the constants get none.
    #[track_caller]
    fn check_subsets(&self, all: &[Vec<f32>], tape: impl Fn(&dyn Fn(usize) -> bool, &mut Gradients) -> Vec<Vec<f32>>) {
        for subset in 1..(1usize << all.len()) - 1 {
            let wanted = |i: usize| subset >> i & 1 == 1;
            for (i, g) in tape(&wanted, &mut Gradients::default()).iter().enumerate() {
                let expected: &[f32] = if wanted(i) { &all[i] } else { &[] };
                let bits = |g: &[f32]| g.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                let names = (0..all.len()).filter(|&i| wanted(i)).collect::<Vec<_>>();
                assert!(
                    bits(g) == bits(expected),
                    "{}: the gradient of input {i} is another when only inputs {names:?} are leaves",
                    self.name
                );
            }
        }
    }

    /// The tape's gradients of `sum(r * out)`, on top of `grads`; of an input that is not wanted, nothing.
    #[track_caller]
    fn gradients(
        &self,
        forward: &impl for<'t> Fn(&[Var<'t>]) -> Var<'t>,
        r: &[f32],
        wanted: &dyn Fn(usize) -> bool,
        grads: &mut Gradients,
    ) -> Vec<Vec<f32>> {
        let tape = Tape::new();
        let var = |(i, x): (usize, &Tensor)| if wanted(i) { tape.leaf(x.clone()) } else { tape.constant(x.clone()) };
        let there = |x: &Tensor| x.to_device(&self.device).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        let dtype = if self.bf16_roundings.is_some() { DType::Bf16 } else { DType::F32 };
        let inputs: Vec<Tensor> = self.inputs.iter().map(|x| ops::cast(&there(x), dtype)).collect();
        let inputs: Vec<Var> = inputs.iter().enumerate().map(var).collect();
        let out = forward(&inputs);
        let elements = out.value().elements();
        assert_eq!(elements, r.len(), "{}: the reference gives {} results, the op {elements}", self.name, r.len());
        weighted_sum(&out, there(&Tensor::from_slice(r, out.value().shape()))).backward(grads);
        let gradient = |(i, x): (usize, &Var)| {
            let g = grads.get(x).map(to_vec);
            assert!(
                g.is_some() == wanted(i),
                "{}: input {i} is wanted: {}; has a gradient: {}",
                self.name,
                wanted(i),
                g.is_some()
            );
            g.unwrap_or_default()
        };
        inputs.iter().enumerate().map(gradient).collect()
    }
}

/// The directions along which input `i` is checked, with what to call them. Each names elements, with a sign.
fn directions(i: usize, gradient: &[f32], has_sizes: bool) -> Vec<(String, Vec<(usize, f64)>)> {
    if !has_sizes || gradient.len() <= EACH_ELEMENT {
        return (0..gradient.len()).map(|e| (format!("element {e}"), vec![(e, 1.0)])).collect();
    }
    // One that the tape cannot foresee, and the one where errors of a common factor add up.
    let random = uniform(0xD1 + i as u64, gradient.len());
    [("along a random direction", random.as_slice()), ("along its signs", gradient)]
        .map(|(name, signs)| {
            (name.to_string(), signs.iter().map(|&s| 1f64.copysign(s as f64)).enumerate().collect::<Vec<_>>())
        })
        .to_vec()
}

/// What differences say about `sum(r * reference)` along a direction.
struct Slope {
    /// R3.
    value: f64,
    /// `|R3 - R2|`, summed over the results.
    truncation: f64,
    /// The sum over the results of `|r slope|`.
    size: f64,
}

impl Slope {
    /// Moves the elements of input `i` that `direction` names, each by a sign times the step.
    #[track_caller]
    fn new(
        values: &[&[f32]],
        i: usize,
        direction: &[(usize, f64)],
        r: &[f32],
        reference: &impl Fn(&[&[f32]]) -> Vec<f64>,
    ) -> Slope {
        let at = |step: f64| {
            let mut x = values[i].to_vec();
            for &(element, sign) in direction {
                let to = x[element] as f64 + sign * step;
                x[element] = to as f32;
                assert!(x[element] as f64 == to, "gradcheck: input {i}, element {element}: {to} is not exact in f32");
            }
            let mut values = values.to_vec();
            values[i] = &x;
            reference(&values)
        };
        let [d1, d2, d3] = [STEP, STEP / 2.0, STEP / 4.0]
            .map(|h| at(h).iter().zip(at(-h)).map(|(above, below)| (above - below) / (2.0 * h)).collect::<Vec<f64>>());
        let mut slope = Slope { value: 0.0, truncation: 0.0, size: 0.0 };
        for (j, &r) in r.iter().enumerate() {
            let (r2_wide, r2) = ((4.0 * d2[j] - d1[j]) / 3.0, (4.0 * d3[j] - d2[j]) / 3.0);
            let r3 = (16.0 * r2 - r2_wide) / 15.0;
            slope.value += r as f64 * r3;
            slope.truncation += (r as f64 * (r3 - r2)).abs();
            slope.size += (r as f64 * r3).abs();
        }
        slope
    }
}

/// `sum(r * x)`, whose gradient for x is r: the check's own, so that it does not lean on the ops that it checks.
struct WeightedSum {
    r: Tensor,
    x_slot: Option<Slot>,
}

fn weighted_sum<'t>(x: &Var<'t>, r: Tensor) -> Var<'t> {
    let y = ops::sum(&ops::mul(&ops::cast(x.value(), DType::F32), &r));
    x.tape().record("weighted_sum", y, &[x], || WeightedSum { r, x_slot: x.slot })
}

impl Op for WeightedSum {
    fn name(&self) -> &'static str {
        "weighted_sum"
    }

    /// `dx = dy r`.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        grads.add(self.x_slot, ops::scale(dy.item(), &self.r));
    }
}

fn to_vec(x: &Tensor) -> Vec<f32> {
    ops::cast(x, DType::F32).to_vec().unwrap_or_else(|e| panic!("gradcheck: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// The message with which `f` panics.
    fn panic_message(f: impl FnOnce()) -> String {
        let payload = catch_unwind(AssertUnwindSafe(f)).expect_err("gradcheck: a wrong gradient passed");
        payload.downcast_ref::<String>().cloned().unwrap_or_default()
    }

    /// `factor x` with a backward that is off by a part in 100,000.
    struct Wrong {
        x_slot: Option<Slot>,
    }

    impl Op for Wrong {
        fn name(&self) -> &'static str {
            "wrong"
        }
        fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
            grads.add(self.x_slot, ops::scale(1.00001, &dy));
        }
    }

    fn wrong<'t>(x: &Var<'t>) -> Var<'t> {
        x.tape().record("wrong", x.value().clone(), &[x], || Wrong { x_slot: x.slot })
    }

    #[test]
    fn gradcheck_finds_an_error_of_1e_5_in_an_element_and_along_a_direction() {
        let identity = |x: &[&[f32]]| x[0].iter().map(|&x| x as f64).collect();
        let check = GradCheck::new("wrong", &[input(1, [2, 3])]);
        let message = panic_message(|| check.run(|x| wrong(&x[0]), identity));
        assert!(message.starts_with("wrong: the gradient of input 0 [2, 3], element 0, after 1 backward"), "{message}");
        let check =
            GradCheck::new("wrong", &[input(1, [300])]).sizes(|_, r| vec![r.iter().map(|r| r.abs() as f64).collect()]);
        let message = panic_message(|| check.run(|x| wrong(&x[0]), identity));
        assert!(message.starts_with("wrong: the gradient of input 0 [300], along"), "{message}");
    }

    #[test]
    fn gradcheck_refuses_a_kink() {
        let x = Tensor::from_slice(&[0.5f32, 1.0 / 2048.0], [2]);
        let relu = |x: &[&[f32]]| x[0].iter().map(|&x| (x as f64).max(0.0)).collect();
        let message = panic_message(|| GradCheck::new("relu", &[x]).run(|x| x[0].relu(), relu));
        assert!(message.contains("element 1: a kink within the step"), "{message}");
    }
}
