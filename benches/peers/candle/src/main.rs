//! candle's Llama: a peer of turns.py. usage: candle-peer FOLDER f32|bf16
//!
//! Reads lines `decode PROMPT TOKENS` and `prefill TOKENS`; answers each with tokens a second. Threads: RAYON_NUM_THREADS.

use anyhow::{Context, bail};
use candle_core::{DType, Device, IndexOp, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama, LlamaConfig};
use std::io::BufRead;
use std::time::Instant;

struct Peer {
    model: Llama,
    config: Config,
    dtype: DType,
}

impl Peer {
    fn load(folder: &str, dtype: DType) -> anyhow::Result<Peer> {
        let config: LlamaConfig = serde_json::from_slice(&std::fs::read(format!("{folder}/config.json"))?)?;
        let config = config.into_config(false);
        let tensors = candle_core::safetensors::load(format!("{folder}/model.safetensors"), &Device::Cpu)?;
        let weights = VarBuilder::from_tensors(tensors, dtype, &Device::Cpu);
        Ok(Peer { model: Llama::load(weights, &config)?, config, dtype })
    }

    fn feed(&self, tokens: &[u32], position: usize, cache: &mut Cache) -> anyhow::Result<u32> {
        let logits = self.model.forward(&Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?, position, cache)?;
        Ok(logits.i(0)?.argmax(0)?.to_scalar()?)
    }

    fn turn(&self, line: &str) -> anyhow::Result<f64> {
        let mut cache = Cache::new(true, self.dtype, &self.config, &Device::Cpu)?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |i: usize| words.get(i).context("a number is missing")?.parse::<usize>().context("not a number");
        let tokens = |n: usize| (0..n as u32).map(|i| 3 + i * 31 % 31_000).collect::<Vec<_>>();
        match words[..] {
            ["decode", ..] => {
                let (prompt, n) = (number(1)?, number(2)?);
                let mut token = self.feed(&tokens(prompt), 0, &mut cache)?;
                let start = Instant::now();
                for i in 0..n {
                    token = self.feed(&[token], prompt + i, &mut cache)?;
                }
                Ok(n as f64 / start.elapsed().as_secs_f64())
            }
            ["prefill", ..] => {
                let n = number(1)?;
                let start = Instant::now();
                self.feed(&tokens(n), 0, &mut cache)?;
                Ok(n as f64 / start.elapsed().as_secs_f64())
            }
            _ => bail!("{line}: expected decode or prefill"),
        }
    }
}


fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, folder, format] = &arguments[..] else { bail!("usage: candle-peer FOLDER f32|bf16") };
    let dtype = if format == "bf16" { DType::BF16 } else { DType::F32 };
    let peer = Peer::load(folder, dtype)?;
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        println!("{}", peer.turn(&line?)?);
    }
    Ok(())
}
