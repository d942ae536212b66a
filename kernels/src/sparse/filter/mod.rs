//! The bounded gate filter: neurons that an 8-bit copy of the gate proves to be inactive are skipped without a look at their weights.

mod bound;
#[cfg(test)]
mod tests;

use super::Run;
use super::ffn::{FfnScratch, FfnWeights, Lists, sum_active};
use super::rows_axpy::sum_runs;
use crate::gemv::dots;
use crate::row_format::FloatRows;
use crate::simd::{Kernel, Simd};
use crate::{Team, Weight};
use bound::{MAX_COLUMNS, RowBound, TokenBound};
use bytemuck::{Pod, Zeroable, cast_slice, cast_slice_mut};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Changes with what is in the memory of a [`GateFilter`], so that one that was kept can be told from one of another version.
pub const FILTER_VERSION: u32 = 1;

/// The unit of a filter's memory: a cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct FilterLine([u8; 64]);

/// The [lines](FilterLine) that the filter of a gate `[F, C]` takes: `F (C + 16) + 4 C` bytes, each of three parts up to a whole line.
pub fn gate_filter_lines(d_ff: usize, d_model: usize) -> usize {
    Parts::lines(d_ff, d_model).iter().sum()
}

/// An 8-bit copy of gate_proj, with what is known of the error of each row. `Q` is its memory:
///
/// ```text
/// quants     [F, C] i8                  row i:  w_i = scale_i q_i + e_i
/// bounds     [F] of 16 bytes            scale_i, e_i . m, ||e_i - (e_i . m) m||, ||w_i||
/// direction  [C] f32                    m, the normalised mean of the rows
/// ```
///
/// The rows of a gate that RELU has made sparse share a direction, in which x lies too, on the other side: what the errors have in it is
/// one number a row, known exactly, and leaves the bound.
///
/// The memory is all there is of it, and has the same bytes whatever team made it: it may be kept, in a file, and be
/// [used again](GateFilter::from_memory).
#[derive(Clone, Debug)]
pub struct GateFilter<Q> {
    memory: Q,
    d_ff: usize,
    d_model: usize,
    /// The square of the direction's norm: 1 but for rounding, or 0 if the rows have no mean.
    direction_square: f64,
}

/// What lies in the memory of a filter, each from a line of its own on.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Parts<'a> {
    quants: &'a [i8],
    bounds: &'a [RowBound],
    direction: &'a [f32],
}

impl<'a> Parts<'a> {
    /// Of each part.
    fn lines(d_ff: usize, d_model: usize) -> [usize; 3] {
        [d_ff * d_model, d_ff * size_of::<RowBound>(), d_model * size_of::<f32>()]
            .map(|bytes| bytes.div_ceil(size_of::<FilterLine>()))
    }

    fn of(memory: &'a [FilterLine], d_ff: usize, d_model: usize) -> Parts<'a> {
        let [quants, bounds, _] = Parts::lines(d_ff, d_model);
        let (quants, rest) = memory.split_at(quants);
        let (bounds, direction) = rest.split_at(bounds);
        Parts {
            quants: &cast_slice(quants)[..d_ff * d_model],
            bounds: &cast_slice(bounds)[..d_ff],
            direction: &cast_slice(direction)[..d_model],
        }
    }
}

impl<Q: DerefMut<Target = [FilterLine]>> GateFilter<Q> {
    /// The filter of a gate `[F, C]`, with C = `d_model`. `memory` is as much as [`gate_filter_lines`] says; its contents do not matter.
    ///
    /// Panics if the gate has no whole rows, `memory` has another length, or C is above 2^20. Cost: the gate is read four times, mostly
    /// from cache.
    #[track_caller]
    pub fn new<W: Weight>(team: &Team, gate: &[W], d_model: usize, mut memory: Q) -> GateFilter<Q> {
        let (len, c) = (gate.len(), d_model);
        assert!(
            (1..=MAX_COLUMNS).contains(&c) && len.is_multiple_of(c),
            "GateFilter: gate of {len} elements, rows of {c} (1 to {MAX_COLUMNS})"
        );
        let f = len / c;
        check_memory(&memory, f, c);
        let m = mean_direction(team, gate, c);
        let m_square = square(&m);
        let [quants, bounds, _] = Parts::lines(f, c);
        let (quants, rest) = memory.split_at_mut(quants);
        let (bounds, direction) = rest.split_at_mut(bounds);
        for part in [&mut *quants, bounds, direction] {
            // What fills up its last line is among the bytes that may be kept.
            part.last_mut().into_iter().for_each(|line| *line = FilterLine::zeroed());
        }
        cast_slice_mut(direction)[..c].copy_from_slice(&m);
        let (quants, bounds) = (&mut cast_slice_mut(quants)[..len], &mut cast_slice_mut(bounds)[..f]);
        // Rows of a task: 64 KiB of quants or a row.
        let rows = (1 << 16) / c.min(1 << 16);
        let tasks = crate::team::SharedMut::new(bounds);
        team.run_chunks_mut(quants, rows * c, |task, quants| {
            // SAFETY: a task has its own rows, those of its quants.
            let bounds = unsafe { tasks.slice(task * rows, quants.len() / c) };
            for (i, (quants, bound)) in quants.chunks_mut(c).zip(bounds).enumerate() {
                *bound = RowBound::new(&gate[(task * rows + i) * c..][..c], &m, m_square, quants);
            }
        });
        GateFilter { memory, d_ff: f, d_model, direction_square: m_square }
    }
}

impl<Q: Deref<Target = [FilterLine]>> GateFilter<Q> {
    /// The filter of a gate `[F, C]` from [its memory](GateFilter::memory), which is used where it is. What comes out of it is right
    /// if the memory is that of a filter of this very gate and of [`FILTER_VERSION`]; else neurons may be missed.
    ///
    /// Panics if `memory` has another length.
    #[track_caller]
    pub fn from_memory(memory: Q, d_ff: usize, d_model: usize) -> GateFilter<Q> {
        check_memory(&memory, d_ff, d_model);
        let direction_square = square(Parts::of(&memory, d_ff, d_model).direction);
        GateFilter { memory, d_ff, d_model, direction_square }
    }

