// C [M, N] = A [M, K] B [N, K]^T in bf16 with f32 sums: cp.async into two stages of shared memory, ldmatrix, mma.sync m16n8k16.
// A block of four warps makes 64 x 64 of C; K a multiple of 32; rows past M or N are read as zeros by cp.async's source size.
#define STAGE_ROW 40 // 32 columns and 8 of padding: the eight rows of a matrix lie in different banks

static __device__ void copy16(unsigned to, const void* from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0));
}

extern "C" __global__ void __launch_bounds__(128) gemm_tile(const unsigned short* a, const unsigned short* b, float* c,
                                                            unsigned m, unsigned n, unsigned k) {
    __shared__ __align__(16) unsigned short tile[2][2][64 * STAGE_ROW];
    unsigned thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    unsigned row0 = blockIdx.y * 64, column0 = blockIdx.x * 64;
    unsigned base = (unsigned)__cvta_generic_to_shared(tile);
    const unsigned stage_bytes = 2 * 64 * STAGE_ROW * 2, operand_bytes = 64 * STAGE_ROW * 2;
    auto load = [&](unsigned step, unsigned stage) {
        for (unsigned i = thread; i < 64 * 4; i += 128) {
            unsigned row = i / 4, part = i % 4;
            unsigned to = base + stage * stage_bytes + (row * STAGE_ROW + part * 8) * 2;
            bool in_a = row0 + row < m, in_b = column0 + row < n;
            copy16(to, a + (size_t)(in_a ? row0 + row : 0) * k + step * 32 + part * 8, in_a);
            copy16(to + operand_bytes, b + (size_t)(in_b ? column0 + row : 0) * k + step * 32 + part * 8, in_b);
        }
        asm volatile("cp.async.commit_group;");
    };
    float sum[8][4] = {};
    load(0, 0);
    for (unsigned step = 0; step < k / 32; ++step) {
        if (step + 1 < k / 32) {
            load(step + 1, (step + 1) % 2);
            asm volatile("cp.async.wait_group 1;" ::: "memory");
        } else {
            asm volatile("cp.async.wait_group 0;" ::: "memory");
        }
        __syncthreads();
        unsigned at = base + (step % 2) * stage_bytes;
        for (unsigned half = 0; half < 2; ++half) {
            unsigned ra[4];
            unsigned from_a = at + ((warp * 16 + lane % 16) * STAGE_ROW + half * 16 + lane / 16 * 8) * 2;
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                         : "=r"(ra[0]), "=r"(ra[1]), "=r"(ra[2]), "=r"(ra[3]) : "r"(from_a));
#pragma unroll
            for (unsigned j = 0; j < 8; j += 2) {
                unsigned rb[4];
                unsigned from_b = at + operand_bytes + ((j * 8 + lane / 16 * 8 + lane % 8) * STAGE_ROW + half * 16 + lane / 8 % 2 * 8) * 2;
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                             : "=r"(rb[0]), "=r"(rb[1]), "=r"(rb[2]), "=r"(rb[3]) : "r"(from_b));
#pragma unroll
                for (unsigned h = 0; h < 2; ++h) {
                    float* s = sum[j + h];
                    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                                 : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])
                                 : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[2 * h]), "r"(rb[2 * h + 1]));
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (unsigned j = 0; j < 8; ++j) {
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
            unsigned row = row0 + warp * 16 + lane / 4 + i / 2 * 8, column = column0 + j * 8 + lane % 4 * 2 + i % 2;
            if (row < m && column < n) c[(size_t)row * n + column] = sum[j][i];
        }
    }
}
