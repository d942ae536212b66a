//! The rotary angles of every position, as cosines and sines.

use crate::{Config, RopeScaling};
use std::f64::consts::TAU;
use tensor::{Device, Tensor};

/// `cos(p f_i)` and `sin(p f_i)` for every position p and every pair i of a head, computed in f64 and rounded once.
/// Shapes: both `[max_seq_len, D / 2]`.
#[derive(Clone)]
pub struct RopeTable {
    /// Cosines.
    pub cos: Tensor,
    /// Sines.
    pub sin: Tensor,
}

impl RopeTable {
    /// The table of a model. Panics unless `head_dim` is even (which [`Config::validate`] checks).
    pub fn new(config: &Config) -> RopeTable {
        let frequencies = rope_frequencies(config);
        let shape = [config.max_seq_len, frequencies.len()];
        let table = |f: fn(f64) -> f64| {
            let angles = (0..config.max_seq_len).flat_map(|p| frequencies.iter().map(move |w| p as f64 * w));
            let values: Vec<f32> = angles.map(|a| f(a) as f32).collect();
            Tensor::from_slice(&values, shape)
        };
        RopeTable { cos: table(f64::cos), sin: table(f64::sin) }
    }

    /// The same table on `device`. Fails when its memory does not suffice.
    pub fn to_device(&self, device: &Device) -> Result<RopeTable, cuda::Error> {
        Ok(RopeTable { cos: self.cos.to_device(device)?, sin: self.sin.to_device(device)? })
    }
}

/// The angle, in radians a position, of each of the D / 2 pairs: `f_i = theta^(-2 i / D)` (Su et al., arXiv 2104.09864,
/// section 3.2.2), then scaled as `rope_scaling` says. Panics unless `head_dim` is even.
pub fn rope_frequencies(config: &Config) -> Vec<f64> {
    let d = config.head_dim;
    assert!(d.is_multiple_of(2), "rope_frequencies: head_dim = {d} is odd");
    let plain = (0..d / 2).map(|i| config.rope_theta.powf(-2.0 * i as f64 / d as f64));
    plain.map(|f| config.rope_scaling.map_or(f, |scaling| llama3(f, scaling))).collect()
}

/// Llama 3's rule, as `rope_type: llama3` in transformers: a wave that turns at least `high_freq_factor` times within the
/// original context is kept, one that turns at most `low_freq_factor` times is slowed by `factor`, and between the two
/// the frequencies are blended linearly in the number of turns.
fn llama3(f: f64, s: RopeScaling) -> f64 {
    let turns = s.original_max_seq_len as f64 * f / TAU;
    let kept = ((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)).clamp(0.0, 1.0);
    (1.0 - kept) * f / s.factor + kept * f
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::testing::ROUNDING;

    /// Powers of one rotation, by complex multiplication: no cosine of a large angle, no power of theta.
    #[test]
    fn rope_table_is_the_powers_of_one_rotation() {
        let config =
            Config { head_dim: 8, max_seq_len: 300, rope_theta: 10_000.0, ..crate::preset("tiny", 256).unwrap() };
        let table = RopeTable::new(&config);
        let (cos, sin) = (table.cos.to_vec::<f32>().unwrap(), table.sin.to_vec::<f32>().unwrap());
        assert_eq!(*table.cos.shape(), [300, 4]);
        for i in 0..4 {
            // theta^(-2i/D) = 10^-i here.
            let angle = [1.0, 0.1, 0.01, 0.001][i];
            let (step_cos, step_sin) = (f64::cos(angle), f64::sin(angle));
            let (mut c, mut s) = (1.0, 0.0);
            for p in 0..300 {
                // One rounding to f32; the 300 rotations in f64, four roundings each, are off by 1.4e-13 at most.
                let at = p * 4 + i;
                assert!((cos[at] as f64 - c).abs() <= ROUNDING + 1e-12, "rope_table: cos of position {p}, pair {i}");
                assert!((sin[at] as f64 - s).abs() <= ROUNDING + 1e-12, "rope_table: sin of position {p}, pair {i}");
                (c, s) = (c * step_cos - s * step_sin, c * step_sin + s * step_cos);
            }
        }
    }

    /// Against transformers' rule as it is written there (three cases by wavelength), for Llama 3.1's numbers.
    #[test]
    fn rope_table_scales_as_llama3() {
        let scaling =
            RopeScaling { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_seq_len: 8192 };
        let plain = Config { head_dim: 128, rope_theta: 500_000.0, ..crate::preset("tiny", 256).unwrap() };
        let scaled = Config { rope_scaling: Some(scaling), ..plain.clone() };
        let (mut kept, mut blended, mut slowed) = (0, 0, 0);
        for (i, (f, g)) in rope_frequencies(&plain).into_iter().zip(rope_frequencies(&scaled)).enumerate() {
            let wavelength = TAU / f;
            let expected = if wavelength < 8192.0 / 4.0 {
                kept += 1;
                f
            } else if wavelength > 8192.0 / 1.0 {
                slowed += 1;
                f / 8.0
            } else {
                blended += 1;
                let smooth = (8192.0 / wavelength - 1.0) / (4.0 - 1.0);
                (1.0 - smooth) * f / 8.0 + smooth * f
            };
            // The blend subtracts numbers of up to 4 times its result, in f64: some tens of roundings of 1.1e-16.
            assert!((g - expected).abs() <= 1e-14 * expected, "rope_table: frequency {i} is {g}, expected {expected}");
        }
        assert!(kept > 0 && blended > 0 && slowed > 0, "rope_table: {kept} kept, {blended} blended, {slowed} slowed");
    }
}
