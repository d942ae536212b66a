//! `cvt`.

use super::integer::{Int, for_int};
use super::small_float::{self, Format, Rounding, bf16_value, f16_value};
use super::{Map, one, two};
use crate::types::Type;

/// The modifiers of a conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mode {
    pub ftz: bool,
    pub saturate: bool,
    pub relu: bool,
    /// `.rn`, `.rz`, ...: of a result that is floating-point.
    pub rounding: Option<Rounding>,
    /// `.rni`, `.rzi`, ...: to a whole number.
    pub integral: Option<Rounding>,
}

fn to_integral(x: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Nearest => x.round_ties_even(),
        Rounding::NearestAway => x.round(),
        Rounding::Zero => x.trunc(),
        Rounding::Down => x.floor(),
        Rounding::Up => x.ceil(),
    }
}

/// A floating-point lane's value; f64 holds each exactly.
fn value_of(ty: Type, ftz: bool) -> Option<fn(u64) -> f64> {
    fn f32_of(a: u64) -> f64 {
        f32::from_bits(a as u32).into()
    }
    fn f32_flushed(a: u64) -> f64 {
        let x = f32::from_bits(a as u32);
        if x.is_subnormal() { 0f64.copysign(x.into()) } else { x.into() }
    }
    Some(match ty {
        Type::F16 => |a| f16_value(a as u16).into(),
        Type::Bf16 => |a| bf16_value(a as u16).into(),
        Type::F32 if ftz => f32_flushed,
        Type::F32 => f32_of,
        Type::F64 => f64::from_bits,
        _ => return None,
    })
}

fn format_of(ty: Type) -> Option<Format> {
    Some(match ty {
        Type::F16 => small_float::F16,
        Type::Bf16 => small_float::BF16,
        Type::F32 => small_float::F32,
        _ => return None,
    })
}

/// A value to the bits of a floating-point type.
fn writer(ty: Type, mode: Mode) -> Option<impl Fn(f64) -> u64 + Send + Sync + Copy + 'static> {
    let format = if ty == Type::F64 { None } else { Some(format_of(ty)?) };
    let rounding = mode.rounding.unwrap_or(Rounding::Nearest);
    // A conversion to f64 that would have to round is none that nvcc makes.
    if format.is_none() && (rounding != Rounding::Nearest || mode.saturate || mode.relu) {
        return None;
    }
    Some(move |x: f64| {
        let x = if mode.saturate { small_float::saturate(x) } else { x };
        let x = if mode.relu && x <= 0.0 { 0.0 } else { x };
        let Some(format) = format else { return x.to_bits() };
        let bits = u64::from(format.round(x, rounding));
        let flushed = mode.ftz && ty == Type::F32 && bits & 0x7f80_0000 == 0;
        if flushed { bits & 0x8000_0000 } else { bits }
    })
}

/// `cvt.to.from`; none if there is no such conversion with these modifiers.
pub(crate) fn convert(to: Type, from: Type, mode: Mode) -> Option<Map> {
    match (to.is_float(), from.is_float()) {
        (false, false) => {
            fn build<F: Int>(to: Type, mode: Mode) -> Option<Map> {
                if !mode.saturate {
                    // Extended by the sign of its own type; the writer of the register cuts it.
                    return Some(one(|a| F::of(a).bits()));
                }
                fn limits<T: Int>() -> Option<(i128, i128)> {
                    Some(T::limits())
                }
                let (low, high) = for_int!(to, limits())?;
                Some(one(move |a| F::of(a).wide().clamp(low, high) as u64))
            }
            if mode.rounding.is_some() || mode.integral.is_some() || mode.relu || mode.ftz {
                return None;
            }
            for_int!(from, build(to, mode))
        }
        (true, false) => {
            fn build<F: Int>(to: Type, mode: Mode) -> Option<Map> {
                match (to, mode.rounding?, F::BITS) {
                    // 64 bits do not fit f64, so they are rounded to f32 and f64 by the compiler's conversion.
                    (Type::F32, Rounding::Nearest, 64) if !mode.saturate => {
                        Some(one(|a| (F::of(a).wide() as f32).to_bits().into()))
                    }
                    (Type::F64, Rounding::Nearest, _) if !mode.saturate => {
                        Some(one(|a| (F::of(a).wide() as f64).to_bits()))
                    }
                    (_, _, 64) | (Type::F64, _, _) => None,
                    _ => {
                        let write = writer(to, mode)?;
                        Some(one(move |a| write(F::of(a).wide() as f64)))
                    }
                }
            }
            if mode.integral.is_some() {
                return None;
            }
            for_int!(from, build(to, mode))
        }
        (false, true) => {
            // Out of range holds at the ends and NaN gives 0, which is also what `as` does.
            fn build<T: Int>(value: fn(u64) -> f64, rounding: Rounding) -> Option<Map> {
                let (low, high) = T::limits();
                Some(one(move |a| T::narrow((to_integral(value(a), rounding) as i128).clamp(low, high)).bits()))
            }
            let value = value_of(from, mode.ftz)?;
            if mode.rounding.is_some() || mode.relu {
                return None;
            }
            for_int!(to, build(value, mode.integral?))
        }
        (true, true) => {
            if to == Type::Tf32 && from == Type::F32 {
                // 10 bits of significand stay: `rna` adds half of the last one to the magnitude.
                return match mode.rounding? {
                    Rounding::NearestAway => {
                        Some(one(
                            |a| if f32::from_bits(a as u32).is_nan() { 0x7fff_ffff } else { (a + 0x1000) & !0x1fff },
                        ))
                    }
                    _ => None,
                };
            }
            let (value, write) = (value_of(from, mode.ftz)?, writer(to, mode)?);
            match mode.integral {
                Some(rounding) => Some(one(move |a| write(to_integral(value(a), rounding)))),
                None if to == from && !mode.saturate && !mode.ftz => Some(one(|a| a)),
                None => Some(one(move |a| write(value(a)))),
            }
        }
    }
}

/// `cvt.bf16x2.f32 d, a, b` and `cvt.f16x2.f32`: a goes into the upper half.
pub(crate) fn convert_pair(to: Type, mode: Mode) -> Option<Map> {
    let to = if to == Type::Bf16x2 { Type::Bf16 } else { Type::F16 };
    mode.rounding?;
    let (value, write) = (value_of(Type::F32, mode.ftz)?, writer(to, mode)?);
    Some(two(move |a, b| write(value(a)) << 16 | write(value(b))))
}
