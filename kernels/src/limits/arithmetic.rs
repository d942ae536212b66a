use super::{PASSES, seconds};
use crate::Team;
use crate::simd::{Kernel, Simd};
use std::hint::black_box;

/// Peak rate of `mul_add` on all threads of `team` at its level, in GFLOP/s (a `mul_add` counts 2). Takes about 100 ms.
///
/// Independent chains in registers, no memory: what no kernel can beat. On a level without a fused instruction it is the rate
/// of multiplying and adding.
///
/// The best of three numbers of chains. Two pipes times the latency of an FMA (4 cycles) need 8, in 32 registers there is
/// room for 16, in 16 for 12; a level that makes a vector of two registers has room for 6.
pub fn fma_gflops(team: &Team) -> f64 {
    [peak::<6>(team), peak::<12>(team), peak::<16>(team)].into_iter().fold(0.0, f64::max)
}

/// Steps of a pass. 16 chains of them are some 2 ms: much longer than a call of the team takes, much shorter than a
/// scheduler's turn.
const STEPS: usize = 1 << 20;

fn peak<const CHAINS: usize>(team: &Team) -> f64 {
    let lanes = team.level().dispatch(Peak::<CHAINS> { steps: 0 }).1;
    let best = best_pass(team, || {
        black_box(team.level().dispatch(Peak::<CHAINS> { steps: black_box(STEPS) }));
    });
    (2 * STEPS * CHAINS * lanes * team.threads()) as f64 / best / 1e9
}

/// Seconds of the best pass in which every thread runs `f` once.
fn best_pass(team: &Team, f: impl Fn() + Sync) -> f64 {
    (0..PASSES).map(|_| seconds(|| team.run(team.threads(), |_| f()))).fold(f64::INFINITY, f64::min)
}

struct Peak<const CHAINS: usize> {
    steps: usize,
}

impl<const CHAINS: usize> Kernel for Peak<CHAINS> {
    type Output = (f32, usize);
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, usize) {
        // x = x * 1 + 0 keeps the values tame; the compiler cannot see the constants.
        let (one, zero) = (s.splat(black_box(1.0)), s.splat(black_box(0.0)));
        let mut x = [zero; CHAINS];
        for _ in 0..self.steps {
            for x in &mut x {
                *x = s.mul_add(*x, one, zero);
            }
        }
        let mut sum = zero;
        for x in x {
            sum = s.add(sum, x);
        }
        (s.reduce_sum(sum), S::LANES)
    }
}

/// Dot products of short numbers that some CPUs have as one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dot {
    /// 16 sums of 2 products of bf16, in f32: AVX512-BF16.
    Bf16,
    /// 16 sums of 4 products of u8 and i8, in i32: AVX512-VNNI.
    I8,
    /// The same 8 lanes wide: AVX-VNNI.
    I8Narrow,
}

impl Dot {
    /// All of them.
    pub const ALL: [Dot; 3] = [Dot::Bf16, Dot::I8, Dot::I8Narrow];

    /// The instruction and its registers: `zmm` has 512 bits, `ymm` 256.
    pub const fn name(self) -> &'static str {
        match self {
            Dot::Bf16 => "vdpbf16ps zmm",
            Dot::I8 => "vpdpbusd zmm",
            Dot::I8Narrow => "vpdpbusd ymm",
        }
    }

    /// Operations of a step: a product and an addition for each pair of each chain.
    #[cfg(target_arch = "x86_64")]
    const fn ops(self) -> usize {
        match self {
            Dot::Bf16 => 2 * 32 * x86::CHAINS,
            Dot::I8 => 2 * 64 * x86::CHAINS,
            Dot::I8Narrow => 2 * 32 * x86::NARROW_CHAINS,
        }
    }

    /// Whether this CPU has it.
    #[cfg(target_arch = "x86_64")]
    pub fn is_present(self) -> bool {
        match self {
            Dot::Bf16 => is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16"),
            Dot::I8 => is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni"),
            Dot::I8Narrow => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("avxvnni"),
        }
    }

    /// Whether this CPU has it.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_present(self) -> bool {
        false
    }
}

/// Peak rate of a dot product on all threads of `team`, in 1e9 operations a second, measured as [`fma_gflops`] is; `None` if
/// the CPU does not have it. The team's level does not matter.
#[cfg(target_arch = "x86_64")]
pub fn dot_gops(team: &Team, dot: Dot) -> Option<f64> {
    if !dot.is_present() {
        return None;
    }
    let best = best_pass(team, || {
        let steps = black_box(STEPS);
        // SAFETY: `is_present` checked the CPU for the features that each of the functions enables.
        unsafe {
            match dot {
                Dot::Bf16 => x86::bf16(steps),
                Dot::I8 => x86::i8(steps),
                Dot::I8Narrow => x86::i8_narrow(steps),
            }
        }
    });
    Some((STEPS * dot.ops() * team.threads()) as f64 / best / 1e9)
}

/// Peak rate of a dot product: this architecture has none of these.
#[cfg(not(target_arch = "x86_64"))]
pub fn dot_gops(_: &Team, _: Dot) -> Option<f64> {
    None
}

/// The loops, one function an instruction: no level of [`Simd`] stands for these instructions, so nothing dispatches here.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::*;
    use std::hint::black_box;

    /// Three pipes times six cycles of latency, and less than 32 registers.
    pub const CHAINS: usize = 20;

    /// As many as fit in 16 registers beside the factors.
    pub const NARROW_CHAINS: usize = 12;

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn bf16(steps: usize) {
        let one = _mm512_set1_ps(black_box(1.0));
        let zero = _mm512_set1_ps(black_box(0.0));
        let (a, b) = (_mm512_cvtne2ps_pbh(zero, zero), _mm512_cvtne2ps_pbh(one, one));
        let mut x = [zero; CHAINS];
        for _ in 0..steps {
            for x in &mut x {
                *x = _mm512_dpbf16_ps(*x, a, b);
            }
        }
        black_box(x);
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub fn i8(steps: usize) {
        let (a, b) = (_mm512_set1_epi8(black_box(0)), _mm512_set1_epi8(black_box(1)));
        let mut x = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..steps {
            for x in &mut x {
                *x = _mm512_dpbusd_epi32(*x, a, b);
            }
        }
        black_box(x);
    }

    #[target_feature(enable = "avx2,avxvnni")]
    pub fn i8_narrow(steps: usize) {
        let (a, b) = (_mm256_set1_epi8(black_box(0)), _mm256_set1_epi8(black_box(1)));
        let mut x = [_mm256_setzero_si256(); NARROW_CHAINS];
        for _ in 0..steps {
            for x in &mut x {
                *x = _mm256_dpbusd_avx_epi32(*x, a, b);
            }
        }
        black_box(x);
    }
}
