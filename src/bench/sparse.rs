//! `silurian bench sparse`: what zeros are worth for the FFN alone. Whole tokens are [`decode`](super::decode)'s.

mod batch;

use super::machine::require_memory;
use super::plot::{self, Picture};
use super::{Formats, LARGE, Report, Setting, large_block, parse_percent, progress, read_now, read_percent, seconds};
use crate::source::{parse_activations, parse_weights};
use crate::table::{Column, Spread, Table};
use crate::terminal::bytes;
use anyhow::ensure;
use half::bf16;
use infer::{ActivationFormat, WeightFormat};
use kernels::packed::PackedBf16;
use kernels::quant::{I8Dot, Q4, Q8};
use kernels::row_format::FloatRows;
use kernels::sparse::{FfnScratch, Filtered, ffn_dense, ffn_filtered, ffn_sparse};
use kernels::{Activation, Level, RowFormat, Team};
use silurian::synthetic::FfnLayers;
use std::path::PathBuf;
use tensor::pool::Block;
use train::html::plot::Look;

/// The FFN of one token with the zeros of RELU against all neurons, over a sweep of zeros.
///
/// Random weights in as many layers as no cache holds. Dense, sparse and filtered run by turns and compute the same, bit for bit.
/// `silurian bench decode` has whole tokens, and real models.
#[derive(clap::Args)]
pub struct Args {
    /// Width of the residual stream
    #[arg(long, value_name = "C", default_value_t = 2048)]
    d_model: usize,

    /// Neurons of the FFN
    #[arg(long, value_name = "F", default_value_t = 5632)]
    d_ff: usize,

    /// FFNs taken by turns [default: as many as 1 GiB holds in f32, so that no cache does]
    #[arg(long, value_name = "N")]
    layers: Option<usize>,

    /// Shares of zeros, in percent
    #[arg(long, value_name = "PERCENT,...", value_delimiter = ',', value_parser = parse_percent,
          default_value = "0,50,80,85,90,95,99")]
    zeros: Vec<f64>,

    /// How weights are kept: f32, bf16, bf16-packed, q8, q4
    #[arg(long, value_name = "FORMAT,...", value_delimiter = ',', value_parser = parse_weights, default_value = "f32,bf16")]
    weights: Vec<WeightFormat>,

    /// What q8 and q4 weights are multiplied with: exact, x as it is, or q8, rounded to 8 bits
    #[arg(long, value_name = "FORMAT", default_value = "exact", value_parser = parse_activations)]
    activations: ActivationFormat,

    /// The FFN of so many tokens at once instead of one alone, each with zeros of its own
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=256))]
    batch: Vec<u16>,

    /// The tokens of a batch
    #[arg(
        long,
        value_name = "KIND,...",
        value_delimiter = ',',
        default_value = "similar,independent",
        requires = "batch"
    )]
    batch_of: Vec<batch::Kind>,

    /// Also write the curves beside their ceilings to this HTML file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

const SPARSE: Picture = Picture {
    title: "The sparse FFN over the dense one",
    by: &["weights", "threads"],
    x: ("zeros_percent", "zeros, %"),
    y: "times as fast as dense",
    curves: &[("speed_up", "sparse", Look::Heavy), ("byte_ceiling", "its bytes allow", Look::Dashed)],
};

const BY_FILTER: Picture = Picture {
    title: "The FFN with the bounded gate filter over the dense one",
    by: &["weights", "threads"],
    x: ("zeros_percent", "zeros, %"),
    y: "times as fast as dense",
    curves: &[("speed_up", "filtered", Look::Heavy), ("byte_ceiling", "its bytes allow", Look::Dashed)],
};

