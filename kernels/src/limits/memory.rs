use super::{PASSES, seconds};
use crate::Team;
use crate::simd::map::{self, spans};
use crate::simd::{Kernel, Simd};
use std::hint::black_box;

/// Elements a task takes: 1 MiB.
const CHUNK: usize = 1 << 18;

/// Rate at which all threads of `team` together read memory, in GB/s (1e9 bytes): the sum of `data`.
///
/// Give it memory of the kind that the kernel to be judged reads (huge pages are worth a third), well beyond the last cache:
/// 512 MiB. Panics if there are fewer than 32 MiB. The best piece of 32 MiB counts: it
/// takes a millisecond, which a busy machine often grants undisturbed, and comes round again only after all the others.
#[track_caller]
pub fn read_gbs(team: &Team, data: &[f32]) -> f64 {
    const PIECE: usize = 32 * CHUNK;
    assert!(data.len() >= PIECE, "read_gbs: {} elements, expected at least {PIECE}", data.len());
    let pieces = (0..PASSES).flat_map(|_| data.chunks_exact(PIECE));
    pieces.map(|piece| read_pass_gbs(team, piece)).fold(0.0, f64::max)
}

/// The same rate in one pass over `data`: what reading gets at this moment, to be taken by turns with the kernel to be judged. Where
/// other machines share the memory it is well below [`read_gbs`] at times, and so is every kernel.
pub fn read_pass_gbs(team: &Team, data: &[f32]) -> f64 {
    let time = seconds(|| {
        team.run(data.len().div_ceil(CHUNK), |task| {
            let piece = &data[task * CHUNK..][..CHUNK.min(data.len() - task * CHUNK)];
            black_box(team.level().dispatch(Sum(piece)));
        })
    });
    size_of_val(data) as f64 / time / 1e9
}

struct Sum<'a>(&'a [f32]);

impl Kernel for Sum<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        map::sum(s, self.0)
    }
}

/// How results go to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// Through the caches, which read each line before they take the first bytes of it. What the kernels do.
    Cached,
    /// Past the caches, in whole lines (`movntps`). x86-64 only.
    Streaming,
}

impl Store {
    /// Whether this CPU has it.
    pub const fn is_present(self) -> bool {
        matches!(self, Store::Cached) || cfg!(target_arch = "x86_64")
    }
}

/// Rate at which all threads of `team` together write `data`, in GB/s of what is written; `None` if the CPU has no such stores.
///
/// As large a slice as for [`read_gbs`]; each pass writes another positive number to all of it, because memory may treat zeros
/// and what is there already in its own way. The best whole pass counts: a piece might end in the last cache.
/// Panics if `data` is empty.
#[track_caller]
pub fn write_gbs(team: &Team, data: &mut [f32], store: Store) -> Option<f64> {
    assert!(!data.is_empty(), "write_gbs: nothing to write");
    let bytes = size_of_val(data) as f64;
    best_pass(store, |pass| {
        let value = black_box(1.0 + pass as f32);
        team.run_chunks_mut(data, CHUNK, |_, dst| match store {
            Store::Cached => team.level().dispatch(Fill { value, dst }),
            Store::Streaming => stream(dst, |_| value),
        })
    })
    .map(|seconds| bytes / seconds / 1e9)
}

/// Rate at which all threads of `team` together copy `src` to `dst`, in GB/s of what is read and what is written together;
/// `None` if the CPU has no such stores. [`Store::Cached`] reads the destination too, which is not counted.
///
/// As large slices as for [`read_gbs`]. The best whole pass counts. Panics if the lengths differ or are 0.
#[track_caller]
pub fn copy_gbs(team: &Team, src: &[f32], dst: &mut [f32], store: Store) -> Option<f64> {
    assert!(!src.is_empty() && src.len() == dst.len(), "copy_gbs: src {}, dst {} elements", src.len(), dst.len());
    let bytes = 2.0 * size_of_val(src) as f64;
    let zero = black_box(0.0);
    best_pass(store, |_| {
        team.run_chunks_mut(dst, CHUNK, |task, dst| {
            let src = &src[task * CHUNK..][..dst.len()];
            match store {
                Store::Cached => team.level().dispatch(Copy { src, zero, dst }),
                Store::Streaming => stream(dst, |i| src[i] + zero),
            }
        })
    })
    .map(|seconds| bytes / seconds / 1e9)
}

fn best_pass(store: Store, mut pass: impl FnMut(usize)) -> Option<f64> {
    /// Fewer than elsewhere: 512 MiB take 20 to 40 ms.
    const PASSES: usize = 8;
    store.is_present().then(|| (0..PASSES).map(|i| seconds(|| pass(i))).fold(f64::INFINITY, f64::min))
}

struct Fill<'a> {
    value: f32,
    dst: &'a mut [f32],
}

impl Kernel for Fill<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let value = s.splat(self.value);
        for at in spans(s, self.dst.len()) {
            at.store(s, value, self.dst);
        }
    }
}

/// `dst = src + 0`: a loop that only moves, compilers turn into a call of `memcpy`, which has stores of its own choice.
struct Copy<'a> {
    src: &'a [f32],
    zero: f32,
    dst: &'a mut [f32],
}

impl Kernel for Copy<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let zero = s.splat(self.zero);
        for at in spans(s, self.dst.len()) {
            at.store(s, s.add(at.load(s, self.src), zero), self.dst);
        }
    }
}

/// `dst[i] = f(i)` by streaming stores; elements before the first and after the last 16-byte boundary by ordinary ones.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn stream(dst: &mut [f32], f: impl Fn(usize) -> f32) {
    use core::arch::x86_64::{_mm_set_ps, _mm_sfence, _mm_stream_ps};
    let head = dst.as_ptr().align_offset(16).min(dst.len());
    let tail = head + (dst.len() - head) / 4 * 4;
    for i in (0..head).chain(tail..dst.len()) {
        dst[i] = f(i);
    }
    for (quad, dst) in dst[head..tail].chunks_exact_mut(4).enumerate() {
        let i = head + 4 * quad;
        // SAFETY: SSE is part of x86-64; `dst` is four elements that begin at a multiple of 16 bytes, by `align_offset`.
        unsafe { _mm_stream_ps(dst.as_mut_ptr(), _mm_set_ps(f(i + 3), f(i + 2), f(i + 1), f(i))) }
    }
    // Streaming stores are not ordered with others: whoever reads `dst` next, on any thread, must see them.
    // SAFETY: SSE is part of x86-64.
    unsafe { _mm_sfence() }
}

#[cfg(not(target_arch = "x86_64"))]
fn stream(_: &mut [f32], _: impl Fn(usize) -> f32) {
    unreachable!("Store::is_present says that there are none")
}
