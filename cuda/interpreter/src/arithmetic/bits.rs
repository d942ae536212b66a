//! Bit fields, counts, permutations and byte dots.

use super::{Map, four, one, three};
use crate::types::Type;

/// `lop3`: bit i of the result is bit `a_i << 2 | b_i << 1 | c_i` of the table.
pub(crate) fn lop3(table: u8) -> Map {
    three(move |a, b, c| {
        (0..8).filter(|i| table >> i & 1 != 0).fold(0, |sum, i| {
            let pick = |x: u64, bit: u32| if i >> bit & 1 != 0 { x } else { !x };
            sum | pick(a, 2) & pick(b, 1) & pick(c, 0)
        })
    })
}

/// `shf.l` and `shf.r` of the pair `b:a`, with the shift taken modulo 32 (wrap) or at most 32 (clamp).
pub(crate) fn funnel_shift(left: bool, wrap: bool) -> Map {
    three(move |a, b, by| {
        let pair = b << 32 | a & 0xffff_ffff;
        let by = if wrap { by as u32 % 32 } else { (by as u32).min(32) };
        if left { pair << by >> 32 } else { pair >> by }
    })
}

/// `prmt`: byte i of the result is the byte that nibble i of the selector names, or eight copies of its sign.
pub(crate) fn permute() -> Map {
    three(|a, b, selector| {
        let pair = b << 32 | a & 0xffff_ffff;
        (0..4).fold(0, |sum, i| {
            let nibble = selector >> (4 * i);
            let byte = pair >> (8 * (nibble & 7)) & 0xff;
            let byte = if nibble & 8 == 0 { byte } else { 0xff * (byte >> 7) };
            sum | byte << (8 * i)
        })
    })
}

/// `bfe`: `length` bits of `a` from `at`, extended by its sign if the type has one.
pub(crate) fn extract(ty: Type) -> Option<Map> {
    let bits = match ty {
        Type::U32 | Type::S32 => 32,
        Type::U64 | Type::S64 => 64,
        _ => return None,
    };
    let signed = ty.is_signed();
    Some(three(move |a, at, length| {
        let (at, length) = ((at & 0xff) as u32, (length & 0xff) as u32);
        let extended = if bits == 32 && signed { a as i32 as i64 as u64 } else { a & (u64::MAX >> (64 - bits)) };
        // Bits past the top are copies of the sign (of the field, or of the whole number where the field leaves it), or
        // zero.
        let top = if signed { ((extended as i64) >> 63) as u64 } else { 0 };
        let shifted = if at >= 64 { top } else { (extended >> at) | if at == 0 { 0 } else { top << (64 - at) } };
        if length == 0 {
            return 0;
        }
        if length >= 64 {
            return shifted;
        }
        let field = shifted & (u64::MAX >> (64 - length));
        if !signed {
            return field;
        }
        ((field << (64 - length)) as i64 >> (64 - length)) as u64
    }))
}

/// `bfi`: `b` with `length` bits from `at` on replaced by the low bits of `a`.
pub(crate) fn insert(ty: Type) -> Option<Map> {
    let bits = match ty {
        Type::B32 => 32,
        Type::B64 => 64,
        _ => return None,
    };
    Some(four(move |a, b, at, length| {
        let (at, length) = ((at & 0xff) as u32, (length & 0xff) as u32);
        if at >= bits || length == 0 {
            return b;
        }
        let mask = (u64::MAX >> (64 - length.min(64))) << at;
        b & !mask | a << at & mask
    }))
}

/// `popc clz brev bfind`; `bfind` with `shift_amount` gives the shift that brings the bit to the top.
pub(crate) fn count(name: &str, ty: Type, shift_amount: bool) -> Option<Map> {
    let bits = 8 * ty.bytes();
    let mask = ty.mask();
    Some(match (name, ty) {
        ("popc", Type::B32 | Type::B64) => one(move |a| (a & mask).count_ones().into()),
        ("clz", Type::B32 | Type::B64) => one(move |a| ((a & mask).leading_zeros() - (64 - bits)).into()),
        ("brev", Type::B32 | Type::B64) => one(move |a| a.reverse_bits() >> (64 - bits)),
        ("bfind", Type::U32 | Type::U64 | Type::S32 | Type::S64) => {
            let signed = ty.is_signed();
            one(move |a| {
                let a = if signed && a >> (bits - 1) & 1 != 0 { !a & mask } else { a & mask };
                match (a.checked_ilog2(), shift_amount) {
                    (None, _) => u32::MAX.into(),
                    (Some(bit), false) => bit.into(),
                    (Some(bit), true) => (bits - 1 - bit).into(),
                }
            })
        }
        _ => return None,
    })
}

/// `dp4a`: c plus the dot of four bytes with four bytes.
pub(crate) fn dot_bytes(a_signed: bool, b_signed: bool) -> Map {
    let byte = |x: u64, i: u32, signed: bool| {
        let byte = (x >> (8 * i)) as u8;
        if signed { byte as i8 as i32 } else { byte as i32 }
    };
    three(move |a, b, c| {
        let dot: i32 = (0..4).map(|i| byte(a, i, a_signed) * byte(b, i, b_signed)).sum();
        (c as u32).wrapping_add(dot as u32).into()
    })
}
