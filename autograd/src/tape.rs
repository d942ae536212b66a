//! The tape and the variables on it.

use crate::gradients::{Gradients, Slot};
use std::cell::{Cell, RefCell};
use std::fmt;
use tensor::{Tensor, ops};

/// One recorded operation: what its backward needs, in named fields. Yours as well:
///
/// ```
/// use autograd::gradcheck::{GradCheck, input};
/// use autograd::{Gradients, Op, Slot, Var};
/// use tensor::{Tensor, ops};
///
/// /// `y = x^3`, element by element.
/// struct Cube {
///     x: Tensor,
///     x_slot: Option<Slot>,
/// }
///
/// fn cube<'t>(x: &Var<'t>) -> Var<'t> {
///     let y = ops::mul(x.value(), &ops::mul(x.value(), x.value()));
///     x.tape().record("cube", y, &[x], || Cube { x: x.value().clone(), x_slot: x.slot() })
/// }
///
/// impl Op for Cube {
///     fn name(&self) -> &'static str {
///         "cube"
///     }
///
///     /// `dx = 3 x^2 dy`.
///     fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
///         grads.add(self.x_slot, ops::scale(3.0, &ops::mul(&dy, &ops::mul(&self.x, &self.x))));
///     }
/// }
///
/// // In a test: against differences of the formula in f64.
/// let formula = |x: &[&[f32]]| x[0].iter().map(|&x| (x as f64).powi(3)).collect();
/// GradCheck::new("cube", &[input(1, [3, 5])]).run(|x| cube(&x[0]), formula);
/// ```
pub trait Op {
    /// The op's name, as in `tensor::ops`.
    fn name(&self) -> &'static str;

    /// Given the gradient of the result, adds those of the inputs to `grads`. Takes itself by value: the saved tensors
    /// return to the pool as soon as they have served.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients);
}

struct Node {
    op: Box<dyn Op>,
    result: Slot,
}

/// A record of operations, in the order in which they ran.
pub struct Tape {
    nodes: RefCell<Vec<Node>>,
    slots: Cell<usize>,
    /// Results in slots below this one were used up by a backward pass.
    spent: Cell<usize>,
    records: bool,
    check: Option<RefCell<Check>>,
}

/// The first infinite or NaN value that a checking tape saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NonFinite {
    /// The scopes around the op, joined by dots, and the op: `layers.3.mlp.linear`.
    pub place: String,
    /// The result's shape.
    pub shape: tensor::Shape,
    /// Position of the element, in row-major order.
    pub element: usize,
}

impl fmt::Display for NonFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the result of {} (shape {}, element {})", self.place, self.shape, self.element)
    }
}

#[derive(Default)]
struct Check {
    scopes: Vec<String>,
    found: Option<NonFinite>,
}

impl Tape {
    /// An empty tape.
    pub fn new() -> Tape {
        Tape { nodes: RefCell::default(), slots: Cell::new(0), spent: Cell::new(0), records: true, check: None }
    }

    /// A tape that records nothing: for evaluation. Intermediate results are freed as soon as they are dropped.
    pub fn without_gradients() -> Tape {
        Tape { records: false, ..Tape::new() }
    }

    /// A tape that records nothing but looks at every result for infinities and NaN: for finding where a loss went bad.
    pub fn checking() -> Tape {
        Tape { records: false, check: Some(RefCell::default()), ..Tape::new() }
    }

