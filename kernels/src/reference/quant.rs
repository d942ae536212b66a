use half::f16;

/// A block as integers and their scale: weight k is `q[k] * scale`.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantBlock {
    /// What the integers are multiplied with.
    pub scale: f32,
    /// 32, fewer in the last block of a row.
    pub q: Vec<i32>,
}

/// Specification of the rounding of [`Quantized`](crate::quant::Quantized) rows: blocks of 32, `s = f16(max |w| / 127)` for 8 bits
/// and `s = f16(m / -8)` for 4, where m is the first w of the largest magnitude; `q = round(w / s)`, ties to even, within
/// -127 ..= 127 or -8 ..= 7. For finite weights.
pub fn quantize(bits: u32, row: &[f32]) -> Vec<QuantBlock> {
    let block = |w: &[f32]| {
        let largest = w.iter().fold(0.0f32, |m, &w| if w.abs() > m.abs() { w } else { m });
        let (scale, range) = match bits {
            8 => (largest.abs() / 127.0, -127..=127),
            4 => (largest / -8.0, -8..=7),
            _ => panic!("quantize: {bits} bits"),
        };
        let scale = f16::from_f32(scale).to_f32();
        let round = |w: f32| ((w / scale).round_ties_even() as i32).clamp(*range.start(), *range.end());
        QuantBlock { scale, q: w.iter().map(|&w| if scale == 0.0 { 0 } else { round(w) }).collect() }
    };
    row.chunks(32).map(block).collect()
}

/// Specification of the rounding of x in [`I8Dot`](crate::quant::I8Dot): blocks of 32, `s = max |x| / 127`,
/// `q = round(127 x / max |x|)`; zeros if that is below 2^-100.
pub fn quantize_x(x: &[f32]) -> Vec<QuantBlock> {
    let block = |x: &[f32]| {
        let largest = x.iter().fold(0.0f32, |m, &x| m.max(x.abs()));
        if largest < f32::powi(2.0, -100) {
            return QuantBlock { scale: 0.0, q: vec![0; x.len()] };
        }
        let inverse = 127.0 / largest;
        QuantBlock { scale: largest / 127.0, q: x.iter().map(|x| (x * inverse).round_ties_even() as i32).collect() }
    };
    x.chunks(32).map(block).collect()
}

/// The numbers that the blocks stand for.
pub fn dequantize(blocks: &[QuantBlock]) -> Vec<f64> {
    blocks.iter().flat_map(|b| b.q.iter().map(|&q| q as f64 * b.scale as f64)).collect()
}
