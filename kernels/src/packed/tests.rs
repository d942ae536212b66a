use super::*;
use crate::gemv::gemv;
use crate::gemv_batch::gemv_batch;
use crate::sparse::{
    FfnScratch, FfnWeights, GateFilter, ffn_dense, ffn_dense_batch, ffn_filtered, ffn_sparse, ffn_sparse_batch,
    ffn_sparse_prompt, gate_filter_lines, rows_axpy, rows_dot,
};
use crate::testing::{SparseInputs, lengths, normal, teams, uniform, widened};
use crate::{Activation, Beta};
use proptest::prelude::*;

fn packed(src: &[bf16], cols: usize) -> Option<Vec<PackedBf16>> {
    let mut rows = vec![PackedBf16([0xAA; LINE]); src.len() / cols * PackedBf16::row_len(cols)];
    pack_rows(&Team::serial(Level::best()), src, cols, &mut rows).then_some(rows)
}

fn rounded(src: &[f32]) -> Vec<bf16> {
    src.iter().map(|&x| bf16::from_f32(x)).collect()
}

fn bits(y: &[f32]) -> Vec<u32> {
    y.iter().map(|y| y.to_bits()).collect()
}

/// Every bit of every weight, at every level. `src` fits.
fn comes_back(what: &str, src: &[bf16], cols: usize) {
    let rows = packed(src, cols).unwrap_or_else(|| panic!("pack_rows bf16-packed {what}: refused"));
    let expected: Vec<u32> = src.iter().map(|w| (w.to_bits() as u32) << 16).collect();
    for level in Level::available() {
        for (row, expected) in rows.chunks(PackedBf16::row_len(cols)).zip(expected.chunks(cols)) {
            let mut back = vec![f32::NAN; cols];
            PackedBf16::widen_row(level, row, &mut back);
            assert!(bits(&back) == expected, "widen_row bf16-packed {level} {what}");
        }
    }
}

/// Sixteen exponents to 4096 weights: all 65536 numbers, whatever lies beside them.
#[test]
fn every_bf16_comes_back() {
    let of_block = |block: u32| {
        // 16 exponents, with their signs and fractions 256 numbers each.
        (0..512u32).map(move |i| {
            let n = block % 8 * 512 + i;
            let (exponent, rest) = (block / 8 * 16 + n * 7 % 16, n / 16);
            bf16::from_bits((rest >> 7 << 15 | exponent << 7 | rest & 0x7F) as u16)
        })
    };
    let all: Vec<bf16> = (0..128).flat_map(of_block).collect();
    let mut seen = vec![false; 1 << 16];
    all.iter().for_each(|w| seen[w.to_bits() as usize] = true);
    assert!(seen.into_iter().all(|seen| seen), "the test leaves numbers out");
    for cols in [512, 1024, 2048, 4096] {
        comes_back(&format!("all numbers in rows of {cols}"), &all, cols);
    }
}

#[test]
fn rows_of_every_length_come_back() {
    for cols in lengths().skip(1).chain([511, 512, 513, 639, 641, 2047, 2048, 2049, 2176, 5000]) {
        comes_back(&format!("[3, {cols}]"), &rounded(&normal(1, 3 * cols)), cols);
    }
}

fn number(exponent: usize, fraction: usize) -> bf16 {
    bf16::from_bits((exponent << 7) as u16 | (fraction % 128) as u16)
}

/// A row of `cols` weights with 16 frequent exponents in each block, and at the places of `exceptions` others.
fn row_with(cols: usize, exceptions: &[usize]) -> Vec<bf16> {
    let mut row: Vec<bf16> = (0..cols).map(|i| number(100 + i * 5 % 16, i)).collect();
    for (n, &i) in exceptions.iter().enumerate() {
        // Zeros and subnormals, infinities and NaN among them.
        row[i] = number([0, 255, 1, 116, 99, 254][n % 6], 77 * n);
    }
    row
}

