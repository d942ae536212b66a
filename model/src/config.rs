//! Sizes of a model, the presets, and the checks that every size passes before anything is built.

use serde::{Deserialize, Serialize};

/// The sizes of a model. Names are those of the field; Hugging Face's own are in `hf/config_json.rs`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// V: rows of the embedding table.
    pub vocab_size: usize,
    /// C: width of the residual stream.
    pub d_model: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// H: query heads.
    pub n_heads: usize,
    /// K: key-value heads; divides H.
    pub n_kv_heads: usize,
    /// D: width of a head, even. Usually C / H.
    pub head_dim: usize,
    /// F: hidden width of the FFN.
    pub d_ff: usize,
    /// T at most: positions that the RoPE table holds.
    pub max_seq_len: usize,
    /// Base of the rotary frequencies: `theta^(-2 i / D)`.
    pub rope_theta: f64,
    /// Long-context scaling of the rotary frequencies, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// Added to the mean square in RMSNorm.
    pub norm_eps: f32,
    /// Whether the LM head is the embedding table.
    pub tie_embeddings: bool,
}

/// Llama 3's scaling of the rotary frequencies: wavelengths beyond `original_max_seq_len / low_freq_factor` are stretched by
/// `factor`, those below `original_max_seq_len / high_freq_factor` are kept, those between are blended.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeScaling {
    /// Stretch of the long wavelengths.
    pub factor: f64,
    /// See above.
    pub low_freq_factor: f64,
    /// See above; larger than `low_freq_factor`.
    pub high_freq_factor: f64,
    /// Context of the model before scaling.
    pub original_max_seq_len: usize,
}

/// A size that no model can have.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{field} = {value}: {expected}")]
pub struct ConfigError {
    /// The field's name.
    pub field: &'static str,
    /// What it was.
    pub value: String,
    /// What it must be.
    pub expected: String,
}

impl Config {
    /// Fails on the first size that does not fit, naming the field.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let fail = |field, value: &dyn ToString, expected: &str| {
            Err(ConfigError { field, value: value.to_string(), expected: expected.to_string() })
        };
        // Beyond any model, and small enough that no count of parameters or bytes leaves 64 bits.
        const WIDEST: usize = 1 << 20;
        const LONGEST: usize = 1 << 24;
        for (field, value, most) in [
            ("vocab_size", self.vocab_size, LONGEST),
            ("d_model", self.d_model, WIDEST),
            // The layer is 16 bits of a draw's counter.
            ("n_layers", self.n_layers, u16::MAX as usize),
            ("n_heads", self.n_heads, WIDEST),
            ("n_kv_heads", self.n_kv_heads, WIDEST),
            ("head_dim", self.head_dim, WIDEST / self.n_heads.clamp(1, WIDEST)),
            ("d_ff", self.d_ff, WIDEST),
            ("max_seq_len", self.max_seq_len, LONGEST),
        ] {
            if value == 0 || value > most {
                return fail(field, &value, &format!("must be 1 to {most}"));
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return fail("n_kv_heads", &self.n_kv_heads, &format!("must divide n_heads = {}", self.n_heads));
        }
        if !self.head_dim.is_multiple_of(2) {
            return fail("head_dim", &self.head_dim, "must be even: RoPE turns pairs");
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return fail("rope_theta", &self.rope_theta, "must be positive");
        }
        if !(self.norm_eps.is_finite() && self.norm_eps > 0.0) {
            return fail("norm_eps", &self.norm_eps, "must be positive");
        }
        if let Some(s) = self.rope_scaling {
            let positive = [s.factor, s.low_freq_factor, s.high_freq_factor].iter().all(|f| f.is_finite() && *f > 0.0);
            if !positive || s.high_freq_factor <= s.low_freq_factor || s.original_max_seq_len == 0 {
                return fail(
                    "rope_scaling",
                    &format!("{s:?}"),
                    "factors must be positive, high_freq_factor > low_freq_factor",
                );
            }
        }
        Ok(())
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        crate::parameter_specs(self).map(|p| p.shape.elements()).sum()
    }

    /// H D: width of all query heads.
    pub fn q_width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// K D: width of all key (and of all value) heads.
    pub fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }
}

/// The presets' names and what they are for, smallest first.
pub const PRESETS: [(&str, &str); 8] = [
    ("tiny", "1M parameters: seconds to train"),
    ("5m", "5M parameters: a small text in minutes; the quick start"),
    ("15m", "15M parameters"),
    ("60m", "60M parameters"),
    ("125m", "125M parameters at a vocabulary of 32000: GPT-2 small's class"),
    ("350m", "350M parameters at a vocabulary of 32000"),
    ("1.5b", "the paper's LM1.5B class"),
    ("3b", "the paper's LM3B class"),
];

