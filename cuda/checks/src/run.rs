//! How a check runs, and what comes of it.

use bytemuck::Pod;
use cuda::{Buffer, Device, Error};
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// What a kernel must do.
pub struct Check {
    /// Of the file that it is in.
    pub family: &'static str,
    /// What must hold, as the name of a test; the kernel's name is in it.
    pub name: &'static str,
    /// Compares. Fails only if the device does.
    pub run: fn(&mut Run) -> Result<(), Error>,
}

/// Which shapes a check takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Those that the interpreter runs in seconds: around tiles, blocks and pieces of 16 bytes.
    Small,
    /// Those, and large ones: where indices are large, and all multiprocessors are at work.
    Card,
}

/// What came of a check.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Comparisons made, each of a whole result.
    pub comparisons: usize,
    /// Numbers compared in them.
    pub values: usize,
    /// Of the comparisons with a bound, the one that came nearest to it: the largest error as a share of its bound, and what was compared.
    pub worst: Option<(f64, String)>,
    /// What went wrong; nothing if all is well.
    pub failed: Option<Failed>,
    /// How long it took.
    pub time: Duration,
}

/// What went wrong.
#[derive(Clone, Debug)]
pub enum Failed {
    /// Comparisons: how many, and the first of them in sentences that begin with the kernel's name.
    Comparisons(usize, Vec<String>),
    /// The device failed, or its memory ended.
    Device(Error),
    /// A panic: a shape that a launch refuses, say.
    Panic(String),
}

/// Of failed comparisons, those that are told in full.
const TOLD: usize = 5;

impl Outcome {
    /// Panics if something went wrong, with all of it.
    #[track_caller]
    pub fn unwrap(&self) {
        match &self.failed {
            None => {}
            Some(Failed::Comparisons(n, told)) => {
                panic!("{}\n({n} comparisons of {} failed)", told.join("\n"), self.comparisons)
            }
            Some(Failed::Device(error)) => panic!("{error}"),
            Some(Failed::Panic(message)) => panic!("{message}"),
        }
    }
}

impl Check {
    /// Runs it on a device. With [`Size::Card`], stale memory is filled with NaN there: see [`Device::set_poison`].
    pub fn run(&self, device: &Device, size: Size) -> Outcome {
        let start = Instant::now();
        // The interpreter knows by itself what was never written.
        device.set_poison(size == Size::Card);
        let mut run = Run { device, size, comparisons: 0, values: 0, worst: None, failures: 0, told: Vec::new() };
        // Buffers of a check that panics are dropped; nothing else is shared.
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.run)(&mut run).and_then(|()| device.synchronize())));
        let failed = match outcome {
            Err(panic) => Some(Failed::Panic(message(&*panic))),
            Ok(Err(error)) => Some(Failed::Device(error)),
            Ok(Ok(())) => (run.failures > 0).then_some(Failed::Comparisons(run.failures, run.told)),
        };
        let Run { comparisons, values, worst, .. } = run;
        Outcome { comparisons, values, worst, failed, time: start.elapsed() }
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_string()
}

/// A check that is running: its device, and what it has found so far.
pub struct Run<'a> {
    device: &'a Device,
    size: Size,
    comparisons: usize,
    values: usize,
    worst: Option<(f64, String)>,
    failures: usize,
    told: Vec<String>,
}

