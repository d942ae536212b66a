//! Kernels of decoding for several tokens: each token has the bits that it has alone.

use crate::Run;
use cuda::ops::Float;
use cuda::ops::attention_cached::{
    AttentionScratch, CachedKv, Heads, Places, attention_cached, attention_cached_batch,
};
use cuda::ops::ffn::{FfnScratch, FfnWeights, Neurons, TILE, Tokens, ffn_batch, ffn_dense, ffn_sparse};
use cuda::ops::gemv::{MAX_TOKENS, gemv, gemv_batch, gemv_each};
use cuda::ops::kv_append::{CacheMut, Slots, kv_append};
use cuda::ops::rope::rope;
use cuda::{Buffer, Error};
use half::bf16;
use kernels::rope::{RopeShape, Rotation};
use kernels::testing::{uniform, uniform_bf16, widened};
use kernels::{Activation, Beta, MaskSite};

pub fn gemv_batch_has_the_bits_of_gemv(run: &mut Run) -> Result<(), Error> {
    for (m, k) in run.sizes(&[(1, 1), (9, 7), (17, 8), (5, 1000), (2, 2056)], &[(3001, 4096), (1009, 2047)]) {
        let w = uniform_bf16(1, m * k);
        gemv_batch_of(run, m, k, &widened(&w))?;
        gemv_batch_of(run, m, k, &w)?;
    }
    Ok(())
}

fn gemv_batch_of<W: Float>(run: &mut Run, m: usize, k: usize, w: &[W]) -> Result<(), Error> {
    let w = run.on(w)?;
    for n in 1..=MAX_TOKENS {
        let what = format!("gemv_batch {} [{m}, {k}] of {n} tokens", W::NAME);
        let (x, old) = (uniform(2, n * k), uniform(3, n * m));
        let mut alone = Vec::new();
        for x in x.chunks(k) {
            let mut y = run.stale(m)?;
            gemv(w.as_slice(), run.on(x)?.as_slice(), y.as_mut())?;
            alone.extend(y.to_vec()?);
        }
        let x = run.on(&x)?;
        let (mut y, mut added) = (run.stale(n * m)?, run.on(&old)?);
        gemv_batch(w.as_slice(), x.as_slice(), n, Beta::Zero, y.as_mut())?;
        run.same_bits(&what, &y.to_vec()?, &alone);
        gemv_batch(w.as_slice(), x.as_slice(), n, Beta::One, added.as_mut())?;
        let expected: Vec<f32> = alone.iter().zip(&old).map(|(y, old)| old + y).collect();
        run.same_bits(&format!("{what}, added"), &added.to_vec()?, &expected);

        // Three matrices: the first half of the rows, all, and the last.
        let parts = [0..m / 2, 0..m, m - 1..m];
        let of = parts.clone().map(|rows| w.as_slice().part(rows.start * k..rows.end * k));
        let [a, b, c] = &parts;
        let mut each = [run.stale(n * a.len())?, run.stale(n * b.len())?, run.stale(n * c.len())?];
        gemv_each(of, x.as_slice(), n, each.each_mut().map(Buffer::as_mut))?;
        for (rows, y) in parts.into_iter().zip(&each) {
            let expected: Vec<f32> = alone.chunks(m).flat_map(|y| y[rows.clone()].to_vec()).collect();
            run.same_bits(&format!("gemv_each: {what}, rows {rows:?}"), &y.to_vec()?, &expected);
        }
    }
    Ok(())
}

/// Weights of an FFN. Of an x that is uniform too, some half of the neurons are active, other ones for each.
struct Ffn<W>([Buffer<W>; 3]);

impl<W: Float> Ffn<W> {
    fn new(run: &Run, f: usize, c: usize, to: fn(bf16) -> W) -> Result<Ffn<W>, Error> {
        let matrices = [1, 2, 3].map(|seed| uniform_bf16(seed, f * c).into_iter().map(to).collect::<Vec<W>>());
        Ok(Ffn(run.all_on(matrices.each_ref().map(Vec::as_slice))?))
    }

    fn weights(&self) -> FfnWeights<'_, W> {
        let [gate, up, down_t] = self.0.each_ref().map(Buffer::as_slice);
        FfnWeights { gate, up, down_t }
    }
}