    /// All there is of it.
    pub fn memory(&self) -> &[FilterLine] {
        &self.memory
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        size_of_val(self.memory())
    }

    fn parts(&self) -> Parts<'_> {
        Parts::of(&self.memory, self.d_ff, self.d_model)
    }
}

impl<Q> GateFilter<Q> {
    /// Gives the memory of the copy back.
    pub fn into_memory(self) -> Q {
        self.memory
    }
}

#[track_caller]
fn check_memory(memory: &[FilterLine], d_ff: usize, d_model: usize) {
    let (found, expected) = (memory.len(), gate_filter_lines(d_ff, d_model));
    assert!(
        found == expected,
        "GateFilter: memory of {found} lines for a gate [{d_ff}, {d_model}], expected {expected}"
    );
}

fn square(m: &[f32]) -> f64 {
    m.iter().map(|&m| m as f64 * m as f64).sum()
}

/// The mean of the rows, normalised; zeros if there is none or it is not finite.
fn mean_direction<W: Weight>(team: &Team, gate: &[W], c: usize) -> Vec<f32> {
    /// Columns of a task.
    const COLUMNS: usize = 256;
    let mut mean = vec![0.0f64; c];
    team.run_chunks_mut(&mut mean, COLUMNS, |task, sums| {
        for row in gate.chunks_exact(c) {
            sums.iter_mut().zip(&row[task * COLUMNS..]).for_each(|(sum, w)| *sum += w.widen() as f64);
        }
    });
    let norm = mean.iter().map(|m| m * m).sum::<f64>().sqrt();
    let scale = if norm > 0.0 && norm.is_finite() { 1.0 / norm } else { return vec![0.0; c] };
    mean.into_iter().map(|m| (m * scale) as f32).collect()
}

/// What the filter let through, of F neurons.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filtered {
    /// Neurons whose row of the gate was read: all active ones, and those of which the 8-bit copy could not tell.
    pub survivors: usize,
    /// Neurons in use.
    pub active: usize,
}

