//! A sum that stays where it is made.

use crate::{DType, Device, Tensor, failure};
use cuda::ops::reduce;
use kernels::Beta;

/// One number in f64, on the CPU or on a GPU: a loss, a norm. What makes it or takes it on a GPU does not wait for it; [`value`](Total::value)
/// does.
#[derive(Debug)]
pub struct Total(pub(crate) At);

#[derive(Debug)]
pub(crate) enum At {
    Cpu(f64),
    Cuda(cuda::Buffer<f64>),
}

impl Total {
    /// 0, on `device`. [Raises](failure) the failure of a GPU.
    pub fn zero(device: &Device) -> Total {
        Total(match device {
            Device::Cpu => At::Cpu(0.0),
            Device::Cuda(gpu) => At::Cuda(done(cuda::Buffer::zeros(gpu, 1))),
        })
    }

    /// The number. On a GPU this waits for all that was asked of it before. [Raises](failure) the failure of a GPU.
    pub fn value(&self) -> f64 {
        match &self.0 {
            At::Cpu(value) => *value,
            At::Cuda(buffer) => done(buffer.to_vec())[0],
        }
    }

    /// Adds `other`. Panics if it lies elsewhere; [raises](failure) the failure of a GPU.
    #[track_caller]
    pub fn add(&mut self, other: &Total) {
        match (&mut self.0, &other.0) {
            (At::Cpu(value), At::Cpu(other)) => *value += other,
            (At::Cuda(buffer), At::Cuda(other)) => done(reduce::sum_f64(other.as_slice(), Beta::One, buffer.as_mut())),
            _ => panic!("a total on the cpu and one on a GPU are added"),
        }
    }

    /// `scale` times it, rounded once: a tensor without axes, where it lies. [Raises](failure) the failure of a GPU.
    pub fn scaled(&self, scale: f64) -> Tensor {
        match &self.0 {
            At::Cpu(value) => Tensor::scalar((scale * value) as f32),
            At::Cuda(buffer) => {
                let mut rounded = Tensor::stale_on(&Device::Cuda(buffer.device().clone()), [], DType::F32);
                done(reduce::round_total(buffer.as_slice(), scale, rounded.cuda_slice_mut()));
                rounded
            }
        }
    }
}

#[track_caller]
fn done<T>(outcome: Result<T, cuda::Error>) -> T {
    outcome.unwrap_or_else(|e| failure::raise("a total", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops;

    #[test]
    fn totals_add_up_and_are_rounded_once() {
        for device in [Device::Cpu, Device::Cuda(cuda_testing::device())] {
            let on = |x: f32| Tensor::from_slice(&[x], [1]).to_device(&device).unwrap();
            let mut total = Total::zero(&device);
            assert_eq!(total.value(), 0.0);
            ops::sum_abs(&on(-3.0), &mut total);
            ops::sum_squares(&on(4097.0), &mut total); // 2^24 + 2^13 in f32: with 3, more bits than it has
            let mut twice = Total::zero(&device);
            [&total, &total].into_iter().for_each(|t| twice.add(t));
            assert_eq!((total.value(), twice.value()), (16785411.0, 33570822.0), "{device:?}");
            // 0.3 in f64 times the total, not its f32.
            let rounded = total.scaled(0.3);
            assert_eq!((rounded.item(), &*rounded.shape()), ((0.3 * 16785411.0) as f32, &[][..]), "{device:?}");
        }
    }
}
