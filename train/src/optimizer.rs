//! AdamW over all parameters, with clipping by the norm of the whole gradient.

use crate::config::TrainConfig;
use autograd::Gradients;
use model::{Config, Weights, parameter_specs};
use tensor::{Device, Tensor, ops};

/// The two moments of every parameter, and the count of steps.
pub struct Optimizer {
    /// First and second moment, in the fixed order of [`parameter_specs`].
    m: Vec<Tensor>,
    v: Vec<Tensor>,
    /// Weight decay of each parameter: that of the configuration, or 0 for norms and embeddings.
    weight_decay: Vec<f32>,
    /// Steps done.
    step: u32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    grad_clip: f64,
}

impl Optimizer {
    /// Moments of zero, where the weights are.
    pub fn new(weights: &Weights, config: &TrainConfig) -> Optimizer {
        let device = weights.device();
        let zeros = || weights.tensors().iter().map(|w| Tensor::zeros_on(&device, w.shape())).collect();
        Optimizer::with_moments(weights.config(), config, zeros(), zeros(), 0)
    }

    /// Goes on after `step` steps. The moments are in the fixed order, with the shapes of the parameters.
    pub fn with_moments(sizes: &Config, config: &TrainConfig, m: Vec<Tensor>, v: Vec<Tensor>, step: u32) -> Optimizer {
        let t = &config.train;
        let weight_decay =
            parameter_specs(sizes).map(|spec| if spec.decays() { t.weight_decay as f32 } else { 0.0 }).collect();
        let (beta1, beta2, eps) = (t.beta1 as f32, t.beta2 as f32, t.eps as f32);
        Optimizer { m, v, weight_decay, step, beta1, beta2, eps, grad_clip: t.grad_clip }
    }

    /// The same, on `device`. Fails when its memory does not suffice.
    pub fn to_device(self, device: &Device) -> Result<Optimizer, cuda::Error> {
        // One after the other: what has gone over is let go here.
        let over = |moments: Vec<Tensor>| moments.into_iter().map(|x| x.to_device(device)).collect::<Result<_, _>>();
        let (m, v) = (over(self.m)?, over(self.v)?);
        Ok(Optimizer { m, v, ..self })
    }

    /// Steps whose update has begun.
    pub fn steps(&self) -> usize {
        self.step as usize
    }

    /// First and second moments, in the fixed order.
    pub fn moments(&self) -> (&[Tensor], &[Tensor]) {
        (&self.m, &self.v)
    }

    /// One step of AdamW (arXiv 1711.05101, algorithm 2) on every parameter, with the gradient scaled by
    /// `min(1, grad_clip / norm)` (Pascanu et al., arXiv 1211.5063); `norm` is that of [`gradient_norm`].
    /// A parameter that no gradient reached is left as it is. The gradients are let go: their memory returns to the pool.
    ///
    /// Panics if something else still holds a parameter.
    pub fn update(&mut self, weights: &mut Weights, grads: &mut Gradients, norm: f64, lr: f64) {
        self.step += 1;
        let clips = self.grad_clip > 0.0 && norm > self.grad_clip;
        let grad_scale = if clips { (self.grad_clip / norm) as f32 } else { 1.0 };
        for (i, param) in weights.tensors_mut().iter_mut().enumerate() {
            let Some(grad) = grads.at(i) else { continue };
            let args = ops::AdamW {
                lr: lr as f32,
                beta1: self.beta1,
                beta2: self.beta2,
                eps: self.eps,
                weight_decay: self.weight_decay[i],
                step: self.step,
                grad_scale,
            };
            ops::adamw(&args, param, grad, &mut self.m[i], &mut self.v[i]);
        }
        grads.clear();
    }
}

/// The Euclidean norm of all gradients together, summed in the order of the parameters.
pub fn gradient_norm(grads: &Gradients, parameters: usize) -> f64 {
    (0..parameters).filter_map(|i| grads.at(i)).map(ops::sum_squares).sum::<f64>().sqrt()
}
