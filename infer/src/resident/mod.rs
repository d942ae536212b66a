//! The weights in decode layout, kept on disk beside the model, so that the second start has nothing to convert.
//!
//! ```text
//! MODEL/resident/bf16.bin       the parameters as decoding reads them with bf16 weights; one file for each format
//! MODEL/resident/source.json    the hash of the model's own files, and when and of which states of them it was taken
//! ```
//!
//! A file is used if it is whole, undamaged (every byte is hashed when it is opened, by all threads), of this version, and made from
//! the model that is there: from files with the hash that they have now. Else it is made again, and the caller is told why. It
//! is written under another name and renamed, so it is whole or absent, whoever else starts or is killed meanwhile; it may be removed
//! at any time. A folder that cannot be written to, or a full disk, is told and no error.
//!
//! The file is mapped, and decoding reads it where the system keeps it: in its cache of files, once for all processes. That is as fast
//! as memory of the process if the cache has huge pages (see [`MappedFile::populate`]); if it has not, the weights are copied.

mod file;
mod source;

use crate::rows::{FromFile, FromTensors, Parameter};
use crate::weights::DecodeWeights;
use crate::{EngineOptions, Error, WeightFormat};
use file::Layout;
use model::hf::Folder;
use source::Source;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tensor::mapped_file::MappedFile;

/// Whether the weights in decode layout are kept on disk beside the model. See [`resident_path`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resident {
    /// Neither read nor written.
    Off,
    /// Of models that take so many bytes in decode layout or more.
    From(u64),
}

impl Resident {
    /// From 64 MiB on: less than that is converted in a tenth of a second.
    pub const DEFAULT: Resident = Resident::From(64 << 20);
}

/// Where an engine's weights lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residence {
    /// In memory of the process, converted from the checkpoint.
    Converted,
    /// In the mapped file.
    Mapped,
    /// In memory of the process, copied from the file, which the system does not keep in huge pages.
    Copied,
}

impl fmt::Display for Residence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Residence::Converted => "converted",
            Residence::Mapped => "mapped",
            Residence::Copied => "copied",
        })
    }
}

/// The file with the weights of the model in the folder `dir`, as kept in `format`.
pub fn resident_path(dir: &Path, format: WeightFormat) -> PathBuf {
    dir.join(DIR).join(format!("{format}.bin"))
}

/// Bytes of a model's parameters in decode layout.
pub fn resident_bytes(config: &model::Config, format: WeightFormat) -> u64 {
    Parameter::all(config).iter().map(|parameter| parameter.bytes(format) as u64).sum()
}

/// The folder within a model's.
const DIR: &str = "resident";

impl Parameter {
    /// Bytes that it takes in decode layout.
    fn bytes(&self, format: WeightFormat) -> usize {
        self.rows * if self.is_gain { WeightFormat::F32 } else { format }.row_bytes(self.cols)
    }
}

/// What there is of a model: its config, and its weights where they lie.
pub(crate) struct Opened {
    pub folder: Folder,
    pub weights: DecodeWeights,
    pub residence: Residence,
}

/// The model in `dir` in the layout of `options`, from the file if there is one, else from the checkpoint.
pub(crate) fn open(
    dir: &Path,
    options: &EngineOptions,
    resident: Resident,
    note: &mut dyn FnMut(String),
) -> Result<Opened, Error> {
    // In this order: what is hashed and converted are the files that are opened after their states are known.
    let source = Source::now(dir);
    let folder = Folder::open(dir)?;
    let context = options.validate(folder.config())?;
    let from_tensors = |folder: &Folder| {
        let tensors = FromTensors(|index| Ok(folder.load(index)?));
        let weights = DecodeWeights::new(folder.config(), options, context, &tensors);
        // The tensors that were converted: their sizes are of no use to decoding.
        tensor::pool::trim();
        weights
    };
    let converted = |folder: Folder| {
        let weights = from_tensors(&folder)?;
        Ok(Opened { folder, weights, residence: Residence::Converted })
    };
    let Resident::From(least) = resident else { return converted(folder) };
    if resident_bytes(folder.config(), options.weights) < least {
        return converted(folder);
    }
    let mut source = match source {
        Ok(source) => source,
        Err(reason) => {
            note(format!("{reason}; the weights are not kept on disk"));
            return converted(folder);
        }
    };
    let hash = source.hash(&folder);
    let layout = Layout::new(folder.config(), options.weights, hash);
    let path = resident_path(dir, options.weights);
    match layout.open(&path) {
        Ok(Some(file)) => {
            // Of files that have changed since they were last hashed, and not in what they contain.
            source.remember(note);
            let copied = !file.populate();
            let residence = if copied { Residence::Copied } else { Residence::Mapped };
            let from_file = FromFile { file: Arc::new(file), bytes: layout.bytes, copied };
            let weights = DecodeWeights::new(folder.config(), options, context, &from_file)?;
            return Ok(Opened { folder, weights, residence });
        }
        Ok(None) => {}
        Err(reason) => note(format!("{}: {reason}; it is made again", path.display())),
    }
    let opened = converted(folder)?;
    if source.changed() {
        note(format!("{}: written to meanwhile; its weights are not kept on disk", dir.display()));
        return Ok(opened);
    }
    let start = Instant::now();
    match layout.write(&path, &opened.weights.bytes()) {
        Ok(bytes) => {
            source.remember(note);
            let (mib, time) = (bytes as f64 / (1 << 20) as f64, start.elapsed().as_secs_f64());
            note(format!("{}: {mib:.0} MiB written in {time:.1} s, for the next start", path.display()));
        }
        Err(reason) => note(format!("{}: not written: {reason}; the next start converts again", path.display())),
    }
    Ok(opened)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CpuEngine, Engine};
    use model::{Psi, Weights, preset};

    /// Whether a system keeps a file in huge pages is its own affair: both ways are computed with here.
    #[test]
    fn mapped_and_copied_weights_are_those_that_were_written() {
        let (dir, config) = (tempfile::tempdir().unwrap(), preset("tiny", 256).unwrap());
        let weights = Weights::init(&config, 1);
        for format in WeightFormat::ALL {
            let options = EngineOptions { weights: format, context: Some(16), ..EngineOptions::new(Psi::Relu) };
            let tensors = FromTensors(|index: usize| Ok(weights.tensors()[index].clone()));
            let converted = DecodeWeights::new(&config, &options, 16, &tensors).unwrap();
            let (layout, path) = (Layout::new(&config, format, 7), resident_path(dir.path(), format));
            layout.write(&path, &converted.bytes()).unwrap();
            let file = Arc::new(layout.open(&path).unwrap().expect("it was written"));
            let mut logits = Vec::new();
            for copied in [false, true] {
                let source = FromFile { file: file.clone(), bytes: layout.bytes.clone(), copied };
                let read = DecodeWeights::new(&config, &options, 16, &source).unwrap();
                let mapped = file.bytes().as_ptr_range();
                for (read, converted) in read.bytes().into_iter().zip(converted.bytes()) {
                    assert!(read == converted, "{format}, copied {copied}");
                    assert_eq!(mapped.contains(&read.as_ptr()), !copied, "{format}: where the bytes lie");
                    assert_eq!(read.as_ptr() as usize % 64, 0, "{format}: alignment");
                }
                let mut engine = CpuEngine::of(config.clone(), options.clone(), 16, read, Residence::Mapped);
                logits.push(engine.prefill(&[1, 2, 3]).unwrap().to_vec());
                logits.push(engine.decode(4).unwrap().to_vec());
            }
            assert!(logits[..2] == logits[2..], "{format}: logits");
        }
    }
}