impl Run<'_> {
    /// Where it runs.
    pub fn device(&self) -> &Device {
        self.device
    }

    /// Shapes, and those for a card besides, if it is one.
    pub fn sizes<T: Copy>(&self, small: &[T], of_a_card: &[T]) -> Vec<T> {
        let large = if self.size == Size::Card { of_a_card } else { &[] };
        [small, large].concat()
    }

    /// These elements on the device.
    pub fn on<T: Pod>(&self, elements: &[T]) -> Result<Buffer<T>, Error> {
        Buffer::from_slice(self.device, elements)
    }

    /// The same for several.
    pub fn all_on<T: Pod, const N: usize>(&self, all: [&[T]; N]) -> Result<[Buffer<T>; N], Error> {
        let buffers: Vec<Buffer<T>> = all.into_iter().map(|elements| self.on(elements)).collect::<Result<_, _>>()?;
        Ok(buffers.try_into().expect("one for each"))
    }

    /// Elements that nobody has written.
    pub fn stale<T: Pod>(&self, len: usize) -> Result<Buffer<T>, Error> {
        Buffer::stale(self.device, len)
    }

    /// The same for several of one length.
    pub fn all_stale<T: Pod, const N: usize>(&self, len: usize) -> Result<[Buffer<T>; N], Error> {
        let buffers: Vec<Buffer<T>> = (0..N).map(|_| self.stale(len)).collect::<Result<_, _>>()?;
        Ok(buffers.try_into().expect("as many as asked for"))
    }

    /// Demands that every `|actual - expected| <= bound`. `what` begins with the kernel's name.
    pub fn within(&mut self, what: &str, actual: &[f32], expected: &[f64], bound: impl Fn(usize) -> f64) {
        if !self.same_len(what, actual.len(), expected.len()) {
            return;
        }
        let mut worst = (0.0, 0);
        for (i, (&a, &e)) in actual.iter().zip(expected).enumerate() {
            let error = (a as f64 - e).abs();
            // No error is within a bound of 0.
            let share = if error == 0.0 { 0.0 } else { error / bound(i) };
            // NaN is the worst of all.
            if share > worst.0 || share.is_nan() {
                worst = (if share.is_nan() { f64::INFINITY } else { share }, i);
            }
        }
        self.nearest(what, worst.0);
        let (share, i) = worst;
        if share > 1.0 {
            let (a, e) = (actual[i], expected[i]);
            self.fail(format!(
                "{what}: element {i} of {} is {a:e}, expected {e:e}: off by {:e}, bound {:e} ({share:.1} times)",
                actual.len(),
                (a as f64 - e).abs(),
                bound(i)
            ));
        }
    }

    /// Demands that one number is within its bound.
    pub fn number_within(&mut self, what: &str, actual: f64, expected: f64, bound: f64) {
        self.count(1);
        let error = (actual - expected).abs();
        let share = if error == 0.0 { 0.0 } else { error / bound };
        self.nearest(what, if share.is_nan() { f64::INFINITY } else { share });
        if error > bound || error.is_nan() {
            self.fail(format!("{what}: {actual:e}, expected {expected:e}, bound {bound:e}"));
        }
    }

    /// Demands the same bits; two NaN are the same.
    pub fn same_bits(&mut self, what: &str, actual: &[f32], expected: &[f32]) {
        if !self.same_len(what, actual.len(), expected.len()) {
            return;
        }
        let differs = |(a, e): (&f32, &f32)| a.to_bits() != e.to_bits() && !(a.is_nan() && e.is_nan());
        let different = actual.iter().zip(expected).filter(|&pair| differs(pair)).count();
        if let Some(i) = actual.iter().zip(expected).position(differs) {
            let (a, e) = (actual[i], expected[i]);
            self.fail(format!(
                "{what}: element {i} of {} is {a:e}, expected the bits of {e:e} ({different} differ)",
                actual.len()
            ));
        }
    }

    /// Demands that elements are equal.
    pub fn same<T: PartialEq + Debug>(&mut self, what: &str, actual: &[T], expected: &[T]) {
        if !self.same_len(what, actual.len(), expected.len()) {
            return;
        }
        if let Some(i) = actual.iter().zip(expected).position(|(a, e)| a != e) {
            let (a, e) = (&actual[i], &expected[i]);
            self.fail(format!("{what}: element {i} of {} is {a:?}, expected {e:?}", actual.len()));
        }
    }

    /// Demands that something holds, and else says `what`.
    pub fn holds(&mut self, what: &str, it: bool) {
        self.count(1);
        if !it {
            self.fail(what.to_string());
        }
    }

    fn same_len(&mut self, what: &str, actual: usize, expected: usize) -> bool {
        self.count(expected);
        if actual != expected {
            self.fail(format!("{what}: {actual} elements, expected {expected}"));
        }
        actual == expected
    }

    fn count(&mut self, values: usize) {
        self.comparisons += 1;
        self.values += values;
    }

    fn nearest(&mut self, what: &str, share: f64) {
        if self.worst.as_ref().is_none_or(|(worst, _)| share > *worst) {
            self.worst = Some((share, what.to_string()));
        }
    }

    fn fail(&mut self, sentence: String) {
        self.failures += 1;
        if self.told.len() < TOLD {
            self.told.push(sentence);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cuda::ops::elementwise::add;
    use cuda_testing::Interpreter;

    fn outcome(run: fn(&mut Run) -> Result<(), Error>) -> Outcome {
        Check { family: "tests", name: "a check", run }.run(&Interpreter::default().device(), Size::Small)
    }

    #[test]
    fn what_came_nearest_to_its_bound_is_told() {
        let outcome = outcome(|run| {
            run.within("add a", &[1.0, 2.0], &[1.0, 2.5], |_| 1.0);
            run.within("add b", &[1.0], &[1.75], |_| 1.0);
            run.within("add c", &[1.0], &[1.0], |_| 0.0);
            run.same_bits("add d", &[f32::NAN, 0.0], &[-f32::NAN, 0.0]);
            run.number_within("sum", 1.0, 1.0, 0.0);
            Ok(())
        });
        assert!(outcome.failed.is_none(), "{outcome:?}");
        assert_eq!((outcome.comparisons, outcome.values), (5, 7));
        assert_eq!(outcome.worst, Some((0.75, "add b".into())));
    }

    #[test]
    fn every_kind_of_comparison_can_fail_and_the_check_goes_on() {
        let outcome = outcome(|run| {
            run.within("add", &[1.0, 2.0, f32::NAN], &[1.0, 2.5, 0.0], |_| 0.25);
            run.within("sub", &[1.0], &[1.5], |_| 0.0);
            run.number_within("sum", f64::NAN, 0.0, 1.0);
            run.same_bits("scale", &[0.0, 1.0], &[-0.0, 1.0]);
            run.same("gather", &[1, 2], &[1, 3]);
            run.same("gather", &[1], &[1, 2]);
            run.holds("log: a reason", false);
            Ok(())
        });
        let Some(Failed::Comparisons(7, told)) = outcome.failed else { panic!("{outcome:?}") };
        assert_eq!(told.len(), TOLD);
        assert!(told[0].starts_with("add: element 2 of 3 is NaN, expected 0e0"), "{told:?}");
        assert!(told[1].starts_with("sub: element 0 of 1 is 1e0, expected 1.5e0: off by 5e-1, bound 0e0"), "{told:?}");
        assert!(told[3].contains("expected the bits of -0e0 (1 differ)"), "{told:?}");
        assert_eq!(outcome.worst, Some((f64::INFINITY, "add".into())));
    }

    #[test]
    fn a_kernel_that_fails_and_a_panic_are_outcomes() {
        let fault = outcome(|run| {
            let (unwritten, mut dst) = (run.stale(5)?, run.stale(5)?);
            add(unwritten.as_slice(), unwritten.as_slice(), dst.as_mut())
        });
        let Some(Failed::Device(error)) = fault.failed else { panic!("{fault:?}") };
        assert!(error.to_string().contains("add_f32 (launch 1, grid 1 x 1 x 1"), "{error}");

        let panic = outcome(|run| {
            let (x, mut dst) = (run.on(&[1.0, 2.0])?, run.stale(1)?);
            add(x.as_slice(), x.as_slice(), dst.as_mut())
        });
        let Some(Failed::Panic(message)) = panic.failed else { panic!("{panic:?}") };
        assert!(message.contains("add: input 0 has 2 elements, dst 1"), "{message}");
    }
}
