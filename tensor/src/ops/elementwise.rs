use super::{Place, place};
use crate::check::{broadcast_shape, expect_shape, reads, writes};
use crate::{DType, Tensor};
use kernels::{Team, elementwise as kernel};

type Binary = fn(&Team, &[f32], &[f32], &mut [f32]);
type Unary = fn(&Team, &[f32], &mut [f32]);

#[track_caller]
fn binary(op: &str, kernel: Binary, (a_name, a): (&str, &Tensor), (b_name, b): (&str, &Tensor)) -> Tensor {
    let shape = broadcast_shape(op, a.shape, b.shape);
    match place(op, &[reads(a_name, a), reads(b_name, b)]) {
        Place::Cpu(team) => {
            let (a, b) = (a.broadcast_to(shape).contiguous(), b.broadcast_to(shape).contiguous());
            let mut out = Tensor::stale(shape, DType::F32);
            kernel(&team, a.slice(), b.slice(), out.slice_mut());
            out
        }
    }
}

#[track_caller]
fn unary(op: &str, kernel: Unary, x: &Tensor) -> Tensor {
    match place(op, &[reads("x", x)]) {
        Place::Cpu(team) => {
            let mut out = Tensor::stale(x.shape, DType::F32);
            kernel(&team, x.contiguous().slice(), out.slice_mut());
            out
        }
    }
}

/// `a + b`, broadcast. Panics if an axis is neither equal nor 1.
#[track_caller]
pub fn add(a: &Tensor, b: &Tensor) -> Tensor {
    binary("add", kernel::add, ("a", a), ("b", b))
}

/// `a - b`, broadcast. Panics if an axis is neither equal nor 1.
#[track_caller]
pub fn sub(a: &Tensor, b: &Tensor) -> Tensor {
    binary("sub", kernel::sub, ("a", a), ("b", b))
}

/// `a * b`, elementwise and broadcast. Panics if an axis is neither equal nor 1.
#[track_caller]
pub fn mul(a: &Tensor, b: &Tensor) -> Tensor {
    binary("mul", kernel::mul, ("a", a), ("b", b))
}

/// `a / b`, elementwise and broadcast. Panics if an axis is neither equal nor 1.
#[track_caller]
pub fn div(a: &Tensor, b: &Tensor) -> Tensor {
    binary("div", kernel::div, ("a", a), ("b", b))
}

/// `e^x`.
#[track_caller]
pub fn exp(x: &Tensor) -> Tensor {
    unary("exp", kernel::exp, x)
}

/// `ln x`: -inf at 0, NaN below.
#[track_caller]
pub fn log(x: &Tensor) -> Tensor {
    unary("log", kernel::log, x)
}

/// `1 / (1 + e^-x)`.
#[track_caller]
pub fn sigmoid(x: &Tensor) -> Tensor {
    unary("sigmoid", kernel::sigmoid, x)
}

/// `max(x, 0)`.
#[track_caller]
pub fn relu(x: &Tensor) -> Tensor {
    unary("relu", kernel::relu, x)
}

/// `x sigmoid(x)`.
#[track_caller]
pub fn silu(x: &Tensor) -> Tensor {
    unary("silu", kernel::silu, x)
}

/// `dx = dy relu'(x)`. Panics unless the shapes are equal.
#[track_caller]
pub fn relu_backward(dy: &Tensor, x: &Tensor) -> Tensor {
    expect_shape("relu_backward", "dy", dy, &x.shape);
    binary("relu_backward", kernel::relu_backward, ("dy", dy), ("x", x))
}

/// `dx = dy silu'(x)`. Panics unless the shapes are equal.
#[track_caller]
pub fn silu_backward(dy: &Tensor, x: &Tensor) -> Tensor {
    expect_shape("silu_backward", "dy", dy, &x.shape);
    binary("silu_backward", kernel::silu_backward, ("dy", dy), ("x", x))
}

/// `x Phi(x)`, Phi being the normal distribution function.
#[track_caller]
pub fn gelu(x: &Tensor) -> Tensor {
    unary("gelu", kernel::gelu, x)
}

/// `max(x, 0)^2`.
#[track_caller]
pub fn relu2(x: &Tensor) -> Tensor {
    unary("relu2", kernel::relu2, x)
}

/// `tanh(x)`.
#[track_caller]
pub fn tanh(x: &Tensor) -> Tensor {
    unary("tanh", kernel::tanh, x)
}

/// `dx = dy gelu'(x)`. Panics unless the shapes are equal.
#[track_caller]
pub fn gelu_backward(dy: &Tensor, x: &Tensor) -> Tensor {
    expect_shape("gelu_backward", "dy", dy, &x.shape);
    binary("gelu_backward", kernel::gelu_backward, ("dy", dy), ("x", x))
}

/// `dx = dy relu2'(x)`. Panics unless the shapes are equal.
#[track_caller]
pub fn relu2_backward(dy: &Tensor, x: &Tensor) -> Tensor {
    expect_shape("relu2_backward", "dy", dy, &x.shape);
    binary("relu2_backward", kernel::relu2_backward, ("dy", dy), ("x", x))
}

/// `dx = dy tanh'(x)`. Panics unless the shapes are equal.
#[track_caller]
pub fn tanh_backward(dy: &Tensor, x: &Tensor) -> Tensor {
    expect_shape("tanh_backward", "dy", dy, &x.shape);
    binary("tanh_backward", kernel::tanh_backward, ("dy", dy), ("x", x))
}

/// `factor * x`.
#[track_caller]
pub fn scale(factor: f32, x: &Tensor) -> Tensor {
    match place("scale", &[reads("x", x)]) {
        Place::Cpu(team) => {
            let mut out = Tensor::stale(x.shape, DType::F32);
            kernel::scale(&team, factor, x.contiguous().slice(), out.slice_mut());
            out
        }
    }
}

/// `dst += factor * x`. Panics unless the shapes are equal and `dst` is contiguous and unshared.
#[track_caller]
pub fn axpy(factor: f32, x: &Tensor, dst: &mut Tensor) {
    expect_shape("axpy", "dst", dst, &x.shape);
    match place("axpy", &[reads("x", x), writes("dst", dst)]) {
        Place::Cpu(team) => kernel::axpy(&team, factor, x.contiguous().slice(), dst.slice_mut()),
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
    match place("add_to_range", &[reads("x", x), writes("dst", dst)]) {
        Place::Cpu(team) => {
            let inner: usize = x.shape[axis + 1..].iter().product();
            let (len, stride) = (x.shape[axis] * inner, dst.shape[axis] * inner);
            if x.elements() == 0 {
                return;
            }
            let x = x.contiguous();
            for (x, dst) in x.slice::<f32>().chunks_exact(len).zip(dst.slice_mut::<f32>().chunks_exact_mut(stride)) {
                kernel::axpy(&team, 1.0, x, &mut dst[start * inner..][..len]);
            }
        }
    }
}