const COLUMNS: [Column; 14] = [
    Column::text("level", "level"),
    Column::text("weights", "weights"),
    Column::number("weights_mib", "all layers, MiB"),
    Column::number("threads", "threads"),
    Column::number("zeros_percent", "zeros, %"),
    Column::spread("dense_us", "dense, us"),
    Column::number("dense_gbs", "GB/s"),
    Column::number("dense_read_percent", "share of reading, %"),
    Column::spread("sparse_us", "sparse, us"),
    Column::number("sparse_gbs", "GB/s touched"),
    Column::number("sparse_read_percent", "share of reading, %"),
    Column::spread("speed_up", "speed-up"),
    Column::number("byte_ceiling", "byte ceiling"),
    Column::spread("read_gbs", "reading meanwhile, GB/s"),
];

/// Beside the rows of [`COLUMNS`] whose format has a filter, measured by turns with them.
const FILTERED: [Column; 12] = [
    Column::text("level", "level"),
    Column::text("weights", "weights"),
    Column::number("threads", "threads"),
    Column::number("zeros_percent", "zeros, %"),
    Column::number("survivors_percent", "survivors, %"),
    Column::spread("dense_us", "dense, us"),
    Column::spread("filtered_us", "filtered, us"),
    Column::number("filtered_gbs", "GB/s touched"),
    Column::number("filtered_read_percent", "share of reading, %"),
    Column::spread("speed_up", "speed-up over dense"),
    Column::number("byte_ceiling", "byte ceiling"),
    Column::spread("over_sparse", "speed-up over sparse"),
];

const BREAK_EVEN: [Column; 4] = [
    Column::text("weights", "weights"),
    Column::number("threads", "threads"),
    Column::number("zeros_percent", "break-even, % zeros"),
    Column::text("remark", "remark"),
];

const METHOD: &str = "Dense, sparse, filtered and a pass over 512 MiB in huge pages by turns; the speed-up and the shares of reading are \
medians of the ratios of neighbours. Bytes are those of the weights that have to be read.";

/// Sizes of the FFN's benchmark.
struct Sizes {
    layers: usize,
    d_model: usize,
    d_ff: usize,
}

pub(super) fn run(args: Args, setting: &Setting) -> anyhow::Result<Report> {
    let formats: Vec<Formats> = args.weights.iter().map(|&weights| Formats::new(weights, args.activations)).collect();
    let mut zeros = args.zeros;
    zeros.sort_by(f64::total_cmp);
    let sizes = sizes(args.d_model, args.d_ff, args.layers)?;
    args.plot.as_deref().map_or(Ok(()), plot::check)?;
    if !args.batch.is_empty() {
        let tokens: Vec<usize> = args.batch.into_iter().map(usize::from).collect();
        let table = batch::ffn(&sizes, (&tokens, &args.batch_of), &zeros, &formats, setting)?;
        return Ok(Report {
            page: args.plot,
            pictures: vec![("ffn_batch", batch::PICTURE)],
            ..Report::new(batch::METHOD, vec![table])
        });
    }
    let tables = ffn(&sizes, &zeros, &formats, setting)?.into();
    Ok(Report {
        page: args.plot,
        pictures: vec![("ffn", SPARSE), ("ffn_filtered", BY_FILTER)],
        ..Report::new(METHOD, tables)
    })
}

fn sizes(d_model: usize, d_ff: usize, layers: Option<usize>) -> anyhow::Result<Sizes> {
    const WIDEST: usize = 1 << 20;
    for (flag, value, most) in
        [("--d-model", d_model, WIDEST), ("--d-ff", d_ff, WIDEST), ("--layers", layers.unwrap_or(1), 1 << 16)]
    {
        ensure!((1..=most).contains(&value), "{flag} {value}: must be 1 to {most}");
    }
    // More than this many are small enough to be in a cache, whatever their number.
    let by_memory = (1u64 << 30).div_ceil(FfnLayers::<f32>::bytes(1, d_model, d_ff)).min(1024);
    let layers = layers.unwrap_or(by_memory as usize);
    // Filters take a byte for each element of a gate, and a gate is made in f32.
    let gate = FfnLayers::<f32>::bytes(1, d_model, d_ff) / 3;
    let needed = FfnLayers::<f32>::bytes(layers, d_model, d_ff).saturating_add(layers as u64 * gate / 4);
    let needed = needed.saturating_add(2 * gate + 4 * LARGE as u64);
    require_memory(&format!("bench sparse: {layers} FFNs of d_model {d_model} and d_ff {d_ff}"), needed)?;
    Ok(Sizes { layers, d_model, d_ff })
}

