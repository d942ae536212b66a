//! Timing on a GPU, and the memory that it needs.

use super::super::progress;
use crate::table::Spread;
use bytemuck::Pod;
use cuda::{Buffer, Device, Error};
use half::bf16;
use kernels::testing::uniform;
use std::time::Instant;

/// A GPU to measure on, and how.
pub(super) struct Gpu {
    pub device: Device,
    repetitions: usize,
    /// After this no new measurement begins.
    until: Option<Instant>,
    /// What data that are taken by turns amount to in bytes: several times the L2 of any card of today (H200: 60 MB).
    rotated: usize,
}

/// Milliseconds of a repetition, at least. Events resolve half a microsecond.
const REPETITION_MS: f32 = 15.0;
/// Most sets of data that are taken by turns.
const MOST_SETS: usize = 64;

/// Work that is timed.
pub(super) struct Timed<'a> {
    /// Does it for every set of data.
    round: Box<dyn FnMut() -> Result<(), Error> + 'a>,
    /// Calls in that.
    calls: usize,
    /// How often that is done in a repetition.
    rounds: usize,
}

impl Gpu {
    pub fn new(device: &Device, repetitions: usize, until: Option<Instant>) -> Gpu {
        Gpu { device: device.clone(), repetitions, until, rotated: 512 << 20 }
    }

    /// For tests: little data, and one repetition.
    #[cfg(test)]
    pub fn of_a_test() -> Gpu {
        Gpu::on_a_test(cuda_testing::device())
    }

    /// The same on this device.
    #[cfg(test)]
    pub fn on_a_test(device: Device) -> Gpu {
        Gpu { device, repetitions: 1, until: None, rotated: 1 << 10 }
    }

    /// How often what is timed is timed.
    pub fn repetitions(&self) -> usize {
        self.repetitions
    }

    /// Whether the time is up.
    pub fn is_over(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }

    /// How many sets of so many bytes no L2 holds.
    pub fn sets(&self, bytes: usize) -> usize {
        self.rotated.div_ceil(bytes.max(1)).clamp(1, MOST_SETS)
    }

    /// So many sets of data as no L2 holds.
    pub fn rotated<S>(&self, mut make: impl FnMut() -> Result<S, Error>) -> Result<Vec<S>, Error> {
        let before = self.device.memory().in_use;
        let mut all = vec![make()?];
        let bytes = self.device.memory().in_use - before;
        for _ in 1..self.sets(bytes) {
            all.push(make()?);
        }
        Ok(all)
    }

    /// Elements that nobody has written.
    pub fn stale<T: Pod>(&self, len: usize) -> Result<Buffer<T>, Error> {
        Buffer::stale(&self.device, len)
    }

    /// Uniform in -1 .. 1; a million numbers, over and over.
    pub fn random<T: Random>(&self, len: usize) -> Result<Buffer<T>, Error> {
        self.repeated(&T::numbers(len.min(1 << 20)), len)
    }

    /// These elements over and over.
    pub fn repeated<T: Pod>(&self, elements: &[T], len: usize) -> Result<Buffer<T>, Error> {
        let mut buffer = self.stale(len)?;
        let mut filled = elements.len().min(len);
        buffer.as_mut().part(0..filled).copy_from_host(&elements[..filled])?;
        while filled < len {
            let n = filled.min(len - filled);
            let (front, mut back) = buffer.as_mut().split_at(filled);
            back.reborrow().part(0..n).copy_from(front.as_slice().part(0..n))?;
            filled += n;
        }
        Ok(buffer)
    }

    /// Calls of `work`, for one set of data after the other.
    pub fn calls<'a>(
        &self,
        sets: usize,
        mut work: impl FnMut(usize) -> Result<(), Error> + 'a,
    ) -> Result<Timed<'a>, Error> {
        self.timed(sets, Box::new(move || (0..sets).try_for_each(&mut work)))
    }

    /// The same, recorded as one graph.
    pub fn recorded<'a>(
        &self,
        sets: usize,
        mut work: impl FnMut(usize) -> Result<(), Error>,
    ) -> Result<Timed<'a>, Error> {
        let graph = self.device.graph(|| (0..sets).try_for_each(&mut work))?;
        self.timed(sets, Box::new(move || graph.launch()))
    }

    fn timed<'a>(&self, calls: usize, round: Box<dyn FnMut() -> Result<(), Error> + 'a>) -> Result<Timed<'a>, Error> {
        let mut timed = Timed { round, calls, rounds: 1 };
        // Once to load the kernels, once to see how long it takes.
        self.milliseconds(&mut timed)?;
        let ms = self.milliseconds(&mut timed)?.max(1e-3);
        timed.rounds = (REPETITION_MS / ms).ceil().clamp(1.0, 10_000.0) as usize;
        Ok(timed)
    }

    fn milliseconds(&self, timed: &mut Timed) -> Result<f32, Error> {
        let start = self.device.record()?;
        for _ in 0..timed.rounds {
            (timed.round)()?;
        }
        self.device.record()?.milliseconds_since(&start)
    }

    /// Seconds of a call of each, in repetitions by turns: for each, a time of every repetition. At least one, and no more when the time is up.
    pub fn by_turns<const N: usize>(&self, mut all: [Timed; N]) -> Result<[Vec<f64>; N], Error> {
        let mut seconds = [(); N].map(|_| Vec::new());
        for repetition in 0..self.repetitions.max(1) {
            if repetition > 0 && self.is_over() {
                break;
            }
            for (timed, seconds) in all.iter_mut().zip(&mut seconds) {
                let ms = self.milliseconds(timed)?;
                seconds.push(f64::from(ms) * 1e-3 / (timed.calls * timed.rounds) as f64);
            }
        }
        Ok(seconds)
    }

    /// Seconds of a call.
    pub fn seconds(&self, timed: Timed) -> Result<Vec<f64>, Error> {
        let [seconds] = self.by_turns([timed])?;
        Ok(seconds)
    }

    /// The rate of copying memory within the device, in GB/s (1e9) of what is read and what is written together.
    pub fn copy_gbs(&self) -> Result<f64, Error> {
        progress(format_args!("copying on {}", self.device.name()));
        let mut sets =
            self.rotated(|| Ok((self.random::<f32>(self.rotated / 8)?, self.stale::<f32>(self.rotated / 8)?)))?;
        let n = sets.len();
        let timed = self.calls(n, |set| {
            let (from, to) = &mut sets[set];
            to.as_mut().copy_from(from.as_slice())
        })?;
        let bytes = (self.rotated / 8 * 8) as f64;
        Ok(Spread::of(self.seconds(timed)?.iter().map(|s| bytes / s / 1e9)).median)
    }
}