/// [`ffn_sparse`](super::ffn_sparse) without reading all of the gate: the FFN of one token under RELU.
///
/// `y = sum_i max(g_i, 0) * (up_i . x) * down_t_i` with `g = gate x`, over the i with `g_i > 0`, and of the gate only the rows for which
/// `filter` cannot prove `g_i <= 0`. Shapes: weights `[F, C]`, x and y `[C]`; `filter` is that of `weights.gate`.
///
/// Panics if the shapes do not fit. Equal, bit for bit, to `ffn_sparse`, and so to [`ffn_dense`](super::ffn_dense), for finite
/// weights and x: the proof, in docs/sparse-ffn.md, takes in the rounding of g in f32 (for f32 and bf16 weights, packed or not; the dots of q8
/// and q4 round otherwise). With an x that is not finite every neuron survives.
/// Cost: the copy is read in full, then gate in the survivors' rows, up and down_t in the active ones: with bf16 weights, at s zeros and a share v
/// of survivors, `(1 + 2 v + 4 (1 - s)) / 6` of the dense bytes.
#[track_caller]
pub fn ffn_filtered<W: FloatRows, Q: Deref<Target = [FilterLine]>>(
    team: &Team,
    weights: FfnWeights<W>,
    filter: &GateFilter<Q>,
    x: &[f32],
    scratch: &mut FfnScratch,
    y: &mut [f32],
) -> Filtered {
    let d_ff = weights.d_ff("ffn_filtered", x, y);
    let shape = (filter.d_ff, filter.d_model);
    assert!(shape == (d_ff, x.len()), "ffn_filtered: filter {shape:?} of a gate [{d_ff}, {}]", x.len());
    let FfnScratch { partial, token: quants } = scratch;
    quants.resize(x.len(), 0);
    let Parts { quants: copy, bounds, direction } = filter.parts();
    let bound = team.level().dispatch(Quantize { x, direction, direction_square: filter.direction_square, quants });
    let token = Token { x, quants, bound };
    let [survivors, active] = [(); 2].map(|_| AtomicUsize::new(0));
    sum_runs::<W>(team, d_ff, (1, Run::chunks(team, d_ff)), y, partial, |task, sums| {
        let run @ Run { first, len, .. } = Run::of(team, d_ff, task);
        let copy = Copy8 { quants: &copy[first * x.len()..][..len * x.len()], bounds: &bounds[first..first + len] };
        let n = Lists::with(len, |lists| team.level().dispatch(FilteredRun { weights, copy, token, run, lists, sums }));
        survivors.fetch_add(n.survivors, Ordering::Relaxed);
        active.fetch_add(n.active, Ordering::Relaxed);
    });
    Filtered { survivors: survivors.into_inner(), active: active.into_inner() }
}

/// [`TokenBound::new`], which is plain code, compiled for a level.
struct Quantize<'a> {
    x: &'a [f32],
    direction: &'a [f32],
    direction_square: f64,
    quants: &'a mut [i16],
}

impl Kernel for Quantize<'_> {
    type Output = TokenBound;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> TokenBound {
        TokenBound::new(self.x, self.direction, self.direction_square, self.quants)
    }
}

#[derive(Clone, Copy)]
struct Token<'a> {
    x: &'a [f32],
    quants: &'a [i16],
    bound: TokenBound,
}

/// The 8-bit copy of a run of neurons.
#[derive(Clone, Copy)]
struct Copy8<'a> {
    quants: &'a [i8],
    bounds: &'a [RowBound],
}

/// Writes `first + i` for each row i that survives to the front of `survivors` and returns how many they are.
#[inline(always)]
fn filter<S: Simd>(s: S, copy: Copy8, token: Token, first: usize, survivors: &mut [u32]) -> usize {
    /// Bytes that are read ahead: in C, one thread of a Zen 5 went over quants in memory at 38.7 GB/s without hints, 46.0 with 4 KiB, 47.9
    /// with 8, and summed them up without hints at 43.6.
    const AHEAD: usize = 8192;
    /// Bytes to the page that is touched: once a row, so that its translation is there when the hints above reach it. 16 KiB and a line: 1 %.
    const PAGE_AHEAD: usize = 16 << 10;
    /// Rows between a bound and the one hinted at: four are a line, too thin a stream for the hardware to follow.
    const BOUNDS_AHEAD: usize = 32;
    let mut n = 0;
    for (i, (quants, bound)) in copy.quants.chunks_exact(token.x.len()).zip(copy.bounds).enumerate() {
        s.prefetch(quants.as_ptr().wrapping_add(PAGE_AHEAD).cast());
        s.prefetch(std::ptr::from_ref(bound).wrapping_add(BOUNDS_AHEAD).cast());
        let dot = s.dot_i8_i16(quants, token.quants, quants.as_ptr().wrapping_add(AHEAD));
        // Without a branch, which would be wrong at every survivor.
        survivors[n] = (first + i) as u32;
        n += token.bound.survives(bound, dot) as usize;
    }
    n
}

struct FilteredRun<'a, W> {
    weights: FfnWeights<'a, W>,
    copy: Copy8<'a>,
    token: Token<'a>,
    run: Run,
    lists: Lists<'a>,
    sums: &'a mut [f32],
}

impl<W: FloatRows> Kernel for FilteredRun<'_, W> {
    type Output = Filtered;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Filtered {
        let FilteredRun { weights, copy, token, run, lists: Lists { rows, g, h }, sums } = self;
        let survivors = filter(s, copy, token, run.first, rows);
        dots(s, weights.gate, &rows[..survivors], token.x, &mut g[..survivors]);
        let mut active = 0;
        for j in 0..survivors {
            (rows[active], g[active]) = (rows[j], g[j]);
            // A NaN counts, as in `select`.
            active += (g[j] > 0.0 || g[j].is_nan()) as usize;
        }
        let next = copy.quants.as_ptr_range().end;
        let lists = Lists { rows: &mut rows[..active], g: &mut g[..active], h: &mut h[..active] };
        sum_active(s, weights, (run, lists), |_| next.cast(), token.x, sums);
        Filtered { survivors, active }
    }
}
