//! The FFN of several tokens at once: the union of their active neurons is what has to be read.

use super::{Sizes, sizes_in_words};
use crate::bench::plot::Picture;
use crate::bench::{Formats, Setting, large_block, progress, read_now, read_percent, seconds};
use crate::table::{Column, Spread, Table};
use half::bf16;
use infer::{ActivationFormat, WeightFormat, sparse_break_even};
use kernels::packed::PackedBf16;
use kernels::quant::{I8Dot, Q4, Q8};
use kernels::sparse::{BatchCounts, FfnScratch, ffn_dense_batch, ffn_sparse, ffn_sparse_batch};
use kernels::testing::SparseInputs;
use kernels::{Activation, Level, RowFormat, Team};
use silurian::synthetic::FfnLayers;
use std::fmt;
use tensor::pool::Block;
use train::html::plot::Look;

/// How the zeros of the tokens of a batch go together.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum Kind {
    /// They share a direction, and the neurons differ in what they make of it: the union is smaller than that of independent tokens
    Similar,
    /// Each has zeros at random, whatever the others have: with a share s of zeros the union of N is 1 - s^N, the worst case
    Independent,
}

impl Kind {
    fn tokens(self, d_model: usize, n: usize) -> SparseInputs {
        match self {
            Kind::Similar => SparseInputs::new(0, d_model, n),
            Kind::Independent => SparseInputs::independent(0, d_model, n),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Similar => "similar",
            Kind::Independent => "independent",
        })
    }
}

pub(super) const METHOD: &str = "Dense and sparse batches, the sparse FFN of one of the tokens, and a pass over 512 MiB in huge pages by turns; \
speed-ups and shares of reading are medians of the ratios of neighbours. Every token has zeros of its own, and the union is the share of \
neurons that any of them needs: of independent tokens 1 - s^N at a share s of zeros. The byte ceiling is that of the union; where arithmetic is the \
limit, its ceiling is that of one token. Auto is what the engine would take.";

pub(super) const PICTURE: Picture = Picture {
    title: "The sparse FFN of a batch over the dense one",
    by: &["weights", "threads", "kind", "zeros_asked_percent"],
    x: ("batch", "tokens at once"),
    y: "times as fast as dense",
    curves: &[("speed_up", "sparse", Look::Heavy), ("byte_ceiling", "the union's bytes allow", Look::Dashed)],
};

const COLUMNS: [Column; 18] = [
    Column::text("level", "level"),
    Column::text("weights", "weights"),
    Column::number("threads", "threads"),
    Column::text("kind", "tokens are"),
    Column::number("zeros_asked_percent", "zeros asked for, %"),
    Column::number("batch", "tokens"),
    Column::number("zeros_percent", "zeros, %"),
    Column::number("union_percent", "union, %"),
    Column::spread("dense_us", "dense, us"),
    Column::number("dense_read_percent", "share of reading, %"),
    Column::number("dense_gflops", "GFLOP/s"),
    Column::spread("sparse_us", "sparse, us"),
    Column::spread("speed_up", "speed-up"),
    Column::text("auto", "auto"),
    Column::number("byte_ceiling", "byte ceiling of the union"),
    Column::number("arithmetic_ceiling", "arithmetic's ceiling"),
    Column::spread("over_one_by_one", "over one by one, sparse"),
    Column::spread("read_gbs", "reading meanwhile, GB/s"),
];

/// The sweep over tokens and zeros.
pub(super) fn ffn(
    sizes: &Sizes,
    (batches, kinds): (&[usize], &[Kind]),
    zeros: &[f64],
    formats: &[Formats],
    setting: &Setting,
) -> anyhow::Result<Table> {
    let title = format!("The FFN of several tokens at once: {}", sizes_in_words(sizes));
    let mut table = Table::new("ffn_batch", title, &COLUMNS);
    let (teams, large) = (setting.teams(Level::from_env()?)?, large_block());
    let sweep =
        Sweep { sizes, batches, kinds, zeros, teams: &teams, large: &large, repetitions: setting.repetitions(9) };
    for &format in formats {
        match (format.weights, format.activations) {
            (WeightFormat::F32, _) => sweep.of::<f32>(format, &mut table),
            (WeightFormat::Bf16, _) => sweep.of::<bf16>(format, &mut table),
            (WeightFormat::Bf16Packed, _) => sweep.of::<PackedBf16>(format, &mut table),
            (WeightFormat::Q8, ActivationFormat::Exact) => sweep.of::<Q8>(format, &mut table),
            (WeightFormat::Q4, ActivationFormat::Exact) => sweep.of::<Q4>(format, &mut table),
            (WeightFormat::Q8, ActivationFormat::Q8) => sweep.of::<I8Dot<8>>(format, &mut table),
            (WeightFormat::Q4, ActivationFormat::Q8) => sweep.of::<I8Dot<4>>(format, &mut table),
        }
    }
    Ok(table)
}

struct Sweep<'a> {
    sizes: &'a Sizes,
    batches: &'a [usize],
    kinds: &'a [Kind],
    zeros: &'a [f64],
    teams: &'a [Team],
    large: &'a Block,
    repetitions: usize,
}

