//! Rounding to binary floating-point formats, and reading f16 and bf16.

/// A rounding mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounding {
    /// To nearest, ties to even.
    Nearest,
    /// To nearest, ties away from zero (`.rna`).
    NearestAway,
    Zero,
    Down,
    Up,
}

/// A binary format: stored bits of the significand, and exponent bias (also the largest exponent).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Format {
    significand: i32,
    bias: i32,
    nan: u32,
}

/// NaNs come out as the one that the device gives.
pub(crate) const F16: Format = Format { significand: 10, bias: 15, nan: 0x7fff };
pub(crate) const BF16: Format = Format { significand: 7, bias: 127, nan: 0x7fff };
pub(crate) const F32: Format = Format { significand: 23, bias: 127, nan: 0x7fff_ffff };

impl Format {
    /// The bits of `x` in this format.
    pub fn round(self, x: f64, rounding: Rounding) -> u32 {
        let Self { significand, bias, nan } = self;
        if x.is_nan() {
            return nan;
        }
        let exponent_bits = (2 * bias + 1).ilog2() as i32 + 1;
        let sign = u32::from(x.is_sign_negative()) << (significand + exponent_bits);
        let infinity = ((2 * bias + 1) as u32) << significand;
        let magnitude = x.abs();
        if magnitude.is_infinite() {
            return sign | infinity;
        }
        // A subnormal f64 is far below every quantum here: its exponent field reads as -1023, which is as good.
        let exponent = ((magnitude.to_bits() >> 52) as i32 - 1023).max(1 - bias);
        let quanta = magnitude * 2f64.powi(significand - exponent);
        let away = matches!((rounding, x.is_sign_negative()), (Rounding::Up, false) | (Rounding::Down, true));
        let rounded = match rounding {
            Rounding::Nearest => quanta.round_ties_even(),
            Rounding::NearestAway => quanta.round(),
            _ if away => quanta.ceil(),
            _ => quanta.trunc(),
        } as u32;
        // Of a normal number `rounded` holds the leading one, which counts as one in the exponent field; a carry to the
        // next power of two does the same.
        let bits = (((exponent.min(bias) + bias - 1) as u32) << significand) + rounded;
        if exponent > bias || bits >= infinity {
            let to_infinity = matches!(rounding, Rounding::Nearest | Rounding::NearestAway) || away;
            return sign | if to_infinity { infinity } else { infinity - 1 };
        }
        sign | bits
    }
}

/// `.sat`: held within 0 and 1; NaN and -0 become +0.
pub(crate) fn saturate(x: f64) -> f64 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

/// The value of f16 bits.
pub(crate) fn f16_value(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff);
    let sign = u32::from(bits >> 15) << 31;
    // Moved into an f32, the number is 2^112 times too small; infinity and NaN need their exponent.
    let value = f32::from_bits(magnitude << 13) * 2f32.powi(112);
    let bits = if magnitude >= 0x7c00 { magnitude << 13 | 0x7f80_0000 } else { value.to_bits() };
    f32::from_bits(sign | bits)
}

/// The value of bf16 bits.
pub(crate) fn bf16_value(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_and_bf16_is_read_and_written_back() {
        for bits in 0..=u16::MAX {
            let (f16, bf16) = (half::f16::from_bits(bits), half::bf16::from_bits(bits));
            if f16.is_nan() {
                assert!(f16_value(bits).is_nan());
            } else {
                assert_eq!(f16_value(bits).to_bits(), f16.to_f32().to_bits(), "f16 {bits:#06x}");
                assert_eq!(F16.round(f16_value(bits).into(), Rounding::Nearest), bits.into(), "f16 {bits:#06x}");
            }
            if !bf16.is_nan() {
                assert_eq!(bf16_value(bits), bf16.to_f32());
                assert_eq!(BF16.round(bf16_value(bits).into(), Rounding::Nearest), bits.into(), "bf16 {bits:#06x}");
            }
        }
    }

    #[test]
    fn rounding_equals_half_and_the_compiler() {
        // Steps through f32 with an odd stride, so that all exponents and many ties are met; ties themselves below.
        for bits in (0..=u32::MAX).step_by(65521).chain((0..0xffff).map(|high| high << 16 | 0x8000)) {
            let x = f32::from_bits(bits);
            if x.is_nan() {
                continue;
            }
            assert_eq!(
                BF16.round(x.into(), Rounding::Nearest),
                half::bf16::from_f32(x).to_bits().into(),
                "bf16 of {x:e}"
            );
            assert_eq!(F16.round(x.into(), Rounding::Nearest), half::f16::from_f32(x).to_bits().into(), "f16 of {x:e}");
            let wide = f64::from_bits(u64::from(bits) << 32 | 0x1000_0000);
            assert_eq!(F32.round(wide, Rounding::Nearest), (wide as f32).to_bits(), "f32 of {wide:e}");
        }
    }

    #[test]
    fn directed_roundings_enclose() {
        for x in [1.0 + 1e-9, -1.0 - 1e-9, 1e-45, -1e-46, 3.5e38, -1e39, 0.1, -0.1] {
            let [down, up, zero] =
                [Rounding::Down, Rounding::Up, Rounding::Zero].map(|r| f64::from(f32::from_bits(F32.round(x, r))));
            assert!(down < x && x < up, "{x:e}: {down:e} {up:e}");
            assert_eq!(zero, if x > 0.0 { down } else { up }, "{x:e}");
            assert_eq!(f32::from_bits(F32.round(down, Rounding::Nearest)).next_up() as f64, up, "{x:e}");
        }
        assert_eq!(F32.round(1.0 + 2f64.powi(-24), Rounding::NearestAway), 1.0f32.next_up().to_bits());
    }
}
