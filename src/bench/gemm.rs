//! `silurian bench gemm`: products of matrices against the peak of multiplying and adding.

use super::machine::require_memory;
use super::{Report, Setting, progress, seconds};
use crate::table::{Cell, Column, Spread, Table};
use half::bf16;
use kernels::gemm::{gemm, gemm_bf16};
use kernels::limits::{Dot, dot_gops, fma_gflops};
use kernels::testing::uniform;
use kernels::{Beta, Isa, Level, Mat, MatMut, Team, Weight};
use std::fmt;
use tensor::pool::Block;

/// GEMM in f32 or bf16: squares, and the products of a training step with 2048 tokens.
///
/// Y = X W^T, a linear layer, is NT; dX = dY W is NN; dW = X^T dY, the gradient of a weight, is TN.
#[derive(clap::Args)]
pub struct Args {
    /// MxNxK (C[M,N] = A[M,K] B[K,N]), with NN:, NT:, TN: or TT: before it for how A and B lie in memory [default: NN]
    #[arg(long, value_name = "SHAPE,...", value_delimiter = ',', value_parser = parse_shape)]
    pub(super) shapes: Vec<Shape>,

    /// Instruction sets [default: that of KERNELS_SIMD, or else the best one here]
    #[arg(long, value_name = "LEVEL,...", value_delimiter = ',', value_parser = parse_level)]
    pub(super) levels: Vec<Level>,

    /// Elements of A and B; C is f32 on the CPU. bf16 multiplies by the dot product of bf16 where the CPU has one [default: f32, on a GPU bf16]
    #[arg(long, value_enum, value_name = "TYPE,...", value_delimiter = ',')]
    pub(super) operands: Vec<Operands>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Operands {
    F32,
    Bf16,
}

const COLUMNS: [Column; 8] = [
    Column::text("operands", "operands"),
    Column::text("level", "level"),
    Column::number("threads", "threads"),
    Column::text("shape", "shape, M x N x K"),
    Column::spread("gflops", "GFLOP/s"),
    Column::number("peak_gflops", "peak, GFLOP/s"),
    Column::number("peak_percent", "share of peak, %"),
    Column::number("best_percent", "of the best, %"),
];

const METHOD: &str = "Matrices in huge pages, C overwritten. A repetition is the mean of as many calls as take 5 ms; repetitions go \
round all shapes, and the peak (best of many passes of multiply-adds in registers, or of the dot product of bf16 where bf16 operands \
have it) is measured in each round. The shares are those of the median and of the best repetition.";

/// How A and B lie in memory, and the product's sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    a_transposed: bool,
    b_transposed: bool,
    m: usize,
    n: usize,
    k: usize,
}

impl Shape {
    const fn new(transposes: [bool; 2], m: usize, n: usize, k: usize) -> Shape {
        Shape { a_transposed: transposes[0], b_transposed: transposes[1], m, n, k }
    }

    /// M, N and K.
    pub(super) fn sizes(&self) -> [usize; 3] {
        [self.m, self.n, self.k]
    }

    /// `NT`: A is not transposed, and B is.
    pub(super) fn transposes(&self) -> String {
        [self.a_transposed, self.b_transposed].map(|t| if t { 'T' } else { 'N' }).iter().collect()
    }

    fn is_square(&self) -> bool {
        self.transposes() == "NN" && self.m == self.n && self.n == self.k
    }

    /// What it is averaged with.
    fn group(&self) -> String {
        if self.is_square() { "squares".to_string() } else { self.transposes() }
    }

    /// Elements of A, B and C.
    fn elements(&self) -> [usize; 3] {
        [self.m * self.k, self.k * self.n, self.m * self.n]
    }

    fn gflop(&self) -> f64 {
        2e-9 * self.m as f64 * self.n as f64 * self.k as f64
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} x {} x {}", self.transposes(), self.m, self.n, self.k)
    }
}

