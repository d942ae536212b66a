//! A weight matrix in the format that was asked for, and the products of the token path with it.

use crate::buffer::Buffer;
use crate::rows::{Parameter, Parameters, Rows};
use crate::{ActivationFormat, EngineOptions, Error, Prefill, WeightFormat};
use half::bf16;
use kernels::embedding::embedding;
use kernels::gemm::{gemm, gemm_bf16, k_block};
use kernels::gemv::{gemv, gemv_each};
use kernels::gemv_batch::{FEW_ROWS, gemv_batch};
use kernels::packed::PackedBf16;
use kernels::quant::{I8Dot, I8Product, Q4, Q8, exact_dot, gemm_i8, gemm_i8_each, i8_dot};
use kernels::row_format::widen_rows;
use kernels::sparse::{
    BatchCounts, FfnScratch, FfnWeights, FilterLine, Filtered, GateFilter, ffn_dense, ffn_dense_batch, ffn_filtered,
    ffn_sparse, ffn_sparse_batch, ffn_sparse_prompt, gate_filter_lines,
};
use kernels::{Activation, Beta, Mat, MatMut, RowFormat, Team, Weight};
use std::ops::Range;
use tensor::pool::Block;

/// Tokens up to which quantised rows are multiplied one with the other and not widened for [`gemm`] first, if x is to be kept as it is. Prompts
/// of the model 125m, one thread, tokens/s of widening and of this: q8, 4 tokens 73 and 184, 16 tokens 242 and 419, 32 tokens 421 and
/// 525, 64 tokens 667 and 620; q4 within 10 % of it; AVX2, 32 tokens, 350 and 430.
const FEW_QUANTISED: usize = 32;

/// Elements that are widened at a time: 4 MiB, which a cache of the second or third level holds until they are packed for the product.
const WIDENED_AT_ONCE: usize = 1 << 20;

/// A row-major matrix W `[rows, cols]`.
pub(crate) struct Matrix {
    rows: usize,
    cols: usize,
    elements: Elements,
}

enum Elements {
    F32(Rows<f32>),
    Bf16(Rows<bf16>),
    Bf16Packed(Rows<PackedBf16>),
    Q8(Rows<Q8>),
    Q4(Rows<Q4>),
    /// To be multiplied with activations of 8 bits.
    Q8ByI8(Rows<I8Dot<8>>),
    Q4ByI8(Rows<I8Dot<4>>),
}

/// The same expression for the elements of every format.
macro_rules! in_any_format {
    ($matrix:expr, $w:ident => $result:expr) => {
        match &$matrix.elements {
            Elements::F32($w) => $result,
            Elements::Bf16($w) => $result,
            Elements::Bf16Packed($w) => $result,
            Elements::Q8($w) => $result,
            Elements::Q4($w) => $result,
            Elements::Q8ByI8($w) => $result,
            Elements::Q4ByI8($w) => $result,
        }
    };
}

/// The same expression for the elements of three matrices, all of one format, whichever that is, or is of those that are named.
macro_rules! three_in_any_format {
    ($a:expr, $b:expr, $c:expr, $w:ident => $result:expr) => {
        three_in_any_format!($a, $b, $c, $w => $result, F32, Bf16, Bf16Packed, Q8, Q4, Q8ByI8, Q4ByI8)
    };
    ($a:expr, $b:expr, $c:expr, $w:ident => $result:expr, $($format:ident),*) => {
        match (&$a.elements, &$b.elements, &$c.elements) {
            $((Elements::$format(a), Elements::$format(b), Elements::$format(c)) => {
                let $w = [&a[..], &b[..], &c[..]];
                $result
            })*
            _ => unreachable!("matrices that are multiplied together are kept in one format, which can be multiplied so"),
        }
    };
}

