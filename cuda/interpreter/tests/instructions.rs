//! Families of instructions against Rust's arithmetic, by snippets of a few lines.

mod common;

use common::run;
use half::{bf16, f16};
use proptest::prelude::*;

/// Numbers at which integers and their shifts turn over.
const EDGES: [u64; 12] = [
    0,
    1,
    2,
    31,
    32,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x0123_4567_89ab_cdef,
    i64::MAX as u64,
    i64::MIN as u64,
    u64::MAX,
];

fn pairs() -> Vec<Vec<u64>> {
    EDGES.iter().flat_map(|&a| EDGES.iter().map(move |&b| vec![a, b])).collect()
}

/// Floats at which something happens, and some plain ones.
fn floats() -> Vec<f32> {
    let special =
        [0.0, 1.0, 1.5, 3.3e38, 1e-38, 1e-42, f32::INFINITY, f32::NAN, f32::MIN_POSITIVE, 0.333, 1e20, 8388609.0];
    special.into_iter().flat_map(|x| [x, -x]).collect()
}

fn float_pairs() -> Vec<Vec<u64>> {
    let bits = |x: f32| u64::from(x.to_bits());
    floats().into_iter().flat_map(|a| floats().into_iter().map(move |b| vec![bits(a), bits(b)])).collect()
}

const LOAD32: &str = "ld.global.u32 %r1, [%in]; ld.global.u32 %r2, [%in+8];\n";
const LOAD64: &str = "ld.global.u64 %rd1, [%in]; ld.global.u64 %rd2, [%in+8];\n";
const STORE32: &str = "\nmov.b64 %rd9, {%r3, 0}; st.global.u64 [%out], %rd9;";
const STORE64: &str = "\nst.global.u64 [%out], %rd3;";

/// `instruction` from %r1, %r2 to %r3 for all pairs of edges.
fn check32(instruction: &str, expected: impl Fn(u32, u32) -> u32) {
    let results = run(&format!("{LOAD32}{instruction}{STORE32}"), &pairs());
    for (row, result) in pairs().iter().zip(results) {
        let (a, b) = (row[0] as u32, row[1] as u32);
        assert_eq!(result as u32, expected(a, b), "{instruction} of {a:#x}, {b:#x}: {result:#x}");
    }
}

fn check64(instruction: &str, expected: impl Fn(u64, u64) -> u64) {
    let results = run(&format!("{LOAD64}{instruction}{STORE64}"), &pairs());
    for (row, result) in pairs().iter().zip(results) {
        assert_eq!(result, expected(row[0], row[1]), "{instruction} of {:#x}, {:#x}: {result:#x}", row[0], row[1]);
    }
}

/// Equal bits, or both NaN.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

fn check_f32(instruction: &str, expected: impl Fn(f32, f32) -> f32) {
    let body =
        format!("ld.global.f32 %f1, [%in]; ld.global.f32 %f2, [%in+8];\n{instruction}\nmov.b32 %r3, %f3;{STORE32}");
    for (row, result) in float_pairs().iter().zip(run(&body, &float_pairs())) {
        let (a, b) = (f32::from_bits(row[0] as u32), f32::from_bits(row[1] as u32));
        let (result, expected) = (f32::from_bits(result as u32), expected(a, b));
        assert!(same(result, expected), "{instruction} of {a:e}, {b:e}: {result:e} for {expected:e}");
        let arithmetic = !["neg", "abs", "copysign", "testp", "slct"].iter().any(|op| instruction.starts_with(op));
        assert!(!(result.is_nan() && arithmetic) || result.to_bits() == 0x7fff_ffff, "{instruction}: another NaN");
    }
}

