//! Which layers run sparse under [`FfnMode::Auto`](crate::FfnMode::Auto), and which filtered under
//! [`FfnMode::AutoFiltered`](crate::FfnMode::AutoFiltered); and which layers of a prompt run sparse.

use crate::{Prefill, WeightFormat};

/// The share of active neurons of a token below which [`FfnMode::Auto`](crate::FfnMode::Auto) takes the sparse FFN, for so many tokens at once. Rows
/// with gaps are read more slowly than one stream, which is why the dense form wins where there are few gaps.
///
/// Measured on one thread of a Zen 5 (avx512, C = 2048, F = 5632, weights in memory), dense time over sparse time at 95, 80 and 60 % active:
/// f32 0.98, -, 1.26; bf16 0.93, 1.00, 1.21; q8 0.96, 1.01, 1.08; q4 0.96, 1.07, 1.21.
///
/// In a batch, where a row is read for all tokens that use it, arithmetic decides, and so the share of a token, not of the union. Times of
/// tokens whose zeros are independent, the worst case (`silurian bench sparse --batch`):
///
/// | tokens | f32 at 20, 40, 60 % active | bf16 at 20, 30, 40 % | q8 at 45, 55 % | q4 at 20, 40, 60 % |
/// |-------:|---------------------------:|---------------------:|---------------:|-------------------:|
/// | 2      | 1.67 1.26 1.06             | 1.61 1.38 1.20       | 1.02 0.94      | 1.53 1.09 0.93     |
/// | 4      | 1.48 1.15 1.04             | 1.19 1.01 0.93       | 1.30 1.20      | 1.72 1.38 1.15     |
/// | 8      | - 1.16 -                     | 1.12 0.98 0.96       | -              | -                  |
/// | 16     | 1.21 0.97 0.93             | 1.24 1.12 1.03       | 1.58 1.49      | 2.32 1.76 1.38     |
///
/// Three tokens take as long as four where they run dense. With x rounded to 8 bits sparse gains as much or more: 1, 2, 4, 16 tokens at 60 %
/// active, q8 1.12 0.99 1.09 1.46, q4 1.16 0.98 1.27 1.58. Packed bf16 was not measured: it has the values of bf16.
pub fn sparse_break_even(weights: WeightFormat, tokens: usize) -> f32 {
    match (weights, tokens) {
        (WeightFormat::F32, 0..=1) => 0.92,
        (WeightFormat::Bf16 | WeightFormat::Bf16Packed, 0..=1) => 0.80,
        (WeightFormat::Q8, 0..=1) => 0.84,
        (WeightFormat::Q4, 0..=1) => 0.90,
        (WeightFormat::F32, 2..=4) => 0.60,
        (WeightFormat::F32, _) => 0.35,
        (WeightFormat::Bf16 | WeightFormat::Bf16Packed, 2) => 0.50,
        (WeightFormat::Bf16 | WeightFormat::Bf16Packed, _) => 0.28,
        (WeightFormat::Q8, 2) => 0.46,
        (WeightFormat::Q4, 2) => 0.50,
        (WeightFormat::Q8 | WeightFormat::Q4, _) => 0.65,
    }
}

/// The share of active pairs of token and neuron below which a prompt's FFN runs sparse under
/// [`PromptFfn::Auto`](crate::PromptFfn::Auto): the less, the faster dense products are.
///
/// Measured on one thread of a Zen 5 (avx512, 256 tokens, each with zeros of its own), time of the dense prompt over that of the sparse one: exact, model 125m
/// with bf16 weights, at 50, 30 and 20 % active 0.92, 1.13, 1.25; bf16 at 25, 20, 15 and 10 % 0.90, 0.98, 1.09, 1.19; q8, model 350m with q8 weights, at 25,
/// 15 and 5 % 0.90, 1.13, 1.53.
pub fn prompt_break_even(prefill: Prefill) -> f32 {
    match prefill {
        Prefill::Exact => 0.42,
        Prefill::Bf16 => 0.19,
        Prefill::Q8 => 0.2,
    }
}

/// The share of survivors below which the filtered FFN is taken rather than the sparse one: the 8-bit copy costs a quarter of an f32 gate and
/// half of a bf16 one, before the gaps.
///
/// Measured in the same way, sparse time over filtered time at 16.9, 43, 54 and 73 % survivors: f32 1.77, 1.13, -, 0.93; bf16 1.26, 0.96, 0.88,
/// 0.85. Packed bf16 was not measured: the copy costs 65 % of its gate, so that by bytes it pays below 35 % survivors where that of bf16 pays
/// below 50. Quantised weights have no filter.
fn most_survivors(weights: WeightFormat) -> f32 {
    match weights {
        WeightFormat::F32 => 0.58,
        WeightFormat::Bf16 => 0.37,
        WeightFormat::Bf16Packed => 0.26,
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
        self.sparse_pays_below(sparse_break_even(weights, tokens))
    }

    /// The same with the break-even of another device.
    pub fn sparse_pays_below(self, break_even: f32) -> bool {
        self.active.is_none_or(|share| share < break_even)
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
            let expected = ((sparse_break_even(weights, tokens) - 0.1) / 0.9).ln() / (1.0 - NEW).ln();
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
