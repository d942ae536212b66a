//! Which layers run sparse under [`FfnMode::Auto`](crate::FfnMode::Auto).

/// The share of active neurons below which the sparse FFN is taken, whatever the weights are.
///
/// Measured on one thread of a Zen 5 (avx512, C = 2048, F = 5632, weights in memory), dense time over sparse time, f32 and bf16: at
/// 100 % active 0.96 and 0.87, at 95 % 1.00 and 0.91, at 90 % 1.04 and 0.94, at 80 % 1.13 and 1.00. Rows with gaps are read in groups
/// and those without as one stream, which is why the dense form wins where there are few gaps.
const BREAK_EVEN: f32 = 0.85;

/// A token's weight in the running share: it looks back on some 16 tokens. One token of a layer near the break-even may be far
/// off; a text that changes its kind is followed within a sentence.
const NEW: f32 = 1.0 / 16.0;

/// The running share of active neurons of a layer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Recent(Option<f32>);

impl Recent {
    /// Whether the next token is to run sparse. The first one does: it costs little where it does not pay, and a layer under
    /// RELU is rarely dense.
    pub fn sparse_pays(self) -> bool {
        self.0.is_none_or(|share| share < BREAK_EVEN)
    }

    /// Takes a token's share in, whichever way it ran.
    pub fn observe(&mut self, active: usize, d_ff: usize) {
        let share = active as f32 / d_ff as f32;
        self.0 = Some(self.0.map_or(share, |recent| recent + NEW * (share - recent)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_followed_from_sparse_to_dense_and_back() {
        let mut recent = Recent::default();
        assert!(recent.sparse_pays(), "the first token runs sparse");
        // Dense from the first token on: known after one.
        recent.observe(100, 100);
        assert!(!recent.sparse_pays());
        // 90 % zeros from now on; the share falls by a sixteenth of the way a token.
        let tokens = (1..100).find(|_| {
            recent.observe(10, 100);
            recent.sparse_pays()
        });
        let expected = ((BREAK_EVEN - 0.1) / 0.9).ln() / (1.0 - NEW).ln();
        assert_eq!(tokens, Some(expected.ceil() as usize), "auto: tokens until a layer that became sparse runs sparse");
        // One dense token among sparse ones changes nothing.
        (0..50).for_each(|_| recent.observe(10, 100));
        recent.observe(100, 100);
        assert!(recent.sparse_pays());
    }
}
