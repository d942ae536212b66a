//! Integer arithmetic.

use super::{Map, four, one, three, two};
use crate::types::Type;

/// An integer type of PTX, taken from and given to the low bits of a lane.
pub(crate) trait Int: Copy + Ord + Send + Sync + 'static {
    const BITS: u32;
    fn of(bits: u64) -> Self;
    /// Sign-extended or zero-extended; the writer of a register masks.
    fn bits(self) -> u64;
    /// As i128, which holds every value.
    fn wide(self) -> i128;
    /// The low bits of `wide`.
    fn narrow(wide: i128) -> Self;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    /// The high half of the product.
    fn mul_high(self, other: Self) -> Self;
    /// Of a division by zero the device gives no fixed value; all ones here.
    fn div(self, other: Self) -> Self;
    fn rem(self, other: Self) -> Self;
    /// Shifts by the width or more give 0, or the sign.
    fn shr(self, by: u32) -> Self;
    /// Both ends of the type.
    fn limits() -> (i128, i128);
}

macro_rules! int {
    ($($t:ty, $double:ty);*) => {$(
        impl Int for $t {
            const BITS: u32 = <$t>::BITS;
            fn of(bits: u64) -> Self { bits as Self }
            fn bits(self) -> u64 { self as u64 }
            fn wide(self) -> i128 { self as i128 }
            fn narrow(wide: i128) -> Self { wide as Self }
            fn add(self, other: Self) -> Self { self.wrapping_add(other) }
            fn sub(self, other: Self) -> Self { self.wrapping_sub(other) }
            fn mul(self, other: Self) -> Self { self.wrapping_mul(other) }
            fn mul_high(self, other: Self) -> Self { ((self as $double * other as $double) >> Self::BITS) as Self }
            fn div(self, other: Self) -> Self { if other == 0 { !0 } else { self.wrapping_div(other) } }
            fn rem(self, other: Self) -> Self { if other == 0 { !0 } else { self.wrapping_rem(other) } }
            fn shr(self, by: u32) -> Self {
                if by < Self::BITS { self >> by } else if Self::limits().0 < 0 { self >> (Self::BITS - 1) } else { 0 }
            }
            fn limits() -> (i128, i128) { (<$t>::MIN as i128, <$t>::MAX as i128) }
        }
    )*};
}
int!(u8, u16; u16, u32; u32, u64; u64, u128; i8, i16; i16, i32; i32, i64; i64, i128);

/// Calls a function that is generic over [`Int`] for a type; untyped bits count as unsigned.
macro_rules! for_int {
    ($ty:expr, $f:ident($($arg:expr),*)) => {
        match $ty {
            Type::U8 | Type::B8 => $f::<u8>($($arg),*),
            Type::U16 | Type::B16 => $f::<u16>($($arg),*),
            Type::U32 | Type::B32 => $f::<u32>($($arg),*),
            Type::U64 | Type::B64 => $f::<u64>($($arg),*),
            Type::S8 => $f::<i8>($($arg),*),
            Type::S16 => $f::<i16>($($arg),*),
            Type::S32 => $f::<i32>($($arg),*),
            Type::S64 => $f::<i64>($($arg),*),
            _ => None,
        }
    };
}
pub(crate) use for_int;

/// Which part of a product an instruction keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Low,
    High,
    Wide,
}

/// `add sub mul mad div rem min max abs neg sad` and others of integer type; none if there is no such operation.
pub(crate) fn integer(name: &str, ty: Type, part: Option<Part>, saturate: bool) -> Option<Map> {
    fn build<T: Int>(name: &str, part: Option<Part>, saturate: bool) -> Option<Map> {
        let clamp = |wide: i128| T::narrow(wide.clamp(T::limits().0, T::limits().1)).bits();
        Some(match (name, part, saturate) {
            ("add", None, false) => two(|a, b| T::of(a).add(T::of(b)).bits()),
            ("add", None, true) => two(move |a, b| clamp(T::of(a).wide() + T::of(b).wide())),
            ("sub", None, false) => two(|a, b| T::of(a).sub(T::of(b)).bits()),
            ("sub", None, true) => two(move |a, b| clamp(T::of(a).wide() - T::of(b).wide())),
            ("mul", Some(Part::Low), false) => two(|a, b| T::of(a).mul(T::of(b)).bits()),
            ("mul", Some(Part::High), false) => two(|a, b| T::of(a).mul_high(T::of(b)).bits()),
            // At most 32 bits by 32: the product fits.
            ("mul", Some(Part::Wide), false) if T::BITS < 64 => {
                two(|a, b| T::of(a).bits().wrapping_mul(T::of(b).bits()))
            }
            ("mad", Some(Part::Low), false) => three(|a, b, c| T::of(a).mul(T::of(b)).add(T::of(c)).bits()),
            ("mad", Some(Part::High), false) => three(|a, b, c| T::of(a).mul_high(T::of(b)).add(T::of(c)).bits()),
            ("mad", Some(Part::Wide), false) if T::BITS < 64 => {
                three(|a, b, c| T::of(a).bits().wrapping_mul(T::of(b).bits()).wrapping_add(c))
            }
            ("div", None, false) => two(|a, b| T::of(a).div(T::of(b)).bits()),
            ("rem", None, false) => two(|a, b| T::of(a).rem(T::of(b)).bits()),
            ("min", None, false) => two(|a, b| T::of(a).min(T::of(b)).bits()),
            ("max", None, false) => two(|a, b| T::of(a).max(T::of(b)).bits()),
            ("neg", None, false) => one(|a| T::of(0).sub(T::of(a)).bits()),
            ("abs", None, false) => one(|a| T::of(a).max(T::of(0).sub(T::of(a))).bits()),
            ("sad", None, false) => three(|a, b, c| {
                let (a, b) = (T::of(a), T::of(b));
                a.max(b).sub(a.min(b)).add(T::of(c)).bits()
            }),
            ("shr", None, false) => two(|a, by| T::of(a).shr(by as u32).bits()),
            ("shl", None, false) => two(|a, by| if (by as u32) < T::BITS { a << (by as u32) } else { 0 }),
            ("and", None, false) => two(|a, b| a & b),
            ("or", None, false) => two(|a, b| a | b),
            ("xor", None, false) => two(|a, b| a ^ b),
            ("not", None, false) => one(|a| !a),
            ("cnot", None, false) => one(|a| (T::of(a) == T::of(0)).into()),
            _ => return None,
        })
    }
    for_int!(ty, build(name, part, saturate))
}