impl Matrix {
    /// Parameters of rank 2 that are multiplied together, from where they are, in the format that the options name: one for all. If that is
    /// packed bf16 and one of them cannot be, all are plain bf16.
    pub fn group<const N: usize>(
        source: &impl Parameters,
        parameters: [Parameter; N],
        options: &EngineOptions,
    ) -> Result<[Matrix; N], Error> {
        let mut format = options.weights;
        let mut matrices = Vec::with_capacity(N);
        while matrices.len() < N {
            let parameter = parameters[matrices.len()];
            let elements = match (format, options.activations) {
                (WeightFormat::F32, _) => Elements::F32(source.rows(parameter)?),
                (WeightFormat::Bf16, _) => Elements::Bf16(source.rows(parameter)?),
                (WeightFormat::Bf16Packed, _) => match source.packed_rows(parameter)? {
                    Some(rows) => Elements::Bf16Packed(rows),
                    None => {
                        format = WeightFormat::Bf16;
                        matrices.clear();
                        continue;
                    }
                },
                (WeightFormat::Q8, ActivationFormat::Exact) => Elements::Q8(source.rows(parameter)?),
                (WeightFormat::Q4, ActivationFormat::Exact) => Elements::Q4(source.rows(parameter)?),
                (WeightFormat::Q8, ActivationFormat::Q8) => Elements::Q8ByI8(source.rows(parameter)?),
                (WeightFormat::Q4, ActivationFormat::Q8) => Elements::Q4ByI8(source.rows(parameter)?),
            };
            matrices.push(Matrix { rows: parameter.rows, cols: parameter.cols, elements });
        }
        Ok(matrices.try_into().unwrap_or_else(|_| unreachable!("there are N of them")))
    }

    /// Whether it is kept as packed bf16.
    pub fn is_packed(&self) -> bool {
        matches!(self.elements, Elements::Bf16Packed(_))
    }

    /// Of its elements, as they lie there.
    pub fn bytes(&self) -> &[u8] {
        in_any_format!(self, w => w.bytes())
    }

    /// `out[n, :] = W[tokens[n], :]`.
    pub fn embedding(&self, team: &Team, tokens: &[u32], out: &mut [f32]) {
        in_any_format!(self, w => embedding(team, w, tokens, self.cols, out));
    }

    /// `y = W x`. Shapes: x `[cols]`, y `[rows]`.
    pub fn gemv(&self, team: &Team, x: &[f32], y: &mut [f32]) {
        in_any_format!(self, w => gemv(team, w, x, y));
    }

    /// [`gemv`](Matrix::gemv) of three matrices of one format with the same x, bit for bit, in one run of the team.
    pub fn gemv_each(of: [&Matrix; 3], team: &Team, x: &[f32], y: [&mut [f32]; 3]) {
        let [q, k, v] = of;
        three_in_any_format!(q, k, v, w => gemv_each(team, w, x, y));
    }

    /// [`gemv`](Matrix::gemv) of each row of x, bit for bit; `Y += ..` with [`Beta::One`]. Shapes: X `[N, cols]`, Y `[N, rows]`.
    pub fn gemv_batch(&self, team: &Team, x: &[f32], n: usize, beta: Beta, y: &mut [f32]) {
        in_any_format!(self, w => gemv_batch(team, w, x, n, beta, y));
    }

    /// `Y = X W`, or `Y += X W`. Shapes: X `[N, rows]`, Y `[N, cols]`. Activations are what `prefill` says in every format.
    pub fn multiply(&self, team: &Team, prefill: Prefill, x: &[f32], beta: Beta, y: &mut [f32]) {
        let Matrix { rows, cols, .. } = *self;
        match &self.elements {
            Elements::F32(w) => product(team, prefill, x, Mat::new(w, rows, cols), beta, y),
            Elements::Bf16(w) => product(team, prefill, x, Mat::new(w, rows, cols), beta, y),
            Elements::Bf16Packed(w) => self.multiply_widened(team, prefill, w, x, beta, y),
            Elements::Q8(w) => self.multiply_widened(team, prefill, w, x, beta, y),
            Elements::Q4(w) => self.multiply_widened(team, prefill, w, x, beta, y),
            Elements::Q8ByI8(w) => self.multiply_widened(team, prefill, w, x, beta, y),
            Elements::Q4ByI8(w) => self.multiply_widened(team, prefill, w, x, beta, y),
        }
    }

