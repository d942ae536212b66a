//! Tensors in files, in the safetensors format: eight bytes with the length of a JSON header, the header, the elements.
//!
//! [`write()`] streams a file; [`File`] opens one, checks its header in full, and loads tensors one at a time. A file is
//! input from outside: whatever is wrong with it is an [`Error`] that names the file, the tensor and what was expected.
//! Format: <https://github.com/huggingface/safetensors>, whose crate gives the types of the header's entries.

use crate::mapped_file::{self, MappedFile};
use crate::{DType, Device, Element, MAX_RANK, Shape, Tensor};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorInfo};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// The key of the header that holds text instead of a tensor.
const METADATA: &str = "__metadata__";

/// Bytes before the header: its length.
const LENGTH_BYTES: usize = 8;

/// The most bytes a header may have: the limit of the format's own implementation. One of a model of 1000 tensors has 0.1 MB.
const MAX_HEADER: u64 = 100_000_000;

/// Why tensors cannot be written to a file or read from one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read, or was truncated meanwhile.
    #[error(transparent)]
    File(#[from] mapped_file::Error),
    /// The file cannot be written.
    #[error("{}: cannot be written: {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's words.
        reason: io::Error,
    },
    /// It is no safetensors file, or a damaged one.
    #[error("{}: not a valid safetensors file: {reason}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The entry of a tensor, or its contents, cannot be used.
    #[error("{}: tensor {name}: {reason}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no such tensor.
    #[error("{}: has no tensor {name}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape than the one that is needed.
    #[error("{}: tensor {name} has shape {found:?}, expected {expected}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// As the file has it.
        found: Vec<usize>,
        /// As it is needed.
        expected: Shape,
    },
    /// A tensor could not be brought from its GPU.
    #[error("tensor {name}: {reason}")]
    Device {
        /// The tensor.
        name: String,
        /// The driver's words.
        reason: cuda::Error,
    },
}

/// Writes a file with these tensors, in this order, and these texts, and waits until it is on the disk.
///
/// Equal arguments give equal bytes. One tensor at a time is copied, if it is a view or lies on a GPU; no other memory
/// is taken. An error leaves a part of the file at `path`: write to a temporary name, and rename it afterwards.
pub fn write<'a, S: AsRef<str>>(
    path: impl AsRef<Path>,
    tensors: impl IntoIterator<Item = (S, &'a Tensor)>,
    metadata: &BTreeMap<String, String>,
) -> Result<(), Error> {
    let path = path.as_ref();
    let tensors: Vec<(S, &Tensor)> = tensors.into_iter().collect();
    let header = header_of(path, &tensors, metadata)?;
    let failed = |reason| Error::Write { path: path.to_path_buf(), reason };

    // The buffer gathers the small tensors; large ones bypass it.
    let mut file = BufWriter::with_capacity(1 << 20, fs::File::create(path).map_err(failed)?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
    file.write_all(&header).map_err(failed)?;
    for (name, tensor) in &tensors {
        let local = tensor.to_device(&Device::Cpu);
        let local = local.map_err(|reason| Error::Device { name: name.as_ref().to_string(), reason })?;
        file.write_all(local.contiguous().bytes()).map_err(failed)?;
    }
    let file = file.into_inner().map_err(|e| failed(e.into_error()))?;
    file.sync_all().map_err(failed)
}

/// The JSON header, with spaces behind it so that the elements begin at a multiple of 8 bytes.
fn header_of<S: AsRef<str>>(
    path: &Path,
    tensors: &[(S, &Tensor)],
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, Error> {
    let mut entries = Map::new();
    if !metadata.is_empty() {
        entries.insert(METADATA.to_string(), json!(metadata));
    }
    let mut begin = 0;
    for (name, tensor) in tensors {
        let (name, shape) = (name.as_ref().to_string(), &*tensor.shape);
        let end = begin + tensor.elements() * tensor.dtype.size();
        let dtype = match tensor.dtype {
            DType::F32 => Dtype::F32,
            DType::Bf16 => Dtype::BF16,
            DType::U32 => Dtype::U32,
        };
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, end] });
        if name == METADATA || entries.insert(name.clone(), entry).is_some() {
            let reason = if name == METADATA { "the name is reserved" } else { "written twice" }.to_string();
            return Err(Error::Tensor { path: path.to_path_buf(), name, reason });
        }
        begin = end;
    }
    let mut header = Value::Object(entries).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