/// The preset `name` with a vocabulary of `vocab_size`, or `None` if there is none of that name (see [`PRESETS`]).
/// The parameter counts in the names hold for bytes as tokens up to `60m`, for 32000 tokens from `125m`, and for Llama 3's
/// 128256 for the paper's two sizes, whose shapes the paper does not give: these are the usual ones of that size.
pub fn preset(name: &str, vocab_size: usize) -> Option<Config> {
    // d_model, n_layers, n_heads, n_kv_heads, d_ff, max_seq_len, rope_theta, tied. d_ff is near 8/3 d_model, the usual
    // width of a gated FFN, rounded to a multiple of 128 (8 cache lines of f32); in `tiny` it is 4 d_model, so that there is
    // an FFN to be sparse.
    let (d_model, n_layers, n_heads, n_kv_heads, d_ff, max_seq_len, rope_theta, tie_embeddings) = match name {
        "tiny" => (128, 4, 4, 2, 512, 256, 10_000.0, true),
        "5m" => (256, 6, 8, 4, 768, 512, 10_000.0, false),
        "15m" => (384, 8, 6, 3, 1152, 1024, 10_000.0, false),
        "60m" => (640, 12, 10, 5, 1792, 1024, 10_000.0, false),
        "125m" => (768, 12, 12, 4, 2048, 2048, 10_000.0, false),
        "350m" => (1024, 24, 16, 8, 2816, 2048, 10_000.0, false),
        "1.5b" => (2048, 28, 16, 8, 5632, 8192, 500_000.0, true),
        "3b" => (3072, 28, 24, 8, 8192, 8192, 500_000.0, true),
        _ => return None,
    };
    Some(Config {
        vocab_size,
        d_model,
        n_layers,
        n_heads,
        n_kv_heads,
        head_dim: d_model / n_heads,
        d_ff,
        max_seq_len,
        rope_theta,
        rope_scaling: None,
        norm_eps: 1e-5,
        tie_embeddings,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_near_the_sizes_in_their_names() {
        let sizes = [1e6, 5e6, 15e6, 60e6, 125e6, 350e6, 1.5e9, 3e9];
        for ((name, _), size) in PRESETS.into_iter().zip(sizes) {
            // The vocabularies that `preset` states.
            let vocab_size = if size < 1e8 {
                256
            } else if size < 1e9 {
                32_000
            } else {
                128_256
            };
            let config = preset(name, vocab_size).unwrap();
            config.validate().unwrap();
            let ratio = config.parameters() as f64 / size;
            assert!((0.85..1.15).contains(&ratio), "preset {name}: {} parameters", config.parameters());
            // A token's heads together are as wide as the residual stream, as is usual.
            assert_eq!(config.q_width(), config.d_model, "preset {name}: heads");
        }
        assert_eq!(preset("7b", 256), None);
    }

    #[test]
    fn validate_names_the_field() {
        let good = preset("tiny", 256).unwrap();
        type Edit = fn(&mut Config);
        let cases: [(Edit, &str); 9] = [
            (|c| c.vocab_size = 0, "vocab_size = 0"),
            (|c| c.n_kv_heads = 3, "n_kv_heads = 3: must divide n_heads = 4"),
            (|c| c.head_dim = 7, "head_dim = 7: must be even"),
            (|c| c.n_layers = 1 << 16, "n_layers = 65536: must be 1 to 65535"),
            (|c| c.head_dim = 1 << 19, "head_dim = 524288: must be 1 to 262144"),
            (|c| c.rope_theta = f64::NAN, "rope_theta = NaN"),
            (|c| c.norm_eps = 0.0, "norm_eps = 0"),
            (|c| c.max_seq_len = 0, "max_seq_len = 0"),
            (
                |c| {
                    c.rope_scaling = Some(RopeScaling {
                        factor: 8.0,
                        low_freq_factor: 4.0,
                        high_freq_factor: 4.0,
                        original_max_seq_len: 64,
                    })
                },
                "rope_scaling = ",
            ),
        ];
        for (edit, words) in cases {
            let mut config = good.clone();
            edit(&mut config);
            let message = config.validate().unwrap_err().to_string();
            assert!(message.starts_with(words), "validate: {message:?} does not begin with {words:?}");
        }
    }
}
