//! Dots of many rows with the x of a few tokens: the inner loops of [`gemv_batch`](crate::gemv_batch) and of the FFN of a batch.
//!
//! ```text
//! w     24 rows at a time, the next ones hinted at              in L2 meanwhile
//! x     panels of 8, 4 or 2 tokens, vector beside vector        a quarter of a panel in L1
//! tile  2 rows x 8 tokens (4 x 4, 6 x 2): 16 accumulators       registers
//! ```
//!
//! A dot of [`gemv`](crate::gemv::gemv) has four accumulators, which take turns along the row. A tile has one for each of its dots: it goes over the row four
//! times, each time with a quarter of the vectors, and adds the four up at the end. So each dot has the bits of `gemv`.

use crate::gemv::{A, LINE};
use crate::simd::map::spans;
use crate::simd::{Kernel, Simd};
use crate::{Level, RowFormat, Team, Weight, scratch};
use std::marker::PhantomData;

/// Rows that all tokens meet before the next ones: with those that are hinted at they take a third of L2 at 2048 columns of f32. A
/// multiple of the rows of each tile.
pub const BLOCK: usize = 24;

/// The most tokens of a panel, in any format.
pub const MOST_TOKENS: usize = 8;

/// The x of `n` tokens, in panels that are filled up with zeros.
#[derive(Clone, Copy)]
pub struct Panels<'a> {
    n: usize,
    /// Elements of a token.
    len: usize,
    /// Units of a row that belongs to them.
    row_len: usize,
    data: &'a [f32],
}

/// The x of 8, 4 or 2 tokens.
#[derive(Clone, Copy)]
pub struct Panel<'a> {
    pub tokens: usize,
    /// Units of a row that belongs to it.
    pub row_len: usize,
    pub x: &'a [f32],
}

/// First token and size of each panel of `n` tokens.
#[inline(always)]
fn panels<W: RowFormat>(n: usize) -> impl Iterator<Item = (usize, usize)> {
    let size = move |first| match n - first {
        1..=2 => 2,
        3..=5 => 4,
        _ => W::PANEL_TOKENS,
    };
    let next = move |&(first, of): &(usize, usize)| (first + of < n).then(|| (first + of, size(first + of)));
    std::iter::successors(Some((0, size(0))), next)
}

/// Calls `f` with the rows of x as `Loops::sort_x` gives them, one after the other.
pub fn with_sorted<W: RowFormat, R>(team: &Team, x: &[f32], n: usize, f: impl FnOnce(&[f32]) -> R) -> R {
    let k = x.len() / n;
    scratch::with(n * W::x_len(k), |sorted| {
        team.run_chunks_mut(sorted, W::x_len(k), |token, out| W::sort_x(team.level(), &x[token * k..][..k], out));
        f(sorted)
    })
}

/// Calls `f` with the panels of x.
pub fn with_panels<W: RowFormat, R>(team: &Team, x: &[f32], n: usize, f: impl FnOnce(Panels) -> R) -> R {
    with_sorted::<W, _>(team, x, n, |sorted| with_panels_of_sorted::<W, _>(team.level(), sorted, n, f))
}

/// The same for rows of x that are sorted already.
pub fn with_panels_of_sorted<W: RowFormat, R>(
    level: Level,
    sorted: &[f32],
    n: usize,
    f: impl FnOnce(Panels) -> R,
) -> R {
    let x_len = sorted.len() / n;
    let len = W::panel_len(x_len);
    let tokens: usize = panels::<W>(n).map(|(_, size)| size).sum();
    scratch::with(tokens * len, |data| {
        for (first, size) in panels::<W>(n) {
            let panel = &mut data[first * len..][..size * len];
            if first + size > n {
                panel.fill(0.0);
            }
            for token in first..n.min(first + size) {
                let x = &sorted[token * x_len..][..x_len];
                W::dispatch(level, ToPanel::<W> { x, token: token - first, size, panel, format: PhantomData });
            }
        }
        f(Panels { n, len, row_len: W::row_len_for(&sorted[..x_len]), data })
    })
}

struct ToPanel<'a, W> {
    x: &'a [f32],
    token: usize,
    size: usize,
    panel: &'a mut [f32],
    format: PhantomData<W>,
}

impl<W: RowFormat> Kernel for ToPanel<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        W::to_panel(s, self.x, self.token, self.size, self.panel);
    }
}