#[test]
fn integers_of_32_bits() {
    let s = |a: u32| a as i32;
    check32("add.s32 %r3, %r1, %r2;", |a, b| a.wrapping_add(b));
    check32("add.sat.s32 %r3, %r1, %r2;", |a, b| s(a).saturating_add(s(b)) as u32);
    check32("sub.u32 %r3, %r1, %r2;", |a, b| a.wrapping_sub(b));
    check32("sub.sat.s32 %r3, %r1, %r2;", |a, b| s(a).saturating_sub(s(b)) as u32);
    check32("mul.lo.s32 %r3, %r1, %r2;", |a, b| a.wrapping_mul(b));
    check32("mul.hi.s32 %r3, %r1, %r2;", |a, b| ((i64::from(s(a)) * i64::from(s(b))) >> 32) as u32);
    check32("mul.hi.u32 %r3, %r1, %r2;", |a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32);
    check32("mad.lo.u32 %r3, %r1, %r2, %r1;", |a, b| a.wrapping_mul(b).wrapping_add(a));
    check32("mad.hi.s32 %r3, %r1, %r2, 5;", |a, b| {
        (((i64::from(s(a)) * i64::from(s(b))) >> 32) as u32).wrapping_add(5)
    });
    check32("or.b32 %r2, %r2, 1; div.s32 %r3, %r1, %r2;", |a, b| s(a).wrapping_div(s(b | 1)) as u32);
    check32("or.b32 %r2, %r2, 1; rem.s32 %r3, %r1, %r2;", |a, b| s(a).wrapping_rem(s(b | 1)) as u32);
    check32("or.b32 %r2, %r2, 1; rem.u32 %r3, %r1, %r2;", |a, b| a % (b | 1));
    check32("min.s32 %r3, %r1, %r2;", |a, b| s(a).min(s(b)) as u32);
    check32("max.u32 %r3, %r1, %r2;", |a, b| a.max(b));
    check32("neg.s32 %r3, %r1;", |a, _| a.wrapping_neg());
    check32("abs.s32 %r3, %r1;", |a, _| s(a).wrapping_abs() as u32);
    check32("sad.s32 %r3, %r1, %r2, 7;", |a, b| s(a).abs_diff(s(b)).wrapping_add(7));
    check32("shl.b32 %r3, %r1, %r2;", |a, b| a.checked_shl(b).unwrap_or(0));
    check32("shr.u32 %r3, %r1, %r2;", |a, b| a.checked_shr(b).unwrap_or(0));
    check32("shr.s32 %r3, %r1, %r2;", |a, b| (s(a) >> b.min(31)) as u32);
    check32("xor.b32 %r3, %r1, %r2;", |a, b| a ^ b);
    check32("and.b32 %r3, %r1, %r2; not.b32 %r3, %r3;", |a, b| !(a & b));
    check32("cnot.b32 %r3, %r1;", |a, _| u32::from(a == 0));
    check32("setp.lt.s32 %p1, %r1, %r2; selp.b32 %r3, 3, 4, %p1;", |a, b| if s(a) < s(b) { 3 } else { 4 });
    check32("set.hi.u32.u32 %r3, %r1, %r2;", |a, b| if a > b { u32::MAX } else { 0 });
    check32("slct.u32.s32 %r3, %r1, 9, %r2;", |a, b| if s(b) >= 0 { a } else { 9 });
    check32("cvt.u16.u32 %h1, %r1; cvt.s32.s16 %r3, %h1;", |a, _| a as i16 as i32 as u32);
    check32("cvt.sat.s8.s32 %h1, %r1; cvt.s32.s8 %r3, %h1;", |a, _| s(a).clamp(-128, 127) as u32);
    check32("cvt.u16.u32 %h1, %r1; cvt.u16.u32 %h2, %r2; mul.wide.s16 %r3, %h1, %h2;", |a, b| {
        (i32::from(a as i16) * i32::from(b as i16)) as u32
    });
    check32("cvt.u16.u32 %h1, %r1; shr.s16 %h1, %h1, 4; cvt.u32.u16 %r3, %h1;", |a, _| ((a as i16) >> 4) as u16 as u32);
}

#[test]
fn integers_of_64_bits() {
    let s = |a: u64| a as i64;
    check64("add.s64 %rd3, %rd1, %rd2;", u64::wrapping_add);
    check64("mul.lo.s64 %rd3, %rd1, %rd2;", u64::wrapping_mul);
    check64("mul.hi.u64 %rd3, %rd1, %rd2;", |a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64);
    check64("mul.hi.s64 %rd3, %rd1, %rd2;", |a, b| ((i128::from(s(a)) * i128::from(s(b))) >> 64) as u64);
    check64("cvt.u32.u64 %r1, %rd1; mul.wide.s32 %rd3, %r1, -3;", |a, _| (i64::from(a as i32) * -3) as u64);
    check64("cvt.u32.u64 %r1, %rd1; mad.wide.u32 %rd3, %r1, 3, %rd2;", |a, b| {
        (u64::from(a as u32) * 3).wrapping_add(b)
    });
    check64("or.b64 %rd2, %rd2, 1; div.s64 %rd3, %rd1, %rd2;", |a, b| s(a).wrapping_div(s(b | 1)) as u64);
    check64("cvt.u32.u64 %r1, %rd2; shr.s64 %rd3, %rd1, %r1;", |a, b| (s(a) >> (b as u32).min(63)) as u64);
    check64("setp.le.s64 %p1, %rd1, %rd2; selp.b64 %rd3, %rd1, %rd2, %p1;", |a, b| s(a).min(s(b)) as u64);
    check64("cvt.s64.s32 %rd3, 5; cvt.u32.u64 %r1, %rd1; cvt.s64.s32 %rd3, %r1;", |a, _| i64::from(a as i32) as u64);
    // 128-bit sums and products, as nvcc makes them.
    check64("add.cc.u64 %rd4, %rd1, %rd2; addc.u64 %rd3, 0, 0;", |a, b| u64::from(a.checked_add(b).is_none()));
    check64("sub.cc.u64 %rd4, %rd1, %rd2; subc.u64 %rd3, 0, 0;", |a, b| if a < b { u64::MAX } else { 0 });
    check64("mad.lo.cc.u64 %rd4, %rd1, %rd2, %rd1; madc.hi.u64 %rd3, %rd1, %rd2, 0;", |a, b| {
        ((u128::from(a) * u128::from(b) + u128::from(a)) >> 64) as u64
    });
    check64("add.cc.u64 %rd1, %rd1, %rd1; addc.cc.u64 %rd2, %rd2, %rd2; addc.u64 %rd3, 0, 0;", |_, b| b >> 63);
}

