//! What is equal to the last bit: sparse and dense decoding, any number of threads, weights kept in bf16 and rounded to it, and
//! the draws of a position.

mod common;

use common::any_engine::{
    MASK_PSI, MASK_SEED, forgets_without_a_trace, greedy, mask_model, masks_are_those_of_positions,
};
use common::{bits, configs, engine_on, options, rounded, tokens, weights, weights_with_active};
use half::bf16;
use infer::{
    ActivationFormat, Engine, EngineOptions, FfnMode, KvFormat, LayerDensity, Prefill, PromptFfn, WeightFormat,
    filter_bytes,
};
use kernels::Level;
use kernels::quant::{Q4, Q8};
use kernels::testing::uniform;
use model::{Config, LayerNames, Psi, Weights, parameter_specs};
use tensor::Tensor;

/// How weights can be kept, and what they can be multiplied with.
const FORMATS: [(WeightFormat, ActivationFormat); 7] = [
    (WeightFormat::F32, ActivationFormat::Exact),
    (WeightFormat::Bf16, ActivationFormat::Exact),
    (WeightFormat::Bf16Packed, ActivationFormat::Exact),
    (WeightFormat::Q8, ActivationFormat::Exact),
    (WeightFormat::Q4, ActivationFormat::Exact),
    (WeightFormat::Q8, ActivationFormat::Q8),
    (WeightFormat::Q4, ActivationFormat::Q8),
];

/// Dense on one thread is the measure of dense and sparse on 1 and 2 threads, at every level.
#[track_caller]
fn sparse_equals_dense(what: &str, weights: &Weights, prompt: &[u32], steps: usize) -> Vec<LayerDensity> {
    let mut densities = Vec::new();
    for level in Level::available() {
        for (format, activations) in FORMATS.into_iter().rev() {
            let run = |threads, mode| {
                let options = EngineOptions { weights: format, activations, ..options(Psi::Relu, mode) };
                greedy(&mut engine_on(level, threads, weights, options), prompt, steps)
            };
            let what = format!("{what} {level} {format} weights, {activations} activations");
            let (dense, density) = run(1, FfnMode::Dense);
            let active = |density: &[LayerDensity]| -> Vec<u64> { density.iter().map(|layer| layer.active).collect() };
            let modes = [
                (1, FfnMode::Sparse),
                (2, FfnMode::Sparse),
                (1, FfnMode::Filtered),
                (2, FfnMode::Filtered),
                (2, FfnMode::Dense),
                (1, FfnMode::Auto),
                (2, FfnMode::AutoFiltered),
            ];
            for (threads, mode) in modes {
                if mode.has_filter() && !format.has_filter() {
                    continue;
                }
                let (logits, other) = run(threads, mode);
                for (step, (a, b)) in logits.iter().zip(&dense).enumerate() {
                    assert!(a == b, "decode {what}: {mode} on {threads} threads differs from dense at step {step}");
                }
                let what = format!("decode {what}: {mode} on {threads} threads");
                assert_eq!(active(&other), active(&density), "{what}: active neurons, against those of dense");
                for layer in other {
                    let fits = match mode {
                        FfnMode::Filtered | FfnMode::AutoFiltered => {
                            (layer.active..=layer.neurons).contains(&layer.gate_rows)
                        }
                        _ => layer.gate_rows == layer.neurons,
                    };
                    assert!(fits, "{what}: rows of the gate that were read, {layer:?}");
                }
            }
            densities = density;
        }
    }
    densities
}