    /// A variable whose gradient is wanted. The first leaf of a tape takes slot 0 of the [`Gradients`], the next slot 1, and
    /// so on; so the parameters of a model, made leaves in one order at the start of each tape, keep their slots.
    pub fn leaf(&self, value: Tensor) -> Var<'_> {
        let slot = self.records.then(|| self.new_slot(true));
        Var { tape: self, value, slot }
    }

    /// A variable whose gradient is not wanted.
    pub fn constant(&self, value: Tensor) -> Var<'_> {
        Var { tape: self, value, slot: None }
    }

    /// Names a part of the computation, until the returned guard is dropped: `layers.3`, `mlp`. For [`NonFinite`].
    pub fn scope(&self, name: impl fmt::Display) -> Scope<'_> {
        if let Some(check) = &self.check {
            check.borrow_mut().scopes.push(name.to_string());
        }
        Scope { tape: self }
    }

    /// What a [`checking`](Tape::checking) tape found first, if anything.
    pub fn first_non_finite(&self) -> Option<NonFinite> {
        self.check.as_ref()?.borrow().found.clone()
    }

    /// Number of recorded operations.
    pub fn len(&self) -> usize {
        self.nodes.borrow().len()
    }

    /// Whether nothing is recorded.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether operations are recorded.
    pub fn records(&self) -> bool {
        self.records
    }

    /// The variable for the result of an op. `op` is made and recorded only if the gradient of an input is wanted.
    ///
    /// Panics if an input is on another tape, or is a result of before the last backward pass.
    #[track_caller]
    pub fn record<'t, O: Op + 'static>(
        &'t self,
        name: &'static str,
        value: Tensor,
        inputs: &[&Var<'t>],
        op: impl FnOnce() -> O,
    ) -> Var<'t> {
        for input in inputs {
            assert!(std::ptr::eq(input.tape, self), "{name}: of variables on two tapes");
            self.expect_unspent(name, input);
        }
        if let Some(check) = &self.check {
            check.borrow_mut().look(name, &value);
        }
        let wanted = self.records && inputs.iter().any(|v| v.slot.is_some());
        let slot = wanted.then(|| {
            let result = self.new_slot(false);
            self.nodes.borrow_mut().push(Node { op: Box::new(op()), result });
            result
        });
        Var { tape: self, value, slot }
    }

    fn new_slot(&self, leaf: bool) -> Slot {
        let index = self.slots.get();
        self.slots.set(index + 1);
        Slot { index, leaf }
    }

    /// Panics if a backward pass already took the record of how `var` was made: its gradient would go nowhere.
    #[track_caller]
    fn expect_unspent(&self, op: &str, var: &Var) {
        let unspent = var.slot.is_none_or(|slot| slot.leaf || slot.index >= self.spent.get());
        assert!(unspent, "{op}: of a result (shape {}) whose record a backward pass used up", var.value.shape());
    }
}

impl Default for Tape {
    fn default() -> Self {
        Tape::new()
    }
}

/// The names of the recorded ops, in order: `Tape([linear, relu, sum])`.
impl fmt::Debug for Tape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = self.nodes.borrow();
        let names: Vec<_> = nodes.iter().map(|node| node.op.name()).collect();
        write!(f, "Tape([{}])", names.join(", "))
    }
}

impl Check {
    fn look(&mut self, name: &str, value: &Tensor) {
        if self.found.is_some() {
            return;
        }
        if let Some(element) = ops::first_non_finite(value) {
            let place = self.scopes.iter().map(String::as_str).chain([name]).collect::<Vec<_>>().join(".");
            self.found = Some(NonFinite { place, shape: value.shape(), element });
        }
    }
}

/// Ends a named part of the computation when dropped. See [`Tape::scope`].
pub struct Scope<'t> {
    tape: &'t Tape,
}

impl Drop for Scope<'_> {
    fn drop(&mut self) {
        if let Some(check) = &self.tape.check {
            check.borrow_mut().scopes.pop();
        }
    }
}

/// A tensor on a tape. The operations on it are in [`ops`](crate::ops).
#[derive(Clone)]
pub struct Var<'t> {
    pub(crate) tape: &'t Tape,
    pub(crate) value: Tensor,
    /// Where its gradient goes; `None` if it is not wanted.
    pub(crate) slot: Option<Slot>,
}

impl<'t> Var<'t> {
    /// The value.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// The value, giving up the variable.
    pub fn into_value(self) -> Tensor {
        self.value
    }

    /// Where its gradient goes, for an op of your own; `None` if it is not wanted.
    pub fn slot(&self) -> Option<Slot> {
        self.slot
    }