#[test]
fn bits() {
    check32("lop3.b32 %r3, %r1, %r2, 0x00ff00ff, 0xe8;", |a, b| (a & b) | (a & 0xff00ff) | (b & 0xff00ff));
    check32("shf.l.wrap.b32 %r3, %r1, %r2, 5;", |a, b| b << 5 | a >> 27);
    check32("shf.r.wrap.b32 %r3, %r1, %r1, %r2;", |a, b| a.rotate_right(b));
    check32("shf.r.clamp.b32 %r3, %r1, %r2, %r2;", |a, b| ((u64::from(b) << 32 | u64::from(a)) >> b.min(32)) as u32);
    check32("prmt.b32 %r3, %r1, %r2, 0x7290;", |a, b| {
        let bytes = [a.to_le_bytes(), b.to_le_bytes()].concat();
        u32::from_le_bytes([bytes[0], if bytes[1] & 0x80 != 0 { 255 } else { 0 }, bytes[2], bytes[7]])
    });
    check32("bfe.u32 %r3, %r1, 4, 9;", |a, _| a >> 4 & 0x1ff);
    check32("bfe.s32 %r3, %r1, 4, 9;", |a, _| ((a << 19) as i32 >> 23) as u32);
    check32("bfe.s32 %r3, %r1, 28, 9;", |a, _| (a as i32 >> 28) as u32);
    check32("bfe.u32 %r3, %r1, 3, 0;", |_, _| 0);
    check32("bfi.b32 %r3, %r1, %r2, 8, 12;", |a, b| b & !0xfff00 | a << 8 & 0xfff00);
    check64("bfi.b64 %rd3, %rd1, %rd2, 40, 60;", |a, b| b & 0xff_ffff_ffff | a << 40);
    check64("bfe.u64 %rd3, %rd1, 60, 64;", |a, _| a >> 60);
    check32("popc.b32 %r3, %r1;", |a, _| a.count_ones());
    check32("clz.b32 %r3, %r1;", |a, _| a.leading_zeros());
    check64("clz.b64 %r3, %rd1; cvt.u64.u32 %rd3, %r3;", |a, _| a.leading_zeros().into());
    check32("brev.b32 %r3, %r1;", |a, _| a.reverse_bits());
    check32("bfind.u32 %r3, %r1;", |a, _| a.checked_ilog2().unwrap_or(u32::MAX));
    check32("bfind.s32 %r3, %r1;", |a, _| (if (a as i32) < 0 { !a } else { a }).checked_ilog2().unwrap_or(u32::MAX));
    check32("bfind.shiftamt.u32 %r3, %r1;", |a, _| a.checked_ilog2().map_or(u32::MAX, |b| 31 - b));
    check32("dp4a.s32.u32 %r3, %r1, %r2, 7;", |a, b| {
        let dot = a.to_le_bytes().into_iter().zip(b.to_le_bytes()).map(|(a, b)| i32::from(a as i8) * i32::from(b));
        (dot.sum::<i32>() + 7) as u32
    });
    check64("mov.b64 {%r1, %r2}, %rd1; mov.b64 %rd3, {%r2, %r1};", |a, _| a.rotate_left(32));
    check32("mov.b32 {%h1, %h2}, %r1; mov.b32 %r3, {%h2, %h1};", |a, _| a.rotate_left(16));
    check32("mov.b32 {_, %h2}, %r1; mov.b32 %r3, {0, %h2};", |a, _| a & 0xffff_0000);
}

#[test]
fn predicates() {
    check32(
        "setp.lt.u32 %p1, %r1, %r2; setp.eq.and.u32 %p2|%p3, %r1, 1, !%p1; selp.u32 %r3, 1, 0, %p2; @%p3 add.u32 %r3, %r3, 2;",
        |a, b| u32::from(a == 1 && a >= b) + 2 * u32::from(a != 1 && a >= b),
    );
    check32(
        "setp.gt.s32 %p1, %r1, 5; setp.gt.s32 %p2, %r2, 5; xor.pred %p3, %p1, %p2; not.pred %p3, %p3; selp.u32 %r3, 7, 8, %p3;",
        |a, b| {
            if (a as i32 > 5) == (b as i32 > 5) { 7 } else { 8 }
        },
    );
    check32(
        "mov.u32 %r3, 1; setp.ne.u32 %p1, %r1, 0;\n@!%p1 bra A;\nadd.u32 %r3, %r3, 1;\nA: @%p1 add.u32 %r3, %r3, 4;",
        |a, _| {
            if a != 0 { 6 } else { 1 }
        },
    );
    check32(
        "rem.u32 %r4, %r1, 3;\nT: .branchtargets L0, L1, L2;\nbrx.idx %r4, T;\nL0: mov.u32 %r3, 10; bra E;\nL1: mov.u32 %r3, 20; bra E;\nL2: mov.u32 %r3, 30;\nE:",
        |a, _| 10 * (a % 3 + 1),
    );
}