/// One copy of the weights, computed with in both ways.
#[test]
fn an_engine_changes_its_ffn_mode() {
    let config = &configs()[0];
    let (weights, prompt) = (weights(config, 3), tokens(config, 0, 9));
    let mut engine = engine_on(Level::best(), 2, &weights, options(Psi::Relu, FfnMode::Dense));
    let (dense, dense_density) = greedy(&mut engine, &prompt, 20);
    engine.set_ffn(FfnMode::Sparse).unwrap();
    assert_eq!(engine.options().ffn, FfnMode::Sparse);
    let (sparse, sparse_density) = greedy(&mut engine, &prompt, 20);
    assert!(sparse == dense, "set_ffn: sparse differs from dense");
    for (sparse, dense) in sparse_density.iter().zip(&dense_density) {
        assert_eq!(sparse.active, dense.active, "set_ffn: active neurons");
    }
    assert_eq!(engine.filter_bytes(), 0, "filter_bytes: before anything is filtered");
    engine.set_ffn(FfnMode::Filtered).unwrap();
    assert_eq!(engine.filter_bytes() as u64, filter_bytes(config), "filter_bytes");
    let (filtered, density) = greedy(&mut engine, &prompt, 20);
    assert!(filtered == dense, "set_ffn: filtered differs from dense");
    let gate_rows: u64 = density.iter().map(|layer| layer.gate_rows).sum();
    assert!(gate_rows < density.iter().map(|layer| layer.neurons).sum(), "set_ffn: the filter rules nothing out");
    let mut silu = engine_on(Level::best(), 1, &weights, options(Psi::Silu, FfnMode::Dense));
    assert!(matches!(silu.set_ffn(FfnMode::Sparse), Err(infer::Error::SparseNeedsRelu { .. })));
    assert_eq!(silu.options().ffn, FfnMode::Dense);
}

#[test]
fn sparse_decoding_equals_dense_decoding() {
    for (number, config) in configs().iter().enumerate() {
        for seed in 0..3 {
            let weights = weights(config, 10 * number as u64 + seed);
            let what = format!("config {number} seed {seed}");
            let density = sparse_equals_dense(&what, &weights, &tokens(config, seed, 9), 40);
            for layer in density {
                let share = layer.share().unwrap();
                assert!((0.05..0.95).contains(&share), "{what}: a share of {share} is too easy");
            }
        }
    }
}

#[test]
fn sparse_decoding_equals_dense_decoding_in_layers_of_one_kind() {
    type Active = fn(usize, usize) -> bool;
    let kinds: [(&str, Active, [f64; 2]); 4] = [
        ("none", |_, _| false, [0.0, 0.0]),
        ("all", |_, _| true, [1.0, 1.0]),
        ("none, then all", |layer, _| layer == 1, [0.0, 1.0]),
        ("the last neuron", |_, neuron| neuron == 79, [1.0 / 80.0; 2]),
    ];
    let config = &configs()[0];
    for (what, active, shares) in kinds {
        let weights = weights_with_active(config, 5, active);
        let density = sparse_equals_dense(what, &weights, &tokens(config, 5, 9), 40);
        let measured: Vec<f64> = density.iter().map(|layer| layer.share().unwrap()).collect();
        assert_eq!(measured, shares, "{what}");
    }
}

#[test]
fn auto_runs_each_layer_as_its_density_asks() {
    let config = &configs()[0];
    let weights = weights_with_active(config, 5, |layer, neuron| layer == 1 || neuron % 10 == 0);
    let prompt = tokens(config, 5, 9);
    for level in Level::available() {
        for (format, activations) in FORMATS {
            let run = |mode| {
                let options = EngineOptions { weights: format, activations, ..options(Psi::Relu, mode) };
                greedy(&mut engine_on(level, 1, &weights, options), &prompt, 40)
            };
            let ((auto, how), (dense, _)) = (run(FfnMode::Auto), run(FfnMode::Dense));
            assert!(auto == dense, "auto {level} {format}: other bits than dense");
            // The second layer's first token shows that it is dense.
            let sparse: Vec<u64> = how.iter().map(|layer| layer.sparse_tokens).collect();
            assert_eq!((sparse, how[1].tokens), (vec![40, 1], 40), "auto {level} {format}: tokens that ran sparse");
            assert!(how[0].ran_sparse() && !how[1].ran_sparse());
        }
    }
    // Where psi is not RELU, auto is dense.
    let mut engine = engine_on(Level::best(), 1, &weights, options(Psi::Silu, FfnMode::Auto));
    let (auto, how) = greedy(&mut engine, &prompt, 5);
    let mut engine = engine_on(Level::best(), 1, &weights, options(Psi::Silu, FfnMode::Dense));
    assert!(auto == greedy(&mut engine, &prompt, 5).0 && how.iter().all(|layer| layer.sparse_tokens == 0));
}

