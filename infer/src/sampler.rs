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

/// Candidates that top-p sorts at first; four times as many if their probabilities do not suffice.
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

/// The index of the largest logit, the first one of several.
fn best(logits: &[f32], position: usize) -> Result<usize, Error> {
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