/// What there are random numbers of.
pub(super) trait Random: Pod {
    fn numbers(len: usize) -> Vec<Self>;
}

impl Random for f32 {
    fn numbers(len: usize) -> Vec<f32> {
        uniform(1, len)
    }
}

impl Random for bf16 {
    fn numbers(len: usize) -> Vec<bf16> {
        uniform(1, len).into_iter().map(bf16::from_f32).collect()
    }
}

/// `amount / seconds`, for each repetition.
pub(super) fn rates(amount: f64, seconds: &[f64]) -> Spread {
    Spread::of(seconds.iter().map(|s| amount / s))
}

/// Microseconds.
pub(super) fn micros(seconds: &[f64]) -> Spread {
    Spread::of(seconds.iter().map(|s| 1e6 * s))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cuda::ops::elementwise::scale;
    use std::time::Duration;

    #[test]
    fn data_that_repeat_and_sets_beyond_the_cache() {
        let gpu = Gpu::of_a_test();
        assert_eq!(gpu.repeated(&[1u32, 2, 3], 8).unwrap().to_vec().unwrap(), [1, 2, 3, 1, 2, 3, 1, 2]);
        assert_eq!(gpu.repeated(&[1u32, 2, 3], 2).unwrap().to_vec().unwrap(), [1, 2]);
        assert_eq!(gpu.random::<bf16>(5).unwrap().len(), 5);
        assert_eq!((gpu.sets(1 << 10), gpu.sets(400), gpu.sets(1), gpu.sets(1 << 20)), (1, 3, 64, 1));
        assert_eq!(gpu.rotated(|| gpu.stale::<f32>(64)).unwrap().len(), 4);
    }

    /// The interpreter's clock counts the driver's calls, as milliseconds.
    #[test]
    fn a_call_takes_its_share_of_a_round() {
        let gpu = Gpu::of_a_test();
        let (x, mut y) = (gpu.random::<f32>(8).unwrap(), gpu.stale(8).unwrap());
        let mut sets = Vec::new();
        let timed = gpu.calls(3, |set| {
            sets.push(set);
            scale(2.0, x.as_slice(), y.as_mut())
        });
        assert_eq!(gpu.seconds(timed.unwrap()).unwrap(), [1e-3]);
        assert_eq!(sets[..7], [0, 1, 2, 0, 1, 2, 0]);
        // Once alone, once to record, then 1 + 1 + 5 rounds of 3.
        let mut calls = 0;
        let timed = gpu.recorded(3, |_| {
            calls += 1;
            scale(2.0, x.as_slice(), y.as_mut())
        });
        assert_eq!(gpu.seconds(timed.unwrap()).unwrap(), [1e-3]);
        assert_eq!(calls, 6);
    }

    #[test]
    fn when_the_time_is_up_a_measurement_ends_after_one_repetition() {
        let gpu = Gpu { repetitions: 100, until: Some(Instant::now() - Duration::from_secs(1)), ..Gpu::of_a_test() };
        assert!(gpu.is_over());
        let (x, mut y) = (gpu.random::<f32>(8).unwrap(), gpu.stale(8).unwrap());
        let timed = gpu.calls(1, |_| scale(2.0, x.as_slice(), y.as_mut())).unwrap();
        assert_eq!(gpu.seconds(timed).unwrap().len(), 1);
    }

    #[test]
    fn copying_counts_both_directions() {
        let gpu = Gpu::of_a_test();
        // A millisecond by the interpreter's clock for 1 KiB.
        assert_eq!(gpu.copy_gbs().unwrap(), 1024.0 / 1e-3 / 1e9);
    }
}
