//! A wrong shape panics with the op and the shapes, at the line of the user's code. In a process of their own: the
//! panic hook is of the process.

use autograd::Tape;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use tensor::{Activation, Tensor};

static LAST: Mutex<Option<(String, u32)>> = Mutex::new(None);

#[test]
fn panics_name_op_and_shapes_and_point_at_the_caller() {
    std::panic::set_hook(Box::new(|info| {
        *LAST.lock().unwrap() = info.location().map(|at| (at.file().to_string(), at.line()));
    }));
    let tape = Tape::without_gradients();
    let x = |shape: &[usize]| tape.constant(Tensor::zeros(shape));
    let tokens = Tensor::from_slice(&[0u32, 1], [2]);
    type Case<'a> = (&'a str, &'a [&'a str], u32, Box<dyn Fn() + 'a>);
    #[rustfmt::skip]
    let cases: Vec<Case> = vec![
        ("add", &["[2, 3]", "[2, 4]"], line!(), Box::new(|| drop(&x(&[2, 3]) + &x(&[2, 4])))),
        ("sub", &["[2, 3]", "[2]"], line!(), Box::new(|| drop(x(&[2, 3]) - x(&[2])))),
        ("mul", &["[2, 3]", "[3, 1]"], line!(), Box::new(|| drop(x(&[2, 3]) * &x(&[3, 1])))),
        ("div", &["[2, 3]", "[4]"], line!(), Box::new(|| drop(x(&[2, 3]) / &x(&[4])))),
        ("sum_to", &["[2, 3]", "[3, 1]"], line!(), Box::new(|| drop(x(&[2, 3]).sum_to([3, 1])))),
        ("matmul", &["[2, 3]", "[4, 5]"], line!(), Box::new(|| drop(x(&[2, 3]).matmul(&x(&[4, 5]))))),
        ("linear", &["[2, 3]", "[5, 4]"], line!(), Box::new(|| drop(x(&[2, 3]).linear(&x(&[5, 4]))))),
        ("rms_norm", &["[4]", "[3]"], line!(), Box::new(|| drop(x(&[2, 3]).rms_norm(&x(&[4]), 1e-5)))),
        ("rope", &["[2, 3]"], line!(), Box::new(|| drop(x(&[2, 3]).rope(&Tensor::zeros([8, 1]), &Tensor::zeros([8, 1]), 0)))),
        ("attention", &["[1, 2, 3, 4]", "[1, 2, 2, 4]"], line!(), Box::new(|| drop(x(&[1, 2, 3, 4]).attention(&x(&[1, 2, 2, 4]), &x(&[1, 2, 2, 4]), 1.0)))),
        ("embedding", &["[3]"], line!(), Box::new(|| drop(x(&[3]).embedding(&tokens)))),
        ("lm_head_loss", &["[3, 4]", "[2]"], line!(), Box::new(|| drop(x(&[3, 4]).lm_head_loss(&x(&[5, 4]), &tokens, 1.0).0))),
        ("gated_activation", &["[2, 4]", "[2, 3]"], line!(), Box::new(|| drop(x(&[2, 3]).gated_activation(&x(&[2, 4]), Activation::Relu)))),
        ("gated_down_proj", &["[2, 3]", "[5, 4]"], line!(), Box::new(|| drop(x(&[2, 3]).gated_down_proj(&x(&[2, 3]), &x(&[5, 4]), Activation::Relu)))),
        ("reshape", &["[2, 3]", "[4]"], line!(), Box::new(|| drop(x(&[2, 3]).reshape([4])))),
        ("transpose", &["[2, 3]"], line!(), Box::new(|| drop(x(&[2, 3]).transpose(0, 2)))),
        ("narrow", &["[2, 3]"], line!(), Box::new(|| drop(x(&[2, 3]).narrow(1, 2, 2)))),
    ];
    let mut wrong = Vec::new();
    for (op, shapes, line, case) in &cases {
        let payload = catch_unwind(AssertUnwindSafe(case)).err();
        let said = payload.and_then(|p| p.downcast_ref::<String>().cloned()).unwrap_or_default();
        let at = LAST.lock().unwrap().take();
        let names = said.starts_with(&format!("{op}: ")) && shapes.iter().all(|shape| said.contains(shape));
        if !names || at != Some((file!().to_string(), *line)) {
            wrong.push(format!("expected {op}, {shapes:?}, line {line}; got \"{said}\" at {at:?}"));
        }
    }
    let _ = std::panic::take_hook();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
