//! Reverse-mode differentiation, define-by-run.
//!
//! A [`Tape`] records what is computed on its [`Var`]s; [`Var::backward`] walks it back and leaves the gradients of the
//! leaves in a [`Gradients`]. An op is one file in [`ops`]: a struct of named saved tensors, its forward above its backward.
//! [`gradcheck`] holds them, and ops of your own ([`Op`]), to differences of their formulas.
//!
//! ```
//! use autograd::{Gradients, Tape};
//! use tensor::Tensor;
//!
//! let tape = Tape::new();
//! let x = tape.leaf(Tensor::from_slice(&[1.0f32], [1]));
//! let loss = &x + &x;
//! let mut grads = Gradients::default();
//! loss.backward(&mut grads);
//! assert_eq!(grads.get(&x).unwrap().to_vec::<f32>().unwrap(), [2.0]);
//! ```

#![forbid(unsafe_code)]

pub mod gradcheck;
mod gradients;
pub mod ops;
mod tape;

pub use gradients::{Gradients, Slot};
pub use tape::{NonFinite, Op, Scope, Tape, Var};