    /// `Y = X W^T`, or `Y += X W^T`. Shapes: X `[N, cols]`, Y `[N, rows]`. Activations are what `prefill` says in every format.
    pub fn multiply_t(&self, team: &Team, prefill: Prefill, x: &[f32], beta: Beta, y: &mut [f32]) {
        let Matrix { rows, cols, .. } = *self;
        let n = y.len() / rows;
        let few = n <= FEW_ROWS;
        if by_i8(team, prefill) {
            if let Some(w) = self.q8() {
                return gemm_i8(team, x, w, cols, beta, y);
            } else if let Some(w) = self.q4() {
                return gemm_i8(team, x, w, cols, beta, y);
            }
        }
        if prefill == Prefill::Exact && n <= FEW_QUANTISED {
            if let Some(w) = self.q8() {
                return gemv_batch(team, exact_dot(w), x, n, beta, y);
            } else if let Some(w) = self.q4() {
                return gemv_batch(team, exact_dot(w), x, n, beta, y);
            }
        }
        match &self.elements {
            Elements::F32(w) if few => gemv_batch(team, w, x, n, beta, y),
            Elements::Bf16(w) if few => gemv_batch(team, w, x, n, beta, y),
            Elements::Bf16Packed(w) if few => gemv_batch(team, w, x, n, beta, y),
            Elements::F32(w) => product(team, prefill, x, Mat::new(w, rows, cols).t(), beta, y),
            Elements::Bf16(w) => product(team, prefill, x, Mat::new(w, rows, cols).t(), beta, y),
            Elements::Bf16Packed(w) => self.multiply_widened_t(team, prefill, w, x, beta, y),
            Elements::Q8(w) => self.multiply_widened_t(team, prefill, w, x, beta, y),
            Elements::Q4(w) => self.multiply_widened_t(team, prefill, w, x, beta, y),
            Elements::Q8ByI8(w) => self.multiply_widened_t(team, prefill, w, x, beta, y),
            Elements::Q4ByI8(w) => self.multiply_widened_t(team, prefill, w, x, beta, y),
        }
    }

    /// [`multiply_t`](Matrix::multiply_t) of X with each of two matrices of one format, into the Y of each; an X that is rounded to 8 bits is so
    /// once.
    pub fn multiply_both_t(
        [a, b]: [&Matrix; 2],
        team: &Team,
        prefill: Prefill,
        x: &[f32],
        [y_a, y_b]: [&mut [f32]; 2],
    ) {
        fn both<const BITS: u32>(team: &Team, x: &[f32], cols: usize, w: [&[I8Dot<BITS>]; 2], y: [&mut [f32]; 2]) {
            let ([w_a, w_b], [y_a, y_b], beta) = (w, y, Beta::Zero);
            let products = &mut [I8Product { w: w_a, beta, y: y_a }, I8Product { w: w_b, beta, y: y_b }];
            gemm_i8_each(team, x, cols, products);
        }
        if by_i8(team, prefill) {
            if let (Some(w_a), Some(w_b)) = (a.q8(), b.q8()) {
                return both(team, x, a.cols, [w_a, w_b], [y_a, y_b]);
            } else if let (Some(w_a), Some(w_b)) = (a.q4(), b.q4()) {
                return both(team, x, a.cols, [w_a, w_b], [y_a, y_b]);
            }
        }
        a.multiply_t(team, prefill, x, Beta::Zero, y_a);
        b.multiply_t(team, prefill, x, Beta::Zero, y_b);
    }