/// An open safetensors file, its header checked: every tensor that it names lies in the file, with as many bytes as its
/// shape and type need, and overlaps no other.
#[derive(Debug)]
pub struct File {
    file: MappedFile,
    tensors: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
    /// Where the elements begin, in bytes.
    data_start: usize,
}

impl File {
    /// Opens the file and checks its header. Elements are read when they are [loaded](File::load).
    pub fn open(path: impl AsRef<Path>) -> Result<File, Error> {
        let file = MappedFile::open(path)?;
        let bytes = file.as_slice::<u8>(0..file.len())?;
        let data_start = header_end(&bytes).map_err(|reason| Error::Header { path: file.path().into(), reason })?;
        let header = parse_header(file.path(), &bytes[LENGTH_BYTES..data_start])?;
        check_extents(file.path(), &header.tensors, (bytes.len() - data_start) as u64)?;
        drop(bytes);
        Ok(File { file, tensors: header.tensors, metadata: header.metadata.unwrap_or_default(), data_start })
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// All of the file, header and elements: to be hashed.
    pub fn bytes(&self) -> &[u8] {
        self.file.bytes()
    }

    /// The names of its tensors, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether it has a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The shape of a tensor. It may have more axes than a [`Tensor`] can.
    pub fn shape(&self, name: &str) -> Result<&[usize], Error> {
        Ok(&self.info(name)?.shape)
    }

    /// The texts that the writer put beside the tensors.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// A tensor, copied from the file: F32 as it is, BF16 and F16 widened to f32 (exactly); U32, and I32 and I64 whose
    /// elements all fit, as u32. Other types are refused by name.
    pub fn load(&self, name: &str) -> Result<Tensor, Error> {
        let info = self.info(name)?;
        let fail = |reason| Error::Tensor { path: self.path().to_path_buf(), name: name.to_string(), reason };
        if info.shape.len() > MAX_RANK {
            return Err(fail(format!("shape {:?} has more than {MAX_RANK} axes", info.shape)));
        }
        let shape = Shape::new(&info.shape);
        let range = self.data_start + info.data_offsets.0..self.data_start + info.data_offsets.1;
        match info.dtype {
            Dtype::F32 => Ok(Tensor::from_slice(&self.file.as_slice::<f32>(range)?, shape)),
            Dtype::U32 => Ok(Tensor::from_slice(&self.file.as_slice::<u32>(range)?, shape)),
            Dtype::BF16 => Ok(converted(&self.file.as_slice::<bf16>(range)?, shape, |x| x.to_f32())),
            Dtype::F16 => Ok(converted(&self.file.as_slice::<f16>(range)?, shape, |x| x.to_f32())),
            Dtype::I32 => tokens(&self.file.as_slice::<i32>(range)?, shape).map_err(fail),
            Dtype::I64 => tokens(&self.file.as_slice::<i64>(range)?, shape).map_err(fail),
            other => Err(fail(format!("its type is {other}, expected one of F32, BF16, F16, U32, I32, I64"))),
        }
    }

    /// As [`load`](File::load), but only if the tensor has the shape `expected`.
    pub fn load_shaped(&self, name: &str, expected: impl Into<Shape>) -> Result<Tensor, Error> {
        let (found, expected) = (self.shape(name)?, expected.into());
        if *found != *expected {
            let (path, name, found) = (self.path().to_path_buf(), name.to_string(), found.to_vec());
            return Err(Error::Shape { path, name, found, expected });
        }
        self.load(name)
    }

    fn info(&self, name: &str) -> Result<&TensorInfo, Error> {
        let missing = || Error::Missing { path: self.path().to_path_buf(), name: name.to_string() };
        self.tensors.get(name).ok_or_else(missing)
    }
}

fn converted<T: Copy, U: Element>(elements: &[T], shape: Shape, convert: impl Fn(T) -> U) -> Tensor {
    let mut tensor = Tensor::stale(shape, U::DTYPE);
    tensor.slice_mut::<U>().iter_mut().zip(elements).for_each(|(dst, &x)| *dst = convert(x));
    tensor
}

/// Integers as u32, or which of them is none.
fn tokens<T: Copy + TryInto<u32> + fmt::Display>(elements: &[T], shape: Shape) -> Result<Tensor, String> {
    if let Some(i) = elements.iter().position(|&x| x.try_into().is_err()) {
        return Err(format!("element {i} is {}, which is no u32", elements[i]));
    }
    Ok(converted(elements, shape, |x| x.try_into().unwrap_or_else(|_| unreachable!("looked at above"))))
}

/// Where the header ends, in bytes from the start of the file.
fn header_end(bytes: &[u8]) -> Result<usize, String> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(format!("{} bytes, expected at least the {LENGTH_BYTES} of the header's length", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(format!("a header of {length} bytes, expected at most {MAX_HEADER}"));
    }
    if length > rest.len() as u64 {
        return Err(format!("a header of {length} bytes, but only {} follow: the file is truncated", rest.len()));
    }
    Ok(LENGTH_BYTES + length as usize)
}

#[derive(Default)]
struct Header {
    metadata: Option<BTreeMap<String, String>>,
    tensors: BTreeMap<String, TensorInfo>,
}

fn parse_header(path: &Path, json: &[u8]) -> Result<Header, Error> {
    let fail = |reason| Error::Header { path: path.to_path_buf(), reason };
    let json = std::str::from_utf8(json).map_err(|e| fail(format!("the header is not UTF-8: {e}")))?;
    let (mut header, mut current) = (Header::default(), None);
    let mut parser = serde_json::Deserializer::from_str(json);
    let entries = Entries { header: &mut header, current: &mut current };
    let parsed = parser.deserialize_map(entries).and_then(|()| parser.end());
    match (parsed, current) {
        (Ok(()), _) => Ok(header),
        (Err(e), Some(name)) => Err(Error::Tensor { path: path.to_path_buf(), name, reason: format!("header: {e}") }),
        (Err(e), None) => Err(fail(format!("header: {e}"))),
    }
}

/// Reads the entries of the header one by one, so that a name that comes twice is seen and an error knows its tensor.
struct Entries<'a> {
    header: &'a mut Header,
    /// The tensor whose entry is being read.
    current: &'a mut Option<String>,
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with one entry for each tensor")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(name) = map.next_key::<String>()? {
            let is_new = if name == METADATA {
                let texts: Option<BTreeMap<String, String>> = map.next_value()?;
                self.header.metadata.replace(texts.unwrap_or_default()).is_none()
            } else {
                *self.current = Some(name.clone());
                self.header.tensors.insert(name, map.next_value()?).is_none()
            };
            if !is_new {
                return Err(serde::de::Error::custom("the name comes twice"));
            }
            *self.current = None;
        }
        Ok(())
    }
}

