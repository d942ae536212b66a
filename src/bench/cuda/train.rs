//! `silurian bench --device cuda train`: whole training steps against the peak of the card's matrices.

use super::super::train as cpu;
use super::super::{Report, progress, seconds};
use super::cards::card;
use super::clock::{Gpu, rates};
use super::gemm::{Layout, Operands, Shape};
use crate::table::{Cell, Column, Spread, Table};
use cpu::Size;
use cuda::Error;
use model::{Precision, Psi, PsiAt};
use silurian::synthetic::TrainStep;
use tensor::Device;
use tensor::failure::{Failure, catch};

const COLUMNS: [Column; 11] = [
    Column::text("model", "model"),
    Column::number("parameters", "parameters"),
    Column::text("precision", "precision"),
    Column::text("step", "B x T"),
    Column::text("activation", "activation"),
    Column::spread("tokens_per_second", "tokens/s"),
    Column::spread("tflops", "TFLOP/s"),
    Column::number("product_percent", "share of gemm_bf16, %"),
    Column::number("mfu_percent", "MFU, %"),
    Column::number("memory_mib", "buffers at most, MiB"),
    Column::text("remark", "remark"),
];

const METHOD: &str = "Whole steps (forward, backward, the gradient's norm, AdamW) after two to warm up, in wall time, on random tokens. TFLOP/s by the \
model's arithmetic: 6 for each parameter of a projection or of the LM head and token, and attention over the causal half; what backward computes again is not \
counted. MFU is their share of the maker's figure for bf16 (see limits); the other share is of gemm_bf16 at 8192 cubed in this run.";

pub(super) fn run(gpu: &Gpu, args: &cpu::Args) -> anyhow::Result<Report> {
    let square = Shape { layout: Layout::NT, m: 8192, n: 8192, k: 8192 };
    let product = rates(1e-12 * square.operations(), &super::gemm::measure(gpu, Operands::Bf16, square)?).median;
    let sizes = args.sizes(&["15m", "125m", "1.5b"])?;
    let precisions = if args.precision.is_empty() { vec![Precision::Bf16] } else { args.precision.clone() };
    Ok(Report::new(METHOD, vec![measure_all(gpu, &sizes, &precisions, args.activation, product)]))
}

fn measure_all(gpu: &Gpu, sizes: &[Size], precisions: &[Precision], activation: Psi, product: f64) -> Table {
    let mut table = Table::new("train", "Training".to_string(), &COLUMNS);
    let peak = card(&gpu.device.properties().name).map(|card| card.bf16_tflops);
    for (size, &precision) in sizes.iter().flat_map(|size| precisions.iter().map(move |precision| (size, precision))) {
        let measured =
            if gpu.is_over() { Err("the time was up".to_string()) } else { measure(gpu, size, precision, activation) };
        let flops = size.config.flops_per_token(size.seq_len);
        let tflops = |rate: Spread| {
            let per_token = 1e-12 * (flops.forward + flops.backward);
            Spread { median: per_token * rate.median, min: per_token * rate.min, max: per_token * rate.max }
        };
        let rate = measured.as_ref().ok().map(|(rate, _)| *rate);
        let share = |of: Option<f64>| Cell::from(rate.zip(of).map(|(rate, of)| 100.0 * tflops(rate).median / of));
        table.push(vec![
            size.name.clone().into(),
            size.config.parameters().into(),
            precision.to_string().into(),
            format!("{} x {}", size.micro_batch, size.seq_len).into(),
            activation.to_string().into(),
            rate.into(),
            rate.map(tflops).into(),
            share(Some(product)),
            share(peak),
            measured.as_ref().ok().map(|(_, mib)| *mib).into(),
            measured.err().unwrap_or_default().into(),
        ]);
    }
    table
}

/// Tokens a second, and the most MiB of buffers; or what was in the way.
fn measure(gpu: &Gpu, size: &Size, precision: Precision, activation: Psi) -> Result<(Spread, usize), String> {
    const WARM_UP: usize = 2;
    progress(format_args!("train, {}, {precision}: weights", size.name));
    let device = Device::Cuda(gpu.device.clone());
    let steps = || -> Result<Vec<f64>, Error> {
        let step = TrainStep::new(&size.config, size.micro_batch, size.seq_len, &device)?;
        let mut step = step.with_precision(precision);
        let mut times = Vec::new();
        for i in 0..WARM_UP + gpu.repetitions() {
            // At least one that counts.
            if i > WARM_UP && gpu.is_over() {
                break;
            }
            let psi = PsiAt { psi: activation, seed: 0, first_token: 0, step: i as u32 };
            let mut done = Ok(());
            times.push(seconds(|| {
                step.run(psi);
                done = gpu.device.synchronize();
            }));
            done?;
            progress(format_args!("train, {}: step {} took {:.3} s", size.name, i + 1, times[i]));
        }
        Ok(times.split_off(WARM_UP))
    };
    let outcome = match catch(steps) {
        Ok(Ok(times)) => Ok(rates((size.micro_batch * size.seq_len) as f64, &times)),
        Ok(Err(error)) | Err(Failure { error, .. }) => Err(error.to_string()),
    };
    let peak = gpu.device.memory().peak >> 20;
    // For the next one, which may need other sizes.
    gpu.device.trim().map_err(|error| error.to_string())?;
    outcome.map(|rate| (rate, peak))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::preset;

    fn tiny() -> Size {
        let config = preset("tiny", 7).unwrap();
        let config = model::Config { n_layers: 1, d_model: 16, head_dim: 4, d_ff: 24, ..config };
        Size { name: "tiny".to_string(), config, micro_batch: 2, seq_len: 4 }
    }

    #[test]
    fn a_step_is_timed_and_what_does_not_fit_is_told() {
        let mut large = tiny();
        // More logits' weights than the device has memory for.
        (large.name, large.config.vocab_size) = ("large".to_string(), 1 << 14);
        let properties = cuda::driver::Properties { total_memory: 1 << 19, ..gpu_properties() };
        let device = cuda_testing::Interpreter { properties, ..Default::default() }.device();
        let gpu = Gpu::on_a_test(device);
        let table = measure_all(&gpu, &[tiny(), large], &[Precision::Bf16, Precision::F32], Psi::stochastic(0.5), 2.0);
        let json = table.json();
        let rows = json["rows"].as_array().unwrap();
        for (row, precision) in rows.iter().zip(["bf16", "f32"]) {
            assert!(row["tokens_per_second"].as_f64().unwrap() > 0.0, "{rows:?}");
            assert_eq!((&row["remark"], &row["precision"]), (&"".into(), &precision.into()));
        }
        assert!(
            rows[2]["tokens_per_second"].is_null() && rows[2]["remark"].as_str().unwrap().contains("out of memory"),
            "{rows:?}"
        );
    }

    fn gpu_properties() -> cuda::driver::Properties {
        cuda_testing::Interpreter::default().properties
    }
}
