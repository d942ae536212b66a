//! `silurian bench --device cuda ffn`: what zeros are worth for the FFN of one token.

use super::super::{Report, parse_percent, progress};
use super::clock::{Gpu, micros};
use crate::table::{Cell, Column, Spread, Table};
use anyhow::ensure;
use cuda::ops::elementwise::narrow;
use cuda::ops::ffn::{FfnScratch, FfnWeights, ffn_dense, ffn_sparse};
use cuda::ops::strided::add_to_range;
use cuda::{Buffer, Error};
use half::bf16;
use kernels::testing::uniform;
use kernels::{Activation, Beta};

/// The FFN of one token on a GPU, with the zeros of RELU against all neurons, over a sweep of widths and zeros.
///
/// Weights in bf16, in as many layers as no cache holds; dense and sparse by turns, both replayed from a graph. They compute the same, bit for bit.
#[derive(clap::Args)]
pub struct Args {
    /// Width of the residual stream x neurons
    #[arg(long, value_name = "CxF,...", value_delimiter = ',', value_parser = parse_width,
          default_value = "2048x5632,2048x8192,4096x11008,4096x14336")]
    widths: Vec<Width>,

    /// Shares of zeros, in percent
    #[arg(long, value_name = "PERCENT,...", value_delimiter = ',', value_parser = parse_percent,
          default_value = "0,50,80,90,95,99")]
    zeros: Vec<f64>,
}

/// C and F.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Width {
    d_model: usize,
    d_ff: usize,
}

fn parse_width(text: &str) -> Result<Width, String> {
    let sizes: Option<Vec<usize>> = text.split('x').map(|n| n.parse().ok()).collect();
    match sizes.as_deref() {
        // F: what the kernels take.
        Some(&[d_model, d_ff]) if (1..=1 << 16).contains(&d_model) && (1..=1 << 16).contains(&d_ff) => {
            Ok(Width { d_model, d_ff })
        }
        _ => Err("expected CxF, 1 to 65536 each, as in 2048x5632".to_string()),
    }
}

const COLUMNS: [Column; 14] = [
    Column::number("d_model", "C"),
    Column::number("d_ff", "F"),
    Column::number("layers", "layers"),
    Column::number("zeros_percent", "zeros, %"),
    Column::spread("dense_us", "dense, us"),
    Column::number("dense_gbs", "GB/s"),
    Column::number("dense_copy_percent", "share of copying, %"),
    Column::spread("sparse_us", "sparse, us"),
    Column::number("sparse_gbs", "GB/s touched"),
    Column::number("sparse_copy_percent", "share of copying, %"),
    Column::spread("speed_up", "speed-up"),
    Column::number("byte_ceiling", "byte ceiling"),
    Column::number("ceiling_percent", "share of the ceiling, %"),
    Column::number("copy_gbs", "copying in this run, GB/s"),
];

const METHOD: &str = "bf16 weights of 8 layers and more, 512 MiB and more in all, taken by turns, each neuron active or not at random; dense and \
sparse by turns, replayed from a graph of all layers; the speed-up is the median of the ratios of neighbours. Bytes are those of the weights that have to \
be read: 6 F C dense, 2 F C + 4 A C with A active neurons sparse. The zeros are those that the kernel counted.";

/// Layers, at least.
const LAYERS: usize = 8;

pub(super) fn run(gpu: &Gpu, args: Args) -> anyhow::Result<Report> {
    ensure!(!args.widths.is_empty() && !args.zeros.is_empty(), "--widths and --zeros: at least one of each");
    let mut table = Table::new("ffn", "The FFN of one token, bf16".to_string(), &COLUMNS);
    let copy = gpu.copy_gbs()?;
    for width in args.widths {
        measure(gpu, width, &args.zeros, copy, &mut table)?;
    }
    Ok(Report::new(METHOD, vec![table]))
}

/// Weights of a layer: `[F, C]` each.
struct Layer {
    gate: Buffer<bf16>,
    up: Buffer<bf16>,
    down_t: Buffer<bf16>,
}

impl Layer {
    fn weights(&self) -> FfnWeights<'_, bf16> {
        FfnWeights { gate: self.gate.as_slice(), up: self.up.as_slice(), down_t: self.down_t.as_slice() }
    }
}

/// Makes a share `zeros` of the neurons of each gate inactive for x, at random places: the first element of x is as large as all others together may be,
/// and its weight decides the sign. `noise` and `gate` have room for a matrix.
fn set_zeros(
    layers: &mut [Layer],
    [noise, gate]: [&mut Buffer<f32>; 2],
    Width { d_model, d_ff }: Width,
    zeros: f64,
    gpu: &Gpu,
) -> Result<(), Error> {
    for (seed, layer) in layers.iter_mut().enumerate() {
        let draws = uniform(seed as u64, d_ff);
        let mut order: Vec<usize> = (0..d_ff).collect();
        order.sort_by(|&i, &j| draws[i].total_cmp(&draws[j]));
        // Beyond what is there already, which is below 1.
        let mut first = vec![2.0f32; d_ff];
        order[..(zeros * d_ff as f64).round() as usize].iter().for_each(|&neuron| first[neuron] = -2.0);
        gate.as_mut().copy_from(noise.as_slice())?;
        add_to_range(gpu.repeated(&first, d_ff)?.as_slice(), 1, d_model, gate.as_mut())?;
        narrow(gate.as_slice(), layer.gate.as_mut())?;
    }
    Ok(())
}

