//! Random expressions: the tape's gradients against differences of an f64 interpreter of the same expression.
//!
//! The expressions are polynomials of degree 6 at most. For these a central difference, extrapolated twice, is exact in
//! exact arithmetic (its error begins with the seventh derivative), so steps may be large and only rounding is left. The
//! tape's gradient is a sum of monomials, each of which went through at most K roundings; so it is off by at most
//! `(K + 4) 2^-24 S`, where S is the gradient of the same polynomial with all coefficients and inputs made positive.

use autograd::gradcheck::input;
use autograd::{Gradients, Tape, Var};
use kernels::testing::ROUNDING;
use proptest::prelude::*;
use tensor::Tensor;

/// Extents are 1 or N, so that any two shapes broadcast.
const N: usize = 3;
const MAX_DEGREE: usize = 6;
const STEP: f64 = 1.0 / 16.0;
const FACTOR: f32 = -0.7;

/// A node's operands are earlier nodes. The first nodes are the leaves.
#[derive(Clone, Copy, Debug)]
enum Node {
    Add(usize, usize),
    Sub(usize, usize),
    Mul(usize, usize),
    Matmul(usize, usize),
    Scale(usize),
    Neg(usize),
    Transpose(usize),
    Reshape(usize),
    Narrow(usize),
    Sum(usize),
}

/// An expression: the leaves' shapes, and its nodes with their shapes.
#[derive(Clone, Debug)]
struct Expression {
    shapes: Vec<Vec<usize>>,
    leaves: usize,
    nodes: Vec<Node>,
}

impl Expression {
    /// Reads a list of random numbers as an expression; what would not fit becomes an addition.
    fn new(codes: &[(u8, usize, usize)]) -> Expression {
        let mut shapes = vec![vec![N, N], vec![N], vec![N, 1], vec![]];
        let mut degrees = vec![1; shapes.len()];
        let leaves = shapes.len();
        let mut nodes = Vec::new();
        for &(code, a, b) in codes {
            // Late operands are more likely: deep expressions. Even numbers mean the newest node.
            let operand = |i: usize| if i.is_multiple_of(2) { shapes.len() - 1 } else { i / 2 % shapes.len() };
            let (a, b) = (operand(a), operand(b));
            let is_product = degrees[a] + degrees[b] <= MAX_DEGREE;
            let inner = |a: &[usize], b: &[usize]| a.len() == 2 && b.len() == 2 && a[1] == b[0];
            let node = match code {
                0 => Node::Sub(a, b),
                1 | 2 if is_product => Node::Mul(a, b),
                3 | 4 if is_product && inner(&shapes[a], &shapes[b]) => Node::Matmul(a, b),
                5 => Node::Scale(a),
                6 => Node::Neg(a),
                7 if shapes[a].len() == 2 => Node::Transpose(a),
                8 => Node::Reshape(a),
                9 if shapes[a].first() == Some(&N) => Node::Narrow(a),
                10 => Node::Sum(a),
                _ => Node::Add(a, b),
            };
            let (shape, degree) = match node {
                Node::Add(a, b) | Node::Sub(a, b) => (broadcast(&shapes[a], &shapes[b]), degrees[a].max(degrees[b])),
                Node::Mul(a, b) => (broadcast(&shapes[a], &shapes[b]), degrees[a] + degrees[b]),
                Node::Matmul(a, b) => (vec![shapes[a][0], shapes[b][1]], degrees[a] + degrees[b]),
                Node::Scale(a) | Node::Neg(a) => (shapes[a].clone(), degrees[a]),
                Node::Transpose(a) => (vec![shapes[a][1], shapes[a][0]], degrees[a]),
                Node::Reshape(a) => (reshaped(&shapes[a]), degrees[a]),
                Node::Narrow(a) => ([&[1], &shapes[a][1..]].concat(), degrees[a]),
                Node::Sum(a) => (vec![], degrees[a]),
            };
            nodes.push(node);
            shapes.push(shape);
            degrees.push(degree);
        }
        Expression { shapes, leaves, nodes }
    }

