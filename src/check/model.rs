//! Checks of whole models: training on a GPU beside training on the CPU.

use autograd::{Gradients, Tape};
use cuda::Error;
use cuda_checks::{Check, Run};
use infer::{CudaEngine, Engine, EngineOptions, FfnMode, WeightFormat};
use kernels::testing::{ROUNDING, uniform};
use model::{Config, Psi, PsiAt, Transformer, Weights, parameter_specs, preset};
use silurian::synthetic::{self, TrainStep};
use tensor::failure::catch;
use tensor::{Device, Tensor};

/// All of them.
pub static CHECKS: [Check; 3] = [
    Check {
        family: "model",
        name: "the_first_gradients_are_those_of_the_cpu",
        run: |run| caught(|| first_gradients(run)),
    },
    Check { family: "model", name: "training_steps_are_those_of_the_cpu", run: |run| caught(|| training_steps(run)) },
    Check { family: "model", name: "sparse_decoding_is_dense_decoding", run: |run| caught(|| sparse_decoding(run)) },
];

/// A failure inside of an op is the device's, as one of a launch is.
fn caught(check: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
    catch(check).unwrap_or_else(|failure| Err(failure.error))
}

/// A model, sequences and tokens of each.
type Step = (Config, usize, usize);

/// A model that the interpreter runs in seconds; on a card 15m.
fn steps(run: &Run) -> Vec<Step> {
    let tiny = preset("tiny", 50).expect("a preset");
    let tiny = Config { d_model: 32, n_layers: 2, n_heads: 4, n_kv_heads: 2, head_dim: 8, d_ff: 48, ..tiny };
    let mut steps = vec![(tiny, 2, 16)];
    if !run.sizes(&[], &[()]).is_empty() {
        steps.push((preset("15m", 256).expect("a preset"), 8, 256));
    }
    steps
}

/// What a loss or a gradient loses in f32, relative to its size: a rounding for every term of every dot on the longest way there and back, as in the tests
/// of `train`. Two computations differ by twice that.
fn bound(config: &Config, seq_len: usize) -> f64 {
    let layer = 4 * config.d_model + 2 * config.q_width() + 2 * config.d_ff + 4 * seq_len;
    let roundings = 2 * (config.n_layers * layer + config.d_model) + config.vocab_size;
    2.0 * roundings as f64 * ROUNDING
}

/// Tokens of a text that does not exist.
fn tokens(seed: u64, config: &Config, [batch, seq_len]: [usize; 2]) -> Tensor {
    let draws = uniform(seed, batch * seq_len);
    let last = config.vocab_size - 1;
    let ids: Vec<u32> = draws.iter().map(|u| ((u + 1.0) / 2.0 * last as f32) as u32).collect();
    Tensor::from_slice(&ids, [batch, seq_len])
}

/// The loss, and each gradient as a whole: the norm of its difference beside its own.
fn first_gradients(run: &mut Run) -> Result<(), Error> {
    for (config, batch, seq_len) in steps(run) {
        let weights = Weights::init(&config, 5);
        let (inputs, targets) = (tokens(1, &config, [batch, seq_len]), tokens(2, &config, [batch, seq_len]));
        let relative = bound(&config, seq_len);
        for psi in [Psi::stochastic(0.5), Psi::Silu] {
            let gradients = |device: &Device| -> Result<(f64, Vec<Vec<f32>>), Error> {
                let (inputs, targets) = (inputs.to_device(device)?, targets.to_device(device)?);
                let model = Transformer::new(weights.to_device(device)?);
                let (tape, mut grads) = (Tape::new(), Gradients::default());
                let at = PsiAt { psi, seed: 3, first_token: 64, step: 9 };
                let scale = 1.0 / (batch * seq_len) as f32;
                let (scaled, loss) = model.loss(&model.leaves(&tape), (&inputs, &targets), scale, at, None);
                scaled.backward(&mut grads);
                let gradient = |i| grads.at(i).expect("a gradient for each parameter").to_vec::<f32>();
                Ok((loss.value(), (0..weights.tensors().len()).map(gradient).collect::<Result<_, _>>()?))
            };
            let (loss, cpu) = gradients(&Device::Cpu)?;
            let (loss_gpu, gpu) = gradients(&Device::Cuda(run.device().clone()))?;
            let what = format!("model [{batch}, {seq_len}] x {} parameters, {psi}", config.parameters());
            run.number_within(&format!("loss, {what}"), loss_gpu, loss, relative * loss);
            for (i, spec) in parameter_specs(&config).enumerate() {
                let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
                let size = norm(&mut cpu[i].iter().map(|&x| x as f64));
                let off = norm(&mut cpu[i].iter().zip(&gpu[i]).map(|(&a, &b)| a as f64 - b as f64));
                run.holds(&format!("gradient of {}, {what}: there is none to compare", spec.name), size > 1e-6);
                run.number_within(
                    &format!("gradient of {}, {what}: norm of the difference", spec.name),
                    off,
                    0.0,
                    relative * size,
                );
            }
        }
    }
    Ok(())
}

/// Losses of steps of AdamW. Each adds its own roundings to the weights that the next begins with.
fn training_steps(run: &mut Run) -> Result<(), Error> {
    const STEPS: u32 = 5;
    for (config, batch, seq_len) in steps(run) {
        let losses = |device: &Device| -> Result<Vec<f64>, Error> {
            let mut step = TrainStep::new(&config, batch, seq_len, device)?;
            let psi = |step| PsiAt { psi: Psi::stochastic(0.5), seed: 7, first_token: 0, step };
            Ok((0..STEPS).map(|i| step.run(psi(i))).collect())
        };
        let (cpu, gpu) = (losses(&Device::Cpu)?, losses(&Device::Cuda(run.device().clone()))?);
        let what = format!("model [{batch}, {seq_len}] x {} parameters", config.parameters());
        for (i, (gpu, cpu)) in gpu.iter().zip(&cpu).enumerate() {
            let bound = (i + 1) as f64 * bound(&config, seq_len) * cpu;
            run.number_within(&format!("loss of step {i}, {what}"), *gpu, *cpu, bound);
        }
        run.holds(&format!("{what}: the loss falls, {cpu:?}"), cpu[STEPS as usize - 1] < cpu[0]);
    }
    Ok(())
}

/// Logits of a prompt and of tokens behind it, in both ways of computing the FFN: the same bits.
fn sparse_decoding(run: &mut Run) -> Result<(), Error> {
    for (config, ..) in steps(run) {
        let mut weights = synthetic::weights(&config);
        synthetic::set_zeros(&mut weights, 0.8);
        for format in [WeightFormat::F32, WeightFormat::Bf16] {
            let logits = |ffn| -> Result<Vec<f32>, infer::Error> {
                let options = EngineOptions { weights: format, ffn, ..EngineOptions::new(Psi::Relu) };
                let mut engine = CudaEngine::new(&weights, options, run.device())?;
                let mut all = engine.prefill(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10])?.to_vec();
                for token in [11, 3, 40, 7, 0, 21] {
                    all.extend_from_slice(engine.decode(token)?);
                }
                Ok(all)
            };
            let both = [logits(FfnMode::Sparse), logits(FfnMode::Dense)];
            let what = format!("sparse decoding, {} parameters in {format}", config.parameters());
            match both {
                [Ok(sparse), Ok(dense)] => run.same_bits(&what, &sparse, &dense),
                [Err(infer::Error::Device(error)), _] | [_, Err(infer::Error::Device(error))] => return Err(error),
                [Err(error), _] | [_, Err(error)] => run.holds(&format!("{what}: {error}"), false),
            }
        }
    }
    Ok(())
}