/// Calls `put(i, n, dot)` with the dot of each row i of `w` and each token n.
#[inline(always)]
pub fn dots_of_batch<S: Simd, W: RowFormat>(s: S, w: &[W], x: Panels, mut put: impl FnMut(usize, usize, f32)) {
    let row_len = x.row_len;
    let groups = panels::<W>(x.n).count();
    for (b, rows) in w.chunks(BLOCK * row_len).enumerate() {
        let n = rows.len() / row_len;
        for (group, (first, size)) in panels::<W>(x.n).enumerate() {
            let panel = Panel { tokens: size, row_len, x: &x.data[first * x.len..][..size * x.len] };
            // The block after this one, a part for each panel; beyond the last block lie rows that another task may be at.
            let ahead = LinesAhead::part(w, (b + 1) * BLOCK * row_len, rows.len(), group, groups);
            let mut out = [0.0; BLOCK * MOST_TOKENS];
            s.call(DotBlock { rows, panel, ahead, out: &mut out[..n * size] });
            for (i, dots) in out[..n * size].chunks_exact(size).enumerate() {
                for (token, &dot) in (first..x.n).zip(dots) {
                    put(b * BLOCK + i, token, dot);
                }
            }
        }
    }
}

/// `Loops::dot_block` as a function of its own, of which there is one for a format and a level.
struct DotBlock<'a, W> {
    rows: &'a [W],
    panel: Panel<'a>,
    ahead: LinesAhead,
    out: &'a mut [f32],
}

impl<W: RowFormat> Kernel for DotBlock<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let DotBlock { rows, panel, mut ahead, out } = self;
        W::dot_block(s, rows, panel, &mut ahead, out);
    }
}

/// Rows that are added in one pass over the tokens' sums, which come from L2 and go there. With 8 tokens and as many rows that is 48 bytes a
/// cycle at two FMAs a cycle, with 16 rows it is 32. Divides the chunks of the FFN.
pub const AXPY_ROWS: usize = 16;

/// `sums[n, :] += sum_i h[n, i] * w[i, :]`, for each token row by row. Shapes: h `[N, rows]`, sums `[N, sum_len]`.
#[inline(always)]
pub fn axpys_of_batch<S: Simd, W: RowFormat>(s: S, w: &[W], h: &[f32], n: usize, sums: &mut [f32]) {
    let (len, sum_len) = (h.len() / n, sums.len() / n);
    // A sum is as long as a row that is filled up.
    let row_len = W::row_len(sum_len);
    // 8, 4, 2 or 1 tokens at a time.
    let size = |first: usize| 1 << (n - first).min(MOST_TOKENS).ilog2();
    let next = |&first: &usize| Some(first + size(first)).filter(|&first| first < n);
    let groups = || std::iter::successors(Some(0), next);
    let parts = groups().count();
    for (b, rows) in w.chunks(AXPY_ROWS * row_len).enumerate() {
        let row = b * AXPY_ROWS;
        for (part, token) in groups().enumerate() {
            let tokens = size(token);
            let ahead = LinesAhead::part(w, (row + AXPY_ROWS) * row_len, rows.len(), part, parts);
            let sums = &mut sums[token * sum_len..][..tokens * sum_len];
            s.call(AxpyBlock { rows, row_len, h: &h[token * len + row..], h_stride: len, tokens, sums, ahead });
        }
    }
}

/// `sums[n, :] += sum_i h[n, i] * rows[i, :]` for 8, 4, 2 or 1 tokens and at most [`AXPY_ROWS`] rows.
struct AxpyBlock<'a, W> {
    rows: &'a [W],
    row_len: usize,
    /// From one token to the next it is `h_stride` elements.
    h: &'a [f32],
    h_stride: usize,
    tokens: usize,
    sums: &'a mut [f32],
    ahead: LinesAhead,
}

impl<W: RowFormat> Kernel for AxpyBlock<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let AxpyBlock { rows, row_len, h, h_stride, tokens, sums, mut ahead } = self;
        let n = rows.len() / row_len;
        if tokens > 1 && n == AXPY_ROWS {
            let factors = |token: usize| -> [f32; AXPY_ROWS] {
                *h[token * h_stride..].first_chunk().expect("each token has its h")
            };
            return match tokens {
                8 => W::axpy_tile(s, rows, [0, 1, 2, 3, 4, 5, 6, 7].map(factors), sums, &mut ahead),
                4 => W::axpy_tile(s, rows, [0, 1, 2, 3].map(factors), sums, &mut ahead),
                _ => W::axpy_tile(s, rows, [0, 1].map(factors), sums, &mut ahead),
            };
        }
        let sum_len = sums.len() / tokens;
        for (token, sum) in sums.chunks_exact_mut(sum_len).enumerate() {
            for (i, row) in rows.chunks_exact(row_len).enumerate() {
                let hint = row.as_ptr().wrapping_add(AXPY_ROWS * row_len);
                W::axpy_group(s, [row], [hint], &h[token * h_stride + i..][..1], sum);
            }
        }
    }
}