/// Checks that the tensors lie one behind the other, fill all `data_len` bytes, and have the bytes that their shapes need.
fn check_extents(path: &Path, tensors: &BTreeMap<String, TensorInfo>, data_len: u64) -> Result<(), Error> {
    let mut in_order: Vec<(&String, &TensorInfo)> = tensors.iter().collect();
    in_order.sort_by_key(|(_, info)| info.data_offsets);
    let mut next = 0;
    for (name, info) in in_order {
        let (begin, end) = info.data_offsets;
        let fail = |reason| Error::Tensor { path: path.to_path_buf(), name: name.clone(), reason };
        if end < begin {
            return Err(fail(format!("its data_offsets are {begin}..{end}")));
        }
        if begin != next {
            let what = if begin < next { "overlaps the tensor before it" } else { "leaves a gap before it" };
            return Err(fail(format!("begins at byte {begin} of the data, expected {next}: it {what}")));
        }
        if end as u64 > data_len {
            return Err(fail(format!("ends at byte {end} of the data, which has {data_len}: the file is truncated")));
        }
        let elements = info.shape.iter().try_fold(1usize, |n, &extent| n.checked_mul(extent));
        let bits = elements.and_then(|n| n.checked_mul(info.dtype.bitsize()));
        if bits != (end - begin).checked_mul(8) {
            let (shape, dtype) = (&info.shape, info.dtype);
            return Err(fail(format!("{} bytes, which is not what shape {shape:?} of {dtype} needs", end - begin)));
        }
        next = end;
    }
    if next as u64 != data_len {
        let reason = format!("{data_len} bytes of data, but its tensors end at {next}");
        return Err(Error::Header { path: path.to_path_buf(), reason });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
