//! The engine on a GPU, held to the reference, to the CPU's and to itself. It runs in the PTX interpreter, or with `KERNELS_CUDA_TEST=0` on GPU number 0.

mod common;

use common::any_engine::{
    MASK_PSI, MASK_SEED, alone, batches_that_do_not_fit_are_refused, branches_outlive_a_reset_and_go_their_own_way,
    forgets_without_a_trace, greedy, in_batches_as_alone, mask_model, masks_are_those_of_positions,
};
use common::{bits, configs, options, rounded, tokens, weights, weights_with_active};
use cuda::Device;
use cuda_testing::{CallCounts, Calls, Interpreter, device};
use half::bf16;
use infer::{
    CacheMemory, CpuEngine, CudaEngine, Engine, EngineOptions, Error, FfnMode, KvFormat, Prefill, PromptFfn, Request,
    Sampler, Sampling, WeightFormat, generate,
};
use kernels::testing::assert_within;
use model::hf::{Meta, save};
use model::reference::Reference;
use model::{Config, HiddenAct, Positive, Psi, PsiAt, Weights};
use std::ops::ControlFlow;
use std::time::Duration;

/// Rows of 16 bytes, as models have them, two tiles and a half of neurons, and an odd vocabulary; and the forms of [`configs`].
fn models() -> Vec<Config> {
    let aligned = Config { d_model: 64, d_ff: 160, head_dim: 16, ..configs()[0].clone() };
    let [_, b, c, _, e, _] = configs().try_into().unwrap();
    vec![aligned, b, c, e]
}

fn on(device: &Device, weights: &Weights, options: EngineOptions) -> CudaEngine {
    CudaEngine::new(weights, options, device).unwrap()
}

fn cuda(weights: &Weights, options: EngineOptions) -> CudaEngine {
    on(&device(), weights, options)
}

/// Prompts by products, prompts of a step, and decoding; under activations that draw and that do not.
#[test]
fn logits_are_within_the_bound_of_the_reference() {
    const PAIR: Psi =
        Psi::Stochastic { p: 0.4, negative: [HiddenAct::Relu2, HiddenAct::Gelu], positive: Positive::Silu };
    let at = |psi| PsiAt { psi, seed: 0xfeed_5eed, first_token: 0, step: 3 };
    for (number, config) in models().iter().enumerate() {
        let weights = weights(config, number as u64);
        let tokens = tokens(config, number as u64, 21);
        let all = [
            (Psi::Relu, WeightFormat::F32),
            (PAIR, WeightFormat::Bf16),
            (Psi::stochastic(0.5), WeightFormat::F32),
            (Psi::Relu, WeightFormat::Bf16),
        ];
        // Two of them with each model, and all with some.
        for (psi, format) in [all[number], all[(number + 1) % 4]] {
            let kept = if format == WeightFormat::Bf16 { rounded::<bf16>(&weights) } else { weights.clone() };
            let expected = Reference::new(&kept).logits(&tokens, at(psi));
            let options = EngineOptions { weights: format, seed: 0xfeed_5eed, ..EngineOptions::new(psi) };
            let mut engine = cuda(&weights, options);
            let check = |what: &str, t: usize, logits: &[f32]| {
                let exact: Vec<f64> = expected[t].iter().map(|e| e.exact).collect();
                let what = format!("cuda {what} config {number} {psi} {format}, token {t}");
                assert_within(&what, logits, &exact, |i| expected[t][i].bound());
            };
            for prompt in [21, 12, 5, 1] {
                engine.reset(3);
                check(&format!("prefill of {prompt}"), prompt - 1, engine.prefill(&tokens[..prompt]).unwrap());
                for (t, &token) in tokens.iter().enumerate().skip(prompt).take(2) {
                    check(&format!("decode after {prompt}"), t, engine.decode(token).unwrap());
                }
            }
        }
    }
}

