//! A weight matrix in the format that was asked for, and the products of the token path with it.

use crate::buffer::Buffer;
use crate::{Error, WeightFormat};
use half::bf16;
use kernels::embedding::embedding;
use kernels::gemm::gemm;
use kernels::gemv::gemv;
use kernels::sparse::{FfnScratch, FfnWeights, ffn_dense, ffn_sparse};
use kernels::{Activation, Beta, Mat, MatMut, Team, Weight};
use tensor::Tensor;

/// A row-major matrix W `[rows, cols]`.
pub(crate) struct Matrix {
    rows: usize,
    cols: usize,
    elements: Elements,
}

enum Elements {
    F32(Buffer<f32>),
    Bf16(Buffer<bf16>),
}

impl Matrix {
    /// The elements of an f32 tensor of rank 2, each rounded if the format is bf16.
    pub fn from_tensor(tensor: &Tensor, format: WeightFormat) -> Result<Matrix, Error> {
        let shape = tensor.shape();
        let elements = match format {
            WeightFormat::F32 => Elements::F32(Buffer::from_tensor(tensor)?),
            WeightFormat::Bf16 => Elements::Bf16(Buffer::from_tensor(tensor)?),
        };
        Ok(Matrix { rows: shape[0], cols: shape[1], elements })
    }

    /// `out[n, :] = W[tokens[n], :]`.
    pub fn embedding(&self, team: &Team, tokens: &[u32], out: &mut [f32]) {
        match &self.elements {
            Elements::F32(w) => embedding(team, w, tokens, self.cols, out),
            Elements::Bf16(w) => embedding(team, w, tokens, self.cols, out),
        }
    }

    /// `y = W x`. Shapes: x `[cols]`, y `[rows]`.
    pub fn gemv(&self, team: &Team, x: &[f32], y: &mut [f32]) {
        match &self.elements {
            Elements::F32(w) => gemv(team, w, x, y),
            Elements::Bf16(w) => gemv(team, w, x, y),
        }
    }

    /// `Y = X W`, or `Y += X W`. Shapes: X `[N, rows]`, Y `[N, cols]`.
    pub fn multiply(&self, team: &Team, x: &[f32], beta: Beta, y: &mut [f32]) {
        let Matrix { rows, cols, .. } = *self;
        match &self.elements {
            Elements::F32(w) => product(team, x, Mat::new(w, rows, cols), beta, y),
            Elements::Bf16(w) => product(team, x, Mat::new(w, rows, cols), beta, y),
        }
    }

    /// `Y = X W^T`, or `Y += X W^T`. Shapes: X `[N, cols]`, Y `[N, rows]`.
    pub fn multiply_t(&self, team: &Team, x: &[f32], beta: Beta, y: &mut [f32]) {
        let Matrix { rows, cols, .. } = *self;
        match &self.elements {
            Elements::F32(w) => product(team, x, Mat::new(w, rows, cols).t(), beta, y),
            Elements::Bf16(w) => product(team, x, Mat::new(w, rows, cols).t(), beta, y),
        }
    }
}

fn product<W: Weight>(team: &Team, x: &[f32], w: Mat<W>, beta: Beta, y: &mut [f32]) {
    let (k, m) = (w.rows(), w.cols());
    let n = y.len() / m;
    gemm(team, Mat::new(x, n, k), w, beta, MatMut::new(y, n, m));
}

/// The matrices of an FFN, all of one format.
pub(crate) struct FfnMatrices {
    /// `[F, C]`.
    pub gate_proj: Matrix,
    /// `[F, C]`.
    pub up_proj: Matrix,
    /// down_proj transposed, `[F, C]`: the weights of a neuron lie together, and those of an inactive one are not touched.
    pub down_proj_t: Matrix,
}

/// One token on its way through an FFN: x, y `[C]` and working memory.
pub(crate) struct OneToken<'a> {
    pub x: &'a [f32],
    pub scratch: &'a mut FfnScratch,
    pub y: &'a mut [f32],
}

impl FfnMatrices {
    /// [`ffn_sparse`]: returns the number of active neurons.
    pub fn sparse(&self, team: &Team, token: OneToken) -> usize {
        let OneToken { x, scratch, y } = token;
        match self.weights() {
            Ffn::F32(weights) => ffn_sparse(team, weights, x, scratch, y),
            Ffn::Bf16(weights) => ffn_sparse(team, weights, x, scratch, y),
        }
    }

    /// [`ffn_dense`]: returns the number of active neurons.
    pub fn dense(&self, team: &Team, act: Activation, token: OneToken) -> usize {
        let OneToken { x, scratch, y } = token;
        match self.weights() {
            Ffn::F32(weights) => ffn_dense(team, weights, act, x, scratch, y),
            Ffn::Bf16(weights) => ffn_dense(team, weights, act, x, scratch, y),
        }
    }

    fn weights(&self) -> Ffn<'_> {
        let FfnMatrices { gate_proj, up_proj, down_proj_t } = self;
        match (&gate_proj.elements, &up_proj.elements, &down_proj_t.elements) {
            (Elements::F32(gate), Elements::F32(up), Elements::F32(down_t)) => {
                Ffn::F32(FfnWeights { gate, up, down_t })
            }
            (Elements::Bf16(gate), Elements::Bf16(up), Elements::Bf16(down_t)) => {
                Ffn::Bf16(FfnWeights { gate, up, down_t })
            }
            _ => unreachable!("an engine keeps all matrices in one format"),
        }
    }
}

enum Ffn<'a> {
    F32(FfnWeights<'a, f32>),
    Bf16(FfnWeights<'a, bf16>),
}
