//! From tokens to batches: the split, and which sequences a step sees.

use super::DataError;
use super::cache::Tokens;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use tensor::{Device, Tensor, Uploads, failure};

/// Inputs and targets, u32 `[B, T]` each: the target of a token is the one after it.
pub struct Batch {
    /// The tokens.
    pub inputs: Tensor,
    /// The tokens one further.
    pub targets: Tensor,
}

/// The training and the validation part of a data set, cut into sequences of T tokens.
///
/// The last `val_fraction` of the tokens, documents in their order, is for validation. An epoch of training is a seeded
/// permutation of windows that do not overlap, all shifted by a phase that is drawn for the epoch. Sequence number `i` of
/// the run is a function of (seed, i) alone, so that a resumed run goes on exactly.
pub struct Batches {
    tokens: Tokens,
    /// Training tokens: those before the split.
    train_len: usize,
    seq_len: usize,
    seed: u64,
    /// The order of the epoch that was asked for last.
    order: Option<Epoch>,
    /// Where a batch is put together.
    buffer: (Vec<u32>, Vec<u32>, Vec<u32>),
    /// The way to where it goes.
    uploads: Uploads,
}

struct Epoch {
    number: u64,
    /// Of the first window, in tokens.
    phase: usize,
    windows: Vec<u32>,
}

impl Batches {
    /// Fails if a part is shorter than one sequence and the token after it.
    pub fn new(tokens: Tokens, val_fraction: f64, seq_len: usize, seed: u64) -> Result<Batches, DataError> {
        let val_len = (tokens.len() as f64 * val_fraction).round() as usize;
        let train_len = tokens.len() - val_len;
        for (part, have) in [("training", train_len), ("validation", val_len)] {
            if have < seq_len + 1 {
                return Err(DataError::TooShort { part, have, need: seq_len + 1, seq_len });
            }
        }
        let (buffer, uploads) = (Default::default(), Uploads::new(&Device::Cpu));
        Ok(Batches { tokens, train_len, seq_len, seed, order: None, buffer, uploads })
    }

    /// All tokens as the validation part: to evaluate a model on a text. Fails if that is shorter than one sequence and the
    /// token after it.
    pub fn for_evaluation(tokens: Tokens, seq_len: usize) -> Result<Batches, DataError> {
        if tokens.len() < seq_len + 1 {
            return Err(DataError::TooShort { part: "evaluation", have: tokens.len(), need: seq_len + 1, seq_len });
        }
        let (buffer, uploads) = (Default::default(), Uploads::new(&Device::Cpu));
        Ok(Batches { tokens, train_len: 0, seq_len, seed: 0, order: None, buffer, uploads })
    }

    /// The same batches, on `device`.
    pub fn on(self, device: &Device) -> Batches {
        Batches { uploads: Uploads::new(device), ..self }
    }

    /// All tokens, of both parts.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Tokens of the training part.
    pub fn train_tokens(&self) -> usize {
        self.train_len
    }

    /// Tokens of the validation part.
    pub fn val_tokens(&self) -> usize {
        self.tokens.len() - self.train_len
    }

    /// Sequences of an epoch. One less than fit, where there are several, to leave room for the phase.
    pub fn sequences_per_epoch(&self) -> usize {
        ((self.train_len - 1) / self.seq_len).saturating_sub(1).max(1)
    }

    /// Sequences of the validation part.
    pub fn val_sequences(&self) -> usize {
        (self.val_tokens() - 1) / self.seq_len
    }

    /// The training sequences `first` to `first + count - 1` of the run.
    pub fn train(&mut self, first: u64, count: usize) -> Result<Batch, DataError> {
        let starts = (first..first + count as u64).map(|i| self.start_of(i)).collect::<Vec<_>>();
        self.batch(&starts)
    }

    /// The validation sequences `first` to `first + count - 1`. Panics if there are not so many.
    pub fn val(&mut self, first: usize, count: usize) -> Result<Batch, DataError> {
        assert!(first + count <= self.val_sequences(), "Batches::val: {count} sequences from {first}");
        let starts: Vec<usize> = (first..first + count).map(|i| self.train_len + i * self.seq_len).collect();
        self.batch(&starts)
    }

    /// Where training sequence `i` of the run begins.
    fn start_of(&mut self, i: u64) -> usize {
        let per_epoch = self.sequences_per_epoch() as u64;
        let (number, place) = (i / per_epoch, (i % per_epoch) as usize);
        if self.order.as_ref().is_none_or(|epoch| epoch.number != number) {
            let windows = self.order.take().map_or(Vec::new(), |epoch| epoch.windows);
            self.order = Some(self.epoch(number, windows));
        }
        let epoch = self.order.as_ref().expect("made above");
        epoch.phase + epoch.windows[place] as usize * self.seq_len
    }

    /// Fisher and Yates' shuffle and a phase, from a generator of their own for each (seed, epoch).
    fn epoch(&self, number: u64, mut windows: Vec<u32>) -> Epoch {
        // 2^64 over the golden ratio, odd: epochs of neighbouring seeds do not meet.
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(self.seed ^ (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut below = |n: usize| ((rng.next_u64() as u128 * n as u128) >> 64) as usize;
        let count = self.sequences_per_epoch();
        let phases = (self.train_len - count * self.seq_len).min(self.seq_len);
        let phase = below(phases);
        windows.clear();
        windows.extend(0..count as u32);
        for i in (1..count).rev() {
            windows.swap(i, below(i + 1));
        }
        Epoch { number, phase, windows }
    }

    fn batch(&mut self, starts: &[usize]) -> Result<Batch, DataError> {
        let (window, inputs, targets) = &mut self.buffer;
        window.resize(self.seq_len + 1, 0);
        inputs.clear();
        targets.clear();
        for &start in starts {
            self.tokens.copy(start, window)?;
            inputs.extend_from_slice(&window[..self.seq_len]);
            targets.extend_from_slice(&window[1..]);
        }
        let shape = [starts.len(), self.seq_len];
        let mut there = |tokens: &[u32]| -> Tensor {
            let there = self.uploads.tensor(tokens, shape);
            there.unwrap_or_else(|e| failure::raise("a batch", e))
        };
        Ok(Batch { inputs: there(inputs), targets: there(targets) })
    }
}
