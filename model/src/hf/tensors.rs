//! The parameters in one file, or in shards.

use super::config_json::Fields;
use super::{Error, INDEX, Mismatch, WEIGHTS, read_json};
use crate::{Config, EMBED_TOKENS, LM_HEAD, Weights, parameter_specs};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use tensor::Tensor;
use tensor::safetensors::File;

/// Tensors that old checkpoints carry and transformers ignores: they follow from the config.
const IGNORED_SUFFIX: &str = ".self_attn.rotary_emb.inv_freq";

/// The parameters of a folder, looked up and checked, but still in their files.
pub(super) struct Parameters {
    pub files: Files,
    /// With `tie_embeddings` as it is handled here: see [`load`](super::load).
    pub config: Config,
    names: Vec<String>,
}

impl Parameters {
    /// Those for `config` in the folder `dir`.
    pub fn open(dir: &Path, mut config: Config) -> Result<Parameters, Error> {
        let files = Files::open(dir)?;
        // A tied checkpoint with a head of its own is read as untied, and tied again if the two are equal.
        let said_tied = config.tie_embeddings;
        config.tie_embeddings = said_tied && !files.at.contains_key(LM_HEAD);

        let mismatch = files.compare(&config)?;
        if !mismatch.is_empty() {
            return Err(Error::Tensors { path: files.path, mismatch });
        }
        if said_tied && !config.tie_embeddings {
            let values = |name| elements(&files.file(name).load(name)?, name);
            config.tie_embeddings = values(EMBED_TOKENS)? == values(LM_HEAD)?;
        }
        let names = parameter_specs(&config).map(|spec| spec.name).collect();
        Ok(Parameters { files, config, names })
    }

    /// Parameter number `index` of the fixed order.
    pub fn load(&self, index: usize) -> Result<Tensor, Error> {
        let name = &self.names[index];
        Ok(self.files.file(name).load(name)?)
    }

    /// All of them.
    pub fn load_all(&self) -> Result<Weights, Error> {
        let tensors = (0..self.names.len()).map(|index| self.load(index)).collect::<Result<_, _>>()?;
        Ok(Weights::from_tensors(&self.config, tensors))
    }
}

fn elements(tensor: &Tensor, name: &str) -> Result<Vec<f32>, Error> {
    let failed = |reason| tensor::safetensors::Error::Device { name: name.to_string(), reason };
    Ok(tensor.to_vec::<f32>().map_err(failed)?)
}

/// Open files, and which of them holds which tensor.
pub(super) struct Files {
    /// The one file, or the index.
    pub path: PathBuf,
    pub files: Vec<File>,
    at: BTreeMap<String, usize>,
}

impl Files {
    /// [`WEIGHTS`] if it is there, else the shards of [`INDEX`]: in that order, as transformers looks.
    fn open(dir: &Path) -> Result<Files, Error> {
        let (single, index) = (dir.join(WEIGHTS), dir.join(INDEX));
        if single.exists() {
            let file = File::open(&single)?;
            let at = file.names().map(|name| (name.to_string(), 0)).collect();
            Ok(Files { path: single, files: vec![file], at })
        } else if index.exists() {
            Files::open_shards(dir, index)
        } else {
            Err(Error::NoWeights { dir: dir.to_path_buf() })
        }
    }

    fn open_shards(dir: &Path, path: PathBuf) -> Result<Files, Error> {
        let json = read_json(&path)?;
        let fields = Fields::new(&path, &json);
        let map = fields.required("weight_map", fields.object("weight_map")?, "an object from tensors to files")?;
        let (mut files, mut opened, mut at) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        for name in map.names() {
            let shard = map.required(name, map.text(name)?, "the name of a file")?;
            let mut components = Path::new(shard).components();
            let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
            if !plain {
                return Err(map.refuse(name, "the name of a file in the same folder"));
            }
            let number = match opened.get(shard) {
                Some(&number) => number,
                None => {
                    files.push(File::open(dir.join(shard))?);
                    opened.insert(shard.to_string(), files.len() - 1);
                    files.len() - 1
                }
            };
            files[number].shape(name)?; // the index may name a tensor that the shard lacks
            at.insert(name.to_string(), number);
        }
        Ok(Files { path, files, at })
    }

    /// The file that holds `name`, which must be in one.
    fn file(&self, name: &str) -> &File {
        &self.files[self.at[name]]
    }

    /// How the tensors differ from those of `config`, by names and shapes.
    fn compare(&self, config: &Config) -> Result<Mismatch, Error> {
        let mut mismatch = Mismatch::default();
        let mut left: BTreeMap<&str, usize> = self.at.iter().map(|(name, &file)| (name.as_str(), file)).collect();
        for spec in parameter_specs(config) {
            match left.remove(spec.name.as_str()) {
                None => mismatch.missing.push(spec.name),
                Some(file) => {
                    let found = self.files[file].shape(&spec.name)?;
                    if *found != *spec.shape {
                        mismatch.shapes.push((spec.name, found.to_vec(), spec.shape));
                    }
                }
            }
        }
        mismatch.unexpected =
            left.into_keys().filter(|name| !name.ends_with(IGNORED_SUFFIX)).map(str::to_string).collect();
        Ok(mismatch)
    }
}