    /// Rows of q8, however they were to be multiplied.
    fn q8(&self) -> Option<&[I8Dot<8>]> {
        match &self.elements {
            Elements::Q8(w) => Some(i8_dot(w)),
            Elements::Q8ByI8(w) => Some(w),
            _ => None,
        }
    }

    /// Rows of q4.
    fn q4(&self) -> Option<&[I8Dot<4>]> {
        match &self.elements {
            Elements::Q4(w) => Some(i8_dot(w)),
            Elements::Q4ByI8(w) => Some(w),
            _ => None,
        }
    }

    /// [`multiply`](Matrix::multiply) with rows that are widened first, some at a time: one part of the sum after the other, with the bits of a
    /// product with all of them.
    fn multiply_widened<W: RowFormat>(
        &self,
        team: &Team,
        prefill: Prefill,
        w: &[W],
        x: &[f32],
        mut beta: Beta,
        y: &mut [f32],
    ) {
        let (k, m) = (self.rows, self.cols);
        let n = y.len() / m;
        let at_once = k_block(team.level(), as_bf16(prefill, n), k);
        self.widened(team, w, at_once, |rows, part| {
            let x = Mat::new(x, n, k).part(0..n, rows.clone());
            multiply(team, prefill, x, Mat::new(part, rows.len(), m), beta, MatMut::new(y, n, m));
            beta = Beta::One;
        });
    }

    /// [`multiply_t`](Matrix::multiply_t) with rows that are widened first, some at a time: some columns of Y after the other.
    fn multiply_widened_t<W: RowFormat>(
        &self,
        team: &Team,
        prefill: Prefill,
        w: &[W],
        x: &[f32],
        beta: Beta,
        y: &mut [f32],
    ) {
        let (k, m) = (self.cols, self.rows);
        let n = y.len() / m;
        self.widened(team, w, (WIDENED_AT_ONCE / k).clamp(1, m), |rows, part| {
            let y = MatMut::strided(&mut y[rows.start..], n, rows.len(), m);
            multiply(team, prefill, Mat::new(x, n, k), Mat::new(part, rows.len(), k).t(), beta, y);
        });
    }

    /// Calls `f` with some rows, widened, after the other.
    fn widened<W: RowFormat>(&self, team: &Team, w: &[W], at_once: usize, mut f: impl FnMut(Range<usize>, &[f32])) {
        let Matrix { rows, cols, .. } = *self;
        let mut block = Block::new(at_once * cols * size_of::<f32>());
        for first in (0..rows).step_by(at_once) {
            let range = first..rows.min(first + at_once);
            let part = &mut block.elements_mut()[..range.len() * cols];
            widen_rows(team, &w[first * W::row_len(cols)..range.end * W::row_len(cols)], cols, part);
            f(range, part);
        }
    }
}

/// Whether rows of quants are multiplied as bytes.
fn by_i8(team: &Team, prefill: Prefill) -> bool {
    prefill == Prefill::Q8 && team.level().has_vnni()
}

fn product<W: Weight>(team: &Team, prefill: Prefill, x: &[f32], w: Mat<W>, beta: Beta, y: &mut [f32]) {
    let (k, m) = (w.rows(), w.cols());
    let n = y.len() / m;
    multiply(team, prefill, Mat::new(x, n, k), w, beta, MatMut::new(y, n, m));
}

fn multiply<W: Weight>(team: &Team, prefill: Prefill, x: Mat, w: Mat<W>, beta: Beta, y: MatMut) {
    if as_bf16(prefill, x.rows()) { gemm_bf16(team, x, w, beta, y) } else { gemm(team, x, w, beta, y) }
}

/// Whether the product of `n` rows of X is one of [`gemm_bf16`].
fn as_bf16(prefill: Prefill, n: usize) -> bool {
    matches!(prefill, Prefill::Bf16 | Prefill::Q8) && n > FEW_ROWS
}