#[test]
fn sparse_decoding_equals_dense_decoding() {
    let device = device();
    for (number, config) in models().iter().enumerate() {
        let weights = weights(config, 10 + number as u64);
        let prompt = tokens(config, 1, 9);
        for format in [WeightFormat::F32, WeightFormat::Bf16] {
            let run = |ffn| {
                let options = EngineOptions { weights: format, ..options(Psi::Relu, ffn) };
                greedy(&mut on(&device, &weights, options), &prompt, 8)
            };
            let (dense, counts) = run(FfnMode::Dense);
            for ffn in [FfnMode::Sparse, FfnMode::Auto] {
                let what = format!("cuda decode config {number} {format} {ffn}");
                let (logits, other) = run(ffn);
                assert!(logits == dense, "{what}: other bits than dense");
                for (layer, expected) in other.iter().zip(&counts) {
                    assert_eq!(
                        (layer.active, layer.union),
                        (expected.active, expected.active),
                        "{what}: active neurons"
                    );
                    assert_eq!((layer.tokens, layer.steps, layer.gate_rows), (8, 8, layer.neurons), "{what}");
                    assert!((0.05..0.95).contains(&layer.share().unwrap()), "{what}: {layer:?} is too easy");
                }
            }
            // The neurons that the CPU's engine finds active; a g within rounding of 0 may be on either side.
            let mut cpu =
                CpuEngine::new(&weights, EngineOptions { weights: format, ..options(Psi::Relu, FfnMode::Dense) })
                    .unwrap();
            let (_, cpu) = greedy(&mut cpu, &prompt, 8);
            for (layer, cpu) in counts.iter().zip(cpu) {
                let what = format!("cuda density config {number} {format}: {layer:?}, on the CPU {cpu:?}");
                assert!(layer.active.abs_diff(cpu.active) <= 2 && layer.neurons == cpu.neurons, "{what}");
            }
        }
    }
}

#[test]
fn auto_runs_each_layer_as_its_density_asks() {
    let config = &models()[0];
    let weights = weights_with_active(config, 5, |layer, neuron| layer == 1 || neuron % 10 == 0);
    let mut engine = cuda(&weights, options(Psi::Relu, FfnMode::Auto));
    let (auto, how) = greedy(&mut engine, &tokens(config, 5, 9), 6);
    let sparse: Vec<u64> = how.iter().map(|layer| layer.sparse_tokens).collect();
    // The second layer's first token shows that it is dense.
    assert_eq!((sparse, how[1].active), (vec![6, 1], 6 * config.d_ff as u64), "cuda auto: tokens that ran sparse");
    engine.set_ffn(FfnMode::Dense).unwrap();
    let (dense, how) = greedy(&mut engine, &tokens(config, 5, 9), 6);
    assert!(auto == dense && how.iter().all(|layer| layer.sparse_tokens == 0), "cuda auto: other bits than dense");
}

#[test]
fn a_graph_gives_the_bits_of_its_launches() {
    let config = &models()[0];
    let weights = weights(config, 3);
    for (psi, format) in [(Psi::Relu, WeightFormat::Bf16), (Psi::stochastic(0.5), WeightFormat::F32)] {
        let mut engine = cuda(&weights, EngineOptions { weights: format, ..EngineOptions::new(psi) });
        let prompt = tokens(config, 1, 3);
        let recorded = greedy(&mut engine, &prompt, 6);
        assert_eq!(engine.ffn_time(), Duration::ZERO, "ffn_time: nothing is timed in a graph");
        engine.set_graphs(false);
        assert!(greedy(&mut engine, &prompt, 6) == recorded, "cuda {psi} {format}: a graph differs from its launches");
        assert!(engine.ffn_time() > Duration::ZERO, "ffn_time: of the launches");
        engine.set_graphs(true);
        assert!(greedy(&mut engine, &prompt, 6) == recorded, "cuda {psi} {format}: a graph that is launched again");
    }
}

