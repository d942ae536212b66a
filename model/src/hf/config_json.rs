//! `config.json`: the table of fields, and the reading of each.
//!
//! | here                       | in the file                                        | if missing             |
//! |----------------------------|----------------------------------------------------|------------------------|
//! | `vocab_size` ... `d_ff`    | `vocab_size`, `hidden_size`, `num_hidden_layers`, `num_attention_heads`, `intermediate_size` | refused |
//! | `n_kv_heads`               | `num_key_value_heads`                              | `num_attention_heads`  |
//! | `head_dim`                 | `head_dim`                                         | `hidden_size / num_attention_heads` |
//! | `max_seq_len`              | `max_position_embeddings`                          | refused                |
//! | `rope_theta`, `rope_scaling` | the same, or in `rope_parameters`                | 10000, none            |
//! | `norm_eps`                 | `rms_norm_eps`                                     | 1e-6                   |
//! | `tie_embeddings`           | `tie_word_embeddings`                              | false                  |
//! | [`Meta::hidden_act`]       | `hidden_act`                                       | refused                |
//!
//! The defaults are those of transformers' `LlamaConfig`, for fields whose default nobody doubts.

use super::{Error, Meta};
use crate::{Config, ConfigError, HiddenAct, Psi, RopeScaling, Switch};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Our fields that [`Config::validate`] may refuse, by the names that the file has for them.
const NAMES: [(&str, &str); 8] = [
    ("d_model", "hidden_size"),
    ("n_layers", "num_hidden_layers"),
    ("n_heads", "num_attention_heads"),
    ("n_kv_heads", "num_key_value_heads"),
    ("d_ff", "intermediate_size"),
    ("max_seq_len", "max_position_embeddings"),
    ("norm_eps", "rms_norm_eps"),
    ("tie_embeddings", "tie_word_embeddings"),
];

/// Version of the object under `silurian`.
const VERSION: u32 = 1;

/// The activation in full, under the key `silurian`: what `hidden_act` cannot say.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Silurian {
    version: u32,
    psi: Psi,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    switch: Option<Switch>,
    /// Rounds of Philox4x32 behind the draws.
    philox_rounds: u32,
}

/// The file's text.
pub(super) fn write(c: &Config, meta: &Meta) -> String {
    let scaling = c.rope_scaling.map(|s| {
        json!({
            "rope_type": "llama3",
            "factor": s.factor,
            "low_freq_factor": s.low_freq_factor,
            "high_freq_factor": s.high_freq_factor,
            "original_max_position_embeddings": s.original_max_seq_len,
        })
    });
    let mut rope_parameters = scaling.clone().unwrap_or_else(|| json!({ "rope_type": "default" }));
    rope_parameters["rope_theta"] = json!(c.rope_theta);
    // The shortest decimal that reads back as the same f32, and not that of the f64 next to it.
    let norm_eps: f64 = c.norm_eps.to_string().parse().expect("a float's text is a float");
    let eos = match meta.eos_token_ids.as_slice() {
        [] => Value::Null,
        [one] => json!(one),
        several => json!(several),
    };
    let mut json = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "max_position_embeddings": c.max_seq_len,
        "hidden_act": meta.hidden_act(),
        "rms_norm_eps": norm_eps,
        // For transformers before 5, and from 5 on.
        "rope_theta": c.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": rope_parameters,
        "tie_word_embeddings": c.tie_embeddings,
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": meta.bos_token_id,
        "eos_token_id": eos,
        "torch_dtype": "float32",
        "dtype": "float32",
    });
    if meta.psi.draws() || meta.switch.is_some() {
        let philox_rounds = kernels::philox::ROUNDS;
        json["silurian"] = json!(Silurian { version: VERSION, psi: meta.psi, switch: meta.switch, philox_rounds });
    }
    format!("{json:#}\n")
}