#[test]
fn an_engine_of_bf16_has_the_bits_of_one_of_rounded_weights() {
    for (number, config) in configs().iter().enumerate() {
        let weights = weights(config, number as u64);
        let rounded = rounded::<bf16>(&weights);
        for psi in [Psi::Relu, Psi::Silu, Psi::stochastic(0.5)] {
            for level in Level::available() {
                let run = |weights, format| {
                    let options = EngineOptions { weights: format, ..options(psi, FfnMode::Dense) };
                    // A prompt of more than one chunk, then single tokens.
                    greedy(&mut engine_on(level, 1, weights, options), &tokens(config, 1, 530), 20)
                };
                let what = format!("engine config {number} {psi} {level}");
                let bf16 = run(&weights, WeightFormat::Bf16);
                assert!(bf16 == run(&rounded, WeightFormat::F32), "{what}: bf16 differs from rounded weights");
                assert!(bf16 == run(&rounded, WeightFormat::Bf16), "{what}: rounding twice differs from rounding once");
                assert!(bf16 != run(&weights, WeightFormat::F32), "{what}: nothing was rounded");
            }
        }
    }
}

/// Whatever is computed: prompts of every length and in every way, single tokens in every mode, and log probabilities; and where some of the
/// matrices cannot be packed.
#[test]
fn an_engine_of_packed_bf16_has_the_bits_of_one_of_bf16() {
    for (number, config) in configs().iter().enumerate() {
        let plain = weights(config, number as u64);
        let names = LayerNames::new(0);
        let groups = 3 * config.n_layers + if config.tie_embeddings { 1 } else { 2 };
        let mut cases = vec![(plain.clone(), groups)];
        if config.d_model >= 40 {
            cases.push((unpackable(&plain, &[names.k_proj, names.down_proj]), groups - 2));
            cases.push((unpackable(&plain, &[0, names.o_proj]), groups - 2));
        }
        for (weights, packed) in cases {
            let levels: Vec<Level> = Level::available().rev().take(if packed == groups { 4 } else { 1 }).collect();
            for (psi, modes) in [
                (Psi::Relu, &[FfnMode::Dense, FfnMode::Sparse, FfnMode::Filtered, FfnMode::AutoFiltered][..]),
                (Psi::stochastic(0.5), &[FfnMode::Dense]),
            ] {
                for (&mode, level) in modes.iter().flat_map(|mode| levels.iter().map(move |level| (mode, level))) {
                    let run = |format, threads, prefill, prompt_ffn| {
                        let options =
                            EngineOptions { weights: format, prefill, prompt_ffn, seed: 3, ..options(psi, mode) };
                        let mut engine = engine_on(*level, threads, &weights, options);
                        if format == WeightFormat::Bf16Packed {
                            let what = format!("packed_groups config {number}");
                            assert_eq!(engine.packed_groups(), Some((packed, groups)), "{what}");
                        } else {
                            assert_eq!(engine.packed_groups(), None);
                        }
                        let mut all = Vec::new();
                        for prompt in [3, 40, if mode == FfnMode::Dense { 530 } else { 5 }] {
                            all.push(greedy(&mut engine, &tokens(config, 1, prompt), 6));
                        }
                        let (tokens, mut log_probs) = (tokens(config, 2, 90), Vec::new());
                        engine.reset(0);
                        engine.log_probs(&tokens[..89], &tokens[1..], &mut log_probs).unwrap();
                        (all, log_probs)
                    };
                    for (threads, prefill, prompt_ffn) in [
                        (1, Prefill::Exact, PromptFfn::Dense),
                        (3, Prefill::Bf16, PromptFfn::Dense),
                        (2, Prefill::Exact, PromptFfn::Sparse),
                    ] {
                        let bf16 = run(WeightFormat::Bf16, 1, prefill, prompt_ffn);
                        let found = run(WeightFormat::Bf16Packed, threads, prefill, prompt_ffn);
                        let what =
                            format!("engine config {number} {psi} {mode} {level} {threads} threads, prefill {prefill}");
                        assert!(found == bf16, "{what}, {packed} of {groups} groups packed: other bits than bf16");
                    }
                }
            }
        }
    }
}

