// Philox4x32-7: thread i writes the four words of counter (first + i, 1, 2, 3).
extern "C" __global__ void philox(uint4* out, unsigned n, unsigned first, unsigned long long seed) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned c0 = first + i, c1 = 1, c2 = 2, c3 = 3, k0 = (unsigned)seed, k1 = (unsigned)(seed >> 32);
    for (int round = 0; round < 7; ++round) {
        unsigned h0 = __umulhi(c0, 0xD2511F53u), l0 = c0 * 0xD2511F53u, h1 = __umulhi(c2, 0xCD9E8D57u), l1 = c2 * 0xCD9E8D57u;
        c0 = h1 ^ c1 ^ k0; c1 = l1; c2 = h0 ^ c3 ^ k1; c3 = l0;
        k0 += 0x9E3779B9u; k1 += 0xBB67AE85u;
    }
    out[i] = make_uint4(c0, c1, c2, c3);
}