/// The matrices of an FFN, all of one format.
pub(crate) struct FfnMatrices {
    /// `[F, C]`.
    pub gate_proj: Matrix,
    /// `[F, C]`.
    pub up_proj: Matrix,
    /// down_proj transposed, `[F, C]`: the weights of a neuron lie together, and those of an inactive one are not touched.
    pub down_proj_t: Matrix,
    /// Of gate_proj; there once [`FfnMode::Filtered`](crate::FfnMode::Filtered) was asked for.
    pub filter: Option<GateFilter<Rows<FilterLine>>>,
}

/// One token on its way through an FFN: x, y `[C]` and working memory.
pub(crate) struct OneToken<'a> {
    pub x: &'a [f32],
    pub scratch: &'a mut FfnScratch,
    pub y: &'a mut [f32],
}

/// Several tokens on their way through an FFN: x, y `[N, C]`.
pub(crate) struct Tokens<'a> {
    pub n: usize,
    pub x: &'a [f32],
    pub scratch: &'a mut FfnScratch,
    pub y: &'a mut [f32],
}

/// The same expression for the weights of an FFN of every format.
macro_rules! ffn_in_any_format {
    ($ffn:expr, $weights:ident => $result:expr) => {{
        let FfnMatrices { gate_proj, up_proj, down_proj_t, .. } = $ffn;
        three_in_any_format!(gate_proj, up_proj, down_proj_t, w => {
            let [gate, up, down_t] = w;
            let $weights = FfnWeights { gate, up, down_t };
            $result
        })
    }};
}

impl FfnMatrices {
    /// [`ffn_sparse`]: returns the number of active neurons.
    pub fn sparse(&self, team: &Team, token: OneToken) -> usize {
        let OneToken { x, scratch, y } = token;
        ffn_in_any_format!(self, weights => ffn_sparse(team, weights, x, scratch, y))
    }

    /// [`ffn_sparse_batch`].
    pub fn sparse_batch(&self, team: &Team, tokens: Tokens) -> BatchCounts {
        let Tokens { n, x, scratch, y } = tokens;
        ffn_in_any_format!(self, weights => ffn_sparse_batch(team, weights, n, x, scratch, y))
    }

    /// [`ffn_dense_batch`].
    pub fn dense_batch(&self, team: &Team, acts: &[Activation], tokens: Tokens) -> BatchCounts {
        let Tokens { x, scratch, y, .. } = tokens;
        ffn_in_any_format!(self, weights => ffn_dense_batch(team, weights, acts, x, scratch, y))
    }

    /// [`ffn_sparse_prompt`] of n tokens: g `[N, F]` is the gate's result, and x, y are `[N, C]`.
    pub fn sparse_prompt(&self, team: &Team, g: &[f32], n: usize, x: &[f32], y: &mut [f32]) {
        ffn_in_any_format!(self, weights => ffn_sparse_prompt(team, weights.up, weights.down_t, g, n, x, y));
    }

    /// Makes the filter, unless it is there. Panics unless the [format has one](WeightFormat::has_filter).
    pub fn make_filter(&mut self, team: &Team) {
        let Matrix { rows, cols, elements } = &self.gate_proj;
        self.filter.get_or_insert_with(|| {
            let memory = Buffer::stale(gate_filter_lines(*rows, *cols));
            let filter = match elements {
                Elements::F32(gate) => GateFilter::new(team, gate, *cols, memory),
                Elements::Bf16(gate) => GateFilter::new(team, gate, *cols, memory),
                Elements::Bf16Packed(gate) => {
                    let mut wide = Buffer::stale(rows * cols);
                    widen_rows(team, gate, *cols, &mut wide);
                    GateFilter::new(team, &wide[..], *cols, memory)
                }
                _ => unreachable!("the options were validated: quantised rows have no filter"),
            };
            GateFilter::from_memory(Rows::Owned(filter.into_memory()), *rows, *cols)
        });
    }

