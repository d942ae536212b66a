//! The specification of the transformer: plain scalar loops in f64, nothing shared with the kernels, no tape.
//!
//! Every number carries how far f32 arithmetic may be from it, so that a test which compares logits or losses (training's,
//! inference's, another program's) has a derived bound and none is tuned. The analysis is the probabilistic one of Higham
//! and Mary ("A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41(5), 2019): roundings are
//! independent and of mean 0, so errors add as squares and a sum of K terms loses `sqrt(K)` roundings. Worst cases that add
//! as sizes grow fiftyfold with every block, and bound nothing after the second.

use crate::{LayerNames, PsiAt, Weights, rope_frequencies};
use kernels::reference as scalar;
use kernels::testing::ROUNDING;
use kernels::{Activation, Fixed};

/// Standard deviations that a computed value may be off by: beyond six lies one value in 10^9.
const SIGMAS: f64 = 6.0;

/// A number, and how far a computation in f32 may be from it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Value {
    /// The number, in f64.
    pub exact: f64,
    /// Standard deviation of the value computed in f32; a single rounding counts with its largest size, 2^-24.
    pub sigma: f64,
}

type Row = Vec<Value>;

impl Value {
    fn new(exact: f64, sigma: f64) -> Value {
        Value { exact, sigma }
    }

    /// The bound: `|computed in f32 - exact|` is no more than this, but for a chance of 10^-9.
    pub fn bound(self) -> f64 {
        SIGMAS * self.sigma
    }
}

/// `sqrt(sum of squares)`: how independent errors add.
fn join(errors: impl IntoIterator<Item = f64>) -> f64 {
    errors.into_iter().map(|e| e * e).sum::<f64>().sqrt()
}

/// `a + b`, rounded.
fn add(a: Value, b: Value) -> Value {
    let exact = a.exact + b.exact;
    Value::new(exact, join([a.sigma, b.sigma, ROUNDING * exact.abs()]))
}

/// `a b`, rounded.
fn mul(a: Value, b: Value) -> Value {
    let exact = a.exact * b.exact;
    Value::new(exact, join([a.exact * b.sigma, b.exact * a.sigma, a.sigma * b.sigma, ROUNDING * exact.abs()]))
}

/// `sum a_i b_i` of K terms in any order: the errors of the terms, and `sqrt(K + 4) 2^-24` of the sum of sizes.
fn dot(pairs: impl Iterator<Item = (Value, Value)>) -> Value {
    let (mut exact, mut variance, mut sizes, mut k) = (0.0, 0.0, 0.0, 0);
    for (a, b) in pairs {
        exact += a.exact * b.exact;
        variance += (a.exact * b.sigma).powi(2) + (b.exact * a.sigma).powi(2) + (a.sigma * b.sigma).powi(2);
        sizes += (a.exact * b.exact).abs();
        k += 1;
    }
    Value::new(exact, join([variance.sqrt(), f64::from(k + 4).sqrt() * ROUNDING * sizes]))
}

/// The parameters of a model in f64, to be read by the formulas and changed by finite differences.
pub struct Reference {
    config: crate::Config,
    /// Relative error of what the products with weights read: 0, or that of rounding to bf16.
    operand_rounding: f64,
    /// In the fixed order of [`parameter_specs`](crate::parameter_specs), row-major.
    pub parameters: Vec<Vec<f64>>,
}

impl Reference {
    /// From the parameters of a model. Panics if they lie on a GPU that fails.
    pub fn new(weights: &Weights) -> Reference {
        let f64s = |t: &tensor::Tensor| {
            let f32s = t.to_vec::<f32>().unwrap_or_else(|e| panic!("Reference: {e}"));
            f32s.into_iter().map(f64::from).collect()
        };
        let parameters = weights.tensors().iter().map(f64s).collect();
        Reference { config: weights.config().clone(), operand_rounding: 0.0, parameters }
    }

    /// The same, with bounds for a computation that rounds activations to bf16 (8 bits: a relative error of 2^-8 at most) before it
    /// multiplies them with weights. The weights must be bf16 already.
    pub fn with_bf16_products(self) -> Reference {
        Reference { operand_rounding: f64::powi(2.0, -8), ..self }
    }

    /// What the LM head reads, `[T][C]`, for one sequence from position 0. Its first token is `psi.first_token` of the step.
    pub fn hidden(&self, tokens: &[u32], psi: PsiAt) -> Vec<Vec<Value>> {
        self.blocks(tokens, psi, |_| ())
    }

