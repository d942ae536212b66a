//! `silurian bench limits`: what no kernel can beat here.

use super::machine::require_memory;
use super::table::{Cell, Column, Spread, Table};
use super::{LARGE, Report, Setting, large_block, progress, read_limit};
use kernels::limits::{Dot, Store, copy_gbs, dot_gops, fma_gflops, write_gbs};
use kernels::{Isa, Level};

const COLUMNS: [Column; 6] = [
    Column::text("limit", "limit"),
    Column::text("with", "with"),
    Column::number("threads", "threads"),
    Column::text("unit", "unit"),
    Column::number("best", "best"),
    Column::spread("rate", "median of the repetitions"),
];

const METHOD: &str = "A repetition is the best of 24 passes, because noise only slows; the limit is the best repetition. Arithmetic: \
independent chains of one instruction in registers, a product and an addition count 2. Reading: the sum of 512 MiB in huge pages, \
the best 32 MiB. Writing and copying: whole passes over 512 MiB; GB/s (1e9 bytes) count what is written, and for copying what is \
read besides; \"streaming\" goes past the caches.";

/// One line of the table, measured.
struct Row {
    limit: &'static str,
    with: String,
    unit: &'static str,
    /// Of the repetitions; empty if the CPU cannot.
    rates: Vec<f64>,
}

pub(super) fn run(setting: &Setting) -> anyhow::Result<Report> {
    require_memory("bench limits", 8 * LARGE as u64)?;
    let repetitions = setting.repetitions(5);
    let (large, mut copy) = (large_block(), large_block());
    let mut table = Table::new("limits", "Limits".to_string(), &COLUMNS);
    for &threads in &setting.threads {
        let one = |level| Setting { repetitions: None, threads: vec![threads] }.teams(level).map(|mut t| t.remove(0));
        let levels: Vec<_> = Isa::ALL.into_iter().rev().map(|isa| (isa, Level::new(isa).ok())).collect();
        let mut teams = Vec::new();
        for (isa, level) in levels {
            teams.push((isa, level.map(one).transpose()?));
        }
        let team = one(Level::best())?;
        let mut rows: Vec<Row> = Vec::new();
        for repetition in 1..=repetitions {
            progress(format_args!("limits, -t {threads}, repetition {repetition} of {repetitions}"));
            let mut add = |limit, with: &str, unit, rate: Option<f64>| match rows
                .iter_mut()
                .find(|r| r.limit == limit && r.with == with)
            {
                Some(row) => row.rates.extend(rate),
                None => rows.push(Row { limit, with: with.to_string(), unit, rates: rate.into_iter().collect() }),
            };
            for (isa, team) in &teams {
                add("f32 multiply-add", isa.name(), "GFLOP/s", team.as_ref().map(fma_gflops));
            }
            for (limit, dot) in ["bf16 dot", "int8 dot", "int8 dot"].into_iter().zip(Dot::ALL) {
                add(limit, dot.name(), "GOP/s", dot_gops(&team, dot));
            }
            let level = team.level().to_string();
            add("read", &level, "GB/s", Some(read_limit(&team, &large)));
            for (store, with) in [(Store::Cached, level.as_str()), (Store::Streaming, "streaming stores")] {
                let copy = &mut copy.elements_mut()[..LARGE];
                add("copy", with, "GB/s", copy_gbs(&team, &large.elements()[..LARGE], copy, store));
                add("write", with, "GB/s", write_gbs(&team, copy, store));
            }
        }
        for Row { limit, with, unit, rates } in rows {
            let spread = (!rates.is_empty()).then(|| Spread::of(rates));
            let with = if spread.is_none() { with + ": not on this CPU" } else { with };
            let best = Cell::from(spread.map(|s| s.max));
            table.push(vec![limit.into(), with.into(), threads.into(), unit.into(), best, spread.into()]);
        }
    }
    Ok(Report { method: METHOD.to_string(), tables: vec![table] })
}
