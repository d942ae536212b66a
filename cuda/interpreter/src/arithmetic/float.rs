//! Floating-point arithmetic.
//!
//! Approximate instructions (`ex2.approx`, `rsqrt.approx`, `tanh.approx`, `div.full`, ...) are computed in f64 and
//! rounded once; the device's results differ by their documented errors, which comparisons on the device must allow
//! for.

use super::small_float::{self, Format, Rounding, bf16_value, f16_value};
use super::{Map, integer::Comparison, one, three, two};
use crate::types::Type;

/// The modifiers of a floating-point instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mode {
    /// Subnormal f32 operands and results count as zero of their sign.
    pub ftz: bool,
    /// Results are held within 0 and 1; NaN becomes 0.
    pub saturate: bool,
    /// Negative results and NaN become 0.
    pub relu: bool,
    /// `min.NaN`: a NaN operand makes a NaN.
    pub nan: bool,
    pub approximate: bool,
    pub rounding: Rounding,
}

fn flush(x: f32, ftz: bool) -> f32 {
    if ftz && x.is_subnormal() { 0f32.copysign(x) } else { x }
}

fn read(bits: u64, ftz: bool) -> f32 {
    flush(f32::from_bits(bits as u32), ftz)
}

fn write(x: f32, mode: Mode) -> u64 {
    if mode.saturate {
        return (small_float::saturate(x.into()) as f32).to_bits().into();
    }
    if x.is_nan() {
        small_float::F32.round(f64::NAN, Rounding::Nearest).into()
    } else {
        flush(x, mode.ftz).to_bits().into()
    }
}

/// `x + e`, exact, as an f64 that rounds to f32 like the exact sum in every mode: x with its last bit odd if anything
/// is left out.
fn round_to_odd(x: f64, e: f64) -> f64 {
    if e == 0.0 || !x.is_finite() || x.to_bits() & 1 == 1 {
        return x;
    }
    if e > 0.0 { x.next_up() } else { x.next_down() }
}

/// `a * b + c` rounded once, in the given direction. The product of two f32 is exact in f64.
fn fma_directed(a: f32, b: f32, c: f32, rounding: Rounding) -> f32 {
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    // Knuth's two-sum: what the addition left out.
    let c_part = sum - product;
    let error = (product - (sum - c_part)) + (c - c_part);
    // A sum of nothing has the sign of its direction; round_to_odd would not see it.
    if sum == 0.0 && rounding == Rounding::Down && (product.is_sign_negative() || c.is_sign_negative()) {
        return -0.0;
    }
    f32::from_bits(small_float::F32.round(round_to_odd(sum, error), rounding))
}

/// IEEE minimum or maximum of PTX: -0 is less than +0, and a NaN loses to a number unless `nan`.
macro_rules! extreme {
    ($a:expr, $b:expr, $max:expr, $nan:expr) => {{
        let (a, b) = ($a, $b);
        if a.is_nan() || b.is_nan() {
            if $nan || a.is_nan() == b.is_nan() {
                a + b
            } else if a.is_nan() {
                b
            } else {
                a
            }
        } else if (a.total_cmp(&b).is_gt()) == $max {
            a
        } else {
            b
        }
    }};
}