fn parse_shape(text: &str) -> Result<Shape, String> {
    /// Beyond any layer, and small enough that no number of elements leaves 64 bits.
    const MOST: usize = 1 << 24;
    let expected = || format!("expected MxNxK of 1 to {MOST} each, as in 512x512x512 or NT:2048x768x256");
    let (transposes, sizes) = text.split_once(':').unwrap_or(("NN", text));
    let transposes = match transposes {
        "NN" => [false, false],
        "NT" => [false, true],
        "TN" => [true, false],
        "TT" => [true, true],
        _ => return Err(expected()),
    };
    let sizes: Option<Vec<usize>> = sizes.split('x').map(|n| n.parse().ok()).collect();
    match sizes.as_deref() {
        Some(&[m, n, k]) if [m, n, k].iter().all(|size| (1..=MOST).contains(size)) => {
            Ok(Shape::new(transposes, m, n, k))
        }
        _ => Err(expected()),
    }
}

fn parse_level(name: &str) -> Result<Level, String> {
    let here = || Level::available().map(|level| level.to_string()).collect::<Vec<_>>().join(", ");
    let isa = name.parse::<Isa>().map_err(|_| format!("not a level; this CPU has {}", here()))?;
    Level::new(isa).map_err(|_| format!("this CPU lacks the instructions; it has {}", here()))
}

/// Squares, and for layers of K inputs and N outputs and 2048 tokens the three products of a training step.
fn default_shapes() -> Vec<Shape> {
    const TOKENS: usize = 2048;
    let squares = [512, 1024, 2048, 4096].map(|n| Shape::new([false, false], n, n, n));
    // The widths are those of the models of `bench train`, on which other software was timed.
    let layers = [(256, 768), (512, 1536), (768, 2048), (768, 3072), (2048, 768)];
    let products = layers.into_iter().flat_map(|(k, n)| {
        [
            Shape::new([false, false], TOKENS, n, k),
            Shape::new([false, true], TOKENS, n, k),
            Shape::new([true, false], k, n, TOKENS),
        ]
    });
    squares.into_iter().chain(products).collect()
}

pub(super) fn run(args: Args, setting: &Setting) -> anyhow::Result<Report> {
    let shapes = if args.shapes.is_empty() { default_shapes() } else { args.shapes };
    let levels = if args.levels.is_empty() { vec![Level::from_env()?] } else { args.levels };
    let most = [0, 1, 2].map(|i| shapes.iter().map(|shape| shape.elements()[i]).max().unwrap_or(0));
    // The random numbers of A and B come from a second copy.
    let bytes = most.iter().map(|&len| 8 * len as u64).sum();
    let names: Vec<String> = shapes.iter().map(Shape::to_string).collect();
    require_memory(&format!("bench gemm of {}", names.join(", ")), bytes)?;

    let mut table = Table::new("gemm", "GEMM".to_string(), &COLUMNS);
    let mut teams = Vec::new();
    for level in levels {
        teams.extend(setting.teams(level)?);
    }
    for operands in if args.operands.is_empty() { vec![Operands::F32] } else { args.operands } {
        let repetitions = setting.repetitions(5);
        match operands {
            Operands::F32 => measure_all(&F32, &teams, &shapes, repetitions, most, &mut table),
            Operands::Bf16 => measure_all(&BF16, &teams, &shapes, repetitions, most, &mut table),
        }
    }
    Ok(Report::new(METHOD, vec![table]))
}

/// A product of operands of one type.
struct Product<W> {
    multiply: fn(&Team, Mat<W>, Mat<W>, Beta, MatMut),
    /// The peak of its arithmetic, in GFLOP/s.
    peak: fn(&Team) -> f64,
}

const F32: Product<f32> = Product { multiply: gemm, peak: fma_gflops };

/// Without the dot product, bf16 operands are multiplied as f32.
const BF16: Product<bf16> = Product {
    multiply: gemm_bf16,
    peak: |team| {
        let dot = if team.level().has_dot_bf16() { dot_gops(team, Dot::Bf16) } else { None };
        dot.unwrap_or_else(|| fma_gflops(team))
    },
};

/// Room for the largest matrices.
struct Matrices {
    a: Block,
    b: Block,
    c: Block,
}

impl Matrices {
    fn new<W: Weight>(most: [usize; 3]) -> Matrices {
        let random = |seed, len| {
            let mut block = Block::new(size_of::<W>() * len);
            block.elements_mut::<W>().iter_mut().zip(uniform(seed, len)).for_each(|(w, x)| *w = W::round(x));
            block
        };
        Matrices { a: random(0, most[0]), b: random(1, most[1]), c: Block::new(4 * most[2]) }
    }

