//! What a wrong shape, type or sharing says, and where: the message names the op, the operand, both shapes and the axis, and
//! the location is the line of the op's caller.

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe, Location};
use std::sync::Once;
use tensor::{Beta, DType, Device, Shape, Tensor, ops};

thread_local! {
    /// The file and line of the last panic of this thread.
    static PLACE: RefCell<Option<(String, u32)>> = const { RefCell::new(None) };
}

/// Holds if `f` panics with this message, at the line of the call of this function: calls and closures stand on one line.
#[track_caller]
fn panics<R>(expected: &str, f: impl FnOnce() -> R) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let default = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let place = info.location().map(|at| (at.file().to_string(), at.line()));
            let expected = PLACE.with_borrow_mut(|last| std::mem::replace(last, place).is_some());
            if !expected {
                default(info); // not inside `panics`: a failing test
            }
        }));
    });
    PLACE.set(Some(Default::default()));
    let outcome = panic::catch_unwind(AssertUnwindSafe(f));
    let place = PLACE.take();
    let payload = outcome.err().expect("it did not panic");
    let message = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
    assert_eq!(message, Some(expected));
    let caller = Location::caller();
    assert_eq!(place, Some((caller.file().to_string(), caller.line())), "{expected}: elsewhere than at its caller");
}

#[track_caller]
fn zeros(shape: impl Into<Shape>) -> Tensor {
    Tensor::zeros(shape)
}

fn tokens(n: usize) -> Tensor {
    Tensor::from_slice(&vec![0u32; n], [n])
}

#[test]
#[rustfmt::skip] // one line for each panic: its line is checked
fn shapes_that_do_not_fit() {
    let (x, w) = (zeros([2, 3, 4]), zeros([5]));
    panics("rms_norm: weight has shape [5], expected [4]: axis 0 is 5, not 4", || ops::rms_norm(&x, &w, 1e-5));
    panics("matmul: a has shape [2, 3, 4], expected a matrix: 3 axes, not 2", || ops::matmul(&x, &w));
    let (a, b) = (zeros([2, 3]), zeros([4, 5]));
    panics("matmul: [2, 3] x [4, 5]: axis 1 of a is 3, axis 0 of b is 4", || ops::matmul(&a, &b));
    let (b, mut c) = (zeros([3, 5]), zeros([5, 2]));
    panics("matmul: [2, 3] x [3, 5] into c [5, 2], expected 2 rows of 5", || ops::matmul_into(&a, &b, Beta::Zero, &mut c));
    panics("add: [2, 3, 4] and [5] do not broadcast: axis 2 is 4 and 5", || ops::add(&x, &w));
    panics("sum_to: [3, 4, 1] does not broadcast to [2, 3, 4]: axis 0 is 3, not 1 or 2", || ops::sum_to(&x, [3, 4, 1]));
    let transposed = zeros([2, 4, 3]);
    panics("gated_activation: u has shape [2, 4, 3], expected [2, 3, 4]: axis 1 is 4, not 3 (transposed?)", || ops::gated_activation(tensor::Activation::Relu, &x, &transposed));
    panics("relu_backward: dy has shape [5], expected [2, 3, 4]: 1 axes, not 3", || ops::relu_backward(&w, &x));
    let (q, k) = (zeros([1, 2, 3, 4]), zeros([1, 2, 2, 4]));
    panics("attention: q [1, 2, 3, 4] and k [1, 2, 2, 4]: equal B and D, T of k no less, heads of q a multiple", || ops::attention(&q, &k, &k, 1.0));
    panics("lm_head_loss: x [2, 3, 4] has 6 rows, targets [5] has 5 elements", || ops::lm_head_loss(&x, &zeros([7, 4]), &tokens(5)));
    let tables = zeros([1, 2]);
    panics("rope: position 1 of x [1, 2, 3, 4] in a table of 1", || ops::rope(&q, &tables, &tables, 0, ops::Rotation::Forward));
}

