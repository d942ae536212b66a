//! `silurian bench --device cuda decode`: what zeros are worth for whole tokens.

use super::super::decode as cpu;
use super::super::{Report, progress, seconds};
use super::clock::{Gpu, rates};
use crate::table::{Cell, Column, Spread, Table};
use anyhow::{Context, ensure};
use cpu::Named;
use infer::{CudaEngine, Engine, EngineOptions, FfnMode, WeightFormat};
use model::{Psi, Weights};
use silurian::synthetic;

const COLUMNS: [Column; 12] = [
    Column::text("model", "model"),
    Column::text("weights", "weights"),
    Column::number("zeros_percent", "zeros, %"),
    Column::spread("dense_tokens_per_second", "dense, tokens/s"),
    Column::number("dense_gbs", "GB/s"),
    Column::number("dense_copy_percent", "share of copying, %"),
    Column::spread("sparse_tokens_per_second", "sparse, tokens/s"),
    Column::number("sparse_gbs", "GB/s touched"),
    Column::number("sparse_copy_percent", "share of copying, %"),
    Column::spread("speed_up", "speed-up"),
    Column::number("byte_ceiling", "byte ceiling"),
    Column::number("ceiling_percent", "share of the ceiling, %"),
];

const METHOD: &str = "Random weights, each neuron active or not whatever the token. A token is one graph; its time is the host's, from the token to its logits there. \
Dense and sparse by turns after a prompt of 32 tokens, 32 tokens a repetition; the speed-up is the median of the ratios of neighbours. Both give the same logits, bit for bit, which \
is verified. Bytes are those of the weights that a token has to read.";

const PROMPT: u32 = 32;
const TOKENS: u32 = 32;

pub(super) fn run(gpu: &Gpu, args: cpu::Args) -> anyhow::Result<Report> {
    ensure!(
        args.model.is_none() && args.plot.is_none() && args.tokens.is_none(),
        "--model, --plot and --tokens: for the CPU so far"
    );
    ensure!(args.activations == infer::ActivationFormat::Exact, "--activations: q8 is for the CPU");
    let models = if args.models.is_empty() { ["1.3b", "8b"].map(named).to_vec() } else { args.models };
    let weights = if args.weights.is_empty() { vec![WeightFormat::Bf16] } else { args.weights };
    let zeros = if args.zeros.is_empty() { vec![90.0] } else { args.zeros };
    let mut table = Table::new("decode", "Whole tokens".to_string(), &COLUMNS);
    let copy = gpu.copy_gbs()?;
    for model in &models {
        cpu::require_memory_of("decode", model)?;
        measure(gpu, model, &weights, &zeros, copy, &mut table)?;
    }
    Ok(Report::new(METHOD, vec![table]))
}

fn named(name: &str) -> Named {
    cpu::parse_named(name).expect("a name")
}

fn measure(
    gpu: &Gpu,
    model: &Named,
    formats: &[WeightFormat],
    zeros: &[f64],
    copy: f64,
    table: &mut Table,
) -> anyhow::Result<()> {
    progress(format_args!("decode, {}: making {} parameters", model.name, model.config.parameters()));
    let mut weights = synthetic::weights(&model.config);
    for &percent in zeros {
        synthetic::set_zeros(&mut weights, percent / 100.0);
        for &format in formats {
            let row = if gpu.is_over() {
                let fixed: [Cell; 3] = [model.name.clone().into(), format.to_string().into(), percent.into()];
                fixed.into_iter().chain([(); 9].map(|()| Cell::Absent)).collect()
            } else {
                progress(format_args!("decode, {}, {format}, {percent} % zeros", model.name));
                of_engine(gpu, model, &weights, format, copy).with_context(|| format!("model {}", model.name))?
            };
            table.push(row);
        }
    }
    Ok(())
}