#[test]
fn floats_of_32_bits() {
    check_f32("add.f32 %f3, %f1, %f2;", |a, b| a + b);
    check_f32("sub.rn.f32 %f3, %f1, %f2;", |a, b| a - b);
    check_f32("mul.f32 %f3, %f1, %f2;", |a, b| a * b);
    check_f32("fma.rn.f32 %f3, %f1, %f2, %f1;", |a, b| a.mul_add(b, a));
    check_f32("mad.rn.f32 %f3, %f1, %f2, 0fBF800000;", |a, b| a.mul_add(b, -1.0));
    check_f32("div.rn.f32 %f3, %f1, %f2;", |a, b| a / b);
    check_f32("div.full.f32 %f3, %f1, %f2;", |a, b| a / b);
    check_f32("rcp.rn.f32 %f3, %f1;", |a, _| 1.0 / a);
    check_f32("sqrt.rn.f32 %f3, %f1;", |a, _| a.sqrt());
    check_f32("neg.f32 %f3, %f1;", |a, _| -a);
    check_f32("abs.f32 %f3, %f1;", |a, _| a.abs());
    check_f32("copysign.f32 %f3, %f2, %f1;", |a, b| a.copysign(b));
    check_f32("ex2.approx.f32 %f3, %f1;", |a, _| f64::from(a).exp2() as f32);
    check_f32("lg2.approx.f32 %f3, %f1;", |a, _| f64::from(a).log2() as f32);
    check_f32("rsqrt.approx.f32 %f3, %f1;", |a, _| (1.0 / f64::from(a).sqrt()) as f32);
    check_f32("tanh.approx.f32 %f3, %f1;", |a, _| f64::from(a).tanh() as f32);
    check_f32("add.sat.f32 %f3, %f1, %f2;", |a, b| if a + b > 0.0 { (a + b).min(1.0) } else { 0.0 });
    let flush = |x: f32| if x.is_subnormal() { 0f32.copysign(x) } else { x };
    check_f32("mul.ftz.f32 %f3, %f1, %f2;", |a, b| flush(flush(a) * flush(b)));
    check_f32("min.f32 %f3, %f1, %f2;", |a, b| match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a == b => f32::from_bits(a.to_bits() | b.to_bits()),
        _ => {
            if a < b {
                a
            } else {
                b
            }
        }
    });
    check_f32("max.NaN.f32 %f3, %f1, %f2;", |a, b| match (a.is_nan(), b.is_nan()) {
        (false, false) if a == b => f32::from_bits(a.to_bits() & b.to_bits()),
        (false, false) => {
            if a > b {
                a
            } else {
                b
            }
        }
        _ => f32::NAN,
    });
    check_f32(
        "setp.ltu.f32 %p1, %f1, %f2; selp.f32 %f3, 0f3F800000, 0f00000000, %p1;",
        |a, b| {
            if a >= b { 0.0 } else { 1.0 }
        },
    );
    check_f32(
        "setp.neu.f32 %p1, %f1, %f2; selp.f32 %f3, 0f3F800000, 0f00000000, %p1;",
        |a, b| if a != b { 1.0 } else { 0.0 },
    );
    check_f32("setp.ne.f32 %p1, %f1, %f2; selp.f32 %f3, 0f3F800000, 0f00000000, %p1;", |a, b| {
        if a.partial_cmp(&b).is_some_and(|order| order.is_ne()) { 1.0 } else { 0.0 }
    });
    check_f32("setp.nan.f32 %p1, %f1, %f2; selp.f32 %f3, 0f3F800000, 0f00000000, %p1;", |a, b| {
        if a.is_nan() || b.is_nan() { 1.0 } else { 0.0 }
    });
    check_f32("set.gt.f32.f32 %f3, %f1, %f2;", |a, b| if a > b { 1.0 } else { 0.0 });
    check_f32(
        "testp.subnormal.f32 %p1, %f1; selp.f32 %f3, %f1, %f2, %p1;",
        |a, b| if a.is_subnormal() { a } else { b },
    );
    check_f32("slct.f32.f32 %f3, %f1, 0f40000000, %f2;", |a, b| if b >= 0.0 { a } else { 2.0 });
}