#[test]
#[rustfmt::skip]
fn elements_of_another_type() {
    let (x, ids) = (zeros([2, 3]), tokens(3));
    panics("rms_norm: weight of shape [3] is of u32, expected f32", || ops::rms_norm(&x, &ids, 1e-5));
    panics("sum: x of shape [3] is of u32, expected f32", || ops::sum(&ids));
    panics("silu_backward: dy of shape [3] is of u32, expected f32", || ops::silu_backward(&ids, &zeros([3])));
    panics("matmul: b of shape [3, 1] is of u32, expected f32", || ops::matmul(&x, &ids.reshape([3, 1])));
    panics("embedding: tokens of shape [2, 3] is of f32, expected u32", || ops::embedding(&x, &x));
    panics("embedding: table of shape [1, 3] is of u32, expected f32", || ops::embedding(&ids.reshape([1, 3]), &ids));
    panics("count_positive: counts of shape [3] is of f32, expected u32", || ops::count_positive(&x, &mut zeros([3])));
    panics("to_vec: a tensor of u32, shape [3], read as f32", || ids.to_vec::<f32>());
    panics("item: a tensor of shape [2, 3] is not one number", || x.item());
}

#[test]
#[rustfmt::skip]
fn destinations_that_may_not_be_written() {
    let (x, mut dst) = (zeros([2, 3]), zeros([2, 3]));
    ops::axpy(1.0, &x, &mut dst);
    let sharer = dst.narrow(0, 0, 1);
    panics("axpy: dst of shape [2, 3] is written, and shares its storage: drop its clones and views first", || ops::axpy(1.0, &x, &mut dst));
    drop(sharer);
    ops::axpy(1.0, &x, &mut dst);
    let mut view = zeros([3, 2]).t();
    panics("axpy: dst of shape [2, 3] is written, and is a view with strides [1, 2], not contiguous", || ops::axpy(1.0, &x, &mut view));
    let mut itself = x.clone();
    panics("matmul: c of shape [2, 3] is written, and shares its storage: drop its clones and views first", || ops::matmul_into(&zeros([2, 2]), &x, Beta::One, &mut itself));
}

#[test]
#[rustfmt::skip]
fn views_that_do_not_exist() {
    let x = zeros([2, 3]);
    panics("reshape: [2, 3] (6 elements) to [4, 2] (8)", || x.reshape([4, 2]));
    panics("transpose: axis 2 of shape [2, 3], which has 2 axes", || x.transpose(0, 2));
    panics("t: the tensor has shape [6], expected a matrix: 1 axes, not 2", || x.reshape([6]).t());
    panics("narrow: 2 from 2 on along axis 1 of shape [2, 3]", || x.narrow(1, 2, 2));
    panics("narrow: 2 from 18446744073709551615 on along axis 1 of shape [2, 3]", || x.narrow(1, usize::MAX, 2));
    panics("broadcast_to: [2, 3] does not broadcast to [3]: 2 axes, not 1 or fewer", || x.broadcast_to([3]));
    panics("broadcast_to: [2, 3] does not broadcast to [2, 4]: axis 1 is 3, not 1 or 4", || x.broadcast_to([2, 4]));
    panics("dim: axis 2 of shape [2, 3], which has 2 axes", || x.dim(2));
    panics("Shape::new: 6 axes in [1, 1, 1, 1, 1, 1], at most 5", || zeros([1, 1, 1, 1, 1, 1]));
    panics("from_slice: 3 elements for shape [2, 2]", || Tensor::from_slice(&[1.0f32; 3], [2, 2]));
    panics("Tensor::stale: shape [9223372036854775807, 3] has too many elements", || Tensor::stale([usize::MAX / 2, 3], DType::F32));
}

/// An op whose destination may not be written changes nothing.
#[test]
fn a_refused_write_leaves_the_destination_as_it_was() {
    let (x, mut dst) = (Tensor::full(1.0, [4]), Tensor::full(2.0, [4]));
    let sharer = dst.clone();
    let outcome = {
        PLACE.set(Some(Default::default())); // quiet, if the hook is there
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| ops::axpy(1.0, &x, &mut dst)));
        PLACE.take();
        outcome
    };
    assert!(outcome.is_err());
    assert_eq!(sharer.to_vec::<f32>().unwrap(), [2.0; 4]);
    assert_eq!(dst.device(), Device::Cpu);
}