/// The config and the rest, from the parsed file.
pub(super) fn read(path: &Path, json: &Map<String, Value>) -> Result<(Config, Meta), Error> {
    let f = Fields::new(path, json);
    refuse_what_is_not_implemented(&f)?;

    let size = |field| f.required(field, f.whole(field)?, "a whole number");
    let (d_model, n_heads) = (size("hidden_size")?, size("num_attention_heads")?);
    let head_dim = match f.whole("head_dim")? {
        Some(head_dim) => head_dim,
        None if n_heads > 0 && d_model.is_multiple_of(n_heads) => d_model / n_heads,
        None => return Err(f.refuse("hidden_size", &format!("a multiple of num_attention_heads = {n_heads}"))),
    };
    let (rope_theta, rope_scaling) = rope(&f)?;
    let config = Config {
        vocab_size: size("vocab_size")?,
        d_model,
        n_layers: size("num_hidden_layers")?,
        n_heads,
        n_kv_heads: f.whole("num_key_value_heads")?.unwrap_or(n_heads),
        head_dim,
        d_ff: size("intermediate_size")?,
        max_seq_len: size("max_position_embeddings")?,
        rope_theta,
        rope_scaling,
        norm_eps: f.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        tie_embeddings: f.flag("tie_word_embeddings")?.unwrap_or(false),
    };
    config.validate().map_err(|ConfigError { field, value, expected }| {
        let name = NAMES.iter().find(|(ours, _)| *ours == field).map_or(field, |(_, theirs)| theirs);
        Error::Field { path: path.to_path_buf(), field: name.to_string(), found: value, expected }
    })?;
    let (psi, switch) = activation(&f)?;
    let (bos_token_id, eos_token_ids) = special_tokens(&f)?;
    Ok((config, Meta { psi, switch, bos_token_id, eos_token_ids }))
}

fn refuse_what_is_not_implemented(f: &Fields) -> Result<(), Error> {
    if f.text("model_type")? != Some("llama") {
        return Err(f.refuse("model_type", "\"llama\""));
    }
    if let Some(architectures) = f.get("architectures")
        && *architectures != json!(["LlamaForCausalLM"])
    {
        return Err(f.refuse("architectures", "[\"LlamaForCausalLM\"]"));
    }
    for field in ["attention_bias", "mlp_bias"] {
        if f.flag(field)?.unwrap_or(false) {
            return Err(f.refuse(field, "false: projections here have no bias"));
        }
    }
    match f.get("quantization_config") {
        Some(_) => Err(f.refuse("quantization_config", "none: only f32, bf16 and f16 parameters are read")),
        None => Ok(()),
    }
}

/// `hidden_act`, and the object under `silurian`, which must agree.
fn activation(f: &Fields) -> Result<(Psi, Option<Switch>), Error> {
    let hidden_act = match f.text("hidden_act")? {
        // transformers' other name of silu.
        Some("swish") => HiddenAct::Silu,
        name => name.and_then(HiddenAct::of_name).ok_or_else(|| {
            let names = HiddenAct::ALL.map(|act| format!("{:?}", act.name())).join(", ");
            f.refuse("hidden_act", &format!("one of {names} (\"gelu\" is the exact form, not its tanh approximation)"))
        })?,
    };
    let Some(s) = f.object("silurian")? else { return Ok((hidden_act.into(), None)) };
    // The version first: it decides what the other fields may be.
    if s.whole("version")? != Some(VERSION as usize) {
        return Err(s.refuse("version", &format!("{VERSION}, the version that this program knows")));
    }
    let parsed: Result<Silurian, _> = serde_json::from_value(Value::Object(s.json.clone()));
    let silurian = parsed.map_err(|e| f.refuse("silurian", &format!("psi, switch and philox_rounds: {e}")))?;
    if silurian.philox_rounds != kernels::philox::ROUNDS {
        let expected = format!("{}, the rounds that this program draws with", kernels::philox::ROUNDS);
        return Err(s.refuse("philox_rounds", &expected));
    }
    if let Psi::Stochastic { p, .. } = silurian.psi
        && !(0.0..=1.0).contains(&p)
    {
        return Err(s.refuse("psi", "p in 0..=1"));
    }
    if let Some(Switch { alpha, .. }) = silurian.switch
        && !(0.0..=1.0).contains(&alpha)
    {
        return Err(s.refuse("switch", "alpha in 0..=1"));
    }
    let meant = super::hidden_act(silurian.psi, silurian.switch);
    if meant != hidden_act {
        let expected = format!("{}, as silurian.psi is {}", json!(meant), silurian.psi);
        return Err(f.refuse("hidden_act", &expected));
    }
    Ok((silurian.psi, silurian.switch))
}

