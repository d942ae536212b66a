//! From text to tokens. Bytes are the only vocabulary yet.

/// A vocabulary and its way of cutting text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tokenizer {
    /// A token is a byte of the UTF-8 text: a vocabulary of 256, the same numbers for training and generation.
    Bytes,
}

impl Tokenizer {
    /// The name that stands in cache keys and checkpoints.
    pub fn name(self) -> &'static str {
        match self {
            Tokenizer::Bytes => "bytes",
        }
    }

    /// V: tokens are below it.
    pub fn vocab_size(self) -> usize {
        match self {
            Tokenizer::Bytes => 256,
        }
    }

    /// The token between two documents: the byte 0, which text does not use. A prompt may begin with it, and a model that
    /// has learnt from many documents ends one with it.
    pub fn separator(self) -> u32 {
        match self {
            Tokenizer::Bytes => 0,
        }
    }

    /// Calls `push` with each token of `text`.
    pub fn encode_with<E>(self, text: &str, mut push: impl FnMut(u32) -> Result<(), E>) -> Result<(), E> {
        match self {
            Tokenizer::Bytes => text.bytes().try_for_each(|byte| push(byte as u32)),
        }
    }

    /// The tokens of `text`.
    pub fn encode(self, text: &str) -> Vec<u32> {
        match self {
            Tokenizer::Bytes => text.bytes().map(u32::from).collect(),
        }
    }

    /// The text of `tokens`; what is no valid UTF-8 becomes the replacement character. Tokens beyond the vocabulary too.
    pub fn decode(self, tokens: &[u32]) -> String {
        match self {
            Tokenizer::Bytes => {
                let bytes: Vec<u8> = tokens.iter().map(|&t| u8::try_from(t).unwrap_or(0xFF)).collect(); // 0xFF: never in UTF-8
                String::from_utf8_lossy(&bytes).into_owned()
            }
        }
    }
}