pub fn a_token_of_ffn_batch_has_the_bits_that_it_has_alone(run: &mut Run) -> Result<(), Error> {
    for (f, c) in run.sizes(&[(1, 1), (3, 7), (TILE + 1, 40), (150, 24), (100, 2056)], &[(5633, 1024), (1000, 4096)]) {
        let (wide, kept) = (Ffn::new(run, f, c, bf16::to_f32)?, Ffn::new(run, f, c, |w| w)?);
        ffn_batch_of(run, f, c, &wide)?;
        ffn_batch_of(run, f, c, &kept)?;
    }
    Ok(())
}

fn ffn_batch_of<W: Float>(run: &mut Run, f: usize, c: usize, ffn: &Ffn<W>) -> Result<(), Error> {
    for n in 1..=MAX_TOKENS {
        let what = format!("ffn_batch {} [{f}, {c}] of {n} tokens", W::NAME);
        let (x, old) = (uniform(4, n * c), uniform(5, n * c));
        let (mut expected, mut active, mut any) = (Vec::new(), 0, vec![false; f]);
        for (x, old) in x.chunks(c).zip(old.chunks(c)) {
            let (x, mut y, mut g) = (run.on(x)?, run.on(old)?, run.stale(f)?);
            let mut scratch = FfnScratch::new(run.device(), f, c)?;
            ffn_sparse(ffn.weights(), x.as_slice(), &mut scratch, Beta::One, y.as_mut())?;
            expected.extend(y.to_vec()?);
            active += scratch.counts().to_vec()?.iter().sum::<u32>();
            gemv(ffn.weights().gate, x.as_slice(), g.as_mut())?;
            any.iter_mut().zip(g.to_vec()?).for_each(|(any, g): (_, f32)| *any |= g > 0.0);
        }
        let any = any.into_iter().filter(|&any| any).count() as u32;
        let (x, nowhere) = (run.on(&x)?, run.on(&vec![0u32; n])?);
        // A scratch for more tokens than there are.
        let mut scratch = FfnScratch::for_tokens(run.device(), f, c, MAX_TOKENS)?;
        let tokens = Tokens { positions: nowhere.as_slice(), samples: nowhere.as_slice() };
        for all in [0u32, 1] {
            let (all_too, mut y, mut totals) = (run.on(&[all])?, run.on(&old)?, run.stale(2)?);
            let (neurons, to) = (Neurons::active(all_too.as_slice()), (y.as_mut(), totals.as_mut()));
            ffn_batch(ffn.weights(), neurons, tokens, x.as_slice(), &mut scratch, Beta::One, to.0, to.1)?;
            run.same_bits(&format!("{what}, all {all}"), &y.to_vec()?, &expected);
            let counted = totals.to_vec()?;
            run.same(&format!("{what}, all {all}: active pairs, active for any"), &counted, &[active, any]);
            let listed: u32 = scratch.counts().to_vec()?.iter().sum();
            let rows = if all == 1 { f as u32 } else { any };
            run.same(&format!("{what}, all {all}: rows that are read"), &[listed], &[rows]);
        }
    }
    Ok(())
}