/// Exceptions at the borders of everything, as many as there may be; one more is refused.
#[test]
fn exceptions_come_back_and_17_of_a_block_are_refused() {
    for cols in [600, 2048, 2049 + 300, 5000] {
        for start in (0..cols).step_by(BLOCK) {
            let end = cols.min(start + BLOCK);
            let edges = [0, 1, 15, 63, 64, 65, 127, 128, 191, 192, 255, 256, 290, 298];
            let mut places: Vec<usize> = edges.into_iter().map(|i| start + i).filter(|&i| i + 2 < end).collect();
            places.extend([end - 2, end - 1]);
            for n in [1, 2, 15, 16] {
                let n = n.min(places.len());
                let (first, last) = (&places[..n], &places[places.len() - n..]);
                for places in [first, last] {
                    comes_back(&format!("{n} exceptions from {start} on of {cols}"), &row_with(cols, places), cols);
                }
            }
            if end - start > 400 {
                places.truncate(14);
                places.extend([start + 301, start + 302, start + 303]);
                let row = row_with(cols, &places);
                assert!(packed(&row, cols).is_none(), "pack_rows bf16-packed: 17 exceptions from {start} on of {cols}");
            }
        }
    }
    // 16 in each block.
    let row = row_with(4096, &(0..16).chain(2048..2064).collect::<Vec<_>>());
    comes_back("16 exceptions in both blocks", &row, 4096);
    // One bad row of many, in any task of any team.
    let mut matrix = rounded(&normal(2, 100 * 600));
    comes_back("100 rows", &matrix, 600);
    (0..600).for_each(|i| matrix[70 * 600 + i] = number(i % 40, i));
    for team in teams() {
        let mut rows = vec![PackedBf16::zeroed(); 100 * PackedBf16::row_len(600)];
        assert!(!pack_rows(&team, &matrix, 600, &mut rows), "pack_rows bf16-packed: row 70, {}t", team.threads());
    }
}

#[test]
#[should_panic(expected = "round_row bf16-packed: 2048 weights with too many exponents")]
fn round_row_says_what_it_cannot_hold() {
    let src: Vec<f32> = (0..33).map(|i| f32::powi(2.0, i)).collect();
    PackedBf16::round_row(Level::SCALAR, &src, &mut [PackedBf16::zeroed(); 4]);
}

#[test]
#[should_panic(expected = "pack_rows: 7 elements in rows of 3, and 8 units in rows of 4")]
fn pack_rows_names_lengths_that_do_not_fit() {
    pack_rows(&Team::serial(Level::SCALAR), &[bf16::ZERO; 7], 3, &mut [PackedBf16::zeroed(); 8]);
}

/// Gives each third row a few weights of other sizes.
fn with_exceptions(mut w: Vec<bf16>, cols: usize) -> Vec<bf16> {
    for (i, row) in w.chunks_mut(cols).enumerate().filter(|(i, _)| i % 3 == 1) {
        for n in 0..7 {
            row[(i * 31 + n * n * 67) % cols] = number(88 + 4 * n, 19 * n);
        }
    }
    w
}

/// Products and sums with packed rows against those with the rows of bf16.
fn has_the_bits_of_bf16(team: &Team, m: usize, cols: usize, scale: f32) {
    let what = format!("{} {}t [{m}, {cols}]", team.level(), team.threads());
    let w = with_exceptions(rounded(&uniform(1, m * cols)), cols);
    let rows = packed(&w, cols).expect("uniform numbers fit");
    let x: Vec<f32> = uniform(2, 9 * cols).into_iter().map(|x| x * scale).collect();
    let both = |packed: &dyn Fn(&mut [f32]), plain: &dyn Fn(&mut [f32]), len: usize, op: &str| {
        let mut y = [(); 2].map(|_| vec![f32::NAN; len]);
        packed(&mut y[0]);
        plain(&mut y[1]);
        assert_eq!(bits(&y[0]), bits(&y[1]), "{op} bf16-packed {what}");
    };
    both(&|y| gemv(team, &rows, &x[..cols], y), &|y| gemv(team, &w, &x[..cols], y), m, "gemv");
    for n in [2, 3, 4, 9] {
        let x = &x[..n * cols];
        both(
            &|y| gemv_batch(team, &rows, x, n, Beta::Zero, y),
            &|y| gemv_batch(team, &w, x, n, Beta::Zero, y),
            n * m,
            "gemv_batch",
        );
    }
    for step in [1, 2, 5] {
        let list: Vec<u32> = (0..m as u32).step_by(step).collect();
        let h: Vec<f32> = uniform(3, list.len()).into_iter().map(|h| h * scale).collect();
        both(
            &|y| rows_dot(team, &rows, &list, &x[..cols], y),
            &|y| rows_dot(team, &w, &list, &x[..cols], y),
            list.len(),
            "rows_dot",
        );
        both(
            &|y| rows_axpy(team, &rows, &list, &h, y, &mut Vec::new()),
            &|y| rows_axpy(team, &w, &list, &h, y, &mut Vec::new()),
            cols,
            "rows_axpy",
        );
    }
}

#[test]
fn products_with_packed_rows_have_the_bits_of_bf16() {
    for team in teams() {
        for cols in lengths().skip(1).chain([300, 511, 512, 513, 700, 2048, 2200]) {
            for m in [1, 3, 37] {
                has_the_bits_of_bf16(&team, m, cols, 1.0);
                // Products that vanish: zeros of either sign.
                has_the_bits_of_bf16(&team, m, cols, 1e-42);
            }
        }
    }
}

/// An FFN over rows of bf16, and over the packed ones.
struct Ffn {
    plain: [Vec<bf16>; 3],
    packed: [Vec<PackedBf16>; 3],
    cols: usize,
}

