use super::{Place, place};
use crate::check::{broadcast_shape, expect_shape, reads, reads_float, writes};
use crate::{DType, Tensor};
use cuda::ops::elementwise as gpu;
use kernels::{Team, elementwise as kernel};

/// The kernels of an op, for the CPU and for a GPU.
type Binary = (fn(&Team, &[f32], &[f32], &mut [f32]), fn(Read, Read, Write) -> Result<(), cuda::Error>);
type Unary = (fn(&Team, &[f32], &mut [f32]), fn(Read, Write) -> Result<(), cuda::Error>);
type Read<'a> = cuda::Slice<'a, f32>;
type Write<'a> = cuda::SliceMut<'a, f32>;

#[track_caller]
fn binary(op: &str, kernels: Binary, (a_name, a): (&str, &Tensor), (b_name, b): (&str, &Tensor)) -> Tensor {
    let shape = broadcast_shape(op, a.shape, b.shape);
    let place = place(op, &[reads(a_name, a), reads(b_name, b)]);
    let (a, b) = (a.broadcast_to(shape).contiguous(), b.broadcast_to(shape).contiguous());
    let mut out = place.stale(shape, DType::F32);
    match place {
        Place::Cpu(team) => kernels.0(&team, a.slice(), b.slice(), out.slice_mut()),
        Place::Cuda(gpu) => gpu.done(kernels.1(a.cuda_slice(), b.cuda_slice(), out.cuda_slice_mut())),
    }
    out
}

#[track_caller]
fn unary(op: &str, kernels: Unary, x: &Tensor) -> Tensor {
    let place = place(op, &[reads("x", x)]);
    let x = x.contiguous();
    let mut out = place.stale(x.shape, DType::F32);
    match place {
        Place::Cpu(team) => kernels.0(&team, x.slice(), out.slice_mut()),
        Place::Cuda(gpu) => gpu.done(kernels.1(x.cuda_slice(), out.cuda_slice_mut())),
    }
    out
}

/// `a + b`, broadcast. Both are float: the sum of two bf16 is rounded to bf16, that of bf16 and f32 is f32.
/// Panics if an axis is neither equal nor 1.
#[track_caller]
pub fn add(a: &Tensor, b: &Tensor) -> Tensor {
    if (a.dtype, b.dtype) == (DType::Bf16, DType::F32) {
        return add(b, a);
    }
    if b.dtype != DType::Bf16 {
        return binary("add", (kernel::add, gpu::add), ("a", a), ("b", b));
    }
    let shape = broadcast_shape("add", a.shape, b.shape);
    let place = place("add", &[reads_float("a", a), reads_float("b", b)]);
    let (a, b) = (a.broadcast_to(shape).contiguous(), b.broadcast_to(shape).contiguous());
    let mut out = place.stale(shape, a.dtype);
    let Place::Cuda(on) = place else { unreachable!("place() refuses bf16 on the cpu") };
    on.done(match a.dtype {
        DType::Bf16 => gpu::add_bf16(a.cuda_slice(), b.cuda_slice(), out.cuda_slice_mut()),
        _ => gpu::add_f32_bf16(a.cuda_slice(), b.cuda_slice(), out.cuda_slice_mut()),
    });
    out
}

/// `a - b`, broadcast. Panics if an axis is neither equal nor 1.
#[track_caller]
pub fn sub(a: &Tensor, b: &Tensor) -> Tensor {
    binary("sub", (kernel::sub, gpu::sub), ("a", a), ("b", b))
}

/// `a * b`, elementwise and broadcast. Panics if an axis is neither equal nor 1.
#[track_caller]
pub fn mul(a: &Tensor, b: &Tensor) -> Tensor {
    binary("mul", (kernel::mul, gpu::mul), ("a", a), ("b", b))
}

/// `a / b`, elementwise and broadcast. Panics if an axis is neither equal nor 1.
#[track_caller]
pub fn div(a: &Tensor, b: &Tensor) -> Tensor {
    binary("div", (kernel::div, gpu::div), ("a", a), ("b", b))
}

/// `e^x`.
#[track_caller]
pub fn exp(x: &Tensor) -> Tensor {
    unary("exp", (kernel::exp, gpu::exp), x)
}

/// `ln x`: -inf at 0, NaN below.
#[track_caller]
pub fn log(x: &Tensor) -> Tensor {
    unary("log", (kernel::log, gpu::log), x)
}

/// `1 / (1 + e^-x)`.
#[track_caller]
pub fn sigmoid(x: &Tensor) -> Tensor {
    unary("sigmoid", (kernel::sigmoid, gpu::sigmoid), x)
}

/// `max(x, 0)`.
#[track_caller]
pub fn relu(x: &Tensor) -> Tensor {
    unary("relu", (kernel::relu, gpu::relu), x)
}

/// `x sigmoid(x)`.
#[track_caller]
pub fn silu(x: &Tensor) -> Tensor {
    unary("silu", (kernel::silu, gpu::silu), x)
}

/// `dx = dy relu'(x)`. Panics unless the shapes are equal.
#[track_caller]
pub fn relu_backward(dy: &Tensor, x: &Tensor) -> Tensor {
    expect_shape("relu_backward", "dy", dy, &x.shape);
    binary("relu_backward", (kernel::relu_backward, gpu::relu_backward), ("dy", dy), ("x", x))
}