/// A row: dense and sparse tokens by turns.
fn of_engine(
    gpu: &Gpu,
    Named { name, config }: &Named,
    weights: &Weights,
    format: WeightFormat,
    copy: f64,
) -> anyhow::Result<Vec<Cell>> {
    let context = Some((PROMPT + 1 + TOKENS) as usize);
    let options = EngineOptions { weights: format, context, ..EngineOptions::new(Psi::Relu) };
    let mut engine = CudaEngine::new(weights, options, &gpu.device)?;
    let vocab = config.vocab_size as u32;
    let prompt: Vec<u32> = (0..PROMPT).map(|i| i % vocab).collect();
    engine.prefill(&prompt)?;
    let mut times = [const { Vec::new() }; 2];
    // Repetition 0 warms up.
    for repetition in 0..=gpu.repetitions() {
        if repetition > 1 && gpu.is_over() {
            break;
        }
        let mut logits = [const { Vec::new() }; 2];
        for ((ffn, times), logits) in [FfnMode::Dense, FfnMode::Sparse].into_iter().zip(&mut times).zip(&mut logits) {
            engine.set_ffn(ffn)?;
            engine.rewind(PROMPT as usize, 0);
            // What is recorded anew for this way is recorded here.
            engine.decode(PROMPT % vocab)?;
            let mut outcome = Ok(());
            let time = seconds(|| {
                outcome = (1..=TOKENS).try_for_each(|i| engine.decode((PROMPT + i) % vocab).map(|_| ()));
            });
            outcome?;
            engine.truncate((PROMPT + TOKENS) as usize);
            logits.extend_from_slice(engine.decode((PROMPT + TOKENS) % vocab)?);
            if repetition > 0 {
                times.push(time / f64::from(TOKENS));
            }
        }
        ensure!(logits[0] == logits[1], "sparse and dense decoding differ: this is a bug");
    }
    let [active, neurons] = engine.density().iter().fold([0, 0], |[a, n], layer| [a + layer.active, n + layer.neurons]);
    let zeros = 1.0 - active as f64 / neurons as f64;
    let [dense, sparse] = times;
    let speed_up = Spread::of(dense.iter().zip(&sparse).map(|(dense, sparse)| dense / sparse));
    let bytes_each = format.row_bytes(config.d_model) as f64 / config.d_model as f64;
    let dense_bytes = cpu::read_parameters(config) as f64 * bytes_each;
    let sparse_bytes = dense_bytes - zeros * 2.0 / 3.0 * cpu::ffn_parameters(config) as f64 * bytes_each;
    let (dense, sparse) = (rates(1.0, &dense), rates(1.0, &sparse));
    let gbs = [1e-9 * dense_bytes * dense.median, 1e-9 * sparse_bytes * sparse.median];
    let ceiling = dense_bytes / sparse_bytes;
    Ok(vec![
        name.clone().into(),
        format.to_string().into(),
        (100.0 * zeros).into(),
        dense.into(),
        gbs[0].into(),
        (100.0 * gbs[0] / copy).into(),
        sparse.into(),
        gbs[1].into(),
        (100.0 * gbs[1] / copy).into(),
        speed_up.into(),
        ceiling.into(),
        (100.0 * speed_up.median / ceiling).into(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Config, preset};

    #[test]
    fn tokens_are_timed_dense_and_sparse() {
        let config = Config { n_layers: 2, d_model: 32, head_dim: 8, d_ff: 80, ..preset("tiny", 50).unwrap() };
        let model = Named { name: "tiny".to_string(), config };
        let mut table = Table::new("decode", String::new(), &COLUMNS);
        measure(&Gpu::of_a_test(), &model, &[WeightFormat::Bf16], &[75.0], 2.0, &mut table).unwrap();
        let json = table.json();
        let row = &json["rows"][0];
        assert_eq!(row["zeros_percent"].as_f64(), Some(75.0), "{row}");
        assert!(row["speed_up"].as_f64().unwrap() > 0.0, "{row}");
        let ceiling = row["byte_ceiling"].as_f64().unwrap();
        assert!(ceiling > 1.2 && ceiling < 2.0, "{row}");
        assert_eq!(named("8b").config.parameters() / 1_000_000, 8030);
    }
}
