//! What can go wrong between a prompt and its text.

use crate::FfnMode;
use model::Psi;

/// Why a prompt, an option or a step was refused. The engine is as it was before the call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More tokens than there are positions left.
    #[error(
        "{tokens} tokens{} do not fit in a context of {context}",
        if *position > 0 { format!(" after position {position}") } else { String::new() }
    )]
    Context {
        /// Tokens of the call: the length of a prompt.
        tokens: usize,
        /// Positions in the cache before the call.
        position: usize,
        /// The most positions that there are.
        context: usize,
    },
    /// A token number that the vocabulary does not have.
    #[error("token {token} at position {position} is not in a vocabulary of {vocab_size}")]
    Token {
        /// The number.
        token: u32,
        /// Where it was to go.
        position: usize,
        /// V.
        vocab_size: usize,
    },
    /// There is no last token whose logits could be given.
    #[error("the prompt is empty: at least one token is needed to begin")]
    EmptyPrompt,
    /// The sparse FFN leaves neurons out because RELU makes them 0; another activation does not.
    #[error("the {ffn} FFN is exact for RELU only, and this model runs with {psi}: run it dense, or switch it to RELU")]
    SparseNeedsRelu {
        /// Sparse or filtered.
        ffn: FfnMode,
        /// What the model was to run with.
        psi: Psi,
    },
    /// An option out of its range.
    #[error("{field} = {value}: must be {expected}")]
    Option {
        /// The option's name.
        field: &'static str,
        /// What it was.
        value: String,
        /// Its range.
        expected: String,
    },
    /// A logit from which no distribution can be made.
    #[error("at position {position}, the logit of token {token} is {value}: no token can be drawn")]
    Logit {
        /// Position of the token to be drawn.
        position: usize,
        /// The token whose logit it is.
        token: u32,
        /// NaN, or infinity; or minus infinity, if no logit is above it.
        value: f32,
    },
    /// A model's folder could not be read.
    #[error(transparent)]
    Checkpoint(Box<model::hf::Error>),
    /// A GPU has failed, or has too little memory; or a weight could not be read from one.
    #[error(transparent)]
    Device(#[from] cuda::Error),
}

impl From<model::hf::Error> for Error {
    fn from(error: model::hf::Error) -> Error {
        Error::Checkpoint(Box::new(error)) // boxed: it is three times as large as the others
    }
}
