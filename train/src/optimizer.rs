//! AdamW over all parameters, with clipping by the norm of the whole gradient.

use crate::config::TrainConfig;
use autograd::Gradients;
use model::{Config, Weights, parameter_specs};
use tensor::{Device, Tensor, Total, ops};

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
    /// `min(1, grad_clip / norm)` (Pascanu et al., arXiv 1211.5063); `squares` is [`gradient_squares`].
    /// A parameter that no gradient reached is left as it is, and so are all if the loss or the norm is not finite. On a GPU nothing waits:
    /// whoever reads these two afterwards and finds that [takes the step back](Optimizer::take_back).
    ///
    /// Panics if something else still holds a parameter.
    pub fn update(&mut self, weights: &mut Weights, grads: &Gradients, loss: &Total, squares: &Total, lr: f64) {
        self.step += 1;
        let clip = ops::clip_factor(squares, loss, self.grad_clip);
        for (i, param) in weights.tensors_mut().iter_mut().enumerate() {
            let Some(grad) = grads.at(i) else { continue };
            let args = ops::AdamW {
                lr: lr as f32,
                beta1: self.beta1,
                beta2: self.beta2,
                eps: self.eps,
                weight_decay: self.weight_decay[i],
                step: self.step,
            };
            ops::adamw(&args, &clip, param, grad, &mut self.m[i], &mut self.v[i]);
        }
    }

    /// Counts the last step as not done: its update, by a gradient that is not finite, changed nothing.
    pub fn take_back(&mut self) {
        self.step -= 1;
    }
}

/// The sum of the squares of all gradients, in the order of the parameters: the square of their norm.
pub fn gradient_squares(grads: &Gradients, weights: &Weights) -> Total {
    let mut squares = Total::zero(&weights.device());
    for grad in (0..weights.tensors().len()).filter_map(|i| grads.at(i)) {
        ops::sum_squares(grad, &mut squares);
    }
    squares
}
