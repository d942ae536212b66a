//! `silurian bench --device cuda limits`: what no kernel can beat.

use super::super::{Report, progress};
use super::cards::card;
use super::clock::{Gpu, rates};
use super::gemm::{Layout, Operands, Shape};
use crate::table::{Column, Table};
use cuda::Error;
use cuda::ops::elementwise::scale;
use cuda::ops::reduce;
use kernels::Beta;

const COLUMNS: [Column; 7] = [
    Column::text("limit", "limit"),
    Column::text("with", "with"),
    Column::text("unit", "unit"),
    Column::spread("rate", "median of the repetitions"),
    Column::number("best", "best"),
    Column::number("promised", "the maker's figure"),
    Column::number("promised_percent", "share of it, %"),
];

const METHOD: &str = "Memory: buffers that are taken by turns, 512 MiB and more in all; GB/s (1e9 bytes) count what is read and what is \
written. Matrices: our gemm_bf16, uniform random operands, at each of these shapes; a product and an addition count 2. There is no vendor's library \
here: benches/peers has cuBLAS.";

/// Elements of a buffer: 256 MiB.
const LEN: usize = 64 << 20;

pub(super) fn run(gpu: &Gpu) -> anyhow::Result<Report> {
    Ok(Report::new(METHOD, vec![measure(gpu, LEN, &[4096, 8192])?]))
}

fn measure(gpu: &Gpu, len: usize, squares: &[usize]) -> Result<Table, Error> {
    let mut table = Table::new("limits", "Limits".to_string(), &COLUMNS);
    let known = card(&gpu.device.properties().name);
    let mut push = |limit: &str, with: &str, unit: &str, amount: f64, seconds: Vec<f64>, promised: Option<f64>| {
        let rate = rates(amount, &seconds);
        let share = promised.map(|p| 100.0 * rate.median / p);
        table.push(vec![
            limit.into(),
            with.into(),
            unit.into(),
            rate.into(),
            rate.max.into(),
            promised.into(),
            share.into(),
        ]);
    };
    let memory = known.map(|card| card.memory_gbs);
    let (from, mut total) = (gpu.rotated(|| gpu.random::<f32>(len))?, gpu.stale::<f64>(1)?);
    let n = from.len();
    let mut to = (0..n).map(|_| gpu.stale::<f32>(len)).collect::<Result<Vec<_>, Error>>()?;
    let bytes = 4.0 * len as f64;
    progress("copying by the driver");
    let copy = gpu.seconds(gpu.calls(n, |set| to[set].as_mut().copy_from(from[set].as_slice()))?)?;
    push("copy", "the driver", "GB/s", 2e-9 * bytes, copy, memory);
    progress("copying by a kernel");
    let copy = gpu.seconds(gpu.calls(n, |set| scale(1.0, from[set].as_slice(), to[set].as_mut()))?)?;
    push("copy", "scale", "GB/s", 2e-9 * bytes, copy, memory);
    let read = gpu.seconds(gpu.calls(n, |set| reduce::sum(from[set].as_slice(), Beta::Zero, total.as_mut()))?)?;
    push("read", "sum", "GB/s", 1e-9 * bytes, read, memory);
    let write = gpu.seconds(gpu.calls(n, |set| to[set].as_mut().fill_bytes(0))?)?;
    push("write", "the driver's fill", "GB/s", 1e-9 * bytes, write, memory);
    drop((from, to));
    for &size in squares {
        for layout in Layout::ALL {
            let shape = Shape { layout, m: size, n: size, k: size };
            progress(format_args!("gemm_bf16 {shape}"));
            let seconds = super::gemm::measure(gpu, Operands::Bf16, shape)?;
            let promised = known.map(|card| card.bf16_tflops);
            push(
                "bf16 matrices",
                &format!("gemm_bf16 {shape}"),
                "TFLOP/s",
                1e-12 * shape.operations(),
                seconds,
                promised,
            );
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_is_measured() {
        let table = measure(&Gpu::of_a_test(), 64, &[8, 16]).unwrap();
        let rows = table.json();
        let rows = rows["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 10);
        assert!(
            rows.iter().all(|row| row["rate"].as_f64().is_some_and(|rate| rate > 0.0) && row["promised"].is_null()),
            "{rows:?}"
        );
    }
}
