//! Which model a `-m` means, and which activation a flag means.

use crate::terminal::complain;
use anyhow::{Context, bail};
use infer::{
    ActivationFormat, CpuEngine, CudaEngine, Engine, EngineOptions, KvFormat, Prefill, PromptFfn, Residence, Resident,
    WeightFormat,
};
use kernels::{Level, Team};
use model::hf::Folder;
use model::{HiddenAct, Positive, Psi};
use std::path::{Path, PathBuf};
use tensor::Device;

/// Opens a Hugging Face folder, or the newest checkpoint of a run folder.
pub fn open(path: &Path) -> anyhow::Result<Folder> {
    Ok(Folder::open(folder(path)?)?)
}

/// The model in the folder, to generate with; tells what was kept on disk.
pub fn engine(folder: &Folder, options: EngineOptions, resident: Resident) -> anyhow::Result<CpuEngine> {
    Ok(CpuEngine::open(folder.dir(), options, resident, &mut |text| complain(format_args!("note: {text}")))?)
}

/// An engine of either kind, and how it computes with its weights, in words.
pub struct AnyEngine {
    /// To generate with.
    pub engine: Box<dyn Engine>,
    /// For reports: see [`formats_in_words`].
    pub formats: String,
    /// Bytes of the filters of the gates.
    pub filter_bytes: usize,
}

/// [`engine`] on the device that was asked for. A GPU takes the weights from the checkpoint, whatever is kept on disk beside it.
pub fn engine_on(
    device: &Device,
    folder: &Folder,
    options: EngineOptions,
    resident: Resident,
) -> anyhow::Result<AnyEngine> {
    let Device::Cuda(gpu) = device else {
        let formats = formats_in_words(&options, Team::current().level());
        let engine = engine(folder, options, resident)?;
        let formats = match engine.residence() {
            Residence::Converted => formats,
            from_disk => format!("{formats}, {from_disk} from disk"),
        };
        let filter_bytes = engine.filter_bytes();
        return Ok(AnyEngine { engine: Box::new(engine), formats, filter_bytes });
    };
    if resident == Resident::From(0) {
        bail!("--disk-cache always: a GPU takes the weights from the checkpoint, and keeps none on disk");
    }
    let prefill = if options.prefill == Prefill::Bf16 { ", prefill bf16 (tensor cores)" } else { "" };
    let kv = if options.kv == KvFormat::Bf16 { ", KV cache bf16" } else { "" };
    let formats = format!("{}, {} weights{prefill}{kv}", gpu.name(), options.weights);
    let engine = CudaEngine::open(folder.dir(), options, gpu)?;
    Ok(AnyEngine { engine: Box::new(engine), formats, filter_bytes: 0 })
}

/// The Hugging Face folder that `path` names.
pub fn folder(path: &Path) -> anyhow::Result<PathBuf> {
    if path.join("config.json").is_file() {
        return Ok(path.to_path_buf());
    }
    if !path.exists() {
        bail!("{}: there is no such folder", path.display());
    }
    let checkpoints = path.join("checkpoints");
    let whole = |folder: &PathBuf| train::checkpoint::read_state(folder).is_ok();
    let newest = if checkpoints.is_dir() {
        train::checkpoint::list(&checkpoints)?.into_iter().rev().map(|(_, folder)| folder).find(whole)
    } else {
        None
    };
    newest.with_context(|| {
        let why = if !path.is_dir() {
            "is a file; a model is a folder: a run, or one with config.json and model.safetensors".to_string()
        } else if checkpoints.is_dir() {
            "a run that has no checkpoint yet".to_string()
        } else {
            format!("neither a model (no config.json) nor a run with a checkpoint{}", runs_in(path))
        };
        format!("{}: {why}", path.display())
    })
}

/// `; did you mean runs/a, runs/b?` where a folder holds runs, or is a checkpoint of one.
pub fn runs_in(path: &Path) -> String {
    let below = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let above = path.parent().filter(|folder| folder.ends_with("checkpoints")).and_then(Path::parent);
    let mut runs: Vec<String> = below
        .chain(above.map(Path::to_path_buf))
        .filter(|p| p.join("checkpoints").is_dir())
        .map(|p| p.display().to_string())
        .collect();
    runs.sort();
    if runs.is_empty() { String::new() } else { format!("; did you mean {}?", runs.join(", ")) }
}

/// Bytes are the only tokens so far: anything else needs a tokenizer that is not there.
pub fn require_bytes(folder: &Folder) -> anyhow::Result<()> {
    let vocab_size = folder.config().vocab_size;
    if vocab_size != 256 {
        bail!(
            "{}: vocab_size = {vocab_size}: only byte models (256) can read and write text so far",
            folder.dir().display()
        );
    }
    Ok(())
}