#[test]
fn a_token_is_one_graph_and_allocates_nothing() {
    let calls = Calls::default();
    let device = Interpreter { calls: Some(calls.clone()), pooled: true, ..Interpreter::default() }.device();
    let config = &models()[0];
    let options =
        EngineOptions { kv: KvFormat::Bf16, weights: WeightFormat::Bf16, ..options(Psi::Relu, FfnMode::Auto) };
    let mut engine = on(&device, &weights(config, 1), options);
    engine.prefill(&[1, 2, 3]).unwrap();
    engine.decode(4).unwrap();
    calls.take();
    let memory = device.memory();
    for token in 5..15 {
        engine.decode(token).unwrap();
    }
    // The integers there; the logits and the counts of active neurons back.
    let a_token = CallCounts { uploads: 1, downloads: 2, graphs: 1, ..CallCounts::default() };
    let times = |n: u64, one: CallCounts| CallCounts {
        uploads: n * one.uploads,
        downloads: n * one.downloads,
        graphs: n * one.graphs,
        ..one
    };
    assert_eq!(calls.take(), times(10, a_token), "cuda decode: what ten tokens asked of the device");
    assert_eq!(device.memory(), memory, "cuda decode: the pool");

    (0..3).for_each(|branch| engine.fork(branch).unwrap());
    let mut step = |token| engine.decode_batch(&[(2, token), (0, 1), (1, 2)]).map(|_| ()).unwrap();
    step(1);
    calls.take();
    (2..7).for_each(&mut step);
    assert_eq!(
        calls.take(),
        times(5, a_token),
        "cuda decode_batch: what five steps of three tokens asked of the device"
    );
}

#[test]
fn a_sequence_in_a_batch_has_the_bits_that_it_has_alone() {
    let (device, models) = (device(), models());
    for (psi, ffn, format, kv) in [
        (Psi::Relu, FfnMode::Sparse, WeightFormat::F32, KvFormat::F32),
        (Psi::Relu, FfnMode::Auto, WeightFormat::Bf16, KvFormat::Bf16),
        (Psi::stochastic(0.5), FfnMode::Dense, WeightFormat::F32, KvFormat::Bf16),
    ] {
        let options = EngineOptions { weights: format, kv, seed: 5, ..options(psi, ffn) };
        // Rows that are not aligned, with one of them.
        let others = if format == WeightFormat::Bf16 { vec![&models[2]] } else { Vec::new() };
        for config in [&models[0]].into_iter().chain(others) {
            let weights = weights(config, 2);
            let expected = alone(&mut on(&device, &weights, options.clone()), 5);
            let what = format!("cuda d_model {} {psi} {ffn} {format}", config.d_model);
            in_batches_as_alone(&what, &mut on(&device, &weights, options.clone()), &expected);
        }
    }
}

/// More sequences than a step takes.
#[test]
fn a_batch_beyond_a_step_is_taken_in_parts() {
    let config = &models()[0];
    let mut engine = cuda(&weights(config, 2), options(Psi::Relu, FfnMode::Sparse));
    let mut expected = Vec::new();
    engine.prefill(&[1, 2, 3]).unwrap();
    (0..11).for_each(|branch| engine.fork(branch).unwrap());
    for token in 0..11 {
        engine.truncate(3);
        expected.extend(bits(engine.decode(token).unwrap()));
    }
    let (alone, batch) = (engine.density().to_vec(), (0..11).map(|i| (i, i as u32)).collect::<Vec<_>>());
    engine.reset(0);
    assert!(bits(engine.decode_batch(&batch).unwrap()) == expected, "cuda decode_batch of 11: bits");
    for (layer, alone) in engine.density().iter().zip(alone) {
        assert_eq!((layer.active, layer.tokens, layer.steps), (alone.active, 11, 2), "cuda density of 11 in two steps");
    }
}

#[test]
fn branches_live_beside_the_engines_own_sequence() {
    let mut engine = cuda(&weights(&configs()[0], 1), options(Psi::Relu, FfnMode::Auto));
    branches_outlive_a_reset_and_go_their_own_way(&mut engine);
    let config = Config { max_seq_len: 4, ..configs()[0].clone() };
    batches_that_do_not_fit_are_refused(&mut cuda(&weights(&config, 1), options(Psi::Relu, FfnMode::Auto)));
}

#[test]
fn the_mask_of_a_position_is_the_cpus_in_prefill_and_decode() {
    let options = EngineOptions { seed: MASK_SEED, ..options(MASK_PSI, FfnMode::Dense) };
    masks_are_those_of_positions("cuda", &mut cuda(&mask_model(), options), &[1, 2, 8, 9, 17, 513]);
}