    /// On the tape: the sum of the last node.
    fn record<'t>(&self, leaves: &[Var<'t>]) -> Var<'t> {
        let mut v = leaves.to_vec();
        for node in &self.nodes {
            v.push(match *node {
                Node::Add(a, b) => &v[a] + &v[b],
                Node::Sub(a, b) => &v[a] - &v[b],
                Node::Mul(a, b) => &v[a] * &v[b],
                Node::Matmul(a, b) => v[a].matmul(&v[b]),
                Node::Scale(a) => v[a].scale(FACTOR),
                Node::Neg(a) => -&v[a],
                Node::Transpose(a) => v[a].transpose(0, 1),
                Node::Reshape(a) => v[a].reshape(reshaped(&v[a].value().shape()).as_slice()),
                Node::Narrow(a) => v[a].narrow(0, 1, 1),
                Node::Sum(a) => v[a].sum(),
            });
        }
        v.last().expect("there are leaves").sum()
    }

    /// The same in f64. With `positive`, all coefficients are made so.
    fn evaluate(&self, leaves: &[Vec<f64>], positive: bool) -> f64 {
        let mut v = leaves.to_vec();
        let sign = if positive { 1.0 } else { -1.0 };
        for (node, shape) in self.nodes.iter().zip(&self.shapes[self.leaves..]) {
            let elements = 0..shape.iter().product();
            // The element of operand `x` that meets element `e` of the result, by NumPy's rule.
            let at = |x: usize, e: usize| v[x][broadcast_index(&self.shapes[x], shape, e)];
            let cols = shape.last().copied().unwrap_or(1);
            let result = match *node {
                Node::Add(a, b) => elements.map(|e| at(a, e) + at(b, e)).collect(),
                Node::Sub(a, b) => elements.map(|e| at(a, e) + sign * at(b, e)).collect(),
                Node::Mul(a, b) => elements.map(|e| at(a, e) * at(b, e)).collect(),
                Node::Matmul(a, b) => {
                    let inner = self.shapes[b][0];
                    let dot =
                        |e: usize| (0..inner).map(|k| v[a][e / cols * inner + k] * v[b][k * cols + e % cols]).sum();
                    elements.map(dot).collect()
                }
                Node::Scale(a) => v[a].iter().map(|x| x * sign * FACTOR.abs() as f64).collect(),
                Node::Neg(a) => v[a].iter().map(|x| sign * x).collect(),
                Node::Transpose(a) => elements.map(|e| v[a][e % cols * shape[0] + e / cols]).collect(),
                Node::Reshape(a) => v[a].clone(),
                Node::Narrow(a) => v[a][v[a].len() / N..][..v[a].len() / N].to_vec(),
                Node::Sum(a) => vec![v[a].iter().sum()],
            };
            v.push(result);
        }
        v.last().expect("there are leaves").iter().sum()
    }

    /// K for each leaf: the most roundings that a monomial of its gradient goes through.
    fn roundings(&self) -> Vec<usize> {
        let elements = |x: usize| self.shapes[x].iter().product::<usize>();
        let mut forward = vec![0; self.leaves];
        for node in &self.nodes {
            forward.push(match *node {
                Node::Add(a, b) | Node::Sub(a, b) => forward[a].max(forward[b]) + 1,
                Node::Mul(a, b) => forward[a] + forward[b] + 1,
                Node::Matmul(a, b) => forward[a] + forward[b] + N,
                Node::Scale(a) => forward[a] + 1,
                Node::Neg(a) | Node::Transpose(a) | Node::Reshape(a) | Node::Narrow(a) => forward[a],
                Node::Sum(a) => forward[a] + elements(a),
            });
        }
        let mut backward = vec![0; forward.len()];
        for (i, node) in self.nodes.iter().enumerate().rev() {
            let result = i + self.leaves;
            // Summing over repeated axes, and adding to what other uses left there.
            let here = backward[result] + elements(result) + 1;
            let mut to = |x: usize, more: usize| backward[x] = backward[x].max(here + more) + 1;
            match *node {
                Node::Add(a, b) | Node::Sub(a, b) => [a, b].map(|x| to(x, 0)).into_iter().collect(),
                Node::Mul(a, b) => [(a, b), (b, a)].map(|(x, other)| to(x, forward[other] + 1)).into_iter().collect(),
                Node::Matmul(a, b) => {
                    [(a, b), (b, a)].map(|(x, other)| to(x, forward[other] + N)).into_iter().collect()
                }
                Node::Scale(a) => to(a, 1),
                Node::Neg(a) | Node::Transpose(a) | Node::Reshape(a) | Node::Narrow(a) | Node::Sum(a) => to(a, 0),
            }
        }
        backward[..self.leaves].to_vec()
    }

    /// The derivative for element `e` of leaf `i`.
    fn slope(&self, leaves: &[Vec<f64>], i: usize, e: usize, positive: bool) -> f64 {
        let difference = |h: f64| {
            let [above, below] = [h, -h].map(|h| {
                let mut leaves = leaves.to_vec();
                leaves[i][e] += h;
                self.evaluate(&leaves, positive)
            });
            (above - below) / (2.0 * h)
        };
        let [d1, d2, d3] = [STEP, STEP / 2.0, STEP / 4.0].map(difference);
        let [wide, narrow] = [(d1, d2), (d2, d3)].map(|(wide, narrow)| (4.0 * narrow - wide) / 3.0);
        (16.0 * narrow - wide) / 15.0
    }
}