/// Refuses samples that would all be the same one.
pub fn require_draws(flag: &str, psi: Psi, temperature: f32) -> anyhow::Result<()> {
    if temperature == 0.0 && !psi.draws() {
        bail!(
            "{flag}: --temp 0 and {psi} draw nothing, so all samples would be the same: raise --temp, or draw with \
             --activation stochastic:P"
        );
    }
    Ok(())
}

/// Refuses an activation under which a text has not one likelihood but one for each draw.
pub fn require_deterministic(flag: &str, psi: Psi) -> anyhow::Result<()> {
    if psi.draws() {
        bail!("{flag} {psi}: must be an activation that draws nothing, such as relu");
    }
    Ok(())
}

/// The grammar of an `--activation` flag, for its help.
pub const PSI_GRAMMAR: &str = "relu, silu, gelu, relu2, tanh, stochastic:P or stochastic:P:A,B[:POSITIVE]";

/// The value of an `--activation` flag: an activation that draws nothing by its name; `stochastic:P`, for the paper's pair; or
/// `stochastic:P:A,B` or `stochastic:P:A,B:POSITIVE`, with B of probability P and A else below 0, and from 0 on `identity`
/// or `silu`.
pub fn parse_psi(text: &str) -> Result<Psi, String> {
    if let Some(act) = HiddenAct::of_name(text) {
        return Ok(act.into());
    }
    let Some(rest) = text.strip_prefix("stochastic:") else {
        return Err(format!("expected {PSI_GRAMMAR}"));
    };
    let parts: Vec<&str> = rest.split(':').collect();
    let (p, pair, positive) = match parts[..] {
        [p] => (p, None, None),
        [p, pair] => (p, Some(pair), None),
        [p, pair, positive] => (p, Some(pair), Some(positive)),
        _ => return Err("too many colons: expected stochastic:P:A,B:POSITIVE at most".to_string()),
    };
    let p = match p.parse() {
        Ok(p) if (0.0..=1.0).contains(&p) => p,
        _ => return Err(format!("P, the probability of the second of the pair, is {p:?}: not a number from 0 to 1")),
    };
    let Some(pair) = pair else { return Ok(Psi::stochastic(p)) };
    let member = |name: &str| {
        let names = HiddenAct::ALL.map(HiddenAct::name).join(", ");
        HiddenAct::of_name(name).ok_or_else(|| format!("{name:?} in the pair is not one of {names}"))
    };
    let Some((a, b)) = pair.split_once(',') else {
        return Err(format!("the pair {pair:?} is not two names with a comma, such as relu,silu"));
    };
    let positive = match positive {
        None | Some("identity") => Positive::Identity,
        Some("silu") => Positive::Silu,
        Some(other) => return Err(format!("the positive side {other:?} is not identity or silu")),
    };
    Ok(Psi::Stochastic { p, negative: [member(a)?, member(b)?], positive })
}

/// The value of a `--weights` flag.
pub fn parse_weights(name: &str) -> Result<WeightFormat, String> {
    let format = WeightFormat::ALL.into_iter().find(|format| format.to_string() == name);
    format.ok_or_else(|| "expected f32, bf16, bf16-packed, q8 or q4".to_string())
}

/// The value of an `--activations` flag.
pub fn parse_activations(name: &str) -> Result<ActivationFormat, String> {
    let formats = [ActivationFormat::Exact, ActivationFormat::Q8];
    formats.into_iter().find(|format| format.to_string() == name).ok_or_else(|| "expected exact or q8".to_string())
}

/// The value of a `--kv` flag.
pub fn parse_kv(name: &str) -> Result<KvFormat, String> {
    [KvFormat::F32, KvFormat::Bf16]
        .into_iter()
        .find(|kv| kv.to_string() == name)
        .ok_or("expected f32 or bf16".to_string())
}

/// The value of a flag that is a share.
pub fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("expected a share, 0 to 1".to_string()),
    }
}

/// The value of a `--prefill` flag.
pub fn parse_prefill(name: &str) -> Result<Prefill, String> {
    let ways = Prefill::ALL;
    ways.into_iter().find(|way| way.to_string() == name).ok_or_else(|| "expected exact, bf16 or q8".to_string())
}

/// The value of a `--disk-cache` flag.
pub fn parse_resident(name: &str) -> Result<Resident, String> {
    match name {
        "auto" => Ok(Resident::DEFAULT),
        "always" => Ok(Resident::From(0)),
        "never" => Ok(Resident::Off),
        _ => Err("expected auto, always or never".to_string()),
    }
}

