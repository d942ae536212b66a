//! What a GPU does not do, as sentences: here the interpreter of the kernels' PTX. What it does is tested beside the ops.

use tensor::{DType, Device, Tensor, ops};

#[test]
fn without_a_gpu_the_probe_says_why() {
    if let Err(error) = cuda::Device::new(0) {
        assert_eq!(error, cuda::probe().unwrap_err());
        assert!(error.to_string().contains("NVIDIA driver"), "{error}");
    }
}

#[test]
fn tokens_that_do_not_exist_show_as_nan_on_a_gpu() {
    let gpu = Device::Cuda(cuda_testing::device());
    let tokens = Tensor::from_slice(&[0u32, 3], [2]).to_device(&gpu).unwrap();
    let out = ops::embedding(&Tensor::zeros_on(&gpu, [3, 2]), &tokens).to_vec::<f32>().unwrap();
    assert!(out[..2] == [0.0; 2] && out[2..].iter().all(|x| x.is_nan()), "embedding: {out:?}");
    let loss = ops::lm_head_loss(&Tensor::zeros_on(&gpu, [2, 4]), &Tensor::zeros_on(&gpu, [3, 4]), &tokens);
    let loss = loss.value();
    assert!(loss.is_nan(), "lm_head_loss: {loss}");
}

fn message(f: impl FnOnce() + std::panic::UnwindSafe) -> String {
    let panic = std::panic::catch_unwind(f).expect_err("a panic");
    *panic.downcast::<String>().expect("a panic with a sentence")
}

#[test]
fn operands_on_two_devices_are_named() {
    let said = message(|| {
        let there = Tensor::zeros_on(&Device::Cuda(cuda_testing::device()), [2]);
        ops::add(&there, &Tensor::zeros([2]));
    });
    assert_eq!(said, "add: operands on the interpreter and cpu; move them to one with to_device");
}

#[test]
fn what_a_gpu_refuses_is_a_sentence() {
    let small = || {
        let mut setup = cuda_testing::Interpreter::default();
        setup.properties.total_memory = 1 << 16;
        Device::Cuda(setup.device())
    };
    let error = Tensor::zeros([1 << 15]).to_device(&small()).unwrap_err().to_string();
    assert!(error.starts_with("out of memory on the interpreter: asked for 131072 bytes"), "{error}");
    let said = message(|| {
        let x = Tensor::full_on(&small(), 1.0, [10_000]);
        ops::add(&x, &x);
    });
    assert!(said.starts_with("add: out of memory on the interpreter: asked for 40000 bytes"), "{said}");
    let said = message(|| drop(Tensor::stale_on(&small(), [1 << 15], DType::F32)));
    assert!(said.starts_with("a tensor of shape [32768]: out of memory on the interpreter"), "{said}");
}