/// Weights with a row in each of these parameters whose exponents are too many.
fn unpackable(weights: &Weights, parameters: &[usize]) -> Weights {
    let mut tensors = weights.tensors().to_vec();
    for &parameter in parameters {
        let shape = tensors[parameter].shape();
        let (rows, cols) = (shape[0], shape[1]);
        let mut values = tensors[parameter].to_vec::<f32>().unwrap();
        // The seventh row and the seventh column, of which decoding takes the one or the other for a row.
        for (i, j) in (0..cols).map(|j| (6, j)).chain((0..rows).map(|i| (i, 6))) {
            values[i * cols + j] *= f32::powi(2.0, -3 * ((i + j) % 40) as i32);
        }
        tensors[parameter] = Tensor::from_slice(&values, shape);
    }
    Weights::from_tensors(weights.config(), tensors)
}

/// Products of several tokens are those with the widened weights, whatever a single token's are.
#[test]
fn an_engine_of_quantised_weights_scores_with_the_bits_of_one_of_rounded_weights() {
    for (number, config) in configs().iter().enumerate() {
        let weights = weights(config, number as u64);
        let tokens = tokens(config, 1, 270);
        for (format, activations) in FORMATS.into_iter().skip(3) {
            let rounded = if format == WeightFormat::Q8 { rounded::<Q8>(&weights) } else { rounded::<Q4>(&weights) };
            for level in Level::available() {
                let score = |weights, format, activations| {
                    let options = EngineOptions { weights: format, activations, ..options(Psi::Silu, FfnMode::Dense) };
                    let mut log_probs = Vec::new();
                    let mut engine = engine_on(level, 2, weights, options);
                    engine.log_probs(&tokens[..269], &tokens[1..], &mut log_probs).unwrap();
                    log_probs
                };
                let what = format!("engine config {number} {level} {format} weights, {activations} activations");
                let scores = score(&weights, format, activations);
                let exact = ActivationFormat::Exact;
                assert!(scores == score(&rounded, WeightFormat::F32, exact), "{what}: differs from rounded weights");
                assert!(scores != score(&weights, WeightFormat::F32, exact), "{what}: nothing was rounded");
            }
        }
    }
}

/// Activations of 8 bits: other logits than exact ones, and near them. Each of the 14 products and the LM head's errs by some 1/127 of the
/// largest of 32 inputs, uniformly: (1/127)^2 / 12 of its square, which is 9 times the mean square or so: 5e-5 of the variance for
/// a product, 7e-4 for all, if they were added up; nonlinearities and few channels in these small models get a factor of 10.
#[test]
fn activations_of_8_bits_are_near_exact_ones() {
    for (number, config) in configs().iter().enumerate() {
        let weights = weights(config, number as u64);
        for format in [WeightFormat::Q8, WeightFormat::Q4] {
            let logits = |activations| {
                let options = EngineOptions { weights: format, activations, ..options(Psi::Silu, FfnMode::Dense) };
                let mut engine = engine_on(Level::best(), 1, &weights, options);
                let step = |token| engine.decode(token).unwrap().to_vec();
                tokens(config, 1, 30).into_iter().flat_map(step).collect::<Vec<f32>>()
            };
            let (exact, rounded) = (logits(ActivationFormat::Exact), logits(ActivationFormat::Q8));
            let square = |x: f32| x as f64 * x as f64;
            let error: f64 = exact.iter().zip(&rounded).map(|(a, b)| square(a - b)).sum();
            let nmse = error / exact.iter().map(|&a| square(a)).sum::<f64>();
            assert!(nmse > 0.0 && nmse < 7e-3, "engine config {number} {format}: NMSE {nmse:e} of 8-bit activations");
        }
    }
}

#[test]
fn activations_of_8_bits_need_quantised_weights() {
    let config = &configs()[0];
    for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Bf16Packed] {
        let activations = ActivationFormat::Q8;
        let options = EngineOptions { weights: format, activations, ..options(Psi::Relu, FfnMode::Dense) };
        let error = options.validate(config).unwrap_err().to_string();
        assert!(error.starts_with(&format!("activations = q8: must be exact with {format} weights")), "{error}");
    }
}

#[test]
fn threads_change_no_bit() {
    for (number, config) in configs().iter().enumerate() {
        let weights = weights(config, number as u64);
        for psi in [Psi::Silu, Psi::stochastic(0.5)] {
            for level in Level::available() {
                let run = |threads| {
                    let mut engine = engine_on(level, threads, &weights, options(psi, FfnMode::Dense));
                    greedy(&mut engine, &tokens(config, 1, 530), 10)
                };
                assert!(run(1) == run(2), "engine config {number} {psi} {level}: 1 and 2 threads differ");
            }
        }
    }
}

