//! Which layers run sparse under [`FfnMode::Auto`](crate::FfnMode::Auto), and which filtered under
//! [`FfnMode::AutoFiltered`](crate::FfnMode::AutoFiltered); and which layers of a prompt run sparse.

use crate::{Prefill, WeightFormat};

/// The share of active neurons below which the sparse FFN is taken. Rows with gaps are read more slowly than one stream, which is why the
/// dense form wins where there are few gaps.
///
/// Measured on one thread of a Zen 5 (avx512, C = 2048, F = 5632, weights in memory), dense time over sparse time at 95, 80 and 60 % active:
/// f32 0.98, -, 1.26; bf16 0.93, 1.00, 1.21; q8 0.96, 1.01, 1.08; q4 0.96, 1.07, 1.21.
///
/// In a batch, where a row is read for all tokens that use it, arithmetic decides, and so the share of a token, not of the union. Times at 40,
/// 60 and 80 % active, 2, 4 and 16 tokens: bf16 1.29 0.97 1.03, 1.06 0.85 0.88, 0.97 0.76 0.75; q8 1.06 1.37 1.61, 0.90 1.17 1.34, 0.81
/// 1.03 1.14. (f32 and q4 were measured at 10 % alone, where they gain as much.)
fn break_even(weights: WeightFormat, tokens: usize) -> f32 {
    match weights {
        WeightFormat::F32 | WeightFormat::Bf16 if tokens > 1 => 0.40,
        WeightFormat::Q8 | WeightFormat::Q4 if tokens > 1 => 0.50,
        WeightFormat::F32 => 0.92,
        WeightFormat::Bf16 => 0.80,
        WeightFormat::Q8 => 0.84,
        WeightFormat::Q4 => 0.90,
    }
}

/// The share of active neurons below which a prompt's FFN runs sparse ([`EngineOptions::sparse_prompt`](crate::EngineOptions)): the less,
/// the faster dense products are.
///
/// Measured on one thread of a Zen 5 (avx512, model 350m with bf16 weights, 512 tokens), time of the dense prompt over that of the sparse
/// one at 50 and 10 % active: exact 0.95 and 1.48, bf16 0.69 and 1.25; the break-even lies on the line between. q8 was not measured: its dense products are
/// faster than those of bf16, so it has less.
pub(crate) fn prompt_break_even(prefill: Prefill) -> f32 {
    match prefill {
        Prefill::Exact => 0.44,
        Prefill::Bf16 => 0.22,
        Prefill::Q8 => 0.2,
    }
}

/// The share of survivors below which the filtered FFN is taken rather than the sparse one: the 8-bit copy costs a quarter of an f32 gate and
/// half of a bf16 one, before the gaps.
///
/// Measured in the same way, sparse time over filtered time at 16.9, 43, 54 and 73 % survivors: f32 1.77, 1.13, -, 0.93; bf16 1.26, 0.96, 0.88,
/// 0.85. Quantised weights have no filter.
fn most_survivors(weights: WeightFormat) -> f32 {
    match weights {
        WeightFormat::F32 => 0.58,
        WeightFormat::Bf16 => 0.37,
        WeightFormat::Q8 | WeightFormat::Q4 => 0.0,
    }
}

/// A token's weight in a running share: it looks back on some 16 tokens. One token of a layer near the break-even may be far
/// off; a text that changes its kind is followed within a sentence.
const NEW: f32 = 1.0 / 16.0;

/// Tokens without the filter after which the next one shows what it lets through now: at most a 64th of the tokens runs another way than the
/// best.
const LOOK_AGAIN: u8 = 64;

/// The running shares of a layer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Recent {
    active: Option<f32>,
    /// Of the tokens that ran filtered, while they are recent.
    survivors: Option<f32>,
    /// Since the last of those.
    tokens_since: u8,
}

impl Recent {
    /// Whether the next token is to run sparse, or filtered. The first one does: it costs little where it does not pay, and a layer under
    /// RELU is rarely dense.
    pub fn sparse_pays(self, weights: WeightFormat, tokens: usize) -> bool {
        self.active.is_none_or(|share| share < break_even(weights, tokens))
    }

    /// Whether it is to run filtered, where sparse pays.
    pub fn filter_pays(self, weights: WeightFormat) -> bool {
        self.survivors.is_none_or(|share| share < most_survivors(weights))
    }

    /// Takes the shares of a token in: of its active neurons, and of the filter's survivors if it ran filtered.
    pub fn observe(&mut self, active: f32, survivors: Option<f32>) {
        let mix = |old: Option<f32>, new: f32| Some(old.map_or(new, |old| old + NEW * (new - old)));
        self.active = mix(self.active, active);
        self.tokens_since = if survivors.is_some() { 0 } else { self.tokens_since + 1 };
        if let Some(survivors) = survivors {
            self.survivors = mix(self.survivors, survivors);
        } else if self.tokens_since == LOOK_AGAIN {
            (self.survivors, self.tokens_since) = (None, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_followed_from_sparse_to_dense_and_back() {
        for (weights, tokens) in WeightFormat::ALL.into_iter().flat_map(|weights| [(weights, 1), (weights, 16)]) {
            let mut recent = Recent::default();
            assert!(recent.sparse_pays(weights, tokens), "auto {weights}: the first token runs sparse");
            // Dense from the first token on: known after one.
            recent.observe(1.0, None);
            assert!(!recent.sparse_pays(weights, tokens));
            // 90 % zeros from now on; the share falls by a sixteenth of the way a token.
            let steps = (1..100).find(|_| {
                recent.observe(0.1, None);
                recent.sparse_pays(weights, tokens)
            });
            let expected = ((break_even(weights, tokens) - 0.1) / 0.9).ln() / (1.0 - NEW).ln();
            let what = "tokens until a layer that became sparse runs sparse";
            assert_eq!(steps, Some(expected.ceil() as usize), "auto {weights}, {tokens} at once: {what}");
            // One dense token among sparse ones changes nothing.
            (0..50).for_each(|_| recent.observe(0.1, None));
            recent.observe(1.0, None);
            assert!(recent.sparse_pays(weights, tokens));
        }
    }

    #[test]
    fn a_filter_that_lets_too_much_through_is_left_and_looked_at_again() {
        let weights = WeightFormat::Bf16;
        let mut recent = Recent::default();
        assert!(recent.filter_pays(weights), "auto-filtered: the first token runs filtered");
        recent.observe(0.3, Some(0.9));
        assert!(!recent.filter_pays(weights));
        // Without the filter for a while; then one token looks.
        let tokens = (1..1000).find(|_| {
            recent.observe(0.3, None);
            recent.filter_pays(weights)
        });
        assert_eq!(tokens, Some(LOOK_AGAIN as usize), "auto-filtered: tokens until the next look");
        // What it sees counts alone.
        recent.observe(0.1, Some(0.15));
        assert!(recent.filter_pays(weights));
        recent.observe(0.1, Some(0.9));
        assert!(recent.filter_pays(weights), "auto-filtered: one token changes nothing");
    }
}