/// Memory that is to be hinted at from its start to its end, while other memory is in use: so that it comes in as one stream.
pub struct LinesAhead {
    next: *const u8,
    /// Steps until the next hint, and between hints.
    wait: usize,
    every: usize,
}

impl LinesAhead {
    /// Part `part` of `parts` of the `len` units from `start` on, which may be beyond w; one step in `parts` hints.
    #[inline(always)]
    pub fn part<W>(w: &[W], start: usize, len: usize, part: usize, parts: usize) -> LinesAhead {
        let next = w.as_ptr().wrapping_add(start).cast::<u8>();
        LinesAhead { next: next.wrapping_add(size_of::<W>() * len / parts * part), wait: part, every: parts }
    }

    /// Hints at `lines` cache lines, if it is time.
    #[inline(always)]
    pub fn step<S: Simd>(&mut self, s: S, lines: usize) {
        if self.wait == 0 {
            for line in 0..lines {
                s.prefetch(self.next.wrapping_add(line * LINE).cast());
            }
            self.next = self.next.wrapping_add(lines * LINE);
            self.wait = self.every;
        }
        self.wait -= 1;
    }
}

/// Vectors of `cols` elements for each of the accumulators.
#[inline(always)]
fn steps(cols: usize, lanes: usize) -> usize {
    cols.div_ceil(A * lanes)
}

/// Elements of `cols` in a panel: whole vectors of every level for all accumulators.
pub fn panel_len(cols: usize) -> usize {
    cols.next_multiple_of(A * 16)
}

/// Panel `[accumulator, step, token, lane]`.
#[inline(always)]
pub fn to_panel<S: Simd>(s: S, x: &[f32], token: usize, tokens: usize, panel: &mut [f32]) {
    let steps = steps(x.len(), S::LANES);
    for (i, x) in x.chunks(S::LANES).enumerate() {
        let at = ((i % A * steps + i / A) * tokens + token) * S::LANES;
        s.store(s.load_partial(x), &mut panel[at..]);
    }
}

/// `Loops::dot_block` of rows of elements, in tiles of `R` rows and `T` tokens.
#[inline(always)]
pub fn dot_block<S: Simd, W: Weight, const R: usize, const T: usize>(
    s: S,
    rows: &[W],
    panel: Panel,
    ahead: &mut LinesAhead,
    out: &mut [f32],
) {
    let cols = panel.row_len;
    let (n, per_accumulator) = (rows.len() / cols, steps(cols, S::LANES) * T * S::LANES);
    // The sums of the first two accumulators, and the third.
    let mut sums = [[[s.splat(0.0); T]; BLOCK]; 2];
    for a in 0..A {
        let x = &panel.x[a * per_accumulator..][..per_accumulator];
        let mut first = 0;
        while first < n {
            if first + R <= n {
                let acc: [[S::F32; T]; R] = sweep(s, &rows[first * cols..][..R * cols], a, x, ahead);
                add_up(s, a, &acc, first, &mut sums, out);
                first += R;
            } else {
                let acc: [[S::F32; T]; 1] = sweep(s, &rows[first * cols..][..cols], a, x, ahead);
                add_up(s, a, &acc, first, &mut sums, out);
                first += 1;
            }
        }
    }
}