fn sizes_in_words(&Sizes { layers, d_model, d_ff }: &Sizes) -> String {
    format!("d_model {d_model}, d_ff {d_ff}, {layers} layers by turns")
}

/// The sweep, and where it begins to pay.
fn ffn(sizes: &Sizes, zeros: &[f64], formats: &[Formats], setting: &Setting) -> anyhow::Result<[Table; 3]> {
    let d_model = sizes.d_model;
    let title = format!("The FFN of one token: {}", sizes_in_words(sizes));
    let mut table = Table::new("ffn", title, &COLUMNS);
    let title = "The same with the bounded gate filter: rows of the gate are read for survivors alone".to_string();
    let mut filtered = Table::new("ffn_filtered", title, &FILTERED);
    let mut break_even = Table::new("break_even", "Zeros from which sparse is faster".to_string(), &BREAK_EVEN);
    let (teams, large) = (setting.teams(Level::from_env()?)?, large_block());
    let repetitions = setting.repetitions(15);
    for format in formats {
        let sweep = Sweep { sizes, zeros, teams: &teams, large: &large, repetitions };
        let rows = match (format.weights, format.activations) {
            (WeightFormat::F32, _) => sweep.of::<f32>(Some(Filter::NEW)),
            (WeightFormat::Bf16, _) => sweep.of::<bf16>(Some(Filter::NEW)),
            (WeightFormat::Bf16Packed, _) => sweep.of::<PackedBf16>(Some(Filter::NEW)),
            (WeightFormat::Q8, ActivationFormat::Exact) => sweep.of::<Q8>(None),
            (WeightFormat::Q4, ActivationFormat::Exact) => sweep.of::<Q4>(None),
            (WeightFormat::Q8, ActivationFormat::Q8) => sweep.of::<I8Dot<8>>(None),
            (WeightFormat::Q4, ActivationFormat::Q8) => sweep.of::<I8Dot<4>>(None),
        };
        for (team, rows) in teams.iter().zip(rows) {
            for row in &rows {
                row.push(team, *format, &mut table);
                if !row.filtered.is_empty() {
                    row.push_filtered(team, *format, d_model, &mut filtered);
                }
            }
            let curve: Vec<(f64, f64)> = rows.iter().map(|row| (100.0 * row.zeros, row.speed_up().median)).collect();
            let (at, remark) = crossing(&curve);
            break_even.push(vec![format.to_string().into(), team.threads().into(), at.into(), remark.into()]);
        }
    }
    Ok([table, break_even, filtered])
}

/// Team, layers, the layer's number, x, scratch, y.
type FfnOfLayer<W> = fn(&Team, &FfnLayers<W>, usize, &[f32], &mut FfnScratch, &mut [f32]) -> Filtered;

/// How an FFN of a format with a filter is computed filtered.
struct Filter<W> {
    make: fn(&mut FfnLayers<W>),
    run: FfnOfLayer<W>,
}

impl<W: FloatRows> Filter<W> {
    const NEW: Filter<W> = Filter {
        make: FfnLayers::make_filters,
        run: |team, ffns, layer, x, scratch, y| {
            ffn_filtered(team, ffns.weights(layer), ffns.filter(layer), x, scratch, y)
        },
    };
}

/// What is swept over, for a format.
struct Sweep<'a> {
    sizes: &'a Sizes,
    zeros: &'a [f64],
    teams: &'a [Team],
    large: &'a Block,
    repetitions: usize,
}