/// `dx = dy silu'(x)`. Panics unless the shapes are equal.
#[track_caller]
pub fn silu_backward(dy: &Tensor, x: &Tensor) -> Tensor {
    expect_shape("silu_backward", "dy", dy, &x.shape);
    binary("silu_backward", (kernel::silu_backward, gpu::silu_backward), ("dy", dy), ("x", x))
}

/// `x Phi(x)`, Phi being the normal distribution function.
#[track_caller]
pub fn gelu(x: &Tensor) -> Tensor {
    unary("gelu", (kernel::gelu, gpu::gelu), x)
}

/// `max(x, 0)^2`.
#[track_caller]
pub fn relu2(x: &Tensor) -> Tensor {
    unary("relu2", (kernel::relu2, gpu::relu2), x)
}

/// `tanh(x)`.
#[track_caller]
pub fn tanh(x: &Tensor) -> Tensor {
    unary("tanh", (kernel::tanh, gpu::tanh), x)
}

/// `dx = dy gelu'(x)`. Panics unless the shapes are equal.
#[track_caller]
pub fn gelu_backward(dy: &Tensor, x: &Tensor) -> Tensor {
    expect_shape("gelu_backward", "dy", dy, &x.shape);
    binary("gelu_backward", (kernel::gelu_backward, gpu::gelu_backward), ("dy", dy), ("x", x))
}

/// `dx = dy relu2'(x)`. Panics unless the shapes are equal.
#[track_caller]
pub fn relu2_backward(dy: &Tensor, x: &Tensor) -> Tensor {
    expect_shape("relu2_backward", "dy", dy, &x.shape);
    binary("relu2_backward", (kernel::relu2_backward, gpu::relu2_backward), ("dy", dy), ("x", x))
}

/// `dx = dy tanh'(x)`. Panics unless the shapes are equal.
#[track_caller]
pub fn tanh_backward(dy: &Tensor, x: &Tensor) -> Tensor {
    expect_shape("tanh_backward", "dy", dy, &x.shape);
    binary("tanh_backward", (kernel::tanh_backward, gpu::tanh_backward), ("dy", dy), ("x", x))
}

/// `factor * x`.
#[track_caller]
pub fn scale(factor: f32, x: &Tensor) -> Tensor {
    let place = place("scale", &[reads("x", x)]);
    let x = x.contiguous();
    let mut out = place.stale(x.shape, DType::F32);
    match place {
        Place::Cpu(team) => kernel::scale(&team, factor, x.slice(), out.slice_mut()),
        Place::Cuda(gpu) => gpu.done(gpu::scale(factor, x.cuda_slice(), out.cuda_slice_mut())),
    }
    out
}

/// `dst += factor * x`. Panics unless the shapes are equal and `dst` is contiguous and unshared.
#[track_caller]
pub fn axpy(factor: f32, x: &Tensor, dst: &mut Tensor) {
    expect_shape("axpy", "dst", dst, &x.shape);
    let place = place("axpy", &[reads("x", x), writes("dst", dst)]);
    let x = x.contiguous();
    match place {
        Place::Cpu(team) => kernel::axpy(&team, factor, x.slice(), dst.slice_mut()),
        Place::Cuda(gpu) => gpu.done(gpu::axpy(factor, x.cuda_slice(), dst.cuda_slice_mut())),
    }
}

/// `dst[.., start .. start + len, ..] += x` along `axis`, len being x's extent there: the transpose of
/// [`narrow`](Tensor::narrow). Panics unless the other axes are equal, the range lies inside, and `dst` is contiguous and
/// unshared.
#[track_caller]
pub fn add_to_range(x: &Tensor, axis: usize, start: usize, dst: &mut Tensor) {
    let fits = axis < x.shape.rank() && x.shape.rank() == dst.shape.rank();
    let fits = fits
        && dst.shape.with(axis, x.shape[axis]) == x.shape
        && start.checked_add(x.shape[axis]).is_some_and(|end| end <= dst.shape[axis]);
    assert!(fits, "add_to_range: {} from {start} along axis {axis} of {}", x.shape, dst.shape);
    let place = place("add_to_range", &[reads("x", x), writes("dst", dst)]);
    if x.elements() == 0 {
        return;
    }
    let inner: usize = x.shape[axis + 1..].iter().product();
    let (len, stride) = (x.shape[axis] * inner, dst.shape[axis] * inner);
    let x = x.contiguous();
    match place {
        Place::Cpu(team) => {
            for (x, dst) in x.slice::<f32>().chunks_exact(len).zip(dst.slice_mut::<f32>().chunks_exact_mut(stride)) {
                kernel::axpy(&team, 1.0, x, &mut dst[start * inner..][..len]);
            }
        }
        Place::Cuda(gpu) => {
            let dst = dst.cuda_slice_mut();
            let (_, from_start) = dst.split_at(start * inner);
            gpu.done(cuda::ops::strided::add_to_range(x.cuda_slice(), len, stride, from_start));
        }
    }
}
