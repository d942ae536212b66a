use super::*;
use crate::gemv::gemv;
use crate::sparse::ffn_sparse;
use crate::testing::{ROUNDING, SparseInputs, uniform, widened};
use crate::{Level, reference};
use half::bf16;
use proptest::prelude::*;

fn filter_of<W: Weight>(gate: &[W], c: usize) -> GateFilter<Vec<FilterLine>> {
    let memory = vec![FilterLine([99; 64]); gate_filter_lines(gate.len() / c, c)];
    GateFilter::new(&Team::serial(Level::best()), gate, c, memory)
}

fn rounded(w: &[f32]) -> Vec<bf16> {
    w.iter().map(|&w| bf16::from_f32(w)).collect()
}

/// For each neuron whether it survives: as in [`ffn_filtered`], but without chunks.
fn survivors(level: Level, filter: &GateFilter<Vec<FilterLine>>, x: &[f32]) -> Vec<bool> {
    struct Survivors<'a>(Copy8<'a>, Token<'a>);
    impl Kernel for Survivors<'_> {
        type Output = Vec<bool>;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<bool> {
            let Survivors(Copy8 { quants, bounds }, token) = self;
            let rows = quants.chunks(token.x.len()).zip(bounds.chunks(1));
            let one = |(quants, bounds)| super::filter(s, Copy8 { quants, bounds }, token, 0, &mut [0; 1]) == 1;
            rows.map(one).collect()
        }
    }
    let mut quants = vec![0; x.len()];
    let Parts { quants: copy, bounds, direction } = filter.parts();
    let direction_square = filter.direction_square;
    let bound = level.dispatch(Quantize { x, direction, direction_square, quants: &mut quants });
    let copy = Copy8 { quants: copy, bounds };
    level.dispatch(Survivors(copy, Token { x, quants: &quants, bound }))
}

/// Panics if a neuron with g > 0, as computed at any level, does not survive. Returns how many were active at the best level, and how
/// many survived.
fn none_missed<W: Weight>(what: &str, gate: &[W], x: &[f32]) -> (usize, usize) {
    none_missed_by(what, &filter_of(gate, x.len()), gate, x)
}

fn none_missed_by<W: Weight>(
    what: &str,
    filter: &GateFilter<Vec<FilterLine>>,
    gate: &[W],
    x: &[f32],
) -> (usize, usize) {
    let mut counts = (0, 0);
    for level in Level::available() {
        let mut g = vec![0.0; gate.len() / x.len()];
        gemv(&Team::serial(level), gate, x, &mut g);
        let survivors = survivors(level, filter, x);
        let (is_active, count) =
            (|g: f32| g > 0.0 || g.is_nan(), |flags: &[bool]| flags.iter().filter(|f| **f).count());
        for (i, (&g, &survives)) in g.iter().zip(&survivors).enumerate() {
            assert!(survives || !is_active(g), "ffn_filtered {what} {} {level}: neuron {i} missed, g = {g:e}", W::NAME);
        }
        counts = (g.iter().filter(|&&g| is_active(g)).count(), count(&survivors));
    }
    counts
}

/// As [`none_missed`]; all are to be active at every level too: else the case does not try what it was made for.
fn all_active_none_missed(what: &str, gate: &[f32], x: &[f32]) {
    let (active, survive) = none_missed(what, gate, x);
    assert_eq!((active, survive), (gate.len() / x.len(), active), "ffn_filtered {what}: active and survivors");
}

#[test]
fn survivors_match_reference() {
    for c in [1, 2, 7, 31, 64, 65, 130, 300, 513, 1000] {
        let inputs = SparseInputs::new(1, c, 4);
        let gate = inputs.gate(2, 200, 0.9);
        let filter = filter_of(&gate, c);
        for x in inputs.x.chunks(c) {
            let (bounds, sizes) = reference::gate_filter(&gate, x);
            for level in Level::available() {
                for (i, survives) in survivors(level, &filter, x).into_iter().enumerate() {
                    // What the kernel adds: the rounding of the f32 dot and its slack; the reference's own is less than 1.
                    let most = bounds[i] + (c + 16) as f64 * ROUNDING * sizes[i];
                    let fits = if survives { most > 0.0 } else { bounds[i] <= ROUNDING * sizes[i] };
                    assert!(fits, "ffn_filtered {level} c={c}: neuron {i} survives: {survives}, bound {:e}", bounds[i]);
                }
            }
        }
    }
}

