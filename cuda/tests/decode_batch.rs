//! Kernels of decoding for several tokens, in the interpreter: each token has the bits that it has alone.

use cuda::ops::Float;
use cuda::ops::attention_cached::{
    AttentionScratch, CachedKv, Heads, Places, attention_cached, attention_cached_batch,
};
use cuda::ops::ffn::{FfnScratch, FfnWeights, Neurons, TILE, Tokens, ffn_batch, ffn_dense, ffn_sparse};
use cuda::ops::gemv::{MAX_TOKENS, gemv, gemv_batch, gemv_each};
use cuda::ops::kv_append::{CacheMut, Slots, kv_append};
use cuda::ops::rope::rope;
use cuda::{Buffer, Device};
use cuda_testing::{bits, device, on, stale};
use half::bf16;
use kernels::rope::{RopeShape, Rotation};
use kernels::testing::{uniform, uniform_bf16};
use kernels::{Activation, Beta, MaskSite};

fn host<T: bytemuck::Pod>(buffer: &Buffer<T>) -> Vec<T> {
    buffer.to_vec().unwrap()
}

#[test]
fn gemv_batch_has_the_bits_of_gemv() {
    fn check<W: Float>(device: &Device, m: usize, k: usize, w: &[W]) {
        let w = on(device, w);
        for n in 1..=MAX_TOKENS {
            let what = format!("gemv_batch {} [{m}, {k}] of {n} tokens", W::NAME);
            let (x, old) = (uniform(2, n * k), uniform(3, n * m));
            let alone: Vec<Vec<f32>> = x
                .chunks(k)
                .map(|x| {
                    let mut y = stale(device, m);
                    gemv(w.as_slice(), on(device, x).as_slice(), y.as_mut()).unwrap();
                    host(&y)
                })
                .collect();
            let x = on(device, &x);
            let (mut y, mut added) = (stale(device, n * m), on(device, &old));
            gemv_batch(w.as_slice(), x.as_slice(), n, Beta::Zero, y.as_mut()).unwrap();
            assert_eq!(bits(&host(&y)), bits(&alone.concat()), "{what}");
            gemv_batch(w.as_slice(), x.as_slice(), n, Beta::One, added.as_mut()).unwrap();
            let expected: Vec<f32> = alone.concat().iter().zip(&old).map(|(y, old)| old + y).collect();
            assert_eq!(bits(&host(&added)), bits(&expected), "{what}, added");

            // Matrices of fewer rows beside it: its first half, all of it, and its last row.
            let parts = [0..m / 2, 0..m, m - 1..m];
            let of = parts.clone().map(|rows| w.as_slice().part(rows.start * k..rows.end * k));
            let mut each = parts.clone().map(|rows| stale::<f32>(device, n * rows.len()));
            gemv_each(of, x.as_slice(), n, each.each_mut().map(|y| y.as_mut())).unwrap();
            for (rows, y) in parts.into_iter().zip(&each) {
                let expected: Vec<f32> = alone.iter().flat_map(|y| y[rows.clone()].to_vec()).collect();
                assert_eq!(bits(&host(y)), bits(&expected), "gemv_each: {what}, rows {rows:?}");
            }
        }
    }
    let device = device();
    for (m, k) in [(1, 1), (9, 7), (17, 8), (5, 1000), (2, 2056)] {
        let w = uniform_bf16(1, m * k);
        check(&device, m, k, &w.iter().map(|w| w.to_f32()).collect::<Vec<_>>());
        check(&device, m, k, &w);
    }
}

/// Weights of an FFN, and rows of x for it: some half of the neurons are active for a token, other ones for each.
fn ffn<W: Float>(device: &Device, f: usize, c: usize, to: fn(bf16) -> W) -> [Buffer<W>; 3] {
    [1, 2, 3].map(|seed| on(device, &uniform_bf16(seed, f * c).into_iter().map(to).collect::<Vec<_>>()))
}