    /// Takes the filter of gate_proj from where it was kept.
    pub fn set_filter(&mut self, memory: Rows<FilterLine>) {
        let Matrix { rows, cols, .. } = self.gate_proj;
        self.filter = Some(GateFilter::from_memory(memory, rows, cols));
    }

    /// [`ffn_filtered`]. Panics without [`make_filter`](FfnMatrices::make_filter) before.
    pub fn filtered(&self, team: &Team, token: OneToken) -> Filtered {
        let OneToken { x, scratch, y } = token;
        let FfnMatrices { gate_proj, up_proj, down_proj_t, filter } = self;
        let filter = filter.as_ref().expect("the engine makes the filters before it uses them");
        three_in_any_format!(gate_proj, up_proj, down_proj_t, w => {
            let [gate, up, down_t] = w;
            ffn_filtered(team, FfnWeights { gate, up, down_t }, filter, x, scratch, y)
        }, F32, Bf16, Bf16Packed)
    }

    /// [`ffn_dense`]: returns the number of active neurons.
    pub fn dense(&self, team: &Team, act: Activation, token: OneToken) -> usize {
        let OneToken { x, scratch, y } = token;
        ffn_in_any_format!(self, weights => ffn_dense(team, weights, act, x, scratch, y))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::FromTensors;
    use kernels::Level;
    use kernels::testing::{assert_within, dot_bound, uniform, widened_rows};
    use kernels::{reference, row_format};
    use model::Psi;
    use tensor::Tensor;

    /// A matrix of more rows than are widened at once, with tokens too many and so few that nothing is widened.
    #[test]
    fn products_with_quantised_rows_match_reference() {
        fn check<W: RowFormat>(team: &Team, format: WeightFormat, n: usize) {
            let (rows, cols) = (1100, 1000);
            let w = uniform(1, rows * cols);
            let mut stored = vec![W::zeroed(); rows * W::row_len(cols)];
            row_format::round_rows(team, &w, cols, &mut stored);
            let wide = widened_rows(&stored, cols);
            let source = FromTensors(|_| Ok(Tensor::from_slice(&w, [rows, cols])));
            // Whatever the rows are multiplied with in decoding.
            let matrices = [ActivationFormat::Exact, ActivationFormat::Q8].map(|activations| {
                let options = EngineOptions { weights: format, activations, ..EngineOptions::new(Psi::Relu) };
                let parameter = Parameter { index: 0, rows, cols, transposed: false, is_gain: false };
                let [matrix] = Matrix::group(&source, [parameter], &options).unwrap();
                matrix
            });
            for (k, m, transposed) in [(rows, cols, false), (cols, rows, true)] {
                let x = uniform(2, n * k);
                let w = Mat::new(&wide, rows, cols);
                let (product, abs) = reference::gemm(Mat::new(&x, n, k), if transposed { w.t() } else { w });
                for beta in [Beta::Zero, Beta::One] {
                    let before = if beta == Beta::One { 1.0 } else { f32::NAN };
                    let [y, by_i8] = matrices.each_ref().map(|matrix| {
                        let mut y = vec![before; n * m];
                        if transposed {
                            matrix.multiply_t(team, Prefill::Exact, &x, beta, &mut y);
                        } else {
                            matrix.multiply(team, Prefill::Exact, &x, beta, &mut y);
                        }
                        y
                    });
                    assert_eq!(y, by_i8, "multiply {format} x i8, n = {n}, exactly");
                    let before = if beta == Beta::One { 1.0 } else { 0.0 };
                    let expected: Vec<f64> = product.iter().map(|p| p + before).collect();
                    let what = format!("multiply {format} n = {n} transposed {transposed} {beta:?}");
                    // A sum in two parts is rounded once more.
                    assert_within(&what, &y, &expected, |i| dot_bound(k + 1, abs[i] + before));
                }
            }
        }
        let team = Team::new(Level::best(), 2);
        for n in [3, FEW_QUANTISED + 1] {
            check::<Q8>(&team, WeightFormat::Q8, n);
            check::<Q4>(&team, WeightFormat::Q4, n);
        }
    }

    /// In several parts of K and of columns, and of few tokens and many.
    #[test]
    fn products_with_packed_rows_have_the_bits_of_bf16() {
        let (rows, cols) = (2300, 1000);
        let w = uniform(1, rows * cols);
        let source = FromTensors(|_| Ok(Tensor::from_slice(&w, [rows, cols])));
        let [plain, packed] = [WeightFormat::Bf16, WeightFormat::Bf16Packed].map(|weights| {
            let options = EngineOptions { weights, ..EngineOptions::new(Psi::Relu) };
            let parameter = Parameter { index: 0, rows, cols, transposed: false, is_gain: false };
            let [matrix] = Matrix::group(&source, [parameter], &options).unwrap();
            matrix
        });
        assert!(packed.is_packed() && !plain.is_packed());
        for level in Level::available().rev().take(2) {
            let team = Team::new(level, 2);
            for (n, prefill) in [(2, Prefill::Exact), (4, Prefill::Bf16), (9, Prefill::Exact), (9, Prefill::Bf16)] {
                for (k, m, transposed) in [(rows, cols, false), (cols, rows, true)] {
                    let x = uniform(2, n * k);
                    for beta in [Beta::Zero, Beta::One] {
                        let [a, b] = [&plain, &packed].map(|matrix| {
                            let mut y = vec![1.0; n * m];
                            if transposed {
                                matrix.multiply_t(&team, prefill, &x, beta, &mut y);
                            } else {
                                matrix.multiply(&team, prefill, &x, beta, &mut y);
                            }
                            y
                        });
                        assert!(
                            a == b,
                            "multiply bf16-packed {level} {prefill} n = {n} transposed {transposed} {beta:?}"
                        );
                    }
                }
            }
        }
    }

    /// Of both ways of keeping the rows, whatever the product of bf16 would have given.
    #[test]
    fn prefill_q8_multiplies_bytes() {
        let (n, rows, cols) = (7, 200, 1000);
        let (w, x) = (uniform(1, rows * cols), uniform(2, n * cols));
        let source = FromTensors(|_| Ok(Tensor::from_slice(&w, [rows, cols])));
        let parameter = || Parameter { index: 0, rows, cols, transposed: false, is_gain: false };
        for level in Level::available() {
            let team = Team::new(level, 2);
            for weights in [WeightFormat::Q8, WeightFormat::Q4] {
                let product = |activations, prefill| {
                    let options = EngineOptions { weights, activations, ..EngineOptions::new(Psi::Relu) };
                    let mut y = vec![f32::NAN; n * rows];
                    let [matrix] = Matrix::group(&source, [parameter()], &options).unwrap();
                    matrix.multiply_t(&team, prefill, &x, Beta::Zero, &mut y);
                    y
                };
                let y = product(ActivationFormat::Exact, Prefill::Q8);
                assert_eq!(y, product(ActivationFormat::Q8, Prefill::Q8), "prefill q8 {weights} {level}");
                let options = EngineOptions { weights, ..EngineOptions::new(Psi::Relu) };
                let [matrix] = Matrix::group(&source, [parameter()], &options).unwrap();
                let mut both = [(); 2].map(|_| vec![f32::NAN; n * rows]);
                let [a, b] = &mut both;
                Matrix::multiply_both_t([&matrix; 2], &team, Prefill::Q8, &x, [a, b]);
                assert!(both.iter().all(|one| *one == y), "prefill q8 {weights} {level}: two at once");
                let as_bf16 = y == product(ActivationFormat::Exact, Prefill::Bf16);
                assert_eq!(as_bf16, !level.has_vnni(), "prefill q8 {weights} {level}: as bf16");
            }
        }
    }
}
