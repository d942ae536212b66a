//! `silurian bench --device cuda gemm`: products of matrices.

use super::super::gemm as cpu;
use super::super::{Report, progress};
use super::cards::card;
use super::clock::{Gpu, Random, micros, rates};
use crate::table::{Cell, Column, Table};
use cuda::ops::gemm::{Mat, gemm};
use cuda::ops::gemm_bf16::gemm_bf16;
use cuda::{Error, SliceMut};
use half::bf16;
use kernels::Beta;
use std::fmt;

pub(super) use cpu::Operands;

const COLUMNS: [Column; 7] = [
    Column::text("operands", "operands"),
    Column::text("shape", "shape, M x N x K"),
    Column::text("of", "of"),
    Column::spread("micros", "us"),
    Column::spread("tflops", "TFLOP/s"),
    Column::number("best_percent", "share of the best, %"),
    Column::number("promised_percent", "share of the maker's figure, %"),
];

const METHOD: &str = "Y = X W^T, a linear layer, is NT; dX = dY W is NN; dW += dY^T X is TN. Uniform random operands. C is f32 where it is added to \
(TN) or operands are f32, else bf16, as in training. Two sets of matrices by turns. The best is the fastest row with these operands.";

/// The name of a type of operands.
fn name(operands: Operands) -> &'static str {
    match operands {
        Operands::F32 => "f32",
        Operands::Bf16 => "bf16",
    }
}

/// How A and B lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    NN,
    NT,
    TN,
}

impl Layout {
    pub const ALL: [Layout; 3] = [Layout::NN, Layout::NT, Layout::TN];
}

/// A product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub layout: Layout,
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

impl Shape {
    pub fn operations(&self) -> f64 {
        2.0 * self.m as f64 * self.n as f64 * self.k as f64
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} x {} x {}", self.layout, self.m, self.n, self.k)
    }
}

/// Squares, and for layers of the presets 125m and 1.5b the three products of a training step. The peer of benches/peers has the same.
fn default_shapes() -> Vec<(String, Shape)> {
    let squares = [4096, 8192]
        .into_iter()
        .flat_map(|size| Layout::ALL.map(|layout| ("square".to_string(), Shape { layout, m: size, n: size, k: size })));
    // Tokens of a micro-batch, inputs and outputs of a layer.
    let layers = [
        ("125m gate_proj", 16_384, 768, 2048),
        ("125m lm_head", 2048, 768, 32_000),
        ("1.5b q_proj", 8192, 2048, 2048),
        ("1.5b gate_proj", 8192, 2048, 5632),
        ("1.5b down_proj", 8192, 5632, 2048),
        ("1.5b lm_head", 2048, 2048, 32_000),
    ];
    let layers = layers.into_iter().flat_map(|(of, tokens, inputs, outputs)| {
        [
            Shape { layout: Layout::NT, m: tokens, n: outputs, k: inputs },
            Shape { layout: Layout::NN, m: tokens, n: inputs, k: outputs },
            Shape { layout: Layout::TN, m: outputs, n: inputs, k: tokens },
        ]
        .map(|shape| (of.to_string(), shape))
    });
    squares.chain(layers).collect()
}

pub(super) fn run(gpu: &Gpu, args: cpu::Args) -> anyhow::Result<Report> {
    let given: Vec<(String, Shape)> = args.shapes.iter().map(of_cpu).collect::<anyhow::Result<_>>()?;
    let shapes = if given.is_empty() { default_shapes() } else { given };
    let operands = if args.operands.is_empty() { vec![Operands::Bf16] } else { args.operands };
    Ok(Report::new(METHOD, vec![measure_all(gpu, &operands, &shapes)?]))
}

fn of_cpu(shape: &cpu::Shape) -> anyhow::Result<(String, Shape)> {
    let layout = match shape.transposes().as_str() {
        "NN" => Layout::NN,
        "NT" => Layout::NT,
        "TN" => Layout::TN,
        both => anyhow::bail!(
            "--shapes {both}: no layer needs both operands transposed, and the GPU's kernels do not take it"
        ),
    };
    let [m, n, k] = shape.sizes();
    Ok(("--shapes".to_string(), Shape { layout, m, n, k }))
}