    /// [`hidden`](Reference::hidden); `see` is shown h of each layer.
    fn blocks(&self, tokens: &[u32], psi: PsiAt, mut see: impl FnMut(&[Row])) -> Vec<Row> {
        let c = &self.config;
        let embedding = |&token: &u32| {
            let row = &self.parameters[0][token as usize * c.d_model..][..c.d_model];
            row.iter().map(|&x| Value::new(x, 0.0)).collect()
        };
        let mut x: Vec<Row> = tokens.iter().map(embedding).collect();
        for layer in 0..c.n_layers {
            let at = LayerNames::new(layer);
            let n = self.rms_norm(&x, at.input_layernorm);
            x = add_rows(&x, &self.attention(&n, at));
            let n = self.rms_norm(&x, at.post_attention_layernorm);
            let h = self.latent(&n, at, layer, psi);
            see(&h);
            x = add_rows(&x, &self.linear(&h, at.down_proj));
        }
        // The last norm follows the layers in the fixed order, where one more layer would begin.
        self.rms_norm(&x, LayerNames::new(c.n_layers).input_layernorm)
    }

    /// For each layer, the mean of `|h|` over tokens and neurons: what an L1 penalty adds to the loss, over its factor.
    pub fn mean_latents(&self, tokens: &[u32], psi: PsiAt) -> Vec<f64> {
        let mut means = Vec::new();
        self.blocks(tokens, psi, |h| {
            let sum: f64 = h.iter().flatten().map(|h| h.exact.abs()).sum();
            means.push(sum / (h.len() * self.config.d_ff) as f64);
        });
        means
    }

    /// The logits, `[T][V]`.
    pub fn logits(&self, tokens: &[u32], psi: PsiAt) -> Vec<Vec<Value>> {
        let lm_head = if self.config.tie_embeddings { 0 } else { self.parameters.len() - 1 };
        self.linear(&self.hidden(tokens, psi), lm_head)
    }

    /// The cross-entropy of `targets` after `tokens`, summed over positions, in nats.
    pub fn loss(&self, tokens: &[u32], targets: &[u32], psi: PsiAt) -> Value {
        let mut loss = Value::new(0.0, 0.0);
        for (z, &target) in self.logits(tokens, psi).iter().zip(targets) {
            let max = z.iter().map(|z| z.exact).fold(f64::NEG_INFINITY, f64::max);
            let log_sum = max + z.iter().map(|z| (z.exact - max).exp()).sum::<f64>().ln();
            loss.exact += log_sum - z[target as usize].exact;
            // d loss = sum (softmax(z) - onehot(target)) dz; then the roundings that lm_head_loss states. The errors of
            // positions depend on each other: their sizes are added.
            let slope = |(j, z): (usize, &Value)| (z.exact - log_sum).exp() - f64::from(j == target as usize);
            let moved = join(z.iter().enumerate().map(|(j, z)| slope((j, z)) * z.sigma));
            let size = z.iter().fold(0f64, |size, z| size.max(z.exact.abs()));
            loss.sigma += join([moved, (2.0 * size + z.len() as f64 + 4.0) * ROUNDING]);
        }
        loss
    }

    /// `y = x W^T`.
    fn linear(&self, x: &[Row], weight: usize) -> Vec<Row> {
        let product = |x: &Row, w: &[f64]| dot(x.iter().copied().zip(w.iter().map(|&w| Value::new(w, 0.0))));
        let rounded = |x: &Value| Value::new(x.exact, join([x.sigma, self.operand_rounding * x.exact]));
        let rows = |x: &Row| {
            let x: Row = x.iter().map(rounded).collect();
            self.parameters[weight].chunks(x.len()).map(|w| product(&x, w)).collect()
        };
        x.iter().map(rows).collect()
    }

    /// `y = x r weight`, `r = 1 / sqrt(mean(x^2) + eps)`.
    fn rms_norm(&self, x: &[Row], gain: usize) -> Vec<Row> {
        let (c, eps) = (self.config.d_model as f64, self.config.norm_eps as f64);
        let normalised = |row: &Row| -> Row {
            let mean = row.iter().map(|x| x.exact * x.exact).sum::<f64>() / c + eps;
            let mean_sigma = join(row.iter().map(|x| 2.0 * x.exact * x.sigma)) / c;
            // dr / r = -dm / 2m; half of a sum of C terms, and the roundings of the division and the root.
            let r = Value::new(1.0, join([mean_sigma / mean / 2.0, (c / 4.0 + 4.0).sqrt() * ROUNDING]));
            let gained = |(x, &w): (&Value, &f64)| mul(mul(*x, r), Value::new(w / mean.sqrt(), 0.0));
            row.iter().zip(&self.parameters[gain]).map(gained).collect()
        };
        x.iter().map(normalised).collect()
    }

