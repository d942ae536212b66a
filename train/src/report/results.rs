//! What was measured with the trained model: `results.json` of a run.

use super::ReportError;
use crate::events::Sample;
use crate::files;
use serde::{Deserialize, Serialize};
use std::path::Path;

const FILE: &str = "results.json";

/// Measurements after training, written by whoever makes them and shown by the report. Every part may be empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Results {
    /// One entry for each set of questions.
    pub questions: Vec<Questions>,
    /// One entry for each way to decode: a weight format, a number of threads.
    pub decoding: Vec<Decoding>,
    /// Texts that the finished model wrote.
    pub samples: Vec<Sample>,
}

/// Answers to a set of questions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Questions {
    /// Which: `held-out phrasings`.
    pub title: String,
    /// How they were answered, in words: `RELU, sparse FFN, greedy`.
    pub how: String,
    /// Questions.
    pub asked: usize,
    /// Right answers.
    pub correct: usize,
    /// The share of questions, 0 to 1, that the most frequent answer alone gets right.
    pub baseline: f64,
    /// The same by kind of question.
    pub kinds: Vec<Kind>,
    /// A few questions as they went.
    pub examples: Vec<Example>,
}

/// The questions of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kind {
    /// `birthplace`.
    pub name: String,
    /// Questions.
    pub asked: usize,
    /// Right answers.
    pub correct: usize,
    /// The share, 0 to 1, that the most frequent answer of the kind gets right.
    pub baseline: f64,
}

/// One question, as it went.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Example {
    /// The question.
    pub prompt: String,
    /// A right answer.
    pub expected: String,
    /// The model's.
    pub answer: String,
    /// Whether that counts as right.
    pub correct: bool,
}

/// The speed of decoding, dense and exactly sparse, of the same tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Decoding {
    /// What ran: `f32, 2 threads, avx512`.
    pub title: String,
    /// How it was measured, in words: `160 tokens, 5 times by turns, medians`.
    pub how: String,
    /// Tokens/s with the dense FFN, the whole model.
    pub dense: f64,
    /// Tokens/s with the sparse FFN, the whole model.
    pub sparse: f64,
    /// The share of zeros in psi(g), 0 to 1, over these tokens.
    pub zeros: f64,
    /// Time of the dense FFN over that of the sparse one, the FFN alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ffn_ratio: Option<f64>,
    /// What the bytes of the FFN allow at most with the gate read in full: `3 / (1 + 2 (1 - zeros))`.
    pub ceiling: f64,
}

impl Results {
    /// Writes `results.json` into the folder of a run, in place of an earlier one.
    pub fn write(&self, run: &Path) -> Result<(), ReportError> {
        let mut json = serde_json::to_vec_pretty(self).expect("results are made of numbers and strings");
        json.push(b'\n');
        Ok(files::replace(&run.join(FILE), &json)?)
    }

    /// Those of a run, if it has any.
    pub fn read(run: &Path) -> Result<Option<Results>, ReportError> {
        let path = run.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read(&path).map_err(|reason| files::Error::new("read", &path, reason))?;
        let results = serde_json::from_slice(&text);
        results.map(Some).map_err(|e| ReportError::Results { path, reason: e.to_string() })
    }
}