fn measure_all(gpu: &Gpu, operands: &[Operands], shapes: &[(String, Shape)]) -> Result<Table, Error> {
    let mut table = Table::new("gemm", "GEMM".to_string(), &COLUMNS);
    let promised = card(&gpu.device.properties().name).map(|card| card.bf16_tflops);
    for &operands in operands {
        let mut times = Vec::new();
        for (_, shape) in shapes {
            progress(format_args!("gemm {} {shape}", name(operands)));
            let time = if gpu.is_over() { None } else { Some(measure(gpu, operands, *shape)?) };
            times.push(time.map(|seconds| (micros(&seconds), rates(1e-12 * shape.operations(), &seconds))));
        }
        let best = times.iter().flatten().map(|(_, rate)| rate.median).fold(0.0, f64::max);
        let promised = promised.filter(|_| operands == Operands::Bf16);
        for ((of, shape), time) in shapes.iter().zip(times) {
            let rate = time.map(|(_, rate)| rate.median);
            let share = |of: Option<f64>| Cell::from(rate.zip(of).map(|(rate, of)| 100.0 * rate / of));
            table.push(vec![
                name(operands).into(),
                shape.to_string().into(),
                of.clone().into(),
                time.map(|(micros, _)| micros).into(),
                time.map(|(_, rate)| rate).into(),
                share(Some(best)),
                share(promised),
            ]);
        }
    }
    Ok(table)
}

/// Seconds of a product, in each repetition.
pub(super) fn measure(gpu: &Gpu, operands: Operands, shape: Shape) -> Result<Vec<f64>, Error> {
    match (operands, shape.layout) {
        (Operands::Bf16, Layout::TN) => seconds(gpu, shape, gemm_bf16::<f32>),
        (Operands::Bf16, _) => seconds(gpu, shape, gemm_bf16::<bf16>),
        (Operands::F32, _) => seconds(gpu, shape, gemm),
    }
}

/// A kernel for operands of T and a result of C.
type Product<T, C> = fn(Mat<T>, Mat<T>, Beta, SliceMut<C>) -> Result<(), Error>;

fn seconds<T: Random, C: Random>(
    gpu: &Gpu,
    Shape { layout, m, n, k }: Shape,
    product: Product<T, C>,
) -> Result<Vec<f64>, Error> {
    const SETS: usize = 2;
    let beta = if layout == Layout::TN { Beta::One } else { Beta::Zero };
    let operands = (0..SETS).map(|_| Ok((gpu.random::<T>(m * k)?, gpu.random::<T>(k * n)?)));
    let operands = operands.collect::<Result<Vec<_>, Error>>()?;
    let mut c = gpu.random::<C>(m * n)?;
    let timed = gpu.calls(SETS, |set| {
        let (a, b) = (operands[set].0.as_slice(), operands[set].1.as_slice());
        let a = if layout == Layout::TN { Mat::new(a, k, m).t() } else { Mat::new(a, m, k) };
        let b = if layout == Layout::NT { Mat::new(b, n, k).t() } else { Mat::new(b, k, n) };
        product(a, b, beta, c.as_mut())
    });
    gpu.seconds(timed?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_and_type_is_measured() {
        let shapes = Layout::ALL.map(|layout| ("a test".to_string(), Shape { layout, m: 8, n: 16, k: 24 }));
        let table = measure_all(&Gpu::of_a_test(), &[Operands::Bf16, Operands::F32], &shapes).unwrap();
        let json = table.json();
        let rows = json["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 6);
        assert_eq!((&rows[1]["shape"], &rows[3]["operands"]), (&"NT 8 x 16 x 24".into(), &"f32".into()));
        // A millisecond by the interpreter's clock.
        assert_eq!(rows[0]["tflops"].as_f64(), Some(6.144e-6));
        assert_eq!(rows[0]["best_percent"].as_f64(), Some(100.0));
        assert_eq!(default_shapes().len(), 24);
    }
}