#[test]
fn the_mask_of_a_position_is_the_same_in_prefill_and_decode() {
    let weights = mask_model();
    for level in Level::available() {
        let options = EngineOptions { seed: MASK_SEED, ..options(MASK_PSI, FfnMode::Dense) };
        let mut engine = engine_on(level, 2, &weights, options);
        // 513 crosses from one chunk of a prompt to the next.
        masks_are_those_of_positions(&level.to_string(), &mut engine, &[1, 2, 3, 17, 512, 513, 530]);
    }
}

#[test]
fn truncate_and_reset_forget_without_a_trace() {
    let weights = weights(&configs()[1], 8);
    for level in Level::available() {
        let mut engine = engine_on(level, 1, &weights, options(Psi::Relu, FfnMode::Sparse));
        forgets_without_a_trace(&level.to_string(), &mut engine);
    }
}

/// Weights that no test chose by hand: any shape of FFN.
#[test]
fn sparse_decoding_equals_dense_decoding_at_any_width() {
    for seed in 0..12 {
        let pick = |at: usize, n: usize| ((uniform(seed, at + 1)[at] as f64 + 1.0) / 2.0 * n as f64) as usize;
        let config = Config { d_model: 1 + pick(0, 90), d_ff: 1 + pick(1, 700), ..configs()[2].clone() };
        let weights = weights(&config, seed);
        sparse_equals_dense(&format!("seed {seed}"), &weights, &tokens(&config, seed, 3), 12);
    }
}

/// A cache of bf16 rounds keys and values and nothing else: all ways to the same position agree as they do with one of f32, and the
/// logits move by no more than that rounding explains.
#[test]
fn a_cache_of_bf16_rounds_what_it_keeps() {
    for (number, config) in configs().iter().enumerate() {
        let (weights, ids) = (weights(config, number as u64), tokens(config, 5, 40));
        for level in Level::available() {
            let run = |threads, kv, ffn, weights: &Weights| {
                let options = EngineOptions { kv, ..options(Psi::Relu, ffn) };
                let mut engine = engine_on(level, threads, weights, options);
                let mut logits = vec![engine.prefill(&ids[..15]).unwrap().to_vec()];
                logits.extend(ids[15..].iter().map(|&token| engine.decode(token).unwrap().to_vec()));
                logits.concat()
            };
            let what = format!("kv bf16, config {number} {level}");
            let (exact, kept) =
                (run(1, KvFormat::F32, FfnMode::Dense, &weights), run(1, KvFormat::Bf16, FfnMode::Dense, &weights));
            for (threads, ffn) in [(2, FfnMode::Dense), (1, FfnMode::Sparse), (2, FfnMode::Filtered)] {
                assert!(
                    bits(&run(threads, KvFormat::Bf16, ffn, &weights)) == bits(&kept),
                    "{what}: {ffn} on {threads} threads"
                );
            }
            let square = |x: &[f32]| x.iter().map(|&x| x as f64 * x as f64).sum::<f64>();
            let moved: Vec<f32> = exact.iter().zip(&kept).map(|(a, b)| a - b).collect();
            let nmse = square(&moved) / square(&exact);
            // Of relative size 2^-8 at most, each for keys and values of each layer; scores are of the size of 1.
            let bound = 4.0 * config.n_layers as f64 * 2f64.powi(-16);
            assert!(nmse > 0.0 && nmse < bound, "{what}: NMSE {nmse:e} of {bound:e}");

            // Values that are 0 need no rounding, whatever the keys are.
            let values_of_zero = parameter_specs(config).zip(weights.tensors()).map(|(spec, tensor)| {
                if spec.name.contains("v_proj") { Tensor::full(0.0, spec.shape) } else { tensor.clone() }
            });
            let weights = Weights::from_tensors(config, values_of_zero.collect());
            let [exact, kept] = [KvFormat::F32, KvFormat::Bf16].map(|kv| run(1, kv, FfnMode::Dense, &weights));
            assert!(bits(&exact) == bits(&kept), "{what}: without values");
        }
    }
}
