//! The weights in decode layout, kept on disk beside the model, so that the second start has nothing to convert.
//!
//! ```text
//! MODEL/resident/bf16.bin          the parameters as decoding reads them with bf16 weights; one file for each format
//! MODEL/resident/bf16-filter.bin   the filters of the gates of bf16 weights, once they were asked for; f32 and bf16-packed have one too
//! MODEL/resident/source.json       the hash of the model's own files, and when and of which states of them it was taken
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
use bytemuck::cast_slice;
use file::{Kind, Layout};
use kernels::Team;
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

/// The file with the filters of the gates of the model in the folder `dir`, as kept in `format`.
pub fn resident_filter_path(dir: &Path, format: WeightFormat) -> PathBuf {
    dir.join(DIR).join(format!("{format}-filter.bin"))
}

/// Bytes of a model's parameters in decode layout; of packed bf16, if all matrices can be packed.
pub fn resident_bytes(config: &model::Config, format: WeightFormat) -> u64 {
    Kind::Weights.parts(config, format, &[]).iter().map(|&bytes| bytes as u64).sum()
}

/// Bytes of the filters of a model's gates, on disk and in memory: `n_layers F (C + 16)`, and some for the directions.
pub fn filter_bytes(config: &model::Config) -> u64 {
    Kind::Filters.parts(config, WeightFormat::F32, &[]).iter().map(|&bytes| bytes as u64).sum()
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

/// The model in `dir` in the layout of `options`, and its filters if they ask for them: from the files if there are some, else from the
/// checkpoint.
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
    let converted = |folder: &Folder| {
        let tensors = FromTensors(|index| Ok(folder.load(index)?));
        let weights = DecodeWeights::new(folder.config(), options, context, &tensors);
        // The tensors that were converted: their sizes are of no use to decoding.
        tensor::pool::trim();
        weights
    };
    let kept = match resident {
        Resident::From(least) => resident_bytes(folder.config(), options.weights) >= least,
        Resident::Off => false,
    };
    let source = source.inspect_err(|reason| {
        if kept {
            note(format!("{reason}; the weights are not kept on disk"));
        }
    });
    let (true, Ok(source)) = (kept, source) else {
        let weights = converted(&folder)?;
        say_plain(dir, options, &weights, note);
        return Ok(Opened { folder, weights, residence: Residence::Converted });
    };
    let mut kept = Kept::new(&folder, options.weights, source, note);
    let path = resident_path(dir, options.weights);
    let (mut weights, residence) = match kept.open(Kind::Weights, &path) {
        Some(file) => {
            let residence = if file.copied { Residence::Copied } else { Residence::Mapped };
            (DecodeWeights::new(folder.config(), options, context, &file)?, residence)
        }
        None => {
            let weights = converted(&folder)?;
            kept.write(Kind::Weights, &path, &weights.plain(), &weights.bytes());
            (weights, Residence::Converted)
        }
    };
    if options.ffn.has_filter() {
        let path = resident_filter_path(dir, options.weights);
        match kept.open(Kind::Filters, &path) {
            Some(file) => weights.set_filters(&file),
            None => {
                weights.make_filters(&Team::current());
                let filters: Vec<&[u8]> = weights.filters().map(|filter| cast_slice(filter.memory())).collect();
                kept.write(Kind::Filters, &path, &[], &filters);
            }
        }
    }
    say_plain(dir, options, &weights, kept.note);
    Ok(Opened { folder, weights, residence })
}

/// Tells of matrices that were to be packed bf16 and cannot be.
fn say_plain(dir: &Path, options: &EngineOptions, weights: &DecodeWeights, note: &mut dyn FnMut(String)) {
    let (packed, all) = weights.packed_groups();
    if options.weights == WeightFormat::Bf16Packed && packed < all {
        let dir = dir.display();
        note(format!(
            "{dir}: {packed} of {all} groups of matrices are packed; the exponents of the others are too many, and they stay bf16"
        ));
    }
}

/// The files beside a model whose own files are known by their hash.
struct Kept<'a> {
    folder: &'a Folder,
    format: WeightFormat,
    source: Source,
    hash: u128,
    note: &'a mut dyn FnMut(String),
}