    /// The tape that it is on.
    pub fn tape(&self) -> &'t Tape {
        self.tape
    }

    /// Another value for this leaf, whose gradient goes into this one's slot: a copy in bf16 of a weight that is kept in f32. Products read
    /// the copy, and their sums, f32, add up where the optimiser reads them; that the copy was rounded is passed over.
    ///
    /// Panics if this is the result of an op, or if the shapes differ.
    #[track_caller]
    pub fn stand_in(&self, copy: Tensor) -> Var<'t> {
        assert!(self.slot.is_none_or(|slot| slot.leaf), "stand_in: for the result of an op, expected a leaf");
        let (shape, found) = (self.value.shape(), copy.shape());
        assert!(shape == found, "stand_in: a copy of shape {found} for a leaf of shape {shape}");
        Var { tape: self.tape, value: copy, slot: self.slot }
    }

    /// Adds the gradients of this number for all leaves to `grads`, and empties the tape: an op's saved tensors are freed
    /// as soon as its backward is done.
    ///
    /// Panics if this is not one number, depends on no leaf, or was made before the last backward pass; and if `grads` holds
    /// the gradients of a tape with more leaves.
    #[track_caller]
    pub fn backward(self, grads: &mut Gradients) {
        assert_eq!(self.value.elements(), 1, "backward: from shape {}, not from one number", self.value.shape());
        let slot = self.slot.expect("backward: from a value that depends on no leaf of a recording tape");
        self.tape.expect_unspent("backward", &self);
        for Node { result, .. } in self.tape.nodes.borrow().iter() {
            let free = grads.at(result.index).is_none();
            assert!(free, "backward: slot {} holds the gradient of another tape's leaf", result.index);
        }
        self.tape.spent.set(self.tape.slots.get());
        grads.add(Some(slot), Tensor::full_on(&self.value.device(), 1.0, self.value.shape()));
        loop {
            // In a statement of its own: the tape must not be borrowed while the op runs.
            let node = self.tape.nodes.borrow_mut().pop();
            let Some(Node { op, result }) = node else { break };
            // An op whose result the loss does not depend on has no gradient.
            if let Some(dy) = grads.take_slot(result) {
                grads.at_the_last = result == slot;
                op.backward(dy, grads);
            }
        }
        grads.at_the_last = false;
    }
}