impl Sweep<'_> {
    /// For each team its rows.
    fn of<W: RowFormat>(&self, filter: Option<Filter<W>>) -> Vec<Vec<Row>> {
        let &Sizes { layers, d_model, d_ff } = self.sizes;
        let total = bytes(FfnLayers::<W>::bytes(layers, d_model, d_ff));
        progress(format_args!("sparse, FFN alone: {total} of {} weights", W::NAME));
        let mut ffns = FfnLayers::<W>::new(layers, d_model, d_ff);
        let x = ffns.input();
        let mut rows: Vec<Vec<Row>> = self.teams.iter().map(|_| Vec::new()).collect();
        for &percent in self.zeros {
            ffns.set_zeros(percent / 100.0);
            if let Some(filter) = &filter {
                (filter.make)(&mut ffns);
            }
            for (team, rows) in self.teams.iter().zip(&mut rows) {
                progress(format_args!("sparse, FFN alone, {}, {percent} % zeros, -t {}", W::NAME, team.threads()));
                rows.push(self.measure(team, &ffns, filter.as_ref(), &x));
            }
        }
        rows
    }

    fn measure<W: RowFormat>(&self, team: &Team, ffns: &FfnLayers<W>, filter: Option<&Filter<W>>, x: &[f32]) -> Row {
        let (mut y, mut scratch) = (vec![0.0; x.len()], FfnScratch::default());
        let (mut active, mut survivors) = (0, 0);
        let layers = ffns.count();
        let layer_bytes = FfnLayers::<W>::bytes(1, x.len(), ffns.d_ff()) as f64;
        let mut row = Row {
            zeros: 0.0,
            total_bytes: layer_bytes * layers as f64,
            layer_bytes,
            dense: Vec::new(),
            sparse: Vec::new(),
            filtered: Vec::new(),
            survivors: 0.0,
            read: Vec::new(),
        };
        // Repetition 0 warms up.
        for repetition in 0..=self.repetitions {
            (active, survivors) = (0, 0);
            let read = read_now(team, self.large);
            let dense = seconds(|| {
                for layer in 0..layers {
                    ffn_dense(team, ffns.weights(layer), Activation::Relu, x, &mut scratch, &mut y);
                }
            });
            let sparse = seconds(|| {
                for layer in 0..layers {
                    active += ffn_sparse(team, ffns.weights(layer), x, &mut scratch, &mut y);
                }
            });
            let filtered = filter.map(|filter| {
                seconds(|| {
                    for layer in 0..layers {
                        survivors += (filter.run)(team, ffns, layer, x, &mut scratch, &mut y).survivors;
                    }
                })
            });
            if repetition > 0 {
                row.dense.push(dense / layers as f64);
                row.sparse.push(sparse / layers as f64);
                row.filtered.extend(filtered.map(|time| time / layers as f64));
                row.read.push(read);
            }
        }
        let neurons = (ffns.d_ff() * layers) as f64;
        (row.zeros, row.survivors) = (1.0 - active as f64 / neurons, survivors as f64 / neurons);
        row
    }
}

/// What was measured at one share of zeros with one team.
struct Row {
    /// 0 to 1, counted.
    zeros: f64,
    /// Bytes of all layers that are taken by turns.
    total_bytes: f64,
    /// Bytes of a layer.
    layer_bytes: f64,
    /// Seconds of a layer, repetition by repetition.
    dense: Vec<f64>,
    sparse: Vec<f64>,
    /// Empty if the format has no filter.
    filtered: Vec<f64>,
    /// Share of neurons whose row of the gate the filter lets be read, counted.
    survivors: f64,
    /// GB/s of reading, repetition by repetition.
    read: Vec<f64>,
}

impl Row {
    fn speed_up(&self) -> Spread {
        Spread::of(self.dense.iter().zip(&self.sparse).map(|(dense, sparse)| dense / sparse))
    }