pub fn ffn_batch_draws_for_each_token_what_it_draws_alone(run: &mut Run) -> Result<(), Error> {
    let (f, c, n) = (150, 24, 5);
    let ffn = Ffn::new(run, f, c, bf16::to_f32)?;
    let x = uniform(4, n * c);
    let (positions, samples) = ([7u32, 7, 0, 3000, 8], [0u32, 1, 4, 0, 0]);
    let site = MaskSite { seed: 99, first_token: 0, layer: 2, stream: 3, step: 0 };
    let act = |first_token, step| Activation::stochastic(0.5, MaskSite { first_token, step, ..site });
    let mut expected = Vec::new();
    for (t, x) in x.chunks(c).enumerate() {
        let (x, mut scratch, mut y) = (run.on(x)?, FfnScratch::new(run.device(), f, c)?, run.stale(c)?);
        let act = act(positions[t], samples[t]);
        ffn_dense(ffn.weights(), act, x.as_slice(), &mut scratch, Beta::Zero, y.as_mut())?;
        expected.extend(y.to_vec()?);
    }
    let (x, mut y, mut totals) = (run.on(&x)?, run.stale(n * c)?, run.stale(2)?);
    let [positions, samples] = run.all_on([&positions, &samples])?;
    let tokens = Tokens { positions: positions.as_slice(), samples: samples.as_slice() };
    let mut scratch = FfnScratch::for_tokens(run.device(), f, c, n)?;
    let (neurons, to) = (Neurons::all(act(0, 0)), (y.as_mut(), totals.as_mut()));
    ffn_batch(ffn.weights(), neurons, tokens, x.as_slice(), &mut scratch, Beta::Zero, to.0, to.1)?;
    run.same_bits("ffn_batch under a stochastic activation", &y.to_vec()?, &expected);
    // RELU of the pair makes some of them 0.
    let totals: Vec<u32> = totals.to_vec()?;
    let (active, any) = (totals[0], totals[1]);
    let what = format!("ffn_batch under a stochastic activation: {active} active, {any} for any token");
    run.holds(&what, active < (n * f) as u32 && any > active / n as u32);
    Ok(())
}

pub fn a_token_of_attention_cached_batch_has_the_bits_that_it_has_alone(run: &mut Run) -> Result<(), Error> {
    let (k, v) = (uniform_bf16(2, 3 * 2 * 200 * 12), uniform_bf16(3, 3 * 2 * 200 * 12));
    attention_cached_batch_of(run, &widened(&k), &widened(&v))?;
    attention_cached_batch_of(run, &k, &v)
}

fn attention_cached_batch_of<W: Float>(run: &mut Run, k: &[W], v: &[W]) -> Result<(), Error> {
    let (heads, capacity, scale) = (Heads { n_heads: 6, n_kv_heads: 2, head_dim: 12 }, 200, 0.3);
    let (lens, numbers) = ([1u32, 200, 128, 129, 4, 77], [2u32, 0, 1, 1, 2, 0]);
    let (n, width, of_cache) = (lens.len(), 6 * 12, 2 * capacity * 12);
    let q = uniform(1, n * width);
    let (mut expected, mut expected_lse) = (Vec::new(), Vec::new());
    for (t, q) in q.chunks(width).enumerate() {
        let one = numbers[t] as usize * of_cache..(numbers[t] as usize + 1) * of_cache;
        let ([k, v], q, len) = (run.all_on([&k[one.clone()], &v[one]])?, run.on(q)?, run.on(&lens[t..t + 1])?);
        let (mut out, mut lse) = (run.stale(width)?, run.stale(6)?);
        let mut scratch = AttentionScratch::new(run.device(), heads, capacity)?;
        let cache = CachedKv { k: k.as_slice(), v: v.as_slice(), capacity };
        let (to, lse_to) = (out.as_mut(), lse.as_mut());
        attention_cached(heads, scale, q.as_slice(), cache, len.as_slice(), &mut scratch, to, lse_to)?;
        expected.extend(out.to_vec()?);
        expected_lse.extend(lse.to_vec()?);
    }
    let ([k, v], q, [lens, numbers]) = (run.all_on([k, v])?, run.on(&q)?, run.all_on([&lens[..], &numbers])?);
    let (mut out, mut lse) = (run.stale(n * width)?, run.stale(n * 6)?);
    let mut scratch = AttentionScratch::for_tokens(run.device(), heads, capacity, MAX_TOKENS)?;
    let cache = CachedKv { k: k.as_slice(), v: v.as_slice(), capacity };
    let places = Places { kv_len: lens.as_slice(), cache: numbers.as_slice() };
    let (to, lse_to) = (out.as_mut(), lse.as_mut());
    attention_cached_batch(heads, scale, q.as_slice(), cache, places, &mut scratch, to, lse_to)?;
    run.same_bits(&format!("attention_cached_batch {}", W::NAME), &out.to_vec()?, &expected);
    run.same_bits(&format!("attention_cached_batch {}: lse", W::NAME), &lse.to_vec()?, &expected_lse);
    Ok(())
}

