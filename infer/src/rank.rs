//! Best of N: which of several texts the model itself finds most likely.

use crate::{Engine, Error, FfnMode, Scorer};
use model::Psi;
use std::collections::HashMap;

/// A text's place among others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ranked {
    /// Its index among the texts that were ranked.
    pub index: usize,
    /// `ln P(text | prompt) / tokens` in nats; `None` for a text without tokens.
    pub score: Option<f64>,
}

/// Ranks `texts` after `prompt` by length-normalised log-likelihood, the best first:
///
/// ```text
/// score(t) = 1/L sum_i ln P(t_i | prompt, t_1 .. t_(i-1))          L tokens, temperature 1, no filters
/// ```
///
/// This is the selector of best-of-N in arXiv 2509.22358. P is that of a deterministic pass under `psi`, whatever the texts were
/// drawn with: so two texts are compared by one model, and a lucky mask or a low temperature is no merit. To count the token
/// that ended a text as a part of it, pass [`Generation::drawn`](crate::Generation::drawn): a text that was broken off is then
/// judged by its tokens, one that ended also by its end.
///
/// Equal scores rank in the order of `texts`, and so do texts without tokens, which come last. Equal texts have equal scores,
/// and are scored once. The prompt is fed once. The engine runs with `psi` only meanwhile; it forgets all positions.
///
/// Errors: [`Error::Option`] for a `psi` that draws; those of [`Engine::log_probs`].
pub fn rank(engine: &mut dyn Engine, psi: Psi, prompt: &[u32], texts: &[Vec<u32>]) -> Result<Vec<Ranked>, Error> {
    if psi.draws() {
        let expected = "an activation that draws nothing, such as relu".to_string();
        return Err(Error::Option { field: "rank_under", value: psi.to_string(), expected });
    }
    let (was, ffn) = (engine.options().psi, engine.options().ffn);
    if psi != was {
        engine.set_activation(psi, FfnMode::of(psi))?;
    }
    let ranked = rank_deterministic(engine, prompt, texts);
    if psi != was {
        engine.set_activation(was, ffn)?;
    } else {
        engine.reset(0);
    }
    ranked
}

fn rank_deterministic(engine: &mut dyn Engine, prompt: &[u32], texts: &[Vec<u32>]) -> Result<Vec<Ranked>, Error> {
    let mut scorer = Scorer::new(engine, prompt)?;
    let mut known: HashMap<&[u32], Option<f64>> = HashMap::new();
    let mut ranked = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let score = match known.get(text.as_slice()) {
            Some(&score) => score,
            None => {
                let score = scorer.score(text)?.per_token();
                known.insert(text, score);
                score
            }
        };
        ranked.push(Ranked { index, score });
    }
    // Stable. No score is NaN; minus infinity, for a text that the pass excludes, is still a score.
    ranked.sort_by(|a, b| match (a.score, b.score) {
        (Some(a), Some(b)) => b.total_cmp(&a),
        (a, b) => b.is_some().cmp(&a.is_some()),
    });
    Ok(ranked)
}