    /// `O softmax(rope(Q x) rope(K x)^T / sqrt(D)) V x`, causal; query head h reads key-value head `h / (H / K)`.
    fn attention(&self, x: &[Row], at: LayerNames) -> Vec<Row> {
        let c = &self.config;
        let (d, group) = (c.head_dim, c.n_heads / c.n_kv_heads);
        let (q, k) = (self.rope(self.linear(x, at.q_proj)), self.rope(self.linear(x, at.k_proj)));
        let v = self.linear(x, at.v_proj);
        let mix = |t: usize| -> Row { (0..c.n_heads).flat_map(|h| head(d, &q[t], &k, &v, t, h, h / group)).collect() };
        self.linear(&(0..x.len()).map(mix).collect::<Vec<_>>(), at.o_proj)
    }

    /// Turns the pairs `(i, i + D/2)` of each head by `t f_i`.
    fn rope(&self, mut x: Vec<Row>) -> Vec<Row> {
        let frequencies = rope_frequencies(&self.config);
        let half = frequencies.len();
        for (t, row) in x.iter_mut().enumerate() {
            for head in row.chunks_mut(2 * half) {
                for (i, f) in frequencies.iter().enumerate() {
                    let (sin, cos) = (t as f64 * f).sin_cos();
                    let (a, b) = (head[i], head[i + half]);
                    // Both numbers of the table are rounded.
                    let (minus, cos, sin) =
                        (Value::new(-sin, ROUNDING), Value::new(cos, ROUNDING), Value::new(sin, ROUNDING));
                    let turned = |a: Value, b: Value, sin: Value| dot([(a, cos), (b, sin)].into_iter());
                    (head[i], head[i + half]) = (turned(a, b, minus), turned(b, a, sin));
                }
            }
        }
        x
    }

    /// `h = psi(W1 x) * (W3 x)`.
    fn latent(&self, x: &[Row], at: LayerNames, layer: usize, psi: PsiAt) -> Vec<Row> {
        let act = psi.layer(layer);
        let (g, u) = (self.linear(x, at.gate_proj), self.linear(x, at.up_proj));
        (0..x.len())
            .map(|row| {
                let gated = |(column, (g, u)): (usize, (&Value, &Value))| {
                    let (exact, _) = scalar::activation(act, row, column, g.exact);
                    // The branches of a psi meet at 0. A value is within 5 ULP, 10 roundings.
                    let slope = slope(act, g.exact.abs() + g.bound());
                    mul(Value::new(exact, join([slope * g.sigma, 10.0 * ROUNDING * exact])), *u)
                };
                g[row].iter().zip(&u[row]).enumerate().map(gated).collect()
            })
            .collect()
    }
}

/// A bound of `|psi'|` up to `|x|`, over all branches: 1.13 is the largest of gelu's, and of the others but relu2's `2 x`.
fn slope(act: Activation, x: f64) -> f64 {
    let squares = match act {
        Activation::Stochastic { negative, .. } => negative.contains(&Fixed::Relu2),
        act => act == Activation::Relu2,
    };
    if squares { f64::max(1.13, 2.0 * x) } else { 1.13 }
}

/// Head `h` of query `t` over keys `0 ..= t` of key-value head `kv`.
fn head(d: usize, q: &Row, k: &[Row], v: &[Row], t: usize, h: usize, kv: usize) -> Row {
    let scale = Value::new(1.0 / (d as f64).sqrt(), ROUNDING / (d as f64).sqrt());
    let (q, kv) = (&q[h * d..][..d], kv * d..(kv + 1) * d);
    let visible = t + 1;
    let pairs = |s: usize| q.iter().copied().zip(k[s][kv.clone()].iter().copied());
    let scores: Row = (0..visible).map(|s| mul(dot(pairs(s)), scale)).collect();
    let max = scores.iter().map(|s| s.exact).fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|s| (s.exact - max).exp()).sum();

    // A probability is off by the errors of its score and of the others, and by the roundings of the online softmax, which
    // the tests of kernels::attention count: four of a difference of two scores, two of the logarithm of the length, ten for
    // each block of keys (of two ULP at most), one for each term of the sum, and a few more.
    let error = scores.iter().map(|s| s.sigma).fold(0.0, f64::max);
    let size = |s| scale.exact * pairs(s).map(|(q, k)| (q.exact * k.exact).abs()).sum::<f64>();
    let largest = (0..visible).map(size).fold(0.0, f64::max);
    let (len, blocks) = (visible as f64, visible.div_ceil(64) as f64);
    let rounded = join([2.0 * 2.0 * largest, 2.0 * len.ln(), 4.0 * (10.0 * blocks).sqrt(), len.sqrt(), 4.0]);
    let relative = join([2.0 * error, rounded * ROUNDING]);
    let probability = |s: &Value| (s.exact - max).exp() / sum;
    let p: Row = scores.iter().map(|s| Value::new(probability(s), relative * probability(s))).collect();
    kv.map(|i| dot((0..visible).map(|s| (p[s], v[s][i])))).collect()
}

fn add_rows(a: &[Row], b: &[Row]) -> Vec<Row> {
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(&a, &b)| add(a, b)).collect()).collect()
}
