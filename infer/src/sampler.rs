//! From logits to a token.

use crate::Error;
use kernels::philox::{ROUNDS, key, philox4x32};
use std::cmp::Ordering;

/// How a token is drawn. The filters apply in llama.cpp's order: top-k, top-p, min-p, then the temperature. So the filters
/// judge the model's own distribution, and the temperature spreads what they left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits that the filters left. 0 is greedy: the largest logit, the filters without effect.
    pub temperature: f32,
    /// Keep the k most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest most probable tokens whose probabilities, among what top-k left, sum to this; 1 keeps all.
    /// (Holtzman et al., arXiv 1904.09751.)
    pub top_p: f32,
    /// Keep tokens at least this times as probable as the most probable one; 0 keeps all. (Nguyen et al., arXiv 2407.01082.)
    pub min_p: f32,
    /// The seed of the draws.
    pub seed: u64,
}

impl Sampling {
    /// The most probable token, always.
    pub const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 };

    /// Errors: [`Error::Option`] with the first field that is out of its range.
    pub fn validate(&self) -> Result<(), Error> {
        let Sampling { temperature, top_p, min_p, .. } = *self;
        for (field, value, holds, expected) in [
            (
                "temperature",
                temperature,
                temperature >= 0.0 && temperature.is_finite(),
                "0 (greedy) or more, and finite",
            ),
            ("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0 and at most 1 (which keeps all)"),
            ("min_p", min_p, (0.0..=1.0).contains(&min_p), "0 (which keeps all) to 1"),
        ] {
            if !holds {
                return Err(Error::Option { field, value: value.to_string(), expected: expected.to_string() });
            }
        }
        Ok(())
    }
}

/// Keeps the draws of tokens apart from those of the activation (stream 0): bits 16 and up of the counter's third word.
const STREAM_SAMPLER: u32 = 1;

/// Candidates that top-p sorts at first, of a vocabulary that may have 10^5; four times as many if their probabilities do not
/// suffice, so that a wrong guess costs a part of the sort that it saved.
const FIRST_SORTED: usize = 64;

/// Draws tokens. What is drawn is a function of the logits, the seed, the sample's number and the position alone.
pub struct Sampler {
    sampling: Sampling,
    candidates: Vec<Candidate>,
}

#[derive(Clone, Copy)]
struct Candidate {
    token: u32,
    logit: f32,
    /// Relative to the most probable one, which has 1.
    weight: f64,
}

/// Most probable first; the lower token number where logits are equal. Logits are not NaN.
fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.token.cmp(&b.token))
}

impl Sampler {
    /// Errors: those of [`Sampling::validate`].
    pub fn new(sampling: Sampling) -> Result<Sampler, Error> {
        sampling.validate()?;
        Ok(Sampler { sampling, candidates: Vec::new() })
    }

    /// How it draws.
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// The token for `position` of sample number `sample`, from its logits `[V]`. Minus infinity excludes a token.
    ///
    /// Of equal logits the lower token number ranks first. Errors: [`Error::Logit`] for NaN and plus infinity, and if all are
    /// minus infinity. Allocates only until it has seen the largest V. Panics if there are no logits.
    pub fn sample(&mut self, logits: &[f32], position: usize, sample: u32) -> Result<u32, Error> {
        let best = best(logits, position)?;
        let Sampling { temperature, top_k, top_p, min_p, seed } = self.sampling;
        if temperature == 0.0 {
            return Ok(best as u32);
        }
        let max = logits[best];
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend(
            (0..).zip(logits).filter(|(_, logit)| **logit > f32::NEG_INFINITY).map(|(token, &logit)| Candidate {
                token,
                logit,
                weight: (logit as f64 - max as f64).exp(),
            }),
        );
        if top_k > 0 && top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k - 1, by_rank);
            candidates.truncate(top_k);
        }
        if top_p < 1.0 {
            keep_top_p(candidates, top_p as f64);
        }
        candidates.retain(|c| c.weight >= min_p as f64);
        // One order whatever the filters did, so that a filter which keeps all changes no draw.
        candidates.sort_unstable_by_key(|c| c.token);
        for c in candidates.iter_mut() {
            c.weight = ((c.logit as f64 - max as f64) / temperature as f64).exp();
        }
        Ok(draw(candidates, uniform(seed, position, sample)))
    }
}

/// The index of the largest logit, the first one of several. Errors: [`Error::Logit`] if they make no distribution.
pub(crate) fn best(logits: &[f32], position: usize) -> Result<usize, Error> {
    assert!(!logits.is_empty(), "Sampler::sample: no logits");
    let mut best = 0;
    for (i, &logit) in logits.iter().enumerate() {
        if logit.is_nan() || logit == f32::INFINITY {
            return Err(Error::Logit { position, token: i as u32, value: logit });
        }
        if logit > logits[best] {
            best = i;
        }
    }
    match logits[best] {
        value @ f32::NEG_INFINITY => Err(Error::Logit { position, token: best as u32, value }),
        _ => Ok(best),
    }
}