impl Sweep<'_> {
    fn of<W: RowFormat>(&self, format: Formats, table: &mut Table) {
        let &Sizes { layers, d_model, d_ff } = self.sizes;
        let most = *self.batches.iter().max().expect("the flag has a value");
        progress(format_args!("sparse, batches, {}", W::NAME));
        let mut ffns = FfnLayers::<W>::new(layers, d_model, d_ff);
        for &kind in self.kinds {
            ffns.set_tokens(kind.tokens(d_model, most));
            let x = ffns.input();
            for &percent in self.zeros {
                ffns.set_zeros(percent / 100.0);
                for (team, &n) in self.teams.iter().flat_map(|team| self.batches.iter().map(move |n| (team, n))) {
                    progress(format_args!(
                        "sparse, {n} tokens ({kind}), {}, {percent} % zeros, -t {}",
                        W::NAME,
                        team.threads()
                    ));
                    let row = self.measure(team, &ffns, &x[..n * d_model], n);
                    row.push(team, format, (kind, percent, n), table);
                }
            }
        }
    }

    fn measure<W: RowFormat>(&self, team: &Team, ffns: &FfnLayers<W>, x: &[f32], n: usize) -> Row {
        let (mut y, mut scratch) = (vec![0.0; x.len()], FfnScratch::default());
        let (layers, d_model) = (ffns.count(), self.sizes.d_model);
        let acts = vec![Activation::Relu; n];
        let mut row = Row {
            ffns: (layers, d_model, ffns.d_ff()),
            bytes: FfnLayers::<W>::bytes(1, d_model, ffns.d_ff()) as f64,
            ..Row::default()
        };
        // Repetition 0 warms up.
        for repetition in 0..=self.repetitions {
            row.counts = BatchCounts::default();
            let read = read_now(team, self.large);
            let dense = seconds(|| {
                for layer in 0..layers {
                    ffn_dense_batch(team, ffns.weights(layer), &acts, x, &mut scratch, &mut y);
                }
            });
            let sparse = seconds(|| {
                for layer in 0..layers {
                    let counts = ffn_sparse_batch(team, ffns.weights(layer), n, x, &mut scratch, &mut y);
                    row.counts.active += counts.active;
                    row.counts.union += counts.union;
                }
            });
            let token = repetition % n * d_model;
            let one = seconds(|| {
                for layer in 0..layers {
                    ffn_sparse(team, ffns.weights(layer), &x[token..][..d_model], &mut scratch, &mut y[..d_model]);
                }
            });
            if repetition > 0 {
                row.dense.push(dense / layers as f64);
                row.sparse.push(sparse / layers as f64);
                row.one.push(one / layers as f64);
                row.read.push(read);
            }
        }
        row
    }
}

/// What was measured for a batch.
#[derive(Default)]
struct Row {
    /// Layers, d_model, d_ff.
    ffns: (usize, usize, usize),
    /// Of a layer.
    bytes: f64,
    /// Of all layers.
    counts: BatchCounts,
    /// Seconds of a layer, repetition by repetition.
    dense: Vec<f64>,
    sparse: Vec<f64>,
    /// Of one token.
    one: Vec<f64>,
    /// GB/s of reading.
    read: Vec<f64>,
}

impl Row {
    fn push(&self, team: &Team, format: Formats, (kind, asked, n): (Kind, f64, usize), table: &mut Table) {
        let us = |times: &[f64]| Spread::of(times.iter().map(|t| 1e6 * t));
        let over = |times: &[f64], scale: f64| {
            Spread::of(times.iter().zip(&self.sparse).map(|(time, sparse)| scale * time / sparse))
        };
        let (layers, d_model, d_ff) = self.ffns;
        let neurons = (layers * d_ff) as f64;
        let active = self.counts.active as f64 / (neurons * n as f64);
        let union = self.counts.union as f64 / neurons;
        let sparse = active < sparse_break_even(format.weights, n) as f64;
        let gbs: Vec<f64> = self.dense.iter().map(|t| self.bytes / t / 1e9).collect();
        let flop = (6 * n * d_ff * d_model) as f64;
        table.push(vec![
            team.level().to_string().into(),
            format.to_string().into(),
            team.threads().into(),
            kind.to_string().into(),
            asked.into(),
            n.into(),
            (100.0 * (1.0 - active)).into(),
            (100.0 * union).into(),
            us(&self.dense).into(),
            read_percent(&gbs, &self.read).into(),
            Spread::of(self.dense.iter().map(|t| flop / t / 1e9)).median.into(),
            us(&self.sparse).into(),
            over(&self.dense, 1.0).into(),
            if sparse { "sparse" } else { "dense" }.into(),
            (3.0 / (1.0 + 2.0 * union)).into(),
            (3.0 / (1.0 + 2.0 * active)).into(),
            over(&self.one, n as f64).into(),
            Spread::of(self.read.iter().copied()).into(),
        ]);
    }
}
