//! The activation of a model, and where its draws come from.

use serde::{Deserialize, Serialize};
use tensor::{Activation, MaskSite};

/// psi, the FFN's activation (arXiv 2509.22358).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Psi {
    /// `max(x, 0)`.
    Relu,
    /// `x sigmoid(x)`.
    Silu,
    /// StochA(p): for `x < 0`, SILU with probability p, else RELU; the identity for `x >= 0`.
    Stochastic {
        /// The probability of SILU, `0..=1`.
        p: f64,
    },
}

/// An activation that a Hugging Face config can name in `hidden_act`: one that draws nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HiddenAct {
    /// `relu`.
    Relu,
    /// `silu`.
    Silu,
}

/// Swi+FT (arXiv 2509.22358): the activation of the last part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Switch {
    /// The activation after the switch.
    pub to: HiddenAct,
    /// The share of the steps after it, `0..=1`.
    pub alpha: f64,
}

impl Psi {
    /// Whether it draws: two passes of the same tokens are then the same only for the same seed and sample.
    pub fn draws(&self) -> bool {
        matches!(self, Psi::Stochastic { .. })
    }

    /// What a model of this activation is meant to run with: itself if it draws nothing, else RELU.
    pub fn hidden_act(&self) -> HiddenAct {
        match self {
            Psi::Relu | Psi::Stochastic { .. } => HiddenAct::Relu,
            Psi::Silu => HiddenAct::Silu,
        }
    }
}

impl From<HiddenAct> for Psi {
    fn from(act: HiddenAct) -> Psi {
        match act {
            HiddenAct::Relu => Psi::Relu,
            HiddenAct::Silu => Psi::Silu,
        }
    }
}

impl std::fmt::Display for Psi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Psi::Relu => f.write_str("RELU"),
            Psi::Silu => f.write_str("SILU"),
            Psi::Stochastic { p } => write!(f, "StochA({p})"),
        }
    }
}

/// psi together with the coordinates of its draws, except the layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PsiAt {
    /// The activation.
    pub psi: Psi,
    /// The run's seed.
    pub seed: u64,
    /// Training: index of the first token of this batch among those of the optimiser step. Inference: its position.
    pub first_token: u32,
    /// Training: the optimiser step. Inference: the sample's number.
    pub step: u32,
}

/// Which purpose a draw serves: bits 16 and up of the counter's third word.
const STREAM_ACTIVATION: u16 = 0;

impl PsiAt {
    /// An activation that draws nothing. Panics for a stochastic one.
    #[track_caller]
    pub fn deterministic(psi: Psi) -> PsiAt {
        assert!(!matches!(psi, Psi::Stochastic { .. }), "PsiAt::deterministic: {psi} draws");
        PsiAt { psi, seed: 0, first_token: 0, step: 0 }
    }

    /// The kernel's activation for `layer`.
    pub fn layer(&self, layer: usize) -> Activation {
        match self.psi {
            Psi::Relu => Activation::Relu,
            Psi::Silu => Activation::Silu,
            Psi::Stochastic { p } => {
                let PsiAt { seed, first_token, step, .. } = *self;
                let site = MaskSite { seed, first_token, layer: layer as u16, stream: STREAM_ACTIVATION, step };
                Activation::stochastic(p, site)
            }
        }
    }
}