/// Accumulator `a` of `R` rows and `T` tokens.
#[allow(clippy::needless_range_loop)] // acc[r][t], as in the formula
#[inline(always)]
fn sweep<S: Simd, W: Weight, const R: usize, const T: usize>(
    s: S,
    rows: &[W],
    a: usize,
    x: &[f32],
    ahead: &mut LinesAhead,
) -> [[S::F32; T]; R] {
    let (cols, block) = (rows.len() / R, A * S::LANES);
    let whole = cols / block;
    assert!(
        x.len() == steps(cols, S::LANES) * T * S::LANES && rows.len() == R * cols,
        "gemv_batch: x of another length"
    );
    let mut acc = [[s.splat(0.0); T]; R];
    for step in 0..whole {
        // SAFETY: step * block + (a + 1) * LANES <= whole * block <= cols, the length of each row; x has T vectors for each step.
        unsafe {
            let mut w = [s.splat(0.0); R];
            for (r, w) in w.iter_mut().enumerate() {
                *w = W::load_ptr(s, rows.as_ptr().add(r * cols + step * block + a * S::LANES));
            }
            for t in 0..T {
                let x = s.load_ptr(x.as_ptr().add((step * T + t) * S::LANES));
                for r in 0..R {
                    acc[r][t] = s.mul_add(w[r], x, acc[r][t]);
                }
            }
        }
        if (a * S::LANES * size_of::<W>()).is_multiple_of(LINE) {
            ahead.step(s, R);
        }
    }
    let from = whole * block + a * S::LANES;
    if from < cols {
        let n = S::LANES.min(cols - from);
        for r in 0..R {
            let row = &rows[r * cols + from..][..n];
            let w = if n == S::LANES { W::load(s, row) } else { W::load_partial(s, row) };
            for t in 0..T {
                acc[r][t] = s.mul_add(w, s.load(&x[(whole * T + t) * S::LANES..]), acc[r][t]);
            }
        }
    }
    acc
}

/// `(a0 + a1) + (a2 + a3)`, and the sum of the lanes, for rows `first ..`.
#[inline(always)]
fn add_up<S: Simd, const R: usize, const T: usize>(
    s: S,
    a: usize,
    acc: &[[S::F32; T]; R],
    first: usize,
    [low, high]: &mut [[[S::F32; T]; BLOCK]; 2],
    out: &mut [f32],
) {
    let rows = first..first + R;
    let places = low[rows.clone()].iter_mut().zip(&mut high[rows]).zip(out[first * T..].chunks_exact_mut(T));
    for (((low, high), out), acc) in places.zip(acc) {
        for t in 0..T {
            match a {
                0 => low[t] = acc[t],
                1 => low[t] = s.add(low[t], acc[t]),
                2 => high[t] = acc[t],
                _ => out[t] = s.reduce_sum(s.add(low[t], s.add(high[t], acc[t]))),
            }
        }
    }
}

/// `sums[t, :] += sum_r h[t][r] * rows[r, :]`, row by row, for rows of elements: `T x 2` accumulators.
#[allow(clippy::needless_range_loop)] // acc[t][v], as in the formula
#[inline(always)]
pub fn axpy_tile<S: Simd, W: Weight, const T: usize>(
    s: S,
    rows: &[W],
    h: [[f32; AXPY_ROWS]; T],
    sums: &mut [f32],
    ahead: &mut LinesAhead,
) {
    /// Vectors of each sum at a time: with T = 8 they take 16 registers, and hide the latency of an FMA.
    const V: usize = 2;
    let cols = sums.len() / T;
    assert!(rows.len() == AXPY_ROWS * cols && sums.len() == T * cols, "axpys_of_batch: a tile of another size");
    let block = V * S::LANES;
    let whole = cols / block * block;
    for at in (0..whole).step_by(block) {
        // SAFETY: at + block <= whole <= cols, the length of each row and sum.
        unsafe {
            let mut acc = [[s.splat(0.0); V]; T];
            for t in 0..T {
                for v in 0..V {
                    acc[t][v] = s.load_ptr(sums.as_ptr().add(t * cols + at + v * S::LANES));
                }
            }
            for r in 0..AXPY_ROWS {
                let mut w = [s.splat(0.0); V];
                for v in 0..V {
                    w[v] = W::load_ptr(s, rows.as_ptr().add(r * cols + at + v * S::LANES));
                }
                for t in 0..T {
                    let factor = s.splat(h[t][r]);
                    for v in 0..V {
                        acc[t][v] = s.mul_add(factor, w[v], acc[t][v]);
                    }
                }
            }
            for t in 0..T {
                for v in 0..V {
                    s.store_ptr(acc[t][v], sums.as_mut_ptr().add(t * cols + at + v * S::LANES));
                }
            }
        }
        // As many lines as were read.
        ahead.step(s, AXPY_ROWS * block * size_of::<W>() / LINE);
    }
    for (t, sum) in sums.chunks_exact_mut(cols).enumerate() {
        let rest = &mut sum[whole..];
        for at in spans(s, rest.len()) {
            let mut acc = at.load(s, rest);
            for r in 0..AXPY_ROWS {
                acc = s.mul_add(s.splat(h[t][r]), at.load(s, &rows[r * cols + whole..(r + 1) * cols]), acc);
            }
            at.store(s, acc, rest);
        }
    }
}
