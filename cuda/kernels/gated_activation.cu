// h = psi(g) * u and its gradients, the draws made on the way: kernels/src/activation and kernels/src/stochastic.rs.
//
// A thread takes the eight columns of one Philox call: 32 bytes of each tensor in f32, 16 in bf16. The three psi that training is made of are
// compiled for themselves; all others share one kernel, which chooses for every element, one to a thread.
#include "gated.cuh"

constexpr u32 THREADS = 256;
constexpr u32 PER_THREAD = DRAWS_PER_CALL;

// The eight columns of a thread, if there are any.
struct Group {
    u32 row, call, len;
    u64 at;
    bool exists;

    __device__ __forceinline__ Group(u32 groups, u32 d_ff) {
        const u32 group = blockIdx.x * THREADS + threadIdx.x, per_row = (d_ff + PER_THREAD - 1) / PER_THREAD;
        exists = group < groups;
        row = group / per_row;
        call = group % per_row;
        len = min(PER_THREAD, d_ff - call * PER_THREAD);
        at = (u64)row * d_ff + call * PER_THREAD;
    }
};

template <class T, class Psi>
DEVICE void forward(const Psi &psi, const T *g, const T *u, u32 d_ff, u32 groups, u32 aligned, T *h) {
    const Group group(groups, d_ff);
    if (!group.exists) return;
    const Vec<8> gs = load_part<8>(g + group.at, group.len, aligned), us = load_part<8>(u + group.at, group.len, aligned);
    const Draws draws = psi.draw(group.row, group.call);
    Vec<8> hs;
#pragma unroll
    for (int i = 0; i < 8; i++) hs.at[i] = psi.eval(draws.at(i), gs.at[i]).value * us.at[i];
    store_part<8>(h + group.at, group.len, aligned, hs);
}

template <class T, class Psi>
DEVICE void backward(const Psi &psi, float l1, const T *dh, const T *g, const T *u, u32 d_ff, u32 groups, u32 aligned, T *dg, T *du,
                     T *h) {
    const Group group(groups, d_ff);
    if (!group.exists) return;
    const Vec<8> dhs = load_part<8>(dh + group.at, group.len, aligned), gs = load_part<8>(g + group.at, group.len, aligned),
                 us = load_part<8>(u + group.at, group.len, aligned);
    const Draws draws = psi.draw(group.row, group.call);
    Vec<8> dgs, dus, hs;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const Gradients d = gradients(dhs.at[i], us.at[i], psi.eval(draws.at(i), gs.at[i]), l1);
        dgs.at[i] = d.dg, dus.at[i] = d.du, hs.at[i] = d.h;
    }
    store_part<8>(dg + group.at, group.len, aligned, dgs);
    store_part<8>(du + group.at, group.len, aligned, dus);
    store_part<8>(h + group.at, group.len, aligned, hs);
}

template <class T> DEVICE void forward_any(const Any &psi, const T *g, const T *u, u32 d_ff, u32 elements, T *h) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= elements) return;
    from_f32(psi.eval(i / d_ff, i % d_ff, to_f32(g[i])).value * to_f32(u[i]), h[i]);
}

template <class T>
DEVICE void backward_any(const Any &psi, float l1, const T *dh, const T *g, const T *u, u32 d_ff, u32 elements, T *dg, T *du, T *h) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= elements) return;
    const Gradients d = gradients(to_f32(dh[i]), to_f32(u[i]), psi.eval(i / d_ff, i % d_ff, to_f32(g[i])), l1);
    from_f32(d.dg, dg[i]);
    from_f32(d.du, du[i]);
    from_f32(d.h, h[i]);
}

// At least four blocks on a multiprocessor: 64 registers, and no spills for the sake of more blocks.
#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS, 4)

#define KERNELS(T, SUFFIX)                                                                                                                \
    KERNEL gated_activation_relu##SUFFIX(const T *g, const T *u, u32 d_ff, u32 groups, u32 aligned, T *h) {                               \
        forward(Relu{}, g, u, d_ff, groups, aligned, h);                                                                                  \
    }                                                                                                                                     \
    KERNEL gated_activation_silu##SUFFIX(const T *g, const T *u, u32 d_ff, u32 groups, u32 aligned, T *h) {                               \
        forward(Silu{}, g, u, d_ff, groups, aligned, h);                                                                                  \
    }                                                                                                                                     \
    KERNEL gated_activation_stochastic##SUFFIX(SITE, const T *g, const T *u, u32 d_ff, u32 groups, u32 aligned, T *h) {                   \
        forward(Stochastic{THE_SITE}, g, u, d_ff, groups, aligned, h);                                                                    \
    }                                                                                                                                     \
    KERNEL gated_activation_any##SUFFIX(SITE, u32 negative0, u32 negative1, u32 positive, const T *g, const T *u, u32 d_ff,               \
                                        u32 elements, T *h) {                                                                             \
        forward_any(Any{THE_SITE, negative0, negative1, positive}, g, u, d_ff, elements, h);                                              \
    }                                                                                                                                     \
    KERNEL gated_activation_backward_relu##SUFFIX(float l1, const T *dh, const T *g, const T *u, u32 d_ff, u32 groups, u32 aligned,       \
                                                  T *dg, T *du, T *h) {                                                                   \
        backward(Relu{}, l1, dh, g, u, d_ff, groups, aligned, dg, du, h);                                                                 \
    }                                                                                                                                     \
    KERNEL gated_activation_backward_silu##SUFFIX(float l1, const T *dh, const T *g, const T *u, u32 d_ff, u32 groups, u32 aligned,       \
                                                  T *dg, T *du, T *h) {                                                                   \
        backward(Silu{}, l1, dh, g, u, d_ff, groups, aligned, dg, du, h);                                                                 \
    }                                                                                                                                     \
    KERNEL gated_activation_backward_stochastic##SUFFIX(SITE, float l1, const T *dh, const T *g, const T *u, u32 d_ff, u32 groups,        \
                                                        u32 aligned, T *dg, T *du, T *h) {                                                \
        backward(Stochastic{THE_SITE}, l1, dh, g, u, d_ff, groups, aligned, dg, du, h);                                                   \
    }                                                                                                                                     \
    KERNEL gated_activation_backward_any##SUFFIX(SITE, u32 negative0, u32 negative1, u32 positive, float l1, const T *dh, const T *g,     \
                                                 const T *u, u32 d_ff, u32 elements, T *dg, T *du, T *h) {                                \
        backward_any(Any{THE_SITE, negative0, negative1, positive}, l1, dh, g, u, d_ff, elements, dg, du, h);                             \
    }

KERNELS(float, )
KERNELS(bf16, _bf16)