impl<'a> Kept<'a> {
    fn new(folder: &'a Folder, format: WeightFormat, mut source: Source, note: &'a mut dyn FnMut(String)) -> Self {
        let hash = source.hash(folder);
        Kept { folder, format, source, hash, note }
    }

    /// The file, if it is there and as it must be.
    fn open(&mut self, kind: Kind, path: &Path) -> Option<FromFile> {
        let layout = Layout::of_file(kind, self.folder.config(), self.format, self.hash, path);
        match layout.open(path) {
            Ok(Some(file)) => {
                // Of files that have changed since they were last hashed, and not in what they contain.
                self.source.remember(self.note);
                let copied = !file.populate();
                let Layout { bytes, plain, .. } = layout;
                Some(FromFile { file: Arc::new(file), bytes, plain, copied })
            }
            Ok(None) => None,
            Err(reason) => {
                (self.note)(format!("{}: {reason}; it is made again", path.display()));
                None
            }
        }
    }

    /// Writes the file for the next start, unless the model was written to since this one began. `plain` as in [`Layout::new`].
    fn write(&mut self, kind: Kind, path: &Path, plain: &[bool], parts: &[&[u8]]) {
        let (dir, path_in_words) = (self.folder.dir().display(), path.display());
        if self.source.changed() {
            return (self.note)(format!("{dir}: written to meanwhile; {path_in_words} is not written"));
        }
        let start = Instant::now();
        match Layout::new(kind, self.folder.config(), self.format, self.hash, plain).write(path, parts) {
            Ok(bytes) => {
                self.source.remember(self.note);
                let (mib, time) = (bytes as f64 / (1 << 20) as f64, start.elapsed().as_secs_f64());
                (self.note)(format!("{path_in_words}: {mib:.0} MiB written in {time:.1} s, for the next start"));
            }
            Err(reason) => {
                let again = match kind {
                    Kind::Weights => "converts again",
                    Kind::Filters => "makes the filters again",
                };
                (self.note)(format!("{path_in_words}: not written: {reason}; the next start {again}"));
            }
        }
    }
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
            let layout = Layout::new(Kind::Weights, &config, format, 7, &converted.plain());
            let path = resident_path(dir.path(), format);
            layout.write(&path, &converted.bytes()).unwrap();
            let file = Arc::new(layout.open(&path).unwrap().expect("it was written"));
            let mut logits = Vec::new();
            for copied in [false, true] {
                let (bytes, plain) = (layout.bytes.clone(), layout.plain.clone());
                let source = FromFile { file: file.clone(), bytes, plain, copied };
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

    #[test]
    fn mapped_and_copied_filters_are_those_that_were_written() {
        let (dir, config) = (tempfile::tempdir().unwrap(), preset("tiny", 256).unwrap());
        let weights = Weights::init(&config, 2);
        for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Bf16Packed] {
            let options = EngineOptions { weights: format, context: Some(16), ..EngineOptions::new(Psi::Relu) };
            let tensors = FromTensors(|index: usize| Ok(weights.tensors()[index].clone()));
            let layers = || DecodeWeights::new(&config, &options, 16, &tensors).unwrap();
            let mut made = layers();
            made.make_filters(&Team::current());
            fn bytes(weights: &DecodeWeights) -> Vec<&[u8]> {
                weights.filters().map(|filter| cast_slice(filter.memory())).collect()
            }
            assert_eq!(bytes(&made).len(), config.n_layers);
            let layout = Layout::new(Kind::Filters, &config, format, 7, &[]);
            let path = resident_filter_path(dir.path(), format);
            layout.write(&path, &bytes(&made)).unwrap();
            let file = Arc::new(layout.open(&path).unwrap().expect("it was written"));
            let mapped = file.bytes().as_ptr_range();
            for copied in [false, true] {
                let mut read = layers();
                let (file, ranges) = (file.clone(), layout.bytes.clone());
                read.set_filters(&FromFile { file, bytes: ranges, plain: Vec::new(), copied });
                // Nothing is made where there is one.
                read.make_filters(&Team::current());
                for (read, made) in bytes(&read).into_iter().zip(bytes(&made)) {
                    assert!(read == made, "{format}, copied {copied}");
                    assert_eq!(mapped.contains(&read.as_ptr()), !copied, "{format}: where the filter lies");
                }
            }
        }
    }
}
