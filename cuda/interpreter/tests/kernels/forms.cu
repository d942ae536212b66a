// Forms that nvcc makes beside the straight ones, one result a row: a stack indexed by a variable, a table of constants, a switch, division,
// the library's functions with their slow paths, 64 and 128 bits, f64, votes, a call.
__constant__ float table[8] = {1, 2, 3, 4, 5, 6, 7, 8};
__device__ unsigned counter = 3;

static __device__ __noinline__ float thrice(float x, unsigned n) {
    for (unsigned i = 0; i < n; ++i) x = x * 3.0f + 1.0f;
    return x;
}

struct Pair {
    float a;
    unsigned char b[5];
    long long c;
};

extern "C" __global__ void __launch_bounds__(32) forms_float(float* out, const float* x, const double* d, Pair pair, unsigned which) {
    unsigned i = threadIdx.x;
    float v = x[i], stack[16];
    for (unsigned j = 0; j < 16; ++j) stack[j] = x[j] + (float)j;
    float chosen = v;
    switch ((which + i) % 6) {
        case 0: chosen = v + 1.0f; break;
        case 1: chosen = v * 2.0f; break;
        case 2: chosen = -v; break;
        case 3: chosen = 5.0f; break;
        case 4: chosen = v * v; break;
        default: break;
    }
    float results[] = {stack[(i * which) & 15] + table[i & 7], chosen, expf(v), logf(fabsf(v)), sinf(v * 1e6f), powf(fabsf(v), 1.5f), tanhf(v),
                       erff(v), v / (x[(i + 1) & 31] + 3.0f), sqrtf(fabsf(v)), rsqrtf(fabsf(v)), floorf(v * 7.0f), rintf(v * 7.0f),
                       (float)(d[i] / d[(i + 1) & 31]), (float)sqrt(fabs(d[i])), (float)exp(d[i]), pair.a + pair.b[i % 5] + (float)pair.c,
                       thrice(v, i % 4), fminf(v, 0.25f), fmaxf(v, -0.25f), copysignf(2.0f, v), (float)(int)(v * 100.0f), __saturatef(v)};
    for (unsigned k = 0; k < sizeof(results) / 4; ++k) out[k * 32 + i] = results[k];
}

extern "C" __global__ void __launch_bounds__(32) forms_integer(unsigned long long* out, const unsigned long long* x, int n) {
    unsigned i = threadIdx.x;
    unsigned long long v = x[i];
    unsigned u = (unsigned)v;
    int s = (int)u;
    unsigned __int128 wide = (unsigned __int128)v * x[(i + 1) & 31] + x[(i + 2) & 31];
    unsigned long long results[] = {v / (unsigned)n, v % 10, (unsigned long long)((long long)v / n), (unsigned)(s / n), (unsigned)(s % n), u / 7,
                                    __umul64hi(v, v), (unsigned long long)wide, (unsigned long long)(wide >> 64), (unsigned long long)__popcll(v),
                                    (unsigned long long)__clzll(v), (unsigned long long)__ffs(s), __brev(u), __byte_perm(u, (unsigned)(v >> 32), 0x3715),
                                    __funnelshift_l(u, (unsigned)(v >> 32), i), (unsigned)__dp4a(s, (int)(v >> 32), 3), (unsigned)abs(s), __usad(u, 77u, 1u),
                                    __ballot_sync(0xffffffffu, v & 1), (unsigned long long)__any_sync(0xffffffffu, u == 5), __match_any_sync(0xffffffffu, u & 3),
                                    __reduce_add_sync(0xffffffffu, u), __reduce_max_sync(0xffffffffu, s) & 0xffffffffu, (unsigned short)(u * 3u),
                                    (unsigned long long)(long long)(signed char)u, __shfl_up_sync(0xffffffffu, u, 3), __shfl_sync(0xffffffffu, v, i / 2)};
    for (unsigned k = 0; k < sizeof(results) / 8; ++k) out[k * 32 + i] = results[k];
    atomicAdd(&counter, i);
}