#[test]
fn floats_of_64_bits() {
    let d = f64::from_bits;
    let values = [0.0, -1.5, 1e300, 3e-308, f64::INFINITY, 0.1, -7.25];
    let rows: Vec<_> =
        values.iter().flat_map(|a| values.iter().map(|b: &f64| vec![a.to_bits(), b.to_bits()])).collect();
    let check = |instruction: &str, expected: &dyn Fn(f64, f64) -> f64| {
        let body = format!(
            "ld.global.f64 %fd1, [%in]; ld.global.f64 %fd2, [%in+8];\n{instruction}\nst.global.f64 [%out], %fd3;"
        );
        for (row, result) in rows.iter().zip(run(&body, &rows)) {
            let expected = expected(d(row[0]), d(row[1]));
            assert!(
                result == expected.to_bits() || expected.is_nan() && d(result).is_nan(),
                "{instruction} {:e} {:e}",
                d(row[0]),
                d(row[1])
            );
        }
    };
    check("add.f64 %fd3, %fd1, %fd2;", &|a, b| a + b);
    check("fma.rn.f64 %fd3, %fd1, %fd2, 0d3FF0000000000000;", &|a, b| a.mul_add(b, 1.0));
    check("div.rn.f64 %fd3, %fd1, %fd2;", &|a, b| a / b);
    check("sqrt.rn.f64 %fd3, %fd1;", &|a, _| a.sqrt());
    check("max.f64 %fd3, %fd1, %fd2;", &f64::max);
    check("cvt.rn.f32.f64 %f1, %fd1; cvt.f64.f32 %fd3, %f1;", &|a, _| f64::from(a as f32));
    check("cvt.rzi.s64.f64 %rd1, %fd1; cvt.rn.f64.s64 %fd3, %rd1;", &|a, _| a as i64 as f64);
}

#[test]
fn conversions() {
    check32("cvt.rn.f32.s32 %f1, %r1; mov.b32 %r3, %f1;", |a, _| (a as i32 as f32).to_bits());
    check32("cvt.rn.f32.u32 %f1, %r1; mov.b32 %r3, %f1;", |a, _| (a as f32).to_bits());
    check32("cvt.rz.f32.u32 %f1, %r1; mov.b32 %r3, %f1;", |a, _| {
        let x = a as f32;
        (if f64::from(x) > f64::from(a) { x.next_down() } else { x }).to_bits()
    });
    check64("cvt.rn.f32.u64 %f1, %rd1; mov.b32 %r3, %f1; cvt.u64.u32 %rd3, %r3;", |a, _| (a as f32).to_bits().into());
    let f = "ld.global.f32 %f1, [%in];\n";
    let check = |instruction: &str, expected: &dyn Fn(f32) -> u32| {
        let rows: Vec<_> = floats()
            .into_iter()
            .chain([2.5, 3.5, -2.5, 0.7, 2147483648.0, -0.2, 70000.0, 65520.0, 6e-8])
            .map(|x: f32| vec![u64::from(x.to_bits())])
            .collect();
        for (row, result) in rows.iter().zip(run(&format!("{f}{instruction}{STORE32}"), &rows)) {
            let x = f32::from_bits(row[0] as u32);
            assert_eq!(result as u32, expected(x), "{instruction} of {x:e}: {result:#x}");
        }
    };
    check("cvt.rzi.s32.f32 %r3, %f1;", &|x| x as i32 as u32);
    check("cvt.rni.s32.f32 %r3, %f1;", &|x| x.round_ties_even() as i32 as u32);
    check("cvt.rpi.u32.f32 %r3, %f1;", &|x| x.ceil() as u32);
    check("cvt.rmi.f32.f32 %f2, %f1; mov.b32 %r3, %f2;", &|x| {
        if x.is_nan() { 0x7fff_ffff } else { x.floor().to_bits() }
    });
    check("cvt.sat.f32.f32 %f2, %f1; mov.b32 %r3, %f2;", &|x| if x > 0.0 { x.min(1.0).to_bits() } else { 0 });
    let half_nan = |bits: u16, nan: bool| if nan { 0x7fff } else { u32::from(bits) };
    check("cvt.rn.f16.f32 %h1, %f1; cvt.u32.u16 %r3, %h1;", &|x| half_nan(f16::from_f32(x).to_bits(), x.is_nan()));
    check("cvt.rn.bf16.f32 %h1, %f1; cvt.u32.u16 %r3, %h1;", &|x| half_nan(bf16::from_f32(x).to_bits(), x.is_nan()));
    check("cvt.rz.bf16.f32 %h1, %f1; cvt.u32.u16 %r3, %h1;", &|x| half_nan((x.to_bits() >> 16) as u16, x.is_nan()));
    check("cvt.rn.bf16x2.f32 %r3, %f1, 0f3F800000;", &|x| {
        half_nan(bf16::from_f32(x).to_bits(), x.is_nan()) << 16 | 0x3f80
    });
    check("cvt.rn.relu.bf16x2.f32 %r3, %f1, 0fBF800000;", &|x| {
        half_nan(bf16::from_f32(if x <= 0.0 { 0.0 } else { x }).to_bits(), x.is_nan()) << 16
    });
    check("cvt.rn.f16.f32 %h1, %f1; cvt.f32.f16 %f2, %h1; mov.b32 %r3, %f2;", &|x| {
        if x.is_nan() { 0x7fff_ffff } else { f16::from_f32(x).to_f32().to_bits() }
    });
}