fn weights<W: Float>(buffers: &[Buffer<W>; 3]) -> FfnWeights<'_, W> {
    let [gate, up, down_t] = buffers.each_ref().map(Buffer::as_slice);
    FfnWeights { gate, up, down_t }
}

#[test]
fn a_token_of_ffn_batch_has_the_bits_that_it_has_alone() {
    fn check<W: Float>(device: &Device, f: usize, c: usize, to: fn(bf16) -> W) {
        let buffers = ffn(device, f, c, to);
        for n in 1..=MAX_TOKENS {
            let what = format!("ffn_batch {} [{f}, {c}] of {n} tokens", W::NAME);
            let (x, old) = (uniform(4, n * c), uniform(5, n * c));
            let (mut expected, mut active, mut any) = (Vec::new(), 0, vec![false; f]);
            for (x, old) in x.chunks(c).zip(old.chunks(c)) {
                let (x, mut y) = (on(device, x), on(device, old));
                let mut scratch = FfnScratch::new(device, f, c).unwrap();
                ffn_sparse(weights(&buffers), x.as_slice(), &mut scratch, Beta::One, y.as_mut()).unwrap();
                expected.extend(host(&y));
                active += scratch.counts().to_vec().unwrap().iter().sum::<u32>();
                let mut g = stale(device, f);
                gemv(weights(&buffers).gate, x.as_slice(), g.as_mut()).unwrap();
                any.iter_mut().zip(host(&g)).for_each(|(any, g)| *any |= g > 0.0);
            }
            let any = any.into_iter().filter(|&any| any).count() as u32;
            let x = on(device, &x);
            // A scratch for more tokens than there are.
            let mut scratch = FfnScratch::for_tokens(device, f, c, MAX_TOKENS).unwrap();
            let nowhere = on(device, &vec![0u32; n]);
            let tokens = Tokens { positions: nowhere.as_slice(), samples: nowhere.as_slice() };
            for all in [0u32, 1] {
                let (all_too, mut y, mut totals) = (on(device, &[all]), on(device, &old), stale(device, 2));
                let neurons = Neurons::active(all_too.as_slice());
                let (scratch, to) = (&mut scratch, y.as_mut());
                ffn_batch(weights(&buffers), neurons, tokens, x.as_slice(), scratch, Beta::One, to, totals.as_mut())
                    .unwrap();
                assert_eq!(bits(&host(&y)), bits(&expected), "{what}, all {all}");
                assert_eq!(host(&totals), [active, any], "{what}, all {all}: active pairs, active for any");
                let listed: u32 = scratch.counts().to_vec().unwrap().iter().sum();
                assert_eq!(listed, if all == 1 { f as u32 } else { any }, "{what}, all {all}: rows that are read");
            }
        }
    }
    let device = device();
    for (f, c) in [(1, 1), (3, 7), (TILE + 1, 40), (150, 24), (2 * TILE, 2056)] {
        check(&device, f, c, bf16::to_f32);
        check(&device, f, c, |w| w);
    }
}

#[test]
fn ffn_batch_draws_for_each_token_what_it_draws_alone() {
    let device = device();
    let (f, c, n) = (150, 24, 5);
    let buffers = ffn(&device, f, c, bf16::to_f32);
    let x = uniform(4, n * c);
    let (positions, samples) = ([7u32, 7, 0, 3000, 8], [0u32, 1, 4, 0, 0]);
    let site = MaskSite { seed: 99, first_token: 0, layer: 2, stream: 3, step: 0 };
    let act = |first_token, step| Activation::stochastic(0.5, MaskSite { first_token, step, ..site });
    let mut expected = Vec::new();
    for (t, x) in x.chunks(c).enumerate() {
        let (mut scratch, mut y) = (FfnScratch::new(&device, f, c).unwrap(), stale(&device, c));
        let (x, act) = (on(&device, x), act(positions[t], samples[t]));
        ffn_dense(weights(&buffers), act, x.as_slice(), &mut scratch, Beta::Zero, y.as_mut()).unwrap();
        expected.push(host(&y));
    }
    let (x, mut y, mut totals) = (on(&device, &x), stale(&device, n * c), stale(&device, 2));
    let (positions, samples) = (on(&device, &positions), on(&device, &samples));
    let tokens = Tokens { positions: positions.as_slice(), samples: samples.as_slice() };
    let mut scratch = FfnScratch::for_tokens(&device, f, c, n).unwrap();
    let (neurons, to) = (Neurons::all(act(0, 0)), y.as_mut());
    ffn_batch(weights(&buffers), neurons, tokens, x.as_slice(), &mut scratch, Beta::Zero, to, totals.as_mut()).unwrap();
    assert_eq!(bits(&host(&y)), bits(&expected.concat()), "ffn_batch under a stochastic activation");
    // RELU of the pair makes some of them 0.
    let [active, any] = host(&totals)[..] else { panic!("two totals") };
    assert!(active < (n * f) as u32 && any > active / n as u32, "ffn_batch: {active} active, {any} for any token");
}

