// Philox4x32 (Salmon et al., SC 2011), as kernels/src/philox.rs: the draws of the stochastic activations.
#pragma once
#include "common.cuh"

constexpr int PHILOX_ROUNDS = 7;
constexpr u32 DRAWS_PER_CALL = 8;

// Where the draws of a tensor come from: kernels::MaskSite.
struct MaskSite {
    u32 key0, key1;
    u32 first_token;
    u32 layer_and_stream; // layer | stream << 16
    u32 step;
};

struct Draws {
    u32 word[4];

    // The 16-bit draw of column % 8, low half of a word first.
    __device__ __forceinline__ u32 at(u32 i) const { return i % 2 ? word[i / 2] >> 16 : word[i / 2] & 0xFFFFu; }

    // The same for an i that is not known to the compiler, without an array in memory.
    __device__ __forceinline__ u32 pick(u32 i) const {
        const u32 low = i & 2 ? word[1] : word[0], high = i & 2 ? word[3] : word[2], both = i & 4 ? high : low;
        return i & 1 ? both >> 16 : both & 0xFFFFu;
    }
};

// The draws of the columns 8 call .. 8 call + 7 of a row.
DEVICE Draws philox4x32(const MaskSite &site, u32 row, u32 call) {
    u32 c0 = call, c1 = site.first_token + row, c2 = site.layer_and_stream, c3 = site.step;
    u32 k0 = site.key0, k1 = site.key1;
#pragma unroll
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        const u64 p0 = (u64)c0 * 0xD2511F53u, p1 = (u64)c2 * 0xCD9E8D57u;
        c0 = (u32)(p1 >> 32) ^ c1 ^ k0;
        c1 = (u32)p1;
        c2 = (u32)(p0 >> 32) ^ c3 ^ k1;
        c3 = (u32)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return Draws{{c0, c1, c2, c3}};
}
