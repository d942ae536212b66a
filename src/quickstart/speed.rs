//! How fast the model writes, with every neuron and with the active ones alone.

use crate::terminal::{bytes, say};
use infer::{CpuEngine, Engine, Generation, Request, Sampler, Sampling, generate};
use kernels::Team;
use std::ops::ControlFlow;
use train::data::Tokenizer;
use train::events::Sample;
use train::report::Decoding;

/// What each text continues: words that the almanac uses before a sentence.
const PROMPT: &str = "In the inn they say that ";

/// Tokens of each text.
const TOKENS: usize = 160;

/// Texts, each written by both; medians count.
const ROUNDS: u32 = 9;

/// Texts that are shown.
const SHOWN: usize = 2;

/// Decodes by turns, so that both meet the same noise, and tells the speeds, what they could be at most, and the texts. All of it as
/// the report shows it; the texts are of a model after `steps`.
pub fn compare(dense: &mut CpuEngine, sparse: &mut CpuEngine, steps: usize) -> anyhow::Result<(Decoding, Vec<Sample>)> {
    let config = dense.config().clone();
    let mut sampler = Sampler::new(Sampling { temperature: 0.7, ..Sampling::GREEDY })?;
    let prompt = Tokenizer::Bytes.encode(PROMPT);
    let mut write = |engine: &mut CpuEngine, sample| {
        let max_tokens = TOKENS.min(config.max_seq_len - prompt.len());
        let request = Request { prompt: &prompt, max_tokens, stop: &[], sample };
        generate(engine, &mut sampler, request, |_| ControlFlow::Continue(()))
    };
    let mut texts = Vec::new();
    let (mut by_dense, mut by_sparse) = (Times::default(), Times::default());
    for round in 0..ROUNDS {
        let (a, b) = (write(dense, round)?, write(sparse, round)?);
        anyhow::ensure!(a.tokens == b.tokens, "dense and sparse decoding differ in text {round}: this is a bug");
        by_dense.add(&a);
        by_sparse.add(&b);
        texts.push(b);
    }

    let how = "RELU, sparse FFN, temperature 0.7";
    let samples: Vec<Sample> = texts[..SHOWN]
        .iter()
        .map(|text| Sample {
            steps_done: steps,
            prompt: PROMPT.to_string(),
            text: Tokenizer::Bytes.decode(&text.tokens),
            how: how.to_string(),
        })
        .collect();
    say(format_args!("\nThe model writes ({how}):"))?;
    for sample in &samples {
        for line in format!("{}{}", sample.prompt, sample.text).lines() {
            say(format_args!("  | {line}"))?;
        }
    }
    let density = texts.iter().filter_map(Generation::mean_density).sum::<f64>() / texts.len() as f64;
    let zeros = 1.0 - density;
    let ffn = (3 * config.n_layers * config.d_ff * config.d_model) as f64;
    // Of the embedding table a token reads one row, unless it is the LM head too.
    let all = (config.parameters() - if config.tie_embeddings { 0 } else { config.vocab_size * config.d_model }) as f64;
    let read = ffn * (1.0 + 2.0 * density) / 3.0;
    let ([dense_token, dense_ffn], [sparse_token, sparse_ffn]) = (by_dense.medians(), by_sparse.medians());
    let micros = |seconds: f64| 1e6 * seconds;
    say(format_args!(
        "\nDecoding, {ROUNDS} texts of {} tokens by turns; both write the same, bit for bit; {:.1} % zeros:",
        texts[0].tokens.len(),
        100.0 * zeros
    ))?;
    say("            a token, end to end          its FFNs alone")?;
    for (name, token, ffn) in [("dense", dense_token, dense_ffn), ("sparse", sparse_token, sparse_ffn)] {
        say(format_args!(
            "  {name:<7} {:>7.0} us {:>7.0} tokens/s   {:>8.0} us",
            micros(token),
            1.0 / token,
            micros(ffn)
        ))?;
    }
    say(format_args!(
        "  ratio   {:>7.2}                     {:>11.2}",
        dense_token / sparse_token,
        dense_ffn / sparse_ffn
    ))?;
    say(format_args!(
        "  ceiling {:>7.2}                     {:>11.2}   by bytes: 3 / (1 + 2 (1 - zeros)) for the FFN",
        all / (all - ffn + read),
        ffn / read
    ))?;
    say(format_args!(
        "The FFNs are {} of {} that a token reads. So small a model lives in the caches, where more than bytes counts.",
        bytes((size_of::<f32>() as f64 * ffn) as u64),
        bytes((size_of::<f32>() as f64 * all) as u64)
    ))?;
    let team = Team::current();
    let decoding = Decoding {
        title: format!("f32, {} threads, {}", team.threads(), team.level()),
        how: format!("{ROUNDS} texts of {} tokens by turns, medians", texts[0].tokens.len()),
        dense: 1.0 / dense_token,
        sparse: 1.0 / sparse_token,
        zeros,
        ffn_ratio: Some(dense_ffn / sparse_ffn),
        ceiling: ffn / read,
    };
    Ok((decoding, samples))
}

/// Seconds a decoded token took.
#[derive(Default)]
struct Times {
    token: Vec<f64>,
    ffn: Vec<f64>,
}

impl Times {
    fn add(&mut self, done: &Generation) {
        let steps = done.decode_steps as f64;
        self.token.push(done.decode.as_secs_f64() / steps);
        self.ffn.push(done.ffn_time.as_secs_f64() / steps);
    }

    /// Of the whole token, and of its FFNs.
    fn medians(&mut self) -> [f64; 2] {
        [&mut self.token, &mut self.ffn].map(|values| {
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        })
    }
}