/// The share of survivors is what the filter is built for: at d_model 2048 and 90 % zeros some 7 % of the neurons beside the active ones.
#[test]
fn few_survive() {
    let (c, f) = (2048, 3000);
    let inputs = SparseInputs::new(3, c, 2);
    let gate = rounded(&inputs.gate(4, f, 0.9));
    let filter = filter_of(&gate, c);
    let (mut active, mut survive) = (0, 0);
    for x in inputs.x.chunks(c) {
        let counts = none_missed_by("few_survive", &filter, &gate, x);
        (active, survive) = (active + counts.0, survive + counts.1);
    }
    let share = |n: usize| n as f64 / (2 * f) as f64;
    assert!((0.095..0.105).contains(&share(active)), "active {}", share(active));
    assert!(share(survive) < 0.175, "ffn_filtered: {} survive at {} active", share(survive), share(active));
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The x nearest to `towards` (but for a multiple of `v`) for which `w . x` is a tenth of `(w - v) . towards`: g is above 0 by no more
/// than the part of w that is not v, and v alone says that it is below.
fn against(w: &[f64], v: &[f64], towards: &[f64]) -> Vec<f32> {
    let e: Vec<f64> = w.iter().zip(v).map(|(w, v)| w - v).collect();
    let lambda = (dot(w, towards) - 0.1 * dot(&e, towards)) / dot(w, v);
    towards.iter().zip(v).map(|(t, v)| (t - lambda * v) as f32).collect()
}

/// x along the error of a row, less what is known of it: the bound's Cauchy-Schwarz term is all that saves the neuron.
#[test]
fn x_along_the_error_of_a_row() {
    for c in [16, 64, 200, 2048] {
        let gate = uniform(5, 40 * c);
        let filter = filter_of(&gate, c);
        let mut tried = 0;
        for (i, w) in gate.chunks(c).enumerate() {
            let Parts { quants, bounds, direction: m } = filter.parts();
            let bound = bounds[i];
            let known = |j: usize| bound.scale as f64 * quants[i * c + j] as f64 + bound.along as f64 * m[j] as f64;
            let (w, v): (Vec<f64>, Vec<f64>) = (0..c).map(|j| (w[j] as f64, known(j))).unzip();
            let e: Vec<f64> = w.iter().zip(&v).map(|(w, v)| w - v).collect();
            let x = against(&w, &v, &e);
            let wide: Vec<f64> = x.iter().map(|&x| x as f64).collect();
            tried += (dot(&v, &wide) < 0.0 && dot(&w, &wide) > 0.0) as usize;
            none_missed_by(&format!("x along the error, c={c}"), &filter, &gate, &x);
        }
        assert!(tried >= 38, "x along the error, c={c}: {tried} of 40 rows are what they were made for");
    }
}

/// All errors along the common direction: nothing is left across it, and g is above 0 by that alone.
#[test]
fn errors_along_the_common_direction() {
    let c = 256;
    // Rows in pairs of opposite signs, so that their mean is the error of each: 0.4 units everywhere.
    let units = uniform(6, c);
    let row = |sign: f32| {
        (0..c)
            .map(move |j| (j, sign))
            .map(|(j, sign)| if j == 0 { sign * 127.0 } else { sign * (100.0 * units[j]).round() + 0.4 })
    };
    let gate: Vec<f32> = row(1.0).chain(row(-1.0)).collect();
    for w in gate.chunks(c) {
        let w: Vec<f64> = w.iter().map(|&w| w as f64).collect();
        let v: Vec<f64> = w.iter().map(|w| (w - 0.4).round()).collect();
        let x = against(&w, &v, &vec![1.0; c]);
        let mut g = [0.0; 2];
        gemv(&Team::serial(Level::best()), &gate, &x, &mut g);
        assert!(g[0].max(g[1]) > 0.0, "errors along the direction: {g:?}");
        none_missed("errors along the direction", &gate, &x);
    }
}

/// A row without error, and an x whose small channels vanish beside a large one, to which the row is blind: what 16 bits lose of x is all
/// of g but a part that is negative.
#[test]
fn x_with_one_channel_so_large_that_the_others_vanish() {
    for c in [4, 64, 1000] {
        let mut w: Vec<f32> = uniform(7, c).into_iter().map(|w| (126.0 * w).round()).collect();
        (w[0], w[1], w[2]) = (0.0, -1.0, 127.0);
        let mut x: Vec<f32> = w.iter().map(|w| 0.4 * w.signum()).collect();
        x[0] = 32767.0;
        x[1] = 0.0;
        let gain: f32 = w.iter().zip(&x).map(|(w, x)| w * x).sum();
        x[1] = (0.7 * gain).floor();
        all_active_none_missed(&format!("vanishing channels, c={c}"), &w, &x);
    }
}

/// At every level, places a multiple of this apart go to one lane of one accumulator of the dot, in order.
const ONE_LANE: usize = 64;

fn in_one_lane(pairs: &[(f32, f32)]) -> (Vec<f32>, Vec<f32>) {
    let [mut w, mut x] = [(); 2].map(|_| vec![0.0; pairs.len() * ONE_LANE]);
    for (i, &(a, b)) in pairs.iter().enumerate() {
        (w[i * ONE_LANE], x[i * ONE_LANE]) = (a, b);
    }
    (w, x)
}

/// Row and x are exact in 8 and 16 bits, and the exact g is -64. In f32 it is 64: each of 128 additions of 3 to more than 2^25 rounds to 4.
#[test]
fn the_f32_dot_rounds_up_128_times() {
    let mut pairs = vec![(0.0, 32767.0), (127.0, 0.0)];
    pairs.extend([(64.0, 32764.0); 17]);
    pairs.extend([(3.0, 1.0); 128]);
    pairs.extend([(64.0, -32764.0); 17]);
    pairs.push((64.0, -7.0));
    let exact: f64 = pairs.iter().map(|&(w, x)| w as f64 * x as f64).sum();
    assert_eq!(exact, -64.0);
    let (w, x) = in_one_lane(&pairs);
    all_active_none_missed("rounding up", &w, &x);
}

/// The same below the smallest normal number: products of 1.5 times the smallest number round to twice that.
#[test]
fn the_f32_dot_rounds_up_subnormals() {
    let mut pairs = vec![(0.0, 32767.0), (127.0, 0.0)];
    pairs.extend([(1.0, 24576.0); 128]);
    pairs.push((126.0, -29127.0));
    let (unit_w, unit_x) = (2f32.powi(-75), 2f32.powi(-88));
    let pairs: Vec<(f32, f32)> = pairs.into_iter().map(|(w, x)| (w * unit_w, x * unit_x)).collect();
    let exact: f64 = pairs.iter().map(|&(w, x)| w as f64 * x as f64).sum();
    assert!(exact < -30.0 * 2f64.powi(-149), "{exact:e}");
    let (w, x) = in_one_lane(&pairs);
    all_active_none_missed("subnormals", &w, &x);
}

/// The exact g is below 0, the sums in f32 are infinite or NaN.
#[test]
fn the_f32_dot_overflows() {
    for (w, x) in [([1e20, 1e20, 0.0], [1e19, -3e19, 0.0]), ([3e38, 3e38, 3e38], [1.0, 1.0, -3.0])] {
        let (w, x) = in_one_lane(&w.into_iter().zip(x).collect::<Vec<_>>());
        let (_, survive) = none_missed("overflow", &w, &x);
        assert_eq!(survive, 1, "ffn_filtered: a row whose dot may overflow must survive");
    }
}

/// What is compared: an FFN and an x for it.
struct Ffn<W> {
    gate: Vec<W>,
    up: Vec<W>,
    down_t: Vec<W>,
}

impl Ffn<f32> {
    fn of(gate: Vec<f32>) -> Ffn<f32> {
        let [up, down_t] = [8, 9].map(|seed| uniform(seed, gate.len()));
        Ffn { gate, up, down_t }
    }

    fn rounded(&self) -> Ffn<bf16> {
        Ffn { gate: rounded(&self.gate), up: rounded(&self.up), down_t: rounded(&self.down_t) }
    }
}

impl<W: Weight> Ffn<W> {
    /// Panics unless filtered has the bits of sparse, at every level, for every number of threads, twice. Returns the last counts.
    fn filtered_is_sparse(&self, what: &str, x: &[f32]) -> Filtered {
        let weights = FfnWeights { gate: &self.gate, up: &self.up, down_t: &self.down_t };
        let filter = filter_of(&self.gate, x.len());
        let [mut y, mut expected] = [(); 2].map(|_| vec![f32::NAN; x.len()]);
        let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
        let mut count = Filtered::default();
        for level in Level::available() {
            for threads in 1..=3 {
                let (team, mut scratch) = (Team::new(level, threads), FfnScratch::default());
                let active = ffn_sparse(&team, weights, x, &mut scratch, &mut expected);
                for _ in 0..2 {
                    y.fill(f32::NAN);
                    count = ffn_filtered(&team, weights, &filter, x, &mut scratch, &mut y);
                    let what = format!("{} {level} {what} {threads} threads", W::NAME);
                    assert_eq!(bits(&y), bits(&expected), "ffn_filtered {what} against ffn_sparse");
                    assert_eq!(count.active, active, "ffn_filtered {what}: active neurons");
                    assert!(count.survivors >= active, "ffn_filtered {what}: {count:?}");
                }
            }
        }
        count
    }
}

#[test]
fn ffn_filtered_equals_ffn_sparse() {
    for (f, c) in [(1, 1), (31, 5), (32, 16), (513, 48), (1000, 33), (300, 260), (4500, 20)] {
        for zeros in [0.0, 0.5, 0.9, 1.0] {
            let inputs = SparseInputs::new(10, c, 1);
            let ffn = Ffn::of(inputs.gate(11, f, zeros));
            let what = format!("[{f}, {c}] zeros {zeros}");
            ffn.filtered_is_sparse(&what, &inputs.x);
            ffn.rounded().filtered_is_sparse(&what, &inputs.x);
        }
    }
}

/// Sizes from the smallest to the largest, of x and of the weights, and rows and an x of zeros.
#[test]
fn ffn_filtered_equals_ffn_sparse_at_both_ends_of_the_range() {
    let (f, c) = (200, 40);
    let inputs = SparseInputs::new(12, c, 1);
    let gate = inputs.gate(13, f, 0.8);
    for scale_x in [0.0, 1e-45, 1e-42, 1e-38, 1e-20, 1e15, 1e30] {
        for scale_w in [0.0, 1e-45, 1e-42, 1e-38, 1e-20, 1e15] {
            let mut ffn = Ffn::of(gate.iter().map(|w| w * scale_w).collect());
            ffn.gate[3 * c..5 * c].fill(0.0);
            let x: Vec<f32> = inputs.x.iter().map(|x| x * scale_x).collect();
            let what = format!("x * {scale_x:e}, gate * {scale_w:e}");
            ffn.filtered_is_sparse(&what, &x);
            ffn.rounded().filtered_is_sparse(&what, &x);
        }
    }
}

/// Nothing is left out then, so that what is wrong shows, as it does in the dense FFN.
#[test]
fn everything_survives_an_x_that_is_not_finite() {
    let (f, c) = (100, 40);
    let inputs = SparseInputs::new(14, c, 1);
    let ffn = Ffn::of(inputs.gate(15, f, 0.9));
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = inputs.x.clone();
        x[7] = bad;
        let count = ffn.filtered_is_sparse(&format!("x[7] = {bad}"), &x);
        assert_eq!(count.survivors, f, "ffn_filtered x[7] = {bad}");
    }
}