#[test]
fn a_token_of_attention_cached_batch_has_the_bits_that_it_has_alone() {
    fn check<W: Float>(device: &Device, k: &[W], v: &[W]) {
        let (heads, capacity, scale) = (Heads { n_heads: 6, n_kv_heads: 2, head_dim: 12 }, 200, 0.3);
        let (lens, numbers) = ([1u32, 200, 128, 129, 4, 77], [2u32, 0, 1, 1, 2, 0]);
        let (n, width, of_cache) = (lens.len(), 6 * 12, 2 * capacity * 12);
        let q = uniform(1, n * width);
        let (mut expected, mut expected_lse) = (Vec::new(), Vec::new());
        for (t, q) in q.chunks(width).enumerate() {
            let one = numbers[t] as usize * of_cache..(numbers[t] as usize + 1) * of_cache;
            let (k, v, q, len) =
                (on(device, &k[one.clone()]), on(device, &v[one]), on(device, q), on(device, &lens[t..t + 1]));
            let (mut out, mut lse) = (stale(device, width), stale(device, 6));
            let mut scratch = AttentionScratch::new(device, heads, capacity).unwrap();
            let (cache, to, lse_to) =
                (CachedKv { k: k.as_slice(), v: v.as_slice(), capacity }, out.as_mut(), lse.as_mut());
            attention_cached(heads, scale, q.as_slice(), cache, len.as_slice(), &mut scratch, to, lse_to).unwrap();
            expected.extend(host(&out));
            expected_lse.extend(host(&lse));
        }
        let (k, v, q, lens, numbers) =
            (on(device, k), on(device, v), on(device, &q), on(device, &lens), on(device, &numbers));
        let (mut out, mut lse) = (stale(device, n * width), stale(device, n * 6));
        let mut scratch = AttentionScratch::for_tokens(device, heads, capacity, MAX_TOKENS).unwrap();
        let cache = CachedKv { k: k.as_slice(), v: v.as_slice(), capacity };
        let places = Places { kv_len: lens.as_slice(), cache: numbers.as_slice() };
        let (to, lse_to) = (out.as_mut(), lse.as_mut());
        attention_cached_batch(heads, scale, q.as_slice(), cache, places, &mut scratch, to, lse_to).unwrap();
        assert_eq!(bits(&host(&out)), bits(&expected), "attention_cached_batch {}", W::NAME);
        assert_eq!(bits(&host(&lse)), bits(&expected_lse), "attention_cached_batch {}: lse", W::NAME);
    }
    let device = device();
    let (k, v) = (uniform_bf16(2, 3 * 2 * 200 * 12), uniform_bf16(3, 3 * 2 * 200 * 12));
    let wide = |x: &[bf16]| x.iter().map(|x| x.to_f32()).collect::<Vec<f32>>();
    check(&device, &wide(&k), &wide(&v));
    check(&device, &k, &v);
}

