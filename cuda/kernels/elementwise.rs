//! Elementwise arithmetic on equal lengths, with the bits of the CPU's levels that have fused multiply-adds, but for the logarithm; and conversions
//! to and from bf16.

use super::THREADS;
use crate::stream::Launch;
use crate::{Error, Kernel, Module, Slice, SliceMut};
use bytemuck::Pod;
use half::bf16;

static MODULE: Module = Module { name: "elementwise", ptx: include_str!("elementwise.ptx") };

const fn kernel(entry: &'static str) -> Kernel {
    Kernel { module: &MODULE, entry }
}

/// Elements of a thread.
const PER_THREAD: usize = 8;

fn launch<'a>(kernel: &'static Kernel, len: usize) -> Launch<'a> {
    Launch::new(kernel, len.div_ceil(THREADS * PER_THREAD), THREADS as u32)
}

#[track_caller]
fn check<A: Pod, D: Pod>(name: &str, inputs: &[Slice<A>], dst: &SliceMut<D>) -> bool {
    for (i, input) in inputs.iter().enumerate() {
        assert_eq!(input.len(), dst.len(), "{name}: input {i} has {} elements, dst {}", input.len(), dst.len());
    }
    inputs.iter().all(|input| input.is_aligned()) && dst.as_slice().is_aligned()
}

#[track_caller]
fn binary(name: &str, kernel: &'static Kernel, a: Slice<f32>, b: Slice<f32>, dst: SliceMut<f32>) -> Result<(), Error> {
    let aligned = check(name, &[a, b], &dst);
    // SAFETY: the parameters are those of the kernels, which touch elements below the length that was checked.
    unsafe { launch(kernel, dst.len()).arg(a).arg(b).arg(dst.len() as u64).arg(aligned).arg(&dst).run() }
}

#[track_caller]
fn mixed<A: Pod, B: Pod, D: Pod>(
    name: &str,
    kernel: &'static Kernel,
    a: Slice<A>,
    b: Slice<B>,
    dst: SliceMut<D>,
) -> Result<(), Error> {
    let aligned = check(name, &[a], &dst) & check(name, &[b], &dst);
    // SAFETY: as in `binary`; the types are the kernel's.
    unsafe { launch(kernel, dst.len()).arg(a).arg(b).arg(dst.len() as u64).arg(aligned).arg(&dst).run() }
}

#[track_caller]
fn unary<A: Pod, D: Pod>(name: &str, kernel: &'static Kernel, a: Slice<A>, dst: SliceMut<D>) -> Result<(), Error> {
    let aligned = check(name, &[a], &dst);
    // SAFETY: as in `binary`; the type of a is the kernel's.
    unsafe { launch(kernel, dst.len()).arg(a).arg(dst.len() as u64).arg(aligned).arg(&dst).run() }
}

#[track_caller]
fn scaled(name: &str, kernel: &'static Kernel, factor: f32, a: Slice<f32>, dst: SliceMut<f32>) -> Result<(), Error> {
    let aligned = check(name, &[a], &dst);
    // SAFETY: as in `binary`.
    unsafe { launch(kernel, dst.len()).arg(factor).arg(a).arg(dst.len() as u64).arg(aligned).arg(&dst).run() }
}

/// `dst = a + b`, correctly rounded. Panics if a length differs.
#[track_caller]
pub fn add(a: Slice<f32>, b: Slice<f32>, dst: SliceMut<f32>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("add_f32");
    binary("add", &KERNEL, a, b, dst)
}

/// `dst = a + b` in bf16: the sum in f32, rounded once to bf16. Panics if a length differs.
#[track_caller]
pub fn add_bf16(a: Slice<bf16>, b: Slice<bf16>, dst: SliceMut<bf16>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("add_bf16");
    mixed("add_bf16", &KERNEL, a, b, dst)
}

/// `dst = a + b` with b widened, as a branch in bf16 joins a residual stream in f32; correctly rounded. Panics if a length differs.
#[track_caller]
pub fn add_f32_bf16(a: Slice<f32>, b: Slice<bf16>, dst: SliceMut<f32>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("add_f32_bf16");
    mixed("add_f32_bf16", &KERNEL, a, b, dst)
}

/// `dst = a - b`, correctly rounded. Panics if a length differs.
#[track_caller]
pub fn sub(a: Slice<f32>, b: Slice<f32>, dst: SliceMut<f32>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("sub_f32");
    binary("sub", &KERNEL, a, b, dst)
}

/// `dst = a * b`, correctly rounded. Panics if a length differs.
#[track_caller]
pub fn mul(a: Slice<f32>, b: Slice<f32>, dst: SliceMut<f32>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("mul_f32");
    binary("mul", &KERNEL, a, b, dst)
}