/// How an engine computes with its weights, for reports: `q8 weights, activations q8 (VNNI), prefill bf16 (dot product)`.
pub fn formats_in_words(options: &EngineOptions, level: Level) -> String {
    let activations = match options.activations {
        ActivationFormat::Exact => "",
        ActivationFormat::Q8 if level.has_vnni() => ", activations q8 (VNNI)",
        ActivationFormat::Q8 => ", activations q8 (without VNNI)",
    };
    let prefill = match options.prefill {
        Prefill::Exact => "",
        Prefill::Q8 if level.has_vnni() => ", prefill q8 (VNNI)",
        Prefill::Q8 if level.has_dot_bf16() => ", prefill q8 (without VNNI: bf16)",
        Prefill::Q8 => ", prefill q8 (without VNNI: exact)",
        Prefill::Bf16 if level.has_dot_bf16() => ", prefill bf16 (dot product)",
        Prefill::Bf16 => ", prefill bf16 (no dot product: exact)",
    };
    let kv = match options.kv {
        KvFormat::F32 => "",
        KvFormat::Bf16 => ", KV cache bf16",
    };
    let prompt_ffn = match options.prompt_ffn {
        PromptFfn::Dense => "",
        PromptFfn::Sparse => ", sparse prompt",
        PromptFfn::Auto => ", sparse prompt where it pays",
    };
    format!("{} weights{activations}{prefill}{prompt_ffn}{kv}", options.weights)
}

#[cfg(test)]
mod tests {
    use super::*;
    use infer::{Sampler, Samples, Sampling};
    use model::hf::{Meta, save};
    use model::{Config, Weights, preset};
    use std::ops::ControlFlow;

    /// What a command does with a GPU, but for the GPU: the interpreter stands for it.
    #[test]
    fn an_engine_opens_on_the_device_that_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { d_model: 32, d_ff: 48, n_layers: 1, ..preset("tiny", 256).unwrap() };
        save(dir.path(), &Weights::init(&config, 1), &Meta::new(Psi::Relu)).unwrap();
        let folder = open(dir.path()).unwrap();
        let gpu = Device::Cuda(cuda_testing::device());
        let options = EngineOptions { weights: WeightFormat::Bf16, ..EngineOptions::new(Psi::Relu) };
        let prompt = b"In ".map(u32::from);
        let write = |device: &Device| {
            let mut any = engine_on(device, &folder, options.clone(), Resident::DEFAULT).unwrap();
            let mut sampler = Sampler::new(Sampling::GREEDY).unwrap();
            let mut samples = Samples::new(any.engine.as_mut(), &prompt);
            let text = samples.draw(&mut sampler, 6, &[], 0, |_| ControlFlow::Continue(())).unwrap();
            (text.tokens, any.formats)
        };
        let ((on_cpu, _), (on_gpu, formats)) = (write(&Device::Cpu), write(&gpu));
        assert_eq!(on_gpu, on_cpu);
        assert_eq!(formats, "the interpreter, bf16 weights");
        let refused = |options: EngineOptions, resident| {
            engine_on(&gpu, &folder, options, resident).err().expect("refused").to_string()
        };
        let message = refused(options.clone(), Resident::From(0));
        assert!(message.starts_with("--disk-cache always: "), "{message}");
        let message = refused(EngineOptions { weights: WeightFormat::Q8, ..options.clone() }, Resident::Off);
        assert_eq!(message, "weights = q8: must be f32 or bf16 on a GPU");
    }

    #[test]
    fn activations_on_the_command_line() {
        for act in HiddenAct::ALL {
            assert_eq!(parse_psi(act.name()), Ok(act.into()));
        }
        let pair = |positive| Psi::Stochastic { p: 0.5, negative: [HiddenAct::Relu, HiddenAct::Gelu], positive };
        assert_eq!(parse_psi("stochastic:0.3"), Ok(Psi::stochastic(0.3)));
        assert_eq!(parse_psi("stochastic:0.3:relu,silu:identity"), Ok(Psi::stochastic(0.3)));
        assert_eq!(parse_psi("stochastic:0.5:relu,gelu"), Ok(pair(Positive::Identity)));
        assert_eq!(parse_psi("stochastic:0.5:relu,gelu:silu"), Ok(pair(Positive::Silu)));
        for (text, word) in [
            ("mish", "stochastic:P:A,B[:POSITIVE]"),
            ("stochastic", "relu2"),
            ("stochastic:", "not a number"),
            ("stochastic:1.5", "\"1.5\""),
            ("stochastic:nan:relu,silu", "\"nan\""),
            ("stochastic:0.5:relu", "comma"),
            ("stochastic:0.5:", "comma"),
            ("stochastic:0.5:relu,mish", "\"mish\" in the pair is not one of relu, silu, gelu, relu2, tanh"),
            ("stochastic:0.5:relu,silu,gelu", "\"silu,gelu\""),
            ("stochastic:0.5:relu,silu:gelu", "\"gelu\" is not identity or silu"),
            ("stochastic:0.5:relu,silu:silu:x", "too many colons"),
        ] {
            let message = parse_psi(text).unwrap_err();
            assert!(message.contains(word), "{text}: {message}");
        }
    }
}