#[test]
fn halves() {
    let values: Vec<u64> = (0..24u64).map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20 & 0xffff_ffff).collect();
    let rows: Vec<Vec<u64>> = values.iter().flat_map(|&a| values.iter().map(move |&b| vec![a, b])).collect();
    let bf = |x: u32| [bf16::from_bits(x as u16), bf16::from_bits((x >> 16) as u16)].map(|h| h.to_f64());
    let hf = |x: u32| [f16::from_bits(x as u16), f16::from_bits((x >> 16) as u16)].map(|h| h.to_f64());
    let check = |instruction: &str, expected: &dyn Fn(u32, u32, usize) -> Option<u16>| {
        for (row, result) in rows.iter().zip(run(&format!("{LOAD32}{instruction}{STORE32}"), &rows)) {
            for i in 0..2 {
                let (a, b, half) = (row[0] as u32, row[1] as u32, (result >> (16 * i)) as u16);
                match expected(a, b, i) {
                    Some(expected) => assert_eq!(half, expected, "{instruction} of {a:#x} {b:#x}, half {i}"),
                    None => assert_eq!(half, 0x7fff, "{instruction} of {a:#x} {b:#x}, half {i}: NaN"),
                }
            }
        }
    };
    // Sums and products of these values are exact in f64 or far from a tie.
    let bf_of = |x: f64| if x.is_nan() { None } else { Some(bf16::from_f64(x).to_bits()) };
    let hf_of = |x: f64| if x.is_nan() { None } else { Some(f16::from_f64(x).to_bits()) };
    check("fma.rn.bf16x2 %r3, %r1, %r2, %r1;", &|a, b, i| bf_of(bf(a)[i].mul_add(bf(b)[i], bf(a)[i])));
    check("fma.rn.f16x2 %r3, %r1, %r2, %r2;", &|a, b, i| hf_of(hf(a)[i].mul_add(hf(b)[i], hf(b)[i])));
    check("add.f16x2 %r3, %r1, %r2;", &|a, b, i| hf_of(hf(a)[i] + hf(b)[i]));
    check("mul.f16x2 %r3, %r1, %r2;", &|a, b, i| hf_of(hf(a)[i] * hf(b)[i]));
    check("max.bf16x2 %r3, %r1, %r2;", &|a, b, i| bf_of(bf(a)[i].max(bf(b)[i])));
}

#[test]
fn directed_roundings_of_sums() {
    // 2^24 + 1 lies between two f32; the product of two odd 24-bit numbers too.
    let rows: Vec<Vec<u64>> = [
        (16777216.0f32, 1.0f32),
        (-16777216.0, -1.0),
        (1.0, 1e-30),
        (-1.0, 1e-30),
        (1.0, -1e-30),
        (3.0, -3.0),
        (8388609.0, 8388611.0),
    ]
    .iter()
    .map(|(a, b)| vec![u64::from(a.to_bits()), u64::from(b.to_bits())])
    .collect();
    for (mode, down, up) in [("rm", true, false), ("rp", false, true)] {
        for (op, exact) in [("add", (|a, b| a + b) as fn(f64, f64) -> f64), ("mul", |a, b| a * b)] {
            let body = format!(
                "ld.global.f32 %f1, [%in]; ld.global.f32 %f2, [%in+8];\n{op}.{mode}.f32 %f3, %f1, %f2;\nmov.b32 %r3, %f3;{STORE32}"
            );
            for (row, result) in rows.iter().zip(run(&body, &rows)) {
                let (a, b) = (f32::from_bits(row[0] as u32), f32::from_bits(row[1] as u32));
                let result = f32::from_bits(result as u32);
                // f64 holds the products, and of these sums all but the tiny ones, whose rounding goes the same way.
                let exact = exact(a.into(), b.into());
                let tiny = op == "add" && b.abs() < 1e-20;
                if tiny {
                    let expected = match (b > 0.0, down) {
                        (true, true) | (false, false) => a,
                        (true, false) => a.next_up(),
                        (false, true) => a.next_down(),
                    };
                    assert_eq!(result, expected, "{op}.{mode} {a:e} {b:e}");
                } else {
                    let beside = if up { result.next_down() } else { result.next_up() };
                    let (result, beside) = (f64::from(result), f64::from(beside));
                    assert!(
                        if down { result <= exact && exact < beside } else { beside < exact && exact <= result },
                        "{op}.{mode} {a:e} {b:e}: {result:e}"
                    );
                }
            }
        }
    }
}

