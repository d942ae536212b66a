//! What a model costs: parameters, arithmetic and memory, by formulas. For `silurian inspect` and for reports.

use crate::{Config, Precision};

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

/// Bytes of training memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainingMemory {
    /// The parameters.
    pub parameters: u64,
    /// In bf16, the copies that products read: of all parameters but norms and a token table that is not the LM head too.
    pub copies: u64,
    /// The gradients of the parameters.
    pub gradients: u64,
    /// AdamW's two moments.
    pub moments: u64,
    /// What the forward keeps for the backward: for each token of a micro-batch and each layer `2 C + 2 H D + 2 K D + 2 F` numbers of the
    /// precision and `2 C + H + 2` of f32, and beside the layers `C` and `C + 2`.
    pub activations: u64,
    /// At the backward's peak, beside that: the gradients of a layer's FFN, `4 F` numbers of the precision and `2 C` of f32 a token; in bf16,
    /// another `C`.
    pub workspace: u64,
}

impl TrainingMemory {
    /// All of it. An estimate: the kernels' scratch is not counted (a few MiB a thread), nor what the pool rounds up.
    pub fn total(&self) -> u64 {
        let TrainingMemory { parameters, copies, gradients, moments, activations, workspace } = *self;
        let parts = [parameters, copies, gradients, moments, activations, workspace];
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
    pub fn training_memory(&self, tokens: usize, precision: Precision) -> TrainingMemory {
        let parameters = F32 * self.parameters() as u64;
        let (c, q, kv, f) = (self.d_model, self.q_width(), self.kv_width(), self.d_ff);
        let factor = precision.dtype().size() as u64;
        let bytes = |factors: usize, wide: usize| {
            (tokens as u64).saturating_mul((factor * factors as u64).saturating_add(F32 * wide as u64))
        };
        // Two normalised; q and the attention's result; k and v; g and u.
        let factors = 2 * c + 2 * q + 2 * kv + 2 * f;
        // Two residuals; lse; two inverse norms.
        let wide = 2 * c + self.n_heads + 2;
        let (copies, rounded_dy) = match precision {
            Precision::F32 => (0, 0),
            Precision::Bf16 => {
                let table = if self.tie_embeddings { 0 } else { self.vocab_size * c };
                let norms = c + 2 * c * self.n_layers;
                (factor * (self.parameters() - norms - table) as u64, c)
            }
        };
        TrainingMemory {
            parameters,
            copies,
            gradients: parameters,
            moments: 2 * parameters,
            // dx of the LM head; the last residual, its inverse norm and the tokens.
            activations: bytes(self.n_layers * factors + c, self.n_layers * wide + c + 2),
            // dh, h, dg, du; dy and dx.
            workspace: bytes(4 * f + rounded_dy, 2 * c),
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