#[test]
fn truncate_and_reset_forget_without_a_trace() {
    forgets_without_a_trace("cuda", &mut cuda(&weights(&models()[1], 8), options(Psi::Relu, FfnMode::Sparse)));
}

/// Beyond 256 positions a growing cache takes more memory, with branches of several lengths in it.
#[test]
fn a_growing_cache_gives_the_bits_of_a_fixed_one() {
    let config = Config { n_layers: 1, ..models()[0].clone() };
    let weights = weights(&config, 4);
    for kv in [KvFormat::F32, KvFormat::Bf16] {
        let run = |cache| {
            let mut engine = cuda(&weights, EngineOptions { cache, kv, ..EngineOptions::new(Psi::Relu) });
            engine.prefill(&tokens(&config, 7, 9)).unwrap();
            engine.fork(0).unwrap();
            engine.prefill(&tokens(&config, 6, 245)).unwrap();
            engine.fork(1).unwrap();
            let mut logits = bits(engine.decode_batch(&[(0, 1), (1, 2)]).unwrap());
            for token in [3, 4] {
                logits.extend(bits(engine.decode(token).unwrap()));
            }
            // The branch's position 255, then 256, which grows the cache.
            for token in [3, 4] {
                logits.extend(bits(engine.decode_batch(&[(1, token), (0, token)]).unwrap()));
            }
            engine.decode(9).unwrap();
            logits.extend(bits(engine.decode(5).unwrap()));
            logits
        };
        assert!(run(CacheMemory::Growing) == run(CacheMemory::Fixed), "cuda cache {kv}: growing changed the logits");
    }
}

/// A bf16 cache, and a prompt's products in bf16, are near the exact ones: each rounds by 2^-9 at most, relative to what it rounds.
#[test]
fn rounding_options_move_the_logits_as_far_as_they_may() {
    let square = |x: &[f32]| x.iter().map(|&x| x as f64 * x as f64).sum::<f64>();
    for config in [&models()[0], &models()[2]] {
        let (weights, ids) = (weights(config, 3), tokens(config, 5, 16));
        let run = |kv, prefill, weights: &Weights, format| {
            let options = EngineOptions { kv, prefill, weights: format, ..EngineOptions::new(Psi::Silu) };
            let mut engine = cuda(weights, options);
            let mut logits = engine.prefill(&ids[..12]).unwrap().to_vec();
            ids[12..].iter().for_each(|&token| logits.extend(engine.decode(token).unwrap()));
            logits
        };
        let exact = run(KvFormat::F32, Prefill::Exact, &weights, WeightFormat::F32);
        // Rounded inputs of the 7 products of each layer, weights and activations, in bf16; keys and values of each layer.
        let layers = config.n_layers as f64;
        for (kv, prefill, roundings) in
            [(KvFormat::Bf16, Prefill::Exact, 4.0 * layers), (KvFormat::F32, Prefill::Bf16, 14.0 * layers)]
        {
            let moved: Vec<f32> =
                run(kv, prefill, &weights, WeightFormat::F32).iter().zip(&exact).map(|(a, b)| a - b).collect();
            let (nmse, bound) = (square(&moved) / square(&exact), roundings * 2f64.powi(-16));
            assert!(nmse > 0.0 && nmse < bound, "cuda kv {kv}, prefill {prefill}: NMSE {nmse:e} of {bound:e}");
        }
        // Weights that were bf16 before are not rounded by the products, whichever way they are kept: what differs is the order of the sums
        // of the last token's last block, of 160 products at most: 1e-5 of their absolute values.
        let rounded = rounded::<bf16>(&weights);
        let [wide, kept] = [WeightFormat::F32, WeightFormat::Bf16]
            .map(|format| run(KvFormat::F32, Prefill::Bf16, &rounded, format)[..config.vocab_size].to_vec());
        let moved: Vec<f32> = wide.iter().zip(&kept).map(|(a, b)| a - b).collect();
        let nmse = square(&moved) / square(&wide);
        assert!(nmse < 1e-9, "cuda prefill bf16: of f32 and bf16 weights, NMSE {nmse:e}");
    }
}