#[test]
fn a_row_that_is_not_finite_survives() {
    let (f, c) = (100, 40);
    let inputs = SparseInputs::new(16, c, 1);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut gate = inputs.gate(17, f, 0.9);
        gate[3 * c + 1] = bad;
        let filter = filter_of(&gate, c);
        for level in Level::available() {
            assert!(survivors(level, &filter, &inputs.x)[3], "ffn_filtered {level}: row 3 with {bad}");
        }
        none_missed(&format!("a row with {bad}"), &gate, &inputs.x);
    }
}

#[test]
#[should_panic(expected = "ffn_filtered: filter (3, 4) of a gate [4, 3]")]
fn a_filter_of_another_shape_is_named() {
    let weights = FfnWeights { gate: &[0.0; 12], up: &[0.0; 12], down_t: &[0.0; 12] };
    let filter = filter_of(weights.gate, 4);
    let team = Team::serial(Level::SCALAR);
    ffn_filtered(&team, weights, &filter, &[0.0; 3], &mut FfnScratch::default(), &mut [0.0; 3]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Rows of any spread with outliers anywhere, and x of any spread, near the row's edge: g is made to be about 0.
    #[test]
    fn none_is_missed_at_the_edge(
        seed in 0u64..1 << 30, c in 2usize..200, spread_w in 0i32..30, spread_x in 0i32..30, nearness in -26i32..0,
    ) {
        let f = 20;
        let spread = |values: Vec<f32>, draws: Vec<f32>, spread: i32| -> Vec<f32> {
            values.iter().zip(draws).map(|(v, d)| v * 2f32.powf(d * spread as f32)).collect()
        };
        let gate = spread(uniform(seed, f * c), uniform(seed + 1, f * c), spread_w);
        let x = spread(uniform(seed + 2, c), uniform(seed + 3, c), spread_x);
        let filter = filter_of(&gate, c);
        let wide = |a: &[f32]| a.iter().map(|&a| a as f64).collect::<Vec<_>>();
        for w in gate.chunks(c) {
            // x less its part along w, but for a little.
            let (w, x) = (wide(w), wide(&x));
            let lambda = dot(&w, &x) / dot(&w, &w) * (1.0 - 2f64.powi(nearness));
            let x: Vec<f32> = x.iter().zip(&w).map(|(x, w)| (x - lambda * w) as f32).collect();
            none_missed_by("at the edge", &filter, &gate, &x);
        }
    }

    #[test]
    fn ffn_filtered_equals_ffn_sparse_in_any_shape(f in 1usize..600, c in 1usize..90, zeros in 0.0f64..1.0) {
        let inputs = SparseInputs::new(18, c, 1);
        let ffn = Ffn::of(inputs.gate(19, f, zeros));
        let what = format!("[{f}, {c}] zeros {zeros}");
        ffn.filtered_is_sparse(&what, &inputs.x);
        ffn.rounded().filtered_is_sparse(&what, &inputs.x);
    }
}

/// Decisions of which none is to be wrong, over d_model 256 and 2048, f32 and bf16, 50 to 99 % zeros.
fn count_decisions(tokens: usize) -> usize {
    let mut decisions = 0;
    for (c, f) in [(256, 768), (2048, 1024)] {
        let inputs = SparseInputs::new(20, c, tokens);
        for zeros in [0.5, 0.9, 0.99] {
            let gate = inputs.gate(21, f, zeros);
            let gate_bf16 = rounded(&gate);
            let (filter, filter_bf16) = (filter_of(&gate, c), filter_of(&gate_bf16, c));
            for x in inputs.x.chunks(c) {
                none_missed_by("synthetic", &filter, &gate, x);
                none_missed_by("synthetic", &filter_bf16, &gate_bf16, x);
                decisions += 2 * f * Level::available().count();
            }
        }
    }
    decisions
}

#[test]
fn no_neuron_is_missed() {
    count_decisions(6);
}

#[test]
#[ignore = "ten million decisions take a minute: cargo test --release -p kernels --lib filter -- --ignored --nocapture"]
fn no_neuron_is_missed_in_ten_million_decisions() {
    let decisions = count_decisions(240);
    assert!(decisions >= 10_000_000, "{decisions}");
    println!("{decisions} decisions, none missed");
}

#[test]
fn the_filter_of_bf16_rows_is_that_of_the_widened_ones() {
    let (c, gate) = (96, rounded(&uniform(22, 50 * 96)));
    let (narrow, wide) = (filter_of(&gate, c), filter_of(&widened(&gate), c));
    assert_eq!(narrow.parts(), wide.parts());
}

/// FNV-1a of the memory of a filter whose parts end within a line: all bytes are written, by any number of threads.
#[test]
fn memory_has_the_contents_that_filter_version_names() {
    let (f, c) = (70, 97);
    let gate = uniform(23, f * c);
    for threads in 1..=3 {
        for stale in [0, 99] {
            let memory = vec![FilterLine([stale; 64]); gate_filter_lines(f, c)];
            let filter = GateFilter::new(&Team::new(Level::best(), threads), &gate, c, memory);
            let bytes: &[u8] = cast_slice(filter.memory());
            let add = |hash: u64, &byte: &u8| (hash ^ byte as u64).wrapping_mul(0x100000001b3);
            let found = bytes.iter().fold(0xcbf29ce484222325, add);
            let version_1: u64 = 9544517253919654525;
            assert_eq!(found, version_1, "memory has other contents: raise FILTER_VERSION, and name their hash here");
        }
    }
    assert_eq!(FILTER_VERSION, 1);
}

#[test]
fn a_filter_from_memory_is_the_one_that_was_made() {
    let (f, c) = (600, 97);
    let inputs = SparseInputs::new(24, c, 1);
    let ffn = Ffn::of(inputs.gate(25, f, 0.9));
    let weights = FfnWeights { gate: &ffn.gate, up: &ffn.up, down_t: &ffn.down_t };
    let made = filter_of(&ffn.gate, c);
    let kept = GateFilter::from_memory(made.memory(), f, c);
    assert_eq!((kept.direction_square, kept.bytes()), (made.direction_square, made.bytes()));
    let (team, mut scratch, mut y) = (Team::serial(Level::best()), FfnScratch::default(), [vec![0.0; c], vec![0.0; c]]);
    let by_made = ffn_filtered(&team, weights, &made, &inputs.x, &mut scratch, &mut y[0]);
    let by_kept = ffn_filtered(&team, weights, &kept, &inputs.x, &mut scratch, &mut y[1]);
    assert_eq!((by_made, &y[0]), (by_kept, &y[1]));
}

#[test]
#[should_panic(expected = "GateFilter: memory of 2 lines for a gate [4, 3], expected 3")]
fn memory_of_another_size_is_named() {
    GateFilter::from_memory(&[FilterLine::zeroed(); 2][..], 4, 3);
}