#[test]
fn memory_forms() {
    let shared = ".shared .align 16 .b8 buffer[512];";
    let run_shared =
        |body: &str, rows: &[Vec<u64>]| common::run_with(ptx::Options::default(), shared, body, rows).unwrap().0;
    // Bytes, halves and vectors; a generic address of shared memory.
    let body = "ld.global.v2.u64 {%rd1, %rd2}, [%in]; mov.u64 %rd4, buffer; cvta.shared.u64 %rd4, %rd4; mul.wide.u32 %rd5, %tid, 16;\n\
                add.s64 %rd4, %rd4, %rd5; isspacep.shared %p1, %rd4; st.v2.u64 [%rd4], {%rd2, %rd1}; cvta.to.shared.u64 %rd6, %rd4;\n\
                ld.shared.s8 %r1, [%rd6+1]; ld.shared.u16 %h1, [%rd6+2]; ld.shared.v4.u32 {%r2, %r3, %r4, %r5}, [%rd6];\n\
                cvt.u32.u16 %r6, %h1; add.u32 %r1, %r1, %r6; @%p1 add.u32 %r1, %r1, 1; mov.b64 %rd3, {%r1, %r5}; st.global.u64 [%out], %rd3;";
    let rows = vec![vec![0x1122_3344_5566_7788, 0x99aa_bbcc_ddee_f0ff], vec![5, 6]];
    let expected = |row: &Vec<u64>| {
        let low = (row[1] >> 8) as i8 as i32 as u32;
        u64::from(low.wrapping_add((row[1] >> 16) as u16 as u32 + 1)) | row[0] >> 32 << 32
    };
    assert_eq!(run_shared(body, &rows), rows.iter().map(expected).collect::<Vec<_>>());
}

#[test]
fn atomics() {
    let before = ".global .align 8 .u64 cell = 10; .shared .align 8 .b8 s[8];";
    let each = |op: &str| {
        let body = format!(
            "cvt.u64.u32 %rd2, %tid; mov.u64 %rd3, 0; atom.global.{op};\nbar.sync 0; ld.global.u64 %rd3, [cell]; st.global.u64 [%out], %rd3;"
        );
        let options = ptx::Options { seed: Some(3), ..Default::default() };
        common::run_with(options, before, &body, &vec![vec![0]; 40]).unwrap().0[17]
    };
    assert_eq!(each("add.u32 %r1, [cell], %tid"), 10 + 39 * 20);
    assert_eq!(each("add.u64 %rd1, [cell], %rd2"), 10 + 39 * 20);
    assert_eq!(each("max.s32 %r1, [cell], %tid"), 39);
    assert_eq!(each("min.u32 %r1, [cell], %tid"), 0);
    assert_eq!(each("or.b32 %r1, [cell], 1"), 11);
    assert_eq!(each("inc.u32 %r1, [cell], 20"), (10 + 40) % 21);
    assert_eq!(each("dec.u32 %r1, [cell], 20"), (10 + 42 - 40) as u64);
    assert_eq!(each("cas.b32 %r1, [cell], 10, 77"), 77);
    assert_eq!(each("exch.b32 %r1, [cell], 5"), 5);
    assert_eq!(each("add.f32 %f1, [cell], 0f00000000; red.global.add.u32 [cell], 1"), 10 + 40);
    let tickets = "setp.ne.u32 %p1, %tid, 0; mov.u32 %r2, s; mov.u32 %r3, 0; @!%p1 st.shared.u32 [%r2], %r3; bar.sync 0;\n\
                   atom.shared.add.u32 %r1, [%r2], 1; mov.b64 %rd3, {%r1, %r3}; st.global.u64 [%out], %rd3;";
    let mut order = common::run_with(ptx::Options::default(), before, tickets, &vec![vec![0]; 64]).unwrap().0;
    assert_ne!(order, (0..64).collect::<Vec<_>>(), "threads take tickets in the order of their numbers");
    order.sort_unstable();
    assert_eq!(order, (0..64).collect::<Vec<_>>());
}