pub fn kv_append_turns_as_rope_and_writes_each_token_into_its_cache(run: &mut Run) -> Result<(), Error> {
    for (n_heads, n_kv_heads, head_dim) in run.sizes(&[(1, 1, 2), (4, 2, 12), (6, 1, 10), (2, 2, 34)], &[(32, 8, 128)])
    {
        let (heads, caches, capacity) = (Heads { n_heads, n_kv_heads, head_dim }, 3, 9);
        // The last two have no place: beyond the capacity, and beyond the caches.
        let (positions, numbers) = ([0u32, 8, 3, 3, 9, 1], [2u32, 0, 0, 1, 0, 3]);
        let n = positions.len();
        let (q_width, kv_width, half) = (n_heads * head_dim, n_kv_heads * head_dim, head_dim / 2);
        let [cos, sin] = run.all_on([&uniform(4, capacity * half)[..], &uniform(5, capacity * half)])?;
        let (q, k, v) = (uniform(1, n * q_width), uniform(2, n * kv_width), uniform(3, n * kv_width));
        let turned = |x: &[f32], n_heads: usize, position: u32| -> Result<Vec<f32>, Error> {
            let (x, mut y) = (run.on(x)?, run.stale(x.len())?);
            let shape = RopeShape { n_heads, head_dim, seq_len: 1, first_position: position as usize };
            rope(x.as_slice(), cos.as_slice(), sin.as_slice(), shape, Rotation::Forward, y.as_mut())?;
            y.to_vec()
        };
        let elements = caches * kv_width * capacity;
        let (mut q_ref, mut k_ref, mut v_ref) = (q.clone(), vec![7.0; elements], vec![7.0; elements]);
        for t in 0..n - 2 {
            let (of_q, of_kv) = (t * q_width..(t + 1) * q_width, t * kv_width..(t + 1) * kv_width);
            q_ref[of_q.clone()].copy_from_slice(&turned(&q[of_q], n_heads, positions[t])?);
            let k = turned(&k[of_kv.clone()], n_kv_heads, positions[t])?;
            for (to, from) in [(&mut k_ref, &k[..]), (&mut v_ref, &v[of_kv])] {
                for (head, from) in from.chunks(head_dim).enumerate() {
                    let row = (numbers[t] as usize * n_kv_heads + head) * capacity + positions[t] as usize;
                    to[row * head_dim..][..head_dim].copy_from_slice(from);
                }
            }
        }
        let [positions, numbers] = run.all_on([&positions[..], &numbers])?;
        let slots = Slots { positions: positions.as_slice(), cache: numbers.as_slice() };
        let (cos, sin, [k, v]) = (cos.as_slice(), sin.as_slice(), run.all_on([&k[..], &v])?);
        let what = format!("kv_append {heads:?}");

        let seven = vec![7.0f32; elements];
        let (mut to_q, [mut to_k, mut to_v]) = (run.on(&q)?, run.all_on([&seven[..], &seven])?);
        let to = CacheMut { k: to_k.as_mut(), v: to_v.as_mut(), capacity };
        kv_append(heads, slots, cos, sin, to_q.as_mut(), k.as_slice(), v.as_slice(), to)?;
        run.same_bits(&format!("{what}: queries"), &to_q.to_vec()?, &q_ref);
        run.same_bits(&format!("{what}: keys"), &to_k.to_vec()?, &k_ref);
        run.same_bits(&format!("{what}: values"), &to_v.to_vec()?, &v_ref);

        let round = |x: &[f32]| x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
        let seven = round(&seven);
        let (mut to_q, [mut to_k, mut to_v]) = (run.on(&q)?, run.all_on([&seven[..], &seven])?);
        let to = CacheMut { k: to_k.as_mut(), v: to_v.as_mut(), capacity };
        kv_append(heads, slots, cos, sin, to_q.as_mut(), k.as_slice(), v.as_slice(), to)?;
        run.same_bits(&format!("{what}: queries beside a bf16 cache"), &to_q.to_vec()?, &q_ref);
        run.same(&format!("{what}: keys in bf16"), &to_k.to_vec()?, &round(&k_ref));
        run.same(&format!("{what}: values in bf16"), &to_v.to_vec()?, &round(&v_ref));
    }
    Ok(())
}