#[test]
fn log_probs_are_those_of_the_reference() {
    let config = &models()[0];
    let (weights, ids) = (weights(config, 6), tokens(config, 2, 23));
    for (prefill, format) in [(Prefill::Exact, WeightFormat::F32), (Prefill::Exact, WeightFormat::Bf16)] {
        let kept = if format == WeightFormat::Bf16 { rounded::<bf16>(&weights) } else { weights.clone() };
        let expected = Reference::new(&kept).logits(&ids, PsiAt::deterministic(Psi::Relu));
        let options = EngineOptions { prefill, weights: format, ..EngineOptions::new(Psi::Relu) };
        let mut engine = cuda(&weights, options);
        let mut log_probs = Vec::new();
        // By products, then by a step.
        for part in [0..17, 17..22] {
            engine.log_probs(&ids[part.clone()], &ids[part.start + 1..part.end + 1], &mut log_probs).unwrap();
        }
        assert_eq!((log_probs.len(), engine.position()), (22, 22));
        for (t, log_prob) in log_probs.iter().enumerate() {
            let row = &expected[t];
            let sum: f64 = row.iter().map(|e| e.exact.exp()).sum();
            let exact = row[ids[t + 1] as usize].exact - sum.ln();
            // A log-softmax moves by at most twice what the logits do, and is computed in f64.
            let bound = 2.0 * row.iter().map(|e| e.bound()).fold(0.0, f64::max) + 1e-12;
            assert!(
                (log_prob - exact).abs() <= bound,
                "cuda log_probs {format} at {t}: {log_prob}, expected {exact} within {bound:e}"
            );
        }
    }
}

/// A logit from which no distribution can be made is an error that names it, by products and by a step; the engine is as it was.
#[test]
fn log_probs_of_a_nan_are_refused() {
    let config = Config { tie_embeddings: false, ..models()[0].clone() };
    let weights = weights(&config, 6);
    let mut tensors = weights.tensors().to_vec();
    let lm_head = tensors.last_mut().unwrap();
    let mut values = lm_head.to_vec::<f32>().unwrap();
    values[7 * config.d_model] = f32::NAN;
    *lm_head = tensor::Tensor::from_slice(&values, lm_head.shape());
    let mut engine = cuda(&Weights::from_tensors(&config, tensors), EngineOptions::new(Psi::Relu));
    engine.prefill(&[1]).unwrap();
    for n in [3, 12] {
        let (ids, mut log_probs) = (tokens(&config, 1, n), vec![1.0]);
        let error = engine.log_probs(&ids, &ids, &mut log_probs).unwrap_err();
        assert!(
            matches!(error, Error::Logit { position: 2, token: 7, value } if value.is_nan()),
            "{n} tokens: {error}"
        );
        assert_eq!((log_probs, engine.position()), (vec![1.0], 1), "cuda log_probs of {n}: left a trace");
    }
}

#[test]
fn a_greedy_generation_has_the_tokens_of_the_cpus() {
    let config = &models()[0];
    let weights = weights(config, 9);
    let prompt = tokens(config, 3, 11);
    let request = Request { prompt: &prompt, max_tokens: 24, stop: &[], sample: 0 };
    for psi in [Psi::Relu, Psi::stochastic(0.5)] {
        let run = |engine: &mut dyn Engine| {
            let mut sampler = Sampler::new(Sampling::GREEDY).unwrap();
            generate(engine, &mut sampler, request, |_| ControlFlow::Continue(())).unwrap().tokens
        };
        let options = EngineOptions { seed: 4, ..EngineOptions::new(psi) };
        let expected = run(&mut CpuEngine::new(&weights, options.clone()).unwrap());
        assert_eq!(run(&mut cuda(&weights, options)), expected, "cuda generate under {psi}");
    }
}

