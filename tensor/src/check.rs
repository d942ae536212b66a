//! Every check on the operands of an op, so that all failures read alike: the op, the operand, both shapes, the axis.
//!
//! A wrong shape is a programming error: these panic, at the line of the op's caller.

use crate::{DType, Shape, Storage, Tensor};
use std::fmt;

/// A tensor and what an op does with it. See [`place`](crate::ops).
pub(crate) struct Operand<'a> {
    name: &'a str,
    pub(crate) tensor: &'a Tensor,
    accepts: Accepts,
    written: bool,
}

/// Which element types an operand may have.
#[derive(Clone, Copy)]
enum Accepts {
    Only(DType),
    /// f32; on a GPU bf16 too.
    Float,
}

/// An operand of f32 that is read.
pub(crate) fn reads<'a>(name: &'a str, tensor: &'a Tensor) -> Operand<'a> {
    reads_like(name, tensor, DType::F32)
}

/// An operand of this element type that is read, such as that of another operand.
pub(crate) fn reads_like<'a>(name: &'a str, tensor: &'a Tensor, dtype: DType) -> Operand<'a> {
    Operand { name, tensor, accepts: Accepts::Only(dtype), written: false }
}

/// An operand of f32 that is read, or, on a GPU, of bf16.
pub(crate) fn reads_float<'a>(name: &'a str, tensor: &'a Tensor) -> Operand<'a> {
    Operand { accepts: Accepts::Float, ..reads(name, tensor) }
}

/// An operand of u32 that is read.
pub(crate) fn reads_u32<'a>(name: &'a str, tensor: &'a Tensor) -> Operand<'a> {
    reads_like(name, tensor, DType::U32)
}

/// An operand of f32 that is written: contiguous, and shared with nobody.
pub(crate) fn writes<'a>(name: &'a str, tensor: &'a Tensor) -> Operand<'a> {
    Operand { written: true, ..reads(name, tensor) }
}

/// An operand of this element type that is written.
pub(crate) fn writes_like<'a>(name: &'a str, tensor: &'a Tensor, dtype: DType) -> Operand<'a> {
    Operand { written: true, ..reads_like(name, tensor, dtype) }
}

/// An operand of u32 that is written.
pub(crate) fn writes_u32<'a>(name: &'a str, tensor: &'a Tensor) -> Operand<'a> {
    Operand { written: true, ..reads_u32(name, tensor) }
}

impl Operand<'_> {
    /// Panics unless the tensor has the element type, and may be written if it is to be.
    #[track_caller]
    pub(crate) fn check(&self, op: &str) {
        let Operand { name, tensor, accepts, written } = self;
        let (shape, dtype) = (tensor.shape, tensor.dtype);
        match (accepts, dtype) {
            (Accepts::Only(expected), _) => {
                assert!(dtype == *expected, "{op}: {name} of shape {shape} is of {dtype}, expected {expected}");
            }
            (Accepts::Float, _) => {
                let on_cpu = matches!(tensor.storage, Storage::Cpu(_));
                let refused = on_cpu && dtype == DType::Bf16;
                assert!(!refused, "{op}: {name} of shape {shape} is of bf16, which this op takes on a GPU alone");
                let expected = if on_cpu { "f32" } else { "f32 or bf16" };
                assert!(dtype != DType::U32, "{op}: {name} of shape {shape} is of u32, expected {expected}");
            }
        }
        if *written {
            let strides = tensor.strides;
            assert!(
                tensor.is_contiguous(),
                "{op}: {name} of shape {shape} is written, and is a view with strides {strides}, not contiguous"
            );
            assert!(
                tensor.is_unique(),
                "{op}: {name} of shape {shape} is written, and shares its storage: drop its clones and views first"
            );
        }
    }
}

/// Panics unless `x` has the shape `expected`.
#[track_caller]
pub(crate) fn expect_shape(op: &str, name: &str, x: &Tensor, expected: &[usize]) {
    let found = x.shape;
    assert!(
        *found == *expected,
        "{op}: {name} has shape {found}, expected {expected:?}: {}",
        Difference(&found, expected)
    );
}

/// Where two shapes differ first.
struct Difference<'a>(&'a [usize], &'a [usize]);

impl fmt::Display for Difference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference(found, expected) = self;
        if found.len() != expected.len() {
            return write!(f, "{} axes, not {}", found.len(), expected.len());
        }
        let Some(axis) = (0..found.len()).find(|&i| found[i] != expected[i]) else { return Ok(()) };
        write!(f, "axis {axis} is {}, not {}", found[axis], expected[axis])?;
        if let ([.., a, b], [.., m, n]) = (found, expected)
            && (a, b) == (n, m)
        {
            write!(f, " (transposed?)")?;
        }
        Ok(())
    }
}

/// The extents of a matrix. Panics unless `x` has two axes.
#[track_caller]
pub(crate) fn expect_matrix(op: &str, name: &str, x: &Tensor) -> [usize; 2] {
    let &[rows, cols] = &*x.shape else {
        panic!("{op}: {name} has shape {}, expected a matrix: {} axes, not 2", x.shape, x.shape.rank())
    };
    [rows, cols]
}

/// The product of all axes but the last, and the last: a tensor as rows. Panics for a scalar.
#[track_caller]
pub(crate) fn rows_and_cols(op: &str, name: &str, x: &Tensor) -> (usize, usize) {
    let Some((&cols, rows)) = x.shape.split_last() else {
        panic!("{op}: {name} is a scalar, expected at least one axis")
    };
    (rows.iter().product(), cols)
}

/// Panics unless `shape` has this axis.
#[track_caller]
pub(crate) fn expect_axis(op: &str, shape: Shape, axis: usize) {
    assert!(axis < shape.rank(), "{op}: axis {axis} of shape {shape}, which has {} axes", shape.rank());
}

/// Panics unless a tensor of shape `from` can be repeated to `to`: axes matched from the last, each equal or 1 or absent.
#[track_caller]
pub(crate) fn expect_broadcast(op: &str, from: Shape, to: Shape) {
    let ranks = (to.rank(), from.rank());
    assert!(ranks.0 >= ranks.1, "{op}: {from} does not broadcast to {to}: {} axes, not {} or fewer", ranks.1, ranks.0);
    for axis in 0..to.rank() {
        let extent = aligned(from, axis, to.rank());
        let fits = extent == to[axis] || extent == 1;
        assert!(fits, "{op}: {from} does not broadcast to {to}: axis {axis} is {extent}, not 1 or {}", to[axis]);
    }
}

/// The shape that both broadcast to (NumPy's rule). Panics if an axis is neither equal nor 1.
#[track_caller]
pub(crate) fn broadcast_shape(op: &str, a: Shape, b: Shape) -> Shape {
    let rank = a.rank().max(b.rank());
    let mut shape = if a.rank() == rank { a } else { b };
    for axis in 0..rank {
        let (m, n) = (aligned(a, axis, rank), aligned(b, axis, rank));
        assert!(m == n || m == 1 || n == 1, "{op}: {a} and {b} do not broadcast: axis {axis} is {m} and {n}");
        shape = shape.with(axis, if m == 1 { n } else { m });
    }
    shape
}

/// The extent of `shape` at `axis` of `rank` axes, with axes of extent 1 put in front.
fn aligned(shape: Shape, axis: usize, rank: usize) -> usize {
    (axis + shape.rank()).checked_sub(rank).map_or(1, |i| shape[i])
}
