//! `--device`: where a command computes.

use anyhow::Context;
use cuda::ops::elementwise::scale;
use cuda::{Buffer, Error};
use std::fmt;
use std::str::FromStr;
use tensor::Device;

/// The value of `--device`: `cpu`, `cuda` (GPU number 0) or `cuda:N`.
///
/// ```
/// use silurian::device::DeviceArg;
///
/// assert_eq!("cuda".parse(), Ok(DeviceArg::Cuda(0)));
/// assert_eq!(DeviceArg::Cuda(1).to_string(), "cuda:1");
/// assert_eq!("gpu".parse::<DeviceArg>(), Err("expected cpu, cuda or cuda:N (a GPU's number, from 0)".to_string()));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceArg {
    /// The processor.
    #[default]
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

impl FromStr for DeviceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceArg, String> {
        // `parse` takes a sign, which no number of a GPU has.
        let number = |text: &str| text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
        match text {
            "cpu" => Some(DeviceArg::Cpu),
            "cuda" => Some(DeviceArg::Cuda(0)),
            _ => text.strip_prefix("cuda:").and_then(number).map(DeviceArg::Cuda),
        }
        .ok_or_else(|| "expected cpu, cuda or cuda:N (a GPU's number, from 0)".to_string())
    }
}

impl fmt::Display for DeviceArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceArg::Cpu => f.write_str("cpu"),
            DeviceArg::Cuda(0) => f.write_str("cuda"),
            DeviceArg::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl DeviceArg {
    /// The device, after a kernel has run on it.
    ///
    /// Errors, with the flag in front: no driver, none that works, one that is too old for the kernels; no GPU, none of this
    /// number, one that is too old.
    pub fn open(self) -> anyhow::Result<Device> {
        let DeviceArg::Cuda(index) = self else { return Ok(Device::Cpu) };
        let device = cuda::Device::new(index).and_then(|device| try_kernel(&device).map(|()| device));
        Ok(Device::Cuda(device.with_context(|| format!("--device {self}"))?))
    }
}

/// The driver compiles the kernels when the first of a file is launched. Whether it can is found here, not in the middle of the work.
fn try_kernel(device: &cuda::Device) -> Result<(), Error> {
    let (one, mut result) = (Buffer::from_slice(device, &[1.0f32])?, Buffer::stale(device, 1)?);
    scale(1.0, one.as_slice(), result.as_mut())?;
    device.synchronize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cuda::driver::Properties;
    use cuda_testing::Interpreter;

    #[test]
    fn device_is_read_and_written() {
        for (text, device) in [
            ("cpu", DeviceArg::Cpu),
            ("cuda", DeviceArg::Cuda(0)),
            ("cuda:0", DeviceArg::Cuda(0)),
            ("cuda:12", DeviceArg::Cuda(12)),
        ] {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        for text in ["", "CPU", "gpu", "cuda:", "cuda:-1", "cuda:+1", "cuda:one", "cuda0", "cuda:99999999999999999999"]
        {
            let error = text.parse::<DeviceArg>().unwrap_err();
            assert!(error.contains("cpu, cuda or cuda:N"), "{text}: {error}");
        }
    }

    /// On a machine without a GPU this is the probe's sentence; with one, the number does not exist.
    #[test]
    fn a_gpu_that_is_not_there_is_an_error_with_the_flag() {
        let error = DeviceArg::Cuda(4000).open().unwrap_err();
        let said = format!("{error:#}");
        assert!(said.starts_with("--device cuda:4000: "), "{said}");
        let expected = match cuda::probe() {
            Ok(count) => Error::NoSuchDevice { index: 4000, count },
            Err(e) => e,
        };
        assert_eq!(error.downcast_ref::<Error>(), Some(&expected));
    }

    #[test]
    fn a_driver_that_is_too_old_is_found_at_once() {
        assert_eq!(try_kernel(&cuda_testing::device()), Ok(()));
        let properties = Properties { driver_version: (11, 2), ..Interpreter::default().properties };
        let old = Interpreter { properties, ptx_version: (7, 2), ..Interpreter::default() }.device();
        let error = try_kernel(&old).unwrap_err().to_string();
        assert!(error.contains("driver is too old") && error.contains("supports CUDA 11.2"), "{error}");
    }
}