fn measure(gpu: &Gpu, width: Width, zeros: &[f64], copy: f64, table: &mut Table) -> Result<(), Error> {
    let Width { d_model: c, d_ff: f } = width;
    let elements = f * c;
    let count = gpu.sets(6 * elements).max(LAYERS);
    let make = |_| Ok(Layer { gate: gpu.stale(elements)?, up: gpu.random(elements)?, down_t: gpu.random(elements)? });
    let mut layers = (0..count).map(make).collect::<Result<Vec<_>, Error>>()?;
    let (mut noise, mut gate) = (gpu.random::<f32>(elements)?, gpu.stale::<f32>(elements)?);
    let mut x = uniform(3, c);
    x[0] = c as f32;
    let (x, mut y) = (gpu.repeated(&x, c)?, gpu.stale::<f32>(c)?);
    let mut scratch = FfnScratch::new(&gpu.device, f, c)?;
    for &percent in zeros {
        progress(format_args!("ffn {c} x {f}, {percent} % zeros"));
        let fixed: Vec<Cell> = vec![c.into(), f.into(), count.into()];
        if gpu.is_over() {
            table.push(fixed.into_iter().chain([percent.into()]).chain([(); 10].map(|_| Cell::Absent)).collect());
            continue;
        }
        set_zeros(&mut layers, [&mut noise, &mut gate], width, percent / 100.0, gpu)?;
        let mut active = 0;
        for layer in &layers {
            ffn_sparse(layer.weights(), x.as_slice(), &mut scratch, Beta::Zero, y.as_mut())?;
            active += scratch.counts().to_vec()?.iter().sum::<u32>() as usize;
        }
        let active = active as f64 / count as f64;
        let sparse = gpu.recorded(count, |layer| {
            ffn_sparse(layers[layer].weights(), x.as_slice(), &mut scratch, Beta::Zero, y.as_mut())
        })?;
        let dense = gpu.recorded(count, |layer| {
            ffn_dense(layers[layer].weights(), Activation::Relu, x.as_slice(), &mut scratch, Beta::Zero, y.as_mut())
        })?;
        let [dense, sparse] = gpu.by_turns([dense, sparse])?;
        let speed_up = Spread::of(dense.iter().zip(&sparse).map(|(dense, sparse)| dense / sparse));
        let bytes = [6.0 * elements as f64, 2.0 * elements as f64 + 4.0 * active * c as f64];
        let ceiling = bytes[0] / bytes[1];
        let gbs = |bytes: f64, seconds: &[f64]| 1e-9 * bytes / Spread::of(seconds.iter().copied()).median;
        let (dense_gbs, sparse_gbs) = (gbs(bytes[0], &dense), gbs(bytes[1], &sparse));
        let measured: [Cell; 11] = [
            (100.0 * (1.0 - active / f as f64)).into(),
            micros(&dense).into(),
            dense_gbs.into(),
            (100.0 * dense_gbs / copy).into(),
            micros(&sparse).into(),
            sparse_gbs.into(),
            (100.0 * sparse_gbs / copy).into(),
            speed_up.into(),
            ceiling.into(),
            (100.0 * speed_up.median / ceiling).into(),
            copy.into(),
        ];
        table.push(fixed.into_iter().chain(measured).collect());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_read() {
        assert_eq!(parse_width("2048x5632"), Ok(Width { d_model: 2048, d_ff: 5632 }));
        for wrong in ["", "2048", "2048x", "0x5", "5x0", "1x2x3", "8x65537", "-1x4"] {
            assert!(parse_width(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_sweep_has_the_zeros_that_were_asked_for() {
        let (mut table, zeros) = (Table::new("ffn", String::new(), &COLUMNS), [0.0, 50.0, 90.0, 100.0]);
        measure(&Gpu::of_a_test(), Width { d_model: 24, d_ff: 100 }, &zeros, 2.0, &mut table).unwrap();
        let json = table.json();
        let rows = json["rows"].as_array().unwrap();
        assert_eq!(rows.len(), zeros.len());
        for (row, zeros) in rows.iter().zip(zeros) {
            assert_eq!(row["zeros_percent"].as_f64(), Some(zeros));
            assert_eq!(
                row["byte_ceiling"].as_f64().unwrap(),
                format!("{:.5e}", 3.0 / (1.0 + 2.0 * (1.0 - zeros / 100.0))).parse::<f64>().unwrap()
            );
            // Three launches each, by the interpreter's clock.
            assert_eq!(row["dense_us"].as_f64(), Some(3000.0));
        }
    }
}