/// A comparison of `setp` or `set`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

/// `setp`: 1 where it holds.
pub(crate) fn compare(comparison: Comparison, ty: Type) -> Option<Map> {
    fn build<T: Int>(comparison: Comparison) -> Option<Map> {
        Some(match comparison {
            Comparison::Equal => two(|a, b| (T::of(a) == T::of(b)).into()),
            Comparison::NotEqual => two(|a, b| (T::of(a) != T::of(b)).into()),
            Comparison::Less => two(|a, b| (T::of(a) < T::of(b)).into()),
            Comparison::LessEqual => two(|a, b| (T::of(a) <= T::of(b)).into()),
            Comparison::Greater => two(|a, b| (T::of(a) > T::of(b)).into()),
            Comparison::GreaterEqual => two(|a, b| (T::of(a) >= T::of(b)).into()),
        })
    }
    for_int!(ty, build(comparison))
}

/// One step of arithmetic on more than a word: the value, and what it carries into the next.
pub(crate) struct Carry {
    pub value: Map,
    pub carry: Map,
    /// Whether the last operand is the carry of the step before.
    pub takes_carry: bool,
}

/// `add.cc`, `addc`, `addc.cc`, `sub.cc`, `subc`, `mad.lo.cc`, `madc.hi`, ...
pub(crate) fn carry(name: &str, ty: Type, part: Option<Part>) -> Option<Carry> {
    /// Unsigned: a carry is what the sum has above the type.
    fn build<T: Int>(name: &str, part: Option<Part>) -> Option<Carry> {
        let split = |wide: fn(u128, u128, u128, u128) -> u128| {
            let u = |a: u64| T::of(a).bits() as u128;
            let above = move |sum: u128| (sum >> T::BITS) as u64 & 1;
            (wide, u, above)
        };
        let product = |a: u128, b: u128, high: bool| {
            let product = a * b;
            if high { product >> T::BITS } else { product & (u128::MAX >> (128 - T::BITS)) }
        };
        let takes_carry = matches!(name, "addc" | "subc" | "madc");
        let (value, carry) = match (name, part) {
            ("add" | "addc", None) => {
                let (f, u, above) = split(|a, b, c, _| a + b + c);
                (
                    three(move |a, b, c| f(u(a), u(b), c as u128, 0) as u64),
                    three(move |a, b, c| above(f(u(a), u(b), c as u128, 0))),
                )
            }
            ("sub" | "subc", None) => {
                let (f, u, above) = split(|a, b, c, _| a.wrapping_sub(b).wrapping_sub(c));
                (
                    three(move |a, b, c| f(u(a), u(b), c as u128, 0) as u64),
                    three(move |a, b, c| above(f(u(a), u(b), c as u128, 0))),
                )
            }
            ("mad" | "madc", Some(part @ (Part::Low | Part::High))) => {
                let high = part == Part::High;
                let (_, u, above) = split(|_, _, _, _| 0);
                (
                    four(move |a, b, c, carry| (product(u(a), u(b), high) + u(c) + carry as u128) as u64),
                    four(move |a, b, c, carry| above(product(u(a), u(b), high) + u(c) + carry as u128)),
                )
            }
            _ => return None,
        };
        Some(Carry { value, carry, takes_carry })
    }
    let unsigned = match ty {
        Type::S32 | Type::U32 | Type::B32 => Type::U32,
        Type::S64 | Type::U64 | Type::B64 => Type::U64,
        _ => return None,
    };
    // The high half of a signed product is another number.
    if part == Some(Part::High) && ty.is_signed() {
        return None;
    }
    for_int!(unsigned, build(name, part))
}
