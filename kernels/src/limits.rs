//! The machine's limits, measured: the denominators of "share of peak" in every speed report.

use crate::Team;
use crate::simd::map;
use crate::simd::{Kernel, Simd};
use std::hint::black_box;
use std::time::Instant;

/// Passes of a measurement; the best one counts, because noise only ever slows down.
const PASSES: usize = 24;

/// Independent chains of [`Peak`]: two pipes times the latency of an FMA (4 cycles) is 8; twice that leaves room for loops.
const CHAINS: usize = 16;

/// Peak rate of `mul_add` on all threads of `team` at its level, in GFLOP/s (a `mul_add` counts 2). Takes about 50 ms.
///
/// Independent chains in registers, no memory: what no kernel can beat. On a level without a fused instruction it is the rate
/// of multiplying and adding.
pub fn fma_gflops(team: &Team) -> f64 {
    // 16 chains of them are some 2 ms: much longer than a call of the team takes, much shorter than a scheduler's turn.
    const STEPS: usize = 1 << 20;
    let lanes = team.level().dispatch(Peak { steps: 0 }).1;
    let flop = (2 * STEPS * CHAINS * lanes * team.threads()) as f64;
    let seconds = (0..PASSES).map(|_| {
        let start = Instant::now();
        team.run(team.threads(), |_| {
            black_box(team.level().dispatch(Peak { steps: black_box(STEPS) }));
        });
        start.elapsed().as_secs_f64()
    });
    flop / seconds.fold(f64::INFINITY, f64::min) / 1e9
}

struct Peak {
    steps: usize,
}

impl Kernel for Peak {
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

/// Rate at which all threads of `team` together read memory, in GB/s (1e9 bytes): the sum of `data`.
///
/// Give it memory of the kind that the kernel to be judged reads (huge pages are worth a third), well beyond the last cache:
/// 512 MiB. Panics if there are fewer than 32 MiB. The best piece of 32 MiB counts: it
/// takes a millisecond, which a busy machine often grants undisturbed, and comes round again only after all the others.
#[track_caller]
pub fn read_gbs(team: &Team, data: &[f32]) -> f64 {
    /// Elements a task sums: 1 MiB.
    const CHUNK: usize = 1 << 18;
    const PIECE: usize = 32 * CHUNK;
    assert!(data.len() >= PIECE, "read_gbs: {} elements, expected at least {PIECE}", data.len());
    let mut gbs = 0.0f64;
    for piece in (0..PASSES).flat_map(|_| data.chunks_exact(PIECE)) {
        let start = Instant::now();
        team.run(piece.len() / CHUNK, |task| {
            black_box(team.level().dispatch(Sum(&piece[task * CHUNK..][..CHUNK])));
        });
        gbs = gbs.max(size_of_val(piece) as f64 / start.elapsed().as_secs_f64() / 1e9);
    }
    gbs
}

struct Sum<'a>(&'a [f32]);

impl Kernel for Sum<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        map::sum(s, self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::teams;

    #[test]
    fn limits_are_positive_and_finite() {
        let data = vec![1.0; 8 << 20];
        for team in teams() {
            let (gflops, gbs) = (fma_gflops(&team), read_gbs(&team, &data));
            assert!(gflops > 0.0 && gflops.is_finite(), "limits fma_gflops {}: {gflops}", team.level());
            assert!(gbs > 0.0 && gbs.is_finite(), "limits read_gbs {}: {gbs}", team.level());
        }
    }
}
