//! A tape on a GPU, here the interpreter of the kernels' PTX, gives the gradients of the CPU.
//!
//! All numbers are integers, and no sum of absolute values passes 2^24 (see [`Net`]), so every order of additions gives the same bits.

use autograd::{Gradients, Tape, Var};
use kernels::testing::uniform;
use tensor::{Activation, Device, Fixed, MaskSite, Positive, Tensor};

const VOCAB: usize = 5;
const D_MODEL: usize = 4;
const D_FF: usize = 5;
const TOKENS: [u32; 6] = [3, 0, 3, 4, 1, 3];

/// An embedding and two FFNs with a residual each. Weights are -1, 0 or 1. So |x| <= 1; gate and up <= 4, h <= 16, x <= 81 behind the first;
/// gate and up <= 324, h <= 1.1e5, x <= 5.3e5 behind the second. Backward from a sum with weights -1, 0, 1: dh <= 4, dg and du <= 1296,
/// dx <= 1.3e4 before the second; dh <= 5.2e4, dg and du <= 2.1e5, dx <= 2.1e6 before the first; six tokens of it 1.3e7, below 2^24 = 1.7e7.
struct Net {
    weights: Vec<Tensor>,
    tokens: Tensor,
    of_results: Tensor,
}

impl Net {
    fn on(device: &Device) -> Net {
        let ternary = |seed: u64, shape: [usize; 2]| {
            let x: Vec<f32> = uniform(seed, shape[0] * shape[1]).iter().map(|x| (1.4 * x).round()).collect();
            Tensor::from_slice(&x, shape).to_device(device).unwrap()
        };
        let mut weights = vec![ternary(1, [VOCAB, D_MODEL])];
        for layer in 0..2 {
            weights.extend([2, 3].map(|seed| ternary(seed + 10 * layer, [D_FF, D_MODEL])));
            weights.push(ternary(4 + 10 * layer, [D_MODEL, D_FF]));
        }
        let tokens = Tensor::from_slice(&TOKENS, [2, 3]).to_device(device).unwrap();
        let of_results = ternary(5, [TOKENS.len(), D_MODEL]).reshape([2, 3, D_MODEL]);
        Net { weights, tokens, of_results }
    }

    /// The loss, and on top of `grads` its gradients.
    fn backward(&self, grads: &mut Gradients) -> f32 {
        let tape = Tape::new();
        let leaves: Vec<Var> = self.weights.iter().map(|w| tape.leaf(w.clone())).collect();
        let site = MaskSite { seed: 7, first_token: 3, layer: 1, stream: 0, step: 9 };
        // Pairs that are exact: both are 0 below 0.
        let acts = [Activation::Relu, Activation::pair(0.5, [Fixed::Relu2, Fixed::Relu], Positive::Identity, site)];
        let mut x = leaves[0].embedding(&self.tokens);
        for (ffn, act) in leaves[1..].chunks_exact(3).zip(acts) {
            let (gate, up) = (x.linear(&ffn[0]), x.linear(&ffn[1]));
            x = &x + &gate.gated_down_proj(&up, &ffn[2], act);
        }
        let loss = (&x * &tape.constant(self.of_results.clone())).sum();
        let value = loss.value().item();
        loss.backward(grads);
        value
    }
}

#[test]
fn the_gradients_of_a_two_layer_ffn_are_those_of_the_cpu() {
    let gpu = Device::Cuda(cuda_testing::device());
    let [here, there] = [Device::Cpu, gpu].map(|device| {
        let (net, mut grads) = (Net::on(&device), Gradients::default());
        // Two micro-batches: the second is added to the gradients of the first.
        let losses = [(); 2].map(|_| net.backward(&mut grads));
        let gradients: Vec<Vec<f32>> = (0..net.weights.len())
            .map(|i| {
                let gradient = grads.at(i).expect("a gradient for each weight");
                assert!(gradient.device() == device && gradient.shape() == net.weights[i].shape());
                gradient.to_vec().unwrap()
            })
            .collect();
        (losses, gradients)
    });
    assert!(here.0[0] != 0.0 && here.0[0] == here.0[1], "{:?}", here.0);
    for (i, gradient) in here.1.iter().enumerate() {
        assert!(gradient.iter().any(|&g| g != 0.0), "weight {i} has no gradient to compare");
    }
    assert_eq!(there, here, "a GPU's losses and gradients, and the CPU's");
}
