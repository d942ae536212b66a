//! Philox4x32: counter-based random draws, equal on every level, thread count and device.
//!
//! Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), and the Random123 library,
//! whose known-answer vectors the tests hold this file to.

use crate::simd::Simd;

/// Rounds. 7 is the smallest number that passes BigCrush (Salmon et al., table 2); recorded in every checkpoint.
pub const ROUNDS: u32 = 7;

/// Draws that one call yields: eight of 16 bits.
pub const DRAWS_PER_CALL: usize = 8;

/// The multipliers of Philox4x32 (Salmon et al., SC 2011).
const MULTIPLIER_0: u32 = 0xD251_1F53;
const MULTIPLIER_1: u32 = 0xCD9E_8D57;
/// The golden ratio and sqrt(3) - 1, as fractions of 2^32: they step the key between rounds.
const WEYL_0: u32 = 0x9E37_79B9;
const WEYL_1: u32 = 0xBB67_AE85;

/// The Philox4x32 bijection of `counter` under `key`, with `rounds` rounds.
pub fn philox4x32(rounds: u32, counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut c0, mut c1, mut c2, mut c3], [mut k0, mut k1]) = (counter, key);
    for _ in 0..rounds {
        let (p0, p1) = (c0 as u64 * MULTIPLIER_0 as u64, c2 as u64 * MULTIPLIER_1 as u64);
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        (k0, k1) = (k0.wrapping_add(WEYL_0), k1.wrapping_add(WEYL_1));
    }
    [c0, c1, c2, c3]
}

/// [`philox4x32`] for `LANES` counters at once: lane `i` of the four words belongs to the counter whose word 0 is
/// `first[0] + i` (wrapping) and whose other words are those of `first`.
#[inline(always)]
pub fn philox4x32_lanes<S: Simd>(s: S, rounds: u32, first: [u32; 4], key: [u32; 2]) -> [S::U32; 4] {
    let mut c = [s.iota_u32(first[0]), s.splat_u32(first[1]), s.splat_u32(first[2]), s.splat_u32(first[3])];
    let [mut k0, mut k1] = key;
    for _ in 0..rounds {
        let ((high0, low0), (high1, low1)) = (s.mul_wide_u32(c[0], MULTIPLIER_0), s.mul_wide_u32(c[2], MULTIPLIER_1));
        // The key is joined to the old word first: that does not wait for the product.
        let (a, b) = (s.xor_u32(c[1], s.splat_u32(k0)), s.xor_u32(c[3], s.splat_u32(k1)));
        c = [s.xor_u32(high1, a), low1, s.xor_u32(high0, b), low0];
        (k0, k1) = (k0.wrapping_add(WEYL_0), k1.wrapping_add(WEYL_1));
    }
    c
}

/// The key of a 64-bit seed: low word first.
pub const fn key(seed: u64) -> [u32; 2] {
    [seed as u32, (seed >> 32) as u32]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, Level};

    /// The published known-answer vectors of Random123 (`kat_vectors`, entries philox4x32 with 7 and 10 rounds).
    #[test]
    fn known_answers() {
        let pi = [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344];
        let cases = [
            (7, [0; 4], [0; 2], [0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48]),
            (7, [u32::MAX; 4], [u32::MAX; 2], [0x5207ddc2, 0x45165e59, 0x4d8ee751, 0x8c52f662]),
            (7, pi, [0xa4093822, 0x299f31d0], [0x4dfccaba, 0x190a87f0, 0xc47362ba, 0xb6b5242a]),
            (10, [0; 4], [0; 2], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
            (10, [u32::MAX; 4], [u32::MAX; 2], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
            (10, pi, [0xa4093822, 0x299f31d0], [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]),
        ];
        for (rounds, counter, key, expected) in cases {
            assert_eq!(
                philox4x32(rounds, counter, key),
                expected,
                "{rounds} rounds of {counter:08x?} under {key:08x?}"
            );
        }
    }

    /// Eight calls' worth of half-words on a level, cut to the first `8 * LANES`.
    struct Lanes {
        rounds: u32,
        first: [u32; 4],
        key: [u32; 2],
    }

    impl Kernel for Lanes {
        type Output = Vec<u16>;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<u16> {
            let mut halves = vec![0; 8 * S::LANES];
            s.store_interleaved4_u16(philox4x32_lanes(s, self.rounds, self.first, self.key), &mut halves);
            halves
        }
    }

    #[test]
    fn lanes_are_consecutive_counters_on_every_level() {
        for level in Level::available() {
            // The second start makes word 0 wrap inside the vector.
            for first in [[0, 1, 2, 3], [u32::MAX - 2, 7, u32::MAX, 0x8000_0000]] {
                for (rounds, key) in [(0, [5, 6]), (1, [5, 6]), (7, [u32::MAX, 0x0123_4567]), (10, [0, 1])] {
                    let halves = level.dispatch(Lanes { rounds, first, key });
                    for (i, call) in halves.chunks(8).enumerate() {
                        let counter = [first[0].wrapping_add(i as u32), first[1], first[2], first[3]];
                        let expected = philox4x32(rounds, counter, key).map(|w| [w as u16, (w >> 16) as u16]);
                        assert_eq!(call, expected.as_flattened(), "philox {level}: lane {i} after {first:08x?}");
                    }
                }
            }
        }
    }
}