    fn multiply<W: Weight>(&mut self, team: &Team, product: &Product<W>, shape: &Shape) {
        let &Shape { a_transposed, b_transposed, m, n, k } = shape;
        let [a_len, b_len, c_len] = shape.elements();
        let (a, b) = (&self.a.elements()[..a_len], &self.b.elements()[..b_len]);
        let a = if a_transposed { Mat::new(a, k, m).t() } else { Mat::new(a, m, k) };
        let b = if b_transposed { Mat::new(b, n, k).t() } else { Mat::new(b, k, n) };
        (product.multiply)(team, a, b, Beta::Zero, MatMut::new(&mut self.c.elements_mut()[..c_len], m, n));
    }
}

fn measure_all<W: Weight>(
    product: &Product<W>,
    teams: &[Team],
    shapes: &[Shape],
    repetitions: usize,
    most: [usize; 3],
    table: &mut Table,
) {
    let mut matrices = Matrices::new::<W>(most);
    for team in teams {
        measure(team, product, shapes, repetitions, &mut matrices, table);
    }
}

fn measure<W: Weight>(
    team: &Team,
    product: &Product<W>,
    shapes: &[Shape],
    repetitions: usize,
    matrices: &mut Matrices,
    table: &mut Table,
) {
    let (level, threads) = (team.level(), team.threads());
    let (mut peak, mut rates) = (0.0f64, vec![Vec::new(); shapes.len()]);
    // Repetition 0 warms up: pages, packing buffers, helper threads.
    for repetition in 0..=repetitions {
        progress(format_args!("gemm, {}, {level}, -t {threads}, repetition {repetition} of {repetitions}", W::NAME));
        peak = peak.max((product.peak)(team));
        for (shape, rates) in shapes.iter().zip(&mut rates) {
            let mut multiply = || matrices.multiply(team, product, shape);
            if repetition == 0 {
                multiply();
                continue;
            }
            let (mut time, mut calls) = (0.0, 0);
            while time < 5e-3 {
                time += seconds(&mut multiply);
                calls += 1;
            }
            rates.push(shape.gflop() * calls as f64 / time);
        }
    }
    let spreads: Vec<Spread> = rates.into_iter().map(Spread::of).collect();
    let mut push = |shape: String, rate: Spread| {
        let share = |gflops: f64| Cell::from(100.0 * gflops / peak);
        table.push(vec![
            W::NAME.to_string().into(),
            level.to_string().into(),
            threads.into(),
            shape.into(),
            rate.into(),
            peak.into(),
            share(rate.median),
            share(rate.max),
        ]);
    };
    for (shape, rate) in shapes.iter().zip(&spreads) {
        push(shape.to_string(), *rate);
    }
    for name in ["squares", "NN", "NT", "TN", "TT"] {
        let group = shapes.iter().zip(&spreads).filter(|(shape, _)| shape.group() == name);
        let rates: Vec<Spread> = group.map(|(_, rate)| *rate).collect();
        if rates.len() > 1 {
            push(format!("geometric mean of {name}"), geometric_mean(&rates));
        }
    }
}

fn geometric_mean(rates: &[Spread]) -> Spread {
    let mean = |of: fn(&Spread) -> f64| (rates.iter().map(|r| of(r).ln()).sum::<f64>() / rates.len() as f64).exp();
    Spread { median: mean(|r| r.median), min: mean(|r| r.min), max: mean(|r| r.max) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_and_levels_are_read() {
        assert_eq!(parse_shape("2x3x4"), Ok(Shape::new([false, false], 2, 3, 4)));
        assert_eq!(parse_shape("TN:2x3x4").map(|s| s.to_string()), Ok("TN 2 x 3 x 4".to_string()));
        for wrong in ["", "2x3", "2x3x4x5", "2x0x4", "ab:2x3x4", "2x3x-4", "2x3x16777217", "2x3x99999999999999999999"] {
            assert!(parse_shape(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_level("scalar"), Ok(Level::SCALAR));
        assert!(parse_level("sse9").unwrap_err().contains("this CPU has scalar, portable"));
    }

    /// The list that other software was timed on.
    #[test]
    fn default_shapes_are_four_squares_and_five_layers() {
        let shapes = default_shapes();
        assert_eq!((shapes.len(), shapes.iter().filter(|s| s.is_square()).count()), (19, 4));
        assert!(shapes.contains(&parse_shape("TN:768x2048x2048").unwrap()));
    }
}