#[test]
fn warps_together() {
    let rows: Vec<Vec<u64>> = (0..32u64).map(|i| vec![i.wrapping_mul(0x9E37_79B9) & 0xffff_ffff]).collect();
    let x = |l: usize| rows[l][0] as u32;
    let check = |instruction: &str, expected: &dyn Fn(usize) -> u32| {
        let body = format!("ld.global.u32 %r1, [%in];\n{instruction}{STORE32}");
        for (lane, result) in run(&body, &rows).into_iter().enumerate() {
            assert_eq!(result as u32, expected(lane), "{instruction} lane {lane}");
        }
    };
    check("shfl.sync.up.b32 %r3, %r1, 5, 0, -1;", &|l| x(if l >= 5 { l - 5 } else { l }));
    check("shfl.sync.down.b32 %r3|%p1, %r1, 5, 31, -1; @!%p1 mov.u32 %r3, 9;", &|l| if l < 27 { x(l + 5) } else { 9 });
    check("shfl.sync.bfly.b32 %r3, %r1, 12, 31, -1;", &|l| x(l ^ 12));
    check("shfl.sync.idx.b32 %r3, %r1, 3, 0x181f, -1;", &|l| x(l / 8 * 8 + 3));
    check("shfl.sync.down.b32 %r3, %r1, 2, 0x1c03, -1;", &|l| x(if l % 4 < 2 { l + 2 } else { l }));
    check("setp.lt.s32 %p1, %r1, 0; vote.sync.ballot.b32 %r3, !%p1, -1;", &|_| {
        (0..32).filter(|&l| x(l) as i32 >= 0).map(|l| 1 << l).sum()
    });
    check("setp.lt.s32 %p1, %r1, 0; vote.sync.uni.pred %p2, %p1, -1; selp.u32 %r3, 1, 2, %p2;", &|_| 2);
    check("and.b32 %r2, %r1, 1; match.any.sync.b32 %r3, %r2, -1;", &|l| {
        (0..32).filter(|&o| x(o) & 1 == x(l) & 1).map(|o| 1 << o).sum()
    });
    check("mov.u32 %r2, 4; match.all.sync.b32 %r3|%p1, %r2, -1; @!%p1 mov.u32 %r3, 0;", &|_| u32::MAX);
    check("redux.sync.min.s32 %r3, %r1, -1;", &|_| (0..32).map(|l| x(l) as i32).min().unwrap() as u32);
    check("redux.sync.xor.b32 %r3, %r1, -1;", &|_| (0..32).map(x).fold(0, |a, b| a ^ b));
    check("mov.u32 %r3, %lanemask_le; mov.u32 %r2, %laneid; add.u32 %r3, %r3, %r2;", &|l| {
        (u32::MAX >> (31 - l)).wrapping_add(l as u32)
    });
    // Halves of the warp shuffle by themselves, and meet again.
    check(
        "mov.u32 %r2, 0xffff; setp.lt.u32 %p1, %tid, 16; @!%p1 not.b32 %r2, %r2; @!%p1 bra HIGH;\nadd.u32 %r1, %r1, 1;\nHIGH:\n\
         shfl.sync.bfly.b32 %r3, %r1, 1, 31, %r2; redux.sync.max.u32 %r4, %tid, -1; add.u32 %r3, %r3, %r4;",
        &|l| x(l ^ 1).wrapping_add(u32::from(l < 16) + 31),
    );
    let counted = run(
        "and.b32 %r1, %tid, 3; setp.eq.u32 %p1, %r1, 0; bar.red.popc.u32 %r3, 0, %p1; bar.red.or.pred %p2, 0, %p1; selp.u32 %r4, 1, 0, %p2; mov.b64 %rd3, {%r3, %r4}; st.global.u64 [%out], %rd3;",
        &vec![vec![0]; 96],
    );
    assert_eq!(counted, vec![24 | 1 << 32; 96]);
    // One warp hands on to another by a named barrier.
    let handed = "mov.u32 %r2, s; setp.lt.u32 %p1, %tid, 32; @%p1 bra FIRST;\nbar.sync 1, 64; ld.shared.u32 %r3, [%r2]; bra END;\n\
                  FIRST: mov.u32 %r3, 6; setp.eq.u32 %p2, %tid, 0; @%p2 st.shared.u32 [%r2], %r3; bar.arrive 1, 64;\nEND: mov.b64 %rd3, {%r3, 0}; st.global.u64 [%out], %rd3;";
    for seed in 0..4 {
        let options = ptx::Options { seed: Some(seed), ..Default::default() };
        assert_eq!(
            common::run_with(options, ".shared .align 4 .b8 s[4];", handed, &vec![vec![0]; 64]).unwrap().0,
            vec![6; 64]
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_lop3(table in 0u32..256, a: u32, b: u32, c: u32) {
        let body = format!("{LOAD32}ld.global.u32 %r4, [%in+16];\nlop3.b32 %r3, %r1, %r2, %r4, {table};{STORE32}");
        let result = run(&body, &[vec![a.into(), b.into(), c.into()]])[0] as u32;
        for i in 0..32 {
            let index = (a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1;
            prop_assert_eq!(result >> i & 1, table >> index & 1);
        }
    }

    #[test]
    fn any_fma_is_rounded_once_in_each_direction(a: f32, b: f32, c: f32) {
        let body = |mode: &str| format!("ld.global.f32 %f1, [%in]; ld.global.f32 %f2, [%in+8]; ld.global.f32 %f4, [%in+16];\nfma.{mode}.f32 %f3, %f1, %f2, %f4;\nmov.b32 %r3, %f3;{STORE32}");
        let row = vec![vec![a.to_bits().into(), b.to_bits().into(), c.to_bits().into()]];
        let [near, down, up] = ["rn", "rm", "rp"].map(|mode| f32::from_bits(run(&body(mode), &row)[0] as u32));
        let exact = a.mul_add(b, c);
        prop_assert!(same(near, exact));
        prop_assume!(exact.is_finite() && down.is_finite() && up.is_finite());
        prop_assert!(near == down || near == up, "{near:e} {down:e} {up:e}");
        prop_assert!(up == down || up == down.next_up());
    }
}