    fn push(&self, team: &Team, format: Formats, table: &mut Table) {
        let us = |times: &[f64]| Spread::of(times.iter().map(|t| 1e6 * t));
        let gbs = |times: &[f64], bytes: f64| times.iter().map(|t| bytes / t / 1e9).collect::<Vec<_>>();
        let ceiling = 3.0 / (1.0 + 2.0 * (1.0 - self.zeros));
        let (dense_gbs, sparse_gbs) =
            (gbs(&self.dense, self.layer_bytes), gbs(&self.sparse, self.layer_bytes / ceiling));
        table.push(vec![
            team.level().to_string().into(),
            format.to_string().into(),
            (self.total_bytes / (1u64 << 20) as f64).into(),
            team.threads().into(),
            (100.0 * self.zeros).into(),
            us(&self.dense).into(),
            Spread::of(dense_gbs.iter().copied()).median.into(),
            read_percent(&dense_gbs, &self.read).into(),
            us(&self.sparse).into(),
            Spread::of(sparse_gbs.iter().copied()).median.into(),
            read_percent(&sparse_gbs, &self.read).into(),
            self.speed_up().into(),
            ceiling.into(),
            Spread::of(self.read.iter().copied()).into(),
        ]);
    }

    fn push_filtered(&self, team: &Team, format: Formats, d_model: usize, table: &mut Table) {
        let us = |times: &[f64]| Spread::of(times.iter().map(|t| 1e6 * t));
        let over = |times: &[f64]| Spread::of(times.iter().zip(&self.filtered).map(|(time, filtered)| time / filtered));
        let weight = format.bytes(d_model);
        // Of an element of the gate: its quant with a share of the row's bound, its own bytes for survivors, two more for active neurons.
        let touched = 1.0 + 16.0 / d_model as f64 + weight * (self.survivors + 2.0 * (1.0 - self.zeros));
        let ceiling = 3.0 * weight / touched;
        let gbs: Vec<f64> = self.filtered.iter().map(|t| self.layer_bytes / ceiling / t / 1e9).collect();
        table.push(vec![
            team.level().to_string().into(),
            format.to_string().into(),
            team.threads().into(),
            (100.0 * self.zeros).into(),
            (100.0 * self.survivors).into(),
            us(&self.dense).into(),
            us(&self.filtered).into(),
            Spread::of(gbs.iter().copied()).median.into(),
            read_percent(&gbs, &self.read).into(),
            over(&self.dense).into(),
            ceiling.into(),
            over(&self.sparse).into(),
        ]);
    }
}

/// Where a curve of (zeros in percent, speed-up), by rising zeros, rises above 1 for good: between two of its points, on the
/// straight line.
fn crossing(curve: &[(f64, f64)]) -> (Option<f64>, String) {
    let Some(below) = curve.iter().rposition(|&(_, speed_up)| speed_up < 1.0) else {
        return (None, format!("faster from the first point on, {:.1} %", curve[0].0));
    };
    let (z0, s0) = curve[below];
    match curve.get(below + 1) {
        Some(&(z1, s1)) => (Some(z0 + (z1 - z0) * (1.0 - s0) / (s1 - s0)), format!("between {z0:.1} % and {z1:.1} %")),
        None => (None, format!("slower up to the last point, {z0:.1} %")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn break_even_is_where_the_speed_up_crosses_1() {
        let close = |curve: &[(f64, f64)], expected: Option<f64>| {
            let (at, remark) = crossing(curve);
            let fits = at.zip(expected).map_or(at == expected, |(a, e)| (a - e).abs() < 1e-9);
            assert!(fits && !remark.is_empty(), "{curve:?}: {at:?}, {remark}");
        };
        close(&[(0.0, 0.8), (50.0, 1.3), (80.0, 2.0)], Some(20.0));
        // A dip by noise: the last crossing counts.
        close(&[(0.0, 1.1), (10.0, 0.9), (20.0, 1.1)], Some(15.0));
        close(&[(0.0, 1.0), (50.0, 1.3)], None);
        close(&[(0.0, 0.5), (99.0, 0.9)], None);
    }
}
