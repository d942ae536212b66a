//! The activation of a model, and where its draws come from.

use serde::{Deserialize, Serialize};
use tensor::{Activation, Fixed, MaskSite};

/// psi, the FFN's activation (arXiv 2509.22358).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Psi {
    /// `max(x, 0)`.
    Relu,
    /// `x sigmoid(x)`.
    Silu,
    /// `x Phi(x)`, Phi the normal distribution function: the exact form (arXiv 1606.08415).
    Gelu,
    /// `max(x, 0)^2` (arXiv 2109.08668).
    Relu2,
    /// `tanh(x)`.
    Tanh,
    /// StochA(p): for `x < 0`, the second of the pair with probability p, else the first; for `x >= 0` no draw.
    /// [`Psi::stochastic`] is the paper's.
    Stochastic {
        /// The probability of the second, `0..=1`.
        p: f64,
        /// The pair; RELU and SILU if a file does not say.
        #[serde(default = "papers_pair")]
        negative: [HiddenAct; 2],
        /// For `x >= 0`; the identity if a file does not say.
        #[serde(default)]
        positive: Positive,
    },
}

/// An activation that draws nothing, by the name that a Hugging Face config has for it in `hidden_act`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HiddenAct {
    /// `relu`.
    Relu,
    /// `silu`.
    Silu,
    /// `gelu`: the exact form. `gelu_new` and `gelu_pytorch_tanh` are an approximation of it that is not implemented.
    Gelu,
    /// `relu2`.
    Relu2,
    /// `tanh`.
    Tanh,
}

/// What a stochastic activation does with `x >= 0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Positive {
    /// x itself.
    #[default]
    Identity,
    /// `x sigmoid(x)`.
    Silu,
}

const PAPERS_PAIR: [HiddenAct; 2] = [HiddenAct::Relu, HiddenAct::Silu];

fn papers_pair() -> [HiddenAct; 2] {
    PAPERS_PAIR
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
    /// The paper's StochA(p): for `x < 0`, SILU with probability p, else RELU; the identity for `x >= 0`.
    pub const fn stochastic(p: f64) -> Psi {
        Psi::Stochastic { p, negative: PAPERS_PAIR, positive: Positive::Identity }
    }

    /// Whether it draws: two passes of the same tokens are then the same only for the same seed and sample.
    pub fn draws(&self) -> bool {
        matches!(self, Psi::Stochastic { .. })
    }

    /// What a model of this activation is meant to run with, if no switch says otherwise: itself if it draws nothing; else RELU
    /// if that is in the pair, because zeros are what the pair is for; else the first of the pair.
    pub fn hidden_act(&self) -> HiddenAct {
        match self {
            Psi::Relu => HiddenAct::Relu,
            Psi::Silu => HiddenAct::Silu,
            Psi::Gelu => HiddenAct::Gelu,
            Psi::Relu2 => HiddenAct::Relu2,
            Psi::Tanh => HiddenAct::Tanh,
            Psi::Stochastic { negative, .. } if negative.contains(&HiddenAct::Relu) => HiddenAct::Relu,
            Psi::Stochastic { negative: [first, _], .. } => *first,
        }
    }
}

impl HiddenAct {
    /// All there are.
    pub const ALL: [HiddenAct; 5] =
        [HiddenAct::Relu, HiddenAct::Silu, HiddenAct::Gelu, HiddenAct::Relu2, HiddenAct::Tanh];

    /// As in files and flags: `relu`.
    pub fn name(self) -> &'static str {
        match self {
            HiddenAct::Relu => "relu",
            HiddenAct::Silu => "silu",
            HiddenAct::Gelu => "gelu",
            HiddenAct::Relu2 => "relu2",
            HiddenAct::Tanh => "tanh",
        }
    }

    /// The one of this name.
    pub fn of_name(name: &str) -> Option<HiddenAct> {
        HiddenAct::ALL.into_iter().find(|act| act.name() == name)
    }
}