/// Keeps the shortest prefix, by rank, whose weights reach `top_p` of the total; at least one candidate. Sorts only as many
/// as that takes: of a vocabulary of 100000, a few hundred usually hold the mass.
fn keep_top_p(candidates: &mut Vec<Candidate>, top_p: f64) {
    let target = top_p * candidates.iter().map(|c| c.weight).sum::<f64>();
    let (mut sorted, mut sum) = (0, 0.0);
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let take = rest.len().min(FIRST_SORTED.max(3 * sorted));
        if take < rest.len() {
            rest.select_nth_unstable_by(take - 1, by_rank);
        }
        rest[..take].sort_unstable_by(by_rank);
        for i in sorted..sorted + take {
            sum += candidates[i].weight;
            if sum >= target {
                return candidates.truncate(i + 1);
            }
        }
        sorted += take;
    }
}

/// Inverts the distribution function of the weights at `u`.
fn draw(candidates: &[Candidate], u: f64) -> u32 {
    let target = u * candidates.iter().map(|c| c.weight).sum::<f64>();
    let mut sum = 0.0;
    for c in candidates {
        sum += c.weight;
        if target < sum {
            return c.token;
        }
    }
    // u < 1, but `u * total` may round up to the total. A weight that rounded to 0 is not to be drawn then either.
    candidates.iter().rev().find(|c| c.weight > 0.0).expect("the most probable candidate has weight 1").token
}