impl Ffn {
    fn new(inputs: &SparseInputs, f: usize, c: usize, zeros: f64) -> Ffn {
        let plain = [inputs.gate(1, f, zeros), uniform(2, f * c), uniform(3, f * c)];
        let plain = plain.map(|w| with_exceptions(rounded(&w), c));
        let packed = plain.each_ref().map(|w| packed(w, c).expect("normal numbers fit"));
        Ffn { plain, packed, cols: c }
    }

    fn weights<W>([gate, up, down_t]: &[Vec<W>; 3]) -> FfnWeights<'_, W> {
        FfnWeights { gate, up, down_t }
    }
}

/// What the FFN of tokens gives in each way, with what each counts.
fn all_ways<W: crate::row_format::FloatRows>(
    team: &Team,
    weights: FfnWeights<W>,
    filter: &GateFilter<Vec<crate::sparse::FilterLine>>,
    x: &[f32],
    n: usize,
    gates: &[f32],
) -> Vec<(&'static str, Vec<u32>, usize)> {
    let c = x.len() / n;
    let (mut scratch, mut ways) = (FfnScratch::default(), Vec::new());
    let site = crate::MaskSite { seed: 3, first_token: 4, layer: 5, stream: 6, step: 7 };
    let mut y = vec![f32::NAN; n * c];
    let one = &x[..c];
    let count = ffn_dense(team, weights, Activation::Relu, one, &mut scratch, &mut y[..c]);
    ways.push(("ffn_dense", bits(&y[..c]), count));
    let count = ffn_dense(team, weights, Activation::stochastic(0.5, site), one, &mut scratch, &mut y[..c]);
    ways.push(("ffn_dense of a stochastic activation", bits(&y[..c]), count));
    let count = ffn_sparse(team, weights, one, &mut scratch, &mut y[..c]);
    ways.push(("ffn_sparse", bits(&y[..c]), count));
    let count = ffn_filtered(team, weights, filter, one, &mut scratch, &mut y[..c]);
    ways.push(("ffn_filtered", bits(&y[..c]), count.survivors * 100_000 + count.active));
    let count = ffn_dense_batch(team, weights, &vec![Activation::Relu; n], x, &mut scratch, &mut y);
    ways.push(("ffn_dense_batch", bits(&y), count.union));
    let count = ffn_sparse_batch(team, weights, n, x, &mut scratch, &mut y);
    ways.push(("ffn_sparse_batch", bits(&y), count.union));
    y.fill(0.5);
    let count = ffn_sparse_prompt(team, weights.up, weights.down_t, gates, n, x, &mut y);
    ways.push(("ffn_sparse_prompt", bits(&y), count));
    ways
}

fn ffn_has_the_bits_of_bf16(team: &Team, f: usize, c: usize, n: usize, zeros: f64) {
    let inputs = SparseInputs::new(5, c, n);
    let ffn = Ffn::new(&inputs, f, c, zeros);
    let gates: Vec<f32> = uniform(4, n * f).into_iter().map(|g| g - 0.5).collect();
    let filter = |gate: &[f32]| {
        GateFilter::new(team, gate, ffn.cols, vec![crate::sparse::FilterLine::zeroed(); gate_filter_lines(f, c)])
    };
    let filter = filter(&widened(&ffn.plain[0]));
    let plain = all_ways(team, Ffn::weights(&ffn.plain), &filter, &inputs.x, n, &gates);
    let packed = all_ways(team, Ffn::weights(&ffn.packed), &filter, &inputs.x, n, &gates);
    for ((op, plain, counted), (_, packed, counted_packed)) in plain.into_iter().zip(packed) {
        let what = format!("{op} bf16-packed {} {}t [{f}, {c}], {n} tokens", team.level(), team.threads());
        assert_eq!(counted_packed, counted, "{what}: counts");
        assert!(packed == plain, "{what}: other bits than bf16");
    }
}

#[test]
fn the_ffn_of_packed_rows_has_the_bits_of_bf16() {
    for team in teams() {
        for (f, c) in [(1, 1), (33, 17), (70, 128), (100, 300), (40, 520), (530, 64)] {
            for (n, zeros) in [(1, 0.5), (2, 0.9), (5, 0.0), (8, 0.8), (13, 0.5)] {
                ffn_has_the_bits_of_bf16(&team, f, c, n, zeros);
            }
        }
        ffn_has_the_bits_of_bf16(&team, 40, 2200, 7, 0.7);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn packed_rows_have_the_bits_of_bf16_in_any_shape(
        f in 1usize..300, c in 1usize..700, n in 1usize..10, zeros in 0.0f64..1.0
    ) {
        for level in Level::available() {
            has_the_bits_of_bf16(&Team::serial(level), f % 40 + 1, c, 1.0);
            ffn_has_the_bits_of_bf16(&Team::new(level, 2), f, c % 300 + 1, n, zeros);
        }
    }
}