#[test]
fn kv_append_turns_as_rope_and_writes_each_token_into_its_cache() {
    let device = device();
    for (n_heads, n_kv_heads, head_dim) in [(1, 1, 2), (4, 2, 12), (6, 1, 10), (2, 2, 34)] {
        let (heads, caches, capacity) = (Heads { n_heads, n_kv_heads, head_dim }, 3, 9);
        // The last two have no place: beyond the capacity, and beyond the caches.
        let (positions, numbers) = ([0u32, 8, 3, 3, 9, 1], [2u32, 0, 0, 1, 0, 3]);
        let n = positions.len();
        let (q_width, kv_width, half) = (n_heads * head_dim, n_kv_heads * head_dim, head_dim / 2);
        let (cos, sin) = (on(&device, &uniform(4, capacity * half)), on(&device, &uniform(5, capacity * half)));
        let (q, k, v) = (uniform(1, n * q_width), uniform(2, n * kv_width), uniform(3, n * kv_width));
        let turned = |x: &[f32], n_heads: usize, position: u32| {
            let (x, mut y) = (on(&device, x), stale(&device, x.len()));
            let shape = RopeShape { n_heads, head_dim, seq_len: 1, first_position: position as usize };
            rope(x.as_slice(), cos.as_slice(), sin.as_slice(), shape, Rotation::Forward, y.as_mut()).unwrap();
            host(&y)
        };
        let elements = caches * kv_width * capacity;
        let (mut q_ref, mut k_ref, mut v_ref) = (q.clone(), vec![7.0; elements], vec![7.0; elements]);
        for t in 0..n - 2 {
            let (of_q, of_kv) = (t * q_width..(t + 1) * q_width, t * kv_width..(t + 1) * kv_width);
            q_ref[of_q.clone()].copy_from_slice(&turned(&q[of_q], n_heads, positions[t]));
            let k = turned(&k[of_kv.clone()], n_kv_heads, positions[t]);
            for (to, from) in [(&mut k_ref, &k[..]), (&mut v_ref, &v[of_kv])] {
                for (head, from) in from.chunks(head_dim).enumerate() {
                    let row = (numbers[t] as usize * n_kv_heads + head) * capacity + positions[t] as usize;
                    to[row * head_dim..][..head_dim].copy_from_slice(from);
                }
            }
        }
        let (positions, numbers) = (on(&device, &positions), on(&device, &numbers));
        let slots = Slots { positions: positions.as_slice(), cache: numbers.as_slice() };
        let (tables, k, v) = ((cos.as_slice(), sin.as_slice()), on(&device, &k), on(&device, &v));
        let what = format!("kv_append {heads:?}");

        let (mut to_q, [mut to_k, mut to_v]) = (on(&device, &q), [0; 2].map(|_| on(&device, &vec![7.0f32; elements])));
        let to = CacheMut { k: to_k.as_mut(), v: to_v.as_mut(), capacity };
        kv_append(heads, slots, tables.0, tables.1, to_q.as_mut(), k.as_slice(), v.as_slice(), to).unwrap();
        assert_eq!(bits(&host(&to_q)), bits(&q_ref), "{what}: queries");
        assert_eq!(bits(&host(&to_k)), bits(&k_ref), "{what}: keys");
        assert_eq!(bits(&host(&to_v)), bits(&v_ref), "{what}: values");

        let seven = vec![bf16::from_f32(7.0); elements];
        let (mut to_q, mut to_k, mut to_v) = (on(&device, &q), on(&device, &seven), on(&device, &seven));
        let to = CacheMut { k: to_k.as_mut(), v: to_v.as_mut(), capacity };
        kv_append(heads, slots, tables.0, tables.1, to_q.as_mut(), k.as_slice(), v.as_slice(), to).unwrap();
        let round = |x: &[f32]| x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
        assert_eq!(bits(&host(&to_q)), bits(&q_ref), "{what}: queries beside a bf16 cache");
        assert_eq!(host(&to_k), round(&k_ref), "{what}: keys in bf16");
        assert_eq!(host(&to_v), round(&v_ref), "{what}: values in bf16");
    }
}
