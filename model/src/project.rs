//! Named parts of the computation.

use autograd::{Tape, Var};

/// `y = x W^T`, under the projection's name.
#[track_caller]
pub(crate) fn project<'t>(x: &Var<'t>, name: &str, weight: &Var<'t>) -> Var<'t> {
    scoped(x.tape(), name, || x.linear(weight))
}

/// Runs `f` as the part `name` of the computation, so that a checking tape can say where an infinity or NaN arose.
pub(crate) fn scoped<R>(tape: &Tape, name: &str, f: impl FnOnce() -> R) -> R {
    let _scope = tape.scope(name);
    f()
}