/// `dst = a / b`, correctly rounded. Panics if a length differs.
#[track_caller]
pub fn div(a: Slice<f32>, b: Slice<f32>, dst: SliceMut<f32>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("div_f32");
    binary("div", &KERNEL, a, b, dst)
}

/// `dst += factor * a`, rounded once. Panics if a length differs.
#[track_caller]
pub fn axpy(factor: f32, a: Slice<f32>, dst: SliceMut<f32>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("axpy_f32");
    scaled("axpy", &KERNEL, factor, a, dst)
}

/// `dst = factor * a`, correctly rounded. Panics if a length differs.
#[track_caller]
pub fn scale(factor: f32, a: Slice<f32>, dst: SliceMut<f32>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("scale_f32");
    scaled("scale", &KERNEL, factor, a, dst)
}

/// `dst = e^a`, within 0.91 ULP. Panics if a length differs.
#[track_caller]
pub fn exp(a: Slice<f32>, dst: SliceMut<f32>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("exp_f32");
    unary("exp", &KERNEL, a, dst)
}

/// `dst = ln a`, within 0.51 ULP: computed in f64 and rounded; -inf at 0, NaN below. Panics if a length differs.
#[track_caller]
pub fn log(a: Slice<f32>, dst: SliceMut<f32>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("log_f32");
    unary("log", &KERNEL, a, dst)
}

/// As [`kernels::elementwise::sigmoid`].
#[track_caller]
pub fn sigmoid(a: Slice<f32>, dst: SliceMut<f32>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("sigmoid_f32");
    unary("sigmoid", &KERNEL, a, dst)
}

/// As [`kernels::elementwise::relu`]: NaN stays NaN and -0 stays -0.
#[track_caller]
pub fn relu(a: Slice<f32>, dst: SliceMut<f32>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("relu_f32");
    unary("relu", &KERNEL, a, dst)
}

/// As [`kernels::elementwise::relu_backward`].
#[track_caller]
pub fn relu_backward(dy: Slice<f32>, x: Slice<f32>, dx: SliceMut<f32>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("relu_backward_f32");
    binary("relu_backward", &KERNEL, dy, x, dx)
}

/// As [`kernels::elementwise::silu`].
#[track_caller]
pub fn silu(a: Slice<f32>, dst: SliceMut<f32>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("silu_f32");
    unary("silu", &KERNEL, a, dst)
}

/// As [`kernels::elementwise::silu_backward`].
#[track_caller]
pub fn silu_backward(dy: Slice<f32>, x: Slice<f32>, dx: SliceMut<f32>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("silu_backward_f32");
    binary("silu_backward", &KERNEL, dy, x, dx)
}

/// As [`kernels::elementwise::gelu`].
#[track_caller]
pub fn gelu(a: Slice<f32>, dst: SliceMut<f32>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("gelu_f32");
    unary("gelu", &KERNEL, a, dst)
}

/// As [`kernels::elementwise::gelu_backward`].
#[track_caller]
pub fn gelu_backward(dy: Slice<f32>, x: Slice<f32>, dx: SliceMut<f32>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("gelu_backward_f32");
    binary("gelu_backward", &KERNEL, dy, x, dx)
}

/// As [`kernels::elementwise::relu2`].
#[track_caller]
pub fn relu2(a: Slice<f32>, dst: SliceMut<f32>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("relu2_f32");
    unary("relu2", &KERNEL, a, dst)
}

/// As [`kernels::elementwise::relu2_backward`].
#[track_caller]
pub fn relu2_backward(dy: Slice<f32>, x: Slice<f32>, dx: SliceMut<f32>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("relu2_backward_f32");
    binary("relu2_backward", &KERNEL, dy, x, dx)
}

/// As [`kernels::elementwise::tanh`].
#[track_caller]
pub fn tanh(a: Slice<f32>, dst: SliceMut<f32>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("tanh_f32");
    unary("tanh", &KERNEL, a, dst)
}

/// As [`kernels::elementwise::tanh_backward`].
#[track_caller]
pub fn tanh_backward(dy: Slice<f32>, x: Slice<f32>, dx: SliceMut<f32>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("tanh_backward_f32");
    binary("tanh_backward", &KERNEL, dy, x, dx)
}

/// `dst = a`, rounded to bf16: to nearest, ties to even; NaN stays NaN. Panics if the lengths differ.
#[track_caller]
pub fn narrow(a: Slice<f32>, dst: SliceMut<bf16>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("narrow");
    unary("narrow", &KERNEL, a, dst)
}

/// `dst = a`, exact. Panics if the lengths differ.
#[track_caller]
pub fn widen(a: Slice<bf16>, dst: SliceMut<f32>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("widen");
    unary("widen", &KERNEL, a, dst)
}