fn broadcast(a: &[usize], b: &[usize]) -> Vec<usize> {
    let rank = a.len().max(b.len());
    let extent = |s: &[usize], axis: usize| (axis + s.len()).checked_sub(rank).map_or(1, |i| s[i]);
    (0..rank).map(|axis| extent(a, axis).max(extent(b, axis))).collect()
}

/// Where element `e` of shape `to` lies in a tensor of shape `from` that broadcasts to it.
fn broadcast_index(from: &[usize], to: &[usize], mut e: usize) -> usize {
    let (mut index, mut stride) = (0, 1);
    for (axis, &extent) in to.iter().enumerate().rev() {
        let position = e % extent;
        e /= extent;
        if let Some(own) = (axis + from.len()).checked_sub(to.len()).map(|i| from[i]) {
            index += if own == 1 { 0 } else { position * stride };
            stride *= own;
        }
    }
    index
}

/// What the reshape node makes of a shape: the axes reversed, or one more.
fn reshaped(shape: &[usize]) -> Vec<usize> {
    match shape {
        [m, n] => vec![*n, *m],
        [n] => vec![1, *n],
        _ => vec![1],
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn gradients_of_random_expressions(
        codes in prop::collection::vec((0..12u8, any::<usize>(), any::<usize>()), 1..16),
        seed in any::<u32>(),
        constants in 0..15u8,
    ) {
        let expression = Expression::new(&codes);
        let shape = |i: usize| expression.shapes[i].as_slice();
        let values: Vec<Tensor> = (0..expression.leaves).map(|i| input(seed as u64 * 4 + i as u64, shape(i))).collect();
        let tape = Tape::new();
        let is_constant = |i: usize| constants >> i & 1 == 1;
        let var = |(i, x): (usize, &Tensor)| if is_constant(i) { tape.constant(x.clone()) } else { tape.leaf(x.clone()) };
        let leaves: Vec<Var> = values.iter().enumerate().map(var).collect();
        let loss = expression.record(&leaves);
        let value = loss.value().item() as f64;
        let mut grads = Gradients::default();
        if loss.slot().is_some() {
            loss.backward(&mut grads);
        }

        let exact: Vec<Vec<f64>> =
            values.iter().map(|x| x.to_vec::<f32>().unwrap().iter().map(|&x| x as f64).collect()).collect();
        let sizes: Vec<Vec<f64>> = exact.iter().map(|x| x.iter().map(|x| x.abs()).collect()).collect();
        prop_assert!(value.is_finite());
        let roundings = expression.roundings();
        // Of the differences, in f64: as many roundings, over the smallest step; the polynomial grows with the step.
        let grown: Vec<Vec<f64>> = sizes.iter().map(|x| x.iter().map(|x| x + STEP).collect()).collect();
        let noise = expression.evaluate(&grown, true) * f64::EPSILON / (STEP / 4.0);
        for (i, leaf) in leaves.iter().enumerate() {
            if is_constant(i) {
                prop_assert!(grads.get(leaf).is_none(), "leaf {} is constant", i);
                continue;
            }
            let gradient = grads.get(leaf).map_or(vec![0.0; exact[i].len()], |g| g.to_vec::<f32>().unwrap());
            for (e, &tape) in gradient.iter().enumerate() {
                let expected = expression.slope(&exact, i, e, false);
                let size = expression.slope(&sizes, i, e, true);
                let k = (roundings[i] + 4) as f64;
                let (off, bound) = ((tape as f64 - expected).abs(), k * (ROUNDING * size + noise));
                prop_assert!(
                    off <= bound,
                    "leaf {i} {:?}, element {e}: {tape:e}, by differences {expected:e}: off by {off:e}, bound {bound:e}",
                    shape(i)
                );
            }
        }
    }
}