/// `name` for f32.
fn single(name: &str, mode: Mode) -> Option<Map> {
    let m = mode;
    let map1 = |f: fn(f32) -> f32| one(move |a| write(f(read(a, m.ftz)), m));
    let map2 = |f: fn(f32, f32) -> f32| two(move |a, b| write(f(read(a, m.ftz), read(b, m.ftz)), m));
    let plain = !m.ftz && !m.saturate && m.rounding == Rounding::Nearest;
    let exact = !m.approximate;
    Some(match (name, m.rounding) {
        // The usual forms without flags, so that their loop has none.
        ("add", Rounding::Nearest) if plain => two(|a, b| canonical(read(a, false) + read(b, false))),
        ("sub", Rounding::Nearest) if plain => two(|a, b| canonical(read(a, false) - read(b, false))),
        ("mul", Rounding::Nearest) if plain => two(|a, b| canonical(read(a, false) * read(b, false))),
        ("fma", Rounding::Nearest) if plain => {
            three(|a, b, c| canonical(read(a, false).mul_add(read(b, false), read(c, false))))
        }
        ("add", Rounding::Nearest) => map2(|a, b| a + b),
        ("sub", Rounding::Nearest) => map2(|a, b| a - b),
        ("mul", Rounding::Nearest) => map2(|a, b| a * b),
        ("add", r) => two(move |a, b| write(fma_directed(read(a, m.ftz), 1.0, read(b, m.ftz), r), m)),
        ("sub", r) => two(move |a, b| write(fma_directed(read(a, m.ftz), 1.0, -read(b, m.ftz), r), m)),
        ("mul", r) => two(move |a, b| {
            let product = f64::from(read(a, m.ftz)) * f64::from(read(b, m.ftz));
            write(f32::from_bits(small_float::F32.round(product, r)), m)
        }),
        ("fma", Rounding::Nearest) => {
            three(move |a, b, c| write(read(a, m.ftz).mul_add(read(b, m.ftz), read(c, m.ftz)), m))
        }
        ("fma", r) => three(move |a, b, c| write(fma_directed(read(a, m.ftz), read(b, m.ftz), read(c, m.ftz), r), m)),
        ("div", Rounding::Nearest) => map2(|a, b| a / b),
        ("rcp", Rounding::Nearest) => map1(|a| 1.0 / a),
        ("sqrt", Rounding::Nearest) => map1(f32::sqrt),
        ("rsqrt", _) if !exact => map1(|a| (1.0 / f64::from(a).sqrt()) as f32),
        ("ex2", _) if !exact => map1(|a| f64::from(a).exp2() as f32),
        ("lg2", _) if !exact => map1(|a| f64::from(a).log2() as f32),
        ("sin", _) if !exact => map1(|a| f64::from(a).sin() as f32),
        ("cos", _) if !exact => map1(|a| f64::from(a).cos() as f32),
        ("tanh", _) if !exact => map1(|a| f64::from(a).tanh() as f32),
        ("neg", _) => one(move |a| (-read(a, m.ftz)).to_bits().into()),
        ("abs", _) => one(move |a| read(a, m.ftz).abs().to_bits().into()),
        ("min", _) => two(move |a, b| write(extreme!(read(a, m.ftz), read(b, m.ftz), false, m.nan), m)),
        ("max", _) => two(move |a, b| write(extreme!(read(a, m.ftz), read(b, m.ftz), true, m.nan), m)),
        ("copysign", _) => two(|sign, a| read(a, false).copysign(read(sign, false)).to_bits().into()),
        _ => return None,
    })
}

fn canonical(x: f32) -> u64 {
    if x.is_nan() { 0x7fff_ffff } else { x.to_bits().into() }
}

/// `name` for f64: to nearest only.
fn double(name: &str, mode: Mode) -> Option<Map> {
    if mode.ftz || mode.saturate || mode.relu || mode.rounding != Rounding::Nearest {
        return None;
    }
    let d = f64::from_bits;
    let nan = mode.nan;
    Some(match name {
        "add" => two(move |a, b| (d(a) + d(b)).to_bits()),
        "sub" => two(move |a, b| (d(a) - d(b)).to_bits()),
        "mul" => two(move |a, b| (d(a) * d(b)).to_bits()),
        "fma" => three(move |a, b, c| d(a).mul_add(d(b), d(c)).to_bits()),
        "div" => two(move |a, b| (d(a) / d(b)).to_bits()),
        "rcp" => one(move |a| (1.0 / d(a)).to_bits()),
        "sqrt" => one(move |a| d(a).sqrt().to_bits()),
        "rsqrt" if mode.approximate => one(move |a| (1.0 / d(a).sqrt()).to_bits()),
        "neg" => one(move |a| (-d(a)).to_bits()),
        "abs" => one(move |a| d(a).abs().to_bits()),
        "min" => two(move |a, b| extreme!(d(a), d(b), false, nan).to_bits()),
        "max" => two(move |a, b| extreme!(d(a), d(b), true, nan).to_bits()),
        "copysign" => two(move |sign, a| d(a).copysign(d(sign)).to_bits()),
        _ => return None,
    })
}

