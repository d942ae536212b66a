//! The device, its memory, events and graphs, over the driver that runs kernels in the interpreter.

use cuda::driver::Properties;
use cuda::ops::elementwise::{add, scale};
use cuda::{Buffer, Device, Error};
use cuda_checks::{CHECKS, Size};
use cuda_testing::{Interpreter, device, on, stale};

/// Where `device` may be a GPU, and the test wants what only an interpreter has.
fn interpreted() -> Device {
    Interpreter::default().device()
}

fn pooled() -> Device {
    Interpreter { pooled: true, ..Interpreter::default() }.device()
}

/// What the other tests run without one.
#[test]
fn copies_events_and_graphs_go_with_a_pool_too() {
    for check in CHECKS.iter().filter(|check| check.family == "device") {
        check.run(&pooled(), Size::Small).unwrap();
    }
}

#[test]
#[should_panic(expected = "the part 3..5 of 4 elements")]
fn a_part_outside_of_a_buffer_is_refused() {
    let _ = on(&device(), &[0u8; 4]).as_slice().part(3..5);
}

#[test]
#[should_panic(expected = "add_f32: operands on")]
fn operands_of_two_devices_are_refused() {
    let (a, b) = (interpreted(), interpreted());
    let mut dst = stale(&a, 1);
    let _ = add(on(&a, &[1.0]).as_slice(), on(&b, &[1.0]).as_slice(), dst.as_mut());
}

#[test]
fn freed_blocks_are_used_again() {
    let device = pooled();
    let step = || {
        let (a, b) = (on(&device, &[1.0f32; 700]), on(&device, &[2.0f32; 3000]));
        let mut c = stale(&device, 700);
        add(a.as_slice(), b.as_slice().part(0..700), c.as_mut()).unwrap();
        assert_eq!(c.to_vec().unwrap(), [3.0; 700]);
    };
    step();
    let first = device.memory();
    assert!(first.fresh == 3 && first.in_use == 0 && first.waiting > 0 && first.peak == first.waiting, "{first:?}");
    (0..10).for_each(|_| step());
    assert_eq!(device.memory(), first, "a steady state takes no memory from the driver");
    device.trim().unwrap();
    assert_eq!((device.memory().waiting, device.memory().fresh), (0, 3));
}

#[test]
fn out_of_memory_frees_what_waits_and_then_says_how_much_there_is() {
    const MIB: usize = 1 << 20;
    let properties = Properties { total_memory: 20 * MIB, ..Interpreter::default().properties };
    let device = Interpreter { pooled: true, properties, ..Interpreter::default() }.device();
    let kept = Buffer::<u8>::stale(&device, 4 * MIB).unwrap();
    drop(Buffer::<u8>::stale(&device, 10 * MIB).unwrap());
    // 6 MiB are free, and 10 wait.
    let large = Buffer::<u8>::stale(&device, 15 * MIB).expect("what waits is freed");
    drop(large);
    let error = Buffer::<f32>::stale(&device, 5 * MIB).unwrap_err();
    let text = error.to_string();
    assert_eq!(
        error,
        Error::OutOfMemory {
            device: "the interpreter".into(),
            asked: 20 * MIB,
            free: 16 * MIB,
            total: 20 * MIB,
            in_use: 4 * MIB
        }
    );
    assert!(
        text.contains("asked for 20.0 MiB, 16.0 MiB of 20.0 MiB free") && text.contains("lower the batch"),
        "{text}"
    );
    assert_eq!(kept.len(), 4 * MIB);
    assert!(matches!(Buffer::<f32>::stale(&device, usize::MAX), Err(Error::OutOfMemory { .. })));
}

#[test]
fn stale_buffers_of_the_pool_are_nan_if_that_is_wanted() {
    let device = pooled();
    device.set_poison(true);
    drop(on(&device, &[1.0f32; 10]));
    assert!(stale::<f32>(&device, 10).to_vec().unwrap().iter().all(|x| x.is_nan()));
}

#[test]
fn a_failed_kernel_is_named_and_ends_the_device() {
    for device in [interpreted(), pooled()] {
        let (a, unwritten, mut dst) = (on(&device, &[1.0f32; 300]), stale::<f32>(&device, 300), stale(&device, 300));
        scale(2.0, a.as_slice(), dst.as_mut()).unwrap();
        let error = add(a.as_slice(), unwritten.as_slice(), dst.as_mut()).unwrap_err();
        let Error::Kernel { launch, reason, .. } = &error else { panic!("{error}") };
        assert!(launch.contains("add_f32 (launch 2, grid 1 x 1 x 1, block 256 x 1 x 1)"), "{error}");
        assert!(reason.contains("never written") && reason.contains("thread ("), "{error}");
        assert!(matches!(a.to_vec(), Err(Error::Kernel { .. })), "nothing goes on after a failed kernel");
    }
}

#[test]
fn old_gpus_and_drivers_are_refused_with_a_sentence() {
    let properties = Properties { compute_capability: (7, 5), ..Interpreter::default().properties };
    let driver = Interpreter { properties, ..Interpreter::default() }.driver();
    let error = Device::with_driver("old", driver).unwrap_err().to_string();
    assert_eq!(error, "PTX interpreter has compute capability 7.5; the kernels need 8.0 (Ampere) or later");

    let properties = Properties { driver_version: (11, 2), ..Interpreter::default().properties };
    let device = Interpreter { properties, ptx_version: (7, 2), ..Interpreter::default() }.device();
    let a = on(&device, &[1.0]);
    let error = scale(1.0, a.as_slice(), stale(&device, 1).as_mut()).unwrap_err().to_string();
    assert!(
        error.contains("too old for the kernels of elementwise") && error.contains("PTX ISA 7.4 (driver R470"),
        "{error}"
    );
    assert!(error.contains("supports CUDA 11.2"), "{error}");
}

#[test]
fn a_module_that_is_refused_says_why() {
    static MODULE: cuda::Module =
        cuda::Module { name: "nonsense", ptx: ".version 7.4\n.target sm_80\n.address_size 64\nnonsense\n" };
    let driver = Interpreter::default().driver();
    let failure = driver.load(MODULE.ptx).unwrap_err();
    assert!(failure.log.contains("nonsense"), "{failure:?}");
}

#[test]
fn events_tell_the_time_between_them() {
    let device = interpreted();
    let a = on(&device, &[1.0]);
    let mut b = stale(&device, 1);
    let start = device.record().unwrap();
    (0..3).for_each(|_| scale(2.0, a.as_slice(), b.as_mut()).unwrap());
    let end = device.record().unwrap();
    // The interpreter's clock counts calls.
    assert_eq!(end.milliseconds_since(&start).unwrap(), 3.0);
}

#[test]
fn what_a_graph_cannot_hold_is_refused_while_it_is_recorded() {
    let device = device();
    let mut a = on(&device, &[1.0f32]);
    let mut calls = 0;
    let error = device.graph(|| {
        calls += 1;
        // The first call is not recorded.
        if calls == 2 { a.as_mut().copy_from_host(&[2.0]) } else { Ok(()) }
    });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("copying 4 bytes to it: not possible while a graph is being recorded"), "{error}");
    // The recording has ended.
    a.as_mut().copy_from_host(&[3.0]).unwrap();
    assert_eq!(a.to_vec().unwrap(), [3.0]);
}
