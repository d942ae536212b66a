//! `silurian bench limits`: what no kernel can beat here.

use super::machine::require_memory;
use super::{LARGE, Report, Setting, large_block, progress, team};
use crate::table::{Column, Spread, Table};
use kernels::limits::{Dot, Store, copy_gbs, dot_gops, fma_gflops, read_gbs, write_gbs};
use kernels::{Isa, Level, Team};
use tensor::pool::Block;

const COLUMNS: [Column; 6] = [
    Column::text("limit", "limit"),
    Column::text("with", "with"),
    Column::number("threads", "threads"),
    Column::text("unit", "unit"),
    Column::number("best", "best"),
    Column::spread("rate", "median of the repetitions"),
];

const METHOD: &str = "A repetition is the best of many passes, because noise only slows; the limit is the best repetition. Arithmetic: \
independent chains of one instruction in registers, a product and an addition count 2. Reading: the sum of 512 MiB in huge pages, \
the best 32 MiB. Writing and copying: whole passes over 512 MiB; GB/s (1e9 bytes) count what is written, and for copying what is \
read besides; \"streaming\" goes past the caches.";

/// One line of the table in one repetition.
struct Measured {
    limit: &'static str,
    with: String,
    unit: &'static str,
    /// Absent if this CPU cannot.
    rate: Option<f64>,
}

/// The teams of one number of threads.
struct Teams {
    /// One for each instruction set that this CPU has.
    arithmetic: Vec<(Isa, Option<Team>)>,
    memory: Team,
}

impl Teams {
    fn new(threads: usize) -> anyhow::Result<Teams> {
        let present = |isa| Level::new(isa).ok().map(|level| team(level, threads)).transpose();
        let arithmetic = Isa::ALL.into_iter().rev().map(|isa| Ok((isa, present(isa)?)));
        Ok(Teams { arithmetic: arithmetic.collect::<anyhow::Result<_>>()?, memory: team(Level::from_env()?, threads)? })
    }

    fn measure(&self, large: &Block, copy: &mut Block) -> Vec<Measured> {
        let team = &self.memory;
        let level = team.level().to_string();
        let (src, dst) = (&large.elements()[..LARGE], &mut copy.elements_mut()[..LARGE]);
        let mut all = Vec::new();
        let mut add = |limit, with: &str, unit, rate| all.push(Measured { limit, with: with.to_string(), unit, rate });
        for (isa, team) in &self.arithmetic {
            add("f32 multiply-add", isa.name(), "GFLOP/s", team.as_ref().map(fma_gflops));
        }
        for (limit, dot) in ["bf16 dot", "int8 dot", "int8 dot"].into_iter().zip(Dot::ALL) {
            add(limit, dot.name(), "GOP/s", dot_gops(team, dot));
        }
        add("read", &level, "GB/s", Some(read_gbs(team, &large.elements()[..LARGE])));
        for (store, with) in [(Store::Cached, level.as_str()), (Store::Streaming, "streaming stores")] {
            add("write", with, "GB/s", write_gbs(team, dst, store));
            add("copy", with, "GB/s", copy_gbs(team, src, dst, store));
        }
        all
    }
}

pub(super) fn run(setting: &Setting) -> anyhow::Result<Report> {
    require_memory("bench limits", 8 * LARGE as u64)?;
    let repetitions = setting.repetitions(5);
    let (large, mut copy) = (large_block(), large_block());
    let mut table = Table::new("limits", "Limits".to_string(), &COLUMNS);
    for &threads in &setting.threads {
        let teams = Teams::new(threads)?;
        let mut lines: Vec<Vec<Measured>> = Vec::new();
        for repetition in 1..=repetitions {
            progress(format_args!("limits, -t {threads}, repetition {repetition} of {repetitions}"));
            lines.push(teams.measure(&large, &mut copy));
        }
        for (i, Measured { limit, with, unit, .. }) in lines[0].iter().enumerate() {
            let rates: Option<Vec<f64>> = lines.iter().map(|line| line[i].rate).collect();
            let spread = rates.map(Spread::of);
            let with = if spread.is_some() { with.clone() } else { format!("{with}: not on this CPU") };
            let best = spread.map(|s| s.max).into();
            table.push(vec![(*limit).into(), with.into(), threads.into(), (*unit).into(), best, spread.into()]);
        }
    }
    Ok(Report::new(METHOD, vec![table]))
}