#[test]
fn a_folder_opens_as_its_weights() {
    let config = &models()[0];
    let weights = weights(config, 9);
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), &weights, &Meta::new(Psi::Relu)).unwrap();
    let (device, options) = (device(), EngineOptions { weights: WeightFormat::Bf16, ..EngineOptions::new(Psi::Relu) });
    let mut opened = CudaEngine::open(dir.path(), options.clone(), &device).unwrap();
    let prompt = tokens(config, 3, 4);
    assert!(greedy(&mut opened, &prompt, 2) == greedy(&mut on(&device, &weights, options), &prompt, 2));
}

#[test]
fn what_a_gpu_does_not_have_is_refused_by_name() {
    let device = device();
    let refused = |config: &Config, options: EngineOptions| {
        CudaEngine::new(&weights(config, 1), options, &device).err().expect("accepted").to_string()
    };
    let (config, base) = (&models()[0], EngineOptions::new(Psi::Relu));
    for weights in WeightFormat::ALL.into_iter().filter(|w| !matches!(w, WeightFormat::F32 | WeightFormat::Bf16)) {
        let message = refused(config, EngineOptions { weights, ..base.clone() });
        assert_eq!(message, format!("weights = {weights}: must be f32 or bf16 on a GPU"));
    }
    for (options, words) in [
        (
            EngineOptions { ffn: FfnMode::Filtered, ..base.clone() },
            "ffn = filtered: must be dense, sparse or auto on a GPU",
        ),
        (EngineOptions { prompt_ffn: PromptFfn::Auto, ..base.clone() }, "prompt_ffn = auto: must be dense on a GPU"),
        (EngineOptions { context: Some(0), ..base.clone() }, "context = 0: must be 1 to 560"),
    ] {
        let message = refused(config, options);
        assert!(message.starts_with(words), "{message}");
    }
    let wide = Config { n_heads: 1, n_kv_heads: 1, head_dim: 130, ..config.clone() };
    assert_eq!(refused(&wide, base.clone()), "head_dim = 130: must be at most 128 on a GPU");
    let mut engine = on(&device, &weights(config, 1), base);
    assert!(engine.set_ffn(FfnMode::Filtered).is_err() && engine.options().ffn == FfnMode::Auto);
    assert!(matches!(engine.set_activation(Psi::Silu, FfnMode::Sparse), Err(Error::SparseNeedsRelu { .. })));
    assert_eq!(engine.options().psi, Psi::Relu);
}

/// Too little memory for a branch, or for a longer cache: what was asked for, what is free, what to lower; and the engine goes on.
#[test]
fn too_little_memory_is_told_and_changes_nothing() {
    let config = Config { max_seq_len: 300, ..models()[0].clone() };
    let weights = weights(&config, 2);
    let memory = |total| {
        let mut setup = Interpreter::default();
        setup.properties.total_memory = total;
        setup.device()
    };
    let Err(Error::Device(error)) = CudaEngine::new(&weights, EngineOptions::new(Psi::Relu), &memory(100_000)) else {
        panic!("100 kB are enough")
    };
    assert!(error.to_string().starts_with("out of memory on the interpreter: asked for"), "{error}");

    let needed = on(&memory(1 << 30), &weights, EngineOptions::new(Psi::Relu)).device().memory().peak;
    let mut engine = on(&memory(needed + 100_000), &weights, EngineOptions::new(Psi::Relu));
    let (mut logits, ids) = (Vec::new(), tokens(&config, 1, 9));
    logits.push(bits(engine.prefill(&ids).unwrap()));
    let error = engine.fork(7).unwrap_err().to_string();
    assert!(error.contains("free") && error.contains("-n"), "{error}");
    let error = engine.prefill(&tokens(&config, 1, 290)).unwrap_err().to_string();
    assert!(error.contains("asked for") && error.contains("--context"), "{error}");
    assert_eq!(engine.position(), 9, "cuda prefill without memory: left a trace");
    engine.truncate(8);
    logits.push(bits(engine.decode(ids[8]).unwrap()));
    let mut enough = cuda(&weights, EngineOptions::new(Psi::Relu));
    let mut expected = vec![bits(enough.prefill(&ids).unwrap())];
    enough.truncate(8);
    expected.push(bits(enough.decode(ids[8]).unwrap()));
    assert!(logits == expected, "cuda: what was refused changed the logits");
}