/// Uniform in `0 .. 1` with 53 bits: two words of the Philox call with counter `[0, position, stream << 16, sample]`.
fn uniform(seed: u64, position: usize, sample: u32) -> f64 {
    let [low, high, ..] = philox4x32(ROUNDS, [0, position as u32, STREAM_SAMPLER << 16, sample], key(seed));
    (((high as u64) << 32 | low as u64) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::testing::uniform as values;

    const PLAIN: Sampling = Sampling { temperature: 1.0, ..Sampling::GREEDY };

    /// How often each token is drawn at 20000 positions.
    fn histogram(sampling: Sampling, logits: &[f32]) -> Vec<usize> {
        let mut sampler = Sampler::new(sampling).unwrap();
        let mut counts = vec![0; logits.len()];
        (0..20_000).for_each(|position| counts[sampler.sample(logits, position, 0).unwrap() as usize] += 1);
        counts
    }

    /// The tokens that are drawn at all.
    fn support(sampling: Sampling, logits: &[f32]) -> Vec<usize> {
        histogram(sampling, logits).iter().enumerate().filter(|(_, n)| **n > 0).map(|(i, _)| i).collect()
    }

    /// Pearson's test against softmax(logits / temperature). The statistic of d degrees of freedom has mean d and variance
    /// 2 d; a right sampler exceeds five standard deviations about once in a million seeds, and the seed is fixed.
    #[track_caller]
    fn assert_distribution(what: &str, counts: &[usize], probabilities: &[f64]) {
        let n: usize = counts.iter().sum();
        let mut chi_square = 0.0;
        let mut freedom = -1.0;
        for (&count, &p) in counts.iter().zip(probabilities) {
            if p == 0.0 {
                assert_eq!(count, 0, "sampler: {what}: a token of probability 0 was drawn");
                continue;
            }
            let expected = n as f64 * p;
            chi_square += (count as f64 - expected).powi(2) / expected;
            freedom += 1.0;
        }
        let limit = freedom + 5.0 * f64::sqrt(2.0 * freedom);
        assert!(
            chi_square < limit,
            "sampler: {what}: chi-square {chi_square:.1} of {freedom} degrees, limit {limit:.1}"
        );
    }

    fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
        let weights: Vec<f64> = logits.iter().map(|&x| (x as f64 / temperature).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|w| w / sum).collect()
    }

    #[test]
    fn draws_follow_the_softmax() {
        for (seed, temperature) in [(1, 1.0), (2, 0.5), (3, 2.0), (u64::MAX, 1.3)] {
            let logits: Vec<f32> = values(seed, 30).into_iter().map(|x| 2.0 * x).collect();
            let counts = histogram(Sampling { temperature, seed, ..PLAIN }, &logits);
            assert_distribution(&format!("temperature {temperature}"), &counts, &softmax(&logits, temperature as f64));
        }
    }

    /// The same for draws of one position over samples and over seeds: each part of the counter and the key counts.
    #[test]
    fn draws_of_samples_and_of_seeds_follow_the_softmax() {
        let logits: Vec<f32> = values(4, 20);
        let (mut by_sample, mut by_seed) = (vec![0; 20], vec![0; 20]);
        let mut sampler = Sampler::new(PLAIN).unwrap();
        for i in 0..20_000 {
            by_sample[sampler.sample(&logits, 5, i).unwrap() as usize] += 1;
            let mut sampler = Sampler::new(Sampling { seed: (i as u64) << 20, ..PLAIN }).unwrap();
            by_seed[sampler.sample(&logits, 5, 0).unwrap() as usize] += 1;
        }
        assert_distribution("over samples", &by_sample, &softmax(&logits, 1.0));
        assert_distribution("over seeds", &by_seed, &softmax(&logits, 1.0));
    }

    #[test]
    fn what_the_filters_leave_keeps_its_proportions() {
        // Probabilities 0.4, 0.3, 0.15, 0.1, 0.05 in some order.
        let p = [0.1f32, 0.4, 0.05, 0.3, 0.15];
        let logits = p.map(f32::ln);
        let counts = histogram(Sampling { top_k: 3, ..PLAIN }, &logits);
        assert_distribution("top-k 3", &counts, &[0.0, 0.4 / 0.85, 0.0, 0.3 / 0.85, 0.15 / 0.85]);
        let counts = histogram(Sampling { top_p: 0.6, temperature: 2.0, ..PLAIN }, &logits);
        // The temperature comes after: 0.4 and 0.3 stay, and become their square roots.
        let (a, b) = (0.4f64.sqrt(), 0.3f64.sqrt());
        assert_distribution("top-p 0.6, temperature 2", &counts, &[0.0, a / (a + b), 0.0, b / (a + b), 0.0]);
    }

    #[test]
    fn each_filter_keeps_what_it_says() {
        let logits = [0.1f32, 0.4, 0.05, 0.3, 0.15].map(f32::ln);
        for (top_k, kept) in
            [(1, &[1][..]), (2, &[1, 3]), (4, &[0, 1, 3, 4]), (5, &[0, 1, 2, 3, 4]), (0, &[0, 1, 2, 3, 4])]
        {
            assert_eq!(support(Sampling { top_k, ..PLAIN }, &logits), kept, "sampler: top-k {top_k}");
        }
        for (top_p, kept) in
            [(1e-6, &[1][..]), (0.39, &[1]), (0.41, &[1, 3]), (0.84, &[1, 3, 4]), (0.99, &[0, 1, 2, 3, 4])]
        {
            assert_eq!(support(Sampling { top_p, ..PLAIN }, &logits), kept, "sampler: top-p {top_p}");
        }
        // Relative to 0.4: 0.25, 1, 0.125, 0.75, 0.375.
        for (min_p, kept) in
            [(1.0, &[1][..]), (0.7, &[1, 3]), (0.3, &[1, 3, 4]), (0.2, &[0, 1, 3, 4]), (0.1, &[0, 1, 2, 3, 4])]
        {
            assert_eq!(support(Sampling { min_p, ..PLAIN }, &logits), kept, "sampler: min-p {min_p}");
        }
        // top-p counts what top-k left: 0.4 of 0.7 is 0.57.
        assert_eq!(support(Sampling { top_k: 2, top_p: 0.5, ..PLAIN }, &logits), [1], "sampler: top-k before top-p");
        assert_eq!(support(Sampling { top_k: 2, top_p: 0.6, ..PLAIN }, &logits), [1, 3], "sampler: top-k before top-p");
    }

    /// Against sorting everything, on vocabularies that take several rounds of partial sorting.
    #[test]
    fn top_p_keeps_what_a_full_sort_would() {
        for (seed, spread, top_p) in [(1, 0.01, 0.5), (2, 0.1, 0.999), (3, 8.0, 0.9), (4, 3.0, 0.3), (5, 0.0, 0.7)] {
            let logits: Vec<f32> = values(seed, 3000).into_iter().map(|x| spread * x).collect();
            let all =
                || (0..).zip(&logits).map(|(token, &logit)| Candidate { token, logit, weight: (logit as f64).exp() });
            let mut kept: Vec<Candidate> = all().collect();
            keep_top_p(&mut kept, top_p);
            let mut sorted: Vec<Candidate> = all().collect();
            sorted.sort_by(by_rank);
            let total: f64 = sorted.iter().map(|c| c.weight).sum();
            let mut sum = 0.0;
            let n = 1 + sorted
                .iter()
                .position(|c| {
                    sum += c.weight;
                    sum >= top_p * total
                })
                .unwrap();
            let tokens = |c: &[Candidate]| c.iter().map(|c| c.token).collect::<Vec<_>>();
            assert_eq!(tokens(&kept), tokens(&sorted[..n]), "sampler: top-p {top_p} of spread {spread}");
        }
    }

    #[test]
    fn filters_that_keep_all_change_no_draw() {
        let logits = values(9, 500);
        let all = Sampling { top_k: 500, top_p: 1.0, min_p: 0.0, ..PLAIN };
        // The least top_p below 1 whose prefix is everything: a full sort, undone before the draw.
        let nearly = Sampling { top_p: 1.0 - f32::EPSILON / 2.0, ..PLAIN };
        let draws = |sampling| {
            let mut sampler = Sampler::new(sampling).unwrap();
            (0..300).map(|position| sampler.sample(&logits, position, 1).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draws(all), draws(PLAIN));
        assert_eq!(draws(nearly), draws(PLAIN));
        assert_ne!(draws(Sampling { seed: 1, ..PLAIN }), draws(PLAIN));
    }

    #[test]
    fn temperature_0_is_greedy_and_ties_go_to_the_lower_token() {
        let logits = [1.0, 3.0, -2.0, 3.0, 0.0];
        for sampling in [Sampling::GREEDY, Sampling { top_k: 2, min_p: 0.5, ..Sampling::GREEDY }] {
            let mut sampler = Sampler::new(sampling).unwrap();
            assert!((0..100).all(|position| sampler.sample(&logits, position, 0).unwrap() == 1));
        }
        // So do the filters, and a temperature near 0, which would overflow 1 / temperature.
        assert_eq!(support(Sampling { top_k: 1, ..PLAIN }, &logits), [1]);
        assert_eq!(support(Sampling { top_p: 0.1, ..PLAIN }, &logits), [1]);
        assert_eq!(support(Sampling { temperature: 1e-45, ..PLAIN }, &logits), [1, 3]);
        assert_eq!(support(PLAIN, &[0.0, -0.0]), [0, 1]);
        assert_eq!(support(Sampling { top_k: 1, ..PLAIN }, &[-0.0, 0.0]), [0], "sampler: zeros of both signs tie");
    }

    #[test]
    fn minus_infinity_excludes_and_other_non_finite_logits_are_errors() {
        let inf = f32::INFINITY;
        assert_eq!(support(PLAIN, &[-inf, 0.0, -inf, 0.5]), [1, 3]);
        for sampling in [PLAIN, Sampling::GREEDY] {
            let mut sampler = Sampler::new(sampling).unwrap();
            for (logits, bad) in
                [([0.0, f32::NAN, 1.0], 1), ([f32::NAN, 0.0, 1.0], 0), ([0.0, 1.0, inf], 2), ([-inf; 3], 0)]
            {
                let error = sampler.sample(&logits, 17, 0).unwrap_err();
                assert!(
                    matches!(error, Error::Logit { position: 17, token, .. } if token == bad),
                    "sampler: {logits:?} gives {error:?}"
                );
            }
            assert_eq!(sampler.sample(&[-inf, -inf, f32::MIN], 0, 0).unwrap(), 2, "sampler: the only finite logit");
            assert_eq!(sampler.sample(&[f32::MIN, f32::MAX], 0, 0).unwrap(), 1, "sampler: the range of f32");
        }
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        let message = |sampling: Sampling| Sampler::new(sampling).err().expect("accepted").to_string();
        for temperature in [-0.1, f32::NAN, f32::INFINITY] {
            let expected = format!("temperature = {temperature}: must be 0 (greedy) or more, and finite");
            assert_eq!(message(Sampling { temperature, ..PLAIN }), expected);
        }
        for top_p in [0.0, 1.01, -1.0, f32::NAN] {
            let expected = format!("top_p = {top_p}: must be above 0 and at most 1 (which keeps all)");
            assert_eq!(message(Sampling { top_p, ..PLAIN }), expected);
        }
        for min_p in [-0.01, 1.01, f32::NAN] {
            assert_eq!(
                message(Sampling { min_p, ..PLAIN }),
                format!("min_p = {min_p}: must be 0 (which keeps all) to 1")
            );
        }
        assert!(
            Sampler::new(Sampling { temperature: 0.0, top_k: usize::MAX, top_p: 1.0, min_p: 1.0, seed: 0 }).is_ok()
        );
    }

    /// 53 bits below 1, and the words of the published generator: a replay on another machine draws the same.
    #[test]
    fn uniform_is_a_fixed_function() {
        let words = philox4x32(ROUNDS, [0, 1000, 1 << 16, 3], [0x89ab_cdef, 0x0123_4567]);
        let expected = ((words[1] as u64) << 21 | (words[0] >> 11) as u64) as f64 / f64::powi(2.0, 53);
        assert_eq!(uniform(0x0123_4567_89ab_cdef, 1000, 3), expected);
        assert!((0..100_000).all(|position| (0.0..1.0).contains(&uniform(7, position, 0))));
    }
}
