//! What the tests share: parameter blocks, and kernels around a few instructions.
#![allow(dead_code, reason = "each test program uses a part")]

use ptx::{Error, Memory, Module, Options, Report, launch};

/// A parameter block: values at their natural alignment.
#[derive(Default)]
pub struct Params(Vec<u8>);

impl Params {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.resize(self.0.len().next_multiple_of(bytes.len()), 0);
        self.0.extend(bytes);
        self
    }
}

impl std::ops::Deref for Params {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

pub fn upload<T: Copy, const N: usize>(memory: &mut Memory, values: &[T], bytes: impl Fn(T) -> [u8; N]) -> u64 {
    let bytes: Vec<u8> = values.iter().flat_map(|&v| bytes(v)).collect();
    let address = memory.alloc(bytes.len());
    memory.write(address, &bytes).unwrap();
    address
}

pub fn download(memory: &Memory, address: u64, bytes: usize) -> Vec<u8> {
    let mut to = vec![0; bytes];
    memory.read(address, &mut to).unwrap();
    to
}

pub fn download_f32(memory: &Memory, address: u64, n: usize) -> Vec<f32> {
    download(memory, address, 4 * n).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

pub fn download_u32(memory: &Memory, address: u64, n: usize) -> Vec<u32> {
    download(memory, address, 4 * n).chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// A uniform draw in [-1, 1) with few bits, for index i of a stream.
pub fn uniform(stream: u64, i: usize) -> f32 {
    let mut x = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ stream.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 31)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((x >> 40) as f32) / (1 << 23) as f32 - 1.0
}

/// A module with one entry `test(in, out)`: `body` finds the thread's number in %tid, the address of its row of
/// `inputs` u64 in %in and the address of its u64 result in %out. Registers: %p, %h (16), %r, %f, %rd, %fd.
pub fn module(inputs: usize, before: &str, body: &str) -> Result<Module, Error> {
    let text = format!(
        ".version 7.4\n.target sm_80\n.address_size 64\n{before}\n.visible .entry test(.param .u64 a, .param .u64 b) {{\n\
         .reg .pred %p<20>; .reg .b16 %h<20>; .reg .b32 %r<40>, %tid; .reg .f32 %f<20>; .reg .b64 %rd<20>, %in, %out; .reg .f64 %fd<20>;\n\
         mov.u32 %tid, %tid.x; ld.param.u64 %in, [a]; ld.param.u64 %out, [b];\n\
         mul.wide.u32 %rd0, %tid, {}; add.s64 %in, %in, %rd0; mul.wide.u32 %rd0, %tid, 8; add.s64 %out, %out, %rd0;\n\
         {body}\nret;\n}}",
        8 * inputs
    );
    Module::parse("snippet", &text)
}

/// Runs `body` with one thread for each row of inputs; the results.
pub fn run_with(options: Options, before: &str, body: &str, rows: &[Vec<u64>]) -> Result<(Vec<u64>, Report), Error> {
    let module = module(rows[0].len(), before, body)?;
    let mut memory = Memory::new();
    let flat: Vec<u64> = rows.concat();
    let input = upload(&mut memory, &flat, u64::to_le_bytes);
    let output = memory.alloc(8 * rows.len());
    memory.fill(output, 0xee, 8 * rows.len())?;
    let params = Params::new().u64(input).u64(output);
    let threads = [rows.len() as u32, 1, 1];
    let report = launch(&module, "test", [1; 3], threads, 0, &params, &mut memory, options)?;
    let results = download(&memory, output, 8 * rows.len());
    Ok((results.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().unwrap())).collect(), report))
}

/// [`run_with`] the default options and nothing before the entry.
pub fn run(body: &str, rows: &[Vec<u64>]) -> Vec<u64> {
    run_with(Options::default(), "", body, rows).unwrap_or_else(|e| panic!("{e}\n{body}")).0
}

/// The error of `body` run by `threads` threads with one zero each as input, with a seed.
pub fn error_of(seed: u64, threads: usize, before: &str, body: &str) -> String {
    let options = Options { seed: Some(seed), ..Options::default() };
    match run_with(options, before, body, &vec![vec![0]; threads]) {
        Ok(_) => panic!("no error of\n{body}"),
        Err(e) => e.to_string(),
    }
}