/// `name` for f16 and bf16, one or two in a register. Computed in f64 and rounded once.
fn halves(name: &str, ty: Type, mode: Mode) -> Option<Map> {
    let (format, value): (Format, fn(u16) -> f32) = match ty {
        Type::F16 | Type::F16x2 => (small_float::F16, f16_value),
        _ => (small_float::BF16, bf16_value),
    };
    let count = if matches!(ty, Type::F16x2 | Type::Bf16x2) { 2 } else { 1 };
    if mode.rounding != Rounding::Nearest {
        return None;
    }
    let get = move |x: u64, i: u32| -> f64 {
        let x = value((x >> (16 * i)) as u16);
        // Subnormal halves are flushed with .ftz; those of bf16 are subnormal f32.
        let tiny = mode.ftz && x.abs() < 2f32.powi(if format == small_float::F16 { -14 } else { -126 });
        if tiny { 0f32.copysign(x).into() } else { x.into() }
    };
    let put = move |x: f64, i: u32| -> u64 {
        let x = if mode.saturate { small_float::saturate(x) } else { x };
        // max gives 0 for a NaN too, but .relu keeps it.
        let x = if mode.relu && x <= 0.0 { 0.0 } else { x };
        u64::from(format.round(x, Rounding::Nearest)) << (16 * i)
    };
    let map1 = |f: fn(f64) -> f64| one(move |a| (0..count).map(|i| put(f(get(a, i)), i)).sum());
    let map2 = |f: fn(f64, f64) -> f64| two(move |a, b| (0..count).map(|i| put(f(get(a, i), get(b, i)), i)).sum());
    let nan = mode.nan;
    Some(match name {
        "add" => map2(|a, b| a + b),
        "sub" => map2(|a, b| a - b),
        "mul" => map2(|a, b| a * b),
        "fma" => three(move |a, b, c| (0..count).map(|i| put(get(a, i).mul_add(get(b, i), get(c, i)), i)).sum()),
        "neg" => map1(|a| -a),
        "abs" => map1(f64::abs),
        "min" => two(move |a, b| (0..count).map(|i| put(extreme!(get(a, i), get(b, i), false, nan), i)).sum()),
        "max" => two(move |a, b| (0..count).map(|i| put(extreme!(get(a, i), get(b, i), true, nan), i)).sum()),
        "ex2" if mode.approximate => map1(f64::exp2),
        "tanh" if mode.approximate => map1(f64::tanh),
        _ => return None,
    })
}

/// The operation `name` of a floating-point type; none if there is no such operation with these modifiers.
pub(crate) fn float(name: &str, ty: Type, mode: Mode) -> Option<Map> {
    match ty {
        Type::F32 if !mode.relu => single(name, mode),
        Type::F64 => double(name, mode),
        Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2 => halves(name, ty, mode),
        _ => None,
    }
}

/// What a comparison says of NaN: `None` a plain one (false with a NaN), `Some(x)` unordered ones.
pub(crate) fn compare(comparison: Comparison, unordered: bool, ty: Type, ftz: bool) -> Option<Map> {
    let value = reader(ty, ftz)?;
    let holds = move |a: f64, b: f64| match comparison {
        _ if a.is_nan() || b.is_nan() => unordered,
        Comparison::Equal => a == b,
        Comparison::NotEqual => a != b,
        Comparison::Less => a < b,
        Comparison::LessEqual => a <= b,
        Comparison::Greater => a > b,
        Comparison::GreaterEqual => a >= b,
    };
    Some(two(move |a, b| holds(value(a), value(b)).into()))
}

/// `setp.num` and `setp.nan`: both are numbers, or one is not.
pub(crate) fn compare_numbers(numbers: bool, ty: Type) -> Option<Map> {
    let value = reader(ty, false)?;
    Some(two(move |a, b| ((value(a).is_nan() || value(b).is_nan()) != numbers).into()))
}

/// A lane's value; f64 holds each exactly.
fn reader(ty: Type, ftz: bool) -> Option<fn(u64) -> f64> {
    Some(match ty {
        Type::F32 if ftz => |a| read(a, true).into(),
        Type::F32 => |a| read(a, false).into(),
        Type::F64 => f64::from_bits,
        Type::F16 => |a| f16_value(a as u16).into(),
        Type::Bf16 => |a| bf16_value(a as u16).into(),
        _ => return None,
    })
}

/// `testp`.
pub(crate) fn classify(class: &str, ty: Type) -> Option<Map> {
    use std::num::FpCategory::{Infinite, Nan, Normal, Subnormal};
    let category: fn(u64) -> std::num::FpCategory = match ty {
        Type::F32 => |a| f32::from_bits(a as u32).classify(),
        Type::F64 => |a| f64::from_bits(a).classify(),
        _ => return None,
    };
    Some(match class {
        "finite" => one(move |a| (!matches!(category(a), Infinite | Nan)).into()),
        "infinite" => one(move |a| (category(a) == Infinite).into()),
        "number" => one(move |a| (category(a) != Nan).into()),
        "notanumber" => one(move |a| (category(a) == Nan).into()),
        "normal" => one(move |a| (category(a) == Normal).into()),
        "subnormal" => one(move |a| (category(a) == Subnormal).into()),
        _ => return None,
    })
}
