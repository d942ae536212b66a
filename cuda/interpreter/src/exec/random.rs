//! The order of things that have no order.

/// xorshift64*: small, and good enough to shuffle warps.
pub(super) struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        // Zero is the one state that xorshift never leaves; the multiplier spreads small seeds.
        Self((seed ^ 0x9E37_79B9_7F4A_7C15).wrapping_mul(0xBF58_476D_1CE4_E5B9).max(1))
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Below `n`; the bias of the remainder does not matter here.
    pub fn below(&mut self, n: u32) -> u32 {
        (self.next() >> 32) as u32 % n
    }

    /// One of the bits that are set in `mask`, which is not zero.
    pub fn bit_of(&mut self, mut mask: u32) -> u32 {
        for _ in 0..self.below(mask.count_ones()) {
            mask &= mask - 1;
        }
        mask.trailing_zeros()
    }
}
