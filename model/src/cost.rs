//! What a model costs: parameters, arithmetic and memory, by formulas. For `silurian inspect` and for reports.

use crate::Config;

/// Bytes of an f32.
const F32: u64 = 4;

/// How the parameters are spread. Sums to [`Config::parameters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParameterCounts {
    /// The embedding table, and the LM head unless tied: `V C` each.
    pub embeddings: usize,
    /// One layer: `2 C + 2 C H D + 2 C K D + 3 C F`.
    pub layer: usize,
    /// Of these, the FFN's three projections, `3 C F`: what sparsity saves on.
    pub layer_ffn: usize,
    /// The last norm: `C`.
    pub norm: usize,
}

/// Floating-point operations for one token (a multiplication and an addition are two).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flops {
    /// `2 P + 4 L H D (T + 1) / 2`: P parameters of the projections and of the LM head (not of the look-up), and for each of L
    /// layers the products `Q K^T` and `P V` with the `(T + 1) / 2` positions that a causal query sees on average.
    pub forward: f64,
    /// Twice the forward: a product has a gradient for each factor. Attention's products that are computed again are not counted.
    pub backward: f64,
}

/// Bytes of training memory in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainingMemory {
    /// The parameters.
    pub parameters: u64,
    /// Their gradients.
    pub gradients: u64,
    /// AdamW's two moments.
    pub moments: u64,
    /// What the forward keeps for the backward: for each token of a micro-batch and each layer `4 C + 2 H D + 2 K D + H + 2 F + 2`
    /// numbers, and `2 C + 2` beside the layers.
    pub activations: u64,
    /// At the backward's peak, beside that: the gradients of a layer's FFN, `4 F + 2 C` numbers a token.
    pub workspace: u64,
}

impl TrainingMemory {
    /// All of it. An estimate: the kernels' scratch is not counted (a few MiB a thread), nor what the pool rounds up.
    pub fn total(&self) -> u64 {
        let parts = [self.parameters, self.gradients, self.moments, self.activations, self.workspace];
        parts.into_iter().fold(0, u64::saturating_add)
    }
}

/// Bytes of inference memory in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InferenceMemory {
    /// The parameters.
    pub weights: u64,
    /// Keys and values of one position: `2 L K D` numbers.
    pub kv_cache_per_token: u64,
}

impl Config {
    /// The parameters by place.
    pub fn parameter_counts(&self) -> ParameterCounts {
        let (c, q, kv) = (self.d_model, self.q_width(), self.kv_width());
        let layer_ffn = 3 * c * self.d_ff;
        ParameterCounts {
            embeddings: self.vocab_size * c * if self.tie_embeddings { 1 } else { 2 },
            layer: 2 * c + 2 * c * q + 2 * c * kv + layer_ffn,
            layer_ffn,
            norm: c,
        }
    }

    /// The arithmetic of one token in a sequence of `seq_len`.
    pub fn flops_per_token(&self, seq_len: usize) -> Flops {
        let norms = 2 * self.d_model;
        let products = self.n_layers * (self.parameter_counts().layer - norms) + self.vocab_size * self.d_model;
        let attention = (4 * self.n_layers * self.q_width()) as f64 * (seq_len as f64 + 1.0) / 2.0;
        let forward = 2.0 * products as f64 + attention;
        Flops { forward, backward: 2.0 * forward }
    }

    /// The memory of training with micro-batches of `tokens` (B T) tokens.
    pub fn training_memory(&self, tokens: usize) -> TrainingMemory {
        let parameters = F32 * self.parameters() as u64;
        let (c, q, kv, f) = (self.d_model, self.q_width(), self.kv_width(), self.d_ff);
        // Two residuals, two normalised; q and the attention's result; k and v; lse; g and u; two inverse norms.
        let layer = 4 * c + 2 * q + 2 * kv + self.n_heads + 2 * f + 2;
        // The last residual and dx of the LM head; its inverse norm and the tokens.
        let saved = self.n_layers * layer + 2 * c + 2;
        // dh, h, dg, du; dy and dx.
        let workspace = 4 * f + 2 * c;
        let bytes = |numbers: usize| (F32 * tokens as u64).saturating_mul(numbers as u64);
        TrainingMemory {
            parameters,
            gradients: parameters,
            moments: 2 * parameters,
            activations: bytes(saved),
            workspace: bytes(workspace),
        }
    }

    /// The memory of inference.
    pub fn inference_memory(&self) -> InferenceMemory {
        InferenceMemory {
            weights: F32 * self.parameters() as u64,
            kv_cache_per_token: F32 * (2 * self.n_layers * self.kv_width()) as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{PRESETS, preset};

    #[test]
    fn parameter_counts_add_up() {
        for (name, _) in PRESETS {
            let c = preset(name, 1000).unwrap();
            let n = c.parameter_counts();
            assert_eq!(n.embeddings + c.n_layers * n.layer + n.norm, c.parameters(), "cost: preset {name}");
        }
    }

    /// A case small enough for a pencil: C 2, H 1, K 1, D 2, F 3, V 5, one layer, T 3.
    #[test]
    fn flops_by_hand() {
        let c = crate::Config {
            d_model: 2,
            n_layers: 1,
            n_heads: 1,
            n_kv_heads: 1,
            head_dim: 2,
            d_ff: 3,
            ..preset("tiny", 5).unwrap()
        };
        // q, k, v, o: four 2 x 2; gate, up, down: three 2 x 3; LM head 5 x 2: 44 parameters. Attention: positions 1, 2 and 3
        // see 6 pairs in all, 2 a token, each a dot of 2 and an axpy of 2: 8 flop.
        let flops = c.flops_per_token(3);
        assert_eq!((flops.forward, flops.backward), (2.0 * 44.0 + 2.0 * 8.0, 2.0 * (88.0 + 16.0)));
    }
}