impl From<HiddenAct> for Psi {
    fn from(act: HiddenAct) -> Psi {
        match act {
            HiddenAct::Relu => Psi::Relu,
            HiddenAct::Silu => Psi::Silu,
            HiddenAct::Gelu => Psi::Gelu,
            HiddenAct::Relu2 => Psi::Relu2,
            HiddenAct::Tanh => Psi::Tanh,
        }
    }
}

impl From<HiddenAct> for Fixed {
    fn from(act: HiddenAct) -> Fixed {
        match act {
            HiddenAct::Relu => Fixed::Relu,
            HiddenAct::Silu => Fixed::Silu,
            HiddenAct::Gelu => Fixed::Gelu,
            HiddenAct::Relu2 => Fixed::Relu2,
            HiddenAct::Tanh => Fixed::Tanh,
        }
    }
}

impl std::fmt::Display for Psi {
    /// `RELU`, `StochA(0.5)` for the paper's pair, `StochA(0.3; relu|gelu, positive silu)` for another.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Psi::Stochastic { p, negative: PAPERS_PAIR, positive: Positive::Identity } => write!(f, "StochA({p})"),
            Psi::Stochastic { p, negative: [first, second], positive } => {
                let positive = if *positive == Positive::Silu { ", positive silu" } else { "" };
                write!(f, "StochA({p}; {}|{}{positive})", first.name(), second.name())
            }
            fixed => f.write_str(&fixed.hidden_act().name().to_uppercase()),
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
        assert!(!psi.draws(), "PsiAt::deterministic: {psi} draws");
        PsiAt { psi, seed: 0, first_token: 0, step: 0 }
    }

    /// The kernel's activation for `layer`.
    pub fn layer(&self, layer: usize) -> Activation {
        let Psi::Stochastic { p, negative, positive } = self.psi else {
            return Fixed::from(self.psi.hidden_act()).into();
        };
        let PsiAt { seed, first_token, step, .. } = *self;
        let site = MaskSite { seed, first_token, layer: layer as u16, stream: STREAM_ACTIVATION, step };
        let positive = match positive {
            Positive::Identity => tensor::Positive::Identity,
            Positive::Silu => tensor::Positive::Silu,
        };
        Activation::pair(p, negative.map(Fixed::from), positive, site)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIR: Psi =
        Psi::Stochastic { p: 0.3, negative: [HiddenAct::Relu, HiddenAct::Gelu], positive: Positive::Silu };

    #[test]
    fn activations_in_words() {
        let gelu_tanh = [HiddenAct::Gelu, HiddenAct::Tanh];
        for (psi, words, hidden_act) in [
            (Psi::Relu, "RELU", "relu"),
            (Psi::Relu2, "RELU2", "relu2"),
            (Psi::stochastic(0.5), "StochA(0.5)", "relu"),
            (PAIR, "StochA(0.3; relu|gelu, positive silu)", "relu"),
            (
                Psi::Stochastic { p: 1.0, negative: gelu_tanh, positive: Positive::Identity },
                "StochA(1; gelu|tanh)",
                "gelu",
            ),
        ] {
            assert_eq!((psi.to_string().as_str(), psi.hidden_act().name()), (words, hidden_act));
        }
    }

    #[test]
    fn what_older_files_say_is_the_papers_pair() {
        let read = |text: &str| serde_json::from_str::<Psi>(text).unwrap();
        assert_eq!(read(r#"{"kind":"stochastic","p":0.5}"#), Psi::stochastic(0.5));
        assert_eq!(read(r#"{"kind":"silu"}"#), Psi::Silu);
        for psi in [PAIR, Psi::stochastic(0.25), Psi::Relu2] {
            assert_eq!(read(&serde_json::to_string(&psi).unwrap()), psi);
        }
        let text = r#"{"kind":"stochastic","p":0.3,"negative":["relu","gelu"],"positive":"silu"}"#;
        assert_eq!(serde_json::to_string(&PAIR).unwrap(), text);
        for act in HiddenAct::ALL {
            let text = serde_json::to_string(&act).unwrap();
            assert_eq!((text.trim_matches('"'), HiddenAct::of_name(act.name())), (act.name(), Some(act)));
        }
    }
}