/// The rotary parameters, in either spelling; where both are there they must agree.
fn rope(f: &Fields) -> Result<(f64, Option<RopeScaling>), Error> {
    let (theta, scaling) = (f.number("rope_theta")?, f.object("rope_scaling")?);
    let old = scaling.map(|s| rope_scaling(&s)).transpose()?;
    let Some(parameters) = f.object("rope_parameters")? else {
        return Ok((theta.unwrap_or(10_000.0), old.flatten()));
    };
    let new_theta = parameters.number("rope_theta")?.or(theta).unwrap_or(10_000.0);
    let new = rope_scaling(&parameters)?;
    if theta.is_some_and(|theta| theta != new_theta) {
        return Err(f.refuse("rope_theta", &format!("{new_theta}, as in rope_parameters")));
    }
    if old.is_some_and(|old| old != new) {
        return Err(f.refuse("rope_scaling", "the same as rope_parameters"));
    }
    Ok((new_theta, new))
}

fn rope_scaling(f: &Fields) -> Result<Option<RopeScaling>, Error> {
    if f.number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(f.refuse("partial_rotary_factor", "1: whole heads are turned"));
    }
    // `type` is an older name of `rope_type`.
    let field = if f.get("rope_type").is_some() { "rope_type" } else { "type" };
    match f.text(field)? {
        None | Some("default") => Ok(None),
        Some("llama3") => {
            let number = |field| f.required(field, f.number(field)?, "a number");
            let original = "original_max_position_embeddings";
            Ok(Some(RopeScaling {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                original_max_seq_len: f.required(original, f.whole(original)?, "a whole number")?,
            }))
        }
        Some(_) => Err(f.refuse(field, "\"default\" or \"llama3\"")),
    }
}

fn special_tokens(f: &Fields) -> Result<(Option<u32>, Vec<u32>), Error> {
    let token = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let bos = match f.get("bos_token_id") {
        None => None,
        Some(value) => Some(token(value).ok_or_else(|| f.refuse("bos_token_id", "a token, or null"))?),
    };
    let eos: Option<Vec<u32>> = match f.get("eos_token_id") {
        None => Some(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().map(token).collect(),
        Some(one) => token(one).map(|id| vec![id]),
    };
    Ok((bos, eos.ok_or_else(|| f.refuse("eos_token_id", "a token, a list of tokens, or null"))?))
}

/// The fields of an object in a file, read with errors that name both. `null` counts as missing, as in transformers.
pub(super) struct Fields<'a> {
    path: &'a Path,
    /// `rope_scaling.` for the fields of that object.
    prefix: String,
    json: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(path: &'a Path, json: &'a Map<String, Value>) -> Fields<'a> {
        Fields { path, prefix: String::new(), json }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.json.keys().map(String::as_str)
    }

    fn get(&self, field: &str) -> Option<&'a Value> {
        self.json.get(field).filter(|value| !value.is_null())
    }

    /// The error that says what `field` is and what it must be.
    pub(super) fn refuse(&self, field: &str, expected: &str) -> Error {
        let found = self.get(field).map_or("missing".to_string(), Value::to_string);
        let (path, field) = (self.path.to_path_buf(), format!("{}{field}", self.prefix));
        Error::Field { path, field, found, expected: expected.to_string() }
    }

    pub(super) fn required<T>(&self, field: &str, value: Option<T>, expected: &str) -> Result<T, Error> {
        value.ok_or_else(|| self.refuse(field, expected))
    }

    fn typed<T>(&self, field: &str, expected: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, Error> {
        let value = self.get(field).map(|value| read(value).ok_or_else(|| self.refuse(field, expected)));
        value.transpose()
    }

    fn whole(&self, field: &str) -> Result<Option<usize>, Error> {
        self.typed(field, "a whole number", |v| v.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    fn number(&self, field: &str) -> Result<Option<f64>, Error> {
        self.typed(field, "a number", Value::as_f64)
    }

    fn flag(&self, field: &str) -> Result<Option<bool>, Error> {
        self.typed(field, "true or false", Value::as_bool)
    }

    pub(super) fn text(&self, field: &str) -> Result<Option<&'a str>, Error> {
        self.typed(field, "a string", Value::as_str)
    }

    pub(super) fn object(&self, field: &str) -> Result<Option<Fields<'a>>, Error> {
        let object = self.typed(field, "an object", Value::as_object)?;
        Ok(object.map(|json| Fields { path: self.path, prefix: format!("{}{field}.", self.prefix), json }))
    }
}