impl fmt::Debug for Var<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Var({:?}, gradient {})", self.value, if self.slot.is_some() { "wanted" } else { "not wanted" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gradcheck::input;

    fn vector(x: &[f32]) -> Tensor {
        Tensor::from_slice(x, [x.len()])
    }

    fn gradient(grads: &Gradients, x: &Var) -> Vec<f32> {
        grads.get(x).expect("the leaf has a gradient").to_vec().unwrap()
    }

    /// `sum(x w^2) + sum(x)`, in small integers, so that sums are exact in any order.
    fn loss<'t>(x: &Var<'t>, w: &Var<'t>) -> Var<'t> {
        (x * w * w).sum() + x.sum()
    }

    #[test]
    fn backward_passes_add_up_to_the_gradient_of_the_sum() {
        let (w, batches) = (vector(&[1.0, -2.0, 3.0]), [vector(&[4.0, 5.0, 6.0]), vector(&[-7.0, 8.0, 9.0])]);
        let mut one_by_one = Gradients::default();
        for x in &batches {
            let tape = Tape::new();
            let w = tape.leaf(w.clone());
            loss(&tape.constant(x.clone()), &w).backward(&mut one_by_one);
        }
        let tape = Tape::new();
        let w = tape.leaf(w);
        let [a, b] = batches.map(|x| loss(&tape.constant(x), &w));
        let mut at_once = Gradients::default();
        (a + b).backward(&mut at_once);
        assert_eq!(gradient(&one_by_one, &w), [2.0 * -3.0, 2.0 * -2.0 * 13.0, 2.0 * 3.0 * 15.0]);
        assert_eq!(gradient(&one_by_one, &w), gradient(&at_once, &w));
        one_by_one.clear();
        assert!(one_by_one.get(&w).is_none());
    }

    #[test]
    fn leaves_keep_their_slots_and_constants_have_none() {
        let tape = Tape::new();
        let (a, b) = (tape.leaf(vector(&[2.0])), tape.leaf(vector(&[3.0])));
        let c = tape.constant(vector(&[5.0]));
        let mut grads = Gradients::default();
        (&a * &b * &c).sum().backward(&mut grads);
        assert_eq!([0, 1].map(|i| grads.at(i).unwrap().item()), [15.0, 10.0]);
        assert!(grads.get(&c).is_none() && grads.at(2).is_none());
    }

    struct Unwanted;

    impl Op for Unwanted {
        fn name(&self) -> &'static str {
            "unwanted"
        }
        fn backward(self: Box<Self>, _: Tensor, _: &mut Gradients) {
            panic!("unwanted: the loss does not depend on it");
        }
    }

    #[test]
    fn ops_that_the_loss_does_not_depend_on_are_skipped() {
        let tape = Tape::new();
        let x = tape.leaf(vector(&[1.0, 2.0]));
        let y = x.scale(3.0);
        let aside = tape.record("unwanted", y.value().clone(), &[&y], || Unwanted);
        let _further = aside.sum();
        let constants = tape.constant(vector(&[1.0])).exp();
        assert_eq!(format!("{tape:?}"), "Tape([scale, unwanted, sum])", "an op on constants is not recorded");
        assert_eq!((tape.len(), constants.slot), (3, None));
        let mut grads = Gradients::default();
        y.sum().backward(&mut grads);
        assert!(tape.is_empty());
        assert_eq!(gradient(&grads, &x), [3.0, 3.0]);
    }

    /// An addition hands one gradient to both inputs; what is then added to the one must not show in the other. In place,
    /// by a sum, by a product with beta = 1, and by a kernel that only adds.
    #[test]
    fn a_shared_gradient_is_copied_before_it_is_written() {
        type Use = for<'t> fn(&Var<'t>) -> Var<'t>;
        let uses: [(Use, f32); 4] = [
            (|a| a.scale(3.0), 3.0),
            (|a| a.linear(&a.tape().constant(Tensor::from_slice(&[2.0f32, 0.0, 0.0, 2.0], [2, 2]))), 2.0),
            (|a| a.narrow(0, 0, 1), 1.0),
            (|a| a.embedding(&Tensor::from_slice(&[0u32], [1])), 1.0),
        ];
        for (other_use, factor) in uses {
            let tape = Tape::new();
            let (a, b) = (tape.leaf(input(1, [1, 2])), tape.leaf(input(2, [1, 2])));
            let first = other_use(&a).sum(); // recorded first, so its backward comes last
            let loss = (&a + &b).sum() + first;
            let mut grads = Gradients::default();
            loss.backward(&mut grads);
            assert_eq!(gradient(&grads, &a), [1.0 + factor; 2]);
            assert_eq!(gradient(&grads, &b), [1.0; 2]);
        }
    }

    #[test]
    fn a_checking_tape_names_the_first_infinity_and_its_scope() {
        let tape = Tape::checking();
        let x = tape.leaf(vector(&[1.0, 2.0, 200.0, 300.0]));
        {
            let _layer = tape.scope(format_args!("layers.{}", 3));
            {
                let _attention = tape.scope("self_attn");
                let _ = x.scale(2.0);
            }
            let _mlp = tape.scope("mlp");
            let y = x.exp();
            let _ = &y - &y; // a NaN, but not the first
        }
        let found = tape.first_non_finite().expect("checking: nothing was found");
        assert_eq!(found, NonFinite { place: "layers.3.mlp.exp".into(), shape: [4].into(), element: 2 });
        assert_eq!(found.to_string(), "the result of layers.3.mlp.exp (shape [4], element 2)");
        assert!(tape.is_empty() && !tape.records());
        let good = Tape::checking();
        let _ = good.leaf(vector(&[1.0])).exp();
        assert_eq!(good.first_non_finite(), None);
    }

    #[test]
    #[should_panic(expected = "scale: of a result (shape [1]) whose record a backward pass used up")]
    fn a_result_of_before_a_backward_pass_is_refused() {
        let tape = Tape::new();
        let y = tape.leaf(vector(&[1.0])).exp();
        y.sum().backward(&mut Gradients::default());
        let _ = y.scale(2.0);
    }

    #[test]
    fn a_leaf_outlives_a_backward_pass() {
        let tape = Tape::new();
        let x = tape.leaf(vector(&[2.0]));
        let mut grads = Gradients::default();
        (0..3).for_each(|_| (&x * &x).sum().backward(&mut grads));
        assert_eq!(gradient(&grads, &x), [12.0]);
    }

    #[test]
    #[should_panic(expected = "mul: of variables on two tapes")]
    fn variables_of_two_tapes_are_refused() {
        let (one, two) = (Tape::new(), Tape::new());
        let _ = one.leaf(vector(&[1.0])) * two.leaf(vector(&[1.0]));
    }

    #[test]
    #[should_panic(expected = "backward: slot 1 holds the gradient of another tape's leaf")]
    fn gradients_of_a_tape_with_more_leaves_are_refused() {
        let mut grads = Gradients::default();
        let tape = Tape::new();
        (tape.leaf(vector(&[1.0])) * tape.leaf(vector(&[1.0]))).sum().backward(&mut grads);
        Tape::new().leaf(vector(&[1.0])).sum().backward(&mut grads);
    }

    #[test]
    #[should_panic(expected = "backward: from shape [2], not from one number")]
    fn backward_starts_from_one_number() {
        Tape::new().leaf(vector(&[1.0, 2.0])).exp().backward(&mut Gradients::default());
    }
}
